"""
The order of a suspect's classes. A thief may number them otherwise, leave some out or add some: then a mark that is read from answers is there,
and under the key's own numbers it is not seen.

Which class is which is told by names, where both sides have them, and by how the suspect answers the pool's own images, whose classes the owner knows. Neither
depends on a bit of the key; each order that differs from the key's is a further reading, and charged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..evidence import MOST_UNUSABLE, Access, Check, Evidence
from ..serialization import InvalidInput
from ..suspects import Suspect
from .verifier import Verifier


# Pool images of each class that are asked, fewer where all would be too many, and how many more of them an order must get right than the key's own.
PER_CLASS, MOST_ASKED, BETTER = 8, 512, 0.05
LEAST_RIGHT = 0.5


@dataclass(frozen=True)
class ClassOrder:
    """
    Args:
        places (`tuple[int, ...]`):
            The suspect's number of each class of the key; -1 where it has none.
        why (`str`):
            What says so.
    """

    places: tuple[int, ...]
    why: str

    @property
    def missing(self) -> int:
        """How many of the key's classes the suspect does not have."""
        return sum(place < 0 for place in self.places)

    def note(self) -> str:
        """For a reader of the evidence."""
        lost = (
            f"; {self.missing} of the key's classes are missing, and triggers that ask for them cannot be answered"
            if self.missing
            else ""
        )
        return (
            f"the suspect numbers its classes otherwise, as {self.why}: its answers were read in the key's order{lost}"
        )


def class_orders(verifiers: Sequence[Verifier], suspect: Suspect) -> list[ClassOrder]:
    """Orders of the suspect's classes that are not the key's, of a suspect that is a model; none where nothing says that there are others."""
    asking = [verifier for verifier in verifiers if verifier.access is not Access.WEIGHTS]
    if not asking or not suspect.is_model:
        return []
    classes = next((size for item in asking if type(size := item.layout.get("classes")) is int), 0)
    try:
        found = [
            by_names(asking[0].claim.context.classes, suspect.class_names),
            by_pool(asking, suspect.apart(), classes),
        ]
    except InvalidInput:  # a model that cannot be run is named by whoever reads its mark
        return []
    different = {order.places: order for order in found[::-1] if order is not None}
    return list(different.values())


def by_names(own: Sequence[str], theirs: Sequence[str]) -> ClassOrder | None:
    """By class names; `None` where they say nothing or the order is the same."""
    known = {name: place for place, name in enumerate(theirs)}
    places = tuple(known.get(name, -1) for name in own)
    if sum(place >= 0 for place in places) < 2 or (list(places) == list(range(len(own))) and len(theirs) == len(own)):
        return None
    return ClassOrder(places, "the names in its config say")


def by_pool(verifiers: Sequence[Verifier], suspect: Suspect, classes: int) -> ClassOrder | None:
    """By the suspect's answers to the pool's images; `None` where the key's own order fits as well, or none does."""
    for verifier in verifiers:
        pool = verifier.claim.pool
        images, labels = (pool.get(f"{verifier.method}.{name}") for name in ("images", "labels"))
        if (
            images is None
            or labels is None
            or not len(labels)
            or int(labels.min()) < 0
            or int(labels.max()) >= classes
        ):
            continue
        known = labels.unique()
        each = max(1, min(PER_CLASS, MOST_ASKED // len(known)))
        rows = torch.cat([(labels == label).nonzero()[:each, 0] for label in known])
        answers = suspect.ask(images[rows].float())
        there = answers.shape[1] if answers.ndim == 2 else classes
        top = answers.nan_to_num(-torch.inf).argmax(dim=1) if answers.ndim == 2 else answers.long()
        counts = np.zeros((classes, there))
        sound = (top >= 0) & (top < there)
        np.add.at(counts, (labels[rows][sound].numpy(), top[sound].numpy()), 1)
        return _assigned(counts, len(rows))
    return None


def _assigned(counts: np.ndarray, asked: int) -> ClassOrder | None:
    """From how often images of each class `[classes, theirs]` got each answer."""
    classes, there = counts.shape
    from scipy.optimize import linear_sum_assignment  # a second to import, and most readings never need it

    rows, columns = linear_sum_assignment(counts, maximize=True)
    right = float(counts[rows, columns].sum()) / asked
    as_they_are = float(np.trace(counts)) / asked if classes == there else 0.0
    if right < LEAST_RIGHT or right - as_they_are <= BETTER:
        return None
    places = np.full(classes, -1)
    told = counts[rows, columns] > 0
    places[rows[told]] = columns[told]
    # A class without images in the pool keeps its number if that is free.
    free = set(range(there)) - set(places.tolist())
    for number in np.flatnonzero((places < 0) & (counts.sum(axis=1) == 0)):
        if number in free:
            places[number] = number
    return ClassOrder(tuple(places.tolist()), "its answers to the pool's images say")


def read_in_orders(
    read: Callable[[Suspect, Check], Evidence], suspect: Suspect, check: Check, orders: Sequence[ClassOrder]
) -> Evidence:
    """
    The strongest of the readings in the key's order and in the given ones; each is charged as a look.

    Args:
        read (`Callable`):
            Reads the suspect.
    """
    if not orders:
        return read(suspect, check)
    charged = replace(check, looks=check.looks * (1 + len(orders)))
    found: list[Evidence] = []
    failure: InvalidInput | None = None
    for order in [None, *orders]:
        try:
            evidence = read(suspect if order is None else suspect.reordered(order.places), charged)
        except InvalidInput as error:
            failure = failure or error
            continue
        if order is not None:
            evidence.warnings.append(order.note())
            evidence.details["class_order"] = list(order.places)
        if evidence.found:
            return evidence
        found.append(evidence)
    if not found:
        assert failure is not None
        raise failure
    best = min(found, key=lambda evidence: (evidence.trials == 0, evidence.log2_p))
    lost = max(order.missing for order in orders)
    if lost > MOST_UNUSABLE * len(orders[0].places) and not best.unread:
        best.unread = f"the suspect lacks {lost} of the key's {len(orders[0].places)} classes, so that much of the mark cannot be seen in its answers"
        best.decide()
    return best
