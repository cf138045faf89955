"""From certified cascades to the cheapest plan over all of them, with the best single model beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coe.cascade.certify import verify_certificate
from coe.cascade.evaluate import evaluate
from coe.cost.capacity import replica_throughput_per_s, service_s
from coe.cost.model import node_lines, usage_line
from coe.errors import InvalidInput, Problem
from coe.placement.explain import conflicts
from coe.placement.milp import lower_bound_usd_per_hour, solve
from coe.placement.problem import (
    PlacementProblem,
    Solution,
    build_problem,
    busy_device_s_per_s,
    expected_batches,
    price,
    router_offer,
    tier_latencies_s,
    usage_usd_per_hour,
)
from coe.types import (
    Baseline,
    Cascade,
    CascadeStats,
    CostLine,
    Placement,
    Plan,
    PlannedNodes,
    Pool,
    PredictedCost,
    PredictionTable,
    Prices,
    Profiles,
    RouterPlacement,
    SolverReport,
    Tier,
    Workload,
)

SPLIT = "certification"


def plan(
    pool: Pool,
    cascades: Sequence[Cascade],
    table: PredictionTable,
    profiles: Profiles,
    prices: Prices,
    workload: Workload,
    *,
    inputs: Mapping[str, str],
    uncertified: bool = False,
    python_path: str = "",
    name: str = "plan",
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The cheapest plan (dollars per hour rented) over all candidate cascades.

    Reach and accuracy are those of the certification split. A candidate whose linear relaxation already costs more than
    the best plan so far is not solved, so the result is proved over the candidates. Raises `Infeasible` where no
    candidate has a plan, `InvalidInput` or `Stale` for certificates that do not support the workload's promise.
    """
    _check_names(pool, cascades)
    if not uncertified:
        _check_certificates(cascades, table, workload)
    sample = table.split(SPLIT)
    best: _Placed | None = None
    rejected: list[str] = []
    problems: list[PlacementProblem] = []
    for number, cascade in enumerate(cascades):
        if progress:
            progress(number, len(cascades))
        stats = evaluate(cascade, sample)
        problem = build_problem(cascade, stats, profiles, prices, workload)
        problems.append(problem)
        placed, reason = _place(cascade, stats, problem, best)
        if placed is None:
            rejected.append(f"{cascade.name}: {reason}")
            continue
        if best is not None:
            rejected.append(f"{best.cascade.name}: ${best.usd_per_hour:.3f} per hour, dearer than the one chosen")
        best = placed
    if best is None:
        raise conflicts(problems[0])
    baseline = _baseline(sample, profiles, prices, workload)
    return _plan(best, baseline, pool, prices, workload, inputs, python_path, name, rejected, len(cascades))


@dataclass(frozen=True)
class _Placed:
    """A cascade with the solution of its placement."""

    cascade: Cascade
    stats: CascadeStats
    problem: PlacementProblem
    solution: Solution

    @property
    def usd_per_hour(self) -> float:
        return price(self.problem, self.solution)

    @property
    def cost(self) -> PredictedCost:
        """Both bases at the planned load."""
        rate = self.problem.demand_per_s[self.cascade.tiers[0].members[0]]
        usage = usage_usd_per_hour(self.problem, self.solution)
        return PredictedCost.of(usage, self.usd_per_hour, rate, self.stats.accuracy)


def _place(
    cascade: Cascade, stats: CascadeStats, problem: PlacementProblem, best: _Placed | None
) -> tuple[_Placed | None, str]:
    """The placement, or the reason why there is none or none worth having."""
    bound = lower_bound_usd_per_hour(problem) if _has_columns(problem) else None
    if bound is None:
        return None, "no placement keeps the promises"
    if best is not None and bound >= best.usd_per_hour:
        return None, f"costs at least ${bound:.3f} per hour"
    solution = solve(problem)
    if solution is None:
        return None, "no placement keeps the promises"
    placed = _Placed(cascade, stats, problem, solution)
    if best is not None and placed.usd_per_hour >= best.usd_per_hour:
        return None, f"${placed.usd_per_hour:.3f} per hour"
    return placed, ""


def _has_columns(problem: PlacementProblem) -> bool:
    return all(any(c.member == m for c in problem.columns) for m in problem.demand_per_s)


# --- The best single model --------------------------------------------------------------------------------------------


def _baseline(sample: PredictionTable, profiles: Profiles, prices: Prices, workload: Workload) -> _Placed | None:
    """The cheapest single model whose measured accuracy keeps the promise, placed for the same load and latency.

    It needs no certificate and no confidence margin: the comparison favours it.
    """
    right = {m: float((sample.answers[:, i] == sample.labels).mean()) for i, m in enumerate(sample.members)}
    least = right[workload.reference] - workload.max_accuracy_loss
    best: _Placed | None = None
    for member in sample.members:
        offered = any(profiles.find(member, o.accelerator) for o in prices.offers)
        if right[member] < least or not offered:
            continue
        cascade = Cascade(name=member, tiers=(Tier(members=(member,)),))
        stats = evaluate(cascade, sample)
        problem = build_problem(cascade, stats, profiles, prices, workload)
        solution = solve(problem) if _has_columns(problem) else None
        if solution is None:
            continue
        placed = _Placed(cascade, stats, problem, solution)
        key = (placed.usd_per_hour, placed.cost.usd_per_hour_usage)
        if best is None or key < (best.usd_per_hour, best.cost.usd_per_hour_usage):
            best = placed
    return best


def _baseline_noun(best: _Placed, baseline: _Placed) -> Baseline:
    """The baseline with a sentence that compares the two on both bases."""
    (member,) = baseline.cascade.members
    column = max(baseline.solution.replicas, key=lambda c: baseline.solution.traffic_per_s[c])
    ours, theirs = best.cost, baseline.cost
    return Baseline(
        member=member,
        node_type=baseline.problem.columns[column].offer.node_type,
        nodes=sum(baseline.solution.nodes.values()),
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


# --- Writing the plan down --------------------------------------------------------------------------------------------


def _plan(
    best: _Placed,
    baseline: _Placed | None,
    pool: Pool,
    prices: Prices,
    workload: Workload,
    inputs: Mapping[str, str],
    python_path: str,
    name: str,
    rejected: Sequence[str],
    candidates: int,
) -> Plan:
    router = RouterPlacement(node_type=router_offer(prices, workload).node_type)
    nodes = _nodes(best.solution, router, prices)
    placements = _placements(best)
    latencies = tier_latencies_s(best.problem, best.solution)
    members = [pool.member(m) for m in best.cascade.members]
    return Plan(
        name=name,
        cascade=best.cascade,
        workload=workload,
        stats=best.stats,
        pool=pool.model_copy(update={"members": tuple(members)}),
        placements=placements,
        router=router,
        nodes=nodes,
        offers=tuple(prices.offer(n.node_type) for n in nodes),
        latency_bound_s=sum(latencies[t] for t in best.problem.path),
        tier_latency_s=latencies,
        cost=best.cost,
        usage_lines=_usage_lines(best),
        allocation_lines=node_lines(nodes, router),
        baseline=None if baseline is None else _baseline_noun(best, baseline),
        solver=SolverReport(
            status="proved" if best.solution.proved else "gap",
            usd_per_hour=best.usd_per_hour,
            bound_usd_per_hour=min(best.solution.bound_usd_per_hour, best.usd_per_hour),
            candidates=candidates,
            message=_message(best, baseline),
        ),
        python_path=python_path,
        rejected=tuple(rejected),
        inputs=dict(inputs),
    )


def _message(best: _Placed, baseline: _Placed | None) -> str:
    """A warning where the single model rents for less."""
    if baseline is not None and baseline.usd_per_hour < best.usd_per_hour - 1e-9:
        return (
            f"A SINGLE MODEL IS CHEAPER at this load: {baseline.cascade.name}, ${baseline.usd_per_hour:.3f} per hour."
        )
    return ""


def _nodes(solution: Solution, router: RouterPlacement, prices: Prices) -> tuple[PlannedNodes, ...]:
    """Rented nodes in the order of the price list, the router's included."""
    counts = dict(solution.nodes)
    counts[router.node_type] = counts.get(router.node_type, 0) + router.replicas
    return tuple(
        PlannedNodes(
            node_type=o.node_type,
            count=counts[o.node_type],
            usd_per_hour=o.usd_per_hour,
            market=o.market,
            source=o.source,
            date=o.date,
        )
        for o in prices.offers
        if counts.get(o.node_type)
    )


def _placements(placed: _Placed) -> tuple[Placement, ...]:
    """One placement per used column, in the order of tiers and members."""
    batches = expected_batches(placed.problem, placed.solution)
    result = []
    for c, replicas in sorted(placed.solution.replicas.items()):
        column, n = placed.problem.columns[c], batches[c]
        rate, demand = placed.solution.traffic_per_s[c], placed.problem.demand_per_s[column.member]
        full = replicas * replica_throughput_per_s(column.profile, column.batch_size, column.share)
        result.append(
            Placement(
                member=column.member,
                node_type=column.offer.node_type,
                replicas=replicas,
                share=column.share,
                batch_size=column.batch_size,
                traffic=min(1.0, rate / demand),
                expected_batch=n,
                expected_busy_s=service_s(column.profile, n) / n / column.share,
                utilisation=min(1.0, rate / full),
            )
        )
    return tuple(result)


def _usage_lines(placed: _Placed) -> tuple[CostLine, ...]:
    """Busy accelerator-hours per hour of every used column; they add up to the usage cost."""
    busy = busy_device_s_per_s(placed.problem, placed.solution)
    columns = placed.problem.columns
    return tuple(usage_line(columns[c].tier, columns[c].member, columns[c].offer, busy[c]) for c in sorted(busy))


# --- Checking what came in --------------------------------------------------------------------------------------------


def _check_names(pool: Pool, cascades: Sequence[Cascade]) -> None:
    if not cascades:
        raise InvalidInput(Problem("cascades", "at least one is needed"))
    for cascade in cascades:
        for member in cascade.members:
            pool.member(member)


def _check_certificates(cascades: Sequence[Cascade], table: PredictionTable, workload: Workload) -> None:
    """Every candidate needs a certificate for at least what is promised; choosing among several, they share delta."""
    problems = []
    total = 0.0
    for cascade in cascades:
        certificate = verify_certificate(cascade, table)
        total += certificate.delta
        where = f"cascade '{cascade.name}'"
        if certificate.reference != workload.reference:
            problems.append(Problem(where, f"must be certified against {workload.reference}", certificate.reference))
        if certificate.epsilon > workload.max_accuracy_loss + 1e-12:
            promised = f"must be certified for a loss of at most {workload.max_accuracy_loss:.2%}"
            problems.append(
                Problem(where, promised, f"{certificate.epsilon:.2%}", "run `coe calibrate` for this workload")
            )
    if total > workload.delta + 1e-12:
        each = workload.delta / len(cascades)
        rule = f"choosing among {len(cascades)} cascades, their certificates' deltas must add up to at most {workload.delta:g}"
        problems.append(Problem("certificates", rule, f"{total:g}", f"calibrate each with --delta {each:g}"))
    if problems:
        raise InvalidInput(problems)
