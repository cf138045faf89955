"""Calls that are long on their way, on a virtual clock: across a link, and where the way to a placement has become slow."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from coe.records import Answer, Record
from coe.router.core import RouterCore
from coe.router.queries import Overloaded, Reply
from coe.simulator.virtual import run_virtually
from coe.types import Cascade, Placement, Tier

BUSY_S = 0.01
NEAR, STANDBY = "t4-node", "a100-node"


def placement(node_type: str, traffic: float, **changes: object) -> Placement:
    """One query at a time, a hundred per second."""
    fields: dict[str, object] = {
        "member": "small", "node_type": node_type, "replicas": 1, "share": 0.5, "batch_size": 1, "traffic": traffic,
        "expected_batch": 1.0, "expected_busy_s": BUSY_S, "full_batch_s": BUSY_S, "utilisation": 0.1,
    }  # fmt: skip
    return Placement.model_validate(fields | changes)


class Way:
    """A core whose calls take so long on their way to each node type; a replica answers one after the other."""

    def __init__(self, placements: list[Placement], way_s: dict[str, float], *, is_planned: bool) -> None:
        self.way_s = way_s
        self.asked: list[str] = []
        self.records: list[Record] = []
        self.core = RouterCore(
            Cascade(tiers=(Tier(members=("small",)),)),
            placements,
            ("no", "yes"),
            wait_s=0.002,
            latency_s=0.5,
            away_s={p.deployment: way_s[p.node_type] for p in placements} if is_planned else None,
            call=self.call,
            clock=lambda: asyncio.get_running_loop().time(),
            record=self.records.append,
        )
        self._free_s: dict[str, float] = {}

    async def call(self, where: Placement, batch: np.ndarray) -> Reply:
        self.asked.append(where.node_type)
        await asyncio.sleep(self.way_s[where.node_type] / 2)
        now = asyncio.get_running_loop().time()
        self._free_s[where.node_type] = free_s = max(now, self._free_s.get(where.node_type, 0.0)) + BUSY_S
        await asyncio.sleep(free_s - now + self.way_s[where.node_type] / 2)
        return Reply(np.tile(np.array([0.1, 0.9], dtype=np.float32), (len(batch), 1)), BUSY_S)

    def refused(self, per_s: float, count: int) -> int:
        """How many of so many queries, evenly spaced, are refused."""

        async def one(number: int) -> bool:
            await asyncio.sleep(number / per_s)
            try:
                await self.core.ask({f"q{number}": np.array([0.0])})
            except Overloaded:
                return True
            return False

        async def run() -> int:
            queues = asyncio.ensure_future(self.core.run())
            refused = await asyncio.gather(*(one(number) for number in range(count)))
            queues.cancel()
            await self.core.close()
            return sum(refused)

        return run_virtually(run())

    @property
    def slowest_s(self) -> float:
        return max(r.done_s - r.arrival_s for r in self.records if isinstance(r, Answer))

    @property
    def slots_taken(self) -> int:
        return sum(slots.taken for tier in self.core.tiers for slots in tier._room.calls.values())


def test_a_replica_across_a_link_is_as_busy_as_planned() -> None:
    """Two calls at once would be ten per second, 0.2 s away, of the 80 that come; those on their way besides are enough."""
    far = Way([placement(NEAR, 1.0)], {NEAR: 0.2}, is_planned=True)
    assert far.refused(80.0, 400) == 0
    assert far.slowest_s < 0.3


@pytest.mark.parametrize("api", [None, "hosted"])
def test_the_standby_helps_where_the_way_to_a_placement_has_become_slow(api: str | None) -> None:
    """No call is late, but two at once are ten per second of 60. A hosted model would help for a fee that nobody planned."""
    placements = [placement(NEAR, 1.0), placement(STANDBY, 0.0, api=api)]
    slow = Way(placements, {NEAR: 0.2, STANDBY: 0.0}, is_planned=False)
    refused = slow.refused(60.0, 300)
    assert slow.slots_taken == 0
    if api is None:
        assert refused == 0
        assert slow.slowest_s < 0.5
        assert {NEAR, STANDBY} == set(slow.asked)
    else:
        assert refused > 0
        assert set(slow.asked) == {NEAR}


def test_the_standby_is_left_alone_while_the_way_is_as_planned() -> None:
    placements = [placement(NEAR, 1.0), placement(STANDBY, 0.0)]
    calm = Way(placements, {NEAR: 0.005, STANDBY: 0.0}, is_planned=False)
    assert calm.refused(90.0, 400) == 0
    assert set(calm.asked) == {NEAR}


def test_clients_that_leave_while_their_call_waits_for_a_slot_leave_the_slots_as_they_were() -> None:
    way = Way(
        [placement(NEAR, 1.0), placement(STANDBY, 0.0, api="hosted")], {NEAR: 0.3, STANDBY: 0.0}, is_planned=False
    )

    async def run() -> None:
        queues = asyncio.ensure_future(way.core.run())
        asking = [asyncio.ensure_future(way.core.ask({f"q{n}": np.array([0.0])})) for n in range(4)]
        await asyncio.sleep(0.1)
        await way.core.abandon()
        queues.cancel()
        for one in asking:
            one.cancel()

    run_virtually(run())
    assert way.slots_taken == 0
