"""Games of a key that marks an adapter: what is taken away from a model, what is put under an adapter, and how an adapter says it is scaled."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapted import GREEDY, Adapted, bare, marked_adapter, with_adapter
from safetensors.torch import load_file, save_file

from hf_watermark import Suspect, Verdict, WatermarkKey, plan_key, verify
from hf_watermark.backbones import plain_copy
from hf_watermark.keys import start_digest
from hf_watermark.methods.greedy_residuals import GreedyResidualsVerifier


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return marked_adapter("vit", tmp_path_factory.mktemp("forger"))


@pytest.fixture(scope="module")
def innocent():
    """Somebody else's whole model, of the same base."""
    return plain_copy(with_adapter("vit", init_lora_weights=False).get_base_model()).eval()


def apart_by_the_mark(own: Adapted, innocent):
    """A base made from an innocent model: it lies apart from it by the very changes that carry the forger's bits."""
    forged, merged, start = bare("vit"), own.merged_model().state_dict(), own.fresh_base().state_dict()
    state = innocent.state_dict()
    forged.load_state_dict({name: state[name] - (merged[name] - start[name]) for name in state})
    return forged


def test_a_base_made_from_the_suspect(own, innocent, tmp_path):
    """Freedom: which base is taken away from a whole model."""
    forged = apart_by_the_mark(own, innocent)
    forged.save_pretrained(tmp_path / "base")
    for base in (forged, tmp_path / "base"):
        evidence = verify(innocent, own.key, base=base)
        assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.log2_p == 0
        assert "the base is not the model that the key was made for" in evidence.reason
    # Without the rule he would win: the committed digest alone stands against it.
    start = start_digest(forged.state_dict())
    verifier = GreedyResidualsVerifier(replace(own.key.claims()[0], context=replace(own.key.context, start=start)))
    from hf_watermark.suspects.adapters import Base

    parts = verifier.verify(Suspect.open(innocent, base=Base(forged.state_dict())))
    assert max(part.log2_p for part in parts) <= -64


def test_a_key_made_for_the_forged_base(own, innocent):
    """Freedom: a fresh key that commits to a base made from an innocent model. Its bits are drawn after that, and are other ones."""
    forged = apart_by_the_mark(own, innocent)
    model = with_adapter("vit")
    model.get_base_model().load_state_dict(
        {name: dict(forged.state_dict()).get(name.replace("base_layer.", "").replace("original_module.", ""), tensor)
         for name, tensor in model.get_base_model().state_dict().items()}
    )  # fmt: skip
    key = plan_key(model, None, GREEDY, own.trainer._owner)
    assert key.context.start == start_digest(forged.state_dict())
    evidence = verify(innocent, key, base=forged)
    assert evidence.verdict is Verdict.NOT_FOUND and evidence.log2_p > -20


def test_a_base_of_one_name_and_one_bit_more(own, tmp_path):
    """Freedom: the base, by a single number."""
    state = own.fresh_base().state_dict()
    state["vit.layers.0.mlp.fc1.weight"][0, 0] += 1e-3
    other = bare("vit")
    other.load_state_dict(state)
    assert verify(own.merged, own.key, base=own.base).found
    assert verify(own.merged, own.key, base=other).verdict is Verdict.INCONCLUSIVE
    # Also where the mark needs no base: whoever gives a wrong one gets no verdict.
    assert verify(own.adapter, own.key, base=other).verdict is Verdict.INCONCLUSIVE


def test_a_marked_base_under_an_innocent_adapter(marked_by, tmp_path):
    """Freedom: what an adapter is put on. On the forger's own marked model every adapter would answer with his mark."""
    honest = marked_by("function_coupled")
    adapter = with_adapter("resnet", modules_to_save=None)
    adapter.save_pretrained(tmp_path / "adapter")
    honest.model.save_pretrained(tmp_path / "marked")
    evidence = verify(tmp_path / "adapter", honest.key, base=tmp_path / "marked")
    assert (
        evidence.verdict is Verdict.INCONCLUSIVE
        and "another digest than the one that the key commits to" in evidence.reason
    )


def test_a_suspect_that_was_opened_with_another_base(own, innocent):
    """Freedom: a suspect that brings its base along."""
    from hf_watermark.suspects.adapters import Base

    forged = apart_by_the_mark(own, innocent)
    brought = Suspect.open(innocent, base=Base(forged.state_dict()))
    assert verify(brought, own.key).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("edit", [lambda layout: layout.pop("adapter"), lambda layout: layout.update(adapter=False)])
def test_a_mark_said_to_lie_elsewhere_after_the_fact(own, edit):
    """Freedom: whether the bits are those of the weights or of their change."""
    assignment = own.key.assignments[0]
    layout = json.loads(json.dumps(assignment.layout))
    edit(layout)
    forged = replace(own.key, assignments=(replace(assignment, layout=layout),))
    assert verify(own.adapter, forged).verdict is Verdict.INVALID


# --- What a thief writes into an adapter's config ---------------------------------------------------------------------


def copied(own: Adapted, folder: Path, **changes) -> Path:
    shutil.copytree(own.adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_sign_moved_into_the_scaling(own, tmp_path):
    """Freedom of the thief: a negative scaling with a negative factor is the same adapter."""
    folder = copied(own, tmp_path / "a", lora_alpha=-8, alpha_pattern={"fc1": 8, "vit.layers.0.mlp.fc2": 4})
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name and "fc1" not in name and "0.mlp.fc2" not in name:
            tensors[name] = -tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    assert verify(folder, own.key).log2_p <= -128


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "LOHA"},
        {"use_dora": True},
        {"lora_bias": True},
        {"layer_replication": [[0, 2]]},
        {"something_new": {"on": True}},
        {"init_lora_weights": "pissa"},
        {"lora_alpha": "8"},
        {"lora_alpha": 1e300},
        {"alpha_pattern": {"(a+)+$": 1}},
        {"alpha_pattern": {f"layer{number}": 1 for number in range(5000)}},
        {"use_rslora": 1},
    ],
)
def test_a_config_that_cannot_be_read_is_never_not_found(own, changes, tmp_path):
    evidence = verify(copied(own, tmp_path / "a", **changes), own.key)
    assert evidence.verdict is Verdict.INCONCLUSIVE, evidence


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_factors_that_have_no_product(own, name, tmp_path):
    folder = copied(own, tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    place = next(key for key in tensors if name in key)
    for other in (None, torch.zeros(3), torch.zeros(3, 3), torch.zeros(0, 32), torch.zeros(2, 2, 2, 2)):
        given = {key: tensor for key, tensor in tensors.items() if key != place} | (
            {} if other is None else {place: other}
        )
        save_file(given, folder / "adapter_model.safetensors")
        assert verify(folder, own.key).verdict is Verdict.INCONCLUSIVE


def test_a_config_that_is_none(own, tmp_path):
    folder = copied(own, tmp_path / "a")
    for text in ("", "[]", "{", "{" * 100_000, '{"r": NaN}', " " * 300_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="adapter_config.json"):
            verify(folder, own.key)
    assert isinstance(own.key, WatermarkKey)
