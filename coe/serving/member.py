"""A member's replica: one loaded model that answers batches, one at a time, and says how long it was busy."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import ray

from coe.runners.base import Runner, make_runner
from coe.runners.paced import Paced
from coe.serving.batching import Reply
from coe.serving.labels import simulated_speed
from coe.types import Pool


class MemberReplica:
    """Loads `member` of `pool` and answers batches. On a simulated node it is as slow as its accelerator share says."""

    def __init__(self, pool: Pool, member: str, share: float, base_dir: str) -> None:
        runner: Runner = make_runner(pool.member(member), pool, Path(base_dir or "."))
        speed = simulated_speed(share)
        if speed is not None:
            runner = Paced(runner, speed)
        runner.load()
        if pool.member(member).runner != "table":
            runner.predict(np.zeros((1, *pool.input_shape), dtype=np.float32))  # first calls are slow: not a client's
        self._runner = runner
        self._turn = asyncio.Lock()
        self._node = ray.get_runtime_context().get_node_id()

    async def predict(self, batch: np.ndarray) -> Reply:
        """Probabilities of a batch (items, *input_shape). Batches wait for each other; busy time excludes that wait."""
        async with self._turn:
            probs, busy_s = await asyncio.to_thread(self._timed, batch)
        return Reply(probs, busy_s, self._node)

    def _timed(self, batch: np.ndarray) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        probs = self._runner.predict(batch)
        return probs, time.perf_counter() - start
