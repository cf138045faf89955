"""Stop policies over recorded outputs (after Guan et al., arXiv 1710.03368, IJCAI 2018).

Classifiers are visited in order. After each the policy reads its outputs and stops with probability pi, or goes on; the
last one always stops. Costs accumulate: a stop at tau pays for every classifier visited. Maximised is the mean of

    E_tau [ R(tau) ],   R(tau) = -loss(y, p_tau) - alpha * sum_{j <= tau} F_j,   F relative to the last classifier's

Classifiers stay as they are here; `coe.learned.joint` trains them along. F is any cost: FLOPs as in the paper, joules
(measured power x time) or dollars. Two trainers that aim at the same optimum:

exact        the expectation over the few stopping times is a finite sum: backpropagation through it, without variance
reinforce    as in the paper: stopping times are drawn, and grad log P(tau) * (R(tau) - b) is followed, with b a moving
             average of the rewards

Deployed without chance: stop where pi >= 0.5. The reward's form is the paper's; the moving-average baseline, the
deterministic deployment and one policy of its own per stage are our reading. `features=PAPER` reads the class
probabilities, as the paper does; the default reads summaries of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from coe.errors import InvalidInput, Problem
from coe.learned.stages import Loss, Point, StagedGates, Stages, deployed
from coe.learned.stopping import (
    DEFAULTS,
    Progress,
    Settings,
    check_trade,
    expected,
    fit,
    generator_of,
    log_odds_of,
    log_probability,
    no_progress,
    prepared,
    sample,
)

Trainer = Literal["exact", "reinforce"]
TRAINERS: tuple[Trainer, ...] = ("exact", "reinforce")


class MovingBaseline:
    """The moving average of rewards that REINFORCE compares with; the first batch's mean to begin with."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._value: Tensor | None = None

    def advantage(self, rewards: Tensor) -> Tensor:
        """Rewards less the average of the batches before; then this batch joins it."""
        mean = rewards.detach().mean()
        before = mean if self._value is None else self._value
        self._value = self._decay * before + (1 - self._decay) * mean
        return rewards - before


def surrogate(log_odds: Tensor, tau: Tensor, advantage: Tensor) -> Tensor:
    """A scalar whose gradient is minus the REINFORCE estimate; tau and advantage are (rollouts, items)."""
    return -(log_probability(log_odds, tau) * advantage.detach()).mean()


def at(values: Tensor, tau: Tensor) -> Tensor:
    """(rollouts, items): of values (items, stages) those at the stopping times tau (rollouts, items)."""
    return values.expand(len(tau), -1, -1).gather(2, tau[:, :, None]).squeeze(2)


def rewards_of(losses: Tensor, costs: Tensor, trade: float) -> Tensor:
    """(items, stages) R(tau) for a stop at every stage, from losses and relative costs, each of that shape."""
    return -losses - trade * costs.cumsum(dim=1)


def train(
    stages: Stages,
    trade: float,
    *,
    trainer: Trainer = "exact",
    loss: Loss = "log",
    features: Sequence[str] | None = None,
    settings: Settings = DEFAULTS,
    progress: Progress = no_progress,
) -> StagedGates:
    """Stop policies for all stages but the last, trained on the items that have every vote.

    `trade` is alpha: how much loss a visit to the last stage is worth. The same arguments give the same policies. Raises
    `InvalidInput` for an unknown trainer, a negative trade, and where no item has every vote.
    """
    if trainer not in TRAINERS:
        raise InvalidInput(Problem("trainer", f"must be one of {', '.join(TRAINERS)}", trainer))
    check_trade(trade)
    data = prepared(stages, features)
    losses, costs = torch.tensor(data.stages.losses(loss)), torch.tensor(data.stages.relative_costs)
    rewards = rewards_of(losses, costs, trade)
    baseline = MovingBaseline(settings.baseline_decay)

    generator = generator_of(settings.seed)

    def price(log_odds: Tensor, rows: Tensor) -> Tensor:
        if trainer == "exact":
            return expected(log_odds, losses[rows], costs[rows], trade)
        tau = sample(log_odds, settings.rollouts, generator)
        return surrogate(log_odds, tau, baseline.advantage(at(rewards[rows], tau)))

    nets = data.nets(settings, generator)
    fit(nets, data, price, settings, generator, progress)
    with torch.no_grad():
        final = float(expected(log_odds_of(nets, data.features), losses, costs, trade))
    method = f"stop policy {trainer}"
    return StagedGates(data.gates(nets, method, trade), method, trade, final, len(data.stages))


def sweep(
    stages: Stages,
    held_out: Stages,
    trades: Sequence[float],
    *,
    trainer: Trainer = "exact",
    loss: Loss = "log",
    features: Sequence[str] | None = None,
    settings: Settings = DEFAULTS,
) -> tuple[Point, ...]:
    """The trade-off curve: trained at every alpha, deployed deterministically on `held_out`, in the order given."""
    result = []
    for trade in trades:
        policy = train(stages, trade, trainer=trainer, loss=loss, features=features, settings=settings)
        result.append(Point(policy, deployed(policy, held_out)))
    return tuple(result)
