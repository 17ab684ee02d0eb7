"""Facts of greedy residuals."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...configuration.facts import Capacity, MethodFacts


if TYPE_CHECKING:
    from .config import GreedyResidualsConfig


class GreedyResidualsFacts(MethodFacts):
    def capacity(self, config: "GreedyResidualsConfig", shapes: Mapping[str, tuple[int, ...]]) -> Capacity:
        from ...backbones import describe
        from .residuals import fitting_subkeys, groups_per_slot

        carriers = describe(shapes)
        most = int(groups_per_slot(carriers, config.group_size, 1))
        return Capacity(most, fitting_subkeys(carriers, config) if config.bits <= most else 0)


FACTS = {"greedy_residuals": GreedyResidualsFacts("weights", "bits in the signs of key-drawn weight groups")}
