"""Which deployments have not had a running replica since the service began: until then a router is no more ready than they are.

Serve starts a router as soon as its own process is up, while members may still load their weights. It is asked only while
somebody wants to know and something is missing; whatever has run once is for `readiness` to judge, by its calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

ANSWER_S = 0.3
"""How long Serve has to say what runs."""

log = logging.getLogger("coe.router")


class Starting:
    """Deployments that are awaited."""

    def __init__(self, deployments: Collection[str], running: Callable[[], Mapping[str, int]]) -> None:
        """running: deployment -> replicas that run; may block."""
        self._left = set(deployments)
        self._running = running

    def look(self) -> Collection[str]:
        """Those that have not run yet; asks whether some do by now."""
        if self._left:
            asking = ThreadPoolExecutor(1)  # Serve's client must not be used on the event loop's thread
            try:
                counts = asking.submit(self._running).result(ANSWER_S)
            except Exception as error:  # a controller that restarts answers nothing for a while
                log.warning("cannot ask Serve for the replicas: %s", error or "no answer in time")
                return self._left
            finally:
                asking.shutdown(wait=False)
            self._left -= {name for name, count in counts.items() if count}
        return self._left
