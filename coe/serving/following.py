"""How a router follows replicas that come and go: it asks Serve how many run, and resizes its queues.

Serve's public status is asked from a thread, since the answer takes some milliseconds and, while a controller restarts, longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from ray import serve
from ray.serve.schema import ReplicaState

EVERY_S = 1.0

log = logging.getLogger("coe.router")


def running_replicas() -> Mapping[str, int]:
    """Deployment of this replica's application -> replicas that run; empty while Serve does not know the application."""
    application = serve.status().applications.get(serve.get_replica_context().app_name)
    deployments = {} if application is None else application.deployments
    return {name: d.replica_states.get(ReplicaState.RUNNING, 0) for name, d in deployments.items()}


async def follow(
    deployments: Collection[str],
    resize: Callable[[str, int], None],
    *,
    running: Callable[[], Mapping[str, int]] = running_replicas,
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
