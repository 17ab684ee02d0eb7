"""The two model wrappers go to a repository and come back from it with the same answers."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import coloured, patterned_images, tiny_resnet, training_arguments
from transformers import AutoModelForImageClassification, Trainer, ViTImageProcessor, pipeline

from hf_watermark import CSPConfig, Owner, SmoothedModelForImageClassification, plan_key, verify
from hf_watermark.methods.soft_label import PerturbedOutputModelForImageClassification


VARIED = patterned_images(variety=0.3)
IMAGES = torch.stack([item["pixel_values"] for item in patterned_images(60, seed=2, variety=0.3)])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    args = training_arguments(tmp_path_factory.mktemp("plain"), max_steps=60)
    trainer = Trainer(model=tiny_resnet(), args=args, train_dataset=VARIED)
    trainer.train()
    return trainer.model.eval()


def make_key(data, channels: int = 1):
    key = plan_key(tiny_resnet(num_channels=channels), data, CSPConfig(pool_per_class=12), Owner.create())
    return key.bind_beacon(b"\x07" * 32, "a value of a test")


def test_a_perturbed_model_is_pushed_and_loaded(hub, classifier, tmp_path):
    key = make_key(VARIED)
    perturbed = PerturbedOutputModelForImageClassification.perturb(classifier, key.claims()[0])

    perturbed.push_to_hub("me/served", private=True)
    loaded = AutoModelForImageClassification.from_pretrained("me/served")

    assert isinstance(loaded, PerturbedOutputModelForImageClassification) and not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGES).logits, perturbed(IMAGES).logits, rtol=0, atol=0)
    # What came back still answers with the mark, and what was uploaded lets nobody derive it again.
    assert verify(loaded, key, beacon=key.beacon).found
    assert hub.repos["models", "me/served"].private
    uploaded = b"".join(hub.files("me/served").values())
    for secret in (key.seed, *key.leaf(0)):
        assert secret not in uploaded and secret.hex().encode() not in uploaded


def test_a_pipeline_takes_it_from_the_repository(hub, tmp_path):
    model, key = tiny_resnet(num_channels=3), make_key(coloured(VARIED), channels=3)
    perturbed = PerturbedOutputModelForImageClassification.perturb(model, key.claims()[0])
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    for part in (perturbed, processor):
        part.push_to_hub("me/served")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))

    answers = pipeline("image-classification", model="me/served", device="cpu")(image, top_k=10)

    with torch.no_grad():
        wanted = perturbed(**processor(image, return_tensors="pt")).logits.exp()[0]
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert scores == pytest.approx({model.config.id2label[n]: float(p) for n, p in enumerate(wanted)}, abs=1e-5)


def test_a_smoothed_model_is_pushed_and_loaded(hub, classifier):
    smoothed = SmoothedModelForImageClassification.smooth(classifier, sigma=0.1, draws=4)

    smoothed.push_to_hub("me/smoothed")
    loaded = AutoModelForImageClassification.from_pretrained("me/smoothed")

    assert isinstance(loaded, SmoothedModelForImageClassification)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGES).logits, smoothed(IMAGES).logits, rtol=0, atol=0)
