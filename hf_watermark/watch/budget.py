"""
How small a p-value has to be at the t-th look, so that false alarms stay below a budget over a stream of looks that never ends.

Two rules run side by side, both of `online-fdr`. *Alpha spending*: look t alarms where p <= budget * gamma_t, with the gamma of all t adding up to
one; by linearity of expectation the expected number of false alarms of all looks ever is at most the budget, however they depend on each
other. *e-LOND* (Xu and Ramdas, AISTATS 2024): look t is a discovery where e >= 1 / (fdr * gamma_t * (discoveries before + 1)); the false
discovery rate is at most `fdr` at every moment, under any dependence, such as one thief who uploads a hundred copies. What is needed of a
p-value or an e-value is that it holds for look t whatever came before; numbers are handed out in the order of listing, which no key's bit decides.
"""

import math
from dataclasses import dataclass
from typing import Any


# Of 1 / (t log^2 t), moved so that it is defined from t = 1 and falls: sum over t >= 1 of 1 / ((t + 1) log^2(t + 1)).
# The first 10^6 terms and, for the rest, the integral 1 / log(10^6 + 1), which is larger than what it stands for (test_watch_budget.py).
GAMMA_SUM = 2.10975


class SpentForEver:
    """
    gamma_t = c / ((t + 1) log^2(t + 1)) for t = 1, 2, ...: never zero, and all of them add up to at most one.

    It is a spending function and a gamma sequence of `online-fdr` at once: their classes ask for no more than these methods.
    """

    k = None  # no last look

    def gamma(self, look: int) -> float:
        """The share of the budget that look number `look` (from 1) may spend."""
        return 1 / (GAMMA_SUM * (look + 1) * math.log(look + 1) ** 2)

    def spend(self, index: int, alpha: float) -> float:
        """As `AbstractSpendFunc`: looks are counted from 0."""
        return alpha * self.gamma(index + 1)

    def calc_gamma(self, j: int, **options: Any) -> float:
        """As `AbstractGammaSequence`: looks are counted from 1."""
        return self.gamma(j)


@dataclass(frozen=True)
class Decision:
    """
    What one look came to.

    Args:
        look (`int`):
            Its number, from 1, counted for ever.
        alpha (`float`):
            What it may spend of the budget: it alarms where p <= alpha.
        alarm, discovery (`bool`):
            By alpha spending; by e-LOND.
        discoveries (`int`):
            Those by e-LOND up to here, this one included.
    """

    look: int
    alpha: float
    alarm: bool
    discovery: bool
    discoveries: int


class Budget:
    """
    The two rules from wherever the table of looks ends.

    Args:
        budget (`float`):
            Bound of the expected number of false alarms.
        fdr (`float`):
            Bound of the false discovery rate.
        looks, discoveries (`int`):
            Those so far, as the last look in the table says: nothing else of the past enters either rule.

    Example:

    ```python
    >>> from hf_watermark.watch import Budget

    >>> budget = Budget(0.01, 0.05)
    >>> budget.decide(log2_p=-60.0, log2_e=55.0).alarm
    True
    ```
    """

    def __init__(self, budget: float, fdr: float, looks: int = 0, discoveries: int = 0):
        from online_fdr.e_values import ELond
        from online_fdr.p_values.spending.alpha_spending import AlphaSpending

        spending: Any = SpentForEver()
        self._alarms = AlphaSpending(budget, spending)
        self._discoveries = ELond(fdr, spending)
        self._alarms._advance_hypotheses(looks)
        self._discoveries._advance_hypotheses(looks)
        self._discoveries.num_reject = discoveries

    @property
    def looks(self) -> int:
        return self._alarms.num_hypotheses

    def decide(self, log2_p: float, log2_e: float) -> Decision:
        """The next look. Both values are those of one suspect under one key, its own looks (alignments, places) charged already."""
        alarm = self._alarms.test_one(2.0 ** min(0.0, log2_p))
        # Larger numbers than this do not exist in a float, and none is needed.
        discovery = self._discoveries.test_one(2.0 ** min(1000.0, max(-1000.0, log2_e)))
        alpha = self._alarms.last_test_level
        assert alpha is not None
        return Decision(self.looks, alpha, alarm, discovery, self._discoveries.num_reject)

    def next_log2_alpha(self, ahead: int = 1) -> float:
        """log2 of what the look after `ahead - 1` more ones may spend."""
        return math.log2(self._alarms.alpha0 * SpentForEver().gamma(self.looks + ahead))
