"""What may go otherwise than planned, for a simulation: machines that fail or come late, loads that replicas follow."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from coe.types.base import Name, NotNegative, Noun, OpenFraction, Positive, PositiveCount


class Loss(Noun):
    """One node of a type is lost at a known moment."""

    at_s: NotNegative
    node_type: Name
    notice_s: NotNegative = 0.0
    """So long before, the provider says so: its replacement is ordered, and it starts no more calls."""


class Failures(Noun):
    """How often machines and processes fail; the gaps are exponential. None means never."""

    node_mtbf_s: Positive | None = None
    """Mean time between failures of one node."""
    spot_mtbf_s: Positive | None = None
    """Mean time until a spot node is taken away."""
    spot_notice_s: NotNegative = 120.0
    """The provider's warning before."""
    replica_mtbf_s: Positive | None = None
    """Mean time between crashes of one replica's process."""
    replica_restart_s: NotNegative = 10.0
    """Beside its loading."""
    losses: tuple[Loss, ...] = ()
    """Nodes that are lost at known moments."""


class Scaling(Noun):
    """Replicas that follow the load: of a scenario, or of a service. The names and defaults are those of Ray Serve's autoscaling
    configuration."""

    kind: Literal["scaling"] = "scaling"
    version: Literal[1] = 1
    policy: Literal["ongoing", "reach"] = "reach"
    """``ongoing``: Serve's default, by each deployment's calls under way. ``reach``: every tier by what arrives at the first one
    times the upper confidence bound of its reach, before its own queue grows."""
    min_replicas: PositiveCount = 1
    max_replicas: PositiveCount = 100
    target_ongoing_requests: Positive = 1.0
    """Of the policy ``ongoing``: calls under way per replica. The router sends a replica at most two, so that Serve's default of
    2 would never ask for more."""
    confidence: OpenFraction = 0.95
    """Of the policy ``reach``: of the upper bound of each member's calls per query."""
    interval_s: Positive = 1.0
    """How often the policy is asked, or hears of the load."""
    look_back_s: Positive = 30.0
    """Loads are means over so long."""
    upscale_delay_s: NotNegative = 30.0
    downscale_delay_s: NotNegative = 600.0
    node_idle_s: NotNegative = 300.0
    """A node without replicas is given back after so long. Only simulated: a service scales replicas, not nodes."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas, got {self.max_replicas} < {self.min_replicas}"
            )
        if self.look_back_s <= self.interval_s:
            raise ValueError(
                f"look_back_s must be longer than interval_s, got {self.look_back_s:g} s of {self.interval_s:g} s"
            )
        return self


class Scenario(Noun):
    """The world around a plan."""

    kind: Literal["scenario"] = "scenario"
    version: Literal[1] = 1
    node_start_s: NotNegative = 60.0
    """From the order of a node to its first replica beginning to load."""
    is_cold: bool = False
    """True: nothing runs when the first query comes. False: the whole plan runs already."""
    billed_in_s: Positive = 1.0
    """Providers bill begun units of so long: 1 by the second, 3600 by the hour."""
    deadline_s: Positive | None = None
    """Clients wait so long; after it a query takes the best answer it has, or fails."""
    router_s_per_query: NotNegative = 0.0
    """Time of a router's one core for a query, in and out; `coe simulate --compare` shows whether it is needed."""
    router_mtbf_s: Positive | None = None
    """Mean time between failures of one router, whose open queries fail with it."""
    failures: Failures = Failures()
    scaling: Scaling | None = None
    gear_look_back_s: Positive | None = None
    """The load that gears follow is a mean over so long; by default what the gears say."""
