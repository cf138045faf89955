"""What shadow audits can show, how soon, and for how much: simulated streams whose rates are known.

    python -m benchmarks.audits [--quick] [--json OUT]
    Example: python -m benchmarks.audits --quick --json audits.json

Three tables. *Bounds*: how often the lower bound is wrong at any time in a stream, looked at after every draw; beside it the
exact binomial bound for one look, looked at as often. *Drift*: of all queries, 70% are answered early, and the last tier
answers differently on 1, 1.5, 2 or 3 times the share that the alarm is set to; how often drift is shown, after how many
audits, and what these cost where a query costs the last tier 0.002 dollars (a hosted model at 2 dollars per 1,000). At 1
time, drift that is shown is a false alarm. *Money*: a day of early answers whose audits cost up to a third more or less than
planned; what the dearest hour came to.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy.stats import binom

from benchmarks.figures import publish, save
from coe.cascade.anytime import log_evidence
from coe.cascade.evaluate import accuracy_interval
from coe.records import Answer, Audit, Auditing
from coe.report.audits import AuditSums
from coe.router.audits import Purse
from coe.types import Cascade, Tier

DELTA = 0.05
EARLY = 0.7
USD_PER_AUDIT = 0.002
CASCADE = Cascade(tiers=(Tier(members=("small", "other"), quorum=2), Tier(members=("large",))))


def bounds(rate: float, streams: int, draws: int, rng: np.random.Generator) -> dict[str, object]:
    """Shares of streams in which a lower bound was above the rate at some time."""
    wrong = peeked = 0
    so_far = np.arange(1.0, draws + 1)
    for _ in range(streams):
        hits = np.cumsum(rng.random(draws) < rate).astype(float)
        wrong += bool((log_evidence(hits, so_far, rate) >= math.log(1 / DELTA)).any())
        peeked += bool((binom.sf(hits - 1, so_far, rate) <= DELTA).any())
    low, high = accuracy_interval(wrong, streams)
    return {
        "rate": rate,
        "streams": streams,
        "draws": draws,
        "delta": DELTA,
        "wrong at any time": wrong / streams,
        "95% low": low,
        "95% high": high,
        "one-look bound": peeked / streams,
    }


def shown_after(alarm: float, times: float, share: float, most: int, rng: np.random.Generator) -> int | None:
    """Audits until drift is shown; None where it is not among `most`."""
    sums = AuditSums(CASCADE)
    sums.add(Auditing(0.0, share, 1.0, DELTA, alarm))
    differs = times * alarm / EARLY
    answers = (Answer("q", 0.0, 0.0, 0, 0, 1.0, False), Answer("q", 0.0, 0.0, 1, 0, 1.0, False))
    for audits in range(1, most + 1):
        for _ in range(int(rng.geometric(share * EARLY))):  # answers up to the next that is chosen
            sums.add(answers[0 if rng.random() < EARLY else 1])
        last = int(rng.random() < differs)
        sums.add(Audit("q", 0, 0, last, 0.0, float(audits), "differs" if last else "same"))
        if sums.drift_since_s is not None:
            return audits
    return None


def drift(alarm: float, times: float, streams: int, rng: np.random.Generator) -> dict[str, object]:
    """How soon drift is shown, in audits and dollars."""
    most = round(100 / alarm)
    found = [shown_after(alarm, times, 0.2, most, rng) for _ in range(streams)]
    after = [n for n in found if n is not None]
    shown = len(after)
    after += [most + 1] * (streams - len(after))
    median, latest = (int(np.quantile(after, share, method="higher")) for share in (0.5, 0.9))
    return {
        "alarm": alarm,
        "times": times,
        "streams": streams,
        "at most": most,
        "drift shown": shown / streams,
        "median": median if median <= most else None,
        "p90": latest if latest <= most else None,
        "usd": round(median * USD_PER_AUDIT, 3) if median <= most else None,
    }


def money(
    usd_per_hour: float, early_per_s: float, share: float, hours: int, rng: np.random.Generator
) -> dict[str, object]:
    """What is spent in every hour of a time in which early answers come at random."""
    purse, spent = Purse(usd_per_hour, USD_PER_AUDIT, 0.0), list[tuple[float, float]]()
    chosen, at_s = 0, 0.0
    while (at_s := at_s + rng.exponential(1 / (early_per_s * share))) < 3600 * hours:
        chosen += 1
        if purse.reserve(USD_PER_AUDIT, at_s):
            cost = USD_PER_AUDIT * rng.uniform(2 / 3, 4 / 3)
            purse.settle(USD_PER_AUDIT, cost)
            spent.append((at_s, cost))
    times, costs = np.array(spent).T
    total = np.concatenate([[0.0], np.cumsum(costs)])
    ends = np.searchsorted(times, times + 3600, side="right")
    return {
        "usd/hour": usd_per_hour,
        "chosen": chosen,
        "made": len(spent),
        "hours": hours,
        "usd in all": float(costs.sum()),
        "budget in all": usd_per_hour * hours,
        "dearest hour": float((total[ends] - total[:-1]).max()),
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the streams: seconds instead of minutes")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    rng = np.random.default_rng(17)
    streams, runs, hours = (50, 10, 3) if args.quick else (500, 100, 24)
    watched = [bounds(rate, streams, 5000, rng) for rate in (0.005, 0.02, 0.1)]
    shown = [drift(alarm, times, runs, rng) for alarm in (0.01, 0.05) for times in (1.0, 1.5, 2.0, 3.0)]
    paid = [money(usd, 50.0, 0.05, hours, rng) for usd in (0.1, 1.0, 100.0)]
    everything = [
        {"table": name, **row}
        for name, rows in (("bounds", watched), ("drift", shown), ("money", paid))
        for row in rows
    ]
    for name, rows in (("bounds", watched), ("drift", shown), ("money", paid)):
        publish(f"audits: {name}", rows, None)
    if args.json:
        save("audits", everything, args.json)


if __name__ == "__main__":
    main()
