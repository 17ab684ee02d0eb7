"""Several changes of structure at once: none may make a mark look absent, and none that is undone may make one appear."""

import copy

import pytest
import timm
import torch
from structures import renumbered, with_block
from zoo import lively

from hf_watermark import Owner, mark_model, verify, wrap_timm
from hf_watermark.attacks import DummyNeurons, MixHeads, Permute, Rescale, RotateResidual
from hf_watermark.evidence import Verdict
from hf_watermark.suspects import Suspect


ANY_BUDGET = 1e9
IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "num_classes": 10}
RESNET = {"channels": (64, 16, 16, 16), "num_classes": 10}
# How to build the net with so many blocks in its stack, that stack, and what is zero in a block that adds nothing.
NETS = {
    "vit": (
        lambda depth: timm.create_model("vit_tiny_patch16_224", depth=depth, **VIT),
        "blocks.",
        ("proj.weight", "proj.bias", "fc2.weight", "fc2.bias"),
    ),
    "resnet": (
        lambda depth: timm.create_model("resnet10t", layers=(depth, 1, 1, 1), **RESNET),
        "layer1.",
        ("bn2.weight", "bn2.bias"),
    ),
}
CHANGES = {
    "permuted": [Permute()],
    "rescaled": [Permute(), Rescale(1.0)],
    "everything free": [Permute(), Rescale(1.0), RotateResidual(), MixHeads()],
    "split units": [DummyNeurons("split")],
}


class Net:
    def __init__(self, name):
        self.build, self.prefix, self.silent = NETS[name]
        torch.manual_seed(0)
        self.start = lively(self.build(4))
        config = {"method": "greedy_residuals", "bits": 160, "group_size": 8, "subkeys": 2}
        self.marked, self.key = mark_model(self.start, config, Owner.create(), IMAGES, ANY_BUDGET)

    def longer(self, state, at=0, blocks=1, copied=False):
        """The net with blocks that add nothing, as a module: its answers are those of `state`."""
        for number in range(blocks):
            state = with_block(state, self.prefix, at, at + 1 - number % 2, self.silent, copied)
        model = self.build(4 + blocks)
        model.load_state_dict(state)
        return model.eval()

    def look(self, state, **options):
        suspect = Suspect("tensors", state, {name: tuple(tensor.shape) for name, tensor in state.items()})
        return verify(suspect, self.key, **options)


@pytest.fixture(scope="module", params=NETS)
def net(request):
    return Net(request.param)


def attacked(model, attacks):
    wrapped = wrap_timm(copy.deepcopy(model), "resnet10t", 10)
    for attack in attacks:
        try:
            wrapped = attack(wrapped, [{"pixel_values": IMAGES[0]}])
        except ValueError:  # the net has no handle for it
            continue
    return wrapped.timm_model.eval()


def reordered_head(state):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    heads = [name for name in state if name.startswith(("head.", "fc."))]
    return state | {name: state[name][order] for name in heads}


@pytest.mark.parametrize("change", CHANGES)
def test_a_surplus_block_and_other_coordinates_and_names_and_classes(net, change):
    longer = net.longer(net.marked.state_dict(), at=1)
    other = attacked(longer, CHANGES[change])
    with torch.no_grad():
        wanted, answers = net.marked(IMAGES), other(IMAGES)
    assert (wanted - answers).abs().max() <= 1e-3 * wanted.abs().max()
    state = {f"model._orig_mod.{n}": t for n, t in reordered_head(other.state_dict()).items()}
    evidence = net.look(state, reference=net.start)
    assert evidence.found and evidence.rate > 0.95, (evidence.reason, evidence.details.get("alignment"))


def test_copies_of_blocks_from_the_public_start(net):
    """What is put in resembles the reference more than the marked blocks themselves do."""
    state = net.marked.state_dict()
    generator = torch.Generator().manual_seed(3)
    tuned = {
        name: tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1
        else tensor
        for name, tensor in state.items()
    }
    longer = with_block(tuned, net.prefix, 1, 1, net.silent)
    start = net.start.state_dict()
    # The block that adds nothing has all anchors of the start's block 1.
    for name, tensor in start.items():
        if name.startswith(f"{net.prefix}1.") and not name.endswith(net.silent):
            longer[name] = tensor.clone()
    evidence = net.look(longer, reference=net.start)
    assert evidence.found, (evidence.reason, evidence.details.get("alignment"))


def test_a_copy_that_is_loud_and_idle_makes_no_verdict_at_worst(net):
    """Anchors of the start's block, a carrier of any size, and a shift that keeps it idle."""
    state = with_block(net.marked.state_dict(), net.prefix, 1, 2, (), copied=True)
    block = f"{net.prefix}1."
    generator = torch.Generator().manual_seed(4)
    for name in [name for name in state if name.startswith(block)]:
        if name.endswith(("proj.weight", "proj.bias", "fc2.bias", "bn2.bias")):
            state[name] = torch.zeros_like(state[name])
        elif name.endswith(("fc1.bias", "bn1.bias")):
            state[name] = torch.full_like(state[name], -1e3)
        elif name.endswith(("fc2.weight", "conv2.weight")):
            state[name] = torch.randn(state[name].shape, generator=generator)
    evidence = net.look(state, reference=net.start)
    assert evidence.verdict is not Verdict.NOT_FOUND, evidence.reason


def test_names_of_blocks_are_exchanged_and_channels_too(net):
    other = attacked(net.marked, [Permute()])
    state = renumbered(other.state_dict(), net.prefix, {0: 0, 1: 2, 2: 3, 3: 1}.__getitem__)
    evidence = net.look(state, reference=net.start)
    assert evidence.found, (evidence.reason, evidence.details.get("alignment"))


INPUTS = {
    "grey": lambda weight: weight.sum(dim=1, keepdim=True),
    "a fourth channel": lambda weight: torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1),
    "four channels as timm makes them": lambda weight: torch.cat([weight, weight[:, :1]], dim=1) * 0.75,
}


@pytest.mark.parametrize("inputs", INPUTS)
def test_images_of_other_channels_and_a_new_head(net, inputs):
    state = attacked(net.marked, [Permute(), Rescale(1.0)]).state_dict()
    stem = next(name for name, tensor in state.items() if tensor.ndim == 4)
    head = next(name for name in state if name in ("head.weight", "fc.weight"))
    state |= {stem: INPUTS[inputs](state[stem]), head: torch.randn(7, state[head].shape[1])}
    evidence = net.look(state, reference=net.start)
    assert evidence.found and evidence.rate > 0.95, (evidence.reason, evidence.details.get("alignment"))


# --- Nothing of this makes a mark appear


@pytest.mark.parametrize("seed", range(4))
def test_an_unmarked_net_shows_nothing_however_its_blocks_lie(net, seed):
    torch.manual_seed(100 + seed)
    other = net.build(6)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for reference in (None, net.start):
        evidence = net.look(other.state_dict(), reference=reference)
        assert evidence.log2_p > -20 and not evidence.found


def test_blocks_chosen_for_their_matches_are_charged(net):
    """Of six unmarked blocks those four in order that match a key best: no better than the looks that are paid for."""
    torch.manual_seed(7)
    other = net.build(6)
    evidence = net.look(other.state_dict())
    assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.log2_p > -20
