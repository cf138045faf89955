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
from coe.profiler.quote import WARM_UP_RUNS, Purse
from coe.runners.base import fingerprint, make_runner
from coe.types import ApiPrice, Member, Pool, Prices, Profile, Profiles

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
    known: Sequence[Profile] = (),
    keep: Callable[[Profile], None] | None = None,
    most_usd: float | None = None,
) -> Profiles:
    """Time every member that the price list sells as a hosted model, on items drawn from `sample` (n, *input_shape).

    The 99th percentile under 100 runs is the longest of them. What is in `known`, of the same code, is not asked again; `keep`
    gets every new profile as soon as it is there. Raises `InvalidInput` where nothing is hosted, and `Unavailable` where requests
    fail (what failed soon would look fast) and where they have cost more than `most_usd` together.
    """
    members = [m for m in pool.members if hosted_model(m, prices) is not None]
    if not members:
        remedy = "list their models under apis, and name them in the members' option `model`"
        raise InvalidInput(Problem("pool", "has no member that the price list sells", remedy=remedy))
    profiles = []
    purse = Purse(most_usd)
    for done, member in enumerate(members, start=1):
        before = measured_before(member, base_dir, known)
        if before is None:
            price = prices.api(str(member.options["model"]))
            before = _profile(member, pool, base_dir, sample, batch_sizes, runs, today, seed, clock, price, purse)
            if keep is not None:
                keep(before)
        profiles.append(before)
        if progress is not None:
            progress(done, len(members))
    return Profiles(profiles=tuple(profiles))


def measured_before(member: Member, base_dir: Path, known: Sequence[Profile]) -> Profile | None:
    """The known profile of the member as a hosted model, if its code is still the same."""
    code = fingerprint(member, base_dir)
    return next((p for p in known if (p.member, p.accelerator, p.code) == (member.name, HOSTED, code)), None)


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
    price: ApiPrice,
    purse: Purse,
) -> Profile:
    runner = make_runner(member, pool, base_dir)
    rng = np.random.default_rng(seed)

    def ask(batch: NDArray[Any]) -> None:
        rows = rng.choice(len(sample), len(batch), replace=len(batch) > len(sample))
        said = runner.ask(sample[rows])
        purse.pay(member.name, price, said)
        failed = np.isnan(said.probs).any(axis=1)
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
            warm_up_runs=WARM_UP_RUNS,
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
