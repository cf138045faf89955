"""The scaling policies: ours against Ray Serve's own functions, and the part that Serve's controller runs."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Mapping
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import (
    _apply_app_level_autoscaling_config,
    _apply_autoscaling_config,
    _apply_delay_logic,
    _apply_scaling_factors,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from coe.errors import InvalidInput
from coe.files import read, to_yaml
from coe.router.scaling import Patience, replicas_for, upper_calls, wanted_by_ongoing, wanted_by_reach
from coe.serving.following import follow
from coe.serving.scaling_policy import (
    ARRIVED,
    Reach,
    application_policy,
    arrivals_per_s,
    beyond_the_nodes,
    member_options,
)
from coe.types import Scaling
from tests.fleet_case import aws_plan

POLICY: Any = replica_queue_length_autoscaling_policy


def serves(scaling: Scaling) -> AutoscalingConfig:
    """The same in Serve's words."""
    return AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=scaling.target_ongoing_requests,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
    )


def context(name: str, scaling: Scaling, running: int, **changes: Any) -> AutoscalingContext:
    fields: dict[str, Any] = {
        "deployment_id": DeploymentID(name, "coe"),
        "deployment_name": name,
        "app_name": "coe",
        "current_num_replicas": running,
        "target_num_replicas": running,
        "running_replicas": [],
        "total_num_requests": 0.0,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {},
        "raw_metrics": {},
        "capacity_adjusted_min_replicas": scaling.min_replicas,
        "capacity_adjusted_max_replicas": scaling.max_replicas,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": 0.0,
        "config": serves(scaling),
    }
    return AutoscalingContext(**{**fields, **changes})


# --- Ours against Serve's ------------------------------------------------------------------------------------------------------


@given(
    running=st.integers(1, 200),
    ongoing=st.floats(0, 1000) | st.integers(0, 1000).map(float),
    target=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]),
    most=st.integers(1, 300),
)
def test_ongoing_wants_what_serves_default_policy_wants(running: int, ongoing: float, target: float, most: int) -> None:
    scaling = Scaling(policy="ongoing", target_ongoing_requests=target, max_replicas=most)
    asked = context("large", scaling, running, total_num_requests=ongoing)
    wanted, _ = POLICY(asked)
    serves_own = max(1, min(most, _apply_scaling_factors(wanted, running, asked.config)))
    assert wanted_by_ongoing(running, ongoing, scaling) == serves_own


@given(
    steps=st.lists(st.tuples(st.floats(0.05, 20), st.integers(1, 5), st.integers(1, 5) | st.none()), max_size=40),
    up_s=st.sampled_from([0.0, 3.0, 30.0]),
    down_s=st.sampled_from([0.0, 5.0, 60.0]),
)
def test_patience_lets_through_what_serves_delays_let_through(
    steps: list[tuple[float, int, int | None]], up_s: float, down_s: float
) -> None:
    """Replicas may also change under the policy's hands, as when a node is lost."""
    scaling = Scaling(upscale_delay_s=up_s, downscale_delay_s=down_s)
    ours, state, now_s, current = Patience(scaling), dict[str, Any](), 0.0, 2
    for wait_s, wanted, lost_to in steps:
        now_s += wait_s
        current = lost_to or current
        expected, state = _apply_delay_logic(wanted, current, serves(scaling), state, now_s)
        assert ours.allowed(now_s, current, wanted) == expected
        current = expected


@given(loads=st.lists(st.floats(0, 40), min_size=1, max_size=40), up=st.integers(0, 4), down=st.integers(0, 8))
def test_policy_and_patience_together_are_serves_autoscaler(loads: list[float], up: int, down: int) -> None:
    """Serve bounds what its delays let through, we bound before; nothing comes of it."""
    scaling = Scaling(policy="ongoing", min_replicas=2, max_replicas=12, upscale_delay_s=up, downscale_delay_s=down)
    serves_own, patience = _apply_autoscaling_config(POLICY), Patience(scaling)
    state: dict[str, Any] = {}
    current = theirs = 2
    with pytest.MonkeyPatch.context() as patch:
        for now_s, ongoing in enumerate(loads):
            patch.setattr("ray.serve.autoscaling_policy.time.time", lambda now_s=now_s: float(now_s))
            asked = context("large", scaling, theirs, total_num_requests=ongoing, policy_state=copy.copy(state))
            decided, state = serves_own(asked)
            theirs = max(2, min(12, math.ceil(decided)))
            current = patience.allowed(float(now_s), current, wanted_by_ongoing(current, ongoing, scaling))
            assert current == theirs


def test_at_serves_default_target_two_calls_per_replica_never_ask_for_more() -> None:
    """Which is all that our router sends a replica."""
    most = 2.0 * 3
    assert wanted_by_ongoing(3, most, Scaling(policy="ongoing", target_ongoing_requests=2.0)) == 3
    assert wanted_by_ongoing(3, most, Scaling(policy="ongoing")) == 6


# --- Reach ----------------------------------------------------------------------------------------------------------------------


def test_reach_by_hand() -> None:
    """0.25 of 200 items: at most 0.31 with 95% confidence; 2 ms each at 60% of a replica."""
    plan = aws_plan()
    large = plan.placements[-1]
    upper = upper_calls(0.25, 200, 0.95)
    assert upper == pytest.approx(0.3053, abs=2e-3)
    assert plan.workload.target_utilisation == 0.6
    for rate in (0.0, 100.0, 1000.0, 5000.0):
        expected = math.ceil(rate * upper * large.traffic * large.expected_busy_s / 0.6)
        assert wanted_by_reach(plan, large, rate, Scaling()) == max(1, expected)
    assert wanted_by_reach(plan, large, 5000.0, Scaling(max_replicas=3)) == 3
    assert replicas_for(300.0, 0.002, 0.6) == 1  # exactly at the target


def counted(rate_per_s: float, seconds: int = 5, started: float = 100.0) -> list[TimeStampedValue]:
    return [TimeStampedValue(started + t, 7 + rate_per_s * t) for t in range(seconds)]


def test_rates_of_routers_add_up_and_one_that_has_just_started_says_nothing() -> None:
    assert arrivals_per_s([]) is None
    assert arrivals_per_s([counted(50.0, seconds=1)]) is None
    assert arrivals_per_s([counted(50.0), counted(30.0, started=300.0), counted(9.0, seconds=1)]) == pytest.approx(80.0)


def decided(
    scaling: Scaling, rate_per_s: float | None, state: dict[str, Any] | None = None
) -> tuple[dict[str, int], Any]:
    """What Serve makes of the policy as serve.yaml names it, by deployment, and the policy's state."""
    plan = aws_plan()
    named = application_policy(plan, scaling)
    assert named is not None
    policy = AutoscalingPolicy(**named)
    made = cloudpickle.loads(policy.get_serialized_policy_def())(**policy.policy_kwargs)
    series = (
        {} if rate_per_s is None else {ARRIVED: {ReplicaID("r", DeploymentID("router", "coe")): counted(rate_per_s)}}
    )
    asked = [
        context(p.deployment, scaling, 2, policy_state=(state or {}).get(p.deployment, {})) for p in plan.placements
    ]
    asked.append(context("router", scaling, 1, raw_metrics=series))
    wanted, after = _apply_app_level_autoscaling_config(made)({c.deployment_id: c for c in asked})
    return {d.name: n for d, n in wanted.items()}, {d.name: s for d, s in after.items()}


@pytest.mark.parametrize("rate_per_s", [0.0, 10.0, 800.0, 12345.0])
def test_serve_decides_by_the_same_rule_as_the_simulator(rate_per_s: float) -> None:
    """Serve bounds afterwards; the router itself is none of its business."""
    scaling, plan = Scaling(upscale_delay_s=0.0, downscale_delay_s=0.0), aws_plan()
    wanted, _ = decided(scaling, rate_per_s)
    assert {d: max(1, min(100, n)) for d, n in wanted.items()} == {
        p.deployment: wanted_by_reach(plan, p, rate_per_s, scaling) for p in plan.placements
    }


def test_without_news_of_the_load_everything_stays() -> None:
    wanted, _ = decided(Scaling(upscale_delay_s=0.0, downscale_delay_s=0.0), None)
    assert set(wanted.values()) == {2}


def test_serve_holds_a_change_back_for_the_delay() -> None:
    wanted, state = decided(Scaling(upscale_delay_s=30.0), 12345.0)
    assert set(wanted.values()) == {2}
    assert all(s for d, s in state.items() if d != "router")


def test_the_policy_is_a_class_that_serve_makes_with_its_arguments() -> None:
    assert application_policy(aws_plan(), Scaling(policy="ongoing")) is None
    assert callable(Reach(router="router", busy_s_per_query={}, target_utilisation=0.6))


# --- The router follows --------------------------------------------------------------------------------------------------------


def test_the_router_hears_of_changes_only_and_outlives_a_controller() -> None:
    told: list[tuple[str, int]] = []
    answers: list[Mapping[str, int] | None] = [
        {},
        {"a": 1, "b": 2, "other": 9},
        {"a": 1, "b": 2},
        None,
        {"a": 3, "b": 0},
    ]

    def running() -> Mapping[str, int]:
        if not answers:
            raise asyncio.CancelledError
        answer = answers.pop(0)
        if answer is None:
            raise ConnectionError("the controller restarts")
        return answer

    async def followed() -> None:
        with pytest.raises(asyncio.CancelledError):
            await follow(["a", "b"], lambda d, n: told.append((d, n)), running=running, every_s=0.0)

    asyncio.run(followed())
    assert told == [("a", 1), ("b", 2), ("a", 3), ("b", 1)]


# --- Options and files ----------------------------------------------------------------------------------------------------------


def test_a_deployment_starts_with_the_plans_replicas_within_the_bounds() -> None:
    large = aws_plan().placements[-1]
    assert member_options(large, None) == {"num_replicas": 2}
    for bounds, first in (({}, 2), ({"max_replicas": 1}, 1), ({"min_replicas": 3}, 3)):
        configured = member_options(large, Scaling(**bounds))["autoscaling_config"]
        assert configured.initial_replicas == first
        assert configured.target_ongoing_requests == 1.0


def test_more_replicas_than_the_nodes_hold_are_told() -> None:
    """Two A10G whole, one T4 in quarters."""
    assert beyond_the_nodes(aws_plan(), Scaling(max_replicas=2)) == []
    told = beyond_the_nodes(aws_plan(), Scaling(max_replicas=4))
    assert [t.partition("@")[0] for t in told] == ["large"]
    assert told[0].endswith("(2)")


def test_scaling_is_a_file_and_a_part_of_a_scenario(tmp_path: Any) -> None:
    (tmp_path / "scaling.yaml").write_text("kind: scaling\nversion: 1\npolicy: ongoing\n")
    assert read(tmp_path / "scaling.yaml", Scaling) == Scaling(policy="ongoing")
    assert Scaling.model_validate(Scaling(max_replicas=3).model_dump()) == Scaling(max_replicas=3)
    for wrong, told in (
        ({"min_replicas": 5, "max_replicas": 2}, "at least min_replicas"),
        ({"look_back_s": 1.0}, "longer than"),
    ):
        (tmp_path / "scaling.yaml").write_text(to_yaml({"kind": "scaling", "version": 1, **wrong}))
        with pytest.raises(InvalidInput, match=told):
            read(tmp_path / "scaling.yaml", Scaling)
