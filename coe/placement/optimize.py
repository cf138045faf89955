"""From certified cascades to the cheapest plan over all of them, with the best single model beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coe.cascade.certify import verify_certificate
from coe.errors import Infeasible, InvalidInput, Problem, Unavailable
from coe.placement.baseline import baseline_noun, best_single
from coe.placement.branch import SAME_USD, Remaining, lower_bound_usd_per_hour
from coe.placement.candidates import Candidate, Placed, World, candidate, dispatch_variants, place
from coe.placement.conflicts import conflicts
from coe.placement.sensitivity import loads_of, sensitivities_of
from coe.placement.writing import plan_noun
from coe.table import PredictionTable
from coe.types import Cascade, Plan, Pool, Prices, Profiles, SolverReport, Workload

SPLIT = "certification"
_KEPT_REJECTED = 12
_AT_LEAST_S = 20.0
"""The comparison with a single model is never left out for lack of time; this is what each of its programs may take."""


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
    any_dispatch: bool = False,
    reasons: bool = True,
    python_path: str = "",
    name: str = "plan",
    progress: Callable[[int, int], None] | None = None,
    remaining: Remaining | None = None,
) -> Plan:
    """The cheapest plan over all candidate cascades: least dollars per hour paid, then used, then the first given.

    Reach and accuracy are those of the certification split. `any_dispatch` lets tiers be parallel or staged, whichever is
    cheaper. A candidate whose linear relaxation already costs more than the best plan so far is not solved, so the result is
    proved over the candidates, or carries its gap where `remaining` (seconds left) ran out. `reasons` adds what other promises
    and other loads would cost. Raises `Infeasible` where no candidate has a plan, `InvalidInput` or `Stale` for certificates
    that do not support the workload's promise. `progress` is told how many candidates are done, of how many.
    """
    _check_names(pool, cascades, table, workload)
    if not uncertified:
        _check_certificates(cascades, table, workload)
    world = World(pool, table.split(SPLIT), profiles, prices, workload)
    variants = [v for c in cascades for v in (dispatch_variants(c) if any_dispatch else [c])]
    candidates = [candidate(cascade, world) for cascade in variants]
    placed, rejected, open_bounds = _placed(candidates, progress, remaining)
    if not placed:
        raise _infeasible(candidates)
    best = min(placed, key=lambda p: p.rank)
    rejected += [f"{p.cascade.name}: {p.in_dollars}, the one chosen {best.in_dollars}" for p in placed if p is not best]
    baseline = best_single(world, lambda: _AT_LEAST_S if remaining is None else max(_AT_LEAST_S, remaining()))
    return plan_noun(
        best,
        world,
        _solver_report(best, placed, open_bounds, baseline, len(candidates)),
        name=name,
        baseline=None if baseline is None else baseline_noun(best, baseline),
        rejected=tuple(rejected[:_KEPT_REJECTED]),
        sensitivities=sensitivities_of(best, remaining) if reasons else (),
        loads=loads_of(best, world, remaining) if reasons else (),
        inputs=inputs,
        python_path=python_path,
    )


def _placed(
    candidates: Sequence[Candidate], progress: Callable[[int, int], None] | None, remaining: Remaining | None
) -> tuple[list[Placed], list[str], list[float]]:
    """Those that were placed, why the others were not, and lower bounds of those that time did not suffice for.

    Raises `Unavailable` where time ended before any was placed.
    """
    placed: list[Placed] = []
    rejected: list[str] = []
    open_bounds: list[float] = []
    for number, each in enumerate(candidates):
        try:
            found = place(each, min((p.usd_per_hour for p in placed), default=float("inf")), remaining)
        except Unavailable:
            if not placed:
                raise
            open_bounds.append(lower_bound_usd_per_hour(each.problem) or 0.0)
            found = f"not searched for lack of time; costs at least ${open_bounds[-1]:.3f} per hour"
        if isinstance(found, Placed):
            placed.append(found)
        else:
            rejected.append(f"{each.cascade.name}: {found}")
        if progress:
            progress(number + 1, len(candidates))
    return placed, rejected, open_bounds


def _infeasible(candidates: Sequence[Candidate]) -> Infeasible:
    """Why no candidate has a plan; with several, every reason says whose it is."""
    reasons = [(c.cascade.name, conflicts(c.problem)) for c in candidates]
    if len(reasons) == 1:
        return reasons[0][1]
    return Infeasible(
        [f"{name}: {line}" for name, reason in reasons for line in reason.conflict],
        [f"for {name}, {line}" for name, reason in reasons for line in reason.nearest],
    )


def _solver_report(
    best: Placed, placed: Sequence[Placed], open_bounds: Sequence[float], baseline: Placed | None, candidates: int
) -> SolverReport:
    """Proved where no candidate could still turn out cheaper; those not placed were shown to be dearer or impossible, or are
    bounded by `open_bounds`."""
    unproved = [p.solution.bound_usd_per_hour for p in placed if not p.solution.proved]
    bound = min([best.usd_per_hour, *unproved, *open_bounds])
    return SolverReport(
        status="proved" if bound > best.usd_per_hour - SAME_USD else "gap",
        usd_per_hour=best.usd_per_hour,
        bound_usd_per_hour=bound,
        candidates=candidates,
        message=_message(best, baseline),
    )


def _message(best: Placed, baseline: Placed | None) -> str:
    """A warning where a single model is the better deal."""
    if baseline is None or baseline.rank >= best.rank or baseline.cascade.tiers == best.cascade.tiers:
        return ""
    return f"A SINGLE MODEL IS CHEAPER at this load: {baseline.cascade.name}, {baseline.in_dollars}."


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
