"""What a cascade does on a prediction table: routing, accuracy, reach and calls.

The same `decide` that the router calls is walked over the whole table, so what is predicted here is what the service does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import beta

from coe.cascade.beliefs import prepared
from coe.cascade.decide import decide
from coe.errors import InvalidInput, Problem
from coe.table import Outputs, PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, Cascade, CascadeStats, FloatArray, IntArray, Tier

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Routing:
    """Where every item ends; arrays have shape (items,) unless said otherwise.

    answer: class index, `ABSTAINED` or `MISSING_VOTE` where the last tier has none.
    tier: index of the tier that answered.    degraded: True where that tier lacked a vote.
    asked: (items, members of the cascade in order), True where the member was called.
    """

    answer: IntArray
    tier: IntArray
    degraded: BoolArray
    asked: BoolArray


def route(cascade: Cascade, table: PredictionTable) -> Routing:
    """Send every item of the table through the cascade."""
    n = len(table)
    answer = np.full(n, MISSING_VOTE, dtype=np.int64)
    last = np.full(n, len(cascade.tiers) - 1, dtype=np.int64)
    degraded = np.zeros(n, dtype=np.bool_)
    asked = np.zeros((n, len(cascade.members)), dtype=np.bool_)
    waiting = np.arange(n)
    column = 0
    for number, tier in enumerate(cascade.tiers):
        outputs = tier_outputs(cascade, number, table, waiting)
        if tier.carry:
            outputs = _carried(cascade, number, outputs, asked[waiting])
        own = asked_members(tier, outputs)
        asked[waiting[:, None], np.arange(column, column + len(tier.members))[None, :]] = own
        column += len(tier.members)
        decision = decide(tier, outputs)
        done = decision.accepted if number < len(cascade.tiers) - 1 else np.ones(len(waiting), dtype=np.bool_)
        ended = waiting[done]
        answer[ended] = decision.answer[done]
        last[ended] = number
        degraded[ended] = lacking(outputs, own)[done]
        waiting = waiting[~done]
    return Routing(answer, last, degraded, asked)


def scores_of(cascade: Cascade, table: PredictionTable, routing: Routing) -> FloatArray:
    """(items,): the score with which the tier that answered decided."""
    scores = np.zeros(len(table))
    for number, tier in enumerate(cascade.tiers):
        rows = np.flatnonzero(routing.tier == number)
        outputs = tier_outputs(cascade, number, table, rows)
        if tier.carry:
            outputs = _carried(cascade, number, outputs, routing.asked[rows])
        scores[rows] = decide(tier, outputs).score
    return scores


def tier_outputs(cascade: Cascade, number: int, table: PredictionTable, rows: IntArray | None = None) -> Outputs:
    """What the voters of tier `number` said about the items `rows` (all by default), as the cascade reads it."""
    voters = cascade.voters(number)
    outputs = table.outputs(voters)
    if rows is not None and len(rows) < len(table):
        outputs = outputs.rows(rows)
    return prepared(outputs, voters, cascade.top_k, cascade.temperatures)


def _carried(cascade: Cascade, number: int, outputs: Outputs, asked: BoolArray) -> Outputs:
    """The outputs of a tier that carries, where an earlier member that was never asked counts as abstaining.

    Such a member is known not to vote, so unlike a lost vote it leaves nothing open.
    """
    own = len(cascade.tiers[number].members)
    carried = [cascade.members.index(m) for m in cascade.voters(number)[own:]]
    silent = np.concatenate([np.zeros((len(asked), own), dtype=np.bool_), ~asked[:, carried]], axis=1)
    return replace(outputs, answers=np.where(silent, ABSTAINED, outputs.answers))


def lacking(outputs: Outputs, asked: BoolArray) -> BoolArray:
    """(items,): where a vote that counts was asked for and not cast. asked: (items, own members)."""
    missing = outputs.answers == MISSING_VOTE
    own = asked.shape[1]
    result: BoolArray = (missing[:, :own] & asked).any(axis=1) | missing[:, own:].any(axis=1)
    return result


def asked_members(tier: Tier, outputs: Outputs) -> BoolArray:
    """(items, own members): who is called about each item. In a staged tier nobody after the outcome is settled."""
    items, own = len(outputs.answers), len(tier.members)
    asked = np.ones((items, own), dtype=np.bool_)
    if tier.dispatch == "parallel":
        return asked
    columns = np.arange(outputs.answers.shape[1])
    undecided = np.arange(items)
    for heard in range(1, own):
        later = (columns >= heard) & (columns < own)
        settled = decide(tier, outputs.rows(undecided).without(later)).settled
        asked[undecided[settled], heard:] = False
        undecided = undecided[~settled]
    return asked


def evaluate(cascade: Cascade, table: PredictionTable) -> CascadeStats:
    """Accuracy with its exact 95% interval, reach and calls of a cascade on a table.

    Raises `InvalidInput` for members that the table lacks and for gates that can never or always accept.
    """
    check_against(cascade, table)
    routing = route(cascade, table)
    return stats_of(cascade, routing, table.labels)


def stats_of(cascade: Cascade, routing: Routing, labels: IntArray) -> CascadeStats:
    """The statistics of a routing against the labels, both of shape (items,)."""
    n = len(labels)
    right = routing.answer == labels
    low, high = accuracy_interval(int(right.sum()), n)
    at = [routing.tier == t for t in range(len(cascade.tiers))]
    reach = [float((routing.tier >= t).mean()) for t in range(len(cascade.tiers))]
    return CascadeStats(
        items=n,
        accuracy=float(right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        reach=tuple(reach),
        accepted=tuple(float(mask.mean()) for mask in at),
        accuracy_accepted=tuple(float(right[mask].mean()) if mask.any() else None for mask in at),
        calls={m: float(share) for m, share in zip(cascade.members, routing.asked.mean(axis=0), strict=True)},
    )


def accuracy_interval(right: int, items: int) -> tuple[float, float]:
    """Exact two-sided 95% interval of a share (Clopper and Pearson 1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, items - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, items - right)) if right < items else 1.0
    return low, high


def losses(answer: IntArray, reference: IntArray, labels: IntArray) -> BoolArray:
    """True where the cascade is wrong and the reference is right; all of shape (items,)."""
    result: BoolArray = (answer != labels) & (reference == labels)
    return result


def check_against(cascade: Cascade, table: PredictionTable) -> None:
    """Refuse a cascade whose members the table lacks, that needs more probabilities than the table holds, or with a gate
    that these classes make meaningless.
    """
    table.columns(cascade.members)
    problems = [
        Problem(f"tiers[{i}]", trouble, remedy="raise it, or leave the tier out")
        for i, tier in enumerate(cascade.tiers)
        if (trouble := always_accepts(tier, len(table.classes), len(cascade.voters(i))))
    ]
    held, wanted = table.top_k, cascade.top_k
    if held is not None and (wanted is None or wanted > held) and any(reads_probabilities(t) for t in cascade.tiers):
        rule = f"the predictions hold only the {held} most probable classes"
        problems.append(Problem("top_k", rule, f"{wanted or 'all'}", f"set top_k: {held}, or run `coe calibrate`"))
    if problems:
        raise InvalidInput(problems)


def reads_probabilities(tier: Tier) -> bool:
    """True for a tier whose rule may look at probabilities."""
    return tier.rule.partition(":")[0] not in ("vote", "vote_entropy", "similarity")


def for_table(cascade: Cascade, table: PredictionTable) -> Cascade:
    """The cascade, reading no more probabilities than the table holds; any certificate is dropped where that changes it."""
    if table.top_k is None or (cascade.top_k is not None and cascade.top_k <= table.top_k):
        return cascade
    return cascade.model_copy(update={"top_k": table.top_k, "certificate": None})


def always_accepts(tier: Tier, classes: int, voters: int | None = None) -> str:
    """Why the gate of `tier` accepts whatever its members say, or an empty string.

    With few classes some agreement is certain: two of three votes are always equal when there are two classes.
    """
    k = voters or len(tier.members)
    if tier.quorum is not None and tier.rule == "vote" and tier.quorum <= -(-k // classes):
        return f"quorum {tier.quorum} of {k} members always accepts with {classes} classes"
    if tier.rule == "score" and tier.threshold is not None and tier.threshold <= 1 / (classes * k):
        return f"threshold {tier.threshold} always accepts: the score of {k} members is at least 1/{classes * k}"
    return ""
