"""Which gear fits a load, without swinging between two of them."""

from __future__ import annotations

from coe.types import Gears


def next_gear(gears: Gears, current: int, rate_per_s: float) -> int:
    """Number of the gear for a load in queries per second: up as soon as the current one's limit is passed, down only below
    the mark where that gear is left."""
    last = len(gears.gears) - 1
    while current < last and rate_per_s > gears.gears[current].up_to_per_s:
        current += 1
    while current > 0 and rate_per_s < gears.gears[current].back_below_per_s:
        current -= 1
    return current
