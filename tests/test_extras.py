"""What a command says where an optional library is missing."""

import sys
import tomllib
from pathlib import Path

import pytest
from commands import refused

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
    files = ("--opening", "none", "--suspect", "nowhere", "--statement", "nobody")
    assert refused("judge", *files, "--report", report) == PLOTS
    assert refused("certify", "nowhere", "--key", "nobody", "--plot", tmp_path / "plot.png") == PLOTS
    assert list(tmp_path.iterdir()) == []


def test_digits_and_photographs_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"hf-watermark\[digits\]"):
        load_digits_data("train")
    with pytest.raises(ImportError, match=r"hf-watermark\[digits\]"):
        photograph_crops(SubKey(0, 0, bytes(32)), 1, (3, 8, 8))


def test_the_app_brings_what_its_pages_draw_with():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "hf-watermark[plots]" in extras["demo"]
    assert "hf-watermark[plots," in (root / "examples" / "space" / "requirements.txt").read_text()
