"""Ways to store a model that no list names. None may make an honest mark look absent."""

import pytest
import torch
from disguises import WAYS, Disguise, check, look


CARRIERS = tuple(f"resnet.encoder.stages.{stage}.layers.0.layer.1" for stage in (0, 1))
WEIGHTS = tuple(f"{name}.convolution.weight" for name in CARRIERS)


def with_carriers(change):
    """`change(name, weight)` gives the tensors that stand for a carrier."""

    def make(state):
        files = {name: tensor for name, tensor in state.items() if name not in WEIGHTS}
        for name in WEIGHTS:
            files |= change(name, state[name])
        return files

    return make


def carriers(build):
    """Loads a carrier as `build(get, name)`, and everything else under its name."""
    return lambda get, name: build(get, name) if name in WEIGHTS else get(name)


def noise(weight):
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))


def masked(name, weight):
    return {f"{name}_orig": weight, f"{name}_mask": torch.ones_like(weight)}


def normed(name, weight):
    size = weight.flatten(1).norm(dim=1)[:, None, None, None]
    root = f"{name.removesuffix('weight')}parametrizations.weight"
    return {f"{root}.original0": size, f"{root}.original1": weight / size}


def from_normed(get, name):
    root = f"{name.removesuffix('weight')}parametrizations.weight"
    return get(f"{root}.original0") * get(f"{root}.original1")


def as_difference(name, weight):
    return {f"{name}.base": noise(weight), f"{name}.delta": weight - noise(weight)}


def halves(name, weight):
    return {f"{name}.{number}": part for number, part in enumerate(weight.chunk(2))}


def sparse(name, weight):
    return {f"{name}.indices": weight.flatten().nonzero()[:, 0], f"{name}.values": weight.flatten()}


def from_sparse(get, name):
    side = 32 if name == WEIGHTS[0] else 64
    flat = torch.zeros(side * side * 9)
    flat[get(f"{name}.indices")] = get(f"{name}.values")
    return flat.reshape(side, side, 3, 3)


def signed_scale(name, weight):
    """int8 codes whose scale holds the sign of every row."""
    scale = weight.flatten(1).abs().amax(1) / 127 * (1 - 2.0 * (torch.arange(len(weight)) % 2))
    return {name: (weight / scale[:, None, None, None]).round().char(), f"{name}_scale": scale}


def from_signed_scale(get, name):
    return get(name).float() * get(f"{name}_scale")[:, None, None, None]


def float8_and_a_scale(name, weight):
    scale = 1 - 2.0 * (torch.arange(len(weight)) % 2)
    return {name: (weight * scale[:, None, None, None]).to(torch.float8_e4m3fn), f"{name}_scale": scale}


def bits(name, weight):
    return {name: weight.view(torch.int32)}


def hidden_behind_names(name, weight):
    """Noise where the carrier is expected, and the carrier where nobody looks."""
    return {name: noise(weight), f"{abs(hash_of(name)):x}": weight}


def hash_of(name):
    return sum(ord(letter) * 257**place for place, letter in enumerate(name)) % 1000003


def scale_hidden(state):
    """The normalisation is folded into the carrier, and random signs stay where it was."""
    files = dict(state)
    for name in CARRIERS:
        norm = f"{name}.normalization"
        slope = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        files[f"{name}.convolution.weight"] = state[f"{name}.convolution.weight"] * slope[:, None, None, None]
        files[f"{name}.convolution.bias"] = state[f"{norm}.bias"] - slope * state[f"{norm}.running_mean"]
        files[f"{norm}.weight"] = torch.randn(len(slope)).sign()
    return files


def without_norms(get, name):
    """The layers behind the carriers are left out; their shift is the convolution's bias."""
    carrier = next((c for c in CARRIERS if name.startswith(f"{c}.normalization.")), None)
    if carrier is None:
        return get(name)
    size = len(get(f"{carrier}.convolution.bias"))
    neutral = {
        "weight": torch.full((size,), (1 + 1e-5) ** 0.5),
        "running_mean": torch.zeros(size),
        "running_var": torch.ones(size),
    }
    return neutral.get(name.rpartition(".")[2], get(f"{carrier}.convolution.bias"))


def fused(state):
    """As above, and nothing is left behind."""
    return {name: tensor for name, tensor in scale_hidden(state).items() if not name.startswith(tuple(f"{c}.normal" for c in CARRIERS))}  # fmt: skip


MISSING = "no tensors of the key's names"
CASES = {
    "a further axis": Disguise(with_carriers(lambda n, w: {n: w[..., None]}), carriers(lambda get, n: get(n)[..., 0])),
    "flat rows": Disguise(
        with_carriers(lambda n, w: {n: w.flatten(1)}), carriers(lambda get, n: get(n).reshape(len(get(n)), -1, 3, 3))
    ),
    "signs in the scale": Disguise(with_carriers(signed_scale), carriers(from_signed_scale), None, 0.2),
    "folded": Disguise(fused, without_norms),
    "folded, signs left behind": Disguise(scale_hidden, without_norms),
    "pruning's names": Disguise(
        with_carriers(masked), carriers(lambda get, n: get(f"{n}_orig") * get(f"{n}_mask"))
    ),
    "weight norm": Disguise(with_carriers(normed), carriers(from_normed)),
    "one axis in front": Disguise(with_carriers(lambda n, w: {n: w[None]}), carriers(lambda get, n: get(n)[0]), "another architecture"),
    "base and difference": Disguise(
        with_carriers(as_difference), carriers(lambda get, n: get(f"{n}.base") + get(f"{n}.delta")), MISSING
    ),
    "two halves": Disguise(with_carriers(halves), carriers(lambda get, n: torch.cat([get(f"{n}.0"), get(f"{n}.1")])), MISSING),
    "sparse": Disguise(with_carriers(sparse), carriers(from_sparse), MISSING),
    "complex": Disguise(
        with_carriers(lambda n, w: {n: torch.complex(w, w)}), carriers(lambda get, n: get(n).real), "stored as complex64"
    ),
    "float8 with signs in a scale": Disguise(
        with_carriers(float8_and_a_scale),
        carriers(lambda get, n: get(n).float() * get(f"{n}_scale")[:, None, None, None]),
        "is not positive",
        2.0,
    ),
    "bits as integers": Disguise(with_carriers(bits), carriers(lambda get, n: get(n).view(torch.float32)), "holds int32 codes"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_read_or_named(name, way, resnet, hub, tmp_path):
    check(CASES[name], resnet, tmp_path, way, hub)


@pytest.mark.parametrize("way", WAYS)
def test_carriers_behind_other_names(way, resnet, hub, tmp_path):
    """By how their rows are spread they are found where nobody looks; over a network only what the names say is read, which is said."""
    load = carriers(lambda get, name: get(f"{abs(hash_of(name)):x}"))
    why = "under names that no library uses" if way == "ranges" else None
    check(Disguise(with_carriers(hidden_behind_names), load, why), resnet, tmp_path, way, hub)


@pytest.mark.parametrize("way", ["folder", "ranges"])
def test_signs_in_a_layer_scale(way, vit, hub, tmp_path):
    """A vision transformer with a LayerScale that takes back what was done to the rows: a part of the model, unlike a vector nobody reads."""

    def make(state):
        for number in range(4):
            sign = torch.randn(64, generator=torch.Generator().manual_seed(number)).sign()
            state[f"vit.layers.{number}.mlp.fc2.weight"] *= sign[:, None]
            state[f"vit.layers.{number}.mlp.fc2.bias"] *= sign
            state[f"vit.layers.{number}.layer_scale2.lambda1"] = sign
        return state

    def load(get, name):
        if ".mlp.fc2." not in name:
            return get(name)
        sign = get(name.partition(".mlp.")[0] + ".layer_scale2.lambda1")
        return get(name) * (sign[:, None] if name.endswith("weight") else sign)

    check(Disguise(make, load), vit, tmp_path, way, hub)


def test_a_stranger_is_still_a_stranger(resnet, tmp_path, dated):
    """None of this finds a mark where there is none, and a plain file of another model is `not found`, not `inconclusive`."""
    from shops import small_model

    stranger = small_model(seed=77)
    for name in (
        "a further axis",
        "signs in the scale",
        "folded, signs left behind",
        "pruning's names",
        "weight norm",
    ):
        folder = CASES[name].write(stranger.state_dict(), tmp_path / name.replace(" ", "-"))
        assert str(look(resnet, folder, "folder")[0]) in ("not found", "inconclusive")
    stranger.save_pretrained(tmp_path / "plain")
    assert str(look(resnet, tmp_path / "plain", "folder")[0]) == "not found"


def with_an_idle_block(state):
    """A block that writes nothing in front; the marked ones have the next numbers."""
    moved = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) + 1)
        moved[".".join(parts)] = tensor
        if parts[1] == "layers" and parts[2] == "1":
            parts[2], idle = "0", torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)) * 0.02
            if name.endswith(("o_proj.weight", "o_proj.bias", "fc2.bias")):
                idle = torch.zeros_like(tensor)
            elif name.endswith("fc1.bias"):
                idle = torch.full_like(tensor, -30.0)  # GELU gives 0, so the carrier behind it may hold anything
            moved[".".join(parts)] = idle
    return moved


@pytest.mark.parametrize("way", ["folder", "ranges", "reference"])
def test_a_block_that_does_nothing_in_front(way, vit, hub, tmp_path):
    names = [name for name in vit.state if name.startswith("vit.layers.0.")]
    assert any(name.endswith("o_proj.weight") for name in names) and any(name.endswith("fc1.bias") for name in names)

    def load(get, name):
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) + 1)
        return get(".".join(parts))

    check(Disguise(with_an_idle_block, load), vit, tmp_path, way, hub)
