"""A suspect read in the coordinates of the owner's reference model, and the control of that reading."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...backbones import Carrier, canonical_rows, describe, images_taken
from ...backbones.merging import alike_merged
from ...evidence import CONTROL_LIMIT
from ...serialization import InvalidInput, named_tensors_digest
from ...statistics import log2_binomial_tail
from ...suspects import Suspect
from .align import AlignedWeights, Aligner
from .kernels import turned_in_words


class AlignedReading:
    """
    Aligns one suspect to one reference.

    Args:
        suspect ([`~suspects.Suspect`]):
            Must offer weights.
        reference (`nn.Module`):
            The owner's model.
        carriers (`list[Carrier]`):
            What the key's marks lie in; neither these nor the family's other carriers enter the fit.

    Attributes:
        suspect ([`~suspects.Suspect`]): The same network in the reference's coordinates.
        details (`dict`): The alignment's report.
        doubts (`list[str]`): Why a mark may be there that is not seen in these coordinates.

    Raises:
        [`~serialization.InvalidInput`]: when the reference cannot be traced or the suspect lacks its tensors.
    """

    def __init__(self, suspect: Suspect, reference: nn.Module, carriers: list[Carrier]):
        self.tensors = suspect.tensors()
        # A copy for inference is compared with one of the reference.
        reference = self.reference = alike_merged(reference, list(self.tensors))
        try:
            self.aligner = Aligner(reference, _with_family(reference, carriers), images_taken(reference))
        except InvalidInput:
            raise
        except Exception as error:  # operations that no rule knows, and exporters, fail in many ways
            raise InvalidInput(f"the reference cannot be aligned to: {error or type(error).__name__}") from None
        aligned = self.aligner.align(self.tensors)
        module = copy.deepcopy(reference)
        module.load_state_dict(aligned.tensors)
        self.suspect = Suspect.of_module(f"{suspect.name}, aligned", module.eval())
        self.details: dict[str, Any] = aligned.report.to_dict()
        turned = turned_in_words(self.tensors, reference.state_dict())
        self.doubts = aligned.report.doubts + [turned] * bool(turned)

    def control(self) -> dict[str, Any]:
        """Agreement of the suspect with random carriers, see [`decoy_agreement`]."""
        return decoy_agreement(self.aligner, self.tensors)


@torch.no_grad()
def decoy_agreement(
    aligner: Aligner, suspect: Mapping[str, torch.Tensor], carriers: list[Carrier] | None = None
) -> dict[str, Any]:
    """
    Aligns once more, to a reference whose carriers are random numbers. Their signs are coins that fell after the suspect was made, so the
    suspect agrees with half of them, unless the fit saw them.

    Args:
        carriers (`list[Carrier]`, *optional*):
            The carriers to replace; by default those that the aligner holds out.

    Returns:
        `dict`: `agreement` (share), `weights` (count), `log2_p` of the exact test, and `failed` when that is below 2^-41.
    """
    carriers = carriers or aligner.carriers
    aligned: AlignedWeights
    # The same for everybody who repeats the check.
    seed = int.from_bytes(bytes.fromhex(named_tensors_digest(suspect))[:8], "big") >> 1
    decoy, aligned = aligner.with_random_carriers(carriers, suspect, seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in decoy.items()}
    same = count = 0
    for carrier in carriers:
        own, theirs = (canonical_rows(carrier, tensors, shapes) for tensors in (decoy, aligned.tensors))
        live = (own != 0) & (theirs != 0)
        same += int((own * theirs > 0)[live].sum())
        count += int(live.sum())
    log2_p = log2_binomial_tail(same, count) if count else 0.0
    result: dict[str, Any] = {
        "agreement": round(same / count, 4) if count else 0.0,
        "weights": count,
        "log2_p": round(log2_p, 2),
    }
    if log2_p <= CONTROL_LIMIT:
        result["failed"] = (
            f"the aligned suspect agrees with random carriers in {result['agreement']:.4f} of {count} signs"
        )
    return result


def _with_family(reference: nn.Module, carriers: list[Carrier]) -> list[Carrier]:
    shapes = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
    try:
        family = describe(shapes)
    except InvalidInput:
        family = []
    known = {carrier.role for carrier in carriers}
    return [*carriers, *(carrier for carrier in family if carrier.role not in known)]
