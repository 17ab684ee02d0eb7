"""What every attack in `ATTACKS` promises, whatever it does."""

import dataclasses
import json
import re

import pytest
import torch

from hf_watermark.attacks import ATTACKS, FineTune, WeightNoise, full_battery, make_attack, standard_battery
from hf_watermark.attacks.base import AttackTrainer
from hf_watermark.attacks.table import ENTRIES


TRAINING = {"epochs": 1, "batch_size": 16}
OPTIONS = {
    "finetune": TRAINING,
    "reset_head": TRAINING,
    "transfer": TRAINING,
    "distill": TRAINING,
    "magnitude_prune": {"finetune_epochs": 1, "batch_size": 16},
    "reestimate_batchnorm": {"batches": 2, "batch_size": 16},
    "preprocess_input": {"transform": "noise", "amount": 0.1},
    "fine_prune": TRAINING,
    "adversarial_neuron_prune": {"steps": 20, "batch_size": 16, "threshold": 0.9, "learning_rate": 1.0},
    "trigger_unlearn": {**TRAINING, "inversion_steps": 3},
    "attention_distill": {**TRAINING, "teacher_epochs": 1},
    "adversarial_finetune": {**TRAINING, "inner_steps": 1},
    "occlude_finetune": TRAINING,
    "regularize": {**TRAINING, "decay_epochs": 1},
    "weight_shift": TRAINING,
    "soft_label_finetune": TRAINING,
    "lora": {**TRAINING, "rank": 2},
    "merge_sibling": TRAINING,
    "knockoff": TRAINING,
    "data_free_extract": {"batch_size": 8, "queries": 120, "student_steps": 2},
}
SEEDED = sorted(name for name, attack in ATTACKS.items() if "seed" in [f.name for f in dataclasses.fields(attack)])


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def everything(model, images):
    """Weights, and answers: a filter of inputs changes no weight."""
    with torch.no_grad():
        return state(model) | {"answers": model(pixel_values=images).logits}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def options(name, model):
    """Options under which the attack takes a moment."""
    other = {"merge": {"other": WeightNoise(0.5)(model)}}
    return {**OPTIONS, **other}.get(name, {})


# Attacks that act on what only some families have.
VICTIMS = {"rotate_residual": ["vit"], "mix_heads": ["vit"], "mix_bottlenecks": ["mobilenet"]}
PAIRS = [(name, victim) for name in ATTACKS for victim in VICTIMS.get(name, ["resnet", "timm_resnet"])]


@pytest.mark.parametrize(("name", "victim"), PAIRS)
def test_attack_returns_a_changed_copy_in_evaluation_mode(name, victim, request, data, images):
    model = request.getfixturevalue(victim).train()
    before = state(model)
    attacked = make_attack(name, **options(name, model))(model, data)
    assert same(state(model), before), "the input model changed"
    assert model.training and model.config.num_labels == 4, "the input model changed"
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert attacked is not model and not same(state(attacked), before)
    assert not any(module.training for module in attacked.modules())
    assert all(parameter.requires_grad for parameter in attacked.parameters())
    assert attacked(pixel_values=images).logits.shape == (64, 2 if name == "transfer" else 4)
    assert attacked.dtype == torch.float32


@pytest.mark.parametrize("name", SEEDED)
def test_seed_decides_everything(name, request, data, images):
    resnet = request.getfixturevalue(VICTIMS.get(name, ["resnet"])[0])
    attack = make_attack(name, **OPTIONS.get(name, {}))
    first = everything(attack(resnet, data), images)
    torch.rand(7)  # the global generator plays no part
    assert same(everything(attack(resnet, data), images), first)
    assert not same(everything(dataclasses.replace(attack, seed=1)(resnet, data), images), first)


@pytest.mark.parametrize("name", ATTACKS)
def test_names_and_needs(name, resnet):
    attack = ATTACKS[name]
    assert attack.name == name
    assert "\n" not in ENTRIES[name].help and ENTRIES[name].help.endswith(".")
    if attack.needs_data:
        with pytest.raises(ValueError, match=f"{name}.*needs data"):
            attack()(resnet)
    with pytest.raises(ValueError, match="empty"):
        attack()(resnet, [])


def test_make_attack_helps():
    with pytest.raises(
        ValueError, match="no attack 'prune': did you mean '.*prune.*'. choose one of weight_noise, magnitude_prune"
    ):
        make_attack("prune")
    with pytest.raises(ValueError, match="no option 'bit': did you mean 'bits'. choose one of bits"):
        make_attack("uniform_quantize", bit=4)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("weight_noise", "relative_std", 0.0),
        ("weight_noise", "relative_std", float("nan")),
        ("magnitude_prune", "amount", 1.0),
        ("magnitude_prune", "scope", "row"),
        ("magnitude_prune", "finetune_epochs", -1),
        ("uniform_quantize", "bits", 1),
        ("uniform_quantize", "bits", 4.5),
        ("int8_quantize", "backend", "fbgemm"),
        ("cast_dtype", "dtype", "float8"),
        ("finetune", "learning_rate", 0.0),
        ("finetune", "epochs", 0),
        ("finetune", "batch_size", 1.5),
        ("finetune", "optimizer", "adam"),
        ("finetune", "momentum", 1.0),
        ("finetune", "weight_decay", -0.1),
        ("finetune", "schedule", "linear"),
        ("finetune", "scope", "first"),
        ("transfer", "labels_modulo", 1),
        ("transfer", "num_labels", 2.5),
        ("distill", "mode", "argmax"),
        ("distill", "temperature", 0.0),
        ("distill", "student", "vit"),
        ("reestimate_batchnorm", "batches", 0),
        ("reestimate_batchnorm", "batch_size", 1),
        ("flip_batchnorm_signs", "fraction", 0.0),
        ("int4_quantize", "group_size", 1),
        ("onnx_round_trip", "weights", "float16"),
        ("preprocess_input", "transform", "sepia"),
        ("preprocess_input", "amount", 0),
        ("fine_prune", "amount", 1.0),
        ("fine_prune", "layers", 0),
        ("fine_prune", "activity_images", 0),
        ("adversarial_neuron_prune", "epsilon", 0),
        ("adversarial_neuron_prune", "alpha", 1.5),
        ("adversarial_neuron_prune", "threshold", 0.0),
        ("adversarial_neuron_prune", "steps", 0),
        ("adversarial_neuron_prune", "learning_rate", -1),
        ("trigger_unlearn", "action", "forget"),
        ("trigger_unlearn", "targets", "some"),
        ("trigger_unlearn", "inversion_steps", 0),
        ("trigger_unlearn", "inversion_rate", 0),
        ("trigger_unlearn", "stamped", 0),
        ("trigger_unlearn", "amount", 1),
        ("attention_distill", "beta", 0),
        ("attention_distill", "teacher_epochs", 0),
        ("adversarial_finetune", "epsilon", 2),
        ("adversarial_finetune", "inner_steps", 0),
        ("occlude_finetune", "area", 1),
        ("regularize", "decay", 0),
        ("regularize", "decay_epochs", 0),
        ("weight_shift", "shift", 0),
        ("weight_shift", "noise", -1),
        ("soft_label_finetune", "top", 0),
        ("soft_label_finetune", "smoothing", 1.1),
        ("soft_label_finetune", "spread", "odd"),
        ("lora", "rank", 0),
        ("lora", "alpha", 0),
        ("merge", "weight", 0),
        ("merge_sibling", "weight", 1.5),
        ("knockoff", "answers", "logits"),
        ("knockoff", "views", 0),
        ("knockoff", "queries", 0),
        ("knockoff", "images", []),
        ("knockoff", "student", "vit"),
        ("data_free_extract", "queries", 10),
        ("data_free_extract", "gradients", "none"),
        ("data_free_extract", "directions", 0),
        ("data_free_extract", "student_steps", 0),
        ("data_free_extract", "generator_rate", 0),
    ],
)
def test_a_bad_field_is_named_with_its_value(name, field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r} is not usable; ")):
        make_attack(name, **{field: value})


def test_full_battery_holds_every_attack(resnet, data):
    battery = full_battery(learning_rate=0.1, base=resnet, other_images=data, queries=5000, batch_size=32)
    assert {attack.name for attack in battery.values()} == {*ATTACKS, "stack"}
    standard = standard_battery(learning_rate=0.1, batch_size=32)
    assert standard.keys() < battery.keys() and all(battery[label] == standard[label] for label in standard)
    without = full_battery(learning_rate=0.1)
    assert battery.keys() - without.keys() == {
        *("merge_base_30", "merge_base_50", "merge_base_70"),
        *("knockoff_other_probabilities", "knockoff_other_labels"),
    }
    for attack in battery.values():
        assert json.loads(json.dumps(attack.options()))["name"] == attack.name
        assert attack.budget(data).keys() == {"images", "steps", "examples", "queries"}


def test_budgets_of_the_full_battery_follow_its_arguments(data):
    small, large = (
        full_battery(
            learning_rate=0.1, epochs=e, distill_epochs=e, search_steps=10 * e, queries=2000 * e, batch_size=16
        )
        for e in (1, 3)
    )
    for label, attack in small.items():
        one, three = attack.budget(data)["steps"], large[label].budget(data)["steps"]
        assert (one == three == 0) or three == pytest.approx(3 * one, rel=0.05), label


@pytest.mark.parametrize("count", [64, 33, 10])
@pytest.mark.parametrize("epochs", [2, 0.5])
def test_a_training_budget_is_what_the_trainer_does(count, epochs, resnet, data):
    attack, seen = FineTune(epochs=epochs, batch_size=16), []

    class Counting(AttackTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(len(inputs["pixel_values"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    attack.train(resnet, data[:count], trainer_class=Counting)
    budget = attack.budget(data[:count])
    assert budget["steps"] == len(seen)
    assert budget["images"] == count and abs(budget["examples"] - sum(seen)) < 16


@pytest.mark.parametrize("name", ["adversarial_neuron_prune", "trigger_unlearn", "attention_distill", "regularize"])
def test_no_optimizer_steps_beyond_the_budget(name, resnet, data, monkeypatch):
    steps = []
    for kind in (torch.optim.SGD, torch.optim.Adam):
        step = kind.step
        monkeypatch.setattr(kind, "step", lambda self, *a, _step=step, **k: steps.append(1) or _step(self, *a, **k))
    attack = make_attack(name, **OPTIONS[name])
    attack(resnet, data)
    assert len(steps) == attack.budget(data)["steps"]


def test_attacks_without_training_cost_nothing(data):
    for name in ("weight_noise", "cast_dtype", "merge", "onnx_round_trip", "int4_quantize"):
        assert set(ATTACKS[name]().budget().values()) == {0}
    with pytest.raises(ValueError, match="budget of 'finetune' depends on the data"):
        FineTune().budget()


def test_standard_battery():
    battery = standard_battery(learning_rate=0.1, epochs=1, distill_epochs=2, batch_size=64, seed=3)
    rates = [battery[f"finetune_{label}"].learning_rate for label in ("lr_0.01x", "lr_0.1x", "lr_1x", "refit_3x")]
    assert rates == pytest.approx([0.001, 0.01, 0.1, 0.3])
    assert battery["finetune_refit_3x"].schedule == "refit"
    assert all(attack.seed == 3 for label, attack in battery.items() if attack.name == "finetune")
