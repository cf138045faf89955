"""What every request passes before any protocol looks at it: its id, its token, its rate, and its line in the access log."""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coe.records import Answer
from coe.router.queries import Unanswered
from coe.serving.auth import TokenList
from coe.serving.headers import first_headers, request_id
from coe.serving.lanes import path_of
from coe.serving.limits import Buckets
from coe.serving.refusals import refusal
from coe.types import Access

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""What load balancers ask, who have no token and no patience for limits; and the live page, which holds no figures."""


@dataclass
class Visit:
    """One request: what it is called, who asks, and what became of its items."""

    request_id: str
    client: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """By their names in lower case."""
    items: int = 0
    degraded: int = 0
    """Items that lacked a vote, and items that nobody answered."""
    tiers: Counter[int] = field(default_factory=Counter)
    """Tier -> items that it answered."""

    def note(self, answers: Sequence[Answer | Unanswered]) -> None:
        """Take down what a request was answered."""
        answered = [a for a in answers if isinstance(a, Answer)]
        self.items += len(answers)
        self.degraded += len(answers) - len(answered) + sum(a.degraded for a in answered)
        self.tiers.update(a.tier for a in answered)


@dataclass(frozen=True)
class Turned:
    """Why a request may not come in: the status of HTTP, a text, and headers."""

    status: int
    told: str
    headers: dict[str, str]


class Gate:
    """Who may come in, and how often."""

    def __init__(self, access: Access, clock: Callable[[], float]) -> None:
        """Raises `InvalidInput` where the file of tokens cannot be read: a service does not start without its tokens."""
        self._tokens = None if access.tokens is None else TokenList(access.tokens)
        rate = access.requests_per_s
        self._buckets = None if rate is None else Buckets(rate, access.burst, clock)

    def refusal(self, path: str, authorization: str | None, visit: Visit) -> Turned | None:
        """401 or 429 for a request that may not come in; None lets it in, under its token's name where there are tokens."""
        if path in OPEN_PATHS:
            return None
        if self._tokens is not None:
            owner = self._tokens.owner(authorization)
            if owner is None:
                challenge = 'Bearer realm="coe"' + ("" if authorization is None else ', error="invalid_token"')
                told = "a known bearer token is needed: Authorization: Bearer TOKEN"
                return Turned(401, told, {"WWW-Authenticate": challenge})
            visit.client = owner
        wait_s = 0.0 if self._buckets is None else self._buckets.wait_s(visit.client)
        if wait_s > 0:
            told = f"{visit.client} asks too often; try again in {wait_s:.1f} s"
            return Turned(429, told, {"Retry-After": str(math.ceil(wait_s))})
        return None


class Door:
    """ASGI middleware. Handlers find the request's `Visit` as `request.state.visit`; responses carry its id."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        log: logging.Logger | None,
        clock: Callable[[], float],
        names_responses: bool = True,
    ) -> None:
        """log: takes one line per request; None for no access log.

        names_responses: False where the server in front already puts `x-request-id` into every response.
        """
        self._fresh_ids = fresh_ids()
        self._names_responses = names_responses
        self._app = app
        self._gate = gate
        self._log = log
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer in its place."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, address = first_headers(scope), scope.get("client")
        name = request_id(headers.get("x-request-id"), next(self._fresh_ids))
        visit = Visit(name, address[0] if address else "unknown", headers)
        scope.setdefault("state", {})["visit"] = visit
        began_s, status = self._clock(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._names_responses:
                    MutableHeaders(scope=message)["x-request-id"] = visit.request_id
            await send(message)

        path = path_of(scope)
        turned = self._gate.refusal(path, headers.get("authorization"), visit)
        answering = self._app if turned is None else refusal(path, turned.told, turned.status, turned.headers)
        try:
            await answering(scope, receive, sending)
        except Exception:
            status = status or 500  # which is sent further out
            raise
        finally:
            if self._log is not None:
                self._log.info(log_line(scope["method"], scope["path"], visit, status, self._clock() - began_s))


def fresh_ids() -> Iterator[str]:
    """Ids that no other process gives, made in no time."""
    process = uuid.uuid4().hex[:12]
    return (f"{process}-{n}" for n in itertools.count())


def access_logger() -> logging.Logger:
    """Writes each line as it is to standard error, where Ray collects it."""
    log = logging.getLogger("coe.access")
    if not log.handlers:
        handler = logging.StreamHandler(
            sys.__stderr__
        )  # in a replica, Serve puts its own log in the place of sys.stderr
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO)
    return log


def log_line(method: str, path: str, visit: Visit, status: int, seconds: float) -> str:
    """One line of the access log. Status 0: the connection ended without a response."""
    return json.dumps(
        {
            "time": round(time.time(), 3),
            "request_id": visit.request_id,
            "client": visit.client,
            "method": method,
            "path": path,
            "status": status,
            "items": visit.items,
            "tiers": {str(tier): count for tier, count in sorted(visit.tiers.items())},
            "degraded": visit.degraded,
            "seconds": round(seconds, 6),
        }
    )
