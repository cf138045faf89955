"""What serving costs: an echo on Ray Serve, the composition that a Serve user would write, and `coe`, side by side.

    python -m benchmarks.serving [--json OUT] [--seconds 8] [--clients 1,32,128]

(a) a Serve deployment that echoes; (b) an ingress that asks three members per request through `@serve.batch` and a fourth where
they disagree (three items of ten); (c) a `coe` service of the same members. Members are lookups, so that only the serving is
measured. Once with Serve's settings for throughput, which `coe` needs, and (b) once more at Serve's defaults. Closed loop at
several numbers of clients and body sizes, open loop at half of what (c) reached. Processor time is counted by process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import publish
from benchmarks.http_load import Load, closed_loop, open_loop, request_bytes
from benchmarks.serving_apps import CLASSES, ESCALATED, MOST_PER_BATCH
from coe.serving import cluster
from coe.serving.labels import SERVE_ENV
from coe.types import (
    BatchTiming,
    Cascade,
    Fleet,
    FleetNode,
    Member,
    Offer,
    Plan,
    Pool,
    Prices,
    Profile,
    Profiles,
    Tier,
    Workload,
)

MEMBERS = ("first", "second", "third")
NUMBERS = {"1 KB": 52, "64 KB": 3_300, "600 KB": 31_000}
"""Body -> how many numbers an item has; as JSON text a number takes about 19 bytes."""
BINARY = "as binary tensors"
WARM_UP_S = 3.0
SETTLE_S = 2.0
"""The proxy takes over a new application a moment after Serve calls it ready."""
PAYLOAD = "1 KB"
PHASES: dict[str, dict[str, str]] = {"throughput": dict(SERVE_ENV), "defaults": {}}
"""Serve's settings."""
DAY = "2026-11-01"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--clients", default="1,32,128")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    clients = [int(c) for c in args.clients.split(",")]
    if args.phase is not None:
        rows = _phase(args.phase, clients, args.seconds)
        Path(args.json).write_text(json.dumps(rows))
        return
    rows = [row for phase in PHASES for row in _in_process(phase, args)]
    for row in rows:
        row |= _ratios(row, rows)
    publish("serving", rows, args.json)


def _in_process(phase: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one phase, in a process of its own: Serve reads its settings when it is imported."""
    environment = {k: v for k, v in os.environ.items() if k not in SERVE_ENV} | PHASES[phase]
    with tempfile.TemporaryDirectory(prefix="coe-serving-") as folder:
        out = Path(folder) / "rows.json"
        asked = ["--phase", phase, "--seconds", str(args.seconds), "--clients", args.clients, "--json", str(out)]
        subprocess.run([sys.executable, "-m", "benchmarks.serving", *asked], env=environment, check=True)
        rows: list[dict[str, Any]] = json.loads(out.read_text())
        return rows


def _phase(phase: str, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    rows = []
    with running(PHASES[phase]) as serve:
        if phase == "defaults":
            with serve(_apps(NUMBERS[PAYLOAD])["(b) composition"]):
                return _closed("(b) at Serve's defaults", PAYLOAD, clients, seconds)
        for body in NUMBERS:
            for name, app in _apps(NUMBERS[body]).items():
                with serve(app):
                    own = _closed(name, body, clients if body == PAYLOAD else clients[1:2], seconds)
                    if name.startswith("(c)") and body == PAYLOAD:
                        own.append(_open(name, body, max(r["per s"] for r in own) / 2, seconds))
                    elif name.startswith("(c)"):
                        own += _closed(f"{name}, {BINARY}", body, clients[1:2], seconds)
                rows += own
    return rows


def _ratios(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Requests per second over those of (a) and (b) in the same circumstances."""
    alike = {
        r["what"][:3] if "defaults" not in r["what"] else "defaults": r["per s"]
        for r in rows
        if (r["loop"], r["body"], r["clients"]) == (row["loop"], row["body"], row["clients"])
    }
    return {
        f"times {name}": row["per s"] / alike[name] if name in alike and row["loop"] == "closed" else ""
        for name in ("(a)", "(b)", "defaults")
    }


# --- The three applications ------------------------------------------------------------------------------------------------


def _apps(numbers: int) -> dict[str, Callable[[], Any]]:
    from benchmarks import serving_apps
    from coe.serving.app import CascadeArgs, build

    def service() -> Any:
        plan = plan_of(numbers, batch_size=MOST_PER_BATCH)
        return build(CascadeArgs(plan=plan, ledger_dir=tempfile.mkdtemp(prefix="coe-ledger-")))

    return {"(a) echo": serving_apps.echo, "(b) composition": serving_apps.naive, "(c) coe": service}


def plan_of(numbers: int, seconds_per_item: float = 0.0, latency_s: float = 2.0, batch_size: int = 32) -> Plan:
    """Three members in parallel, unanimous or on to the fourth; a replica of each, as in (b)."""
    from coe.placement.optimize import plan
    from coe.table import PredictionTable

    names = (*MEMBERS, "last")
    options = {"first": 0, "second": 1, "third": 2, "last": 0}
    target = "benchmarks.serving_apps:first_tier"
    members = tuple(
        Member(
            name=n,
            runner="callable",
            model=target,
            options={"member": options[n], "seconds_per_item": seconds_per_item},
        )
        for n in names
    )
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    answers = np.stack([_answers(values, options[n]) for n in names], axis=1)
    table = PredictionTable(
        members=names,
        classes=tuple(f"c{i}" for i in range(CLASSES)),
        items=np.array([f"i{i}" for i in range(1000)]),
        labels=answers[:, 3],
        splits=np.array(["certification"] * 1000),
        answers=answers,
    )
    timings = tuple(BatchTiming(batch_size=b, latency_p50_s=1e-4, latency_p99_s=2e-4) for b in (1, 32))
    profiles = Profiles(
        profiles=tuple(
            Profile(
                member=n, accelerator="X", timings=timings, memory_gib=0.1, origin="estimated", error_factor=2.0,
                source="for this benchmark", date=DAY,
            )
            for n in names
        )
    )  # fmt: skip
    found = plan(
        Pool(classes=table.classes, input_shape=(numbers,), members=members),
        [Cascade(tiers=(Tier(members=MEMBERS, rule="vote", quorum=3), Tier(members=("last",))))],
        table,
        profiles,
        Prices(offers=tuple(n.offer for n in fleet().nodes)),
        Workload(
            rate_per_s=1000.0, latency_s=latency_s, reference="last", max_accuracy_loss=0.05, batch_wait_s=0.002
        ),
        inputs={},
        uncertified=True,
        reasons=False,
    )  # fmt: skip
    busy = {"full_batch_s": seconds_per_item * batch_size} if seconds_per_item else {}
    placements = tuple(p.model_copy(update={"batch_size": batch_size, "replicas": 1, **busy}) for p in found.placements)
    return found.model_copy(update={"placements": placements})


def _answers(values: np.ndarray, member: int) -> np.ndarray:
    answer = (values * 1000).astype(np.int64) % CLASSES
    return np.where(values < ESCALATED, (answer + member) % CLASSES, answer)


def fleet() -> Fleet:
    router = Offer(
        node_type="router", accelerator="CPU-x", accelerators_per_node=0, vcpus=4, memory_gib=8, usd_per_hour=0.1,
        source="for this benchmark", date=DAY,
    )  # fmt: skip
    box = router.model_copy(
        update={
            "node_type": "box",
            "accelerator": "X",
            "accelerators_per_node": 1,
            "accelerator_memory_gib": 16,
            "vcpus": 8,
        }
    )
    return Fleet(
        name="serving",
        nodes=(FleetNode(offer=router, count=1, cpu_share=1.0), FleetNode(offer=box, count=1, cpu_share=1.0)),
    )


# --- Running and measuring ---------------------------------------------------------------------------------------------------


@contextmanager
def running(settings: Mapping[str, str]) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """A local cluster with these settings; gives what serves one application at a time. With any settings, Serve's access log is
    off, as in the files that `coe build` writes."""
    import ray
    from ray import serve

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="coe-serving-") as folder:
        state = cluster.up(fleet(), Path(folder), settings=settings)
        try:
            ray.init(address=state.address, logging_level="ERROR", log_to_driver=False)
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})

            logging = {"enable_access_log": False, "log_level": "WARNING"} if settings else None

            @contextmanager
            def one(app: Callable[[], Any]) -> Iterator[None]:
                serve.run(app(), name="coe", route_prefix="/", logging_config=logging)
                time.sleep(SETTLE_S)
                try:
                    yield
                finally:
                    serve.delete("coe")

            yield one
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.down(Path(folder))


PORT = cluster.free_port()


def requests_of(body: str, *, is_binary: bool = False) -> list[bytes]:
    """Requests with an item each, as JSON or as binary tensors of the Open Inference Protocol."""
    rows = np.random.default_rng(1).random((64, NUMBERS[body]))
    if not is_binary:
        return [request_bytes("/predict", json.dumps({"items": [{"input": row}]}).encode()) for row in rows.tolist()]
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, NUMBERS[body]]}
    size = {"parameters": {"binary_data_size": 4 * NUMBERS[body]}}
    head = json.dumps({"inputs": [{**tensor, **size}]}).encode()
    framing = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return [
        request_bytes("/v2/models/cascade/infer", head + row.tobytes(), "application/octet-stream", framing)
        for row in rows.astype("<f4")
    ]


def _closed(what: str, body: str, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    requests, rows = requests_of(body, is_binary=what.endswith(BINARY)), []
    closed_loop(PORT, requests, 8, WARM_UP_S)
    for count in clients:
        before = cpu_s()
        load = closed_loop(PORT, requests, count, seconds)
        rows.append(_row(what, "closed", body, count, load, before))
    return rows


def _open(what: str, body: str, rate: float, seconds: float) -> dict[str, Any]:
    due = np.cumsum(np.random.default_rng(2).exponential(1 / rate, int(rate * seconds)))
    before = cpu_s()
    return _row(what, "open", body, round(rate), open_loop(PORT, requests_of(body), due), before)


def _row(what: str, loop: str, body: str, clients: int, load: Load, before: Mapping[str, float]) -> dict[str, Any]:
    """clients: connections in a closed loop, requests per second in an open one."""
    after, answered = cpu_s(), max(1, load.statuses.get(200, 0))
    spent = {name: 1000 * (after[name] - before.get(name, 0.0)) / answered for name in after}
    row = {
        "what": what,
        "loop": loop,
        "body": body,
        "clients": clients,
        "per s": load.per_s,
        "p50 ms": 1000 * load.quantile(0.5),
        "p99 ms": 1000 * load.quantile(0.99),
        "other statuses": sum(n for s, n in load.statuses.items() if s != 200),
        "CPU ms per query: ingress": spent["ingress"],
        "members": spent["members"],
        "proxy": spent["proxy"],
        "other": spent["other"],
    }
    print({k: v if isinstance(v, str | int) else round(v, 2) for k, v in row.items()}, flush=True)
    return row


def cpu_s() -> dict[str, float]:
    """Processor seconds so far of the processes that serve, by what they are; the client is this process and not counted."""
    spent = {"ingress": 0.0, "members": 0.0, "proxy": 0.0, "other": 0.0}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if "ServeReplica:coe:" in line:
            is_ingress = any(name in line for name in (":router", ":Naive", ":Echo")) and "NaiveMember" not in line
            spent["ingress" if is_ingress else "members"] += seconds
        elif "haproxy" in line or "Proxy" in line:
            spent["proxy"] += seconds
        elif "raylet" in line or "gcs_server" in line or "ServeController" in line:
            spent["other"] += seconds
    return spent


if __name__ == "__main__":
    main()
