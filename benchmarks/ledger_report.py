"""What `coe report` takes for a large ledger: seconds and peak memory, by the number of records.

    python -m benchmarks.ledger_report [--records 2000000] [--routers 1] [--quick] [--json OUT]
    Example: python -m benchmarks.ledger_report --quick --json ledger_report.json

A made-up ledger in the form and with the records that a service at 1,000 queries per second writes: a record per query, one per
member call (of 8 queries on average), node time twice a second, and for a hundredth of the early answers a shadow audit. Each
report is a process of its own, as a person starts it: without a client's run, with and without recorded predictions. Seconds are
those of a processor, reading included; memory is the largest resident set of that process. The first row, a thousand records, is
what Python and its libraries take; the last column is what each further record adds to that.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.serving import MEMBERS, plan_of
from coe import files
from coe.ledger import Ledger, LedgerLimits
from coe.records import Answer, Audit, Auditing, BatchRun, NodeSpan, Record
from coe.table import PredictionTable
from coe.types import Plan

RATE_PER_S = 1000.0
PER_CALL = 8
"""Queries of one member call on average; every batch has a call of each of the three first members."""
EARLY, AUDITED = 0.8, 0.01
START_S = 1_790_000_000.0
LEAST = 1000
ITEMS = 50_000
"""Distinct items of the recorded predictions, which the queries repeat."""
FLUSHED = 50_000
MIB = 2**20
REPORT = """
import sys
from coe.cli.main import run
code = run(sys.argv[1:])
with open("/proc/self/status") as status:  # Linux: the largest resident set so far; getrusage counts the parent's, too
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


def records(plan: Plan, count: int) -> Iterator[Record]:
    """About `count` records in the order in which a router writes them."""
    rng = np.random.default_rng(0)
    types = {p.member: p.node_type for p in plan.placements}
    yield Auditing(START_S, AUDITED, 1.0, 0.05, 0.05)
    done, second = 1, 0
    while done < count:
        queries = int(RATE_PER_S / 2)
        came_s = START_S + second / 2 + np.sort(rng.random(queries)) / 2
        took_s = rng.lognormal(-4.0, 0.4, queries)
        is_early = rng.random(queries) < EARLY
        is_audited = is_early & (rng.random(queries) < AUDITED)
        made: list[Record] = []
        for i, at_s in enumerate(came_s.tolist()):
            item, answer = int(rng.integers(ITEMS)), int(rng.integers(10))
            end_s = at_s + float(took_s[i])
            tier = 0 if is_early[i] else 1
            made.append(Answer(f"i{item}", at_s, end_s, tier, answer, 2 / 3, False, agreed=2, voted=3))
            if is_audited[i]:
                outcome = "differs" if answer == 0 else "same"
                made.append(Audit(f"i{item}", 0, answer, answer, end_s, end_s + 0.01, outcome))
            if i % PER_CALL == 0:
                made += [BatchRun(0, m, types[m], 0.25, PER_CALL, at_s, 0.002) for m in MEMBERS]
            if i % (5 * PER_CALL) == 0:
                made.append(BatchRun(1, "last", types["last"], 0.25, PER_CALL, at_s, 0.004))
        made += [
            NodeSpan(n.node_type, n.count, n.usd_per_hour, START_S + second / 2, START_S + (second + 1) / 2)
            for n in plan.nodes
        ]
        yield from made[: count - done]
        done, second = done + len(made), second + 1


def write(plan: Plan, folder: Path, count: int) -> int:
    """Write a ledger as a router does; its bytes."""
    ledger = Ledger(folder / "router.jsonl", plan.fingerprint(), START_S, LedgerLimits(max_part_mib=64))
    for number, record in enumerate(records(plan, count), 1):
        ledger.append(record)
        if number % FLUSHED == 0:
            ledger.flush()
    ledger.close()
    return ledger.state.bytes


def recorded(plan: Plan) -> PredictionTable:
    """What the members said about the items."""
    rng = np.random.default_rng(1)
    names = tuple(m.name for m in plan.pool.members)
    return PredictionTable(
        members=names,
        classes=plan.pool.classes,
        items=np.array([f"i{i}" for i in range(ITEMS)]),
        labels=rng.integers(0, len(plan.pool.classes), ITEMS),
        splits=np.array(["test"] * ITEMS),
        answers=rng.integers(0, len(plan.pool.classes), (ITEMS, len(names))),
    )


def reported(plan: Path, ledger: Path, predictions: Path | None) -> tuple[float, float]:
    """Seconds of a processor and MiB of the report in a process of its own."""
    more = [] if predictions is None else ["--predictions", str(predictions)]
    options = ["report", "--plan", str(plan), "--ledger", str(ledger), *more, "--format", "json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", REPORT, *options], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        raise SystemExit(done.stderr)
    assert json.loads(done.stdout)["served"]["answered"] > 0
    return seconds, float(done.stderr.split()[-2]) / 1024


def copied(where: Path, routers: int) -> None:
    """As many ledgers as there are routers, all the same."""
    for part in list(where.iterdir()):
        for number in range(1, routers):
            shutil.copy(part, part.with_name(part.name.replace("router", f"router-{number}", 1)))


def row(plan: Plan, folder: Path, count: int, routers: int = 1) -> dict[str, Any]:
    """The figures of one ledger, or of as many alike as there are routers, which are removed again."""
    where = folder / str(count)
    size = write(plan, where, count) * routers
    copied(where, routers)
    plain = reported(folder / "plan.yaml", where, None)
    table = reported(folder / "plan.yaml", where, folder / "predictions.npz")
    for part in where.iterdir():
        part.unlink()
    return {
        "records": count * routers,
        "ledger MiB": size / MIB,
        "CPU s": plain[0],
        "peak MiB": plain[1],
        "CPU s, predictions": table[0],
        "peak MiB, predictions": table[1],
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2_000_000, help="of the largest ledger")
    parser.add_argument("--routers", type=int, default=1, help="so many such ledgers, for figures of many more records")
    parser.add_argument("--quick", action="store_true", help="100,000 records: seconds instead of minutes")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    most = 100_000 if args.quick else args.records
    plan = plan_of(4)
    with tempfile.TemporaryDirectory(prefix="coe-ledger-") as name:
        folder = Path(name)
        files.write(folder / "plan.yaml", plan)
        files.write_predictions(folder / "predictions.npz", recorded(plan))
        rows = [row(plan, folder, count) for count in (LEAST, most // 4)]
        rows.append(row(plan, folder, most, args.routers))
    publish("ledger_report", [{**r, "bytes per record": _slope(rows[0], r)} for r in rows], args.json)


def _slope(nothing: dict[str, Any], full: dict[str, Any]) -> float:
    """Bytes of memory for each record, beyond those of the smallest report; the larger of both reports."""
    return max(MIB * (full[key] - nothing[key]) / full["records"] for key in ("peak MiB", "peak MiB, predictions"))


if __name__ == "__main__":
    main()
