"""What one query cost: its part of each member call that it was in. Parts add up to the usage of the bill."""

from __future__ import annotations


def part_usd(busy_s: float, items: int, usd_per_busy_s: float, fee_usd: float) -> float:
    """Dollars of one item of a call.

    busy_s: of the replica, for all `items`, which share it equally: they were computed together.   usd_per_busy_s: price of what
    the replica owns (`coe.cost.model.usd_per_busy_s`).   fee_usd: of this item alone.

    What is rented and idle, and the router, are no query's: they are in the bill's allocation.
    """
    return busy_s * usd_per_busy_s / items + fee_usd
