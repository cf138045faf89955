"""An open-loop client: queries leave at random moments at a given rate, whatever the service does meanwhile.

Latency counts from the moment a query was due, so that a slow service, which would hold up a closed loop, hides nothing
(no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from coe.errors import Unavailable
from coe.profiler.predict import DataSet
from coe.records import Bench, BenchAnswer
from coe.types import MISSING_VOTE

TIMEOUT_S = 30.0
CONNECTIONS = 256


def run_bench(
    url: str,
    data: DataSet,
    source: str,
    rate_per_s: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    token: str | None = None,
) -> Bench:
    """Send every item of `data` once, with Poisson arrivals, and keep what came back.

    `source` names the data in the result; `token` is for a service that asks for one.
    Raises `Unavailable` where the service cannot be reached at all.
    """
    return asyncio.run(_run(url.rstrip("/"), data, source, rate_per_s, seed, progress, token))


async def _run(
    url: str,
    data: DataSet,
    source: str,
    rate_per_s: float,
    seed: int,
    progress: Callable[[int, int], None] | None,
    token: str | None,
) -> Bench:
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, len(data.items))
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, headers=headers) as client:
        await _reach(client, url)
        started_s = time.time()
        tasks = []
        for row, due_s in enumerate(started_s + np.cumsum(gaps_s)):
            await asyncio.sleep(max(0.0, due_s - time.time()))
            tasks.append(asyncio.create_task(_one(client, data, row, float(due_s))))
            if progress:
                progress(row + 1, len(data.items))
        answers = await asyncio.gather(*tasks)
    return Bench(
        url=url,
        data=source,
        rate_per_s=rate_per_s,
        seed=seed,
        started_s=started_s,
        ended_s=time.time(),
        answers=tuple(answers),
    )


async def _reach(client: httpx.AsyncClient, url: str) -> None:
    """Raise `Unavailable` unless the service is healthy."""
    try:
        response = await client.get("/healthz")
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(f"{url} does not answer: {error}; is the service up (`serve run serve.yaml`)?") from None


async def _one(client: httpx.AsyncClient, data: DataSet, row: int, due_s: float) -> BenchAnswer:
    """Send one item and wait for its answer."""
    item = str(data.items[row])
    status, answer, tier, degraded = 0, MISSING_VOTE, -1, True
    try:
        response = await client.post("/predict", json={"items": [{"id": item, "input": data.x[row].tolist()}]})
        status = response.status_code
        if status == httpx.codes.OK:
            got = response.json()["answers"][0]
            answer, tier, degraded = got["class"], got["tier"], got["degraded"]
    except httpx.HTTPError:
        status = 0
    return BenchAnswer(
        item=item,
        answer=answer,
        label=int(data.y[row]),
        tier=tier,
        degraded=degraded,
        due_s=due_s,
        done_s=time.time(),
        http_status=status,
    )


def data_name(path: str | Path, split: str) -> str:
    """How a result names the data it was made with."""
    return f"{Path(path).name}:{split}"
