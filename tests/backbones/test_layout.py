"""Layouts of models whose names say nothing: derived from the graph, read back from copies, aligned."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from zoo import lively

from hf_watermark import GreedyResidualsConfig, InvalidInput, Owner, mark_model, verify
from hf_watermark.backbones import describe, layout_of
from hf_watermark.backbones.layout import derived
from hf_watermark.backbones.symmetry import Change, Moved, fold, symmetry_of, unfold
from hf_watermark.evidence import Verdict


CONFIG = GreedyResidualsConfig(bits=160, group_size=8, subkeys=2)
ANY_BUDGET = 1e9
IMAGES = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.grow, self.seen, self.shrink = (
            nn.Conv2d(width, 2 * width, kernel, padding="same"),
            nn.BatchNorm2d(2 * width),
            nn.Conv2d(2 * width, width, 1),
        )
        self.back = nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, images):
        hidden = self.back(self.shrink(functional.relu(self.seen(self.grow(images)))))
        gate = self.excite(functional.relu(self.squeeze(hidden.mean((2, 3), keepdim=True)))).sigmoid()
        return functional.relu(images + hidden * gate)


class Own(nn.Module):
    """Residual blocks with gates, in names of nobody's."""

    def __init__(self, blocks: int = 3, width: int = 48, kernel: int = 3):
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.parts = nn.ModuleList(Block(width, kernel) for _ in range(blocks))
        self.leave = nn.Linear(width, 10)

    def forward(self, images):
        images = self.enter(images)
        for part in self.parts:
            images = part(images)
        return self.leave(images.mean((2, 3)))


class Chain(nn.Sequential):
    """One writer per stream."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 96, 3), nn.ReLU(), nn.Conv2d(96, 96, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(96, 10),
        )  # fmt: skip


class Branching(Chain):
    """Control flow that no exporter follows."""

    def forward(self, images):
        if images.sum().item() > 1e6:
            return super().forward(-images)
        return super().forward(images)


def chosen(model: nn.Module) -> dict[str, bool]:
    return {carrier.name: carrier.every_third_input for carrier in layout_of(model)}


def test_later_writers_of_a_stream_carry_and_gates_do_not():
    carriers = layout_of(Own(width=256, kernel=1))
    assert [carrier.name for carrier in carriers] == [f"parts.{number}.shrink.weight" for number in range(3)]
    assert [carrier.scale for carrier in carriers] == [f"parts.{number}.back.weight" for number in range(3)]
    assert not any(carrier.every_third_input for carrier in carriers)


def test_a_small_net_lends_every_third_input_of_its_other_weights():
    found = chosen(Own())
    assert {name for name, third in found.items() if third} == {
        f"parts.{number}.{name}.weight" for number in range(3) for name in ("grow", "squeeze")
    }
    assert "enter.weight" not in found
    assert "leave.weight" not in found


@pytest.mark.parametrize("kind", [Chain, Branching])
def test_without_streams_or_without_a_graph_every_third_input_carries(kind):
    assert chosen(kind()) == {"2.weight": True, "4.weight": True}


def test_values_of_attention_are_left_alone():
    with torch.device("meta"):
        model = timm.create_model("davit_tiny", num_classes=10, depths=(1, 1, 3, 1))
    names = list(chosen(model))
    assert names
    assert not any(name.endswith("0.attn.proj.weight") for name in names), names


def test_a_model_without_any_place_is_told_so():
    with pytest.raises(InvalidInput, match="no weight of this Sequential can carry a mark"):
        layout_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize("kind", [Own, Chain, Branching])
@pytest.mark.parametrize("method", ["greedy_residuals", "watermas"])
def test_the_mark_is_read_from_a_renamed_copy_and_not_from_the_original(kind, method, tmp_path):
    model = lively(kind())
    config = CONFIG if method == "greedy_residuals" else {"method": method, "bits": 160, "subkeys": 2}
    marked, key = mark_model(model, config, Owner.create(), IMAGES, ANY_BUDGET)
    state = {f"net._orig_mod.{name}": tensor.clone() for name, tensor in marked.state_dict().items()}
    halved = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(halved, tmp_path / "model.safetensors")
    assert verify(tmp_path, key).found
    assert verify(model, key).verdict is Verdict.NOT_FOUND


def test_permuted_channels_are_put_back(tmp_path):
    torch.manual_seed(0)
    model = lively(Own(width=64))
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, ANY_BUDGET)
    symmetry = symmetry_of(marked)
    moved = {
        number: Moved.permutation(torch.randperm(space.size))
        for number, space in enumerate(symmetry.spaces)
        if space.kind == "permutation"
    }
    folded = Change(moved).apply(symmetry, fold(symmetry, marked.state_dict()))
    copied = copy.deepcopy(marked)
    copied.load_state_dict(unfold(symmetry, folded, marked.state_dict()))
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(copied(images), marked(images), rtol=1e-3, atol=1e-3)
    assert verify(copied, key).rate < 0.7
    assert verify(copied, key, reference=model).rate > 0.95


def test_a_block_put_in_front_makes_no_verdict():
    model = lively(Own())
    _, key = mark_model(model, CONFIG, Owner.create(), IMAGES, ANY_BUDGET)
    longer = lively(Own(blocks=4))
    assert verify(longer, key).verdict is Verdict.INCONCLUSIVE


def test_of_two_first_writers_the_smaller_one_aligns():
    found = {carrier.name for carrier in graph_of(lambda: timm.create_model("resnet18", num_classes=10))}
    assert {"layer2.0.conv2.weight", "layer4.0.conv2.weight"} < found
    assert not any("downsample" in name for name in found)


def test_a_norm_of_the_stream_is_no_scale():
    config = SegformerConfig(depths=[1] * 4, num_labels=3)
    carriers = graph_of(lambda: SegformerForSemanticSegmentation(config))
    assert [carrier.scale for carrier in carriers] == [None] * 4


def graph_of(build):
    with torch.device("meta"):
        model = build()
    return derived(model, shapes_of(model))


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv2_100"]
)
def test_the_graph_shows_what_names_say(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    by_names = {(carrier.name, carrier.scale) for carrier in describe(shapes_of(model))}
    assert {(carrier.name, carrier.scale) for carrier in derived(model, shapes_of(model))} == by_names


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


class Reader(nn.Module):
    """A strided stem, and a block with one layer that reads the stream and writes to it again."""

    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 48, 3, stride=2)
        self.grow, self.back = nn.Conv2d(48, 24, 1), nn.Conv2d(24, 48, 1)
        self.leave = nn.Linear(48, 10)

    def forward(self, images):
        stream = self.down(self.enter(images).relu())
        stream = stream + self.back(self.grow(stream).relu())
        return self.leave(stream.mean((2, 3)))


def test_a_smaller_writer_that_reads_the_stream_itself_does_not_align_it():
    found = chosen(Reader())
    assert found["back.weight"] is False
    assert found["down.weight"] is True
