"""How often a certificate's claim is wrong: many resamples of a population whose loss rates are known.

    python -m benchmarks.coverage [--resamples 2000] [--json OUT]

A population of simulated members (correlated errors) stands for the world; the path of gates is fixed on other data. Every
resample is certified, and the claim of the certified gate is compared with its true loss rate. The share of wrong
claims must not exceed delta. Beside it the naive choice: the loosest gate whose *observed* loss is within epsilon.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.figures import publish
from coe.cascade.calibrate import path
from coe.cascade.certify import p_value
from coe.cascade.evaluate import accuracy_interval, losses, route
from coe.table import PredictionTable
from tests import factories

EPSILON, DELTA = 0.03, 0.05


def loss_rows(table: PredictionTable) -> np.ndarray:
    """(gates, items): where each gate, strictest first, loses an item that the reference has right."""
    gates = path(factories.cascade(), factories.table(n=2000, seed=12).split("calibration"))[::3]
    reference = table.answers[:, table.members.index("large")]
    return np.array([losses(route(gate, table).answer, reference, table.labels) for gate in gates])


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    rows = loss_rows(factories.table(n=40_000, seed=11))
    truth = rows.mean(axis=1)
    rng = np.random.default_rng(13)
    published = []
    for items in (100, 300, 1000, 3000):
        wrong = naive_wrong = certified = 0
        for _ in range(args.resamples):
            observed = rows[:, rng.integers(0, rows.shape[1], items)].sum(axis=1)
            passes = [p_value(int(k), items, EPSILON) <= DELTA for k in observed]
            gate = (passes.index(False) if False in passes else len(passes)) - 1
            certified += gate >= 0
            wrong += gate >= 0 and truth[gate] > EPSILON
            within = np.flatnonzero(observed / items <= EPSILON)
            naive_wrong += len(within) > 0 and truth[within[-1]] > EPSILON
        low, high = accuracy_interval(wrong, args.resamples)
        published.append(
            {
                "items": items,
                "resamples": args.resamples,
                "delta": DELTA,
                "wrong claims": wrong / args.resamples,
                "95% low": low,
                "95% high": high,
                "certified": certified / args.resamples,
                "naive wrong": naive_wrong / args.resamples,
            }
        )
    publish("coverage", published, args.json)


if __name__ == "__main__":
    main()
