"""What is told before the first step: weights that do not train, are not saved or not in the optimizer, other models, and hopeless runs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from trainer_runs import COUPLED, arguments, build, images
from transformers import Trainer

from hf_watermark import (
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    WaterMASTrainer,
    verify,
)


# Of two sub-keys one is public, and does not count.
GREEDY = GreedyResidualsConfig(bits=180, subkeys=2, group_size=16, strength=0.1)


def greedy(folder: Path, model: Any = None, steps: int = 15, trainer: type = GreedyResidualsTrainer, **given: Any):
    fields = {"max_steps": steps} | given.pop("fields", {})
    model = build("resnet") if model is None and "model_init" not in given else model
    given = {"owner": Owner.create(), "watermark": GREEDY, "train_dataset": images(60)} | given
    return trainer(model=model, args=arguments(folder, **fields), **given)


# Models


def test_model_init_marks_the_model_that_trains(tmp_path: Path):
    """https://github.com/huggingface/transformers/issues/7759: `train` makes another model than the trainer was made with."""
    trainer = greedy(tmp_path / "model", model_init=lambda: build("resnet"))
    first = trainer.model
    trainer.train()
    assert trainer.model is not first and trainer.evidence.found
    trainer.save_model()
    assert verify(tmp_path / "model", trainer.key).found


def test_every_trial_of_a_search_is_marked(tmp_path: Path):
    trainer = greedy(tmp_path, model_init=lambda trial: build("resnet"))
    for rate in (1e-2, 2e-2):
        trainer.args.learning_rate = rate
        trainer.train()
        assert trainer.evidence.found


def test_the_rows_of_the_pool_stay_out_when_the_model_is_made_anew(tmp_path: Path):
    trainer = greedy(
        tmp_path,
        model_init=lambda: build("resnet"),
        steps=1,
        trainer=FunctionCoupledTrainer,
        watermark=COUPLED,
        train_dataset=images(250),
    )
    left = len(trainer.train_dataset)
    trainer.train()
    assert len(trainer.train_dataset) == left == 250 - 10 * COUPLED.pool_per_class


def test_a_replaced_model_is_refused(tmp_path: Path):
    trainer = greedy(tmp_path)
    trainer.model = trainer.model_wrapped = build("resnet")
    with pytest.raises(
        ValueError, match=r"do not replace `trainer.model`: make a new trainer, with `key=trainer.key`"
    ):
        trainer.train()


def small_timm(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10, **changes)


@pytest.mark.parametrize("changes", [{}, {"in_chans": 1}], ids=["as named", "grey"])
def test_a_module_of_timm_is_wrapped(tmp_path: Path, changes: dict[str, int]):
    module = small_timm(**changes)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    trainer = greedy(tmp_path, module)
    assert trainer.model.timm_model is module and trainer.model.config.num_labels == 10
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
    assert (trainer.model.config.model_args or {}) == changes


def test_what_cannot_be_built_again_names_wrap_timm(tmp_path: Path):
    torchvision = pytest.importorskip("torchvision")
    module = small_timm()
    module.fc = nn.Linear(module.fc.in_features, 7)
    for other in (module, torchvision.models.squeezenet1_1(num_classes=10)):
        with pytest.raises(InvalidInput, match="wrap_timm"):
            greedy(tmp_path, other)


# Carriers


@pytest.mark.parametrize(
    ("trainer", "config"),
    [
        (GreedyResidualsTrainer, {"bits": 128, "subkeys": 1, "group_size": 16}),
        (WaterMASTrainer, {"bits": 32, "subkeys": 1}),
    ],
)
def test_frozen_carriers_are_counted(tmp_path: Path, trainer: type, config: dict):
    """https://github.com/microsoft/torchgeo/issues/1290: a linear probe."""
    model = build("resnet")
    model.resnet.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"(\d+) of \1 carriers of .* do not train .*mark the finished model with `mark_model`"
    ):
        greedy(tmp_path, model, trainer=trainer, watermark=config)
    model.resnet.encoder.requires_grad_(True)
    model.resnet.encoder.stages[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 of 2 carriers .* name those that train: `layers=\['resnet.1'\]`"):
        greedy(tmp_path, model, trainer=trainer, watermark=config)
    assert greedy(tmp_path, model, trainer=trainer, watermark=config | {"layers": ["resnet.1"]})


def test_weights_that_freeze_after_the_trainer_was_made_are_told_before_the_first_step(tmp_path: Path):
    trainer = greedy(tmp_path)
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="2 of 2 carriers .* do not train"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_black_box_marks_need_a_weight_that_trains(tmp_path: Path):
    with pytest.raises(ValueError, match="no weight of the model trains"):
        greedy(
            tmp_path,
            build("resnet").requires_grad_(False),
            trainer=FunctionCoupledTrainer,
            watermark=COUPLED,
            train_dataset=images(250),
        )


def test_an_optimizer_without_the_carriers_is_refused(tmp_path: Path):
    model = build("resnet")
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="2 of 2 carriers .* are not in the optimizer .*leave out `optimizers`"):
        greedy(tmp_path, model, optimizers=(optimizer, None)).train()
    model = build("resnet")
    trainer = greedy(tmp_path, model, optimizers=(torch.optim.AdamW(model.parameters(), lr=1e-2), None))
    trainer.train()
    assert trainer.evidence.found


def test_carriers_that_are_left_out_of_the_file(tmp_path: Path):
    model, name = build("resnet"), "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"
    model._keys_to_ignore_on_save = {name}
    with pytest.raises(
        ValueError, match=f"1 of 2 carriers .* are not saved with the model .*{name}.*_keys_to_ignore_on_save"
    ):
        greedy(tmp_path, model)


# Steps


@pytest.mark.parametrize(
    ("fields", "steps"), [({"learning_rate": 1e-6}, 15), ({"optim": "sgd", "learning_rate": 1e-4}, 15)]
)
def test_a_hopeless_run_is_told_before_it_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: dict, steps: int
):
    trainer = greedy(tmp_path, steps=steps, fields=fields)
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        trainer.train()
    said = [record for record in caplog.records if record.name.endswith("preflight")]
    assert len(said) == 1 and "raise `learning_rate`" in said[0].getMessage() and not trainer.evidence.found


@pytest.mark.parametrize("how", ["frozen", "left out of the optimizer"])
def test_a_head_alone_is_told_that_it_cannot_learn_a_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str):
    model = build("resnet")
    given = {"trainer": FunctionCoupledTrainer, "watermark": COUPLED, "train_dataset": images(250), "steps": 1}
    if how == "frozen":
        model.resnet.requires_grad_(False)
    else:
        given["optimizers"] = (torch.optim.Adam(model.classifier.parameters()), None)
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        greedy(tmp_path, model, **given).train()
    assert "only the head trains" in caplog.text and "unfreeze more of the model" in caplog.text


def test_a_run_that_will_do_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        trainer = greedy(tmp_path)
        trainer.train()
    assert trainer.evidence.found and not caplog.records


def test_a_rate_of_zero_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="learning rates add up to 0: raise `learning_rate`"):
        greedy(tmp_path, fields={"learning_rate": 0.0}).train()


def test_a_loss_that_goes_past_the_marks_is_refused(tmp_path: Path):
    class Own(GreedyResidualsTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss

    with pytest.raises(ValueError, match=r"`compute_loss` of Own does not call `super\(\).compute_loss"):
        greedy(tmp_path, trainer=Own).train()

    class Behind(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    marked = type("Marked", (GreedyResidualsTrainer, Behind), {})
    trainer = greedy(tmp_path, trainer=marked)
    trainer.train()
    assert trainer.evidence.found
