"""What `benchmarks.chaos` breaks: a local cluster with a plan deployed, members that replay a table, and how to hurt it.

With single replicas, with room for others beside them, with two of each, and with the node that does most of the work behind a
link of its own.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.slow_link import NoLink, SlowLink, slow_link
from coe import files
from coe.placement.optimize import plan
from coe.serving import cluster
from coe.serving.cluster import ClusterState
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
SERVICE_S = {"one": 0.0003, "two": 0.0003, "three": 0.0003, "last": 0.002}
DELAY_S = 0.005
"""Each way of the link, while nobody slows it."""


@dataclass(frozen=True)
class Setting:
    """What is running."""

    name: str
    latency_s: float = 1.0
    replicas: int = 1
    """Of every deployment but the router, which has two."""
    has_room: bool = False
    """Whether there are twice the nodes that the replicas need, so that new ones start beside the old."""
    is_calm: bool = False
    """Whether processes that start leave the processor to those that serve, as they would on machines of their own."""
    has_link: bool = False
    """Whether the node that does most of the work is at the far end of a link."""


SINGLE = Setting("single replicas")
DOUBLE = Setting("two replicas each", replicas=2, is_calm=True)
ROOMY = Setting("single replicas, room beside them", has_room=True, is_calm=True)
LINKED = Setting("a node behind a link", latency_s=0.5, has_link=True)


@dataclass
class World:
    """The running service and how to hurt it."""

    setting: Setting
    plan: Plan
    table: PredictionTable
    state: ClusterState
    folder: Path
    port: int
    deploy: Callable[[dict[str, Any]], None]
    settle: Callable[[], None]
    """Returns when what was deployed last runs everywhere."""
    link: SlowLink | None
    served: list[Plan] = field(default_factory=list)
    """Plans that may answer now, the one deployed last at the end."""

    @property
    def harm(self) -> Path:
        """The file that members obey."""
        return self.folder / "harm"

    @property
    def busiest(self) -> str:
        """The node type that answers most calls."""
        return busiest(self.plan)


def busiest(of: Plan) -> str:
    """The node type that answers most calls."""
    return max(of.placements, key=lambda p: p.traffic).node_type


@contextmanager
def running(setting: Setting, rate: float) -> Iterator[World]:
    """The cluster with the plan deployed. Raises `NoLink` where there can be no link and one is asked for."""
    import ray
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import ServeDeploySchema

    from coe.serving.build import serve_config
    from coe.serving.ready import wait_until_running

    with tempfile.TemporaryDirectory(prefix="coe-chaos-") as name, ExitStack() as stack:
        folder, port = Path(name), cluster.free_port()
        table = _table()
        files.write_predictions(folder / "predictions.npz", table)
        found = _plan(setting, table, folder, rate)
        link = stack.enter_context(slow_link(delay_s=DELAY_S)) if setting.has_link else None
        away = None if link is None else _at_the_far_end(link, busiest(found))
        state = cluster.up(_fleet(2 if setting.has_room else setting.replicas), folder / "state", elsewhere=away)
        try:
            ray.init(address=state.address, logging_level="ERROR", log_to_driver=False)
            client = serve_start(http_options=HTTPOptions(host="127.0.0.1", port=port), proxy_location="HeadOnly")

            def deploy(config: dict[str, Any]) -> None:
                client.deploy_apps(ServeDeploySchema.model_validate(config))

            deploy(serve_config(found, ledger_dir=str(folder / "ledger"), port=port))
            wait_until_running(state.address, 240)
            if link is not None:
                _check_far(link)
            if setting.is_calm:
                stack.enter_context(_serving_first(state))
            yield World(
                setting,
                found,
                table,
                state,
                folder,
                port,
                deploy,
                lambda: wait_until_running(state.address, 240),
                link,
                [found],
            )
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.down(folder / "state")


FIRST = -10
"""Of the niceness of what serves and of who asks."""
SERVING = (b"ray::ServeReplica:", b"ray::ServeController", b"ray::ProxyActor", b"ray::HAProxy", b"haproxy")
"""Titles of processes that serve; one that starts has another."""


def come_first(pid: int) -> None:
    """Give a process a higher priority. Linux counts each thread by itself, and sessions as a whole where it groups by them."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.setpriority(os.PRIO_PROCESS, int(thread), FIRST)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists() and f"nice {FIRST}" not in group.read_text():
        group.write_text(str(FIRST))


@contextmanager
def _serving_first(state: ClusterState) -> Iterator[None]:
    """Whatever serves comes before what starts and before other work on the machine, where we have the rights to that."""
    is_over = threading.Event()

    def raise_those_that_serve() -> None:
        while not is_over.wait(0.5):
            for pid in cluster.processes(state):
                with suppress(OSError):
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if title.startswith(SERVING) or Path(f"/proc/{pid}/comm").read_bytes().startswith(SERVING):
                        come_first(pid)

    watching = threading.Thread(target=raise_those_that_serve, daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()


def _at_the_far_end(link: SlowLink, node_type: str) -> cluster.Elsewhere:
    """Nodes of one type are started there."""

    def elsewhere(of: str, command: list[str]) -> list[str]:
        return [*link.prefix, *command, "--node-ip-address", link.far_ip] if of == node_type else command

    return elsewhere


def _check_far(link: SlowLink) -> None:
    """Refuse to measure where the node is not at the far end."""
    import ray

    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    if addresses.count(link.far_ip) != 1:
        raise NoLink(f"one node was to be at {link.far_ip}, and there are nodes at {', '.join(addresses)}")


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


def _plan(setting: Setting, table: PredictionTable, folder: Path, rate: float) -> Plan:
    """For twice the rate, two routers, and the loss of any node survived."""
    fleet = _fleet(1)
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
    found = plan(
        Pool(classes=table.classes, input_shape=(1,), members=members),
        [Cascade(tiers=(Tier(members=MEMBERS, rule="vote", quorum=3), Tier(members=(LAST,))))],
        table,
        Profiles(profiles=profiles),
        prices,
        Workload(
            rate_per_s=2 * rate, latency_s=setting.latency_s, reference=LAST, max_accuracy_loss=0.05, router_replicas=2,
            survive_node_loss=True,
        ),
        inputs={},
        uncertified=True,
        reasons=False,
    )  # fmt: skip
    return _times(found, setting.replicas)


def _times(found: Plan, times: int) -> Plan:
    """So many replicas of each deployment, and nodes for them; the router's stay as they are."""
    return found.model_copy(
        update={
            "placements": tuple(p.model_copy(update={"replicas": times * p.replicas}) for p in found.placements),
            "nodes": tuple(
                n if n.node_type == found.router.node_type else n.model_copy(update={"count": times * n.count})
                for n in found.nodes
            ),
        }
    )


def _fleet(times: int) -> Fleet:
    """A head, two nodes for routers, and so many of either kind with an accelerator."""
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
            FleetNode(offer=t4, count=times, cpu_share=0.2),
            FleetNode(offer=l4, count=times, cpu_share=0.2),
        ),
    )
