"""Checkpoints that come back whole: transformers 5 writes other names than a live model has, and its Trainer loads them by name."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer

from ..backbones import second_names, unwrapped
from ..serialization import InvalidInput


class RestoringTrainer(Trainer):
    """
    [`~transformers.Trainer`] that saves every tensor under one name, and restores every tensor of a checkpoint, or says which one it cannot.

    Of a ViT the original restores 8 of 56 tensors, and goes on with a warning.

    Raises:
        [`~serialization.InvalidInput`]: when a checkpoint, or the best one that is loaded at the end, does not hold the whole model.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model = unwrapped(self.accelerator.unwrap_model(self.model))
        if state_dict is None and (second := undeclared_names(model)):
            state_dict = {name: tensor for name, tensor in model.state_dict().items() if name not in second}
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restored_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._restored_from = str(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Called with what was not restored; loads it rightly, or refuses to go on."""
        model = unwrapped(self.accelerator.unwrap_model(self.model))
        missing = set(load_result.missing_keys) - second_names(model) - not_saved(model)
        if not missing and not load_result.unexpected_keys:
            return
        try:
            restore(model, self._restored_from)
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidInput(
                f"{self._restored_from} does not restore the model: {len(missing)} tensors are not in it ({', '.join(sorted(missing)[:3]) or 'none'}), "
                f"{len(load_result.unexpected_keys)} of its own are not in the model. {' '.join(str(error).split())[:300]} Start from the beginning, or "
                "load the weights into `model` before the trainer is made"
            ) from None


def restore(model: nn.Module, folder: str) -> None:
    """
    Copies every tensor of a checkpoint into a live model of transformers, through the names that its file has.

    Raises:
        [`~serialization.InvalidInput`]: when one is missing or has another shape.
    """
    if not isinstance(model, PreTrainedModel):
        raise InvalidInput(f"A {type(model).__name__} is restored by the names of its own tensors only.")
    loading: Any = type(model)
    twin, info = loading.from_pretrained(
        folder, config=model.config, dtype=model.dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    second = second_names(model)
    missing = set(info["missing_keys"]) - second - not_saved(model)
    if missing or info["mismatched_keys"]:
        raise InvalidInput(f"transformers finds no value for {sorted(missing) or info['mismatched_keys']}.")
    # A twin without shared layers has no value for the second name of a tensor.
    state = {name: tensor for name, tensor in twin.state_dict().items() if name not in second | not_saved(model)}
    model.load_state_dict(state, strict=False)


def undeclared_names(model: nn.Module) -> set[str]:
    """[`second_names`] that `save_pretrained` does not know of, and stops at."""
    declared: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return second_names(model) - {*declared, *declared.values()}


def not_saved(model: nn.Module) -> set[str]:
    """Names of tensors that a model of transformers leaves out of its files."""
    return set(getattr(model, "_keys_to_ignore_on_save", None) or ())


__all__ = ["RestoringTrainer", "not_saved", "restore", "undeclared_names"]
