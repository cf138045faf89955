"""What `benchmarks.serving` deploys: an echo, the composition that a Ray Serve user would write, and members for both."""

# No `from __future__ import annotations` here: Ray Serve looks at the types of the application's signatures.

import asyncio
import time
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

CLASSES = 10
MOST_PER_BATCH = 64
"""For the composition and for `coe`."""
ESCALATED = 0.3
"""This part of the items divides the first tier."""


def first_tier(batch: np.ndarray, member: int = 0, seconds_per_item: float = 0.0) -> np.ndarray:
    """Probabilities of a member that agrees with its peers about seven items of ten; it may take its time."""
    if seconds_per_item:
        time.sleep(seconds_per_item * len(batch))
    value = np.asarray(batch, dtype=np.float64).reshape(len(batch), -1)[:, 0]
    answer = (value * 1000).astype(np.int64) % CLASSES
    answer = np.where(value < ESCALATED, (answer + member) % CLASSES, answer)
    return np.eye(CLASSES, dtype=np.float32)[answer]


def last_tier(batch: np.ndarray) -> np.ndarray:
    """Probabilities of the member that answers what is left."""
    return first_tier(batch, 0)


@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
class Echo:
    """(a) The least that Serve does."""

    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        return {"bytes": len(body)}


@serve.deployment(max_ongoing_requests=1000)
class NaiveMember:
    """A member as Ray Serve's documentation batches it."""

    def __init__(self, member: int) -> None:
        self._member = member

    @serve.batch(max_batch_size=MOST_PER_BATCH, batch_wait_timeout_s=0.005)
    async def predict(self, items: list[list[float]]) -> list[int]:
        """The class of each item."""
        answers = first_tier(np.array(items), self._member) if self._member >= 0 else last_tier(np.array(items))
        return [int(a) for a in answers.argmax(axis=1)]


naive_api = FastAPI()


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress(naive_api)
class Naive:
    """(b) Every request asks three members; where they disagree, the fourth."""

    def __init__(self, first: list[DeploymentHandle], last: DeploymentHandle) -> None:
        self._first, self._last = first, last

    @naive_api.post("/predict")
    async def predict(self, request: Request) -> dict[str, Any]:
        """The answer to one item."""
        item = (await request.json())["items"][0]["input"]
        answers = await asyncio.gather(*(member.predict.remote(item) for member in self._first))
        if len(set(answers)) == 1:
            return {"answer": answers[0], "tier": 0}
        return {"answer": await self._last.predict.remote(item), "tier": 1}


def echo() -> Application:
    """(a)."""
    return Echo.bind()


def naive() -> Application:
    """(b)."""
    first = [NaiveMember.options(name=f"member{n}").bind(n) for n in range(3)]
    return Naive.bind(first, NaiveMember.options(name="last").bind(-1))
