"""`Suspect`: one face for whatever is to be checked, which says what it can give."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .backbones import run_on_backbone
from .evidence import Access
from .serialization import InvalidInput, SafetensorsFolder


class AccessError(InvalidInput):
    """A check needs something that this suspect does not offer."""


Answer = Callable[[torch.Tensor], Any]


class Suspect:
    """
    What somebody wants checked. Make one with [`Suspect.open`].

    A suspect never runs remote code, is never built from its own config, and never sees a key.

    Args:
        weights (`Mapping[str, torch.Tensor]`, *optional*):
            Tensors by name, read one at a time.
        shapes (`Mapping[str, tuple[int, ...]]`, *optional*):
            Shape of every tensor.
        answer (`Callable`, *optional*):
            Takes float images `[n, channels, height, width]` in the model's input space and returns labels `[n]` or
            probabilities `[n, classes]`.
        module (`Callable`, *optional*):
            Gives the suspect as a module, or its tensors on the owner's architecture.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, torch.Tensor] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        answer: Answer | None = None,
        batch_size: int = 256,
        module: Callable[[], nn.Module] | None = None,
    ):
        self.name, self._module = name, module
        self._weights, self._shapes, self._answer, self.batch_size = weights, shapes, answer, batch_size
        self.queries = 0

    @classmethod
    def open(
        cls, source: "Suspect | nn.Module | str | Path | Answer", backbone: Mapping[str, Any] | None = None
    ) -> "Suspect":
        """
        Args:
            source (`Suspect`, `nn.Module`, `str`, `Path` or `Callable`):
                A model, a folder or file of safetensors, or a function `images -> labels or probabilities`.
            backbone (`Mapping`, *optional*):
                The owner's architecture (`key.backbone`), with which a folder's tensors can also be queried.

        Raises:
            [`~serialization.InvalidInput`]: when the source is none of these or cannot be read.
        """
        if isinstance(source, Suspect):
            return source
        if isinstance(source, nn.Module):
            state = source.state_dict()
            shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
            return cls(type(source).__name__, state, shapes, _ask_module(lambda: source), module=lambda: source)
        if isinstance(source, str | Path):
            return cls._open_path(Path(source), backbone)
        if callable(source):
            return cls("endpoint", answer=source)
        raise InvalidInput(
            f"cannot check a {type(source).__name__}; give a model, a folder of safetensors or a callable"
        )

    @classmethod
    def _open_path(cls, path: Path, backbone: Mapping[str, Any] | None) -> "Suspect":
        if not path.exists():
            raise InvalidInput(f"{path}: no such file or folder; give a folder with model.safetensors")
        tensors = SafetensorsFolder(path)
        if not backbone:
            return cls(str(path), tensors, tensors.shapes)
        # Built at the first query only: white-box checks never need the module.
        module = cache(lambda: run_on_backbone(backbone, tensors))
        return cls(str(path), tensors, tensors.shapes, _ask_module(module), module=module)

    @property
    def access(self) -> set[Access]:
        """What this suspect offers."""
        offered = {Access.WEIGHTS} if self._weights is not None else set()
        return offered | ({Access.LABELS} if self._answer is not None else set())

    def require(self, access: Access, method: str) -> None:
        if access not in self.access:
            offers = ", ".join(sorted(self.access)) or "nothing"
            raise AccessError(f"method `{method}` needs {access} of the suspect, {self.name} offers {offers}")

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        if self._weights is None:
            raise AccessError(f"{self.name} offers no weights; only black-box methods can check it")
        return self._weights

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        if self._shapes is None:
            raise AccessError(f"{self.name} offers no weights; only black-box methods can check it")
        return self._shapes

    def module(self) -> nn.Module:
        """
        The suspect as a module; do not change it.

        Raises:
            [`AccessError`]: when it can only be queried, or read.
        """
        if self._module is None:
            raise AccessError(
                f"{self.name} is no model whose weights can be changed; only plain answers can be checked"
            )
        return self._module()

    def ask(self, images: torch.Tensor) -> torch.Tensor:
        """Raw answers for `[n, channels, height, width]` images: labels `[n]` or probabilities `[n, classes]`."""
        if self._answer is None:
            raise AccessError(
                f"{self.name} cannot be queried; give the model itself, or a key that holds its backbone"
            )
        answers = []
        for batch in images.split(self.batch_size):
            answer = torch.as_tensor(self._answer(batch))
            if answer.ndim not in (1, 2) or len(answer) != len(batch):
                raise InvalidInput(
                    f"{self.name} answered with shape {tuple(answer.shape)} to {len(batch)} images; "
                    "return labels [n] or probabilities [n, classes]"
                )
            answers.append(answer.detach().cpu())
            self.queries += len(batch)
        return torch.cat(answers)

    def labels(self, images: torch.Tensor, classes: int) -> torch.Tensor:
        """
        Top-1 labels `[n]` (int64). A refused or unusable answer is -1 and never matches.

        Raises:
            [`~serialization.InvalidInput`]: when the suspect knows another number of classes than the key.
        """
        answers = self.ask(images)
        if answers.ndim == 1:
            if answers.is_floating_point():
                raise InvalidInput(
                    f"{self.name} answered with one float per image; return integer labels or probabilities"
                )
            return answers.long()
        if answers.shape[1] != classes:
            raise InvalidInput(
                f"{self.name} knows {answers.shape[1]} classes, the key was made for {classes}: the label sets do not match"
            )
        # NaN scores must not count as an answer.
        return torch.where(answers.isfinite().all(dim=1), answers.argmax(dim=1), -1)


def _ask_module(get_model: Callable[[], nn.Module]) -> Answer:
    def answer(images: torch.Tensor) -> torch.Tensor:
        model = get_model()
        parameter = next(model.parameters())
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                output = model(images.to(device=parameter.device, dtype=parameter.dtype))
        finally:
            model.train(was_training)
        return (output if isinstance(output, torch.Tensor) else output.logits).float()

    return answer
