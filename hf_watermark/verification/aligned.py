"""A second look at a suspect: what may have been done to it without changing its answers is undone, and the mark is read again."""

from collections.abc import Callable

from torch import nn

from ..backbones import read_carriers
from ..evidence import SELF_CHECK, Access, Check, Evidence, Verdict
from ..keys import start_digest
from ..serialization import InvalidInput
from ..suspects import Suspect
from ..suspects.errors import HubError
from .alignment import AlignedReading
from .verifier import Verifier, unreadable, verify_claims


WRONG = (
    "the reference is not the model that the key was made for, nor one that carries its mark, so reordered channels could not be put back; "
    "give the model as it was when the key was made"
)


def verify_aligned(
    verifiers: list[Verifier],
    suspect: Suspect,
    check: Check,
    open_reference: Callable[[], nn.Module],
    start: str,
    direct: Evidence | None = None,
) -> Evidence:
    """
    The direct reading, and where that does not suffice the aligned one; the stronger of the two. Where there is no reference, the direct one
    with the reason.

    Args:
        direct ([`~evidence.Evidence`], *optional*):
            What the direct reading of this suspect gave, where it was done already.
    """
    failure: InvalidInput | None = None
    try:
        direct = direct or verify_claims(verifiers, suspect, check)
    except InvalidInput as error:  # lost or added channels, other names
        failure = error
    if direct is not None and direct.found:
        return direct
    try:
        reference = open_reference()
    except HubError:
        raise  # the network, not the reference
    except InvalidInput as error:
        return _unaligned(direct or unreadable(str(failure), check), f"nothing was aligned: {error}")
    carriers = [
        carrier
        for verifier in verifiers
        if verifier.access is Access.WEIGHTS
        for carrier in read_carriers(verifier.layout)
    ]
    try:
        reading = AlignedReading(suspect, reference, carriers)
        aligned = verify_claims(verifiers, reading.suspect, check)
    except InvalidInput as error:
        if direct is None:
            raise failure or error from None
        return _unaligned(direct, f"the suspect could not be aligned to the reference: {error}")
    # What the key commits to was there before its bits: nobody can have made it from the suspect to fit them (PROTOCOL.md §5.3).
    committed = start != "" and start_digest(reference.state_dict()) == start
    details = reading.details | {"committed_reference": committed}
    aligned.details["alignment"] = details
    if check.doubt and not committed:
        aligned.capped = check.doubt
        aligned.warnings.append(check.doubt)
        aligned.decide()
    if aligned.log2_p <= SELF_CHECK:
        details["control"] = control = reading.control()
        if control.get("failed"):
            aligned.controls["failed"] = control["failed"]
            aligned.decide()
    # Where the file could not be read as it is, seeing nothing by alignment does not mean that there is nothing.
    unread = direct is not None and direct.unread != "" and aligned.log2_p > SELF_CHECK
    if direct is not None and (unread or (direct.trials and direct.log2_p <= aligned.log2_p)):
        direct.details["alignment"] = details
        aligned = direct
    if aligned.verdict is Verdict.NOT_FOUND and reading.doubts:
        return _unaligned(aligned, reading.doubts[0])
    trusted = committed or (start == "" and not check.doubt)
    if aligned.verdict is Verdict.NOT_FOUND and not trusted and not _carries(reference, verifiers, check):
        return _unaligned(aligned, WRONG)
    return aligned


def _unaligned(evidence: Evidence, why: str) -> Evidence:
    """Where an alignment was asked for and could not be done, reordered channels may hide the mark: then "not found" is not said."""
    evidence.warnings.append(why)
    evidence.unread = evidence.unread or why
    return evidence.decide()


def _carries(reference: nn.Module, verifiers: list[Verifier], check: Check) -> bool:
    """Whether a reference that the key does not commit to is a model with its mark, whose channels are those of the key."""
    readers = [verifier for verifier in verifiers if verifier.reads_coordinates]
    try:
        return verify_claims(readers, Suspect.of_module("the reference", reference), check).log2_p <= SELF_CHECK
    except InvalidInput:
        return False
