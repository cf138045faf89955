"""Classifiers and stop policy trained together (Guan et al., arXiv 1710.03368, IJCAI 2018), in the paper's own form.

The paper's: K classifiers of rising depth, visited in order; a stopping policy that reads the class probabilities p_t of
the classifier just visited; the answer is that of the classifier where it stops; the reward is minus the loss there,
minus alpha times the FLOPs of every classifier visited, F_j relative to the last one's; all of it trained together by
REINFORCE. For stopping times tau drawn from the policy the gradient followed is that of

    (R(tau) - b) * sum_{t <= tau} log P(a_t | p_t)   -   loss(y, p_tau)

Our reading: the first term also reaches the classifiers through p_t, as the gradient of the expected reward does; b is a
moving average of rewards; every stage has a policy of its own, one hidden layer of tanh; the first epochs train all
classifiers alike without a policy, since one that hardly stops at a deep classifier never trains it
(`warmup_epochs=0` leaves this out); the policy is deployed without chance, stopping where pi >= 0.5. With
``trainer="exact"`` the same expected reward is differentiated as the finite sum it is; that is ours as well.

A policy trained on the items that its classifiers were trained on finds them easier than others will be. `record` gives
the outputs of the trained classifiers as `Stages`, so `coe.learned.policy.train` can fit the policy anew on other items.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from coe.cascade.decide import settle
from coe.errors import InvalidInput, Problem
from coe.learned.features import PAPER
from coe.learned.gate_rule import HARD
from coe.learned.policy import TRAINERS, MovingBaseline, Trainer, at, rewards_of, surrogate
from coe.learned.stages import StagedGates, Stages, TradeOff, deployed
from coe.learned.stopping import (
    Net,
    Progress,
    check_trade,
    expected,
    gate_of,
    generator_of,
    groups_of,
    log_odds_of,
    new_net,
    no_progress,
    sample,
)
from coe.learned.stopping import Settings as PolicySettings
from coe.table import Outputs
from coe.types import IntArray

Images = NDArray[Any]
"""(items, *shape) floating point numbers."""

PREDICTION_BATCH = 1024


@dataclass(frozen=True)
class Settings:
    """How classifiers and policy are trained together."""

    epochs: int = 20
    warmup_epochs: int = 5
    """Of `epochs`, those at the start that train all classifiers alike and no policy."""
    batch_items: int = 64
    learning_rate: float = 3e-3
    policy_learning_rate: float = 1e-2
    policy_hidden: int = 16
    weight_decay: float = 1e-4
    rollouts: int = 4
    """Stopping times drawn per item and step, by REINFORCE alone."""
    baseline_decay: float = 0.9
    device: str = "cpu"
    seed: int = 0


DEFAULTS = Settings()


@dataclass(frozen=True, eq=False)
class Joint:
    """Trained classifiers, in evaluation mode, and their stop policies.

    policies: one gate per classifier but the last, over its class probabilities.      costs: FLOPs, or what was given.
    rewards: mean reward of every epoch after the warm-up, as trained.
    """

    networks: tuple[nn.Module, ...]
    policies: StagedGates
    costs: tuple[float, ...]
    rewards: tuple[float, ...]

    def answer(self, x: Images) -> tuple[IntArray, IntArray]:
        """(items,) class and (items,) stage that gave it; a classifier sees only the items that reach it."""
        answers, tau = np.full(len(x), -1, dtype=np.int64), np.zeros(len(x), dtype=np.int64)
        waiting = np.arange(len(x))
        for stage, network in enumerate(self.networks):
            if not len(waiting):
                break
            outputs = _outputs(network, x[waiting])
            stop = np.ones(len(waiting), dtype=np.bool_)
            if stage < len(self.networks) - 1:
                stop = settle(self.policies.gates[stage](outputs), HARD, outputs).accepted
            answers[waiting[stop]], tau[waiting[stop]] = outputs.answers[stop, 0], stage
            waiting = waiting[~stop]
        return answers, tau


@dataclass(frozen=True, eq=False)
class JointPoint:
    """One point of a curve: what was trained at one alpha, and what it does on held-out items."""

    joint: Joint
    held_out: TradeOff


def train(
    networks: Sequence[nn.Module],
    x: Images,
    y: IntArray,
    trade: float,
    *,
    costs: Sequence[float] | None = None,
    trainer: Trainer = "reinforce",
    settings: Settings = DEFAULTS,
    progress: Progress = no_progress,
) -> Joint:
    """Train copies of `networks` (images to logits, cheapest first) and a stop policy on x (items, *shape), y (items,).

    `costs` are per item and visit, by default the FLOPs of a forward pass; `trade` is alpha. The same arguments give the
    same result, and torch's global random state is left as it was. Raises `InvalidInput` for fewer than two networks,
    costs or labels that do not fit, an unknown trainer, a negative trade.
    """
    prices = tuple(costs) if costs is not None else tuple(flops(network, x[:1]) for network in networks)
    _check(networks, x, y, prices, trade, trainer)
    with _seeded(settings.seed, settings.device) as generator:
        run = _Run(networks, prices, trade, trainer, _classes(networks[0], x, settings.device), settings, generator)
        rewards = run.all_epochs(_tensor(x, settings.device), torch.as_tensor(y, device=settings.device), progress)
    for network in run.networks:
        network.eval()
    method = f"joint {trainer}"
    said = [_outputs(network, x[:1]) for network in run.networks[:-1]]
    gates = tuple(gate_of(net, PAPER, o, method, trade) for net, o in zip(run.policies, said, strict=True))
    policies = StagedGates(gates, method, trade, -rewards[-1] if rewards else float("nan"), len(x))
    return Joint(tuple(run.networks), policies, prices, tuple(rewards))


def curve(
    make_networks: Callable[[], Sequence[nn.Module]],
    x: Images,
    y: IntArray,
    held_out: tuple[Images, IntArray],
    trades: Sequence[float],
    *,
    costs: Sequence[float] | None = None,
    trainer: Trainer = "reinforce",
    settings: Settings = DEFAULTS,
    progress: Progress = no_progress,
) -> tuple[JointPoint, ...]:
    """Trained from the same start at every alpha, judged on held-out images and labels, in the order given."""
    result: list[JointPoint] = []
    for trade in trades:
        with _seeded(settings.seed, "cpu"):
            networks = make_networks()
        done = len(result) * settings.epochs
        within = partial(_shifted, progress, done, len(trades) * settings.epochs)
        joint = train(networks, x, y, trade, costs=costs, trainer=trainer, settings=settings, progress=within)
        result.append(JointPoint(joint, deployed(joint.policies, record(joint, *held_out))))
    return tuple(result)


def _shifted(progress: Progress, before: int, total: int, done: int, _of: int) -> None:
    progress(before + done, total)


def record(joint: Joint, x: Images, y: IntArray) -> Stages:
    """What every classifier says about every item, whether or not it would be asked."""
    return Stages(tuple(_outputs(network, x) for network in joint.networks), y, np.array(joint.costs))


def flops(network: nn.Module, item: Images) -> float:
    """Floating point operations of a forward pass over one item (1, *shape): matrix products and convolutions."""
    counter = FlopCounterMode(display=False)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    copied = copy.deepcopy(network).eval()
    with torch.no_grad(), counter:
        copied(_tensor(item, device))
    return float(counter.get_total_flops())


# --- Training ---------------------------------------------------------------------------------------------------------


class _Run:
    """One training: copies of the networks, new policies, and their optimiser."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        costs: Sequence[float],
        trade: float,
        trainer: Trainer,
        classes: int,
        settings: Settings,
        generator: torch.Generator,
    ) -> None:
        self.networks = [copy.deepcopy(network).to(settings.device).train() for network in networks]
        self.classes = classes
        self.policies = [self._policy(settings, generator) for _ in networks[:-1]]
        relative = [[cost / costs[-1] for cost in costs]]
        self._costs = torch.tensor(relative, dtype=torch.float64, device=settings.device)
        self._trade, self._trainer, self._settings, self._generator = trade, trainer, settings, generator
        self._baseline = MovingBaseline(settings.baseline_decay)
        weights = [p for network in self.networks for p in network.parameters()]
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": settings.weight_decay}]
        own = PolicySettings(weight_decay=settings.weight_decay)
        groups += [{**group, "lr": settings.policy_learning_rate} for group in groups_of(self.policies, own)]
        self._optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate)

    def _policy(self, settings: Settings, generator: torch.Generator) -> Net:
        plain = np.zeros(self.classes), np.ones(self.classes)
        return new_net(*plain, settings.policy_hidden, generator)

    def all_epochs(self, x: Tensor, y: Tensor, progress: Progress) -> list[float]:
        """Mean reward per epoch after the warm-up."""
        settings, rewards = self._settings, []
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, T_max=max(1, settings.epochs))
        for epoch in range(settings.epochs):
            total = 0.0
            order = torch.randperm(len(x), generator=self._generator, device=x.device)
            for rows in order.split(settings.batch_items):
                total += self._step(x[rows], y[rows], epoch < settings.warmup_epochs) * len(rows)
            if epoch >= settings.warmup_epochs:
                rewards.append(total / len(x))
            schedule.step()
            progress(epoch + 1, settings.epochs)
        return rewards

    def _step(self, x: Tensor, y: Tensor, warmup: bool) -> float:
        """One step of the optimiser; the expected reward of the batch before it."""
        log_odds, losses = self._said(x, y)
        objective = losses.mean() if warmup else self._objective(log_odds, losses)
        self._optimiser.zero_grad()
        objective.backward()
        self._optimiser.step()
        return -float(expected(log_odds.detach(), losses.detach(), self._costs, self._trade))

    def _said(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(items, stages - 1) log-odds of stopping, and (items, stages) log losses."""
        log_probs = torch.stack([functional.log_softmax(net(x), dim=1) for net in self.networks], dim=1)
        losses = -log_probs.gather(2, y[:, None, None].expand(-1, len(self.networks), 1)).squeeze(2).double()
        chances = log_probs.exp().double()
        return log_odds_of(self.policies, [chances[:, t] for t in range(len(self.policies))]), losses

    def _objective(self, log_odds: Tensor, losses: Tensor) -> Tensor:
        """A scalar whose gradient is minus that of the expected reward, or of REINFORCE's estimate of it."""
        if self._trainer == "exact":
            return expected(log_odds, losses, self._costs, self._trade)
        tau = sample(log_odds, self._settings.rollouts, self._generator)
        rewards = rewards_of(losses.detach(), self._costs, self._trade)
        advantage = self._baseline.advantage(at(rewards, tau))
        return surrogate(log_odds, tau, advantage) + at(losses, tau).mean()


def _outputs(network: nn.Module, x: Images) -> Outputs:
    """Answers and softmax probabilities of one network, as one member."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    parts = []
    with torch.inference_mode():
        for part in _tensor(x, device).split(PREDICTION_BATCH):
            parts.append(functional.softmax(network(part), dim=1).cpu())
    probs = torch.cat(parts).numpy()[:, None, :]
    return Outputs(probs.argmax(axis=2).astype(np.int64), probs)


def _tensor(x: Images, device: torch.device | str) -> Tensor:
    # a copy, since torch does not take read-only arrays
    return torch.tensor(np.asarray(x, dtype=np.float32), device=device)


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[torch.Generator]:
    """A generator; and torch's own on the CPU and this device, seeded inside and put back as they were afterwards."""
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if on_gpu else []), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield generator_of(seed, device)


def _classes(network: nn.Module, x: Images, device: str) -> int:
    copied = copy.deepcopy(network).to(device).eval()
    with torch.no_grad():
        return int(copied(_tensor(x[:1], device)).shape[1])


def _check(
    networks: Sequence[nn.Module], x: Images, y: IntArray, costs: Sequence[float], trade: float, trainer: str
) -> None:
    check_trade(trade)
    problems = []
    if trainer not in TRAINERS:
        problems.append(Problem("trainer", f"must be one of {', '.join(TRAINERS)}", trainer))
    if len(networks) < 2:
        problems.append(Problem("networks", "must be at least two, cheapest first", str(len(networks))))
    if len(costs) != len(networks) or not all(np.isfinite(c) and c > 0 for c in costs):
        problems.append(Problem("costs", f"must be {len(networks)} positive numbers", str(tuple(costs))))
    if len(x) == 0 or y.shape != (len(x),):
        problems.append(Problem("y", f"must hold a label for each of {len(x)} items, at least one", str(y.shape)))
    if problems:
        raise InvalidInput(problems)
