"""Tensors beside a key's that may change or replace them, and those that ordinary models have."""

import pytest

from hf_watermark.backbones import Carrier, Found, extras_in_words


CARRIERS = [Carrier(f"resnet.{n}", 32, 288, 9, name=f"layer{n}.0.conv2.weight", shape=(32, 32, 3, 3)) for n in (1, 2)]
MODEL = {
    name: shape
    for n in (1, 2)
    for name, shape in {
        f"layer{n}.0.conv1.weight": (32, 64, 3, 3),
        f"layer{n}.0.conv2.weight": (32, 32, 3, 3),
        f"layer{n}.0.conv2.bias": (32,),
        f"layer{n}.0.bn2.weight": (32,),
        f"layer{n}.0.bn2.num_batches_tracked": (),
    }.items()
} | {"fc.weight": (1000, 32), "fc.bias": (1000,)}


def each(make, shape):
    return {make(n): shape for n in (1, 2)}


BESIDE = {
    "an order in the layer": each(lambda n: f"layer{n}.0.conv2.input_order", (32,)),
    "an order elsewhere": each(lambda n: f"layer{n}.0.perm", (32,)),
    "a layer in the layer": each(lambda n: f"layer{n}.0.conv2.mix.weight", (32, 32, 1, 1)),
    "a part": each(lambda n: f"layer{n}.0.conv2.weight.1", (16, 32, 3, 3)),
    "an offset": each(lambda n: f"layer{n}.0.conv2.weight_offset", ()),
    "flat": each(lambda n: f"real.layer{n}.0.conv2.weight", (9216,)),
    "flat, under other names": each(lambda n: f"t{n}", (9216,)),
    "turned": each(lambda n: f"real.layer{n}.0.conv2.weight", (32, 3, 3, 32)),
    "all in one": {"all": (2 * 9216,)},
}
ORDINARY = {
    "nothing": {},
    "positions": {"embeddings.position_ids": (1, 197), "relative_position_index": (49, 49)},
    "an average of another size": each(lambda n: f"ema.layer{n}.0.conv2.weight", (64, 64, 3, 3)),
    "an average": each(lambda n: f"ema.layer{n}.0.conv2.weight", (32, 32, 3, 3)),
    "another head": {"head.fc.weight": (21841, 32), "head.fc.bias": (21841,)},
    "tokens": {"cls_token": (1, 1, 9216), "wide.weight": (9216, 32)},
    "means": each(lambda n: f"layer{n}.0.bn2.running_mean", (32,)),
}


@pytest.mark.parametrize("name", [*BESIDE, *ORDINARY])
def test_what_lies_beside_the_weights(name):
    extra = (BESIDE | ORDINARY)[name]
    shapes = MODEL | extra
    dtypes = dict.fromkeys(MODEL, "F32") | dict.fromkeys(extra, "I64")
    dtypes |= {
        "layer1.0.bn2.num_batches_tracked": "I64",
        "layer1.0.bn2.running_mean": "F32",
        "layer2.0.bn2.running_mean": "F32",
    }
    found = [Found(carrier.name, f"{carrier.name[:-12]}bn2.weight") for carrier in CARRIERS]
    said = extras_in_words(CARRIERS, found, shapes, dtypes)
    assert bool(said) == (name in BESIDE), said
    assert not said or any(item in said for item in extra)
