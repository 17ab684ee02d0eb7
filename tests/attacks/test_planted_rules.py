"""
Positive controls: rules planted in a model that the attack is made to remove, at a rate at which plain fine-tuning leaves
them. A planted rule is not a mark; that an attack removes it says only that the attack works.
"""

import copy

import pytest
import torch
from conftest import UNIT, stamped

from hf_watermark.attacks import (
    AdversarialFineTune,
    AdversarialNeuronPrune,
    AttentionDistill,
    FinePrune,
    FineTune,
    MergeSibling,
    OccludeFineTune,
    PreprocessInput,
    Regularize,
    TriggerUnlearn,
)
from hf_watermark.attacks.trigger_inversion import small_outliers, stamp
from hf_watermark.attacks.units import HeadInputs, mean_activity, unit_layers


QUICK = {"batch_size": 16, "learning_rate": 0.01, "epochs": 5}
SEARCH = {**QUICK, "inversion_steps": 60}


def test_the_rule_holds_and_plain_finetuning_leaves_it(rule):
    tuned = FineTune(**QUICK)(rule.model, rule.data)
    for model in (rule.model, tuned, MergeSibling(**QUICK)(rule.model, rule.data)):
        assert rule.accuracy(model) > 0.95 and rule.survival(model) > 0.95


@pytest.mark.parametrize(
    "attack",
    [
        PreprocessInput("median", 3),
        PreprocessInput("gaussian", 1.5),
        PreprocessInput("resize", 0.25),
        FinePrune(**QUICK, amount=0.7),
        TriggerUnlearn(**SEARCH),
        TriggerUnlearn(**SEARCH, targets="outlier", action="launder", amount=0.2),
        AttentionDistill(**QUICK),
        AdversarialFineTune(**QUICK, epsilon=0.1, inner_steps=2),
        OccludeFineTune(**QUICK),
        Regularize(**QUICK, decay=1.0),
    ],
    ids=lambda attack: f"{attack.name}-{vars(attack).get('transform', vars(attack).get('action', ''))}",
)
def test_attack_removes_the_rule_and_keeps_the_model(attack, rule):
    attacked = attack(rule.model, rule.data)
    assert rule.survival(attacked) < 0.5
    assert rule.accuracy(attacked) > 0.85


def test_inversion_finds_the_square(rule):
    attack = TriggerUnlearn(**SEARCH)
    generator = torch.Generator().manual_seed(0)
    mask, pattern = attack.invert_one(rule.model, rule.data, 0, generator)
    images = torch.stack([example["pixel_values"] for example in rule.data])
    assert (rule.model(pixel_values=stamp(images, (mask, pattern))).logits.argmax(-1) == 0).float().mean() > 0.95
    other, _ = attack.invert_one(rule.model, rule.data, 2, generator)
    assert mask.sum() < other.sum()  # a class without a rule needs a larger trigger


def test_small_outliers_are_below_the_median():
    assert small_outliers({0: 1.0, 1: 10.0, 2: 10.5, 3: 9.5, 4: 10.2}) == [0]
    assert small_outliers({0: 9.8, 1: 10.0, 2: 10.2}) == [0]  # none: the smallest
    assert small_outliers({0: 30.0, 1: 10.0, 2: 10.5, 3: 9.5, 4: 10.2}) == [3]  # a large one is none


def test_a_rule_on_one_unit_holds(unit_rule):
    assert unit_rule.accuracy(unit_rule.model) > 0.95 and unit_rule.survival(unit_rule.model) > 0.95


def test_fine_pruning_silences_exactly_the_idle_features(unit_rule):
    model = unit_rule.model
    attacked = FinePrune(amount=0.25, epochs=0.1, learning_rate=1e-6, batch_size=32)(model, unit_rule.data)
    silent = (attacked.classifier[1].weight == 0).all(dim=0)
    images = torch.stack([example["pixel_values"] for example in unit_rule.data])
    with torch.no_grad():
        features = model.resnet(images).pooler_output.flatten(1).mean(0)
    assert set(silent.nonzero().flatten().tolist()) == set(features.argsort()[:2].tolist())
    assert silent[UNIT]
    assert unit_rule.survival(attacked) < 0.1 and unit_rule.accuracy(attacked) > 0.95


def test_anp_finds_the_planted_unit(unit_rule):
    attack = AdversarialNeuronPrune(epsilon=0.2, steps=12, batch_size=32)
    stem, *others = attack.masks(unit_rule.model, unit_layers(unit_rule.model, unit_rule.data), unit_rule.data)
    print(stem, others)
    assert stem[UNIT] == 0
    attacked = attack(unit_rule.model, unit_rule.data)
    assert unit_rule.survival(attacked) < 0.1 and unit_rule.accuracy(attacked) > 0.85


@pytest.mark.parametrize("action", ["prune", "launder"])
def test_units_that_a_trigger_excites_are_removed(action, unit_rule):
    model = copy.deepcopy(unit_rule.model)
    mask = stamped(torch.zeros(1, 1, 16, 16)) / 4
    TriggerUnlearn(action=action, amount=0.1).treat_units(model, unit_rule.data, [(mask, 4 * mask)])
    moved = (model.classifier[1].weight != unit_rule.model.classifier[1].weight).any(dim=0)
    assert moved.nonzero().flatten().tolist() == [UNIT]
    if action == "prune":  # laundering trains afterwards
        assert unit_rule.survival(model) < 0.1 and unit_rule.accuracy(model) > 0.7


def test_activity_by_hand(resnet, images):
    layers = [*unit_layers(resnet, None), HeadInputs(resnet.classifier[1])]
    activity = mean_activity(resnet, layers, images, batch_size=24)
    with torch.no_grad():
        stem = resnet.resnet.embedder.embedder
        by_hand = stem.normalization(stem.convolution(images)).relu().mean((0, 2, 3))
        features = resnet.resnet(images).pooler_output.flatten(1).mean(0)
    assert torch.allclose(activity[0].float(), by_hand, atol=1e-5)
    assert torch.allclose(activity[-1].float(), features, atol=1e-5)


def test_units_of_a_transformer_are_its_hidden_neurons(vit):
    (layer,) = unit_layers(vit, None)
    assert layer.name.endswith("mlp.fc1") and len(layer) == 32
    layer.silence(torch.arange(32) < 8)
    assert (layer.layer.weight[:8] == 0).all() and (layer.layer.bias[:8] == 0).all()
    assert (layer.layer.weight[8:] != 0).any()
