"""Stop policies: both trainers reach the optimum found by enumeration; any cost, per item too; the frontier of alpha."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.learned.gate_rule import HARD
from coe.learned.stages import Stages, deployed, stages_of
from coe.table import Outputs
from tests import factories
from tests.unit.test_gates import COSTS, THREE, TWO

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # such small steps only lose by sharing

from coe.learned import gates, policy  # noqa: E402  # needs torch
from coe.learned.stopping import Settings, expected, log_probability, sample, stopping  # noqa: E402

KINDS = 3


def discrete(seed: int, per_item: bool = False, n: int = 240) -> Stages:
    """Three stages over a few kinds of items each: a stage shows the item's kind there, and nothing else."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    outputs = []
    for stage in range(3):
        kind = rng.integers(0, KINDS, n)
        sure = np.array([0.55, 0.75, 0.95])[kind]
        right = rng.random(n) < np.array([0.35, 0.75, 0.97])[kind] + 0.02 * stage
        answers = np.where(right, labels, 1 - labels)
        probs = np.stack([np.where(answers == c, sure, 1 - sure) for c in (0, 1)], axis=1)
        outputs.append(Outputs(answers[:, None], probs[:, None].astype(np.float32)))
    costs = np.array([0.1, 0.3, 1.0])
    return Stages(tuple(outputs), labels, costs * rng.uniform(0.2, 2.0, (n, 3)) if per_item else costs)


def kinds_of(stages: Stages) -> list[np.ndarray]:
    shown = [o.probs.max(axis=2)[:, 0] for o in stages.outputs[:-1] if o.probs is not None]
    return [np.unique(s, return_inverse=True)[1] for s in shown]


def reward(stages: Stages, tau: np.ndarray, trade: float) -> float:
    """Mean of -loss - alpha * accumulated relative cost, item by item."""
    total = 0.0
    relative = stages.costs_per_item / stages.costs_per_item[:, -1].mean()
    for i, t in enumerate(tau):
        total -= float(not stages.right[i, t]) + trade * relative[i, : t + 1].sum()
    return total / len(tau)


def best_policy(stages: Stages, trade: float) -> float:
    """The highest mean reward of all 2^6 deterministic policies that see a stage's kind."""
    kinds = kinds_of(stages)
    best = -np.inf
    for table in product([False, True], repeat=2 * KINDS):
        stop = np.stack([np.array(table[:KINDS])[kinds[0]], np.array(table[KINDS:])[kinds[1]]], axis=1)
        tau = np.where(stop[:, 0], 0, np.where(stop[:, 1], 1, 2))
        best = max(best, reward(stages, tau, trade))
    return best


def stops_of(trained: object, stages: Stages) -> np.ndarray:
    scores = [g(o).score >= HARD for g, o in zip(trained.gates, stages.outputs, strict=False)]  # type: ignore[attr-defined]
    return np.where(scores[0], 0, np.where(scores[1], 1, 2))


@pytest.mark.parametrize("per_item", [False, True], ids=["cost per stage", "cost per item"])
@pytest.mark.parametrize("trainer", policy.TRAINERS)
def test_trainers_reach_the_optimum_found_by_enumeration(trainer: policy.Trainer, per_item: bool) -> None:
    stages = discrete(seed=3, per_item=per_item)
    settings = Settings(hidden=8, steps=600, learning_rate=0.02)
    for trade in (0.05, 0.5):
        trained = policy.train(stages, trade, trainer=trainer, loss="zero_one", settings=settings)
        reached = reward(stages, stops_of(trained, stages), trade)
        assert reached == pytest.approx(best_policy(stages, trade), abs=1e-9)


def test_enumeration_has_something_to_find() -> None:
    stages = discrete(seed=3)
    always = max(reward(stages, np.full(len(stages), t), 0.5) for t in range(3))
    assert best_policy(stages, 0.5) > always + 0.02


def test_the_stopping_time_has_the_probabilities_that_its_samples_have() -> None:
    generator = torch.Generator().manual_seed(0)
    log_odds = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    chances = stopping(log_odds)
    assert chances.sum(dim=1).tolist() == pytest.approx([1] * 4)
    every = torch.arange(4)[:, None].expand(4, 4)
    assert torch.allclose(log_probability(log_odds, every).exp().T, chances)
    tau = sample(log_odds, 40_000, generator)
    seen = torch.stack([(tau == t).double().mean(dim=0) for t in range(4)], dim=1)
    assert torch.allclose(seen, chances, atol=0.01)  # four standard errors


def test_the_reinforce_estimate_is_unbiased() -> None:
    """The mean of many REINFORCE gradients is the gradient of the exact expectation, whatever the baseline."""
    generator = torch.Generator().manual_seed(1)
    losses, costs = torch.rand(5, 3, generator=generator).double(), torch.rand(5, 3, generator=generator).double()
    log_odds = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    (exact,) = torch.autograd.grad(expected(log_odds, losses, costs, 0.7), log_odds)
    rewards = policy.rewards_of(losses, costs, 0.7)
    tau = sample(log_odds, 60_000, generator)
    for baseline in (0.0, -1.3):
        surrogate = policy.surrogate(log_odds, tau, policy.at(rewards, tau) - baseline)
        (estimate,) = torch.autograd.grad(surrogate, log_odds)
        assert torch.allclose(estimate, exact, atol=2e-3)


def test_the_baseline_is_a_moving_average_of_the_batches_before() -> None:
    baseline = policy.MovingBaseline(0.9)
    assert baseline.advantage(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]
    assert baseline.advantage(torch.tensor([12.0])).tolist() == [10]
    assert baseline.advantage(torch.tensor([3.0])).tolist() == pytest.approx([0])


def test_the_sweep_of_alpha_traces_the_frontier() -> None:
    table = factories.table(n=3000)
    train, held_out = (stages_of(THREE, table.split(s), COSTS) for s in ("train", "test"))
    settings = Settings(hidden=8, steps=150)
    points = policy.sweep(train, held_out, [0.0, 0.3, 3.0, 100.0], settings=settings)
    costs = [p.held_out.cost for p in points]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == COSTS["small"]
    assert points[0].held_out.accuracy > points[-1].held_out.accuracy + 0.05


def test_the_unit_of_cost_changes_nothing() -> None:
    table = factories.table(n=400)
    dollars = stages_of(TWO, table, {m: c * 1e-6 for m, c in COSTS.items()})
    flops = stages_of(TWO, table, {m: c * 1e9 for m, c in COSTS.items()})
    settings = Settings(hidden=4, steps=60)
    first, second = (policy.train(s, 0.3, settings=settings) for s in (dollars, flops))
    assert (stops_of_two(first, dollars) == stops_of_two(second, flops)).all()
    assert deployed(first, dollars).relative_cost == pytest.approx(deployed(second, flops).relative_cost)


def stops_of_two(trained: object, stages: Stages) -> np.ndarray:
    score: np.ndarray = trained.gates[0](stages.outputs[0]).score  # type: ignore[attr-defined]
    return score >= HARD


def test_with_zero_one_loss_the_exact_policy_is_the_cost_aware_gate() -> None:
    stages = stages_of(TWO, factories.table(n=400), COSTS)
    settings = Settings(hidden=4, steps=60)
    stop = policy.train(stages, 0.3, loss="zero_one", settings=settings)
    gate = gates.train(stages, 0.3, settings=settings)
    assert stop.objective == gate.objective
    assert (stop.gates[0](stages.outputs[0]).score == gate.gates[0](stages.outputs[0]).score).all()


def test_refusals() -> None:
    stages = stages_of(TWO, factories.table(n=40), COSTS)
    with pytest.raises(InvalidInput, match="trainer: must be one of exact, reinforce, got adam"):
        policy.train(stages, 1, trainer="adam")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="trade: must be a number >= 0"):
        policy.train(stages, float("nan"))
    with pytest.raises(InvalidInput, match="costs: must be 2 positive numbers.*or as many for every item"):
        Stages(stages.outputs, stages.labels, np.ones((7, 2)))
