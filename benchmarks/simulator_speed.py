"""How fast the simulator is: against SimPy on the same three-tier cascade, a million queries, and a fleet of 10,000 replicas.

    python -m benchmarks.simulator_speed [--quick] [--json OUT]

The cascade has three members in its first tier, two in its second and one in its last, batches of up to 16 within 5 ms, and
passes on 40% from tier to tier. SimPy runs the same rules (a store per tier, a resource per member, the slowest member ends a
batch) on fewer queries; compared is the time per query in the same run. The large fleet has members 31 times as slow. Compiling
is not counted; it takes some seconds once.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from benchmarks.figures import publish
from coe.cascade.evaluate import Routing
from coe.simulator import fast
from coe.simulator.arrivals import poisson, stream
from coe.simulator.engine import Engine
from coe.simulator.network import Load, Network

MEMBERS = ((0.004, 0.005, 0.006), (0.012, 0.015), (0.03,))
"""Seconds of a batch of 16, by tier and member; a batch of one takes a quarter."""
BATCH, WAIT_S, REACH, ITEMS = 16, 0.005, 0.4, 10_000


def network(rate_per_s: float, slower: float = 1.0) -> Network:
    """Replicas for 60% of capacity at this load, of members so many times as slow."""
    members = [m for tier in MEMBERS for m in tier]
    tier_of = [t for t, tier in enumerate(MEMBERS) for _ in tier]
    replicas = [
        max(1, round(rate_per_s * REACH**t * slower * s / BATCH / 0.6)) for s, t in zip(members, tier_of, strict=True)
    ]
    size = np.arange(BATCH + 1)
    scarcest = np.array([min(r for r, t in zip(replicas, tier_of, strict=True) if t == k) for k in range(3)])
    return Network(
        batch_size=np.full(3, BATCH),
        in_flight=2 * scarcest,
        at_work=scarcest,
        wait_s=WAIT_S,
        staged=np.zeros(3, dtype=np.bool_),
        member_tier=np.array(tier_of),
        first_placement=np.arange(len(members) + 1),
        replicas=np.array(replicas),
        traffic=np.ones(len(members)),
        hop_s=np.zeros(len(members)),
        sigma=np.zeros(len(members)),
        service_s=np.array([slower * s * (0.2 + 0.8 * size / BATCH) for s in members]),
    )


def load(rate_per_s: float, queries: int) -> Load:
    """Poisson arrivals; items end at random tiers."""
    rng = stream(0, "items")
    end = np.zeros(ITEMS, dtype=np.int64)
    for t in range(2):
        end[(end == t) & (rng.random(ITEMS) < REACH)] = t + 1
    routing = Routing(end, end, np.zeros(ITEMS, dtype=np.bool_), np.ones((ITEMS, 6), dtype=np.bool_))
    arrivals = poisson(stream(0, "arrivals"), rate_per_s, 1.02 * queries / rate_per_s + 1)[:queries]
    return Load(arrivals, rng.integers(0, ITEMS, len(arrivals), dtype=np.int32), routing)


def ones(net: Network) -> np.ndarray:
    """No jitter."""
    return np.ones((len(net.replicas), 1))


def in_simpy(net: Network, queries: Load) -> np.ndarray:
    """The same model as SimPy processes; when each query was done."""
    world = simpy.Environment()
    waiting = [simpy.Store(world) for _ in range(net.tiers)]
    replicas = [simpy.Resource(world, int(r)) for r in net.replicas]
    slots = [simpy.Resource(world, int(n)) for n in net.in_flight]
    ended = [world.event() for _ in range(net.tiers)]
    done = np.zeros(len(queries.arrival_s))

    def arrive() -> Generator[Any, Any, None]:
        for query, at in enumerate(queries.arrival_s):
            yield world.timeout(at - world.now)
            waiting[0].put(query)

    def serve(tier: int) -> Generator[Any, Any, None]:
        while True:
            batch = [(yield waiting[tier].get())]
            deadline = world.timeout(net.wait_s)
            while len(batch) < net.batch_size[tier]:
                is_half = 2 * len(batch) >= net.batch_size[tier] and slots[tier].count < net.in_flight[tier]
                if deadline.processed and (is_half or slots[tier].count < net.at_work[tier]):
                    break
                get = waiting[tier].get()
                yield get | (ended[tier] if deadline.processed else deadline)
                if get.triggered:
                    batch.append(get.value)
                else:
                    get.cancel()
            slot = slots[tier].request()
            yield slot
            world.process(run(tier, batch, slot))

    def call(member: int, items: int) -> Generator[Any, Any, None]:
        with replicas[member].request() as turn:
            yield turn
            yield world.timeout(net.service_s[member, items])

    def run(tier: int, batch: list[int], slot: Any) -> Generator[Any, Any, None]:
        members = np.flatnonzero(net.member_tier == tier)
        yield world.all_of([world.process(call(int(m), len(batch))) for m in members])
        slots[tier].release(slot)
        ended[tier].succeed()
        ended[tier] = world.event()
        for query in batch:
            if queries.routing.tier[queries.item[query]] == tier:
                done[query] = world.now
            else:
                waiting[tier + 1].put(query)

    world.process(arrive())
    for tier in range(net.tiers):
        world.process(serve(tier))
    world.run(until=float(queries.arrival_s[-1]) + 60)
    return done


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller runs, to see that it works")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    part = 50 if args.quick else 1
    small = network(2_000.0)
    fast.run_totals(small, load(2_000.0, 1_000), ones(small))  # compile
    rows = [
        _row("SimPy", 2_000.0, 20_000 // min(part, 10), in_simpy),
        _row("readable engine", 2_000.0, 20_000, _readable),
    ]
    sizes = [(2e3, 20_000, 1), (2e3, 1_000_000, 1), (1e5, 1_000_000, 1), (1e5, 6_000_000, 31), (1e5, 60_000_000, 31)]
    rows += [_row("compiled engine", rate, queries // part, _compiled, slower) for rate, queries, slower in sizes]
    for row in rows:
        row["times SimPy"] = rows[0]["us per query"] / row["us per query"]
    publish("simulator_speed", rows, args.json)


def _readable(net: Network, queries: Load) -> np.ndarray:
    return Engine(net, queries, ones(net)).run().done_s


def _compiled(net: Network, queries: Load) -> np.ndarray:
    return fast.run_totals(net, queries, ones(net)).done_s


def _row(name: str, rate: float, count: int, simulate: Any, slower: float = 1.0) -> dict[str, Any]:
    net, queries = network(rate, slower), load(rate, count)
    start = time.perf_counter()
    done = simulate(net, queries)
    seconds = time.perf_counter() - start
    latency = (done - queries.arrival_s)[done > 0]
    return {
        "what": name,
        "queries per s": rate,
        "replicas": int(net.replicas.sum()),
        "queries": len(queries.arrival_s),
        "simulated s": float(queries.arrival_s[-1]),
        "seconds": seconds,
        "us per query": 1e6 * seconds / len(queries.arrival_s),
        "p50 latency s": float(np.median(latency)),
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
