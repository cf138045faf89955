"""Evaluation of whole tables against walking every item through the cascade by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from coe.cascade.decide import decide
from coe.cascade.evaluate import accuracy_interval, always_accepts, evaluate, losses, route
from coe.errors import InvalidInput
from coe.table import Outputs, PredictionTable
from coe.types import MISSING_VOTE, Cascade, Tier
from tests import factories


def walked(cascade: Cascade, table: PredictionTable, row: int) -> tuple[int, int, int]:
    """Answer, tier and number of member calls of one item, one tier after the other."""
    calls = 0
    for number, tier in enumerate(cascade.tiers):
        cols = [table.members.index(m) for m in tier.members]
        calls += len(cols)
        probs = None if table.probs is None else table.probs[row : row + 1, cols]
        decision = decide(tier, Outputs(table.answers[row : row + 1, cols], probs))
        if decision.accepted[0] or number == len(cascade.tiers) - 1:
            return int(decision.answer[0]), number, calls
    raise AssertionError("the last tier always answers")


THREE_TIERS = Cascade(
    tiers=(
        Tier(members=("small", "other"), quorum=2),
        Tier(members=("middle",), rule="score", threshold=0.7),
        Tier(members=("large",)),
    )
)


@pytest.mark.parametrize("missing", [0.0, 0.15])
@pytest.mark.parametrize(
    "cascade",
    [factories.cascade(), factories.cascade(rule="vote", quorum=2), THREE_TIERS],
    ids=["score", "vote 2 of 3", "three tiers"],
)
def test_the_table_is_routed_as_its_items_are_walked(cascade: Cascade, missing: float) -> None:
    table = factories.table(n=200, missing=missing, seed=3)
    routing = route(cascade, table)
    stats = evaluate(cascade, table)
    walks = [walked(cascade, table, row) for row in range(len(table))]
    assert [(a, t) for a, t, _ in walks] == list(zip(routing.answer.tolist(), routing.tier.tolist(), strict=True))
    assert stats.accuracy == pytest.approx(np.mean([a == y for (a, _, _), y in zip(walks, table.labels, strict=True)]))
    assert sum(stats.calls.values()) == pytest.approx(np.mean([calls for _, _, calls in walks]))


def test_reach_and_acceptance_add_up() -> None:
    stats = evaluate(THREE_TIERS, factories.table())
    assert stats.reach[0] == 1
    for t in range(2):
        assert stats.reach[t + 1] == pytest.approx(stats.reach[t] - stats.accepted[t])
    assert sum(stats.accepted) == pytest.approx(1)
    assert stats.calls == {"small": 1.0, "other": 1.0, "middle": stats.reach[1], "large": stats.reach[2]}


def test_numbers_worked_out_by_hand() -> None:
    # a and b agree on items 0, 1 (right) and 2 (wrong); item 3 goes to c, which is right: 3 of 4 right, reach 1/4
    table = PredictionTable(
        members=("a", "b", "c"),
        classes=("x", "y", "z"),
        items=np.array(["0", "1", "2", "3"]),
        labels=np.array([0, 1, 2, 0]),
        splits=np.array(["test"] * 4),
        answers=np.array([[0, 0, 1], [1, 1, 1], [0, 0, 2], [1, 2, 0]]),
    )
    stats = evaluate(Cascade(tiers=(Tier(members=("a", "b"), quorum=2), Tier(members=("c",)))), table)
    assert (stats.accuracy, stats.reach, stats.accepted) == (0.75, (1.0, 0.25), (0.75, 0.25))
    assert stats.accuracy_accepted == (pytest.approx(2 / 3), 1.0)


@pytest.mark.parametrize(("right", "items"), [(0, 10), (10, 10), (7, 10), (985, 1000)])
def test_the_interval_is_the_exact_one(right: int, items: int) -> None:
    expected = binomtest(right, items).proportion_ci(0.95, method="exact")
    assert accuracy_interval(right, items) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_risk_identity_holds_on_arrays() -> None:
    """R(cascade) - R(last) = P(accepted, first wrong) - P(accepted, last wrong): METHODS of agreement cascades, 3.3."""
    table = factories.table(n=4000)
    cascade = factories.cascade()
    first = decide(cascade.tiers[0], table.outputs(cascade.tiers[0].members))
    last = table.answers[:, table.members.index("large")]
    wrong = route(cascade, table).answer != table.labels
    left = wrong.mean() - (last != table.labels).mean()
    accepted = first.accepted
    right = (accepted & (first.answer != table.labels)).mean() - (accepted & (last != table.labels)).mean()
    assert left == pytest.approx(right, abs=1e-12)
    lost = losses(route(cascade, table).answer, last, table.labels)
    assert left <= lost.mean() + 1e-12  # gains are not counted


def test_a_last_tier_without_any_vote_gives_no_answer() -> None:
    table = factories.table(n=40, missing=0.9, seed=1)
    routing = route(factories.cascade(rule="vote", quorum=3), table)
    silent = table.answers[:, table.members.index("large")] == MISSING_VOTE
    assert (routing.answer[routing.tier == 1] == MISSING_VOTE).tolist() == silent[routing.tier == 1].tolist()


def test_unknown_members_are_named() -> None:
    with pytest.raises(InvalidInput, match="no predictions of giant.*the table has: small, middle"):
        evaluate(factories.cascade(last=("giant",)), factories.table())


@pytest.mark.parametrize(
    ("tier", "classes", "reason"),
    [
        (Tier(members=("a", "b", "c"), quorum=2), 2, "quorum 2 of 3 members always accepts with 2 classes"),
        (Tier(members=("a", "b"), rule="score", threshold=0.1), 5, "threshold 0.1 always accepts"),
        (Tier(members=("a", "b", "c"), quorum=3), 2, ""),
        (Tier(members=("a", "b", "c"), quorum=2), 3, ""),
    ],
)
def test_gates_that_always_accept_are_found(tier: Tier, classes: int, reason: str) -> None:
    assert reason in always_accepts(tier, classes)
    assert bool(reason) == bool(always_accepts(tier, classes))
