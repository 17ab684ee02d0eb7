"""`WatermarkTrainer`: the only place that knows about loss scaling, processes and key handling."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from ..backbones import adapter_layers, as_pretrained, refuse_path, unwrapped
from ..configuration import WatermarkConfig, as_configs
from ..evidence import Evidence
from ..keys import Owner, WatermarkKey, refuse_unloaded
from ..publishing.precommit import PRECOMMIT
from ..serialization import InvalidInput, read_json
from ..serialization.words import known_names
from .closing import report
from .embedding import Change, Embedding, Moment, TrainingData, unchanged
from .evaluating import EvaluatingTrainer
from .keeping import kept_embeddings, warn_of_lost
from .marks import Kind, Marks, key_for_all
from .planning import make_key
from .preflight import before_first_step, refuse_uncarried


class WatermarkTrainer(EvaluatingTrainer):
    """
    [`~transformers.Trainer`] that embeds marks while it trains. Use a method's trainer, or several stacked with
    [`stack_trainers`].

    Args:
        model (`nn.Module`, *optional*):
            That of the [`~transformers.Trainer`]; a module of timm is put behind [`wrap_timm`].
        watermark ([`WatermarkConfig`], `str` or `dict`, or a list of these, *optional*):
            Config of the method, or one per stacked method: as an object, as the method's name (its defaults), or as a dict of fields with
            the name under `method`. By default the configs that `key` was made for; of a fresh key the defaults of each method.
        owner ([`Owner`], *optional*):
            Makes a fresh key for this model; `trainer.key` holds it and is never written by the trainer.
        key ([`WatermarkKey`], *optional*):
            An existing key instead: to resume a run, or after binding it to a beacon.
        keep (`Sequence[WatermarkKey]`, *optional*):
            Earlier keys whose marks the model carries, with methods of this trainer: they are held while the new mark goes in, and read back
            after training.

    Attributes:
        marks ([`~training.marks.Marks`]): The methods' embeddings as one, which this trainer calls.
        embeddings (`list[Embedding]`): One per method, in the order in which they were stacked.
        train_dataset: The data without the rows that the key's pool took out: samplers and dataloaders of your own count these rows.

    Raises:
        `ValueError`: for an owner beside a key, configs of other methods than the trainer's, or a way of training under which no mark can be put in:
            weights of the mark that do not train, are not in the optimizer or are not saved, labels of another kind, a learning rate of zero.
        [`~serialization.InvalidInput`]: when the mark does not fit into this model, or the key was made for another run.

    Example:

    ```python
    >>> trainer = GreedyResidualsTrainer(
    ...     model=model, args=args, train_dataset=ds, watermark=GreedyResidualsConfig(), owner=owner
    ... )
    >>> trainer.train()
    >>> trainer.evidence.verdict
    >>> trainer.key.save("keys/of-this-model", passphrase="correct horse battery")
    ```
    """

    embedding_classes: ClassVar[tuple[type[Embedding], ...]] = ()

    def __init__(
        self,
        model: Any = None,
        *args: Any,
        watermark: Any = None,
        owner: Owner | None = None,
        key: WatermarkKey | None = None,
        keep: Sequence[WatermarkKey] = (),
        **kwargs: Any,
    ):
        if (owner is None) == (key is None):
            raise ValueError(
                "give exactly one of `owner=` (makes a fresh key; `Owner.create()` makes an owner) and `key=` (continues with an existing one)"
            )
        refuse_unloaded(*(("owner", owner, Owner) if key is None else ("key", key, WatermarkKey)))
        refuse_path(model)
        super().__init__(as_pretrained(model), *args, **kwargs)
        # Most vision models take **kwargs in `forward` and ignore `num_items_in_batch`; the Trainer would then scale their loss by
        # accumulation steps x processes. As a per-batch mean, task loss and penalty both come out exactly once per step.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False  # see `_steps_in_loss`
        if self.is_deepspeed_enabled or self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ValueError(
                "DeepSpeed and FSDP1 keep the weights where a mark cannot be put in; use DDP or FSDP2 (`fsdp_version: 2`)"
            )
        if self.is_fsdp_enabled and adapter_layers(self._bare_model()):
            raise ValueError("FSDP2 keeps shards of an adapter's factors, whose products cannot be read; use DDP")
        if self.args.push_to_hub and self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy` is {str(self.args.hub_strategy)!r}: it uploads pickles of the training state; choose 'end' or 'every_save'"
            )
        if watermark is None and key is not None:
            watermark = [assignment.config for assignment in key.assignments]
        self._configs = self._sorted_configs(watermark)
        self.evidence: Evidence | None = None
        self._micro_step = 0
        self._checked: Any = None  # the model that was seen to be the marked one
        self._change: Change = unchanged
        self._asked = self._used = False  # whether a loss with the marks was computed in this step, and trained on
        self._hooked: Any = None  # the optimizer that tells the embeddings of its steps
        self._owner = owner
        self._given_dataset, self.kept = self.train_dataset, tuple(keep)
        # The first process draws the key, every one embeds it.
        self.key = key_for_all(lambda: self._create_key(owner)) if owner is not None else cast(WatermarkKey, key)
        self._attach()
        self.refuse_weakest_as_best()
        self.add_callback(_Epochs(self))

    # Methods stacked in this trainer

    def _sorted_configs(self, watermark: Any) -> list[WatermarkConfig]:
        """One config per embedding, in the same order."""
        classes = {embedding.method: embedding.config_class for embedding in self.embedding_classes}

        def find(method: str) -> type[WatermarkConfig]:
            if method not in classes:
                raise InvalidInput(
                    f"{type(self).__name__} does not mark with {method[:100]!r}: {known_names(method, classes)}"
                )
            return classes[method]

        wanted = list(classes)
        given = as_configs(watermark, find, wanted)
        configs = {config.method: config for config in given}
        if sorted(configs) != sorted(wanted) or len(given) != len(wanted):
            raise ValueError(
                f"`watermark` holds configs for {sorted(config.method for config in given)}, {type(self).__name__} needs one for "
                f"each of {sorted(wanted)}"
            )
        return [configs[method] for method in wanted]

    def embedding(self, kind: type[Kind]) -> Kind:
        """The embedding of one method."""
        return self.marks.embedding(kind)

    def _create_key(self, owner: Owner) -> WatermarkKey:
        marks = list(zip(self.embedding_classes, self._configs, strict=True))
        return make_key(self._bare_model(), self._training_data(), marks, owner, processor=self.processing_class)

    def _attach(self) -> None:
        """The marks, in the model that trains."""
        self.marks = Marks(self.key, self._bare_model(), self.embedding_classes, self._configs, self._training_data())
        self.embeddings = self.marks.embeddings
        self.train_dataset = self.marks.data
        data = TrainingData(self.train_dataset, self.data_collator)
        # They are called as those of the new key are.
        self.embeddings += kept_embeddings(self.kept, self.embedding_classes, self.marks.model, data)
        refuse_uncarried(self.embeddings)

    def _training_data(self) -> TrainingData:
        """The data as they were given, without the columns that the model does not take."""
        return TrainingData(self._given_dataset, self._get_collator_with_removed_columns(self.data_collator))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = as_pretrained(super().call_model_init(trial))
        if hasattr(self, "embeddings"):  # `train` makes the model anew: the mark goes into the one that trains
            self.model = model
            self._attach()
        return model

    def sync_buffers(self) -> None:
        """Gives every process the BatchNorm statistics of the first one, which are those that are saved."""
        self.marks.sync_buffers()

    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(cast(nn.Module, self.model))

    # Training

    def watermark_loss(self) -> torch.Tensor | None:
        """What the methods add to the loss whatever the batch is, once per optimizer step; `None` when there is nothing."""
        return self.marks.penalty()

    def _refuse_other_model(self) -> None:
        if self.model is self._checked:
            return
        if self.marks.model is not unwrapped(self._bare_model()):
            raise ValueError(
                "the model that trains is not the one that the trainer was made with, so the mark would go into a model that nobody keeps; "
                "do not replace `trainer.model`: make a new trainer, with `key=trainer.key`"
            )
        self._checked = self.model

    def _moment(self) -> Moment:
        state, process = self.state, self.accelerator.process_index
        batch = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return Moment(state.global_step, state.max_steps, self._micro_step, process, state.max_steps * batch)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        # The innermost one: its step is the last thing that touches the weights, also under a gradient scaler.
        inner: Any = getattr(optimizer, "optimizer", optimizer)
        if inner is not self._hooked:
            inner.register_step_post_hook(lambda *_: self.marks.after_update())
            self._hooked = inner
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        Raises:
            `ValueError`: when a subclass computes its loss without the marks.
        """
        self._refuse_other_model()
        self._asked = self._used = False
        self.marks.progress(self._moment())
        one_pass = partial(super().training_step, model)

        def step(change: Change = unchanged) -> torch.Tensor:
            self._change = change
            try:
                return one_pass(dict(inputs), *args, **kwargs)
            finally:
                self._change = unchanged

        loss = self.marks.around_step(step)
        if not self._asked:
            raise ValueError(
                f"`compute_loss` of {type(self).__name__} does not call `super().compute_loss(...)`, which adds the mark to the loss; call it, or "
                "give the loss as `compute_loss_func`"
            )
        if not self._used:
            raise ValueError(
                f"`compute_loss` of {type(self).__name__} calls `super().compute_loss(...)` and then trains on another loss, without the mark: return "
                "that one, with your own added, or give your own as `compute_loss_func`"
            )
        self._micro_step = 0 if self.accelerator.sync_gradients else self._micro_step + 1
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._asked = True
        batch = self.marks.extend(inputs)
        if num_items_in_batch is not None:  # those that were added count too
            num_items_in_batch = num_items_in_batch * len(batch["labels"]) / len(inputs["labels"])
        # A copy: the Trainer takes the labels out where it smooths them.
        loss, outputs = super().compute_loss(model, dict(batch), True, num_items_in_batch)
        loss = loss * self._steps_in_loss()
        own = self.marks.loss(batch, outputs)
        loss = self._change(loss if own is None else loss + own.to(loss.device))
        loss.register_hook(self._note_use)
        return (loss, outputs) if return_outputs else loss

    def _note_use(self, gradient: torch.Tensor) -> None:
        self._used = True

    def _steps_in_loss(self) -> int:
        """
        A loss that is scaled for the whole optimizer step (`compute_loss_func`) is a share of it: times this number it is a mean of its batch, as
        every mark is, and the Trainer divides all of them alike.
        """
        declared = type(self).loss_is_scaled_for_ga
        scaled = self.compute_loss_func is not None if declared is None else declared
        return getattr(self, "current_gradient_accumulation_steps", 1) if scaled else 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.marks.logs(taken=logs)
        super().log(logs, *args, **kwargs)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains, then checks the mark itself: a mark that cannot be read back is reported and not published."""
        self._refuse_other_key(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self.sync_buffers()
        self.evidence = self.verify()
        self.log({"watermark_log2_p": self.evidence.log2_p, "watermark_match_rate": self.evidence.rate})
        report(self.key, self.evidence, self.marks.stronger())
        warn_of_lost(self.kept, self.embedding_classes, self.marks.whole_model())
        return output

    def _refuse_other_key(self, resume_from_checkpoint: str | bool | None) -> None:
        if not resume_from_checkpoint:
            return
        from transformers.trainer_utils import get_last_checkpoint

        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        published = Path(str(folder)) / PRECOMMIT
        if published.exists() and read_json(published).get("precommit") != self.key.precommit.hex():
            raise InvalidInput(
                f"{folder} was trained under another key; load that key and pass it: key=WatermarkKey.load('keys/...')"
            )

    def verify(self, suspect: Any = None) -> Evidence:
        """Evidence for `suspect` (the model in training by default; else as in [`verify`]) under `trainer.key`, on the owner's own word."""
        return self.marks.verify(suspect)


def stack_trainers(*classes: type[WatermarkTrainer]) -> type[WatermarkTrainer]:
    """
    One trainer class that embeds the marks of several methods.

    Args:
        classes (`type[WatermarkTrainer]`):
            One trainer class per method.

    Raises:
        `ValueError`: for no class, or one that is named twice.

    Example:

    ```python
    >>> Stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    >>> trainer = Stacked(model=model, args=args, train_dataset=ds, watermark=[GreedyResidualsConfig(), FunctionCoupledConfig()], owner=owner)
    ```
    """
    if len(set(classes)) != len(classes) or not classes:
        raise ValueError(f"stack_trainers needs different trainer classes, got {[cls.__name__ for cls in classes]}")
    name = "Stacked" + "".join(cls.__name__.removesuffix("Trainer") for cls in classes) + "Trainer"
    return type(name, classes, {"embedding_classes": tuple(item for cls in classes for item in cls.embedding_classes)})


# Under which a checkpoint (`trainer_state.json`) holds what the methods need of it.
STATES = "WatermarkStates"


class _Epochs(TrainerCallback):
    """Tells the embeddings that a training or an epoch begins, and a checkpoint what they need of it."""

    def __init__(self, trainer: WatermarkTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._refuse_other_model()
        self.trainer._micro_step = 0
        saved = state.stateful_callbacks.get(STATES, {})
        self.trainer.marks.begin(self.trainer._moment(), saved.get("attributes", {}).get("methods", []))
        before_first_step(self.trainer, self.trainer.embeddings)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks[STATES] = {"args": {}, "attributes": {"methods": self.trainer.marks.states()}}

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.marks.progress(self.trainer._moment())
        self.trainer.marks.before_epoch(state.epoch or 0, args.num_train_epochs, self.trainer.optimizer)


__all__ = ["WatermarkTrainer", "stack_trainers"]
