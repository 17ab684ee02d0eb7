"""Students of bought answers agree with the model; budgets are kept."""

import pytest
import torch
from transformers import ViTForImageClassification

from hf_watermark.attacks import DataFreeExtract, Knockoff
from hf_watermark.attacks.generator import ImageGenerator, centred, estimated_slope


BUY = {"learning_rate": 5e-3, "batch_size": 16, "epochs": 8}


def agreement(one, other, images):
    with torch.no_grad():
        answers = [model(pixel_values=images).logits.argmax(-1) for model in (one, other)]
    return (answers[0] == answers[1]).float().mean().item()


class Counting(torch.nn.Module):
    """Counts the images that the model is asked about."""

    def __init__(self, model):
        super().__init__()
        self.asked, self.device, self.dtype = 0, model.device, model.dtype
        self.answer = model

    def forward(self, pixel_values):
        self.asked += len(pixel_values)
        return self.answer(pixel_values=pixel_values)


@pytest.mark.parametrize("answers", ["probabilities", "labels"])
def test_a_knockoff_agrees_with_the_model(answers, rule):
    unlabelled = [{**example, "labels": 0} for example in rule.data]
    student = Knockoff(**BUY, answers=answers)(rule.model, unlabelled)
    images = torch.stack([example["pixel_values"] for example in rule.data])
    assert agreement(student, rule.model, images) > 0.9


def test_a_knockoff_of_another_architecture_from_other_images(rule, data):
    other = [
        {"pixel_values": 0.5 * (one["pixel_values"] + two["pixel_values"]), "labels": 0}
        for one, two in zip(rule.data, data, strict=True)
    ]
    attack = Knockoff(**BUY, student="other", images=other)
    student = attack(rule.model, rule.data)
    images = torch.stack([example["pixel_values"] for example in other])
    assert isinstance(student, ViTForImageClassification)
    assert agreement(student, rule.model, images) > 0.6  # of four classes
    assert attack.options()["images"] == "64 images"


@pytest.mark.parametrize(
    ("options", "asked"), [({}, 64), ({"queries": 20}, 20), ({"views": 3}, 192), ({"views": 3, "queries": 20}, 18)]
)
def test_a_knockoff_buys_what_its_budget_says(options, asked, resnet, data):
    attack, model = Knockoff(**BUY, **options), Counting(resnet)
    images, answers = attack.buy(model, data)
    assert model.asked == asked == attack.budget(data)["queries"]
    assert len(images) == len(answers) == asked // attack.views
    assert torch.allclose(answers.sum(1), torch.ones(len(answers)))


def test_bought_labels_are_one_hot(resnet, data):
    _, answers = Knockoff(**BUY, answers="labels").buy(resnet, data)
    assert set(answers.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("gradients", ["estimated", "exact"])
def test_data_free_students_agree_on_images_they_never_saw(gradients, rule):
    attack = DataFreeExtract(learning_rate=1e-2, queries=6_000, batch_size=32, gradients=gradients)
    student = attack(rule.model, rule.data)
    images = torch.stack([example["pixel_values"] for example in rule.data])
    assert agreement(student, rule.model, images) > 0.9


@pytest.mark.parametrize("options", [{}, {"directions": 3}, {"gradients": "exact"}])
def test_data_free_extraction_keeps_its_budget(options, resnet, data):
    attack = DataFreeExtract(queries=500, batch_size=10, student_steps=2, **options)
    asked = []
    hook = resnet.register_forward_pre_hook(lambda m, a, k: asked.append(len(k["pixel_values"])), with_kwargs=True)
    attack.apply(resnet, data)
    hook.remove()
    assert sum(asked) == attack.budget(data)["queries"] <= 500
    assert attack.budget(data)["images"] == 0


def test_the_estimated_slope_follows_the_true_one():
    direction = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    slope = estimated_slope(
        lambda some: (some * direction).sum((1, 2, 3)), images, 2000, torch.Generator().manual_seed(2)
    )
    assert torch.cosine_similarity(slope.flatten(), direction.flatten(), dim=0) > 0.9
    assert slope.norm().item() == pytest.approx(direction.norm().item(), rel=0.15)


def test_centred_logits_are_what_probabilities_give_away():
    logits = torch.tensor([[1.0, 2.0, 6.0]])
    assert torch.allclose(centred(logits), centred(logits.softmax(1).log()), atol=1e-5)


def test_generated_images_fill_the_pixel_range():
    low, high = torch.full((1, 1, 1, 1), -2.0), torch.full((1, 1, 1, 1), 3.0)
    images = ImageGenerator(low, high, 15, 17)(torch.randn(64, 64))
    assert images.shape == (64, 1, 15, 17)
    assert -2 <= images.min() < -1 and 2 < images.max() <= 3
