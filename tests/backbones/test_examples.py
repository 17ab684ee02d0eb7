"""Black images for models that do not say which they take."""

import pytest
import timm
import torch
from timm.models.gcvit import GlobalContextVit
from torch import nn

from hf_watermark.backbones import images_taken
from hf_watermark.backbones.symmetry import symmetry_of
from hf_watermark.backbones.treatment import observe


CLASSES = 10


class Filtered(nn.Module):
    """Its first convolution reads what it makes of the image."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images):
        return self.layers(nn.functional.pixel_unshuffle(images - self.mean, 2)).mean((2, 3))


class Fixed(nn.Module):
    """Of one size only, which it does not say."""

    def __init__(self, side: int):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 8, side // 4, side // 4))
        self.enter, self.leave = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, CLASSES, 1)

    def forward(self, images):
        return self.leave(self.enter(images) + self.places).mean((2, 3))


MODELS = {
    "filtered": (Filtered, (3, 64)),
    "fixed": (lambda: Fixed(224), (3, 224)),
    "fixed and small": (lambda: Fixed(32), (3, 32)),
    "windows": (lambda: GlobalContextVit(embed_dim=16, depths=(1, 1, 1, 1), num_classes=CLASSES), (3, 224)),
    "grey": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 64)),
    "timm": (lambda: timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=3), (3, 224)),
    "half precision": (lambda: Fixed(224).bfloat16(), (3, 224)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_answers_the_image(name):
    build, (channels, side) = MODELS[name]
    model = build()
    before = [module.training for module in model.modules()]

    images = images_taken(model)

    assert tuple(images.shape) == (1, channels, side, side) or name == "filtered" and images.shape[1] == 3
    model(images)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("name", ["filtered", "fixed and small", "windows"])
def test_its_weights_and_its_graph_are_seen(name):
    model = MODELS[name][0]().eval()
    assert observe(model).treatments
    assert symmetry_of(model).spaces


def test_a_model_that_takes_no_images_gets_the_likeliest():
    class Words(nn.Embedding):
        def forward(self, words):
            raise TypeError("words are strings")

    assert tuple(images_taken(Words(3, 3)).shape) == (1, 3, 64, 64)


def test_a_model_without_weights_gets_one_too():
    assert tuple(images_taken(nn.Identity()).shape) == (1, 3, 64, 64)
    assert not observe(nn.Identity()).treatments
