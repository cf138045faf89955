"""What a plan costs line by line, what binds, what else was considered, and where its figures are from."""

from __future__ import annotations

from collections.abc import Sequence

from coe.cost.model import total_usd
from coe.prices.catalog import provenance
from coe.types import CostLine, Plan, Profiles


def explain(plan: Plan, profiles: Profiles | None = None) -> str:
    """The bill line by line, the promises and their slack, the alternatives, and where figures come from."""
    sections = [
        _headline(plan),
        "Tiers\n" + "\n".join(_tier_lines(plan)),
        "Rented, per hour\n" + _bill(plan.allocation_lines),
        "Used, per hour\n" + _bill(plan.usage_lines) + "\n" + _idle(plan),
        "Promises\n" + "\n".join(_promise_lines(plan)),
        "Why this one\n" + "\n".join(f"  {line}" for line in _why(plan)),
        f"Prices: {provenance(plan.offers)}",
    ]
    if profiles is not None:
        origins = sorted({f"{p.origin} {p.date}" for p in profiles.profiles if p.member in plan.cascade.members})
        sections.append(f"Profiles: {', '.join(origins)}")
    return "\n\n".join(sections) + "\n"


def _headline(plan: Plan) -> str:
    cost = plan.cost
    return (
        f"{plan.cascade.name}: ${cost.usd_per_hour_allocation:.3f} per hour rented "
        f"(${cost.usd_per_1k_allocation:.4f} per 1,000 queries at {plan.workload.rate_per_s:g}/s), "
        f"of which used ${cost.usd_per_hour_usage:.3f} (${cost.usd_per_1k_usage:.4f} per 1,000)"
    )


def _tier_lines(plan: Plan) -> list[str]:
    lines = []
    for number, tier in enumerate(plan.cascade.tiers):
        gate = "always answers" if tier.always_answers else f"{tier.rule} >= {tier.bar:g}"
        lines.append(f"  {number + 1}. {'+'.join(tier.members)}  {gate}, reached by {plan.stats.reach[number]:.1%}")
        lines += [
            f"     {p.replicas} x {p.deployment} on {p.share:g} of a {plan.offer(p.node_type).accelerator}, "
            f"batch <= {p.batch_size} (expected {p.expected_batch:.1f}), capacity used {p.utilisation:.0%}"
            for p in plan.placements
            if p.member in tier.members
        ]
    return lines


def _bill(lines: Sequence[CostLine]) -> str:
    width = max(len(line.name) for line in lines)
    rows = [
        f"  {line.name:<{width}}  {line.quantity:>9.4f} {line.unit:<13} x ${line.unit_price_usd:.4f} = ${line.usd:.4f}"
        for line in lines
    ]
    return "\n".join([*rows, f"  {'total':<{width}}  {'':>9} {'':<13}   {'':>7}   ${total_usd(lines):.4f}"])


def _idle(plan: Plan) -> str:
    """What is rented and not used, so that both bases meet."""
    rented, used = plan.cost.usd_per_hour_allocation, plan.cost.usd_per_hour_usage
    router = plan.router.replicas * plan.offer(plan.router.node_type).usd_per_hour
    return f"  rented ${rented:.4f} = used ${used:.4f} + router ${router:.4f} + idle ${rented - used - router:.4f}"


def _promise_lines(plan: Plan) -> list[str]:
    """Every promise and limit with what is left of it; one with nothing left binds."""
    work, certificate = plan.workload, plan.cascade.certificate
    slack = work.latency_s - plan.latency_bound_s
    busiest = max(plan.placements, key=lambda p: p.utilisation)
    quotas = [(n.count, plan.offer(n.node_type).quota, n.node_type) for n in plan.nodes]
    lines = [
        f"  latency: {work.latency_quantile:.0%} within {work.latency_s:g} s; bound {plan.latency_bound_s:.3f} s, "
        f"{slack:.3f} s to spare",
        f"  load: {busiest.deployment} is the busiest at {busiest.utilisation:.0%} of its capacity, "
        f"allowed are {work.target_utilisation:.0%}",
        *(
            f"  quota: {count} of {quota} {node_type}" + (" (all)" if count == quota else "")
            for count, quota, node_type in quotas
            if quota is not None
        ),
    ]
    if certificate is None:
        return [*lines, "  accuracy: NOT CERTIFIED"]
    gains = f", {certificate.gains} gains" if certificate.claim == "excess" else ""
    return [
        *lines,
        f"  accuracy: at most {work.max_accuracy_loss:.2%} below {work.reference}; certified {certificate.epsilon:.2%} at "
        f"{1 - certificate.delta:.0%} confidence ({certificate.losses} losses{gains} in {certificate.items} items, upper bound "
        f"{certificate.upper_bound:.2%})",
    ]


def _why(plan: Plan) -> list[str]:
    solver = plan.solver
    gap = "proved cheapest" if solver.status == "proved" else f"best found, at least ${solver.bound_usd_per_hour:.3f}"
    lines = [f"{gap} among {solver.candidates} candidate cascade(s). {solver.message}".strip()]
    if plan.baseline is None:
        return [*lines, "No single model keeps the promises on this hardware.", *plan.rejected]
    return [*lines, plan.baseline.note, *plan.rejected]
