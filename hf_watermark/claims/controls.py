"""
Checks of the check: the claimant's own model must show the mark, models without it must not, and what an aligned reading leaves open.

A reference that is older than the suspect is not enough where both descend from a public model that is older than either: the claimant can
reorder that model's channels until it says his key's bits, and everything that others make of it then aligns to his. Nothing in his own files
shows that. So an aligned reading counts in two cases: by the model that the key was made for, which its bits depend on and not the other way
round; or where a common ancestor, read as the suspect was, aligns and carries no mark.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..evidence import CONTROL_LIMIT, UNDATED, Check, Evidence, Verdict
from ..publishing.findings import Outcome
from ..publishing.order import Order
from .judgement import Steps
from .reading import Model, Reader


COMMON_ORIGIN = (
    "the mark was read in the coordinates of the claimant's published model. If both descend from a model that is older than that one, the "
    "claimant could have made his model from it by reordering channels. Let the claimant deliver the model that his key was made for "
    "(`start`), or ask the other side what it started from and give that as `unmarked`"
)
# Share of the carriers that an alignment must recognise in a model to call it a relative; strangers have none.
RECOGNISED = 0.5


def controls_of(reader: Reader, plan: Check, unmarked: Mapping[str, Any], steps: Steps) -> dict[str, Evidence]:
    """The claimant's own model must pass, unmarked ones must not; decoy keys are part of every verification."""
    once = replace(plan, looks=1)
    own = reader.read_directly(Model(reader.reference.publication), once)
    outcome = Outcome.PASSED if own.verdict is Verdict.FOUND else Outcome.FAILED
    detail = f"the sub-key on the claimant's own model: {own.verdict}, {own.reason}"
    steps.control("published model", outcome, detail)
    results = {"published model": own}
    for name, model in unmarked.items():
        # Through the same code as the suspect, aligned like it.
        evidence = reader.read(Model(model), once)
        outcome = Outcome.FAILED if evidence.log2_p <= CONTROL_LIMIT else Outcome.PASSED
        detail = f"{name} without the mark: log2 p = {evidence.log2_p:.1f}"
        if not evidence.trials:
            outcome, detail = Outcome.OPEN, f"{name} without the mark: {evidence.reason}"
        steps.control(name, outcome, detail)
        results[name] = evidence
    return results


def doubt_of(order: Order, controls: Mapping[str, Evidence], unmarked: Mapping[str, Any]) -> str:
    """Why a reading in the coordinates of the claimant's published model is no claim; empty where it is one."""
    if order.undated:
        return f"{UNDATED}. Missing: {'; '.join(order.undated)}"
    return "" if _relatives(controls, unmarked) else COMMON_ORIGIN


def name_reference(
    reader: Reader,
    evidence: Evidence,
    order: Order,
    unmarked: Mapping[str, Any],
    controls: Mapping[str, Evidence],
    steps: Steps,
) -> None:
    """What became of the aligned reading."""
    if not reader.aligns or evidence.verdict is Verdict.INVALID:
        return
    if reader.reference.wrong:
        steps.note("start", Outcome.OPEN, f"{reader.reference.wrong}. The claimant's published model took its place")
    if "alignment" not in evidence.details:
        outcome = Outcome.PASSED if evidence.found else Outcome.OPEN
        detail = "not needed: the mark was read directly" if evidence.found else "; ".join(evidence.warnings)
        steps.note("reference", outcome, detail or "the suspect was not aligned")
        return
    if evidence.details["alignment"]["committed_reference"]:
        detail = "aligned to the model that the key was made for, which it committed to before its bits were drawn"
        steps.note("reference", Outcome.PASSED, detail)
        return
    if order.undated:
        detail = f"aligned to the claimant's published model, which counts for nothing: {'; '.join(order.undated)}"
        steps.note("reference", Outcome.OPEN, detail)
        return
    steps.note("reference", Outcome.PASSED, "aligned to the claimant's published model, dated before the suspect")
    if evidence.found or evidence.capped:
        relatives = _relatives(controls, unmarked)
        outcome = Outcome.PASSED if relatives else Outcome.OPEN
        said = f"{', '.join(relatives)} aligns to the claimant's model as well, and carries no mark"
        steps.note("common origin", outcome, said if relatives else COMMON_ORIGIN)


def _relatives(controls: Mapping[str, Evidence], unmarked: Mapping[str, Any]) -> list[str]:
    """Controls that say something about a common origin: recognised in the claimant's model, and without the mark."""
    return [name for name in unmarked if _is_relative(controls[name])]


def _is_relative(control: Evidence) -> bool:
    """Whether an unmarked model was recognised in the claimant's: only then does it say something about a common origin."""
    alignment = control.details.get("alignment")
    return alignment is not None and alignment["carriers_readable"] >= RECOGNISED
