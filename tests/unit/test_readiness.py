"""When the router says that it is ready."""

from __future__ import annotations

from coe.serving.readiness import FAILURES, MEMORY_S, Readiness
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
