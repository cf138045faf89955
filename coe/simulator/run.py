"""One simulation of a plan whose machines never fail, on the compiled engine: its figures and its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coe.cascade.evaluate import scores_of
from coe.errors import InvalidInput, Problem
from coe.placement.fees import call_fee_usd
from coe.records import Answer, BatchRun, NodeSpan, Record
from coe.simulator import fast
from coe.simulator.arrivals import stream
from coe.simulator.engine import Outcome
from coe.simulator.figures import Simulated, Tally, figures, placements_of
from coe.simulator.network import Load, Network, items_of, load_of, network_of
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, FloatArray, IntArray, Plan, Profiles

_JITTERS = 20_011
"""Factors of service times that are drawn; a prime, so that their cycle falls in with no other."""


@dataclass(frozen=True)
class Run:
    """A simulation: its figures, and what it was made of."""

    figures: Simulated
    network: Network
    load: Load
    jitter: FloatArray

    @cached_property
    def outcome(self) -> Outcome:
        """Everything that happened, computed again when it is asked for: it needs far more memory than the figures."""
        return fast.run(self.network, self.load, self.jitter)


def simulate(
    plan: Plan,
    profiles: Profiles,
    table: PredictionTable,
    arrival_s: FloatArray,
    *,
    item: IntArray | None = None,
    seed: int = 0,
    warm_up_s: float = 0.0,
) -> Run:
    """The plan serving queries that arrive at `arrival_s` (rising seconds from 0) and replay items of `table`: the rows
    `item` (queries,), else drawn at random.

    Answers and tiers are those of evaluation, item by item; service times are the profiles' medians with lognormal jitter that
    reaches their p99. Raises `InvalidInput` for no arrivals, for a warm-up that leaves none, and for members without
    predictions or profiles.
    """
    load = load_of(plan, table, arrival_s, items_of(table, len(arrival_s), item, seed))
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
    totals = fast.run_totals(network, load, jitter, warm_up_s)
    tally = _tally(plan, table, network, load, totals, warm_up_s)
    return Run(figures(plan, tally, seed), network, load, jitter)


def _tally(
    plan: Plan, table: PredictionTable, network: Network, load: Load, totals: fast.Totals, warm_up_s: float
) -> Tally:
    counted = load.arrival_s >= warm_up_s
    items = load.item[counted]
    is_answered = load.routing.answer[items] != MISSING_VOTE
    duration_s = float(totals.done_s.max()) - warm_up_s
    return Tally(
        duration_s=duration_s,
        latency_s=np.where(is_answered, (totals.done_s - load.arrival_s)[counted], np.nan),
        is_right=load.routing.answer[items] == table.labels[items],
        entered=totals.entered,
        waited_s=totals.waited_s,
        calls=totals.calls,
        items=totals.items,
        busy_s=totals.busy_s,
        replica_wait_s=totals.replica_wait_s,
        service_s=totals.service_s,
        network_s=totals.items * network.hop_s,
        rented_usd=sum(n.count * n.usd_per_hour for n in plan.nodes) * duration_s / 3600,
        degraded=int((load.routing.degraded[items] & is_answered).sum()),
        replica_s=duration_s * network.replicas.astype(np.float64),
        fees_usd=float(sum(n * call_fee_usd(plan, p) for n, p in zip(totals.items, placements_of(plan), strict=True))),
    )


def records_of(plan: Plan, table: PredictionTable, run: Run) -> Iterator[Record]:
    """The ledger of a run that started at second 0, as the service writes it. A query that the last tier cannot answer has
    failed, without the earlier tier's fallback."""
    end_s = float(run.outcome.done_s.max())
    for node in plan.nodes:
        yield NodeSpan(node.node_type, node.count, node.usd_per_hour, 0.0, end_s)
    placements, calls = placements_of(plan), run.outcome.calls
    fees = [call_fee_usd(plan, p) for p in placements]
    for i in range(len(calls.member)):
        p = placements[calls.placement[i]]
        yield BatchRun(
            int(run.network.member_tier[calls.member[i]]),
            p.member,
            p.node_type,
            p.share,
            int(calls.items[i]),
            float(calls.asked_s[i]),
            float(calls.busy_s[i]),
            "ok",
            int(calls.items[i]) * fees[calls.placement[i]],
        )
    routing, load = run.load.routing, run.load
    scores = scores_of(plan.cascade, table, routing)
    for q in np.argsort(run.outcome.done_s, kind="stable"):
        item = load.item[q]
        failed = routing.answer[item] == MISSING_VOTE
        yield Answer(
            f"q{q}",
            float(load.arrival_s[q]),
            float(run.outcome.done_s[q]),
            -1 if failed else int(routing.tier[item]),
            int(routing.answer[item]),
            0.0 if failed else float(scores[item]),
            bool(failed or routing.degraded[item]),
            "failed" if failed else "ok",
        )
