"""`WatermarkConfig`: JSON, files, and messages that name the field."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from huggingface_hub.dataclasses import strict

from hf_watermark import FunctionCoupledConfig, GreedyResidualsConfig, InvalidInput, WatermarkConfig
from hf_watermark.configuration import CONFIG_NAME, require


@strict
@dataclass
class LoudConfig(WatermarkConfig):
    method: ClassVar[str] = "loud"

    volume: float = 0.5
    name: str | None = None

    def __post_init__(self):
        require(0 <= self.volume <= 1, "volume", self.volume, "choose a share in [0, 1]")


def test_round_trip(tmp_path):
    config = LoudConfig(volume=0.25, name="é")
    assert config.to_dict() == {"method": "loud", "format_version": 1, "volume": 0.25, "name": "é"}
    config.save_pretrained(tmp_path / "new" / "folder")
    assert LoudConfig.from_pretrained(tmp_path / "new" / "folder") == config


@pytest.mark.parametrize(
    ("fields", "message"), [({"volume": 2.0}, "`volume` is 2.0: choose a share"), ({"name": 5}, "name")]
)
def test_constructors_refuse_what_files_refuse(fields, message):
    with pytest.raises(Exception, match=message):
        LoudConfig(**fields)
    with pytest.raises(InvalidInput, match=message):
        LoudConfig.from_dict({"method": "loud", "format_version": 1, **fields})


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"method": "loud"', b'{"method": "loud", "method": "loud"}', b'{"volume": NaN}']
)
def test_broken_files_are_invalid_input(tmp_path, content):
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with pytest.raises(InvalidInput, match=CONFIG_NAME):
        LoudConfig.from_pretrained(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"watermark_config\.json: cannot be opened"):
        LoudConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (GreedyResidualsConfig, {"bits": 0}),
        (GreedyResidualsConfig, {"bits": 2**17}),
        (GreedyResidualsConfig, {"group_size": 7}),
        (GreedyResidualsConfig, {"kept_fraction": 0.0}),
        (GreedyResidualsConfig, {"margin": -0.1}),
        (GreedyResidualsConfig, {"strength": 0.0}),
        (GreedyResidualsConfig, {"layers": []}),
        (GreedyResidualsConfig, {"preset": "papers"}),
        (FunctionCoupledConfig, {"rules": 0}),
        (FunctionCoupledConfig, {"images_per_rule": 145}),
        (FunctionCoupledConfig, {"fusion": "diagonal"}),
        (FunctionCoupledConfig, {"trigger_ratio": 1.5}),
        (FunctionCoupledConfig, {"masking": "fc_v3"}),
        (FunctionCoupledConfig, {"pool_per_class": 1}),
        (FunctionCoupledConfig, {"source_classes": 1}),
    ],
)
def test_values_out_of_range_name_field_and_advice(config_class, fields):
    [(field, value)] = fields.items()
    with pytest.raises(Exception, match=rf"`{field}` is .*: .*(choose|leave|name)"):
        config_class(**fields)


def test_the_published_setting():
    config = GreedyResidualsConfig.paper()
    assert (config.bits, config.group_size, config.margin, config.strength) == (256, 253, 0.1, 0.01)
    assert config.kept_fraction == 1 - 1 / 2 and config.layers == ["stem"]
