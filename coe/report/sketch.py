"""Quantiles of response times in bounded memory: counts in buckets whose bounds grow by a fixed factor.

DDSketch (Masson, Rim and Lee 2019, VLDB, section 2): with bounds gamma^i, gamma = (1 + a) / (1 - a), the middle of a bucket is
within a share `a` of every value in it, whatever the distribution. Sketches add up, so windows are sums of slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

ACCURACY = 0.01
"""A quantile is off by at most this share of itself."""
LEAST, MOST = 1e-5, 1e4
"""Seconds; what lies outside counts as these."""

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_PER_LOG = 1 / math.log(_GAMMA)


class Sketch:
    """How often values of about each size were seen; at most about a thousand buckets."""

    __slots__ = ("_buckets", "count")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        """Count a value."""
        bucket = math.ceil(math.log(min(max(value, LEAST), MOST)) * _PER_LOG)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def merge(self, other: Sketch) -> None:
        """Add what another sketch counted."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count

    def quantile(self, share: float, among: int | None = None) -> float | None:
        """The smallest value that at least `share` of the values do not exceed, give or take `ACCURACY`.

        among: how many values there are in truth, those beyond all that were counted included; None where the quantile is
        one of them, and where there is none.
        """
        n = self.count if among is None else among
        rank = max(1, math.ceil(share * n - 1e-9))
        if rank > self.count:
            return None
        return next(value for value, below in self.cumulated() if below >= rank)

    def cumulated(self) -> Iterator[tuple[float, int]]:
        """(value, how many are at most about that), rising."""
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            yield 2 * _GAMMA**bucket / (_GAMMA + 1), below
