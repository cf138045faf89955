"""When the router says that it is ready."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from coe.serving.readiness import FAILURES, MEMORY_S, Readiness
from coe.serving.starting import Starting
from tests import factories


class Case:
    def __init__(self, quorum: int) -> None:
        self.now_s = 100.0
        cascade = factories.cascade(rule="vote", quorum=quorum)
        pairs = [(m, f"{m}@t4") for m in cascade.members] + [("large", "large@a100")]
        self.readiness = Readiness(cascade, pairs, lambda: self.now_s)

    def break_down(self, *deployments: str) -> None:
        for deployment in deployments:
            for _ in range(FAILURES):
                self.readiness.failed(deployment)


def test_ready_until_a_member_fails_several_times_in_a_row() -> None:
    case = Case(quorum=3)
    assert case.readiness.missing() == []
    for _ in range(FAILURES - 1):
        case.readiness.failed("other@t4")
    assert case.readiness.missing() == []
    case.readiness.failed("other@t4")
    assert case.readiness.missing() == ["tier 0 needs 3 of 3 members; down: other"]


def test_a_success_or_a_while_without_failures_brings_a_member_back() -> None:
    case = Case(quorum=3)
    case.break_down("other@t4")
    case.readiness.answered("other@t4")
    assert case.readiness.missing() == []
    case.break_down("other@t4")
    case.now_s += MEMORY_S
    assert case.readiness.missing() == []


def test_a_quorum_that_can_be_formed_without_the_member_is_ready() -> None:
    case = Case(quorum=2)
    case.break_down("other@t4")
    assert case.readiness.missing() == []


def test_a_member_is_down_when_all_its_deployments_are() -> None:
    case = Case(quorum=2)
    case.break_down("large@t4")
    assert case.readiness.missing() == []
    case.break_down("large@a100")
    assert case.readiness.missing() == ["tier 1 needs 1 of 1 members; down: large"]


def test_a_member_that_has_not_started_cannot_answer_unless_another_deployment_of_it_has() -> None:
    case = Case(quorum=2)
    assert case.readiness.missing({"other@t4"}) == []
    assert case.readiness.missing({"other@t4", "small@t4"}) == ["tier 0 needs 2 of 3 members; down: other, small"]
    assert case.readiness.missing({"large@t4"}) == []


def test_serve_is_asked_for_what_has_started_until_everything_has(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []
    counts: list[Mapping[str, int] | Exception] = [{}, RuntimeError("restarts"), {"a": 1, "b": 0}, {"a": 0, "b": 2}]

    def running() -> Mapping[str, int]:
        said = counts[len(asked)]
        asked.append(1)
        if isinstance(said, Exception):
            raise said
        return said

    starting = Starting(["a", "b"], running)
    assert [set(starting.look()) for _ in range(6)] == [{"a", "b"}, {"a", "b"}, {"b"}, set(), set(), set()]
    assert len(asked) == 4, "nobody is asked any more once all have run, also if they stop"
    assert "restarts" in caplog.text
