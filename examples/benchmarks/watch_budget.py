"""
False alarms, false discovery rate and power of the watch's error budget over simulated looks, most of them at models without a mark.

    python examples/benchmarks/watch_budget.py --looks 1000000 --repetitions 200 --results examples/benchmarks/results/watch_budget.json

Three kinds of nulls: independent looks; *copies*, where blocks of a hundred looks share one p-value (one thief uploads a hundred copies); and *one for all*, where
a single p-value is that of every look. The e-value of a look is 0.5 p^-0.5, whose mean is 1 under the null. The two rules are those of
`hf_watermark.watch.budget`, written for arrays here; a test compares the two.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from hf_watermark.watch.budget import GAMMA_SUM


KINDS = ("independent", "copies", "one_for_all")
COPIES = 100
STRONG = -40.0


def null_p(kind: str, looks: int, rng: np.random.Generator) -> np.ndarray:
    """`[looks]` p-values, each uniform."""
    if kind == "independent":
        return rng.random(looks)
    if kind == "copies":
        return np.repeat(rng.random(-(-looks // COPIES)), COPIES)[:looks]
    return np.full(looks, rng.random())


def gammas(looks: int) -> np.ndarray:
    numbers = np.arange(2, looks + 2, dtype=np.float64)
    return 1 / (GAMMA_SUM * numbers * np.log(numbers) ** 2)


def discoveries(e: np.ndarray, gamma: np.ndarray, fdr: float) -> np.ndarray:
    """e-LOND, `[looks]` (bool): only looks that the largest number of discoveries could ever let through are gone through one by one."""
    found = np.zeros(len(e), dtype=bool)
    candidates = np.flatnonzero(e * fdr * gamma * (len(e) + 1) >= 1)
    count = 0
    for place in candidates:
        if e[place] * fdr * gamma[place] * (count + 1) >= 1:
            found[place] = True
            count += 1
    return found


def simulate(
    looks: int, repetitions: int, budget: float, fdr: float, marked: int, seed: int, fixed: float | None = None
) -> dict[str, Any]:
    """
    Args:
        marked (`int`):
            Looks among them at models that carry a mark of log2 p = -40.
        fixed (`float`, *optional*):
            Alarm at this p-value whatever the number of the look, instead of spending: what the budget is there against.
    """
    gamma = gammas(looks)
    alpha = budget * gamma if fixed is None else np.full(looks, fixed)
    result: dict[str, Any] = {
        "looks": looks,
        "repetitions": repetitions,
        "budget": budget,
        "fdr_bound": fdr,
        "marked": marked,
    }
    for kind in KINDS:
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        false, rates, power, power_e = [], [], [], []
        for _ in range(repetitions):
            p = null_p(kind, looks, rng)
            true = np.zeros(looks, dtype=bool)
            true[rng.choice(looks, marked, replace=False)] = True
            p[true] = 2.0**STRONG
            e = 0.5 / np.sqrt(p)
            e[true] = 2.0 ** (
                -STRONG - 4
            )  # that of a likelihood ratio, which the watch has; the square root would halve the bits
            alarms, found = p <= alpha, discoveries(e, gamma, fdr)
            false.append(int((alarms & ~true).sum()))
            rates.append(int((found & ~true).sum()) / max(1, int(found.sum())))
            if marked:
                power.append(float(alarms[true].mean()))
                power_e.append(float(found[true].mean()))
        root = math.sqrt(repetitions)
        result[kind] = {
            "false_alarms": float(np.mean(false)),
            "false_alarms_error": float(np.std(false) / root),
            "fdr": float(np.mean(rates)),
            "fdr_error": float(np.std(rates) / root),
            "power_at_2^-40": float(np.mean(power)) if power else None,
            "power_of_discoveries": float(np.mean(power_e)) if power_e else None,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, default=10**6)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--fdr", type=float, default=0.05)
    parser.add_argument("--marked", type=int, default=20)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    result = simulate(options.looks, options.repetitions, options.budget, options.fdr, options.marked, seed=0)
    # A budget of one makes false alarms frequent enough to be counted.
    result["with_a_budget_of_1"] = simulate(
        options.looks, options.repetitions, 1.0, options.fdr, options.marked, seed=1
    )
    text = json.dumps(result, indent=1)
    print(text)
    if options.results:
        options.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
