"""OpenAI's chat completions: what comes in as a text to classify, what goes out as a completion. Without the web.

A chat that can be represented is one user message: its text is the item. A request with instructions, with earlier turns, or
with a parameter that would change the answer is refused and not answered as if these were not there: the members' own prompts
and sampling are part of the plan, and its promise of accuracy holds for those alone. Parameters that only say how one
model would draw its words, or who asks, are accepted and named in the response as ignored.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.errors import InvalidInput, Problem
from coe.records import Answer
from coe.router.spending import Spent
from coe.serving import schemas
from coe.serving.details import details, tokens
from coe.serving.http_api import checked_text, class_name, parsed_json, refused, shown

JsonSchema = dict[str, Any]

MAX_LABEL_CHARS = 512
NO_ANSWER = "the members gave no answer that is one of the classes"


class Unsupported(InvalidInput):
    """Something of the protocol that a cascade cannot do."""


class UnknownModel(InvalidInput):
    """Another model than the one that is served."""


@dataclass(frozen=True)
class Chat:
    """A request as understood: the item, and the parameters that will have no effect."""

    text: str
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class _Ignored:
    """A parameter without effect here: which values are well formed."""

    schema: JsonSchema
    rule: str
    is_sound: Callable[[Any], bool]


@dataclass(frozen=True)
class _Fixed:
    """A parameter that may only say what happens anyway."""

    values: tuple[Any, ...]
    reason: str


def _number(low: float, high: float) -> _Ignored:
    def is_sound(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return _Ignored(
        {"type": "number", "minimum": low, "maximum": high}, f"must be a number from {low:g} to {high:g}", is_sound
    )


def _count(low: int, high: int) -> _Ignored:
    def is_sound(value: Any) -> bool:
        return (type(value) is int or (type(value) is float and value.is_integer())) and low <= value <= high

    return _Ignored(
        {"type": "integer", "minimum": low, "maximum": high}, f"must be a whole number from {low} to {high}", is_sound
    )


def _is_mapping_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


_LABEL = _Ignored(
    {"type": "string", "maxLength": MAX_LABEL_CHARS},
    f"must be a string of at most {MAX_LABEL_CHARS} characters",
    lambda value: isinstance(value, str) and len(value) <= MAX_LABEL_CHARS,
)
_TEXTS = _Ignored(
    {"type": "object", "additionalProperties": {"type": "string"}}, "must be an object of strings", _is_mapping_of_texts
)

IGNORED: Mapping[str, _Ignored] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _count(-(2**63), 2**63 - 1),
    "max_tokens": _count(1, 2**31 - 1),
    "max_completion_tokens": _count(1, 2**31 - 1),
    "user": _LABEL,
    "safety_identifier": _LABEL,
    "prompt_cache_key": _LABEL,
    "metadata": _TEXTS,
}
"""How one model would draw its words and how many at most, and who asks: an answer is the name of a class all the same."""

_NO_TOOLS = "members answer with a class and call nothing"
_ONE_ANSWER = "a cascade has one answer"
FIXED: Mapping[str, _Fixed] = {
    "stream": _Fixed((False,), "the answer is there all at once, when the members agree"),
    "n": _Fixed((1,), _ONE_ANSWER),
    "tools": _Fixed(([],), _NO_TOOLS),
    "tool_choice": _Fixed(("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": _Fixed((False, True), _NO_TOOLS),
    "functions": _Fixed(([],), _NO_TOOLS),
    "function_call": _Fixed(("none", "auto"), _NO_TOOLS),
    "response_format": _Fixed(({"type": "text"},), "the content is the name of a class"),
    "modalities": _Fixed((["text"],), "the content is the name of a class"),
    "logprobs": _Fixed((False,), "members vote; the score is in 'coe'"),
    "top_logprobs": _Fixed((0,), "members vote; the score is in 'coe'"),
    "logit_bias": _Fixed(({},), "the plan says how members are asked"),
    "stop": _Fixed(([],), "the content is the name of a class"),
    "store": _Fixed((False,), "nothing is stored"),
    "service_tier": _Fixed(("auto", "default"), "all requests are served alike"),
}
_KNOWN = {"model", "messages", *IGNORED, *FIXED}


def parsed(body: bytes, model: str) -> Chat:
    """A request from its body.

    model: the name under which the cascade is served.

    Raises `InvalidInput` naming the field of the first mistake: `Unsupported` for what the protocol has and a cascade has not,
    `UnknownModel` for another model.
    """
    data = parsed_json(body)
    if not isinstance(data, dict):
        raise refused("body", "must be an object", type(data).__name__)
    for key in ("model", "messages"):
        if key not in data:
            raise refused(key, "must be there", ", ".join(data))
    if not isinstance(data["model"], str):
        raise refused("model", "must be a string", shown(data["model"]))
    if data["model"] != model:
        raise UnknownModel(Problem("model", f"only '{model}' is served here", shown(data["model"])))
    text = _text(data["messages"])
    ignored = []
    for key, value in data.items():
        if key in ("model", "messages"):
            continue
        if key not in _KNOWN:
            known = ", ".join(sorted(_KNOWN))
            raise _unsupported(key, f"is not supported; known: {known}")
        if value is not None and _is_ignored(key, value):
            ignored.append(key)
    return Chat(text, tuple(sorted(ignored)))


def _is_ignored(key: str, value: Any) -> bool:
    """True for a parameter without effect, False for one that says what happens anyway; `InvalidInput` for others."""
    if key in IGNORED:
        if not IGNORED[key].is_sound(value):
            raise refused(key, IGNORED[key].rule, shown(value))
        return True
    fixed = FIXED[key]
    if not any(type(value) is type(each) and value == each for each in fixed.values):
        allowed = " or ".join(shown(each) for each in fixed.values)
        raise _unsupported(key, f"must be {allowed}, or be left out: {fixed.reason}", shown(value))
    return False


def _text(messages: Any) -> str:
    """The text of the one user message."""
    if not isinstance(messages, list) or not messages:
        raise refused("messages", "must be a list of one message", shown(messages))
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise refused(f"messages[{number}]", "must be an object with a 'role'", shown(message))
        if message["role"] != "user":
            rule = "must be 'user': the members' instructions are part of the plan, and earlier turns have no place in an item"
            raise _unsupported(f"messages[{number}].role", rule, shown(message["role"]))
    if len(messages) > 1:
        rule = "must be one user message: an item is one text, without earlier turns"
        raise _unsupported("messages", rule, f"{len(messages)} messages")
    (message,) = messages
    for key in message:
        if key not in ("role", "content"):
            raise _unsupported(f"messages[0].{key}", "is not supported: an item is a text alone", shown(message[key]))
    content, where = message.get("content"), "messages[0].content"
    if isinstance(content, list):
        content, where = _of_parts(content), f"{where}[0].text"
    return checked_text(where, content)


def _of_parts(parts: list[Any]) -> Any:
    """What stands in the one text part."""
    where = "messages[0].content"
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise refused(f"{where}[{number}]", "must be an object with a 'type'", shown(part))
        if part["type"] != "text":
            raise _unsupported(f"{where}[{number}].type", "must be 'text'", shown(part["type"]))
    if len(parts) != 1:
        raise _unsupported(where, "must be a text, or a list of one text part", f"{len(parts)} parts")
    (part,) = parts
    if set(part) != {"type", "text"}:
        raise refused(f"{where}[0]", "must have the keys 'type' and 'text' and no others", ", ".join(part))
    return part["text"]


def _unsupported(where: str, rule: str, found: str = "") -> Unsupported:
    return Unsupported(refused(where, rule, found).problems)


def completion(
    answer: Answer,
    chat: Chat,
    *,
    model: str,
    fingerprint: str,
    request_id: str,
    classes: Sequence[str],
    now_s: float,
    spent: Spent | None = None,
    is_detailed: bool = False,
) -> dict[str, Any]:
    """The body of a response. Where all members that were heard abstained, the message is a refusal.

    spent: what the request's calls took, where that is known.   is_detailed: say what it cost.

    It has `usage` where hosted models were asked and the tokens of every one of their calls are known. Calls that nobody waits
    for any more end after the answer; then there is none.
    """
    counts = None if spent is None else tokens(spent)
    content = class_name(answer.answer, classes)
    message = {"role": "assistant", "content": content, "refusal": NO_ANSWER if content is None else None}
    return {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": int(now_s),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        **({} if counts is None else {"usage": {**counts, "total_tokens": sum(counts.values())}}),
        "coe": {
            "class": answer.answer,
            "tier": answer.tier,
            "score": answer.score,
            "agreed": answer.agreed,
            "voted": answer.voted,
            "degraded": answer.degraded,
            "ignored": list(chat.ignored),
            **({} if spent is None or not is_detailed else details(spent)),
        },
    }


def model_entry(name: str, created_s: float) -> dict[str, Any]:
    """The cascade as an entry of `GET /v1/models`. created_s: since when it is served."""
    return {"id": name, "object": "model", "created": int(created_s), "owned_by": "coe"}


def request_schema(model: str) -> JsonSchema:
    """JSON schema of a request: a second reading of the rules above, for the document that machines read."""
    text = schemas.TEXT
    part = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": text},
        "required": ["type", "text"],
        "additionalProperties": False,
    }
    message = {
        "type": "object",
        "properties": {
            "role": {"const": "user"},
            "content": {"anyOf": [text, {"type": "array", "items": part, "minItems": 1, "maxItems": 1}]},
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    properties: JsonSchema = {
        "model": {"const": model},
        "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": 1},
    }
    for name, entry in IGNORED.items():
        properties[name] = {"anyOf": [entry.schema, {"type": "null"}], "description": "Has no effect."}
    for name, fixed in FIXED.items():
        properties[name] = {"enum": [*fixed.values, None], "description": fixed.reason[:1].upper() + fixed.reason[1:]}
    return {
        "type": "object",
        "properties": properties,
        "required": ["model", "messages"],
        "additionalProperties": False,
    }
