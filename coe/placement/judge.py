"""Judging a solution without any solver: what it costs, how busy it is, which promises it breaks."""

from __future__ import annotations

from collections.abc import Mapping

from coe.cost.capacity import expected_batch, service_s
from coe.cost.model import usd_per_busy_s
from coe.placement.columns import Column
from coe.placement.problem import PlacementProblem, Solution
from coe.types import SURVIVING_UTILISATION

TOLERANCE = 1e-6


def rent_usd_per_hour(problem: PlacementProblem, solution: Solution) -> float:
    """Dollars per hour of all nodes, the router's included."""
    by_type = {o.node_type: o.usd_per_hour for o in problem.offers}
    return problem.router_usd_per_hour + sum(by_type[t] * count for t, count in solution.nodes.items())


def fees_usd_per_hour(problem: PlacementProblem, solution: Solution) -> float:
    """Dollars per hour of tokens of hosted models and of bytes on links."""
    return sum(3600 * rate * problem.columns[c].fee_usd_per_item for c, rate in solution.traffic_per_s.items())


def price(problem: PlacementProblem, solution: Solution) -> float:
    """Dollars per hour that are paid at the planned load: rent and fees. This is what a plan minimises."""
    return rent_usd_per_hour(problem, solution) + fees_usd_per_hour(problem, solution)


def expected_batches(problem: PlacementProblem, solution: Solution) -> dict[int, float]:
    """Mean batch size by column number, at the load and with the replicas of the solution; 1 where batches play no part."""
    result = {}
    for c in solution.replicas:
        column = problem.columns[c]
        if column.api is not None or column.profile.token_rates:
            result[c] = 1.0
            continue
        peers = {i: n for i, n in solution.replicas.items() if problem.columns[i].member == column.member}
        result[c] = expected_batch(
            column.profile,
            problem.demand_per_s[column.member],
            problem.batch_wait_s,
            column.batch_size,
            sum(n * problem.columns[i].share for i, n in peers.items()),
        )
    return result


def busy_s_per_item(column: Column, flows_per_s: tuple[float, ...], batch: float) -> float:
    """Seconds of a whole accelerator per item, in batches of `batch` or by the classes of query."""
    if column.api is not None:
        return 0.0
    if not column.profile.token_rates:
        return service_s(column.profile, batch) / batch
    total = sum(flows_per_s)
    work = sum(flow * column.share / rate for flow, rate in zip(flows_per_s, column.full_per_s, strict=True))
    return work / total if total else column.share / min(column.full_per_s)


def busy_device_s_per_s(problem: PlacementProblem, solution: Solution) -> dict[int, float]:
    """Seconds of a whole accelerator that each column is busy per second, by column number."""
    return {
        c: sum(solution.flows_per_s[c]) * busy_s_per_item(problem.columns[c], solution.flows_per_s[c], n)
        for c, n in expected_batches(problem, solution).items()
    }


def usage_usd_per_hour(problem: PlacementProblem, solution: Solution) -> float:
    """Dollars per hour of busy time, at the batch sizes that the load leads to, and of fees."""
    busy = busy_device_s_per_s(problem, solution)
    machines = sum(3600 * usd_per_busy_s(problem.columns[c].offer, 1.0) * seconds for c, seconds in busy.items())
    return machines + fees_usd_per_hour(problem, solution)


def utilisation(problem: PlacementProblem, solution: Solution, column: int) -> float:
    """Share of what its replicas could carry in full batches."""
    c, flows = problem.columns[column], solution.flows_per_s[column]
    return sum(f / full for f, full in zip(flows, c.full_per_s, strict=True)) / solution.replicas[column]


def column_latency_s(column: Column, flows_per_s: tuple[float, ...]) -> float:
    """Latency bound of the slowest class of query that goes there."""
    return max(
        (s for s, flow in zip(column.latency_s, flows_per_s, strict=True) if flow > 0), default=min(column.latency_s)
    )


def tier_latencies_s(problem: PlacementProblem, solution: Solution) -> tuple[float, ...]:
    """Latency bound of every tier: its slowest replica."""
    slowest = [0.0] * problem.tiers
    for c, flows in solution.flows_per_s.items():
        column = problem.columns[c]
        slowest[column.tier] = max(slowest[column.tier], column_latency_s(column, flows))
    return tuple(slowest)


def surviving_per_s(problem: PlacementProblem, replicas: Mapping[int, int], member: str) -> tuple[float, str]:
    """What `member` can carry, never resting, after the worst loss of one node, and the type of that node.

    The worst case for a node type is the fullest packing: one node holds as many of the member's replicas as it can.
    """
    own = {c: n for c, n in replicas.items() if problem.columns[c].member == member}
    total = sum(n * problem.columns[c].mixed_per_s(problem.classes[member]) for c, n in own.items())
    worst, where = total, ""
    for c, n in own.items():
        column = problem.columns[c]
        lost = min(n, column.replicas_per_node) * column.mixed_per_s(problem.classes[member])
        if total - lost < worst:
            worst, where = total - lost, column.offer.node_type
    return worst, where


def check(problem: PlacementProblem, solution: Solution) -> list[str]:
    """Every promise that a solution breaks, in words; an empty list where it keeps all."""
    replicas = {c: n for c, n in solution.replicas.items() if n}
    return [
        *_member_faults(problem, solution, replicas),
        *_tier_faults(problem, replicas),
        *_node_faults(problem, solution, replicas),
        *_link_faults(problem, solution),
        *_latency_faults(problem, solution),
    ]


def _member_faults(problem: PlacementProblem, solution: Solution, replicas: Mapping[int, int]) -> list[str]:
    broken = []
    for member, demand in problem.demand_per_s.items():
        own = {c: n for c, n in replicas.items() if problem.columns[c].member == member}
        for k, part in enumerate(problem.classes[member]):
            if sum(solution.flows_per_s[c][k] for c in own) < demand * part * (1 - TOLERANCE):
                broken.append(f"{member} gets less traffic than its {demand:.3g}/s")
        broken += [
            f"{member} is overloaded on {problem.columns[c].offer.node_type}"
            for c in own
            if utilisation(problem, solution, c) > problem.target_utilisation * (1 + TOLERANCE)
        ]
        on_nodes = sum(n for c, n in own.items() if problem.columns[c].api is None)
        if on_nodes < problem.min_replicas and on_nodes == sum(own.values()):
            broken.append(f"{member} has fewer than {problem.min_replicas} replicas")
        types = [(problem.columns[c].offer.node_type, problem.columns[c].api) for c in own]
        if len(types) != len(set(types)):
            broken.append(f"{member} is deployed twice on one node type")
        if any(problem.columns[c].is_spot for c in own) and _steady(problem, solution, own, member) < (
            problem.on_demand_floor * (1 - TOLERANCE)
        ):
            broken.append(f"{member} has less than {problem.on_demand_floor:.0%} of its load on on-demand nodes")
        if problem.survive_node_loss:
            left, lost = surviving_per_s(problem, replicas, member)
            if left * SURVIVING_UTILISATION < demand * (1 - TOLERANCE):
                broken.append(f"{member} cannot carry its load after the loss of a {lost}")
    return broken


def _steady(problem: PlacementProblem, solution: Solution, own: Mapping[int, int], member: str) -> float:
    """Part of the member's load that its nodes other than spot can carry; with several classes of query, part of the traffic
    that goes there, of the class where it is least."""
    steady = [c for c in own if not problem.columns[c].is_spot]
    demand, parts = problem.demand_per_s[member], problem.classes[member]
    if len(parts) == 1:
        return sum(own[c] * problem.capacity_per_s(problem.columns[c]) for c in steady) / demand
    return min(sum(solution.flows_per_s[c][k] for c in steady) / (demand * part) for k, part in enumerate(parts))


def _tier_faults(problem: PlacementProblem, replicas: Mapping[int, int]) -> list[str]:
    return [
        f"tier {tier + 1} has more than one batch size"
        for tier in range(problem.tiers)
        if len({problem.columns[c].batch_size for c in replicas if batches(problem.columns[c], tier)}) > 1
    ]


def batches(column: Column, tier: int) -> bool:
    """True where the column is of this tier and forms batches (language models batch by themselves)."""
    return column.tier == tier and not column.profile.token_rates


def _node_faults(problem: PlacementProblem, solution: Solution, replicas: Mapping[int, int]) -> list[str]:
    broken = []
    for offer in problem.offers:
        own = [(problem.columns[c].share, n) for c, n in replicas.items() if problem.columns[c].offer == offer]
        nodes = solution.nodes.get(offer.node_type, 0)
        if sum(share * n for share, n in own) > nodes * offer.devices_per_node + TOLERANCE:
            broken.append(f"{offer.node_type} is packed beyond its {nodes} nodes")
        quota = problem.quota[offer.node_type]
        if quota is not None and nodes > quota:
            broken.append(f"{offer.node_type} exceeds its quota of {quota}")
    return broken


def _link_faults(problem: PlacementProblem, solution: Solution) -> list[str]:
    broken = []
    for site, limit in problem.link_items_per_s.items():
        rate = sum(r for c, r in solution.traffic_per_s.items() if problem.columns[c].site == site)
        if rate > limit * (1 + TOLERANCE):
            broken.append(f"the link to {site} carries {rate:.3g} calls/s, and {limit:.3g}/s is its share")
    return broken


def _latency_faults(problem: PlacementProblem, solution: Solution) -> list[str]:
    total = sum(tier_latencies_s(problem, solution)[t] for t in problem.path)
    if total <= problem.latency_s + TOLERANCE:
        return []
    return [f"the latency bound is {total:.3g} s, promised are {problem.latency_s:.3g} s"]
