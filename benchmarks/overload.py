"""Three times what a service can carry: what it still answers in time, and how soon it refuses the rest.

    python -m benchmarks.overload [--seconds 60] [--json OUT]

Members that take ten milliseconds per item, so that each can answer a hundred per second; queries arrive at eighty per second
and then at three hundred, whatever the service does (open loop). Goodput counts answers within the promise of half a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.http_load import open_loop
from benchmarks.serving import NUMBERS, PAYLOAD, PORT, plan_of, requests_of, running
from coe.serving.labels import SERVE_ENV

SECONDS_PER_ITEM = 0.01
CAPACITY_PER_S = 1 / SECONDS_PER_ITEM
LATENCY_S = 0.5
BATCH_SIZE = 4
TIMES = (0.8, 3.0)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        Path(args.json).write_text(json.dumps(_measured(args.seconds)))
        return
    with tempfile.TemporaryDirectory(prefix="coe-overload-") as folder:
        out = str(Path(folder) / "rows.json")
        command = [
            sys.executable,
            "-m",
            "benchmarks.overload",
            "--inside",
            "--seconds",
            str(args.seconds),
            "--json",
            out,
        ]
        subprocess.run(command, env={**os.environ, **SERVE_ENV}, check=True)  # Serve reads its settings when imported
        publish("overload", json.loads(Path(out).read_text()), args.json)


def _measured(seconds: float) -> list[dict[str, Any]]:
    from coe.serving.app import CascadeArgs, build

    plan = plan_of(NUMBERS[PAYLOAD], SECONDS_PER_ITEM, LATENCY_S, BATCH_SIZE)
    with running(SERVE_ENV) as serve, serve(lambda: build(CascadeArgs(plan=plan))):
        requests = requests_of(PAYLOAD)
        open_loop(PORT, requests, np.arange(0, 3, 1 / 50))
        return [_row(times, requests, seconds) for times in TIMES]


def _row(times: float, requests: list[bytes], seconds: float) -> dict[str, Any]:
    rate = times * CAPACITY_PER_S
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    seen: list[tuple[int, float]] = []
    open_loop(PORT, requests, due, 1_000, lambda _number, status, _body, spent: seen.append((status, spent)))
    answered = np.array([s for status, s in seen if status == 200])
    refused = np.array([s for status, s in seen if status == 503])
    row = {
        "times the capacity": times,
        "queries": len(seen),
        "answered in time, of capacity": float((answered <= LATENCY_S).sum() / (seconds * CAPACITY_PER_S)),
        "p99 of the answered s": float(np.quantile(answered, 0.99)),
        "refused": len(refused),
        "p99 of refusals s": float(np.quantile(refused, 0.99)) if len(refused) else 0.0,
        "other": len(seen) - len(answered) - len(refused),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
