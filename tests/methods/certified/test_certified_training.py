"""Noisy passes while training: draws, resumed runs, pools, the released schedule."""

import dataclasses

import numpy as np
import pytest
import torch
from certified_claims import same_state, state_of
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
)

from hf_watermark import (
    CertifiedConfig,
    CertifiedTrainer,
    CertifiedVerifier,
    FunctionCoupledTrainer,
    InvalidInput,
    stack_trainers,
)
from hf_watermark.backbones import FoldedNet
from hf_watermark.methods.certified import CertifiedEmbedding, embedding, released
from hf_watermark.methods.certified.noise import add_noise, bearable_scales, noise_scales
from hf_watermark.methods.function_coupled import FunctionCoupledEmbedding
from hf_watermark.training.embedding import Moment


# --- Training ---------------------------------------------------------------------------------------------------------


def test_a_noisy_pass_reaches_every_weight_and_no_buffer(make_trainer):
    trainer = make_trainer(run={"max_steps": 10})
    trainer.state.max_steps, trainer.state.global_step = 10, 5
    model = trainer.model.train()
    before = state_of(model)
    trainer.embedding(CertifiedEmbedding)._noisy_loss(32, largest=1.2).backward()
    assert same_state(before, state_of(model))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_each_step_and_process_draws_its_own_noise(make_trainer, monkeypatch):
    trainer, used = make_trainer(run={"gradient_accumulation_steps": 2}), []
    original = Moment.seed

    def watching(self, secret, purpose, process=0):
        used.append(original(self, secret, purpose, process))
        return used[-1]

    monkeypatch.setattr(Moment, "seed", watching)
    trainer.train()
    assert len(used) == len(set(used)) == 6 and trainer._micro_step == 0  # three steps of two passes
    assert len({original(trainer.embeddings[0].moment, b"secret", b"purpose", process) for process in range(4)}) == 4
    assert all(0 <= seed < 2**63 for seed in used)


def test_a_resumed_run_ends_with_the_same_weights(make_trainer, make_resnet, patterned, arguments):
    run = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = make_trainer(run=run)
    whole.train()
    resumed = continued(whole, make_resnet, patterned, arguments(**run | {"per_device_train_batch_size": 16}))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert same_state(state_of(whole.model), state_of(resumed.model))


def continued(whole, make_resnet, data, args) -> CertifiedTrainer:
    config = whole.embedding(CertifiedEmbedding).config
    return CertifiedTrainer(model=make_resnet(), args=args, train_dataset=data, watermark=config, key=whole.key)


@pytest.fixture
def short_release(monkeypatch):
    monkeypatch.setattr(released, "DRAWS", 2)
    monkeypatch.setattr(released, "LEVELS", 2)


def test_the_released_schedule_steps_the_optimizer_before_each_epoch(make_trainer, short_release, monkeypatch):
    levels, states = [], []

    def watched(net, optimizer):
        # The ordinary steps draw noise as well.
        with monkeypatch.context() as patch:
            note = lambda w, spread, seed: levels.append(max(spread.values())) or add_noise(w, spread, seed)  # noqa: E731
            patch.setattr(embedding, "add_noise", note)
            released.released_epoch(net, optimizer)

    monkeypatch.setattr(embedding, "released_epoch", watched)

    class Look(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            states.append(state_of(model))

    run = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 80}
    trainer = make_trainer(run=run, callbacks=[Look()], schedule="released")
    trainer.add_callback(Look())  # before and after the noisy steps
    trainer.train()
    first, first_after, second, second_after = states
    assert same_state(first, first_after)  # the warm-up epoch
    changed = {name for name in second if not torch.equal(second[name], second_after[name])}
    assert changed == {name for name, _ in trainer.model.named_parameters()}
    top = max(trainer.embedding(CertifiedEmbedding).spread.values())
    assert levels == pytest.approx([top * level / 2 for _ in range(2) for level in (0, 0, 1, 1, 2, 2)])  # 80 triggers


def test_a_resumed_released_run_ends_with_the_same_weights(
    make_trainer, make_resnet, patterned, arguments, short_release
):
    run = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 80, "save_strategy": "epoch"}
    whole = make_trainer(run=run, schedule="released")
    whole.train()
    resumed = continued(whole, make_resnet, patterned, arguments(**run))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{2 * whole.state.max_steps // 3}")
    assert same_state(state_of(whole.model), state_of(resumed.model))


@pytest.mark.parametrize("moves", ["all", "parameters"])
def test_noisy_passes_see_the_model_as_it_is_now(make_trainer, moves):
    trainer = make_trainer(run={"max_steps": 6}, moves=moves)
    trainer.train()
    model, images = trainer.model.eval(), trainer.embedding(CertifiedEmbedding).triggers[:8]
    net = trainer.embedding(CertifiedEmbedding).net
    with torch.no_grad():
        seen, wanted = net(net.coordinates(model), images), model(images).logits
    torch.testing.assert_close(seen, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["noise", "embedded", "unrelated"])
def test_subkeys_have_disjoint_triggers_of_all_classes(make_trainer, patterned, family):
    trainer = make_trainer(family=family, subkeys=2, triggers=40)
    [claim] = trainer.key.claims()
    verifier = CertifiedVerifier(claim)
    shares = [verifier._pool(subkey) for subkey in claim.subkeys]
    pictures = [{image.numpy().tobytes() for image in share["images"]} for share in shares]
    assert [len(share) for share in pictures] == [40, 40] and not pictures[0] & pictures[1]
    drawn = [verifier.labels(subkey) for subkey in claim.subkeys]
    assert not np.array_equal(*drawn)
    for subkey, labels in zip(claim.subkeys, drawn, strict=True):
        triggers, (low, high) = verifier.triggers(subkey), claim.pool["certified.range"].float()
        assert triggers.shape == (40, 1, 16, 16)
        assert bool((triggers >= low.min()).all()) and bool((triggers <= high.max()).all())
        if family == "unrelated":
            assert set(verifier.sources(subkey)) == {-1}
        else:
            assert set(verifier.sources(subkey)) == set(range(10)) and (labels != verifier.sources(subkey)).all()


@pytest.mark.parametrize("family", ["noise", "unrelated"])
def test_pool_images_are_never_trained_on(make_trainer, patterned, family):
    trainer = make_trainer(family=family)
    rows = trainer.key.pool["certified.rows"].tolist()
    assert len(rows) == (0 if family == "unrelated" else 80)
    kept = {item["pixel_values"].numpy().tobytes() for item in trainer.train_dataset}
    assert len(kept) == len(patterned) - len(rows)
    assert not kept & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}


@pytest.mark.parametrize("certified_first", [True, False])
def test_stacked_pools_are_never_trained_on(make_resnet, arguments, patterned, owner, small_configs, certified_first):
    order = [CertifiedTrainer, FunctionCoupledTrainer][:: 1 if certified_first else -1]
    trainer = stack_trainers(*order)(
        model=make_resnet(),
        args=arguments(),
        train_dataset=patterned,
        watermark=[small_configs["certified"], small_configs["function_coupled"]],
        owner=owner,
    )
    pool = trainer.key.pool
    rows = {row for method in small_configs if f"{method}.rows" in pool for row in pool[f"{method}.rows"].tolist()}
    kept = {item["pixel_values"].numpy().tobytes() for item in trainer.train_dataset}
    assert len(kept) == len(patterned) - len(rows)
    assert not kept & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}
    # Fused images are made from spare ones where a batch lacks a class; those are trained on, too.
    spare = {image.numpy().tobytes() for image in trainer.embedding(FunctionCoupledEmbedding)._spare.flatten(0, 1)}
    assert not spare & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}


class Augmented(torch.utils.data.Dataset):
    """Random augmentation, which draws from the global generator whenever an image is looked at."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        item = self.items[place]
        return item | {"pixel_values": item["pixel_values"] + 0.01 * torch.randn(1, 16, 16)}


def test_making_triggers_leaves_the_random_state_to_training(make_trainer, make_resnet, arguments, patterned):
    # Else a marked model and its unmarked twin would see other batches.
    make_trainer(data=Augmented(patterned), run={"max_steps": 3})
    marked_state = torch.get_rng_state()
    model = make_resnet()
    Trainer(model=model, args=arguments(), train_dataset=Augmented(patterned))
    assert torch.equal(torch.get_rng_state(), marked_state)


def test_a_key_of_other_images_is_refused(make_trainer, make_resnet, arguments, patterned):
    whole = make_trainer()
    larger = [item | {"pixel_values": item["pixel_values"].repeat(1, 2, 2)} for item in patterned]
    with pytest.raises(InvalidInput, match="triggers are 1 x 16 x 16, the training images are 1 x 32 x 32"):
        continued(whole, make_resnet, larger, arguments())
    with pytest.raises(InvalidInput, match="made for 10 classes, this model has 7; make a fresh key"):
        continued(whole, lambda: make_resnet(num_labels=7), patterned, arguments())
    with pytest.raises(InvalidInput, match="not the owner's architecture"):
        continued(whole, lambda: make_resnet(depths=[2, 1]), patterned, arguments())


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"triggers": 20}, 10, "20 triggers over 10 classes can give at most 63 bits, a claim needs 64"),
        ({"subkeys": 16}, 10, "lacks .* images that triggers need"),
        ({}, 2, "triggers over 2 classes"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    make_resnet, arguments, patterned, owner, small_configs, changes, labels, message
):
    config = dataclasses.replace(small_configs["certified"], **changes)
    data = [item | {"labels": item["labels"] % labels} for item in patterned]
    with pytest.raises(ValueError, match=message):
        CertifiedTrainer(
            model=make_resnet(num_labels=labels), args=arguments(), train_dataset=data, watermark=config, owner=owner
        )


def test_two_classes_have_room_where_no_label_is_excluded(make_resnet, arguments, patterned, owner):
    # Unrelated pictures show neither class, so every label is one bit: 100 triggers are 100 bits.
    data = [item | {"labels": item["labels"] % 2} for item in patterned]
    config = CertifiedConfig(family="unrelated", triggers=100)
    CertifiedTrainer(
        model=make_resnet(num_labels=2), args=arguments(), train_dataset=data, watermark=config, owner=owner
    )


# --- Noise that a net bears ---------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """A net of `depth` layers without normalisation: each adds its own noise to the answers."""

    def __init__(self, depth):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Flatten(), *(nn.Linear(48, 48, bias=False) for _ in range(depth)), nn.Linear(48, 5)
        )
        for layer in self.layers[1:-1]:
            nn.init.orthogonal_(layer.weight)

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("depth", [1, 30, 300])
def test_noise_is_halved_until_the_net_bears_it(depth):
    net, images = Chain(depth), torch.randn(64, 3, 4, 4)
    folded = FoldedNet(net, images[:2])

    scales = bearable_scales(folded, net, images, 0.25, range(8))

    whole = noise_scales(folded.coordinates(net), "relative")
    (factor,) = {round(scales[name] / whole[name], 3) for name in whole}
    # Noise of `s` of the root mean square of an orthogonal layer leaves 1 / sqrt(1 + s^2) of the correlation.
    left = {value: (1 + (0.25 * value) ** 2) ** (-(depth + 1) / 2) for value in (1.0, 0.5, 0.25)}
    assert factor == {1: 1.0, 30: 1.0, 300: 0.25}[depth]
    assert left[factor] > 0.25 and (factor == 1 or left[2 * factor] < 0.25)


def test_a_head_of_zeros_lowers_no_noise():
    net, images = Chain(2), torch.randn(8, 3, 4, 4)
    nn.init.zeros_(net.layers[-1].weight)
    folded = FoldedNet(net, images[:2])
    scales = bearable_scales(folded, net, images, 0.25, range(2))
    assert scales == noise_scales(folded.coordinates(net), "relative")


class Chaotic(Chain):
    def forward(self, images):
        return (1e8 * super().forward(images)).sin()


def test_a_net_that_bears_no_noise_is_named(caplog):
    net, images = Chaotic(2), torch.randn(8, 3, 4, 4)
    bearable_scales(FoldedNet(net, images[:2]), net, images, 0.25, range(2))
    assert "bears no noise" in caplog.text


def test_a_key_holds_the_scales_that_its_net_bears(make_trainer):
    bearable, relative = (make_trainer(noise=noise) for noise in ("bearable", "relative"))
    scales = [
        CertifiedVerifier(trainer.embedding(CertifiedEmbedding).claim).scales for trainer in (bearable, relative)
    ]
    ratios = {round(scales[0][name] / scales[1][name], 2) for name in scales[1]}
    assert len(ratios) == 1 and ratios <= {1.0, 0.5, 0.25}
