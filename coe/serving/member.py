"""What answers for a member: a replica with a loaded model, one batch at a time; or one that calls a hosted model.

The first says how long it was busy, the second what the calls cost.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray

from coe.cost.tokens import call_usd
from coe.errors import InvalidInput, Problem
from coe.router.queries import Reply
from coe.runners.base import Runner, Said, blank_batch, make_runner
from coe.runners.paced import Paced
from coe.serving.labels import simulated_speed
from coe.types import ApiPrice, FloatArray, Pool

COLD = frozenset({"table", "openai"})
"""Runners whose first call is no slower than the others; to some of them it would also be billed."""


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


class HostedReplica:
    """Calls the hosted model behind `member`: batches are under way side by side, and no machine of ours is busy with them."""

    def __init__(self, pool: Pool, member: str, price: ApiPrice, calls_at_once: int, base_dir: str) -> None:
        self._price = price
        self._runner = make_runner(pool.member(member), pool, Path(base_dir or "."))
        self._runner.load()
        self._threads = ThreadPoolExecutor(calls_at_once, thread_name_prefix=member)

    async def predict(self, batch: np.ndarray) -> Reply:
        """Answers to a batch (items, *input_shape) and its fee; items whose request failed have NaN and cost nothing."""
        said = await asyncio.get_running_loop().run_in_executor(self._threads, self._runner.ask, batch)
        fees = item_fees_usd(self._price, said)
        return Reply(said.probs, 0.0, fee_usd=float(fees.sum()), item_fees_usd=fees, tokens=said.tokens)


def item_fees_usd(price: ApiPrice, said: Said) -> FloatArray:
    """(items,): what each item of a batch costs, by its tokens; those that were not answered cost nothing.

    Raises `InvalidInput` where tokens have a price and nobody counted them.
    """
    answered = ~np.isnan(said.probs).any(axis=1)
    if said.tokens is not None:
        return np.asarray(call_usd(price, said.tokens[:, 0], said.tokens[:, 1]) * answered, dtype=np.float64)
    if price.usd_per_million_prompt_tokens or price.usd_per_million_completion_tokens:
        rule = "is priced by the token, and the endpoint does not count them"
        raise InvalidInput(
            Problem(f"hosted model {price.model}", rule, remedy="set count_tokens in the member's options")
        )
    return np.asarray(price.usd_per_call * answered, dtype=np.float64)


def loaded(pool: Pool, member: str, share: float, base_dir: str) -> Runner:
    """The member's runner, loaded, paced where the node is simulated, and past its slow first call."""
    entry = pool.member(member)
    runner: Runner = make_runner(entry, pool, Path(base_dir or "."))
    speed = simulated_speed(share)
    if speed is not None:
        runner = Paced(runner, speed)
    runner.load()
    if entry.runner not in COLD:
        runner.predict(blank_batch(pool, 1))
    return runner
