"""Errors in the form that a path's protocol has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

OPENAI_PREFIX = "/v1/"
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def refusal(path: str, told: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A response that says why there is no other: OpenAI's object under `/v1`, one text elsewhere."""
    body = openai_error(told, status) if path.startswith(OPENAI_PREFIX) else {"error": told}
    return JSONResponse(body, status_code=status, headers=headers)


def openai_error(told: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. param: the field that is wrong."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": told, "type": kind, "param": param, "code": code}}
