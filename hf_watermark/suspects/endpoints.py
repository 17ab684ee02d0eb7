"""
Suspects that only answer queries over HTTP: Inference Endpoints and Gradio apps.

Methods make images in the model's input space; an endpoint takes picture files and answers with names of classes. [`Endpoint`] goes
between: it undoes the owner's normalisation, and turns names into the owner's class numbers.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from ..serialization import InvalidInput
from .errors import NetworkError


APIS = ("inference", "gradio")
SECONDS = 60
# An image with more than this share of values outside of a picture's range, by more than rounding, was normalised otherwise.
MOST_CLIPPED, ROUNDING = 0.01, 1.5 / 255


class Endpoint:
    """
    An image classifier behind an address, as a function from images to probabilities for [`~suspects.Suspect.open`].

    One request per image. Answers may be cut to the best few classes: the others count as zero; an endpoint that gives no scores gives
    labels. A label that the owner's model does not know makes an answer unusable, and so does an answer with no label at all, or an image
    that is no picture under this normalisation: it is not sent. Nothing that the endpoint sends is executed, and no stored Hub token is sent
    to it. Whoever runs the endpoint sees the triggers: a sub-key that was asked is burnt.

    Attributes:
        notes (`list[str]`): What a reader of the evidence should know about the asking.

    Args:
        url (`str`):
            Address, `http` or `https`.
        labels (`Mapping[str, int]` or `Sequence[str]`):
            The owner's class names and their numbers; `LABEL_0`, `LABEL_1` ... are always understood.
        mean (`Sequence[float]`):
            The owner's normalisation per channel: pixels in 0..1 were turned into `(pixel - mean) / std`.
        std (`Sequence[float]`):
            See `mean`; above 0.
        api (`str`, *optional*):
            `"inference"` (the protocol of Inference Endpoints) or `"gradio"`; by default `gradio` for `*.hf.space`.
        api_name (`str`, *optional*):
            For Gradio: the function to call, if the app has several.
        token (`str`, *optional*):
            Access token of this endpoint.

    Raises:
        [`~serialization.InvalidInput`]: for an address or normalisation that cannot be; on asking, for an answer of another form.
        `ConnectionError`: on asking, when the endpoint cannot be reached or fails: no verdict may come from that.

    Example:

    ```python
    >>> endpoint = Endpoint("https://example.com/classify", labels=["cat", "dog"], mean=[0.5] * 3, std=[0.5] * 3)
    >>> suspect = Suspect.open(endpoint)  # then: verify_sequentially(suspect, key, budget=200)
    ```
    """

    def __init__(
        self,
        url: str,
        labels: Mapping[str, int] | Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        api: str | None = None,
        api_name: str | None = None,
        token: str | None = None,
    ):
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise InvalidInput(f"{url[:200]!r} is no address; give https://...")
        self.url, self.name = url, place.hostname
        self.api = api or ("gradio" if place.hostname.endswith(".hf.space") else "inference")
        if self.api not in APIS:
            raise InvalidInput(f"`api` is {api!r}: choose one of {', '.join(APIS)}")
        if not mean or len(mean) != len(std) or min(std) <= 0:
            raise InvalidInput(
                f"`mean` {list(mean)} and `std` {list(std)} must have one entry per channel, `std` above 0"
            )
        known = labels if isinstance(labels, Mapping) else {name: place for place, name in enumerate(labels)}
        self.classes = 1 + max(known.values(), default=-1)
        self.labels = {f"LABEL_{place}": place for place in range(self.classes)} | dict(known)
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
        self.asked = self.clipped = 0
        # Whether the endpoint gives labels alone; known after its first answer.
        self._labels_only: bool | None = None
        self._ask = self._gradio(api_name, token) if self.api == "gradio" else self._inference(token)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Probabilities `[n, classes]` (float64) of images `[n, channels, height, width]` in the model's input space, or labels `[n]` (int64)
        where the endpoint gives no scores.
        """
        answers = [[] if self._is_clipped(image) else self._ask(self.picture(image)) for image in images]
        if self._labels_only is None and any(answers):
            self._labels_only = all(score is None for answer in answers for _, score in answer)
        if self._labels_only:
            return torch.tensor([self.labels.get(str(answer[0][0]), -1) if answer else -1 for answer in answers])
        return torch.stack([self._row(answer) for answer in answers])

    @property
    def notes(self) -> list[str]:
        """What a reader of the evidence should know about the asking; empty before anything was asked."""
        found = [f"{self.name} was shown {self.asked - self.clipped} triggers: the sub-keys they belong to are burnt"]
        if self.clipped:
            found.append(
                f"{self.clipped} of {self.asked} images are no pictures under mean {self.mean.flatten().tolist()} and std "
                f"{self.std.flatten().tolist()}, and were not sent: give the normalisation that the owner's model was trained with"
            )
        return found if self.asked else []

    def _is_clipped(self, image: torch.Tensor) -> bool:
        pixels = self._pixels(image)
        outside = (pixels < -ROUNDING) | (pixels > 1 + ROUNDING)
        self.asked += 1
        clipped = float(outside.float().mean()) > MOST_CLIPPED
        self.clipped += clipped
        return clipped

    def picture(self, image: torch.Tensor) -> bytes:
        """A PNG of one image `[channels, height, width]`: eight bits per channel, so endpoints see it a little rounded."""
        from PIL import Image

        pixels = self._pixels(image).clamp(0, 1).mul(255).round().to(torch.uint8)
        array = pixels.permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, format="PNG")
        return file.getvalue()

    def _pixels(self, image: torch.Tensor) -> torch.Tensor:
        """The image in 0..1, as it was before the owner's normalisation."""
        if image.shape[0] not in (1, 3) or len(self.mean) not in (1, image.shape[0]):
            raise InvalidInput(
                f"an image of {image.shape[0]} channels with a mean of {len(self.mean)} cannot be sent; give mean and std per channel"
            )
        return image.float() * self.std + self.mean

    def _row(self, answer: list[tuple[Any, Any]]) -> torch.Tensor:
        row = torch.zeros(self.classes, dtype=torch.float64)
        for label, score in answer:
            place = self.labels.get(str(label))
            if place is None or not isinstance(score, int | float):
                return torch.full_like(row, torch.nan)
            row[place] = score
        return row if answer else torch.full_like(row, torch.nan)

    def _inference(self, token: str | None) -> Any:
        # Without a token the client sends the stored Hub token to whatever address it is given; only an own header prevents that.
        headers = None if token else {"authorization": ""}
        client = InferenceClient(model=self.url, token=token, headers=headers, timeout=SECONDS)

        def ask(picture: bytes) -> list[tuple[Any, Any]]:
            try:
                return [(item.label, item.score) for item in client.image_classification(picture, top_k=self.classes)]
            except HfHubHTTPError as error:
                raise ConnectionError(f"{self.name} refused or failed ({error.response.status_code})") from None
            except OfflineModeIsEnabled:
                raise ConnectionError(self._offline()) from None
            except (NetworkError, InferenceTimeoutError) as error:
                raise ConnectionError(f"{self.name} cannot be reached ({error or type(error).__name__})") from None
            except (TypeError, ValueError, AttributeError, KeyError):
                raise InvalidInput(f"{self.name} does not answer as an image classification endpoint") from None

        return ask

    def _offline(self) -> str:
        return f"{self.name} was not asked: offline mode is on; unset HF_HUB_OFFLINE to ask an endpoint"

    def _gradio(self, api_name: str | None, token: str | None) -> Any:
        try:
            from gradio_client import Client, handle_file
        except ImportError:
            raise ImportError(
                "asking a Gradio app needs gradio_client: pip install 'hf-watermark[endpoints]'"
            ) from None
        # With `None` the client would send the stored Hub token.
        options: dict[str, Any] = {"token": token or False, "download_files": False}
        try:
            client = Client(self.url, verbose=False, analytics_enabled=False, **options)
        except OfflineModeIsEnabled:
            raise ConnectionError(self._offline()) from None
        except Exception as error:  # the client raises plain exceptions of its own
            raise ConnectionError(f"{self.name} is no Gradio app that can be reached ({_first_line(error)})") from None

        def ask(picture: bytes) -> list[tuple[Any, Any]]:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "image.png"
                file.write_bytes(picture)
                try:
                    answer = client.predict(handle_file(str(file)), api_name=api_name)
                except Exception as error:
                    raise ConnectionError(f"{self.name} failed ({_first_line(error)})") from None
            return self._confidences(answer)

        return ask

    def _confidences(self, answer: Any) -> list[tuple[Any, Any]]:
        """The content of a `gr.Label`."""
        found = answer.get("confidences") if isinstance(answer, dict) else None
        if isinstance(found, list) and all(isinstance(item, dict) for item in found):
            return [(item.get("label"), item.get("confidence")) for item in found]
        raise InvalidInput(
            f"{self.name} answers with a {type(answer).__name__}, expected that of a gr.Label with confidences"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
