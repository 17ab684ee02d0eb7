"""What a command says where an optional library is missing, and that `make extras` tries each extra alone."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from commands import refused
from run_extras import TOOLS, USES

from hf_watermark import evaluation
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.keys import SubKey
from hf_watermark.training.triggers import photograph_crops


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hf_watermark.evaluation.drawing", raising=False)
    monkeypatch.delattr(evaluation, "drawing", raising=False)


PLOTS = "Error: plots and reports need matplotlib: pip install 'hf-watermark[plots]'\n"


def test_a_report_without_matplotlib_is_refused_before_the_work(no_matplotlib, tmp_path):
    report = tmp_path / "report.html"
    assert refused("verify", "nowhere", "--key", "nobody", "--report", report) == PLOTS
    files = ("--opening", "none", "--suspect", "nowhere", "--statement", "nobody", "--nonce", "n")
    assert refused("judge", *files, "--report", report) == PLOTS
    assert refused("certify", "nowhere", "--key", "nobody", "--plot", tmp_path / "plot.png") == PLOTS
    assert list(tmp_path.iterdir()) == []


def test_digits_and_photographs_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"hf-watermark\[digits\]"):
        load_digits_data("train")
    with pytest.raises(ImportError, match=r"hf-watermark\[digits\]"):
        photograph_crops(SubKey(0, 0, bytes(32)), 1, (3, 8, 8))


ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_app_brings_what_its_pages_draw_with():
    assert "hf-watermark[plots]" in EXTRAS["demo"]
    assert "hf-watermark[plots," in (ROOT / "examples" / "space" / "requirements.txt").read_text()


def test_every_extra_is_tried_alone():
    assert set(USES) - {""} == set(EXTRAS) - TOOLS


def test_messages_name_extras_that_exist():
    named = {
        name
        for path in (ROOT / "hf_watermark").rglob("*.py")
        for name in re.findall(r"hf-watermark\[(\w+)\]", path.read_text())
    }
    assert named == set(USES) - {""}
