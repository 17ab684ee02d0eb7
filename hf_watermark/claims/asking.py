"""What a judge may ask for next, and of whom, where a claim was not decided or a mark may still be hidden."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

from ..evidence import SELF_CHECK, Evidence, Verdict
from ..publishing.findings import LevelReport
from ..publishing.order import AUTHORITIES, Order
from .reading import Reader


CLAIMANT, OTHER_SIDE, YOURSELF = "the claimant", "the other side, or who published the suspect", "yourself"
ONLY_PUBLISHED = (
    "channels were aligned to the claimant's published model only, so reordered ones are not excluded; ask the claimant for the model as it "
    "was before the mark"
)


@dataclass(frozen=True)
class Request:
    """
    Args:
        option (`str`):
            The option that takes it, in the command line.
        whom (`str`):
            Who can supply it.
        what (`str`):
            What it is, and what it helps.
    """

    option: str
    whom: str
    what: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def requests_of(
    reader: Reader, evidence: Evidence, order: Order, report: LevelReport, appeared: datetime | None
) -> list[Request]:
    """What would help, the most useful first; nothing where the mark was found, or the claim does not hold."""
    if evidence.verdict in (Verdict.FOUND, Verdict.INVALID):
        return []
    return list(_requests(reader, evidence, order, report, appeared))


def aligned_to_published(reader: Reader, evidence: Evidence) -> bool:
    """Whether reordered channels were undone by something else than the model that the key was made for, or by nothing."""
    return reader.aligns and not evidence.details.get("alignment", {}).get("committed_reference", False)


def _requests(
    reader: Reader, evidence: Evidence, order: Order, report: LevelReport, appeared: datetime | None
) -> Iterator[Request]:
    if not evidence.trials:
        what = "the suspect in safetensors, under the names of its library: this one could not be read"
        yield Request("--suspect", OTHER_SIDE, what)
    if aligned_to_published(reader, evidence):
        again = ", for what was delivered is another one" if reader.reference.wrong else ""
        what = (
            f"the model as it was before the mark{again}; by it, reordered channels are undone, and no date is needed"
        )
        yield Request("--start", CLAIMANT, what)
    if evidence.log2_p > SELF_CHECK:
        return
    if evidence.capped:
        yield Request(
            "--unmarked", OTHER_SIDE, "the model that the suspect was made from, or a public base of it, as a control"
        )
    short = not evidence.capped and not order.bound
    if report.dates.statement is None or (short and report.dates.authorities < AUTHORITIES):
        what = "the certificates of the authorities that dated the statement; look up yourself whether they are theirs"
        yield Request("--trust", CLAIMANT, what)
    if appeared is None:
        yield Request("--suspect-date", OTHER_SIDE, "when the suspect appeared first")
    if short and report.dates.beacon is None:
        yield Request("--beacon", YOURSELF, "the public value that the key is bound to, as its source gives it")


__all__ = ["ONLY_PUBLISHED", "Request", "aligned_to_published", "requests_of"]
