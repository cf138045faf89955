"""IDK cascades: the objective by enumeration and finite differences, hardening, the constrained choice, cascades."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coe.cascade.evaluate import evaluate
from coe.cascade.rules import rule
from coe.errors import InvalidInput
from coe.learned.gate_rule import HARD
from coe.learned.stages import Judge, Stages, TradeOff, cascade_of, cheapest_within, deployed, stages_of
from coe.table import Outputs
from coe.types import MISSING_VOTE, Cascade, Tier
from tests import factories

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # such small steps only lose by sharing

from coe.learned import gates  # noqa: E402  # needs torch
from coe.learned.stopping import Settings, expected, reach, stopping  # noqa: E402

QUICK = Settings(hidden=8, steps=120)
COSTS = {"small": 1.0, "middle": 2.0, "other": 2.0, "large": 10.0}


def shape(*tiers: tuple[str, ...]) -> Cascade:
    """A cascade of these tiers, gated at 0.5 until trained."""
    gated = [Tier(members=members, rule="score", threshold=0.5) for members in tiers[:-1]]
    return Cascade(tiers=(*gated, Tier(members=tiers[-1], rule="score")))


TWO = shape(("small",), ("large",))
THREE = shape(("small",), ("middle", "other"), ("large",))


def paper_objective(h: np.ndarray, losses: np.ndarray, costs: np.ndarray, trade: float) -> float:
    """J(a) of K soft gates h (items, K - 1), item by item: who reaches, who keeps."""
    total = 0.0
    for i in range(len(h)):
        q = 1.0
        for k in range(losses.shape[1]):
            onward = h[i, k] if k < h.shape[1] else 0.0
            total += q * (1 - onward) * losses[i, k] + trade * q * costs[i, k]
            q *= onward
    return total / len(h)


def test_the_objective_is_the_papers_and_its_gradient_that_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    z, losses, costs = rng.normal(size=(6, 3)), rng.random((6, 4)), rng.random((6, 4))
    h = 1 / (1 + np.exp(z))
    log_odds = torch.tensor(z, requires_grad=True)
    value = expected(log_odds, torch.tensor(losses), torch.tensor(costs), 0.3)
    assert float(value.detach()) == pytest.approx(paper_objective(h, losses, costs, 0.3), rel=1e-12)
    value.backward()
    step = 1e-6
    for i, k in np.ndindex(*z.shape):
        moved = [z + sign * step * (np.arange(z.size).reshape(z.shape) == i * 3 + k) for sign in (1, -1)]
        up, down = (paper_objective(1 / (1 + np.exp(m)), losses, costs, 0.3) for m in moved)
        assert float(log_odds.grad[i, k]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


def test_hard_gates_make_the_objective_accuracy_and_cost() -> None:
    rng = np.random.default_rng(1)
    log_odds = torch.tensor(np.where(rng.random((50, 2)) < 0.5, 800.0, -800.0))
    assert set(np.unique(stopping(log_odds).numpy())) == {0, 1}
    assert (stopping(log_odds).sum(dim=1) == 1).all()
    assert (reach(log_odds)[:, 0] == 1).all()


@pytest.mark.parametrize("objective", gates.OBJECTIVES)
def test_numpy_gates_decide_as_torch_trained_them(objective: gates.Objective) -> None:
    stages = stages_of(THREE, factories.table(n=400), COSTS)
    trained = gates.train(stages, 0.2, objective=objective, settings=QUICK)
    z = torch.tensor(np.stack([g.log_odds(o) for g, o in zip(trained.gates, stages.outputs, strict=False)], axis=1))
    losses, costs = torch.tensor(stages.losses("zero_one")), torch.tensor(stages.relative_costs)
    if objective == "cost_aware":
        assert trained.objective == pytest.approx(float(expected(z, losses, costs, 0.2)), rel=1e-9)
    else:
        p = 1 / (1 + np.exp(-z.numpy()))
        right = stages.right[:, :-1]
        assert trained.objective == pytest.approx(-np.log(np.where(right, p, 1 - p)).sum(axis=1).mean(), rel=1e-9)


def test_training_lowers_the_objective_and_repeats_itself_without_touching_global_randomness() -> None:
    stages = stages_of(TWO, factories.table(n=400), COSTS)
    before = torch.random.get_rng_state()
    first, second = (gates.train(stages, 0.2, settings=QUICK) for _ in range(2))
    assert (torch.random.get_rng_state() == before).all()
    assert (first.gates[0].layers[0][0] == second.gates[0].layers[0][0]).all()
    untrained = gates.train(stages, 0.2, settings=Settings(steps=0))
    assert first.objective < untrained.objective
    other = gates.train(stages, 0.2, settings=Settings(hidden=8, steps=120, seed=1))
    assert (first.gates[0].layers[0][0] != other.gates[0].layers[0][0]).any()


def test_the_sweep_of_lambda_runs_from_accurate_to_cheap() -> None:
    table = factories.table(n=3000)
    train, held_out = (stages_of(TWO, table.split(s), COSTS) for s in ("train", "test"))
    points = gates.sweep(train, held_out, [0.0, 0.1, 0.3, 5.0], settings=QUICK)
    costs = [p.held_out.cost for p in points]
    assert costs == sorted(costs, reverse=True)
    assert points[-1].held_out.reach[1] == 0
    assert points[-1].held_out.accuracy == held_out.accuracy[0]
    assert points[0].held_out.accuracy > held_out.accuracy[0] + 0.05
    # what is known to be wrong is passed on for nothing, what is known to be right is not worth anything
    assert 0 < points[1].held_out.reach[1] < 1


def test_gates_learn_what_a_threshold_cannot_see() -> None:
    """Two kinds of items: the first stage errs where it is *moderately* sure, which no threshold on its score separates."""
    rng = np.random.default_rng(2)
    n = 600
    sure = rng.random(n)
    right = (sure < 1 / 3) | (sure > 2 / 3)
    p = 0.5 + 0.5 * sure
    probs = np.stack([p, 1 - p], axis=1)[:, None].astype(np.float32)
    first = Outputs(np.zeros((n, 1), dtype=np.int64), probs)
    labels = np.where(right, 0, 1)
    perfect = np.eye(2, dtype=np.float32)[labels][:, None]
    stages = Stages((first, Outputs(labels[:, None], perfect)), labels, np.array([0.1, 1.0]))
    trained = deployed(gates.train(stages, 0.3, settings=Settings(steps=250)), stages)
    best = max(
        (Judge([rule("score")], stages).at([bar]) for bar in np.linspace(0.5, 1.01, 60)),
        key=lambda t: t.accuracy - 0.3 * t.relative_cost,
    )
    assert trained.accuracy - 0.3 * trained.relative_cost > best.accuracy - 0.3 * best.relative_cost + 0.05
    assert trained.reach[1] == pytest.approx(1 / 3, abs=0.05)


def test_cross_entropy_gates_estimate_the_chance_of_being_right_and_trade_by_their_bar() -> None:
    table = factories.table(n=4000)
    train, held_out = (stages_of(TWO, table.split(s), COSTS) for s in ("train", "test"))
    trained = gates.train(train, 0.0, objective="cross_entropy", settings=QUICK)
    score = trained.gates[0](held_out.outputs[0]).score
    bins = np.digitize(score, [0.6, 0.9])
    for b in range(3):
        at = bins == b
        assert score[at].mean() == pytest.approx(held_out.right[at, 0].mean(), abs=0.1)
    swept = gates.bar_sweep(trained, held_out, [0.0, HARD, 0.9, 1.1])
    assert [t.reach[1] for t in swept] == sorted(t.reach[1] for t in swept)
    assert swept[1] == deployed(trained, held_out)


def test_the_constrained_choice_is_that_of_brute_force() -> None:
    table = factories.table(n=1000)
    stages = stages_of(TWO, table, COSTS)
    judge = Judge([rule("score")], stages)
    found = [judge.at([float(bar)]) for bar in np.linspace(0.2, 1, 81)]
    accurate = float(stages.accuracy[-1])
    number = cheapest_within(found, accurate, 0.02)
    assert number is not None
    within = [t.idk_rate[0] for t in found if t.accuracy >= (1 - 0.02) * accurate]
    assert found[number].idk_rate[0] == min(within)
    assert len(within) < len(found)
    assert cheapest_within([t for t in found if t.accuracy < accurate * 0.9], accurate, 0.02) is None


def test_trade_offs_by_hand() -> None:
    answers = np.array([[0], [1], [0], [MISSING_VOTE]])
    first, last = Outputs(answers), Outputs(np.array([[0], [0], [1], [1]]))
    stages = Stages((first, last), np.array([0, 0, 1, 1]), np.array([[1, 10], [1, 10], [2, 20], [2, 20]]))
    found = Judge([rule("vote")], stages).at([1.0])  # all but the missing vote answer at once
    assert found == TradeOff(
        bars=(1.0,), items=4, accuracy=0.5, cost=(1 + 1 + 2 + 22) / 4, relative_cost=26 / 60,
        reach=(1.0, 0.25), accepted=(0.75, 0.25),
    )  # fmt: skip
    assert found.idk_rate == (0.25,)
    assert stages.complete.tolist() == [True, True, True, False]
    assert stages.losses("zero_one").tolist() == [[0, 0], [1, 0], [1, 0], [1, 0]]


def test_the_log_loss_reads_lists_as_it_reads_all_classes() -> None:
    said = Outputs(np.array([[4], [4]]), np.array([[[0.5, 0.2]]] * 2, dtype=np.float32), np.array([[[4, 0]]] * 2), 8)
    stages = Stages((said, said), np.array([0, 7]), np.array([1.0, 1.0]))
    # class 0 is listed; class 7 has an even share of what is left to six classes
    assert np.exp(-stages.losses("log")[:, 0]) == pytest.approx([0.2, 0.3 / 6])


def test_a_cascade_of_gates_routes_as_the_stages_say(tmp_path: Path) -> None:
    table = factories.table(n=1200, missing=0.03)
    stages = stages_of(THREE, table, COSTS)
    trained = gates.train(stages, 0.15, settings=QUICK)
    assert trained.items == stages.complete.sum() < len(table)
    cascade = cascade_of(trained, THREE, table, tmp_path)
    stats, expected_here = evaluate(cascade, table), deployed(trained, stages)
    assert stats.accuracy == expected_here.accuracy
    assert stats.reach == expected_here.reach
    assert stats.accepted == expected_here.accepted
    assert sum(stats.calls[m] * COSTS[m] for m in COSTS) == pytest.approx(expected_here.cost)


@pytest.mark.parametrize("top_k", [None, 2])
def test_gates_read_carried_votes_temperatures_and_lists_as_the_cascade_does(tmp_path: Path, top_k: int | None) -> None:
    table = factories.table(n=900)
    carrying = [tier.model_copy(update={"carry": number}) for number, tier in enumerate(THREE.tiers)]
    mixed = THREE.model_copy(update={"tiers": tuple(carrying), "top_k": top_k, "temperatures": {"small": 1.7}})
    stages = stages_of(mixed, table, COSTS)
    assert [o.answers.shape[1] for o in stages.outputs] == [1, 3, 4]
    trained = gates.train(stages, 0.15, settings=QUICK)
    cascade = cascade_of(trained, mixed, table, tmp_path)
    stats, expected_here = evaluate(cascade, table), deployed(trained, stages)
    assert (stats.accuracy, stats.reach) == (expected_here.accuracy, expected_here.reach)
    assert 0 < stats.reach[2] < stats.reach[1] < 1


def test_refusals() -> None:
    table = factories.table(n=40)
    stages = stages_of(TWO, table, COSTS)
    with pytest.raises(InvalidInput, match="trade: must be a number >= 0"):
        gates.train(stages, -1)
    with pytest.raises(InvalidInput, match="objective: must be one of cost_aware, cross_entropy, got hinge"):
        gates.train(stages, 1, objective="hinge")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="costs: lack the members large"):
        stages_of(TWO, table, {"small": 1.0})
    with pytest.raises(InvalidInput, match="costs: must be 2 positive numbers"):
        stages_of(TWO, table, COSTS | {"small": 0.0})
    with pytest.raises(InvalidInput, match="no item has the votes of all members"):
        gates.train(stages_of(TWO, factories.table(n=40, missing=1.0), COSTS), 1)
    with pytest.raises(InvalidInput, match="loss 'log'.*only answer"):
        gates.train(stages_of(shape(("small",), ("large",)), factories.table(n=40, probs=False), COSTS), 1, loss="log")
    with pytest.raises(InvalidInput, match="1 gates serve 2 stages, got 3"):
        Judge([rule("score")], stages_of(THREE, table, COSTS))
