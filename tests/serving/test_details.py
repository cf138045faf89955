"""What a client is told of the cost of its request, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.web_case import NAME, Served, planned, served

USD_PER_CALL = 0.001 * 3.6
"""Each member of `web_case` is busy for a millisecond per call at 3.6 dollars per second."""


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture(scope="module")
def texts() -> Iterator[Served]:
    with served(is_text=True) as running:
        yield running


def predict(service: Served, rows: range, path: str = "/predict", **headers: str) -> httpx.Response:
    items = [{"id": f"{row}", "input": [[row, 0], [0, 0]]} for row in rows]
    return httpx.post(f"{service.url}{path}", json={"items": items}, headers=headers)


def asked(tier: int) -> int:
    """Calls for a query that tier answered, one item per batch."""
    return sum(len(t.members) for t in planned().cascade.tiers[: tier + 1])


@pytest.mark.parametrize("row", range(6))
def test_a_lone_query_costs_the_calls_that_were_made_for_it(service: Served, row: int) -> None:
    got = predict(service, range(row, row + 1))
    tier = got.json()["answers"][0]["tier"]
    assert float(got.headers["x-coe-cost-usd"]) == pytest.approx(asked(tier) * USD_PER_CALL)
    assert "usd" not in got.json()["answers"][0], "only for those who ask"


@pytest.mark.parametrize("ask", [{"path": "/predict?details=1"}, {"x-coe-details": "1"}], ids=["query", "header"])
def test_each_items_cost_on_request(service: Served, ask: dict[str, str]) -> None:
    got = predict(service, range(20), **ask)
    answers: list[dict[str, Any]] = got.json()["answers"]
    assert sum(a["usd"] for a in answers) == pytest.approx(float(got.headers["x-coe-cost-usd"]), abs=1e-9)
    assert {a["calls_under_way"] for a in answers} == {0}
    by_tier = {a["tier"]: a["usd"] for a in answers}
    assert by_tier[1] > by_tier[0] > 0
    assert not any("prompt_tokens" in a for a in answers), "nobody counts any here"


def test_what_is_neither_yes_nor_no_is_refused(service: Served) -> None:
    got = predict(service, range(1), "/predict?details=perhaps")
    assert got.status_code == 422
    assert got.json()["errors"] == [
        {"field": "details", "rule": "must be one of 1, true, 0, false", "found": "'perhaps'"}
    ]
    assert "usd" not in predict(service, range(1), "/predict?details=0").json()["answers"][0]


def chat(service: Served, row: int, path: str = "/v1/chat/completions") -> dict[str, Any]:
    body = {"model": NAME, "messages": [{"role": "user", "content": f"question {row}"}]}
    got: dict[str, Any] = httpx.post(f"{service.url}{path}", json=body).json()
    return got


def test_usage_is_the_tokens_of_all_members_that_count_them(texts: Served) -> None:
    last = planned().cascade.tiers[1].members
    texts.router.counting = {last[0]}
    told = [chat(texts, row) for row in range(20)]
    for completion in told:
        went_on = completion["coe"]["tier"] == 1
        expected = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11} if went_on else None
        assert completion.get("usage") == expected
        assert "usd" not in completion["coe"]
    assert {completion["coe"]["tier"] for completion in told} == {0, 1}
    detailed = chat(texts, 0, "/v1/chat/completions?details=1")["coe"]
    assert detailed["usd"] == pytest.approx(asked(detailed["tier"]) * USD_PER_CALL)
