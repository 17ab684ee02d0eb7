"""`verify_claim`: a key in hand, and a statement that says it is the right one."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from shops import permuted, small_model

from hf_watermark import InvalidInput, Opening, Verdict, verify
from hf_watermark.claims import reading, verify_claim
from hf_watermark.claims.reading import published_model
from hf_watermark.evidence import Basis
from hf_watermark.keys import BurntEntry, ModelContext
from hf_watermark.publishing import Extras, publish


LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture(scope="module")
def reordered(dated, tmp_path_factory):
    return permuted(dated.folder, tmp_path_factory.mktemp("reordered"))


def proven(dated, suspect, key=None, **fields):
    fields = {"roots": dated.roots, "suspect_time": LATER} | fields
    return verify_claim(suspect, key or dated.shop.key, fields.pop("statement", dated.folder), **fields)


def test_a_claim_rests_on_the_statement(dated):
    evidence = proven(dated, dated.folder)
    assert evidence.found and evidence.basis is Basis.CLAIM and evidence.bound
    assert verify(dated.folder, dated.shop.key).basis is Basis.SELF_CHECK
    for fields in ({"suspect_time": None}, {"roots": []}):
        assert not proven(dated, dated.folder, **fields).bound
    older = proven(dated, dated.folder, suspect_time=datetime.now(UTC) - timedelta(days=9))
    assert older.verdict is Verdict.INVALID and "cannot descend from it" in older.reason


def test_an_opening_is_charged_for_all_that_could_have_been_opened(dated):
    evidence = proven(dated, dated.folder, Opening.of(dated.shop.key, 1))
    assert evidence.found and evidence.looks == 3
    public = proven(dated, dated.folder, Opening.of(dated.shop.key, 0))
    assert public.verdict is Verdict.INCONCLUSIVE and public.disclosed


def test_what_the_statement_calls_disclosed_adds_nothing(shop, hub):
    entries = [BurntEntry(index, "another", "2026-11-01T00:00:00Z") for index in (1, 2)]
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read, Extras(burnt=entries))
    evidence = verify_claim(shop.folder, shop.key, "me/model")
    assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.disclosed
    assert verify(shop.folder, shop.key).found  # the key folder alone does not know


def test_keys_and_statements_that_do_not_belong_together(dated, shop, repository):
    key = dated.shop.key
    other = dataclasses.replace(key, context=ModelContext.of(key.backbone, classes=["a", "b"]))
    for wrong, words in (
        (shop.key, "another owner"),
        (other, "signature does not fit"),
        (dataclasses.replace(key, beacon=b"\x01" * 32), "another beacon"),
        (Opening.of(shop.key, 1), "another owner"),
        (dataclasses.replace(key, assignments=tuple(dataclasses.replace(a, subkeys=(0, 1)) for a in key.assignments)), "edited"),
    ):  # fmt: skip
        evidence = proven(dated, dated.folder, wrong)
        assert evidence.verdict is Verdict.INVALID and words in evidence.reason
    small_model(seed=3).save_pretrained(repository)
    changed = proven(dated, dated.folder, statement=repository)
    assert changed.verdict is Verdict.INVALID and changed.reason.startswith("V1: ")
    (repository / "watermark" / "statement.json").unlink()
    assert proven(dated, dated.folder, statement=repository).reason.startswith("V0: ")


def test_the_reference_is_built_only_where_the_direct_reading_does_not_suffice(dated, reordered, monkeypatch):
    built = []
    monkeypatch.setattr(reading, "published_model", lambda *given: built.append(given) or published_model(*given))
    evidence = proven(dated, dated.folder, reference=True)
    assert evidence.found and evidence.looks == 2 and not built
    proven(dated, reordered, reference=True)
    assert len(built) == 1


def test_the_reference_is_the_model_that_the_key_was_made_for(dated, reordered, tmp_path):
    assert proven(dated, reordered).verdict is Verdict.NOT_FOUND
    small_model().save_pretrained(tmp_path / "start")
    for date in (LATER, None):  # it was committed to before the bits, so it needs no date
        evidence = proven(dated, reordered, reference=tmp_path / "start", suspect_time=date)
        assert evidence.found and not evidence.capped and evidence.details["alignment"]["committed_reference"]
        assert evidence.bound is (date is not None)
    # The published model could have been made from a common ancestor, another one from the suspect.
    for reference, words in (
        (True, "older than that one"),
        (dated.folder, "older than that one"),
        (reordered, "older than that one"),
    ):
        evidence = proven(dated, reordered, reference=reference)
        assert evidence.verdict is not Verdict.FOUND and (evidence.log2_p > -20 or words in evidence.reason)
    undated = proven(dated, reordered, reference=True, suspect_time=None)
    assert undated.verdict is Verdict.INCONCLUSIVE and "the suspect's date is unknown" in undated.reason
    stranger = tmp_path / "stranger"
    small_model(seed=12).save_pretrained(stranger)
    assert proven(dated, stranger, reference=True).verdict is Verdict.NOT_FOUND


def test_a_wrong_reference_never_leads_to_not_found(dated, reordered, tmp_path):
    """Neither for a suspect that carries the mark under reordered channels, nor for a stranger, who may hide it as well."""
    for name, seed in (("wrong", 5), ("stranger", 12)):
        small_model(seed=seed).save_pretrained(tmp_path / name)
    for suspect in (reordered, tmp_path / "stranger"):
        evidence = proven(dated, suspect, reference=tmp_path / "wrong")
        assert evidence.verdict is Verdict.INCONCLUSIVE
        assert any("wrong is not the model that the key was made for" in warning for warning in evidence.warnings)
        alone = verify(suspect, dated.shop.key, reference=tmp_path / "wrong")
        assert (
            alone.verdict is Verdict.INCONCLUSIVE and "give the model as it was when the key was made" in alone.reason
        )
        vouched = verify(suspect, dated.shop.key, reference=tmp_path / "wrong", own_reference=True)
        assert vouched.verdict is Verdict.INCONCLUSIVE
    # By the right one, and by one that carries the mark, the stranger's channels could be told.
    small_model().save_pretrained(tmp_path / "start")
    for reference in (tmp_path / "start", dated.folder):
        assert verify(tmp_path / "stranger", dated.shop.key, reference=reference).verdict is Verdict.NOT_FOUND
    with pytest.raises(InvalidInput, match="no such folder"):
        proven(dated, reordered, reference=tmp_path / "missing")
