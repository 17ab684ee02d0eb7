"""A method that another package brings goes the whole way: key, training, verify, publish, judge, plan, benchmark."""

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run
from matrix_runs import TINY
from shops import small_model, write_files
from tiny import patterned_images, tiny_resnet, training_arguments

from hf_watermark import AutoTrainer, AutoVerifier, InvalidInput, Owner, Verdict, mapping, register_method, verify
from hf_watermark.claims import Disclosure, Outcome, check, judge, verify_claim
from hf_watermark.cli.methods import methods
from hf_watermark.configuration.facts import Null
from hf_watermark.evaluation import read_table
from hf_watermark.evaluation.matrix.cells import NO_ATTACK, ON_TWIN
from hf_watermark.evaluation.planning import capacity_of, plan_mark
from hf_watermark.mapping import METHODS, BrokenMethod, method_entry
from hf_watermark.publishing import publish


TOY = "toy_signs"
NONCE = "court-4711"


@pytest.fixture
def known(monkeypatch) -> None:
    monkeypatch.setattr(mapping, "_registered", {})
    register_method(TOY, "toy_method")


@pytest.fixture
def unknown(monkeypatch, marked) -> None:
    """Another machine, on which nothing may be imported for the sake of a name."""
    monkeypatch.setattr(mapping, "_registered", {})
    monkeypatch.setattr(mapping, "import_module", lambda name: pytest.fail(f"{name} was imported"))


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """What an owner has after training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_registered", {})
        register_method(TOY, "toy_method")
        folder, owner = tmp_path_factory.mktemp("toy"), Owner.create()
        trainer = AutoTrainer.for_method(TOY)(
            model=small_model(),
            args=training_arguments(folder / "runs", max_steps=40),
            train_dataset=patterned_images(80),
            watermark=method_entry(TOY).load("Config")(),
            owner=owner,
        )
        trainer.train()
        trainer.model.save_pretrained(folder / "model")
        yield SimpleNamespace(owner=owner, key=trainer.key, model=trainer.model, folder=folder / "model")


@pytest.fixture
def published(marked, known, hub, tmp_path) -> Path:
    publish(marked.folder, "me/toy", marked.key, marked.owner, lambda folder: verify(folder, marked.key))
    write_files(tmp_path / "repository", hub.files("me/toy"))
    return tmp_path / "repository"


def test_the_mark_is_found_where_it_is(marked, known, tmp_path):
    assert verify(marked.folder, marked.key).found
    assert verify(small_model(seed=5), marked.key).verdict is Verdict.NOT_FOUND
    tiny_resnet().save_pretrained(tmp_path)
    assert verify(tmp_path, marked.key).verdict is Verdict.INCONCLUSIVE
    assert METHODS[TOY].facts.access == str(AutoVerifier.for_method(TOY).access) == "weights"


def test_a_judge_who_has_the_method_rules(marked, published):
    report = check(published)
    assert report["V3"].outcome is Outcome.PASSED and report.evidence.method == TOY
    assert verify_claim(marked.folder, marked.key, published).found
    disclosure = Disclosure.make(marked.key, marked.owner, 1, NONCE)

    assert judge(disclosure, marked.folder, published, nonce=NONCE, drawn=True).found


def test_a_judge_who_does_not_have_it_runs_nothing(marked, published, unknown):
    disclosure = Disclosure.make(marked.key, marked.owner, 1, NONCE)
    ruling = judge(disclosure, marked.folder, published, nonce=NONCE, drawn=True)

    verdicts = [verify(marked.folder, marked.key), verify_claim(marked.folder, marked.key, published), ruling]
    assert {item.verdict for item in verdicts} == {Verdict.INVALID}
    assert all(TOY in item.reason and "does not exist" in item.reason for item in verdicts)


@pytest.mark.parametrize("name", ["toy_method", "os", "hf_watermark.methods.usp", "../toy", ""])
def test_a_name_is_no_path(marked, unknown, name):
    assignment = dataclasses.replace(marked.key.assignments[0], method=name, config={"method": name})
    forged = dataclasses.replace(marked.key, assignments=(assignment,))
    with pytest.raises(InvalidInput, match="does not exist on this machine"):
        AutoVerifier.for_method(name)
    assert verify(marked.folder, forged).verdict is Verdict.INVALID


def test_it_is_planned(known, marked):
    plan = plan_mark(TOY, 2.0**-64, 0.9)
    assert (plan.unit, plan.fields, plan.queries) == ("bits", {"bits": plan.units}, 0)
    assert plan.units == plan_mark("greedy_residuals", 2.0**-64, 0.9).units
    assert capacity_of(TOY, marked.model, 256) == {
        "parameters": marked.model.num_parameters(), "most_bits": 4096, "subkeys": 3,
    }  # fmt: skip


def test_the_null_is_that_of_the_config_and_the_classes():
    config = method_entry("function_coupled").load("Config")(images_per_rule=4)
    assert method_entry("function_coupled").facts.null(config, 100) == Null(1 / 98, 4)


# --- How a method becomes known ---------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch, tmp_path) -> None:
    """Distributions that bring a method, one that is broken, and one that would like to be ours."""
    lines = [f"{TOY} = toy_method", "broken = no_such_package", "greedy_residuals = toy_method", "other = toy_method"]
    folder = tmp_path / "site" / "toy-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (folder / "entry_points.txt").write_text("\n".join([f"[{mapping.ENTRY_POINTS}]", *lines, ""]))
    monkeypatch.syspath_prepend(tmp_path / "site")
    mapping._installed.cache_clear()
    yield
    mapping._installed.cache_clear()


def test_an_installed_method_is_listed_without_being_run(installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "toy_method", raising=False)
    assert {TOY, "broken", "other"} <= set(METHODS) and len(METHODS) == len(mapping.BUILT_IN) + 3
    assert "toy_method" not in sys.modules
    assert METHODS["greedy_residuals"].module == "hf_watermark.methods.greedy_residuals"
    assert METHODS[TOY].facts.unit == "bits"


def test_a_benchmark_trains_attacks_and_reports_it(installed, tmp_path):
    """By its entry point alone."""
    attacks = [{"attacks": {"noise": {"name": "weight_noise"}}}]
    config = copy.deepcopy(TINY) | {"methods": {"toy": {TOY: {"bits": 64}}}, "attacks": attacks}
    (tmp_path / "toy.yaml").write_text(json.dumps(config))

    run("benchmark", tmp_path / "toy.yaml", "--output", tmp_path / "out")

    rows = read_table(tmp_path / "out" / "results.parquet")
    verdicts = {NO_ATTACK: Verdict.FOUND, ON_TWIN: Verdict.NOT_FOUND, "noise": Verdict.FOUND}
    assert {row["attack"]: row["verdict"] for row in rows} == verdicts
    for row in rows:
        [part] = row["parts"]
        assert row["methods"] == [part["method"]] == [TOY]
        assert (part["trials"], part["chance"], part["shared"]) == (
            2 * 64,
            0.5,
            1,
        )  # the public sub-key does not count
    card = (tmp_path / "out" / "model_cards" / "tiny_patterns_toy.md").read_text()
    assert TOY in card and (tmp_path / "out" / "report.html").stat().st_size


def test_a_broken_method_is_one_sentence(installed, capsys):
    with pytest.raises(
        BrokenMethod, match="'broken' cannot be loaded: ModuleNotFoundError: .* repair or remove the package"
    ):
        method_entry("broken").load("Verifier")
    with pytest.raises(BrokenMethod, match="has no method 'other'"):
        _ = METHODS["other"].facts
    methods(json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[TOY]["access"] == rows["watermas"]["access"] == "weights"
    assert "cannot be loaded" in rows["broken"]["summary"]


@pytest.mark.parametrize("name", ["usp", "Toy", "a b", ""])
def test_names_that_are_taken_or_no_names(name):
    with pytest.raises(InvalidInput, match="that no built-in method has"):
        register_method(name, "toy_method")


def test_only_what_is_there_can_be_registered(known):
    with pytest.raises(InvalidInput, match="no package 'nowhere_at_all' can be imported"):
        register_method("lone_signs", "nowhere_at_all")
    with pytest.raises(InvalidInput, match="registered already, by toy_method"):
        register_method("toy_signs", "json")


def test_a_reference_that_a_method_cannot_use_is_no_reason_to_say_not_found(known, marked):
    key, reference = marked.key, marked.folder
    assert verify(small_model(), key).verdict is Verdict.NOT_FOUND
    found = verify(small_model(), key, reference=reference, own_reference=True)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "toy_signs cannot be aligned" in found.reason
