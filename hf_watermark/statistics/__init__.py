"""
Exact tests, confidence bounds and e-values.

Every p-value is a base-2 logarithm of a tail of a *known* law, so that nothing underflows, and every count is an
integer, so that no rounding decides a match. Nothing here is estimated from data.
"""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "BetaMixtureProcess": "evalues",
    "CheckpointTest": "rademacher",
    "LOG2_P_FLOOR": "evalues",
    "LabelLaw": "tails",
    "QuantileTest": "quantiles",
    "binomial_min_matches": "tails",
    "charge_looks": "evalues",
    "clopper_pearson": "quantiles",
    "draws_to_certify": "quantiles",
    "log2_binomial_tail": "tails",
    "log2_e_beta_mixture": "evalues",
    "log2_e_bounded_mean": "evalues",
    "log2_e_from_log2_p": "evalues",
    "log2_e_rademacher": "rademacher",
    "log2_e_relabel": "evalues",
    "log2_hoeffding_tail": "tails",
    "log2_p_from_log2_e": "evalues",
    "log2_rademacher_tail": "rademacher",
    "log2_relabel_tail": "tails",
    "order_statistic_above": "quantiles",
    "order_statistic_index": "quantiles",
    "quantile_test": "quantiles",
    "quotable": "evalues",
    "relabel_tails": "tails",
    "smallest_certifiable_quantile": "quantiles",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .evalues import LOG2_P_FLOOR as LOG2_P_FLOOR
    from .evalues import BetaMixtureProcess as BetaMixtureProcess
    from .evalues import charge_looks as charge_looks
    from .evalues import log2_e_beta_mixture as log2_e_beta_mixture
    from .evalues import log2_e_bounded_mean as log2_e_bounded_mean
    from .evalues import log2_e_from_log2_p as log2_e_from_log2_p
    from .evalues import log2_e_relabel as log2_e_relabel
    from .evalues import log2_p_from_log2_e as log2_p_from_log2_e
    from .evalues import quotable as quotable
    from .quantiles import QuantileTest as QuantileTest
    from .quantiles import clopper_pearson as clopper_pearson
    from .quantiles import draws_to_certify as draws_to_certify
    from .quantiles import order_statistic_above as order_statistic_above
    from .quantiles import order_statistic_index as order_statistic_index
    from .quantiles import quantile_test as quantile_test
    from .quantiles import smallest_certifiable_quantile as smallest_certifiable_quantile
    from .rademacher import CheckpointTest as CheckpointTest
    from .rademacher import log2_e_rademacher as log2_e_rademacher
    from .rademacher import log2_rademacher_tail as log2_rademacher_tail
    from .tails import LabelLaw as LabelLaw
    from .tails import binomial_min_matches as binomial_min_matches
    from .tails import log2_binomial_tail as log2_binomial_tail
    from .tails import log2_hoeffding_tail as log2_hoeffding_tail
    from .tails import log2_relabel_tail as log2_relabel_tail
    from .tails import relabel_tails as relabel_tails
