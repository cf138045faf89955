"""Waiting for a deployed application, and saying why it does not come up."""

from __future__ import annotations

import re
import time

from ray import serve

from coe.errors import Unavailable
from coe.serving.build import APPLICATION
from coe.serving.profile import connected

POLL_S = 0.3
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def wait_until_running(address: str, timeout_s: float) -> None:
    """Return when every deployment of the application runs.

    Raises `Unavailable` with Serve's own message where the deployment failed, or with what is still missing when the
    time is over.
    """
    deadline = time.monotonic() + timeout_s
    with connected(address):
        while True:
            application = serve.status().applications.get(APPLICATION)
            status = "NOT_STARTED" if application is None else str(application.status.value)
            if status == "RUNNING":
                return
            if application is not None and status == "DEPLOY_FAILED":
                raise Unavailable(f"the service could not be deployed:\n{_last_lines(application.message)}")
            if time.monotonic() > deadline:
                deployments = {} if application is None else application.deployments
                waiting = [f"{name}: {d.status.value} {d.message}" for name, d in deployments.items()]
                raise Unavailable(
                    f"the service is {status} after {timeout_s:.0f} s:\n" + _last_lines("\n".join(waiting))
                )
            time.sleep(POLL_S)


def _last_lines(message: str, lines: int = 12) -> str:
    """The end of a message, where the cause stands, without terminal colours."""
    return "\n".join(_COLORS.sub("", message).strip().splitlines()[-lines:])
