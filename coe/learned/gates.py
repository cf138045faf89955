"""IDK cascades (Wang et al., arXiv 1706.00885, UAI 2018): small networks that say "I don't know".

Base models are left as they are. The gate of stage k reads the stage's outputs and gives h, its score for passing the
item on; at inference it is hardened: the stage answers where h <= 0.5. Two ways to train it:

cost_aware      min_a  (1/n) sum_i [ L(y_i, casc_a(x_i)) + lambda C(casc_a(x_i)) ], expanded with the soft gates as
                q_1 = 1, q_{k+1} = q_k h_k,  L = sum_k q_k (1 - h_k) l(y, m_k),  C = sum_k q_k c_k,  h_K = 0.
cross_entropy   the paper's cost-oblivious yardstick: binary cross-entropy of h_k against "model k is wrong".

The objective's form and the hardening are the paper's. Our reading: l is 0 or 1 (`loss="log"` takes the log loss); costs
are relative to the last stage's; under cross_entropy every gate is trained on all items, whether or not they would reach
it; features are summaries of the outputs (`features=PAPER` gives the bare distribution); all gates are trained
together by Adam. Ensembles may stand in for single models at every stage.

Hardened gates carry no guarantee: turn them into a cascade (`coe.learned.stages.cascade_of`), calibrate and certify it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from coe.errors import InvalidInput, Problem
from coe.learned.stages import Judge, Loss, Point, StagedGates, Stages, TradeOff, deployed
from coe.learned.stopping import (
    DEFAULTS,
    Progress,
    Settings,
    check_trade,
    expected,
    fit,
    generator_of,
    log_odds_of,
    no_progress,
    prepared,
)

Objective = Literal["cost_aware", "cross_entropy"]
OBJECTIVES: tuple[Objective, ...] = ("cost_aware", "cross_entropy")


def cross_entropy(log_odds: Tensor, wrong: Tensor) -> Tensor:
    """The cost-oblivious objective: log-odds of answering (items, stages - 1) against stages that are `wrong` there."""
    return functional.binary_cross_entropy_with_logits(-log_odds, wrong, reduction="none").sum(dim=1).mean()


def train(
    stages: Stages,
    trade: float,
    *,
    objective: Objective = "cost_aware",
    loss: Loss = "zero_one",
    features: Sequence[str] | None = None,
    settings: Settings = DEFAULTS,
    progress: Progress = no_progress,
) -> StagedGates:
    """Gates for all stages but the last, trained on the items that have every vote.

    `trade` is lambda: how much loss a visit to the last stage is worth; cross_entropy ignores it but for the record.
    The same arguments give the same gates. Raises `InvalidInput` for an unknown objective, a negative trade, and where no
    item has every vote.
    """
    if objective not in OBJECTIVES:
        raise InvalidInput(Problem("objective", f"must be one of {', '.join(OBJECTIVES)}", objective))
    check_trade(trade)
    data = prepared(stages, features)
    losses, costs = torch.tensor(data.stages.losses(loss)), torch.tensor(data.stages.relative_costs)
    wrong = torch.tensor(~data.stages.right[:, :-1], dtype=torch.float64)

    def price(log_odds: Tensor, rows: Tensor) -> Tensor:
        if objective == "cross_entropy":
            return cross_entropy(log_odds, wrong[rows])
        return expected(log_odds, losses[rows], costs[rows], trade)

    generator = generator_of(settings.seed)
    nets = data.nets(settings, generator)
    fit(nets, data, price, settings, generator, progress)
    with torch.no_grad():
        final = float(price(log_odds_of(nets, data.features), torch.arange(len(data.stages))))
    method = f"idk {objective}"
    return StagedGates(data.gates(nets, method, trade), method, trade, final, len(data.stages))


def sweep(
    stages: Stages,
    held_out: Stages,
    trades: Sequence[float],
    *,
    loss: Loss = "zero_one",
    features: Sequence[str] | None = None,
    settings: Settings = DEFAULTS,
) -> tuple[Point, ...]:
    """The trade-off curve of the cost-aware objective: trained at every lambda, judged on `held_out`, in the order given."""
    result = []
    for trade in trades:
        gates = train(stages, trade, loss=loss, features=features, settings=settings)
        result.append(Point(gates, deployed(gates, held_out)))
    return tuple(result)


def bar_sweep(gates: StagedGates, held_out: Stages, bars: Sequence[float]) -> tuple[TradeOff, ...]:
    """The trade-off curve of gates as they are: every stage answers where its score reaches the bar, for each bar.

    This is how cross_entropy gates, which know no cost, trade accuracy for it; at 0.5 they are hardened as in the paper.
    """
    judge = Judge(gates.gates, held_out)
    return tuple(judge.at([bar] * len(gates.gates)) for bar in bars)
