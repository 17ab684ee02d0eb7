"""The smoothed model."""

import copy
import math

import numpy as np
import pytest
import torch
from certified_claims import same_state, shifted, state_of
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    ResNetForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from hf_watermark import (
    SmoothedModelForImageClassification,
    wrap_timm,
)
from hf_watermark.methods.certified import SmoothedConfig


# --- The smoothed model -----------------------------------------------------------------------------------------------


@pytest.fixture
def smoothed(marked):
    return SmoothedModelForImageClassification.smooth(copy.deepcopy(marked.model), sigma=0.2, draws=4, noise_seed=5)


@pytest.fixture
def pictures(patterned) -> torch.Tensor:
    return torch.stack([item["pixel_values"] for item in patterned[:6]])


@torch.no_grad()
def test_the_smoothed_model_is_the_mean_of_noisy_models(marked, pictures):
    model = marked.model
    smoothed = SmoothedModelForImageClassification.smooth(
        copy.deepcopy(model), sigma=0.2, noise="isotropic", draws=4, noise_seed=5, moves="parameters"
    )
    mean = torch.zeros(6, 10)
    for seed in range(5, 9):
        noisy = copy.deepcopy(model)
        sizes = [parameter.numel() for parameter in noisy.parameters()]
        drawn = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).split(sizes)
        for parameter, noise in zip(noisy.parameters(), drawn, strict=True):
            parameter.data += 0.2 * noise.view_as(parameter)
        mean += noisy(pictures).logits.softmax(dim=1) / 4
    torch.testing.assert_close(smoothed(pictures).logits.softmax(dim=1), mean, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_little_noise_changes_little_and_more_noise_more(marked, pictures):
    wanted = marked.model(pictures).logits.softmax(dim=1)
    distances = []
    for sigma in (1e-6, 0.1, 1.0):
        smoothed = SmoothedModelForImageClassification.smooth(copy.deepcopy(marked.model), sigma=sigma, draws=4)
        distances.append(float((smoothed(pictures).logits.softmax(dim=1) - wanted).abs().max()))
    assert distances[0] < 1e-3 and distances == sorted(distances) and distances[-1] > 0.1


@torch.no_grad()
def test_the_smoothed_model_saves_and_loads(smoothed, pictures, tmp_path):
    before = state_of(smoothed)
    answers = smoothed(pictures).logits
    assert same_state(before, state_of(smoothed)) and all(name.startswith("backbone.") for name in before)
    assert torch.equal(answers, smoothed(pictures).logits)
    smoothed.save_pretrained(tmp_path)
    for loader in (SmoothedModelForImageClassification, AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is SmoothedModelForImageClassification and not loaded.training
        assert torch.equal(loaded(pictures).logits, answers)


def test_a_smoothed_timm_model_saves_and_loads(tmp_path):
    import timm

    fields = {"channels": (8, 8, 8, 8), "stem_width": 4}
    model = wrap_timm(timm.create_model("resnet10t", num_classes=4, **fields), "resnet10t", 4, **fields)
    smoothed = SmoothedModelForImageClassification.smooth(model, sigma=0.1, draws=2)
    smoothed.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = SmoothedModelForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded(images).logits, smoothed(images).logits)


def test_the_smoothed_model_works_in_a_pipeline(make_resnet):
    from PIL import Image

    names = {number: f"name {number}" for number in range(10)}
    model = make_resnet(num_channels=3, id2label=names, label2id={name: number for number, name in names.items()})
    smoothed = SmoothedModelForImageClassification.smooth(model, sigma=0.1, draws=3)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    answers = pipeline("image-classification", model=smoothed, image_processor=processor, device="cpu")(image, top_k=3)
    with torch.no_grad():
        wanted = smoothed(**processor(image, return_tensors="pt")).logits.softmax(dim=1)[0]
    values, places = wanted.topk(3)
    assert [answer["label"] for answer in answers] == [names[place] for place in places.tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(values.tolist(), abs=1e-6)


def test_training_mode_passes_through(smoothed, pictures):
    labels = torch.arange(6)
    twin = copy.deepcopy(smoothed.backbone).train()
    output, wanted = smoothed.train()(pictures, labels=labels), twin(pictures, labels=labels)
    assert torch.equal(output.logits, wanted.logits) and torch.equal(output.loss, wanted.loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in smoothed.parameters())
    with torch.no_grad():
        evaluated = smoothed.eval()(pictures, labels=labels)
    assert evaluated.loss.item() == pytest.approx(
        float(nn.functional.cross_entropy(evaluated.logits, labels)), rel=1e-5
    )


@pytest.mark.parametrize("moves", ["all", "parameters"])
@torch.no_grad()
def test_a_smoothed_model_that_is_trained_on_answers_as_it_is_now(marked, pictures, moves):
    smoothed = SmoothedModelForImageClassification.smooth(
        copy.deepcopy(marked.model), sigma=1e-6, draws=1, moves=moves
    )
    smoothed(pictures)
    smoothed.backbone.load_state_dict(shifted(marked.model).state_dict())
    wanted = smoothed.backbone(pictures).logits.softmax(dim=1)
    torch.testing.assert_close(smoothed(pictures).logits.softmax(dim=1), wanted, rtol=1e-3, atol=1e-3)


def test_the_smoothed_config_names_no_folder(marked, tmp_path):
    marked.model.save_pretrained(tmp_path / "somebodys-home")
    model = ResNetForImageClassification.from_pretrained(tmp_path / "somebodys-home")
    SmoothedModelForImageClassification.smooth(model, draws=1).save_pretrained(tmp_path / "smoothed")
    assert "somebodys-home" not in (tmp_path / "smoothed" / "config.json").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": 0.0}, "`sigma` is 0.0: choose a positive number"),
        ({"sigma": -1.0}, "`sigma` is -1.0"),
        ({"sigma": math.nan}, "`sigma` is nan"),
        ({"draws": 0}, "`draws` is 0: choose 1 to"),
    ],
)
def test_strange_smoothed_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SmoothedConfig(**fields)


def test_a_smoothed_model_needs_a_backbone():
    with pytest.raises(ValueError, match=r"backbone.s config names no known model type .*smooth\(model\)"):
        SmoothedModelForImageClassification(SmoothedConfig())
