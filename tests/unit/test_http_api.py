"""The JSON of /predict: what is refused and how, and what an answer looks like."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from coe.errors import InvalidInput
from coe.records import Answer
from coe.router.queries import Overloaded, Unanswered
from coe.serving.http_api import MAX_ITEMS, answer_body, asked_timeout_s, error_body, parsed_items, retry_after

SHAPE = (2, 2)
GOOD = [[1, 2], [3, 4]]


def parsed(body: object, raw: bytes | None = None) -> dict[str, np.ndarray]:
    ids = (f"fresh-{n}" for n in itertools.count())
    return parsed_items(json.dumps(body).encode() if raw is None else raw, SHAPE, ids)


def test_items_become_arrays_under_their_ids() -> None:
    items = parsed({"items": [{"id": "a", "input": GOOD}, {"input": GOOD}]})
    assert list(items) == ["a", "fresh-0"]
    assert items["a"].dtype == np.float32
    assert items["a"].tolist() == GOOD


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "body: must be an object with the one key 'items', got list"),
        ({"items": [], "more": 1}, "got items, more"),
        ({"items": []}, "items: must be a list of 1 to 1000 items, got 0 items"),
        ({"items": [{"input": GOOD}] * (MAX_ITEMS + 1)}, "got 1001 items"),
        ({"items": [{"x": 1}]}, r"items\[0\]: must have the key 'input'"),
        ({"items": [{"id": 7, "input": GOOD}]}, r"items\[0\].id: must be a string"),
        ({"items": [{"id": "a", "input": GOOD}, {"id": "a", "input": GOOD}]}, r"items\[1\].id: must be unique"),
        ({"items": [{"input": [1, 2]}]}, r"items\[0\].input: must have shape \(2, 2\), got \(2,\)"),
        ({"items": [{"input": [[1], [2, 3]]}]}, "must be nested lists of numbers"),
        ({"items": [{"input": [["a", "b"], ["c", "d"]]}]}, "must be nested lists of numbers"),
        ({"items": [{"input": [["1", "2"], ["3", "4"]]}]}, "must be nested lists of numbers"),
        ({"items": [{"input": [[True, False], [True, True]]}]}, "must be nested lists of numbers"),
        ({"items": [{"input": [[1, 10**400], [2, 3]]}]}, "must be nested lists of numbers"),
        ({"items": [{"input": [[1, 1e39], [2, 3]]}]}, "must not hold NaN"),
        ({"items": [{"id": "\ud800", "input": GOOD}]}, r"items\[0\].id: must be a string"),
        ({"items": [{"input": [[1, None], [2, 3]]}]}, "must not hold NaN"),
        ({"items": [{"input": [[1, float("nan")], [2, 3]]}]}, "must not hold NaN"),
    ],
)
def test_what_is_refused_names_field_and_rule(body: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parsed(body)
    (error,) = error_body(caught.value)["errors"]
    assert error["field"]
    assert error["rule"]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[1, 2", b"[" * 5000, b"1" * 5000])
def test_broken_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="body: must be JSON"):
        parsed(None, raw)


def test_answers_keep_the_order_of_the_request() -> None:
    answers = [Answer("b", 0.0, 0.1, 1, 0, 0.75, True), Unanswered("a")]
    body = answer_body(["b", "a"], answers, ["no", "yes"])
    assert body["answers"] == [
        {"id": "b", "answer": "no", "class": 0, "tier": 1, "score": 0.75, "degraded": True},
        {"id": "a", "error": "no member answered"},
    ]


def test_a_timeout_is_milliseconds_or_none() -> None:
    assert asked_timeout_s(None) == math.inf
    assert asked_timeout_s("250") == 0.25


@pytest.mark.parametrize("header", ["", "soon", "0", "-5", "nan", "inf"])
def test_other_timeouts_are_refused(header: str) -> None:
    with pytest.raises(InvalidInput, match="X-Request-Timeout-Ms: must be a positive number of milliseconds"):
        asked_timeout_s(header)


@pytest.mark.parametrize(("wait_s", "header"), [(0.001, "1"), (1.2, "2")])
def test_a_refusal_says_when_to_come_back_in_whole_seconds(wait_s: float, header: str) -> None:
    assert retry_after(Overloaded(wait_s)) == {"Retry-After": header}
