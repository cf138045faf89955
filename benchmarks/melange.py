"""Mélange's allocation (Griggs et al. 2024), in our own words, solved with PuLP and CBC: one model, mixed GPUs, least cost.

    minimise    sum_g price_g n_g
    subject to  sum_g x_sg = 1 for every slice s of the load;  sum_s x_sg rate_s / throughput_g <= n_g;  x binary, n integer

A slice is a part of one class of requests (so many per class) and goes to one GPU type; throughput_g is what one GPU carries
within the latency promise. There is no quota, no batch size, no share of a GPU: those are what `coe` adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pulp

SLICES_PER_CLASS = 4


def melange_usd_per_hour(
    rates_per_s: Sequence[float],
    throughput_per_s: Mapping[str, Sequence[float]],
    usd_per_hour: Mapping[str, float],
    slices: int = SLICES_PER_CLASS,
    time_limit_s: float = 60.0,
) -> float | None:
    """Dollars per hour; None where no allocation exists.

    rates_per_s: by class.    throughput_per_s: GPU -> by class, 0 where the promise cannot be kept there.
    """
    program = pulp.LpProblem("melange", pulp.LpMinimize)
    gpus = list(usd_per_hour)
    count = {g: pulp.LpVariable(f"n{i}", lowBound=0, cat="Integer") for i, g in enumerate(gpus)}
    chosen = {}
    for k in range(len(rates_per_s)):
        for s in range(slices):
            for i, g in enumerate(gpus):
                if throughput_per_s[g][k] > 0:
                    chosen[k, s, g] = pulp.LpVariable(f"x{k}_{s}_{i}", cat="Binary")
    program += pulp.lpSum(usd_per_hour[g] * count[g] for g in gpus)
    for k in range(len(rates_per_s)):
        for s in range(slices):
            program += pulp.lpSum(chosen[k, s, g] for g in gpus if (k, s, g) in chosen) == 1
    for g in gpus:
        program += (
            pulp.lpSum(
                x * (rates_per_s[k] / slices / throughput_per_s[g][k]) for (k, s, h), x in chosen.items() if h == g
            )
            <= count[g]
        )
    program.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=time_limit_s, gapRel=1e-9))
    return float(pulp.value(program.objective)) if pulp.LpStatus[program.status] == "Optimal" else None
