"""A member's replica: one loaded model that answers batches, one at a time, and says how long it was busy."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray

from coe.router.queries import Reply
from coe.runners.base import Runner, blank_batch, make_runner
from coe.runners.paced import Paced
from coe.serving.labels import simulated_speed
from coe.types import Pool


class MemberReplica:
    """Loads `member` of `pool` and answers batches. On a simulated node it is as slow as its accelerator share says.

    One thread of its own loads and answers: batches wait for each other there, and what a library keeps per thread (the
    number of OpenMP threads, for one) is set up once.
    """

    def __init__(self, pool: Pool, member: str, share: float, base_dir: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=member)
        self._runner = self._thread.submit(loaded, pool, member, share, base_dir).result()
        self._node = ray.get_runtime_context().get_node_id()

    async def predict(self, batch: np.ndarray) -> Reply:
        """Probabilities of a batch (items, *input_shape), and the busy time without the wait for batches before it."""
        probs, busy_s = await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, batch)
        return Reply(probs, busy_s, self._node)

    def _timed(self, batch: np.ndarray) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        probs = self._runner.predict(batch)
        return probs, time.perf_counter() - start


def loaded(pool: Pool, member: str, share: float, base_dir: str) -> Runner:
    """The member's runner, loaded, paced where the node is simulated, and past its slow first call."""
    entry = pool.member(member)
    runner: Runner = make_runner(entry, pool, Path(base_dir or "."))
    speed = simulated_speed(share)
    if speed is not None:
        runner = Paced(runner, speed)
    runner.load()
    if entry.runner != "table":
        runner.predict(blank_batch(pool, 1))
    return runner
