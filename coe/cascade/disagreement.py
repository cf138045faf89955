"""Rules of disagreement: how far the members' votes, or their probabilities, lie apart."""

from __future__ import annotations

import numpy as np

from coe.cascade.agreement import score
from coe.cascade.ballots import Ballots
from coe.cascade.beliefs import given_to, need_probabilities, rest
from coe.cascade.scored import Scored
from coe.cascade.uncertainty import plogp
from coe.table import Outputs
from coe.types import MISSING_VOTE, FloatArray


def vote_entropy(outputs: Outputs) -> Scored:
    """1 - H(shares of votes) / log(members): 1 where all agree, 0 where all differ (Dagan and Engelson 1995).

    Works on answers alone. An abstention stands alone, like a vote that nobody shares; so does, at worst, a missing vote.
    """
    ballots = Ballots(outputs.answers)
    answer, _ = ballots.first_of(ballots.leading)
    members = outputs.answers.shape[1]
    if members == 1:
        one = np.where(answer >= 0, 1.0, 0.0)
        return Scored(answer, one, ballots.certain(answer), np.where(ballots.missing > 0, 1.0, one))
    lone = np.maximum(ballots.votes, 1)
    at_worst = np.log(members) - np.log(lone).sum(axis=1) / members  # H of the shares, class by class
    joined = np.where(ballots.voted & (outputs.answers == answer[:, None]), lone + ballots.missing[:, None], lone)
    gained = ballots.missing * np.log(np.maximum(ballots.most + ballots.missing, 1))
    at_best = (
        np.log(members)
        - (np.where(outputs.answers == MISSING_VOTE, 0.0, np.log(joined)).sum(axis=1) + gained) / members
    )
    low, high = (np.clip(1.0 - h / np.log(members), 0.0, 1.0) for h in (at_worst, at_best))
    return Scored(answer, np.where(answer >= 0, low, 0.0), ballots.certain(answer), np.maximum(low, high))


def jensen_shannon(outputs: Outputs) -> Scored:
    """1 - JS / log(members), JS being the Jensen-Shannon divergence of the members' probabilities with equal weights.

    The answer is that of `score`. What a member does not list, and what a missing or abstaining member would say, counts
    as lying apart from everything else: no true distribution can be further away (data-processing inequality), so the
    score is a lower bound.
    """
    need_probabilities(outputs, "jensen_shannon")
    lead = score(outputs)
    members = outputs.answers.shape[1]
    if members == 1:
        one = np.where(lead.answer >= 0, 1.0, 0.0)
        return Scored(lead.answer, one, lead.certain, np.where(outputs.answers[:, 0] == MISSING_VOTE, 1.0, one))
    missing = (outputs.answers == MISSING_VOTE).sum(axis=1)
    apart = _divergence(outputs)
    low = np.where(lead.answer >= 0, np.clip(1.0 - apart / np.log(members), 0.0, 1.0), 0.0)
    return Scored(lead.answer, low, lead.certain, np.where(missing == 0, low, 1.0))


def _divergence(outputs: Outputs) -> FloatArray:
    """(items,): upper bound of the Jensen-Shannon divergence in nats, over all classes and one private bin per member."""
    assert outputs.probs is not None
    voted = outputs.answers >= 0
    members = outputs.answers.shape[1]
    own = np.where(voted, -plogp(outputs.probs.astype(np.float64)).sum(axis=2), 0.0)
    private = np.where(voted, rest(outputs) if outputs.top is not None else 0.0, 1.0)
    own = own - plogp(private)
    mixed = -plogp(private / members).sum(axis=1) + _mixture_entropy(outputs)
    result: FloatArray = np.maximum(mixed - own.mean(axis=1), 0.0)
    return result


def _mixture_entropy(outputs: Outputs) -> FloatArray:
    """(items,): -sum of q log q over the classes, q being the mean of what the voting members list, over all members."""
    assert outputs.probs is not None
    n, members = outputs.answers.shape
    voted = outputs.answers >= 0
    if outputs.top is None:
        mixture = np.where(voted[:, :, None], outputs.probs, 0.0).sum(axis=1, dtype=np.float64) / members
        dense: FloatArray = -plogp(mixture).sum(axis=1)
        return dense
    total = np.zeros(n)
    for m in range(members):
        for k in range(outputs.top.shape[2]):
            candidate = outputs.top[:, m, k].astype(np.int64)
            q = given_to(outputs, candidate).sum(axis=1) / members
            before = (outputs.top[:, :m] == candidate[:, None, None]).any(axis=2) & voted[:, :m]
            counts = voted[:, m] & ~before.any(axis=1)  # each class once, with the first member that lists it
            total -= np.where(counts, plogp(q), 0.0)
    return total
