"""Reading probabilities, whether all of them are known or only each member's k most probable classes.

What lies outside a member's top k is known only by its sum, so every quantity comes with bounds. A rule's score is
always the cautious end of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.table import Outputs
from coe.types import FloatArray, IntArray


def need_probabilities(outputs: Outputs, rule: str) -> None:
    """`InvalidInput` where the members only answer."""
    if outputs.probs is None:
        raise InvalidInput(
            Problem(f"rule '{rule}'", "needs probabilities, and these members only answer", remedy="use rule 'vote'")
        )


def given_to(outputs: Outputs, answer: IntArray) -> FloatArray:
    """(items, members): the probability that each member gives to class `answer` (items,), or 0 where it does not list it.

    A lower bound, exact where the class is listed. Rows without a vote are 0, as are items whose answer is no class.
    """
    assert outputs.probs is not None
    known = answer >= 0
    if outputs.top is None:
        at = np.where(known, answer, 0)[:, None, None].repeat(outputs.answers.shape[1], axis=1)
        given = np.take_along_axis(outputs.probs, at, axis=2)[:, :, 0].astype(np.float64)
    else:
        listed = outputs.top == answer[:, None, None]
        given = np.where(listed, outputs.probs, 0.0).sum(axis=2, dtype=np.float64)
    return np.where(known[:, None] & (outputs.answers >= 0), given, 0.0)


def unlisted(outputs: Outputs) -> FloatArray:
    """(items, members): the most that one class outside a member's list can have; 0 where every class is listed."""
    assert outputs.probs is not None
    if outputs.top is None or outputs.top.shape[2] >= outputs.classes:
        return np.zeros(outputs.answers.shape)
    most: FloatArray = np.minimum(rest(outputs), outputs.probs[:, :, -1].astype(np.float64))
    return most


def rest(outputs: Outputs) -> FloatArray:
    """(items, members): the probability that a member's list leaves to all other classes together, at least 0."""
    assert outputs.probs is not None
    left: FloatArray = np.maximum(0.0, 1.0 - outputs.probs.sum(axis=2, dtype=np.float64))
    return left


def truncated(outputs: Outputs, k: int | None) -> Outputs:
    """The outputs as a table that keeps only each member's `k` most probable classes would hold them.

    Ties at the border go to the lower class index. Outputs that keep no more than k are returned as they are.
    """
    if k is None or outputs.probs is None or (outputs.top is not None and outputs.top.shape[2] <= k):
        return outputs
    if outputs.top is not None:
        return replace(outputs, probs=outputs.probs[:, :, :k], top=outputs.top[:, :, :k])
    classes = outputs.probs.shape[2]
    order = np.argsort(-outputs.probs, axis=2, kind="stable")[:, :, : min(k, classes)].astype(np.int32)
    probs = np.take_along_axis(outputs.probs, order, axis=2)
    return replace(outputs, probs=probs, top=order, classes=classes)


def tempered(outputs: Outputs, temperatures: Sequence[float]) -> Outputs:
    """Probabilities p rescaled to p^(1/T), one temperature T above 0 per member, and normalised; answers do not change.

    Temperature scaling of logits (Guo et al. 2017, arXiv 1706.04599) in terms of probabilities. Where only the top k are
    known, the other classes' share is taken at its largest, evenly spread or piled up as T demands: a cautious bound.
    """
    if outputs.probs is None or all(t == 1 for t in temperatures):
        return outputs
    power = 1.0 / np.asarray(temperatures, dtype=np.float64)[None, :]
    scaled = outputs.probs.astype(np.float64) ** power[:, :, None]
    total = scaled.sum(axis=2)
    if outputs.top is not None:
        total = total + _rest_at_most(outputs, power)
    with np.errstate(invalid="ignore"):  # rows without a vote may hold anything
        result = np.where(total[:, :, None] > 0, scaled / total[:, :, None], 0.0)
    return replace(outputs, probs=result.astype(np.float32))


def _rest_at_most(outputs: Outputs, power: FloatArray) -> FloatArray:
    """(items, members): the largest sum of p^power over the unlisted classes."""
    assert outputs.probs is not None
    left = rest(outputs)
    others = outputs.classes - outputs.probs.shape[2]
    if others <= 0:
        return np.zeros_like(left)
    even = others * (left / others) ** power  # concave powers grow by spreading
    cap = np.maximum(unlisted(outputs), 1e-30)
    full = np.floor(left / cap)  # convex powers grow by piling up, each class at most as probable as the last listed
    piled = full * cap**power + np.maximum(0.0, left - full * cap) ** power
    most: FloatArray = np.where(power <= 1, even, piled)
    return most


def prepared(outputs: Outputs, members: Sequence[str], top_k: int | None, temperatures: Mapping[str, float]) -> Outputs:
    """Outputs of `members` as a cascade with this `top_k` and these `temperatures` reads them."""
    cut = truncated(outputs, top_k)
    return tempered(cut, [temperatures.get(m, 1.0) for m in members]) if temperatures else cut
