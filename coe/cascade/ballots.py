"""Counting votes: who leads, by how much, and whether missing votes could change it."""

from __future__ import annotations

import numpy as np

from coe.types import ABSTAINED, MISSING_VOTE, BoolArray, IntArray


class Ballots:
    """Vote counts of a batch, laid out by member so that the number of classes does not matter.

    voted: (items, members), where a member voted for a class; neither missing nor abstained.
    votes: (items, members), how many votes there are for the class that the member voted for; 0 where it did not.
    most: (items,) votes of the leading class.    missing: (items,) votes not cast. An abstention is not missing: it was
    cast, for nobody.
    """

    def __init__(self, answers: IntArray) -> None:
        self.answers = answers
        self.voted = answers >= 0
        self.votes = self.voted.astype(np.int64)
        for i in range(answers.shape[1]):  # a loop over pairs of members: few, and each a whole column
            for j in range(i):
                same = (answers[:, i] == answers[:, j]) & self.voted[:, i]
                self.votes[:, i] += same
                self.votes[:, j] += same
        self.most = self.votes.max(axis=1)
        self.missing = (answers == MISSING_VOTE).sum(axis=1)

    @property
    def leading(self) -> BoolArray:
        """(items, members): where a member voted for a class with most votes."""
        result: BoolArray = self.voted & (self.votes == self.most[:, None])
        return result

    def first_of(self, leading: BoolArray) -> tuple[IntArray, IntArray]:
        """Answer and column of the earliest member in `leading` that voted; column -1 where nobody did.

        The answer is then `ABSTAINED` if every member abstained, and `MISSING_VOTE` if one said nothing at all.
        """
        leading = leading & self.voted
        column = np.where(leading.any(axis=1), leading.argmax(axis=1), -1)
        nothing = np.where(self.missing > 0, MISSING_VOTE, ABSTAINED)
        answer = np.where(column >= 0, self.answers[np.arange(len(column)), np.maximum(column, 0)], nothing)
        return answer.astype(np.int64), column.astype(np.int64)

    def votes_for(self, answer: IntArray) -> IntArray:
        """Number of votes for `answer`, per item."""
        result: IntArray = (self.voted & (self.answers == answer[:, None])).sum(axis=1)
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
        is_rival = self.voted & (self.answers != answer[:, None])
        first_own = np.where(self.voted & ~is_rival, position, far).min(axis=1)
        first_missing = np.where(self.answers == MISSING_VOTE, position, far).min(axis=1)
        # a rival nobody has voted for yet
        fresh = self.missing
        lost = (fresh > own) | ((fresh == own) & (ties_are_open | (first_missing < first_own)))
        # a rival that has votes; `first[m]` is the earliest column that votes, or could vote, for m's class
        same = (self.answers[:, :, None] == self.answers[:, None, :]) & self.voted[:, None, :]
        first_vote = np.where(same, position[:, None, :], far).min(axis=2)
        earliest = np.minimum(first_vote, first_missing[:, None])
        total = self.votes + self.missing[:, None]
        beats = (total > own[:, None]) | ((total == own[:, None]) & (ties_are_open | (earliest < first_own[:, None])))
        lost |= (is_rival & beats).any(axis=1)
        result: BoolArray = (self.missing == 0) | (~lost & (answer >= 0))
        return result
