"""From certified cascades to the cheapest plan over all of them, with the best single model beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coe.cascade.certify import verify_certificate
from coe.cascade.evaluate import evaluate
from coe.cost.capacity import replica_throughput_per_s, service_s
from coe.cost.model import node_lines, usage_line
from coe.errors import Infeasible, InvalidInput, Problem, Unavailable
from coe.placement.explain import conflicts
from coe.placement.milp import lower_bound_usd_per_hour, solve
from coe.placement.problem import (
    PlacementProblem,
    Solution,
    build_problem,
    busy_device_s_per_s,
    check,
    expected_batches,
    price,
    router_offer,
    tier_latencies_s,
    usage_usd_per_hour,
)
from coe.table import PredictionTable
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
    Prices,
    Profiles,
    RouterPlacement,
    SolverReport,
    Tier,
    Workload,
)

SPLIT = "certification"
_SAME_USD = 1e-6
"""Dollars per hour below which two plans cost the same."""


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
    """The cheapest plan over all candidate cascades: least dollars per hour rented, then used, then the first given.

    Reach and accuracy are those of the certification split. A candidate whose linear relaxation already costs more than
    the best plan so far is not solved, so the result is proved over the candidates. Raises `Infeasible` where no
    candidate has a plan, `InvalidInput` or `Stale` for certificates that do not support the workload's promise.
    `progress` is told how many candidates are done, of how many.
    """
    _check_names(pool, cascades, table, workload)
    if not uncertified:
        _check_certificates(cascades, table, workload)
    sample = table.split(SPLIT)
    candidates = [_candidate(cascade, sample, profiles, prices, workload) for cascade in cascades]
    placed: list[_Placed] = []
    rejected: list[str] = []
    for number, candidate in enumerate(candidates):
        incumbent = min((p.usd_per_hour for p in placed), default=None)
        found = _place(candidate, incumbent)
        if isinstance(found, _Placed):
            placed.append(found)
        else:
            rejected.append(f"{candidate.cascade.name}: {found}")
        if progress:
            progress(number + 1, len(candidates))
    if not placed:
        raise _infeasible(candidates)
    best = min(placed, key=_rank)
    rejected += [
        f"{p.cascade.name}: {_in_dollars(p)}, the one chosen {_in_dollars(best)}" for p in placed if p is not best
    ]
    baseline = _baseline(sample, profiles, prices, workload)
    solver = _solver_report(best, placed, baseline, len(candidates))
    return _plan(best, baseline, solver, pool, prices, workload, inputs, python_path, name, rejected)


@dataclass(frozen=True)
class _Candidate:
    """A cascade and the problem of placing it."""

    cascade: Cascade
    stats: CascadeStats
    problem: PlacementProblem


@dataclass(frozen=True)
class _Placed(_Candidate):
    """A candidate with the solution of its placement."""

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


def _candidate(
    cascade: Cascade, sample: PredictionTable, profiles: Profiles, prices: Prices, workload: Workload
) -> _Candidate:
    stats = evaluate(cascade, sample)
    if stats.accuracy == 0:
        rule = "has no correct answer on the certification split, so a correct answer has no price"
        raise InvalidInput(
            Problem(f"cascade '{cascade.name}'", rule, remedy="are classes and labels in the same order?")
        )
    return _Candidate(cascade, stats, build_problem(cascade, stats, profiles, prices, workload))


def _place(candidate: _Candidate, incumbent_usd_per_hour: float | None) -> _Placed | str:
    """The placement, or the reason why there is none or none worth having."""
    problem = candidate.problem
    bound = lower_bound_usd_per_hour(problem)
    if bound is None:
        return "no placement keeps the promises"
    if incumbent_usd_per_hour is not None and bound > incumbent_usd_per_hour + _SAME_USD:
        return f"costs at least ${bound:.3f} per hour"
    solution = solve(problem)
    if solution is None:
        return "no placement keeps the promises"
    if broken := check(problem, solution):
        raise Unavailable(f"the solver's placement of {candidate.cascade.name} is wrong: {'; '.join(broken)}")
    return _Placed(candidate.cascade, candidate.stats, problem, solution)


def _rank(placed: _Placed) -> tuple[float, float]:
    """Less is better: dollars rented, and among equals dollars used."""
    return round(placed.usd_per_hour / _SAME_USD) * _SAME_USD, placed.cost.usd_per_hour_usage


def _in_dollars(placed: _Placed) -> str:
    return f"${placed.usd_per_hour:.3f} per hour rented (${placed.cost.usd_per_hour_usage:.3f} used)"


def _infeasible(candidates: Sequence[_Candidate]) -> Infeasible:
    """Why no candidate has a plan; with several, every reason says whose it is."""
    reasons = [(c.cascade.name, conflicts(c.problem)) for c in candidates]
    if len(reasons) == 1:
        return reasons[0][1]
    return Infeasible(
        [f"{name}: {line}" for name, reason in reasons for line in reason.conflict],
        [f"for {name}, {line}" for name, reason in reasons for line in reason.nearest],
    )


def _solver_report(best: _Placed, placed: Sequence[_Placed], baseline: _Placed | None, candidates: int) -> SolverReport:
    """Proved where no candidate could still turn out cheaper; those not placed were shown to be dearer or impossible."""
    open_bounds = [p.solution.bound_usd_per_hour for p in placed if not p.solution.proved]
    bound = min([best.usd_per_hour, *open_bounds])
    return SolverReport(
        status="proved" if bound > best.usd_per_hour - _SAME_USD else "gap",
        usd_per_hour=best.usd_per_hour,
        bound_usd_per_hour=bound,
        candidates=candidates,
        message=_message(best, baseline),
    )


def _message(best: _Placed, baseline: _Placed | None) -> str:
    """A warning where a single model is the better deal."""
    if baseline is None or _rank(baseline) >= _rank(best) or baseline.cascade.tiers == best.cascade.tiers:
        return ""
    return f"A SINGLE MODEL IS CHEAPER at this load: {baseline.cascade.name}, {_in_dollars(baseline)}."


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
        if right[member] < least or right[member] == 0 or not offered:
            continue
        single = Cascade(name=member, tiers=(Tier(members=(member,)),))
        candidate = _candidate(single, sample, profiles, prices, workload)
        placed = _place(candidate, None if best is None else best.usd_per_hour)
        if isinstance(placed, _Placed) and (best is None or _rank(placed) < _rank(best)):
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
    solver: SolverReport,
    pool: Pool,
    prices: Prices,
    workload: Workload,
    inputs: Mapping[str, str],
    python_path: str,
    name: str,
    rejected: Sequence[str],
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
        solver=solver,
        python_path=python_path,
        rejected=tuple(rejected),
        inputs=dict(inputs),
    )


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


def _check_names(pool: Pool, cascades: Sequence[Cascade], table: PredictionTable, workload: Workload) -> None:
    """Members must be in the pool and the predictions; the reference need only have predictions."""
    if not cascades:
        raise InvalidInput(Problem("cascades", "at least one is needed"))
    for cascade in cascades:
        for member in cascade.members:
            pool.member(member)
    table.columns([*dict.fromkeys(m for c in cascades for m in c.members), workload.reference])


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
