"""Each loop marks the digits net in one process, as a user would start it; what it does step by step stands in `tests/marking/test_loops.py`."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from hf_watermark import WatermarkKey, verify


EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPS = {
    "loop_plain": [],
    "loop_accelerate": ["--accumulation", "2"],
    "loop_timm": ["--mixup", "0.2"],
    "loop_lightning": ["--methods", "watermas"],
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_marks_what_it_trains(name, tmp_path, monkeypatch, capsys):
    if name == "loop_lightning" and find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
    output = tmp_path / "model"
    monkeypatch.setattr(sys, "argv", [name, "--output", str(output), "--epochs", "1", *LOOPS[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "mark found" in shown and "accuracy" in shown
    assert verify(output, WatermarkKey.load(f"{output}-key")).found
    assert (output / "watermark" / "subkey0.json").exists()
