"""Exact test and bound for the accuracy that a cascade loses on balance against a reference, on the same items.

Of n items the cascade loses L (it is wrong, the reference right) and gains G (the reverse). With probabilities l and g the
excess error is l - g, and (L, G, n - L - G) is multinomial. "The excess is at least epsilon" is rejected where
P(L - G <= observed) is at most delta under every (l, g) with l - g = epsilon. The unknown discordance l + g is confined to a
confidence interval from L + G, whose error is added to the p-value (Berger and Boos 1994), so that the supremum is not taken
where it cannot be. For a fixed l + g, L - G grows with l - g, so excesses above epsilon need no test of their own.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr
from scipy.stats import beta, binom

from coe.types import FloatArray

NUISANCE_ERROR = 0.0005
"""Probability that the interval for l + g misses it; part of every p-value."""
_TAIL = 1e-10
_SMOOTH = 1000
"""From so many items on the tail probability has no ripples in g that a coarse grid could miss."""


def excess_p_value(losses: int, gains: int, items: int, epsilon: float) -> float:
    """How surprising so small a difference losses - gains would be if the excess were epsilon (in -1..1); at most 1."""
    low, high = _interval(losses + gains, items)
    # g = (l + g - epsilon) / 2 and l = g + epsilon must be probabilities
    low, high = max((low - epsilon) / 2, -epsilon, 0.0), min((high - epsilon) / 2, (1 - epsilon) / 2)
    if low > high:  # so much discordance as this excess needs is ruled out by the interval itself
        return NUISANCE_ERROR if epsilon > 0 else 1.0
    observed = losses - gains
    points = 41 if items < _SMOOTH else 9
    grid = np.linspace(low, high, points)
    values = _lower_tail(observed, items, epsilon, grid)
    best = int(values.argmax())
    fine = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, points - 1)], points)
    top = max(float(values.max()), float(_lower_tail(observed, items, epsilon, fine).max()))
    return min(1.0, top + NUISANCE_ERROR)


def excess_upper_bound(losses: int, gains: int, items: int, delta: float) -> float:
    """One-sided (1-delta) upper confidence bound of the excess error: the least epsilon whose test rejects.

    Bisection to 1e-5, rounded up. Raises ValueError for a delta that the interval's own error already uses up.
    """
    if delta <= NUISANCE_ERROR:
        raise ValueError(f"delta must be above {NUISANCE_ERROR}, got {delta}")
    low = (losses - gains) / items
    step = 2 * math.sqrt((losses + gains + 1) / items**2)
    high = min(low + step, 1.0)
    while high < 1.0 and excess_p_value(losses, gains, items, high) > delta:
        low, high = high, min(high + step, 1.0)
    while high - low > 1e-5:
        middle = (low + high) / 2
        if excess_p_value(losses, gains, items, middle) <= delta:
            high = middle
        else:
            low = middle
    return high


def _interval(count: int, items: int) -> tuple[float, float]:
    """Exact two-sided interval of a share at error `NUISANCE_ERROR` (Clopper and Pearson 1934)."""
    tail = NUISANCE_ERROR / 2
    low = float(beta.ppf(tail, count, items - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, items - count)) if count < items else 1.0
    return low, high


def _lower_tail(observed: int, items: int, epsilon: float, gain: FloatArray) -> FloatArray:
    """(grid,): P(L - G <= observed) for every g in `gain`, with l = g + epsilon.

    The number of discordant items D = L + G is binomial with l + g, and L given D is binomial with l / (l + g).
    """
    result = np.empty(len(gain))
    for at, g in enumerate(gain):
        either = min(max(2 * g + epsilon, 0.0), 1.0)
        if either == 0.0:
            result[at] = float(observed >= 0)
            continue
        first = int(binom.ppf(_TAIL, items, either))
        last = int(binom.isf(_TAIL, items, either))
        d = np.arange(max(first, 0), min(last, items) + 1)
        weight = binom.pmf(d, items, either)
        most = np.floor((d + observed) / 2)
        share = min(max((g + epsilon) / either, 0.0), 1.0)
        below = np.where(most < 0, 0.0, np.where(most >= d, 1.0, bdtr(np.clip(most, 0, d), d, share)))
        # what lies outside the range of d counts as if it were in the tail
        result[at] = float((weight * below).sum()) + 2 * _TAIL
    return result
