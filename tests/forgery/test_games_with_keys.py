"""Games with a key folder: what its giver is free to change, and what becomes of it. Every forgery is built for real."""

from dataclasses import replace

import pytest
import torch
from forging import edited_payload, refused, saved
from safetensors.torch import load_file, save_file
from tiny import patterned_images, tiny_resnet, training_arguments

from hf_watermark import AutoTrainer, InvalidInput, Owner, Verdict, WatermarkKey, verify
from hf_watermark.keys import PRECOMMIT_DOMAIN, burn
from hf_watermark.keys.claim import SubKey
from hf_watermark.methods.greedy_residuals import GreedyResidualsVerifier
from hf_watermark.suspects import Suspect


def own_key(method, small_configs, place, model=None, owner=None):
    """A key that the forger's own trainer planned; nothing was embedded."""
    data = patterned_images(variety=0.3 if method in ("usp", "csp") else 0.0)
    trainer = AutoTrainer.for_method(method)(
        model=model or tiny_resnet(),
        args=training_arguments(place),
        train_dataset=data,
        watermark=small_configs[method],
        owner=owner or Owner.create(),
    )
    return trainer.key


def signed_again(key: WatermarkKey, owner: Owner) -> WatermarkKey:
    return replace(key, signature=owner.sign(PRECOMMIT_DOMAIN + key.precommit))


def test_one_lucky_subkey_listed_many_times(small_configs, tmp_path):
    """Freedom: the list of sub-keys. Fifty times one e-value of 2 would be 2^50."""
    owner = Owner.create()
    key = own_key("usp", small_configs, tmp_path, owner=owner)
    with pytest.raises(InvalidInput, match="a sub-key is used twice"):
        signed_again(replace(key, assignments=(replace(key.assignments[0], subkeys=(0,) * 50),)), owner)
    folder = edited_payload(saved(key, tmp_path / "key"), lambda p: p["assignments"][0].update(subkeys=[0] * 50))
    with pytest.raises(InvalidInput, match="a sub-key is used twice"):
        WatermarkKey.load(folder)


def test_one_subkey_under_two_methods(small_configs, tmp_path):
    """Freedom: which methods share a sub-key. The same secret would be counted once per method."""
    key = own_key("usp", small_configs, tmp_path)
    with pytest.raises(InvalidInput, match="a sub-key is used twice"):
        replace(key, assignments=(key.assignments[0], replace(key.assignments[0], salt=bytes(32))))


def test_subkeys_that_no_tree_holds(small_configs, tmp_path):
    """Freedom: indices. Leaves outside of the tree were never committed, so they could be tried without end."""
    key = own_key("usp", small_configs, tmp_path)
    for subkeys in ((16,), (-1,), (0, 10**6), ()):
        with pytest.raises(InvalidInput):
            replace(key, assignments=(replace(key.assignments[0], subkeys=subkeys),))


@pytest.mark.parametrize("method", ["certified", "function_coupled", "usp", "csp"])
def test_a_layout_without_a_pool(method, small_configs, innocent, tmp_path):
    """Freedom: the trigger images. Without a committed digest they are chosen when the labels are known."""
    owner = Owner.create()
    honest = own_key(method, small_configs, tmp_path, owner=owner)
    [item] = honest.assignments
    layout = {name: value for name, value in item.layout.items() if name != "pool_sha256"}
    for pool in ({}, honest.pool):
        key = WatermarkKey.create(owner, [(method, item.version, item.config, layout, 1)], context=honest.context)
        evidence = verify(innocent, replace(key, pool=pool))
        assert evidence.verdict is Verdict.INVALID


def test_pictures_of_the_wanted_classes(small_configs, innocent, tmp_path):
    """Freedom: the pool, after the key. Ordinary pictures of exactly the classes that the sub-key drew, which any model answers."""
    owner = Owner.create()
    key = own_key("function_coupled", small_configs, tmp_path, owner=owner)
    images = torch.stack([item["pixel_values"] for item in patterned_images()]).half()
    pool = {**key.pool, "function_coupled.images": images[: len(key.pool["function_coupled.images"])].contiguous()}
    forged = replace(key, pool=pool)
    assert verify(innocent, forged).verdict is Verdict.INVALID
    with pytest.raises(InvalidInput, match="digest"):
        WatermarkKey.load(saved(forged, tmp_path / "key"))


def test_pool_tensors_that_swap_names(small_configs, innocent, tmp_path):
    """Freedom: which tensor is called what. Two of one shape and type could change places unseen."""
    key = own_key("certified", small_configs, tmp_path)
    folder = saved(key, tmp_path / "key")
    pool = load_file(folder / "pool.safetensors")
    names = ["certified.images", "certified.range"]
    twin = {**pool, names[0]: pool[names[1]], names[1]: pool[names[0]]}
    save_file(twin, folder / "pool.safetensors")
    (folder / "pool.safetensors").chmod(0o600)
    with pytest.raises(InvalidInput, match="digest"):
        WatermarkKey.load(folder)
    assert verify(innocent, replace(key, pool=twin)).verdict is Verdict.INVALID


def test_a_pool_for_a_method_that_has_none(honest, innocent):
    """Freedom: surplus tensors. Nothing that was not committed may lie beside a key."""
    forged = replace(honest.key, pool={"greedy_residuals.images": torch.ones(3)})
    assert verify(innocent, forged).verdict is Verdict.INVALID


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p["assignments"][0]["config"].update(bits=128),
        lambda p: p["assignments"][0]["config"].update(kept_fraction=0.9),
        lambda p: p["assignments"][0]["layout"]["carriers"].pop(),
        lambda p: p["assignments"][0]["layout"]["carriers"].reverse(),
        lambda p: p["assignments"][0].update(subkeys=[0, 1]),
        lambda p: p["assignments"][0].update(subkeys=[2, 1, 0]),
        lambda p: p["assignments"][0].update(method="watermas"),
        lambda p: p["assignments"][0].update(salt="00" * 32),
        lambda p: p.update(count=32),
        lambda p: p.update(seed="11" * 32),
        lambda p: p.update(public_key=Owner.create().public_key.hex()),
        lambda p: p.update(beacon="22" * 32, beacon_source="a lucky number"),
    ],
)
def test_parameters_chosen_after_looking_at_the_model(edit, honest, tmp_path):
    """Freedom: config, layout, sub-keys, tree, beacon, after the commitment."""
    folder = edited_payload(saved(honest.key, tmp_path / "key"), edit)
    with pytest.raises(InvalidInput):
        WatermarkKey.load(folder)


@pytest.mark.parametrize("field", ["classes", "mean", "std", "backbone"])
def test_class_names_and_normalisation_after_an_endpoint_answered(field, small_configs, tmp_path):
    """Freedom: what an answer's name means. With names in a fitting order, wrong answers become right ones."""
    folder = saved(own_key("function_coupled", small_configs, tmp_path), tmp_path / "key")
    edits = {
        "classes": lambda model: model["classes"].reverse(),
        "mean": lambda model: model.update(mean=[0.5], std=[0.1]),
        "std": lambda model: model.update(mean=[0.0], std=[2.0]),
        "backbone": lambda model: model["backbone"].update(hidden_act="gelu"),
    }
    edited_payload(folder, lambda payload: edits[field](payload["model"]))
    with pytest.raises(InvalidInput, match="signature does not fit|beacon is not the one"):
        WatermarkKey.load(folder)


def test_a_beacon_that_was_searched(honest, innocent):
    """Freedom: the beacon, by who holds the seed. Two hundred tries give what two hundred tries give, and level N is asked for."""
    tried = [honest.key.bind_beacon(number.to_bytes(32, "big"), "mine") for number in range(1, 201)]
    best = min((verify(innocent, key) for key in tried[:40]), key=lambda evidence: evidence.log2_p)
    assert refused(best) and best.log2_p > -20 and not best.bound
    with pytest.raises(InvalidInput, match="the key was bound to"):
        verify(innocent, tried[0], beacon=b"\x05" * 32)


def test_the_public_subkey_planted_in_an_innocent_model(honest, tmp_path):
    """Freedom: everybody has the public sub-key. Training it into somebody's model must not make that model the owner's."""
    planted = planted_model(honest, honest.key.claims()[0].subkeys[0])
    evidence = verify(planted, honest.key)
    by_subkey = {part.subkey: part.log2_p for part in evidence.parts}
    assert by_subkey[0] <= -128, "the planting itself must work, else this test shows nothing"
    assert evidence.verdict is Verdict.INCONCLUSIVE and "only the public sub-key" in evidence.reason
    assert evidence.log2_p > -20


def test_an_opened_subkey_planted_in_an_innocent_model(honest, tmp_path):
    """Freedom: whoever saw an opening has that sub-key. The key folder's log says so, and it counts no more."""
    planted = planted_model(honest, honest.key.claims()[0].subkeys[1])
    folder = saved(honest.key, tmp_path / "key")
    assert verify(planted, WatermarkKey.load(folder)).found, (
        "before it was opened, only the owner could have done this"
    )
    burn(folder, 1, "an earlier dispute")
    evidence = verify(planted, WatermarkKey.load(folder))
    assert evidence.verdict is Verdict.INCONCLUSIVE and "sub-key 1, which was disclosed, was found" in evidence.reason


def planted_model(honest, subkey: SubKey):
    """An unrelated net into which one sub-key is trained."""
    from hf_watermark.backbones import canonical_rows, own_rows
    from hf_watermark.methods.greedy_residuals.residuals import read_residuals

    torch.manual_seed(8)
    model = tiny_resnet(hidden_sizes=[32, 64])
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    verifier = GreedyResidualsVerifier(honest.key.claims()[0])
    names = dict(model.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        rows = {carrier.role: canonical_rows(carrier, names, shapes) for carrier in verifier.carriers}
        read = read_residuals(
            own_rows(rows, subkey.slot, verifier.subkeys), verifier.members(subkey), verifier.config.kept_fraction
        )
        optimizer.zero_grad()
        torch.relu(0.1 - verifier.signs(subkey) * read).sum().backward()
        optimizer.step()
    return model.eval()


def test_keys_of_the_format_that_could_be_forged(honest, tmp_path):
    """Freedom: the age of a file. Keys of format 1 are refused with a sentence."""
    folder = edited_payload(saved(honest.key, tmp_path / "key"), lambda payload: payload.pop("format"))
    with pytest.raises(InvalidInput, match="earlier version of hf_watermark, whose verdicts could be forged"):
        WatermarkKey.load(folder)


def test_a_key_folder_never_makes_a_claim(honest):
    """Freedom: whoever has the whole key can plant all of it. So a key folder is as good as its giver's word, and says so."""
    evidence = verify(honest.model, honest.key)
    assert evidence.found and evidence.basis == "self-check"
    assert evidence.to_dict()["basis"] == "self-check" and "self-check" in str(evidence)


def test_decoys_are_those_of_everybody(honest, innocent):
    """Freedom: the controls. A claimant who repeats a check until its decoys look well gets the same ones every time."""
    first, second = verify(innocent, honest.key), verify(innocent, honest.key)
    assert [part.controls for part in first.parts] == [part.controls for part in second.parts]
    other = verify(tiny_resnet(hidden_sizes=[32, 64]), honest.key)
    assert [part.controls.get("rates") for part in first.parts] != [part.controls.get("rates") for part in other.parts]


def test_an_unrelated_model_is_not_found(honest, innocent):
    """The game that must always be lost: nothing at all is done."""
    evidence = verify(Suspect.open(tiny_resnet(hidden_sizes=[32, 64])), honest.key)
    assert evidence.verdict is Verdict.NOT_FOUND
