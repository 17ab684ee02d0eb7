"""Greedy residuals that are written before the first step, and kept while the model trains."""

import copy
import logging

import pytest
import torch
from tiny import patterned_images, tiny_resnet, training_arguments

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, InvalidInput, Owner, plan_key
from hf_watermark.training.embedding import Moment


def trained(tmp_path, first, **changes):
    trainer = GreedyResidualsTrainer(
        model=tiny_resnet(),
        args=training_arguments(tmp_path, **{"max_steps": 3, "learning_rate": 1e-5} | changes),
        train_dataset=patterned_images(80),
        watermark=GreedyResidualsConfig(bits=64, group_size=8, subkeys=2, written_first=first),
        owner=Owner.create(),
    )
    before = copy.deepcopy(trainer.model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in tiny_resnet().state_dict().items())
    trainer.train()
    return trainer


def test_a_training_that_is_too_short_for_the_hinge_keeps_what_was_written(tmp_path):
    assert trained(tmp_path, first=True).evidence.rate == 1
    assert trained(tmp_path, first=False).evidence.rate < 0.9


def test_it_is_written_once(tmp_path):
    trainer = trained(tmp_path, first=True)
    (embedding,) = trainer.embeddings
    with torch.no_grad():
        for item in embedding._marked:
            item.weight().neg_()
    lost = embedding.residuals()
    embedding.progress(Moment(step=0, steps=3))
    embedding.around_step(lambda *_: torch.zeros(()))
    assert torch.equal(embedding.residuals(), lost)


def test_a_resumed_run_goes_on_with_its_weights(tmp_path):
    trainer = trained(tmp_path, first=True, save_strategy="steps", save_steps=2)
    again = GreedyResidualsTrainer(
        model=tiny_resnet(),
        args=training_arguments(tmp_path, max_steps=3, learning_rate=1e-5),
        train_dataset=patterned_images(80),
        key=trainer.key,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_the_published_grid_cannot_be_written():
    with pytest.raises(ValueError, match="written_first"):
        GreedyResidualsConfig(bits=256, preset="paper", written_first=True)


def test_an_adapter_is_refused_when_its_key_is_made():
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `attacks`)")
    adapted = peft.get_peft_model(tiny_resnet(), peft.LoraConfig(r=8, target_modules=["convolution"]))
    with pytest.raises(InvalidInput, match="`written_first` writes into weights"):
        plan_key(adapted, None, GreedyResidualsConfig(bits=16, group_size=8, written_first=True), Owner.create())


def test_what_is_written_needs_no_rate(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        trainer = trained(tmp_path, first=True, learning_rate=0.0)
    assert trainer.evidence.rate == 1 and "hardly be readable" not in caplog.text
