"""The JSON of `POST /predict`: checking what comes in, phrasing what goes out. Knows nothing of Ray or of the web server.

    {"items": [{"id": "optional", "input": [[...]]}, ...]}
    {"answers": [{"id", "answer", "class", "tier", "score", "degraded"}, ...]}

`class` is the index of the answer in the pool's classes, `tier` the index of the tier that answered (0 is the first).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.records import Answer
from coe.router.queries import Overloaded, Unanswered

MAX_ITEMS = 1000
MAX_BODY_BYTES = 64 * 2**20


def parsed_items(body: bytes, input_shape: Sequence[int], fresh_ids: Iterator[str]) -> dict[str, np.ndarray]:
    """Id -> float32 array of shape `input_shape`; items without an id take the next of `fresh_ids`.

    Raises `InvalidInput` naming the field of the first mistake.
    """
    if len(body) > MAX_BODY_BYTES:
        raise _refused("body", f"must be at most {MAX_BODY_BYTES} bytes", str(len(body)))
    try:
        data = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _refused("body", "must be JSON", str(error)) from None
    if not isinstance(data, dict) or set(data) != {"items"}:
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise _refused("body", "must be an object with the one key 'items'", found)
    items = data["items"]
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
        found = f"{len(items)} items" if isinstance(items, list) else type(items).__name__
        raise _refused("items", f"must be a list of 1 to {MAX_ITEMS} items", found)
    parsed: dict[str, np.ndarray] = {}
    for number, item in enumerate(items):
        name, array = _parsed_item(f"items[{number}]", item, tuple(input_shape))
        name = next(fresh_ids) if name is None else name
        if name in parsed:
            raise _refused(f"items[{number}].id", "must be unique within a request", name)
        parsed[name] = array
    return parsed


def _parsed_item(where: str, item: Any, shape: tuple[int, ...]) -> tuple[str | None, np.ndarray]:
    if not isinstance(item, dict) or not {"input"} <= set(item) <= {"id", "input"}:
        found = ", ".join(item) if isinstance(item, dict) else type(item).__name__
        raise _refused(where, "must have the key 'input', may have 'id', and nothing else", found)
    name = item.get("id")
    if name is not None and (not isinstance(name, str) or not 1 <= len(name) <= 200):
        raise _refused(f"{where}.id", "must be a string of 1 to 200 characters", repr(name)[:60])
    try:
        array = np.asarray(item["input"], dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        raise _refused(f"{where}.input", "must be nested lists of numbers, all of one length") from None
    if array.shape != shape:
        raise _refused(f"{where}.input", f"must have shape {shape}", str(array.shape))
    if not np.isfinite(array).all():
        raise _refused(f"{where}.input", "must not hold NaN, infinities or null")
    return name, array


def asked_timeout_s(header: str | None) -> float:
    """Seconds that `X-Request-Timeout-Ms` allows; infinity without the header. `InvalidInput` for anything else."""
    if header is None:
        return math.inf
    try:
        timeout_s = float(header) / 1e3
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s < math.inf:
        raise _refused("X-Request-Timeout-Ms", "must be a positive number of milliseconds", repr(header)[:60])
    return timeout_s


def retry_after(refusal: Overloaded) -> dict[str, str]:
    """The header of a 503: whole seconds, as HTTP has them, at least one."""
    return {"Retry-After": str(max(1, math.ceil(refusal.retry_after_s)))}


def _refused(field: str, rule: str, found: str = "") -> InvalidInput:
    return InvalidInput(Problem(field, rule, found))


def error_body(error: InvalidInput) -> dict[str, Any]:
    """The JSON body of a 422."""
    return {"errors": [{"field": p.where, "rule": p.rule, "found": p.found} for p in error.problems]}


def answer_body(names: Sequence[str], answers: Sequence[Answer | Unanswered], classes: Sequence[str]) -> dict[str, Any]:
    """The JSON body of a response, items in the order of the request."""
    return {"answers": [_answer(name, answer, classes) for name, answer in zip(names, answers, strict=True)]}


def _answer(name: str, answer: Answer | Unanswered, classes: Sequence[str]) -> dict[str, Any]:
    if isinstance(answer, Unanswered):
        return {"id": name, "error": "no member answered"}
    return {
        "id": name,
        "answer": classes[answer.answer],
        "class": answer.answer,
        "tier": answer.tier,
        "score": answer.score,
        "degraded": answer.degraded,
    }
