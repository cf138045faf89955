"""The routes of OpenAI's protocol, under `/v1`: the cascade as a chat model, where its items are texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from coe.errors import InvalidInput
from coe.records import Answer
from coe.router.queries import Overloaded
from coe.serving import chat, schemas, v2
from coe.serving.details import wants_details
from coe.serving.headers import answer_headers, spent_of
from coe.serving.http_api import asked_timeout_s, retry_after
from coe.serving.refusals import openai_error
from coe.serving.service import Service, body_of, status_of, visit_of


class OpenAIApi:
    """What answers each route."""

    def __init__(self, service: Service, clock: Callable[[], float]) -> None:
        """clock: seconds since the Unix epoch."""
        self._service = service
        self._clock = clock
        self._since_s = clock()
        self._served = v2.Served(lambda: service.plan)

    @property
    def _name(self) -> str:
        return self._service.plan.cascade.name

    async def models(self) -> Response:
        """The one model there is."""
        entry = chat.model_entry(self._name, self._since_s)
        return self._no_texts() or JSONResponse({"object": "list", "data": [entry]})

    async def model(self, request: Request) -> Response:
        """The cascade, if that is its name."""
        if (absent := self._no_texts()) is not None:
            return absent
        if (name := request.path_params["name"]) != self._name:
            return _refused(f"only '{self._name}' is served here; asked for '{name}'", 404, "model", "model_not_found")
        return JSONResponse(chat.model_entry(self._name, self._since_s))

    async def complete(self, request: Request) -> Response:
        """Answer the one user message with the name of a class."""
        if (absent := self._no_texts()) is not None:
            return absent
        plan, visit = self._service.plan, visit_of(request)
        try:
            is_detailed = wants_details(request)
            timeout_s = asked_timeout_s(visit.headers.get("x-request-timeout-ms"))
            asked = chat.parsed(await body_of(request, self._service.access), plan.cascade.name)
        except InvalidInput as error:
            return _mistake(error)
        item = np.array([asked.text])
        try:
            answers = await self._service.ask({visit.request_id: item}, timeout_s)
        except Overloaded as refusal:
            return _refused(str(refusal), 503, code="overloaded", headers=retry_after(refusal))
        visit.note(answers)
        (answer,) = answers
        headers = answer_headers(answers)
        if not isinstance(answer, Answer):
            return _refused("no member answered", 503, code="unanswered", headers=headers)
        told = chat.completion(
            answer,
            asked,
            model=plan.cascade.name,
            fingerprint=self._served.now.version,
            request_id=visit.request_id,
            classes=plan.pool.classes,
            now_s=self._clock(),
            spent=next(iter(spent_of(answers)), None),
            is_detailed=is_detailed,
        )
        return JSONResponse(told, headers=headers)

    def _no_texts(self) -> JSONResponse | None:
        """404 where items are no texts, so that there is nothing to chat with."""
        pool = self._service.plan.pool
        if pool.is_text:
            return None
        shape = list(pool.input_shape)
        told = f"the items of {self._name} are numbers of shape {shape}, and chats are texts; ask at /predict or /v2"
        return _refused(told, 404, code="not_a_text_model")


def _refused(
    told: str, status: int, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(openai_error(told, status, param, code), status_code=status, headers=headers)


def _mistake(error: InvalidInput) -> JSONResponse:
    """A mistake of the client: 404 for another model, 413 for too much, else 400."""
    status, code = status_of(error, 400), "invalid_value"
    if isinstance(error, chat.UnknownModel):
        status, code = 404, "model_not_found"
    elif isinstance(error, chat.Unsupported):
        code = "unsupported_value"
    elif status == 413:
        code = "too_large"
    return _refused("; ".join(str(p) for p in error.problems), status, error.problems[0].where, code)


# --- What the OpenAPI document says -------------------------------------------------------------------------------------


class ErrorText(schemas.Part):
    """Field and rule, as OpenAI's clients read them."""

    message: str
    type: str
    param: str | None
    code: str | None


class ChatError(schemas.Part):
    """Why there is no completion."""

    error: ErrorText


class ModelEntry(schemas.Part):
    """The cascade."""

    id: str
    object: str
    created: int = Field(description="Since when it is served, in seconds since 1970.")
    owned_by: str


class ModelList(schemas.Part):
    """All models there are: one."""

    object: str
    data: list[ModelEntry]


class Message(schemas.Part):
    """The answer."""

    role: str
    content: str | None = Field(description="Name of the class; null where the members abstained.")
    refusal: str | None = Field(description="That the members abstained.")


class Choice(schemas.Part):
    """The one choice."""

    index: int
    message: Message
    logprobs: None
    finish_reason: str


class Usage(schemas.Part):
    """Tokens of all calls of hosted models that the request caused."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Extension(schemas.Cost):
    """How the answer came about."""

    class_: int = Field(alias="class", ge=-2, description="Index of the class; -2 where the members abstained.")
    tier: int = Field(ge=0, description="Index of the tier that answered; 0 is the first.")
    score: float
    agreed: int = Field(ge=0, description="Members that voted for the answer.")
    voted: int = Field(ge=0, description="Members that had voted for anything when it was given.")
    degraded: bool = Field(description="A vote was missing.")
    ignored: list[str] = Field(description="Parameters of the request that had no effect.")


class Completion(schemas.Part):
    """A chat completion."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str = Field(description="Start of the plan's fingerprint.")
    choices: list[Choice]
    usage: Usage | None = Field(
        None, description="Absent where no hosted model was asked, or not all tokens are known."
    )
    coe: Extension


def mount(api: FastAPI, service: Service, clock: Callable[[], float] = time.time) -> None:
    """Add the routes and what the OpenAPI document says of them."""
    own = OpenAIApi(service, clock)
    absent: dict[str, Any] = {"model": ChatError, "description": "Another model, or one whose items are no texts"}
    errors: schemas.Responses = {
        400: {"model": ChatError, "description": "A mistake in the request, or more than a cascade can do"},
        404: absent,
        413: {"model": ChatError, "description": "Too many bytes"},
        503: {"model": ChatError, "description": "Overloaded, or nobody answered", "headers": schemas.RETRY_AFTER},
    }
    api.add_api_route("/v1/models", own.models, response_model=ModelList, responses={404: absent})
    api.add_api_route(
        "/v1/models/{name:path}",  # a name may hold slashes
        own.model,
        response_model=ModelEntry,
        responses={404: absent},
        openapi_extra={"parameters": [schemas.in_path("name")]},
    )
    api.add_api_route(
        "/v1/chat/completions",
        own.complete,
        methods=["POST"],
        response_model=Completion,
        responses=errors,
        openapi_extra={
            "requestBody": schemas.json_body(chat.request_schema(service.plan.cascade.name)),
            "parameters": [
                schemas.header("X-Request-Timeout-Ms", schemas.TIMEOUT_MS),
                schemas.header("X-Coe-Details", schemas.DETAILS),
                schemas.in_query("details", schemas.DETAILS),
            ],
        },
    )
