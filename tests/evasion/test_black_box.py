"""A mark that is asked for: the suspect's tensors run on the owner's architecture, however they are stored."""

import pytest
import torch
from safetensors.torch import save_file
from test_names import timm_name

from hf_watermark import verify


def cast(dtype):
    return lambda state: {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}


def prefixed(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def codes(state):
    files = dict(state)
    for name, tensor in state.items():
        if tensor.ndim == 4:
            scale = tensor.flatten(1).abs().amax(1) / 127
            files |= {name: (tensor / scale[:, None, None, None]).round().char(), f"{name}_scale": scale}
    return files


FOUND = {
    "counters stripped": lambda state: {n: t for n, t in state.items() if "num_batches" not in n},
    "ema.": prefixed("ema."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "state_dict.model_ema.net.": prefixed("state_dict.model_ema.net."),
    "timm's names": lambda state: {timm_name(n): t for n, t in state.items()},
    "timm's names, prefixed": lambda state: {"net." + timm_name(n): t for n, t in state.items()},
    "unused NaN": lambda state: state | {"extra": torch.tensor([float("nan")])},
    "unused empty, complex, scale": lambda state: (
        state
        | {"a": torch.zeros(0), "b": torch.ones(1, dtype=torch.complex64), "c": torch.ones(2).to(torch.float8_e8m0fnu)}
    ),
    "names": lambda state: state | {"a:b": torch.ones(1), "../x": torch.ones(1), "é\n": torch.ones(1)},
    "optimizer": lambda state: state | {f"optimizer.{n}.m": torch.rand(t.shape) for n, t in state.items()},
    "average beside it": lambda state: (
        state | {f"ema.{n}": torch.rand(t.shape) if t.is_floating_point() else t for n, t in state.items()}
    ),
    "bf16": cast(torch.bfloat16),
    "f64": cast(torch.float64),
    "int8 codes": codes,
    "[out, height, width, in]": lambda state: {n: t.permute(0, 2, 3, 1) if t.ndim == 4 else t for n, t in state.items()},
}  # fmt: skip
NAMED = {
    "two copies": (
        lambda state: prefixed("a.")(state) | prefixed("b.")({n: t + 1 for n, t in state.items()}),
        "complete copies",
    ),
    "NaN that is needed": (
        lambda state: state | {"classifier.1.bias": torch.full((10,), float("nan"))},
        "classifier.1.bias has NaN or infinite values",
    ),
    "a layer lost": (
        lambda state: {n: t for n, t in state.items() if n != "classifier.1.bias"},
        "do not fit the owner's architecture or label count: 1 tensors",
    ),
}


def look(marked, make, folder):
    state = {name: tensor.clone() for name, tensor in marked.model.state_dict().items()}
    save_file({n: t.contiguous().clone() for n, t in make(state).items()}, folder / "model.safetensors")
    return verify(folder, marked.key, beacon=marked.key.beacon)


@pytest.mark.parametrize("name", FOUND)
def test_it_is_asked(name, marked_by, tmp_path):
    evidence = look(marked_by("function_coupled"), FOUND[name], tmp_path)
    assert evidence.found, evidence.reason


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_asked_is_no_verdict(name, marked_by, tmp_path):
    make, words = NAMED[name]
    evidence = look(marked_by("function_coupled"), make, tmp_path)
    assert str(evidence.verdict) == "inconclusive" and words in evidence.reason
