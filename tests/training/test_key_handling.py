"""What a trainer refuses before it trains, and what it does when the mark cannot be read back."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trainer_runs import COUPLED, GREEDY, arguments, build, images
from transformers import Trainer

from hf_watermark import (
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
)
from hf_watermark.backbones import LayoutMismatch


def greedy(folder: Path, net: str = "resnet", watermark: GreedyResidualsConfig = GREEDY, **given: Any):
    return GreedyResidualsTrainer(model=build(net), args=arguments(folder), watermark=watermark, **given)


def coupled(folder: Path, data: Any, classes: int = 10, watermark: FunctionCoupledConfig = COUPLED, **given: Any):
    given = given or {"owner": Owner.create()}
    model = build("resnet", classes)
    return FunctionCoupledTrainer(
        model=model, args=arguments(folder), train_dataset=data, watermark=watermark, **given
    )


def test_owner_and_key_exclude_each_other(tmp_path: Path):
    key = greedy(tmp_path, owner=Owner.create()).key
    for given in ({}, {"owner": Owner.create(), "key": key}):
        with pytest.raises(ValueError, match="exactly one of `owner=`"):
            greedy(tmp_path, **given)


def test_two_trainers_of_one_owner_have_different_keys(tmp_path: Path):
    owner = Owner.create()
    first, second = (greedy(tmp_path, owner=owner).key for _ in range(2))
    assert first.public_key == second.public_key
    assert first.precommit != second.precommit


@pytest.mark.parametrize("flag", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_what_hides_the_weights_is_refused_at_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str):
    original = Trainer.create_accelerator_and_postprocess

    def pretend(self: Trainer) -> None:
        original(self)
        setattr(self, flag, True)  # FSDP1, because the accelerator says nothing of version 2

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(ValueError, match="use DDP or FSDP2"):
        greedy(tmp_path, owner=Owner.create())


def test_a_key_of_another_backbone_is_refused(tmp_path: Path):
    key = greedy(tmp_path, owner=Owner.create()).key
    with pytest.raises(LayoutMismatch, match=r"'resnet.2' does not exist|other shapes here|layer 'resnet"):
        greedy(tmp_path, net="vit", key=key)
    smaller = build("resnet")
    smaller.resnet.encoder.stages[1].layers[0].layer[1].convolution.weight.data = torch.zeros(32, 16, 3, 3)
    with pytest.raises(LayoutMismatch, match="made for another backbone"):
        GreedyResidualsTrainer(model=smaller, args=arguments(tmp_path), watermark=GREEDY, key=key)


def test_a_layer_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path):
    config = GreedyResidualsConfig(bits=64, group_size=16, layers=["resnet.7"])
    with pytest.raises(LayoutMismatch, match=r"layer 'resnet.7' does not exist.*resnet.0, resnet.1"):
        greedy(tmp_path, watermark=config, owner=Owner.create())


def test_bits_that_do_not_fit_are_refused_with_the_capacity(tmp_path: Path):
    with pytest.raises(
        ValueError, match="weight tensors that can be marked hold 720 disjoint groups in all; lower `bits`"
    ):
        greedy(tmp_path, watermark=GreedyResidualsConfig(bits=512, subkeys=2, group_size=16), owner=Owner.create())


def test_triggers_need_data_of_enough_classes(tmp_path: Path):
    with pytest.raises(ValueError, match="`train_dataset` is missing"):
        coupled(tmp_path, None)
    with pytest.raises(ValueError, match="training data set is empty"):
        coupled(tmp_path, [])
    with pytest.raises(ValueError, match="is a stream"):
        FunctionCoupledTrainer(
            model=build("resnet"),
            args=arguments(tmp_path, max_steps=1),
            train_dataset=Dataset.from_list([{"labels": 0}]).to_iterable_dataset(),
            watermark=COUPLED,
            owner=Owner.create(),
        )
    with pytest.raises(ValueError, match="lacks 4 of the 4 images"):
        coupled(tmp_path, images(250, classes=9))
    with pytest.raises(ValueError, match="3 classes hold only 12 different rules"):
        coupled(tmp_path, images(90, classes=3), classes=3)
    with pytest.raises(ValueError, match="can give at most 15 bits, a claim needs 64"):
        coupled(tmp_path, images(250), watermark=FunctionCoupledConfig(rules=5))


def test_another_number_of_labels_is_refused(tmp_path: Path):
    key = coupled(tmp_path, images(250)).key
    with pytest.raises(InvalidInput, match="made for 10 classes, this model has 12; make a fresh key"):
        coupled(tmp_path, images(250), classes=12, key=key)
    trainer = coupled(tmp_path, images(250), key=key)
    evidence = trainer.verify(build("resnet", classes=12))
    assert evidence.verdict == "inconclusive" and "knows 12 classes, the key was made for 10" in evidence.reason


def test_a_mark_that_cannot_be_read_back_is_reported_and_not_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    # So weak a penalty and so small a rate that three epochs embed nothing.
    weak = GreedyResidualsConfig(bits=128, subkeys=2, group_size=16, strength=1e-6)
    trainer = GreedyResidualsTrainer(
        model=build("resnet"),
        args=arguments(tmp_path / "model", num_train_epochs=3, learning_rate=1e-6),
        train_dataset=images(100),
        watermark=weak,
        owner=Owner.create(),
    )
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        trainer.train()
    trainer.save_model()
    assert trainer.evidence.verdict == "not found"
    assert "could not be read back" in caplog.text and "Train longer" in caplog.text
    assert "or raise `strength` or `subkeys` of `greedy_residuals`." in caplog.text
    assert [file.name for file in (tmp_path / "model" / "watermark").iterdir()] == ["precommit.json"]


def test_a_mark_that_reads_back_publishes_one_subkey(tmp_path: Path):
    trainer = GreedyResidualsTrainer(
        model=build("resnet"),
        args=arguments(tmp_path / "model", max_steps=15),
        train_dataset=images(60),
        watermark=dataclasses.replace(GREEDY, bits=180),  # of two sub-keys one is public, and does not count
        owner=Owner.create(),
    )
    trainer.train()
    trainer.save_model()
    assert trainer.evidence.found
    published = sorted(file.name for file in (tmp_path / "model" / "watermark").iterdir())
    assert published == ["precommit.json", "subkey0.json"]
    assert not list((tmp_path / "model").rglob("key.json"))
