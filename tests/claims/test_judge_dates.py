"""What dates decide before a judge: aligned readings, suspects that are older than the mark, and the judge's own log."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
import torch
from safetensors.torch import load_file, save_file
from shops import permuted, small_model

from hf_watermark import InvalidInput, Verdict
from hf_watermark.claims import Disclosure, Outcome, judge
from hf_watermark.claims.log import read_log
from hf_watermark.evidence import Basis
from hf_watermark.methods.greedy_residuals import GreedyResidualsVerifier
from hf_watermark.publishing import publish
from hf_watermark.suspects.source import Source


NONCE = "court-4711"
DAY = timedelta(days=1)


def now():
    return datetime.now(UTC)


@pytest.fixture
def opened(dated):
    return Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE)


@pytest.fixture(scope="module")
def reordered(dated, tmp_path_factory):
    return permuted(dated.folder, tmp_path_factory.mktemp("reordered"))


def rule(dated, disclosure, suspect, **fields):
    fields = {"nonce": NONCE, "roots": dated.roots, "suspect_time": now() + DAY, "drawn": True} | fields
    return judge(disclosure, suspect, fields.pop("statement", dated.folder), **fields)


def step(result, name):
    [found] = [step for step in result.steps if step.name == name]
    return found


# --- The claimant's published model as reference ---------------------------------------------------------------------


def test_a_permuted_suspect_is_found_where_the_dates_are_proven(dated, opened, reordered):
    result = rule(dated, opened, reordered, unmarked={"base": small_model()})
    assert result.found and result.level == "B" and result.looks == 2 == result.evidence.looks
    assert result.evidence.basis is Basis.CLAIM and result.evidence.details["alignment"]
    assert step(result, "reference").outcome is Outcome.PASSED
    # The common base was aligned too, and carries nothing.
    assert step(result, "control: base").outcome is Outcome.PASSED and result.controls["base"].details["alignment"]


def test_nothing_is_read_twice(dated, opened, reordered, monkeypatch):
    files, looks = Counter(), Counter()
    read, observe = Source.read, GreedyResidualsVerifier.observe

    def counted_read(source, path, *limit):
        files[path] += 1
        return read(source, path, *limit)

    def counted_observe(verifier, suspect, *rest):
        looks[suspect.name] += 1
        return observe(verifier, suspect, *rest)

    monkeypatch.setattr(Source, "read", counted_read)
    monkeypatch.setattr(GreedyResidualsVerifier, "observe", counted_observe)
    assert rule(dated, opened, reordered, start=small_model()).evidence.details["alignment"]
    assert len(files) > 5 and set(files.values()) == {1}
    # The claimant's own model twice: for its public sub-key, and as the control of the one that was opened.
    assert looks == {str(dated.folder): 2, str(reordered): 1, f"{reordered}, aligned": 1}


def test_an_aligned_reading_needs_a_start_or_a_common_ancestor_without_the_mark(dated, opened, reordered):
    result = rule(dated, opened, reordered)
    assert result.verdict is Verdict.INCONCLUSIVE and result.evidence.log2_p <= -128
    assert step(result, "common origin").outcome is Outcome.OPEN and "`start`" in result.reason
    # A stranger as a control excludes nothing, a relative does.
    for model, outcome in ((small_model(seed=40), Outcome.OPEN), (small_model(), Outcome.PASSED)):
        result = rule(dated, opened, reordered, unmarked={"given": model})
        assert step(result, "common origin").outcome is outcome and result.found is (outcome is Outcome.PASSED)


def test_the_model_that_the_key_was_made_for_needs_no_date(dated, opened, reordered, tmp_path):
    small_model().save_pretrained(tmp_path / "start")
    for start in (small_model(), tmp_path / "start", str(tmp_path / "start")):
        result = rule(dated, opened, reordered, start=start, suspect_time=None)
        assert result.found and result.level == "N" and step(result, "reference").outcome is Outcome.PASSED
    for start in (small_model(seed=40), dated.folder, reordered):
        result = rule(dated, opened, reordered, start=start)
        assert not result.found and "not the model that the key was made for" in step(result, "start").detail
    stranger = rule(dated, opened, small_model(seed=7), start=small_model())
    assert stranger.verdict is Verdict.NOT_FOUND and stranger.looks == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"suspect_time": None}, "the suspect's date is unknown"),
        ({"roots": []}, "no trusted authority dated the claimant's statement"),
        ({"suspect_time": "with the statement"}, "not safely earlier"),
    ],
)
def test_without_dates_it_is_inconclusive_and_says_which_is_missing(dated, opened, reordered, fields, words):
    if fields.get("suspect_time") == "with the statement":
        fields = {"suspect_time": rule(dated, opened, reordered).report.dates.statement}
    result = rule(dated, opened, reordered, unmarked={"base": small_model()}, **fields)
    assert result.verdict is Verdict.INCONCLUSIVE and words in result.reason and result.evidence.log2_p <= -128
    assert step(result, "reference").outcome is Outcome.OPEN and words in step(result, "reference").detail


def test_an_independent_model_stays_not_found(dated, opened, tmp_path):
    small_model(seed=7).save_pretrained(tmp_path)
    result = rule(dated, opened, tmp_path)
    assert result.verdict is Verdict.NOT_FOUND and result.looks == 2


def test_the_reference_is_built_by_the_commitment(dated, opened, reordered, repository):
    """The repository's config is the claimant's, and signed by nobody where files were repacked; it is never read."""
    model = small_model()
    model.config.hidden_sizes = [8, 8]
    (repository / "config.json").write_text(model.config.to_json_string())
    result = rule(dated, opened, reordered, statement=repository)
    assert result.verdict is Verdict.INVALID and "config.json is not the file of the statement" in result.reason
    from hf_watermark.claims.reading import published_model
    from hf_watermark.publishing.publication import Publication

    built = published_model(Publication.read(repository), opened.opening)
    assert built.config.hidden_sizes == [32, 64]


# --- What cannot be read ---------------------------------------------------------------------------------------------


def test_a_suspect_of_another_architecture_is_a_verdict(dated, opened, tmp_path):
    save_file({"other.weight": torch.randn(3, 3)}, tmp_path / "model.safetensors")
    result = rule(dated, opened, tmp_path)
    assert result.verdict is Verdict.INCONCLUSIVE and "could not be read" in result.reason
    assert step(result, "suspect").outcome is Outcome.OPEN
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    assert rule(dated, opened, tmp_path).verdict is Verdict.INCONCLUSIVE
    (tmp_path / "model.safetensors").unlink()
    assert "is an empty folder; expected a model in safetensors" in rule(dated, opened, tmp_path).reason
    assert rule(dated, opened, lambda images: torch.zeros(len(images)).long()).verdict is Verdict.INCONCLUSIVE
    with pytest.raises(InvalidInput, match="no such folder"):
        rule(dated, opened, tmp_path / "missing")


def test_a_claimants_model_that_cannot_be_read_is_a_failed_control(dated, opened, tmp_path, monkeypatch):
    from hf_watermark.publishing.publication import Publication

    honest = Publication.suspect

    def broken(publication, backbone):
        if publication.name == str(dated.folder):
            raise InvalidInput("its weights are in no form that is known")
        return honest(publication, backbone)

    monkeypatch.setattr(Publication, "suspect", broken)
    small_model(seed=7).save_pretrained(tmp_path)
    result = rule(dated, opened, tmp_path)
    assert result.verdict is Verdict.INCONCLUSIVE and "a control failed" in result.reason


# --- The claimant's own date -----------------------------------------------------------------------------------------


def test_the_claimants_own_date_binds_him(shop, hub):
    """Without any timestamp: he says himself that his mark is younger than the suspect."""
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read)
    disclosure = Disclosure.make(shop.key, shop.owner, 1, NONCE)
    early = judge(disclosure, shop.folder, "me/model", NONCE, suspect_time=now() - DAY)
    assert early.verdict is Verdict.INVALID and early.evidence is None and "cannot descend from it" in early.reason
    assert judge(disclosure, shop.folder, "me/model", NONCE, suspect_time=now()).found
    assert judge(disclosure, shop.folder, "me/model", NONCE).found


def test_a_statement_that_replaces_an_older_one_points_to_it(shop, hub):
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read)
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read)
    disclosure = Disclosure.make(shop.key, shop.owner, 1, NONCE)
    early = judge(disclosure, shop.folder, "me/model", NONCE, suspect_time=now() - DAY)
    assert early.verdict is Verdict.INVALID and "replaces an earlier one" in early.reason


# --- The judge's log -------------------------------------------------------------------------------------------------


def test_the_log_remembers_subkeys_and_looks(dated, opened, tmp_path):
    log, suspect = tmp_path / "log.json", dated.folder
    first = rule(dated, opened, suspect, log=log)
    again = rule(dated, opened, suspect, log=log)
    # The same look, taken again, is no second look.
    assert first.found and (first.looks, again.looks) == (2, 2) and len(read_log(log).entries) == 1
    entry = read_log(log).entries[0]
    assert (entry.subkey, entry.nonce, entry.verdict) == (1, NONCE, "mark found")
    assert entry.precommit == dated.shop.key.precommit.hex() and entry.suspect_sha256
    other = Disclosure.make(dated.shop.key, dated.shop.owner, 1, "court-4712")
    spent = rule(dated, other, suspect, nonce="court-4712", log=log)
    assert spent.verdict is Verdict.INVALID and "was opened before this judge in another dispute" in spent.reason
    # Another sub-key at the same suspect is a further look; at another suspect it is the first.
    second = rule(dated, Disclosure.make(dated.shop.key, dated.shop.owner, 2, NONCE), suspect, log=log)
    assert second.looks == 4 and "1 earlier looks at this suspect" in step(second, "log").detail
    assert second.evidence.log2_p == pytest.approx(first.evidence.log2_p + 1)
    assert step(rule(dated, opened, suspect), "log").detail.startswith("no log was kept")
    assert step(rule(dated, opened, suspect), "log").outcome is Outcome.OPEN


def test_a_renamed_suspect_is_the_same_one(dated, opened, tmp_path):
    log = tmp_path / "log.json"
    rule(dated, opened, dated.folder, log=log)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "renamed.safetensors").write_bytes((dated.folder / "model.safetensors").read_bytes())
    second = Disclosure.make(dated.shop.key, dated.shop.owner, 2, NONCE)
    assert rule(dated, second, tmp_path / "other", log=log).looks == 4


def test_a_replayed_opening_is_not_noted(dated, opened, tmp_path):
    """Otherwise a stranger could spend the owner's sub-keys before this judge."""
    log = tmp_path / "log.json"
    assert rule(dated, opened, dated.folder, nonce="court-9", log=log).verdict is Verdict.INVALID
    assert not log.exists()


def test_a_log_that_was_edited_is_refused(dated, opened, tmp_path):
    log = tmp_path / "log.json"
    rule(dated, opened, dated.folder, log=log)
    rule(dated, Disclosure.make(dated.shop.key, dated.shop.owner, 2, NONCE), dated.folder, log=log)
    document = json.loads(log.read_text())
    for change in (
        lambda d: d["entries"].pop(0),
        lambda d: d["entries"][0].update(subkey=2),
        lambda d: d["entries"][0].update(extra=1),
        lambda d: d.update(schema="x"),
    ):
        edited = json.loads(json.dumps(document))
        change(edited)
        log.write_text(json.dumps(edited))
        with pytest.raises(InvalidInput):
            rule(dated, opened, dated.folder, log=log)


def test_half_of_a_suspect(dated, opened, tmp_path):
    """Storage types do not change what an aligned reading sees."""
    folder = permuted(dated.folder, tmp_path / "permuted", seed=3)
    tensors = {
        name: t.half() if t.is_floating_point() else t for name, t in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")
    assert rule(dated, opened, folder, start=small_model()).found
