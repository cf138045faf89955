"""How long requests to language models are: counted lengths as a few classes, for the `tokens` of a workload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.types import IntArray, TokenLengths

PROMPT_EDGES = (64, 256, 1024, 4096, 16384, 65536, 262144)
COMPLETION_EDGES = (16, 64, 256, 1024, 4096, 16384)
"""Upper ends of the classes: a request counts as long as the longest of its class, which is the safe side."""


def length_classes(
    prompt_tokens: IntArray,
    completion_tokens: IntArray,
    prompt_edges: Sequence[int] = PROMPT_EDGES,
    completion_edges: Sequence[int] = COMPLETION_EDGES,
) -> tuple[TokenLengths, ...]:
    """Classes by length with their shares, which add up to 1; both arrays have shape (requests,).

    Raises `InvalidInput` where there is no request, for lengths below 0, and for any above the last edge.
    """
    if len(prompt_tokens) == 0:
        raise InvalidInput(Problem("requests", "there is none to take lengths from"))
    for name, counts, edges in (
        ("prompt_tokens", prompt_tokens, prompt_edges),
        ("completion_tokens", completion_tokens, completion_edges),
    ):
        if counts.min() < 0 or counts.max() > edges[-1]:
            worst = counts.min() if counts.min() < 0 else counts.max()
            rule = f"must be counts from 0 to {edges[-1]}"
            raise InvalidInput(Problem(name, rule, str(int(worst)), "give larger edges for longer requests"))
    rows = np.searchsorted(prompt_edges, prompt_tokens), np.searchsorted(completion_edges, completion_tokens)
    counted = Counter(zip(*(r.tolist() for r in rows), strict=True))
    total = len(prompt_tokens)
    return tuple(
        TokenLengths(prompt_tokens=prompt_edges[p], completion_tokens=completion_edges[c], share=n / total)
        for (p, c), n in sorted(counted.items())
    )
