"""The short way for the requests that answer queries: past the framework's routing, straight to what answers them.

FastAPI describes all routes and answers all others. A request's way through it costs more processor time than everything that
the router does for a query, so the few routes that carry the load are found here, by their plain paths.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]
Lane = Callable[[str], Handler | None]
"""Path of a POST request -> what answers it; None where the framework does."""


class Lanes:
    """An ASGI application that takes lanes where there are any; the others go to `rest`."""

    def __init__(self, lane: Lane, rest: ASGIApp) -> None:
        self._lane = lane
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered."""
        handler = self._lane(path_of(scope)) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._rest(scope, receive, send)
            return
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path of a request below the application's own."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
