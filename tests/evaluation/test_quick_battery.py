"""The battery of `hf-watermark survival`: what it prints is what `publish --survival` reads."""

import json

import pytest
from tiny import patterned_images

from hf_watermark.cli.publish import _rows
from hf_watermark.evaluation.quick_battery import quick_battery, survival_document, survival_markdown
from hf_watermark.publishing.statement import Survival


def test_without_data_only_attacks_that_need_none():
    assert not any(attack.needs_data for attack in quick_battery().values())
    full = quick_battery(learning_rate=1e-3)
    assert set(quick_battery()) < set(full) and "distillation" in full


def test_labels_fit_into_a_statement():
    for label in quick_battery(learning_rate=1e-3):
        Survival(attack=label, log2_p=-1, verdict="not found")


@pytest.fixture(scope="module")
def document(marked_by):
    marked = marked_by("greedy_residuals")
    attacks = {
        label: attack
        for label, attack in quick_battery(learning_rate=3e-3, epochs=0.2).items()
        if label in ("prune 50 %", "4-bit weights", "fine-tune, training rate")
    }
    return survival_document(marked.model, marked.key, attacks, patterned_images(100), patterned_images(50, seed=3))


def test_the_table_goes_into_a_statement(document, tmp_path):
    path = tmp_path / "survival.json"
    path.write_text(json.dumps(document))

    rows = [Survival.of(row) for row in _rows(path)]

    assert [row.attack for row in rows] == ["prune 50 %", "4-bit weights", "fine-tune, training rate"]
    assert all(row.accuracy_bp is not None for row in rows)
    assert "torch" in document["versions"] and document["hardware"]


def test_the_markdown_has_a_line_per_attack(document):
    text = survival_markdown([*document["rows"], {"attack": "no BatchNorm here", "verdict": "n/a"}])

    assert text.count("\n") == 2 + 3 and "| 4-bit weights |" in text and "no BatchNorm" not in text


def test_a_ruined_model_is_no_survival():
    rows = [
        {"attack": "bfloat16", "accuracy": 0.9, "log2_p": -200.0, "verdict": "mark found"},
        {"attack": "prune 80 %", "accuracy": 0.2, "log2_p": -200.0, "verdict": "mark found"},
    ]

    text = survival_markdown(rows)

    assert "| bfloat16 | 90.00 % | -200 | mark found |" in text
    assert "| prune 80 % | 20.00 % | -200 | model ruined |" in text


def test_accuracy_stays_unknown_without_test_images(marked_by):
    marked = marked_by("greedy_residuals")

    attacks = {"prune": quick_battery()["prune 50 %"]}
    [row] = survival_document(marked.model, marked.key, attacks, None, None)["rows"]

    assert row["accuracy"] is None and row["verdict"] in ("mark found", "inconclusive", "not found")
