"""An endpoint that speaks OpenAI's protocol and replays what language models once answered: a table of recorded predictions.

    python -m deployments.llm.replay_endpoint recorded.npz --port 8790

`POST /v1/chat/completions` finds the item by its id in the last message, ``[item ID]``, and gives the recorded answer of the
model asked for, with the tokens that were recorded; `GET /v1/models` lists the models. So cascades of hosted models can be
predicted, served and billed without keys, and what comes back can be compared with the record.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from coe.errors import CoeError, InvalidInput, Problem
from coe.files import read_predictions
from coe.table import PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE

ITEM = re.compile(r"\[item ([^\]\s]+)\]")
NO_ANSWER = "I cannot tell."
MAX_BODY_BYTES = 2**22

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that gets an error instead of an answer, as OpenAI phrases errors."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}


class ReplayEndpoint:
    """The ASGI application. An answer takes `latency_s` and `s_per_token` for each completion token."""

    def __init__(self, table: PredictionTable, *, latency_s: float = 0.0, s_per_token: float = 0.0) -> None:
        if table.tokens is None:
            rule, remedy = "has no token counts, so nothing could be billed", "import predictions with tokens"
            raise InvalidInput(Problem("recorded predictions", rule, remedy=remedy))
        self._table, self._tokens = table, table.tokens
        self._row = {str(item): row for row, item in enumerate(table.items)}
        self._column = {member: column for column, member in enumerate(table.members)}
        self._latency_s, self._s_per_token = latency_s, s_per_token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            status, body = await self._answered(scope["method"], scope["path"], receive)
            await _respond(send, status, body)

    async def _answered(self, method: str, path: str, receive: Receive) -> tuple[int, dict[str, Any]]:
        try:
            if (method, path) == ("GET", "/v1/models"):
                return 200, self._models()
            if (method, path) == ("POST", "/v1/chat/completions"):
                return 200, await self._completion(_parsed(await _body(receive)))
            raise Refused(404, "unknown_url", f"there is no {method} {path}")
        except Refused as refusal:
            return refusal.status, refusal.body

    def _models(self) -> dict[str, Any]:
        entries = [{"id": m, "object": "model", "created": 0, "owned_by": "replay"} for m in self._table.members]
        return {"object": "list", "data": entries}

    async def _completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A chat completion for the item that the last message names."""
        model = asked.get("model")
        if model not in self._column:
            raise Refused(
                404, "model_not_found", f"The model `{model}` does not exist or you do not have access to it."
            )
        if asked.get("stream"):
            raise Refused(400, "unsupported_value", "recorded answers are not streamed: leave out `stream`")
        row, column = self._row_of(asked.get("messages")), self._column[model]
        answer = int(self._table.answers[row, column])
        if answer == MISSING_VOTE:
            raise Refused(503, "no_recording", f"{model} was never asked about item {self._table.items[row]}")
        prompt, completion = (int(count) for count in self._tokens[row, column])
        await asyncio.sleep(self._latency_s + completion * self._s_per_token)
        text = NO_ANSWER if answer == ABSTAINED else f"The answer is ({self._table.classes[answer]})."
        name = hashlib.blake2b(f"{model} {row}".encode(), digest_size=12).hexdigest()
        return {
            "id": f"chatcmpl-{name}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }

    def _row_of(self, messages: Any) -> int:
        """The row of the item whose id stands in the last message."""
        last = messages[-1] if isinstance(messages, list) and messages else None
        content = last.get("content") if isinstance(last, dict) else None
        if not isinstance(content, str):
            raise Refused(400, "invalid_value", "messages must end with one whose content is a text")
        found = ITEM.findall(content)
        if not found:
            raise Refused(400, "no_item", "the last message must name its item, like: [item 71]")
        if found[-1] not in self._row:
            raise Refused(400, "unknown_item", f"nothing was recorded about item {found[-1]}")
        return self._row[found[-1]]


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refused(400, "invalid_json", "the body must be a JSON object")
    return data


async def _body(receive: Receive) -> bytes:
    """The whole body of a request."""
    parts, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise Refused(413, "too_large", f"the body is longer than {MAX_BODY_BYTES} bytes")
        more = message.get("more_body", False) and message["type"] == "http.request"
    return b"".join(parts)


async def _respond(send: Send, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _live(receive: Receive, send: Send) -> None:
    """Nothing to do at start and end but to say so."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("predictions", help="recorded predictions with tokens, from coe import predictions texts")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8790)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how long every answer takes")
    parser.add_argument("--ms-per-token", type=float, default=0.0, help="and for each completion token")
    given = parser.parse_args(arguments)
    try:
        table = read_predictions(given.predictions)
        app = ReplayEndpoint(table, latency_s=given.latency_ms / 1e3, s_per_token=given.ms_per_token / 1e3)
    except CoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    where = f"http://{given.host}:{given.port}/v1"
    print(f"{len(table.members)} models on {len(table)} items at {where}", file=sys.stderr)
    uvicorn.run(app, host=given.host, port=given.port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
