"""Small models of timm, marked without training: read from a copy in bfloat16 under a prefix and in shards, and not in the unmarked one."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from zoo import lively

from hf_watermark import GreedyResidualsConfig, Owner, mark_model, verify
from hf_watermark.evidence import Verdict


CONFIGS = {
    "greedy_residuals": GreedyResidualsConfig(bits=160, group_size=8, subkeys=2),
    "watermas": {"method": "watermas", "bits": 160, "subkeys": 2},
}
# All files of timm: examples/benchmarks/copies.py.
NAMES = ["test_convnext", "test_vit", "test_byobnet", "test_mambaout"]


def copied(model: nn.Module, folder) -> None:
    folder.mkdir()
    state = {
        f"net.backbone.{name}": tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    shards = {f"model-0000{n + 1}-of-00002.safetensors": list(state)[n::2] for n in range(2)}
    for file, names in shards.items():
        save_file({name: state[name].contiguous() for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("method", list(CONFIGS))
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_under_other_names_in_shards_and_in_half_precision(name, method, tmp_path):
    torch.manual_seed(0)
    model = lively(timm.create_model(name, num_classes=10))
    marked, key = mark_model(model, CONFIGS[method], Owner.create(), torch.randn(16, 3, 160, 160), 1e9)
    copied(marked, tmp_path / "marked")
    copied(model, tmp_path / "plain")
    assert verify(tmp_path / "marked", key).log2_p <= -128
    assert verify(tmp_path / "plain", key).verdict is Verdict.NOT_FOUND
