"""How often a certificate's claim is wrong: many resamples of a population whose rates are known.

    python -m benchmarks.coverage [--resamples 1000] [--data FOLDER] [--json OUT]

A population of simulated members with correlated errors stands for the world, or, with --data, the recorded predictions of
real models (a folder as benchmarks.cascades takes it). The path of gates is fixed on other items. Every resample is certified
under each claim, and the claim of the certified gate is compared with its true rate. The share of wrong claims must
not exceed delta. Beside it the naive choice: the loosest gate whose *observed* rate is within epsilon.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.figures import publish
from coe.cascade.calibrate import front_path, path
from coe.cascade.certify import Observed
from coe.cascade.evaluate import accuracy_interval, losses, route
from coe.cascade.presets import preset
from coe.table import PredictionTable
from coe.types import Cascade, Claim
from tests import factories

DELTA = 0.05
EPSILON: dict[Claim, float] = {"excess": 0.02, "loss": 0.03, "disagreement": 0.05}
SIZES = (100, 300, 1000, 3000)
GATES = 12


def simulated() -> tuple[Sequence[Cascade], PredictionTable, str]:
    """A path of gates, the world, and the reference."""
    gates = path(factories.cascade(), factories.table(n=2000, seed=12).split("calibration"))
    return _thinned(gates), factories.table(n=40_000, seed=11), "large"


def recorded(folder: Path) -> tuple[Sequence[Cascade], PredictionTable, str]:
    """The same from recorded predictions: the front of pairs, found on one split, in the world of the others."""
    from benchmarks.cascades import loaded, searched, tasks_of

    data = loaded(folder, tasks_of(folder)[0], (), "", 0)
    front = searched(data, preset("idk-probability" if data.table.probs is not None else "agreement"))
    reference = max(front.singles, key=lambda p: p.stats.accuracy).cascade.members[0]
    world = data.table.rows(data.table.splits != "calibration")
    return _thinned(front_path(front)), world, reference


def _thinned(gates: Sequence[Cascade]) -> list[Cascade]:
    at = np.unique(np.linspace(0, len(gates) - 1, GATES).round().astype(int))
    return [gates[i] for i in at]


def rows_of(
    gates: Sequence[Cascade], world: PredictionTable, reference: str, claim: Claim
) -> tuple[np.ndarray, np.ndarray]:
    """(gates, items) each: where an item counts against the claim, and where in its favour."""
    yardstick = world.answers[:, world.members.index(reference)]
    against, favour = [], []
    for gate in gates:
        answer = route(gate, world).answer
        differs = claim == "disagreement"
        against.append(answer != yardstick if differs else losses(answer, yardstick, world.labels))
        favour.append(losses(yardstick, answer, world.labels) & (claim == "excess"))
    return np.array(against), np.array(favour)


@cache
def rejected(claim: Claim, lost: int, gained: int, items: int) -> bool:
    """Whether the test of the claim passes."""
    return Observed(claim, lost, gained, items).p_value(EPSILON[claim]) <= DELTA


def covered(
    claim: Claim, against: np.ndarray, favour: np.ndarray, items: int, resamples: int, rng: np.random.Generator
) -> dict[str, object]:
    """Shares of wrong claims among resamples of so many items."""
    truth = against.mean(axis=1) - favour.mean(axis=1)
    wrong = naive_wrong = certified = 0
    for _ in range(resamples):
        at = rng.integers(0, against.shape[1], items)
        lost, gained = against[:, at].sum(axis=1), favour[:, at].sum(axis=1)
        gate = -1
        for number, (a, b) in enumerate(zip(lost.tolist(), gained.tolist(), strict=True)):
            if not rejected(claim, a, b, items):
                break
            gate = number
        certified += gate >= 0
        wrong += gate >= 0 and truth[gate] > EPSILON[claim]
        within = np.flatnonzero((lost - gained) / items <= EPSILON[claim])
        naive_wrong += len(within) > 0 and truth[within[-1]] > EPSILON[claim]
    low, high = accuracy_interval(wrong, resamples)
    return {
        "claim": claim,
        "items": items,
        "resamples": resamples,
        "delta": DELTA,
        "wrong claims": wrong / resamples,
        "95% low": low,
        "95% high": high,
        "certified": certified / resamples,
        "naive wrong": naive_wrong / resamples,
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="recorded predictions instead of simulated ones")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    gates, world, reference = recorded(args.data) if args.data else simulated()
    rng = np.random.default_rng(13)
    published = []
    for claim in EPSILON:
        against, favour = rows_of(gates, world, reference, claim)
        for items in SIZES:
            published.append(covered(claim, against, favour, items, args.resamples, rng))
    publish("coverage", published, args.json)


if __name__ == "__main__":
    main()
