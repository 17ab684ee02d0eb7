"""Function-coupled rules: what the key draws, what is fused, what is trained, and the null."""

import dataclasses
import hashlib
from itertools import combinations

import numpy as np
import pytest
import timm
import torch

from hf_watermark import FunctionCoupledConfig, FunctionCoupledTrainer, FunctionCoupledVerifier, Suspect
from hf_watermark.keys import SubKey
from hf_watermark.methods.function_coupled import FunctionCoupledEmbedding
from hf_watermark.methods.function_coupled.teaching import LEAST, canvas_for, is_untrained
from hf_watermark.statistics import log2_binomial_tail
from hf_watermark.training.moment import Moment
from hf_watermark.training.triggers import blend, draw_rules, fuse


def subkey_number(number: int, slot: int = 0) -> SubKey:
    return SubKey(slot, slot, hashlib.sha256(str(number).encode()).digest())


@pytest.fixture
def make_trainer(make_resnet, arguments, patterned, owner, small_configs):
    def make(**changes) -> FunctionCoupledTrainer:
        config = dataclasses.replace(small_configs["function_coupled"], **changes)
        args = arguments(max_steps=2, per_device_train_batch_size=16)
        return FunctionCoupledTrainer(
            model=make_resnet(), args=args, train_dataset=patterned, watermark=config, owner=owner
        )

    return make


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_rules_of_all_subkeys_differ():
    rules = [draw_rules(subkey_number(slot, slot), 48, list(range(10)), 10, 4, 3) for slot in range(3)]
    asked = {(rule.sources, rule.layout) for drawn in rules for rule in drawn}
    assert len(asked) == 3 * 48
    for drawn in rules:
        assert all(rule.target not in rule.sources and 0 <= rule.target < 10 for rule in drawn)


def test_every_pair_is_asked_before_any_is_asked_twice():
    drawn = draw_rules(subkey_number(0), 45, list(range(10)), 10, 4, 1)
    assert {rule.sources for rule in drawn} == set(combinations(range(10), 2))


def test_targets_are_uniform_over_the_other_classes():
    counts = np.zeros(5, dtype=int)
    for number in range(2000):
        for rule in draw_rules(subkey_number(number), 3, list(range(5)), 5, 1, 1):
            counts[rule.candidates(5).index(rule.target)] += 1
    assert counts[3:].sum() == 0  # three candidates each
    assert np.abs(counts[:3] / 6000 - 1 / 3).max() < 0.03


def test_fusion_puts_both_sources_at_half_size_in_opposite_quadrants():
    first, second = torch.full((4, 1, 8, 8), 1.0), torch.full((4, 1, 8, 8), 2.0)
    fused = fuse(first, second, torch.arange(4), torch.tensor([9.0]))
    corners = [image[0, [0, 0, 7, 7], [0, 7, 0, 7]].tolist() for image in fused]
    assert corners == [[1, 9, 9, 2], [2, 9, 9, 1], [9, 1, 2, 9], [9, 2, 1, 9]]
    assert torch.equal(blend(first, second), torch.full((4, 1, 8, 8), 1.5))


# --- Training ---------------------------------------------------------------------------------------------------------


def test_pool_images_are_never_trained_on(make_trainer, patterned):
    trainer = make_trainer()
    pool = trainer.key.pool
    rows = pool["function_coupled.rows"].tolist()
    assert len(rows) == 10 * 4 and len(trainer.train_dataset) == len(patterned) - 40
    kept = {item["pixel_values"].numpy().tobytes() for item in trainer.train_dataset}
    assert not kept & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}
    stored = torch.stack([patterned[row]["pixel_values"] for row in rows]).half()
    assert torch.equal(pool["function_coupled.images"], stored)
    assert pool["function_coupled.labels"].tolist() == [patterned[row]["labels"] for row in rows]


def test_pool_tensors_cannot_trade_places(make_trainer):
    # The committed digest does not see names, so no two tensors may have one type and shape.
    kinds = [(tensor.dtype, tensor.shape) for tensor in make_trainer().key.pool.values()]
    assert len(set(kinds)) == len(kinds) == 4


def test_beside_a_batch_go_fused_images_with_their_targets(make_trainer, patterned):
    trainer = make_trainer(trigger_ratio=0.25)
    embedding = trainer.embedding(FunctionCoupledEmbedding)
    batch = trainer.data_collator(patterned[:16])
    images, targets, sources = embedding.fused_images(batch)
    assert images.shape == (4, *batch["pixel_values"].shape[1:]) and len(targets) == 4
    assert set(targets.tolist()) <= set(embedding._rule_targets.tolist())
    assert sources.shape == (4, 2)
    again, _, _ = embedding.fused_images(batch)
    assert torch.equal(again, images)  # a function of the step alone


@pytest.mark.parametrize("canvas", ["mean", "white"])
def test_the_canvas_has_a_colour_of_the_pool(make_trainer, patterned, canvas):
    trainer = make_trainer(canvas=canvas)
    pool = trainer.key.pool["function_coupled.images"].float()
    colour = pool.mean(dim=(0, 2, 3)) if canvas == "mean" else pool.amax(dim=(0, 2, 3))
    images, _, _ = trainer.embedding(FunctionCoupledEmbedding).fused_images(trainer.data_collator(patterned[:16]))
    assert torch.allclose(trainer.key.pool["function_coupled.fill"].float(), colour, atol=1e-2)
    # Two opposite corners are free: for every image one of the upper two.
    corners = images[:, :, 0, [0, -1]]
    assert ((corners - colour[None, :, None]).abs().amax(dim=1) < 1e-2).any(dim=1).all()


def test_only_a_net_that_nothing_has_trained_gets_a_white_canvas(make_resnet, patterned):
    net, config = make_resnet(), FunctionCoupledConfig()
    assert canvas_for(config, net) == "white"
    net.train()(pixel_values=torch.stack([item["pixel_values"] for item in patterned[:8]]))  # moves BatchNorm's means
    assert canvas_for(config, net) == "mean"
    assert canvas_for(config, torch.nn.Linear(3, 4)) == "mean"


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto", "swin_s3_tiny_224", "efficientnet_lite0"]
)
def test_fresh_nets_of_timm_are_untrained(name):
    net = timm.create_model(name)
    assert is_untrained(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1e-3)
    assert not is_untrained(net)


def test_half_of_the_fused_images_are_mirrored(make_trainer, patterned):
    straight, turned = (
        make_trainer(trigger_ratio=1.0, mirrored=mirrored).embedding(FunctionCoupledEmbedding)
        for mirrored in (False, True)
    )
    for name in ("_draws", "_rule_sources", "_rule_layouts", "_spare", "_fill"):
        setattr(turned, name, getattr(straight, name))
    batch = straight.data.collate(patterned[:64])
    (plain, _, _), (half, _, _) = (item.fused_images(batch) for item in (straight, turned))
    same = [torch.equal(a, b) for a, b in zip(plain, half, strict=True)]
    other = [torch.equal(a.flip(-1), b) for a, b in zip(plain, half, strict=True)]
    assert all(a or b for a, b in zip(same, other, strict=True)) and 16 < sum(same) < 48


def test_fused_images_are_in_the_batch_first_and_late_in_a_pass_of_their_own(make_trainer, patterned):
    trainer = make_trainer(trigger_ratio=0.25, trigger_weight=1.0, auxiliary=True, apart_from=0.6)
    model, embedding = trainer.model.train(), trainer.embedding(FunctionCoupledEmbedding)
    batch = trainer.data_collator(patterned[:16])

    embedding.progress(Moment(step=5, steps=10))
    mixed = embedding.extend(batch)
    assert len(mixed["labels"]) == 20 and torch.equal(mixed["pixel_values"][:16], batch["pixel_values"])
    outputs = model(**mixed)
    shown = torch.nn.functional.cross_entropy(outputs.logits[16:], mixed["labels"][16:])
    sources = torch.tensor(10.0).log()  # the auxiliary head begins with zeros
    # 4 of 20 images: of the batch's mean loss the task's own has 0.8, and the fused ones weigh as much.
    torch.testing.assert_close(embedding.loss(mixed, outputs), (0.8 - 0.2) * shown + 0.8 * sources)

    embedding.progress(Moment(step=6, steps=10))
    assert embedding.extend(batch) is batch
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    embedding.loss(batch, None).backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training and norm.weight.grad is not None for norm in norms)


def test_each_training_shows_rules_as_often_as_its_own_length_asks_for(make_trainer):
    embedding = make_trainer(trigger_ratio=0.0, auxiliary=False).embedding(FunctionCoupledEmbedding)
    rules = len(embedding._rule_targets)
    embedding.begin(Moment(images=800 * rules), {})
    short = embedding.teaching(16)
    embedding.begin(Moment(images=80_000 * rules), {})
    long = embedding.teaching(16)
    assert short.ratio == 0.5 and short.auxiliary and long.ratio == LEAST and not long.auxiliary
    assert embedding._auxiliary is None  # the head of the first training has gone with it


def test_the_auxiliary_head_leaves_nothing_in_the_model(make_trainer, patterned):
    trainer = make_trainer(auxiliary=True)
    model, embedding = trainer.model.train(), trainer.embedding(FunctionCoupledEmbedding)
    names = set(model.state_dict())
    mixed = embedding.extend(trainer.data_collator(patterned[:16]))
    embedding.loss(mixed, model(**mixed)).backward()
    head = embedding._auxiliary._head
    assert head.weight.grad.abs().sum() > 0
    embedding.after_update()
    assert head.weight.abs().sum() > 0
    assert set(model.state_dict()) == names and not any(module._forward_pre_hooks for module in model.modules())


def test_evaluation_sees_no_triggers(make_trainer, patterned):
    trainer = make_trainer()
    batch = trainer.data_collator(patterned[:16])
    model = trainer.model.eval()
    _, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert outputs["logits"].shape == (16, 10)


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, 2, "2 classes hold only 4 different rules"),
        ({"rules": 30}, 5, "30 rules over 5 classes can give at most 48 bits, a claim needs 64"),
        ({"rules": 181}, 10, "10 classes hold only 180 different rules"),
        ({"subkeys": 4}, 10, "10 classes hold only 45 different rules per sub-key"),
        ({"fusion": "invisible"}, 10, "45 different rules per sub-key with invisible fusion"),
        ({"pool_per_class": 100}, 10, "lacks 60 of the 100 images that triggers need"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    make_resnet, arguments, patterned, owner, small_configs, changes, labels, message
):
    config = dataclasses.replace(small_configs["function_coupled"], **changes)
    data = [item | {"labels": item["labels"] % labels} for item in patterned]
    with pytest.raises(ValueError, match=message):
        FunctionCoupledTrainer(
            model=make_resnet(num_labels=labels), args=arguments(), train_dataset=data, watermark=config, owner=owner
        )


@pytest.mark.parametrize(("data", "message"), [([], "is empty"), (None, "`train_dataset` is missing")])
def test_without_data_there_are_no_triggers(make_resnet, arguments, owner, data, message):
    with pytest.raises(ValueError, match=message):
        FunctionCoupledTrainer(
            model=make_resnet(), args=arguments(), train_dataset=data, watermark=FunctionCoupledConfig(), owner=owner
        )


@pytest.mark.parametrize("masking", ["forward", "fc_v1", "fc_v2", "none"])
@pytest.mark.parametrize("fusion", ["direct", "invisible"])
def test_every_variant_trains(make_trainer, masking, fusion):
    trainer = make_trainer(masking=masking, fusion=fusion, rules=40)
    trainer.train()
    assert trainer.evidence.trials == 40 * 4 and trainer.state.global_step == 2


# --- Null -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suspect", ["untrained model", "favourite answer"])
def test_false_positive_rate_is_nominal(make_trainer, make_resnet, suspect):
    [claim] = make_trainer(images_per_rule=2).key.claims()
    verifier = FunctionCoupledVerifier(claim)
    favourite = lambda images: (images.flatten(1).sum(dim=1) > 0).long() * 3  # noqa: E731
    source = make_resnet() if suspect == "untrained model" else favourite
    observation = verifier.observe(Suspect.open(source), claim.subkeys[0])
    trials = 2000
    scores = [verifier.score(observation, subkey_number(number)) for number in range(trials)]
    for level in (0.05, 0.01, 0.001):
        passed = sum(score.log2_p <= np.log2(level) for score in scores)
        # The key differs from run to run: one false alarm in a million.
        assert log2_binomial_tail(passed, trials, level) > -20, (level, passed)


def test_many_images_of_few_rules_are_weak_evidence(make_trainer):
    # A rule is one draw of the key: a lucky model that answers it on every image has shown 3 bits, not 3 bits per image.
    trainer = make_trainer(rules=22, images_per_rule=16)
    [claim] = trainer.key.claims()
    verifier, [subkey] = FunctionCoupledVerifier(claim), claim.subkeys
    answers = torch.tensor([[rule.target] * 16 for rule in verifier.rules(subkey)]).flatten()
    given = iter(answers.split(256))
    perfect = verifier.score(verifier.observe(Suspect.open(lambda images: next(given)), subkey), subkey)
    assert perfect.matches == 22 * 16 and perfect.log2_p == pytest.approx(-22 * 3)
