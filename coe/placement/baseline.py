"""The best single model that keeps the promises, placed by the same optimiser: what a cascade has to beat."""

from __future__ import annotations

from coe.placement.branch import Remaining
from coe.placement.candidates import Candidate, Placed, World, candidate, hosted_model, place
from coe.types import Baseline, Cascade, Tier


def accurate_singles(world: World) -> list[str]:
    """Members whose measured accuracy keeps the promise and that something on offer can run.

    They need no certificate and no confidence margin: the comparison favours them.
    """
    sample, work = world.sample, world.workload
    right = {m: float((sample.answers[:, i] == sample.labels).mean()) for i, m in enumerate(sample.members)}
    least = right[work.reference] - work.max_accuracy_loss
    accelerators = {o.accelerator for o in world.prices.offers if o.market != "serverless"}
    hosted = {m.name for m in world.pool.members if hosted_model(m, world.prices) is not None}
    return [
        m
        for m in sample.members
        if right[m] >= least and right[m] > 0 and (m in hosted or any(world.profiles.find(m, a) for a in accelerators))
    ]


def single(member: str, world: World) -> Candidate:
    """The cascade of one model."""
    return candidate(Cascade(name=member, tiers=(Tier(members=(member,)),)), world)


def best_single(world: World, remaining: Remaining | None = None) -> Placed | None:
    """The cheapest single model at this load and latency; None where none keeps the promises."""
    best: Placed | None = None
    for member in accurate_singles(world):
        placed = place(single(member, world), float("inf") if best is None else best.usd_per_hour, remaining)
        if isinstance(placed, Placed) and (best is None or placed.rank < best.rank):
            best = placed
    return best


def baseline_noun(best: Placed, baseline: Placed) -> Baseline:
    """The baseline with a sentence that compares the two on both bases."""
    (member,) = baseline.cascade.members
    column = max(baseline.solution.replicas, key=lambda c: baseline.solution.traffic_per_s[c])
    ours, theirs = best.cost, baseline.cost
    return Baseline(
        member=member,
        node_type=baseline.problem.columns[column].offer.node_type,
        nodes=max(1, sum(baseline.solution.nodes.values())),
        accuracy=baseline.stats.accuracy,
        cost=theirs,
        note=(
            f"The best single model that keeps the promises is {member}: ${theirs.usd_per_hour_allocation:.3f} per hour "
            f"rented, ${theirs.usd_per_hour_usage:.3f} used. The cascade "
            f"{_saving(ours.usd_per_hour_allocation, theirs.usd_per_hour_allocation)} rented and "
            f"{_saving(ours.usd_per_hour_usage, theirs.usd_per_hour_usage)} used."
        ),
    )


def _saving(ours: float, theirs: float) -> str:
    if theirs <= 0:
        return "cannot be compared (the single model is free)"
    change = 1 - ours / theirs
    if abs(change) < 0.0005:
        return "costs the same"
    return f"saves {change:.1%}" if change > 0 else f"costs {-change:.1%} MORE"
