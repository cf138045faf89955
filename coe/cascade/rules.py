"""Deferral rules: from the outputs of a tier's members to an answer and a score for every item.

A rule is a function ``(Outputs) -> Scored``. To add one, write the function and a line in `RULES`, or name it in the
cascade file by dotted path (``rule: my_package.rules:entropy``). `coe.cascade.contract.check_rule` tests any rule.

Missing votes. `Scored.certain` says where the answer stands whatever the missing members would have said, and
`Scored.score` is then the lowest score that any completion could give; so comparing it with the threshold never accepts
on a vote that was not cast. Where a vote is missing and the answer is not certain, the tier may not accept.

Ties. `vote` is black-box: among the classes with most votes, the one voted for by the earliest listed member wins (so
list the strongest member first). `score` sees probabilities: among the classes with most votes, the one with the
highest mean probability wins, then the one voted for by the earliest listed member.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.plugins import resolve
from coe.table import Outputs
from coe.types import MISSING_VOTE, BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Scored:
    """A rule's view of each item; all arrays have shape (items,).

    answer: class index, `MISSING_VOTE` where no member answered.
    score: the higher, the safer; a lower bound over the missing votes.
    certain: True where no missing vote could change the answer.
    """

    answer: IntArray
    score: FloatArray
    certain: BoolArray


Rule = Callable[[Outputs], Scored]


def vote(outputs: Outputs) -> Scored:
    """Plurality vote; the score is the number of votes for the answer (Kolawole et al. 2024, black-box rule).

    Works on answers alone. Ties go to the class that the earliest listed member voted for.
    """
    ballots = _Ballots(outputs.answers)
    answer, _ = ballots.first_of(ballots.votes == ballots.most[:, None])
    score = ballots.votes_for(answer).astype(np.float64)
    return Scored(answer, score, ballots.certain(answer))


def score(outputs: Outputs) -> Scored:
    """Mean probability of the plurality class over the tier's members (Kolawole et al. 2024, white-box rule).

    A missing member counts as probability 0 for the answer, which is the worst it could have said.
    """
    if outputs.probs is None:
        raise InvalidInput(
            Problem("rule 'score'", "needs probabilities, and these members only answer", remedy="use rule 'vote'")
        )
    items, members = outputs.answers.shape
    there = outputs.answers != MISSING_VOTE
    ballots = _Ballots(outputs.answers)
    rows = np.arange(items)[:, None]
    # (items, members): mean probability that the tier gives to the class each member voted for
    voted = np.where(there, outputs.answers, 0)
    given = np.take_along_axis(outputs.probs, voted[:, None, :].repeat(members, axis=1), axis=2).astype(np.float64)
    mean = np.where(there[:, :, None], given, 0.0).sum(axis=1) / members
    leading = there & (ballots.votes == ballots.most[:, None])
    best = np.where(leading, mean, -np.inf)
    answer, column = ballots.first_of(leading & (best == best.max(axis=1, keepdims=True)))
    # probabilities may add up to a hair more than 1, and a threshold above 1 is refused
    value = np.where(column >= 0, np.minimum(mean[rows[:, 0], np.maximum(column, 0)], 1.0), 0.0)
    # with probabilities a tie can go either way, so a missing vote may not even produce a tie
    return Scored(answer, value, ballots.certain(answer, ties_are_open=True))


class _Ballots:
    """Vote counts of a batch, laid out by member so that the number of classes does not matter.

    votes[i, m] is the number of votes that item i has for the class member m voted for (0 for a missing member).
    """

    def __init__(self, answers: IntArray) -> None:
        self.answers = answers
        self.there = answers != MISSING_VOTE
        self.votes = self.there.astype(np.int64)
        for i in range(answers.shape[1]):  # a loop over pairs of members: few, and each a whole column
            for j in range(i):
                same = (answers[:, i] == answers[:, j]) & self.there[:, i]
                self.votes[:, i] += same
                self.votes[:, j] += same
        self.most = self.votes.max(axis=1)
        self.missing = answers.shape[1] - self.there.sum(axis=1)

    def first_of(self, leading: BoolArray) -> tuple[IntArray, IntArray]:
        """Answer and column of the earliest member in `leading` that voted; both -1 where nobody voted."""
        leading = leading & self.there
        column = np.where(leading.any(axis=1), leading.argmax(axis=1), -1)
        answer = np.where(column >= 0, self.answers[np.arange(len(column)), np.maximum(column, 0)], MISSING_VOTE)
        return answer.astype(np.int64), column.astype(np.int64)

    def votes_for(self, answer: IntArray) -> IntArray:
        """Number of votes for `answer`, per item."""
        result: IntArray = (self.there & (self.answers == answer[:, None])).sum(axis=1)
        return result

    def certain(self, answer: IntArray, ties_are_open: bool = False) -> BoolArray:
        """Where `answer` stays the plurality answer however the missing members vote.

        The strongest attack gives every missing vote to one rival. At a tie the rival wins if somebody voted for it, or
        could, before the first vote for the answer; with `ties_are_open` any tie counts as lost.
        """
        if not self.missing.any():
            return np.ones(len(answer), dtype=np.bool_)
        own = self.votes_for(answer)
        position = np.arange(self.answers.shape[1])[None, :]
        far = self.answers.shape[1]
        is_rival = self.there & (self.answers != answer[:, None])
        first_own = np.where(self.there & ~is_rival, position, far).min(axis=1)
        first_missing = np.where(self.there, far, position).min(axis=1)
        # a rival nobody has voted for yet
        fresh = self.missing
        lost = (fresh > own) | ((fresh == own) & (ties_are_open | (first_missing < first_own)))
        # a rival that has votes; `first[m]` is the earliest column that votes, or could vote, for m's class
        same = (self.answers[:, :, None] == self.answers[:, None, :]) & self.there[:, None, :]
        first_vote = np.where(same, position[:, None, :], far).min(axis=2)
        earliest = np.minimum(first_vote, first_missing[:, None])
        total = self.votes + self.missing[:, None]
        beats = (total > own[:, None]) | ((total == own[:, None]) & (ties_are_open | (earliest < first_own[:, None])))
        lost |= (is_rival & beats).any(axis=1)
        result: BoolArray = (self.missing == 0) | (~lost & (answer != MISSING_VOTE))
        return result


RULES: dict[str, Rule] = {"vote": vote, "score": score}


def rule(name: str) -> Rule:
    """The rule called `name`, or the one at that dotted path."""
    return resolve(name, RULES, "rule")
