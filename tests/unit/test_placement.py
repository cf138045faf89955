"""Placement: the MILP against enumeration, promises kept, conflicts named, the baseline beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coe.cascade.calibrate import calibrate
from coe.cascade.evaluate import evaluate
from coe.cost.model import total_usd
from coe.errors import Infeasible, InvalidInput, Stale
from coe.placement import exhaustive, milp
from coe.placement.explain import conflicts, explain
from coe.placement.optimize import plan
from coe.placement.problem import PlacementProblem, build_problem, check, price
from coe.types import BatchTiming, Cascade, Plan, Prices, Profile, Profiles, Tier
from tests import factories


def random_problem(seed: int) -> PlacementProblem:
    """Two tiers, two or three members, two offers, two batch sizes; sometimes infeasible."""
    rng = np.random.default_rng(seed)
    members = ["small", "large"] if rng.random() < 0.6 else ["small", "middle", "large"]
    table = factories.table(n=400, members=members, seed=seed % 7)
    gate = factories.cascade(first=members[:-1], threshold=float(rng.uniform(0.6, 0.9)))
    offers = tuple(
        factories.offer(
            f"node-{i}",
            f"ACC{i}",
            float(rng.uniform(0.2, 4)),
            quota=int(rng.integers(1, 4)),
            accelerators_per_node=int(rng.integers(1, 3)),
            accelerator_memory_gib=float(rng.choice([4.0, 16.0])),
        )
        for i in range(2)
    )
    cpu = factories.offer("cpu-node", "CPU-node", 0.1, accelerators_per_node=0)
    entries = []
    for member in members:
        for i in range(2):
            base = float(rng.uniform(0.004, 0.03)) * (4 if member == "large" else 1)
            times = [base, base * float(rng.uniform(1.2, 3.0))]
            timings = tuple(
                BatchTiming(batch_size=b, latency_p50_s=t, latency_p99_s=1.3 * t)
                for b, t in zip((1, 4), times, strict=True)
            )
            entries.append(
                Profile(
                    member=member,
                    accelerator=f"ACC{i}",
                    timings=timings,
                    memory_gib=float(rng.choice([0.5, 3.0])),
                    origin="measured",
                    source="tests",
                    date=factories.DAY,
                )
            )
    work = factories.workload(
        rate_per_s=float(rng.uniform(5, 60)),
        latency_s=float(rng.uniform(0.1, 1.2)),
        min_replicas=int(rng.choice([1, 1, 2])),
    )
    stats = evaluate(gate, table)
    problem = build_problem(gate, stats, Profiles(profiles=tuple(entries)), Prices(offers=(*offers, cpu)), work)
    few = [c for c in problem.columns if c.share in (1.0, 0.5)]
    return replace(problem, columns=tuple(few))


@pytest.mark.parametrize("block", range(10))
def test_the_milp_is_as_cheap_as_trying_everything(block: int) -> None:
    feasible = 0
    for seed in range(block * 20, block * 20 + 20):
        problem = random_problem(seed)
        if combinations(problem) > 5e3:
            continue  # too many combinations to enumerate; the seeds around it are small enough
        by_hand, solved = exhaustive.solve(problem), milp.solve(problem)
        assert (by_hand is None) == (solved is None), seed
        if solved is None or by_hand is None:
            continue
        feasible += 1
        assert check(problem, solved) == []
        assert price(problem, solved) == pytest.approx(price(problem, by_hand)), seed
        bound = milp.lower_bound_usd_per_hour(problem)
        assert bound is not None
        assert bound <= price(problem, solved) + 1e-9
        assert solved.proved
    assert feasible >= 3, "too few feasible problems to prove anything"


def combinations(problem: PlacementProblem) -> float:
    """How many placements enumeration would try, roughly."""
    per_member = [
        1 + sum(problem.most_replicas(c) for c in problem.columns if c.member == m) for m in problem.demand_per_s
    ]
    return float(np.prod(per_member))


def test_the_same_problem_has_the_same_solution() -> None:
    first, second = milp.solve(random_problem(3)), milp.solve(random_problem(3))
    assert first == second


# --- Conflicts ---


def problem_of(**work: float) -> PlacementProblem:
    cascade = factories.cascade()
    stats = evaluate(cascade, factories.table())
    return build_problem(cascade, stats, factories.profiles(), factories.prices(), factories.workload(**work))


def test_an_impossible_latency_conflicts_alone_and_its_relaxation_helps() -> None:
    problem = problem_of(latency_s=0.01)
    found = conflicts(problem)
    assert len(found.conflict) == 1
    assert "latency promise of 0.01 s" in found.conflict[0]
    seconds = float(found.nearest[0].split("latency promise of ")[1].split(" s")[0])
    assert milp.solve(replace(problem, latency_s=seconds)) is not None
    assert milp.solve(replace(problem, latency_s=seconds * 0.9)) is None
    assert found.exit_code == 3


def test_rate_and_quota_conflict_together() -> None:
    problem = problem_of(rate_per_s=6_000)
    found = conflicts(problem)
    assert [("quota" in c, "rate" in c) for c in found.conflict] == [(True, False), (False, True)]
    share = float(next(n for n in found.nearest if "% of the rate" in n).split("%")[0]) / 100
    fewer = {m: d * share for m, d in problem.demand_per_s.items()}
    assert milp.solve(replace(problem, demand_per_s=fewer)) is not None
    assert any("a quota of" in n for n in found.nearest)


def test_a_model_that_fits_nowhere_is_named() -> None:
    big = factories.profiles()
    grown = tuple(p.model_copy(update={"memory_gib": 500.0}) if p.member == "large" else p for p in big.profiles)
    cascade = factories.cascade()
    stats = evaluate(cascade, factories.table())
    problem = build_problem(cascade, stats, Profiles(profiles=grown), factories.prices(), factories.workload())
    with pytest.raises(Infeasible, match="large need more memory"):
        raise conflicts(problem)


# --- Plans ---


def planned(**changes: object) -> Plan:
    table = factories.table(n=4000)
    cascade = calibrate(factories.cascade(), table, "large", 0.04, 0.05)
    arguments = {
        "pool": factories.pool(),
        "cascades": [cascade],
        "table": table,
        "profiles": factories.profiles(),
        "prices": factories.prices(),
        "workload": factories.workload(max_accuracy_loss=0.04),
        "inputs": {"predictions": "abc"},
    }
    return plan(**{**arguments, **changes})  # type: ignore[arg-type]


def test_a_plan_keeps_its_promises_and_its_lines_add_up() -> None:
    found = planned()
    assert found.latency_bound_s <= found.workload.latency_s
    assert found.solver.status == "proved"
    assert total_usd(found.allocation_lines) == pytest.approx(found.cost.usd_per_hour_allocation)
    assert total_usd(found.usage_lines) == pytest.approx(found.cost.usd_per_hour_usage)
    assert found.cost.usd_per_hour_usage < found.cost.usd_per_hour_allocation
    for member in found.cascade.members:
        own = [p for p in found.placements if p.member == member]
        assert sum(p.traffic for p in own) == pytest.approx(1)
        assert all(p.utilisation <= found.workload.target_utilisation + 1e-6 for p in own)
    for tier in found.cascade.tiers:
        assert len({p.batch_size for p in found.placements if p.member in tier.members}) == 1


def test_the_bill_by_hand() -> None:
    """One member at 10/s on a T4 at $0.50: batches of one take 0.03 s, so 0.3 device-hours per hour, $0.15 used.

    Rented are the T4 and the router's CPU node at $0.10: $0.60. Per 1,000 of the 36,000 queries in an hour that is
    $0.0041667 used and $0.0166667 rented.
    """
    single = Cascade(tiers=(Tier(members=("large",)),))
    table = factories.table(n=2000)
    profile = Profile(
        member="large",
        accelerator="T4",
        timings=(BatchTiming(batch_size=1, latency_p50_s=0.03, latency_p99_s=0.03),),
        memory_gib=1.0,
        origin="measured",
        source="tests",
        date=factories.DAY,
    )
    found = planned(
        cascades=[calibrate(single, table, "large", 0.04, 0.05)],
        table=table,
        profiles=Profiles(profiles=(profile,)),
        workload=factories.workload(max_accuracy_loss=0.04, rate_per_s=10.0),
    )
    assert found.cost.usd_per_hour_usage == pytest.approx(0.15)
    assert found.cost.usd_per_hour_allocation == pytest.approx(0.60)
    assert found.cost.usd_per_1k_usage == pytest.approx(0.15 / 36)
    assert found.cost.usd_per_1k_allocation == pytest.approx(0.60 / 36)
    accuracy = found.stats.accuracy
    assert found.cost.usd_per_1k_correct_usage == pytest.approx(0.15 / 36 / accuracy)


def test_the_baseline_is_the_cheapest_single_model_that_is_accurate_enough() -> None:
    found = planned()
    assert found.baseline is not None
    assert found.baseline.member == "large"
    assert found.baseline.cost.usd_per_hour_usage > found.cost.usd_per_hour_usage
    lenient = planned(workload=factories.workload(max_accuracy_loss=0.3))
    assert lenient.baseline is not None
    assert lenient.baseline.member in ("small", "middle", "other")


def test_a_plan_says_when_a_single_model_is_cheaper() -> None:
    lenient = planned(workload=factories.workload(max_accuracy_loss=0.3, rate_per_s=300.0))
    assert lenient.baseline is not None
    if lenient.baseline.cost.usd_per_hour_allocation < lenient.cost.usd_per_hour_allocation:
        assert "A SINGLE MODEL IS CHEAPER" in explain(lenient)
    assert "MORE" in lenient.baseline.note or "same" in lenient.baseline.note or "saves" in lenient.baseline.note


def test_of_two_cascades_the_cheaper_is_planned_and_they_share_delta() -> None:
    table = factories.table(n=4000)
    dear = calibrate(factories.cascade(first=("small", "other", "middle")), table, "large", 0.04, 0.025)
    single = calibrate(Cascade(name="alone", tiers=(Tier(members=("large",)),)), table, "large", 0.04, 0.025)
    found = planned(cascades=[single, dear], table=table)
    assert found.cascade.tiers == dear.tiers
    assert found.solver.candidates == 2
    assert any("alone" in line for line in found.rejected)
    full = calibrate(factories.cascade(), table, "large", 0.04, 0.05)
    with pytest.raises(InvalidInput, match="deltas must add up to at most 0.05, got 0.075"):
        planned(cascades=[full, dear], table=table)


def test_uncertified_and_stale_cascades_are_refused() -> None:
    with pytest.raises(InvalidInput, match="has no certificate"):
        planned(cascades=[factories.cascade()])
    assert planned(cascades=[factories.cascade()], uncertified=True).cascade.certificate is None
    with pytest.raises(Stale, match="predictions changed"):
        planned(table=factories.table(n=4000, seed=9))


def test_a_certificate_for_a_looser_promise_is_not_enough() -> None:
    with pytest.raises(InvalidInput, match="loss of at most 2.00%, got 4.00%"):
        planned(workload=factories.workload(max_accuracy_loss=0.02))


def test_a_member_without_a_profile_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"profiles: large: has no profile on any offered accelerator.*A100"):
        planned(profiles=factories.profiles({"small": 0.001, "middle": 0.001, "other": 0.001}))


def test_a_router_node_type_that_nobody_offers_is_named() -> None:
    with pytest.raises(InvalidInput, match="no offer has node_type 'huge'; known: cpu-node"):
        planned(workload=factories.workload(max_accuracy_loss=0.04, router_node_type="huge"))


def test_the_explanation_shows_bill_promises_and_sources() -> None:
    text = explain(planned(), factories.profiles())
    for part in (
        "proved cheapest",
        "router: cpu-node",
        "best single model",
        "a price list for tests (2026-11-01)",
        "measured",
    ):
        assert part in text
