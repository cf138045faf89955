"""Ray Serve's autoscaling for a plan: its default policy per deployment, or one for the application that looks at arrivals.

The policy `reach` must know how many queries arrive at the first tier. Serve itself knows calls under way only, and of requests
that carry many queries each; so every router counts what arrives and reports the count with `record_autoscaling_stats`, which
Serve asks only deployments with an autoscaling configuration: the router's has as many replicas at least as at most.

Serve pickles this module by value and runs the policy in its controller, on the head: `coe` must be installed there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.serve.config import AutoscalingConfig

from coe.router.scaling import busy_s_per_query, replicas_for

if TYPE_CHECKING:
    from ray.serve._private.common import DeploymentID, TimeSeries
    from ray.serve.config import AutoscalingContext

    from coe.types import Placement, Plan, Scaling

ROUTER = "router"
"""Name of the router's deployment."""
ARRIVED = "coe_arrived"
"""What a router reports: queries that have arrived since it started."""
POLICY = "coe.serving.scaling_policy:Reach"


class Reach:
    """Serve's application-level policy: every deployment gets the replicas that the arrivals at the first tier will need there.

    Bounds and delays are Serve's business, from each deployment's configuration.
    """

    def __init__(self, *, router: str, busy_s_per_query: Mapping[str, float], target_utilisation: float) -> None:
        """router: the deployment that counts arrivals.   busy_s_per_query: deployment -> seconds of work per arriving query."""
        self._router = router
        self._busy_s = dict(busy_s_per_query)
        self._target_utilisation = target_utilisation

    def __call__(
        self, contexts: dict[DeploymentID, AutoscalingContext]
    ) -> tuple[dict[DeploymentID, int], dict[DeploymentID, dict[str, Any]]]:
        """Replicas wanted by deployment; where nobody knows the load yet, those that there are."""
        rate_per_s = None
        for context in contexts.values():
            if context.deployment_name == self._router:
                rate_per_s = arrivals_per_s(((context.raw_metrics or {}).get(ARRIVED) or {}).values())
        wanted = {}
        for deployment, context in contexts.items():
            busy_s = self._busy_s.get(context.deployment_name)
            if busy_s is not None:
                wanted[deployment] = (
                    context.target_num_replicas
                    if rate_per_s is None
                    else replicas_for(rate_per_s, busy_s, self._target_utilisation)
                )
        return wanted, {}


def arrivals_per_s(counts: Iterable[TimeSeries]) -> float | None:
    """Arrivals per second of all routers, from each one's rising counts over the look-back; None where no router has two yet."""
    rates = []
    for series in counts:
        if len(series) < 2:
            continue
        first, last = series[0], series[-1]
        if last.timestamp > first.timestamp:
            rates.append((last.value - first.value) / (last.timestamp - first.timestamp))
    return sum(rates) if rates else None


def application_policy(plan: Plan, scaling: Scaling) -> dict[str, Any] | None:
    """What `autoscaling_policy` of an application in `serve.yaml` says; None for Serve's default policy."""
    if scaling.policy == "ongoing":
        return None
    busy_s = {p.deployment: busy_s_per_query(plan, p, scaling.confidence) for p in plan.placements}
    arguments = {"router": ROUTER, "busy_s_per_query": busy_s, "target_utilisation": plan.workload.target_utilisation}
    return {"policy_function": POLICY, "policy_kwargs": arguments}


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
        devices = max(1, plan.offer(p.node_type).accelerators_per_node)
        room = nodes[p.node_type] * devices * int(1 / p.share + 1e-9)
        if room < scaling.max_replicas:
            found.append(f"{p.deployment} ({room})")
    return found
