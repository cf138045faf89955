"""Search against enumeration with nothing clever in it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from coe.cascade.certify import loss_upper_bound
from coe.cascade.evaluate import evaluate, losses, route
from coe.cascade.search import search
from coe.cascade.space import Space
from coe.cost.calls import CallCosts, constant
from coe.errors import InvalidInput
from coe.table import PredictionTable
from coe.types import Cascade, Tier
from tests import factories

COST = {"small": 0.1, "middle": 0.16, "other": 0.12, "large": 2.0}
PRICES = constant(COST, "usd", "prices of a test")
PLAIN = Space(last_members=1, carry=(False,))
EPSILON, DELTA = 0.06, 0.1


def every_cascade(table: PredictionTable) -> list[Cascade]:
    """All singles and two-tier cascades with every gate that accepts some and defers some items of the table."""
    found = [Cascade(tiers=(Tier(members=(m,)),)) for m in table.members]
    for size in (1, 2, 3):
        for first in itertools.permutations(table.members, size):
            gates = [Tier(members=first, quorum=q) for q in range(2, size + 1)]
            if table.probs is not None:
                probs = table.outputs(first)
                for value in sorted(set(np.round(_scores(probs), 12))):
                    gates.append(Tier(members=first, rule="score", threshold=min(1.0, value)))
            for gate in gates:
                for last in set(table.members) - set(first):
                    found.append(Cascade(tiers=(gate, Tier(members=(last,)))))
    return found


def _scores(outputs: object) -> np.ndarray:
    from coe.cascade.rules import score

    return score(outputs).score  # type: ignore[arg-type]


def cost_of(cascade: Cascade, table: PredictionTable) -> float:
    """Dollars per 1,000 queries by walking the items."""
    tier = route(cascade, table).tier
    return float(1000 * np.mean([sum(COST[m] for t in cascade.tiers[: last + 1] for m in t.members) for last in tier]))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct scores", "tied scores"])
@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_cascade_is_the_brute_force_optimum(seed: int, ties: bool) -> None:
    table = factories.table(n=240, seed=seed)
    if ties:
        assert table.probs is not None
        coarse = np.round(table.probs * 8) / 8
        coarse[..., 0] += 1 - coarse.sum(axis=2)
        coarse = np.clip(coarse, 0, None)
        coarse /= coarse.sum(axis=2, keepdims=True)
        table = PredictionTable(
            table.members,
            table.classes,
            table.items.copy(),
            table.labels.copy(),
            table.splits.copy(),
            coarse.argmax(axis=2).astype(np.int64),
            coarse.astype(np.float32),
        )
    front = search(table, PRICES, "large", EPSILON, DELTA, PLAIN, claim="loss")
    sample = table.split("calibration")
    yardstick = sample.answers[:, sample.members.index("large")]
    best = np.inf
    for cascade in every_cascade(sample):
        lost = int(losses(route(cascade, sample).answer, yardstick, sample.labels).sum())
        if loss_upper_bound(lost, len(sample), DELTA) <= EPSILON:
            best = min(best, cost_of(cascade, sample))
    assert front.chosen is not None
    assert front.chosen.cost_per_1k == pytest.approx(best)
    assert front.chosen.cost_per_1k == pytest.approx(cost_of(front.chosen.cascade, sample))
    assert front.chosen.loss_upper_bound <= EPSILON


def test_no_point_of_the_front_is_beaten() -> None:
    table = factories.table(n=240, seed=7)
    front = search(table, PRICES, "large", EPSILON, DELTA, PLAIN, claim="loss")
    sample = table.split("calibration")
    everything = [(cost_of(c, sample), evaluate(c, sample).accuracy) for c in every_cascade(sample)]
    for point in front.points:
        cheaper = [a for cost, a in everything if cost <= point.cost_per_1k + 1e-9]
        assert max(cheaper) <= point.stats.accuracy + 1e-12
    costs = [p.cost_per_1k for p in front.points]
    assert costs == sorted(costs)


def test_answers_alone_are_searched_by_vote() -> None:
    front = search(factories.table(probs=False), PRICES, "large", EPSILON, DELTA, PLAIN, claim="loss")
    assert all(t.rule == "vote" for p in front.points for t in p.cascade.tiers)
    assert front.evaluated > 10


def test_when_the_small_models_cost_as_much_one_model_is_best() -> None:
    dear = {**COST, "small": 1.9, "middle": 1.9, "other": 1.9}
    front = search(factories.table(n=2000), constant(dear), "large", 0.03, DELTA, PLAIN, claim="loss")
    assert front.chosen is not None
    assert front.chosen.cascade.name == "large"
    assert front.verdict.startswith("One model is best: large")


def test_the_verdict_names_the_saving() -> None:
    front = search(factories.table(n=4000), PRICES, "large", 0.03, DELTA, PLAIN, claim="loss")
    assert front.chosen is not None
    assert "less than the best single model, large" in front.verdict
    assert front.chosen.cost_per_1k < 2000


def test_nothing_is_chosen_where_the_sample_is_too_small() -> None:
    front = search(factories.table(n=80), PRICES, "large", 0.01, 0.05, PLAIN, claim="loss")
    assert front.chosen is None
    assert front.verdict.startswith("Nothing keeps the promise")


def test_a_member_without_cost_is_not_free() -> None:
    with pytest.raises(InvalidInput, match="no cost is known for other"):
        search(factories.table(), constant({k: v for k, v in COST.items() if k != "other"}), "large", 0.03, 0.05)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    search(factories.table(), PRICES, "large", EPSILON, DELTA, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


def every_deep_cascade(sample: PredictionTable) -> list[Cascade]:
    """Three tiers of single members with every pair of thresholds, carried or not, by nothing but loops."""
    found = []
    for first, middle, last in itertools.permutations(sample.members, 3):
        for one, two in itertools.product(*(sorted(set(_scores(sample.outputs((m,))))) for m in (first, middle))):
            gates = [Tier(members=(m,), rule="score", threshold=min(1.0, t)) for m, t in ((first, one), (middle, two))]
            found += [Cascade(tiers=(*gates, Tier(members=(last,), rule="score", carry=c))) for c in (0, 1)]
    return found


def test_three_tiers_are_as_good_as_a_walk_over_all_thresholds_where_the_grid_holds_every_gate() -> None:
    table = factories.table(n=60, seed=3, members=("small", "middle", "large"))  # 15 items: fewer gates than the grid
    sample = table.split("calibration")
    space = Space(first_members=1, last_members=1, tiers=3, rules=("score",))
    front = search(table, PRICES, "large", 0.3, DELTA, space)
    everything = [(cost_of(c, sample), evaluate(c, sample).accuracy) for c in every_deep_cascade(sample)]
    deep = search(table, PRICES, "large", 0.3, DELTA, space).points
    for cost, accuracy in everything:
        assert any(p.cost_per_1k <= cost + 1e-9 and p.stats.accuracy >= accuracy - 1e-12 for p in deep)
    assert "three tiers" in front.method


@pytest.mark.parametrize("probs", [True, False], ids=["probabilities", "answers"])
def test_last_tiers_of_two_carried_votes_and_stages_are_searched_exactly(probs: bool) -> None:
    table = factories.table(n=160, seed=5, probs=probs)
    sample = table.split("calibration")
    space = Space(first_members=2, last_members=2, dispatch=("parallel", "staged"))
    front = search(table, PRICES, "large", EPSILON, DELTA, space)
    rules = ("vote", "score") if probs else ("vote",)
    right = (sample.answers == sample.labels[:, None]).mean(axis=0)
    ranked = sorted(sample.members, key=lambda m: -right[sample.members.index(m)])
    tried = [Cascade(tiers=(Tier(members=(m,)),)) for m in ranked]
    for size, rule, dispatch in itertools.product((1, 2), rules, ("parallel", "staged")):
        for first in itertools.combinations(ranked, size):
            bars = [2.0] if rule == "vote" else sorted(set(_scores(sample.outputs(first))))
            if rule == "vote" and size == 1:
                continue
            for bar, width in itertools.product(bars, (1, 2)):
                gate = {"quorum": 2} if rule == "vote" else {"threshold": min(1.0, bar)}
                head = Tier.model_validate({"members": first, "rule": rule, "dispatch": dispatch} | gate)
                for last in itertools.combinations([m for m in ranked if m not in first], width):
                    for carry in (0,) if dispatch == "staged" else (0, 1):
                        tried.append(Cascade(tiers=(head, Tier(members=last, rule=rules[-1], carry=carry))))
    for cascade in tried:
        stats = evaluate(cascade, sample)
        cost = 1000 * sum(COST[m] * calls for m, calls in stats.calls.items())
        assert any(p.cost_per_1k <= cost + 1e-9 and p.stats.accuracy >= stats.accuracy - 1e-12 for p in front.points), (
            cascade,
            cost,
            stats.accuracy,
        )


def test_costs_of_their_own_per_item_are_counted_item_by_item() -> None:
    table = factories.table(n=400, seed=8)
    rng = np.random.default_rng(1)
    per_call = rng.gamma(2.0, [COST[m] / 2 for m in table.members], size=(400, 4))
    front = search(table, CallCosts(table.members, per_call), "large", 0.1, DELTA)
    sample, own = table.split("calibration"), per_call[table.splits == "calibration"]
    for point in front.points:
        asked = route(point.cascade, sample).asked
        columns = [table.members.index(m) for m in point.cascade.members]
        assert point.cost_per_1k == pytest.approx(1000 * (own[:, columns] * asked).sum(axis=1).mean())


def test_the_oracle_is_a_floor() -> None:
    front = search(factories.table(n=800), PRICES, "large", 0.1, DELTA)
    best = max(front.points, key=lambda p: p.stats.accuracy)
    assert 0 < front.oracle_cost_per_1k < best.cost_per_1k
