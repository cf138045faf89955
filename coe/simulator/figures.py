"""What a run comes to: latency by part, goodput, accuracy, utilisation, dollars on both bases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from coe.cost.model import usd_per_busy_s
from coe.simulator.auditing import SimulatedAudits
from coe.types import BoolArray, FloatArray, IntArray, Placement, Plan

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Tally:
    """What happened after the warm-up, added up.

    latency_s, is_right: (queries,); latency is NaN for a query that nobody answered.    entered: (tiers,), queries that joined a
    tier's queue, and waited_s: (tiers,), the seconds they spent there.    calls, items, busy_s: (placements,).    replica_wait_s,
    service_s, network_s: (placements,), summed over items.    Audits count in busy_s and in dollars alone.
    """

    duration_s: float
    latency_s: FloatArray
    is_right: BoolArray
    entered: IntArray
    waited_s: FloatArray
    calls: IntArray
    items: IntArray
    busy_s: FloatArray
    replica_wait_s: FloatArray
    service_s: FloatArray
    network_s: FloatArray
    rented_usd: float
    replica_s: FloatArray
    """(placements,): seconds that replicas were there."""
    fees_usd: float = 0.0
    refused: int = 0
    degraded: int = 0
    saved_items: int = 0
    audits: tuple[SimulatedAudits, ...] = ()
    used_usd: float | None = None
    """For busy time, where not only one plan's placements were busy."""


@dataclass(frozen=True)
class TierTimes:
    """Mean seconds that a query of this tier spends: until its batch is sent (filling, or waiting for a slot), for a replica
    to be free, being computed, and on the way there and back."""

    tier: int
    reach: float
    batch_wait_s: float
    replica_wait_s: float
    service_s: float
    network_s: float
    mean_batch: float


@dataclass(frozen=True)
class Simulated:
    """Figures of one run, without the queries of the warm-up. `utilisation`: deployment -> busy share of its replicas' time.

    latency_promise_s: the promised quantile of latencies.    goodput: share of all queries answered within the promise.
    accuracy: of the answered ones.    unanswered: share that failed or was refused;  refused: the part of it that was refused on
    arrival;  degraded: share answered with a vote missing.    saved_items: of calls that early decisions made needless.
    """

    seed: int
    queries: int
    duration_s: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p99_s: float
    latency_promise_s: float
    goodput: float
    accuracy: float
    usd_per_1k_usage: float
    usd_per_1k_allocation: float
    tiers: tuple[TierTimes, ...]
    utilisation: dict[str, float]
    unanswered: float = 0.0
    refused: float = 0.0
    degraded: float = 0.0
    saved_items: int = 0
    audits: tuple[SimulatedAudits, ...] = ()
    """One for each plan that was in service; empty where none are made."""


def figures(plan: Plan, tally: Tally, seed: int) -> Simulated:
    """The figures of a run. Dollars per 1,000 are per query that was answered, as in the report."""
    work = plan.workload
    queries = len(tally.latency_s)
    answered = ~np.isnan(tally.latency_s)
    latency = tally.latency_s[answered]
    thousands = max(1, len(latency)) / 1000
    p50, p99, promised = np.quantile(latency, [0.5, 0.99, work.latency_quantile]) if len(latency) else [math.nan] * 3
    used_usd = _used_usd(plan, tally.busy_s) if tally.used_usd is None else tally.used_usd
    return Simulated(
        seed=seed,
        queries=queries,
        duration_s=tally.duration_s,
        latency_mean_s=float(latency.mean()) if len(latency) else math.nan,
        latency_p50_s=float(p50),
        latency_p99_s=float(p99),
        latency_promise_s=float(promised),
        goodput=float((latency <= work.latency_s).sum() / queries),
        accuracy=float(tally.is_right[answered].mean()) if len(latency) else math.nan,
        usd_per_1k_usage=(used_usd + tally.fees_usd) / thousands,
        usd_per_1k_allocation=(tally.rented_usd + tally.fees_usd) / thousands,
        tiers=tuple(_tier_times(plan, tally, t) for t in range(len(plan.cascade.tiers))),
        utilisation={
            p.deployment: float(busy / there) if there else 0.0
            for p, busy, there in zip(placements_of(plan), tally.busy_s, tally.replica_s, strict=True)
        },
        unanswered=float(1 - answered.mean()),
        refused=tally.refused / queries,
        degraded=tally.degraded / queries,
        saved_items=tally.saved_items,
        audits=tally.audits,
    )


def placements_of(plan: Plan) -> list[Placement]:
    """The plan's placements in the order of the network's."""
    return [p for m in plan.cascade.members for p in plan.placements if p.member == m]


def _used_usd(plan: Plan, busy_s: FloatArray) -> float:
    """Dollars for busy time: every call, at the price of the share that it kept busy; a hosted model has its fees instead."""
    return float(
        sum(
            busy * usd_per_busy_s(plan.offer(p.node_type), p.share)
            for busy, p in zip(busy_s, placements_of(plan), strict=True)
            if p.api is None
        )
    )


def _tier_times(plan: Plan, tally: Tally, tier: int) -> TierTimes:
    mine = np.array([p.member in plan.cascade.tiers[tier].members for p in placements_of(plan)])
    queries, items, calls = len(tally.latency_s), int(tally.items[mine].sum()), int(tally.calls[mine].sum())
    entered = int(tally.entered[tier])

    def per_item(seconds: FloatArray) -> float:
        return float(seconds[mine].sum() / items) if items else 0.0

    return TierTimes(
        tier=tier,
        reach=entered / queries,
        batch_wait_s=float(tally.waited_s[tier] / entered) if entered else 0.0,
        replica_wait_s=per_item(tally.replica_wait_s),
        service_s=per_item(tally.service_s),
        network_s=per_item(tally.network_s),
        mean_batch=items / calls if calls else 0.0,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent runs, and the half width of its 95% confidence interval (Student); infinite for a single run."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    half = student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(half)
