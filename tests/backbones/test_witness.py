"""Tensors of one shape that carry each other's names are told apart by how their rows are spread."""

import random

import pytest
import timm
import torch
from zoo import lively

from hf_watermark import InvalidInput, Owner, mark_model, verify
from hf_watermark.backbones import Carrier, layout_of, read_carriers, witnessed
from hf_watermark.backbones.witness import resemblance, spread
from hf_watermark.evidence import Verdict
from hf_watermark.suspects import Suspect


NETS = {
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=4, num_classes=10),
        "blocks.",
        "mlp.fc2.weight",
    ),
    "resnet": (
        lambda: timm.create_model("resnet10t", layers=(4, 1, 1, 1), channels=(64, 16, 16, 16), num_classes=10),
        "layer1.",
        "conv2.weight",
    ),
}  # fmt: skip
CONFIGS = {
    "greedy_residuals": {"method": "greedy_residuals", "bits": 160, "group_size": 8, "subkeys": 2},
    "watermas": {"method": "watermas", "bits": 160, "subkeys": 2},
}


class Net:
    def __init__(self, name, method):
        build, self.prefix, self.carrier = NETS[name]
        torch.manual_seed(0)
        self.start = lively(build())
        images = torch.randn(16, 3, 32, 32)
        self.marked, self.key = mark_model(self.start, CONFIGS[method], Owner.create(), images, 1e9)
        self.state = self.marked.state_dict()

    def look(self, state, **options):
        return verify(Suspect("tensors", state, {n: tuple(t.shape) for n, t in state.items()}), self.key, **options)

    def exchanged(self, state, ends, order):
        result = dict(state)
        for end in ends:
            for old, new in enumerate(order):
                result[f"{self.prefix}{new}.{end}"] = state[f"{self.prefix}{old}.{end}"]
        return result


@pytest.fixture(
    scope="module", params=[("vit", "greedy_residuals"), ("vit", "watermas"), ("resnet", "greedy_residuals")]
)
def net(request):
    return Net(*request.param)


@pytest.mark.parametrize("order", [[1, 2, 3, 0], [0, 1, 3, 2]])
def test_carriers_under_each_others_names(net, order):
    evidence = net.look(net.exchanged(net.state, [net.carrier], order))
    assert evidence.found and evidence.rate > 0.95, evidence.reason
    assert min(part.looks for part in evidence.parts) > 1


def test_every_tensor_under_the_name_of_another(net):
    state, shuffle = net.state, random.Random(3)
    ends = sorted({name.split(".", 2)[2] for name in state if name.startswith(net.prefix)})
    for end in ends:
        order = [0, 1, 2, 3]
        shuffle.shuffle(order)
        state = net.exchanged(state, [end], order)
    assert net.look(state).found


def test_after_fine_tuning(net):
    generator = torch.Generator().manual_seed(1)
    state = net.exchanged(net.state, [net.carrier], [1, 2, 3, 0])
    tuned = {
        n: t + 0.1 * t.std() * torch.randn(t.shape, generator=generator) if t.ndim > 1 else t for n, t in state.items()
    }
    assert net.look(tuned).rate > 0.85


def test_the_owners_names_cost_no_look(net):
    assert {part.looks for part in net.look(net.state).parts} == {1}


def test_unmarked_nets_are_not_found(net):
    torch.manual_seed(9)
    strangers = [
        net.start.state_dict(),
        lively(NETS["vit" if net.prefix == "blocks." else "resnet"][0]()).state_dict(),
    ]
    for state in strangers:
        assert net.look(state).verdict is Verdict.NOT_FOUND
    exchanged = net.look(net.exchanged(net.start.state_dict(), [net.carrier], [1, 2, 3, 0]))
    assert exchanged.verdict is Verdict.INCONCLUSIVE and "names were exchanged" in exchanged.reason


def test_a_witness_knows_its_rows_whatever_their_scale_and_order_of_inputs():
    model = NETS["vit"][0]()
    carriers = witnessed(layout_of(model), model.state_dict())
    weights = [model.state_dict()[carrier.name] for carrier in carriers]
    for number, weight in enumerate(weights):
        scale = 10 ** torch.linspace(-2, 2, len(weight))[:, None]
        moved = (weight * scale)[:, torch.randperm(weight.shape[1])] / scale
        assert resemblance(moved / moved.square().mean(1, keepdim=True).sqrt(), carriers[number].witness) > 0.99
        other = weights[number - 1]
        assert resemblance(other / other.square().mean(1, keepdim=True).sqrt(), carriers[number].witness) < 0.5


def test_no_witness_where_there_are_no_values_or_few_rows():
    with torch.device("meta"):
        model = NETS["vit"][0]()
    assert not any(carrier.witness for carrier in witnessed(layout_of(model), model.state_dict()))
    carrier = Carrier("w", 8, 64, name="w")
    assert not witnessed([carrier], {"w": torch.randn(8, 64)})[0].witness
    assert spread(torch.ones(40, 4)).tolist() == [0.0] * 40


@pytest.mark.parametrize("witness", ["0", "0G", "ab" * 65, "AB", None, 7])
def test_a_witness_that_is_none_is_refused(witness):
    data = Carrier("w", 8, 64).to_dict() | {"witness": witness}
    with pytest.raises(InvalidInput, match="witness"):
        read_carriers({"carriers": [data]})
