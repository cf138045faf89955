"""Search against enumeration with nothing clever in it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from coe.cascade.certify import loss_upper_bound
from coe.cascade.evaluate import evaluate, losses, route
from coe.cascade.search import search
from coe.errors import InvalidInput
from coe.table import PredictionTable
from coe.types import Cascade, Tier
from tests import factories

COST = {"small": 0.1, "middle": 0.16, "other": 0.12, "large": 2.0}
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
    front = search(table, COST, "large", EPSILON, DELTA, "test prices")
    sample = table.split("calibration")
    yardstick = sample.answers[:, sample.members.index("large")]
    best = np.inf
    for cascade in every_cascade(sample):
        lost = int(losses(route(cascade, sample).answer, yardstick, sample.labels).sum())
        if loss_upper_bound(lost, len(sample), DELTA) <= EPSILON:
            best = min(best, cost_of(cascade, sample))
    assert front.chosen is not None
    assert front.chosen.usd_per_1k == pytest.approx(best)
    assert front.chosen.usd_per_1k == pytest.approx(cost_of(front.chosen.cascade, sample))
    assert front.chosen.loss_upper_bound <= EPSILON


def test_no_point_of_the_front_is_beaten() -> None:
    table = factories.table(n=240, seed=7)
    front = search(table, COST, "large", EPSILON, DELTA, "test prices")
    sample = table.split("calibration")
    everything = [(cost_of(c, sample), evaluate(c, sample).accuracy) for c in every_cascade(sample)]
    for point in front.points:
        cheaper = [a for cost, a in everything if cost <= point.usd_per_1k + 1e-9]
        assert max(cheaper) <= point.stats.accuracy + 1e-12
    costs = [p.usd_per_1k for p in front.points]
    assert costs == sorted(costs)


def test_answers_alone_are_searched_by_vote() -> None:
    front = search(factories.table(probs=False), COST, "large", EPSILON, DELTA, "test prices")
    assert all(t.rule == "vote" for p in front.points for t in p.cascade.tiers)
    assert front.evaluated > 10


def test_when_the_small_models_cost_as_much_one_model_is_best() -> None:
    dear = {**COST, "small": 1.9, "middle": 1.9, "other": 1.9}
    front = search(factories.table(n=2000), dear, "large", 0.03, DELTA, "test prices")
    assert front.chosen is not None
    assert front.chosen.cascade.name == "large"
    assert front.verdict.startswith("One model is best: large")


def test_the_verdict_names_the_saving() -> None:
    front = search(factories.table(n=4000), COST, "large", 0.03, DELTA, "test prices")
    assert front.chosen is not None
    assert "less than the best single model, large" in front.verdict
    assert front.chosen.usd_per_1k < 2000


def test_nothing_is_chosen_where_the_sample_is_too_small() -> None:
    front = search(factories.table(n=80), COST, "large", 0.01, 0.05, "test prices")
    assert front.chosen is None
    assert front.verdict.startswith("Nothing keeps the promise")


def test_a_member_without_cost_is_not_free() -> None:
    with pytest.raises(InvalidInput, match="no cost is known for other"):
        search(factories.table(), {k: v for k, v in COST.items() if k != "other"}, "large", 0.03, 0.05, "")


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    search(
        factories.table(), COST, "large", EPSILON, DELTA, "", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] - 1
