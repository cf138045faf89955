"""What a deferral rule says about a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coe.table import Outputs
from coe.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Scored:
    """A rule's view of each item; all arrays have shape (items,).

    answer: class index, `ABSTAINED` where every member abstained, `MISSING_VOTE` where nobody voted and one is missing.
    score: the higher, the safer; a lower bound over the missing votes.
    certain: True where no missing vote could change the answer.
    highest: an upper bound of the score over the missing votes, equal to `score` where none is missing; infinite by
    default, which only means that nothing is settled early.
    """

    answer: IntArray
    score: FloatArray
    certain: BoolArray
    highest: FloatArray | None = None


Rule = Callable[[Outputs], Scored]
