"""Agreement between free texts: members agree as far as the words of their answers overlap.

Each distinct answer is a class of the prediction table, so texts are compared once per pair of distinct answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import snowballstemmer

from coe.cascade.scored import Rule, Scored
from coe.errors import InvalidInput, Problem
from coe.plugins import import_path
from coe.table import Outputs
from coe.types import ABSTAINED, MISSING_VOTE, FloatArray

Similarity = Callable[[str, str], float]
"""Of two texts: between 0 and 1, symmetric, 1 for equal texts."""

_WORD = re.compile(r"\w+")
_STEMMER = snowballstemmer.stemmer("english")


def jaccard(first: str, second: str) -> float:
    """Overlap of the sets of stemmed words: shared over all (Kolawole et al. 2024, the CoQA experiment)."""
    one, other = _stems(first), _stems(second)
    if not one and not other:
        return 1.0
    return len(one & other) / len(one | other)


@lru_cache(maxsize=65536)
def _stems(text: str) -> frozenset[str]:
    return frozenset(_STEMMER.stemWords(_WORD.findall(text.casefold())))


def similarity_rule(alike: Similarity) -> Rule:
    """The rule that scores a batch by mean pairwise `alike`, and answers with the most central text."""

    def similarity_of(outputs: Outputs) -> Scored:
        if not outputs.texts:
            raise InvalidInput(
                Problem("rule 'similarity'", "needs the texts of the answers", remedy="use it on text predictions")
            )
        return _scored(outputs, alike)

    return similarity_of


def using(path: str) -> Rule:
    """The rule with somebody's own similarity, ``similarity:package.module:function``."""
    alike: Similarity = import_path(path, "similarity")
    return similarity_rule(alike)


similarity = similarity_rule(jaccard)
"""Mean pairwise word overlap of the members' texts; the answer is the text closest to all others, ties to the earliest.

An abstention resembles nothing. With one member the score is 1 where it answered.
"""


def _scored(outputs: Outputs, alike: Similarity) -> Scored:
    answers = outputs.answers
    items, members = answers.shape
    voted = answers >= 0
    missing = (answers == MISSING_VOTE).sum(axis=1)
    close = np.zeros((items, members))
    for i in range(members):
        for j in range(i):
            pair = _pairwise(answers[:, i], answers[:, j], outputs.texts, alike)
            close[:, i] += pair
            close[:, j] += pair
    central = np.where(voted, close, -1.0)
    column = np.where(voted.any(axis=1), central.argmax(axis=1), -1)
    nothing = np.where(missing > 0, MISSING_VOTE, ABSTAINED)
    answer = np.where(column >= 0, answers[np.arange(items), np.maximum(column, 0)], nothing).astype(np.int64)
    pairs = members * (members - 1)
    value = close.sum(axis=1) / pairs if pairs else voted[:, 0].astype(np.float64)
    open_pairs = (members * (members - 1) - (members - missing) * (members - missing - 1)) / max(pairs, 1)
    highest = np.minimum(value + open_pairs, 1.0) if pairs else np.where(missing > 0, 1.0, value)
    return Scored(answer, np.minimum(value, 1.0), missing == 0, np.where(missing == 0, np.minimum(value, 1.0), highest))


def _pairwise(first: np.ndarray, second: np.ndarray, texts: tuple[str, ...], alike: Similarity) -> FloatArray:
    """(items,): similarity of two members' answers; 0 where one did not answer. Equal pairs are compared once."""
    there = (first >= 0) & (second >= 0)
    result = np.zeros(len(first))
    result[there & (first == second)] = 1.0
    differ = np.flatnonzero(there & (first != second))
    if len(differ):
        pairs, where = np.unique(np.stack([first[differ], second[differ]], axis=1), axis=0, return_inverse=True)
        values = np.array([alike(texts[a], texts[b]) for a, b in pairs.tolist()])
        result[differ] = values[where.reshape(-1)]
    return result
