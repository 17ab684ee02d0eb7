"""
Readings that need the owner's reference: aligning takes the whole suspect, so it is only done where a cheap look at anchors says kin.

What is compared is no carrier: rows of the tensor nearest to the image (a stem, a patch embedding), whatever their order, scale and sign. Those of
a descendant are still those of the reference; those of another model are not. It decides what is read, never what counts as found.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..backbones import is_plain, shapes_in
from ..backbones.stored.view import holds_codes
from ..evidence import Evidence
from ..serialization import InvalidInput, SafetensorsFolder
from ..suspects import Suspect
from ..suspects.remote import Part
from ..suspects.stored import live_as_meant
from ..verification.reference import open_reference
from .keys import WatchedKey
from .shared import SharedWeights


# Median over the suspect's rows of the best |cosine| to a row of the reference. Fine-tuned copies have more than 0.99, others less than 0.9.
KIN = 0.95
# Rows that are compared.
ROWS = 16
# Bytes of the reference's tensor, and of a suspect that is read as a whole.
MOST_COMPARED, MOST_ALIGNED = 2**23, 2**30
_REFERENCES: dict[str, Any] = {}


def reference_of(key: WatchedKey) -> Any:
    """The owner's model, opened once per process."""
    if key.folder not in _REFERENCES:
        _REFERENCES[key.folder] = open_reference(key.reference, key.key.backbone)
    return _REFERENCES[key.folder]


def align(key: WatchedKey, suspect: Suspect, weights: SharedWeights, direct: Evidence) -> Evidence | None:
    """
    The stronger of the direct and the aligned reading of a suspect that may be kin; `None` where it is not, or cannot be aligned. Costs a
    request, and where they are kin the whole file.

    Args:
        direct ([`~evidence.Evidence`]):
            What the direct reading gave, or why there was none.
    """
    from ..verification.aligned import verify_aligned

    carriers = {carrier.name for reader in key.verifiers for carrier in reader.carriers}
    if weights.size > MOST_ALIGNED or not are_kin(SafetensorsFolder(key.reference), weights, carriers):
        return None
    reference = reference_of(key)  # a model is built for kin only
    tensors, _ = live_as_meant(weights.whole())
    copy = Suspect(weights.name, tensors, shapes_in(tensors))
    copy.unread = suspect.unread
    try:
        return verify_aligned(
            list(key.verifiers), copy, key.check, lambda: reference, start=key.key.context.start, direct=direct
        )
    except InvalidInput:
        return None


def are_kin(reference: Mapping[str, torch.Tensor], weights: SharedWeights, carriers: Collection[str]) -> bool:
    """Whether the rows of the reference's first weight are found among those of one of the suspect; also where it has none to compare."""
    own = next(
        (tensor for name, tensor in reference.items() if _comparable(tensor) and not _is_one_of(name, carriers)), None
    )
    if own is None:
        return True
    rows = _unit(own)
    alike = [name for name, shape in weights.shapes.items() if _fits(shape, own) and is_plain(weights.dtypes[name])]
    for name in alike[:2]:
        # Some rows of the suspect tell as much as all: each of a descendant's is one of the reference's.
        part = Part(name, 0, min(ROWS, weights.shapes[name][0]))
        best = (_unit(weights.fetch([part])[part]) @ rows.T).abs().amax(dim=1)
        if float(best.median()) >= KIN:
            return True
    # Stored in a form whose rows cannot be compared as they are: the whole has to say.
    return not alike and holds_codes(weights)


def _is_one_of(name: str, carriers: Collection[str]) -> bool:
    """Whether a tensor is a carrier; the file may have a prefix that the key's model had not, or the other way round."""
    return any(name == other or name.endswith(f".{other}") or other.endswith(f".{name}") for other in carriers)


def _comparable(tensor: torch.Tensor) -> bool:
    """Rows that look at an image: 1 or 3 channels, and enough numbers each to be told apart."""
    return (
        tensor.ndim == 4
        and tensor.shape[1] in (1, 3)
        and tensor.shape[0] >= 8
        and tensor[0].numel() >= 9
        and 4 * tensor.numel() <= MOST_COMPARED
    )


def _fits(shape: tuple[int, ...], own: torch.Tensor) -> bool:
    return len(shape) == 4 and shape[1:] == tuple(own.shape[1:]) and own.shape[0] / 2 <= shape[0] <= 2 * own.shape[0]


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    rows = tensor.detach().float().flatten(1).cpu()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
