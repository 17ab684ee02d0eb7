"""A folder is marked part by part: the same mark as in memory, in the same shards, and nothing half-written."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from zoo import build, images_for

from hf_watermark import GreedyResidualsConfig, GreedyResidualsVerifier, InvalidInput, Owner, mark_model, verify
from hf_watermark.marking import stored
from hf_watermark.marking.nets import StoredNet
from hf_watermark.marking.stored import NotStreamed
from hf_watermark.suspects import Suspect
from hf_watermark.verification import carriers


CONFIG = GreedyResidualsConfig(bits=24, group_size=8, subkeys=2)
INDEX = "model.safetensors.index.json"
SEED = b"7" * 32
NETS = ["transformers resnet", "transformers vit", "transformers swin", "transformers convnext", "timm vit"]


@pytest.fixture(scope="module")
def owner():
    return Owner.create()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Every module is a part of its own, as in a net that is too large for the memory."""
    monkeypatch.setattr(stored, "PART_BYTES", 2000)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def saved(model, folder, shard="40KB"):
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "LICENSE").write_text("free")
    (folder / "eval_results.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", NETS)
def test_the_same_mark_as_in_memory(name, owner, tmp_path):
    model, images = build(name), images_for(name, 32)
    folder = saved(model, tmp_path / "model")
    loaded, first = in_memory = mark_model(model, CONFIG, owner, images, seed=SEED, budget=1e9)
    place, second = streamed = mark_model(
        folder, CONFIG, owner, images, seed=SEED, budget=1e9, output=tmp_path / "marked"
    )
    assert place == tmp_path / "marked"
    assert first.context == second.context  # also the digest of the model before the mark
    assert verify(place, second).rate == verify(loaded, first).rate == 1
    saved(loaded, tmp_path / "loaded")
    for file in folder.glob("*.safetensors"):
        found, wanted = load_file(place / file.name), load_file(tmp_path / "loaded" / file.name)
        for tensor, value in wanted.items():
            assert torch.allclose(found[tensor], value, atol=1e-5), tensor
    assert streamed.fidelity.kl == pytest.approx(in_memory.fidelity.kl, rel=1e-2, abs=1e-6)
    assert list(streamed.fidelity.layers.values()) == pytest.approx(
        [in_memory.fidelity.layers[name] for name in streamed.fidelity.layers], rel=1e-3
    )


def test_only_what_the_mark_changes_is_another_one(owner, tmp_path):
    folder = saved(build("transformers resnet"), tmp_path / "model")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    place, _ = marked = mark_model(folder, CONFIG, owner, output=tmp_path / "marked", budget=1e9)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {file.name for file in place.iterdir()} == set(before) - {"eval_results.json"}
    index = json.loads((place / INDEX).read_text())["weight_map"]
    assert index == json.loads(before[INDEX])["weight_map"] and len(set(index.values())) > 2
    changed = set()
    for file in place.glob("*.safetensors"):
        old, new = load_file(folder / file.name), load_file(file)
        changed |= {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert set(marked.fidelity.layers) <= changed
    assert all(name in marked.fidelity.layers or name.endswith("running_mean") for name in changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marked", "model"]


def test_fewer_subkeys_leave_nothing_of_those_that_were_tried(owner, tmp_path):
    model, images = build("transformers resnet"), images_for("transformers resnet", 16)
    folder, config = saved(model, tmp_path / "model"), GreedyResidualsConfig(bits=24, group_size=8)
    place, key = mark_model(folder, config, owner, images, 0, seed=SEED, output=tmp_path / "marked")
    loaded, same = mark_model(model, config, owner, images, 0, seed=SEED)
    assert len(key.assignments[0].subkeys) == len(same.assignments[0].subkeys) == 2
    wanted = loaded.state_dict()
    found = {name: value for file in place.glob("*.safetensors") for name, value in load_file(file).items()}
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in wanted.items())


def test_weights_are_forgotten_when_they_have_been_used(tmp_path):
    folder = saved(build("transformers vit"), tmp_path / "model")
    with StoredNet(folder, tmp_path / "marked") as net:
        model = net.source
        held = []
        watch = list(model.modules())[-1]
        watch.register_forward_pre_hook(lambda *_: held.append(sum(not p.is_meta for p in model.parameters())))
        with torch.no_grad():
            model(images_for("transformers vit", 2))
        assert sum(not parameter.is_meta for parameter in model.parameters()) == 1
    assert 1 < held[0] < 6 < len(list(model.parameters()))


@pytest.mark.parametrize("what", ["a mark that does not fit", "an interruption"])
def test_a_failure_leaves_no_folder(what, owner, tmp_path, monkeypatch):
    folder = saved(build("transformers resnet"), tmp_path / "model")
    if what == "an interruption":

        def interrupted(*arguments, **fields):
            raise KeyboardInterrupt

        monkeypatch.setattr("hf_watermark.marking.writing.measure_fidelity", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mark_model(folder, CONFIG, owner, output=tmp_path / "marked")
    else:
        with pytest.raises(InvalidInput, match="do not fit"):
            mark_model(folder, GreedyResidualsConfig(subkeys=16), owner, output=tmp_path / "marked")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_has_to_be_loaded_is_named(owner, tmp_path):
    model = build("transformers resnet")
    folder = saved(model, tmp_path / "model")
    with pytest.raises(NotStreamed, match="load it first"):
        mark_model(folder, "watermas", owner, output=tmp_path / "marked")
    half = saved(model.half(), tmp_path / "half")
    with pytest.raises(NotStreamed, match="F16"):
        mark_model(half, CONFIG, owner, output=tmp_path / "marked")
    with pytest.raises(InvalidInput, match="give `output`"):
        mark_model(folder, CONFIG, owner)
    with pytest.raises(InvalidInput, match="exists"):
        mark_model(folder, CONFIG, owner, output=half)
    with pytest.raises(InvalidInput, match="save_pretrained"):
        mark_model(model.float(), CONFIG, owner, output=tmp_path / "marked")


def test_a_net_whose_parts_need_each_other_has_to_be_loaded(owner, tmp_path, monkeypatch):
    folder = saved(build("transformers vit"), tmp_path / "model")
    monkeypatch.setattr(stored, "_parts", lambda *_: [])
    with pytest.raises(NotStreamed, match="part by part"):
        mark_model(folder, CONFIG, owner, output=tmp_path / "marked")


def test_carriers_too_large_to_be_kept_are_read_per_subkey(owner, tmp_path, monkeypatch):
    folder = saved(build("transformers resnet"), tmp_path / "model")
    place, key = mark_model(folder, CONFIG, owner, output=tmp_path / "marked", budget=1e9)
    wanted = verify(place, key)
    monkeypatch.setattr(carriers, "MOST_KEPT", 0)
    found = verify(place, key)
    assert found == wanted
    (claim,) = key.claims()
    apart = [GreedyResidualsVerifier(claim).rows(Suspect.open(place), subkey) for subkey in claim.subkeys]
    monkeypatch.undo()
    verifier, suspect = GreedyResidualsVerifier(claim), Suspect.open(place)
    assert all(torch.equal(rows, verifier.rows(suspect, own)) for rows, own in zip(apart, claim.subkeys, strict=True))


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_repository_is_fetched_and_marked(hub, owner, tmp_path, revision):
    folder = saved(build("transformers resnet"), tmp_path / "model")
    hub.add_folder("me/model", folder)
    place, key = mark_model(f"me/model{revision}", CONFIG, owner, budget=1e9, output=tmp_path / "marked")
    assert verify(place, key).rate == 1
    assert {path.name for path in place.iterdir()} == {
        path.name for path in folder.iterdir() if path.name != "eval_results.json"
    }
    assert not any(path.is_symlink() for path in place.iterdir())


def test_a_repository_without_a_config_is_no_model(hub, owner, tmp_path):
    folder = saved(build("transformers resnet"), tmp_path / "model")
    (folder / "config.json").unlink()
    hub.add_folder("me/model", folder)
    with pytest.raises(InvalidInput, match="me/model: has no config.json"):
        mark_model("me/model", CONFIG, owner, output=tmp_path / "marked")
    with pytest.raises(InvalidInput, match="me/other"):
        mark_model("me/other", CONFIG, owner, output=tmp_path / "marked")
    with pytest.raises(InvalidInput, match="give `output`"):
        mark_model("me/model", CONFIG, owner)
