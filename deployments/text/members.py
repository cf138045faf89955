"""The members of the text pool, and the runner that runs them: logistic regressions on hashed words and pieces of words.

A member sees a text through one or several views; with several, it gives the mean of what it thinks of each. Weights are plain
arrays in an NPZ file: code never comes from a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from coe.errors import InvalidInput, Problem
from coe.files import read_npz
from coe.types import Member, Pool

VIEWS: Mapping[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 1), "n_features": 2**12},
    "word-pairs": {"analyzer": "word", "ngram_range": (1, 2), "n_features": 2**15},
    "pieces-2-4": {"analyzer": "char_wb", "ngram_range": (2, 4), "n_features": 2**15},
    "pieces-2-5": {"analyzer": "char_wb", "ngram_range": (2, 5), "n_features": 2**16},
    "pieces-3-6": {"analyzer": "char_wb", "ngram_range": (3, 6), "n_features": 2**16},
    "strings-1-5": {"analyzer": "char", "ngram_range": (1, 5), "n_features": 2**16},
    "strings-2-7": {"analyzer": "char", "ngram_range": (2, 7), "n_features": 2**17},
}
"""What of a text is counted, in how many cells."""


def counts(view: str, texts: np.ndarray) -> Any:
    """(n, cells) sparse: 1 + log of how often each cell is hit, as TF-IDF counts."""
    found = HashingVectorizer(alternate_sign=False, norm=None, dtype=np.float32, **VIEWS[view]).transform(texts)
    found.data = 1 + np.log(found.data)
    return found


def unit_rows(matrix: Any) -> Any:
    """The rows of a sparse matrix scaled to length 1; empty ones stay empty."""
    return normalize(matrix, copy=False)


class LinearText:
    """Runner ``deployments.text.members:LinearText``: option `views`, weights from `deployments.text.train`."""

    def __init__(self, member: Member, pool: Pool, base_dir: Path) -> None:
        where = f"member '{member.name}'"
        views = member.options.get("views")
        if set(member.options) != {"views"} or not isinstance(views, list) or not set(views) <= set(VIEWS) or not views:
            raise InvalidInput(Problem(where, f"takes the option views: a list of {', '.join(VIEWS)}"))
        if member.weights is None:
            raise InvalidInput(Problem(where, "needs weights", remedy="train it: python -m deployments.text.train"))
        self._views: list[str] = views
        self._path = base_dir / member.weights
        self._classes = len(pool.classes)
        self._arrays: dict[str, np.ndarray] = {}

    def load(self) -> None:
        """Read the weights of every view."""
        self._arrays = read_npz(self._path)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Mean of the views' probabilities for texts (n, 1)."""
        texts = batch[:, 0]
        return np.mean([self._seen(view, texts) for view in self._views], axis=0, dtype=np.float32)

    def _seen(self, view: str, texts: np.ndarray) -> np.ndarray:
        weigh, slope, offset = (self._arrays[f"{view}:{name}"] for name in ("idf", "slope", "offset"))
        found = counts(view, texts)
        found.data *= weigh[found.indices]
        logits = unit_rows(found) @ slope + offset
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def close(self) -> None:
        """Forget the weights."""
        self._arrays = {}

    def memory_gib(self) -> float:
        """Size of the weights."""
        return sum(array.nbytes for array in self._arrays.values()) / 2**30
