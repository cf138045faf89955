"""How fast the exhaustive search is, per configuration, beside scikit-fallback's grid search in the same run.

    python -m benchmarks.search_speed --data FOLDER [--json OUT]

Ours: every first tier of up to three members and last tier of up to two, every distinct threshold of the mean probability,
carried and not, on half of the items. Theirs: ThresholdCascadeClassifierCV over one pair at its default grid of ten thresholds
and two folds, with estimators that only look their recorded probabilities up. FOLDER: labels.npz, top5.npz, models.csv.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from benchmarks.cascades import SPEED
from benchmarks.figures import publish
from coe.cascade.search import search
from coe.cascade.space import Space
from coe.cost.calls import CallCosts, call_costs
from coe.profiler.recorded import Asked, import_predictions
from coe.table import PredictionTable

SPACE = Space(first_members=3, last_members=2, rules=("score",))
HALVES = {"calibration": 0.5, "test": 0.5}
WARM_ITEMS = 400


class Replayed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator that looks up what a member recorded; an item is its row number."""

    def __init__(self, probabilities: np.ndarray | None = None) -> None:
        self.probabilities = probabilities

    def fit(self, x: np.ndarray, y: np.ndarray) -> Replayed:  # noqa: ARG002  # nothing to learn
        assert self.probabilities is not None
        self.classes_ = np.arange(self.probabilities.shape[1])
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        assert self.probabilities is not None
        return self.probabilities[x[:, 0].astype(int)]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[self.predict_proba(x).argmax(axis=1)]


def dense(table: PredictionTable, member: str) -> np.ndarray:
    """(items, classes) probabilities, the rest spread evenly."""
    column = table.members.index(member)
    assert table.probs is not None
    assert table.top is not None
    listed = table.probs[:, column].astype(np.float64)
    left = np.maximum(0, 1 - listed.sum(axis=1)) / (len(table.classes) - listed.shape[1])
    result = np.repeat(left[:, None], len(table.classes), axis=1)
    np.put_along_axis(result, table.top[:, column].astype(np.int64), listed, axis=1)
    return result


def ours(table: PredictionTable, costs: CallCosts, threads: int) -> tuple[float, int]:
    """Seconds and configurations."""
    started = time.perf_counter()
    front = search(table, costs, table.members[0], 0.01, 0.05, SPACE, threads=threads)
    return time.perf_counter() - started, front.evaluated


def theirs(table: PredictionTable, costs: CallCosts) -> tuple[float, int]:
    """Seconds and configurations of one pair."""
    from skfb.ensemble import ThresholdCascadeClassifierCV

    mean = costs.mean()
    pair = sorted(mean, key=mean.__getitem__)[:: len(mean) - 1][:2]
    estimators = [Replayed(dense(table, m)).fit(np.zeros((1, 1)), np.zeros(1)) for m in pair]
    x = np.arange(len(table))[:, None].astype(np.float64)
    cv = ThresholdCascadeClassifierCV(estimators, costs=[mean[m] for m in pair], cv_thresholds=10, cv=2)
    started = time.perf_counter()
    cv.fit(x, table.labels)
    return time.perf_counter() - started, len(cv.all_cv_thresholds_)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    found = import_predictions("topk", args.data, Asked(cost=SPEED, uncosted="drop", splits=HALVES))
    assert found.costs is not None
    table, costs = found.table, call_costs(found.costs, found.table)
    small = table.rows(np.arange(len(table)) < WARM_ITEMS)
    search(small, costs, table.members[0], 0.01, 0.05, SPACE)  # compiles
    seconds, configurations = ours(table, costs, args.threads)
    memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    half = table.split("calibration")
    their_seconds, their_configurations = theirs(half, costs)
    per, their_per = seconds / configurations, their_seconds / their_configurations
    publish(
        "search_speed",
        [
            {
                "members": len(table.members),
                "items": len(half),
                "configurations": configurations,
                "seconds": seconds,
                "peak GiB": memory_gib,
                "ns each": 1e9 * per,
                "scikit-fallback s each": their_per,
                "times faster each": their_per / per,
            }
        ],
        args.json,
    )


if __name__ == "__main__":
    main()
