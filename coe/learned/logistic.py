"""Logistic gates: a weighted sum of a tier's features, fitted in milliseconds by Newton's method. Numpy alone.

Where thousands of possible tiers need a gate each, as in a search, this is the gate to try; `gates` and `policy` train
networks by the objectives of the papers.
"""

from __future__ import annotations

import numpy as np

from coe.learned.features import matrix
from coe.learned.gate_rule import Gate, form, sigmoid
from coe.table import Outputs
from coe.types import BoolArray, FloatArray, IntArray

FEATURES = ("log_odds", "margin", "entropy", "top", "each", "vote_share", "disagreement")
FEW_CLASSES = 32
"""Up to here the gate also sees which class each member gave."""
RIDGE = 1.0
"""Penalty of the squared weights: what keeps a gate finite where right and wrong can be told apart without error."""
_STEPS = 25


def logistic_gate(outputs: Outputs, right: BoolArray, seen: IntArray | None = None) -> Gate:
    """The gate whose score estimates the probability that the tier's answer is right; right: (items,).

    Trained on the outputs of all of the tier's voters, carried ones included. `seen`: hashes of the items, for `Gate.seen`.
    """
    classes, top_k = form(outputs)
    features = (*FEATURES, "said") if 0 < classes <= FEW_CLASSES else FEATURES
    x = matrix(outputs, features)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    weights = _fitted(_with_ones((x - mean) / scale), right.astype(np.float64))
    return Gate(
        features=features,
        mean=mean,
        scale=scale,
        layers=((weights[None, :-1].copy(), weights[-1:].copy()),),
        members=outputs.answers.shape[1],
        classes=classes,
        top_k=top_k,
        method="logistic",
        seen=seen,
    )


def crossfitted(outputs: Outputs, right: BoolArray, fold: IntArray) -> FloatArray:
    """(items,): every item's score by a gate that was trained on the other folds; fold: (items,) numbers from 0.

    Thresholds chosen on these scores are not flattered by items that the gate has seen.
    """
    result = np.empty(len(right))
    for number in range(int(fold.max()) + 1):
        held = fold == number
        gate = logistic_gate(outputs.rows(~held), right[~held])
        result[held] = sigmoid(gate.log_odds(outputs.rows(held)))
    return result


def _with_ones(x: FloatArray) -> FloatArray:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _fitted(x: FloatArray, y: FloatArray) -> FloatArray:
    """Weights of least penalised cross-entropy, the last one free of penalty; Newton steps, halved until they improve."""
    penalty = np.full(x.shape[1], RIDGE)
    penalty[-1] = 1e-6
    weights = np.zeros(x.shape[1])
    value = _loss(x, y, weights, penalty)
    for _ in range(_STEPS):
        p = sigmoid(x @ weights)
        gradient = x.T @ (p - y) + penalty * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-4 and _loss(x, y, weights - size * step, penalty) > value:
            size /= 2
        weights = weights - size * step
        before, value = value, _loss(x, y, weights, penalty)
        if before - value < 1e-9 * len(y):
            break
    return weights


def _loss(x: FloatArray, y: FloatArray, weights: FloatArray, penalty: FloatArray) -> float:
    odds = x @ weights
    return float((np.logaddexp(0.0, odds) - y * odds).sum() + 0.5 * (penalty * weights**2).sum())
