"""Report and verdict, as pages: the verdict once, a ruined model is no survival, and everything can be read on a phone."""

import re

import pytest

from hf_watermark import verify
from hf_watermark.attacks import ATTACKS
from hf_watermark.attacks.outcome import OTHER, by_kind, is_ruined, kind_of, ruined_rows, tally
from hf_watermark.evaluation.glossary import GLOSSARY, explained
from hf_watermark.evaluation.report import render_report
from hf_watermark.evaluation.verdict_report import by_chance, render_verdict


FOUND, NOT_FOUND = "mark found", "not found"


@pytest.fixture(scope="module")
def evidence(marked_by):
    marked = marked_by("greedy_residuals")
    return verify(marked.model, marked.key).to_dict()


@pytest.fixture
def record(evidence):
    """What a quickstart leaves: of four attacks one removes the mark, and one leaves it in a model that is worth nothing."""
    return {
        "title": "One marked model",
        "subtitle": "A net with a name that does not end: " + "x" * 90,
        "seed": 0,
        "seconds": 1.0,
        "versions": {"torch": "2"},
        "data": {"name": "digits", "test_images": 100},
        "twin": {"row": row("unmarked twin", None, 0.98, NOT_FOUND)},
        "marked": {"row": row("marked model", None, 0.97, FOUND), "evidence": evidence},
        "attacks": [
            row("prune 50 %", "magnitude_prune", 0.95, FOUND),
            row("prune 90 %", "magnitude_prune", 0.10, FOUND),
            row("4-bit weights", "uniform_quantize", 0.96, FOUND),
            row("distillation", "distill", 0.97, NOT_FOUND),
        ],
        "forgeries": [
            {"name": "key_search", "attempt": "tries keys", "passed": False, "refused": None, "remarks": [],
             "evidence": {"verdict": NOT_FOUND, "reason": "log2 p = -12.5"}},
        ],
    }  # fmt: skip


def row(label, attack, accuracy, verdict):
    log2_p = -200.0 if verdict == FOUND else -0.5
    methods = {"greedy_residuals": {"log2_p": log2_p}}
    return {
        "attack": label,
        "options": {"name": attack},
        "accuracy": accuracy,
        "verdict": verdict,
        "log2_p": log2_p,
        "methods": methods,
    }


def shown(page: str) -> str:
    """The words of a page, without those of the style sheet and the drawings."""
    return re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", "\n", page, flags=re.DOTALL)


def test_a_ruined_model_has_not_survived_and_is_not_green(record):
    page = render_report(record)

    assert "<b>2 of 3 survived</b><span>1 more ruined the model</span>" in page
    line = page[page.index("<td>prune 90 %</td>") :]
    assert '<td class="outcome ">model ruined</td>' in line[: line.index("</tr>")]
    assert page.count('<td class="outcome yes">survived</td>') == 2
    assert page.count('<td class="outcome no">removed</td>') == 1
    assert "After distillation the mark is not found" in page


def test_the_same_attack_counts_where_the_model_is_kept(record):
    record["attacks"][1]["accuracy"] = 0.96

    page = render_report(record)

    assert "<b>3 of 4 survived</b><span>0 more ruined the model</span>" in page
    assert page.count('<td class="outcome yes">survived</td>') == 3


def test_attacks_are_folded_by_kind(record):
    page = render_report(record)

    assert re.findall(r"<summary>(.*?) <span>(.*?)</span></summary>", page) == [
        ("Noise and pruning", "1 survived, 1 ruined the model"),
        ("Number formats", "1 survived"),
        ("Copies trained on its answers", "1 removed the mark"),
    ]
    assert page.count("<details>") == 3 and "<details open" not in page


def test_the_report_says_the_verdict_once(record):
    assert shown(render_report(record)).lower().count(FOUND) == 1


@pytest.mark.parametrize("verdict", [FOUND, NOT_FOUND, "inconclusive", "invalid claim"])
def test_a_check_says_the_verdict_once(evidence, verdict):
    text = shown(render_verdict(evidence | {"verdict": verdict, "reason": "why"}, "a/model"))

    explained = text.replace("“Not found” does not show independence", "")  # what the page says in any case
    assert explained.lower().count(verdict) == 1


def test_words_are_explained(record, evidence):
    for page in (render_report(record), render_verdict(evidence, "a/model")):
        for word in ("log2 p", "sub-key", "level", "decoy key"):
            assert page.count(f"<dt>{word}</dt><dd>{GLOSSARY[word]}</dd>") == 1
    with pytest.raises(KeyError, match="no such word"):
        explained("log2 p", "no such word")


def test_chance_is_written_for_people():
    assert by_chance(-64) == "an unrelated key does as well once in 10¹⁹"
    assert by_chance(-2) == "any key may do as well"


def test_every_attack_of_the_table_has_a_kind():
    assert OTHER not in {kind_of(name) for name in ATTACKS}
    assert kind_of("stack") == kind_of(None) == OTHER
    assert by_kind([("distill", 1), ("stack", 2), ("knockoff", 3)]) == {
        "Copies trained on its answers": [1, 3],
        OTHER: [2],
    }


def test_a_model_with_less_than_half_of_its_accuracy_is_ruined():
    assert is_ruined(0.44, 0.9) and not is_ruined(0.45, 0.9) and not is_ruined(1.0, 0.9)
    assert not is_ruined(None, 0.9) and not is_ruined(0.1, None)
    assert ruined_rows([0.9, 0.4, None]) == [False, True, False] and ruined_rows([0.4], 0.9) == [True]
    assert ruined_rows([None]) == [False]
    assert tally(["removed", "survived", "n/a", "survived"]) == "2 survived, 1 removed the mark, 1 n/a"


@pytest.mark.browser
def test_the_report_fits_a_phone(fits, record):
    fits(render_report(record))


@pytest.mark.browser
def test_a_check_fits_a_phone(fits, evidence):
    levels = {"commit": "a" * 40, "reached": "V1", "levels": [
        {"level": name, "title": "what it says", "outcome": outcome, "reasons": ["because of " + "f" * 64]}
        for name, outcome in (("V0", "passed"), ("V1", "failed"), ("V2", "open"))
    ]}  # fmt: skip
    fits(render_verdict(evidence, "owner/" + "a-very-long-name" * 6, levels))
