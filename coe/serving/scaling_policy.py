"""Ray Serve's autoscaling for a plan: its default policy per deployment, or one for the application that looks at arrivals.

The policy `reach` must know what arrives at the first tier. Serve itself knows calls under way only, and of requests that carry
many queries each; so every router adds up the work that each arriving query will bring to each deployment, by the plan that it
serves at the moment, and reports the sums with `record_autoscaling_stats`. Serve asks only deployments with an autoscaling
configuration for that: the router's has as many replicas at least as at most.

Serve pickles this module by value and runs the policy in its controller, on the head: `coe` must be installed there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ray.serve.config import AutoscalingConfig

from coe.router.scaling import replicas_for, work_per_query_s

if TYPE_CHECKING:
    from ray.serve._private.common import DeploymentID, TimeSeries
    from ray.serve.config import AutoscalingContext

    from coe.types import Placement, Plan, Scaling

ROUTER = "router"
"""Name of the router's deployment."""
WORK = "coe_work_s:"
"""Before a deployment's name: what a router reports of it."""
POLICY = "coe.serving.scaling_policy:reach"


class Work:
    """Replica-seconds of work that have arrived for each deployment, as a router adds them up."""

    def __init__(self, deployments: Iterable[str] = ()) -> None:
        """deployments: that may get work later, and until then have none."""
        self._per_query_s: dict[str, float] = {}
        self._sums = dict.fromkeys(deployments, 0.0)

    def follow(self, plan: Plan, scaling: Scaling) -> None:
        """From now on, queries are answered by this plan."""
        self._per_query_s = {
            p.deployment: work_per_query_s(plan, p, scaling.confidence) for p in plan.placements if p.api is None
        }
        self._sums = dict.fromkeys(self._per_query_s, 0.0) | self._sums

    def arrived(self, queries: int) -> None:
        """So many have come, whether they are refused or not."""
        for deployment, work_s in self._per_query_s.items():
            self._sums[deployment] += queries * work_s

    @property
    def report(self) -> dict[str, float]:
        """Rising sums, for Serve."""
        return {WORK + deployment: work_s for deployment, work_s in self._sums.items()}


def reach(
    contexts: dict[DeploymentID, AutoscalingContext],
) -> tuple[dict[DeploymentID, int], dict[DeploymentID, dict[str, Any]]]:
    """Serve's policy for the application: every deployment gets the replicas for the work that arrives at the first tier.

    Where nobody knows the load yet, those that there are. Bounds and delays are Serve's, from each deployment's configuration.
    """
    reported = next((c.raw_metrics or {} for c in contexts.values() if c.deployment_name == ROUTER), {})
    wanted = {}
    for deployment, context in contexts.items():
        if context.deployment_name == ROUTER:
            continue
        work_s_per_s = rate(reported.get(WORK + context.deployment_name, {}).values())
        wanted[deployment] = context.target_num_replicas if work_s_per_s is None else replicas_for(work_s_per_s)
    return wanted, {}


def rate(sums: Iterable[TimeSeries]) -> float | None:
    """What all routers' sums rise by per second over the look-back; None where no router has reported twice."""
    rates = []
    for series in sums:
        if len(series) < 2:
            continue
        first, last = series[0], series[-1]
        if last.timestamp > first.timestamp:
            rates.append((last.value - first.value) / (last.timestamp - first.timestamp))
    return sum(rates) if rates else None


def application_policy(scaling: Scaling) -> dict[str, Any] | None:
    """What `autoscaling_policy` of an application in `serve.yaml` says; None for Serve's default policy."""
    return None if scaling.policy == "ongoing" else {"policy_function": POLICY}


def member_options(placement: Placement, scaling: Scaling | None) -> dict[str, Any]:
    """How many replicas a member has: deployment options. One that scales starts with the plan's, within the bounds."""
    if scaling is None:
        return {"num_replicas": placement.replicas}
    least, most = scaling.min_replicas, scaling.max_replicas
    return {"autoscaling_config": _configuration(scaling, least, max(least, min(most, placement.replicas)), most)}


def router_options(plan: Plan, scaling: Scaling | None) -> dict[str, Any]:
    """How many replicas the router has: always the plan's."""
    count = plan.router.replicas
    if scaling is None or scaling.policy == "ongoing":
        return {"num_replicas": count}
    return {"autoscaling_config": _configuration(scaling, count, count, count)}


def _configuration(scaling: Scaling, least: int, first: int, most: int) -> AutoscalingConfig:
    with warnings.catch_warnings():
        # Ray 2.60 deprecates metrics_interval_s in favour of environment variables that it does not read yet
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=least,
            initial_replicas=first,
            max_replicas=most,
            target_ongoing_requests=scaling.target_ongoing_requests,
            metrics_interval_s=scaling.interval_s,
            look_back_period_s=scaling.look_back_s,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
        )


def beyond_the_nodes(plan: Plan, scaling: Scaling) -> Sequence[str]:
    """Deployments for which the plan's nodes have less room than `max_replicas`, even alone, in words."""
    nodes = {n.node_type: n.count for n in plan.nodes}
    found = []
    for p in plan.placements:
        if p.api is not None:
            continue
        devices = max(1, plan.offer(p.node_type).accelerators_per_node)
        room = nodes[p.node_type] * devices * int(1 / p.share + 1e-9)
        if room < scaling.max_replicas:
            found.append(f"{p.deployment} ({room})")
    return found
