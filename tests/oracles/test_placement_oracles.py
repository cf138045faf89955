"""The MILP against trying every placement, on random small problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from coe.placement import branch, exhaustive
from coe.placement.dominance import without_dominated_offers
from coe.placement.judge import check, price
from coe.placement.problem import PlacementProblem, build_problem
from coe.types import BatchTiming, Cascade, CascadeStats, Offer, Prices, Profile, Profiles, Tier
from tests import factories

PROBLEMS = 240


def random_problem(seed: int) -> PlacementProblem:
    """One to three members in one or two tiers, two kinds of node, two batch sizes, whole and half accelerators."""
    rng = np.random.default_rng(seed)
    tiers = [(1,), (1, 1), (2,), (2, 1)][rng.choice(4, p=[0.2, 0.5, 0.2, 0.1])]
    cascade, stats = random_cascade(rng, tiers)
    offers = tuple(random_offer(rng, i) for i in range(2))
    router = factories.offer("cpu-node", "CPU-node", 0.1, accelerators_per_node=0)
    profiles = tuple(random_profile(rng, m, o) for m in cascade.members for o in offers)
    work = factories.workload(
        rate_per_s=float(rng.uniform(5, 35)),
        latency_s=float(rng.uniform(0.04, 0.6)),
        min_replicas=int(rng.choice([1, 1, 2])),
    )
    problem = build_problem(cascade, stats, Profiles(profiles=profiles), Prices(offers=(*offers, router)), work)
    return replace(problem, columns=tuple(c for c in problem.columns if c.share >= 0.5))


def random_cascade(rng: np.random.Generator, tiers: tuple[int, ...]) -> tuple[Cascade, CascadeStats]:
    """Tiers with these numbers of members; a later tier is reached by 0.5% to 60% of the queries."""
    names = iter("abc")
    members = [tuple(next(names) for _ in range(count)) for count in tiers]
    gates = [{"rule": "score", "threshold": 0.8}] * (len(tiers) - 1) + [{}]
    cascade = Cascade(tiers=tuple(Tier(members=m, **g) for m, g in zip(members, gates, strict=True)))  # type: ignore[arg-type]
    reach = (1.0, float(rng.choice([0.005, 0.2, 0.6])))[: len(tiers)]
    return cascade, CascadeStats(
        items=1000,
        accuracy=0.9,
        accuracy_low=0.8,
        accuracy_high=1.0,
        reach=reach,
        accepted=(1 - reach[1], reach[1]) if len(tiers) == 2 else (1.0,),
        accuracy_accepted=(0.9,) * len(tiers),
        calls={m: r for tier, r in zip(members, reach, strict=True) for m in tier},
    )


def random_offer(rng: np.random.Generator, number: int) -> Offer:
    """Prices are cents or nothing at all, as for owned nodes, so that ties occur."""
    return factories.offer(
        f"node-{number}",
        f"ACC{number}",
        float(rng.choice([0.0, 0.25, 0.5, 0.75, 1.3, 3.6])),
        quota=[1, 1, 2, None][rng.integers(4)],
        accelerators_per_node=int(rng.integers(1, 3)),
        accelerator_memory_gib=float(rng.choice([4.0, 16.0])),
    )


def random_profile(rng: np.random.Generator, member: str, offer: Offer) -> Profile:
    """Batches of 1 and 4; some members do not fit on half of a small accelerator."""
    base = float(rng.uniform(0.004, 0.04))
    timings = tuple(
        BatchTiming(batch_size=b, latency_p50_s=t, latency_p99_s=1.3 * t)
        for b, t in ((1, base), (4, base * float(rng.uniform(1.2, 3.0))))
    )
    return Profile(
        member=member,
        accelerator=offer.accelerator,
        timings=timings,
        memory_gib=float(rng.choice([0.5, 3.0, 5.0], p=[0.5, 0.3, 0.2])),
        origin="measured",
        source="tests",
        date=factories.DAY,
    )


def with_markets_and_sites(seed: int) -> PlacementProblem:
    """A random problem in which one kind of node is spot, one is across a link with a price, and a loss may have to be
    survived."""
    rng = np.random.default_rng(10_000 + seed)
    problem = random_problem(seed)
    spot, away = f"node-{rng.integers(2)}", f"node-{rng.integers(2)}"
    markets = {o.node_type: "spot" if o.node_type == spot else "on_demand" for o in problem.offers}
    offers = {o.node_type: o.model_copy(update={"market": markets[o.node_type]}) for o in problem.offers}
    fee = float(rng.choice([0.0, 1e-6, 2e-5]))
    columns = tuple(
        replace(c, offer=offers[c.offer.node_type], fee_usd_per_item=fee if c.offer.node_type == away else 0.0)
        for c in problem.columns
    )
    return replace(
        problem,
        columns=columns,
        offers=tuple(offers.values()),
        on_demand_floor=float(rng.choice([0.0, 0.4, 1.0])),
        survive_node_loss=bool(rng.random() < 0.5),
    )


def compare(problem: PlacementProblem, seed: int) -> str:
    """Solve one problem both ways; what was found."""
    tried, solved = exhaustive.solve(problem), branch.solve(problem)
    assert (tried is None) == (solved is None), f"seed {seed}: one finds a plan, the other none"
    assert branch.feasible(problem) == (solved is not None), f"seed {seed}"
    if solved is None or tried is None:
        return "infeasible"
    assert check(problem, solved) == [], f"seed {seed}"
    assert price(problem, solved) == pytest.approx(price(problem, tried), abs=2 * branch.SAME_USD), f"seed {seed}"
    assert solved.bound_usd_per_hour == pytest.approx(price(problem, solved), abs=2 * branch.SAME_USD), f"seed {seed}"
    assert solved.proved
    bound = branch.lower_bound_usd_per_hour(problem)
    assert bound is not None
    assert bound <= price(problem, solved) + 1e-9, f"seed {seed}"
    return "several node types" if len(solved.nodes) > 1 else "one node type"


def test_the_search_is_as_cheap_as_trying_everything() -> None:
    found = Counter(compare(random_problem(seed), seed) for seed in range(PROBLEMS))
    assert found.total() == PROBLEMS
    assert min(found[kind] for kind in ("infeasible", "several node types", "one node type")) >= 20, found


def test_so_it_is_with_spot_floors_survival_and_fees() -> None:
    found = Counter(compare(with_markets_and_sites(seed), seed) for seed in range(PROBLEMS // 4))
    assert min(found[kind] for kind in ("infeasible", "several node types", "one node type")) >= 5, found


def test_offers_that_another_dominates_are_never_missed() -> None:
    fewer = 0
    for seed in range(PROBLEMS // 2):
        problem = random_problem(seed)
        reduced = without_dominated_offers(problem)
        fewer += len(reduced.columns) < len(problem.columns)
        one, other = branch.solve(problem), branch.solve(reduced)
        assert (one is None) == (other is None), f"seed {seed}"
        if one is not None and other is not None:
            assert price(reduced, other) == pytest.approx(price(problem, one), abs=2 * branch.SAME_USD), f"seed {seed}"
    assert fewer >= 5
