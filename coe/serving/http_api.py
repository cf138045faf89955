"""The JSON of `POST /predict`: checking what comes in, phrasing what goes out. Knows nothing of Ray or of the web server.

    {"items": [{"id": "optional", "input": [[...]]}, ...]}        or, where items are texts:  "input": "..."
    {"answers": [{"id", "answer", "class", "tier", "score", "degraded"}, ...]}

`class` is the index of the answer in the pool's classes, `tier` the index of the tier that answered (0 is the first). Where all
members that were heard abstained, `answer` is null and `class` is -2, as in tables and ledgers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
from starlette.responses import JSONResponse

from coe.errors import InvalidInput, Problem
from coe.records import Answer
from coe.router.queries import Overloaded, Unanswered
from coe.serving.limits import TooLarge, check_count

MAX_ITEMS = 1000
MAX_TEXT_CHARS = 1_000_000
SAID = {"1": True, "true": True, "0": False, "false": False}
"""Yes and no, in capitals or not."""
MAX_FOUND = 200
"""Characters of what a client sent that an error repeats."""


class Json(JSONResponse):
    """A response of JSON, written by orjson."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return orjson.dumps(content)


def parsed_items(
    body: bytes,
    input_shape: Sequence[int],
    fresh_ids: Iterator[str],
    max_items: int = MAX_ITEMS,
    *,
    is_text: bool = False,
) -> dict[str, np.ndarray]:
    """Id -> float32 array of shape `input_shape`, or array (1,) of str; items without an id take the next of `fresh_ids`.

    Raises `InvalidInput` naming the field of the first mistake, `TooLarge` for more than `max_items`.
    """
    data = parsed_json(body)
    if not isinstance(data, dict) or set(data) != {"items"}:
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise refused("body", "must be an object with the one key 'items'", found)
    items = data["items"]
    if not isinstance(items, list) or not items:
        found = f"{len(items)} items" if isinstance(items, list) else type(items).__name__
        raise refused("items", f"must be a list of 1 to {max_items} items", found)
    check_count("items", len(items), max_items)
    parsed: dict[str, np.ndarray] = {}
    for number, item in enumerate(items):
        name, array = _parsed_item(f"items[{number}]", item, tuple(input_shape), is_text)
        name = next(fresh_ids) if name is None else name
        if name in parsed:
            raise refused(f"items[{number}].id", "must be unique within a request", name)
        parsed[name] = array
    return parsed


def _parsed_item(where: str, item: Any, shape: tuple[int, ...], is_text: bool) -> tuple[str | None, np.ndarray]:
    if not isinstance(item, dict) or not {"input"} <= set(item) <= {"id", "input"}:
        found = ", ".join(item) if isinstance(item, dict) else type(item).__name__
        raise refused(where, "must have the key 'input', may have 'id', and nothing else", found)
    name = item.get("id")
    if name is not None:
        check_id(f"{where}.id", name)
    if is_text:
        return name, text_item(f"{where}.input", item["input"])
    array = numbers(f"{where}.input", item["input"])
    if array.shape != shape:
        raise refused(f"{where}.input", f"must have shape {shape}", str(array.shape))
    check_finite(f"{where}.input", array)
    return name, array


def parsed_json(body: bytes) -> Any:
    """The JSON value of a body; `InvalidInput` where it is none.

    What orjson does not take Python's own parser may: NaN, which then has a better refusal than that it is no JSON.
    """
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(body)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits and lists in lists in lists
        raise refused("body", "must be JSON", str(error)) from None


def check_id(where: str, name: Any) -> None:
    """`InvalidInput` unless `name` is a short string that can be written down again."""
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or any("\ud800" <= c <= "\udfff" for c in name):
        raise refused(where, "must be a string of 1 to 200 characters", shown(name))


def numbers(where: str, value: Any) -> np.ndarray:
    """Nested lists of JSON numbers as a float32 array; null and what float32 cannot hold become NaN and infinity."""
    rule = "must be nested lists of numbers, all of one length"
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iufO":  # texts that look like numbers are texts
            raise refused(where, rule)
        with np.errstate(over="ignore"):
            return array.astype(np.float64).astype(np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise refused(where, rule) from None


def text_item(where: str, value: Any) -> np.ndarray:
    """(1,) array of str: an item that is a text, or a list of the one text, as nested lists have it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return np.array([checked_text(where, value)])


def checked_text(where: str, text: Any) -> str:
    """`text` as an item; NUL ends a text in arrays, and halves of surrogate pairs are no characters.

    Raises `TooLarge` above `MAX_TEXT_CHARS`: in the array of a batch every text takes the place of the longest.
    """
    if not isinstance(text, str) or not text:
        raise refused(where, "must be a text that is not empty", shown(text))
    if len(text) > MAX_TEXT_CHARS:
        raise TooLarge(Problem(where, f"must be at most {MAX_TEXT_CHARS} characters", f"{len(text)} characters"))
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise refused(where, "must hold no NUL and no half of a surrogate pair")
    return text


def check_finite(where: str, array: np.ndarray) -> None:
    """`InvalidInput` for an array with NaN or infinities."""
    if not np.isfinite(array).all():
        raise refused(where, "must not hold NaN, infinities or null")


def asked_timeout_s(header: str | None) -> float:
    """Seconds that `X-Request-Timeout-Ms` allows; infinity without the header. `InvalidInput` for anything else."""
    if header is None:
        return math.inf
    try:
        timeout_s = float(header) / 1e3
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise refused("X-Request-Timeout-Ms", "must be a positive number of milliseconds", shown(header))
    return timeout_s


def retry_after(refusal: Overloaded) -> dict[str, str]:
    """The header of a 503 of a service that is full."""
    return after(refusal.retry_after_s)


def after(seconds: float) -> dict[str, str]:
    """The header that says when to come back: whole seconds, as HTTP has them, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def refused(field: str, rule: str, found: str = "") -> InvalidInput:
    """A mistake of the client: which field, which rule, what was found."""
    return InvalidInput(Problem(field, rule, found[:MAX_FOUND].encode("utf-8", "backslashreplace").decode()))


def shown(value: Any) -> str:
    """What a client sent, as an error repeats it."""
    try:
        return json.dumps(value)[:MAX_FOUND]
    except RecursionError:  # what could just be parsed may be too deep a few calls further down
        return type(value).__name__


def error_body(error: InvalidInput) -> dict[str, Any]:
    """The JSON body of a refusal."""
    return {"errors": [{"field": p.where, "rule": p.rule, "found": p.found} for p in error.problems]}


def answer_body(names: Sequence[str], answers: Sequence[Answer | Unanswered], classes: Sequence[str]) -> dict[str, Any]:
    """The JSON body of a response, items in the order of the request."""
    return {"answers": [_answer(name, answer, classes) for name, answer in zip(names, answers, strict=True)]}


def class_name(answer: int, classes: Sequence[str]) -> str | None:
    """The class that was answered; None where all members that were heard abstained."""
    return classes[answer] if answer >= 0 else None


def _answer(name: str, answer: Answer | Unanswered, classes: Sequence[str]) -> dict[str, Any]:
    if isinstance(answer, Unanswered):
        return {"id": name, "error": "no member answered"}
    return {
        "id": name,
        "answer": class_name(answer.answer, classes),
        "class": answer.answer,
        "tier": answer.tier,
        "score": answer.score,
        "degraded": answer.degraded,
    }
