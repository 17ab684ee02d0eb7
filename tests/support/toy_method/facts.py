"""Facts of the toy."""

import math

from hf_watermark.configuration.facts import Capacity, MethodFacts


class ToySignsFacts(MethodFacts):
    def capacity(self, config, shapes):
        most = max(math.prod(shape) for shape in shapes.values()) // config.group
        return Capacity(most, min(16, most // config.bits))


FACTS = {"toy_signs": ToySignsFacts("weights", "bits in the signs of sums of weights", most=4096)}
