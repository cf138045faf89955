"""Bounds of a rate that hold at every moment at once, however long one watches and whenever one looks.

A fixed-time interval such as `loss_upper_bound` may be looked at once. A service is looked at all the time, and by chance alone
the fixed-time bound would some day cross any line. These bounds come from a bet instead. Say the rate is at most m. Whoever
stakes 1 on "it is p > m" has after s hits among n draws, at fair odds for m,

    (p/m)^s ((1-p)/(1-m))^(n-s)

which cannot grow in the mean if the claim is true, whatever p is. The stake is spread over p by a Beta prior, and the part that
falls on p <= m is kept in the pocket. What one has then, the evidence against "at most m", is a nonnegative supermartingale
under every sequence of draws whose chance of a hit was never above m, so the probability that it ever reaches 1/delta is at
most delta (Ville 1939; the mixture is Robbins', Ann. Math. Stat. 1970; one-sided as in Howard, Ramdas, McAuliffe and Sekhon,
Ann. Stat. 2021). The lower bound is the largest m against which the evidence reaches 1/delta. For draws of 0 and 1 nothing is
approximated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import betainc, betaincc, betaln

from coe.types import FloatArray

Prior = tuple[float, float]
RARE: Prior = (0.5, 5.0)
"""The stake where hits are rare, as mistakes are. Every prior is as valid; this one saves about a quarter of the draws there."""
ANY: Prior = (0.5, 0.5)
"""Jeffreys': where nothing is known of the rate."""
DIFFERING_PART = 0.9
"""Of delta, what the rate among audited answers takes; the share of early answers, known from far more, takes the rest."""
_EXACT = 1e-6
"""A bound is found to so much; smaller gains than that are not looked for."""


def log_evidence(
    hits: FloatArray | float, draws: FloatArray | float, at_most: FloatArray | float, prior: Prior = RARE
) -> FloatArray:
    """Logarithm of the evidence against "every draw hits with a chance of at most `at_most`", which lies in (0, 1).

    Arrays of one shape, or what broadcasts. Below the mean of the draws it falls as `at_most` rises.
    """
    a, b = prior
    misses = np.subtract(draws, hits)
    pocket = np.log(betainc(a, b, at_most))
    with np.errstate(divide="ignore"):  # nothing of the stake is left above `at_most`: the logarithm of 0
        above = np.log(betaincc(a + hits, b + misses, at_most))
    won = betaln(a + hits, b + misses) - betaln(a, b) - hits * np.log(at_most) - misses * np.log1p(np.negative(at_most))
    together: FloatArray = np.logaddexp(pocket, won + above)
    return together


def lower_bound(hits: int, draws: int, delta: float, prior: Prior = RARE, known: float = 0.0) -> float:
    """The largest rate that the draws speak against with 1-delta; 0 where they speak against none. At least `known`.

    With probability at least 1-delta it stays, after every draw, below the largest chance of a hit that any draw has had: below
    the rate, where that is one. It is exact to `_EXACT`, and on the safe side.
    """
    wanted = math.log(1 / delta)

    def is_refuted(rate: float) -> bool:
        return float(log_evidence(hits, draws, rate, prior)) >= wanted

    low, high = known, hits / draws if draws else 0.0
    closer = known + _EXACT * (1 - known)
    if hits == 0 or high <= closer or not is_refuted(closer):  # most looks end here
        return known
    while high - low > _EXACT * high and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def upper_bound(hits: int, draws: int, delta: float, prior: Prior = RARE, known: float = 1.0) -> float:
    """The smallest rate that the draws speak against with 1-delta from above; 1 where there is none. At most `known`."""
    return 1.0 - lower_bound(draws - hits, draws, delta, prior[::-1], 1.0 - known)


@dataclass(frozen=True)
class Bounds:
    """Both bounds after some looks. Each holds with 1-delta at all times at once, so the tightest so far holds, too."""

    delta: float
    prior: Prior = RARE
    hits: int = 0
    draws: int = 0
    low: float = 0.0
    high: float = 1.0

    def after(self, hits: int, draws: int) -> Self:
        """What they are when `hits` of `draws` were seen, the earlier ones among them. One may look at every draw, or seldom."""
        low = lower_bound(hits, draws, self.delta, self.prior, self.low)
        high = upper_bound(hits, draws, self.delta, self.prior, self.high)
        return type(self)(self.delta, self.prior, hits, draws, low, high)
