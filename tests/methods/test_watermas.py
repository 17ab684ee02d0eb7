"""WaterMAS: places, symbols and payload by hand; frozen carriers; the sharpened step against plain autograd; the null."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import patterned_images, tiny_resnet, training_arguments
from torch import nn
from transformers import Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from hf_watermark import (
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Owner,
    Suspect,
    WatermarkKey,
    WaterMASConfig,
    WaterMASTrainer,
    WaterMASVerifier,
    stack_trainers,
    verify,
)
from hf_watermark.attacks import MagnitudePrune
from hf_watermark.backbones import Carrier, read_carriers, slot_rows
from hf_watermark.keys import SubKey
from hf_watermark.methods.watermas import WaterMASEmbedding
from hf_watermark.methods.watermas.substitution import (
    code_length,
    decode_payload,
    draw_magnitudes,
    encode_payload,
    evidence_symbols,
    fitting_subkeys,
    payload_capacity,
    payload_mask,
    place_symbols,
    symbol_count,
    symbols,
)
from hf_watermark.statistics import log2_binomial_tail


CARRIERS = [Carrier("resnet.0", 16, 72, 9), Carrier("resnet.1", 32, 144, 9)]
AT_ONCE = WaterMASConfig(bits=64, subkeys=1, switch_in=0.0, every=1)


def subkey_number(number: int, slot: int = 0) -> SubKey:
    return SubKey(slot, slot, number.to_bytes(32, "big"))


def make(tmp_path, config=AT_ONCE, model=None, **changes) -> WaterMASTrainer:
    return WaterMASTrainer(
        model=model or tiny_resnet(),
        args=training_arguments(tmp_path, **{"max_steps": 3, "per_device_train_batch_size": 8} | changes),
        train_dataset=patterned_images(48),
        watermark=config,
        owner=Owner.create(),
    )


def embedding(trainer: WaterMASTrainer) -> WaterMASEmbedding:
    """Told where the training is."""
    trainer.marks.progress(trainer._moment())
    return trainer.embedding(WaterMASEmbedding)


def carriers_of(trainer: WaterMASTrainer) -> list[torch.Tensor]:
    return [item.weights.read().clone() for item in embedding(trainer).substitutions]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


# --- Places and symbols -----------------------------------------------------------------------------------------------


def test_subkeys_own_disjoint_weights_of_every_carrier():
    seen = set()
    for slot in range(3):
        places = place_symbols(subkey_number(slot, slot), CARRIERS, 400, 3)
        for carrier, row in zip(places.carrier.tolist(), places.row.tolist(), strict=True):
            assert row in slot_rows(carrier, CARRIERS[carrier].rows, slot, 3)
        seen |= set(zip(places.carrier.tolist(), places.row.tolist(), places.column.tolist(), strict=True))
    assert len(seen) == 1200 and {carrier for carrier, _, _ in seen} == {0, 1}


def test_positions_are_those_of_the_rows_laid_end_to_end():
    places = place_symbols(subkey_number(1, 1), CARRIERS, 200, 2)
    line = [(number, row, column) for number, carrier in enumerate(CARRIERS)
            for row in [range(8, 16), range(16)][number] for column in range(carrier.eligible)]  # fmt: skip
    named = list(zip(places.carrier.tolist(), places.row.tolist(), places.column.tolist(), strict=True))
    assert named == [line[position] for position in places.positions.tolist()]


def test_evidence_bits_come_from_the_key_and_the_payload_is_masked():
    config = WaterMASConfig(bits=100, payload="ab", repetition=3)
    key = subkey_number(5)
    said, stream = symbols(key, config), key.stream("bits").bits(symbol_count(config))
    assert torch.equal(said[:100], evidence_symbols(key, config)) and np.array_equal(said[:100] > 0, stream[:100] == 1)
    word = [int(bit) for byte in encode_payload(b"ab") for bit in f"{byte:08b}" for _ in range(3)]
    assert np.array_equal(said[100:] > 0, 1 - (np.array(word) ^ stream[100:]))
    assert torch.equal(said[100:] * payload_mask(key, config) > 0, torch.tensor(word) == 1)
    other = symbols(subkey_number(6), config)
    assert abs(float((said * other).mean())) < 0.4  # two keys with one payload look unrelated


@pytest.mark.parametrize("length", [1, 7, 20, 127, 128, 300])
def test_a_fourth_of_the_bytes_may_be_wrong(length):
    payload = bytes((7 * n) % 256 for n in range(length))
    word = bytearray(encode_payload(payload))
    assert len(word) == code_length(length)
    for place in range(0, len(word) - len(word) % 4, 5):
        word[place] ^= 0x5A
    assert decode_payload(bytes(word), length) == payload
    assert decode_payload(bytes(byte ^ 0xFF for byte in word), length) is None


def test_capacity_is_the_longest_payload_that_is_accepted(tmp_path):
    trainer = make(tmp_path, WaterMASConfig(bits=64, subkeys=1, switch_in=0.0))
    most = embedding(trainer).payload_capacity
    assert most == payload_capacity(AT_ONCE, read_carriers(trainer.key.assignments[0].layout), 1) > 2
    make(tmp_path, WaterMASConfig(bits=64, subkeys=1, payload=bytes(most)))
    with pytest.raises(InvalidInput, match=f"a payload of {most} bytes fits beside these bits"):
        make(tmp_path, WaterMASConfig(bits=64, subkeys=1, payload=bytes(most + 1)))


def test_default_number_of_subkeys():
    resnet18 = [Carrier(f"resnet.{i}", 64 << i // 2, (64 << i // 2) * 9, 9) for i in range(8)]
    assert fitting_subkeys(resnet18, WaterMASConfig()) == 8
    assert fitting_subkeys([Carrier("resnet.0", 128, 128 * 9, 9)], WaterMASConfig()) == 2
    assert fitting_subkeys([Carrier("resnet.0", 16, 144, 9)], WaterMASConfig()) == 1


def test_magnitudes_have_the_layers_own_distribution():
    weights = [torch.randn(16, 72) * 0.1, torch.randn(32, 144) * 3]
    key = subkey_number(1)
    places = place_symbols(key, CARRIERS, 300, 1)
    drawn, donors = draw_magnitudes(key, places, weights, 0.0)
    for number, weight in enumerate(weights):
        mine = places.carrier == number
        assert torch.equal(drawn[mine], weight.abs().flatten()[donors[mine]])
    for number, weight in enumerate(weights):
        own, ranked = drawn[places.carrier == number], weight.abs().flatten().sort().values
        assert torch.isin(own, ranked).all() and own.max() <= ranked[int(0.99 * len(ranked))]
        ranks = torch.searchsorted(ranked, own) / len(ranked)
        assert abs(float(ranks.mean()) - 0.495) < 4 * 0.29 / math.sqrt(len(own))
    assert draw_magnitudes(key, places, weights, 0.5)[0].min() >= min(w.abs().median() for w in weights)


def test_replacing_leaves_the_histogram_of_a_layer_as_it_was(tmp_path):
    """Carriers exchange magnitudes with the weights that they take them from, so that no statistic of the layer moves."""
    model = tiny_resnet(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = WaterMASTrainer(
        model=model,
        args=training_arguments(tmp_path),
        train_dataset=patterned_images(40),
        watermark=WaterMASConfig(bits=256, subkeys=2, switch_in=0.0),
        owner=Owner.create(),
    )
    trainer.state.max_steps = 1
    embedding(trainer).substitute_when_due()
    changed, shifts = 0, []
    for name, weight in model.named_parameters():
        moved = int((before[name] != weight).sum())
        if moved:
            same = torch.isin(weight.abs().flatten(), before[name].abs().flatten())
            assert same.all()
            old, new = (tensor.detach().abs().flatten().sort().values for tensor in (before[name], weight))
            changed += moved
            shifts.append(float((new - old).mean() / old.mean()))
    # Twice as many weights as carriers move, but for the few that would give twice.
    assert 256 < changed <= 4 * 256
    # Carriers alone, larger than the median as they are, would shift the mean magnitude by several thousandths.
    assert len(shifts) >= 2 and max(map(abs, shifts)) < 5e-4


# --- Config -----------------------------------------------------------------------------------------------------------


def test_payload_is_text_or_bytes_and_survives_json():
    assert WaterMASConfig(payload="é").payload == "é".encode()
    config = WaterMASConfig(payload=b"\x00\xff")
    assert config.to_dict()["payload"] == {"hex": "00ff"} and WaterMASConfig.from_dict(config.to_dict()) == config
    for broken in ({"hex": "0"}, {"hex": 3}, {"text": "a"}, 7, b"", "x" * 5000):
        with pytest.raises(InvalidInput, match="payload"):
            WaterMASConfig.from_dict({"method": "watermas", "format_version": 1, "payload": broken})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "`bits` is 0"),
        ({"repetition": 0}, "`repetition` is 0"),
        ({"switch_in": 1.0}, "`switch_in` is 1.0"),
        ({"lowest": 0.99}, "`lowest` is 0.99"),
        ({"strength": -1.0}, "`strength` is -1.0"),
        ({"radius": 0.0}, "`radius` is 0.0"),
        ({"every": 0}, "`every` is 0"),
        ({"direction": "down"}, "`direction` is 'down'"),
        ({"preset": "paper"}, "`every` is 4: preset 'paper' ascends in each step"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        WaterMASConfig(**changes)


# --- Frozen carriers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "precision", "accumulation"),
    [("adamw_torch", "fp32", 1), ("adamw_torch_fused", "bf16", 2), ("sgd", "fp32", 2), ("adafactor", "bf16", 1)],
)
def test_carriers_are_bit_identical_after_every_step(tmp_path, optimizer, precision, accumulation):
    trainer = make(
        tmp_path,
        optim=optimizer,
        optim_args="momentum=0.9" if optimizer == "sgd" else None,
        weight_decay=0.1,
        bf16=precision == "bf16",
        gradient_accumulation_steps=accumulation,
    )
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(carriers_of(trainer))

    trainer.add_callback(Watch())
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert len(seen) == 3 and all(same(seen[0], later) for later in seen)
    assert trainer.evidence.matches == trainer.evidence.trials == 64
    # Of the other weights of the same layers nearly all moved.
    for item in embedding(trainer).substitutions:
        name = next(n for n, w in trainer.model.named_parameters() if w is item.weights.parameter)
        moved = trainer.model.get_parameter(name) != before[name]
        assert moved.float().mean() > 0.9


def test_every_bit_survives_bfloat16_and_float16(tmp_path):
    trainer = make(tmp_path, WaterMASConfig(bits=512, subkeys=2, switch_in=0.0))
    trainer.train()
    for dtype in (torch.bfloat16, torch.float16):
        evidence = trainer.verify(copy.deepcopy(trainer.model).to(dtype))
        assert len(evidence.parts) == 2 and all(part.matches == part.trials == 512 for part in evidence.parts)


def test_an_average_of_weights_holds_the_carriers(tmp_path):
    trainer = make(tmp_path, max_steps=6)
    averages = []

    class Average(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if not averages:
                decayed = copy.deepcopy(model)
                averages.extend([torch.optim.swa_utils.AveragedModel(model), decayed])
            averages[0].update_parameters(model)
            for mean, weight in zip(averages[1].parameters(), model.parameters(), strict=True):
                mean.data = 0.9 * mean.data + 0.1 * weight.data

    trainer.add_callback(Average())
    trainer.train()
    exact, rounded = averages[0].module, averages[1]
    embedding(trainer).impose(rounded)
    for item in embedding(trainer).substitutions:
        for model in (exact, rounded):
            assert torch.equal(item.inside(model, trainer.model).weights.read(), item.values)
    assert trainer.verify(rounded).matches == 64
    other = rounded.get_parameter("resnet.embedder.embedder.convolution.weight")
    assert not torch.equal(other, trainer.model.get_parameter("resnet.embedder.embedder.convolution.weight"))


def test_carriers_are_replaced_once_the_share_of_training_is_over(tmp_path):
    trainer = make(tmp_path, WaterMASConfig(bits=64, subkeys=1, switch_in=0.5), max_steps=6)
    rates = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            rates.append(trainer.verify().rate)

    trainer.add_callback(Watch())
    trainer.train()
    assert max(rates[:3]) < 0.8 and rates[3:] == [1.0] * 3


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    config = WaterMASConfig(bits=64, subkeys=1, switch_in=0.3, every=2)
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    whole = make(tmp_path, config, **options)
    whole.key.save(tmp_path.parent / "key", passphrase="a long enough passphrase")
    whole.train()
    for step in (1, 4):  # 1: as the carriers are replaced, 4: later
        resumed = WaterMASTrainer(
            model=tiny_resnet(),
            args=training_arguments(tmp_path / "again", max_steps=6, per_device_train_batch_size=8),
            train_dataset=patterned_images(48),
            watermark=config,
            key=WatermarkKey.load(tmp_path.parent / "key", "a long enough passphrase"),
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, whole.model.state_dict()[name]), (step, name)


def test_a_checkpoint_without_the_carriers_is_refused(tmp_path):
    trainer = make(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    for item in embedding(trainer).substitutions:
        item.weights.write(-item.values)
    trainer.model.save_pretrained(tmp_path / "checkpoint-1")
    embedding(trainer).substituted = False
    with pytest.raises(InvalidInput, match="does not hold the marked weights of this key"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_batchnorm_weight_behind_a_carrier_keeps_its_sign(tmp_path):
    model = tiny_resnet()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.copy_(torch.linspace(-1e-3, 1e-3, len(norm.weight)))
    norms[-1].weight.data[::2] = 0  # as timm begins a residual branch
    trainer = make(tmp_path, model=model, learning_rate=0.1, max_steps=6)
    trainer.train()
    assert trainer.evidence.matches == 64


def test_a_layer_of_zeros_is_refused_before_training(tmp_path):
    model = tiny_resnet()
    for weight in model.parameters():
        if weight.ndim == 4:
            nn.init.zeros_(weight)
    with pytest.raises(InvalidInput, match="is zero in the quantile `lowest` of 0.5.*raise `switch_in`"):
        make(tmp_path, model=model)


@pytest.mark.parametrize("flag", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_what_hides_the_weights_is_refused_at_construction(tmp_path, monkeypatch, flag):
    original = Trainer.create_accelerator_and_postprocess

    def pretend(self: Trainer) -> None:
        original(self)
        setattr(self, flag, True)  # FSDP1, because the accelerator says nothing of version 2

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(ValueError, match="use DDP or FSDP2"):
        make(tmp_path)


# --- The sharpened step -----------------------------------------------------------------------------------------------


def batch_of(count: int = 8) -> dict[str, torch.Tensor]:
    data = patterned_images(count)
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in data]),
        "labels": torch.tensor([item["labels"] for item in data]),
    }


def ready(trainer: WaterMASTrainer) -> WaterMASTrainer:
    trainer.current_gradient_accumulation_steps = 1  # what `train` would set
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_step_is_the_gradient_of_the_sharpened_objective(tmp_path, strength):
    """(1 + lambda) g(w) - lambda g(w + e) in plain autograd, with e along the layer-scaled gradient on the carriers."""
    config = WaterMASConfig(bits=64, subkeys=1, switch_in=0.0, every=1, strength=strength, radius=0.3)
    trainer, batch = ready(make(tmp_path, config)), batch_of()
    loss = trainer.training_step(trainer.model, dict(batch))
    seen = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}

    plain = copy.deepcopy(trainer.model)
    plain.zero_grad()
    first = plain(**batch).loss
    first.backward()
    base = {name: weight.grad.clone() for name, weight in plain.named_parameters()}
    assert loss.item() == pytest.approx(first.item(), rel=1e-5)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    steps, places = [], []
    for item in embedding(trainer).substitutions:
        name = names[id(item.weights.parameter)]
        unit = item.values.square().mean().sqrt()
        steps.append((unit, unit * base[name].flatten()[item.weights.flat]))
        places.append((plain.get_parameter(name), item.weights.flat))
    norm = torch.cat([step for _, step in steps]).norm()
    count = sum(len(step) for _, step in steps)
    assert count == 64
    with torch.no_grad():
        for (unit, step), (weight, flat) in zip(steps, places, strict=True):
            weight.view(-1)[flat] += 0.3 * count**0.5 * unit * step / norm
    plain.zero_grad()
    second = plain(**batch).loss
    second.backward()
    assert second > first
    for name, weight in plain.named_parameters():
        wanted = (1 + strength) * base[name] - strength * weight.grad
        torch.testing.assert_close(seen[name], wanted, rtol=1e-3, atol=1e-5)
    [rise] = embedding(trainer)._rises
    assert rise.item() == pytest.approx((second - first).item(), rel=1e-4)


def test_without_strength_or_between_ascents_a_step_is_a_plain_step(tmp_path):
    for config in (
        WaterMASConfig(bits=64, subkeys=1, switch_in=0.0, strength=0.0, every=1),
        WaterMASConfig(bits=64, subkeys=1, switch_in=0.0, every=2),
    ):
        trainer, batch = ready(make(tmp_path, config)), batch_of()
        embedding(trainer).substitute_when_due()
        trainer.state.global_step = 1
        plain = copy.deepcopy(trainer.model)
        trainer.training_step(trainer.model, dict(batch))
        plain(**batch).loss.backward()
        for mine, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine.grad, theirs.grad)


def test_the_second_pass_leaves_no_other_trace(tmp_path):
    """Carriers, BatchNorm statistics and random state are those of a run without it; dropout is the same in both passes."""
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64, "num_channels": 1}
    vit = ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, num_labels=10, hidden_dropout_prob=0.2)
    for model in (tiny_resnet(), ViTForImageClassification(vit)):
        # So small a radius that the two passes cancel.
        config = WaterMASConfig(bits=64, subkeys=1, switch_in=0.0, every=1, strength=1.0, radius=1e-6)
        trainer, batch = ready(make(tmp_path, config, model=model)), batch_of()
        embedding(trainer).substitute_when_due()
        plain = copy.deepcopy(trainer.model)
        torch.manual_seed(3)
        trainer.training_step(trainer.model, dict(batch))
        state = torch.get_rng_state()
        torch.manual_seed(3)
        plain(**batch).loss.backward()
        assert torch.equal(state, torch.get_rng_state())
        assert same(carriers_of(trainer), [item.values for item in embedding(trainer).substitutions])
        assert same(list(trainer.model.buffers()), list(plain.buffers()))
        for own, other in zip(trainer.model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-2, atol=1e-4)


def test_training_makes_the_loss_sharp_around_the_carriers(tmp_path):
    """How much a step along the gradient on the carriers costs, after training with and without sharpening."""

    def rise(strength: float) -> float:
        config = WaterMASConfig(bits=256, subkeys=1, switch_in=0.0, strength=strength, every=1)
        trainer = make(tmp_path, config, max_steps=40, per_device_train_batch_size=40)
        trainer.train()
        model, batch = trainer.model.train(), batch_of(48)
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        with torch.no_grad(), embedding(trainer)._ascended():
            return (model(**batch).loss - loss).item()

    assert rise(2.0) > 10 * rise(0.0) > 0


def test_a_random_direction_is_the_same_when_asked_again(tmp_path):
    config = WaterMASConfig(bits=64, subkeys=1, switch_in=0.0, direction="random")
    trainer = ready(make(tmp_path, config))
    embedding(trainer).substitute_when_due()
    first, second = embedding(trainer)._ascent(), embedding(trainer)._ascent()
    assert same(first, second)
    relative = [step / item.unit() for step, item in zip(first, embedding(trainer).substitutions, strict=True)]
    assert torch.cat(relative).square().mean().sqrt().item() == pytest.approx(config.radius, rel=1e-5)
    trainer.state.global_step = 4
    assert not same(first, embedding(trainer)._ascent())


def test_both_marks_of_a_stack_are_found(tmp_path):
    stacked = stack_trainers(GreedyResidualsTrainer, WaterMASTrainer)
    trainer = stacked(
        model=tiny_resnet(),
        args=training_arguments(tmp_path, max_steps=100, learning_rate=1e-2),
        train_dataset=patterned_images(200),
        watermark=[
            GreedyResidualsConfig(bits=128, subkeys=1, group_size=16, strength=0.1),
            WaterMASConfig(bits=128, subkeys=1),
        ],
        owner=Owner.create(),
    )
    trainer.train()
    by_method = {part.method: part for part in trainer.evidence.parts}
    assert by_method["watermas"].matches == 128 and by_method["greedy_residuals"].log2_p <= -64


# --- Evidence ---------------------------------------------------------------------------------------------------------


def test_bit_errors_are_named_by_layer_and_the_payload_survives_them(tmp_path):
    config = WaterMASConfig(bits=128, subkeys=1, payload=b"hi", repetition=4, switch_in=0.0)
    trainer = make(tmp_path, config, max_steps=1, model=tiny_resnet(hidden_sizes=[32, 64]))
    trainer.train()
    [claim] = trainer.key.claims()
    [item, _] = embedding(trainer).substitutions
    item.weights.write(torch.where(torch.arange(len(item.values)) % 3 == 0, -item.values, item.values))
    suspect = Suspect.open(trainer.model)
    evidence = verify(suspect, trainer.key)
    [part] = evidence.parts
    errors = part.details["bit_errors"]
    assert errors["resnet.0"][0] > 0 == errors["resnet.1"][0]
    assert sum(bits for _, bits in errors.values()) == 128
    assert sum(wrong for wrong, _ in errors.values()) == 128 - part.matches
    assert WaterMASVerifier(claim).read_payload(suspect).payload == b"hi"


def test_pruned_carriers_say_nothing_and_the_others_suffice(tmp_path):
    config = WaterMASConfig(bits=512, subkeys=1, switch_in=0.0, payload=b"x")
    trainer = make(tmp_path, config, max_steps=1, model=tiny_resnet(hidden_sizes=[32, 64]))
    trainer.train()
    evidence = trainer.verify(MagnitudePrune(0.7)(trainer.model))
    [part] = evidence.parts
    assert part.details["erased"] == 512 - part.trials > 100
    assert part.matches == part.trials and evidence.log2_p == pytest.approx(max(-part.trials, -256))
    nothing = trainer.verify(MagnitudePrune(0.999)(trainer.model))
    assert not nothing.found and nothing.log2_p >= -nothing.trials


def test_false_positive_rate_is_nominal(owner):
    config = WaterMASConfig(bits=64, subkeys=1)
    layout = {"carriers": [Carrier(f"resnet.{n}", w, w * 9, 9).to_dict() for n, w in enumerate((16, 32))]}
    [claim] = WatermarkKey.create(owner, [("watermas", "1", config.to_dict(), layout, 1)]).claims()
    verifier = WaterMASVerifier(claim)
    suspect = Suspect.open(MagnitudePrune(0.3)(tiny_resnet()))  # some carriers are erased
    observation = verifier.observe(suspect, claim.subkeys[0])
    trials = 2000
    scores = [verifier.score(observation, subkey_number(number)) for number in range(trials)]
    assert 30 < np.mean([score.trials for score in scores]) < 60
    for level in (0.05, 0.01, 0.001):
        passed = sum(score.log2_p <= np.log2(level) for score in scores)
        assert log2_binomial_tail(passed, trials, level) > np.log2(1e-3), (level, passed)
    assert abs(np.mean([score.rate for score in scores]) - 0.5) < 4 * 0.5 / np.sqrt(64 * trials)
