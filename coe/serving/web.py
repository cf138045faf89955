"""The router's web application: its own JSON, the Open Inference Protocol, and what both share. Knows nothing of Ray."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import coe
from coe.errors import InvalidInput
from coe.records import Answer
from coe.router.queries import Overloaded, Unanswered
from coe.serving import schemas, v2, v2_binary
from coe.serving.door import OPEN_PATHS, Door, Gate, Visit, access_logger
from coe.serving.headers import answer_headers
from coe.serving.http_api import answer_body, asked_timeout_s, error_body, parsed_items, refused, retry_after
from coe.serving.limits import TooLarge, body_within
from coe.types import Access, Plan

Responses = dict[int | str, dict[str, Any]]
Ask = Callable[[Mapping[str, np.ndarray], float], Awaitable[list[Answer | Unanswered]]]


@dataclass(frozen=True)
class Service:
    """What the protocols stand on."""

    plan: Plan
    access: Access
    ask: Ask
    """Items by id and seconds to wait -> their answers in order; raises `Overloaded`."""
    is_alive: Callable[[], bool]
    missing: Callable[[], list[str]]
    """What each tier that cannot answer lacks; nothing when all can."""


def application(
    service: Service,
    *,
    log: logging.Logger | None = None,
    clock: Callable[[], float] = time.monotonic,
    names_responses: bool = True,
) -> FastAPI:
    """The web application of a service. Raises `InvalidInput` where its tokens cannot be read.

    log: where the access log goes if there is one; standard error by default.   names_responses: as for `Door`.
    """
    access = service.access
    api = FastAPI(
        title="coe",
        version=coe.__version__,
        description="A cascade of ensembles behind one endpoint.",
        docs_url=None,
        redoc_url=None,
    )
    _mount_own(api, service)
    _mount_v2(api, service)
    api.add_exception_handler(HTTPException, _told_by_the_framework)
    sink = (log or access_logger()) if access.access_log else None
    api.add_middleware(Door, gate=Gate(access, clock), log=sink, clock=clock, names_responses=names_responses)
    if access.tokens is not None:
        _demand_tokens(api)
    return api


async def _told_by_the_framework(_: Request, error: Exception) -> Response:
    """404 and 405 in the form of our other errors."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


def _visit(request: Request) -> Visit:
    visit: Visit = request.state.visit
    return visit


async def _body(request: Request, access: Access) -> bytes:
    """The body within its limit, as it is; `InvalidInput` for a compressed one."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise refused("Content-Encoding", "must be absent or 'identity': bodies are not decompressed", encoding)
    return await body_within(request.stream(), request.headers.get("content-length"), access.max_body_bytes)


def _status(error: InvalidInput, otherwise: int) -> int:
    return 413 if isinstance(error, TooLarge) else otherwise


# --- Our own JSON -----------------------------------------------------------------------------------------------------


class _Own:
    """`/predict`, `/healthz`, `/readyz` and `/plan`."""

    def __init__(self, service: Service, fresh_ids: Iterator[str]) -> None:
        self._service = service
        self._fresh_ids = fresh_ids

    async def predict(self, request: Request) -> Response:
        """Answer one or many items."""
        pool, access = self._service.plan.pool, self._service.access
        try:
            timeout_s = asked_timeout_s(request.headers.get("x-request-timeout-ms"))
            body = await _body(request, access)
            items = parsed_items(body, pool.input_shape, self._fresh_ids, access.max_items)
        except InvalidInput as error:
            return JSONResponse(error_body(error), status_code=_status(error, 422))
        try:
            answers = await self._service.ask(items, timeout_s)
        except Overloaded as refusal:
            return JSONResponse({"error": str(refusal)}, status_code=503, headers=retry_after(refusal))
        _visit(request).note(answers)
        failed = any(isinstance(answer, Unanswered) for answer in answers)
        told = answer_body(list(items), answers, pool.classes)
        return JSONResponse(told, status_code=503 if failed else 200, headers=answer_headers(answers))

    async def healthz(self) -> Response:
        """200 once the router runs and its queues move. Serve starts it after every member is ready."""
        is_alive = self._service.is_alive()
        return JSONResponse({"status": "ok" if is_alive else "broken"}, status_code=200 if is_alive else 500)

    async def readyz(self) -> Response:
        """200 while every tier can form its quorum, else 503 and what is missing."""
        missing = self._service.missing()
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return JSONResponse(body, status_code=503 if missing else 200)

    async def plan(self) -> Response:
        """The plan that is being served."""
        return Response(self._service.plan.model_dump_json(), media_type="application/json")


def _mount_own(api: FastAPI, service: Service) -> None:
    own = _Own(service, _ids())
    api.add_api_route(
        "/predict",
        own.predict,
        methods=["POST"],
        response_model=schemas.Predictions,
        responses={
            413: {"model": schemas.Refusal, "description": "Too many bytes or items"},
            422: {"model": schemas.Refusal, "description": "A mistake in the request"},
            503: {
                "model": schemas.Failure | schemas.Predictions,
                "description": "Overloaded, or not every item answered",
            },
        },
        openapi_extra={
            "requestBody": _json_body(schemas.predict_request(service.plan.pool.input_shape, service.access.max_items)),
            "parameters": [_header("X-Request-Timeout-Ms", schemas.TIMEOUT_MS)],
        },
    )
    broken = {"model": schemas.Health, "description": "The queues have stopped"}
    unready = {"model": schemas.Ready, "description": "A tier cannot form its quorum"}
    api.add_api_route("/healthz", own.healthz, response_model=schemas.Health, responses={500: broken})
    api.add_api_route("/readyz", own.readyz, response_model=schemas.Ready, responses={503: unready})
    api.add_api_route("/plan", own.plan, response_model=dict[str, Any])


# --- Open Inference Protocol ------------------------------------------------------------------------------------------


class _V2:
    """`/v2`: the cascade as a model. Mistakes get 400, as the protocol has it."""

    def __init__(self, service: Service, fresh_ids: Iterator[str]) -> None:
        self._service = service
        self._fresh_ids = fresh_ids
        self._model = v2.Model.of(service.plan)

    async def server(self) -> Response:
        """Who serves, and which extensions of the protocol it knows."""
        return JSONResponse({"name": "coe", "version": coe.__version__, "extensions": ["binary_tensor_data"]})

    async def live(self) -> Response:
        """200 while the router runs."""
        is_alive = self._service.is_alive()
        return JSONResponse({"live": is_alive}, status_code=200 if is_alive else 400)

    async def ready(self) -> Response:
        """200 while every tier can form its quorum."""
        missing = self._service.missing()
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=400 if missing else 200)

    async def model(self, request: Request) -> Response:
        """Inputs and outputs of the cascade."""
        return self._unknown(request) or JSONResponse(self._model.metadata)

    async def model_ready(self, request: Request) -> Response:
        """200 while every tier of the cascade can form its quorum."""
        missing = self._service.missing()
        body = {"name": self._model.name, "ready": not missing, "missing": missing}
        return self._unknown(request) or JSONResponse(body, status_code=400 if missing else 200)

    async def infer(self, request: Request) -> Response:
        """Answer the items of one tensor."""
        if (unknown := self._unknown(request)) is not None:
            return unknown
        access, framing = self._service.access, request.headers.get(v2_binary.HEADER)
        try:
            header_s = asked_timeout_s(request.headers.get("x-request-timeout-ms"))
            body = await _body(request, access)
            asked = v2.parsed(body, framing, self._model, self._fresh_ids, access.max_items)
        except InvalidInput as error:
            return JSONResponse(v2.v2_error_body(error), status_code=_status(error, 400))
        try:
            answers = await self._service.ask(asked.items, min(asked.timeout_s, header_s))
        except Overloaded as refusal:
            return JSONResponse({"error": str(refusal)}, status_code=503, headers=retry_after(refusal))
        _visit(request).note(answers)
        answered = [a for a in answers if isinstance(a, Answer)]
        if len(answered) < len(answers):
            rows = [str(row) for row, a in enumerate(answers) if not isinstance(a, Answer)]
            told = {"error": f"no member answered {len(rows)} of {len(answers)} items: rows {', '.join(rows)}"}
            return JSONResponse(told, status_code=503, headers=answer_headers(answers))
        content, json_bytes = v2.inference_body(asked, answered, self._model)
        headers = answer_headers(answers)
        if json_bytes is None:
            return Response(content, headers=headers, media_type="application/json")
        headers[v2_binary.HEADER] = str(json_bytes)
        return Response(content, headers=headers, media_type="application/octet-stream")

    def _unknown(self, request: Request) -> JSONResponse | None:
        """404 for a model or version that is not served here."""
        name, version = request.path_params["name"], request.path_params.get("version", self._model.version)
        if (name, version) == (self._model.name, self._model.version):
            return None
        told = f"only model {self._model.name}, version {self._model.version}, is served here"
        return JSONResponse({"error": f"{told}; asked for {name}, version {version}"}, status_code=404)


def _mount_v2(api: FastAPI, service: Service) -> None:
    own = _V2(service, _ids())
    mistake: Responses = {
        400: {"model": schemas.V2Refusal, "description": "A mistake in the request"},
        404: {"model": schemas.Failure, "description": "Another model or version than the one served"},
    }
    inference: Responses = {
        **mistake,
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        413: {"model": schemas.V2Refusal, "description": "Too many bytes or items"},
        503: {"model": schemas.Failure, "description": "Overloaded, or not every item answered"},
    }
    request = schemas.v2_request(service.plan.pool.input_shape, service.access.max_items, list(v2.OUTPUTS))
    body = _json_body(request)
    body["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    framing = [_header(v2_binary.HEADER, {"type": "integer", "minimum": 1})]
    timeout = [_header("X-Request-Timeout-Ms", schemas.TIMEOUT_MS)]
    down: Responses = {400: {"model": schemas.V2Live, "description": "The queues have stopped"}}
    unready: Responses = {400: {"model": schemas.V2Ready, "description": "A tier cannot form its quorum"}}
    not_ready: Responses = {
        **mistake,
        400: {"model": schemas.V2ModelReady, "description": "A tier cannot form its quorum"},
    }
    api.add_api_route("/v2", own.server, response_model=schemas.V2Server)
    api.add_api_route("/v2/health/live", own.live, response_model=schemas.V2Live, responses=down)
    api.add_api_route("/v2/health/ready", own.ready, response_model=schemas.V2Ready, responses=unready)
    for path, named in (
        ("/v2/models/{name:path}/versions/{version}", ["name", "version"]),  # first: a name may hold slashes
        ("/v2/models/{name:path}", ["name"]),
    ):
        parameters = [_in_path(name) for name in named]
        unknown: Responses = {404: mistake[404]}
        api.add_api_route(
            f"{path}/infer",
            own.infer,
            methods=["POST"],
            response_model=schemas.V2Response,
            responses=inference,
            openapi_extra={"requestBody": body, "parameters": parameters + framing + timeout},
        )
        extra = {"parameters": parameters}
        ready_at = f"{path}/ready"
        api.add_api_route(
            ready_at, own.model_ready, response_model=schemas.V2ModelReady, responses=not_ready, openapi_extra=extra
        )
        api.add_api_route(path, own.model, response_model=schemas.V2Model, responses=unknown, openapi_extra=extra)


# --- The OpenAPI document ---------------------------------------------------------------------------------------------


def _ids() -> Iterator[str]:
    """Ids for items that came without."""
    return (f"{uuid.uuid4().hex[:8]}-{n}" for n in itertools.count())


def _json_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _demand_tokens(api: FastAPI) -> None:
    """Say in the document that all but the health endpoints need a token."""
    plain = api.openapi

    def with_tokens() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in OPEN_PATHS:
            document["paths"][path]["get"]["security"] = []
        return document

    api.openapi = with_tokens  # type: ignore[method-assign]  # FastAPI's documented way to extend it
