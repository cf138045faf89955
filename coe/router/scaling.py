"""How many replicas a deployment should have: Ray Serve's default policy, and ours, which looks at the first tier's arrivals.

All are functions of what was seen. `Patience` holds back a change until it has been wanted for long enough, as Serve does.
The simulator uses them as they stand here; in a service Serve runs its own policy and delays, and `replicas_for`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coe.types import Placement, Plan, Scaling

_TOLERANCE_S = 1e-6
_TOLERANCE_REPLICAS = 1e-9


def wanted_by_ongoing(running: int, ongoing: float, scaling: Scaling) -> int:
    """Ray Serve's default policy: calls under way (mean over the look-back) over the target of one replica.

    In the order of Serve's own arithmetic, so that both round alike.
    """
    if running == 0:
        return scaling.min_replicas
    wanted = running * (ongoing / (scaling.target_ongoing_requests * running))
    return _bounded(math.ceil(running + (wanted - running)), scaling)


def wanted_by_reach(plan: Plan, placement: Placement, rate_per_s: float, scaling: Scaling) -> int:
    """Replicas that carry what the rate of arriving queries (per second) will bring to a member, none busier than the workload's
    target: a tier has them before its own queue grows."""
    return _bounded(replicas_for(rate_per_s * work_per_query_s(plan, placement, scaling.confidence)), scaling)


def work_per_query_s(plan: Plan, placement: Placement, confidence: float) -> float:
    """Seconds that one query arriving at the first tier will take of a placement's replicas at the workload's target
    utilisation: an upper confidence bound, by that of the member's calls per query."""
    calls = upper_calls(plan.stats.calls[placement.member], plan.stats.items, confidence)
    return calls * placement.traffic * placement.expected_busy_s / plan.workload.target_utilisation


def replicas_for(work_s_per_s: float) -> int:
    """Replicas for so many replica-seconds of work per second; 0 without any."""
    return math.ceil(work_s_per_s - _TOLERANCE_REPLICAS)


def upper_calls(calls_per_query: float, items: int, confidence: float) -> float:
    """One-sided upper confidence bound of a share seen on `items` queries (Clopper and Pearson 1934)."""
    from scipy.stats import beta  # here: whoever only runs `replicas_for` need not load it

    asked = round(calls_per_query * items)
    return 1.0 if asked >= items else float(beta.ppf(confidence, asked + 1, items - asked))


def _bounded(replicas: int, scaling: Scaling) -> int:
    return max(scaling.min_replicas, min(scaling.max_replicas, replicas))


@dataclass
class Patience:
    """Lets a change through once it has been wanted, in the same direction, for the scaling's delay."""

    scaling: Scaling
    _direction: int = 0
    _since_s: float = 0.0

    def allowed(self, now_s: float, current: int, wanted: int) -> int:
        """The number of replicas to have now: `wanted`, or `current` while it is too early."""
        direction = (wanted > current) - (wanted < current)
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        if direction == 0:
            return current
        delay_s = self.scaling.upscale_delay_s if direction > 0 else self.scaling.downscale_delay_s
        if now_s - self._since_s + _TOLERANCE_S < delay_s:
            return current
        self._direction = 0
        return wanted
