"""
Suspects that take pictures and answer with names of classes: what is needed between them and methods, which make tensors in the model's input
space and read class numbers.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..evidence import MOST_UNUSABLE
from ..serialization import InvalidInput


if TYPE_CHECKING:
    from ..keys import ModelContext

# An image with more than this share of values outside of a picture's range, by more than rounding, was normalised otherwise.
MOST_CLIPPED, ROUNDING = 0.01, 1.5 / 255
Answers = list[tuple[Any, Any]]
# So many first answers without one that the key knows, and nothing more is asked.
ENOUGH_UNKNOWN = 5


class UnknownLabels(InvalidInput):
    """The suspect speaks of other classes than the key."""


class PictureSuspect(ABC):
    """
    A classifier of pictures as a function from images to probabilities: it undoes the owner's normalisation, and turns names into the owner's
    class numbers. `LABEL_0`, `LABEL_1` ... are always understood. Answers may be cut to the best few classes: the others count as zero;
    a classifier that gives no scores gives labels. A label that the owner's model does not know makes an answer unusable.

    Args:
        name (`str`): For messages.
        labels (`Mapping[str, int]` or `Sequence[str]`): The owner's class names and their numbers.
        mean, std (`Sequence[float]`): The owner's normalisation per channel.
    """

    def __init__(
        self, name: str, labels: Mapping[str, int] | Sequence[str], mean: Sequence[float], std: Sequence[float]
    ):
        self.name = name
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise InvalidInput(
                f"`mean` {list(mean)} and `std` {list(std)} must have one entry per channel, `std` above 0"
            )
        known = labels if isinstance(labels, Mapping) else {name: place for place, name in enumerate(labels)}
        self.classes = 1 + max(known.values(), default=-1)
        self.labels = {f"LABEL_{place}": place for place in range(self.classes)} | dict(known)
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
        # Images that were sent, those that were not because they are no pictures, and answers with labels that the key does not know.
        self.sent = self.clipped = self.unknown = 0
        self._examples = ", ".join(map(repr, list(known)[:5])) + (
            f" ... {len(known)} in all" if len(known) > 5 else ""
        )
        # Whether it gives labels alone; known after its first answer.
        self._labels_only: bool | None = None

    @abstractmethod
    def ask(self, picture: bytes) -> Answers:
        """Names and scores of one PNG; scores are `None` where there are none."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Probabilities `[n, classes]` (float64) of images `[n, channels, height, width]` in the model's input space, or labels `[n]` (int64)
        where there are no scores.
        """
        answers = [self._ask_one(image) for image in images]
        if self._labels_only is None and any(answers):
            self._labels_only = all(score is None for answer in answers for _, score in answer)
        if self._labels_only:
            return torch.tensor([self.labels.get(str(answer[0][0]), -1) if answer else -1 for answer in answers])
        return torch.stack([self._row(answer) for answer in answers])

    @property
    def notes(self) -> list[str]:
        """What a reader of the evidence should know about the asking."""
        return [self._said_of(self.clipped, self.sent + self.clipped)] if self.clipped else []

    def refuse_no_pictures(self, images: torch.Tensor) -> None:
        """
        Called with all images of a sub-key before the first one is sent.

        Raises:
            [`~serialization.InvalidInput`]: when more of them are no pictures under this normalisation than answers may be missing.
        """
        clipped = sum(map(self._is_clipped, images))
        if clipped > MOST_UNUSABLE * (len(images) - clipped):
            raise InvalidInput(self._said_of(clipped, len(images)))

    def _said_of(self, clipped: int, images: int) -> str:
        return (
            f"{clipped} of {images} images of the key are no pictures under mean {_short(self.mean)} and std {_short(self.std)}, and were not "
            "sent: give the normalisation that the owner's model was trained with (image_mean and image_std of its preprocessor_config.json)"
        )

    def _ask_one(self, image: torch.Tensor) -> Answers:
        if self._is_clipped(image):
            self.clipped += 1
            return []
        self.sent += 1
        answer = self.ask(self.picture(image))
        strange = [label for label, _ in answer if str(label) not in self.labels]
        self.unknown += bool(strange) or not answer
        if self.unknown == self.sent == ENOUGH_UNKNOWN:
            said = f"the label {str(strange[0])[:80]!r}, which the key does not know" if strange else "no label"
            raise UnknownLabels(
                f"{self.name} answered the first {self.sent} images with {said}: the key knows {self._examples}. Nothing more was asked; check "
                "that it tells the same classes apart, or give the `labels` that it uses"
            )
        return answer

    def _is_clipped(self, image: torch.Tensor) -> bool:
        pixels = self._pixels(image)
        outside = (pixels < -ROUNDING) | (pixels > 1 + ROUNDING)
        return float(outside.float().mean()) > MOST_CLIPPED

    def picture(self, image: torch.Tensor) -> bytes:
        """A PNG of one image `[channels, height, width]`: eight bits per channel, so it is a little rounded."""
        from PIL import Image

        pixels = self._pixels(image).clamp(0, 1).mul(255).round().to(torch.uint8)
        array = pixels.permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, format="PNG")
        return file.getvalue()

    def _pixels(self, image: torch.Tensor) -> torch.Tensor:
        """The image in 0..1, as it was before the owner's normalisation."""
        mean, std = self.mean, self.std
        if image.shape[0] == 1 and len({*zip(mean.flatten().tolist(), std.flatten().tolist(), strict=True)}) == 1:
            mean, std = mean[:1], std[:1]  # processors name three channels for grey pictures, too
        if image.shape[0] not in (1, 3) or len(mean) not in (1, image.shape[0]):
            raise InvalidInput(
                f"an image of {image.shape[0]} channels with a mean of {len(mean)} cannot be sent; give mean and std per channel"
            )
        return image.float() * std + mean

    def _row(self, answer: list[tuple[Any, Any]]) -> torch.Tensor:
        row = torch.zeros(self.classes, dtype=torch.float64)
        for label, score in answer:
            place = self.labels.get(str(label))
            if place is None or not isinstance(score, int | float):
                return torch.full_like(row, torch.nan)
            row[place] = score
        return row if answer else torch.full_like(row, torch.nan)


def _short(values: torch.Tensor) -> str:
    return ",".join(f"{value:g}" for value in values.flatten().tolist())


class ImageClassifier(PictureSuspect):
    """
    A function that is called as `transformers.pipeline("image-classification")` is: with one PIL image, it returns a list of
    `{"label": name, "score": probability}`. Such functions need no wrapping in `verify(function, key)` where the key holds the owner's class
    names and normalisation.

    Args:
        function (`Callable`):
            Takes a `PIL.Image.Image`.
        labels, mean, std:
            As in [`~suspects.endpoints.Endpoint`].

    Raises:
        [`~serialization.InvalidInput`]: for a normalisation that cannot be; on asking, for an answer of another form.

    Example:

    ```python
    >>> from hf_watermark.suspects import ImageClassifier

    >>> suspect = ImageClassifier(my_function, labels=["cat", "dog"], mean=[0.5] * 3, std=[0.5] * 3)
    >>> verify(suspect, key).verdict
    ```
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        labels: Mapping[str, int] | Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__(str(getattr(function, "__name__", type(function).__name__)), labels, mean, std)
        self.function = function

    def ask(self, picture: bytes) -> Answers:
        from PIL import Image

        answer = self.function(Image.open(io.BytesIO(picture)))
        items = _items(answer)
        if items is None:
            raise InvalidInput(
                f"{self.name} answers to a picture with a {type(answer).__name__}; return a list of "
                '{"label": name, "score": probability}, as pipelines do'
            )
        return [(item["label"], item.get("score")) for item in items]


class Function:
    """
    A function that a user gave as a suspect, of which nothing says whether it takes tensors or pictures. It is called with tensors first;
    where it cannot take them, or answers with names of classes, it is asked pictures from then on.

    Args:
        function (`Callable`):
            Its `image_processor`, if it has one as pipelines do, gives the normalisation where the key does not.
        context ([`~keys.ModelContext`]):
            Class names and normalisation of the owner's model.
    """

    def __init__(self, function: Callable[[Any], Any], context: "ModelContext"):
        self.function, self.labels = function, context.labels
        processor = getattr(function, "image_processor", None)
        self.mean = context.mean or tuple(getattr(processor, "image_mean", None) or ())
        self.std = context.std or tuple(getattr(processor, "image_std", None) or ())
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self._takes_tensors = False
        self._pictures: ImageClassifier | None = None

    @property
    def notes(self) -> list[str]:
        return list(getattr(self._pictures or self.function, "notes", ()))

    @property
    def clipped(self) -> int:
        return self._pictures.clipped if self._pictures else 0

    def __call__(self, images: torch.Tensor) -> Any:
        if self._takes_tensors:
            return self.function(images)
        if self._pictures is not None:
            return self._pictures(images)
        try:
            answer = self.function(images)
        except Exception as error:  # what a stranger's function raises where it expects a picture can be anything
            refused = f"cannot be called with a tensor of images ({_in_short(error)})"
        else:
            if _items(answer) is None:
                self._takes_tensors = True
                return answer
            refused = "answers with names of classes"
        missing = [
            name for name, held in (("labels", self.labels), ("mean and std", self.mean and self.std)) if not held
        ]
        if missing:
            raise InvalidInput(
                f"{self.name} {refused}, and to ask it pictures the key does not hold the owner's {' nor '.join(missing)}; {WRAP}"
            )
        pictures = ImageClassifier(self.function, self.labels, self.mean, self.std)
        try:
            found = pictures(images)
        except (ConnectionError, UnknownLabels):
            raise
        except Exception as error:
            raise InvalidInput(
                f"{self.name} {refused}, nor does it work with a PIL image ({_in_short(error)}); return labels [n] or probabilities "
                f"[n, classes], or {WRAP}"
            ) from error
        self._pictures = pictures
        return found


WRAP = (
    "wrap it: hf_watermark.suspects.ImageClassifier(function, labels=..., mean=..., std=...), with a function that takes one PIL image and "
    'returns [{"label": name, "score": probability}]'
)


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _items(answer: Any) -> list[dict[str, Any]] | None:
    """The classes of one picture, of pictures in a list the first one's; `None` where the answer has no names of classes."""
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, list | tuple) and answer and isinstance(answer[0], list):
        answer = answer[0]
    named = (
        isinstance(answer, list | tuple)
        and answer
        and all(isinstance(item, dict) and "label" in item for item in answer)
    )
    return list(answer) if named else None
