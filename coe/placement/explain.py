"""What a plan costs line by line, what binds, what else was considered, and where its figures are from."""

from __future__ import annotations

from collections.abc import Sequence

from coe.cost.model import total_usd
from coe.prices.catalog import provenance
from coe.types import CostLine, Plan, Profiles


def explain(plan: Plan, profiles: Profiles | None = None, today: str | None = None) -> str:
    """The bill line by line, the promises and their slack, the alternatives, and where figures come from.

    With `today` (YYYY-MM-DD) prices are shown with their age.
    """
    sections = [
        _headline(plan),
        "Tiers\n" + "\n".join(_tier_lines(plan)),
        "Rented, per hour\n" + _bill(plan.allocation_lines),
        "Used, per hour\n" + _bill(plan.usage_lines) + "\n" + _idle(plan),
        "Promises\n" + "\n".join(_promise_lines(plan)),
        "Why this one\n" + "\n".join(f"  {line}" for line in _why(plan)),
        *_what_would_change_it(plan),
        f"Prices: {provenance(plan.offers, today)}",
    ]
    if plan.profile_origins:
        sections.append("Timings\n" + "\n".join(f"  {name}: {told}" for name, told in plan.profile_origins.items()))
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
            f"     {p.member} from the API of {p.api}, at most {p.batch_size} requests in flight"
            if p.api
            else f"     {p.replicas} x {p.deployment} on {p.share:g} of a {plan.offer(p.node_type).accelerator}, "
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
        *([] if plan.simulated is None else [f"  {plan.simulated}"]),
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


def _what_would_change_it(plan: Plan) -> list[str]:
    """Shadow prices in words, and the loads at which a single model is cheaper."""
    sections = []
    if plan.sensitivities:
        paid = plan.solver.usd_per_hour
        lines = [
            f"  {s.change} would save ${paid - s.usd_per_hour:.3f}/h ({s.promise} binds)" for s in plan.sensitivities
        ]
        sections.append("What giving way a little would save\n" + "\n".join(lines))
    if plan.loads:
        rows = [
            f"  {p.rate_per_s:>9.4g}/s  {_usd(p.cascade_usd_per_hour):>12}  {_usd(p.single_usd_per_hour):>12}"
            for p in plan.loads
        ]
        head = f"  {'load':>11}  {'cascade $/h':>12}  {'single $/h':>12}"
        sections.append("\n".join(["At other loads", head, *rows, f"  {break_even(plan)}"]))
    return sections


def break_even(plan: Plan) -> str:
    """From which load on the cascade is cheaper than the best single model, as far as the loads that were planned tell."""
    known = [
        (p.rate_per_s, p.cascade_usd_per_hour, p.single_usd_per_hour)
        for p in plan.loads
        if p.cascade_usd_per_hour is not None
    ]
    wins = [single is None or cascade < single - 1e-6 for _, cascade, single in known]
    if not known or not any(wins):
        return "At none of these loads is the cascade cheaper than the best single model."
    if all(wins):
        return "At all of these loads the cascade is cheaper than the best single model."
    last_loss = max(i for i, win in enumerate(wins) if not win)
    if last_loss == len(known) - 1:
        first = next(i for i, win in enumerate(wins) if win)
        return f"The cascade is cheaper at {known[first][0]:.4g}/s, and not at every higher load: see the table."
    low, high = known[last_loss][0], known[last_loss + 1][0]
    return f"Break-even is between {low:.4g}/s and {high:.4g}/s; below, one model is no dearer."


def _usd(value: float | None) -> str:
    return "no plan" if value is None else f"{value:.3f}"


def _why(plan: Plan) -> list[str]:
    solver = plan.solver
    gap = "proved cheapest" if solver.status == "proved" else f"best found, at least ${solver.bound_usd_per_hour:.3f}"
    lines = [f"{gap} among {solver.candidates} candidate cascade(s). {solver.message}".strip()]
    if plan.baseline is None:
        return [*lines, "No single model keeps the promises on this hardware.", *plan.rejected]
    return [*lines, plan.baseline.note, *plan.rejected]
