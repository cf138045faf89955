"""The engine on arrays, compiled: the same rules and the same results as `engine`, for millions of queries.

Replicas of a placement are a heap of the times at which they are free; batches under way are a heap of the times at which they
are done. Nothing is allocated per query or per batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from coe.simulator.engine import Calls, Outcome
from coe.simulator.network import Load, Network
from coe.types import FloatArray, IntArray


@dataclass(frozen=True)
class Totals:
    """What is kept of a run whose calls and times per tier would not fit in memory.

    done_s: (queries,).  entered, waited_s: (tiers,), of queries that arrived since the start of counting.  calls, items, busy_s:
    (placements,), of calls asked since then;  replica_wait_s, service_s: the same, summed over items.
    """

    done_s: FloatArray
    entered: IntArray
    waited_s: FloatArray
    calls: IntArray
    items: IntArray
    busy_s: FloatArray
    replica_wait_s: FloatArray
    service_s: FloatArray


def run(network: Network, load: Load, jitter: FloatArray) -> Outcome:
    """Everything about a run, as `Engine(...).run()` gives it."""
    queries, tiers = len(load.arrival_s), network.tiers
    most_calls = queries * len(network.member_tier)
    entered, batched = np.full((queries, tiers), np.nan), np.full((queries, tiers), np.nan)
    log = np.empty((most_calls, 3), dtype=np.int64)
    times = np.empty((most_calls, 3))
    done_s, _, _, count = _simulate(*_arguments(network, load, jitter), 0.0, entered, batched, log, times, True)
    log, times = log[:count], times[:count]
    calls = Calls(log[:, 0], log[:, 1], log[:, 2], times[:, 0], times[:, 1], times[:, 2])
    return Outcome(done_s, entered, batched, calls)


def run_totals(network: Network, load: Load, jitter: FloatArray, since_s: float = 0.0) -> Totals:
    """When every query was done, and sums of what happened from `since_s` on."""
    none, no_log = np.empty((1, network.tiers)), np.empty((1, 3), dtype=np.int64)
    done_s, by_tier, by_placement, _ = _simulate(
        *_arguments(network, load, jitter), since_s, none, none.copy(), no_log, np.empty((1, 3)), False
    )
    calls, items = (by_placement[:, i].astype(np.int64) for i in range(2))
    return Totals(done_s, by_tier[:, 0].astype(np.int64), by_tier[:, 1], calls, items, *by_placement[:, 2:].T)


def _arguments(network: Network, load: Load, jitter: FloatArray) -> tuple[object, ...]:
    return (
        load.arrival_s,
        load.item,
        load.routing.tier,
        load.routing.asked,
        network.batch_size,
        network.in_flight,
        network.at_work,
        network.wait_s,
        network.staged,
        network.member_tier,
        network.first_placement,
        network.replicas,
        network.traffic,
        network.hop_s,
        network.service_s,
        np.ascontiguousarray(jitter),
    )


@njit(cache=True)
def _sift_down(heap, at, size):  # type: ignore[no-untyped-def]
    """Restore a heap of numbers whose entry `at` may be too large."""
    value = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@njit(cache=True)
def _push(times, numbers, size, time, number):  # type: ignore[no-untyped-def]
    """Add to a heap of (time, number); ties go to the lower number, which is the batch sent first."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if times[parent] < time or (times[parent] == time and numbers[parent] < number):
            break
        times[at], numbers[at] = times[parent], numbers[parent]
        at = parent
    times[at], numbers[at] = time, number


@njit(cache=True)
def _pop(times, numbers, size):  # type: ignore[no-untyped-def]
    """Take the first of a heap of (time, number) with `size` entries away."""
    size -= 1
    time, number = times[size], numbers[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and (
            times[child + 1] < times[child]
            or (times[child + 1] == times[child] and numbers[child + 1] < numbers[child])
        ):
            child += 1
        if time < times[child] or (time == times[child] and number < numbers[child]):
            break
        times[at], numbers[at] = times[child], numbers[child]
        at = child
    times[at], numbers[at] = time, number


@njit(cache=True)
def _simulate(  # type: ignore[no-untyped-def]
    arrival_s,
    item,
    end_tier,
    asked,
    batch_size,
    in_flight,
    at_work,
    wait_s,
    staged,
    member_tier,
    first_placement,
    replicas,
    traffic,
    hop_s,
    service_s,
    jitter,
    since_s,
    entered_s,
    batched_s,
    log,
    log_times,
    keep,
):
    queries, tiers, placements = len(arrival_s), len(batch_size), len(replicas)
    done_s = np.full(queries, np.nan)
    joined_s = np.empty(queries)
    # a query is in one tier's queue at a time, and joins each at most once
    queue = np.empty((tiers, queries), dtype=np.int32)
    head, tail, under_way = np.zeros(tiers, np.int64), np.zeros(tiers, np.int64), np.zeros(tiers, np.int64)
    slots = in_flight.sum()
    largest = batch_size.max()
    batch_of = np.empty((slots, largest), dtype=np.int32)
    batch_count, batch_tier = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    free_slots = np.arange(slots)[::-1].copy()
    free_count = slots
    done_times, done_numbers = np.empty(slots), np.empty(slots, np.int64)
    pending, sent = 0, 0
    offset = np.zeros(placements + 1, np.int64)
    for p in range(placements):
        offset[p + 1] = offset[p] + replicas[p]
    free_at = np.zeros(offset[placements])
    credit = np.zeros(placements)
    by_tier = np.zeros((tiers, 2))  # queries, seconds in the queue
    by_placement = np.zeros((placements, 5))  # calls, items, busy seconds; seconds x items of waiting and of computing
    call_number, jitters = 0, jitter.shape[1]
    next_arrival = 0
    while True:
        now = np.inf
        kind = 0
        if pending > 0:
            now, kind = done_times[0], 1
        if next_arrival < queries and arrival_s[next_arrival] < now:
            now, kind = arrival_s[next_arrival], 2
        for t in range(tiers):
            most = in_flight[t] if 2 * (tail[t] - head[t]) >= batch_size[t] else min(in_flight[t], at_work[t])
            if head[t] < tail[t] and under_way[t] < most:
                due = joined_s[queue[t, head[t]]] + wait_s
                if due < now:
                    now, kind = due, 3
        if now == np.inf:
            break
        if kind == 1:
            # the number of a batch is sent * slots + slot, so that order and slot are one integer
            slot = done_numbers[0] % slots
            _pop(done_times, done_numbers, pending)
            pending -= 1
            t = batch_tier[slot]
            under_way[t] -= 1
            for j in range(batch_count[slot]):
                q = batch_of[slot, j]
                if end_tier[item[q]] == t:
                    done_s[q] = now
                else:
                    joined_s[q] = now
                    queue[t + 1, tail[t + 1]] = q
                    tail[t + 1] += 1
                    if keep:
                        entered_s[q, t + 1] = now
            free_slots[free_count] = slot
            free_count += 1
        elif kind == 2:
            q = next_arrival
            next_arrival += 1
            joined_s[q] = now
            queue[0, tail[0]] = q
            tail[0] += 1
            if keep:
                entered_s[q, 0] = now
        for t in range(tiers):
            while head[t] < tail[t] and under_way[t] < in_flight[t]:
                waiting = tail[t] - head[t]
                may_go = under_way[t] < at_work[t] or 2 * waiting >= batch_size[t]
                is_due = may_go and now >= joined_s[queue[t, head[t]]] + wait_s
                if waiting < batch_size[t] and not is_due:
                    break
                count = min(batch_size[t], waiting)
                free_count -= 1
                slot = free_slots[free_count]
                batch_tier[slot], batch_count[slot] = t, count
                for j in range(count):
                    q = queue[t, head[t] + j]
                    batch_of[slot, j] = q
                    if arrival_s[q] >= since_s:
                        by_tier[t, 0] += 1
                        by_tier[t, 1] += now - joined_s[q]
                    if keep:
                        batched_s[q, t] = now
                head[t] += count
                under_way[t] += 1
                heard = now
                for m in range(len(member_tier)):
                    if member_tier[m] != t:
                        continue
                    n, asked_s = count, now
                    if staged[t]:
                        n, asked_s = 0, heard
                        for j in range(count):
                            n += asked[item[batch_of[slot, j]], m]
                        if n == 0:
                            break
                    first, last = first_placement[m], first_placement[m + 1]
                    p = first
                    if last - first > 1:
                        total = 0.0
                        for i in range(first, last):
                            credit[i] += traffic[i]
                            total += traffic[i]
                            if credit[i] > credit[p]:
                                p = i
                        credit[p] -= total
                    lane = free_at[offset[p] : offset[p + 1]]
                    start = max(asked_s, lane[0])
                    busy = service_s[p, n] * jitter[p, call_number % jitters]
                    lane[0] = start + busy
                    _sift_down(lane, 0, len(lane))
                    if keep:
                        log[call_number, 0], log[call_number, 1], log[call_number, 2] = m, p, n
                        log_times[call_number, 0] = asked_s
                        log_times[call_number, 1] = start
                        log_times[call_number, 2] = busy
                    call_number += 1
                    if asked_s >= since_s:
                        by_placement[p, 0] += 1
                        by_placement[p, 1] += n
                        by_placement[p, 2] += busy
                        by_placement[p, 3] += n * (start - asked_s)
                        by_placement[p, 4] += n * busy
                    heard = max(heard, start + busy + hop_s[p])
                _push(done_times, done_numbers, pending, heard, sent * slots + slot)
                pending += 1
                sent += 1
    return done_s, by_tier, by_placement, call_number
