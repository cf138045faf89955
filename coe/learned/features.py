"""What a learned gate may look at: numbers about each item, from what the members of one tier said. Numpy alone.

A feature is a function ``(View) -> (items,) or (items, columns)``; name one of `FEATURES`, or your own by dotted path.
All of them see the members that voted; an item that nobody voted on has the uniform distribution and no votes. Where only
each member's most probable classes are known, what they leave is taken as evenly spread over the others: a feature
describes and promises nothing, so it needs no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coe.cascade.ballots import Ballots
from coe.cascade.beliefs import given_to
from coe.errors import InvalidInput, Problem
from coe.plugins import resolve
from coe.table import Outputs
from coe.types import BoolArray, Classes, FloatArray, IntArray

_TINY = 1e-12
_MOST_LOG_ODDS = 16.0
TOP = 5
_MOST_SAID = 64


@dataclass(frozen=True)
class View:
    """The outputs of one tier with what several features need, computed once."""

    outputs: Outputs

    @cached_property
    def voted(self) -> BoolArray:
        """(items, members): who voted for a class."""
        result: BoolArray = self.outputs.answers >= 0
        return result

    @cached_property
    def voters(self) -> IntArray:
        """(items,): how many members voted, at least 1 so that one may divide by it."""
        result: IntArray = np.maximum(self.voted.sum(axis=1), 1)
        return result

    @cached_property
    def votes(self) -> IntArray:
        """(items,): votes for the class that most members voted for."""
        most: IntArray = Ballots(self.outputs.answers).most
        return most

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.outputs.classes if self.outputs.top is not None else self.probs.shape[2]

    @cached_property
    def probs(self) -> FloatArray:
        """(items, members, listed) with zeros where nobody voted; `InvalidInput` for members that only answer."""
        if self.outputs.probs is None:
            raise InvalidInput(
                Problem(
                    "features",
                    "need probabilities, and these members only answer",
                    remedy="use the feature 'vote_share'",
                )
            )
        result: FloatArray = np.where(self.voted[:, :, None], self.outputs.probs, 0.0).astype(np.float64)
        return result

    @cached_property
    def mean(self) -> FloatArray:
        """(items, columns): mean probability of the voters for every class that is listed, in no meaningful order where
        only the most probable classes are known; a class that several members list has one column that is not 0.
        """
        if self.outputs.top is not None:
            return _merged(self.outputs.top, self.probs) / self.voters[:, None]
        total = self.probs.sum(axis=1) / self.voters[:, None]
        somebody = np.asarray(self.voted.any(axis=1, keepdims=True))
        result: FloatArray = np.where(somebody, total, 1.0 / total.shape[1])
        return result

    @cached_property
    def ranked(self) -> FloatArray:
        """(items, TOP): the highest mean probabilities, falling; zeros where there are fewer classes."""
        lacking = max(0, TOP - self.mean.shape[1])
        wide = np.concatenate([self.mean, np.zeros((len(self.mean), lacking))], axis=1)
        result: FloatArray = -np.sort(np.partition(-wide, TOP - 1, axis=1)[:, :TOP], axis=1)
        return result

    @cached_property
    def entropy(self) -> FloatArray:
        """(items,): entropy of the mean distribution, a share of the most there could be."""
        return self._entropy(self.mean)

    @cached_property
    def own_entropy(self) -> FloatArray:
        """(items,): mean over the voters of the entropy of each."""
        each = np.where(self.voted, self._entropy(self.probs), 0.0)
        result: FloatArray = each.sum(axis=1) / self.voters
        return result

    def _entropy(self, masses: FloatArray) -> FloatArray:
        """Along the last axis; what the masses lack is spread evenly over the other classes."""
        inside = -(masses * np.log(np.maximum(masses, _TINY))).sum(axis=-1)
        if self.outputs.top is not None:
            left = np.maximum(0.0, 1.0 - masses.sum(axis=-1))
            others = np.maximum(self.classes - (masses > 0).sum(axis=-1), 1)
            inside = inside - left * np.log(np.maximum(left, _TINY) / others)
        result: FloatArray = inside / np.log(max(self.classes, 2))
        return result


def _merged(top: Classes, probs: FloatArray) -> FloatArray:
    """(items, members * k): the sum over members of what they give to a class, in the column where it is met first."""
    items, members, k = top.shape
    mass = np.zeros((items, members, k))
    for m in range(members):  # loops over members and places of a list: few, and each a whole column
        left = probs[:, m].copy()
        for earlier in range(m):
            same = top[:, m, :, None] == top[:, earlier, None, :]
            same &= (mass[:, earlier] > 0)[:, None, :]  # not where its own share was moved to an earlier column
            mass[:, earlier] += (same * left[:, :, None]).sum(axis=1)
            left[same.any(axis=2)] = 0.0
        mass[:, m] = left
    return mass.reshape(items, members * k)


def max_prob(view: View) -> FloatArray:
    """The highest mean probability."""
    result: FloatArray = view.ranked[:, 0]
    return result


def margin(view: View) -> FloatArray:
    """The highest mean probability less the second highest."""
    result: FloatArray = view.ranked[:, 0] - view.ranked[:, 1]
    return result


def log_odds(view: View) -> FloatArray:
    """ln(p / (1 - p)) of the highest mean probability, cut at 16: it tells 0.99 from 0.9999."""
    best = view.ranked[:, 0]
    odds = np.log(np.maximum(best, _TINY)) - np.log(np.maximum(1 - best, _TINY))
    result: FloatArray = np.clip(odds, -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    return result


def entropy(view: View) -> FloatArray:
    """Entropy of the mean distribution as a share of the most there could be: 0 sure, 1 uniform."""
    return view.entropy


def disagreement(view: View) -> FloatArray:
    """Entropy of the mean less the mean entropy of the members: what they disagree about, 0 for one member."""
    gap = np.where(view.voted.any(axis=1), view.entropy - view.own_entropy, 0.0)
    result: FloatArray = np.maximum(gap, 0.0)
    return result


def lowest(view: View) -> FloatArray:
    """The lowest probability that a voter gives to the plurality answer; 0 where one does not list it."""
    ballots = Ballots(view.outputs.answers)
    answer, _ = ballots.first_of(ballots.leading)
    view.probs  # noqa: B018  # refuses members that only answer
    least = np.where(view.voted, given_to(view.outputs, answer), np.inf).min(axis=1)
    result: FloatArray = np.where(np.isfinite(least), least, 0.0)
    return result


def vote_share(view: View) -> FloatArray:
    """Votes for the leading class, as a share of the tier's members; works on answers alone."""
    result: FloatArray = view.votes / view.voted.shape[1]
    return result


def top(view: View) -> FloatArray:
    """(items, TOP): the highest mean probabilities, falling; it fits any number of classes."""
    return view.ranked


def probs(view: View) -> FloatArray:
    """(items, classes): the mean distribution itself, which is what both papers' gates read."""
    if view.outputs.top is not None:
        rule = "needs the probability of every class, and only the most probable are known"
        raise InvalidInput(Problem("feature 'probs'", rule, remedy="use the feature 'top'"))
    return view.mean


def each(view: View) -> FloatArray:
    """(items, 3 * members): of every voter in order, the log-odds of its highest probability (cut at 16), its margin, and
    whether it votes for the plurality answer; zeros where it did not vote.
    """
    ranked = -np.sort(-view.probs, axis=2)
    best = ranked[:, :, 0]
    second = ranked[:, :, 1] if ranked.shape[2] > 1 else np.zeros_like(best)
    odds = np.log(np.maximum(best, _TINY)) - np.log(np.maximum(1 - best, _TINY))
    ballots = Ballots(view.outputs.answers)
    answer, _ = ballots.first_of(ballots.leading)
    agrees = view.voted & (view.outputs.answers == answer[:, None])
    columns = [np.clip(odds, -_MOST_LOG_ODDS, _MOST_LOG_ODDS), best - second, agrees.astype(np.float64)]
    return np.concatenate([np.where(view.voted, c, 0.0) for c in columns], axis=1)


def said(view: View) -> FloatArray:
    """(items, members * classes): 1 where a voter, in order, gave a class; for at most 64 classes.

    A service that is often wrong about one class shows it here (Chen et al. 2020, FrugalML).
    """
    if view.classes > _MOST_SAID:
        rule = f"is for at most {_MOST_SAID} classes"
        raise InvalidInput(Problem("feature 'said'", rule, f"{view.classes}", "use the feature 'top'"))
    given = view.outputs.answers[:, :, None] == np.arange(view.classes)[None, None]
    result: FloatArray = given.reshape(len(given), given.shape[1] * view.classes).astype(np.float64)
    return result


Feature = Callable[[View], FloatArray]

FEATURES: dict[str, Feature] = {
    "max_prob": max_prob,
    "margin": margin,
    "log_odds": log_odds,
    "entropy": entropy,
    "disagreement": disagreement,
    "lowest": lowest,
    "vote_share": vote_share,
    "top": top,
    "probs": probs,
    "each": each,
    "said": said,
}

SUMMARY = ("max_prob", "margin", "log_odds", "entropy", "disagreement", "lowest", "vote_share")
"""Few columns whatever the number of classes; the default where members give probabilities."""

PAPER = ("probs",)
"""What Wang et al. and Guan et al. feed their gates; one column per class."""


def default_features(outputs: Outputs) -> tuple[str, ...]:
    """`SUMMARY`, or the vote share alone for members that only answer."""
    return SUMMARY if outputs.probs is not None else ("vote_share",)


def matrix(outputs: Outputs, features: Sequence[str]) -> FloatArray:
    """(items, columns): the features side by side, in the order given.

    Raises `InvalidInput` for an unknown feature, one that is not finite or not of one row per item, and for features of
    probabilities where members only answer.
    """
    view, items = View(outputs), len(outputs.answers)
    columns = [_column(name, view, items) for name in features]
    return np.concatenate(columns, axis=1) if columns else np.empty((items, 0))


def _column(name: str, view: View, items: int) -> FloatArray:
    values = np.asarray(resolve(name, FEATURES, "feature")(view), dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) != items:
        raise InvalidInput(Problem(f"feature '{name}'", f"must have {items} rows", str(values.shape)))
    if not np.isfinite(values).all():
        raise InvalidInput(Problem(f"feature '{name}'", "must not be NaN or infinite"))
    return values if values.ndim == 2 else values[:, None]
