"""Gears on the machines of one plan: other cascades of its members, each up to the load that these machines carry with it.

Nothing more is rented. At low load the plan's own cascade answers; above what it carries, one that asks fewer models, with a
certificate of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePath

from coe.cascade.evaluate import evaluate
from coe.cost.model import SECONDS_PER_HOUR, usage_line, usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.placement.gears import BACK
from coe.table import PredictionTable
from coe.types import Cascade, CascadeStats, CostLine, Gear, Gears, Placement, Plan, PredictedCost


def gears_on(plan: Plan, cascades: Sequence[Cascade], sample: PredictionTable) -> Gears:
    """The plan as the lowest gear, and a gear for each cascade, by rising loads.

    A gear's limit is the load at which its busiest replica reaches the workload's target utilisation. Its latency is bounded by
    what the plan's tiers need for the same members. `sample` is the certification split.

    Raises `InvalidInput` for members that the plan does not place, for cascades that would be slower than promised, and for such
    as carry no more than another gear.
    """
    problems = [p for cascade in cascades for p in _unplaced(plan, cascade)]
    if problems:
        raise InvalidInput(problems)
    plans = [_at_its_limit(plan, plan.cascade, plan.stats)]
    plans += [_at_its_limit(plan, c, evaluate(c, sample)) for c in cascades]
    problems = list(_slow(plan, plans[1:]))
    plans.sort(key=lambda p: p.workload.rate_per_s)
    problems += _needless(plans)
    if problems:
        raise InvalidInput(problems)
    return _named([p.cascade.name for p in plans], plans)


def joined(plans: Sequence[Plan], names: Sequence[str]) -> Gears:
    """Gears of plans that were made one by one, each for the load that it was planned for. names: one for each, as of files."""
    ordered = sorted(zip(plans, names, strict=True), key=lambda pair: pair[0].workload.rate_per_s)
    rates = [p.workload.rate_per_s for p, _ in ordered]
    if len(set(rates)) < len(rates):
        found = ", ".join(f"{r:g}/s" for r in rates)
        raise InvalidInput(Problem("plans", "must be for different loads: each is a gear up to its own", found))
    return _named([PurePath(name).stem for _, name in ordered], [p for p, _ in ordered])


def _named(names: Sequence[str], plans: Sequence[Plan]) -> Gears:
    limits = [p.workload.rate_per_s for p in plans]
    marks = [0.0, *(BACK * limit for limit in limits)]
    told = names if len(set(names)) == len(names) else [None] * len(names)
    return Gears(
        gears=tuple(
            Gear(name=name, up_to_per_s=limit, back_below_per_s=mark, plan=plan)
            for name, limit, mark, plan in zip(told, limits, marks, plans, strict=False)
        )
    )


def carried_per_s(plan: Plan, cascade: Cascade, stats: CascadeStats) -> float:
    """Queries per second at which the busiest replica of the plan reaches the target utilisation with this cascade."""
    loads = [load for p in _own(plan, cascade) if (load := _load_per_query(plan, p, stats)) > 0]
    return plan.workload.target_utilisation / max(loads)


def _load_per_query(plan: Plan, p: Placement, stats: CascadeStats) -> float:
    """Utilisation of a placement per query per second of the service, in full batches as the plan states it."""
    before = plan.workload.rate_per_s * plan.stats.calls[p.member]
    if before > 0:
        return stats.calls[p.member] * p.utilisation / before
    return stats.calls[p.member] * p.traffic * p.full_s / p.batch_size / p.replicas


def _own(plan: Plan, cascade: Cascade) -> list[Placement]:
    return [p for p in plan.placements if p.member in cascade.members]


def _at_its_limit(plan: Plan, cascade: Cascade, stats: CascadeStats) -> Plan:
    """The plan with another cascade, at the load that it carries then; its batches are taken to be no larger than before, so that
    the dollars of usage are rather too many."""
    rate = carried_per_s(plan, cascade, stats)
    claim = cascade.certificate
    promised = {} if claim is None else {"reference": claim.reference, "max_accuracy_loss": claim.epsilon}
    busy_s = {p.deployment: rate * stats.calls[p.member] * p.traffic * p.expected_busy_s for p in _own(plan, cascade)}
    own = tuple(
        p.model_copy(update={"utilisation": min(1.0, rate * _load_per_query(plan, p, stats))})
        for p in _own(plan, cascade)
    )
    fees = [
        line.model_copy(update={"quantity": line.quantity * times, "usd": line.usd * times})
        for line in plan.usage_lines
        if line.unit == "1,000 calls"
        for times in [_fee_times(plan, line, rate, stats)]
    ]
    fees_usd = sum(line.usd for line in fees)
    used = sum(
        busy_s[p.deployment] * usd_per_busy_s(plan.offer(p.node_type), p.share) * SECONDS_PER_HOUR
        for p in own
        if p.api is None
    )
    rented = sum(n.count * n.usd_per_hour for n in plan.nodes)
    tiers = {m: t for t, tier in enumerate(cascade.tiers) for m in tier.members}
    latency = tier_latency_s(plan, cascade)
    return plan.model_copy(
        update={
            "cascade": cascade,
            "workload": plan.workload.model_copy(update={"rate_per_s": rate, **promised}),
            "stats": stats,
            "pool": plan.pool.model_copy(update={"members": tuple(plan.pool.member(m) for m in cascade.members)}),
            "placements": own,
            "latency_bound_s": plan.latency_bound_s if cascade is plan.cascade else _on_the_path(plan, stats, latency),
            "tier_latency_s": plan.tier_latency_s if cascade is plan.cascade else latency,
            "cost": PredictedCost.of(used + fees_usd, rented + fees_usd, rate, stats.accuracy),
            "usage_lines": (
                *(
                    usage_line(tiers[p.member], p.member, plan.offer(p.node_type), busy_s[p.deployment] * p.share)
                    for p in own
                    if p.api is None
                ),
                *fees,
            ),
            "allocation_lines": (*(line for line in plan.allocation_lines if line.unit != "1,000 calls"), *fees),
            "baseline": plan.baseline if cascade is plan.cascade else None,
            "rejected": (),
            "sensitivities": (),
            "loads": (),
            "profile_origins": {d: o for d, o in plan.profile_origins.items() if d.split("@")[0] in cascade.members},
            "simulated": None,
        }
    )


def _fee_times(plan: Plan, line: CostLine, rate: float, stats: CascadeStats) -> float:
    """How many times as many calls a member with a fee gets; 0 where the cascade does not ask it."""
    of = [
        p.member
        for p in plan.placements
        if line.name in (f"API: {p.api}",) or line.name.startswith(f"egress: {p.member} ")
    ]
    if not of:
        return rate / plan.workload.rate_per_s
    before = plan.workload.rate_per_s * plan.stats.calls[of[0]]
    return rate * stats.calls.get(of[0], 0.0) / before if before else 0.0


# --- Latency and refusals ----------------------------------------------------------------------------------------------


def tier_latency_s(plan: Plan, cascade: Cascade) -> tuple[float, ...]:
    """An upper bound for every tier: a member needs no longer than the tier of the plan that it comes from."""
    of = {m: plan.tier_latency_s[t] for t, tier in enumerate(plan.cascade.tiers) for m in tier.members}
    return tuple((sum if tier.dispatch == "staged" else max)([of[m] for m in tier.members]) for tier in cascade.tiers)


def _on_the_path(plan: Plan, stats: CascadeStats, latency_s: Sequence[float]) -> float:
    """Of the tiers that the promised quantile reaches."""
    beyond = 1 - plan.workload.latency_quantile
    return sum(s for t, (s, reach) in enumerate(zip(latency_s, stats.reach, strict=True)) if t == 0 or reach > beyond)


def _unplaced(plan: Plan, cascade: Cascade) -> Iterator[Problem]:
    there = {p.member for p in plan.placements}
    for member in cascade.members:
        if member not in there:
            rule = f"names '{member}', which the plan does not place"
            remedy = f"use its members ({', '.join(sorted(there))}), or make a plan for this cascade and join the two"
            yield Problem(f"cascade '{cascade.name}'", rule, remedy=remedy)


def _slow(plan: Plan, plans: Sequence[Plan]) -> Iterator[Problem]:
    promised = plan.workload.latency_s
    for p in plans:
        if p.latency_bound_s > promised:
            rule = f"must be answered within the plan's promise of {promised:g} s"
            remedy = "ask fewer members one after the other, or make a plan for this cascade and join the two"
            yield Problem(f"cascade '{p.cascade.name}'", rule, f"its bound is {p.latency_bound_s:.3g} s", remedy)


def _needless(plans: Sequence[Plan]) -> Iterator[Problem]:
    """Gears must carry clearly more than the one before: the mark at which a gear is left lies below that limit."""
    for low, high in pairwise(plans):
        if high.workload.rate_per_s <= low.workload.rate_per_s:
            found = f"{high.workload.rate_per_s:.4g}/s, and '{low.cascade.name}' {low.workload.rate_per_s:.4g}/s"
            busiest = max(high.placements, key=lambda p: p.utilisation).deployment
            remedy = (
                f"ask {busiest} less, which is as busy as it may be, or make a plan for this cascade and join the two"
            )
            yield Problem(f"cascade '{high.cascade.name}'", "must carry more than the gear before it", found, remedy)
