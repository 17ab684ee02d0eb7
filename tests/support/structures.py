"""Changes of structure that leave a model's answers alone, or nearly: blocks that do nothing, blocks left out, other numbers."""

import re

import torch


State = dict[str, torch.Tensor]


def with_block(state: State, prefix: str, at: int, like: int, silent: tuple[str, ...], copied: bool = False) -> State:
    """
    A state dict with one more residual block.

    Args:
        prefix (`str`): `"vit.layers."`.
        at (`int`): The new block's number; later ones move on.
        like (`int`): The block whose shapes it has, and with `copied` whose values.
        silent (`tuple[str, ...]`): Ends of the names of what is zero, so that it adds nothing to its stream.
    """
    generator = torch.Generator().manual_seed(at)
    numbered = re.compile(rf"{re.escape(prefix)}(\d+)\.(.*)")
    result = {}
    for name, tensor in state.items():
        found = numbered.fullmatch(name)
        if found and int(found[1]) >= at:
            result[f"{prefix}{int(found[1]) + 1}.{found[2]}"] = tensor
        else:
            result[name] = tensor
        if found and int(found[1]) == like:
            new = tensor
            if tensor.is_floating_point() and not copied and "running_var" not in name:
                new = torch.randn(tensor.shape, generator=generator) * tensor.square().mean().sqrt()
            result[f"{prefix}{at}.{found[2]}" + "~"] = torch.zeros_like(tensor) if name.endswith(silent) else new
    return {name.removesuffix("~"): tensor for name, tensor in result.items()}


def without_block(state: State, prefix: str, at: int) -> State:
    """Without one block; later ones move up."""
    return renumbered(state, prefix, lambda number: None if number == at else number - (number > at))


def renumbered(state, prefix, number_of):
    """Blocks under other numbers; left out where there is none."""
    numbered = re.compile(rf"{re.escape(prefix)}(\d+)(\..*)")
    result = {}
    for name, tensor in state.items():
        found = numbered.fullmatch(name)
        if not found:
            result[name] = tensor
        elif (number := number_of(int(found[1]))) is not None:
            result[f"{prefix}{number}{found[2]}"] = tensor
    return result
