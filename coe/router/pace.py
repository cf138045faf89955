"""How fast a tier empties in truth, where that is clearly slower than planned."""

from __future__ import annotations

import math

SMOOTHING, CLEARLY = 0.1, 0.8
"""About the last ten batches count; what is planned holds unless less than this part of it is seen."""


class Pace:
    """How fast a tier that is full empties in truth: items per second between the ends of full batches, smoothed.

    Machines that are much slower than planned show here, and nowhere else before queries are late. While a tier is not full
    nobody can tell; then the figure creeps back to what was planned.
    """

    def __init__(self) -> None:
        self._per_s = math.inf
        self._ended_s: float | None = None

    def ended(self, now_s: float, items: int, *, is_full: bool) -> None:
        """A batch has ended; `is_full`: as large as may be, with no slot free and others waiting."""
        if self._ended_s is not None and is_full and now_s > self._ended_s:
            seen = items / (now_s - self._ended_s)
            self._per_s = seen if math.isinf(self._per_s) else self._per_s + SMOOTHING * (seen - self._per_s)
        elif not is_full:
            self._per_s *= 1 + SMOOTHING
        self._ended_s = now_s if is_full else None

    def of(self, planned_per_s: float) -> float:
        """Items per second to count with: the planned ones, unless it is clear that there are fewer."""
        return self._per_s if self._per_s < CLEARLY * planned_per_s else planned_per_s
