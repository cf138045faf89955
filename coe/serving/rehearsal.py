"""A plan rehearsed on this machine: its local fleet, its `serve.yaml`, and members that stand in.

Everything is real but the models: raylets with the labels and devices of the real node types, Serve's own scheduling of every
replica by share and label, the router, HTTP. The fleet has a state folder of its own, so that a cluster which is up stays as it
is, and it is taken down whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.serve.context import _get_global_client
from ray.serve.schema import ReplicaState, ServeInstanceDetails

from coe.errors import InvalidInput, Problem, Unavailable
from coe.files import to_yaml, write_text
from coe.fleet.local import local_fleet
from coe.serving import cluster
from coe.serving.build import APPLICATION, gate_paths, serve_config
from coe.serving.labels import NODE_TYPE_LABEL, SERVE_ENV
from coe.serving.profile import connected
from coe.serving.scaling_policy import ROUTER
from coe.serving.stand_in import item_of, with_stand_ins
from coe.types import Fleet, Plan

MOST_PROCESSES = 24
"""Nodes and replicas that a laptop carries."""
GIB_EACH = 0.25
"""Of memory, about: a raylet with its agents, or a replica."""
TIME_LIMIT_S = 300.0
QUIET_S = 60.0
"""When so long no replica has come up, none will."""
WORDS_S = 12.0
"""Where no node has room for what is missing, so long for Serve to say so in its own words."""
POLL_S = 0.5
QUERIES = 8
ANSWER_S = 20.0
"""The proxy takes over a moment after Serve calls an application running."""
SETTINGS = {
    **SERVE_ENV,
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "10",  # Serve's word on what it cannot place, sooner
    "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "10",
}
ROUNDING = 1e-6
_COLORS = re.compile(r"\x1b\[[0-9;]*m")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    planned: str
    found: str
    is_ok: bool
    why: str = ""
    """Ray's own words, where it has some."""


@dataclass(frozen=True)
class Rehearsal:
    """What a plan said and what came of it."""

    lines: tuple[Line, ...]
    seconds: float

    @property
    def missed(self) -> tuple[str, ...]:
        """What was not as planned, in words."""
        return tuple(
            f"{line.what}: planned {line.planned}, found {line.found}" for line in self.lines if not line.is_ok
        )

    @property
    def text(self) -> str:
        """A line for everything that was looked at, and Ray's words below what is missing."""
        rows = [
            ("", "planned", "found", ""),
            *((x.what, x.planned, x.found, "ok" if x.is_ok else "MISSING") for x in self.lines),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for number, line in reversed(list(enumerate(self.lines, start=1))):
            told[number + 1 : number + 1] = [f"    {words}" for words in line.why.splitlines()]
        return "\n".join(told) + "\n"


def rehearse(
    plan: Plan,
    *,
    fleet: Fleet | None = None,
    most_processes: int = MOST_PROCESSES,
    time_limit_s: float = TIME_LIMIT_S,
    tell: Tell = lambda _: None,
) -> Rehearsal:
    """Start the plan's local fleet (or `fleet`), deploy, look, ask, and take it all down.

    Waits at most `time_limit_s` for the deployments, and ends sooner where no replica has come up for `QUIET_S`, or no node has
    room for one; what is not there by then is reported. `tell` gets a line of progress now and then. Raises `InvalidInput` for
    plans that cannot be built and for those with more nodes and replicas than `most_processes`, `Unavailable` where the fleet
    does not start and where this process is connected to another one.
    """
    began_s = time.monotonic()
    stand_in = plan.model_copy(update={"pool": with_stand_ins(plan.pool), "python_path": ""})
    fleet = local_fleet(stand_in) if fleet is None else fleet
    port = cluster.free_port()
    config = serve_config(stand_in, ledger_dir=None, port=port)
    gates = gate_paths(plan)
    _refuse_more_than(plan, fleet, most_processes)
    if ray.is_initialized():
        raise Unavailable("this process is connected to a Ray cluster already; rehearse in another one")
    with tempfile.TemporaryDirectory(prefix="coe-rehearsal-") as name, _terminated_like_interrupted():
        folder = Path(name)
        write_text(folder / "serve.yaml", to_yaml(config))
        for gate, path in gates.items():
            (folder / gate).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / gate)
        try:
            state = _started(fleet, folder, tell)
            lines = _looked_at(plan, state.address, folder, port, time_limit_s, tell)
        finally:
            tell("taking the fleet down")
            with _undisturbed():
                cluster.down(folder)
    return Rehearsal(tuple(lines), time.monotonic() - began_s)


def _refuse_more_than(plan: Plan, fleet: Fleet, most: int) -> None:
    nodes = sum(n.count for n in fleet.nodes)
    replicas = plan.router.replicas + sum(p.replicas for p in plan.placements)
    if nodes + replicas > most:
        found = (
            f"{nodes} nodes and {replicas} replicas, which take about {GIB_EACH * (nodes + replicas):.0f} GiB of memory"
        )
        remedy = f"raise the limit (--max-processes {nodes + replicas}) where there is so much, or rehearse a plan for less load"
        raise InvalidInput(Problem("rehearsal", f"at most {most} nodes and replicas together", found, remedy))


def _started(fleet: Fleet, folder: Path, tell: Tell) -> cluster.ClusterState:
    count = sum(n.count for n in fleet.nodes)
    tell(f"starting {count} nodes (should this be killed: coe cluster down --state {folder})")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [before])])  # where routers find gate files
    try:
        return cluster.up(fleet, folder, settings=SETTINGS)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _looked_at(plan: Plan, address: str, folder: Path, port: int, time_limit_s: float, tell: Tell) -> list[Line]:
    tell("deploying serve.yaml with stand-ins for the members")
    deploy(folder / "serve.yaml", address, time_limit_s)
    with connected(address):
        details = _settled(plan, time.monotonic() + time_limit_s, tell)
        lines = [*_nodes(plan), *_deployments(plan, details), *_room(plan, details)]
        if {deployment for deployment, *_ in _planned(plan)} <= {r.deployment for r in details.replicas}:
            tell(f"asking {QUERIES} queries")
            lines.append(_asked(plan, port))
        else:
            lines.append(Line("queries", f"{QUERIES} answers", "none sent", is_ok=False))
        return lines


def deploy(path: Path, address: str, time_limit_s: float) -> None:
    """What a user would type."""
    command = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", "--non-blocking"]
    environment = {**os.environ, **SETTINGS, "RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            [*command, "--address", address, path.name],
            cwd=path.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=time_limit_s,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"serve run has not ended after {time_limit_s:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"serve run failed:\n{_last_lines(done.stdout)}")


# --- Waiting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replica:
    """One that runs, and the node that it is on."""

    deployment: str
    node_id: str


@dataclass(frozen=True)
class Details:
    """What Serve says of the application."""

    status: str
    message: str
    replicas: tuple[Replica, ...]
    messages: Mapping[str, str]
    """Deployment -> Serve's words."""


def _details() -> Details:
    found = ServeInstanceDetails(**_get_global_client().get_serve_details())  # serve.status() does not name nodes
    application = found.applications.get(APPLICATION)
    if application is None:
        return Details("NOT_STARTED", "", (), {})
    running = [
        Replica(name, str(replica.node_id))
        for name, deployment in application.deployments.items()
        for replica in deployment.replicas
        if replica.state is ReplicaState.RUNNING
    ]
    messages = {name: d.message for name, d in application.deployments.items()}
    return Details(str(application.status.value), application.message, tuple(running), messages)


def _settled(plan: Plan, due_s: float, tell: Tell) -> Details:
    """The application when it runs or has failed, when nothing more is to be expected, or at the latest when time is up."""
    planned = plan.router.replicas + sum(p.replicas for p in plan.placements)
    count, changed_s = -1, time.monotonic()
    while True:
        details, now = _details(), time.monotonic()
        if len(details.replicas) != count:
            count, changed_s = len(details.replicas), now
            tell(f"{count} of {planned} replicas run")
        if details.status in ("RUNNING", "DEPLOY_FAILED") or now > due_s:
            return details
        if now - changed_s > (QUIET_S if _is_room(plan, details) else WORDS_S):
            return details
        time.sleep(POLL_S)


def _is_room(plan: Plan, details: Details) -> bool:
    """Whether a replica that is missing may still find a node, beside those that run.

    The share that is free on a node may lie on several devices; then this says yes, and waiting shows.
    """
    types, used, running = _types(), _used(plan, details), Counter(r.deployment for r in details.replicas)
    for deployment, node_type, count, share in _planned(plan):
        devices = _devices(plan, node_type)
        if running[deployment] < count and any(
            used.get(n, 0.0) + share <= devices + ROUNDING for n, t in types.items() if t == node_type
        ):
            return True
    return False


# --- Looking -----------------------------------------------------------------------------------------------------------


def _types() -> dict[str, str]:
    """Id of every living node -> its type."""
    return {n["NodeID"]: n["Labels"].get(NODE_TYPE_LABEL, "no type") for n in ray.nodes() if n["Alive"]}


def _planned(plan: Plan) -> Iterator[tuple[str, str, int, float]]:
    """Deployment, node type, replicas and share of each."""
    for p in plan.placements:
        yield p.deployment, p.node_type, p.replicas, p.share
    yield ROUTER, plan.router.node_type, plan.router.replicas, 1.0


def _devices(plan: Plan, node_type: str) -> int:
    """Of one node; a node without accelerators is one."""
    return max(1, plan.offer(node_type).accelerators_per_node)


def _used(plan: Plan, details: Details) -> dict[str, float]:
    """Node id -> the sum of the shares of the replicas that run there."""
    shares = {deployment: share for deployment, _, _, share in _planned(plan)}
    used: dict[str, float] = {}
    for replica in details.replicas:
        used[replica.node_id] = used.get(replica.node_id, 0.0) + shares[replica.deployment]
    return used


def _nodes(plan: Plan) -> Iterator[Line]:
    there = Counter(_types().values())
    for node in plan.nodes:
        found = there[node.node_type]
        yield Line(f"nodes {node.node_type}", str(node.count), str(found), is_ok=found == node.count)


def _deployments(plan: Plan, details: Details) -> Iterator[Line]:
    """Every deployment has its replicas, each on a node of its type."""
    types = _types()
    for deployment, node_type, count, _ in _planned(plan):
        at = Counter(types.get(r.node_id, "no node") for r in details.replicas if r.deployment == deployment)
        found = ", ".join(f"{n} on {t}" for t, n in sorted(at.items())) or "0"
        is_ok = dict(at) == {node_type: count}
        why = "" if is_ok else _last_lines(details.messages.get(deployment) or details.message)
        yield Line(f"replicas {deployment}", f"{count} on {node_type}", found, is_ok, why)


def _room(plan: Plan, details: Details) -> Iterator[Line]:
    """No node holds more shares than it has devices."""
    types, used = _types(), _used(plan, details)
    for node in plan.nodes:
        devices = _devices(plan, node.node_type)
        most = max((used.get(n, 0.0) for n, node_type in types.items() if node_type == node.node_type), default=0)
        what = f"devices of one {node.node_type}"
        yield Line(what, f"at most {devices}", f"{most:g} in use", is_ok=most <= devices + ROUNDING)


def _asked(plan: Plan, port: int) -> Line:
    """Easy queries and hard ones, one after the other, and which tiers answered."""
    tiers: Counter[int] = Counter()
    failed = ""
    for number in range(QUERIES):
        item = item_of(plan.pool, is_hard=number % 2 == 1)
        try:
            tiers[_tier_of_answer(f"http://127.0.0.1:{port}/predict", item)] += 1
        except Unavailable as error:
            failed = str(error)
            break
    answered = sum(tiers.values())
    by_tier = ", ".join(f"{n} by tier {t + 1}" for t, n in sorted(tiers.items()))
    found = f"{answered} ({by_tier})" if answered else "0"
    return Line("queries", f"{QUERIES} answers", found, is_ok=answered == QUERIES, why=failed)


def _tier_of_answer(url: str, item: Any) -> int:
    """The tier that answered, or `Unavailable` with what came back instead."""
    body = json.dumps({"items": [{"input": item}]}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the loopback is behind no proxy
    due_s = time.monotonic() + ANSWER_S
    while True:
        try:
            request = urllib.request.Request(url, body, {"content-type": "application/json"})
            with opener.open(request, timeout=ANSWER_S) as response:
                answer: dict[str, Any] = json.load(response)["answers"][0]
                return int(answer["tier"])
        except urllib.error.HTTPError as error:
            failed = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
        except (OSError, ValueError, KeyError) as error:
            failed = f"{type(error).__name__}: {error}"
        if time.monotonic() > due_s:
            raise Unavailable(failed)
        time.sleep(POLL_S)


def _last_lines(message: str, lines: int = 12) -> str:
    """The end of a message, where the cause stands, without terminal colours."""
    return "\n".join(_COLORS.sub("", message).strip().splitlines()[-lines:])


# --- Ending ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A process that is told to end unwinds as after Ctrl-C: raylets would outlive it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half a fleet behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
