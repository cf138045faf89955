"""The router's web application: its protocols behind one door. Knows nothing of Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import coe
from coe.serving import live_page, openai_api, own_api, v2_api
from coe.serving.door import OPEN_PATHS, Door, Gate, access_logger
from coe.serving.lanes import Lanes, path_of
from coe.serving.live_page import Watch
from coe.serving.refusals import refusal
from coe.serving.service import Service


def application(
    service: Service,
    *,
    log: logging.Logger | None = None,
    clock: Callable[[], float] = time.monotonic,
    names_responses: bool = True,
    gate: Gate | None = None,
) -> Application:
    """The web application of a service. Raises `InvalidInput` where its tokens cannot be read.

    log: where the access log goes if there is one; standard error by default.   names_responses: as for `Door`.
    gate: one that other protocols share; by default one of its own.
    """
    access = service.access
    api = Application(
        title="coe",
        version=coe.__version__,
        description="A cascade of ensembles behind one endpoint.",
        docs_url=None,
        redoc_url=None,
    )
    predict, infer = own_api.mount(api, service), v2_api.mount(api, service)
    openai_api.mount(api, service)
    if service.watch is not None:
        live_page.mount(api, lambda: _watch_of(service))
    api.add_exception_handler(HTTPException, _told_by_the_framework)
    api.add_exception_handler(Exception, _fault)
    sink = (log or access_logger()) if access.access_log else None
    gate = gate or Gate(access, clock)
    lanes = Lanes(lambda path: predict(path) or infer(path), api.by_routes, _fault)
    api.front = Door(lanes, gate=gate, log=sink, clock=clock, names_responses=names_responses)
    if access.tokens is not None:
        _demand_tokens(api)
    return api


class Application(FastAPI):
    """FastAPI with something in front of it: the door that every request passes, and the lanes that lead past its routing."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, by `front`."""
        await self.front(scope, receive, send)

    async def by_routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as FastAPI does."""
        await super().__call__(scope, receive, send)


def _watch_of(service: Service) -> Watch:
    assert service.watch is not None
    return service.watch


async def _told_by_the_framework(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of our other errors."""
    assert isinstance(error, HTTPException)
    return refusal(path_of(request.scope), error.detail, error.status_code, error.headers)


async def _fault(request: Request, _error: Exception) -> Response:
    """500 without details, which go to the router's log."""
    return refusal(path_of(request.scope), "a fault in the service; its log says more", 500)


def _demand_tokens(api: FastAPI) -> None:
    """Say in the document that all but the health endpoints need a token."""
    plain = api.openapi

    def with_tokens() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in OPEN_PATHS & document["paths"].keys():
            document["paths"][path]["get"]["security"] = []
        return document

    api.openapi = with_tokens  # type: ignore[method-assign]  # FastAPI's documented way to extend it
