"""Gears of plans for the fleet of tests: a cascade that asks a large model about hard queries, and one of small models alone."""

from __future__ import annotations

from coe.cascade.certify import certify_path
from coe.placement.optimize import plan
from coe.table import PredictionTable
from coe.types import Cascade, Gear, Gears, Plan, Pool, Prices, Profiles, Tier, Workload
from tests import factories

TABLE = factories.table(n=2000)
ACCURATE = factories.cascade()
FAST = Cascade(
    name="fast",
    tiers=(Tier(members=("middle",), rule="score", threshold=0.8), Tier(members=("other", "small"), rule="score")),
)


def certified(cascade: Cascade, epsilon: float, table: PredictionTable = TABLE) -> Cascade:
    """With a certificate of at most `epsilon` lost against the large model."""
    return certify_path([cascade], table.split("certification"), "large", epsilon, 0.05)


def planned(
    cascade: Cascade,
    rate_per_s: float,
    epsilon: float = 0.05,
    *,
    prices: Prices | None = None,
    profiles: Profiles | None = None,
    table: PredictionTable = TABLE,
    pool: Pool | None = None,
    **work: object,
) -> Plan:
    """The plan of one cascade at a load."""
    workload: Workload = factories.workload(rate_per_s=rate_per_s, max_accuracy_loss=epsilon, **work)
    return plan(
        pool or factories.pool(),
        [certified(cascade, epsilon, table)],
        table,
        profiles or factories.profiles(),
        prices or factories.prices(),
        workload,
        inputs={},
        reasons=False,
    )


def two_gears(low_per_s: float = 50.0, high_per_s: float = 400.0, **changes: object) -> Gears:
    """The accurate cascade up to a load, the fast one above."""
    low, high = planned(ACCURATE, low_per_s, 0.1), planned(FAST, high_per_s, 0.2)
    gears = (
        Gear(name="accurate", up_to_per_s=low_per_s, back_below_per_s=0.0, plan=low),
        Gear(name="fast", up_to_per_s=high_per_s, back_below_per_s=0.8 * low_per_s, plan=high),
    )
    return Gears(gears=gears, **changes)
