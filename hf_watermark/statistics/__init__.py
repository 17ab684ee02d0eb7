"""
Exact tests, confidence bounds and e-values.

Every p-value is a base-2 logarithm of a tail of a *known* law, so that nothing underflows, and every count is an
integer, so that no rounding decides a match. Nothing here is estimated from data.
"""

from .evalues import (
    LOG2_P_FLOOR,
    BetaMixtureProcess,
    charge_looks,
    log2_e_beta_mixture,
    log2_e_bounded_mean,
    log2_e_from_log2_p,
    log2_e_relabel,
    log2_p_from_log2_e,
    quotable,
)
from .quantiles import (
    QuantileTest,
    clopper_pearson,
    draws_to_certify,
    order_statistic_above,
    order_statistic_index,
    quantile_test,
    smallest_certifiable_quantile,
)
from .rademacher import CheckpointTest, log2_e_rademacher, log2_rademacher_tail
from .tails import (
    LabelLaw,
    binomial_min_matches,
    log2_binomial_tail,
    log2_hoeffding_tail,
    log2_relabel_tail,
    relabel_tails,
)


__all__ = [
    "LOG2_P_FLOOR",
    "BetaMixtureProcess",
    "CheckpointTest",
    "LabelLaw",
    "QuantileTest",
    "binomial_min_matches",
    "charge_looks",
    "clopper_pearson",
    "draws_to_certify",
    "log2_binomial_tail",
    "log2_e_beta_mixture",
    "log2_e_bounded_mean",
    "log2_e_from_log2_p",
    "log2_e_rademacher",
    "log2_e_relabel",
    "log2_hoeffding_tail",
    "log2_p_from_log2_e",
    "log2_rademacher_tail",
    "log2_relabel_tail",
    "order_statistic_above",
    "order_statistic_index",
    "quantile_test",
    "quotable",
    "relabel_tails",
    "smallest_certifiable_quantile",
]
