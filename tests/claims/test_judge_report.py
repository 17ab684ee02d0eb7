"""The page of a judgement: every word of a claimant escaped, the verdict once, nothing outside the page."""

import html
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from commands import refused, run
from shops import small_model

from hf_watermark.claims import Claimant, Disclosure, dispute, judge
from hf_watermark.evaluation.judgement_report import MEANINGS, WORDS, render_dispute, render_judgement


NONCE = "court-4711"


@pytest.fixture(scope="module")
def transcripts(dated, tmp_path_factory):
    stranger = tmp_path_factory.mktemp("stranger")
    small_model(seed=7).save_pretrained(stranger)
    opened = Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE)
    fields = {"roots": dated.roots, "suspect_time": datetime.now(UTC) + timedelta(days=1), "drawn": True}
    return {
        "mark found": judge(opened, dated.folder, dated.folder, NONCE, **fields).transcript,
        "not found": judge(opened, stranger, dated.folder, NONCE, **fields).transcript,
        "invalid claim": judge(opened, stranger, dated.folder, "other", **fields).transcript,
        "inconclusive": judge(opened, lambda images: images, dated.folder, NONCE, **fields).transcript,
    }


@pytest.mark.parametrize("verdict", MEANINGS)
def test_the_page_says_the_verdict_once(transcripts, verdict):
    page = html.unescape(render_judgement(transcripts[verdict]))
    assert transcripts[verdict]["verdict"] == verdict
    assert page.count(f"<b>{verdict.capitalize()}</b>") == 1 and MEANINGS[verdict][:40] in page
    for heading in ("What was checked", "What was not checked, and why", "The numbers", "Words"):
        assert page.count(f"<h2>{heading}</h2>") == 1
    assert (
        all(f"<dt>{word}</dt>" in page for word in WORDS) and "no log was kept" in page or verdict == "invalid claim"
    )
    assert "<script" not in page and not re.search(r"(src|href)=", page)


@pytest.mark.browser
def test_the_page_fits_a_phone(transcripts, fits):
    fits(render_judgement(transcripts["mark found"]))


def test_a_refused_claim_says_what_was_not_reached(transcripts):
    page = render_judgement(transcripts["invalid claim"])
    assert "it is a replay" in page and "Not reached, because the claim was refused before" in page


def test_foreign_words_are_escaped(transcripts):
    hostile = json.loads(json.dumps(transcripts["mark found"]))
    hostile["inputs"]["suspect"] = {
        "name": "<script>alert(1)</script>\u202e\x1b[31m",
        "files": {"<b>.safetensors": "x"},
    }
    hostile["reason"] = "{{ 7*7 }}<img src=x>"
    hostile["steps"].append({"step": "control: <i>", "outcome": "passed", "detail": "<u>", "is_control": True})
    page = render_judgement(hostile)
    assert not any(word in page for word in ("<script", "\u202e", "\x1b", "<img", "<i>", "<u>", "<b>.safe"))
    assert "{{ 7*7 }}" in page


def test_commands_write_pages(dated, tmp_path):
    opening = tmp_path / "opening.json"
    opening.write_text(json.dumps(Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE).to_dict()))
    judging = ("judge", "--opening", opening, "--suspect", dated.folder, "--statement", dated.folder, "--nonce", NONCE)
    log = tmp_path / "log.json"
    done = run(*judging, "--report", tmp_path / "out.html", "--log", log)
    assert "mark found" in done.stdout and "Mark found" in (tmp_path / "out.html").read_text()
    assert len(json.loads(log.read_text())["entries"]) == 1
    assert "exists and is left as it is" in refused(*judging, "--report", tmp_path / "out.html")
    stranger = tmp_path / "other"
    stranger.mkdir()
    (stranger / "model.safetensors").write_bytes(b"nothing")
    unread = run("judge", "--opening", opening, "--suspect", stranger, *judging[5:], status=3)
    assert "inconclusive" in unread.stdout and unread.stderr == ""


def test_the_page_of_a_dispute(dated, other_shop, hub, tmp_path):
    from hf_watermark.publishing import publish

    publish(other_shop.folder, "me/other", other_shop.key, other_shop.owner, other_shop.read)
    first, second = (
        Claimant(name, Disclosure.make(shop.key, shop.owner, 1, NONCE), statement, nonce=NONCE)
        for name, shop, statement in (("A & Sons", dated.shop, dated.folder), ("B", other_shop, "me/other"))
    )
    result = dispute(first, second, dated.folder, roots=dated.roots).to_dict()
    page = render_dispute(result, "<suspect>")
    assert "<b>A &amp; Sons is upstream</b>" in page and "&lt;suspect&gt;" in page
    assert page.count("is upstream") == 1
    assert page.count("<h2>What was checked: claim of ") == 2 and "B in the suspect</td>" in page


def test_a_dispute_without_a_name_is_not_judged(dated, tmp_path):
    """Any opening would pass: a replay could not be told. The page names the dispute."""
    opening = tmp_path / "opening.json"
    opening.write_text(json.dumps(Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE).to_dict()))
    judged = ("--opening", opening, "--suspect", dated.folder, "--statement", dated.folder)
    assert "--nonce" in run("judge", *judged, status=2).stderr
    assert "no name of the dispute was given" in refused("judge", *judged, "--nonce", "")
    # "Invalid claim" is not "not found", and has its own status.
    assert "invalid claim" in run("judge", *judged, "--nonce", "another", status=4).stdout
    sides = [part for side in "ab" for part in (f"--opening-{side}", opening, f"--statement-{side}", dated.folder)]
    assert "--nonce" in run("dispute", "--suspect", dated.folder, *sides, status=2).stderr
    run("dispute", "--suspect", dated.folder, *sides, "--nonce", "another", status=4)
    run("judge", *judged, "--nonce", NONCE, "--report", tmp_path / "page.html")
    assert f"<td>name of the dispute</td><td>{NONCE}</td>" in (tmp_path / "page.html").read_text()
