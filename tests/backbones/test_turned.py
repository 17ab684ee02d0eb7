"""Square convolutions whose order of axes their own shapes do not tell."""

import pytest
import torch

from hf_watermark.backbones import Carrier, Found, read_weight, turned_places


CARRIER = Carrier("resnet.0", 8, 72, 9, name="layer1.0.conv2.weight", shape=(8, 8, 3, 3))
ORDERS = {"as it is": (0, 1, 2, 3), "input first": (1, 0, 2, 3), "input first, output last": (1, 2, 3, 0)}


@pytest.mark.parametrize("order", ORDERS)
def test_the_stem_tells_the_order(order):
    weights = {"conv1.weight": torch.randn(8, 3, 7, 7), CARRIER.name: torch.randn(8, 8, 3, 3)}
    stored = {name: weight.permute(ORDERS[order]) for name, weight in weights.items()}
    shapes = {name: tuple(weight.shape) for name, weight in stored.items()}
    axes = (0, 3, 1, 2) if order.endswith("last") else None
    places = turned_places([CARRIER], [Found(CARRIER.name, None, axes)], shapes)
    assert bool(places) == (order != "as it is")
    assert all(torch.equal(read_weight(stored, place[0]), weights[CARRIER.name]) for place in places)


def test_a_kernel_laid_flat_may_have_its_places_first():
    weight = torch.randn(8, 8, 3, 3)
    flat = weight.permute(0, 2, 3, 1).flatten(1)
    [[place]] = turned_places([CARRIER], [Found(CARRIER.name, None)], {CARRIER.name: tuple(flat.shape)})
    assert torch.equal(read_weight({CARRIER.name: flat}, place), weight) and not place.is_stored


def test_a_linear_layer_is_as_it_is():
    layer = Carrier("vit.0", 8, 32, 1, name="fc2.weight", shape=(8, 32))
    assert (
        turned_places([layer], [Found("fc2.weight", None)], {"fc2.weight": (8, 32), "stem.weight": (8, 3, 4, 4)}) == []
    )
