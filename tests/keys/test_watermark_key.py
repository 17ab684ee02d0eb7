"""Keys and openings at rest and in a dispute."""

import dataclasses
import json
import stat

import pytest
import torch
from safetensors.torch import save_file

from hf_watermark import InvalidInput, Opening, Owner, WatermarkKey, verify
from hf_watermark.evidence import Verdict
from hf_watermark.keys import (
    PRECOMMIT_DOMAIN,
    CommitmentProblem,
    ModelContext,
    ProblemKind,
    SubKey,
    WrongPassphrase,
    burn,
    envelope,
    in_words,
    pool_digest,
)
from hf_watermark.keys.envelope import read_envelope, write_envelope


PASSPHRASE = "correct horse battery"


def pool_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {"function_coupled.images": images, "function_coupled.labels": torch.arange(4)}


def make_key(owner: Owner, **fields) -> WatermarkKey:
    pool = pool_tensors()
    plans = [
        ("greedy_residuals", "1", {"bits": 128, "strength": 0.01}, {"carriers": []}, 3),
        ("function_coupled", "1", {"rules": 48}, {"classes": 10, "pool_sha256": pool_digest(pool)}, 2),
    ]
    return WatermarkKey.create(owner, plans, pool=pool, context=make_context(), **fields)


def make_context(**changes) -> ModelContext:
    fields = {"backbone": {"model_type": "resnet", "eps": 1e-5}, "classes": tuple("abcdefghij"), "mean": (0.5,)}
    return ModelContext(**fields | {"std": (0.25,)} | changes)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(envelope, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})


@pytest.fixture
def key(owner):
    return make_key(owner)


def assert_same(left: WatermarkKey, right: WatermarkKey) -> None:
    assert left.pool.keys() == right.pool.keys()
    assert all(torch.equal(left.pool[name], right.pool[name]) for name in left.pool)
    assert dataclasses.replace(left, pool={}) == dataclasses.replace(right, pool={})
    assert [claim.subkeys for claim in left.claims()] == [claim.subkeys for claim in right.claims()]


@pytest.mark.parametrize("bound", [False, True])
def test_save_and_load(key, tmp_path, bound):
    key = key.bind_beacon(b"\x05" * 32, "drand round 5") if bound else key
    folder = key.save(tmp_path / "keys" / "mine", PASSPHRASE)
    loaded = WatermarkKey.load(folder, PASSPHRASE)
    assert_same(loaded, key)
    assert loaded.precommit == key.precommit and loaded.beacon_source == key.beacon_source
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"key.json", "pool.safetensors"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_same_seed_gives_the_same_key(owner):
    seed = bytes(range(32))
    assert_same(make_key(owner, seed=seed), make_key(owner, seed=seed))
    assert make_key(owner, seed=seed).precommit != make_key(owner).precommit


def test_subkeys_of_one_key_differ_and_stay_in_their_slots(key):
    subkeys = [subkey for claim in key.claims() for subkey in claim.subkeys]
    assert [subkey.index for subkey in subkeys] == [0, 1, 2, 3, 4]
    assert [subkey.slot for subkey in subkeys] == [0, 1, 2, 0, 1]
    assert len({subkey.secret for subkey in subkeys}) == 5
    decoy = subkeys[0].decoy()
    assert decoy.slot == subkeys[0].slot and decoy.secret != subkeys[0].secret


def test_a_beacon_changes_every_subkey_and_no_commitment(key):
    bound = key.bind_beacon(b"\x05" * 32, "drand round 5")
    assert bound.precommit == key.precommit
    before, after = ({s.secret for claim in k.claims() for s in claim.subkeys} for k in (key, bound))
    assert not before & after
    for value in (bytes(32), b"short"):
        with pytest.raises(ValueError, match="a beacon is 32 bytes, not all zero"):
            key.bind_beacon(value, "nowhere")


def other_contexts() -> list[ModelContext]:
    """One change each of what is committed about the model."""
    return [
        make_context(),
        make_context(backbone={"model_type": "resnet", "eps": 1e-6}),
        make_context(classes=tuple("bacdefghij")),
        make_context(mean=(0.4,)),
        make_context(std=(0.5,)),
    ]


def test_every_parameter_is_committed(owner):
    seed = bytes(32)
    plan = ("greedy_residuals", "1", {"bits": 128}, {"carriers": ["resnet.0"]}, 2)
    others = [
        ("function_coupled", *plan[1:]),
        (plan[0], "2", *plan[2:]),
        (*plan[:2], {"bits": 129}, *plan[3:]),
        (*plan[:3], {"carriers": ["resnet.1"]}, 2),
        (*plan[:4], 3),
    ]
    keys = [WatermarkKey.create(owner, [each], seed=seed) for each in [plan, *others]]
    keys += [
        WatermarkKey.create(owner, [plan, plan], seed=seed),
        WatermarkKey.create(owner, [plan], seed=seed, count=8),
    ]
    keys += [WatermarkKey.create(owner, [plan], seed=seed, context=context) for context in other_contexts()]
    assert len({each.precommit for each in keys}) == len(keys)
    # ... and every sub-key with it, so a claimant who shops for parameters starts from new bits each time.
    assert len({each.claims()[0].subkeys[0].secret for each in keys}) == len(keys)


def test_more_subkeys_than_leaves_are_refused(owner):
    with pytest.raises(ValueError, match="ask for 17 sub-keys, the tree has 16; lower `subkeys`"):
        WatermarkKey.create(owner, [("greedy_residuals", "1", {}, {}, 17)])


def test_nothing_secret_is_printed_or_precommitted(key):
    shown = repr(key) + repr(key.claims()) + repr(Opening.of(key, 0)) + json.dumps(key.precommit_document())
    secrets = [key.seed, *(part for index in range(16) for part in key.leaf(index))]
    secrets += [subkey.secret for claim in key.claims() for subkey in claim.subkeys]
    secrets += [assignment.salt for assignment in key.assignments]
    assert not [s for s in secrets if s.hex() in shown or repr(s)[2:-1] in shown]


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_wrong_missing_or_absent(key, tmp_path):
    with pytest.raises(
        InvalidInput, match=r"is an empty folder; expected the owner's key folder: the one with the key\.json"
    ):
        WatermarkKey.load(tmp_path)
    key.save(tmp_path / "k", PASSPHRASE)
    with pytest.raises(WrongPassphrase):
        WatermarkKey.load(tmp_path / "k", "another passphrase")
    with pytest.raises(WrongPassphrase):
        WatermarkKey.load(tmp_path / "k")


def test_a_key_is_not_overwritten_unasked(key, owner, tmp_path):
    key.save(tmp_path / "k", PASSPHRASE)
    other = make_key(owner)
    with pytest.raises(FileExistsError):
        other.save(tmp_path / "k", PASSPHRASE)
    assert_same(WatermarkKey.load(tmp_path / "k", PASSPHRASE), key)
    other.save(tmp_path / "k", PASSPHRASE, overwrite=True)
    assert_same(WatermarkKey.load(tmp_path / "k", PASSPHRASE), other)


@pytest.mark.parametrize(
    "published", ["config.json", "model.safetensors", "model.safetensors.index.json", "trainer_state.json"]
)
def test_a_model_folder_takes_no_key(key, tmp_path, published):
    (tmp_path / published).touch()
    for folder in (tmp_path, tmp_path / "keys" / "deep"):
        with pytest.raises(ValueError, match=f"lies inside a model folder .*{published}"):
            key.save(folder, PASSPHRASE)
    assert {path.name for path in tmp_path.iterdir()} == {published}


def test_pools_of_other_keys_are_refused(key, tmp_path):
    folder = key.save(tmp_path / "k", PASSPHRASE)
    save_file(pool_tensors(seed=1), folder / "pool.safetensors")
    with pytest.raises(InvalidInput, match="belongs to another key or was edited"):
        WatermarkKey.load(folder, PASSPHRASE)
    (folder / "pool.safetensors").unlink()
    with pytest.raises(InvalidInput, match="missing; the triggers of `function_coupled` are made from it"):
        WatermarkKey.load(folder, PASSPHRASE)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "11" * 32, "signature does not fit"),
        ("public_key", "22" * 32, "signature does not fit"),
        ("signature", "33" * 64, "signature does not fit"),
        ("count", 32, "signature does not fit"),
        ("count", 12, "12 sub-keys does not exist"),
        ("count", 0, "0 sub-keys does not exist"),
        ("count", -4, "-4 sub-keys does not exist"),
        ("count", 2**40, "sub-keys does not exist"),
        ("count", 8, "signature does not fit"),
        ("assignments", [], "a method has no sub-key"),
        ("assignments", "many", "not a watermark key"),
        ("assignments", [{"method": "greedy_residuals"}], "not a watermark key"),
        ("seed", "not hexadecimal", "not a watermark key"),
        ("seed", 5, "not a watermark key"),
        ("beacon", None, "not a watermark key"),
        ("model", 5, "not a watermark key"),
        ("model", make_context(classes=tuple("bacdefghij")).to_dict(), "signature does not fit"),
        ("model", make_context(mean=(0.4,)).to_dict(), "signature does not fit"),
        ("beacon", "06" * 32, "not the one that the key was bound to"),
        ("beacon_source", "another place", "not the one that the key was bound to"),
        ("binding", "00" * 32, "not the one that the key was bound to"),
    ],
)
def test_edited_keys_are_refused_even_when_resealed(key, tmp_path, field, value, message):
    folder = key.save(tmp_path / "k", PASSPHRASE)
    payload = read_envelope(folder / "key.json", PASSPHRASE)
    write_envelope(folder / "key.json", payload | {field: value}, PASSPHRASE, overwrite=True)
    with pytest.raises(InvalidInput, match=message):
        WatermarkKey.load(folder, PASSPHRASE)


def test_edited_parameters_break_the_signature(key, tmp_path):
    folder = key.save(tmp_path / "k", PASSPHRASE)
    payload = read_envelope(folder / "key.json", PASSPHRASE)
    payload["assignments"][0]["config"]["bits"] = 129
    write_envelope(folder / "key.json", payload, PASSPHRASE, overwrite=True)
    with pytest.raises(InvalidInput, match="signature does not fit"):
        WatermarkKey.load(folder, PASSPHRASE)


def test_keys_of_the_first_format_are_refused_with_the_reason(key, tmp_path):
    folder = key.save(tmp_path / "k", PASSPHRASE)
    payload = read_envelope(folder / "key.json", PASSPHRASE)
    for old in ({name: value for name, value in payload.items() if name != "format"}, payload | {"format": 1}):
        write_envelope(folder / "key.json", old, PASSPHRASE, overwrite=True)
        with pytest.raises(InvalidInput, match="earlier version of hf_watermark, .* make a new key and train again"):
            WatermarkKey.load(folder, PASSPHRASE)


def test_a_subkey_is_used_once(key):
    first, second = key.assignments
    for assignments in (
        (dataclasses.replace(first, subkeys=(1,) * 300), second),
        (first, dataclasses.replace(second, subkeys=(2, 4))),
    ):
        with pytest.raises(InvalidInput, match="a sub-key is used twice"):
            dataclasses.replace(key, assignments=assignments)
    with pytest.raises(InvalidInput, match="outside the tree of 16"):
        dataclasses.replace(key, assignments=(first, dataclasses.replace(second, subkeys=(3, 16))))


def test_pool_tensors_are_committed_by_name_and_content(key, tmp_path):
    # Two tensors of one kind that swap their names would be other triggers under the same contents.
    pool = {
        name: torch.full((2,), value) for name, value in (("function_coupled.a", 1.0), ("function_coupled.b", 2.0))
    }
    swapped = {"function_coupled.a": pool["function_coupled.b"], "function_coupled.b": pool["function_coupled.a"]}
    plan = ("function_coupled", "1", {}, {"pool_sha256": pool_digest(pool)}, 1)
    folder = WatermarkKey.create(Owner.create(), [plan], pool=pool).save(tmp_path / "k", PASSPHRASE)
    save_file(swapped, folder / "pool.safetensors")
    with pytest.raises(InvalidInput, match="belongs to another key or was edited"):
        WatermarkKey.load(folder, PASSPHRASE)


def test_images_that_were_never_committed_are_refused(key, tmp_path):
    plan = ("function_coupled", "1", {}, {"classes": 10}, 1)
    folder = WatermarkKey.create(Owner.create(), [plan]).save(tmp_path / "k", PASSPHRASE)
    assert WatermarkKey.load(folder, PASSPHRASE).problems() == []
    save_file(pool_tensors(), folder / "pool.safetensors")
    with pytest.raises(InvalidInput, match="images for `function_coupled` that were never committed"):
        WatermarkKey.load(folder, PASSPHRASE)


# --- Sub-keys that others know -----------------------------------------------------------------------------------------


def test_the_public_subkey_and_those_of_the_log_are_disclosed(key, tmp_path):
    folder = key.save(tmp_path / "k", PASSPHRASE)
    assert WatermarkKey.load(folder, PASSPHRASE).disclosed == {0}
    burn(folder, 3, "a dispute")
    burn(folder, 3, "a dispute")
    burn(folder, 2, "asked:example.org")
    loaded = WatermarkKey.load(folder, PASSPHRASE)
    assert loaded.burnt == {2, 3} and loaded.disclosed == {0, 2, 3}
    assert len(json.loads((folder / "burnt.json").read_text())["entries"]) == 2


@pytest.mark.parametrize(
    ("counts", "handed_out", "public"),
    [
        ([1], [(0,)], set()),
        ([3], [(0, 1, 2)], {0}),
        ([1, 2], [(2,), (0, 1)], {0}),
        ([2, 1, 3], [(0, 1), (5,), (2, 3, 4)], {0}),
        ([1, 1], [(0,), (1,)], set()),
    ],
)
def test_only_a_method_that_has_others_gives_a_subkey_away(owner, counts, handed_out, public):
    plans = [(f"method {place}", "1", {}, {}, count) for place, count in enumerate(counts)]
    key = WatermarkKey.create(owner, plans)
    assert [assignment.subkeys for assignment in key.assignments] == handed_out
    assert key.disclosed == Opening.of(key, 0).disclosed == public and key.problems() == []


def test_precommits_of_two_formats_cannot_be_exchanged(key, owner):
    assert dataclasses.replace(key, signature=owner.sign(PRECOMMIT_DOMAIN + key.precommit)).problems() == []
    old = owner.sign(b"hf-watermark/precommit/v1\x00" + key.precommit)
    assert dataclasses.replace(key, signature=old).problems() == [
        CommitmentProblem(ProblemKind.SIGNATURE, "the owner's signature does not fit this key; it was edited")
    ]


# --- Openings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(5))
def test_openings_round_trip_and_hold(key, tmp_path, index):
    opening = Opening.of(key.bind_beacon(b"\x05" * 32, "drand round 5"), index)
    loaded = Opening.load(opening.save(tmp_path / "opening.json"), pool=opening.pool)
    assert loaded.to_dict() == opening.to_dict()
    assert loaded.problems() == []
    [claim], slots = loaded.claims(), [0, 1, 2, 0, 1]
    assert claim.subkeys == opening.claims()[0].subkeys and claim.subkeys[0].slot == slots[index]


def test_openings_of_the_first_format_are_refused_with_the_reason(key):
    document = Opening.of(key, 0).to_dict() | {"schema": "hf-watermark/opening/v1"}
    with pytest.raises(InvalidInput, match="earlier version of hf_watermark, .* make a new key and train again"):
        Opening.from_dict(document)


def test_the_number_of_committed_subkeys_goes_with_every_opening(key):
    assert [Opening.of(key, index).used for index in range(5)] == [[0, 1, 2, 3, 4]] * 5


def test_an_opening_shows_one_subkey_only(key):
    text = json.dumps(Opening.of(key, 0).to_dict())
    hidden = [key.seed, *(key.leaf(index)[place] for index in range(1, 16) for place in (0, 1))]
    assert not [secret for secret in hidden if secret.hex() in text]


def test_openings_read_the_same_subkey_as_the_key(key):
    subkeys: list[SubKey] = [subkey for claim in key.claims() for subkey in claim.subkeys]
    assert [Opening.of(key, index).claims()[0].subkeys[0] for index in range(5)] == subkeys


def test_unused_subkeys_have_no_opening(key):
    with pytest.raises(InvalidInput, match=r"sub-key 7 carries no mark: this key uses 0 to 4; 0 is public"):
        Opening.of(key, 7)


def flipped(text: str) -> str:
    return ("1" if text[0] != "1" else "2") + text[1:]


TAMPERINGS = {
    "index": lambda d: d.update(index=1),
    "index beyond": lambda d: d.update(index=16),
    "negative index": lambda d: d.update(index=-1),
    "index of 2^40": lambda d: d.update(index=2**40),
    "secret": lambda d: d.update(secret=flipped(d["secret"])),
    "blind": lambda d: d.update(blind=flipped(d["blind"])),
    "path node": lambda d: d["path"].__setitem__(0, flipped(d["path"][0])),
    "swapped path": lambda d: d["path"].reverse(),
    "short path": lambda d: d["path"].pop(),
    "count": lambda d: d.update(subkey_count=8),
    "huge count": lambda d: d.update(subkey_count=2**40),
    "negative count": lambda d: d.update(subkey_count=-16),
    "method": lambda d: d["assignment"].update(method="function_coupled"),
    "version": lambda d: d["assignment"].update(version="2"),
    "config": lambda d: d["assignment"]["config"].update(bits=64),
    "layout": lambda d: d["assignment"]["layout"].update(carriers=["resnet.9"]),
    "subkeys": lambda d: d["assignment"].update(subkeys=[0, 1]),
    "salt": lambda d: d["assignment"].update(salt=flipped(d["assignment"]["salt"])),
    "another method": lambda d: d["methods"][1].update(spec=flipped(d["methods"][1]["spec"])),
    "fewer methods": lambda d: d["methods"].pop(),
    "methods in another order": lambda d: d["methods"].reverse(),
    "sub-keys of another method": lambda d: d["methods"][1].update(subkeys=[3]),
    "a sub-key of two methods": lambda d: d["methods"][1].update(subkeys=[2, 3]),
    "model": lambda d: d["model"]["backbone"].update(eps=1.0),
    "class names": lambda d: d["model"]["classes"].reverse(),
    "normalisation": lambda d: d["model"].update(mean=[0.4]),
    "beacon": lambda d: d.update(beacon="06" * 32),
    "sub-key digest": lambda d: d.update(subkey_sha256=flipped(d["subkey_sha256"])),
    "public key": lambda d: d.update(public_key=flipped(d["public_key"])),
    "short public key": lambda d: d.update(public_key="00"),
    "precommit": lambda d: d.update(precommit=flipped(d["precommit"])),
    "signature": lambda d: d.update(signature=flipped(d["signature"])),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampered_openings_are_invalid_claims(key, name):
    document = json.loads(json.dumps(Opening.of(key, 0).to_dict()))
    TAMPERINGS[name](document)
    opening = Opening.from_dict(document)
    assert opening.problems()
    evidence = verify(torch.nn.Linear(2, 2), opening)
    assert evidence.verdict is Verdict.INVALID and evidence.reason == in_words(opening.problems())


@pytest.mark.parametrize("field", sorted(Opening.of(make_key(Owner.create()), 0).to_dict()))
@pytest.mark.parametrize("value", [None, 1.5, "zz", [], ["zz"], {}])
def test_malformed_openings_are_invalid_input(key, field, value):
    document = Opening.of(key, 0).to_dict() | {field: value}
    try:
        problems = Opening.from_dict(document).problems()
    except InvalidInput:
        return
    # A name of the beacon's source is for people; an empty list of nodes or methods is a broken proof.
    assert problems or field == "beacon_source"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["assignment"].update(version=1), "no str"),
        (lambda d: d["assignment"].update(config=[["bits", 128]]), "no dict"),
        (lambda d: d.update(index=0.0), "no int"),
        (lambda d: d.update(detector="me/detector"), "unknown field 'detector'"),
        (lambda d: d["assignment"].update(passport=[1]), "unknown field 'passport'"),
        (lambda d: d.update(secret=d["secret"].upper()), "lower-case"),
        (lambda d: d.update(blind=" " + d["blind"]), "lower-case"),
    ],
)
def test_openings_have_one_spelling(key, change, words):
    document = json.loads(json.dumps(Opening.of(key, 0).to_dict()))
    change(document)
    with pytest.raises(InvalidInput, match=words):
        Opening.from_dict(document)


@pytest.mark.parametrize("field", ["schema", "secret", "path", "assignment", "signature"])
def test_missing_fields_are_invalid_input(key, field):
    document = Opening.of(key, 0).to_dict()
    del document[field]
    with pytest.raises(InvalidInput, match="opening: not in the form that"):
        Opening.from_dict(document)


def test_another_beacon_is_an_edited_opening(key):
    # The beacon is chosen after the precommit, so no commitment can hold it; the digest of the sub-key shows that it was exchanged.
    document = Opening.of(key.bind_beacon(b"\x05" * 32, "drand round 5"), 0).to_dict()
    edited = Opening.from_dict(document | {"beacon": "06" * 32})
    assert [problem.kind for problem in edited.problems()] == [ProblemKind.SUBKEY]
    assert "does not follow from leaf, beacon and commitment" in in_words(edited.problems())


def test_source_images_of_an_opening_are_not_free(key):
    # Adversarial images would answer as any key wants.
    opening = Opening.of(key, 3)
    assert opening.problems() == []
    for pool in ({}, pool_tensors(seed=1)):
        problems = dataclasses.replace(opening, pool=pool).problems()
        assert [problem.kind for problem in problems] == [ProblemKind.POOL] and "pool" in str(problems[0])
