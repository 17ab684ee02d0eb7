"""What a user reads first."""

import json
import re

import pytest

from hf_watermark.attacks import ATTACKS


@pytest.mark.parametrize(
    "command",
    [
        "",
        "owner",
        "owner create",
        "owner show",
        "verify",
        "inspect",
        "certify",
        "attack",
        "methods",
        "quickstart",
        "precommit",
        "publish",
        "benchmark",
        "survival",
        "calibrate",
        "plan",
    ]
    + ["statement", "statement show", "statement check", "open", "judge", "dispute", "demo"],
)
def test_every_help_ends_with_an_example(run, command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    about, example = re.split("Examples?:", result.stdout)
    assert "Usage:" in about
    assert example.strip().startswith("hf-watermark " + (command or "verify"))


def test_attack_help_lists_every_attack(run):
    lines = [line.strip() for line in run("attack", "--help").stdout.splitlines()]
    for name in ATTACKS:
        assert any(line.startswith(f"{name}: ") for line in lines)


def test_unknown_command_and_missing_argument_are_bad_usage(run):
    for arguments in (["frobnicate"], ["verify"], ["verify", "model", "--looks", "0"], ["attack", "finetune"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""


def test_version(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout[0].isdigit()


def test_methods(run):
    rows = {row["name"]: row for row in json.loads(run("methods", "--json").stdout)}
    assert rows["greedy_residuals"]["access"] == "weights"
    assert rows["function_coupled"]["access"] == "labels"
    table = run("methods").stdout
    assert "greedy_residuals" in table and "function_coupled" in table
