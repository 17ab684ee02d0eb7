"""
Suspects that only answer queries over HTTP: Inference Endpoints and Gradio apps.

Methods make images in the model's input space; an endpoint takes picture files and answers with names of classes. [`Endpoint`] goes
between: it undoes the owner's normalisation, and turns names into the owner's class numbers.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import InferenceClient, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from ..serialization import InvalidInput
from .errors import NetworkError
from .pictures import Answers, PictureSuspect


APIS = ("inference", "gradio")
SECONDS = 60
# What passes: an endpoint that wakes up, is busy, or cuts a connection. Seconds before each further try, and the longest wait it may ask for.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
WAITS, LONGEST_WAIT = (1.0, 3.0, 9.0), 60


class _Passing(ConnectionError):
    """A failure after which the same picture may be sent again; `after` so many seconds if the endpoint says so."""

    def __init__(self, said: str, after: int = 0):
        super().__init__(said)
        self.after = after


class Endpoint(PictureSuspect):
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
        `ConnectionError`: on asking, when the endpoint cannot be reached or fails, also when tried again: no verdict may come from that.

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
        self.url = url
        self.api = api or ("gradio" if place.hostname.endswith(".hf.space") else "inference")
        if self.api not in APIS:
            raise InvalidInput(f"`api` is {api!r}: choose one of {', '.join(APIS)}")
        super().__init__(place.hostname, labels, mean, std)
        # What to do before the first picture is shown, such as noting that its sub-key is burnt.
        self.before_sending: Callable[[], None] = lambda: None
        self._ask = self._gradio(api_name, token) if self.api == "gradio" else self._inference(token)

    def refuse_no_pictures(self, images: torch.Tensor) -> None:
        """
        Raises:
            [`~serialization.InvalidInput`]: as for every suspect that takes pictures.
            `ConnectionError`: where nothing may leave this machine, before a sub-key counts as shown.
        """
        if self.api == "inference" and is_offline_mode():  # the other client does not know of it
            raise ConnectionError(self._offline())
        super().refuse_no_pictures(images)

    def ask(self, picture: bytes) -> Answers:
        """
        Names and scores of one PNG; what passes is tried again.

        Raises:
            `ConnectionError`: when it cannot be reached or fails.
        """
        if self.sent == 1:
            self.before_sending()
        tries = 0
        while True:
            tries += 1
            try:
                return self._ask(picture)
            except _Passing as error:
                if tries > len(WAITS) or error.after > LONGEST_WAIT:
                    asks = f" and asks to wait {error.after} seconds" if error.after else ""
                    raise ConnectionError(f"{error}, tries: {tries}{asks}; it was shown {self.sent} images") from None
                time.sleep(max(WAITS[tries - 1], error.after))

    @property
    def notes(self) -> list[str]:
        """What a reader of the evidence should know about the asking; empty before anything was asked."""
        shown = f"{self.name} was shown {self.sent} triggers: the sub-keys they belong to are burnt"
        return [*([shown] if self.sent else []), *super().notes]

    def _inference(self, token: str | None) -> Any:
        # Without a token the client sends the stored Hub token to whatever address it is given; only an own header prevents that.
        headers = None if token else {"authorization": ""}
        client = InferenceClient(model=self.url, token=token, headers=headers, timeout=SECONDS)

        def ask(picture: bytes) -> Answers:
            try:
                return [(item.label, item.score) for item in client.image_classification(picture, top_k=self.classes)]
            except HfHubHTTPError as error:
                status, after = error.response.status_code, error.response.headers.get("Retry-After", "")
                said = f"{self.name} refused or failed ({status})"
                if status in PASSING:
                    raise _Passing(said, int(after[:9]) if after.isdecimal() else 0) from None
                raise ConnectionError(said) from None
            except OfflineModeIsEnabled:
                raise ConnectionError(self._offline()) from None
            except (NetworkError, InferenceTimeoutError) as error:
                raise _Passing(f"{self.name} cannot be reached ({error or type(error).__name__})") from None
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

        def ask(picture: bytes) -> Answers:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "image.png"
                file.write_bytes(picture)
                try:
                    answer = client.predict(handle_file(str(file)), api_name=api_name)
                except Exception as error:
                    passes = isinstance(error, OSError | NetworkError) or "httpx" in type(error).__module__
                    raise (_Passing if passes else ConnectionError)(
                        f"{self.name} failed ({_first_line(error)})"
                    ) from None
            return self._confidences(answer)

        return ask

    def _confidences(self, answer: Any) -> Answers:
        """The content of a `gr.Label`."""
        found = answer.get("confidences") if isinstance(answer, dict) else None
        if isinstance(found, list) and all(isinstance(item, dict) for item in found):
            return [(item.get("label"), item.get("confidence")) for item in found]
        raise InvalidInput(
            f"{self.name} answers with a {type(answer).__name__}, expected that of a gr.Label with confidences"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
