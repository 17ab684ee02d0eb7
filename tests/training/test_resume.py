"""An interrupted run continues as if nothing had happened, and only under its own key."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_runs import COUPLED, GREEDY, Stacked, arguments, build, images, parameters
from transformers import TrainerCallback

from hf_watermark import (
    FunctionCoupledTrainer,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    USPConfig,
    USPTrainer,
    WatermarkKey,
)
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


def vit(folder: Path, **fields) -> GreedyResidualsTrainer:
    """The names that its file has are others than those of the live model."""
    fields = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3} | fields
    given = {"key": fields.pop("key")} if "key" in fields else {"owner": Owner.create()}
    return GreedyResidualsTrainer(
        model=build("vit"),
        args=arguments(folder, **fields),
        train_dataset=images(60),
        eval_dataset=images(20),
        watermark=GREEDY,
        **given,
    )


def test_every_tensor_of_a_checkpoint_is_restored(tmp_path: Path):
    whole = vit(tmp_path / "model")
    whole.train()
    resumed = vit(tmp_path / "model", key=whole.key)
    resumed.train(resume_from_checkpoint=str(tmp_path / "model" / "checkpoint-3"))
    assert all(
        torch.equal(weight, parameters(whole.model)[name]) for name, weight in parameters(resumed.model).items()
    )


def test_the_best_model_is_loaded_whole(tmp_path: Path):
    class Falling(TrainerCallback):
        """The first evaluation is the best."""

        def on_evaluate(self, args, state, control, metrics, model, **kwargs):
            metrics["eval_own"] = state.global_step
            self.best = parameters(model) if state.global_step == 2 else self.best

    falling = Falling()
    trainer = vit(
        tmp_path / "model",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="own",
        greater_is_better=False,
    )
    trainer.add_callback(falling)
    trainer.train()
    assert all(torch.equal(weight, falling.best[name]) for name, weight in parameters(trainer.model).items())


def test_a_checkpoint_without_the_whole_model_stops_the_resume(tmp_path: Path):
    whole = vit(tmp_path / "model", max_steps=3)
    whole.train()
    file = tmp_path / "model" / "checkpoint-3" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if name.endswith("query.weight")))
    save_file(tensors, file, {"format": "pt"})
    resumed = vit(tmp_path / "model", key=whole.key)
    with pytest.raises(InvalidInput, match="does not restore the model: .*q_proj.weight.*Start from the beginning"):
        resumed.train(resume_from_checkpoint=str(file.parent))
    assert resumed.state.global_step == 0


USP = USPConfig(features=16, pool_per_class=4)


def taught(folder: Path, **identity) -> USPTrainer:
    """Long enough for two looks, of which the first changes how the mark is taught."""
    fields = {"max_steps": 60, "save_strategy": "steps", "save_steps": 30, "learning_rate": 1e-4}
    return USPTrainer(
        model=build("resnet"), args=arguments(folder, **fields), train_dataset=images(250), watermark=USP, **identity
    )


def looks(trainer: WatermarkTrainer) -> tuple[list[int], float]:
    feedback = trainer.embeddings[0].feedback
    return [reading.step for reading in feedback.readings], feedback.strength


def test_a_resumed_run_is_taught_as_one_that_never_stopped(tmp_path: Path):
    whole = taught(tmp_path / "model", owner=Owner.create())
    whole.train()
    resumed = taught(tmp_path / "model", key=whole.key)
    resumed.train(resume_from_checkpoint=str(tmp_path / "model" / "checkpoint-30"))
    steps, strength = looks(whole)
    assert steps == [20, 40] and strength > 1.5 and looks(resumed) == (steps, strength)
    for key, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, whole.model.state_dict()[key]), key


def test_a_second_training_is_looked_at_anew(tmp_path: Path):
    trainer = taught(tmp_path / "model", owner=Owner.create())
    trainer.train()
    first = trainer.embeddings[0].feedback.readings
    trainer.train()
    second = trainer.embeddings[0].feedback.readings
    assert [item.step for item in first] == [item.step for item in second] == [20, 40] and first != second


def test_a_training_that_is_begun_again_with_smaller_batches_is_looked_at_anew(tmp_path: Path):
    class Full(TrainerCallback):
        """No memory is left in a batch, once."""

        full = True

        def on_step_end(self, args, state, control, **kwargs):
            if self.full and state.global_step == 25:
                self.full = False
                raise torch.OutOfMemoryError("CUDA out of memory.")

    fields = {"max_steps": 50, "auto_find_batch_size": True}
    trainer = USPTrainer(
        model=build("resnet"),
        args=arguments(tmp_path / "model", **fields),
        train_dataset=images(250),
        watermark=USP,
        owner=Owner.create(),
        callbacks=[Full()],
    )
    trainer.train()
    assert looks(trainer)[0] == [20, 40]
