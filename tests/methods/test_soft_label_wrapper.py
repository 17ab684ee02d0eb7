"""`PerturbedOutputModelForImageClassification`, tracing and the sequential test: marks without training."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import coloured, patterned_images, tiny_resnet, training_arguments
from transformers import AutoModelForImageClassification, Trainer, ViTImageProcessor, pipeline

from hf_watermark import InvalidInput, Owner, Suspect, verify_sequentially
from hf_watermark.methods.soft_label import (
    CSPConfig,
    CSPTrainer,
    PerturbedOutputModelForImageClassification,
    issue_copies,
    recipient_keys,
    trace,
)
from hf_watermark.methods.soft_label.modeling import perturbed_log_probabilities
from hf_watermark.methods.soft_label.sequential import checkpoints
from hf_watermark.statistics import log2_binomial_tail
from hf_watermark.suspects import BudgetExceeded


BEACON = b"\x07" * 32
VARIED = patterned_images(variety=0.3)
IMAGES = torch.stack([item["pixel_values"] for item in VARIED])


@pytest.fixture(scope="module")
def owner() -> Owner:
    return Owner.create()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A trained, unmarked classifier."""
    args = training_arguments(tmp_path_factory.mktemp("plain"), max_steps=60)
    trainer = Trainer(model=tiny_resnet(), args=args, train_dataset=VARIED)
    trainer.train()
    return trainer.model.eval()


def make_key(folder, owner, data, channels: int = 1):
    """A key of `csp` with 25 or 27 signs per class, made from data; its model is not trained."""
    return CSPTrainer(
        model=tiny_resnet(num_channels=channels),
        args=training_arguments(folder),
        train_dataset=data,
        watermark=CSPConfig(pool_per_class=12),
        owner=owner,
    ).key


@pytest.fixture(scope="module")
def key(tmp_path_factory, owner):
    """A key that is bound to a beacon."""
    return make_key(tmp_path_factory.mktemp("csp"), owner, VARIED).bind_beacon(BEACON, "a value of a test")


@pytest.fixture(scope="module")
def keys(key, owner):
    return recipient_keys(key, owner, [f"recipient {number}" for number in range(12)])


@pytest.fixture(scope="module")
def copies(classifier, keys):
    return issue_copies(classifier, keys)


# --- The wrapper ------------------------------------------------------------------------------------------------------


def test_top_labels_never_change(classifier, copies):
    noisy = torch.cat([IMAGES, torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(3))])
    with torch.no_grad():
        plain = classifier(noisy).logits
        for copied in list(copies.values())[:3]:
            marked = copied(noisy).logits
            assert torch.equal(marked.argmax(dim=1), plain.argmax(dim=1))
            torch.testing.assert_close(marked.exp().sum(dim=1), torch.ones(len(noisy)), rtol=1e-4, atol=1e-4)


def test_without_mass_confidences_stay_as_they_are():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3
    top = logits.argmax(dim=1)
    shift = torch.randint(0, 2, (50, 6), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    marked = perturbed_log_probabilities(logits, top, shift, mass=0.0)
    assert torch.equal(marked.argmax(dim=1), top)
    torch.testing.assert_close(marked.amax(dim=1), logits.log_softmax(dim=1).amax(dim=1))
    kept = (marked == logits.log_softmax(dim=1)).all(dim=1)
    assert 0 < kept.sum() < 25  # close calls are left alone, most rows are marked
    first, second = marked[~kept], logits.log_softmax(dim=1)[~kept]
    other = torch.ones_like(first, dtype=torch.bool).scatter_(1, top[~kept, None], False)
    moved = (first - second - shift[~kept])[other].reshape(-1, 5)
    torch.testing.assert_close(moved, moved[:, :1].expand(-1, 5), rtol=1e-4, atol=1e-4)


def test_sure_answers_give_up_the_mass_and_no_more():
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, -1.0]])
    marked = perturbed_log_probabilities(logits, torch.tensor([0, 0]), torch.zeros(2, 4), mass=0.1).exp()
    torch.testing.assert_close(marked[0], torch.tensor([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(marked[1], logits[1].softmax(dim=0), rtol=1e-4, atol=1e-5)


def test_save_and_load_give_the_same_answers_and_no_secret(copies, keys, tmp_path):
    name, copied = next(iter(copies.items()))
    copied.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, PerturbedOutputModelForImageClassification) and not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGES).logits, copied(IMAGES).logits)
    secret = keys[name]
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for hidden in (secret.seed, *secret.leaf(0), *(subkey.secret for subkey in secret.claims()[0].subkeys)):
        assert hidden not in content and hidden.hex().encode() not in content


def test_it_works_in_a_pipeline(owner, tmp_path):
    key = make_key(tmp_path, owner, coloured(VARIED), channels=3)
    copied = PerturbedOutputModelForImageClassification.perturb(tiny_resnet(num_channels=3), key.claims()[0])
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    ask = pipeline("image-classification", model=copied, image_processor=processor, device="cpu")
    scores = {answer["label"]: answer["score"] for answer in ask(image, top_k=10)}
    with torch.no_grad():
        wanted = copied(**processor(image, return_tensors="pt")).logits.exp()[0]
    assert scores == pytest.approx({copied.config.id2label[n]: float(p) for n, p in enumerate(wanted)}, abs=1e-5)


def test_loss_and_training_go_to_the_backbone(copies):
    copied = next(iter(copies.values()))
    labels = torch.zeros(4, dtype=torch.long)
    assert copied(IMAGES[:4], labels=labels).loss > 0
    model = copy.deepcopy(copied).train()
    torch.testing.assert_close(model(IMAGES[:4]).logits, copy.deepcopy(copied.backbone).train()(IMAGES[:4]).logits)


def test_a_key_for_other_classes_is_refused(key):
    with pytest.raises(ValueError, match="the key was made for 10 classes, this model has 7"):
        PerturbedOutputModelForImageClassification.perturb(tiny_resnet(num_labels=7), key.claims()[0])


# --- Tracing ----------------------------------------------------------------------------------------------------------


def test_the_leaking_recipient_is_named(copies, keys):
    [accusation] = trace(copies["recipient 7"], keys)
    assert accusation.recipient == "recipient 7"
    assert accusation.evidence.looks == 12 and accusation.evidence.log2_p <= -64


def test_nobody_is_accused_of_an_unmarked_model(classifier, keys):
    assert trace(classifier, keys) == [] and trace(classifier, keys, log2_error=-7) == []


def test_one_round_of_queries_serves_all(copies, keys):
    suspect = Suspect.open(copies["recipient 3"])
    assert trace(suspect, keys) and suspect.queries == 120


@pytest.mark.parametrize("colluders", [2, 3])
def test_averaged_answers_name_only_the_guilty(copies, keys, colluders):
    guilty = [f"recipient {number}" for number in range(colluders)]

    def endpoint(images):
        with torch.no_grad():
            return torch.stack([copies[name](images).logits.softmax(dim=1) for name in guilty]).mean(dim=0)

    named = [accusation.recipient for accusation in trace(endpoint, keys, log2_error=-10)]
    assert named and set(named) <= set(guilty)


def test_keys_with_other_images_are_refused(keys, key, owner, copies):
    pool = {name: tensor.flip(0) for name, tensor in key.pool.items()}
    stranger = dataclasses.replace(next(iter(keys.values())), pool=pool)
    with pytest.raises(InvalidInput, match="asks other images than the rest"):
        trace(copies["recipient 1"], keys | {"stranger": stranger})
    with pytest.raises(ValueError, match="give each recipient once"):
        recipient_keys(key, owner, ["a", "a"])
    with pytest.raises(ValueError, match="`keys` is empty"):
        trace(copies["recipient 1"], {})


# --- Sequential -------------------------------------------------------------------------------------------------------


def test_it_stops_as_soon_as_the_evidence_is_in(copies, keys):
    suspect = Suspect.open(copies["recipient 2"])
    result = verify_sequentially(suspect, keys["recipient 2"], beacon=BEACON)
    assert result.evidence.found and result.evidence.log2_p <= -64
    assert result.queries == suspect.queries < 80


def test_a_budget_is_kept(classifier, copies, keys):
    result = verify_sequentially(classifier, keys["recipient 2"], budget=30, beacon=BEACON)
    # Looks are those of the whole pool: the last one that the budget reaches ends the test.
    assert not result.evidence.found and 15 <= result.queries <= 30
    with pytest.raises(BudgetExceeded, match="5 images cannot reach 64 bits"):
        verify_sequentially(copies["recipient 2"], keys["recipient 2"], budget=5, beacon=BEACON)
    with pytest.raises(ValueError, match="`budget` is 0"):
        verify_sequentially(classifier, keys["recipient 2"], budget=0)


def test_checkpoints_end_at_the_budget():
    assert checkpoints(10, 80, 1.5) == [10, 15, 22, 34, 51, 76, 80]
    assert checkpoints(10, 5, 1.5) == [5] and checkpoints(10, 10, 2.0) == [10]


def test_optional_stopping_keeps_the_level(classifier, owner, key, monkeypatch):
    monkeypatch.setattr("hf_watermark.verification.sequential.decoys_of", lambda subkey, seed: [])
    others = recipient_keys(key, owner, map(str, range(60)))
    suspect = Suspect.open(classifier)
    reached = [verify_sequentially(suspect, other).evidence.log2_e for other in others.values()]
    passed = int((np.array(reached) >= np.log2(20)).sum())
    assert log2_binomial_tail(passed, len(reached), 0.05) > -20
