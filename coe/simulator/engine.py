"""The engine, readable: queries, batches and replicas as objects on a virtual clock. `fast` does the same on arrays.

A tier's queue gives a batch when it is full and a slot is free, or when its oldest query has waited long enough and a replica is
idle; one that is half full needs no idle replica. Every member of the
tier is called with the batch, in turns over its placements; a call waits for the replica that is free first. When all have
answered, the batch's queries end or join the next tier's queue. These are the rules of `coe.router`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from coe.cost.capacity import half
from coe.router.turns import Turns
from coe.simulator.network import Load, Network
from coe.types import FloatArray, IntArray


@dataclass(frozen=True)
class Calls:
    """Every member call; arrays of shape (calls,): member and placement numbers, items, start of its batch, of its
    computing, and seconds of it."""

    member: IntArray
    placement: IntArray
    items: IntArray
    asked_s: FloatArray
    start_s: FloatArray
    busy_s: FloatArray


@dataclass(frozen=True)
class Outcome:
    """What became of every query, and every call that was made.

    done_s: (queries,).  entered_s, batched_s: (queries, tiers), when a query joined a tier's queue and when its batch was sent;
    NaN where it never came.
    """

    done_s: FloatArray
    entered_s: FloatArray
    batched_s: FloatArray
    calls: Calls


@dataclass
class _Tier:
    queue: deque[tuple[int, float]] = field(default_factory=deque)
    under_way: int = 0


class Engine:
    """One run. `jitter` (placements, factors) multiplies service times: the factor of a call is that of its number, taken round
    and round."""

    def __init__(self, network: Network, load: Load, jitter: FloatArray) -> None:
        self._net, self._load, self._jitter = network, load, jitter
        self._tiers = [_Tier() for _ in range(network.tiers)]
        firsts = network.first_placement
        self._turns = [Turns(network.traffic[a:b].tolist()) for a, b in itertools.pairwise(firsts)]
        self._free_at: list[list[float]] = [[0.0] * int(r) for r in network.replicas]
        self._done: list[tuple[float, int, int, list[int]]] = []
        self._sent = 0
        queries = len(load.arrival_s)
        self._done_s = np.full(queries, np.nan)
        self._entered_s = np.full((queries, network.tiers), np.nan)
        self._batched_s = np.full((queries, network.tiers), np.nan)
        self._calls: list[tuple[int, int, int, float, float, float]] = []

    def run(self) -> Outcome:
        """All queries to their end."""
        arrivals = deque(enumerate(self._load.arrival_s.tolist()))
        while True:
            arrival = arrivals[0][1] if arrivals else np.inf
            done = self._done[0][0] if self._done else np.inf
            timer = min((self._due_s(t) for t in range(self._net.tiers)), default=np.inf)
            now = min(arrival, done, timer)
            if now == np.inf:
                break
            if done == now:
                _, _, tier, batch = heapq.heappop(self._done)
                self._end(tier, batch, now)
            elif arrival == now:
                query, _ = arrivals.popleft()
                self._enter(query, 0, now)
            for tier in range(self._net.tiers):
                self._send_what_is_due(tier, now)
        columns = list(zip(*self._calls, strict=True)) or [()] * 6
        member, placement, items = (np.array(c, dtype=np.int64) for c in columns[:3])
        asked, start, busy = (np.array(c, dtype=np.float64) for c in columns[3:])
        calls = Calls(member, placement, items, asked, start, busy)
        return Outcome(self._done_s, self._entered_s, self._batched_s, calls)

    def _due_s(self, tier: int) -> float:
        """When the oldest query of a tier has waited long enough; never while no replica is idle, or no slot is free where a
        batch is half full."""
        state, slots = self._tiers[tier], self._net.in_flight[tier]
        most = (
            slots if len(state.queue) >= half(int(self._net.batch_size[tier])) else min(slots, self._net.at_work[tier])
        )
        if not state.queue or state.under_way >= most:
            return float("inf")
        return state.queue[0][1] + self._net.wait_s

    def _enter(self, query: int, tier: int, now: float) -> None:
        self._tiers[tier].queue.append((query, now))
        self._entered_s[query, tier] = now

    def _send_what_is_due(self, tier: int, now: float) -> None:
        state, size = self._tiers[tier], int(self._net.batch_size[tier])
        while (
            state.queue
            and state.under_way < self._net.in_flight[tier]
            and (len(state.queue) >= size or now >= self._due_s(tier))
        ):
            batch = [state.queue.popleft()[0] for _ in range(min(size, len(state.queue)))]
            state.under_way += 1
            self._batched_s[batch, tier] = now
            heapq.heappush(self._done, (self._heard_s(tier, batch, now), self._sent, tier, batch))
            self._sent += 1

    def _heard_s(self, tier: int, batch: list[int], now: float) -> float:
        """When all members have answered; in a staged tier one after the other, about fewer and fewer items."""
        staged = bool(self._net.staged[tier])
        heard = now
        for member in np.flatnonzero(self._net.member_tier == tier):
            items = len(batch)
            if staged:
                items = int(self._load.routing.asked[self._load.item[batch], member].sum())
                if items == 0:
                    break
            heard = max(heard, self._answered_s(int(member), items, heard if staged else now))
        return heard

    def _answered_s(self, member: int, items: int, now: float) -> float:
        """One call: the replica that is free first computes it."""
        turn = self._turns[member].next()
        assert turn is not None  # here nobody hangs
        placement = int(self._net.first_placement[member]) + turn
        free_at = self._free_at[placement]
        start = max(now, free_at[0])
        busy = float(
            self._net.service_s[placement, items] * self._jitter[placement, len(self._calls) % self._jitter.shape[1]]
        )
        heapq.heapreplace(free_at, start + busy)
        self._calls.append((member, placement, items, now, start, busy))
        return start + busy + float(self._net.hop_s[placement])

    def _end(self, tier: int, batch: list[int], now: float) -> None:
        self._tiers[tier].under_way -= 1
        for query in batch:
            if self._load.routing.tier[self._load.item[query]] == tier:
                self._done_s[query] = now
            else:
                self._enter(query, tier + 1, now)
