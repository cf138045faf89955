"""What a service does while things break: a local cluster under steady load, every answer checked item by item.

    python -m benchmarks.chaos [--rate 30] [--seconds 25] [--only "a node is lost"] [--json OUT]

A plan that survives the loss of a node, two routers, members that replay a table. One blow per row, five seconds after its load
began: processes killed with SIGKILL, a node's processes all at once, members that hang, reply with garbage or are slow, a changed
plan deployed whole and a changed threshold live. "cut" are connections that broke (with a killed router); each is asked again
once. "wrong" are answers that are neither what the plan's evaluation says, nor the last tier's, nor own up to a missing vote.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.figures import publish
from coe import files
from coe.cascade.evaluate import Routing, route
from coe.ledger import read_ledger
from coe.placement.optimize import plan
from coe.records import Answer
from coe.serving import cluster
from coe.serving.cluster import ClusterState
from coe.serving.labels import SERVE_ENV
from coe.table import PredictionTable
from coe.types import (
    BatchTiming,
    Cascade,
    Fleet,
    FleetNode,
    Member,
    Offer,
    Plan,
    Pool,
    Profile,
    Profiles,
    Tier,
    Workload,
)

DAY = "2026-11-01"
MEMBERS = ("one", "two", "three")
LAST = "last"
BLOW_S = 5.0
LATENCY_S = 1.0
TIMEOUT_S = 30.0
SERVICE_S = {"one": 0.0003, "two": 0.0003, "three": 0.0003, "last": 0.002}


@dataclass
class Seen:
    """What the client saw of one query."""

    row: int
    due_s: float
    status: int = 0
    answer: int = -1
    tier: int = -1
    degraded: bool = False
    cut: bool = False
    said: str = ""
    """The body of a refusal."""
    done_s: float = 0.0


@dataclass
class World:
    """The running service and how to hurt it."""

    plan: Plan
    table: PredictionTable
    state: ClusterState
    folder: Path
    port: int
    deploy: Callable[[dict[str, Any]], None]
    settle: Callable[[], None]
    """Returns when what was deployed last runs everywhere."""
    served: list[Plan] = field(default_factory=list)
    """Plans that may answer now, the one deployed last at the end."""

    @property
    def harm(self) -> Path:
        """The file that members obey."""
        return self.folder / "harm"


def main() -> None:
    """Break things and publish what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=30.0, help="queries per second; the plan is for twice as many")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each row")
    parser.add_argument("--only", help="a single blow, and the calm before it")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    os.environ.update(SERVE_ENV)  # before Serve is imported, which reads them then
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    rows = []
    with _running(args.rate) as world:
        asyncio.run(_load(world, args.rate, 5.0, lambda: None, "warm"))
        for name, blow in BLOWS.items():
            if args.only in (None, name) or name == "calm":
                rows.append(_row(world, name, blow, args))
    publish("chaos", rows, args.json)


# --- Blows -------------------------------------------------------------------------------------------------------------------


def _kill(world: World, name: str) -> None:
    """SIGKILL to one process whose title holds `name`, of this cluster alone."""
    for pid in cluster.processes(world.state):
        try:
            title = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if name in title:
            os.kill(pid, signal.SIGKILL)
            return
    raise RuntimeError(f"no process of the cluster is called {name}")


def _kill_member(world: World) -> None:
    _kill(world, f"ServeReplica:coe:{world.plan.placements[0].deployment}")


def _kill_many(world: World) -> None:
    """One replica of every first-tier member, a second apart."""
    for member in MEMBERS:
        _kill(world, f"ServeReplica:coe:{next(p.deployment for p in world.plan.placements if p.member == member)}")
        time.sleep(1.0)


def _kill_router(world: World) -> None:
    _kill(world, "ServeReplica:coe:router")


def _lose_node(world: World) -> None:
    """Everything that a node with members runs, raylet first."""
    busiest = max(world.plan.placements, key=lambda p: p.traffic)
    leader = next(n.pid for n in world.state.nodes if n.node_type == busiest.node_type)
    os.killpg(leader, signal.SIGKILL)


def _do_harm(member: str, harm: str, seconds: float) -> Callable[[World], None]:
    def blow(world: World) -> None:
        world.harm.write_text(f"{member} {harm}\n")
        time.sleep(seconds)
        world.harm.unlink()

    return blow


def _change_threshold(world: World) -> None:
    """Two votes of three instead of three, without a restart."""
    from coe.serving.build import live_config, serve_config

    eager = _eager(world.plan)
    world.served.append(eager)
    world.deploy(live_config(eager, serve_config(world.plan, ledger_dir=str(world.folder / "ledger"), port=world.port)))


def _deploy_anew(world: World) -> None:
    """Smaller batches: other deployments, which Serve replaces one after the other."""
    from coe.serving.build import serve_config

    smaller = world.plan.model_copy(
        update={"placements": tuple(p.model_copy(update={"batch_size": 2}) for p in world.plan.placements)}
    )
    world.served.append(smaller)
    world.deploy(serve_config(smaller, ledger_dir=str(world.folder / "ledger"), port=world.port))


BLOWS: dict[str, Callable[[World], None]] = {
    "calm": lambda _world: None,
    "a member's replica is killed": _kill_member,
    "three replicas are killed": _kill_many,
    "a router is killed": _kill_router,
    "a member hangs for 8 s": _do_harm("one", "hang", 8.0),
    "a member replies in the wrong shape for 8 s": _do_harm("two", "shape", 8.0),
    "a member replies with NaN for 8 s": _do_harm("three", "nan", 8.0),
    "the last member takes 0.15 s longer for 8 s": _do_harm(LAST, "slow", 8.0),
    "a threshold is changed live": _change_threshold,
    "a changed plan is deployed": _deploy_anew,
    "a node is lost": _lose_node,
}


# --- Load and what came of it --------------------------------------------------------------------------------------------------


def _row(world: World, name: str, blow: Callable[[World], None], args: argparse.Namespace) -> dict[str, Any]:
    world.served = world.served[-1:]
    prefix = f"{list(BLOWS).index(name)}-"
    seen, blown_s = asyncio.run(_load(world, args.rate, args.seconds, lambda: blow(world), prefix))
    right = [route(p.cascade, world.table) for p in world.served]
    wrong = [s for s in seen if s.status == 200 and not s.degraded and not any(_is_right(s, r, world) for r in right)]
    failed = [s for s in seen if s.status != 200]
    latency = np.array([s.done_s - s.due_s for s in seen if s.status == 200])
    bad = [s for s in seen if s.due_s > blown_s and (s.status != 200 or s.degraded or s.done_s - s.due_s > LATENCY_S)]
    if len(world.served) > 1:
        world.settle()
    time.sleep(2.0)  # the ledger is written twice a second
    records = [r for p in world.served for r in read_ledger(world.folder / "ledger", p.fingerprint()).records]
    written = {r.query_id for r in records if isinstance(r, Answer) and r.query_id.startswith(prefix)}
    row = {
        "blow": name,
        "queries": len(seen),
        "wrong": len(wrong),
        "failed": len(failed),
        "cut": sum(s.cut for s in seen),
        "degraded": sum(s.degraded for s in seen if s.status == 200),
        "p50 s": float(np.quantile(latency, 0.5)),
        "p99 s": float(np.quantile(latency, 0.99)),
        "recovered after s": float(max((s.due_s - blown_s for s in bad), default=0.0)),
        "answered and not in the ledger": sum(
            f"{prefix}{n}" not in written for n, s in enumerate(seen) if s.status == 200
        ),
    }
    print(row, sorted({(s.status, s.said) for s in failed})[:5], flush=True)
    return row


def _is_right(seen: Seen, routing: Routing, world: World) -> bool:
    """The answer of evaluation; or, where a vote was missing before, that of the last tier, to which the query then goes."""
    last = world.table.answers[seen.row, world.table.members.index(LAST)]
    is_last = seen.tier == len(world.plan.cascade.tiers) - 1
    return bool(routing.answer[seen.row] == seen.answer or (is_last and last == seen.answer))


async def _load(
    world: World, rate: float, seconds: float, blow: Callable[[], None], prefix: str
) -> tuple[list[Seen], float]:
    """Poisson arrivals for so long; the blow falls after `BLOW_S`. Returns what was seen, and when it fell."""
    rng = np.random.default_rng(len(prefix))
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    begun = time.time()
    seen = [Seen(int(rng.integers(len(world.table))), begun + d) for d in due]
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{world.port}", timeout=TIMEOUT_S, limits=limits) as client:
        blowing = asyncio.get_running_loop().run_in_executor(None, _later, BLOW_S if seconds > BLOW_S else 0.0, blow)
        tasks = []
        for number, one in enumerate(seen):
            await asyncio.sleep(max(0.0, one.due_s - time.time()))
            tasks.append(asyncio.ensure_future(_ask(client, one, f"{prefix}{number}")))
        await asyncio.gather(*tasks)
        blown = await blowing
    return seen, blown


def _later(delay_s: float, blow: Callable[[], None]) -> float:
    time.sleep(delay_s)
    at = time.time()
    blow()
    return at


async def _ask(client: httpx.AsyncClient, one: Seen, name: str) -> None:
    body = {"items": [{"id": name, "input": [one.row]}]}
    for _ in range(2):
        try:
            response = await client.post("/predict", json=body)
        except httpx.HTTPError:
            one.cut = True
            continue
        one.status = response.status_code
        if one.status == 200:
            answer = response.json()["answers"][0]
            one.answer, one.tier, one.degraded = answer["class"], answer["tier"], answer["degraded"]
        else:
            one.said = response.text[:200]
        break
    one.done_s = time.time()


# --- The service ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _running(rate: float) -> Iterator[World]:
    """The cluster with the plan deployed."""
    import ray
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import ServeDeploySchema

    from coe.serving.build import serve_config
    from coe.serving.ready import wait_until_running

    with tempfile.TemporaryDirectory(prefix="coe-chaos-") as name:
        folder, port = Path(name), cluster.free_port()
        table = _table()
        files.write_predictions(folder / "predictions.npz", table)
        found = _plan(table, folder, rate)
        state = cluster.up(_fleet(), folder / "state")
        try:
            ray.init(address=state.address, logging_level="ERROR", log_to_driver=False)
            client = serve_start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")

            def deploy(config: dict[str, Any]) -> None:
                client.deploy_apps(ServeDeploySchema.model_validate(config))

            deploy(serve_config(found, ledger_dir=str(folder / "ledger"), port=port))
            wait_until_running(state.address, 240)
            yield World(
                found, table, state, folder, port, deploy, lambda: wait_until_running(state.address, 120), [found]
            )
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.down(folder / "state")


def _table() -> PredictionTable:
    """Three members that are right nine times of ten and one that nearly always is."""
    rng = np.random.default_rng(0)
    n, classes, names = 400, 5, (*MEMBERS, LAST)
    labels = rng.integers(0, classes, n)
    answers = np.stack(
        [np.where(rng.random(n) < (0.99 if m == LAST else 0.9), labels, rng.integers(0, classes, n)) for m in names],
        axis=1,
    )
    probs = (0.05 + 0.75 * np.eye(classes)[answers]).astype(np.float32)
    return PredictionTable(
        members=names,
        classes=tuple(f"class-{c}" for c in range(classes)),
        items=np.array([f"i{i}" for i in range(n)]),
        labels=labels,
        splits=np.array(["certification"] * n),
        answers=answers,
        probs=probs,
    )


def _plan(table: PredictionTable, folder: Path, rate: float) -> Plan:
    """For twice the rate, two routers, and the loss of any node survived."""
    fleet = _fleet()
    members = tuple(
        Member(
            name=m,
            runner="callable",
            model="benchmarks.chaos_members:replay",
            options={"predictions": str(folder / "predictions.npz"), "member": m, "harm": str(folder / "harm")},
        )
        for m in table.members
    )
    profiles = tuple(
        Profile(
            member=m, accelerator=kind, memory_gib=0.1, hop_p99_s=0.03, origin="estimated", error_factor=2.0,
            source="for this benchmark", date=DAY,
            timings=tuple(
                BatchTiming(batch_size=b, latency_p50_s=s * (2 + b), latency_p99_s=1.5 * s * (2 + b)) for b in (1, 4, 16)
            ),
        )
        for m, s in SERVICE_S.items()
        for kind in ("T4", "L4")
    )  # fmt: skip
    prices = fleet.prices.model_copy(update={"offers": tuple(o for o in fleet.prices.offers if o.node_type != "head")})
    return plan(
        Pool(classes=table.classes, input_shape=(1,), members=members),
        [Cascade(tiers=(Tier(members=MEMBERS, rule="vote", quorum=3), Tier(members=(LAST,))))],
        table,
        Profiles(profiles=profiles),
        prices,
        Workload(
            rate_per_s=2 * rate, latency_s=LATENCY_S, reference=LAST, max_accuracy_loss=0.05, router_replicas=2,
            survive_node_loss=True,
        ),
        inputs={},
        uncertified=True,
        reasons=False,
    )  # fmt: skip


def _eager(of: Plan) -> Plan:
    tier = of.cascade.tiers[0].model_copy(update={"quorum": 2})
    return of.model_copy(update={"cascade": of.cascade.model_copy(update={"tiers": (tier, *of.cascade.tiers[1:])})})


def _fleet() -> Fleet:
    cpu = Offer(
        node_type="head", accelerator="CPU-x", accelerators_per_node=0, vcpus=1, memory_gib=4, usd_per_hour=0.1,
        source="for this benchmark", date=DAY,
    )  # fmt: skip
    router = cpu.model_copy(update={"node_type": "router"})
    t4 = cpu.model_copy(
        update={
            "node_type": "t4", "accelerator": "T4", "accelerators_per_node": 1, "accelerator_memory_gib": 16.0, "vcpus": 2,
            "usd_per_hour": 0.5,
        }
    )  # fmt: skip
    l4 = t4.model_copy(update={"node_type": "l4", "accelerator": "L4", "usd_per_hour": 0.6})
    return Fleet(
        name="chaos",
        nodes=(
            FleetNode(offer=cpu, count=1, cpu_share=1.0),
            FleetNode(offer=router, count=2, cpu_share=1.0),
            FleetNode(offer=t4, count=1, cpu_share=0.2),
            FleetNode(offer=l4, count=1, cpu_share=0.2),
        ),
    )


if __name__ == "__main__":
    main()
