"""What a service does while things break: local clusters under steady load, every answer checked item by item.

    python -m benchmarks.chaos [--rate 30] [--seconds 25] [--only "link to a node"] [--json OUT]

A plan that survives the loss of a node, two routers, members that replay a table. One blow per row, five seconds after its load
began: processes killed with SIGKILL, a node's processes all at once, members that hang, reply with garbage or are slow, a changed
plan deployed whole and a changed threshold live. The load goes on until the blow is over. A changed plan is deployed once more
where new replicas have room beside the old ones, and where every deployment has two; there, what serves and asks comes before
other work on the machine. Where the node that does most of the work is at the far end of a link (`benchmarks.slow_link`, promise
0.5 s), that becomes slow or loses everything.

"cut" are connections that broke (with a killed router); each is asked again once. "wrong" are answers that are neither what the
plan's evaluation says, nor the last tier's, nor own up to a missing vote. "not run" says why, where a row needs what is absent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.chaos_world import (
    DELAY_S,
    DOUBLE,
    LAST,
    LINKED,
    MEMBERS,
    ROOMY,
    SINGLE,
    Setting,
    World,
    come_first,
    running,
)
from benchmarks.figures import publish
from benchmarks.slow_link import NoLink
from coe.cascade.evaluate import Routing, route
from coe.ledger import read_ledger
from coe.records import Answer
from coe.serving import cluster
from coe.serving.labels import SERVE_ENV
from coe.types import Plan

BLOW_S = 5.0
AFTER_S = 5.0
"""The load goes on for so long when the blow is over."""
TIMEOUT_S = 30.0


@dataclass
class Seen:
    """What the client saw of one query."""

    row: int
    due_s: float
    sent_s: float = 0.0
    status: int = 0
    answer: int = -1
    tier: int = -1
    degraded: bool = False
    cut: bool = False
    said: str = ""
    """The body of a refusal."""
    done_s: float = 0.0


@dataclass(frozen=True)
class Blown:
    """When the blow fell and when it was over."""

    at_s: float
    over_s: float


def main() -> None:
    """Break things and publish what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=30.0, help="queries per second; the plan is for twice as many")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each row, at least")
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="blows whose name has these words, and the calm before"
    )
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument(
        "--queries", metavar="OUT", help="every query of every row as a line of JSON, to see what took how long"
    )
    args = parser.parse_args()
    if not any(args.only in name for blows in BLOWS.values() for name in blows):
        parser.error("--only: there are " + ", ".join(f'"{name}"' for blows in BLOWS.values() for name in blows))
    os.environ.update(SERVE_ENV)  # before Serve is imported, which reads them then
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    rows = [row for setting, blows in BLOWS.items() for row in _rows(setting, blows, args)]
    publish("chaos", rows, args.json)


def _rows(setting: Setting, blows: Mapping[str, Blow], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one setting, with the calm before; none where none is wanted."""
    wanted = {name: blow for name, blow in blows.items() if args.only in name}
    if not wanted:
        return []
    try:
        with running(setting, args.rate) as world:
            _load(world, args.rate, 5.0, lambda: None, "warm")
            rows = []
            for number, (name, blow) in enumerate(({CALM: _nothing} | wanted).items()):
                rows.append(_row(world, name, blow, f"{number}-", args))
            return rows
    except NoLink as reason:
        print(f"not run: {', '.join(wanted)}: {reason}", flush=True)
        return [
            {"blow": name, "in": setting.name} | dict.fromkeys(FIGURES, "not run") | {"why": str(reason)}
            for name in wanted
        ]


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
    leader = next(n.pid for n in world.state.nodes if n.node_type == world.busiest)
    os.killpg(leader, signal.SIGKILL)


def _do_harm(member: str, harm: str, seconds: float) -> Blow:
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
    world.settle()


def _deploy_anew(world: World) -> None:
    """Smaller batches: other deployments, which Serve replaces one after the other. Over when all of them run."""
    from coe.serving.build import serve_config

    smaller = world.plan.model_copy(
        update={"placements": tuple(p.model_copy(update={"batch_size": 2}) for p in world.plan.placements)}
    )
    world.served.append(smaller)
    config = serve_config(smaller, ledger_dir=str(world.folder / "ledger"), port=world.port)
    if world.setting.has_room:
        surging = [{"name": p.deployment, "max_surge_percent": 100} for p in smaller.placements]
        config["applications"][0]["deployments"] = surging
    world.deploy(config)
    world.settle()


def _eager(of: Plan) -> Plan:
    tier = of.cascade.tiers[0].model_copy(update={"quorum": 2})
    return of.model_copy(update={"cascade": of.cascade.model_copy(update={"tiers": (tier, *of.cascade.tiers[1:])})})


def _slow_link(delay_s: float, seconds: float, *, is_cut: bool = False) -> Blow:
    """The link takes so much longer each way, or nothing arrives."""

    def blow(world: World) -> None:
        assert world.link is not None
        world.link.set(delay_s=DELAY_S + delay_s, is_cut=is_cut)
        time.sleep(seconds)
        world.link.set(delay_s=DELAY_S)

    return blow


def _nothing(world: World) -> None:
    """Calm."""
    del world


Blow = Callable[[World], None]
CALM = "calm"
BLOWS: dict[Setting, dict[str, Blow]] = {
    SINGLE: {
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
    },
    ROOMY: {"a changed plan is deployed, room for new replicas beside the old": _deploy_anew},
    DOUBLE: {"a changed plan is deployed, two replicas each": _deploy_anew},
    LINKED: {
        "the link to a node takes 50 ms longer for 8 s": _slow_link(0.05, 8.0),
        "the link to a node takes 2 s longer for 8 s": _slow_link(2.0, 8.0),
        "the link to a node is cut for 8 s": _slow_link(0.0, 8.0, is_cut=True),
    },
}


# --- Load and what came of it --------------------------------------------------------------------------------------------------


FIGURES = (
    "queries", "wrong", "failed", "cut", "degraded", "p50 s", "p99 s", "blow lasted s", "recovered after s",
    "answered and not in the ledger",
)  # fmt: skip


def _row(world: World, name: str, blow: Blow, prefix: str, args: argparse.Namespace) -> dict[str, Any]:
    world.served = world.served[-1:]
    seen, blown = _load(world, args.rate, args.seconds, lambda: blow(world), prefix)
    right = [route(p.cascade, world.table) for p in world.served]
    wrong = [s for s in seen if s.status == 200 and not s.degraded and not any(_is_right(s, r, world) for r in right)]
    failed = [s for s in seen if s.status != 200]
    latency = np.array([s.done_s - s.due_s for s in seen if s.status == 200])
    promise_s = world.setting.latency_s
    bad = [
        s for s in seen if s.due_s > blown.at_s and (s.status != 200 or s.degraded or s.done_s - s.due_s > promise_s)
    ]
    time.sleep(2.0)  # the ledger is written twice a second
    records = [r for p in world.served for r in read_ledger(world.folder / "ledger", p.fingerprint()).records]
    written = {r.query_id: r for r in records if isinstance(r, Answer) and r.query_id.startswith(prefix)}
    missing = sum(f"{prefix}{n}" not in written for n, s in enumerate(seen) if s.status == 200)
    figures = (
        len(seen), len(wrong), len(failed), sum(s.cut for s in seen), sum(s.degraded for s in seen if s.status == 200),
        float(np.quantile(latency, 0.5)), float(np.quantile(latency, 0.99)), blown.over_s - blown.at_s,
        float(max((s.due_s - blown.at_s for s in bad), default=0.0)), missing,
    )  # fmt: skip
    row = {"blow": name, "in": world.setting.name, **dict(zip(FIGURES, figures, strict=True)), "why": ""}
    if args.queries:
        _write_queries(
            Path(args.queries), name, seen, blown, {n: written.get(f"{prefix}{n}") for n in range(len(seen))}
        )
    print(row, sorted({(s.status, s.said) for s in failed})[:5], flush=True)
    return row


def _write_queries(
    path: Path, name: str, seen: Sequence[Seen], blown: Blown, written: Mapping[int, Answer | None]
) -> None:
    """Seconds after the blow when each query was due, was sent, came to a router, left it and was back at the client."""
    with path.open("a") as file:
        for number, one in enumerate(seen):
            held = written[number]
            line = {
                "blow": name,
                "status": one.status,
                "due_s": one.due_s - blown.at_s,
                "sent_s": one.sent_s - blown.at_s,
                "at_router_s": None if held is None else held.arrival_s - blown.at_s,
                "answered_s": None if held is None else held.done_s - blown.at_s,
                "done_s": one.done_s - blown.at_s,
            }
            file.write(json.dumps(line) + "\n")


def _is_right(seen: Seen, routing: Routing, world: World) -> bool:
    """The answer of evaluation; or, where a vote was missing before, that of the last tier, to which the query then goes."""
    last = world.table.answers[seen.row, world.table.members.index(LAST)]
    is_last = seen.tier == len(world.plan.cascade.tiers) - 1
    return bool(routing.answer[seen.row] == seen.answer or (is_last and last == seen.answer))


def _load(world: World, rate: float, seconds: float, blow: Callable[[], None], prefix: str) -> tuple[list[Seen], Blown]:
    """Poisson arrivals for so long, or until some time after the blow, which falls after `BLOW_S`. Returns what was seen.

    A process of its own asks: this one has Ray's driver in it, and whatever the blow does.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    work = (there, world.port, len(world.table), rate, prefix, world.setting.is_calm)
    client = context.Process(target=_client, args=work, daemon=True)
    client.start()
    there.close()  # so that its end is noticed
    try:
        begun_s = here.recv()
        blown = _later(BLOW_S if seconds > BLOW_S else 0.0, blow)
        here.send(max(begun_s + seconds, blown.over_s + (AFTER_S if seconds > BLOW_S else 0.0)))
        seen = here.recv()
        client.join()
        return seen, blown
    finally:
        client.kill()


def _later(delay_s: float, blow: Callable[[], None]) -> Blown:
    time.sleep(delay_s)
    at = time.time()
    blow()
    return Blown(at, time.time())


def _client(there: Connection, port: int, rows: int, rate: float, prefix: str, is_first: bool) -> None:
    """Ask until we are told when to end, then send back what was seen."""
    if is_first:
        os.setsid()
        with suppress(OSError):
            come_first(os.getpid())
    there.send(asyncio.run(_asked(there, port, rows, rate, prefix)))


async def _asked(there: Connection, port: int, rows: int, rate: float, prefix: str) -> list[Seen]:
    rng = np.random.default_rng(len(prefix))
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, limits=limits) as client:
        seen: list[Seen] = []
        tasks = []
        due_s, end_s = time.time(), math.inf
        there.send(due_s)
        while due_s < end_s:
            if there.poll():
                end_s = there.recv()
            due_s += rng.exponential(1 / rate)
            await asyncio.sleep(max(0.0, due_s - time.time()))
            seen.append(Seen(int(rng.integers(rows)), due_s))
            tasks.append(asyncio.ensure_future(_ask(client, seen[-1], f"{prefix}{len(tasks)}")))
        await asyncio.gather(*tasks)
        return seen


async def _ask(client: httpx.AsyncClient, one: Seen, name: str) -> None:
    one.sent_s = time.time()
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


if __name__ == "__main__":
    main()
