"""An interrupted run continues as if nothing had happened, and only under its own key."""

import json
from pathlib import Path

import pytest
import torch
from trainer_runs import COUPLED, GREEDY, Stacked, arguments, build, images, parameters

from hf_watermark import FunctionCoupledTrainer, GreedyResidualsTrainer, InvalidInput, Owner, WatermarkKey
from hf_watermark.training.trainer import WatermarkTrainer


METHODS = {
    "greedy_residuals": (GreedyResidualsTrainer, GREEDY),
    "function_coupled": (FunctionCoupledTrainer, COUPLED),
    "stacked": (Stacked, [GREEDY, COUPLED]),
}


def make(name: str, folder: Path, **identity) -> WatermarkTrainer:
    trainer_class, config = METHODS[name]
    return trainer_class(
        model=build("resnet"),
        args=arguments(folder, max_steps=6, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2),
        train_dataset=images(250),
        watermark=config,
        **identity,
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_with_the_same_weights_and_key(tmp_path: Path, name: str):
    whole = make(name, tmp_path / "model", owner=Owner.create())
    whole.key.save(tmp_path / "key")
    whole.train()

    resumed = make(name, tmp_path / "model", key=WatermarkKey.load(tmp_path / "key"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "model" / "checkpoint-3"))
    assert resumed.state.global_step == whole.state.global_step == 6
    ends, begins = parameters(whole.model), parameters(build("resnet"))
    for key, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, whole.model.state_dict()[key]), key
    assert not any(torch.equal(ends[key], begins[key]) for key in begins if key.endswith("convolution.weight"))
    for step in (3, 6):
        published = json.loads(
            (tmp_path / "model" / f"checkpoint-{step}" / "watermark" / "precommit.json").read_text()
        )
        assert published["precommit"] == whole.key.precommit.hex()


def test_resuming_under_another_key_is_refused(tmp_path: Path):
    first = make("greedy_residuals", tmp_path / "model", owner=Owner.create())
    first.train()
    other = make("greedy_residuals", tmp_path / "model", owner=Owner.create())
    before = parameters(other.model)
    for checkpoint in (True, str(tmp_path / "model" / "checkpoint-3")):
        with pytest.raises(InvalidInput, match="was trained under another key; load that key"):
            other.train(resume_from_checkpoint=checkpoint)
    assert all(torch.equal(weight, before[name]) for name, weight in parameters(other.model).items())
