"""`hf-watermark inspect MODEL --layout`."""

import json

import pytest
import timm
import torch
from tiny import tiny_resnet

from hf_watermark.backbones import layout_of, layout_table


def test_a_folder_of_transformers(run, tmp_path):
    model = tiny_resnet(hidden_sizes=[32, 64])
    model.config.save_pretrained(tmp_path)
    found = json.loads(run("inspect", tmp_path, "--layout", "--json").stdout)
    carriers = {carrier.name: carrier for carrier in layout_of(model)}
    rows = {row["tensor"]: row for row in found["rows"]}
    assert {name for name, row in rows.items() if row["role"] != "anchor"} == carriers.keys()
    assert {name for name, tensor in model.named_parameters() if tensor.ndim > 1} == rows.keys()
    for name, carrier in carriers.items():
        assert rows[name]["scale"] == carrier.scale
        assert rows[name]["bits"]["greedy_residuals"] == carrier.rows * (carrier.eligible // 64)
    assert found["capacity"]["greedy_residuals"]["bits"] == 512


def test_an_architecture_of_timm_with_centred_rows(run):
    printed = run("inspect", "timm:test_nfnet", "--layout").stdout
    assert "every third input, centred" in printed
    assert "greedy_residuals: at most " in printed
    assert "watermas: at most " in printed


def test_a_folder_of_timm(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 5}))
    rows = json.loads(run("inspect", tmp_path, "--layout", "--json").stdout)["rows"]
    assert [row["shape"] for row in rows if row["tensor"].endswith("fc.weight")] == [[5, 512]]


@pytest.mark.parametrize("words", [[], ["--layout", "--key", "keys"]])
def test_one_of_the_two_questions_is_asked(refused, words):
    assert "give exactly one of --key DIR" in refused("inspect", "folder", *words)


def test_a_folder_without_config(refused, tmp_path):
    assert "holds no config.json" in refused("inspect", tmp_path, "--layout")


def test_the_table_from_python():
    with torch.device("meta"):
        model = timm.create_model("test_nfnet", num_classes=5)
    lines = str(layout_table(model)).splitlines()
    assert lines[0].split() == ["tensor", "shape", "role", "weights", "scale", "behind"]
    assert len(lines) == 1 + len(layout_table(model).rows)
    [line] = [line for line in lines if line.startswith("stem.conv2.weight ")]
    assert line.split()[1:] == "32 x 16 x 3 x 3 every third input, centred 1440 stem.conv2.gain".split()
