"""The headers of a response."""

from __future__ import annotations

import pytest

from coe.records import Answer
from coe.router.queries import Answers, Unanswered
from coe.router.spending import Spent
from coe.serving.headers import answer_headers, request_id


def test_a_request_keeps_its_id() -> None:
    assert request_id("a-1.b:c_", "fresh") == "a-1.b:c_"


@pytest.mark.parametrize("asked", [None, "", "two words", "line\nbreak", "ä", "x" * 129])
def test_without_a_usable_id_it_gets_one(asked: str | None) -> None:
    assert request_id(asked, "fresh") == "fresh"


def test_headers_say_how_far_the_items_went_and_how_many_lacked_something() -> None:
    answers: list[Answer | Unanswered] = [
        Answer("a", 0.0, 0.1, 0, 1, 1.0, False),
        Answer("b", 0.0, 0.1, 1, 1, 1.0, True),
        Unanswered("c"),
    ]
    assert answer_headers(answers) == {"x-coe-tier": "1", "x-coe-degraded": "2"}
    assert answer_headers(answers[2:]) == {"x-coe-degraded": "1"}


def test_of_several_items_the_one_with_the_least_agreement_is_told() -> None:
    votes = [(3, 3), (2, 3), (1, 1)]
    answers = [Answer("a", 0.0, 0.1, 0, 1, 1.0, False, agreed=agreed, voted=voted) for agreed, voted in votes]
    assert answer_headers(answers)["x-coe-votes"] == "2/3"
    assert answer_headers(answers[:1])["x-coe-votes"] == "3/3"


@pytest.mark.parametrize(("wait_s", "told"), [(None, None), (0.0, "1"), (1.2, "2"), (30.0, "30")])
def test_where_all_members_rest_the_client_is_told_when_one_is_tried_again(
    wait_s: float | None, told: str | None
) -> None:
    answers = Answers([Unanswered("a")])
    answers.retry_after_s = wait_s
    assert answer_headers(answers).get("Retry-After") == told


def test_the_cost_is_that_of_all_items_and_says_what_is_not_in_it() -> None:
    answers = Answers([Answer("a", 0.0, 0.1, 0, 1, 1.0, False), Unanswered("b")])
    assert "x-coe-cost-usd" not in answer_headers(answers)
    answers.spent = (Spent(usd=0.000_001_25), Spent(usd=0.5, under_way=2))
    headers = answer_headers(answers)
    assert (headers["x-coe-cost-usd"], headers["x-coe-calls-under-way"]) == ("0.500001250000", "2")
    answers.spent = (Spent(usd=1e-9), Spent())
    assert answer_headers(answers)["x-coe-cost-usd"] == "0.000000001000"
    assert "x-coe-calls-under-way" not in answer_headers(answers)
