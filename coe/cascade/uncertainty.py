"""Rules of confidence: how sure the mean of the members' probabilities is. For one member they are those of IDK cascades
(Wang et al. 2018) and of model cascades (Lebovitz et al. 2023); the maximum probability is the rule `score`.
"""

from __future__ import annotations

import numpy as np

from coe.cascade.agreement import score
from coe.cascade.ballots import Ballots
from coe.cascade.beliefs import given_to, need_probabilities, rest, unlisted
from coe.cascade.scored import Scored
from coe.table import Outputs
from coe.types import FloatArray, IntArray


def margin(outputs: Outputs) -> Scored:
    """Mean probability of the plurality class less the highest mean probability of any other, at least 0.

    Where only the top k are known, an unlisted class counts with the most it can have. With a missing vote the score
    is 0: the missing member may favour the rival.
    """
    need_probabilities(outputs, "margin")
    lead = score(outputs)
    own = given_to(outputs, lead.answer).sum(axis=1) / outputs.answers.shape[1]
    gap = np.clip(own - _rival(outputs, lead.answer), 0.0, 1.0)
    return _complete_only(outputs, lead, gap)


def entropy(outputs: Outputs) -> Scored:
    """1 - H(mean probabilities) / log(classes): 1 where the members are sure and agree, 0 where they know nothing.

    Where only the top k are known, what is left is taken as evenly spread, which makes the entropy largest. With a missing
    vote the score is 0.
    """
    need_probabilities(outputs, "entropy")
    assert outputs.probs is not None
    lead = score(outputs)
    classes = outputs.probs.shape[2] if outputs.top is None else outputs.classes
    if classes < 2:
        return _complete_only(outputs, lead, np.ones(len(outputs.answers)))
    total = _mean_entropy(outputs) if outputs.top is None else _listed_entropy(outputs)
    return _complete_only(outputs, lead, np.clip(1.0 - total / np.log(classes), 0.0, 1.0))


def _complete_only(outputs: Outputs, lead: Scored, value: FloatArray) -> Scored:
    """The score `value` where every member voted or abstained; 0, and anything possible, where one is missing."""
    whole = Ballots(outputs.answers).missing == 0
    value = np.where(lead.answer >= 0, value, 0.0)
    return Scored(lead.answer, np.where(whole, value, 0.0), lead.certain, np.where(whole, value, 1.0))


def _voting(outputs: Outputs) -> FloatArray:
    """(items, members, 1): 1 where a member voted."""
    result: FloatArray = (outputs.answers >= 0)[:, :, None].astype(np.float64)
    return result


def _rival(outputs: Outputs, answer: IntArray) -> FloatArray:
    """(items,): the most that the tier's mean probability can be for any class but `answer`."""
    assert outputs.probs is not None
    members = outputs.answers.shape[1]
    if outputs.top is None:
        total = (outputs.probs * _voting(outputs)).sum(axis=1) / members
        np.put_along_axis(total, np.maximum(answer, 0)[:, None], 0.0, axis=1)
        highest: FloatArray = total.max(axis=1)
        return highest
    hidden = np.where(outputs.answers >= 0, unlisted(outputs), 0.0)
    best = hidden.sum(axis=1)  # a class that nobody lists
    for m in range(members):
        for k in range(outputs.top.shape[2]):
            candidate = outputs.top[:, m, k].astype(np.int64)
            most = np.zeros(len(answer))
            for other in range(members):
                listed = outputs.top[:, other] == candidate[:, None]
                seen = np.where(listed, outputs.probs[:, other], 0.0).sum(axis=1)
                at_most = np.where(listed.any(axis=1), seen, hidden[:, other])
                most += np.where(outputs.answers[:, other] >= 0, at_most, 0.0)
            rival = (candidate != answer) & (outputs.answers[:, m] >= 0)
            best = np.maximum(best, np.where(rival, most, 0.0))
    result: FloatArray = best / members
    return result


def _mean_entropy(outputs: Outputs) -> FloatArray:
    """(items,): entropy in nats of the mean of the voting members' probabilities."""
    assert outputs.probs is not None
    voting = _voting(outputs)
    total = (outputs.probs * voting).sum(axis=1) / np.maximum(voting.sum(axis=1), 1.0)
    result: FloatArray = -plogp(total).sum(axis=1)
    return result


def _listed_entropy(outputs: Outputs) -> FloatArray:
    """(items,): the highest entropy in nats that the mean of the voting members can have, given their lists.

    The mean is a coarsening of the distribution that keeps the listed mass of each class and spreads all the rest
    over every class, so its entropy is at most that one's.
    """
    assert outputs.probs is not None
    assert outputs.top is not None
    n, members, k = outputs.top.shape
    voting = _voting(outputs)
    share = voting / np.maximum(voting.sum(axis=1, keepdims=True), 1.0)
    mass = (outputs.probs * share).reshape(n, members * k).astype(np.float64)
    classes = np.where(voting > 0, outputs.top, -1).reshape(n, members * k)
    order = np.argsort(classes, axis=1, kind="stable")
    classes, mass = np.take_along_axis(classes, order, axis=1), np.take_along_axis(mass, order, axis=1)
    running = np.cumsum(mass, axis=1)
    ends = np.concatenate([classes[:, 1:] != classes[:, :-1], np.ones((n, 1), dtype=np.bool_)], axis=1)
    # the sum of one class is the running sum at its end less that at the end of the class before
    closed = np.where(ends, running, 0.0)
    before = np.concatenate([np.zeros((n, 1)), np.maximum.accumulate(closed, axis=1)[:, :-1]], axis=1)
    per_class = np.where(ends, np.maximum(running - before, 0.0), 0.0)
    left = (rest(outputs) * share[:, :, 0]).sum(axis=1)
    spread = np.where(left > 0, -left * np.log(np.maximum(left, 1e-300) / outputs.classes), 0.0)
    if members == 1:  # a single list leaves only the classes it does not hold
        others = max(outputs.classes - k, 1)
        spread = np.where(left > 0, -left * np.log(np.maximum(left, 1e-300) / others), 0.0)
    result: FloatArray = -plogp(per_class).sum(axis=1) + spread
    return result


def plogp(p: FloatArray) -> FloatArray:
    """p log p, with 0 log 0 = 0."""
    result: FloatArray = np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0)
    return result
