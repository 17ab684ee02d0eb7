"""Attacks that change weights and no answer."""

import pytest
import torch
from tiny import tiny_resnet
from zoo import BUILDERS, build, images_for, logits

from hf_watermark.attacks import (
    DummyNeurons,
    FoldBatchNorm,
    MixBottlenecks,
    MixHeads,
    NotApplicableError,
    Permute,
    Rescale,
    RotateResidual,
    StructuredPrune,
)


WRAPPED = [name for name in BUILDERS if not name.startswith("plain")]
ATTACKS = {
    "permute": Permute(),
    "rescale": Rescale(spread=1.0),
    "fold_batchnorm": FoldBatchNorm(),
    "rotate_residual": RotateResidual(),
    "mix_heads": MixHeads(),
    "mix_bottlenecks": MixBottlenecks(),
    "zero": DummyNeurons("zero"),
    "clique": DummyNeurons("clique"),
    "split": DummyNeurons("split"),
}
TRANSFORMERS = {"transformers vit", "transformers swin", "timm vit", "timm swin", "segformer", "deeplab mobilevit"}
BOTTLENECKS = {"transformers mobilenet_v2", "deeplab mobilenet_v2", "timm mobilenetv2", "timm mobilenetv3"}
BOTTLENECKS |= {"segformer", "deeplab mobilevit"}
SCALES = {name for name in WRAPPED if "resnet" in name} | {
    "deeplab mobilenet_v2",
    "timm mobilenetv3",
    "segformer",
    "deeplab mobilevit",
}
APPLIES = {
    "rotate_residual": TRANSFORMERS,
    "mix_heads": TRANSFORMERS,
    "mix_bottlenecks": BOTTLENECKS,
    "rescale": SCALES,
}


# Slow to trace; one attack of each kind does.
LARGE = {"segformer", "deeplab mobilevit", "deeplab mobilenet_v2", "timm mobilenetv2"}
CASES = [
    (name, label)
    for name in WRAPPED
    for label in ATTACKS
    if name not in LARGE or label in ("rescale", "mix_bottlenecks", "split")
]


@pytest.mark.parametrize(("name", "label"), CASES)
def test_no_answer_changes_and_the_weights_do(name, label):
    model, images = build(name), images_for(name)
    data = [{"pixel_values": images[0]}]
    if name not in APPLIES.get(label, set(WRAPPED)):
        with pytest.raises(NotApplicableError):
            ATTACKS[label](model, data)
        return
    attacked = ATTACKS[label](model, data)
    wanted = logits(model, images)
    assert float((logits(attacked, images) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    before, after = (dict(item.named_parameters()) for item in (model, attacked))
    changed = sum(
        1 for key in before if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
    )
    assert changed >= 2


def test_a_convolution_of_grey_images_is_not_taken_for_a_depthwise_one():
    model, image = tiny_resnet(), torch.randn(2, 1, 32, 32)
    wider = DummyNeurons("split")(model, [{"pixel_values": image[0]}])
    with torch.no_grad():
        torch.testing.assert_close(wider(image).logits, model(image).logits, rtol=1e-4, atol=1e-4)


def test_compositions_change_no_answer():
    model, images = build("timm mobilenetv3"), images_for("timm mobilenetv3")
    data = [{"pixel_values": images[0]}]
    attacked = model
    for label in ("split", "permute", "rescale", "mix_bottlenecks"):
        attacked = ATTACKS[label](attacked, data)
    wanted = logits(model, images)
    assert float((logits(attacked, images) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_dummy_neurons_widen_every_hidden_layer_by_the_share():
    model = build("timm vit")
    attacked = DummyNeurons("zero", fraction=0.5)(model, [{"pixel_values": images_for("timm vit")[0]}])
    assert attacked.get_parameter("timm_model.blocks.0.mlp.fc1.weight").shape == (96, 16)
    # Nothing reads the new units.
    assert not attacked.get_parameter("timm_model.blocks.0.mlp.fc2.weight")[:, 64:].any()


def test_structured_pruning_takes_the_weakest_units():
    model = build("timm vit")
    fc1 = model.get_parameter("timm_model.blocks.0.mlp.fc1.weight")
    with torch.no_grad():
        fc1[:16] *= 1e-3
        model.get_parameter("timm_model.blocks.0.mlp.fc1.bias")[:16] = 0
    images = images_for("timm vit")
    attacked = StructuredPrune(amount=0.25)(model, [{"pixel_values": images[0]}])
    assert torch.equal(attacked.get_parameter("timm_model.blocks.0.mlp.fc1.weight"), fc1[16:])
    assert logits(attacked, images).shape == logits(model, images).shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rescale(spread=0), "spread=0 is not usable"),
        (lambda: DummyNeurons(kind="ghost"), "kind='ghost' is not usable; choose 'zero'"),
        (lambda: DummyNeurons(fraction=2), "fraction=2"),
        (lambda: StructuredPrune(amount=1), "amount=1"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
