"""The scaling policies: ours against Ray Serve's own functions, and the part that Serve's controller runs."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import yaml
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

from coe.cli.main import run
from coe.errors import InvalidInput
from coe.files import read, to_yaml, write
from coe.router.scaling import Patience, replicas_for, upper_calls, wanted_by_ongoing, wanted_by_reach
from coe.serving.app import CascadeArgs, build
from coe.serving.following import follow
from coe.serving.scaling_policy import ROUTER, Work, application_policy, beyond_the_nodes, member_options, rate
from coe.types import Plan, Scaling
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
    for load in (0.0, 100.0, 1000.0, 5000.0):
        expected = math.ceil(load * upper * large.traffic * large.expected_busy_s / 0.6)
        assert wanted_by_reach(plan, large, load, Scaling()) == max(1, expected)
    assert wanted_by_reach(plan, large, 5000.0, Scaling(max_replicas=3)) == 3
    assert (replicas_for(0.0), replicas_for(300.0 * 0.002 / 0.6), replicas_for(1.01)) == (
        0,
        1,
        2,
    )  # 1: exactly at the target


def rising(values: list[float], started: float = 100.0) -> list[TimeStampedValue]:
    """A value a second."""
    return [TimeStampedValue(started + t, value) for t, value in enumerate(values)]


def test_rates_of_routers_add_up_and_one_that_has_just_started_says_nothing() -> None:
    assert rate([]) is None
    assert rate([rising([7.0])]) is None
    assert rate([rising([7, 9, 11]), rising([0, 3, 6, 9], started=300.0), rising([5])]) == pytest.approx(5.0)


def reported(plan: Plan, scaling: Scaling, rate_per_s: int, router: str = "r") -> dict[str, Any]:
    """Serve's series of what a router reports that is asked so often."""
    work, sums = Work(), []
    work.follow(plan, scaling)
    for _ in range(5):
        sums.append(work.report)
        work.arrived(rate_per_s)
    replica = ReplicaID(router, DeploymentID(ROUTER, "coe"))
    return {name: {replica: rising([s[name] for s in sums])} for name in sums[0]}


def decided(plan: Plan, scaling: Scaling, metrics: dict[str, Any]) -> tuple[dict[str, int], Any]:
    """What Serve makes of the policy as serve.yaml names it, by deployment of which two replicas run, and the policy's state."""
    named = application_policy(scaling)
    assert named is not None
    policy = _apply_app_level_autoscaling_config(
        cloudpickle.loads(AutoscalingPolicy(**named).get_serialized_policy_def())
    )
    asked = [context(p.deployment, scaling, 2) for p in plan.placements]
    asked.append(context(ROUTER, scaling, 1, raw_metrics=metrics))
    wanted, after = policy({c.deployment_id: c for c in asked})
    return {d.name: n for d, n in wanted.items()}, {d.name: s for d, s in after.items()}


AT_ONCE = Scaling(upscale_delay_s=0.0, downscale_delay_s=0.0)


@pytest.mark.parametrize("rate_per_s", [0, 10, 800, 12345])
def test_serve_decides_by_the_same_rule_as_the_simulator(rate_per_s: int) -> None:
    """Serve bounds afterwards; the router itself is none of its business."""
    plan = aws_plan()
    wanted, _ = decided(plan, AT_ONCE, reported(plan, AT_ONCE, rate_per_s))
    assert {d: max(1, min(100, n)) for d, n in wanted.items()} == {
        p.deployment: wanted_by_reach(plan, p, rate_per_s, AT_ONCE) for p in plan.placements
    }


def test_two_routers_have_twice_the_load() -> None:
    plan = aws_plan()
    one, other = (reported(plan, AT_ONCE, 3000, router) for router in ("a", "b"))
    wanted, _ = decided(plan, AT_ONCE, {name: one[name] | other[name] for name in one})
    large = plan.placements[-1]
    assert wanted[large.deployment] == wanted_by_reach(plan, large, 6000.0, AT_ONCE) > 1


def test_a_plan_that_is_changed_live_counts_from_then_on() -> None:
    plan, work = aws_plan(), Work()
    stats = plan.stats.model_copy(update={"calls": {**plan.stats.calls, "large": 1.0}})
    work.follow(plan, AT_ONCE)
    work.arrived(100)
    before = dict(work.report)
    work.follow(plan.model_copy(update={"stats": stats}), AT_ONCE)
    assert work.report == before
    work.arrived(100)
    (name,) = [n for n in before if n.endswith(plan.placements[-1].deployment)]
    assert work.report[name] - before[name] == pytest.approx(before[name] / upper_calls(0.25, 200, 0.95))


def test_without_news_of_the_load_everything_stays() -> None:
    wanted, _ = decided(aws_plan(), AT_ONCE, {})
    assert set(wanted.values()) == {2}


def test_serve_holds_a_change_back_for_the_delay() -> None:
    scaling, plan = Scaling(upscale_delay_s=30.0), aws_plan()
    wanted, state = decided(plan, scaling, reported(plan, scaling, 12345))
    assert set(wanted.values()) == {2}
    assert all(s for d, s in state.items() if d != ROUTER)


def test_serves_default_policy_needs_no_name() -> None:
    assert application_policy(Scaling(policy="ongoing")) is None


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


def test_build_writes_scaling_into_every_file_that_deploys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "plan.yaml", aws_plan())
    write(tmp_path / "scaling.yaml", Scaling(max_replicas=3))
    command = ["build", str(tmp_path / "plan.yaml"), "--uncertified", "--scaling", str(tmp_path / "scaling.yaml"), "-o"]
    assert run([*command, str(tmp_path / "deploy")]) == 0
    assert "max_replicas 3 is more than the plan's nodes hold" in capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "deploy/serve.yaml").read_text())
    (application,) = config["applications"]
    assert application["autoscaling_policy"] == application_policy(Scaling())
    assert CascadeArgs.model_validate(application["args"]).scaling == Scaling(max_replicas=3)
    service = yaml.safe_load((tmp_path / "deploy/rayservice.yaml").read_text())
    assert yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["scaling"]["max_replicas"] == 3
    assert run([*command, str(tmp_path / "new.yaml"), "--live", str(tmp_path / "deploy/serve.yaml")]) == 2
    assert "with --live" in capsys.readouterr().err


def test_the_application_scales_members_and_has_the_router_report() -> None:
    plan = aws_plan()
    for scaling, routers in ((Scaling(), True), (Scaling(policy="ongoing"), False)):
        router = build(CascadeArgs(plan=plan, scaling=scaling))._bound_deployment
        assert (router._deployment_config.autoscaling_config is not None) == routers
        for handle in router.init_args[2].values():
            configured = handle._bound_deployment._deployment_config.autoscaling_config
            assert (configured.min_replicas, configured.max_replicas) == (1, 100)
