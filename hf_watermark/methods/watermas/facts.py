"""Facts of WaterMAS."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...configuration.facts import Capacity, MethodFacts


if TYPE_CHECKING:
    from .config import WaterMASConfig


class WaterMASFacts(MethodFacts):
    def capacity(self, config: "WaterMASConfig", shapes: Mapping[str, tuple[int, ...]]) -> Capacity:
        from ...backbones import describe
        from .substitution import MOST_SHARE, fitting_subkeys, poorest_slot

        carriers = describe(shapes)
        most = int(MOST_SHARE * poorest_slot(carriers, 1))
        return Capacity(most, fitting_subkeys(carriers, config) if config.bits <= most else 0)


FACTS = {
    "watermas": WaterMASFacts(
        "weights", "bits in the signs of single weights that the loss is sharp around", payload=True
    )
}
