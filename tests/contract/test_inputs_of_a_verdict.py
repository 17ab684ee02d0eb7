"""
Every input of a verdict is derived, committed, chosen by the verifier or read from the suspect. Whoever alters anything else gets an invalid
claim or an unchanged verdict: over all methods, each field of key folder, opening, statement, precommit, pool and answers.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from adapted import marked_adapter
from alterations import Tensors, altered_answers, altered_documents, altered_pools
from safetensors.torch import save_file

from hf_watermark import InvalidInput, Opening, Suspect, Verdict, WatermarkKey, verify, verify_sequentially
from hf_watermark.claims import Level, check
from hf_watermark.claims import Outcome as LevelOutcome
from hf_watermark.keys.envelope import read_envelope, write_envelope
from hf_watermark.mapping import METHODS
from hf_watermark.publishing import Extras, Precommit
from hf_watermark.publishing.describe import SUBKEY0, describe, opened_files, opened_subkeys
from hf_watermark.publishing.precommit import PRECOMMIT
from hf_watermark.publishing.revocation import REVOCATION, Revocations, revoke
from hf_watermark.publishing.statement import STATEMENT, SignedStatement


every_method = pytest.mark.parametrize("method", METHODS)
black_box = pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.access != "weights"])
PASSPHRASE = "a long enough passphrase"
Outcome = tuple[Verdict, float]


def suspect_of(marked) -> Suspect:
    """Weights, or answers: a suspect that costs no more than its method needs."""
    if METHODS[marked.method].access == "weights":
        state = marked.model.state_dict()
        return Suspect("tensors", state, {name: tuple(tensor.shape) for name, tensor in state.items()})
    known: dict[bytes, torch.Tensor] = {}

    def answer(images: torch.Tensor) -> torch.Tensor:
        name = images.numpy().tobytes()
        if name not in known:
            with torch.no_grad():
                known[name] = marked.model(images).logits.softmax(dim=1)
        return known[name]

    return Suspect.open(answer)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Thousands of files are written that need not survive a power cut."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def closed(method: str) -> str | None:
    """The model record is the same for all methods, so it is altered leaf by leaf for one of them."""
    return None if method == next(iter(METHODS)) else "backbone"


@pytest.fixture
def marked(method, marked_by):
    return marked_by(method)


@pytest.fixture
def outcome(marked) -> Callable[[WatermarkKey | Opening], Outcome]:
    """Verdict and log2 p on the marked model, for a verifier who looked the beacon up. What a claim holds is checked once."""
    suspect, known = suspect_of(marked), {}

    def check_once(key: WatermarkKey | Opening) -> Outcome:
        held = repr([key.problems(), key.beacon, sorted(key.disclosed)]) + (
            ""
            if key.problems()
            else repr([(c.assignment, c.context, [s.secret for s in c.subkeys]) for c in key.claims()])
        )
        if held not in known:
            evidence = verify(suspect, key, beacon=marked.key.beacon)
            known[held] = evidence.verdict, evidence.log2_p
        return known[held]

    return check_once


def refused_or_same(read: Callable[[], WatermarkKey | Opening], outcome: Any, wanted: Outcome) -> str:
    """Empty, or what is wrong with what came of an altered input."""
    try:
        found = outcome(read())
    except InvalidInput:
        return ""
    except Exception as error:  # what a user would see as a traceback
        return f"{type(error).__name__}: {error}"
    return "" if found[0] is Verdict.INVALID or found == wanted else f"{found}, not {wanted}"


# --- Key folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(marked, tmp_path):
    """The key folder of the marked model, without a passphrase."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return marked.key.save(tmp_path / "key")


@every_method
@pytest.mark.filterwarnings("ignore:.*without a passphrase")
def test_every_field_of_a_key_file(marked, folder, outcome):
    payload, wanted, wrong = read_envelope(folder / "key.json", None), outcome(marked.key), {}

    def read(document: dict) -> WatermarkKey:
        write_envelope(folder / "key.json", document, None, overwrite=True)
        return WatermarkKey.load(folder)

    assert wanted[0] is Verdict.FOUND and outcome(read(payload)) == wanted
    for name, document in altered_documents(payload, closed(marked.method)):
        wrong[name] = refused_or_same(lambda document=document: read(document), outcome, wanted)
    assert len(wrong) > 200 and {name: text for name, text in wrong.items() if text} == {}


@pytest.mark.filterwarnings("ignore:.*without a passphrase")
def test_every_field_of_the_key_file_of_an_adapter(tmp_path):
    """Where the bits lie, and which base is taken away: of an adapter alone, and of a merged model on its base."""
    own = marked_adapter("vit", tmp_path / "made")
    folder, base, wrong = own.key.save(tmp_path / "key"), own.fresh_base(), {}
    payload, merged = read_envelope(folder / "key.json", None), own.merged_model()

    def check_both(key: WatermarkKey) -> list[Outcome]:
        found = (verify(own.adapter, key), verify(merged, key, base=base))
        return [(evidence.verdict, evidence.log2_p) for evidence in found]

    def read(document: dict) -> WatermarkKey:
        write_envelope(folder / "key.json", document, None, overwrite=True)
        return WatermarkKey.load(folder)

    wanted = check_both(read(payload))
    assert all(verdict is Verdict.FOUND for verdict, _ in wanted)
    for name, document in altered_documents(payload, "backbone"):
        try:
            found = check_both(read(document))
        except InvalidInput:
            continue
        if any(one != own and one[0] is not Verdict.INVALID for one, own in zip(found, wanted, strict=True)):
            wrong[name] = found
    assert wrong == {}


@black_box
def test_every_tensor_of_a_pool(marked, folder, outcome):
    pool, wanted, wrong = dict(marked.key.pool), outcome(marked.key), {}

    def read(tensors: Tensors) -> WatermarkKey:
        save_file(tensors, folder / "pool.safetensors")
        return WatermarkKey.load(folder)

    assert outcome(read(pool)) == wanted
    for name, tensors in altered_pools(pool):
        wrong[name] = refused_or_same(lambda tensors=tensors: read(tensors), outcome, wanted)
        opening = Opening.of(marked.key, marked.key.used[-1])
        document = opening.to_dict()
        wrong[f"opening, {name}"] = refused_or_same(
            lambda document=document, tensors=tensors: Opening.from_dict(document, tensors), outcome, outcome(opening)
        )
    assert len(wrong) > 50 and {name: text for name, text in wrong.items() if text} == {}


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.access == "weights"])
def test_a_method_without_a_pool_takes_none(marked, folder, outcome):
    save_file({f"{marked.method}.images": torch.zeros(2)}, folder / "pool.safetensors")
    with pytest.raises(InvalidInput, match="never committed"):
        WatermarkKey.load(folder)
    save_file({"images": torch.zeros(2)}, folder / "pool.safetensors")
    assert refused_or_same(lambda: WatermarkKey.load(folder), outcome, outcome(marked.key)) == ""


@every_method
def test_a_log_of_opened_subkeys_only_weakens(marked, folder):
    """Taking entries out is as good as the word of whoever gave the folder, and the basis says so; adding some never strengthens."""
    log = {
        "schema": "hf-watermark/burnt-log/v2",
        "entries": [{"subkey": 0, "nonce": "court", "date": "2026-11-28T12:00:00Z"}],
    }
    whole = verify(suspect_of(marked), marked.key, beacon=marked.key.beacon)
    seen: dict[frozenset[int], float] = {}
    for _, document in altered_documents(log):
        (folder / "burnt.json").write_text(json.dumps(document))
        try:
            key = WatermarkKey.load(folder)
        except InvalidInput:
            continue
        if key.disclosed not in seen:
            evidence = verify(suspect_of(marked), key, beacon=key.beacon)
            seen[key.disclosed] = evidence.log2_p
            assert evidence.basis == "self-check" and (evidence.log2_p >= whole.log2_p or not evidence.found)
    assert seen


# --- Openings ---------------------------------------------------------------------------------------------------------


@every_method
def test_every_field_of_an_opening(marked, outcome):
    opening = Opening.of(marked.key, marked.key.used[-1])
    wanted, wrong = outcome(opening), {}
    assert wanted[0] is Verdict.FOUND
    for name, document in altered_documents(opening.to_dict(), closed(marked.method)):
        document = json.loads(json.dumps(document))
        wrong[name] = refused_or_same(
            lambda document=document: Opening.from_dict(document, opening.pool), outcome, wanted
        )
    assert len(wrong) > 200 and {name: text for name, text in wrong.items() if text} == {}


# --- Public files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def published(marked, tmp_path):
    """A folder as it is published, with its signed statement."""
    folder, key, extras = tmp_path / "published", marked.key, Extras(publish_pool=True)
    (folder / "watermark").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(marked.output / name, folder / name)
    files = {name: folder / name for name in ("config.json", "model.safetensors")}
    added = {PRECOMMIT: Precommit.of(key).to_bytes()} | opened_files(key, opened_subkeys(key), extras)
    statement = describe(files, folder, "me/model", key, marked.evidence, extras, added, None)
    signed = SignedStatement(statement=statement, signature=marked.owner.sign(statement.to_sign).hex())
    for name, content in (added | {STATEMENT: signed.to_bytes()}).items():
        (folder / name).write_bytes(content)
    return folder


def report_of(folder, key) -> dict[str, Any]:
    return check(folder, beacon=key.beacon).to_dict()


def levels(report: dict[str, Any]) -> dict[str, Any]:
    return {level["level"]: level["outcome"] for level in report["levels"]}


@every_method
@pytest.mark.parametrize("name", [STATEMENT, PRECOMMIT, SUBKEY0])
def test_every_field_of_the_public_files(marked, published, name, monkeypatch):
    if not (published / name).exists():
        assert name == SUBKEY0 and len(marked.key.used) == 1
        return
    raw = (published / name).read_bytes()
    not_read = Level("V3", LevelOutcome.PASSED)
    if name == PRECOMMIT:  # V3 does not read it, and takes long
        monkeypatch.setattr("hf_watermark.claims.levels.check_subkey0", lambda *_, **__: (not_read, None))
    whole, wrong = report_of(published, marked.key), {}
    assert levels(whole)["V0"] == "passed" and not whole["failed"]
    for what, document in altered_documents(json.loads(raw), closed(marked.method)):
        (published / name).write_text(json.dumps(document))
        report = report_of(published, marked.key)
        found = levels(report)
        failed = found["V0"] != "passed" or found["V2"] == "failed" or found["V3"] == "failed"
        wrong[what] = not failed and report != whole
    assert len(wrong) > 50 and [what for what, is_wrong in wrong.items() if is_wrong] == []


@pytest.mark.parametrize("method", ["greedy_residuals"])
def test_every_field_of_a_revocation(marked, published, monkeypatch):
    """Altered, it is ignored or fails V0: nobody can make another one of it."""
    monkeypatch.setattr(
        "hf_watermark.claims.levels.check_subkey0", lambda *_, **__: (Level("V3", LevelOutcome.PASSED), None)
    )
    entry = revoke(marked.owner, Precommit.of(marked.key), "leaked", datetime(2026, 11, 22, tzinfo=UTC))
    whole, wrong = Revocations().with_([entry]), {}
    for what, document in altered_documents(whole.plain()):
        (published / REVOCATION).write_text(json.dumps(document))
        report = check(published, beacon=marked.key.beacon)
        failed = report["V0"].outcome is not LevelOutcome.PASSED
        wrong[what] = not failed and report.revocations not in ((), (entry.revocation,))
    assert len(wrong) > 50 and [what for what, is_wrong in wrong.items() if is_wrong] == []


# --- Answers ----------------------------------------------------------------------------------------------------------


@black_box
@pytest.mark.parametrize("run", [verify, lambda *given, **more: verify_sequentially(*given, **more).evidence])
def test_answers_of_every_kind(marked, run):
    """An endpoint answers what it likes: never a traceback, never a mark that is not there."""
    kinds = altered_answers(torch.zeros(2, 10))
    for kind in kinds:
        try:
            evidence = run(
                lambda images, kind=kind: altered_answers(torch.zeros(len(images), 10))[kind],
                marked.key,
                beacon=marked.key.beacon,
            )
        except InvalidInput:
            continue
        assert not evidence.found and evidence.log2_p > -20, kind
        if evidence.trials == 0 or evidence.unusable > 0.5 * evidence.queries:
            assert evidence.verdict is Verdict.INCONCLUSIVE, kind
