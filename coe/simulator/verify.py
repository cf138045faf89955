"""Does a plan keep its latency promise on the virtual clock, and what to ask of the next one where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coe.errors import Infeasible, Unavailable
from coe.simulator.arrivals import poisson, stream
from coe.simulator.figures import Simulated
from coe.simulator.run import simulate
from coe.table import PredictionTable
from coe.types import Plan, Profiles, Workload

TIGHTER = 0.85
LEAST_UTILISATION = 0.1
RUNS = 3
QUERIES = 20_000
LEAST_S = 30.0
"""Each run has so many queries, and lasts so long at least; its first tenth is left out."""


@dataclass(frozen=True)
class Verdict:
    """Whether the promised quantile was kept in every run, the worst of them, and how busy the busiest deployment was."""

    kept: bool
    worst_s: float
    promised_s: float
    busiest: float

    def __str__(self) -> str:
        told = "keeps" if self.kept else "MISSES"
        return (
            f"simulated, the plan {told} its latency promise of {self.promised_s:g} s: {self.worst_s:.3g} s at worst, the "
            f"busiest deployment {self.busiest:.0%} busy"
        )


def verdict(runs: Sequence[Simulated], workload: Workload) -> Verdict:
    """The judgement of several runs of one plan."""
    worst = max(r.latency_promise_s for r in runs)
    busiest = max(u for r in runs for u in r.utilisation.values())
    return Verdict(worst <= workload.latency_s, worst, workload.latency_s, busiest)


def tightened(workload: Workload) -> Workload | None:
    """The workload with less utilisation asked of every replica; None where it is as low as makes sense."""
    less = TIGHTER * workload.target_utilisation
    return None if less < LEAST_UTILISATION else workload.model_copy(update={"target_utilisation": less})


def verified(
    plan_at: Callable[[Workload], Plan], workload: Workload, profiles: Profiles, sample: PredictionTable
) -> Plan:
    """The plan that a simulation says keeps its latency promise, found by asking for less utilisation until it does.

    The plan's field `simulated` tells what was found, and its workload the utilisation that it was solved for in the end.
    Where no utilisation will do, or time ends, the first plan comes back, and the field says that it misses.
    """
    first: Plan | None = None
    asked: Workload | None = workload
    while asked is not None:
        try:
            plan = plan_at(asked)
        except (Infeasible, Unavailable):  # too much to ask, or no time left to find out
            if first is None:
                raise
            break
        if (unfit := _unfit(plan, profiles)) is not None:
            return plan.model_copy(update={"simulated": unfit})
        judged = verdict(_runs(plan, profiles, sample), workload)
        lowered = "" if asked is workload else f"; target utilisation lowered from {workload.target_utilisation:.0%}"
        plan = plan.model_copy(update={"simulated": f"{judged}{lowered}"})
        first = first or plan
        if judged.kept:
            return plan
        asked = tightened(asked)
    assert first is not None
    return first


def _runs(plan: Plan, profiles: Profiles, sample: PredictionTable) -> list[Simulated]:
    """Poisson arrivals at the planned rate."""
    rate = plan.workload.rate_per_s
    duration_s = max(LEAST_S, QUERIES / rate)
    return [
        simulate(
            plan,
            profiles,
            sample,
            poisson(stream(seed, "arrivals"), rate, duration_s),
            seed=seed,
            warm_up_s=duration_s / 10,
        ).figures
        for seed in range(RUNS)
    ]


def _unfit(plan: Plan, profiles: Profiles) -> str | None:
    """Why a plan is not simulated; None where it is."""
    if what := beyond_compiled(plan, profiles):
        return f"not simulated: {what}; `coe simulate` runs it on the router's own code"
    if plan.workload.rate_per_s * LEAST_S < 1:
        return "not simulated: too few queries"
    return None


def beyond_compiled(plan: Plan, profiles: Profiles) -> str:
    """What the compiled engine does not know about a plan: members that go otherwise than by batches; else empty."""
    for p in plan.placements:
        if p.api:
            return f"the hosted model {p.api}"
        profile = profiles.find(p.member, plan.offer(p.node_type).accelerator)
        if profile is not None and profile.token_rates:
            return f"{p.member}, which goes by tokens"
    return ""
