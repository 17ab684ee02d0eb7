"""The paired detector: it tells a marked model's answers from clean, smoothed and otherwise marked ones."""

import pytest
import torch
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import Trainer

from hf_watermark import InvalidInput, Owner
from hf_watermark.methods.soft_label import USPConfig, USPDetector, USPTrainer, USPVerifier, train_detector


VARIED = patterned_images(variety=0.3)
CONFIG = USPConfig(features=16, pool_per_class=10)


def answers_of(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images).logits.softmax(dim=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models by name: two marked under different keys, one clean, one label-smoothed."""
    owner, made = Owner.create(), {}
    for name, changes in {"marked": {}, "other key": {"seed": 1}}.items():
        args = training_arguments(tmp_path_factory.mktemp("m"), max_steps=120, **changes)
        trainer = USPTrainer(model=tiny_resnet(), args=args, train_dataset=VARIED, watermark=CONFIG, owner=owner)
        trainer.train()
        made[name] = trainer.model
        if name == "marked":
            made["template"] = USPVerifier(trainer.key.claims()[0]).template()
    for name, changes in {"clean": {}, "smoothed": {"label_smoothing_factor": 0.1}}.items():
        args = training_arguments(tmp_path_factory.mktemp("m"), max_steps=60, **changes)
        trainer = Trainer(model=tiny_resnet(), args=args, train_dataset=VARIED)
        trainer.train()
        made[name] = trainer.model
    return made


@pytest.fixture(scope="module")
def detector(models) -> USPDetector:
    """Trained on marked answers and decoys alone: it has seen no clean model."""
    return train_detector(models["template"], SEEN, [answers_of(models["marked"], SEEN)])


SEEN, FRESH = (
    torch.stack([item["pixel_values"] for item in patterned_images(seed=seed, variety=0.3)]) for seed in (1, 5)
)


def test_it_detects_the_marked_model_on_fresh_images(detector, models):
    answers = answers_of(models["marked"], FRESH)
    assert detector.detects(answers, FRESH).float().mean() >= 0.8
    twenty = detector.detects(answers, FRESH, together=20)
    assert twenty.shape == (20,) and twenty.all()
    assert detector.detects(answers[:19], FRESH[:19], together=10).shape == (1,)


@pytest.mark.parametrize("name", ["clean", "smoothed", "other key"])
def test_it_stays_silent_on_others(detector, models, name):
    answers = answers_of(models[name], FRESH)
    assert detector.detects(answers, FRESH).float().mean() <= 0.4
    assert not detector.detects(answers, FRESH, together=20).any()


def test_clean_models_help(models):
    detector = train_detector(
        models["template"],
        SEEN,
        [answers_of(models["marked"], SEEN)],
        clean=[answers_of(models["clean"], SEEN)],
    )
    assert detector.detects(answers_of(models["clean"], FRESH), FRESH).float().mean() <= 0.05
    assert detector.detects(answers_of(models["marked"], FRESH), FRESH).float().mean() >= 0.8


def test_how_sure_an_answer_is_plays_no_part(detector, models):
    answers = answers_of(models["marked"], FRESH)
    softer = answers * 0.5
    softer.scatter_add_(1, answers.argmax(dim=1, keepdim=True), torch.full((len(answers), 1), 0.5))
    torch.testing.assert_close(detector(softer, FRESH).logits, detector(answers, FRESH).logits, rtol=1e-3, atol=1e-3)


def test_save_and_load_and_seed(detector, models, tmp_path):
    detector.save_pretrained(tmp_path)
    answers = answers_of(models["marked"], FRESH)
    loaded = USPDetector.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(answers, FRESH).logits, detector(answers, FRESH).logits)
    template = models["template"]
    twin = [train_detector(template, FRESH, [answers], steps=3, seed=4)(answers, FRESH).logits for _ in range(2)]
    assert torch.equal(*twin)


def test_bad_input_is_named(detector):
    with pytest.raises(InvalidInput, match="the answers have 7 classes, the detector knows 10"):
        detector(torch.rand(3, 7), FRESH[:3])
    with pytest.raises(ValueError, match="`marked` or an entry of `clean` is empty or not as long"):
        train_detector(detector, FRESH, [])
    assert not detector.detects(torch.full((2, 10), float("nan")), FRESH[:2]).all()
