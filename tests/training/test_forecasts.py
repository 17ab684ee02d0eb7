"""How far a run can move a model, and what of a mark follows from it."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR
from trainer_runs import arguments, build, images
from transformers import TrainerCallback, get_scheduler

from hf_watermark import (
    AutoTrainer,
    CertifiedConfig,
    FunctionCoupledConfig,
    GreedyResidualsConfig,
    Owner,
    USPConfig,
    WatermarkTrainer,
)
from hf_watermark.training.course import Course


CONFIGS = {
    "greedy_residuals": GreedyResidualsConfig(bits=180, subkeys=2, group_size=16),
    "function_coupled": FunctionCoupledConfig(pool_per_class=4, images_per_rule=2),
    "certified": CertifiedConfig(triggers=80),
    "usp": USPConfig(features=16),
}


def make(method: str, folder: Path, **fields: Any) -> WatermarkTrainer:
    return AutoTrainer.for_method(method)(
        model=build("resnet"),
        args=arguments(folder, **{"max_steps": 20} | fields),
        train_dataset=images(250),
        watermark=CONFIGS[method],
        owner=Owner.create(),
    )


class Rates(TrainerCallback):
    def __init__(self, trainer: WatermarkTrainer):
        self.trainer, self.seen = trainer, []
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        self.course = Course.of(self.trainer)
        self.forecast = self.trainer.embeddings[0].forecast(self.course)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "inverse_sqrt"])
def test_rates_add_up_to_those_of_the_run(tmp_path: Path, schedule: str):
    trainer = make(
        "greedy_residuals", tmp_path, lr_scheduler_type=schedule, warmup_steps=5, gradient_accumulation_steps=2
    )
    rates = Rates(trainer)
    trainer.train()
    assert rates.course.rates == pytest.approx(sum(rates.seen), rel=1e-6)
    assert (rates.course.steps, rates.course.batch, rates.course.momentum) == (20, 8, None)


def test_a_long_schedule_is_looked_at_in_a_thousand_places():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=2, gradient_accumulation_steps=3, max_grad_norm=0),
        state=SimpleNamespace(max_steps=1_000_000),
        optimizer=optimizer,
        lr_scheduler=get_scheduler("linear", optimizer, 0, 1_000_000),
        _train_batch_size=4,
    )
    course = Course.of(trainer)
    assert course.rates == pytest.approx(50_000, rel=2e-3) and course.batch == 24
    assert course.momentum == 0.5 and course.clip == math.inf
    assert course.reach(0.01) == pytest.approx(2 * 0.01 * course.rates)
    trainer.lr_scheduler = StepLR(optimizer, 1)  # one that says nothing of later rates
    assert Course.of(trainer).rates == pytest.approx(100_000)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "rmsprop", "sgd"])
def test_no_weight_gets_farther_than_the_bound(tmp_path: Path, optim: str):
    """For the penalty alone, whose gradients all point one way."""
    trainer = make("greedy_residuals", tmp_path, optim=optim, learning_rate=1e-3, weight_decay=0.0)
    rates, item = Rates(trainer), trainer.embeddings[0]
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: 0 * outputs.logits.sum()
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    weights = dict(trainer.model.named_parameters())
    moved = max(float((weights[name] - before[name]).abs().max()) for name in item.carriers)
    slope = item.config.strength / item.config.group_size
    steepest = slope / min(float(weight.std()) for weight in before.values() if weight.ndim == 4)
    assert 0 < moved <= 1.05 * rates.course.reach(1.5 * steepest)


@pytest.mark.parametrize("method", CONFIGS)
def test_more_steps_and_higher_rates_never_promise_less(tmp_path: Path, method: str):
    item = make(method, tmp_path).embeddings[0]
    grid = [
        [item.forecast(Course(steps, steps * rate, 32)) for rate in (0.0, 1e-4, 1e-2)]
        for steps in (1, 10, 100, 10_000)
    ]
    for rows in (grid, list(zip(*grid, strict=True))):
        for row in rows:
            assert [one.units for one in row] == sorted(one.units for one in row)
            assert [one.log2_p for one in row] == sorted((one.log2_p for one in row), reverse=True)
    assert grid[0][0].log2_p > -20 and grid[-1][-1].units == grid[-1][-1].of and grid[-1][-1].log2_p < -100


def test_watermas_writes_its_weights_whatever_the_rate(tmp_path: Path):
    trainer = AutoTrainer.for_method("watermas")(
        model=build("resnet"),
        args=arguments(tmp_path, max_steps=2, learning_rate=0.0),
        train_dataset=images(20),
        watermark={"bits": 64, "subkeys": 1},
        owner=Owner.create(),
    )
    trainer.train()
    assert trainer.evidence.matches == 64
