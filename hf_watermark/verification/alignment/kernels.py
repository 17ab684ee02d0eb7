"""
Whether a network sees its pictures turned: the kernels of its first layer are then those of the reference after a quarter turn or in a mirror. Its
channels may lie in any order and have any scale, so each kernel is compared with all.
"""

from collections.abc import Iterator, Mapping

import torch


COLOURS = 4
# Mean agreement of each kernel with its best one; unrelated ones of 64 reach about 0.3, and few pixels more.
ALIKE, AHEAD = 0.8, 0.15
LARGEST = 2**22


@torch.no_grad()
def turned_in_words(suspect: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> str:
    """Why a mark may be there that is not seen: empty where the first layer does not say that all kernels were turned."""
    shape = next((tuple(tensor.shape) for tensor in reference.values() if _is_first(tensor)), None)
    if shape is None:
        return ""
    own = [tensor for tensor in reference.values() if tuple(tensor.shape) == shape]
    there = [tensor for tensor in suspect.values() if tuple(tensor.shape) == shape and tensor.is_floating_point()]
    for mine, other in zip(own[:1], there[:1], strict=False):
        plain, *turned = (_agreement(each, mine) for each in _turns(other))
        if max(turned) > max(ALIKE, plain + AHEAD):
            return (
                "the kernels of its first layer are those of the reference, turned or mirrored: its pictures are turned before it sees them; turn all kernels "
                "back and check that"
            )
    return ""


def _is_first(tensor: torch.Tensor) -> bool:
    shape = tensor.shape
    return (
        len(shape) == 4
        and shape[1] <= COLOURS
        and shape[0] >= 8
        and shape[2] == shape[3] > 1
        and tensor.numel() < LARGEST
    )


def _turns(kernels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The eight symmetries of the square, the first of which leaves all as it is."""
    for mirrored in (kernels, kernels.flip(-1)):
        for quarters in range(4):
            yield mirrored.rot90(quarters, (2, 3))


def _agreement(kernels: torch.Tensor, reference: torch.Tensor) -> float:
    ours, theirs = (torch.nn.functional.normalize(each.flatten(1).float(), dim=1) for each in (kernels, reference))
    return float((ours @ theirs.to(ours.device).T).abs().amax(1).mean())
