"""Files that hold the marked model's own tensors, stored in another way or beside tensors that nobody reads."""

import json

import pytest
import torch
from disguises import WAYS, Disguise, check, stored, write_raw
from safetensors.torch import save_file


def beside(**tensors):
    """The marked model and tensors that no model has a use for."""
    return Disguise(lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()})


def cast(dtype, tolerance=0.05):
    def load(get, name):
        return get(name).float()

    return Disguise(
        lambda state: {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}, load, None, tolerance
    )


def sharded(index):
    """In four files, in no particular order; with the index that says which, or without."""

    def make(state, folder):
        names = sorted(state, key=lambda name: hash_of(name))
        files = {f"part-{i}.safetensors": {n: state[n] for n in names[i::4]} for i in range(4)}
        for file, tensors in files.items():
            save_file(tensors, folder / file)
        if index:
            weight_map = {name: file for file, tensors in files.items() for name in tensors}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index(weight_map)}))

    return Disguise(make)


def hash_of(name):
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 10007


def with_metadata(state, folder):
    save_file(state, folder / "model.safetensors", {"format": "flax", "note": "a: b / c", "é": "\n" * 100})


def shuffled(state, folder):
    names = sorted(state, key=hash_of)
    write_raw(folder, stored({name: state[name] for name in names}))


def of_type(dtype, shape, data):
    def make(state, folder):
        write_raw(folder, [("aaa.first", dtype, shape, data), *stored(state), ("zzz.last", dtype, shape, data)])

    return Disguise(make)


def codes(state):
    """uint8 with a scale and a zero point per row, as asymmetric quantisation stores it."""
    files = {}
    for name, tensor in state.items():
        if tensor.ndim < 4:
            files[name] = tensor
            continue
        low, high = (each(tensor.flatten(1), 1)[:, None, None, None] for each in (torch.amin, torch.amax))
        scale = (high - low) / 255
        zero = (-low / scale).round()
        files |= {
            name: (tensor / scale + zero).round().clamp(0, 255).byte(),
            f"{name}_scale": scale.flatten(),
            f"{name}_zero_point": zero.flatten().byte(),
        }
    return files


def decoded(get, name):
    tensor = get(name)
    if tensor.dtype is not torch.uint8:
        return tensor
    scale, zero = (get(f"{name}_{part}").float()[:, None, None, None] for part in ("scale", "zero_point"))
    return (tensor.float() - zero) * scale


ELSEWHERE: dict[str, torch.Tensor] = {}


def codes_alone(state):
    """int8 codes whose scales only the program knows that loads them."""
    ELSEWHERE.update({name: tensor.abs().max() / 127 for name, tensor in state.items() if tensor.ndim == 4})
    return {
        name: (tensor / ELSEWHERE[name]).round().char() if name in ELSEWHERE else tensor
        for name, tensor in state.items()
    }


def scaled_elsewhere(get, name):
    return get(name).float() * ELSEWHERE.get(name, 1.0)


def channels_last(state):
    return {name: tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor for name, tensor in state.items()}


def channels_first(get, name):
    tensor = get(name)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def kernels_first(state):
    return {name: tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor for name, tensor in state.items()}


def from_kernels_first(get, name):
    tensor = get(name)
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor


def with_optimizer(state):
    moments = {f"optimizer.{kind}.{name}": torch.rand_like(t.float()) for name, t in state.items() for kind in "mv"}
    return state | moments | {"optimizer.step": torch.tensor(7), "optimizer.flat": torch.rand(100_000)}


CASES = {
    "bf16": cast(torch.bfloat16),
    "fp16": cast(torch.float16),
    "f64": cast(torch.float64, 1e-4),
    "float8": cast(torch.float8_e4m3fn, 2.0),
    "shards and index": sharded(dict),
    "shards without index": sharded(None),
    "an index that forgets half": sharded(
        lambda whole: dict(list(whole.items())[::2]) | dict(list(whole.items())[-1:])
    ),
    "metadata": Disguise(with_metadata),
    "shuffled": Disguise(shuffled),
    "optimizer": Disguise(with_optimizer),
    "an unused classifier": beside(head__weight=torch.randn(1000, 64), head__bias=torch.randn(1000)),
    "counters stripped": Disguise(lambda state: {n: t for n, t in state.items() if "num_batches" not in n}),
    "NaN": beside(extra=torch.tensor([float("nan")] * 3)),
    "infinity": beside(extra__weight=torch.full((2, 2), float("inf"))),
    "empty": beside(probe=torch.zeros(0), rows=torch.zeros(3, 0, 2)),
    "complex": beside(freqs_cis=torch.ones(2, dtype=torch.complex64)),
    "scales of powers of two": beside(s=torch.ones(2).to(torch.float8_e8m0fnu)),
    "uint16, uint32, bool": beside(
        a=torch.ones(2, dtype=torch.uint16), b=torch.ones(2, dtype=torch.uint32), c=torch.tensor(True)
    ),
    "four bits": of_type("F4", (2, 2), b"ab"),
    "six bits": of_type("F6_E3M2", (4,), b"abc"),
    "uint8 codes": Disguise(codes, decoded, None, 0.1),
    "int8 codes without a scale": Disguise(
        codes_alone, scaled_elsewhere, "holds int8 codes and no scale stands beside it", 0.2
    ),
    "[out, height, width, in]": Disguise(channels_last, channels_first),
    "[height, width, in, out]": Disguise(kernels_first, from_kernels_first, "the key was made for"),
}


# A judge reads as everybody does; one case of each kind goes before him.
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_read(name, way, resnet, hub, tmp_path):
    check(CASES[name], resnet, tmp_path / "suspect", way, hub)
