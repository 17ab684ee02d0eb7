"""A part of the grid of `examples/benchmarks/settings.py`: no setting ends without a mark and without a word."""

from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
ENDS = [
    ("as documented", "greedy_residuals", "marked", ""),
    ("resumed, ViT", "greedy_residuals", "marked", ""),
    ("model_init", "watermas", "marked", ""),
    ("layers that share weights, ViT", "watermas", "marked", ""),
    ("moving average in the end", "watermas", "marked", ""),
    ("columns and pictures beside", "greedy_residuals", "marked", ""),
    ("a module of timm", "watermas", "marked", ""),
    ("three steps", "function_coupled", "warned", "each is taught"),
    ("optimizer: sgd at adamw's rate", "greedy_residuals", "warned", "its weights move too little"),
    ("learning rate 0", "usp", "refused", "learning rates add up to 0"),
    ("backbone frozen", "watermas", "refused", "2 of 2 carriers"),
    ("optimizer: of the head only", "greedy_residuals", "refused", "are not in the optimizer"),
    ("multi-label", "function_coupled", "refused", "as in multi-label data"),
    ("mixup", "csp", "refused", "leave out mixup"),
    ("a stream", "function_coupled", "refused", "is a stream"),
    ("a module without config", "function_coupled", "refused", "does not say how many classes"),
    ("a module of torchvision", "greedy_residuals", "refused", "wrap_timm"),
]


@pytest.fixture(scope="module")
def settings():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "benchmarks")
        import settings

        yield settings


@pytest.fixture(scope="module")
def rows(settings):
    return settings.digits()


@pytest.mark.parametrize(("name", "method", "end", "said"), ENDS)
def test_how_a_training_ends(settings, rows, name: str, method: str, end: str, said: str):
    row = settings.run(settings.SETTINGS[name], method, rows)
    assert row["end"] == end and said in row["said"]


def test_nothing_is_lost_without_a_word(settings):
    """In the results that are shown: all settings, all methods."""
    import json

    found = json.loads((ROOT / "examples" / "benchmarks" / "results" / "settings.json").read_text())["settings"]
    assert sorted(found) == sorted(f"{name} | {method}" for name in settings.SETTINGS for method in settings.METHODS)
    assert {row["end"] for row in found.values()} <= {"marked", "refused", "warned"}
    assert all(row["said"] for row in found.values() if row["end"] != "marked")
