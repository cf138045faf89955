"""A service under steady load for some time: does it grow?

    python -m benchmarks.soak --minutes 10 [--rate 100] [--json OUT] [--plot soak.png]
    python -m benchmarks.soak --quick

Members that take five milliseconds per item, so that each can answer two hundred per second; queries arrive at half of that,
whatever the service does. Every few seconds: memory, open files and threads of router, members, controller, proxy and Ray, tasks
of the router, size of the ledger, whose files rotate at 1 MiB. Exit code 1 if a process surely grows by more than `--bound` bytes
per query in the second half, if more than one query of a hundred is refused, if an answer or a record is missing, or if files or
tasks pile up. In less than five minutes processes still warm up: growth is shown then, and not judged.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.http_load import Load, open_loop
from benchmarks.serving import NUMBERS, PAYLOAD, fleet, plan_of, requests_of
from benchmarks.soak_plot import draw
from benchmarks.soak_watch import KINDS, Sample, Watcher, second_half, slope_of
from coe.ledger import LedgerLimits, read_ledger
from coe.records import Answer
from coe.serving import cluster
from coe.serving.labels import SERVE_ENV

SECONDS_PER_ITEM = 0.005
LATENCY_S = 0.5
BATCH_SIZE = 8
WARM_UP_S = 5.0
SETTLE_S = 2.0
"""The proxy takes over a new application a moment after Serve calls it ready."""
LEAST_S = 300.0
"""From here on growth is judged."""
REFUSED = 0.01
"""Share of queries that may be refused, since other work on the machine slows members."""
PILED_UP = 100
"""So many more open files or tasks in the last quarter than in the one before are a pile."""
KIB = 1024


@dataclass(frozen=True)
class Service:
    """Where it runs, and what to watch."""

    port: int
    ledger: Path
    state: cluster.ClusterState


def main() -> int:
    """Run, publish, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="one minute; growth is not judged")
    parser.add_argument("--rate", type=float, default=0.5 / SECONDS_PER_ITEM, help="queries per second")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between looks")
    parser.add_argument("--bound", type=float, default=200.0, help="bytes per query that count as growth")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    args = parser.parse_args()
    os.environ.update(SERVE_ENV)  # before Serve is imported, which reads them then
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    seconds = 60.0 if args.quick else 60 * args.minutes
    with _running() as service:
        warm = _load(service.port, args.rate, WARM_UP_S)
        watcher = Watcher(
            lambda: cluster.processes(service.state), f"http://127.0.0.1:{service.port}", service.ledger, args.every
        )
        with watcher:
            load = _load(service.port, args.rate, seconds)
    rows = [_row(kind, watcher.samples, args.rate, args.bound) for kind in KINDS]
    is_judged = seconds >= LEAST_S
    faults = [f"{row['process']} grows" for row in rows if row["grows"] and is_judged]
    faults += _piles(watcher.samples) + _missing(service, warm, load)
    publish("soak", rows, args.json)
    print(_summary(load, watcher.samples))
    if args.plot is not None:
        draw(watcher.samples, args.plot)
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _row(kind: str, samples: Sequence[Sample], rate: float, bound: float) -> dict[str, Any]:
    late = second_half(samples)
    slope = slope_of([s.at_s for s in late], [s.rss[kind] for s in late])
    return {
        "process": kind,
        "MiB": samples[0].rss[kind] / KIB**2,
        "at half": late[0].rss[kind] / KIB**2,
        "at end": samples[-1].rss[kind] / KIB**2,
        "KiB/min": slope.per_s * 60 / KIB,
        "±": slope.uncertainty_per_s * 60 / KIB,
        "B/query": slope.per_s / rate,
        "grows": slope.certain_per_s / rate > bound,
        "files": f"{late[0].files[kind]} → {samples[-1].files[kind]}",
        "threads": f"{late[0].threads[kind]} → {samples[-1].threads[kind]}",
        "tasks": f"{late[0].tasks} → {samples[-1].tasks}" if kind == "router" else "",
    }


def _piles(samples: Sequence[Sample]) -> list[str]:
    """Kinds of process whose files have piled up, and the router if its tasks have: medians of the last two quarters."""
    late = second_half(samples)
    third, last = late[: len(late) // 2], late[len(late) // 2 :]

    def rises(value: Callable[[Sample], int]) -> bool:
        return median(map(value, last)) - median(map(value, third)) > PILED_UP

    found = [f"open files of {k} pile up" for k in KINDS if rises(lambda s, k=k: s.files[k])]  # type: ignore[misc]
    return found + (["tasks of the router pile up"] if rises(lambda s: s.tasks) else [])


def _missing(service: Service, *loads: Load) -> list[str]:
    """What was answered and is not in the ledger, or was not answered."""
    read = read_ledger(service.ledger)
    answered = sum(load.statuses.get(200, 0) for load in loads)
    other: Counter[int] = Counter()
    for load in loads:
        other.update({s: n for s, n in load.statuses.items() if s != 200})
    refused = other.get(503, 0)
    is_fault = other.total() > refused or refused > REFUSED * (answered + refused)
    found = [f"not answered, by status: {dict(other)}"] if is_fault else []
    written = sum(isinstance(record, Answer) for record in read.records)
    if written < answered or read.unaccounted:
        found.append(f"{answered} answered, {written} in the ledger, {read.unaccounted} known to be missing")
    return found + [f"ledger: {note}" for note in read.notes]


def _summary(load: Load, samples: Sequence[Sample]) -> str:
    late = len(load.latency_s) // 2
    first, second = (1000 * float(np.quantile(part, 0.99)) for part in (load.latency_s[:late], load.latency_s[late:]))
    last = samples[-1]
    answered, refused = load.statuses.get(200, 0), load.statuses.get(503, 0)
    return (
        f"{answered:,} answers and {refused:,} refusals in {last.at_s:.0f} s; p99 {first:.0f} ms in the first half and"
        f" {second:.0f} ms in the second; ledger {last.ledger_bytes / KIB**2:.1f} MiB in {last.ledger_files} files"
    )


def _load(port: int, rate: float, seconds: float) -> Load:
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    return open_loop(port, requests_of(PAYLOAD), due)


@contextmanager
def _running() -> Iterator[Service]:
    """The service on a local cluster. Its ledger lies there until it has been read, after the service has ended."""
    import ray
    from ray import serve

    from coe.serving.app import CascadeArgs, build

    port = cluster.free_port()
    plan = plan_of(NUMBERS[PAYLOAD], SECONDS_PER_ITEM, LATENCY_S, BATCH_SIZE)
    folder = Path(tempfile.mkdtemp(prefix="coe-soak-"))
    state = cluster.up(fleet(), folder / "state", settings=SERVE_ENV)
    try:
        ray.init(address=state.address, logging_level="ERROR", log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        args = CascadeArgs(plan=plan, ledger_dir=str(folder / "ledger"), ledger=LedgerLimits(max_part_mib=1))
        serve.run(build(args), name="coe", route_prefix="/")
        time.sleep(SETTLE_S)
        yield Service(port, folder / "ledger", state)
        serve.delete("coe")
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.down(folder / "state")


if __name__ == "__main__":
    sys.exit(main())
