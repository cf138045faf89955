"""Nodes on the virtual clock: ordered, started, lost, replaced, given back, and billed all the while."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from coe.placement.packing import packed
from coe.records import NodeSpan
from coe.simulator.arrivals import stream
from coe.simulator.stations import Replica, Station
from coe.types import Offer, Plan, Scenario

DRAIN_S = 5.0
"""A node that will be taken away starts no more calls so long before."""
_ROUNDING = 1e-9
Tell = Callable[[str], None]


@dataclass(eq=False)
class Node:
    """One rented node. `devices`: what is left of each; `replicas`: those that it holds, up or loading."""

    offer: Offer
    number: int
    ordered_s: float
    devices: list[float]
    is_router: bool = False
    is_up: bool = False
    is_leaving: bool = False
    gone_s: float | None = None
    replicas: list[Replica] = field(default_factory=list)
    empty_since_s: float = 0.0
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.offer.node_type} #{self.number}"


class Machines:
    """The nodes of a run. `tell` hears of everything that happens to them."""

    def __init__(self, scenario: Scenario, seed: int, tell: Tell) -> None:
        self._scenario, self._seed, self._tell = scenario, seed, tell
        self.nodes: list[Node] = []
        self._tasks: dict[asyncio.Task[None], None] = {}

    # --- Renting -------------------------------------------------------------------------------------------------------

    def rent(self, plan: Plan, stations: Sequence[Station], *, is_running: bool) -> list[asyncio.Task[None]]:
        """Order the plan's nodes with its replicas on them; what is returned ends when they run, which they do at once where
        `is_running`."""
        starts = []
        by_deployment = {s.placement.deployment: s for s in stations}
        for content in packed(plan):
            node = self._ordered(content.offer, is_router=content.is_router)
            for placement, device in content.replicas:
                self._put(node, by_deployment[placement.deployment], device)
            starts.append(self._begin(self._life(node, 0.0 if is_running else self._scenario.node_start_s, is_running)))
        return starts

    def add_replica(self, plan: Plan, station: Station) -> asyncio.Task[None] | None:
        """One more replica, on a node that has room or on a new one; what is returned ends when it runs. None where the
        offer's quota is used up."""
        placement = station.placement
        for node in self._present(placement.node_type):
            fitting = [d for d, room in enumerate(node.devices) if room >= placement.share - _ROUNDING]
            if fitting and not node.is_leaving and not node.is_router:
                return self._begin(self._load(node, self._put(node, station, fitting[0])))
        offer = plan.offer(placement.node_type)
        if offer.quota is not None and len(self._present(placement.node_type)) >= offer.quota:
            return None
        node = self._ordered(offer)
        self._put(node, station, 0)
        self._tell(f"{node.name} ordered for {placement.deployment}")
        return self._begin(self._life(node, self._scenario.node_start_s, False))

    def remove_replica(self, station: Station) -> None:
        """Take one replica away, from the node that holds fewest, once it has ended its call."""
        held = [(len(n.replicas), n.number, n, r) for n in self.nodes for r in n.replicas if r.station is station]
        held = [h for h in held if not h[3].is_leaving]
        if held:
            _, _, node, replica = min(held, key=lambda h: h[:2])
            self._begin(self._retire(node, replica))

    def give_back(self, node: Node) -> None:
        """End the rent of a node: no more calls, and gone as soon as what is under way has ended."""
        node.is_leaving = True
        self._begin(self._leave(node))

    def give_back_idle(self) -> None:
        """End the rent of nodes that have held nothing for long."""
        now = asyncio.get_running_loop().time()
        idle_s = self._scenario.scaling.node_idle_s if self._scenario.scaling else math.inf
        for node in self.nodes:
            is_empty = node.is_up and not node.replicas and not node.is_router and node.gone_s is None
            if is_empty and not node.is_leaving and now - node.empty_since_s >= idle_s:
                self._tell(f"{node.name} given back: idle")
                self._gone(node)

    def replicas_of(self, station: Station) -> int:
        """Replicas that run or will."""
        return sum(not r.is_leaving for n in self.nodes for r in n.replicas if r.station is station)

    def spans(self, end_s: float) -> list[NodeSpan]:
        """What is billed: every node from its order on, in begun units once it is gone."""
        unit, result = self._scenario.billed_in_s, []
        for node in self.nodes:
            length = end_s - node.ordered_s if node.gone_s is None else node.gone_s - node.ordered_s
            if node.gone_s is not None:
                length = unit * math.ceil(length / unit - _ROUNDING)
            if length > 0:
                span = NodeSpan(
                    node.offer.node_type, 1, node.offer.usd_per_hour, node.ordered_s, node.ordered_s + length
                )
                result.append(span)
        return result

    def stop(self) -> None:
        """End everything that still waits to happen."""
        for task in tuple(self._tasks):
            task.cancel()

    # --- What happens to them ------------------------------------------------------------------------------------------

    def lose(self, node_type: str, notice_s: float) -> None:
        """A node of this type is taken away, the one with most replicas; its replacement is ordered at once."""
        there = [n for n in self._present(node_type) if not n.is_router and not n.is_leaving]
        if not there:
            self._tell(f"no {node_type} is there to lose")
            return
        self._begin(self._taken_away(max(there, key=lambda n: (len(n.replicas), -n.number)), notice_s, "lost"))

    async def _life(self, node: Node, start_s: float, is_running: bool) -> None:
        """From order to running; then failures may come."""
        await asyncio.sleep(start_s)
        if node.gone_s is not None:
            return
        node.is_up = True
        node.ready.set()
        if is_running:
            for replica in node.replicas:
                self._run(node, replica)
        else:
            await asyncio.gather(*(self._load(node, r) for r in tuple(node.replicas)))
        if not node.is_router:
            self._begin(self._fate(node))

    async def _load(self, node: Node, replica: Replica) -> None:
        """A replica on a node that may still be starting."""
        await node.ready.wait()
        await asyncio.sleep(replica.station.load_s)
        if node.gone_s is None and replica in node.replicas and not replica.is_up:
            self._run(node, replica)

    def _run(self, node: Node, replica: Replica) -> None:
        replica.start()
        if self._scenario.failures.replica_mtbf_s is not None and not node.is_router:
            self._begin(self._crashes(node, replica, self._scenario.failures.replica_mtbf_s))

    async def _crashes(self, node: Node, replica: Replica, mtbf_s: float) -> None:
        """A process that crashes and is started again, until its node is gone."""
        rng = stream(self._seed, f"crashes of {replica.station.placement.deployment} on {node.number}.{replica.device}")
        while True:
            await asyncio.sleep(float(rng.exponential(mtbf_s)))
            if node.gone_s is not None or replica.is_leaving:
                return
            self._tell(f"a replica of {replica.station.placement.deployment} on {node.name} crashed")
            replica.die()
            await asyncio.sleep(self._scenario.failures.replica_restart_s + replica.station.load_s)
            if node.gone_s is None and replica in node.replicas:
                replica.start()

    async def _fate(self, node: Node) -> None:
        """Whichever comes first: a failure, or the provider takes a spot node away."""
        failures = self._scenario.failures
        is_spot = node.offer.market == "spot"
        rng = stream(self._seed, f"failures of {node.offer.node_type} {node.number}")
        gaps = [
            math.inf if mean is None else float(rng.exponential(mean))
            for mean in (failures.node_mtbf_s, failures.spot_mtbf_s if is_spot else None)
        ]
        if min(gaps) == math.inf:
            return
        notice_s = failures.spot_notice_s if gaps[1] < gaps[0] else 0.0
        await asyncio.sleep(max(0.0, min(gaps) - notice_s))
        if node.gone_s is None and not node.is_leaving:
            await self._taken_away(node, min(notice_s, min(gaps)), "preempted" if gaps[1] < gaps[0] else "failed")

    async def _taken_away(self, node: Node, notice_s: float, what: str) -> None:
        node.is_leaving = True
        self._replace(node)
        if notice_s:
            self._tell(f"{node.name} will be {what} in {notice_s:g} s; a replacement is ordered")
            await asyncio.sleep(max(0.0, notice_s - DRAIN_S))
            for replica in node.replicas:
                replica.stop_taking()
            await asyncio.sleep(min(notice_s, DRAIN_S))
        if node.gone_s is None:
            self._tell(f"{node.name} {what}")
            self._gone(node)

    def _replace(self, node: Node) -> None:
        """Order another node with the same replicas."""
        other = self._ordered(node.offer)
        for replica in node.replicas:
            if not replica.is_leaving:
                self._put(other, replica.station, replica.device)
        self._begin(self._life(other, self._scenario.node_start_s, False))

    async def _retire(self, node: Node, replica: Replica) -> None:
        replica.stop_taking()
        while replica.working:
            await asyncio.wait(tuple(replica.working))
            await asyncio.sleep(0)
        if replica in node.replicas:
            self._take_off(node, replica)

    async def _leave(self, node: Node) -> None:
        await asyncio.gather(*(self._retire(node, r) for r in tuple(node.replicas)))
        if node.gone_s is None:
            self._tell(f"{node.name} given back")
            self._gone(node)

    # --- Bookkeeping ---------------------------------------------------------------------------------------------------

    def _present(self, node_type: str) -> list[Node]:
        return [n for n in self.nodes if n.offer.node_type == node_type and n.gone_s is None]

    def _ordered(self, offer: Offer, *, is_router: bool = False) -> Node:
        now = asyncio.get_running_loop().time()
        number = 1 + sum(n.offer.node_type == offer.node_type for n in self.nodes)
        node = Node(offer, number, now, [1.0] * offer.devices_per_node, is_router, empty_since_s=now)
        self.nodes.append(node)
        return node

    def _put(self, node: Node, station: Station, device: int) -> Replica:
        replica = Replica(station, device)
        node.devices[device] -= station.placement.share
        node.replicas.append(replica)
        station.replicas.append(replica)
        return replica

    def _take_off(self, node: Node, replica: Replica) -> None:
        replica.die()
        node.replicas.remove(replica)
        replica.station.replicas.remove(replica)
        node.devices[replica.device] += replica.station.placement.share
        if not node.replicas:
            node.empty_since_s = asyncio.get_running_loop().time()

    def _gone(self, node: Node) -> None:
        node.gone_s = asyncio.get_running_loop().time()
        node.is_up = False
        for replica in tuple(node.replicas):
            self._take_off(node, replica)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task
