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
Fault = Callable[[Request, Exception], Awaitable[Response]]
Lane = Callable[[str], Handler | None]
"""Path of a POST request -> what answers it; None where the framework does."""


class Lanes:
    """An ASGI application that takes lanes where there are any; the others go to `rest`."""

    def __init__(self, lane: Lane, rest: ASGIApp, fault: Fault) -> None:
        """fault: the response to a request whose lane raises; the exception goes on to the server, whose log has it."""
        self._lane = lane
        self._rest = rest
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered."""
        handler = self._lane(path_of(scope)) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._rest(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Exception as error:
            told = await self._fault(request, error)
            await told(scope, receive, send)
            raise
        await response(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path of a request below the application's own."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
