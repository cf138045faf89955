"""Result files of `vllm bench serve --save-result` (benchmark_serving.py): one JSON object per run.

Keys used: date (``20250530-203806``), model_id, max_concurrency, completed, failed, request_throughput, median_e2el_ms,
p99_e2el_ms.
vLLM batches continuously: with n requests in flight one request takes the end-to-end latency, and n of them leave in that
time. So a run at max_concurrency n is the timing of batch size n. Runs without a limit on concurrency have queues of any
length in their latency and are refused, as are runs whose end-to-end latency was not recorded.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from coe.errors import InvalidInput, Problem
from coe.prices.sources.table import text_of
from coe.profiler.sources.asked import Asked, Reading, Timed, member_name

E2E = "record it: vllm bench serve --percentile-metrics ttft,tpot,itl,e2el"
_SATURATED = 0.5
"""With all n requests in flight all the time, throughput x latency is n."""


def read(path: Path, asked: Asked) -> Reading:
    """One timing: that of the run's concurrency."""
    run = _run(path)
    day = str(run.get("date", ""))
    told = f"{day[:4]}-{day[4:6]}-{day[6:8]}" if day[:8].isdigit() else None
    reading = Reading(asked.source_of("vLLM benchmark", path), asked.date(path, told))
    model = asked.member or run.get("model_id")
    if not isinstance(model, str) or not model:
        raise InvalidInput(Problem(f"{path}: model_id", "is missing", remedy="give --member"))
    if not asked.keeps_member(model):
        return reading
    if run.get("max_concurrency") is None:
        remedy = "measure with --max-concurrency, once per number of requests in flight"
        raise InvalidInput(Problem(f"{path}: max_concurrency", "is null: queues are in the latency", remedy=remedy))
    figures = {
        key: _positive(path, run, key, remedy)
        for key, remedy in (
            ("max_concurrency", ""),
            ("completed", ""),
            ("request_throughput", ""),
            ("median_e2el_ms", E2E),
            ("p99_e2el_ms", E2E),
        )
    }
    if run.get("failed"):
        reading.notes.append(f"{path.name}: {run['failed']} of its requests failed")
    device = asked.device(None, str(path))
    if isinstance(device, Problem):
        raise InvalidInput(device)
    busy = figures["request_throughput"] * figures["median_e2el_ms"] / 1e3
    if busy < _SATURATED * figures["max_concurrency"]:
        reading.notes.append(
            f"{path.name}: only {busy:.3g} of {figures['max_concurrency']:g} requests were in flight on average, so its "
            "latency is that of smaller batches"
        )
    if device is not None:
        reading.timed.append(
            Timed(
                where=str(path),
                member=member_name(model),
                accelerator=device.name,
                batch_size=int(figures["max_concurrency"]),
                p50_s=figures["median_e2el_ms"] / 1e3,
                p99_s=figures["p99_e2el_ms"] / 1e3,
                runs=int(figures["completed"]),
                said=str(run.get("date", "")),
            )
        )
    return reading


def _run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(text_of(path))
    except ValueError as error:
        raise InvalidInput(Problem(str(path), "is not valid JSON", str(error), "is the file complete?")) from None
    if not isinstance(run, dict) or "request_throughput" not in run:
        rule = "is not a result of vllm bench serve: it has no request_throughput"
        raise InvalidInput(Problem(str(path), rule, remedy="give the file that --save-result wrote"))
    return run


def _positive(path: Path, run: dict[str, Any], key: str, remedy: str) -> float:
    value = run.get(key)
    if value is None:
        raise InvalidInput(Problem(f"{path}: {key}", "is missing", remedy=remedy or "give a complete result file"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InvalidInput(Problem(f"{path}: {key}", "must be > 0", json.dumps(value)))
    return float(value)
