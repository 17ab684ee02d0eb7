"""A marked model in the formats of other libraries: found, or said why not; and what a thief may write beside it."""

import json

import pytest
import quantised as q
import torch
from disguises import look

from hf_watermark import Verdict, verify


WAYS = ["folder", "ranges"]
FOUND = {
    "bitsandbytes int8": q.bitsandbytes_8bit,
    "nf4, nested": lambda state: q.bitsandbytes_4bit(state, nested=True),
    "GPTQ": q.gptq,
    "AWQ": q.awq,
    "pack-quantized": lambda state: q.packed_integers(state, symmetric=False),
    "NVFP4": q.nvfp4,
    "torchao": q.torchao,
    "quanto": q.quanto,
    "uint8": q.rows_uint8,
    "float8 in blocks": lambda state: q.float8(state, 32),
}


def two_halves(state):
    """Codes whose order nothing says."""
    return q.each(
        state, lambda name, weight: {name: weight[:, ::2].mul(50).char(), f"{name}_scale": weight[:, 0]}, linear=True
    )


NAMED = {
    "packed codes without a word": (two_halves, "stored as i8 codes"),
    "HQQ": (lambda state: q.each(state, lambda name, w: {f"{name[:-7]}.W_q": w.mul(50).byte()}, linear=True), "stored as HQQ"),
    "GPTQ of either version": (lambda state: q.gptq(state, symmetric=False), "first or second version, nothing says"),
    "a scale that is missing": (lambda state: {n: t for n, t in q.awq(state).items() if not n.endswith("scales")}, "GPTQ, AWQ or one of their kin"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FOUND)
def test_it_is_read(name, way, vit, hub, tmp_path):
    folder = q.write(tmp_path / "suspect", FOUND[name](vit.state))
    verdict, reason = look(vit, folder, way, hub)
    assert verdict is Verdict.FOUND, reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMED)
def test_it_is_named(name, way, vit, hub, tmp_path):
    make, words = NAMED[name]
    verdict, reason = look(vit, q.write(tmp_path / "suspect", make(vit.state)), way, hub)
    assert verdict is Verdict.INCONCLUSIVE and words in reason, reason


@pytest.mark.parametrize("name", FOUND)
def test_an_unmarked_model_in_the_same_format_is_not_found(name, vit, tmp_path):
    torch.manual_seed(5)
    other = {n: torch.randn_like(t) * 0.05 if t.ndim > 1 else t for n, t in vit.state.items()}
    verdict, reason = look(vit, q.write(tmp_path / "suspect", FOUND[name](other)), "folder")
    assert verdict is Verdict.NOT_FOUND, reason


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("way", WAYS)
def test_gguf(kind, way, vit, hub, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    q.gguf(vit.state, tmp_path / "suspect", kind)
    verdict, reason = look(vit, tmp_path / "suspect", way, hub)
    assert verdict is Verdict.FOUND, reason


# --- What a thief writes beside the weights


def test_codes_beside_a_weight_do_not_hide_it(vit, tmp_path):
    """Codes of random weights under names that belong to the marked ones."""
    other = {n: torch.randn_like(t) for n, t in vit.state.items()}
    files = {n: t for n, t in q.gptq(other).items() if n not in vit.state} | vit.state
    verdict, reason = look(vit, q.write(tmp_path / "suspect", files), "folder")
    assert verdict is Verdict.FOUND, reason


def test_a_config_explains_and_hides_nothing(vit, tmp_path):
    config = {"quantization_config": {"quant_method": "aqlm"}}
    folder = q.write(tmp_path / "marked", q.rows_int8(vit.state), config)
    assert look(vit, folder, "folder")[0] is Verdict.FOUND
    torch.manual_seed(5)
    other = {n: torch.randn_like(t) * 0.05 if t.ndim > 1 else t for n, t in vit.state.items()}
    verdict, reason = look(vit, q.write(tmp_path / "other", q.rows_int8(other), config), "folder")
    assert verdict is Verdict.INCONCLUSIVE and "stored by 'aqlm', which is not read" in reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.fp32.safetensors"])
@pytest.mark.parametrize("marked", [True, False])
def test_another_precision_beside_it(marked, name, way, vit, hub, tmp_path):
    """Which of the two is used cannot be told: the better one is read, and nothing is denied for what was not."""
    torch.manual_seed(5)
    noise = {n: torch.randn_like(t) * 0.05 if t.ndim > 1 else t for n, t in vit.state.items()}
    half, other = {n: t.half() if t.is_floating_point() else t for n, t in vit.state.items()}, "model.fp16.safetensors"
    folder = q.write(q.write(tmp_path / "suspect", vit.state if marked else noise, name=name), half, name=other)
    verdict, reason = look(vit, folder, way, hub)
    if marked:
        assert verdict is Verdict.FOUND, reason
    else:
        assert verdict is Verdict.INCONCLUSIVE and f"{other} beside what was read" in reason, reason
        assert look(vit, folder / other, "folder")[0] is Verdict.FOUND


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("lost", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
def test_a_shard_that_is_missing(lost, indexed, way, vit, hub, tmp_path):
    """What is left is read; without the carriers there is no verdict."""
    names = list(vit.state)
    carriers = [name for name in names if "fc2" in name or "o_proj" in name]
    parts = {
        "model-00001-of-00002.safetensors": carriers,
        "model-00002-of-00002.safetensors": [n for n in names if n not in carriers],
    }
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    folder = tmp_path / "suspect"
    for file, part in parts.items():
        if file != lost:
            q.write(folder, {name: vit.state[name] for name in part}, name=file)
    if indexed:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    verdict, reason = look(vit, folder, way, hub)
    if lost.startswith("model-00001"):
        assert verdict is Verdict.INCONCLUSIVE and f"a part of the model is missing ({lost})" in reason, reason
    else:
        assert verdict is Verdict.FOUND, reason


def test_convolutions_in_another_order_are_aligned(resnet, tmp_path):
    from hf_watermark.attacks import Permute

    mixed = Permute(seed=1)(resnet.model, [{"pixel_values": torch.zeros(1, 32, 32)}])
    files = {n: t.permute(0, 2, 3, 1) if t.ndim == 4 else t for n, t in mixed.state_dict().items()}
    folder = q.write(tmp_path / "suspect", files)
    evidence = verify(folder, resnet.key, beacon=resnet.beacon, reference=resnet.model, own_reference=True)
    assert evidence.found, evidence.reason
