"""Undoing function-preserving changes; the fit never sees a carrier."""

import contextlib
import copy

import pytest
import timm
import torch
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import ConvNextConfig, ConvNextForImageClassification
from zoo import BUILDERS, build, images_for

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner, WaterMASConfig, WaterMASTrainer, verify
from hf_watermark.attacks import (
    DummyNeurons,
    FineTune,
    MixBottlenecks,
    MixHeads,
    NotApplicableError,
    Permute,
    Rescale,
    RotateResidual,
    StructuredPrune,
)
from hf_watermark.backbones import Carrier, canonical_rows
from hf_watermark.backbones.names import Renamed, best_spelling
from hf_watermark.evidence import Verdict
from hf_watermark.serialization import InvalidInput
from hf_watermark.suspects import Suspect
from hf_watermark.verification.alignment import Aligner, decoy_agreement


WRAPPED = [name for name in BUILDERS if not name.startswith("plain")]
LARGE = ("segformer", "deeplab mobilevit", "deeplab mobilenet_v2", "timm mobilenetv2")
CHANGES = {
    "permute": [Permute()],
    "zero": [DummyNeurons("zero")],
    "clique": [DummyNeurons("clique")],
    "split": [DummyNeurons("split")],
    "everything": [Permute(), Rescale(spread=1.0), RotateResidual(), MixHeads(), MixBottlenecks()],
}


def agreement(aligner, tensors):
    """Share of carrier signs that agree with the reference, and the number of weights that say anything."""
    shapes = {name: tuple(tensor.shape) for name, tensor in aligner.state.items()}
    same = count = 0
    for carrier in aligner.carriers:
        own, theirs = (canonical_rows(carrier, item, shapes) for item in (aligner.state, tensors))
        live = theirs != 0
        same, count = same + int((own * theirs > 0)[live].sum()), count + int(live.sum())
    return same / max(1, count), count


def attacked(model, attacks, images):
    for attack in attacks:
        with contextlib.suppress(NotApplicableError):
            model = attack(model, [{"pixel_values": images[0]}])
    return model


EVERY = [(name, "permute" if name in LARGE else "everything") for name in WRAPPED]
EVERY += [(name, label) for name in ("timm resnet18", "timm vit") for label in CHANGES if label != "everything"]
EVERY += [("transformers mobilenet_v2", "clique")]


@pytest.mark.parametrize(("name", "label"), EVERY)
def test_every_pure_transform_is_undone(name, label):
    model, images = build(name), images_for(name)
    aligner = Aligner(model, images=images[:1])
    aligned = aligner.align(attacked(model, CHANGES[label], images).state_dict())
    share, count = agreement(aligner, aligned.tensors)
    assert share == 1.0 and aligned.report.readable == 1.0
    assert count == agreement(aligner, aligner.state)[1]
    assert aligned.report.done


def test_an_untouched_suspect_stays_as_it_is():
    model = build("timm swin")
    suspect = model.to(torch.bfloat16).state_dict()
    aligned = Aligner(model.float()).align(suspect)
    assert aligned.report.readable == 1.0 and not aligned.report.done


@pytest.mark.parametrize("name", ["timm vit", "timm swin", "timm resnet18"])
def test_ports_are_recognised_by_role(name):
    reference = build(name)
    port = build(name.replace("timm", "transformers").replace("resnet18", "resnet"))
    names = Renamed(reference.state_dict(), best_spelling(list(reference.state_dict()), list(port.state_dict())))
    state = {key: names[key].reshape(value.shape) for key, value in port.state_dict().items()}
    port.load_state_dict(state)
    aligner = Aligner(reference, images=images_for(name, 1))
    disguised = {
        f"module.{key}": value
        for key, value in Permute()(port, [{"pixel_values": images_for(name)[0]}]).state_dict().items()
    }
    aligned = aligner.align(disguised)
    assert agreement(aligner, aligned.tensors)[0] == 1.0 and aligned.report.readable == 1.0


def test_convnext_port_has_the_same_names():
    port = ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_labels=4)
    )
    original = timm.create_model("convnext_atto", dims=[8, 16, 16, 16], depths=[1, 1, 1, 1], num_classes=4)
    assert best_spelling(list(port.state_dict()), list(original.state_dict())).keys() == original.state_dict().keys()


def unrelated_to(reference):
    other, generator = copy.deepcopy(reference), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std())
    return other.state_dict()


@pytest.mark.parametrize(
    "name", ["transformers resnet bottleneck", "timm vit", "timm mobilenetv3", "plain timm vgg_bn"]
)
def test_an_unrelated_model_is_not_recognised(name):
    reference = build(name)
    other = unrelated_to(reference)
    aligner = Aligner(reference, images=images_for(name, 1))
    assert aligner.align(other).report.readable < 0.1
    # Without leaving anything out: half of the signs, within four standard deviations.
    share, count = agreement(aligner, aligner.align(other, erase=False).tensors)
    assert abs(share - 0.5) < 4 * 0.5 / count**0.5


@pytest.mark.parametrize("name", ["timm vit", "timm mobilenetv3"])
def test_carriers_that_enter_the_fit_are_caught_by_the_decoy_control(name):
    reference, images = build(name), images_for(name, 1)
    right, wrong = Aligner(reference, images=images), Aligner(reference, carriers=[], images=images)
    derived = Permute()(reference, [{"pixel_values": images[0]}]).state_dict()
    control = decoy_agreement(right, derived)
    assert "failed" not in control and control["weights"] > 1000
    assert "failed" not in decoy_agreement(right, unrelated_to(reference))
    # A fit that sees carriers makes any model agree with any reference.
    assert "agrees with random carriers" in decoy_agreement(wrong, unrelated_to(reference), right.carriers)["failed"]


def test_the_fit_is_the_same_whatever_the_references_carriers_say():
    reference = build("timm vit")
    aligner = Aligner(reference, images=images_for("timm vit", 1))
    assert not any("mlp.fc2.weight" in name for name in aligner.anchors)
    suspect = RotateResidual()(reference, [{"pixel_values": images_for("timm vit")[0]}]).state_dict()
    _, other = aligner.with_random_carriers(aligner.carriers, suspect, seed=0)
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in aligner.align(suspect).tensors.items())


def test_what_a_normalisation_writes_into_a_bias_through_carriers_is_not_seen():
    reference = build("timm vit")
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "norm" in name:
                weight.add_(torch.rand(weight.shape))
    weight = next(name for name in reference.state_dict() if name.endswith("mlp.fc1.weight"))
    shape = tuple(reference.state_dict()[weight].shape)
    carrier = Carrier(weight, shape[0], shape[1], 1, False, shape, name=weight)
    one = Aligner(reference, [carrier], images_for("timm vit", 1))
    with torch.no_grad():
        reference.get_parameter(weight).normal_()
    other = Aligner(reference, [carrier], images_for("timm vit", 1))
    assert one.anchors.keys() == other.anchors.keys()
    assert all(torch.equal(tensor, other.anchors[name]) for name, tensor in one.anchors.items())


def test_another_architecture_is_refused():
    with pytest.raises(InvalidInput, match="tensors are missing in the suspect"):
        Aligner(build("timm resnet18")).align(build("timm vit").state_dict())


# From a trained mark to a verdict


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A trained model with both white-box marks' keys: greedy residuals and WaterMAS on two models of one size."""
    result = {}
    for label, trainer_class, config in (
        ("greedy_residuals", GreedyResidualsTrainer, GreedyResidualsConfig(bits=256, subkeys=1, group_size=16)),
        ("watermas", WaterMASTrainer, WaterMASConfig(bits=256, subkeys=1)),
    ):
        trainer = trainer_class(
            model=tiny_resnet(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2]),
            args=training_arguments(tmp_path_factory.mktemp(label), num_train_epochs=4),
            train_dataset=patterned_images(),
            watermark=config,
            owner=Owner.create(),
        )
        trainer.train()
        result[label] = trainer.model.eval(), trainer.key
    return result


@pytest.mark.parametrize("method", ["greedy_residuals", "watermas"])
@pytest.mark.parametrize("attack", [Permute(), Rescale(), DummyNeurons("split")], ids=lambda attack: attack.name)
def test_the_mark_is_found_again_with_a_reference(marked, method, attack):
    model, key = marked[method]
    before = verify(model, key)
    assert before.found
    suspect = attack(model, patterned_images(1))
    evidence = verify(suspect, key, reference=model, own_reference=True)
    # The second look costs one bit.
    assert evidence.matches == before.matches and evidence.looks == 2
    assert evidence.log2_p == pytest.approx(before.log2_p + 1, abs=1e-6)
    if evidence.details.get("alignment"):
        assert evidence.details["alignment"]["carriers_readable"] == 1.0
        assert "failed" not in evidence.details["alignment"]["control"]
    else:  # scales alone are no obstacle to signs of single weights
        assert method == "watermas" and attack.name == "rescale"


def test_fine_tuning_after_the_transform_leaves_the_mark(marked):
    model, key = marked["greedy_residuals"]
    suspect = FineTune(learning_rate=3e-4, epochs=1, optimizer="adamw")(
        Permute()(model, patterned_images(1)), patterned_images()
    )
    evidence = verify(suspect, key, reference=model, own_reference=True)
    assert evidence.found and evidence.rate >= verify(model, key).rate - 0.03


def test_a_head_for_other_labels_is_no_anchor(marked):
    model, key = marked["watermas"]
    suspect = tiny_resnet(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], num_labels=7)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    suspect.load_state_dict(kept, strict=False)
    suspect = Permute()(suspect.eval(), patterned_images(1))
    evidence = verify(suspect, key, reference=model, own_reference=True)
    assert evidence.rate == 1.0 and "2 tensors" in " ".join(evidence.details["alignment"]["warnings"])


def test_pruned_units_are_left_out_and_the_rest_is_read(marked):
    model, key = marked["watermas"]
    suspect = StructuredPrune(amount=0.3)(model, patterned_images(1))
    evidence = verify(suspect, key, reference=model, own_reference=True)
    report = evidence.details["alignment"]
    assert 0.3 < report["carriers_readable"] < 0.8
    assert evidence.trials < 256 and evidence.rate > 0.95
    assert report["undone"]["units removed"] >= 4


def test_carriers_that_the_suspect_lacks_are_not_taken_from_the_reference(marked):
    """The worst bug would be to read the reference's own mark."""
    model, key = marked["watermas"]
    other = tiny_resnet(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2])
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not name.endswith("layer.1.convolution.weight")
    }
    suspect = Suspect("stripped", state, {name: tuple(tensor.shape) for name, tensor in state.items()})
    evidence = verify(suspect, key, reference=model, own_reference=True)
    assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.trials == 0
    unrelated = verify(other, key, reference=model, own_reference=True)
    assert unrelated.verdict is Verdict.NOT_FOUND
    assert unrelated.log2_p > -20


def test_reference_as_a_folder_and_through_the_command(marked, tmp_path):
    from typer.testing import CliRunner

    from hf_watermark.cli.main import app

    model, key = marked["greedy_residuals"]
    model.save_pretrained(tmp_path / "reference")
    Permute()(model, patterned_images(1)).save_pretrained(tmp_path / "suspect")
    key.save(tmp_path / "key")
    arguments = ["verify", str(tmp_path / "suspect"), "--key", str(tmp_path / "key")]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    arguments += ["--reference", str(tmp_path / "reference")]
    undated = CliRunner().invoke(app, arguments)
    assert undated.exit_code == 3 and "a reference that nobody dated" in " ".join(undated.output.split())
    result = CliRunner().invoke(app, [*arguments, "--own-reference"])
    assert result.exit_code == 0, result.output
    assert "permuted" in result.output
    wrong = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "nothing")])
    assert wrong.exit_code == 2 or "no folder" in str(wrong.exception)


def test_a_reference_with_integer_carriers_is_refused():
    """Integers are taken over from the reference, so a carrier that is one would be read as the suspect's."""
    reference = build("timm vit")
    aligner = Aligner(reference, images=images_for("timm vit", 1))
    name = next(iter(aligner.held))
    state = {key: tensor.to(torch.int8) if key == name else tensor for key, tensor in reference.state_dict().items()}
    reference.state_dict = lambda: state
    with pytest.raises(InvalidInput, match="carrier .*fc2.weight is torch.int8; give the model with float weights"):
        Aligner(reference, images=images_for("timm vit", 1))
