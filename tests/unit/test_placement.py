"""Plans: promises kept, dollars by hand, the baseline beside it, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coe.cascade.calibrate import calibrate
from coe.cascade.evaluate import evaluate
from coe.cost.model import total_usd
from coe.errors import Infeasible, InvalidInput, Stale, Unavailable
from coe.placement import branch
from coe.placement.explain import explain
from coe.placement.judge import check
from coe.placement.optimize import plan
from coe.placement.problem import PlacementProblem, Solution, build_problem
from coe.types import BatchTiming, Cascade, Plan, Prices, Profile, Profiles, Tier
from tests import factories


def problem_of(**work: float) -> PlacementProblem:
    cascade = factories.cascade()
    stats = evaluate(cascade, factories.table())
    return build_problem(cascade, stats, factories.profiles(), factories.prices(), factories.workload(**work))


def test_the_same_problem_has_the_same_solution() -> None:
    first, second = branch.solve(problem_of()), branch.solve(problem_of())
    assert first is not None
    assert first == second


def test_a_solution_is_judged_without_the_solver() -> None:
    problem = problem_of()
    solved = branch.solve(problem)
    assert solved is not None
    assert check(problem, solved) == []
    busy = next(iter(solved.replicas))
    member, node_type = problem.columns[busy].member, problem.columns[busy].offer.node_type
    fewer = replace(solved, replicas={c: n for c, n in solved.replicas.items() if c != busy})
    assert any(f"{member} has fewer than 1 replicas" in line for line in check(problem, fewer))
    unserved = replace(solved, flows_per_s={**solved.flows_per_s, busy: (0.0,)})
    assert any(f"{member} gets less traffic" in line for line in check(problem, unserved))
    packed = replace(solved, nodes={**solved.nodes, node_type: 0})
    assert any(f"{node_type} is packed beyond its 0 nodes" in line for line in check(problem, packed))
    assert any("exceeds its quota of 10" in line for line in check(problem, replace(solved, nodes={"t4-node": 11})))
    hasty = replace(problem, latency_s=0.001)
    assert any("promised are 0.001 s" in line for line in check(hasty, solved))
    busier = replace(problem, demand_per_s={m: 100 * d for m, d in problem.demand_per_s.items()})
    served = replace(solved, flows_per_s={c: (100 * sum(f),) for c, f in solved.flows_per_s.items()})
    assert any("is overloaded on" in line for line in check(busier, served))


def test_nodes_that_cost_nothing_are_not_rented_for_nothing() -> None:
    owned = factories.prices().model_copy(
        update={
            "offers": tuple(
                o.model_copy(update={"usd_per_hour": 0.0, "market": "owned", "quota": 50})
                for o in factories.prices().offers
            )
        }
    )
    cascade = factories.cascade()
    stats = evaluate(cascade, factories.table())
    problem = build_problem(cascade, stats, factories.profiles(), owned, factories.workload(rate_per_s=10.0))
    solved = branch.solve(problem)
    assert solved is not None
    assert check(problem, solved) == []
    for node_type, count in solved.nodes.items():
        shares = sum(
            n * problem.columns[c].share
            for c, n in solved.replicas.items()
            if problem.columns[c].offer.node_type == node_type
        )
        assert count - 1 < shares <= count


def test_a_solver_without_time_says_so_instead_of_claiming_that_there_is_no_plan() -> None:
    with pytest.raises(Unavailable, match="neither found a plan nor showed that there is none"):
        branch.solve(problem_of(rate_per_s=300.0), time_limit_s=1e-9)


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
    assert lenient.baseline.cost.usd_per_hour_allocation < lenient.cost.usd_per_hour_allocation
    assert f"A SINGLE MODEL IS CHEAPER at this load: {lenient.baseline.member}, $" in explain(lenient)
    assert "A SINGLE MODEL" not in explain(planned())
    assert "MORE" in lenient.baseline.note


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


def test_an_accelerator_of_another_name_is_suggested() -> None:
    misnamed = Profiles(
        profiles=tuple(
            p.model_copy(update={"accelerator": "A100-SXM"})
            for p in factories.profiles().profiles
            if p.accelerator == "A100"
        )
    )
    with pytest.raises(InvalidInput, match="got profiles on A100-SXM alone; is A100-SXM for A100 another name"):
        planned(profiles=misnamed)


def test_a_router_node_type_that_nobody_offers_is_named() -> None:
    with pytest.raises(InvalidInput, match="no offer has node_type 'huge'; known: cpu-node"):
        planned(workload=factories.workload(max_accuracy_loss=0.04, router_node_type="huge"))


def test_cascades_that_rent_the_same_are_told_apart_by_what_they_use() -> None:
    table = factories.table(n=4000)
    thrifty = factories.cascade(threshold=0.7).model_copy(update={"name": "thrifty"})
    lavish = factories.cascade(threshold=0.71).model_copy(update={"name": "lavish"})
    found = planned(cascades=[lavish, thrifty], table=table, uncertified=True)
    alone = planned(cascades=[lavish], table=table, uncertified=True)
    assert found.cost.usd_per_hour_allocation == pytest.approx(alone.cost.usd_per_hour_allocation)
    assert found.cost.usd_per_hour_usage < alone.cost.usd_per_hour_usage
    assert found.cascade.name == "thrifty"
    assert any(line.startswith("lavish: $") for line in found.rejected)


def test_a_plan_is_the_same_every_time() -> None:
    assert planned() == planned()


def test_where_no_candidate_has_a_plan_each_says_why() -> None:
    table = factories.table(n=4000)
    first = factories.cascade().model_copy(update={"name": "first"})
    second = factories.cascade(first=("small",)).model_copy(update={"name": "second"})
    work = factories.workload(max_accuracy_loss=0.04, latency_s=0.01)
    with pytest.raises(Infeasible) as caught:
        planned(cascades=[first, second], table=table, workload=work, uncertified=True)
    assert [line.split(":")[0] for line in caught.value.conflict] == ["first", "second"]
    assert any(line.startswith("for second, a latency promise of ") for line in caught.value.nearest)


def test_a_reference_without_predictions_is_named() -> None:
    with pytest.raises(InvalidInput, match="no predictions of oracle"):
        planned(workload=factories.workload(reference="oracle"), uncertified=True)


def test_a_router_without_a_node_to_run_on_is_refused() -> None:
    none_left = tuple(
        o.model_copy(update={"quota": 0}) if o.node_type == "cpu-node" else o for o in factories.prices().offers
    )
    with pytest.raises(InvalidInput, match="the router needs a CPU-only offer"):
        planned(prices=Prices(offers=none_left))
    named = factories.workload(max_accuracy_loss=0.04, router_node_type="cpu-node")
    with pytest.raises(InvalidInput, match="cpu-node: the router needs a node, so a quota of at least 1, got 0"):
        planned(prices=Prices(offers=none_left), workload=named)


def test_a_placement_that_breaks_a_promise_is_never_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_few_nodes(problem: PlacementProblem, **_: object) -> Solution | None:
        solved = branch.solve(problem)
        return None if solved is None else replace(solved, nodes={})

    monkeypatch.setattr("coe.placement.candidates.solve", too_few_nodes)
    with pytest.raises(
        Unavailable, match="the solver's placement of cascade is wrong: .* is packed beyond its 0 nodes"
    ):
        planned()


def test_progress_ends_when_all_candidates_are_done() -> None:
    told: list[tuple[int, int]] = []
    planned(progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 1)]


def test_a_staged_tier_needs_less_capacity_and_more_time() -> None:
    table = factories.table(n=4000)
    parallel = factories.cascade(rule="vote", quorum=3)
    tiers = (parallel.tiers[0].model_copy(update={"dispatch": "staged"}), *parallel.tiers[1:])
    staged = Cascade(tiers=tiers)
    sample = table.split("certification")
    one, other = (
        build_problem(c, evaluate(c, sample), factories.profiles(), factories.prices(), factories.workload())
        for c in (parallel, staged)
    )
    last = parallel.tiers[0].members[-1]
    assert other.demand_per_s[last] < one.demand_per_s[last]
    first = parallel.tiers[0].members[0]
    assert other.demand_per_s[first] == one.demand_per_s[first]
    slower = [(a.latency_s, b.latency_s) for a, b in zip(one.columns, other.columns, strict=True) if a.tier == 0]
    assert all(b == pytest.approx([3 * s for s in a]) for a, b in slower)
