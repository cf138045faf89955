"""A load step on the local fleet: replicas that follow Serve's default policy, and replicas that follow `reach`.

    python -m benchmarks.scaling [--json OUT] [--quick]

Two members answer first, and where they disagree (three queries of ten) one that takes 100 ms per query. After a quiet time the
load is multiplied; both policies hear of it as often, wait as long and may use as many replicas. Members sleep for as long as
they would compute, so that one machine carries all of them: queues, routing, scaling and starting processes are real.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.figures import publish
from benchmarks.serving_apps import CLASSES, first_tier
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
    Scaling,
    Tier,
    Workload,
)

BASE_PER_S, STEP_PER_S, QUICK_STEP_PER_S = 8.0, 48.0, 24.0
BASE_S, STEP_S, QUICK_STEP_S = 15.0, 50.0, 25.0
PROMISE_S = 1.0
WINDOW_S, RECOVERED = 2.0, 0.95
SECONDS = {"first": 0.004, "second": 0.004, "last": 0.1}
"""Per query of a replica."""
MOST_REPLICAS = 8
DAY = "2026-11-01"


def slept(batch: np.ndarray, member: int, seconds: float) -> np.ndarray:
    """Probabilities of a member that computes for so long per item; a fixed share of the items divides the first two."""
    time.sleep(seconds * len(batch))
    return first_tier(batch, member)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half the step for half the time, to see that it works")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    rate, seconds = (QUICK_STEP_PER_S, QUICK_STEP_S) if args.quick else (STEP_PER_S, STEP_S)
    from coe.serving.cluster import free_port

    with _running() as (address, folder):
        port = free_port()
        rows = [_row(policy, address, folder, port, rate, seconds) for policy in ("ongoing", "reach")]
    publish("scaling", rows, args.json)


def _scaling(policy: Literal["ongoing", "reach"]) -> Scaling:
    return Scaling(
        policy=policy,
        max_replicas=MOST_REPLICAS,
        interval_s=0.5,
        look_back_s=5.0,
        upscale_delay_s=2.0,
        downscale_delay_s=20.0,
    )


# --- The plan ------------------------------------------------------------------------------------------------------------


def _plan() -> Plan:
    """Every replica owns an accelerator, since its model fills the memory of one."""
    from coe.placement.optimize import plan
    from coe.table import PredictionTable

    numbers = {"first": 0, "second": 1, "last": 0}
    members = tuple(
        Member(
            name=n, runner="callable", model="benchmarks.scaling:slept", options={"member": m, "seconds": SECONDS[n]}
        )
        for n, m in numbers.items()
    )  # fmt: skip
    values = np.random.default_rng(0).random((2000, 1))
    answers = np.stack([first_tier(values, m).argmax(axis=1) for m in numbers.values()], axis=1)
    table = PredictionTable(
        members=tuple(numbers),
        classes=tuple(f"c{i}" for i in range(CLASSES)),
        items=np.array([f"i{i}" for i in range(2000)]),
        labels=answers[:, 2],
        splits=np.array(["certification"] * 2000),
        answers=answers,
    )
    return plan(
        Pool(classes=table.classes, input_shape=(1,), members=members),
        [Cascade(tiers=(Tier(members=("first", "second"), rule="vote", quorum=2), Tier(members=("last",))))],
        table,
        Profiles(profiles=tuple(_profile(n, "slow" if n != "last" else "fast") for n in numbers)),
        Prices(offers=tuple(n.offer for n in _fleet().nodes)),
        Workload(
            rate_per_s=BASE_PER_S, latency_s=PROMISE_S, reference="last", max_accuracy_loss=0.05, batch_wait_s=0.002
        ),
        inputs={},
        uncertified=True,
        reasons=False,
    )  # fmt: skip


def _profile(member: str, accelerator: str) -> Profile:
    timings = tuple(
        BatchTiming(batch_size=b, latency_p50_s=b * SECONDS[member], latency_p99_s=b * SECONDS[member]) for b in (1, 2)
    )
    return Profile(
        member=member, accelerator=accelerator, timings=timings, memory_gib=15.0, origin="estimated", error_factor=1.1,
        source="for this benchmark", date=DAY,
    )  # fmt: skip


def _fleet() -> Fleet:
    router = Offer(
        node_type="router", accelerator="CPU-x", accelerators_per_node=0, vcpus=4, memory_gib=8, usd_per_hour=0.1,
        quota=1, source="for this benchmark", date=DAY,
    )  # fmt: skip
    slow = router.model_copy(
        update={"node_type": "slow", "accelerator": "slow", "accelerators_per_node": 2, "accelerator_memory_gib": 16}
    )
    fast = slow.model_copy(update={"node_type": "fast", "accelerator": "fast", "accelerators_per_node": MOST_REPLICAS})
    return Fleet(name="scaling", nodes=tuple(FleetNode(offer=o, count=1, cpu_share=1.0) for o in (router, slow, fast)))


# --- Running and measuring --------------------------------------------------------------------------------------------------


@contextmanager
def _running() -> Iterator[tuple[str, Path]]:
    """The fleet, a driver connected to it, and a folder for what is deployed."""
    import ray

    from coe.serving import cluster
    from coe.serving.labels import SERVE_ENV

    at_once = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}  # no load balancer needs half a minute's notice
    with tempfile.TemporaryDirectory(prefix="coe-scaling-") as name:
        folder = Path(name)
        state = cluster.up(_fleet(), folder, settings={**SERVE_ENV, **at_once})
        try:
            ray.init(address=state.address, logging_level="ERROR", log_to_driver=False)
            yield state.address, folder
        finally:
            ray.shutdown()
            cluster.down(folder)


def _row(
    policy: Literal["ongoing", "reach"], address: str, folder: Path, port: int, rate: float, seconds: float
) -> dict[str, Any]:
    """What a load step does under a policy."""
    from ray import serve

    from coe.files import to_yaml, write_text
    from coe.serving.build import APPLICATION, serve_config
    from coe.serving.ready import wait_until_running
    from coe.serving.rehearsal import deploy

    plan = _plan()
    write_text(folder / "serve.yaml", to_yaml(serve_config(plan, ledger_dir=None, scaling=_scaling(policy), port=port)))
    deploy(folder / "serve.yaml", address, 120.0)
    wait_until_running(address, 120.0)
    last = next(p.deployment for p in plan.placements if p.member == "last")
    _send(port, BASE_PER_S, BASE_S, seed=1)
    with _watched(last) as counts:
        began_s = time.monotonic()
        due_s, latency_s, statuses = _send(port, rate, seconds, seed=2)
        ended_s = time.monotonic()
    serve.delete(APPLICATION)
    kept = (statuses == 200) & (latency_s <= PROMISE_S)
    grown = [at - began_s for at, n in counts if n > 1]
    return {
        "policy": "Serve's default" if policy == "ongoing" else "reach",
        "queries/s": f"{BASE_PER_S:g} → {rate:g}",
        "within the promise": f"{kept.mean():.1%}",
        "refused": f"{(statuses == 503).mean():.1%}",
        "failed": int(((statuses != 200) & (statuses != 503)).sum()),
        "p99 s": float(np.quantile(latency_s[statuses == 200], 0.99)),
        "second replica runs after s": min(grown) if grown else "never",
        "recovers after s": _recovery_s(due_s, kept),
        "most replicas": max(n for _, n in counts),
        "replica-seconds": _area(counts, began_s, ended_s),
    }


def _send(port: int, rate_per_s: float, seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open loop, Poisson: (queries,) seconds from the start when each was due, its latency from then, and its status."""
    import httpx

    rng = np.random.default_rng(seed)
    due_s = np.cumsum(rng.exponential(1 / rate_per_s, int(rate_per_s * seconds)))
    values = rng.random(len(due_s))
    latency_s, statuses = np.zeros(len(due_s)), np.zeros(len(due_s), dtype=np.int64)

    async def one(client: httpx.AsyncClient, number: int, began_s: float) -> None:
        try:
            answer = await client.post("/predict", json={"items": [{"input": [values[number]]}]})
            statuses[number] = answer.status_code
        except httpx.HTTPError:
            statuses[number] = 0
        latency_s[number] = time.monotonic() - began_s - due_s[number]

    async def everyone() -> None:
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30.0, limits=limits) as client:
            began_s, tasks = time.monotonic(), []
            for number, due in enumerate(due_s):
                await asyncio.sleep(max(0.0, began_s + due - time.monotonic()))
                tasks.append(asyncio.create_task(one(client, number, began_s)))
            await asyncio.gather(*tasks)

    asyncio.run(everyone())
    return due_s, latency_s, statuses


@contextmanager
def _watched(deployment: str) -> Iterator[list[tuple[float, int]]]:
    """(when, replicas that run), twice a second or so; from a thread, since asking takes a while."""
    from coe.serving.build import APPLICATION
    from coe.serving.following import running_replicas

    counts: list[tuple[float, int]] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.5):
            counts.append((time.monotonic(), running_replicas(APPLICATION)[deployment]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join()


def _recovery_s(due_s: np.ndarray, kept: np.ndarray) -> float | str:
    """Seconds after which every window keeps the promise for 95% of its queries."""
    windows = [kept[(due_s >= at) & (due_s < at + WINDOW_S)] for at in np.arange(0.0, due_s[-1], WINDOW_S)]
    good = [len(w) == 0 or w.mean() >= RECOVERED for w in windows]
    if not good[-1]:
        return "never"
    bad = [number for number, is_good in enumerate(good) if not is_good]
    return WINDOW_S * (bad[-1] + 1) if bad else 0.0


def _area(counts: Sequence[tuple[float, int]], began_s: float, ended_s: float) -> float:
    """Replicas times seconds; a count holds until the next."""
    at = [began_s, *(t for t, _ in counts[1:]), ended_s]
    return float(sum(n * (b - a) for (_, n), a, b in zip(counts, at, at[1:], strict=False)))


if __name__ == "__main__":
    main()
