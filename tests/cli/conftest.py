"""A folder as a user has it: marked and unmarked models, keys beside them, and a way to run commands."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from commands import error_line
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, TrainingArguments
from typer.testing import CliRunner

from hf_watermark import (
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    WatermarkKey,
    stack_trainers,
)
from hf_watermark.cli.main import app


PASSPHRASE = "a long enough passphrase"
Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    """`run("verify", folder, "--key", key)` in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    return tiny_model


@pytest.fixture
def refused(run: Run, tmp_path: Path, shop: Path) -> Callable[..., str]:
    """Runs a command that must fail as bad input: exit status 2, one line of error on stderr, no file touched. Returns that line."""

    def check(*arguments: object) -> str:
        before = contents(tmp_path), contents(shop)
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        message = error_line(result.stderr)
        assert (contents(tmp_path), contents(shop)) == before
        return message

    return check


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """
    Read-only folder with `marked` (256 bits, keys `open`, `locked`), `short` (64 bits, key `short`), `both` (two methods, key `both`)
    and `plain`.
    """
    folder = tmp_path_factory.mktemp("shop")
    owner = Owner.create()
    key = mark(folder / "marked", owner, bits=256)
    with pytest.warns(UserWarning, match="without a passphrase"):  # noqa: PT031
        key.save(folder / "keys" / "open")
        mark(folder / "short", owner, bits=64).save(folder / "keys" / "short")
        mark_both(folder / "both", owner).save(folder / "keys" / "both")
    key.save(folder / "keys" / "locked", passphrase=PASSPHRASE)
    tiny_model(seed=5).save_pretrained(folder / "plain")
    return folder


def tiny_model(seed: int = 0, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    fields = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "num_labels": 10}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **fields | changes))


def arguments() -> TrainingArguments:
    return TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", save_strategy="no")


def mark(folder: Path, owner: Owner, bits: int) -> WatermarkKey:
    model = tiny_model()
    config = GreedyResidualsConfig(bits=bits, group_size=32, subkeys=1, strength=1.0)
    return embed(GreedyResidualsTrainer(model=model, args=arguments(), watermark=config, owner=owner), folder)


def mark_both(folder: Path, owner: Owner) -> WatermarkKey:
    """Both methods are planned, only greedy residuals are embedded: function-coupled rules would need training."""
    images = torch.rand(300, 1, 16, 16)
    configs = [
        GreedyResidualsConfig(bits=256, group_size=32, subkeys=1, strength=1.0),
        FunctionCoupledConfig(pool_per_class=4, images_per_rule=4),
    ]
    trainer = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)(
        model=tiny_model(),
        args=arguments(),
        watermark=configs,
        owner=owner,
        train_dataset=[{"pixel_values": image, "labels": row % 10} for row, image in enumerate(images)],
    )
    return embed(trainer, folder)


def embed(trainer: GreedyResidualsTrainer, folder: Path) -> WatermarkKey:
    """Minimises the penalty alone, which takes a fraction of a second."""
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    trainer.model.save_pretrained(folder)
    return trainer.key
