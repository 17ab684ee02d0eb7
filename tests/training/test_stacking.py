"""Methods stack by inheritance, in either order, and each gets its own config."""

from pathlib import Path

import pytest
import torch
from trainer_runs import COUPLED, GREEDY, arguments, build, images

from hf_watermark import (
    CertifiedConfig,
    CertifiedTrainer,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    WatermarkKey,
    stack_trainers,
)
from hf_watermark.methods.function_coupled import FunctionCoupledEmbedding


ORDERS = [(GreedyResidualsTrainer, FunctionCoupledTrainer), (FunctionCoupledTrainer, GreedyResidualsTrainer)]


def make(classes: tuple, watermark, folder: Path, **identity):
    return stack_trainers(*classes)(
        model=build("resnet"),
        args=arguments(folder, max_steps=2),
        train_dataset=images(250),
        watermark=watermark,
        **identity or {"owner": Owner.create()},
    )


@pytest.mark.parametrize("classes", ORDERS)
def test_both_orders_embed_both_methods(tmp_path: Path, classes: tuple):
    trainer = make(classes, [COUPLED, GREEDY], tmp_path)
    assert type(trainer).__name__.startswith("Stacked")
    assert [item.method for item in trainer.key.assignments] == [cls.embedding_classes[0].method for cls in classes]
    indices = [index for item in trainer.key.assignments for index in item.subkeys]
    assert sorted(indices) == list(range(3)), "no sub-key serves two methods"

    # The step asks triggers and adds the penalty: 4 images and 2 fused ones, and the hinge on top of their loss.
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in images(4)]), "labels": torch.arange(4)}
    coupled = trainer.embedding(FunctionCoupledEmbedding)
    mixed = coupled.extend(batch)
    assert len(mixed["labels"]) == 6
    trainer.model.train()
    outputs = trainer.model(**mixed)
    assert coupled.loss(mixed, outputs) is None
    expected = outputs.loss + trainer.watermark_loss()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)

    trainer.train()
    assert {part.method for part in trainer.evidence.parts} == {"greedy_residuals", "function_coupled"}
    key = trainer.key
    again = make(classes[::-1], [GREEDY, COUPLED], tmp_path, key=key)
    assert again.key is key, "the order of the classes does not matter to a key"


def test_every_method_needs_exactly_one_config(tmp_path: Path):
    both = ORDERS[0]
    for wrong in (GREEDY, [GREEDY], [GREEDY, GREEDY], [GREEDY, COUPLED, GREEDY]):
        with pytest.raises(ValueError, match="needs one for each of"):
            make(both, wrong, tmp_path)
    with pytest.raises(ValueError, match=r"holds configs for \['function_coupled'\]"):
        make(both[:1], COUPLED, tmp_path)


def test_a_class_is_stacked_once_and_at_least_one_is_given():
    for classes in ((), (GreedyResidualsTrainer, GreedyResidualsTrainer)):
        with pytest.raises(ValueError, match="needs different trainer classes"):
            stack_trainers(*classes)


def test_a_key_fits_the_methods_and_configs_it_was_made_for(tmp_path: Path):
    key: WatermarkKey = make(ORDERS[0][:1], GREEDY, tmp_path).key
    with pytest.raises(InvalidInput, match=r"marks with \['greedy_residuals'\]"):
        make(ORDERS[0], [GREEDY, COUPLED], tmp_path, key=key)
    with pytest.raises(InvalidInput, match="made for another `greedy_residuals` config"):
        make(ORDERS[0][:1], GreedyResidualsConfig(bits=64, subkeys=2, group_size=16), tmp_path, key=key)


def test_every_method_gets_its_own_rows_set_aside(tmp_path: Path):
    """Two methods that take trigger sources out of the training data must not shift each other's rows."""
    certified = CertifiedConfig(triggers=30)
    trainer = make((FunctionCoupledTrainer, CertifiedTrainer), [COUPLED, certified], tmp_path)
    pools = [trainer.key.pool[f"{method}.rows"].tolist() for method in ("function_coupled", "certified")]
    assert trainer.train_dataset.indices == [row for row in range(250) if row not in {*pools[0], *pools[1]}]
