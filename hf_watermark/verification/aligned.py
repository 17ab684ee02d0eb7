"""A second look at a suspect: what may have been done to it without changing its answers is undone, and the mark is read again."""

from collections.abc import Callable

from torch import nn

from ..backbones import read_carriers
from ..evidence import SELF_CHECK, Access, Check, Evidence
from ..keys import start_digest
from ..serialization import InvalidInput
from ..suspects import Suspect
from ..suspects.errors import HubError
from .alignment import AlignedReading
from .verifier import Verifier, unreadable, verify_claims


def verify_aligned(
    verifiers: list[Verifier],
    suspect: Suspect,
    check: Check,
    open_reference: Callable[[], nn.Module],
    start: str,
) -> Evidence:
    """
    The direct reading, and where that does not suffice the aligned one; the stronger of the two. Where there is no reference, the direct one
    with the reason.
    """
    direct: Evidence | None = None
    failure: InvalidInput | None = None
    try:
        direct = verify_claims(verifiers, suspect, check)
    except InvalidInput as error:  # lost or added channels, other names
        failure = error
    if direct is not None and direct.found:
        return direct
    try:
        reference = open_reference()
    except HubError:
        raise  # the network, not the reference
    except InvalidInput as error:
        direct = direct or unreadable(str(failure), check)
        direct.warnings.append(f"nothing was aligned: {error}")
        return direct
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
        direct.warnings.append(f"the suspect could not be aligned to the reference: {error}")
        return direct
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
        return direct
    return aligned
