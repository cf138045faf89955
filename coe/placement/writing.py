"""Writing a placed candidate down as a plan: nodes, placements, the lines of both bills."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coe.cost.capacity import service_s
from coe.cost.model import node_lines, usage_line
from coe.placement.candidates import Placed, World
from coe.placement.columns import Column
from coe.placement.judge import (
    busy_device_s_per_s,
    busy_s_per_item,
    expected_batches,
    tier_latencies_s,
    utilisation,
)
from coe.placement.problem import router_offer
from coe.types import (
    Baseline,
    CostLine,
    LoadPoint,
    Offer,
    Placement,
    Plan,
    PlannedNodes,
    Prices,
    RouterPlacement,
    Sensitivity,
    SolverReport,
    Workload,
)


def plan_noun(
    best: Placed,
    world: World,
    solver: SolverReport,
    *,
    name: str,
    baseline: Baseline | None,
    rejected: tuple[str, ...],
    sensitivities: tuple[Sensitivity, ...],
    loads: tuple[LoadPoint, ...],
    inputs: Mapping[str, str],
    python_path: str,
) -> Plan:
    """The plan, which stands alone: it carries pool, cascade, offers and where every figure is from."""
    workload = world.workload
    router = RouterPlacement(
        node_type=router_offer(best.problem.offers, workload).node_type, replicas=workload.router_replicas
    )
    nodes = _nodes(best, router, world.prices)
    latencies = tier_latencies_s(best.problem, best.solution)
    fees = fee_lines(best)
    placements = _placements(best)
    return Plan(
        name=name,
        cascade=best.cascade,
        workload=workload,
        stats=best.stats,
        pool=world.pool.model_copy(update={"members": tuple(world.pool.member(m) for m in best.cascade.members)}),
        placements=placements,
        router=router,
        nodes=nodes,
        offers=tuple(world.prices.offer(n.node_type) for n in nodes),
        apis=tuple(world.prices.api(model) for model in sorted({p.api for p in placements if p.api is not None})),
        latency_bound_s=sum(latencies[t] for t in best.problem.path),
        tier_latency_s=latencies,
        cost=best.cost,
        usage_lines=(*_usage_lines(best), *fees),
        allocation_lines=(*node_lines(nodes, router), *fees),
        baseline=baseline,
        solver=solver,
        python_path=python_path,
        rejected=rejected,
        sensitivities=sensitivities,
        loads=loads,
        profile_origins=_origins(best),
        inputs=dict(inputs),
    )


def _nodes(placed: Placed, router: RouterPlacement, prices: Prices) -> tuple[PlannedNodes, ...]:
    """Rented nodes in the order of the price list, the router's included."""
    counts = dict(placed.solution.nodes)
    counts[router.node_type] = counts.get(router.node_type, 0) + router.replicas
    return tuple(_planned(o, counts[o.node_type]) for o in prices.offers if counts.get(o.node_type))


def _planned(offer: Offer, count: int) -> PlannedNodes:
    return PlannedNodes(
        node_type=offer.node_type,
        count=count,
        usd_per_hour=offer.usd_per_hour,
        market=offer.market,
        source=offer.source,
        date=offer.date,
    )


def _placements(placed: Placed) -> tuple[Placement, ...]:
    """One placement per used column, in the order of tiers and members."""
    problem, solution = placed.problem, placed.solution
    batches = expected_batches(problem, solution)
    result = []
    for c, replicas in sorted(solution.replicas.items()):
        column, flows = problem.columns[c], solution.flows_per_s[c]
        share = column.share or 1.0
        result.append(
            Placement(
                member=column.member,
                node_type=column.offer.node_type,
                replicas=replicas,
                share=share,
                api=column.api,
                batch_size=column.batch_size,
                calls_at_once=_calls_at_once(column),
                traffic=min(1.0, sum(flows) / problem.demand_per_s[column.member]),
                expected_batch=batches[c],
                expected_busy_s=busy_s_per_item(column, flows, batches[c]) / share,
                full_batch_s=_full_batch_s(column, share),
                utilisation=min(1.0, utilisation(problem, solution, c)),
            )
        )
    return tuple(result)


def _full_batch_s(column: Column, share: float) -> float | None:
    if column.api is not None or column.profile.token_rates:
        return None
    return service_s(column.profile, column.batch_size) / share


def _calls_at_once(column: Column) -> int | None:
    """Little's law for a language model: requests per second x seconds of each is how many it works on at its best rate."""
    if column.api is not None:
        return column.batch_size
    if not column.profile.token_rates:
        return None
    return max(1, math.ceil(max(r.requests_per_s * r.latency_p99_s for r in column.profile.token_rates)))


def _usage_lines(placed: Placed) -> tuple[CostLine, ...]:
    """Busy accelerator-hours per hour of every used column; with the fees they add up to the usage cost."""
    busy = busy_device_s_per_s(placed.problem, placed.solution)
    columns = placed.problem.columns
    return tuple(
        usage_line(columns[c].tier, columns[c].member, columns[c].offer, busy[c])
        for c in sorted(busy)
        if columns[c].api is None
    )


def fee_lines(placed: Placed) -> tuple[CostLine, ...]:
    """What is paid by the call: tokens of hosted models, bytes on links."""
    lines = []
    for c, rate in sorted(placed.solution.traffic_per_s.items()):
        column = placed.problem.columns[c]
        if not column.fee_usd_per_item:
            continue
        what = f"API: {column.api}" if column.api else f"egress: {column.member} to {column.site}"
        thousands = 3.6 * rate
        unit_price = 1000 * column.fee_usd_per_item
        lines.append(
            CostLine(
                name=what,
                quantity=thousands,
                unit="1,000 calls",
                unit_price_usd=unit_price,
                usd=thousands * unit_price,
            )
        )
    return tuple(lines)


def _origins(placed: Placed) -> dict[str, str]:
    """Deployment -> where its timings are from."""
    origins = {}
    for c in sorted(placed.solution.replicas):
        column = placed.problem.columns[c]
        profile = column.profile
        error = f" within a factor of {profile.error_factor:g}" if profile.error_factor else ""
        where = column.api or column.offer.node_type
        origins[f"{column.member}@{where}"] = f"{profile.origin}{error}, {profile.source} ({profile.date})"
    return origins


def load_of(workload: Workload, rate_per_s: float) -> Workload:
    """The same promises at another load."""
    return workload.model_copy(update={"rate_per_s": rate_per_s})
