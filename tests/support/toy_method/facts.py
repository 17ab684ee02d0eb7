"""Facts of the toy."""

import math

from hf_watermark.configuration.facts import Capacity, MethodFacts


class ToySignsFacts(MethodFacts):
    def capacity(self, config, carriers):
        room = max(math.prod(carrier.shape) for carrier in carriers) // config.group
        # The most bits of one sub-key, and how many sub-keys a key has by default.
        return Capacity(min(room, self.most), min(config.subkeys, room // config.bits))


FACTS = {"toy_signs": ToySignsFacts("weights", "bits in the signs of sums of weights", most=4096)}
