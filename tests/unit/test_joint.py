"""Classifiers and stop policy trained together: gradients of the whole reward, what is learned, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.learned.stages import deployed

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # such small steps only lose by sharing

from torch import nn  # noqa: E402  # needs torch

from coe.learned import joint  # noqa: E402
from coe.learned.joint import Settings, flops, record, train  # noqa: E402
from coe.learned.policy import Trainer  # noqa: E402

QUICK = Settings(epochs=16, warmup_epochs=6, batch_items=40, learning_rate=0.05, policy_learning_rate=0.03)


def make_networks() -> list[nn.Module]:
    """One that sees lines only, and one that can bend."""
    return [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))]


def banded(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that a line separates, but for a band in which they have changed places."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 2)).astype(np.float32)
    y = (x[:, 1] > 0) ^ (np.abs(x[:, 1]) < 0.6)
    return x, y.astype(np.int64)


def networks() -> Sequence[nn.Module]:
    torch.manual_seed(0)
    return make_networks()


@pytest.mark.parametrize("trainer", ["reinforce", "exact"])
def test_alpha_trades_accuracy_for_operations_and_items_stop_where_they_are_easy(trainer: Trainer) -> None:
    data, held_out = banded(800, 0), banded(800, 1)
    points = joint.curve(make_networks, *data, held_out, [0.0, 0.3, 3.0], trainer=trainer, settings=QUICK)
    none, some, much = (p.held_out for p in points)
    assert much.reach[1] == 0
    assert 0 < some.reach[1] < 1
    assert none.accuracy > much.accuracy + 0.05
    assert some.accuracy > much.accuracy + 0.05
    small, large = record(points[1].joint, *held_out).accuracy
    assert some.accuracy > small + 0.05
    assert some.accuracy > large - 0.05


def test_the_reward_grows_and_training_repeats_itself() -> None:
    x, y = banded(400, 0)
    before = torch.random.get_rng_state()
    first, second = (train(networks_at_seed(), x, y, 0.1, settings=QUICK) for _ in range(2))
    assert first.rewards == second.rewards
    assert first.rewards[-1] > first.rewards[0]
    assert len(first.rewards) == QUICK.epochs - QUICK.warmup_epochs
    assert first.policies.items == 400
    torch.random.set_rng_state(before)


def networks_at_seed() -> Sequence[nn.Module]:
    with torch.random.fork_rng():
        return networks()


def test_training_leaves_the_given_networks_and_global_randomness_alone() -> None:
    x, y = banded(60, 0)
    given = networks_at_seed()
    kept = [p.detach().clone() for n in given for p in n.parameters()]
    state = torch.random.get_rng_state()
    train(given, x, y, 0.1, settings=Settings(epochs=2, warmup_epochs=0))
    assert (torch.random.get_rng_state() == state).all()
    assert all((a == b).all() for a, b in zip(kept, (p for n in given for p in n.parameters()), strict=True))


def test_reinforce_follows_the_gradient_of_the_expected_reward_for_classifiers_and_policies() -> None:
    """Averaged over many samples the surrogate's gradient is that of the finite sum, for every parameter there is."""
    x, y = banded(6, 0)
    settings = Settings(rollouts=120_000)
    run = joint._Run(networks_at_seed(), (1.0, 3.0), 0.4, "reinforce", 2, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from the start, where the policy is blind
        for weight in run.policies[0].weights:
            weight.normal_(generator=torch.Generator().manual_seed(2))
    parameters = [p for n in run.networks for p in n.parameters()] + list(run.policies[0].weights)

    def gradient(trainer: Trainer) -> list[torch.Tensor]:
        run._trainer = trainer
        log_odds, losses = run._said(torch.tensor(x), torch.tensor(y))
        return list(torch.autograd.grad(run._objective(log_odds, losses), parameters))

    for exact, estimate in zip(gradient("exact"), gradient("reinforce"), strict=True):
        assert torch.allclose(exact, estimate, atol=5e-3)
    assert max(float(g.abs().max()) for g in gradient("exact")) > 0.05


def test_answers_one_by_one_are_those_of_the_recorded_stages() -> None:
    x, y = banded(300, 0)
    trained = train(networks_at_seed(), x, y, 0.3, settings=QUICK)
    held_x, held_y = banded(200, 5)
    answers, stage = trained.answer(held_x)
    told = deployed(trained.policies, record(trained, held_x, held_y))
    assert (answers == held_y).mean() == told.accuracy
    assert (stage >= 1).mean() == told.reach[1]
    single = [trained.answer(held_x[i : i + 1]) for i in range(20)]
    assert [int(a[0]) for a, _ in single] == answers[:20].tolist()


def test_operations_are_counted_as_by_hand() -> None:
    item = np.zeros((1, 3, 8, 8), dtype=np.float32)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 10))
    assert flops(network, item) == 2 * (64 * 5 * 3 * 9) + 2 * (320 * 10)


def test_costs_may_be_given_and_progress_is_told() -> None:
    x, y = banded(60, 0)
    told: list[tuple[int, int]] = []
    settings = Settings(epochs=2, warmup_epochs=1)

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    trained = train(networks_at_seed(), x, y, 0.1, costs=(2e-6, 9e-6), settings=settings, progress=progress)
    assert trained.costs == (2e-6, 9e-6)
    assert told == [(1, 2), (2, 2)]
    told.clear()
    joint.curve(make_networks, x, y, (x, y), [0.0, 1.0], settings=settings, progress=progress)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_refusals_come_together() -> None:
    x, y = banded(20, 0)
    with pytest.raises(InvalidInput, match=r"(?s)networks: must be at least two.*costs.*y: must hold a label"):
        train(networks_at_seed()[:1], x, y[:7], 0.1, costs=(0.0,))
