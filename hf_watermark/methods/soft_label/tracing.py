"""Traitor tracing: one code word per recipient, and a test that names the recipient whose copy leaked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from ...evidence import LEVEL_B, Evidence, combine
from ...keys import Owner, WatermarkKey
from ...serialization import InvalidInput, tensor_set_digest
from ...suspects import Suspect
from .modeling import PerturbedOutputModelForImageClassification
from .verifier import CSPVerifier


@dataclass(frozen=True)
class Accusation:
    """One recipient whose code word the suspect carries; `evidence.log2_p` is charged for all recipients that were tried."""

    recipient: str
    evidence: Evidence = field(repr=False)


def recipient_keys(key: WatermarkKey, owner: Owner, recipients: Iterable[str]) -> dict[str, WatermarkKey]:
    """
    A fresh key for each recipient, with the parameters and query images of `key`, so that one round of queries serves all.

    Args:
        key ([`WatermarkKey`]):
            A key of method `csp`, as a [`CSPTrainer`] makes it.
        owner ([`Owner`]):
            Signs the new keys.
        recipients (`Iterable[str]`):
            Names; every one gets a code word of its own.

    Raises:
        `ValueError`: when a name comes twice or there is none.
    """
    names = list(recipients)
    if len(set(names)) != len(names) or not names:
        raise ValueError(
            f"`recipients` holds {len(names)} names, {len(set(names))} different ones: give each recipient once"
        )
    plans = [(a.method, a.version, a.config, a.layout, len(a.subkeys)) for a in key.assignments]
    if [plan[0] for plan in plans] != [CSPVerifier.method]:
        raise ValueError(f"the key marks with {[plan[0] for plan in plans]}; make one with CSPTrainer")
    fresh = {}
    for name in names:
        made = WatermarkKey.create(owner, plans, pool=key.pool, context=key.context, count=key.count)
        fresh[name] = made if key.beacon_source == "none" else made.bind_beacon(key.beacon, key.beacon_source)
    return fresh


def issue_copies(
    model: PreTrainedModel, keys: Mapping[str, WatermarkKey]
) -> dict[str, PerturbedOutputModelForImageClassification]:
    """
    One marked copy per recipient of a model that is already trained. The copies share the model's weights; to mark the weights
    themselves, train each copy with [`CSPTrainer`] and the recipient's key.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            An image classifier.
        keys (`Mapping[str, WatermarkKey]`):
            From [`recipient_keys`].
    """
    return {
        name: PerturbedOutputModelForImageClassification.perturb(model, key.claims()[0]) for name, key in keys.items()
    }


def trace(suspect: Any, keys: Mapping[str, WatermarkKey], log2_error: float = LEVEL_B) -> list[Accusation]:
    """
    Names the recipients whose code word a suspect carries, the strongest first. The suspect is asked once for all.

    The chance that *any* recipient is accused although the suspect does not depend on his key is at most `2**log2_error`, however
    many recipients there are: each p-value is charged for all of them (union bound).

    Args:
        suspect:
            Whatever [`verify`] takes, if it gives probabilities.
        keys (`Mapping[str, WatermarkKey]`):
            One key per recipient, from [`recipient_keys`].
        log2_error (`float`, *optional*, defaults to -64):
            log2 of the family-wise error.

    Returns:
        `list[Accusation]`: empty when nobody can be named. After collusion several may be.
    """
    if not keys:
        raise ValueError("`keys` is empty: give the key of every recipient")
    if not log2_error < 0:
        raise ValueError(
            f"`log2_error` is {log2_error}: the logarithm of an error rate is negative; -64 is the default"
        )
    claims = {name: key.claims()[0] for name, key in keys.items()}
    first = next(iter(claims.values()))
    opened, digest = Suspect.open(suspect, next(iter(keys.values())).backbone), tensor_set_digest(first.pool)
    accused, reading = [], None
    for name, claim in claims.items():
        same_images = claim.pool is first.pool or tensor_set_digest(claim.pool) == digest
        if not same_images or claim.assignment.config != first.assignment.config:
            raise InvalidInput(
                f"the key of {name!r} asks other images than the rest, or reads them otherwise; make all keys with recipient_keys"
            )
        verifier = CSPVerifier(claim)
        if reading is None:
            reading = verifier.read(opened.probabilities(verifier.images, verifier.classes))
        parts = [verifier.score(reading, subkey) for subkey in claim.subkeys]
        evidence = combine(parts, verifier.method, looks=len(keys))
        if evidence.log2_p <= log2_error:
            accused.append(Accusation(name, evidence))
    return sorted(accused, key=lambda accusation: -accusation.evidence.log2_e)
