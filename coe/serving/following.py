"""How a router follows replicas that come and go: it asks Serve how many run, and resizes its queues.

Serve is asked from a thread, since the answer takes some milliseconds and, while a controller restarts, longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ReplicaState

EVERY_S = 1.0

log = logging.getLogger("coe.router")


def running_replicas(application: str) -> Mapping[str, int]:
    """Deployment of an application -> replicas that run; empty while Serve does not know the application.

    Reads what `serve.status()` reads, without its checks, which take forty times as long (30 ms of the router's processor).
    """
    applications = _get_global_client().get_serve_details()["applications"]
    return {
        name: sum(replica["state"] == ReplicaState.RUNNING for replica in deployment["replicas"])
        for name, deployment in applications.get(application, {"deployments": {}})["deployments"].items()
    }


async def follow(
    deployments: Collection[str],
    resize: Callable[[str, int], None],
    *,
    running: Callable[[], Mapping[str, int]] = lambda: running_replicas(serve.get_replica_context().app_name),
    every_s: float = EVERY_S,
) -> None:
    """Call `resize` for each of `deployments` whose number of running replicas has changed, for ever.

    Where none runs, one counts: queues must go on moving, and its calls wait in Serve.
    """
    known: dict[str, int] = {}
    while True:
        try:
            counts = await asyncio.to_thread(running)
        except Exception as error:  # a controller that restarts answers nothing for a while
            log.warning("cannot ask Serve for the replicas: %s", error)
            counts = {}
        for deployment in deployments:
            if deployment in counts and known.get(deployment) != (count := max(1, counts[deployment])):
                known[deployment] = count
                resize(deployment, count)
        await asyncio.sleep(every_s)
