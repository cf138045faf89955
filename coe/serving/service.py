"""What the protocols of the router share: the service they stand on, and how a request is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import numpy as np
from fastapi import Request

from coe.errors import InvalidInput
from coe.records import Answer
from coe.router.queries import Unanswered
from coe.serving.door import Visit
from coe.serving.http_api import refused
from coe.serving.limits import TooLarge, body_within
from coe.serving.live_page import Watch
from coe.types import Access, Plan

Ask = Callable[[Mapping[str, np.ndarray], float], Awaitable[list[Answer | Unanswered]]]


@dataclass
class Service:
    """What the protocols stand on. Plan and watch change when the plan changes live."""

    plan: Plan
    access: Access
    ask: Ask
    """Items by id and seconds to wait -> their answers in order; raises `Overloaded`."""
    is_alive: Callable[[], bool]
    missing: Callable[[], list[str]]
    """What each tier that cannot answer lacks; nothing when all can."""
    watch: Watch | None = None
    """What the service tells about itself."""


def visit_of(request: Request) -> Visit:
    """What the door noted of a request."""
    visit: Visit = request.scope["state"]["visit"]
    return visit


async def body_of(request: Request, access: Access) -> bytes:
    """The body within its limit, as it is; `InvalidInput` for a compressed one."""
    headers = visit_of(request).headers
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise refused("Content-Encoding", "must be absent or 'identity': bodies are not decompressed", encoding)
    return await body_within(request.stream(), headers.get("content-length"), access.max_body_bytes)


def status_of(error: InvalidInput, otherwise: int) -> int:
    """413 for what is too large, else the protocol's own status for mistakes."""
    return 413 if isinstance(error, TooLarge) else otherwise
