"""
`verify` and `verify_sequentially`: does this suspect carry the mark of this key?

Alignment and null tables are imported where there is a reference or a table: importing them takes longer than most readings take.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .evidence import Access, Basis, Check, Evidence, Verdict
from .keys import NO_BEACON, Opening, SubKey, WatermarkKey, refuse_unloaded
from .mapping import AutoVerifier
from .serialization import InvalidInput, Unreadable
from .suspects import Suspect
from .suspects.adapters import Base
from .verification.classes import class_orders, read_in_orders
from .verification.reference import open_reference
from .verification.sequential import SequentialResult, run_sequentially
from .verification.verifier import Verifier, invalid_claim, unreadable, verify_claims


if TYPE_CHECKING:
    from .verification.null_table import NullTable


def verify(
    suspect: Any,
    key: WatermarkKey | Opening,
    looks: int = 1,
    beacon: bytes | None = None,
    budget: int | None = None,
    reference: nn.Module | str | Path | None = None,
    null_table: "NullTable | None" = None,
    own_reference: bool = False,
    base: nn.Module | str | Path | None = None,
) -> Evidence:
    """
    Checks whether `suspect` carries the mark of `key`.

    The basis of the evidence is `self-check`: it is as good as the word of whoever gave you the key. A claim needs a verified statement:
    [`~claims.judge`], [`~claims.dispute`], [`~claims.verify_claim`], or `hf-watermark verify --statement`. Sub-keys that others may know
    (the public one, and those in the key folder's log) are shown and add no evidence.

    Args:
        suspect (`nn.Module`, `str`, `Path`, `Callable` or [`Suspect`]):
            A model, a folder or file of safetensors, a Hub repo `user/repo[@revision]`, a pipeline of transformers, or a function: from
            images `[n, channels, height, width]` in the model's input space to labels `[n]` or probabilities `[n, classes]`, or, as a
            pipeline is called, from one PIL image to `[{"label": ..., "score": ...}]`.
        key ([`WatermarkKey`] or [`Opening`]):
            The owner's key, or one disclosed sub-key.
        looks (`int`, *optional*, defaults to 1):
            How many variants of this check were or will be tried (suspect snapshots, sub-keys); charged as log2(looks) bits.
        beacon (`bytes`, *optional*):
            The public random value that the verifier looked up themselves for the date of the precommit. Only when it is the one the
            key was bound to is level B enough; a beacon that the claimant names could have been searched.
        budget (`int`, *optional*):
            Most images that the suspect may be asked. A method that would ask more is left out, with a warning; when it is the only
            one, [`~suspects.BudgetExceeded`] is raised. [`verify_sequentially`] makes do with what there is.
        reference (`nn.Module`, `str` or `Path`, *optional*):
            The owner's model as it was when the key was made, or its folder. When the direct reading does not find the mark,
            function-preserving changes of the suspect (permuted, scaled, rotated or added channels ...) are undone by it and the result is
            read as well. The second look costs one bit, whether or not it is taken. By any other reference, such as the marked model, what it
            finds is a self-check at most, and the verdict `inconclusive`: such a reference can be made from the suspect.
        null_table ([`~verification.null_table.NullTable`], *optional*):
            What the same test gave on unmarked models, as one more control. It can make a verdict weaker, never a p-value smaller.
        own_reference (`bool`, *optional*, defaults to `False`):
            You made the reference yourself, and know that it is older than the suspect: then what it finds counts for you.
        base (`nn.Module`, `str` or `Path`, *optional*):
            The model that the key was made for, or its folder. An adapter is put on it; and of a whole model it is taken away where the key marks
            what an adapter changed. Any other one than the key commits to gives the verdict `inconclusive`.

    Returns:
        [`Evidence`]: verdict, exact p-value, controls, basis. A key or opening that does not hold gives the verdict `invalid claim`; a
        suspect that cannot be read under this key gives `inconclusive`, with the reason.

    Raises:
        [`~serialization.InvalidInput`]: when there is no suspect, or its files are damaged.

    Example:

    ```python
    >>> from hf_watermark import WatermarkKey, verify

    >>> evidence = verify("my-model", WatermarkKey.load("keys/my-model"))
    >>> print(evidence.verdict)
    mark found
    ```
    """
    check = self_check(key, looks, beacon, budget)
    if own_reference:
        check = replace(check, doubt="")
    return run_check(suspect, key, check, reference, null_table, base=base)


# Nobody takes more, and more of them are no exact floating-point number.
MOST_LOOKS = 2**53


def refuse_looks(looks: Any) -> None:
    """Raises [`~serialization.InvalidInput`] for what is no number of looks."""
    if type(looks) is not int or not 1 <= looks <= MOST_LOOKS:
        raise InvalidInput(
            f"`looks` is {_told(looks)}: at least this one look was taken, give a whole number from 1 to 2^53"
        )


def _told(value: Any) -> str:
    """An argument that was given, in a message: the number of bits of one that is too long to print."""
    return f"of {value.bit_length()} bits" if type(value) is int and value.bit_length() > 64 else repr(value)[:80]


def self_check(
    key: WatermarkKey | Opening, looks: int = 1, beacon: bytes | None = None, budget: int | None = None
) -> Check:
    """What a verifier decides who has a key and nobody's statement."""
    refuse_unloaded("key", key, WatermarkKey, Opening)
    refuse_looks(looks)
    if beacon is not None and not isinstance(beacon, bytes):
        raise InvalidInput(
            f"`beacon` is {_told(beacon)}: give the bytes that you looked up (`bytes.fromhex` of what is published), or leave it out"
        )
    if budget is not None and budget < 1:
        raise InvalidInput(f"`budget` is {budget}: at least one image has to be asked")
    return Check(is_bound(key.beacon, beacon), looks, budget, Basis.SELF_CHECK, key.disclosed)


def run_check(
    suspect: Any,
    key: WatermarkKey | Opening,
    check: Check,
    reference: nn.Module | str | Path | None = None,
    null_table: "NullTable | None" = None,
    later: Callable[[], nn.Module] | None = None,
    base: nn.Module | str | Path | None = None,
) -> Evidence:
    """
    [`verify`] with everything that the verifier decided in one object; for those who have verified a statement.

    Args:
        later (`Callable`, *optional*):
            Gives the reference when the direct reading did not suffice. Where it raises [`~serialization.InvalidInput`], nothing is aligned,
            and the evidence says why. It is charged like a `reference`, whether or not it is called.
    """
    prepared = _prepare(suspect, key, check, base)
    if isinstance(prepared, Evidence):
        return prepared
    verifiers, opened = prepared
    aligns = any(verifier.reads_coordinates for verifier in verifiers)
    if aligns and reference is not None:
        # Opened whether or not it is needed: its errors are the caller's.
        given = open_reference(reference, key.backbone)
        later = lambda: given  # noqa: E731
    opened = opened.within(check.budget)
    read = partial(verify_claims, verifiers)
    if aligns and later is not None:
        from .verification.aligned import verify_aligned

        check = replace(check, looks=2 * check.looks)
        read = partial(verify_aligned, verifiers, open_reference=later, start=key.context.start)
    evidence = read_in_orders(read, opened, check, class_orders(verifiers, opened))
    if reference is not None or later is not None:
        _say_not_aligned(evidence, verifiers)
    if null_table is None:
        return evidence
    from .verification.null_table import with_null_control

    return with_null_control(
        evidence, null_table, {verifier.method: verifier.config.to_dict() for verifier in verifiers}
    )


def _say_not_aligned(evidence: Evidence, verifiers: list[Verifier]) -> None:
    """A reference was given, and a method that reads weights has no use for it: reordered channels may hide its mark."""
    unable = [item.method for item in verifiers if item.access is Access.WEIGHTS and not item.reads_coordinates]
    if unable and evidence.verdict is Verdict.NOT_FOUND:
        evidence.unread = f"{', '.join(unable)} cannot be aligned to a reference: reordered channels are not excluded"
        evidence.decide()


def verify_sequentially(
    suspect: Any,
    key: WatermarkKey | Opening,
    budget: int | None = None,
    beacon: bytes | None = None,
    looks: int = 1,
    before_asking: Callable[[SubKey], None] = lambda subkey: None,
    base: nn.Module | str | Path | None = None,
) -> SequentialResult:
    """
    Asks a suspect a few images at a time and stops as soon as the evidence suffices, the budget is spent, or going on is futile
    (PROTOCOL.md §3.8). Only black-box methods can be asked; their e-values multiply.

    Whoever answers sees the triggers: a sub-key that was asked over a network is burnt. Note it with [`~keys.burn`] in `before_asking`, as
    `hf-watermark verify https://...` does.

    Args:
        suspect (`nn.Module`, `str`, `Path`, `Callable` or [`Suspect`]):
            As in [`verify`].
        key ([`WatermarkKey`] or [`Opening`]):
            As in [`verify`].
        budget (`int`, *optional*):
            Most images to ask; all that the key has by default. One that ends before the mark could have been seen gives the verdict
            `inconclusive`. A second run with a larger one asks the same images first and goes on: it is
            no second look, if the suspect answers an image the same whenever it is asked.
        beacon (`bytes`, *optional*):
            As in [`verify`].
        looks (`int`, *optional*, defaults to 1):
            As in [`verify`].
        before_asking (`Callable`, *optional*):
            Called with each sub-key before its first image is shown.
        base (`nn.Module`, `str` or `Path`, *optional*):
            As in [`verify`]: what an adapter is put on.

    Returns:
        [`~verification.sequential.SequentialResult`]: the evidence, and the images that were asked.

    Raises:
        [`~suspects.AccessError`]: when the key has no black-box method, or the suspect does not offer what they need.
        [`~suspects.BudgetExceeded`]: when `budget` images could not show the mark even if all of them matched; nothing is asked then.

    Example:

    ```python
    >>> key = plan_key(model, ds, FunctionCoupledConfig(), owner)  # of a model that nobody has marked yet
    >>> result = verify_sequentially(model, key, budget=800)
    >>> result.queries <= 800, result.evidence.found
    (True, False)
    ```
    """
    check = self_check(key, looks, beacon, budget)
    prepared = _prepare(suspect, key, check, base)
    if isinstance(prepared, Evidence):
        return SequentialResult(prepared, 0, budget)
    verifiers, opened = prepared
    orders = class_orders(verifiers, opened)
    if orders:
        # What its answers to the pool's images say goes before names, which say what whoever wrote them likes.
        check = replace(check, looks=2 * check.looks)
        opened = opened.reordered(orders[0].places)
    result = run_sequentially(verifiers, opened, check, before_asking)
    result.evidence.warnings += [order.note() for order in orders[:1]]
    return result


def _prepare(
    suspect: Any, key: WatermarkKey | Opening, check: Check, base: nn.Module | str | Path | None
) -> tuple[list[Verifier], Suspect] | Evidence:
    """Verifiers and the opened suspect, or the verdict on a key that does not hold, or on a suspect that cannot be read."""
    problems = key.problems()
    if problems:
        return invalid_claim(problems)
    try:
        verifiers = [AutoVerifier.for_method(claim.assignment.method)(claim) for claim in key.claims()]
    except InvalidInput as error:
        return invalid_claim([str(error)])
    try:
        given = None if base is None else Base(open_reference(base, key.backbone).state_dict())
        opened = Suspect.open(suspect, key.backbone, context=key.context, base=given)
        if opened.base is not None:
            opened.base.refuse_other(key.context.start)
        return verifiers, opened
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
        raise InvalidInput(
            f"`beacon` is {looked_up.hex()}, the key was bound to {claimed.hex()}; look the value up again, or leave it out"
        )
    return True
