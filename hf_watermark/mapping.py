"""Static lazy table of methods, the Auto classes, and `verify`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from .alignment import AlignedReading, open_reference
from .backbones import read_carriers
from .calibration import NullTable, with_null_control
from .configuration import CONFIG_NAME, WatermarkConfig
from .evidence import SELF_CHECK, Access, Basis, Check, Evidence
from .keys import NO_BEACON, Opening, SubKey, WatermarkKey, start_digest
from .sequential import SequentialResult, run_sequentially
from .serialization import InvalidInput, Unreadable, read_json
from .suspects import Suspect
from .trainer import WatermarkTrainer
from .verifier import Verifier, invalid_claim, unreadable, verify_claims


@dataclass(frozen=True)
class MethodEntry:
    """Where the classes of one method live, and a line for people."""

    module: str
    prefix: str
    access: str
    summary: str

    def load(self, suffix: str) -> Any:
        return getattr(import_module(f"hf_watermark.methods.{self.module}"), self.prefix + suffix)


METHODS = {
    "greedy_residuals": MethodEntry(
        "greedy_residuals", "GreedyResiduals", "weights", "bits in the signs of key-drawn weight groups"
    ),
    "function_coupled": MethodEntry(
        "function_coupled", "FunctionCoupled", "labels", "rules on images fused of two classes of the training data"
    ),
    "certified": MethodEntry(
        "certified", "Certified", "labels", "triggers that hold under parameter noise, with a proven radius"
    ),
    "watermas": MethodEntry(
        "watermas", "WaterMAS", "weights", "bits in the signs of single weights that the loss is sharp around"
    ),
    "usp": MethodEntry("soft_label", "USP", "probabilities", "a key-drawn template in the small probabilities"),
    "csp": MethodEntry("soft_label", "CSP", "probabilities", "a code word per licensee in the small probabilities"),
}


def method_entry(method: str) -> MethodEntry:
    if method not in METHODS:
        raise InvalidInput(f"method {method!r} does not exist; choose one of {', '.join(METHODS)}")
    return METHODS[method]


class AutoWatermarkConfig:
    """Builds the config class that a JSON names."""

    @staticmethod
    def from_dict(data: dict[str, Any]) -> WatermarkConfig:
        return method_entry(str(data.get("method"))).load("Config").from_dict(data)

    @staticmethod
    def from_pretrained(directory: str | Path) -> WatermarkConfig:
        return AutoWatermarkConfig.from_dict(read_json(Path(directory) / CONFIG_NAME, allow_floats=True))


class AutoTrainer:
    """Finds the trainer class of a method."""

    @staticmethod
    def for_method(method: str) -> type[WatermarkTrainer]:
        return method_entry(method).load("Trainer")


class AutoVerifier:
    """Finds the verifier class of a method."""

    @staticmethod
    def for_method(method: str) -> type[Verifier]:
        return method_entry(method).load("Verifier")


def verify(
    suspect: Any,
    key: WatermarkKey | Opening,
    looks: int = 1,
    beacon: bytes | None = None,
    budget: int | None = None,
    reference: nn.Module | str | Path | None = None,
    null_table: NullTable | None = None,
    own_reference: bool = False,
) -> Evidence:
    """
    Checks whether `suspect` carries the mark of `key`.

    The basis of the evidence is `self-check`: it is as good as the word of whoever gave you the key. A claim needs a verified statement:
    [`~claims.judge`], [`~claims.dispute`], [`~claims.verify_claim`], or `hf-watermark verify --statement`. Sub-keys that others may know
    (the public one, and those in the key folder's log) are shown and add no evidence.

    Args:
        suspect (`nn.Module`, `str`, `Path`, `Callable` or [`Suspect`]):
            A model, a folder or file of safetensors, a Hub repo `user/repo[@revision]`, or a function from images `[n, channels, height,
            width]` in the model's input space to labels `[n]` or probabilities `[n, classes]`.
        key ([`WatermarkKey`] or [`Opening`]):
            The owner's key, or one disclosed sub-key.
        looks (`int`, *optional*, defaults to 1):
            How many variants of this check were or will be tried (suspect snapshots, sub-keys); charged as log2(looks) bits.
        beacon (`bytes`, *optional*):
            The public random value that the verifier looked up himself for the date of the precommit. Only when it is the one the
            key was bound to is level B enough; a beacon that the claimant names could have been searched.
        budget (`int`, *optional*):
            Most images that the suspect may be asked. A method that would ask more is left out, with a warning; when it is the only
            one, [`~suspects.BudgetExceeded`] is raised. [`verify_sequentially`] makes do with what there is.
        reference (`nn.Module`, `str` or `Path`, *optional*):
            The owner's model as it was when the key was made, or its folder. When the direct reading does not find the mark,
            function-preserving changes of the suspect (permuted, scaled, rotated or added channels ...) are undone by it and the result is
            read as well. The second look costs one bit, whether or not it is taken. By any other reference, such as the marked model, what it
            finds is a self-check at most, and the verdict `inconclusive`: such a reference can be made from the suspect.
        null_table ([`~calibration.NullTable`], *optional*):
            What the same test gave on unmarked models, as one more control. It can make a verdict weaker, never a p-value smaller.
        own_reference (`bool`, *optional*, defaults to `False`):
            You made the reference yourself, and know that it is older than the suspect: then what it finds counts for you.

    Returns:
        [`Evidence`]: verdict, exact p-value, controls, basis. A key or opening that does not hold gives the verdict `invalid claim`; a
        suspect that cannot be read under this key gives `inconclusive`, with the reason.

    Raises:
        [`~serialization.InvalidInput`]: when there is no suspect, or its files are damaged.

    Example:

    ```python
    >>> from hf_watermark import WatermarkKey, verify

    >>> evidence = verify("suspect-folder", WatermarkKey.load("keys/my-model"))
    >>> print(evidence.verdict)
    mark found
    ```
    """
    check = self_check(key, looks, beacon, budget)
    if own_reference:
        check = replace(check, doubt="")
    return run_check(suspect, key, check, reference, null_table)


def self_check(
    key: WatermarkKey | Opening, looks: int = 1, beacon: bytes | None = None, budget: int | None = None
) -> Check:
    """What a verifier decides who has a key and nobody's statement."""
    if looks < 1:
        raise ValueError(f"`looks` is {looks}: at least this one look was taken")
    if budget is not None and budget < 1:
        raise InvalidInput(f"`budget` is {budget}: at least one image has to be asked")
    return Check(is_bound(key.beacon, beacon), looks, budget, Basis.SELF_CHECK, key.disclosed)


def run_check(
    suspect: Any,
    key: WatermarkKey | Opening,
    check: Check,
    reference: nn.Module | str | Path | None = None,
    null_table: NullTable | None = None,
) -> Evidence:
    """[`verify`] with everything that the verifier decided in one object; for those who have verified a statement."""
    prepared = _prepare(suspect, key, check)
    if isinstance(prepared, Evidence):
        return prepared
    verifiers, opened = prepared
    aligns = reference is not None and any(verifier.reads_coordinates for verifier in verifiers)
    given, opened.budget = opened.budget, _limit(opened, check)
    try:
        if aligns:
            assert reference is not None
            check = replace(check, looks=2 * check.looks)
            evidence = _verify_aligned(
                verifiers, opened, check, open_reference(reference, key.backbone), key.context.start
            )
        else:
            evidence = verify_claims(verifiers, opened, check)
    finally:
        opened.budget = given
    if null_table is None:
        return evidence
    return with_null_control(
        evidence, null_table, {verifier.method: verifier.config.to_dict() for verifier in verifiers}
    )


def _limit(suspect: Suspect, check: Check) -> int | None:
    """The stricter of what the caller and the check allow."""
    limits = [suspect.budget, None if check.budget is None else suspect.queries + check.budget]
    return min((limit for limit in limits if limit is not None), default=None)


def _verify_aligned(
    verifiers: list[Verifier], suspect: Suspect, check: Check, reference: nn.Module, start: str
) -> Evidence:
    """The direct reading, and where that does not suffice the aligned one; the stronger of the two."""
    direct: Evidence | None = None
    failure: InvalidInput | None = None
    try:
        direct = verify_claims(verifiers, suspect, check)
    except InvalidInput as error:  # lost or added channels, other names
        failure = error
    if direct is not None and direct.found:
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


def verify_sequentially(
    suspect: Any,
    key: WatermarkKey | Opening,
    budget: int | None = None,
    beacon: bytes | None = None,
    looks: int = 1,
    before_asking: Callable[[SubKey], None] = lambda subkey: None,
) -> SequentialResult:
    """
    Asks a suspect a few images at a time and stops as soon as the evidence suffices, the budget is spent, or going on is futile
    (PROTOCOL.md §3.8). Only black-box methods can be asked; their e-values multiply.

    Whoever answers sees the triggers: a sub-key that was asked over a network is burnt. Note it with [`~keys.burn`] in `before_asking`, as
    `hf-watermark verify https://...` does.

    Args:
        budget (`int`, *optional*):
            Most images to ask; all that the key has by default. A second run with a larger one asks the same images first and goes on: it is
            no second look, if the suspect answers an image the same whenever it is asked.
        suspect, key, beacon, looks:
            As in [`verify`].
        before_asking (`Callable`, *optional*):
            Called with each sub-key before its first image is shown.

    Raises:
        [`~suspects.AccessError`]: when the key has no black-box method, or the suspect does not offer what they need.

    Example:

    ```python
    >>> result = verify_sequentially(endpoint, key, budget=200)
    >>> result.queries, result.evidence.verdict
    ```
    """
    check = self_check(key, looks, beacon, budget)
    prepared = _prepare(suspect, key, check)
    if isinstance(prepared, Evidence):
        return SequentialResult(prepared, 0, budget)
    return run_sequentially(*prepared, check, before_asking)


def _prepare(suspect: Any, key: WatermarkKey | Opening, check: Check) -> tuple[list[Verifier], Suspect] | Evidence:
    """Verifiers and the opened suspect, or the verdict on a key that does not hold, or on a suspect that cannot be read."""
    problems = key.problems()
    if problems:
        return invalid_claim(problems)
    try:
        verifiers = [AutoVerifier.for_method(claim.assignment.method)(claim) for claim in key.claims()]
    except InvalidInput as error:
        return invalid_claim([str(error)])
    try:
        return verifiers, Suspect.open(suspect, key.backbone)
    except Unreadable as error:
        return unreadable(str(error), check)


def is_bound(claimed: bytes, looked_up: bytes | None) -> bool:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the key was bound to another value than the one looked up.
    """
    if looked_up is None:
        return False
    if looked_up != claimed or claimed == NO_BEACON:
        raise InvalidInput(f"`beacon` is {looked_up.hex()}, the key was bound to {claimed.hex()}")
    return True
