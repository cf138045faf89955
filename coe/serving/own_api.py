"""The routes of the service's own JSON: `/predict`, `/healthz`, `/readyz` and `/plan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from coe.errors import InvalidInput
from coe.router.queries import Overloaded, Unanswered
from coe.serving import schemas
from coe.serving.details import wants_details, with_details
from coe.serving.door import fresh_ids
from coe.serving.headers import answer_headers
from coe.serving.http_api import Json, answer_body, asked_timeout_s, error_body, parsed_items, retry_after
from coe.serving.lanes import Lane
from coe.serving.service import Service, body_of, status_of, visit_of


class OwnApi:
    """What answers each route."""

    def __init__(self, service: Service, fresh_ids: Iterator[str]) -> None:
        self._service = service
        self._fresh_ids = fresh_ids

    async def predict(self, request: Request) -> Response:
        """Answer one or many items."""
        pool, access, visit = self._service.plan.pool, self._service.access, visit_of(request)
        try:
            is_detailed = wants_details(request)
            timeout_s = asked_timeout_s(visit.headers.get("x-request-timeout-ms"))
            body = await body_of(request, access)
            items = parsed_items(body, pool.input_shape, self._fresh_ids, access.max_items, is_text=pool.is_text)
        except InvalidInput as error:
            return JSONResponse(error_body(error), status_code=status_of(error, 422))
        try:
            answers = await self._service.ask(items, timeout_s)
        except Overloaded as refusal:
            return JSONResponse({"error": str(refusal)}, status_code=503, headers=retry_after(refusal))
        visit.note(answers)
        failed = any(isinstance(answer, Unanswered) for answer in answers)
        told = answer_body(list(items), answers, pool.classes)
        told = with_details(told, answers) if is_detailed else told
        return Json(told, status_code=503 if failed else 200, headers=answer_headers(answers))

    async def healthz(self) -> Response:
        """200 while the router runs and its queues move: no reason to restart it. Members may still be starting: see `readyz`."""
        is_alive = self._service.is_alive()
        return JSONResponse({"status": "ok" if is_alive else "broken"}, status_code=200 if is_alive else 500)

    async def readyz(self) -> Response:
        """200 while every tier can form its quorum of members that have started and answer, else 503 and what is missing."""
        missing = self._service.missing()
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return JSONResponse(body, status_code=503 if missing else 200)

    async def plan(self) -> Response:
        """The plan that is being served."""
        return Response(self._service.plan.model_dump_json(), media_type="application/json")


def mount(api: FastAPI, service: Service) -> Lane:
    """Add the routes and what the OpenAPI document says of them. The lane leads to `/predict`."""
    own, pool = OwnApi(service, fresh_ids()), service.plan.pool
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
                "headers": schemas.RETRY_AFTER,
            },
        },
        openapi_extra={
            "requestBody": schemas.json_body(
                schemas.predict_request(pool.input_shape, service.access.max_items, is_text=pool.is_text)
            ),
            "parameters": [
                schemas.header("X-Request-Timeout-Ms", schemas.TIMEOUT_MS),
                schemas.header("X-Coe-Details", schemas.DETAILS),
                schemas.in_query("details", schemas.DETAILS),
            ],
        },
    )
    broken = {"model": schemas.Health, "description": "The queues have stopped"}
    unready = {"model": schemas.Ready, "description": "A tier cannot form its quorum"}
    api.add_api_route("/healthz", own.healthz, response_model=schemas.Health, responses={500: broken})
    api.add_api_route("/readyz", own.readyz, response_model=schemas.Ready, responses={503: unready})
    api.add_api_route("/plan", own.plan, response_model=dict[str, Any])
    return {"/predict": own.predict}.get
