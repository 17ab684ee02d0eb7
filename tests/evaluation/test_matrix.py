"""A benchmark end to end: what it runs, and what it never runs twice."""

import copy
from pathlib import Path

import pytest
import torch
from matrix_runs import TINY, without_clocks

from hf_watermark import InvalidInput, WatermarkKey, verify
from hf_watermark.evaluation import parse_config, read_table, run_matrix
from hf_watermark.evaluation.matrix.cells import NO_ATTACK, ON_TWIN, TWIN, Store, attack_cells, model_cells
from hf_watermark.evaluation.matrix.run import CellRunner
from hf_watermark.evaluation.matrix.table import write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("matrix") / "run"
    run_matrix(parse_config(TINY), output, "hf-watermark benchmark tiny.yaml --output run")
    return output


def changed(**fields):
    return parse_config(copy.deepcopy(TINY) | fields)


def test_one_row_per_check(run):
    rows = read_table(run / "results.parquet")

    assert [(row["method"], row["attack"]) for row in rows] == [
        (method, attack)
        for method in ("greedy", "stacked")
        for attack in (NO_ATTACK, ON_TWIN, "finetune_lr_1x", "noise", "prune")
    ]
    plain = {row["method"]: row for row in rows if row["attack"] == NO_ATTACK}
    assert plain["greedy"]["verdict"] == plain["stacked"]["verdict"] == "mark found"
    assert all(row["verdict"] == "not found" for row in rows if row["attack"] == ON_TWIN)
    assert [part["method"] for part in plain["stacked"]["parts"]] == ["greedy_residuals", "usp"]
    assert {(part["chance"], part["shared"]) for row in rows for part in row["parts"]} == {(0.5, 1)}


def test_a_mark_that_cannot_be_read_any_more_is_removed(run):
    """A student of another architecture has no place where the bits could stand."""
    distilled = {"students": {"name": "distill", "student": "other", "epochs": 0.1, "batch_size": 50}}
    config = changed(methods={"greedy": TINY["methods"]["greedy"]}, attacks=[{"attacks": distilled, "images": 50}])

    runner = CellRunner(Store(run))
    result = runner.attack(attack_cells(config)[-1])

    assert result["verdict"] != "mark found" and result["reason"] and result["log2_p"] == 0.0
    assert 0 <= result["accuracy"] <= 1 and result["queries"] == 5


def test_losses_and_budgets_follow_from_the_row(run):
    rows = {(row["method"], row["attack"]): row for row in read_table(run / "results.parquet")}
    tuned, noisy = rows["greedy", "finetune_lr_1x"], rows["greedy", "noise"]

    assert tuned["stealing_loss"] == pytest.approx(tuned["twin_accuracy"] - tuned["accuracy"])
    assert (tuned["epochs"], tuned["attacker_images"], tuned["steps"]) == (0.5, 80, 1)
    assert (noisy["epochs"], noisy["attacker_images"], noisy["steps"], noisy["queries"]) == (0, 0, 0, 0)
    assert all(row["cpu_seconds"] > 0 and row["hardware"] and "torch" in row["versions"] for row in rows.values())


def test_datasets_reads_the_table(run):
    from datasets import load_dataset

    table = load_dataset(
        "parquet", data_files=str(run / "results.parquet"), split="train", cache_dir=str(run / "cache")
    )

    assert len(table) == 10 and table[0]["parts"][0]["method"] == "greedy_residuals"


def test_the_models_and_keys_of_a_run_can_be_used(run):
    store, cell = Store(run), model_cells(parse_config(TINY))[1]

    key = WatermarkKey.load(store.key_folder(cell))

    assert verify(store.model_folder(cell), key, beacon=key.beacon).found


def test_a_finished_cell_is_never_run_again(run, monkeypatch):
    monkeypatch.setattr(CellRunner, "train", lambda *_: pytest.fail("a finished model was trained again"))
    monkeypatch.setattr(CellRunner, "attack", lambda *_: pytest.fail("a finished attack was run again"))
    before = (run / "results.parquet").read_bytes()

    run_matrix(parse_config(TINY), run)

    assert (run / "results.parquet").read_bytes() == before


def test_a_published_table_saves_its_checks(run, tmp_path):
    """With one more attack on one method only the model that it attacks is trained again, not the other nor the twin."""
    more = TINY["attacks"] + [{"attacks": {"louder": {"name": "weight_noise", "relative_std": 0.3}}}]
    config, lines = changed(attacks=more, methods={"greedy": TINY["methods"]["greedy"]}), []
    published = run / "results.parquet"

    run_matrix(changed(), tmp_path / "same", only_table=True, reuse=published)
    run_matrix(config, tmp_path / "more", on_result=lines.append, reuse=published)

    assert (tmp_path / "same" / "results.parquet").read_bytes() == published.read_bytes()
    assert lines[0].startswith("5 finished checks")
    assert [line.split(" on ")[0].split(",")[0] for line in lines[1:]] == ["trained greedy", "louder"]
    rows = read_table(tmp_path / "more" / "results.parquet")
    assert [row["attack"] for row in rows] == [NO_ATTACK, ON_TWIN, "finetune_lr_1x", "noise", "prune", "louder"]
    assert [without_clocks(row) for row in rows[:5]] == [without_clocks(row) for row in read_table(published)[:5]]


def test_a_machine_that_trains_another_model_than_the_table_says_so(run, tmp_path):
    more = [{"attacks": {"louder": {"name": "weight_noise", "relative_std": 0.3}}}]
    rows = [dict(row, marked_accuracy=0.123) for row in read_table(run / "results.parquet")]
    published = write_table(rows, tmp_path / "published.parquet")
    config = changed(attacks=more, methods={"greedy": TINY["methods"]["greedy"]})

    with pytest.warns(UserWarning, match="0.123 in the table"):
        run_matrix(config, tmp_path / "run", reuse=published)


def test_only_what_changed_is_new(run):
    other_rate = copy.deepcopy(TINY["data"])
    other_rate["patterns"]["training"]["learning_rate"] = 1e-3

    known = {cell.id for cell in [*model_cells(changed()), *attack_cells(changed())]}

    def new(config):
        cells = [*model_cells(config), *attack_cells(config)]
        return {
            getattr(cell, "label", cell.method if cell in model_cells(config) else "")
            for cell in cells
            if cell.id not in known
        }

    attacks = [{"attacks": {"noise": {"name": "weight_noise", "relative_std": 0.2}}}]
    assert new(changed(attacks=attacks)) == {"noise"}
    assert TWIN in new(changed(data=other_rate))
    assert new(changed(name="renamed", backbones={"renamed": {"preset": "tiny_resnet"}})) == set()


def test_a_killed_run_loses_at_most_one_cell(run, tmp_path):
    """The process dies in its third cell, once before and once after the model's files are written."""
    config, finished = parse_config(TINY), []

    def die(cell, result):
        finished.append(cell.id)
        if len(finished) == 2:
            raise KeyboardInterrupt

    output = tmp_path / "killed"
    store = Store(output)
    with pytest.raises(KeyboardInterrupt):
        CellRunner(store, die).run(model_cells(config))
    # A half-written third model, as kill -9 leaves it.
    third = model_cells(config)[2]
    store.model_folder(third).mkdir()
    (store.model_folder(third) / "model.safetensors").write_bytes(b"half a mo")

    run_matrix(config, output, on_result=lambda line: finished.append(line))

    trained_again = [line for line in finished[2:] if line.startswith("trained")]
    assert len(trained_again) == 1 and "stacked" in trained_again[0]
    same = [without_clocks(row) for row in read_table(output / "results.parquet")]
    assert same == [without_clocks(row) for row in read_table(run / "results.parquet")]


@pytest.mark.parametrize("field", [{"precision": "bf16"}, {"precision_of": {"stacked": "bf16"}}])
@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_slow_arithmetic_is_announced(tmp_path, monkeypatch, capability, warned, field):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(CellRunner, "run", lambda *_: [])
    lines: list[str] = []

    with pytest.raises(ChildProcessError, match="cells failed"):
        run_matrix(changed(**field), tmp_path / "run", on_result=lines.append)

    assert any("precision: fp32" in line for line in lines) == warned


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")

    with pytest.raises(InvalidInput, match="holds files that no benchmark made"):
        run_matrix(parse_config(TINY), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_result_is_named(run, tmp_path):
    import shutil

    copied = shutil.copytree(run, tmp_path / "copy")
    path = sorted((copied / "cells").iterdir())[0]
    path.write_text("{")

    with pytest.raises(InvalidInput, match=path.name):
        run_matrix(parse_config(TINY), copied, only_table=True)
