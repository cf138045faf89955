"""One simulation of a plan, and what it says: latency by part, goodput, accuracy, utilisation, dollars on both bases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.stats import t as student

from coe.cost.model import usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.records import Answer, BatchRun, NodeSpan, Record
from coe.simulator import fast
from coe.simulator.arrivals import stream
from coe.simulator.engine import Calls, Outcome
from coe.simulator.network import Load, Network, load_of, network_of
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, FloatArray, Placement, Plan, Profiles

CONFIDENCE = 0.95
_JITTERS = 20_011
"""Factors of service times that are drawn; a prime, so that their cycle falls in with no other."""


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

    latency_promise_s: the promised quantile of latencies.    goodput: share answered within the promise.
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


@dataclass(frozen=True)
class Run:
    """A simulation: its figures, and everything that happened."""

    figures: Simulated
    network: Network
    load: Load
    outcome: Outcome


def simulate(
    plan: Plan,
    profiles: Profiles,
    table: PredictionTable,
    arrival_s: FloatArray,
    *,
    seed: int = 0,
    warm_up_s: float = 0.0,
) -> Run:
    """The plan serving queries that arrive at `arrival_s` (rising seconds from 0) and replay items of `table` at random.

    Answers and tiers are those of evaluation, item by item; service times are the profiles' medians with lognormal jitter that
    reaches their p99. Raises `InvalidInput` for no arrivals, for a warm-up that leaves none, and for members without
    predictions or profiles.
    """
    load = load_of(plan, table, arrival_s, stream(seed, "items"))
    return simulate_load(plan, profiles, table, load, seed=seed, warm_up_s=warm_up_s)


def simulate_load(
    plan: Plan, profiles: Profiles, table: PredictionTable, load: Load, *, seed: int = 0, warm_up_s: float = 0.0
) -> Run:
    """As `simulate`, for queries whose items are known."""
    if len(load.arrival_s) == 0:
        raise InvalidInput(Problem("arrivals", "there are none", remedy="simulate longer, or at a higher rate"))
    if not 0 <= warm_up_s < load.arrival_s[-1]:
        found = f"{warm_up_s:g} s of {load.arrival_s[-1]:g} s"
        raise InvalidInput(Problem("warm-up", "must end before the last arrival", found, "simulate longer"))
    network = network_of(plan, profiles)
    jitter = np.exp(np.outer(network.sigma, stream(seed, "service").normal(0.0, 1.0, _JITTERS)))
    outcome = fast.run(network, load, jitter)
    return Run(_figures(plan, table, network, load, outcome, seed, warm_up_s), network, load, outcome)


def _figures(
    plan: Plan, table: PredictionTable, network: Network, load: Load, outcome: Outcome, seed: int, warm_up_s: float
) -> Simulated:
    counted = load.arrival_s >= warm_up_s
    latency = (outcome.done_s - load.arrival_s)[counted]
    items = load.item[counted]
    queries = int(counted.sum())
    hours = (float(outcome.done_s.max()) - warm_up_s) / 3600
    outcome = replace(outcome, calls=_since(outcome.calls, warm_up_s))
    rented = sum(n.count * n.usd_per_hour for n in plan.nodes) * hours
    work = plan.workload
    return Simulated(
        seed=seed,
        queries=queries,
        duration_s=3600 * hours,
        latency_mean_s=float(latency.mean()),
        latency_p50_s=float(np.quantile(latency, 0.5)),
        latency_p99_s=float(np.quantile(latency, 0.99)),
        latency_promise_s=float(np.quantile(latency, work.latency_quantile)),
        goodput=float((latency <= work.latency_s).mean()),
        accuracy=float((load.routing.answer[items] == table.labels[items]).mean()),
        usd_per_1k_usage=1000 * _used_usd(plan, network, outcome) / queries,
        usd_per_1k_allocation=1000 * rented / queries,
        tiers=tuple(_tier_times(network, outcome, t, counted) for t in range(network.tiers)),
        utilisation=_utilisation(plan, network, outcome, 3600 * hours),
    )


def _since(calls: Calls, start_s: float) -> Calls:
    """The calls that were asked from then on."""
    kept = calls.asked_s >= start_s
    return Calls(*(getattr(calls, f.name)[kept] for f in fields(Calls)))


def placements_of(plan: Plan) -> list[Placement]:
    """The plan's placements in the order of the network's."""
    return [p for m in plan.cascade.members for p in plan.placements if p.member == m]


def _used_usd(plan: Plan, network: Network, outcome: Outcome) -> float:
    """Dollars for busy time: every call, at the price of the share that it kept busy."""
    busy = np.bincount(outcome.calls.placement, outcome.calls.busy_s, minlength=len(network.replicas))
    return float(
        sum(
            b * usd_per_busy_s(plan.offer(p.node_type), p.share) for b, p in zip(busy, placements_of(plan), strict=True)
        )
    )


def _utilisation(plan: Plan, network: Network, outcome: Outcome, duration_s: float) -> dict[str, float]:
    busy = np.bincount(outcome.calls.placement, outcome.calls.busy_s, minlength=len(network.replicas))
    return {
        p.deployment: float(b / (duration_s * r))
        for p, b, r in zip(placements_of(plan), busy, network.replicas, strict=True)
    }


def _tier_times(network: Network, outcome: Outcome, tier: int, counted: np.ndarray) -> TierTimes:
    calls = outcome.calls
    mine = network.member_tier[calls.member] == tier
    reached = ~np.isnan(outcome.entered_s[:, tier])
    waited = (outcome.batched_s - outcome.entered_s)[reached & counted, tier]
    weight = calls.items[mine]
    if not len(weight) or not len(waited):
        return TierTimes(tier, float(reached[counted].mean()), 0.0, 0.0, 0.0, 0.0, 0.0)
    return TierTimes(
        tier=tier,
        reach=float(reached[counted].mean()),
        batch_wait_s=float(waited.mean()),
        replica_wait_s=float(np.average((calls.start_s - calls.asked_s)[mine], weights=weight)),
        service_s=float(np.average(calls.busy_s[mine], weights=weight)),
        network_s=float(np.average(network.hop_s[calls.placement[mine]], weights=weight)),
        mean_batch=float(weight.mean()),
    )


def records_of(plan: Plan, run: Run, started_s: float = 0.0) -> Iterator[Record]:
    """The ledger of a run that started at `started_s`, as the service writes it. Scores are not
    simulated and stand as 0; a query that the last tier cannot answer has failed, without the earlier tier's fallback."""
    end_s = started_s + float(run.outcome.done_s.max())
    for node in plan.nodes:
        yield NodeSpan(node.node_type, node.count, node.usd_per_hour, started_s, end_s)
    placements, calls = placements_of(plan), run.outcome.calls
    for i in range(len(calls.member)):
        p = placements[calls.placement[i]]
        yield BatchRun(
            int(run.network.member_tier[calls.member[i]]),
            p.member,
            p.node_type,
            p.share,
            int(calls.items[i]),
            started_s + float(calls.asked_s[i]),
            float(calls.busy_s[i]),
        )
    routing, load = run.load.routing, run.load
    for q in np.argsort(run.outcome.done_s, kind="stable"):
        item = load.item[q]
        failed = routing.answer[item] == MISSING_VOTE
        yield Answer(
            f"q{q}",
            started_s + float(load.arrival_s[q]),
            started_s + float(run.outcome.done_s[q]),
            -1 if failed else int(routing.tier[item]),
            int(routing.answer[item]),
            0.0,
            bool(failed or routing.degraded[item]),
            "failed" if failed else "ok",
        )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent runs, and the half width of its 95% confidence interval (Student); infinite for a single run."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    half = student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(half)
