"""Scripts find what they share beside them, as `python examples/...` does."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
