"""What is told before the first step: weights that do not train, are not saved or not in the optimizer, other models, and hopeless runs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from trainer_runs import COUPLED, arguments, build, images
from transformers import EarlyStoppingCallback, Trainer

from hf_watermark import (
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    WaterMASTrainer,
    plan_key,
    stack_trainers,
    verify,
)
from hf_watermark.training.course import Forecast
from hf_watermark.training.evaluating import objective


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


def test_a_loss_that_replaces_the_one_with_the_marks_is_refused(tmp_path: Path):
    class Weighted(GreedyResidualsTrainer):
        adds = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            marked, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"], torch.ones(10))
            loss = loss + marked if self.adds else loss
            return (loss, outputs) if return_outputs else loss

    with pytest.raises(ValueError, match=r"`compute_loss` of Weighted calls .* trains on another loss"):
        greedy(tmp_path, trainer=Weighted).train()
    Weighted.adds = True
    trainer = greedy(tmp_path, trainer=Weighted)
    trainer.train()
    assert trainer.evidence.found


def test_a_method_that_is_short_is_named_beside_one_that_is_there(tmp_path: Path, caplog):
    trainer = greedy(tmp_path / "model", steps=30)
    trainer.train()
    assert trainer.evidence.found
    first = trainer.key
    both = [GREEDY, COUPLED]
    key = plan_key(trainer.model, images(250), both, Owner.create())
    stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    again = stacked(
        model=trainer.model,
        args=arguments(tmp_path / "again", max_steps=2),
        train_dataset=images(250),
        watermark=both,
        key=key,
        keep=[first],
    )
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        again.train()
    assert "`function_coupled` will hardly be readable" in caplog.text
    # The kept key's mark is there, the new one's is not.
    assert "`greedy_residuals` will hardly be readable" in caplog.text


def test_what_several_subkeys_have_together_is_there(tmp_path: Path, caplog, monkeypatch):
    """None of them reaches the level alone."""
    config = GreedyResidualsConfig(bits=64, subkeys=4, group_size=8, strength=0.1, written_first=True)
    trainer = greedy(tmp_path, steps=2, watermark=config, fields={"learning_rate": 1e-6})
    trainer.train()
    assert trainer.evidence.found and max(part.log2_p for part in trainer.evidence.parts) > -128
    monkeypatch.setattr(
        trainer.embeddings[0], "forecast", lambda course: Forecast(0, 64, "bits", 0.0, "nothing moves")
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        trainer.train()
    assert "hardly be readable" not in caplog.text


def test_rows_of_the_pool_in_a_loader_of_ones_own_are_told(tmp_path: Path, caplog):
    data = images(250)

    class Loading(FunctionCoupledTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(data, batch_size=8, collate_fn=self.data_collator)

    for trainer, told in ((Loading, True), (FunctionCoupledTrainer, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hf_watermark"):
            greedy(tmp_path, trainer=trainer, steps=1, watermark=COUPLED, train_dataset=data).train()
        assert ("the dataloader has 250 rows, `trainer.train_dataset` 210" in caplog.text) is told


def test_the_strongest_mark_is_the_best_checkpoint(tmp_path: Path):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_strategy": "steps"}
    fields |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_watermark_log2_p"}
    with pytest.raises(ValueError, match="set `greater_is_better=False`"):
        greedy(tmp_path, fields=fields, eval_dataset=images(20))
    trainer = greedy(
        tmp_path, fields=fields | {"greater_is_better": False}, steps=8, eval_dataset=images(20),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )  # fmt: skip
    trainer.train()
    read = [row["eval_watermark_log2_p"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(read) > 1 and trainer.state.best_metric == min(read)


def test_a_search_compares_models_and_not_marks(tmp_path: Path):
    trainer = greedy(tmp_path, eval_dataset=images(20))
    assert trainer.evaluate()["eval_watermark_log2_p"] < 0
    assert not any("watermark" in name for name in trainer.predict(images(20)).metrics)
    metrics = {"eval_loss": 2.5, "eval_watermark_log2_p": -90.0}
    assert objective(metrics) == 2.5 and objective(metrics | {"eval_accuracy": 0.5}) == 0.5
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "hyperparameter_search", lambda self, *args, **fields: given.update(found=args[1]))
        trainer.hyperparameter_search(n_trials=2)
        assert given["found"] is objective
        trainer.hyperparameter_search(compute_objective=len)
        assert given["found"] is len
