"""What every attack in `ATTACKS` promises, whatever it does."""

import dataclasses

import pytest
import torch

from hf_watermark.attacks import ATTACKS, WeightNoise, make_attack, standard_battery


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


@pytest.mark.parametrize("victim", ["resnet", "timm_resnet"])
@pytest.mark.parametrize("name", ATTACKS)
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
def test_seed_decides_everything(name, resnet, data, images):
    attack = make_attack(name, **OPTIONS.get(name, {}))
    first = everything(attack(resnet, data), images)
    torch.rand(7)  # the global generator plays no part
    assert same(everything(attack(resnet, data), images), first)
    assert not same(everything(dataclasses.replace(attack, seed=1)(resnet, data), images), first)


@pytest.mark.parametrize("name", ATTACKS)
def test_names_and_needs(name, resnet):
    attack = ATTACKS[name]
    assert attack.name == name
    assert "\n" not in attack.help and attack.help.endswith(".")
    if attack.needs_data:
        with pytest.raises(ValueError, match=f"{name}.*needs data"):
            attack()(resnet)
    with pytest.raises(ValueError, match="empty"):
        attack()(resnet, [])


def test_make_attack_helps():
    with pytest.raises(ValueError, match="no attack 'prune'; choose one of: weight_noise, magnitude_prune"):
        make_attack("prune")
    with pytest.raises(ValueError, match="no option 'bit'; its options are: bits"):
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
    ],
)
def test_a_bad_field_is_named_with_its_value(name, field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r} is not usable; "):
        make_attack(name, **{field: value})


def test_standard_battery_holds_every_attack():
    battery = standard_battery(learning_rate=0.1, epochs=1, distill_epochs=2, batch_size=64, seed=3)
    assert {attack.name for attack in battery.values()} == set(ATTACKS)
    rates = [battery[f"finetune_{label}"].learning_rate for label in ("lr_0.01x", "lr_0.1x", "lr_1x", "refit_3x")]
    assert rates == pytest.approx([0.001, 0.01, 0.1, 0.3])
    assert battery["finetune_refit_3x"].schedule == "refit"
    assert all(attack.seed == 3 for label, attack in battery.items() if attack.name == "finetune")
