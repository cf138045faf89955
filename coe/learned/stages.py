"""The arrays that gates are trained and judged on, and what a row of trained gates becomes: a cascade. Numpy alone.

Stages are the tiers of a cascade with everything recorded: what its members said about every item, and what asking them
costs. A cost is a number per stage, or per item and stage, in any one unit: FLOPs, joules (measured power x time) or
dollars. A query pays for every stage it visits. Trainers weigh cost relative to the last stage's, so a trade (lambda or
alpha) of 0.1 says: one visit to the last stage is worth a tenth of an answer's loss, in whatever unit costs are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from coe.cascade.beliefs import given_to, rest
from coe.cascade.decide import settle
from coe.cascade.evaluate import check_against, for_table, tier_outputs
from coe.cascade.rules import Rule, rule_of
from coe.errors import InvalidInput, Problem
from coe.learned.gate_rule import HARD, Gate, answering, hashes, save
from coe.table import Outputs, PredictionTable
from coe.types import MISSING_VOTE, BoolArray, Cascade, FloatArray, IntArray, Tier

Loss = Literal["zero_one", "log"]
LOSSES: tuple[Loss, ...] = ("zero_one", "log")

_LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True, eq=False)
class Stages:
    """What every stage said about the same items, cheapest stage first.

    outputs: one per stage.      labels: (items,) class index.
    costs: (stages,) or (items, stages), of a visit to the stage, positive.
    last: the rule by which the last stage finds its answer; by default that of gated stages.
    """

    outputs: tuple[Outputs, ...]
    labels: IntArray
    costs: FloatArray
    last: Rule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", np.asarray(self.costs, dtype=np.float64))
        problems = []
        if len(self.outputs) < 2:
            problems.append(Problem("stages", "a cascade needs at least two", str(len(self.outputs))))
        shapes = ((len(self.outputs),), (len(self.labels), len(self.outputs)))
        if self.costs.shape not in shapes or not (np.isfinite(self.costs) & (self.costs > 0)).all():
            rule = f"must be {len(self.outputs)} positive numbers, one per stage, or as many for every item"
            found = str(self.costs.tolist()) if self.costs.size < 10 else f"shape {self.costs.shape}"
            problems.append(Problem("costs", rule, found))
        if self.labels.ndim != 1 or len(self.labels) == 0:
            problems.append(Problem("labels", "must have shape (items,), at least one", str(self.labels.shape)))
        for number, outputs in enumerate(self.outputs):
            if len(outputs.answers) != len(self.labels):
                rule = f"must be about the {len(self.labels)} labelled items"
                problems.append(Problem(f"stages[{number}]", rule, f"{len(outputs.answers)} items"))
        if problems:
            raise InvalidInput(problems)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def costs_per_item(self) -> FloatArray:
        """(items, stages): what a visit costs, in the unit given."""
        return np.broadcast_to(self.costs, (len(self), len(self.outputs)))

    @property
    def relative_costs(self) -> FloatArray:
        """(items, stages): costs as shares of the last stage's mean."""
        result: FloatArray = self.costs_per_item / float(self.costs_per_item[:, -1].mean())
        return result

    @cached_property
    def complete(self) -> BoolArray:
        """(items,): True where no stage lacks a vote."""
        whole = [(o.answers != MISSING_VOTE).all(axis=1) for o in self.outputs]
        return np.asarray(np.logical_and.reduce(whole), dtype=np.bool_)

    def rows(self, mask: BoolArray) -> Stages:
        """The items where `mask` holds."""
        costs = self.costs if self.costs.ndim == 1 else self.costs[mask]
        return replace(self, outputs=tuple(o.rows(mask) for o in self.outputs), labels=self.labels[mask], costs=costs)

    @cached_property
    def answers(self) -> IntArray:
        """(items, stages): what the stage answers if it does."""
        rules = [answering(o) for o in self.outputs[:-1]] + [self.last or answering(self.outputs[-1])]
        return np.stack([rule(o).answer for rule, o in zip(rules, self.outputs, strict=True)], axis=1)

    @cached_property
    def right(self) -> BoolArray:
        """(items, stages): where that is the label."""
        result: BoolArray = self.answers == self.labels[:, None]
        return result

    @property
    def accuracy(self) -> FloatArray:
        """(stages,): of every stage alone."""
        result: FloatArray = self.right.mean(axis=0)
        return result

    def losses(self, loss: Loss) -> FloatArray:
        """(items, stages): 1 for a wrong answer, or minus the log of the mean probability given to the label.

        A label outside a member's most probable classes has an even share of what those leave. Raises `InvalidInput`
        for the log loss of members that only answer, and for an unknown loss.
        """
        if loss not in LOSSES:
            raise InvalidInput(Problem("loss", f"must be one of {', '.join(LOSSES)}", loss))
        if loss == "zero_one":
            return (~self.right).astype(np.float64)
        given = np.stack([_given(o, self.labels) for o in self.outputs], axis=1)
        result: FloatArray = -np.log(np.maximum(given, _LEAST_PROBABILITY))
        return result


def _given(outputs: Outputs, labels: IntArray) -> FloatArray:
    """(items,): mean probability of the label over the members that voted; 0 where none did."""
    if outputs.probs is None:
        rule = "needs probabilities, and these members only answer"
        raise InvalidInput(Problem("loss 'log'", rule, remedy="take loss 'zero_one'"))
    voted = outputs.answers >= 0
    given = given_to(outputs, labels)
    if outputs.top is not None:
        listed = (outputs.top == labels[:, None, None]).any(axis=2)
        others = max(1, outputs.classes - outputs.top.shape[2])
        given = np.where(voted & ~listed, rest(outputs) / others, given)
    result: FloatArray = given.sum(axis=1) / np.maximum(voted.sum(axis=1), 1)
    return result


def stages_of(cascade: Cascade, table: PredictionTable, costs: Mapping[str, float]) -> Stages:
    """Stages from the members of a cascade's tiers, recorded predictions, and what a call of each member costs.

    The gates of the cascade do not matter; carried votes, temperatures and the last tier's rule do. Every member of a
    visited tier is paid for. Raises `InvalidInput` for members without predictions or without a cost.
    """
    lacking = sorted(set(cascade.members) - set(costs))
    if lacking:
        raise InvalidInput(Problem("costs", f"lack the members {', '.join(lacking)}", remedy="give a cost per call"))
    cascade = for_table(cascade, table)
    check_against(cascade, table)
    prices = np.array([float(sum(costs[m] for m in tier.members)) for tier in cascade.tiers])
    outputs = tuple(tier_outputs(cascade, number, table) for number in range(len(cascade.tiers)))
    return Stages(outputs, table.labels, prices, rule_of(cascade.tiers[-1]))


# --- Trained gates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StagedGates:
    """Gates of all stages but the last, trained together.

    trade: price of relative cost in units of loss.      objective: mean training objective at the end, gates soft.
    items: how many complete items they were trained on.
    """

    gates: tuple[Gate, ...]
    method: str
    trade: float
    objective: float
    items: int


@dataclass(frozen=True)
class TradeOff:
    """What gates do on a sample. Tuples have one entry per stage.

    bars: what each gate's score had to reach.     accuracy: share of right answers.
    cost: mean per item, in the unit of the costs given.      relative_cost: as a share of asking the last stage alone.
    reach: share of items that visit the stage, the first is 1.    accepted: share that it answers; they add up to 1.
    """

    bars: tuple[float, ...]
    items: int
    accuracy: float
    cost: float
    relative_cost: float
    reach: tuple[float, ...]
    accepted: tuple[float, ...]

    @property
    def idk_rate(self) -> tuple[float, ...]:
        """Share passed on among the items that visit the stage, 0 where none does; one entry per gated stage."""
        pairs = zip(self.reach[:-1], self.reach[1:], strict=True)
        return tuple(onward / here if here else 0.0 for here, onward in pairs)


@dataclass(frozen=True, eq=False)
class Point:
    """One point of a sweep: gates trained at one trade, and what they do on held-out items."""

    gates: StagedGates
    held_out: TradeOff


class Judge:
    """Rules of the gated stages on a sample, scored once, to be judged at any bars."""

    def __init__(self, rules: Sequence[Rule], stages: Stages) -> None:
        if len(rules) != len(stages.outputs) - 1:
            rule = f"{len(rules)} gates serve {len(rules) + 1} stages"
            raise InvalidInput(Problem("stages", rule, str(len(stages.outputs))))
        self._stages = stages
        self.scored = tuple(rule(o) for rule, o in zip(rules, stages.outputs[:-1], strict=True))

    def at(self, bars: Sequence[float]) -> TradeOff:
        """Every stage answers where its score reaches its bar, by the comparison of `coe.cascade.decide`.

        So an item with a missing vote is passed on.
        """
        stages = self._stages
        decided = [
            settle(scored, bar, outputs)
            for scored, bar, outputs in zip(self.scored, bars, stages.outputs[:-1], strict=True)
        ]
        stop = np.stack([*(d.accepted for d in decided), np.ones(len(stages), dtype=np.bool_)], axis=1)
        answers = np.stack([*(d.answer for d in decided), stages.answers[:, -1]], axis=1)
        tau = stop.argmax(axis=1)
        right = answers[np.arange(len(tau)), tau] == stages.labels
        return trade_off(tau, right, stages.costs_per_item, bars)


def deployed(gates: StagedGates, stages: Stages, bar: float = HARD) -> TradeOff:
    """Send every item through the hardened gates: a stage answers where its score reaches `bar`."""
    return Judge(gates.gates, stages).at([bar] * len(gates.gates))


def trade_off(tau: IntArray, right: BoolArray, costs: FloatArray, bars: Sequence[float] = ()) -> TradeOff:
    """The figures of items that stop at stage `tau` (items,) and are `right` (items,) there or not.

    costs: (items, stages).
    """
    stages = np.arange(costs.shape[1])
    visited = tau[:, None] >= stages
    cost = float((visited * costs).sum(axis=1).mean())
    return TradeOff(
        bars=tuple(bars),
        items=len(tau),
        accuracy=float(right.mean()),
        cost=cost,
        relative_cost=cost / float(costs[:, -1].mean()),
        reach=tuple(visited.mean(axis=0).tolist()),
        accepted=tuple((tau[:, None] == stages).mean(axis=0).tolist()),
    )


def cheapest_within(found: Sequence[TradeOff], reference_accuracy: float, epsilon: float) -> int | None:
    """The constrained form of IDK cascades (Wang et al. 2018): number of the cheapest trade-off that keeps
    accuracy >= (1 - epsilon) * reference_accuracy; None where none does.

    The slack is relative. With costs per stage the cheapest of two stages is the one with the lowest IDK rate. Ties go to
    the more accurate, then to the earlier. Selected on one sample it promises nothing about another: calibrate.
    """
    enough = [i for i, t in enumerate(found) if t.accuracy >= (1 - epsilon) * reference_accuracy - 1e-12]
    return min(enough, key=lambda i: (found[i].cost, -found[i].accuracy, i), default=None)


def cascade_of(
    gates: StagedGates,
    shape: Cascade,
    table: PredictionTable,
    folder: str | Path,
    name: str = "gate",
    bar: float = HARD,
) -> Cascade:
    """Save the gates as ``FOLDER/NAME-1.safetensors``, … and return the cascade `shape` with its tiers using them.

    It is a cascade like any other: evaluate it, calibrate its thresholds, certify it; it has no certificate yet. Tiers name
    the files by the path given here, so give one relative to where the cascade will be used. `table` is what the gates
    were trained on. Raises `InvalidInput` where the folder does not exist.
    """
    if len(shape.tiers) != len(gates.gates) + 1:
        rule = f"must be {len(gates.gates) + 1}, one more than gates"
        raise InvalidInput(Problem("tiers", rule, str(len(shape.tiers))))
    gated, trained_on = [], hashes(table.items)
    for number, (gate, tier) in enumerate(zip(gates.gates, shape.tiers[:-1], strict=True), start=1):
        rule = save(Path(folder) / f"{name}-{number}.safetensors", replace(gate, seen=trained_on))
        gated.append(Tier.model_validate(tier.model_dump() | {"rule": rule, "quorum": None, "threshold": bar}))
    shape = for_table(shape, table)
    return shape.model_copy(update={"tiers": (*gated, shape.tiers[-1]), "certificate": None})
