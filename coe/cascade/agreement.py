"""Rules of agreement: count votes, weigh them by probability, or both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coe.cascade.ballots import Ballots
from coe.cascade.beliefs import given_to, need_probabilities
from coe.cascade.scored import Rule, Scored
from coe.table import Outputs
from coe.types import BoolArray, FloatArray, IntArray


def vote(outputs: Outputs) -> Scored:
    """Plurality vote; the score is the number of votes for the answer (Kolawole et al. 2024, black-box rule).

    Works on answers alone. Ties go to the class that the earliest listed member voted for.
    """
    ballots = Ballots(outputs.answers)
    answer, _ = ballots.first_of(ballots.leading)
    score = ballots.votes_for(answer).astype(np.float64)
    return Scored(answer, score, ballots.certain(answer), (ballots.most + ballots.missing).astype(np.float64))


def score(outputs: Outputs) -> Scored:
    """Mean probability of the plurality class over the tier's members (Kolawole et al. 2024, white-box rule).

    For a tier of one member this is its maximum probability (Lebovitz et al. 2023). A member that is missing, or that does
    not list the class among its most probable, counts as probability 0 for it: the worst it could have said.
    """
    need_probabilities(outputs, "score")
    return _weighed(outputs, Ballots(outputs.answers), ballots_first=True)


def mean(outputs: Outputs) -> Scored:
    """Soft vote: the voted-for class with the highest mean probability, and that mean as the score."""
    need_probabilities(outputs, "mean")
    return _weighed(outputs, Ballots(outputs.answers), ballots_first=False)


def both(quorum: int) -> Rule:
    """The rule `score` where at least `quorum` members agree; elsewhere the score is 0."""

    def score_of_quorum(outputs: Outputs) -> Scored:
        scored = score(outputs)
        ballots = Ballots(outputs.answers)
        enough = ballots.votes_for(scored.answer) >= quorum
        possible = ballots.most + ballots.missing >= quorum
        assert scored.highest is not None
        return replace(
            scored, score=np.where(enough, scored.score, 0.0), highest=np.where(possible, scored.highest, 0.0)
        )

    return score_of_quorum


def mean_given(outputs: Outputs) -> FloatArray:
    """(items, members): the tier's mean probability of the class that each member voted for; 0 where it did not vote.

    A lower bound: missing members and unlisted classes count as 0.
    """
    members = outputs.answers.shape[1]
    result = np.zeros(outputs.answers.shape)
    for m in range(members):
        result[:, m] = given_to(outputs, outputs.answers[:, m]).sum(axis=1) / members
    return result


def _weighed(outputs: Outputs, ballots: Ballots, ballots_first: bool) -> Scored:
    """Answer by votes and then mean probability, or by mean probability alone; the score is the answer's mean."""
    weight = mean_given(outputs)
    candidates = ballots.leading if ballots_first else ballots.voted
    best = np.where(candidates, weight, -np.inf)
    heaviest = candidates & (best == best.max(axis=1, keepdims=True))
    _, column = ballots.first_of(heaviest)
    lowest = np.where(heaviest, outputs.answers, np.iinfo(np.int64).max).min(axis=1)
    answer = np.where(column >= 0, lowest, ballots.first_of(ballots.leading)[0])
    # probabilities may add up to a hair more than 1, and a threshold above 1 is refused
    value = np.where(column >= 0, weight[np.arange(len(answer)), np.maximum(column, 0)], 0.0)
    value = np.minimum(value, 1.0)
    members = outputs.answers.shape[1]
    # with probabilities a tie can go either way, so a missing vote may not even produce a tie
    certain = (
        ballots.certain(answer, ties_are_open=True)
        if ballots_first
        else _mean_is_certain(outputs, ballots, answer, value)
    )
    if not ballots.missing.any():
        return Scored(answer, value, certain, value)
    # missing members can add 1 each; where they may change the answer, the new one has at most every member's maximum
    most_now = np.where(certain, value, _highest_each(outputs).sum(axis=1) / members)
    highest = np.where(ballots.missing == 0, value, np.minimum(most_now + ballots.missing / members, 1.0))
    return Scored(answer, value, certain, highest)


def _highest_each(outputs: Outputs) -> FloatArray:
    """(items, members): each member's highest probability; 0 where it did not vote."""
    assert outputs.probs is not None
    return np.where(outputs.answers >= 0, outputs.probs.max(axis=2).astype(np.float64), 0.0)


def _mean_is_certain(outputs: Outputs, ballots: Ballots, answer: IntArray, value: FloatArray) -> BoolArray:
    """Where no missing member could lift another class to the mean probability of `answer`."""
    if not ballots.missing.any():
        return np.ones(len(answer), dtype=np.bool_)
    assert outputs.probs is not None
    members = outputs.answers.shape[1]
    here = np.where((outputs.answers >= 0)[:, :, None], outputs.probs.astype(np.float64), 0.0)
    if outputs.top is None:
        total = here.sum(axis=1) / members
        np.put_along_axis(total, np.maximum(answer, 0)[:, None], -np.inf, axis=1)
        rival = total.max(axis=1)
    else:  # a class that nobody lists, or that several do, has at most this
        rival = np.where(outputs.top == answer[:, None, None], 0.0, here).max(axis=2).sum(axis=1) / members
    safe = value > rival + ballots.missing / members
    result: BoolArray = (ballots.missing == 0) | (safe & (answer >= 0))
    return result
