"""The torch half that gates and policies share: small networks, and the distribution of the stage that answers.

At every stage but the last a network gives z, the log-odds of answering there. With pi = sigmoid(z), and pi = 1 at the
last stage,

    reach_1 = 1      reach_{t+1} = reach_t (1 - pi_t)      P(tau = t) = reach_t pi_t

An IDK gate is h = 1 - pi, so this is the q_{k+1} = q_k h_k of IDK cascades and the stopping time of a stop policy alike;
and with base models that stay as they are, the cost-aware objective of the one is the expected reward of the other:

    J = mean_i  sum_t P(tau_i = t) loss_it  +  trade * sum_t reach_it cost_it

Everything is in double precision, so that numpy gives the same decisions from the saved weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coe.errors import InvalidInput, Problem
from coe.learned.features import default_features, matrix
from coe.learned.gate_rule import Gate, form
from coe.learned.stages import Stages
from coe.table import Outputs
from coe.types import FloatArray


@dataclass(frozen=True)
class Settings:
    """How gates and policies are trained; the defaults take seconds on one core."""

    hidden: int = 16
    """Width of the one hidden layer; 0 for a linear gate."""
    steps: int = 400
    learning_rate: float = 0.03
    weight_decay: float = 1e-4
    """Of weights, not of biases."""
    batch_items: int = 4096
    """Steps use all items, or as many as this drawn at random."""
    rollouts: int = 8
    """Stopping times drawn per item and step, by REINFORCE alone."""
    baseline_decay: float = 0.9
    """Of the moving average of rewards, by REINFORCE alone."""
    seed: int = 0


DEFAULTS = Settings()

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""


def no_progress(_done: int, _total: int) -> None:
    """Tell nobody."""


# --- Networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Net:
    """A gate in torch: (items, columns) of double precision features to (items,) log-odds of answering."""

    mean: Tensor
    scale: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __call__(self, features: Tensor) -> Tensor:
        x = (features - self.mean) / self.scale
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.tanh(functional.linear(x, weight, bias))
        return functional.linear(x, self.weights[-1], self.biases[-1]).squeeze(1)


def new_net(mean: FloatArray, scale: FloatArray, hidden: int, generator: torch.Generator) -> Net:
    """A net that stops with probability 1/2 everywhere: every stage is visited when training starts."""
    device = generator.device
    widths = [len(mean), hidden, 1] if hidden else [len(mean), 1]
    weights, biases = [], []
    for inputs, outputs in pairwise(widths):
        bound = (6 / (inputs + outputs)) ** 0.5 if outputs != 1 else 0.0
        uniform = torch.rand(outputs, inputs, generator=generator, dtype=torch.float64, device=device)
        weights.append(((2 * uniform - 1) * bound).requires_grad_())
        biases.append(torch.zeros(outputs, dtype=torch.float64, device=device).requires_grad_())
    fixed = [torch.tensor(np.asarray(a), dtype=torch.float64, device=device) for a in (mean, scale)]
    return Net(fixed[0], fixed[1], tuple(weights), tuple(biases))


def gate_of(net: Net, features: tuple[str, ...], outputs: Outputs, method: str, trade: float) -> Gate:
    """The frozen numpy form of a net trained on such outputs."""

    def array(tensor: Tensor) -> FloatArray:
        result: FloatArray = tensor.detach().cpu().numpy().astype(np.float64)
        return result

    layers = tuple((array(w), array(b)) for w, b in zip(net.weights, net.biases, strict=True))
    members, (classes, top_k) = outputs.answers.shape[1], form(outputs)
    return Gate(features, array(net.mean), array(net.scale), layers, members, classes, top_k, method, trade)


def groups_of(nets: Sequence[Net], settings: Settings) -> list[dict[str, object]]:
    """Parameter groups for an optimiser: weights decay, biases do not."""
    return [
        {"params": [w for net in nets for w in net.weights], "weight_decay": settings.weight_decay},
        {"params": [b for net in nets for b in net.biases], "weight_decay": 0.0},
    ]


# --- The stopping time ------------------------------------------------------------------------------------------------


def reach(log_odds: Tensor) -> Tensor:
    """(items, stages) probability of visiting each stage, from (items, stages - 1) log-odds of answering."""
    passed = torch.cumprod(torch.sigmoid(-log_odds), dim=1)
    return torch.cat([torch.ones_like(passed[:, :1]), passed], dim=1)


def stopping(log_odds: Tensor) -> Tensor:
    """(items, stages) probability that each stage is the one that answers; rows add up to 1."""
    answer = torch.cat([torch.sigmoid(log_odds), torch.ones_like(log_odds[:, :1])], dim=1)
    return reach(log_odds) * answer


def expected(log_odds: Tensor, losses: Tensor, costs: Tensor, trade: float) -> Tensor:
    """J above, exactly: a scalar from losses and relative costs, each (items, stages)."""
    return (stopping(log_odds) * losses + trade * reach(log_odds) * costs).sum(dim=1).mean()


def log_probability(log_odds: Tensor, tau: Tensor) -> Tensor:
    """(rollouts, items) log P(tau) of stopping times tau (rollouts, items), stages counted from 0.

    It is the sum over the visited stages of the log-probability of what was done there.
    """
    passed = functional.pad(functional.logsigmoid(-log_odds).cumsum(dim=1), (1, 0))
    stopped = functional.pad(functional.logsigmoid(log_odds), (0, 1))
    return (passed + stopped).expand(len(tau), -1, -1).gather(2, tau[:, :, None]).squeeze(2)


def sample(log_odds: Tensor, rollouts: int, generator: torch.Generator) -> Tensor:
    """(rollouts, items) stopping times drawn from the policy."""
    with torch.no_grad():
        chances = torch.sigmoid(log_odds)
        drawn = torch.rand((rollouts, *chances.shape), generator=generator, dtype=chances.dtype, device=chances.device)
        # the last stage always stops, so argmax finds the first stage that does
        stops = functional.pad((drawn < chances).to(torch.int8), (0, 1), value=1)
        return stops.argmax(dim=2)


# --- Training on recorded stages --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prepared:
    """Training data as tensors: features of each gated stage, and the stages they come from (complete items only)."""

    stages: Stages
    names: tuple[tuple[str, ...], ...]
    features: tuple[Tensor, ...]

    def nets(self, settings: Settings, generator: torch.Generator) -> tuple[Net, ...]:
        """A new net for every gated stage, standardised on these items."""
        return tuple(_standardised(x.numpy(), settings, generator) for x in self.features)

    def gates(self, nets: Sequence[Net], method: str, trade: float) -> tuple[Gate, ...]:
        """The nets as frozen gates."""
        result = []
        for net, names, outputs in zip(nets, self.names, self.stages.outputs[:-1], strict=True):
            result.append(gate_of(net, names, outputs, method, trade))
        return tuple(result)


def prepared(stages: Stages, features: Sequence[str] | None) -> Prepared:
    """Features of the items on which every member of every stage voted; None for the default features.

    Raises `InvalidInput` where there is no such item.
    """
    if not stages.complete.any():
        raise InvalidInput(Problem("stages", "no item has the votes of all members", remedy="run `coe predict` again"))
    whole = stages.rows(stages.complete)
    names = tuple(tuple(features) if features is not None else default_features(o) for o in whole.outputs[:-1])
    columns = [torch.tensor(matrix(o, n)) for o, n in zip(whole.outputs[:-1], names, strict=True)]
    return Prepared(whole, names, tuple(columns))


def _standardised(x: FloatArray, settings: Settings, generator: torch.Generator) -> Net:
    spread = x.std(axis=0)
    # columns that do not vary are left as they are; so are those that vary by rounding alone
    return new_net(x.mean(axis=0), np.where(spread > 1e-9, spread, 1.0), settings.hidden, generator)


def log_odds_of(nets: Sequence[Net], features: Sequence[Tensor]) -> Tensor:
    """(items, stages - 1) log-odds of answering."""
    return torch.stack([net(x) for net, x in zip(nets, features, strict=True)], dim=1)


def fit(
    nets: Sequence[Net],
    data: Prepared,
    objective: Callable[[Tensor, Tensor], Tensor],
    settings: Settings,
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> None:
    """Minimise ``objective(log_odds, rows)`` by Adam, its rate falling to 0 along a cosine; `nets` are changed.

    `log_odds` are those of the items `rows`: all of them, or `batch_items` drawn for this step.
    """
    items = len(data.stages)
    optimiser = torch.optim.AdamW(groups_of(nets, settings), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=max(1, settings.steps))
    everything = torch.arange(items)
    for step in range(settings.steps):
        progress(step, settings.steps)
        rows = everything
        if items > settings.batch_items:
            rows = torch.randint(items, (settings.batch_items,), generator=generator)
        optimiser.zero_grad()
        with torch.enable_grad():
            objective(log_odds_of(nets, [x[rows] for x in data.features]), rows).backward()
        optimiser.step()
        schedule.step()


def generator_of(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Randomness of its own; torch's global state is neither read nor changed."""
    return torch.Generator(device=device).manual_seed(seed)


def check_trade(trade: float) -> None:
    """Refuse a price of cost that is negative or not a number."""
    if not (np.isfinite(trade) and trade >= 0):
        rule = "must be a number >= 0: the price of relative cost in units of loss"
        raise InvalidInput(Problem("trade", rule, str(trade)))
