"""How fast one decision is: whole batches through `decide` against a loop over items with `collections.Counter`.

    python -m benchmarks.decide [--items 50000] [--json OUT]

The opponent is what agreement cascades usually do: count the votes of one item at a time. Both give the same answers,
which is checked. Figures are ratios of the same run; the median of several rounds.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from benchmarks.figures import publish
from coe.cascade.decide import decide
from coe.table import Outputs
from coe.types import Tier

ROUNDS = 7


def votes(items: int, members: int, classes: int, seed: int) -> np.ndarray:
    """(items, members) answers that agree often, as those of trained models do."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, items)
    wrong = rng.integers(0, classes, (items, members))
    return np.where(rng.random((items, members)) < 0.85, truth[:, None], wrong).astype(np.int64)


def item_by_item(answers: np.ndarray, quorum: int) -> tuple[list[int], list[bool]]:
    """Answer and acceptance of each item by counting its votes; ties go to the class seen first."""
    chosen, accepted = [], []
    for row in answers.tolist():
        answer, count = Counter(row).most_common(1)[0]
        chosen.append(answer)
        accepted.append(count >= quorum)
    return chosen, accepted


def median_s(run: Callable[[], object]) -> float:
    """Median wall seconds of `ROUNDS` runs after one warm-up."""
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    rows = []
    for members in (3, 5):
        answers = votes(args.items, members, classes=1000, seed=members)
        tier = Tier(members=tuple(f"m{i}" for i in range(members)), quorum=members)
        outputs = Outputs(answers)
        decision = decide(tier, outputs)
        chosen, accepted = item_by_item(answers, members)
        assert decision.answer.tolist() == chosen
        assert decision.accepted.tolist() == accepted
        ours = median_s(lambda tier=tier, outputs=outputs: decide(tier, outputs))
        theirs = median_s(lambda answers=answers, members=members: item_by_item(answers, members))
        one = Outputs(answers[:1])
        single = median_s(lambda tier=tier, one=one: [decide(tier, one) for _ in range(200)]) / 200
        rows.append(
            {
                "members": members,
                "items": args.items,
                "decide_us_per_item": 1e6 * ours / args.items,
                "counter_us_per_item": 1e6 * theirs / args.items,
                "ratio": theirs / ours,
                "batch_of_one_us": 1e6 * single,
            }
        )
    publish("decide", rows, args.json)


if __name__ == "__main__":
    main()
