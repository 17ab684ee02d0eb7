"""Fine-tuning, head resets and transfer: each learns, and touches what it says."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
)

from hf_watermark.attacks import FineTune, MagnitudePrune, ReestimateBatchNorm, ResetHead, Transfer
from hf_watermark.attacks.base import classifier_head, weight_layers
from hf_watermark.attacks.training import AttackTrainer, collate, refit_factor


QUICK = {"batch_size": 16, "epochs": 4}


def loss(model, images, labels):
    with torch.no_grad():
        return model(pixel_values=images, labels=labels).loss.item()


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(pixel_values=images).logits.argmax(-1) == labels).float().mean().item()


def cosine(one, other):
    a, b = [
        torch.cat([layer.weight.detach().flatten() for layer in weight_layers(model).values()])
        for model in (one, other)
    ]
    return torch.cosine_similarity(a, b, dim=0).item()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "refit"])
@pytest.mark.parametrize("victim", ["resnet", "timm_resnet", "vit"])
def test_finetuning_lowers_the_loss_and_moves_every_layer(schedule, victim, request, data, images, labels):
    model = request.getfixturevalue(victim)
    attacked = FineTune(schedule=schedule, **QUICK)(model, data)
    assert loss(attacked, images, labels) < loss(model, images, labels)
    for before, after in zip(weight_layers(model).values(), weight_layers(attacked).values(), strict=True):
        assert not torch.equal(before.weight, after.weight)


def test_a_large_rate_moves_weights_further_than_a_small_one(resnet, data):
    small, large = [cosine(resnet, FineTune(learning_rate=rate, **QUICK)(resnet, data)) for rate in (1e-4, 0.3)]
    assert small > 0.999 and large < 0.9


def test_adamw_is_used_when_asked(resnet, data, images, labels):
    attacked = FineTune(learning_rate=1e-3, optimizer="adamw", **QUICK)(resnet, data)
    assert loss(attacked, images, labels) < loss(resnet, images, labels)
    moved = classifier_head(attacked).bias - classifier_head(resnet).bias
    assert 0 < moved.abs().max() <= 1.5e-3 * 16  # a step of Adam is about the rate, whatever the gradient


@pytest.mark.parametrize(
    "attack", [FineTune(**QUICK), MagnitudePrune(0.3, finetune_epochs=1, batch_size=4), ReestimateBatchNorm()]
)
def test_nets_that_segment_are_attacked_as_well(attack, images):
    sizes = {"depth_multiplier": 0.25, "image_size": 32, "output_stride": 16, "num_labels": 5}
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(**sizes)).eval()
    masks = torch.randint(5, (8, 32, 32), generator=torch.Generator().manual_seed(0)).numpy()
    pictures = torch.nn.functional.interpolate(images[:8], size=32)
    scenes = [{"pixel_values": picture, "labels": mask} for picture, mask in zip(pictures, masks, strict=True)]
    attacked = attack(model, scenes)
    changed = [not torch.equal(value, attacked.state_dict()[name]) for name, value in model.state_dict().items()]
    assert sum(changed) > len(changed) / 4


def test_refit_halves_the_rate_in_six_stages():
    factors = [refit_factor(step, 30) for step in range(30)]
    assert factors[0] == 1 and factors[4] == 1 and factors[5] == 0.5 and factors[29] == 0.5**5
    assert factors == sorted(factors, reverse=True)


def test_refit_reaches_the_optimizer(resnet, data):
    rates = []

    class Spy(AttackTrainer):
        def training_step(self, *args, **kwargs):
            rates.append(self.optimizer.param_groups[0]["lr"])
            return super().training_step(*args, **kwargs)

    attack = FineTune(learning_rate=0.08, schedule="refit", epochs=3, batch_size=16)
    attack.train(resnet, data, trainer_class=Spy)
    assert rates == pytest.approx([0.08 * refit_factor(step, 12) for step in range(12)])


def test_last_layer_scope_touches_nothing_else(resnet, data, images, labels):
    attacked = FineTune(scope="last", **QUICK)(resnet, data)
    changed = {
        name for name, tensor in resnet.state_dict().items() if not torch.equal(tensor, attacked.state_dict()[name])
    }
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    assert loss(attacked, images, labels) < loss(resnet, images, labels)


@pytest.mark.parametrize("attack", [ResetHead, FineTune])
def test_only_a_reset_forgets_the_head(attack, timm_resnet, data):
    attacked = attack(scope="last", learning_rate=1e-9, epochs=1)(timm_resnet, data)  # in effect, before training
    head, old = classifier_head(attacked).weight.flatten(), classifier_head(timm_resnet).weight.flatten()
    assert (torch.cosine_similarity(head, old, dim=0) < 0.5) == (attack is ResetHead)


@pytest.mark.parametrize("scope", ["last", "all"])
def test_a_reset_head_learns_again(scope, timm_resnet, data, images, labels):
    model = FineTune(learning_rate=0.05, batch_size=16, epochs=8)(timm_resnet, data)
    attacked = ResetHead(scope=scope, learning_rate=0.05, batch_size=16, epochs=8)(model, data)
    assert accuracy(attacked, images, labels) > 0.8
    body_moved = not torch.equal(attacked.timm_model.conv1[0].weight, model.timm_model.conv1[0].weight)
    assert body_moved == (scope == "all")


def test_reset_head_always_resets():
    with pytest.raises(TypeError):
        ResetHead(reset_head=False)


def test_transfer_learns_labels_derived_from_the_data(resnet, data, images, labels, tmp_path):
    attacked = Transfer(labels_modulo=2, learning_rate=0.05, batch_size=16, epochs=8)(resnet, data)
    assert attacked.config.num_labels == 2 and resnet.config.num_labels == 4
    assert accuracy(attacked, images, labels % 2) > 0.8
    attacked.save_pretrained(tmp_path)
    reloaded = ResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(reloaded(pixel_values=images).logits, attacked(pixel_values=images).logits)


def test_transfer_to_data_that_have_their_own_labels(timm_resnet, data, images):
    other = [{"pixel_values": example["pixel_values"], "labels": i % 7} for i, example in enumerate(data)]
    attacked = Transfer(num_labels=7, **QUICK)(timm_resnet, other)
    assert attacked(pixel_values=images).logits.shape == (64, 7)
    with pytest.raises(ValueError, match="labels_modulo=3 is not usable; leave it out"):
        Transfer(labels_modulo=3, num_labels=7)


def test_divergence_is_reported(resnet, data):
    with pytest.raises(FloatingPointError, match="diverged at learning_rate=1e\\+30"):
        FineTune(learning_rate=1e30, batch_size=16, epochs=2)(resnet, data)


def test_accumulation_does_not_scale_the_gradient(resnet, data, tmp_path):
    def norm_of_first_gradient(accumulation):
        options = {
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        arguments = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            lr_scheduler_type="constant",
            **options,
        )
        trainer = AttackTrainer(
            copy.deepcopy(resnet),
            arguments,
            collate,
            data,
            eval_mode=True,
            optimizer_cls_and_kwargs=(SGD, {"lr": 1.0}),
        )
        trainer.train()
        return (classifier_head(trainer.model).weight - classifier_head(resnet).weight).norm().item()

    assert norm_of_first_gradient(4) == pytest.approx(norm_of_first_gradient(1), rel=1e-4)


def test_a_last_batch_of_one_image_does_not_stop_batchnorm(data):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic", num_labels=4)
    small = [{"pixel_values": example["pixel_values"][:, :4, :4], "labels": example["labels"]} for example in data]
    attacked = FineTune(epochs=1, batch_size=16)(
        ResNetForImageClassification(config), small[:17]
    )  # feature maps of 1 x 1
    assert not any(isinstance(m, nn.BatchNorm2d) and m.running_var.isnan().any() for m in attacked.modules())
