"""Soft-label watermarks: what the key draws, what is trained, what survives, and the null."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from tiny import patterned_images, tiny_resnet, training_arguments
from torch.nn import functional

from hf_watermark import InvalidInput, Owner, Suspect, Verdict
from hf_watermark.keys import SubKey
from hf_watermark.methods.soft_label import CSPConfig, CSPTrainer, USPConfig, USPTrainer, USPVerifier
from hf_watermark.methods.soft_label.code import Template, centred_others, decision_loss, draw_signs, soft_label_loss
from hf_watermark.methods.soft_label.features import CUT, ImageFeatures, feature_count
from hf_watermark.methods.soft_label.readout import CLIP, contrasts, without
from hf_watermark.methods.soft_label.reference import reference_answers
from hf_watermark.statistics import log2_binomial_tail


SMALL = USPConfig(features=16, pool_per_class=10)
VARIED = patterned_images(variety=0.3)


def subkey_number(number: int) -> SubKey:
    return SubKey(0, 0, hashlib.sha256(str(number).encode()).digest())


@pytest.fixture(scope="module")
def module_owner() -> Owner:
    return Owner.create()


@pytest.fixture
def make_trainer(make_resnet, arguments, module_owner):
    def make(trainer_class=USPTrainer, config=SMALL, steps=2, **changes):
        args = arguments(max_steps=steps)
        return trainer_class(
            model=make_resnet(),
            args=args,
            train_dataset=VARIED,
            watermark=dataclasses.replace(config, **changes),
            owner=module_owner,
        )

    return make


@pytest.fixture(scope="module")
def marked(tmp_path_factory, module_owner):
    """A model marked by USP with 189 free signs, and its trainer."""
    args = training_arguments(tmp_path_factory.mktemp("usp"), max_steps=180, logging_steps=50)
    trainer = USPTrainer(model=tiny_resnet(), args=args, train_dataset=VARIED, watermark=SMALL, owner=module_owner)
    trainer.train()
    return trainer


def answers_of(trainer, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return trainer.model.eval()(images).logits.softmax(dim=1)


# --- What the key draws -----------------------------------------------------------------------------------------------


def test_signs_are_fair_and_come_from_the_key():
    signs = torch.stack([draw_signs(subkey_number(n), 27, 10) for n in range(200)])
    assert signs.shape == (200, 27, 10) and (signs.abs() == 1).all()
    assert abs(signs.mean()) < 0.03
    assert torch.equal(draw_signs(subkey_number(3), 27, 10), signs[3])


@pytest.mark.parametrize(
    ("least", "channels", "count"), [(24, 1, 24), (38, 1, 38), (24, 3, 24), (38, 3, 42), (28, 4, 28), (1, 3, 21)]
)
def test_features_are_the_smallest_grid_that_suffices(least, channels, count):
    images = torch.rand(60, channels, 11, 9, generator=torch.Generator().manual_seed(least))
    features = ImageFeatures.fit(images, least)
    assert feature_count(least, channels) == count == features(images).shape[1]


def test_features_are_independent_of_each_other():
    generator = torch.Generator().manual_seed(0)
    contrast, colours = torch.rand(4000, 3, 1, 1, generator=generator), torch.randn(4000, 3, 2, 1, generator=generator)
    images = contrast * torch.randn(4000, 3, 8, 8, generator=generator) + functional.interpolate(colours, size=8)
    values = ImageFeatures.fit(images, 24)(images)
    assert values.abs().max() == CUT
    covariance = torch.cov(values.T)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.2
    assert covariance.diag().median() > 0.6 and covariance.diag().max() < 1.1


def test_what_hardly_varies_stays_small():
    noise = torch.randn(4000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    images = noise + functional.interpolate(
        noise[:, :, :4, :2], size=16
    )  # as much noise in all of them, and colours of their own
    values = ImageFeatures.fit(images, 14)(images)
    assert values[:, :2].std(dim=0).max() < 0.75 < values[:, 6:].std(dim=0).min()


def test_what_all_images_share_is_no_feature():
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:] = images.mean(dim=3, keepdim=True)  # no differences between patches side by side
    found = ImageFeatures.fit(images, 24)
    across, down = found.whitening[0:6:2].abs().amax(dim=1), found.whitening[1:6:2].abs().amax(dim=1)
    assert across.max() == 0 and down.min() > 0
    assert found(images).isfinite().all()


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 32, 32), (3, 33, 21), (3, 1, 5), (4, 3, 2)])
def test_a_mirrored_image_has_the_same_features(channels, height, width):
    images = torch.rand(60, channels, height, width, generator=torch.Generator().manual_seed(0))
    features = ImageFeatures.fit(images, 38)
    torch.testing.assert_close(features(images.flip(-1)), features(images), rtol=1e-3, atol=1e-3)


def test_images_of_other_channels_are_refused():
    features = ImageFeatures.fit(torch.rand(40, 1, 8, 8), 38)
    with pytest.raises(ValueError, match="the images have 3 channels, which do not give the key's 38 features"):
        features(torch.rand(2, 3, 8, 8))


def test_constant_images_have_no_features():
    images = torch.ones(5, 3, 8, 8)
    assert ImageFeatures.fit(images, 24)(images).abs().max() < 1e-3


def test_a_template_of_several_subkeys_has_the_size_of_one():
    images = torch.rand(2000, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    features = ImageFeatures.fit(images, 27)
    one, four = (Template.of(features, [subkey_number(n) for n in range(count)], 10) for count in (1, 4))
    assert four.shift(images).std() / one.shift(images).std() == pytest.approx(1, abs=0.15)
    assert one.shift(images).shape == (2000, 10) and one.shift(images).std() == pytest.approx(0.9, abs=0.1)


def test_others_are_centred():
    scores = torch.tensor([[5.0, 1.0, 2.0, 6.0]])
    torch.testing.assert_close(centred_others(scores, torch.tensor([0])), torch.tensor([[0.0, -2.0, -1.0, 3.0]]))


def test_soft_label_loss_is_least_at_the_perturbed_distribution():
    shift = torch.tensor([[0.0, 1.0, -1.0, 1.0]])
    labels = torch.tensor([0])
    wanted = torch.cat([torch.tensor([[0.9]]), 0.1 * shift[:, 1:].softmax(dim=1)], dim=1).log()
    hard = lambda logits: torch.nn.functional.cross_entropy(logits, labels)  # noqa: E731
    total = lambda logits: hard(logits) + soft_label_loss(logits, labels, shift, 0.1, 1.0)[0]  # noqa: E731
    logits = wanted.clone().requires_grad_()
    [gradient] = torch.autograd.grad(total(logits), logits)
    assert gradient.abs().max() < 1e-6
    assert total(wanted + torch.tensor([[0.0, 0.5, 0.0, 0.0]])) > total(wanted)


def test_decision_loss_asks_for_logits_that_are_right_without_the_shift():
    generator = torch.Generator().manual_seed(0)
    logits, shift = (torch.randn(6, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    cross_entropy = torch.nn.functional.cross_entropy
    logits.requires_grad_()
    [gradient] = torch.autograd.grad(
        cross_entropy(logits, labels) + decision_loss(logits, labels, shift).mean(), logits
    )
    clean = (logits - shift).detach().requires_grad_()
    [wanted] = torch.autograd.grad(cross_entropy(clean, labels), clean)
    torch.testing.assert_close(gradient, wanted)


def test_decisions_follow_the_template_if_they_are_to(make_trainer):
    images = torch.stack([item["pixel_values"] for item in VARIED])
    agreement = []
    for decision in (0.0, 1.0):
        trainer = make_trainer(steps=100, decision=decision, target_log2_p=0.0)
        trainer.train()
        template = USPVerifier(trainer.key.claims()[0]).template()
        with torch.no_grad():
            logits, shift = trainer.model.eval()(images).logits, template.shift(images)
        top = logits.argmax(dim=1, keepdim=True)
        # Margins of the top class are wider where the template favours it.
        margin = (logits - logits.scatter(1, top, -torch.inf).amax(dim=1, keepdim=True)).gather(1, top)[:, 0]
        favour = (shift - shift.mean(dim=1, keepdim=True)).gather(1, top)[:, 0]
        agreement.append(float(torch.corrcoef(torch.stack([margin, favour]))[0, 1]))
    assert agreement[1] > agreement[0] + 0.2


# --- Reading answers --------------------------------------------------------------------------------------------------


PROBABILITIES = torch.tensor([[0.9, 0.05, 0.02, 0.03], [0.1, 0.6, 0.25, 0.05]])
LABELS = torch.tensor([0, 1])


def test_temperature_and_scale_drop_out():
    values = contrasts(PROBABILITIES, LABELS)
    assert values[range(2), LABELS].abs().max() == 0 and values.sum(dim=1).abs().max() < 1e-6
    softer = (PROBABILITIES.log() / 4).softmax(dim=1)
    torch.testing.assert_close(contrasts(softer, LABELS), values, rtol=1e-5, atol=1e-6)


def test_missing_probabilities_count_as_small():
    cut = torch.tensor([[0.9, 0.07, 0.0, 0.0], [0.1, 0.6, 0.3, 0.0]])
    values = contrasts(cut, LABELS)
    assert values[0, 1] > 0 and values[0, 2] == values[0, 3] < 0
    assert values[1, 3] == values[1].min()


@pytest.mark.parametrize("row", [[float("nan")] * 4, [0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.0] * 4])
def test_answers_that_say_nothing_are_zero(row):
    assert contrasts(torch.tensor([row, [0.1, 0.6, 0.25, 0.05]]), LABELS)[0].abs().max() == 0


def test_no_answer_outweighs_the_others():
    wild = contrasts(torch.tensor([[0.5, 0.5 - 2e-30, 1e-30, 1e-30] + [1e-30] * 20]), torch.tensor([0]))
    assert wild.max() == CLIP


# --- Training ---------------------------------------------------------------------------------------------------------


def test_pool_images_are_never_trained_on(make_trainer):
    trainer = make_trainer()
    rows = trainer.key.pool["usp.rows"].tolist()
    assert len(rows) == 100 and len(trainer.train_dataset) == len(VARIED) - 100
    kept = {item["pixel_values"].numpy().tobytes() for item in trainer.train_dataset}
    assert not kept & {VARIED[row]["pixel_values"].numpy().tobytes() for row in rows}


def test_the_mark_is_read_back_and_labels_stay_right(marked):
    assert marked.evidence.log2_p <= -40 and marked.evidence.trials == 210
    images = torch.stack([item["pixel_values"] for item in VARIED])
    labels = torch.tensor([item["labels"] for item in VARIED])
    assert (answers_of(marked, images).argmax(dim=1) == labels).float().mean() > 0.99
    assert "watermark_sign_agreement" in repr(marked.state.log_history)


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, 2, "2 classes with `features` = 16 can give at most 0 bits"),
        ({"features": 14}, 4, "4 classes with `features` = 14 can give at most 42 bits, a claim needs 64"),
        ({"pool_per_class": 100}, 10, "lacks 60 of the 100 images"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    make_resnet, arguments, patterned, module_owner, changes, labels, message
):
    data = [item | {"labels": item["labels"] % labels} for item in patterned]
    config = dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match=message):
        USPTrainer(
            model=make_resnet(num_labels=labels),
            args=arguments(),
            train_dataset=data,
            watermark=config,
            owner=module_owner,
        )


def test_soft_labels_of_the_data_are_refused(make_trainer):
    trainer = make_trainer()
    batch = trainer.data_collator(VARIED[:8])
    batch["labels"] = torch.nn.functional.one_hot(batch["labels"], 10).float()
    with pytest.raises(ValueError, match="leave out mixup"):
        trainer.compute_loss(trainer.model.train(), batch)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", 0, "`features` is 0: choose 1 to 1024"),
        ("mass", 0.5, "`mass` is 0.5"),
        ("amplitude", 0.0, "`amplitude` is 0.0"),
        ("strength", -1.0, "`strength` is -1.0"),
        ("decision", 1.5, "`decision` is 1.5"),
        ("pool_per_class", 1, "`pool_per_class` is 1"),
        ("source_classes", 0, "`source_classes` is 0"),
    ],
)
@pytest.mark.parametrize("config_class", [USPConfig, CSPConfig])
def test_configs_name_the_field(config_class, field, value, message):
    with pytest.raises(ValueError, match=message):
        config_class(**{field: value})


def test_several_subkeys_each_prove_alone(make_trainer):
    trainer = make_trainer(CSPTrainer, CSPConfig(features=16, pool_per_class=10, amplitude=1.5), steps=180, subkeys=2)
    trainer.train()
    assert len(trainer.evidence.parts) == 2
    assert all(part.log2_p < -20 for part in trainer.evidence.parts)


# --- Endpoints --------------------------------------------------------------------------------------------------------


def rounded(answers):
    return (answers * 100).round() / 100


def top_five(answers):
    best, places = answers.topk(5, dim=1)
    return torch.zeros_like(answers).scatter(1, places, best)


def softened(answers):
    return (answers.log() / 3).softmax(dim=1)


@pytest.mark.parametrize("change", [rounded, top_five, softened, lambda answers: top_five(rounded(answers))])
def test_changed_probabilities_still_carry_the_mark(marked, change):
    evidence = marked.verify(lambda images: change(answers_of(marked, images)))
    assert evidence.log2_p <= -20 and evidence.parts[0].details["queries"] == 100


def test_labels_cannot_decide(marked):
    suspect = Suspect.open(lambda images: answers_of(marked, images).argmax(dim=1))
    for words in (
        "cannot decide from labels",
        "method `usp` needs probabilities of the suspect, endpoint offers labels",
    ):
        evidence = marked.verify(suspect)
        assert evidence.verdict is Verdict.INCONCLUSIVE and words in evidence.reason


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: torch.randn(len(images), 10), "these are no probabilities; return softmax"),
        (lambda images: torch.full((len(images), 10), 10.0), "these are no probabilities"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(marked, answer, message):
    with pytest.raises(InvalidInput, match=message):
        marked.verify(answer)


def test_another_number_of_classes_says_nothing(marked):
    evidence = marked.verify(lambda images: torch.full((len(images), 7), 1 / 7))
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert "knows 7 classes, the key was made for 10" in evidence.reason


def test_a_different_class_order_is_not_found(marked):
    evidence = marked.verify(lambda images: answers_of(marked, images)[:, list(range(1, 10)) + [0]])
    assert not evidence.found and evidence.log2_p > -20


# --- Null -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suspect", ["untrained model", "marked under another key"])
def test_false_positive_rate_is_nominal(marked, make_resnet, suspect):
    [claim] = marked.key.claims()
    verifier = USPVerifier(claim)
    source = make_resnet() if suspect == "untrained model" else marked.model
    observation = verifier.observe(Suspect.open(source), claim.subkeys[0])
    trials = 2000
    scores = np.array([verifier.score(observation, subkey_number(n)).log2_p for n in range(trials)])
    for level in (0.05, 0.01, 0.001):
        passed = int((scores <= np.log2(level)).sum())
        assert log2_binomial_tail(passed, trials, level) > -20, (level, passed)
    # The bound is not idle; how much it gives away depends on the key, which is another one in each run.
    assert (scores <= np.log2(0.3)).sum() > 0.03 * trials


def test_answers_that_only_depend_on_the_class_prove_little(marked):
    # However many images an independent model is asked, it can agree with a key's signs by chance only once for each.
    [claim] = marked.key.claims()
    verifier, [subkey] = USPVerifier(claim), claim.subkeys
    towards = torch.from_numpy(verifier.signs(subkey)).mean(dim=0)
    labels = claim.pool["usp.labels"].long()
    answers = torch.where(torch.nn.functional.one_hot(labels, 10).bool(), 5.0, towards).softmax(dim=1)
    reading = verifier.read(answers)
    assert reading.sums.shape == (21, 10) and verifier.score(reading, subkey).log2_p > -10


def test_natural_likeness_is_taken_out(marked):
    # A model that answers as the reference does has nothing left to read.
    [claim] = marked.key.claims()
    verifier = USPVerifier(claim)
    intact = verifier.read(verifier.reference)
    assert abs(intact.sums).max() < 1e-9
    sums = np.random.default_rng(0).normal(size=(16, 10))
    natural = np.random.default_rng(1).normal(size=(16, 10))
    np.testing.assert_allclose(without(sums + 3 * natural, natural), without(sums, natural))
    np.testing.assert_allclose(without(sums, np.zeros((16, 10))), sums)


def test_the_reference_is_a_network_that_saw_no_query(marked):
    [claim] = marked.key.claims()
    reference, labels = claim.pool["usp.reference"].float(), claim.pool["usp.labels"].long()
    assert (reference.argmax(dim=1) == labels).float().mean() > 0.9
    again = reference_answers(
        VARIED, marked.data_collator, set(claim.pool["usp.rows"].tolist()), claim.pool["usp.images"], 10
    )
    assert torch.equal(again, claim.pool["usp.reference"])
    everything = set(range(len(VARIED)))
    nothing = reference_answers(VARIED, marked.data_collator, everything, claim.pool["usp.images"], 10)
    assert nothing.float().std() == 0


@pytest.mark.parametrize("value", [None, torch.zeros(100, 9), torch.full((100, 10), float("nan"))])
def test_a_reference_that_is_missing_or_malformed_is_refused(marked, value):
    [claim] = marked.key.claims()
    pool = claim.pool | {"usp.reference": value}
    with pytest.raises(InvalidInput, match="`reference`|usp.reference"):
        USPVerifier(dataclasses.replace(claim, pool=pool))
