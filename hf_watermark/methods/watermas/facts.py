"""Facts of WaterMAS."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...configuration.facts import Capacity, MethodFacts


if TYPE_CHECKING:
    from ...backbones import Carrier
    from .config import WaterMASConfig


class WaterMASFacts(MethodFacts):
    def capacity(self, config: "WaterMASConfig", carriers: "Sequence[Carrier]") -> Capacity:
        from .substitution import MOST_SHARE, fitting_subkeys, poorest_slot

        most = int(MOST_SHARE * poorest_slot(carriers, 1))
        return Capacity(most, fitting_subkeys(carriers, config) if config.bits <= most else 0)


FACTS = {
    "watermas": WaterMASFacts(
        "weights", "bits in the signs of single weights that the loss is sharp around", payload=True
    )
}
