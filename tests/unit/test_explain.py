"""Reasons: conflicts are real and smallest, relaxations really help, and a plan's story adds up."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from coe.cascade.evaluate import evaluate
from coe.errors import Infeasible
from coe.placement import branch
from coe.placement.conflicts import conflicts
from coe.placement.explain import explain
from coe.placement.optimize import plan
from coe.placement.problem import PlacementProblem, build_problem
from coe.types import Plan, Prices, Profiles
from tests import factories

WORDS = {"latency promise": "latency", "quotas": "quota", "replicas": "replicas", "rate that": "rate"}


def problem_of(quotas: dict[str, int] | None = None, members: tuple[str, ...] = (), **work: float) -> PlacementProblem:
    """A problem on the factory's fleet, with other quotas, and with members that need 500 GiB."""
    cascade = factories.cascade()
    stats = evaluate(cascade, factories.table())
    offers = tuple(
        o.model_copy(update={"quota": (quotas or {}).get(o.node_type, o.quota)}) for o in factories.prices().offers
    )
    profiles = tuple(
        p.model_copy(update={"memory_gib": 500.0}) if p.member in members else p for p in factories.profiles().profiles
    )
    return build_problem(cascade, stats, Profiles(profiles=profiles), Prices(offers=offers), factories.workload(**work))


def named(found: Infeasible) -> list[str]:
    """The promises of a conflict, by their short names."""
    return [short for line in found.conflict for words, short in WORDS.items() if words in line]


def loosened(problem: PlacementProblem, change: str) -> PlacementProblem:
    """The problem after the change that a relaxation proposes, read from its words alone."""
    if ", together with " in change:
        first, _, others = change.partition(", together with ")
        return loosened(loosened(problem, first), others)
    if found := re.match(r"a latency promise of (\S+) s", change):
        return replace(problem, latency_s=float(found[1]))
    if found := re.match(r"at least (\d+) replicas", change):
        return replace(problem, min_replicas=int(found[1]))
    if found := re.match(r"(\d+)% of the rate", change):
        part = int(found[1]) / 100
        return replace(problem, demand_per_s={m: d * part for m, d in problem.demand_per_s.items()})
    raised = {t: int(count) for count, t in re.findall(r"(\d+) (\S+) instead of \d+", change)}
    assert raised, change
    router = problem.router_node_type
    return replace(problem, quota={**problem.quota, **{t: q - (t == router) for t, q in raised.items()}})


def test_an_impossible_latency_conflicts_alone_and_its_relaxation_is_the_least() -> None:
    problem = problem_of(latency_s=0.01)
    found = conflicts(problem)
    assert named(found) == ["latency"]
    assert "the latency promise of 0.01 s, for the sum of the bounds of tier 1 + 2" in found.conflict[0]
    (change,) = found.nearest
    enough = loosened(problem, change)
    assert branch.feasible(enough)
    assert not branch.feasible(replace(enough, latency_s=enough.latency_s * 0.99))
    assert found.exit_code == 3


def test_rate_and_quota_conflict_together_and_either_can_give_way() -> None:
    problem = problem_of(rate_per_s=6_000)
    found = conflicts(problem)
    assert named(found) == ["quota", "rate"]
    quota, rate = found.nearest
    assert "instead of 10" in quota
    assert branch.feasible(loosened(problem, quota))
    carried = loosened(problem, rate)
    assert branch.feasible(carried)
    part = 1 + 1 / int(rate.split("%")[0])
    more = {m: d * part for m, d in carried.demand_per_s.items()}
    assert not branch.feasible(replace(problem, demand_per_s=more))


def test_too_many_replicas_for_the_quota_name_both() -> None:
    problem = problem_of({"cpu-node": 1, "t4-node": 1, "a100-node": 0}, rate_per_s=1.0, min_replicas=3, latency_s=2.0)
    found = conflicts(problem)
    assert named(found) == ["quota", "replicas"]
    assert [branch.feasible(loosened(problem, change)) for change in found.nearest] == [True, True]
    assert "the quotas: cpu-node 1 (one of them for the router), t4-node 1" in found.conflict[0]


def test_a_quota_that_the_router_uses_up_is_advised_with_the_routers_node() -> None:
    quotas = {"cpu-node": 1, "t4-node": 0, "a100-node": 0}
    problem = problem_of(quotas, rate_per_s=1.0, latency_s=10.0)
    found = conflicts(problem)
    assert named(found) == ["quota"]
    (change,) = found.nearest
    assert re.search(r"a quota of \d+ cpu-node instead of 1, at \$", change)
    needed = int(change.split("a quota of ")[1].split()[0])
    assert not branch.feasible(problem_of(quotas, rate_per_s=1.0, latency_s=10.0))
    assert branch.feasible(problem_of({**quotas, "cpu-node": needed}, rate_per_s=1.0, latency_s=10.0))


def test_members_that_fit_nowhere_are_named() -> None:
    found = conflicts(problem_of(members=("large", "small")))
    assert [line.split()[0] for line in found.conflict] == ["small", "large"]
    assert "more memory than any offered accelerator" in found.conflict[0]


def test_two_conflicts_at_once_give_way_together() -> None:
    problem = problem_of({"cpu-node": 1, "t4-node": 1, "a100-node": 0}, rate_per_s=900.0, latency_s=0.01)
    found = conflicts(problem)
    assert named(found) == ["latency"]
    assert not branch.feasible(replace(problem, latency_s=100.0))
    assert found.nearest
    for change in found.nearest:
        assert change.count(", together with ") == 1
        assert branch.feasible(loosened(problem, change)), change


def test_a_problem_with_a_solution_has_no_conflict() -> None:
    with pytest.raises(AssertionError):
        conflicts(problem_of())


@pytest.mark.parametrize("seed", range(12))
def test_of_random_conflicts_every_relaxation_helps_and_none_is_superfluous(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = problem_of(
        {"cpu-node": 1, "t4-node": int(rng.integers(0, 3)), "a100-node": int(rng.integers(0, 2))},
        rate_per_s=float(rng.uniform(1, 900)),
        latency_s=float(rng.uniform(0.02, 0.2)),
        min_replicas=int(rng.integers(1, 5)),
    )
    if branch.feasible(problem):
        assert branch.solve(problem) is not None
        return
    found = conflicts(problem)
    promises = named(found)
    assert found.nearest
    for change in found.nearest:
        assert branch.feasible(loosened(problem, change)), change
    for given_up in promises:  # without any one of them, the rest of the conflict can be kept
        assert branch.feasible(_only(problem, [p for p in promises if p != given_up])), given_up
    assert not branch.feasible(_only(problem, promises))


def _only(problem: PlacementProblem, promises: list[str]) -> PlacementProblem:
    """The problem with these promises and no others."""
    return replace(
        problem,
        latency_s=problem.latency_s if "latency" in promises else 1e5,
        min_replicas=problem.min_replicas if "replicas" in promises else 1,
        quota=problem.quota if "quota" in promises else dict.fromkeys(problem.quota, 10_000),
        demand_per_s=problem.demand_per_s if "rate" in promises else dict.fromkeys(problem.demand_per_s, 1e-3),
    )


# --- Explaining a plan ---


def planned(**work: float) -> Plan:
    return plan(
        factories.pool(),
        [factories.cascade()],
        factories.table(n=4000),
        factories.profiles(),
        factories.prices(),
        factories.workload(**work),
        inputs={},
        uncertified=True,
    )


def test_the_explanation_shows_bill_promises_and_sources() -> None:
    text = explain(planned(), factories.profiles())
    for part in (
        "proved cheapest among 1 candidate cascade(s)",
        "router: cpu-node",
        "best single model",
        "accuracy: NOT CERTIFIED",
        "of 10 t4-node",
        "allowed are 60%",
        "a price list for tests (2026-11-01)",
        "Profiles: measured 2026-11-01",
    ):
        assert part in text


def test_what_is_rented_is_used_router_and_idle() -> None:
    found = planned()
    line = next(line for line in explain(found).splitlines() if line.strip().startswith("rented $"))
    rented, used, router, idle = (float(x) for x in re.findall(r"\$(-?[0-9.]+)", line))
    assert rented == pytest.approx(used + router + idle, abs=2e-4)
    assert router == pytest.approx(0.1)
    assert idle > 0
    assert rented == pytest.approx(found.cost.usd_per_hour_allocation, abs=1e-4)
