"""The routes of the Open Inference Protocol V2, under `/v2`: the cascade as a model."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

import coe
from coe.errors import InvalidInput
from coe.records import Answer
from coe.router.queries import Overloaded
from coe.serving import schemas, v2, v2_binary
from coe.serving.door import fresh_ids
from coe.serving.headers import answer_headers
from coe.serving.http_api import asked_timeout_s, retry_after
from coe.serving.lanes import Handler, Lane
from coe.serving.service import Service, body_of, status_of, visit_of

FRAMING = v2_binary.HEADER.lower()


class V2Api:
    """What answers each route. Mistakes get 400, as the protocol has it."""

    def __init__(self, service: Service, fresh_ids: Iterator[str]) -> None:
        self._service = service
        self._fresh_ids = fresh_ids
        self._served = v2.Served(lambda: service.plan)

    @property
    def _model(self) -> v2.Model:
        """The cascade that is in service."""
        return self._served.now

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
        return self._unknown(request) or await self._inferred(request)

    def lane(self, path: str) -> Handler | None:
        """For requests that name the model and no version, as clients do."""
        return self._inferred if path == f"/v2/models/{self._model.name}/infer" else None

    async def _inferred(self, request: Request) -> Response:
        access, visit = self._service.access, visit_of(request)
        try:
            header_s = asked_timeout_s(visit.headers.get("x-request-timeout-ms"))
            body = await body_of(request, access)
            asked = v2.parsed(body, visit.headers.get(FRAMING), self._model, self._fresh_ids, access.max_items)
        except InvalidInput as error:
            return JSONResponse(v2.v2_error_body(error), status_code=status_of(error, 400))
        try:
            answers = await self._service.ask(asked.items, min(asked.timeout_s, header_s))
        except Overloaded as refusal:
            return JSONResponse({"error": str(refusal)}, status_code=503, headers=retry_after(refusal))
        visit.note(answers)
        answered = [a for a in answers if isinstance(a, Answer)]
        if len(answered) < len(answers):
            return JSONResponse({"error": v2.unanswered(answers)}, status_code=503, headers=answer_headers(answers))
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
        return JSONResponse({"error": v2.unknown(self._model, name, version)}, status_code=404)


def mount(api: FastAPI, service: Service) -> Lane:
    """Add the routes and what the OpenAPI document says of them. The lane leads to inference."""
    own = V2Api(service, fresh_ids())
    mistake: schemas.Responses = {
        400: {"model": schemas.V2Refusal, "description": "A mistake in the request"},
        404: {"model": schemas.Failure, "description": "Another model or version than the one served"},
    }
    inference: schemas.Responses = {
        **mistake,
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        413: {"model": schemas.V2Refusal, "description": "Too many bytes or items"},
        503: {
            "model": schemas.Failure,
            "description": "Overloaded, or not every item answered",
            "headers": schemas.RETRY_AFTER,
        },
    }
    model = v2.Model.of(service.plan)
    request = schemas.v2_request(model.item_shape, service.access.max_items, list(v2.OUTPUTS), model.datatype)
    body = schemas.json_body(request)
    body["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    framing = [schemas.header(v2_binary.HEADER, {"type": "integer", "minimum": 1})]
    timeout = [schemas.header("X-Request-Timeout-Ms", schemas.TIMEOUT_MS)]
    down: schemas.Responses = {400: {"model": schemas.V2Live, "description": "The queues have stopped"}}
    unready: schemas.Responses = {400: {"model": schemas.V2Ready, "description": "A tier cannot form its quorum"}}
    not_ready: schemas.Responses = {
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
        parameters = [schemas.in_path(name) for name in named]
        unknown: schemas.Responses = {404: mistake[404]}
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
    return own.lane
