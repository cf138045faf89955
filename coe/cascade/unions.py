"""Which items a set of members gets right when its votes are counted together: one row per set, for thousands of sets.

The same answers as the rules `score` and `vote` give, compiled. Tests compare every row with `decide`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from coe.table import PredictionTable

Bits = NDArray[np.uint8]
"""1 where right; rows of sets, columns of items."""


def right_by_score(table: PredictionTable, sets: Sequence[Sequence[int]]) -> Bits:
    """(sets, items): where the plurality of a set of columns, ties to the highest mean probability, is right."""
    assert table.probs is not None
    top = table.top
    if top is None:
        top = np.zeros((1, 1, 1), dtype=np.int32)
    members, sizes = _padded(sets)
    result = np.zeros((len(sets), len(table)), dtype=np.uint8)
    _score_rows(table.answers, table.probs, top, table.top is not None, table.labels, members, sizes, result)
    return result


def right_by_vote(table: PredictionTable, sets: Sequence[Sequence[int]]) -> Bits:
    """(sets, items): where the plurality of a sequence of columns, ties to the earliest, is right."""
    members, sizes = _padded(sets)
    result = np.zeros((len(sets), len(table)), dtype=np.uint8)
    _vote_rows(table.answers, table.labels, members, sizes, result)
    return result


def _padded(sets: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sizes = np.array([len(s) for s in sets], dtype=np.int64)
    members = np.full((len(sets), int(sizes.max(initial=1))), -1, dtype=np.int64)
    for row, columns in enumerate(sets):
        members[row, : len(columns)] = columns
    return members, sizes


@numba.njit(nogil=True, cache=True)
def _given(probs, top, listed, item, member, label):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Probability that a member gives to a class; 0 where it does not list it."""
    if not listed:
        return np.float64(probs[item, member, label])
    for k in range(top.shape[2]):
        if top[item, member, k] == label:
            return np.float64(probs[item, member, k])
    return 0.0


@numba.njit(nogil=True, cache=True, parallel=True)
def _score_rows(answers, probs, top, listed, labels, members, sizes, result):  # type: ignore[no-untyped-def]  # pragma: no cover
    for row in numba.prange(members.shape[0]):
        size = sizes[row]
        votes = np.zeros(size, dtype=np.int64)
        for item in range(answers.shape[0]):
            most = 0
            for a in range(size):
                votes[a] = 0
                own = answers[item, members[row, a]]
                if own < 0:
                    continue
                for b in range(size):
                    if answers[item, members[row, b]] == own:
                        votes[a] += 1
                most = max(most, votes[a])
            if most == 0:
                continue
            answer, best = -1, -1.0
            for a in range(size):
                if votes[a] != most:
                    continue
                own = answers[item, members[row, a]]
                if own == answer:
                    continue
                if most * 2 > size:
                    answer = own
                    break
                given = 0.0
                for b in range(size):
                    if answers[item, members[row, b]] >= 0:
                        given += _given(probs, top, listed, item, members[row, b], own)
                if given > best or (given == best and own < answer):
                    answer, best = own, given
            if answer == labels[item]:
                result[row, item] = 1


@numba.njit(nogil=True, cache=True, parallel=True)
def _vote_rows(answers, labels, members, sizes, result):  # type: ignore[no-untyped-def]  # pragma: no cover
    for row in numba.prange(members.shape[0]):
        for item in range(answers.shape[0]):
            most, answer = 0, -1
            for a in range(sizes[row]):
                own = answers[item, members[row, a]]
                if own < 0:
                    continue
                votes = 0
                for b in range(sizes[row]):
                    if answers[item, members[row, b]] == own:
                        votes += 1
                if votes > most:
                    most, answer = votes, own
            if answer == labels[item]:
                result[row, item] = 1
