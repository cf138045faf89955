"""How long requests to hosted models take, by how many are under way at once: profiles on the accelerator ``API``.

Every figure is of real requests, which the provider bills, so few are sent: `runs` batches per size, each of other items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem, Unavailable
from coe.placement.candidates import hosted_model
from coe.placement.columns import HOSTED
from coe.profiler.measure import measure
from coe.runners.base import fingerprint, make_runner
from coe.types import Member, Pool, Prices, Profile, Profiles

BATCH_SIZES = (1, 2, 4, 8, 16)


def profile_hosted(
    pool: Pool,
    base_dir: Path,
    prices: Prices,
    sample: NDArray[Any],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    runs: int = 20,
    today: str,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> Profiles:
    """Time every member that the price list sells as a hosted model, on items drawn from `sample` (n, *input_shape).

    The 99th percentile under 100 runs is the longest of them. Raises `InvalidInput` where nothing is hosted, and `Unavailable`
    where requests fail: what failed soon would look fast.
    """
    members = [m for m in pool.members if hosted_model(m, prices) is not None]
    if not members:
        remedy = "list their models under apis, and name them in the members' option `model`"
        raise InvalidInput(Problem("pool", "has no member that the price list sells", remedy=remedy))
    profiles = []
    for done, member in enumerate(members, start=1):
        profiles.append(_profile(member, pool, base_dir, sample, batch_sizes, runs, today, seed, clock))
        if progress is not None:
            progress(done, len(members))
    return Profiles(profiles=tuple(profiles))


def _profile(
    member: Member,
    pool: Pool,
    base_dir: Path,
    sample: NDArray[Any],
    batch_sizes: Sequence[int],
    runs: int,
    today: str,
    seed: int,
    clock: Callable[[], float],
) -> Profile:
    runner = make_runner(member, pool, base_dir)
    rng = np.random.default_rng(seed)

    def ask(batch: NDArray[Any]) -> None:
        rows = rng.choice(len(sample), len(batch), replace=len(batch) > len(sample))
        failed = np.isnan(runner.ask(sample[rows]).probs).any(axis=1)
        if failed.any():
            raise Unavailable(
                f"member '{member.name}': {failed.sum()} of {len(batch)} requests failed while being timed"
            )

    runner.load()
    try:
        timings = measure(
            ask,
            lambda size: np.empty(size),
            batch_sizes,
            clock=clock,
            min_runs=runs,
            max_runs=runs,
            max_s=float("inf"),
            warm_up_runs=1,
        )
    finally:
        runner.close()
    return Profile(
        member=member.name,
        accelerator=HOSTED,
        timings=timings,
        memory_gib=0.0,
        origin="measured",
        source=f"{member.options.get('model')} at {member.options.get('base_url')}, {runs} batches of each size",
        date=today,
        code=fingerprint(member, base_dir),
    )
