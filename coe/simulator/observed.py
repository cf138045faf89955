"""The figures of a simulation, taken from a service's ledger instead, to put beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coe.cost.model import usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.records import Answer, BatchRun
from coe.simulator.figures import Simulated
from coe.types import Plan


@dataclass(frozen=True)
class Observed:
    """What a service did."""

    latency_mean_s: float
    latency_p50_s: float
    latency_p99_s: float
    goodput: float
    usd_per_1k_usage: float
    reach: tuple[float, ...]
    mean_batch: tuple[float, ...]

    def rows(self) -> list[tuple[str, Callable[[Simulated], float], float]]:
        """Name, how to take it from a simulation, and what was observed."""
        rows: list[tuple[str, Callable[[Simulated], float], float]] = [
            ("latency, mean", lambda f: f.latency_mean_s, self.latency_mean_s),
            ("latency, p50", lambda f: f.latency_p50_s, self.latency_p50_s),
            ("latency, p99", lambda f: f.latency_p99_s, self.latency_p99_s),
            ("within the promise", lambda f: f.goodput, self.goodput),
            ("$ per 1,000, used", lambda f: f.usd_per_1k_usage, self.usd_per_1k_usage),
        ]
        for t, (reach, batch) in enumerate(zip(self.reach, self.mean_batch, strict=True)):
            rows.append((f"reach of tier {t + 1}", lambda f, t=t: f.tiers[t].reach, reach))  # type: ignore[misc]
            rows.append((f"batch in tier {t + 1}", lambda f, t=t: f.tiers[t].mean_batch, batch))  # type: ignore[misc]
        return rows


def observed(plan: Plan, answers: Sequence[Answer], calls: Sequence[BatchRun]) -> Observed:
    """The ledger's figures; `InvalidInput` where it holds no answer. Fallbacks and failures count in none but the dollars."""
    good = [a for a in answers if a.status == "ok"]
    if not good:
        raise InvalidInput(Problem("ledger", "holds no answer to compare with"))
    latency = np.array([a.done_s - a.arrival_s for a in good])
    tiers = np.array([a.tier for a in good])
    usd = sum(c.busy_s * usd_per_busy_s(plan.offer(c.node_type), c.share) for c in calls)
    count = len(plan.cascade.tiers)
    made = [c for c in calls if c.status != "cancelled" or c.busy_s > 0]
    sizes = [[c.items for c in made if c.tier == t] for t in range(count)]
    return Observed(
        latency_mean_s=float(latency.mean()),
        latency_p50_s=float(np.quantile(latency, 0.5)),
        latency_p99_s=float(np.quantile(latency, 0.99)),
        goodput=float((latency <= plan.workload.latency_s).mean()),
        usd_per_1k_usage=1000 * usd / len(answers),
        reach=tuple(float((tiers >= t).mean()) for t in range(count)),
        mean_batch=tuple(float(np.mean(s)) if s else 0.0 for s in sizes),
    )
