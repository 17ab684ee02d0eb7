"""The mark counts once per optimizer step whatever computes the task loss, and batches of every kind train or are refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import nn
from torch.nn import functional
from trainer_runs import COUPLED, GREEDY, FirstGradients, arguments, build, images
from transformers import default_data_collator

from hf_watermark import (
    AutoTrainer,
    CertifiedConfig,
    CertifiedTrainer,
    FunctionCoupledTrainer,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    USPConfig,
    USPTrainer,
    WaterMASConfig,
    WaterMASTrainer,
    plan_key,
)
from hf_watermark.training.embedding import TrainingData
from hf_watermark.training.triggers import fuse


METHODS: dict[str, tuple[Any, Any]] = {
    "greedy_residuals": (GreedyResidualsTrainer, GREEDY),
    "watermas": (WaterMASTrainer, WaterMASConfig(bits=32, subkeys=1, switch_in=0, every=1)),
    "function_coupled": (FunctionCoupledTrainer, COUPLED),
    "certified": (CertifiedTrainer, CertifiedConfig()),
    "usp": (USPTrainer, USPConfig(features=12)),
}
BLACK_BOX = ("function_coupled", "certified", "usp")
every_method = pytest.mark.parametrize("method", METHODS)


def make(method: str, folder: Path, model: Any = None, data: Any = None, **given: Any) -> Any:
    trainer, config = METHODS[method]
    fields = {"max_steps": 1, "max_grad_norm": 0, "optim": "sgd"} | given.pop("fields", {})
    given = {"owner": Owner.create()} | given
    model = build("resnet") if model is None else model
    return trainer(
        model=model, args=arguments(folder, **fields), train_dataset=data or images(250), watermark=config, **given
    )


def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    """What transformers asks of a `compute_loss_func`: a sum over the whole step's number of items."""
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
    return functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def first_gradients(folder: Path, key: Any, accumulation: int, **given: Any) -> dict[str, torch.Tensor]:
    """Of the first step over the same eight images, however they are split."""
    seen = FirstGradients()
    torch.manual_seed(0)
    fields = {
        "max_steps": 1,
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    fields |= {"train_sampling_strategy": "sequential", "label_smoothing_factor": given.pop("smoothing", 0.0)}
    make(
        "greedy_residuals",
        folder,
        build("vit"),
        images(8),
        owner=None,
        key=key,
        fields=fields,
        callbacks=[seen],
        **given,
    ).train()
    return seen.seen


@pytest.mark.parametrize(
    "given", [{}, {"compute_loss_func": mean_loss}, {"smoothing": 0.1}], ids=["model", "function", "smoothed"]
)
def test_accumulation_changes_no_gradient(tmp_path: Path, given: dict[str, Any]):
    """https://github.com/huggingface/transformers/issues/34198: a `compute_loss_func` is not divided by the steps that are accumulated."""
    key = make("greedy_residuals", tmp_path, build("vit")).key
    once, often = (first_gradients(tmp_path, key, steps, **given) for steps in (1, 4))
    plain = first_gradients(tmp_path, key, 1)
    whole = torch.cat([grad.flatten() for grad in once.values()]).norm()
    for name, grad in once.items():
        assert (often[name] - grad).norm() <= 1e-5 * max(grad.norm(), whole), name
        if "smoothing" not in given:
            assert (plain[name] - grad).norm() <= 1e-5 * max(grad.norm(), whole), name


@every_method
@pytest.mark.parametrize(
    "given",
    [{"compute_loss_func": mean_loss}, {"fields": {"label_smoothing_factor": 0.1}}],
    ids=["function", "smoothed"],
)
def test_losses_that_take_the_labels_out(tmp_path: Path, method: str, given: dict[str, Any]):
    """https://github.com/huggingface/transformers/issues/10338"""
    trainer = make(method, tmp_path, **given)
    trainer.train()
    assert trainer.state.global_step == 1


class Plain(nn.Module):
    """A net of somebody's own, with an output of its own."""

    def __init__(self, form: str):
        super().__init__()
        self.net = build("resnet")
        self.config, self.form = self.net.config, form

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values).logits
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return (loss, logits) if self.form == "tuple" else {"loss": loss, "logits": logits}


@pytest.mark.parametrize(
    ("method", "form"), [("function_coupled", "dict"), *((method, "tuple") for method in METHODS)]
)
def test_outputs_of_any_form(tmp_path: Path, method: str, form: str):
    trainer = make(method, tmp_path, Plain(form))
    trainer.train()
    assert trainer.state.global_step == 1


def with_columns(kind: str) -> Any:
    rows = [row | {"image": Image.new("L", (4, 4)), "path": "a.png"} for row in images(250)]
    return Dataset.from_list(rows).with_format("torch") if kind == "datasets" else rows


@pytest.mark.parametrize(
    ("method", "kind"), [("function_coupled", "datasets"), *((method, "list") for method in METHODS)]
)
def test_columns_that_the_model_does_not_take(tmp_path: Path, method: str, kind: str):
    """https://github.com/huggingface/transformers/issues/17166"""
    trainer = make(method, tmp_path, data=with_columns(kind))
    trainer.train()
    assert trainer.state.global_step == 1


# Labels


def mixup(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = default_data_collator(rows)
    hot = functional.one_hot(batch["labels"], 10).float()
    return {
        "pixel_values": 0.7 * batch["pixel_values"] + 0.3 * batch["pixel_values"].flip(0),
        "labels": 0.7 * hot + 0.3 * hot.flip(0),
    }


def soft_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return functional.cross_entropy(outputs.logits, labels)


@every_method
def test_mixup(tmp_path: Path, method: str):
    given = {"data_collator": mixup, "compute_loss_func": soft_loss}
    if method == "usp":
        with pytest.raises(ValueError, match="soft-label watermarks make their own soft labels .* leave out mixup"):
            make(method, tmp_path, **given)
        return
    trainer = make(method, tmp_path, **given)
    trainer.train()
    assert trainer.state.global_step == 1


def several(row: dict[str, Any]) -> torch.Tensor:
    hot = torch.zeros(10)
    hot[[row["labels"], (row["labels"] + 3) % 10]] = 1
    return hot


KINDS = {
    "multi-label": (
        {"problem_type": "multi_label_classification"},
        several,
        "no distribution over the classes, as in multi-label",
    ),
    "regression": (
        {"problem_type": "regression", "num_labels": 1},
        lambda row: float(row["labels"]),
        "regression|1 classes",
    ),
}


@every_method
@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_name_no_class(tmp_path: Path, method: str, kind: str):
    config, label, message = KINDS[kind]
    data = [row | {"labels": label(row)} for row in images(250)]
    model = build("resnet", config.get("num_labels", 10))
    model.config.problem_type = config["problem_type"]
    if method in BLACK_BOX:
        with pytest.raises(ValueError, match=message):
            make(method, tmp_path, model, data)
        return
    trainer = make(method, tmp_path, model, data)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("method", BLACK_BOX)
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda row: None, "have no `labels`"),
        (lambda row: torch.zeros(16, 16).long(), "as for segmentation"),
        (lambda row: 0.5, "as for regression"),
    ],
    ids=["missing", "segmentation", "number"],
)
def test_other_labels_are_refused_by_name(tmp_path: Path, method: str, label: Any, message: str):
    data = [
        {"pixel_values": row["pixel_values"]} | ({} if label(row) is None else {"labels": label(row)})
        for row in images(250)
    ]
    with pytest.raises(ValueError, match=message):
        make(method, tmp_path, data=data)


@pytest.mark.parametrize("method", BLACK_BOX)
def test_a_model_that_does_not_say_its_classes(tmp_path: Path, method: str):
    model = Plain("dict")
    del model.config
    with pytest.raises(InvalidInput, match="does not say how many classes"):
        make(method, tmp_path, model)


@pytest.mark.parametrize("method", ["function_coupled", "certified", "usp", "csp"])
@pytest.mark.parametrize("shape", ["a row each", "some left out"])
def test_labels_that_transformers_takes_are_taken(tmp_path: Path, method: str, shape: str):
    """`[n, 1]`, and -100 where the task loss is to leave an image out."""
    data = images(250)
    for number, row in enumerate(data):
        if shape == "a row each":
            row["labels"] = [int(row["labels"])]
        elif number % 25 == 0:
            row["labels"] = -100
    fields = {"certified": {"triggers": 80}}.get(method, {"pool_per_class": 4})
    fields |= {"images_per_rule": 4} if method == "function_coupled" else {}
    trainer = AutoTrainer.for_method(method)(
        model=build("resnet"),
        args=arguments(tmp_path, max_steps=2),
        train_dataset=data,
        watermark={"method": method} | fields,
        owner=Owner.create(),
    )
    trainer.train()
    assert all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())


def test_an_image_that_is_left_out_says_nothing(tmp_path: Path):
    from hf_watermark.methods.soft_label.embedding import USPEmbedding

    data, model = images(250), build("resnet")
    key = plan_key(model, data, {"method": "usp", "pool_per_class": 4}, Owner.create())
    embedding = USPEmbedding(model, key.claims()[0], TrainingData(data, default_data_collator))
    batch = default_data_collator(data[:8])
    left_out = {**batch, "labels": batch["labels"].where(torch.arange(8) < 5, -100)}
    outputs = {"logits": torch.randn(8, 10, requires_grad=True)}
    first = {name: value[:5] for name, value in batch.items()}
    expected = embedding.loss(first, {"logits": outputs["logits"][:5]})
    assert embedding.loss(left_out, outputs).item() == pytest.approx(expected.item())
    nothing = embedding.loss({**batch, "labels": torch.full((8,), -100)}, outputs)
    nothing.backward()
    assert nothing.item() == 0 and not outputs["logits"].grad.any()


def test_images_of_several_sizes_are_named(tmp_path: Path):
    data = images(250)
    for row in data[::2]:
        row["pixel_values"] = row["pixel_values"][..., :12]
    with pytest.raises(ValueError, match="the training images have several sizes, .* bring them to one size"):
        plan_key(build("resnet"), data, COUPLED, Owner.create())


def test_images_are_fused_in_half_precision():
    first, second = (torch.rand(2, 3, 8, 8).bfloat16() for _ in range(2))
    layouts, fill = torch.tensor([0, 3]), torch.ones(3)
    fused = fuse(first, second, layouts, fill)
    assert fused.dtype is torch.bfloat16
    assert torch.equal(fused, fuse(first.float(), second.float(), layouts, fill).bfloat16())
