"""What a machine that one owns costs per hour: purchase price over its years, and the power it draws.

Owned hardware is billed whether it works or not, as rented hardware is; so power counts at the average draw that the owner
states, and the price is per hour of the calendar unless only part of the hours can be used.
"""

from __future__ import annotations

from coe.errors import InvalidInput, Problem

HOURS_PER_YEAR = 8766
"""365.25 days."""


def owned_usd_per_hour(
    purchase_usd: float,
    years: float,
    power_kw: float = 0.0,
    usd_per_kwh: float = 0.0,
    upkeep_usd_per_year: float = 0.0,
    residual_usd: float = 0.0,
    available: float = 1.0,
) -> float:
    """Dollars per hour of a machine bought for `purchase_usd` and sold for `residual_usd` after `years`.

    Straight-line depreciation plus upkeep, spread over the `available` share of all hours, plus `power_kw` (machine and
    cooling) at `usd_per_kwh`. Raises `InvalidInput` naming every figure that makes no sense.
    """
    rules = (
        ("purchase_usd", purchase_usd, purchase_usd >= 0, "must be >= 0"),
        ("years", years, years > 0, "must be > 0"),
        ("power_kw", power_kw, power_kw >= 0, "must be >= 0"),
        ("usd_per_kwh", usd_per_kwh, usd_per_kwh >= 0, "must be >= 0"),
        ("upkeep_usd_per_year", upkeep_usd_per_year, upkeep_usd_per_year >= 0, "must be >= 0"),
        ("residual_usd", residual_usd, 0 <= residual_usd <= purchase_usd, "must lie between 0 and purchase_usd"),
        ("available", available, 0 < available <= 1, "must be in (0, 1]"),
    )
    problems = [Problem(name, rule, f"{value:g}") for name, value, holds, rule in rules if not holds]
    if problems:
        raise InvalidInput(problems)
    yearly = (purchase_usd - residual_usd) / years + upkeep_usd_per_year
    return yearly / (HOURS_PER_YEAR * available) + power_kw * usd_per_kwh
