"""From a plan to a Ray Serve application: the router as ingress, one deployment per member and node type.

import_path: deployments.app:build        args: {plan: {...}, ledger_dir: ...}
"""

# No `from __future__ import annotations` here: Ray Serve looks at the type of the builder's argument, not at its name.

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from coe.cost.capacity import in_flight
from coe.serving.labels import hosted_options, replica_options
from coe.serving.member import HostedReplica, MemberReplica
from coe.serving.router import Router
from coe.serving.scaling_policy import ROUTER, member_options, router_options
from coe.types import Access, Audits, Gears, LedgerLimits, Placement, Plan, Scaling, Tracing

MEMBER_QUEUE = 8
"""Batches that may wait at one replica at least; the router sends two, and more across a link."""
ROUTER_QUEUE = 2000
SHUTDOWN_POLL_S = 0.2
SHUTDOWN_S = 10.0
"""A replica that is to stop ends what it works on first, at most for so long; batches take far less."""


class CascadeArgs(BaseModel):
    """Arguments of the application in `serve.yaml`."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    ledger_dir: str | None = None
    """Folder on the router's node; None keeps no ledger."""
    ledger: LedgerLimits = LedgerLimits()
    """Sizes and ages of its files."""
    tracing: Tracing | None = None
    """Where OpenTelemetry's spans go; None leaves that to its environment variables, and without those there are none."""
    access: Access = Access()
    """Who may ask, how much, and whether requests are logged."""
    scaling: Scaling | None = None
    """How members' replicas follow the load; None keeps those of the plan."""
    audits: Audits | None = None
    """How many early answers the last tier sees, too; None for none."""
    gears: Gears | None = None
    """Plans that the router changes between with the load; `plan` is then the deployment of all of them."""


def build(args: CascadeArgs) -> Application:
    """The application that does what the plan says: deployments, replicas, shares and node types."""
    plan = args.plan
    handles = {}
    for placement in plan.placements:
        handles[placement.deployment] = _member(plan, placement, args.scaling)
    router = serve.deployment(Router).options(
        name=ROUTER,
        **router_options(plan, args.scaling),
        max_ongoing_requests=ROUTER_QUEUE,
        graceful_shutdown_wait_loop_s=SHUTDOWN_POLL_S,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        ray_actor_options=replica_options(plan.offer(plan.router.node_type), 1.0),
    )
    return router.bind(
        plan, args.ledger_dir, handles, args.access, args.scaling, args.ledger, args.tracing, args.audits, args.gears
    )


def _member(plan: Plan, placement: Placement, scaling: Scaling | None) -> Application:
    """The deployment of one placement, with what its replicas are made of."""
    offer, model = plan.offer(placement.node_type), placement.api
    kind, options = (
        (MemberReplica, replica_options(offer, placement.share))
        if model is None
        else (HostedReplica, hosted_options(offer))
    )
    deployment = serve.deployment(kind).options(
        name=placement.deployment,
        **member_options(placement, scaling if model is None else None),
        max_ongoing_requests=max(MEMBER_QUEUE, in_flight(placement, 1, plan.away_s.get(placement.deployment, 0.0))),
        graceful_shutdown_wait_loop_s=SHUTDOWN_POLL_S,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        ray_actor_options=options,
    )
    if model is None:
        return deployment.bind(plan.pool, placement.member, placement.share, plan.python_path)
    return deployment.bind(
        plan.pool, placement.member, plan.api(model), placement.calls_at_once or MEMBER_QUEUE, plan.python_path
    )
