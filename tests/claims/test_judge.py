"""A third party without the key: one claim, and two claimants."""

import copy
import dataclasses
import json
import math
import shutil
from datetime import UTC, datetime, timedelta

import pytest
import torch
from safetensors.torch import load_file, save_file
from shops import open_shop, permuted, small_model
from transformers import AutoModelForImageClassification

from hf_watermark import InvalidInput, Opening, Owner, Verdict, WatermarkKey, verify
from hf_watermark.claims import Disclosure, Outcome, judge
from hf_watermark.claims.judgement import TRANSCRIPT_DOMAIN, signed_transcript
from hf_watermark.keys import BurntEntry, Share, burn, burnt_log, burnt_subkeys, in_words, is_signed_by
from hf_watermark.publishing import Extras, publish
from hf_watermark.serialization import canonical_json


NONCE = "court-4711"
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def thief_folder(dated, tmp_path_factory):
    """The published model after some noise, pruning and a new name: somebody else's model on the Hub."""
    folder = tmp_path_factory.mktemp("suspect")
    torch.manual_seed(1)
    tensors = load_file(dated.folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            tensor += 0.1 * tensor.std() * torch.randn_like(tensor)
            tensor[tensor.abs() < tensor.abs().median() * 0.3] = 0
        tensors[name] = tensor.clone()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def opened(dated):
    return Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE)


def rule(dated, disclosure, suspect, **fields):
    fields = {"nonce": NONCE, "roots": dated.roots, "suspect_time": NOW + timedelta(days=1), "drawn": True} | fields
    return judge(disclosure, suspect, fields.pop("statement", dated.folder), **fields)


def step(result, name):
    [found] = [step for step in result.steps if step.name == name]
    return found


def test_a_derived_model(dated, opened, thief_folder):
    result = rule(dated, opened, thief_folder, unmarked={"public base": small_model(seed=4)})
    assert result.found and result.level == "B" and result.looks == 2 and result.evidence.bound
    assert {step.name for step in result.steps} >= {
        "statement V0", "statement V1", "statement V2", "consent", "commitment", "sub-key", "dates", "looks", "suspect",
        "control: published model", "control: public base", "reference", "log",
    }  # fmt: skip
    assert {step.name for step in result.steps if step.outcome is not Outcome.PASSED} == {"log"}
    transcript = result.transcript
    assert transcript["evidence"]["parts"][0]["controls"]["decoys"] == 100
    assert (
        transcript["inputs"]["suspect"]["files"].keys() == {"model.safetensors"}
        and transcript["ledger"]["level"] == "B"
    )
    # Anybody who does it again arrives at the same numbers.
    again = rule(dated, Disclosure.parse(canonical_json(opened.to_dict())), thief_folder).transcript
    assert (again["verdict"], again["evidence"]["log2_p"]) == (transcript["verdict"], transcript["evidence"]["log2_p"])
    secrets = [subkey.secret.hex() for subkey in dated.shop.key.claims()[0].subkeys] + [opened.opening.secret.hex()]
    assert not [secret for secret in secrets if secret in json.dumps(transcript)]


def test_a_signed_transcript(dated, opened, thief_folder):
    arbiter = Owner.create()
    document = signed_transcript(rule(dated, opened, thief_folder).transcript, arbiter)
    message = TRANSCRIPT_DOMAIN + canonical_json(document["transcript"])
    assert is_signed_by(arbiter.public_key, message, bytes.fromhex(document["signature"]))


def test_an_independent_model(dated, opened, tmp_path):
    small_model(seed=7).save_pretrained(tmp_path)
    result = rule(dated, opened, tmp_path)
    assert result.verdict is Verdict.NOT_FOUND and "log2 p" in result.reason


def test_on_the_hub(dated, opened, thief_folder, hub):
    hub.add_folder("me/model", dated.folder)
    hub.add_folder("you/renamed", thief_folder)
    result = rule(dated, opened, "you/renamed", statement="me/model")
    assert result.found and result.inputs["suspect"]["commit"] == hub.repos["models", "you/renamed"].head.oid
    hub.add_repo("you/closed", {"model.safetensors": b"x"}, gated=True)
    with pytest.raises(InvalidInput, match="is gated; ask for access.*says nothing about a mark"):
        rule(dated, opened, "you/closed", statement="me/model")


def test_looks_are_charged(dated, opened, thief_folder):
    once = rule(dated, opened, thief_folder)
    chosen = rule(dated, opened, thief_folder, drawn=False)
    often = rule(dated, opened, thief_folder, drawn=False, looks=8)
    # Three committed sub-keys; the second, aligned reading is charged although the first one suffices.
    assert (once.looks, chosen.looks, often.looks) == (2, 6, 48)
    assert chosen.evidence.log2_p == pytest.approx(once.evidence.log2_p + math.log2(3))
    assert often.evidence.log2_p == pytest.approx(once.evidence.log2_p + math.log2(24))


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"roots": []}, "no beacon was established"),
        ({"suspect_time": None}, "the suspect's date is unknown"),
        ({"roots": "first"}, None),
    ],
)  # fmt: skip
def test_level_n_where_anything_is_missing(dated, opened, thief_folder, fields, missing):
    if fields.get("roots") == "first":
        with pytest.raises(AssertionError):
            # A token of an authority that is not trusted is a failure, not an absence.
            assert rule(dated, opened, thief_folder, roots=dated.roots[:1]).verdict is not Verdict.INVALID
        return
    result = rule(dated, opened, thief_folder, **fields)
    assert result.level == "N" and missing in step(result, "dates").detail and not result.evidence.bound
    assert result.evidence.log2_p <= -64 and str(result.verdict) in ("mark found", "inconclusive")


def test_an_older_suspect_ends_the_claim(dated, opened, thief_folder):
    result = rule(dated, opened, thief_folder, suspect_time=NOW - timedelta(days=3))
    assert (
        result.verdict is Verdict.INVALID and "it cannot descend from it" in result.reason and result.evidence is None
    )


# --- Openings that are refused ---------------------------------------------------------------------------------------


def test_replayed_and_foreign_openings(dated, opened, thief_folder, shop):
    assert (
        "was made for another dispute (court-4711): it is a replay"
        in rule(dated, opened, thief_folder, nonce="court-9").reason
    )
    with pytest.raises(InvalidInput, match="no name of the dispute was given.*a replay would not be noticed"):
        rule(dated, opened, thief_folder, nonce="")
    bare = Disclosure(opened.opening, None)
    assert "carries no consent of its owner" in rule(dated, bare, thief_folder).reason
    # D2: the thief replays the opening with a consent of his own.
    thief = Owner.create()
    signed = Disclosure.make(dataclasses.replace(dated.shop.key, public_key=thief.public_key), thief, 1, NONCE)
    stolen = Disclosure(opened.opening, signed.consent)
    assert "consent does not fit this opening" in rule(dated, stolen, thief_folder).reason
    foreign = Disclosure.make(shop.key, shop.owner, 1, NONCE)
    assert "the opening belongs to another owner" in rule(dated, foreign, thief_folder).reason
    with pytest.raises(InvalidInput, match="the key belongs to another owner"):
        Disclosure.make(dated.shop.key, thief, 1, NONCE)
    with pytest.raises(ValueError, match="sub-key 9 carries no mark"):
        Disclosure.make(dated.shop.key, dated.shop.owner, 9, NONCE)
    with pytest.raises(InvalidInput, match="nonce"):
        Disclosure.make(dated.shop.key, dated.shop.owner, 1, "a nonce\nwith lines")


def test_public_subkeys_prove_nothing(dated, thief_folder):
    public = Disclosure.make(dated.shop.key, dated.shop.owner, 0, NONCE)
    assert "sub-key 0 is public: anybody could have planted it" in rule(dated, public, thief_folder).reason


def test_what_the_statement_calls_disclosed_proves_nothing(shop, hub):
    """The list is signed. All committed sub-keys are charged, whatever of them it lists."""
    entries = [BurntEntry(2, "another-dispute", "2026-11-01T00:00:00Z")]
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read, Extras(burnt=entries))
    burnt = judge(Disclosure.make(shop.key, shop.owner, 2, NONCE), shop.folder, "me/model", NONCE)
    assert burnt.verdict is Verdict.INVALID and "was opened in an earlier dispute" in burnt.reason
    assert judge(Disclosure.make(shop.key, shop.owner, 1, NONCE), shop.folder, "me/model", NONCE).own_looks == 3


def test_an_opening_for_this_dispute_does_not_spoil_itself(shop, hub, tmp_path):
    """Disclose, publish again, as the owner must say what he opened, then judge."""
    shutil.copytree(shop.keys, tmp_path / "keys")
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read)
    disclosure = Disclosure.make(shop.key, shop.owner, 1, NONCE)
    burn(tmp_path / "keys", 1, NONCE)
    again = Extras(burnt=burnt_log(tmp_path / "keys"))
    statement = publish(shop.folder, "me/model", shop.key, shop.owner, shop.read, again).statement.statement
    assert [entry.subkey for entry in statement.disclosed] == [1]
    assert judge(disclosure, shop.folder, "me/model", NONCE).found
    other = Disclosure.make(shop.key, shop.owner, 1, "court-4712")
    assert judge(other, shop.folder, "me/model", "court-4712").verdict is Verdict.INVALID


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: dataclasses.replace(o, secret=bytes(32)), "not in the committed tree"),
        (lambda o: dataclasses.replace(o, index=2), "not in the committed tree"),
        (lambda o: dataclasses.replace(o, path=o.path[:-1]), "wrong length for this tree"),
        (lambda o: dataclasses.replace(o, path=(o.path[1], o.path[0], *o.path[2:])), "not in the committed tree"),
        (lambda o: dataclasses.replace(o, count=8, path=o.path[:3]), "not in the committed tree"),
        (lambda o: dataclasses.replace(o, beacon=b"\x01" * 32), "bound to another beacon"),
        (lambda o: dataclasses.replace(o, precommit=b"\x01" * 32), "the opening belongs to another key of this owner"),
        (lambda o: dataclasses.replace(o, shares=(Share(b"\x01" * 32, (0, 1, 2)),)), "parameters are not the committed ones"),
        (lambda o: dataclasses.replace(o, index=2**40), "does not exist"),
    ],
)  # fmt: skip
def test_altered_openings(dated, opened, thief_folder, change, words):
    altered = change(opened.opening)
    consent = Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE).consent
    # Even if the owner himself signs it.
    from hf_watermark.claims.disclosure import _message

    consent = consent.model_copy(update={"signature": dated.shop.owner.sign(_message(altered, NONCE)).hex()})
    result = rule(dated, Disclosure(altered, consent), thief_folder)
    assert result.verdict is Verdict.INVALID and words in result.reason and result.evidence is None


def test_bad_statements_end_the_claim(dated, opened, thief_folder, repository):
    (repository / "watermark" / "statement.0.tsr").write_bytes(b"x")
    assert rule(dated, opened, thief_folder, statement=repository).reason.startswith("V2: ")
    small_model(seed=8).save_pretrained(repository)
    assert rule(dated, opened, thief_folder, statement=repository).reason.startswith("V1: ")
    (repository / "watermark" / "statement.json").unlink()
    assert rule(dated, opened, thief_folder, statement=repository).reason.startswith("V0: ")


def test_controls_void_the_run(dated, opened, thief_folder):
    marked = AutoModelForImageClassification.from_pretrained(dated.folder)
    result = rule(dated, opened, thief_folder, unmarked={"alleged twin": marked})
    assert (
        result.verdict is Verdict.INCONCLUSIVE and "a control failed: alleged twin without the mark" in result.reason
    )


# --- B1 to B7: forgeries before the judge -----------------------------------------------------------------------------


def test_a_key_made_afterwards_does_not_fit_a_foreign_model(dated, shop, thief_folder, hub):
    """B1, B7: another owner with a valid statement of his own claims a model that he did not make."""
    publish(shop.folder, "me/mine", shop.key, shop.owner, shop.read)
    claim = Disclosure.make(shop.key, shop.owner, 1, NONCE)
    result = judge(claim, thief_folder, "me/mine", NONCE, drawn=True)
    assert result.verdict is Verdict.NOT_FOUND and result.evidence.log2_p > -20


def test_a_published_original_relabelled_as_ones_own(dated, hub, tmp_path):
    """B6: somebody signs a statement over the other's published file; his key's mark is not in it, so there is nothing to sign."""
    thief = open_shop(tmp_path / "thief", seed=11)
    shutil.copytree(dated.folder, tmp_path / "loot", ignore=shutil.ignore_patterns("watermark"))
    assert (
        publish(
            tmp_path / "loot", "me/loot", thief.key, thief.owner, lambda folder: verify(folder, thief.key)
        ).statement
        is None
    )


def test_accessory_layers_of_a_claimant_have_no_place(dated, opened, thief_folder):
    """B4: passport layers, a detector, code: whatever a claimant adds is refused by name, or breaks the commitment."""
    document, layer = opened.to_dict(), {"passport.weight": [[0.5, -0.5]]}
    for extra in ({"passport": layer}, {"detector": "me/detector"}):
        with pytest.raises(InvalidInput, match="opening: not in the form that .*unknown field"):
            Disclosure.parse(json.dumps(document | extra).encode())
    for field in ("config", "layout"):
        edited = copy.deepcopy(document)
        edited["assignment"][field]["passport"] = layer
        claim = Disclosure.parse(json.dumps(edited).encode())
        assert "parameters are not the committed ones" in in_words(claim.opening.problems())
    # Not even when they were committed to: nothing reads a tensor of the claimant's, and a config has no such field.
    plan = opened.opening.assignment
    plans = [(plan.method, plan.version, plan.config | {"passport": layer}, plan.layout, len(plan.subkeys))]
    committed = Opening.of(WatermarkKey.create(dated.shop.owner, plans), 1)
    evidence = verify(thief_folder, committed)
    assert evidence.verdict is Verdict.INVALID and "unknown field 'passport'" in evidence.reason
    # Source images are taken from the disclosed pool alone, and of this method none are.
    pooled = dataclasses.replace(opened.opening, pool={"passport.weight": torch.ones(2, 2)})
    assert (
        opened.opening.pool == {}
        and verify(thief_folder, pooled).matches == verify(thief_folder, opened.opening).matches
    )


@pytest.mark.parametrize("dates", [{}, {"suspect_time": None}])
def test_a_wrong_start_is_never_not_found(dated, opened, dates, tmp_path):
    """What is delivered as the model before the mark is another one: as if nothing were delivered, and said."""
    reordered = permuted(dated.folder, tmp_path / "reordered")
    for name, seed in (("plain", 5), ("stranger", 7)):
        small_model(seed=seed).save_pretrained(tmp_path / name)
    for suspect in (reordered, tmp_path / "stranger"):
        result = rule(dated, opened, suspect, start=tmp_path / "plain", **dates)
        assert result.verdict is Verdict.INCONCLUSIVE
        assert step(result, "start").outcome is Outcome.OPEN
        assert (
            "plain is not the model that the key was made for: the key commits to another"
            in step(result, "start").detail
        )
    bare = rule(dated, opened, reordered, **dates)
    assert rule(dated, opened, reordered, start=tmp_path / "plain", **dates).evidence.log2_p == bare.evidence.log2_p
    assert rule(dated, opened, reordered, start=small_model(), **dates).found
    assert rule(dated, opened, tmp_path / "stranger", start=small_model(), **dates).verdict is Verdict.NOT_FOUND
    with pytest.raises(InvalidInput, match="no such folder"):
        rule(dated, opened, reordered, start=tmp_path / "missing", **dates)


def test_a_common_public_base_is_no_evidence(dated, opened, tmp_path):
    """B7: the marked model and an honest stranger's were both made from this base; it aligns perfectly and carries nothing."""
    base = small_model(seed=0)  # what `dated` started from
    base.save_pretrained(tmp_path / "base")
    stranger = small_model(seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(stranger.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.02 * parameter.abs().mean() * noise
    stranger.save_pretrained(tmp_path / "stranger")
    for name in ("base", "stranger"):
        result = rule(dated, opened, tmp_path / name)
        assert result.verdict is Verdict.NOT_FOUND and result.evidence.log2_p > -20


def test_chosen_positions_and_messages_are_impossible(opened):
    """B2, B3, B4: an opening has no field for bits, positions, images or layers; unknown ones are refused or ignored by the derivation."""
    assert set(opened.to_dict()) == {
        "schema", "index", "secret", "blind", "path", "assignment", "methods", "model", "public_key", "subkey_count", "beacon",
        "beacon_source", "precommit", "signature", "subkey_sha256", "consent",
    }  # fmt: skip


# --- Burning ----------------------------------------------------------------------------------------------------------


def test_openings_are_noted(dated, tmp_path):
    assert burnt_subkeys(tmp_path) == []
    burn(tmp_path, 3, "first")
    burn(tmp_path, 1, "second")
    assert burnt_subkeys(tmp_path) == [1, 3]
    (tmp_path / "burnt.json").write_text("{}")
    with pytest.raises(InvalidInput, match="burnt.json"):
        burnt_subkeys(tmp_path)


def test_openings_do_not_change_by_reading(opened):
    raw = canonical_json(opened.to_dict())
    assert canonical_json(Disclosure.parse(raw).to_dict()) == raw
    assert Opening.from_dict(json.loads(raw)) == copy.copy(opened.opening)
