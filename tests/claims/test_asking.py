"""What a judge is told after the verdict: what to ask for next, and how rare a chance agreement is; on the terminal and on the page."""

import html
import json
from datetime import UTC, datetime, timedelta

import pytest
from commands import refused, run
from shops import permuted, small_model

from hf_watermark import Verdict
from hf_watermark.claims import Disclosure, judge
from hf_watermark.evaluation.judgement_report import render_judgement


NONCE = "court-4711"
LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture(scope="module")
def opened(dated):
    return Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE)


@pytest.fixture(scope="module")
def reordered(dated, tmp_path_factory):
    return permuted(dated.folder, tmp_path_factory.mktemp("reordered"))


def rule(dated, opened, suspect, **fields):
    return judge(opened, suspect, dated.folder, NONCE, **{"roots": dated.roots, "suspect_time": LATER} | fields)


def asked(result):
    return [request.option for request in result.requests]


def test_an_inconclusive_verdict_says_what_to_ask_for(dated, opened, reordered, tmp_path):
    bare = rule(dated, opened, reordered, roots=[], suspect_time=None)
    assert bare.verdict is Verdict.INCONCLUSIVE
    # The model before the mark needs no date, so it comes first.
    assert asked(bare) == ["--start", "--unmarked", "--trust", "--suspect-date"]
    assert [request.whom for request in bare.requests][0] == "the claimant"
    assert asked(rule(dated, opened, reordered)) == ["--start", "--unmarked"]
    assert asked(rule(dated, opened, reordered, roots=[])) == ["--start", "--unmarked", "--trust"]
    wrong = rule(dated, opened, reordered, start=small_model(seed=5))
    assert "what was delivered is another one" in wrong.requests[0].what
    assert asked(rule(dated, opened, reordered, start=small_model())) == []
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    assert asked(rule(dated, opened, tmp_path)) == ["--suspect", "--start"]
    page = html.unescape(render_judgement(bare.transcript))
    assert page.count("<h2>What to ask for next</h2>") == 1 and "<code>--start</code>" in page


def test_not_found_by_the_published_model_alone_is_said(dated, opened, tmp_path):
    stranger = small_model(seed=7)
    by_published = rule(dated, opened, stranger)
    assert by_published.verdict is Verdict.NOT_FOUND and asked(by_published) == ["--start"]
    assert "reordered ones are not excluded" in by_published.reason
    assert "reordered ones are not excluded" in html.unescape(render_judgement(by_published.transcript))
    by_start = rule(dated, opened, stranger, start=small_model())
    assert by_start.verdict is Verdict.NOT_FOUND and asked(by_start) == []
    assert "not excluded" not in by_start.reason


def test_an_unread_suspect_has_no_number(dated, opened, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no tensors at all, but enough bytes for a header")
    result = rule(dated, opened, tmp_path)
    [step] = [step for step in result.steps if step.name == "suspect"]
    assert step.detail.startswith("nothing was read; ") and "log2 p" not in step.detail + result.reason
    assert "is not a safetensors file" in result.reason
    assert ".." not in html.unescape(render_judgement(result.transcript)).split("</style>")[-1]
    [read] = [step for step in rule(dated, opened, dated.folder).steps if step.name == "suspect"]
    assert "read: 256 of 256 bits or answers agree" in read.detail


def test_the_terminal_ends_with_the_verdict(dated, opened, reordered, tmp_path):
    opening = tmp_path / "opening.json"
    opening.write_text(json.dumps(opened.to_dict()))
    judged = ("judge", "--opening", opening, "--statement", dated.folder, "--nonce", NONCE, "--suspect")
    found = run(*judged, dated.folder).stdout.splitlines()
    assert found[-1].startswith("mark found: ") and found[-2] == ""
    # 256 bits, six looks: 2^-253.4; level N: 2^-128.
    assert any(
        "once in 10^76; level N allows once in 10^38 (log2 p is never quoted below -256)" in row for row in found
    )
    assert any(row.endswith("source images: not needed by this method") for row in found)
    hidden = run(*judged, reordered, status=3).stdout.splitlines()
    assert hidden[-1].startswith("inconclusive: ")
    heading = hidden.index("What to ask for next:")
    assert hidden[heading + 1].strip().startswith("--start: ") and "(from the claimant)" in hidden[heading + 1]


def test_openings_that_prove_nothing_are_refused_before_they_are_made(dated, tmp_path):
    keys, owner, output = dated.shop.keys, dated.shop.keys.parent / "owner.json", tmp_path / "opening.json"
    opens = ("open", "--key", keys, "--owner", owner, "--nonce", NONCE, "--output", output)
    said = refused(*opens, "--subkey", 0)
    assert "sub-key 0 is public: anybody could have planted its mark" in said
    assert "this key uses 0 to 2; 0 is public" in said
    assert "sub-key 9 carries no mark: this key uses 0 to 2; 0 is public" in refused(*opens, "--subkey", 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "not JSON"])
def test_a_bad_opening_names_its_file(dated, tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    judged = ("--suspect", dated.folder, "--statement", dated.folder, "--nonce", NONCE)
    assert "mine.json: " in refused("judge", "--opening", tmp_path / "mine.json", *judged)
