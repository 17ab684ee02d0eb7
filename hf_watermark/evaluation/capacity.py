"""What a backbone can hold: shapes are enough, nothing is trained."""

from typing import Any

from transformers import PreTrainedModel

from ..backbones import describe
from ..methods.greedy_residuals import GreedyResidualsConfig
from ..methods.greedy_residuals.residuals import fitting_subkeys as greedy_subkeys
from ..methods.greedy_residuals.residuals import groups_per_slot
from ..methods.watermas import WaterMASConfig
from ..methods.watermas.substitution import MOST_SHARE, poorest_slot
from ..methods.watermas.substitution import fitting_subkeys as watermas_subkeys


def white_box_capacity(method: str, model: PreTrainedModel, bits: int) -> dict[str, Any] | None:
    """
    How many sub-keys of `bits` bits a white-box method embeds by default, and the most bits that one sub-key could have; `None` for
    black-box methods, whose room are the classes and images.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {"parameters": model.num_parameters()}
    if method == "greedy_residuals":
        carriers, config = describe(shapes), GreedyResidualsConfig(bits=bits)
        most = groups_per_slot(carriers, config.group_size, 1)
        return known | {"most_bits": int(most), "subkeys": greedy_subkeys(carriers, config) if bits <= most else 0}
    if method == "watermas":
        carriers, wanted = describe(shapes), WaterMASConfig(bits=bits)
        most = int(MOST_SHARE * poorest_slot(carriers, 1))
        return known | {"most_bits": most, "subkeys": watermas_subkeys(carriers, wanted) if bits <= most else 0}
    return None
