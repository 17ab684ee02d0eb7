"""Facts of the two soft-label watermarks."""

import math
from typing import TYPE_CHECKING

from ...configuration.facts import MethodFacts


if TYPE_CHECKING:
    from .config import SoftLabelConfig


MOST_FEATURES = 1024
# Queries of each class, and of all together where the training data suffice: a share of them at most is set aside.
PER_CLASS, IN_ALL, SHARE = 12, 512, 0.05


def free_signs(classes: int) -> int:
    """Signs per feature that can be told from each other: contrasts add up to zero, and two classes have none."""
    return classes - 1 if classes > 2 else 0


class SoftLabelFacts(MethodFacts):
    def log2_p(self, matches: int, units: int, chance: float) -> float:
        import numpy as np

        from ...statistics import log2_rademacher_tail

        return log2_rademacher_tail(float(2 * matches - units), np.ones(units))

    def most_units(self, config: "SoftLabelConfig", classes: int) -> int:
        return MOST_FEATURES * free_signs(classes)

    def fields(self, units: int, classes: int) -> dict[str, int]:
        return {self.field: math.ceil(units / free_signs(classes))}

    def queries(self, config: "SoftLabelConfig", classes: int) -> int:
        sources = min(classes, config.source_classes)
        return sources * (config.pool_per_class or queries_per_class(sources))


def queries_per_class(sources: int, images: float = math.inf) -> int:
    """Where a config does not say: of so many source classes and training images."""
    return max(PER_CLASS, math.ceil(min(IN_ALL, SHARE * images) / sources))


def _facts(summary: str) -> SoftLabelFacts:
    assumption = "signs of equal size; Chernoff bound of their sum"
    return SoftLabelFacts("probabilities", summary, unit="signs", field="features", assumption=assumption)


FACTS = {
    "usp": _facts("a key-drawn template in the small probabilities"),
    "csp": _facts("a code word per licensee in the small probabilities"),
}
