"""Files that make a search long, or a size odd."""

import struct
import time
from json import dumps

import pytest
from tiny import tiny_resnet

from hf_watermark import InvalidInput
from hf_watermark.backbones import describe, find_places
from hf_watermark.serialization import SafetensorsFolder


def test_choosing_blocks_in_order_has_no_dead_ends():
    """Thousands of blocks of the first shape behind the only one of the second: no choice fits, and that is seen at once."""
    name = "resnet.encoder.stages.0.layers.{}.layer.1.convolution.weight"
    key = describe(
        {
            f"resnet.encoder.stages.{n // 2}.layers.{n % 2}.layer.1.convolution.weight": (32 * (1 + n // 2), 32, 3, 3)
            for n in range(4)
        }
    )
    shapes = {name.format(0): (64, 32, 3, 3)} | {name.format(n): (32, 32, 3, 3) for n in range(1, 3000)}
    start = time.process_time()
    with pytest.raises(InvalidInput):
        find_places(key, shapes)
    assert time.process_time() - start < 10


def test_two_numbers_in_a_byte_with_an_odd_last_axis(tmp_path):
    shape = tuple(tiny_resnet().state_dict()["resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"].shape)
    size = shape[0] * shape[1] * 9 // 2
    header = dumps({"w": {"dtype": "F4", "shape": list(shape), "data_offsets": [0, size]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(InvalidInput, match="F4"):
        _ = SafetensorsFolder(tmp_path)["w"]
