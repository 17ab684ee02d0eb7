"""Report and cards say what the table says, and nothing else."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from hf_watermark import InvalidInput
from hf_watermark.evaluation import read_config, read_table
from hf_watermark.evaluation.matrix.cards import write_cards
from hf_watermark.evaluation.matrix.columns import COLUMNS
from hf_watermark.evaluation.matrix.report import render_matrix_report
from hf_watermark.evaluation.matrix.summary import method_summaries, outcomes, pareto_front
from hf_watermark.evaluation.matrix.table import file_digest, write_table
from hf_watermark.evaluation.retention import best_retention
from hf_watermark.mapping import method_entry


ROOT = Path(__file__).parents[2]


def row(method="greedy", attack="noise", seed=0, accuracy=0.8, log2_p=-200.0, verdict="mark found", **changes):
    fields = dict.fromkeys(COLUMNS) | {
        "method": method,
        "methods": ["greedy_residuals"],
        "backbone": "net",
        "data": "pictures",
        "seed": seed,
        "attack": attack,
        "attack_name": attack,
        "attack_options": "{}",
        "accuracy": accuracy,
        "marked_accuracy": 0.81,
        "twin_accuracy": 0.82,
        "stealing_loss": None if accuracy is None else 0.82 - accuracy,
        "embedding_loss": 0.01,
        "retention": 0.9 if verdict == "mark found" else 0.4,
        "matches": 90,
        "trials": 100,
        "match_rate": 0.9,
        "log2_p": log2_p,
        "level": "N",
        "verdict": verdict,
        "parts": [],
        "not_checked": [],
        "epochs": 2.0,
        "steps": 3,
        "examples": 30,
        "queries": 0,
        "attacker_images": 10,
        "check_queries": 0,
        "cpu_seconds": 1.0,
        "seconds": 1.0,
        "training_cpu_seconds": 9.0,
        "parameters": 1000,
        "train_images": 100,
        "test_images": 50,
        "training_epochs": 2.0,
        "precision": "fp32",
        "device": "cpu",
        "hardware": "one core",
        "versions": "torch 2",
        "cell": f"{method}{attack}{seed}",
        "model_cell": f"{method}{seed}",
    }
    return fields | changes


ROWS = [
    row(attack="none"),
    row(attack="none", seed=1),
    row(attack="unmarked_twin", log2_p=0.0, verdict="not found"),
    row(attack="noise", accuracy=0.80),
    row(attack="noise", seed=1, accuracy=0.78),
    row(attack="finetune", accuracy=0.79, log2_p=-3.0, verdict="not found"),
    row(attack="finetune", seed=1, accuracy=0.81),
    row(attack="prune", accuracy=0.30, log2_p=-1.0, verdict="not found"),
    row(
        attack="fold",
        accuracy=None,
        log2_p=None,
        verdict="n/a",
        reason="no BatchNorm <here>",
        matches=None,
        trials=None,
    ),
    row(method="other", attack="none"),
    row(method="other", attack="noise"),
]


def test_the_weakest_seed_counts():
    found = {(o.method, o.attack): o for o in outcomes(ROWS)}

    assert found["greedy", "noise"].accuracy == pytest.approx(0.79) and not found["greedy", "noise"].removed
    # Student's t for two values: 12.706 * |a - b| / 2.
    assert found["greedy", "noise"].half_width == pytest.approx(12.7062 * 0.02 / 2, rel=1e-4)
    tuned = found["greedy", "finetune"]
    assert (tuned.found, tuned.runs, tuned.log2_p, tuned.succeeds) == (1, 2, -3.0, True)
    assert found["greedy", "prune"].removed and not found["greedy", "prune"].succeeds
    assert not found["greedy", "fold"].applies


def test_a_method_is_judged_by_what_removes_it_at_an_affordable_loss():
    greedy, other = method_summaries(ROWS)

    assert [o.attack for o in greedy.weakest] == ["finetune"] and greedy.ruined == 1
    assert (greedy.attacks, greedy.survived, greedy.found, greedy.seeds, greedy.false_alarms) == (2, 1, 2, 2, 0)
    assert not other.weakest


def test_a_mark_in_a_ruined_model_has_not_survived():
    ruined = row(attack="noise_9", attack_name="weight_noise", accuracy=0.40)
    kept = row(attack="noise_1", attack_name="weight_noise", accuracy=0.42)

    [outcome, other] = outcomes([ruined, kept])
    [summary] = method_summaries([ruined, kept])
    page = render_matrix_report([ruined, kept], "two")

    assert (outcome.fate, other.fate, outcome.found) == ("model ruined", "survived", 1)
    assert (summary.attacks, summary.survived, summary.ruined) == (1, 1, 1)
    assert page.count("number outcome yes") == 1 and "1 of 1,<br>model ruined</td>" in page
    assert "<summary>Noise and pruning <span>1 survived, 1 ruined the model</span></summary>" in page


@pytest.mark.browser
def test_the_page_fits_a_phone(fits):
    published = read_table(ROOT / "model_cards" / "results.parquet")
    shown = dict.fromkeys(r["attack"] for r in published)
    chosen = set(list(shown)[::4])  # each page of 1,190 checks takes seconds to draw
    fits(render_matrix_report([r for r in published if r["attack"] in chosen], "cifar10"))


def test_the_page_is_self_contained_and_escaped():
    page = render_matrix_report(ROWS, "<b>name</b>", open_cells=2)

    assert "<b>name</b>" not in page and "no BatchNorm &lt;here&gt;" in page
    assert "Not finished: 2" in page and ">finetune (+2.0 points)</td>" in page
    assert page.count("<svg") == 6, "each plot for wide and for narrow windows"
    assert not re.search(r"<script|https?://|(src|href)=\"[^#]", page)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_table_with_one_row_has_a_page():
    assert "not attacked yet" in render_matrix_report(ROWS[:1], "one")


def test_cards_come_from_the_table_only(tmp_path):
    table = write_table(ROWS, tmp_path / "results.parquet")

    cards = write_cards(table, tmp_path / "cards", "hf-watermark benchmark x.yaml --output y")

    assert [path.name for path in cards[:3]] == ["net_pictures_greedy.md", "net_pictures_other.md", "README.md"]
    text = cards[0].read_text()
    assert file_digest(table) in text and "hf-watermark benchmark x.yaml --output y" in text and "one core" in text
    assert "| finetune | 1 of 2 | −3 | 80.0 % | +2.0 points |" in text
    from huggingface_hub import ModelCard

    results = {result.metric_type: result.metric_value for result in ModelCard.load(cards[0]).data.eval_results}
    assert results == {"accuracy": 0.81, "twin_accuracy": 0.82, "watermark_survival": 0.5}


def test_the_index_compares_the_cards(tmp_path):
    table = write_table(ROWS, tmp_path / "results.parquet")

    written = write_cards(table, tmp_path / "cards", "hf-watermark benchmark x.yaml --output y")

    index = (tmp_path / "cards" / "README.md").read_text()
    assert file_digest(table) in index and "hf-watermark benchmark x.yaml --output y" in index
    assert (
        "| [greedy](net_pictures_greedy.md) | 81.0 % | 82.0 % | 2 of 2 | 0 of 2 | 1 of 2 | 1 more |" in index
        and "- greedy (fp32): finetune (+2.0 points)" in index
    )
    assert all(
        (tmp_path / "cards" / name).is_file()
        for found in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)", index)
        for name in found
        if name
    )
    for plot in (path for path in written if path.suffix == ".png"):
        assert f'<img src="{plot.name}"' in index and plot.read_bytes().startswith(b"\x89PNG")
    write_cards(table, tmp_path / "again", "hf-watermark benchmark x.yaml --output y")
    assert all((tmp_path / "again" / path.name).read_bytes() == path.read_bytes() for path in written)


def test_the_index_of_models_without_attacks_has_one_plot(tmp_path):
    written = write_cards(write_table(ROWS[:1], tmp_path / "results.parquet"), tmp_path)

    assert [path.name for path in written if path.suffix == ".png"] == ["net_pictures_heat.png"]
    assert "not attacked yet" in (tmp_path / "README.md").read_text()


def test_the_table_survives_the_disk(tmp_path):
    path = write_table(ROWS, tmp_path / "results.parquet")

    assert read_table(path) == ROWS


def test_the_published_table_gives_the_published_cards(tmp_path):
    """It is of an earlier version, whose rows hold no null."""
    published = ROOT / "model_cards"
    rows = read_table(published / "results.parquet")
    assert {part["chance"] for row in rows for part in row["parts"]} == {None}
    benchmark = (
        "hf-watermark benchmark examples/benchmarks/matrix_cifar10.yaml --data cifar10=FOLDER --output cifar_matrix"
    )

    written = write_cards(published / "results.parquet", tmp_path, benchmark)

    texts = [path for path in written if path.suffix == ".md"]
    assert len(texts) == 8 and all(path.read_text() == (published / path.name).read_text() for path in texts)


def test_the_nulls_of_the_published_benchmark_give_its_retention():
    rows = [row for row in read_table(ROOT / "model_cards" / "results.parquet") if row["log2_p"] is not None]
    config = read_config(ROOT / "examples" / "benchmarks" / "matrix_cifar10.yaml")
    nulls = {
        label: {item.method: method_entry(item.method).facts.null(item, 10) for item in config.method_configs(label)}
        for label in config.methods
    }

    for row in rows:
        parts = [part | asdict(nulls[row["method"]][part["method"]]) for part in row["parts"]]
        assert best_retention(parts) == row["retention"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1", b"no parquet at all"])
def test_a_damaged_table_is_refused(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)

    with pytest.raises(InvalidInput, match=r"t\.parquet"):
        read_table(tmp_path / "t.parquet")


def test_another_table_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")

    with pytest.raises(InvalidInput, match="no table of a benchmark"):
        read_table(tmp_path / "t.parquet")


def test_the_front_is_what_no_attack_beats():
    assert pareto_front([(3, 0.2), (0, 0.9), (1, 0.95), (2, 0.5), (4, 0.3)]) == [(0, 0.9), (2, 0.5), (3, 0.2)]
    assert pareto_front([]) == []
