"""Shared fixtures: small classifiers marked once per test process, on synthetic data. Nothing is downloaded."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Read by the libraries when they are imported, so they come first.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import randomness
import torch
import traces
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import PreTrainedModel, TrainingArguments

from hf_watermark import AutoTrainer, Evidence, Owner, WatermarkConfig, WatermarkKey, WatermarkTrainer, plan_key
from hf_watermark.mapping import METHODS


pytest_plugins = ["browser_fixtures", "hub_fixtures", "watch_fixtures"]

torch.set_num_threads(1)
randomness.install()
traces.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `mark_slow.py` measured, and puts files with many slow tests first: the last file to be run keeps one process only."""
    slow = set((Path(__file__).parent / "slow_tests.txt").read_text().split())
    slow_in: Counter[str] = Counter()
    for item in items:
        file = item.nodeid.partition("::")[0]
        if slow & {file, item.nodeid.partition("[")[0]}:
            item.add_marker(pytest.mark.slow)
            slow_in[file] += 1
    items.sort(key=lambda item: -slow_in[item.nodeid.partition("::")[0]])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    randomness.start(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Any:
    if fixturedef.scope == "function":
        return (yield)
    with randomness.stream(f"{fixturedef.baseid}::{fixturedef.argname} {getattr(request, 'param', '')!r}"):
        return (yield)


# One small config per method, able to reach level B in seconds.
SMALL_FIELDS: dict[str, dict[str, Any]] = {
    "greedy_residuals": {"bits": 128, "subkeys": 2, "group_size": 16},
    "function_coupled": {"trigger_ratio": 1.0, "images_per_rule": 4, "pool_per_class": 4},
    "certified": {
        "triggers": 80, "sigma": 0.1, "strength": 1.0, "trigger_ratio": 2.0, "draws": 200, "suspect_draws": 30,
    },
    "usp": {"features": 16, "pool_per_class": 10, "target_log2_p": -64.0},
    "watermas": {"bits": 128, "subkeys": 2, "payload": b"pay"},
    "csp": {"features": 16, "pool_per_class": 10, "target_log2_p": -64.0},
}  # fmt: skip
SMALL_CONFIGS: dict[str, WatermarkConfig] = {
    method: entry.load("Config")(**SMALL_FIELDS[method]) for method, entry in METHODS.items()
}


@dataclass(frozen=True)
class Marked:
    """One marked model with everything that its training left behind."""

    method: str
    model: PreTrainedModel
    key: WatermarkKey
    evidence: Evidence
    trainer: WatermarkTrainer
    output: Path
    key_folder: Path
    log: str
    owner: Owner


def mark(method: str, folder: Path, **changes: Any) -> Marked:
    """Marks a tiny ResNet under a key that is bound to a beacon, as the documentation tells an owner to do."""
    # Soft-label marks are a function of the image, so images of a class must differ.
    soft = METHODS[method].access == "probabilities"
    data, config = patterned_images(variety=0.3 if soft else 0.0), SMALL_CONFIGS[method]
    trainer_class = AutoTrainer.for_method(method)
    fields = {"max_steps": 300 if soft else 180, "save_strategy": "steps", "save_steps": 80, "logging_steps": 50}
    arguments = training_arguments(folder / "model", **fields | changes)
    records, owner = _Records(), Owner.create()
    logging.getLogger().addHandler(records)
    try:
        key = plan_key(tiny_resnet(), data, config, owner).bind_beacon(b"\x07" * 32, "a value of a test")
        trainer = trainer_class(model=tiny_resnet(), args=arguments, train_dataset=data, watermark=config, key=key)
        trainer.train()
        trainer.save_model()
    finally:
        logging.getLogger().removeHandler(records)
    key.save(folder / "key", passphrase="a long enough passphrase")
    log = "\n".join([*records.lines, repr(trainer.state.log_history), repr(key), repr(trainer.evidence)])
    model: Any = trainer.model
    return Marked(method, model.eval(), key, trainer.evidence, trainer, folder / "model", folder / "key", log, owner)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="session")
def marked_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Marked]:
    """`marked_by("greedy_residuals")`: trained on first use, then shared. Do not change its model."""
    made: dict[str, Marked] = {}

    def marked(method: str) -> Marked:
        if method not in made:
            with randomness.stream(f"marked by {method}"):
                made[method] = mark(method, tmp_path_factory.mktemp(method))
        return made[method]

    return marked


@pytest.fixture
def make_resnet() -> Callable[..., PreTrainedModel]:
    return tiny_resnet


@pytest.fixture
def patterned() -> list[dict[str, Any]]:
    return patterned_images()


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """`arguments(max_steps=2)`: CPU training arguments with an output folder of their own."""
    return lambda **changes: training_arguments(tmp_path / "output", **changes)


@pytest.fixture(scope="session")
def small_configs() -> dict[str, WatermarkConfig]:
    return dict(SMALL_CONFIGS)


@pytest.fixture(scope="session")
def owner() -> Owner:
    return Owner.create()
