"""Facts of certified triggers."""

from typing import TYPE_CHECKING

from ...configuration.facts import MethodFacts, Null


if TYPE_CHECKING:
    from .config import CertifiedConfig


class CertifiedFacts(MethodFacts):
    def null(self, config: "CertifiedConfig", classes: int) -> Null:
        return Null(1 / max(1, classes - 1))

    def queries(self, config: "CertifiedConfig", classes: int) -> int:
        return config.triggers


FACTS = {
    "certified": CertifiedFacts(
        "labels",
        "triggers that hold under parameter noise, with a proven radius",
        unit="triggers",
        field="triggers",
        most=10_000,
        assumption="exact binomial; one bit for two tests, plain and smoothed",
        tests=2,
    )
}
