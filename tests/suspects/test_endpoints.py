"""Classifiers behind an address, on the loopback interface."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from inference_server import MEAN, STD, InferenceServer, classify
from PIL import Image

from hf_watermark import Endpoint, InvalidInput, Suspect, verify, verify_sequentially
from hf_watermark.keys import ModelContext
from hf_watermark.suspects import BudgetExceeded


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    servers = []

    def start(model):
        servers.append(InferenceServer(model))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited for, without waiting."""
    waited = []
    monkeypatch.setattr("hf_watermark.suspects.endpoints.time", SimpleNamespace(sleep=waited.append))
    return waited


def endpoint_of(server, model, **changes):
    labels = ModelContext.of(model.config.to_dict()).labels
    return Endpoint(server.url, **({"labels": labels, "mean": MEAN, "std": STD} | changes))


@pytest.mark.parametrize("method", ["function_coupled", "certified", "usp"])
def test_a_mark_is_found_behind_an_address(marked_by, serve, method, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    marked = marked_by(method)
    server = serve(marked.model)
    result = verify_sequentially(endpoint_of(server, marked.model), marked.key, budget=300, beacon=marked.key.beacon)
    assert result.evidence.found, result.evidence
    assert result.queries == server.requests <= 300
    assert result.evidence.unusable <= 0.1 * result.queries
    assert set(server.tokens) <= {None, ""}  # nobody's Hub token goes to a stranger's server


def test_an_unmarked_model_behind_an_address(marked_by, make_resnet, serve):
    marked = marked_by("certified")
    server = serve(make_resnet())
    endpoint = endpoint_of(server, marked.model)
    result = verify_sequentially(endpoint, marked.key, beacon=marked.key.beacon)
    assert result.evidence.verdict == "not found"
    suspect = Suspect.open(endpoint)
    assert suspect.name == "127.0.0.1"
    before = server.requests
    with pytest.raises(BudgetExceeded, match="127.0.0.1: this check asks 80 images, 10 are left of its budget"):
        verify(suspect, marked.key, budget=10)
    assert server.requests == before


@pytest.mark.parametrize("method", ["function_coupled", "usp"])
@pytest.mark.parametrize("in_steps", [True, False])
def test_a_wrong_normalisation_is_seen_before_anything_is_sent(marked_by, serve, method, in_steps):
    marked = marked_by(method)
    server, shown = serve(marked.model), []
    endpoint = endpoint_of(server, marked.model, mean=[5.0], std=[1.0])
    with pytest.raises(InvalidInput, match=r"(\d+) of \1 images of the key are no pictures under mean 5 and std 1"):
        verify_sequentially(endpoint, marked.key, before_asking=shown.append) if in_steps else verify(
            endpoint, marked.key
        )
    assert server.requests == 0 and shown == [] and endpoint.notes == []


def test_pictures_are_what_the_owner_trained_on(marked_by, serve):
    marked = marked_by("certified")
    image = torch.linspace(-3, 3, 256).reshape(1, 16, 16)
    picture = endpoint_of(serve(marked.model), marked.model).picture(image)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(picture)))).float() / 255
    torch.testing.assert_close((pixels - MEAN[0]) / STD[0], image[0], atol=0.5 / 255 / STD[0] * 1.01, rtol=0)
    colour = Endpoint("http://x", labels=["a"], mean=[0.5] * 3, std=[0.5] * 3)
    assert Image.open(io.BytesIO(colour.picture(torch.zeros(3, 8, 8)))).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(InvalidInput, match="2 channels with a mean of 3"):
        colour.picture(torch.zeros(2, 8, 8))


def test_labels_are_matched_by_name(marked_by, serve):
    marked = marked_by("certified")
    server = serve(marked.model)
    images = torch.zeros(2, 1, 16, 16)
    server.answer = 200, [{"label": "LABEL_3", "score": 0.7}, {"label": "LABEL_0", "score": 0.2}]
    assert endpoint_of(server, marked.model)(images)[:, [0, 3]].tolist() == [[0.2, 0.7]] * 2
    named = endpoint_of(server, marked.model, labels=["cat", "dog"])
    server.answer = 200, [{"label": "dog", "score": 0.9}]
    assert named(images).tolist() == [[0.0, 0.9]] * 2
    for strange in ([{"label": "a fish", "score": 0.9}], []):
        server.answer = 200, strange
        assert Suspect.open(named).labels(images, 2).tolist() == [-1, -1]


@pytest.mark.parametrize(
    "answer", [{"error": "x"}, "text", [1, 2], [{"score": 1.0}], [{"label": "dog", "score": "high"}], None]
)
def test_answers_of_another_form_give_no_verdict(marked_by, serve, answer):
    marked = marked_by("certified")
    server = serve(marked.model)
    server.answer = 200, answer
    try:
        labels = Suspect.open(endpoint_of(server, marked.model)).labels(torch.zeros(1, 1, 16, 16), 10)
    except InvalidInput as error:
        assert "does not answer as an image classification endpoint" in str(error)
    else:
        assert labels.tolist() == [-1]


def test_a_failing_endpoint_gives_no_verdict(marked_by, serve, waits):
    marked = marked_by("certified")
    server = serve(marked.model)
    server.answer = 500, {"error": "out of memory"}
    with pytest.raises(ConnectionError, match=r"127.0.0.1 refused or failed \(500\), tries: 4"):
        verify_sequentially(endpoint_of(server, marked.model), marked.key)
    nowhere = Endpoint("http://127.0.0.1:9/", labels=["a", "b"], mean=MEAN, std=STD)
    with pytest.raises(ConnectionError, match="127.0.0.1 cannot be reached"):
        nowhere(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, "reset"])
def test_what_passes_is_tried_again(marked_by, serve, waits, status):
    marked = marked_by("certified")
    server = serve(marked.model)
    server.failures = [status] * 3
    result = verify_sequentially(endpoint_of(server, marked.model), marked.key, beacon=marked.key.beacon)
    assert result.evidence.found and waits == [1, 3, 9] and server.requests == result.queries + 3


def test_what_does_not_pass_ends_the_check_with_what_was_shown(marked_by, serve, waits):
    marked = marked_by("certified")
    server = serve(marked.model)
    server.failures = [None] * 6 + [503] * 4
    subkey = marked.key.used[0]
    said = rf"failed \(503\), tries: 4; it was shown 7 images. Sub-key {subkey} counts as shown to it and is burnt"
    with pytest.raises(ConnectionError, match=said):
        verify_sequentially(endpoint_of(server, marked.model), marked.key)
    assert len(waits) == 3 and server.requests == 10


def test_an_endpoint_says_how_long_to_wait(marked_by, serve, waits):
    marked = marked_by("certified")
    server = serve(marked.model)
    images = torch.zeros(1, 1, 16, 16)
    server.failures, server.retry_after = [429], "20"
    assert endpoint_of(server, marked.model)(images).shape == (1, 10) and waits == [20]
    server.failures, server.retry_after = [429], "3600"
    with pytest.raises(ConnectionError, match="tries: 1 and asks to wait 3600 seconds"):
        endpoint_of(server, marked.model)(images)
    server.failures, server.retry_after = [503], "Fri, 31 Dec 2100 23:59:59 GMT"
    assert endpoint_of(server, marked.model)(images).shape == (1, 10) and waits == [20, 1]
    server.failures = [401]
    with pytest.raises(ConnectionError, match=r"failed \(401\)$"):
        endpoint_of(server, marked.model)(images)
    assert waits == [20, 1]


@pytest.mark.parametrize("api", ["inference", "gradio"])
def test_an_address_in_offline_mode_is_one_sentence(marked_by, serve, api, monkeypatch):
    if api == "gradio":
        pytest.importorskip("gradio_client", reason="gradio_client is not installed (extra `endpoints`)")
    marked = marked_by("certified")
    server = serve(marked.model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match=r"^127.0.0.1 (was not asked: offline mode is on; unset HF_HUB_OFFLINE|is no Gradio app)"
    ) as caught:
        endpoint_of(server, marked.model, api=api)(torch.zeros(1, 1, 16, 16))
    assert type(caught.value) is ConnectionError and caught.value.__suppress_context__
    assert api == "gradio" or server.requests == 0


def test_in_offline_mode_no_subkey_is_burnt(marked_by, serve, monkeypatch):
    marked = marked_by("certified")
    endpoint = endpoint_of(serve(marked.model), marked.model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shown = []
    with pytest.raises(ConnectionError, match="was not asked: offline mode is on") as caught:
        verify_sequentially(endpoint, marked.key, before_asking=shown.append)
    assert not shown
    assert "burnt" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "ftp://x"}, "is no address"),
        ({"url": "x"}, "is no address"),
        ({"api": "soap"}, "`api` is 'soap': choose one of inference, gradio"),
        ({"std": [0.0]}, "`std` above 0"),
        ({"mean": []}, "one entry per channel"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        Endpoint(**({"url": "http://x", "labels": ["a"], "mean": MEAN, "std": STD} | changes))


def test_an_address_alone_is_not_enough():
    with pytest.raises(InvalidInput, match=r"is an address; wrap it .* Endpoint\(url"):
        Suspect.open("https://example.com/classify")


def test_a_gradio_app(marked_by, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    marked = marked_by("certified")

    def predict(image):
        file = io.BytesIO()
        Image.fromarray(image).convert("L").save(file, format="PNG")
        scores = classify(marked.model, file.getvalue())
        return {marked.model.config.id2label[place]: float(score) for place, score in enumerate(scores)}

    app = gradio.Interface(
        predict, gradio.Image(image_mode="L"), gradio.Label(num_top_classes=10), api_name="classify"
    )
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        endpoint = Endpoint(
            url,
            labels=ModelContext.of(marked.model.config.to_dict()).labels,
            mean=MEAN,
            std=STD,
            api="gradio",
            api_name="/classify",
        )
        result = verify_sequentially(endpoint, marked.key, budget=60, beacon=marked.key.beacon)
    finally:
        app.close()
    assert result.evidence.found and result.queries < 60
