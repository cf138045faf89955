"""What the OpenAPI document says of requests and responses. Documentation only: `http_api` and `v2` do the checking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from coe.serving.http_api import MAX_TEXT_CHARS, SAID

RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {
        "description": "Seconds after which the queues have room, or the first member that rests is tried again. Absent where "
        "a member does not rest: the next request may be answered.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
"""Header of a 503."""


class Part(BaseModel):
    """A described object, which has no other fields."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Cost(Part):
    """What one item cost, where that was asked for."""

    usd: float | None = Field(None, ge=0, description="Its part of the member calls that have ended.")
    calls_under_way: int | None = Field(None, ge=0, description="Calls that have not ended; they are not in `usd`.")
    prompt_tokens: int | None = Field(None, ge=0, description="Of hosted models, where all are known.")
    completion_tokens: int | None = Field(None, ge=0)


class Prediction(Cost):
    """What one item was answered."""

    id: str
    answer: str | None = Field(description="Name of the class; null where the members abstained.")
    class_: int = Field(alias="class", ge=-2, description="Index of the class; -2 where the members abstained.")
    tier: int = Field(ge=0, description="Index of the tier that answered; 0 is the first.")
    score: float
    degraded: bool = Field(description="A vote was missing.")


class NoPrediction(Cost):
    """An item that no member answered."""

    id: str
    error: str


class Predictions(Part):
    """Answers in the order of the request."""

    answers: list[Prediction | NoPrediction]


class FieldError(Part):
    """One mistake in a request."""

    field: str
    rule: str
    found: str


class Refusal(Part):
    """Every mistake found."""

    errors: list[FieldError]


class Failure(Part):
    """Why there is no answer."""

    error: str


class V2Refusal(Part):
    """The protocol's text, and every mistake by field."""

    error: str
    errors: list[FieldError] = []


class Health(Part):
    """Whether the router runs."""

    status: str


class Ready(Part):
    """Whether every tier can form its quorum."""

    status: str
    missing: list[str]


class V2Live(Part):
    """Whether the router runs."""

    live: bool


class V2Ready(Part):
    """Whether every tier can form its quorum."""

    ready: bool
    missing: list[str]


class V2ModelReady(V2Ready):
    """Whether every tier of the cascade can form its quorum."""

    name: str


class V2Server(Part):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class V2TensorMetadata(Part):
    """One tensor of a model; -1 is the number of items."""

    name: str
    datatype: str
    shape: list[int]


class V2Model(Part):
    """The cascade as a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[V2TensorMetadata]
    outputs: list[V2TensorMetadata]


class V2OutputParameters(Part):
    """Of an output that follows the JSON in binary."""

    binary_data_size: int


class V2Output(Part):
    """One output, an element per item; `data` is absent where it follows in binary."""

    name: str
    datatype: str
    shape: list[int]
    data: list[bool | int | float | str] | None = None
    parameters: V2OutputParameters | None = None


class V2Response(Part):
    """The outputs asked for."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[V2Output]


JsonSchema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]
FLOAT32_MAX = float(np.finfo(np.float32).max)
TIMEOUT_MS: JsonSchema = {"type": "number", "minimum": 0.001, "description": "Milliseconds that the client waits."}


DETAILS: JsonSchema = {"enum": [*SAID], "description": "1 or true: say what each item cost."}

TEXT: JsonSchema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARS, "pattern": "^[^\\u0000]*$"}


def predict_request(item_shape: Sequence[int], max_items: int, *, is_text: bool = False) -> JsonSchema:
    """JSON schema of the body of `POST /predict`."""
    one = {"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 1}]}
    item = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "minLength": 1, "maxLength": 200},
            "input": one if is_text else nested(item_shape),
        },
        "required": ["input"],
        "additionalProperties": False,
    }
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": max_items}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


def v2_request(item_shape: Sequence[int], max_items: int, outputs: Sequence[str], datatype: str) -> JsonSchema:
    """JSON schema of the body of an inference request; `data` has as many values as `shape` says, flat or nested."""
    shape = {"type": "array", "minItems": 1 + len(item_shape), "maxItems": 1 + len(item_shape)}
    shape["prefixItems"] = [
        {"type": "integer", "minimum": 1, "maximum": max_items},
        *({"const": n} for n in item_shape),
    ]
    tensor = {
        "type": "object",
        "properties": {
            "name": {"const": "input"},
            "shape": shape,
            "datatype": {"const": datatype},
            "parameters": _closed({"binary_data_size": {"type": "integer", "minimum": 4}}),
            "data": {"type": "array", "description": "Values, flat in row-major order or nested as the shape."},
        },
        "required": ["name", "shape", "datatype"],
        "additionalProperties": False,
    }
    output = _closed({"name": {"enum": list(outputs)}, "parameters": _closed({"binary_data": {"type": "boolean"}})})
    request = _closed(
        {
            "id": {"type": "string", "minLength": 1, "maxLength": 200},
            "parameters": _closed(
                {
                    "timeout": {"type": "integer", "minimum": 1, "description": "Microseconds."},
                    "binary_data_output": {"type": "boolean"},
                }
            ),
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": {**output, "required": ["name"]}},
        }
    )
    return {**request, "required": ["inputs"]}


def nested(shape: Sequence[int]) -> JsonSchema:
    """Nested arrays of numbers of exactly this shape."""
    if not shape:
        return {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
    return {"type": "array", "items": nested(shape[1:]), "minItems": shape[0], "maxItems": shape[0]}


def _closed(properties: JsonSchema) -> JsonSchema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """A request body in JSON."""
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """An optional header of a request."""
    return {"name": name, "in": "header", "required": False, "schema": schema}


def in_query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """An optional part of the query string."""
    return {"name": name, "in": "query", "required": False, "schema": schema}


def in_path(name: str) -> dict[str, Any]:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
