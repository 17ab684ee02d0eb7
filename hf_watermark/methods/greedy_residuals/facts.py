"""Facts of greedy residuals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...configuration.facts import Capacity, MethodFacts


if TYPE_CHECKING:
    from ...backbones import Carrier
    from .config import GreedyResidualsConfig


class GreedyResidualsFacts(MethodFacts):
    def capacity(self, config: "GreedyResidualsConfig", carriers: "Sequence[Carrier]") -> Capacity:
        from .residuals import fitting_subkeys, groups_per_slot

        most = int(groups_per_slot(carriers, config.group_size, 1))
        return Capacity(most, fitting_subkeys(carriers, config) if config.bits <= most else 0)


FACTS = {"greedy_residuals": GreedyResidualsFacts("weights", "bits in the signs of key-drawn weight groups")}
