"""Every loop of `examples/` takes the steps that the Trainer takes, with every method."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import loop_runs
import pytest
import torch
from loop_runs import ALONE, HAS_LIGHTNING, STEPS, TOGETHER
from safetensors.torch import load_file
from tiny import tiny_resnet
from together import run_together
from torch.utils.data import DataLoader

from hf_watermark import Owner, Watermark, WatermarkKey, plan_key
from hf_watermark.mapping import METHODS


@pytest.fixture(scope="module")
def keys(small_configs) -> dict[str, WatermarkKey]:
    """Of all methods; for loops that shard, function-coupled rules are made without masks."""
    configs = small_configs | {"sharded": replace(small_configs["function_coupled"], masking="none")}
    return {
        name: plan_key(tiny_resnet(), loop_runs.data(), config, Owner.create()).bind_beacon(b"\x07" * 32, "a test")
        for name, config in configs.items()
    }


@pytest.fixture(scope="module")
def by_the_trainer(keys, tmp_path_factory) -> dict[str, loop_runs.Seen]:
    folder = tmp_path_factory.mktemp("trainer")
    return {method: loop_runs.in_the_trainer(keys[method], folder) for method in METHODS}


def assert_close(seen: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-5 of the whole gradient's norm, and of each tensor's where that is above rounding."""
    assert seen.keys() == wanted.keys()
    whole = torch.cat([value.flatten() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (seen[name] - value).norm() <= 1e-5 * max(value.norm(), 0.01 * whole), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ALONE)
def test_a_loop_takes_the_steps_of_the_trainer(name, method, keys, by_the_trainer, tmp_path, caplog):
    if name == "lightning" and not HAS_LIGHTNING:
        pytest.skip("lightning is not installed")
    seen, wanted = ALONE[name](keys[method], tmp_path), by_the_trainer[method]
    assert len(seen.gradients) == len(wanted.gradients) == STEPS
    for mine, theirs in zip(seen.gradients, wanted.gradients, strict=True):
        assert_close(mine, theirs)
    assert (seen.verdict, seen.matches) == (wanted.verdict, wanted.matches)
    assert "was not marked as it should be" not in caplog.text and "counted" not in caplog.text


def test_lightning_accumulates_and_takes_any_training_step(keys, caplog):
    lightning = pytest.importorskip("lightning")
    import loop_lightning

    class Module(loop_lightning.Digits):
        def training_step(self, batch):
            images, labels = batch
            return {"loss": torch.nn.functional.cross_entropy(self.net(images).logits, labels)}

    def fit(key: WatermarkKey) -> Watermark:
        model = tiny_resnet().train()
        watermark = Watermark(model, key=key, data=loop_runs.pairs(), steps=STEPS)
        trainer = lightning.Trainer(
            max_epochs=1,
            accumulate_grad_batches=2,
            limit_train_batches=4,
            gradient_clip_val=5.0,
            callbacks=[loop_lightning.Marking(watermark, model)],
            accelerator="cpu",
            **loop_runs.QUIET,
        )
        trainer.fit(Module(model), DataLoader(watermark.data, 20))
        return watermark

    assert fit(keys["sharded"]).state_dict()["step"] == fit(keys["greedy_residuals"]).state_dict()["step"] == 2
    assert "was not marked" not in caplog.text and "counted" not in caplog.text
    with pytest.raises(ValueError, match="`watermas` runs around each batch"):
        fit(keys["watermas"])


STACK = ["greedy_residuals", "function_coupled", "watermas", "usp"]


def test_a_stack_of_methods_takes_the_steps_of_the_stacked_trainers(small_configs, tmp_path):
    key = plan_key(tiny_resnet(), loop_runs.data(), [small_configs[method] for method in STACK], Owner.create())
    seen, wanted = ALONE["plain"](key, tmp_path), loop_runs.in_the_trainer(key, tmp_path)
    for mine, theirs in zip(seen.gradients, wanted.gradients, strict=True):
        assert_close(mine, theirs)
    assert seen.matches == wanted.matches


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_and_mixed_precision_count_once_as_in_the_trainer(method, keys, tmp_path, caplog):
    settings = {"gradient_accumulation_steps": 2}
    wanted = loop_runs.in_the_trainer(keys[method], tmp_path, bf16=True, **settings)
    train = partial(loop_runs.accelerate, mixed_precision="bf16", **settings)
    seen = loop_runs.loop(train, accumulation=2)(keys[method], tmp_path)
    assert len(seen.gradients) == STEPS
    for mine, theirs in zip(seen.gradients, wanted.gradients, strict=True):
        assert_close(mine, theirs)
    assert "counted" not in caplog.text


@pytest.fixture(scope="module")
def two_processes(keys, tmp_path_factory) -> Path:
    """The folder into which two processes (gloo) wrote what they saw."""
    folder = tmp_path_factory.mktemp("loops")
    for method in METHODS:
        keys["sharded" if method == "function_coupled" else method].save(folder / "keys" / method)
    written = run_together(loop_runs.__file__, str(folder), ACCELERATE_USE_CPU="true")
    assert "was not marked as it should be" not in written and "counted" not in written
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_take_the_steps_of_the_trainer(name, method, two_processes):
    for rank in (0, 1):
        seen, wanted = (
            load_file(two_processes / f"{method}-{which}-rank{rank}.safetensors") for which in (name, "trainer")
        )
        for step in map(str, range(STEPS)):
            mine, theirs = (
                {key.removeprefix(f"{step}."): value for key, value in one.items() if key.startswith(f"{step}.")}
                for one in (seen, wanted)
            )
            assert mine
            assert_close(mine, theirs)
        facts = json.loads((two_processes / f"facts-rank{rank}.json").read_text())
        assert facts[f"{method}-{name}"] == facts[f"{method}-trainer"]


def test_the_first_process_draws_the_key_of_all(two_processes):
    facts = [json.loads((two_processes / f"facts-rank{rank}.json").read_text()) for rank in (0, 1)]
    assert facts[0]["precommit"] == facts[1]["precommit"]
    assert "make the `Watermark` before `fully_shard`" in facts[1]["sharded"]


def test_a_model_that_accelerate_shards_is_marked(two_processes):
    for rank in (0, 1):
        facts = json.loads((two_processes / f"facts-rank{rank}.json").read_text())
        assert facts["prepared"] == {"verdict": "mark found", "warnings": [], "kinds": ["DTensor"]}
