"""From exact tests to one evidence: of one sub-key, and of several."""

from collections.abc import Sequence
from typing import Any

from ..serialization import InvalidInput
from ..statistics import charge_looks, log2_e_from_log2_p, log2_p_from_log2_e, quotable
from .check import Access, Basis
from .result import Evidence


def single(
    method: str, matches: int, trials: int, log2_p: float, null: str, access: Access, **fields: Any
) -> Evidence:
    """Evidence of one sub-key from one exact test; the e-value is the calibrated p-value unless given."""
    log2_e = fields.pop("log2_e", None)
    return Evidence(
        method=method,
        matches=matches,
        trials=trials,
        log2_p=quotable(log2_p),
        log2_e=log2_e_from_log2_p(log2_p) if log2_e is None else log2_e,
        null=null,
        access=frozenset({access}),
        **fields,
    )


def combine(parts: Sequence[Evidence], method: str, looks: int = 1) -> Evidence:
    """
    One evidence from several *different* sub-keys of one key: given the suspect their streams are independent, so the e-values
    multiply and p <= 1/E (PROTOCOL.md §3.7). A spoilt sub-key costs a few bits only. Disclosed sub-keys are shown and left out.

    Raises:
        [`~serialization.InvalidInput`]: when a sub-key is there twice: it would be multiplied with itself.
    """
    if not parts:
        raise ValueError("nothing to combine: no check was run")
    named = [part.subkey for part in parts if part.subkey is not None]
    if len(set(named)) != len(named):
        raise InvalidInput(f"sub-key {max(named, key=named.count)} is counted twice; every sub-key counts once")
    counted = [part for part in parts if not part.disclosed]
    shown = counted or [min(parts, key=lambda part: part.log2_p)]
    if len(shown) == 1:
        only = shown[0]
        log2_p, log2_e, null = only.log2_p, only.log2_e, only.null
    else:
        log2_e = sum(part.log2_e for part in shown)
        log2_p = log2_p_from_log2_e(log2_e)
        null = "product of the e-values of independent sub-keys; p <= 1/E (Markov)"
    return Evidence(
        method=method,
        matches=sum(part.matches for part in shown),
        trials=sum(part.trials for part in shown),
        log2_p=quotable(charge_looks(log2_p, looks)),
        log2_e=log2_e,
        null=null,
        access=frozenset().union(*(part.access for part in parts)),
        bound=all(part.bound for part in parts),
        looks=looks,
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
        parts=list(parts),
        basis=min((part.basis for part in parts), key=list(Basis).index),
        subkey=shown[0].subkey if len(shown) == 1 else None,
        disclosed=not counted,
        capped=next((part.capped for part in parts if part.capped), ""),
        queries=sum(part.queries for part in shown),
        unusable=sum(part.unusable for part in shown),
    )
