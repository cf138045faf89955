"""Members for `benchmarks.chaos`: they answer from a table, and do harm while a file says so.

The file holds lines of ``MEMBER HARM`` with HARM one of hang, shape, nan, slow; a member reads it before each batch.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from coe.files import read_predictions

SLOW_S = 0.15
HANG_S = 30.0


@lru_cache(maxsize=4)
def _probs(predictions: str, member: str) -> np.ndarray:
    table = read_predictions(predictions)
    assert table.probs is not None
    return np.ascontiguousarray(table.probs[:, table.members.index(member)])


def replay(batch: np.ndarray, predictions: str, member: str, harm: str) -> np.ndarray:
    """Recorded probabilities of a batch of row numbers, unless the file `harm` says otherwise."""
    rows = np.asarray(batch)[:, 0].astype(int)
    answer = _probs(predictions, member)[rows]
    file = Path(harm)
    wanted = dict(line.split() for line in file.read_text().splitlines()) if file.exists() else {}
    match wanted.get(member):
        case "hang":
            deadline = time.monotonic() + HANG_S
            while time.monotonic() < deadline and file.exists() and member in file.read_text():
                time.sleep(0.05)
        case "shape":
            return answer[:, :-1]
        case "nan":
            return np.full_like(answer, np.nan)
        case "slow":
            time.sleep(SLOW_S)
    return answer
