"""Fit the members of the text pool on the train split and write their weights.

    python -m deployments.text.train DATA.npz POOL.yaml

Every view is fitted once, whoever uses it. About a minute on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import SGDClassifier

from coe.files import read, write_atomically
from coe.profiler.predict import load_data
from coe.types import Pool
from deployments.text.members import counts, unit_rows

PASSES = 20
RIGOUR = 1e-5
"""Weight of the penalty on long slopes."""


def fitted(view: str, texts: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """idf (cells,), slope (cells, classes) and offset (classes,) of logistic regressions, one per class, on one view."""
    found = counts(view, texts)
    hit = np.bincount(found.indices, minlength=found.shape[1])
    weigh = (np.log((1 + len(texts)) / (1 + hit)) + 1).astype(np.float32)
    found.data *= weigh[found.indices]
    model = SGDClassifier(loss="log_loss", alpha=RIGOUR, max_iter=PASSES, tol=None, random_state=0, n_jobs=1)
    model.fit(unit_rows(found), labels)
    return {
        "idf": weigh,
        "slope": np.ascontiguousarray(model.coef_.T, dtype=np.float32),
        "offset": model.intercept_.astype(np.float32),
    }


def main(data_path: str, pool_path: str) -> None:
    """Write the weights of every member."""
    pool = read(pool_path, Pool)
    train = load_data(data_path).split("train")
    texts = train.x[:, 0]
    views = list(dict.fromkeys(view for member in pool.members for view in member.options["views"]))
    known = {}
    for number, view in enumerate(views, start=1):
        print(f"fit {view} ({number}/{len(views)})", file=sys.stderr)
        known[view] = fitted(view, texts, train.y)
    for member in pool.members:
        assert member.weights is not None, f"member {member.name} needs a weights file"
        path = Path(pool_path).parent / member.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{view}:{name}": array for view in member.options["views"] for name, array in known[view].items()}
        write_atomically(path, lambda file, arrays=arrays: np.savez(file, **arrays))
    print(f"trained {len(pool.members)} members on {len(train)} texts", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
