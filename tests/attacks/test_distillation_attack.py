"""Distilled students learn the answers of the teacher and share nothing with its weights."""

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTForImageClassification

from hf_watermark.attacks import Distill, FineTune
from hf_watermark.attacks.base import weight_layers
from hf_watermark.attacks.distillation import distillation_loss, fresh_copy


QUICK = {"batch_size": 16, "epochs": 4}


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(pixel_values=images).logits.argmax(-1) == labels).float().mean().item()


def cosine(one, other):
    a, b = [
        torch.cat([layer.weight.detach().flatten() for layer in weight_layers(model).values()])
        for model in (one, other)
    ]
    return torch.cosine_similarity(a, b, dim=0).item()


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("student", ["same", "other"])
def test_students_learn_the_answers_but_not_the_weights(mode, student, resnet, data, images, labels):
    teacher = FineTune(learning_rate=0.05, epochs=10, batch_size=16)(resnet, data)
    unlabelled = [{"pixel_values": example["pixel_values"], "labels": 0} for example in data]
    distilled = Distill(mode=mode, student=student, learning_rate=5e-3, epochs=8, batch_size=16)(teacher, unlabelled)
    answers = teacher(pixel_values=images).logits.argmax(-1)
    assert accuracy(distilled, images, answers) > 0.8
    if student == "same":
        assert type(distilled) is type(teacher)
        assert abs(cosine(teacher, distilled)) < 0.15 < cosine(teacher, FineTune(**QUICK)(teacher, data))
    else:
        assert isinstance(distilled, ViTForImageClassification)


def test_the_other_student_of_a_vit_is_a_resnet(vit, data, images):
    distilled = Distill(student="other", **QUICK)(vit, data)
    assert isinstance(distilled, ResNetForImageClassification)
    assert distilled(pixel_values=images).logits.shape == (64, 4)


def test_a_fresh_timm_student_keeps_the_initialisation_of_timm(timm_resnet):
    weight = fresh_copy(timm_resnet).timm_model.layer4[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.2)  # He, fan out; the wrapper gives 0.02


def test_a_student_does_not_start_where_its_teacher_started(data):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    torch.manual_seed(0)
    teacher = ResNetForImageClassification(config)
    student = Distill(seed=0, learning_rate=1e-9, epochs=1)(teacher, data)  # in effect, its initial weights
    assert abs(cosine(teacher, student)) < 0.1


def test_distillation_loss_by_hand():
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p, q = torch.tensor([0.5 - 0.5 * 0.46211716, 0.5 + 0.5 * 0.46211716]).unbind()  # softmax of (0, 1)
    by_hand = 4 * (p * (p / q).log() + q * (q / p).log())
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert distillation_loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(student, teacher, None).item() == pytest.approx(2.126928, rel=1e-5)
