"""Timing hosted models for `coe profile`: what it will cost is said, and agreed to, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from coe.cli.console import progress, say, today
from coe.errors import InvalidInput, Problem
from coe.types import Pool, Prices, Profile

DEFAULT_REQUESTS = 200
Requests = Annotated[
    int, typer.Option("--requests", min=1, help="To each hosted model, at most; with the sizes 1, 2, 4, 8, 16.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Send hosted models their requests, whatever they cost.")]
MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", min=0, help="Send them if they cost about so much, and stop once they cost more."),
]


@dataclass(frozen=True)
class Spending:
    """What may be spent on hosted models."""

    requests: int
    yes: bool
    max_usd: float | None


def time_hosted(
    pool: Pool,
    folder: Path,
    prices: Prices,
    sample: NDArray[Any] | None,
    known: Sequence[Profile],
    keep: Callable[[Profile], None],
    spending: Spending,
) -> tuple[Profile, ...]:
    """Profiles of the members that the price list sells as hosted models; empty where there are none.

    Those in `known` are not asked again. Raises `InvalidInput` without items to send, and where the requests have a price
    that was not agreed to; nothing was sent then.
    """
    from coe.placement.candidates import hosted_model
    from coe.profiler.hosted import BATCH_SIZES, measured_before, profile_hosted
    from coe.profiler.quote import quotes, runs_within

    members = tuple(m for m in pool.members if hosted_model(m, prices) is not None)
    if not members:
        return ()
    hosted = pool.model_copy(update={"members": members})
    new = tuple(m for m in members if measured_before(m, folder, known) is None)
    if not new:
        return tuple(p for m in members if (p := measured_before(m, folder, known)) is not None)
    if sample is None:
        names = ", ".join(m.name for m in new)
        raise InvalidInput(Problem("--data", f"is needed: {names} are hosted, and are timed on real items"))
    runs = runs_within(spending.requests, BATCH_SIZES)
    asked = pool.model_copy(update={"members": new})
    _agree([*quotes(asked, folder, prices, sample, BATCH_SIZES, runs)], spending)
    with progress("hosted") as advance:
        found = profile_hosted(
            hosted,
            folder,
            prices,
            sample,
            runs=runs,
            today=today(),
            progress=advance,
            known=known,
            keep=keep,
            most_usd=spending.max_usd,
        )
    return found.profiles


def _agree(quoted: Sequence[Any], spending: Spending) -> None:
    """Say what it will cost; `InvalidInput` where that is more than was agreed to."""
    for quote in quoted:
        say(str(quote))
    usd = sum(quote.usd for quote in quoted)
    if spending.max_usd is not None and usd > spending.max_usd:
        remedy = f"allow more, or ask less: --requests (now {spending.requests})"
        raise InvalidInput(
            Problem("--max-usd", f"is less than the requests about cost, ${usd:.4f}", f"{spending.max_usd:g}", remedy)
        )
    if usd > 0 and not spending.yes and spending.max_usd is None:
        rule = f"real requests would be sent, which cost about ${usd:.4f}"
        raise InvalidInput(Problem("coe profile", rule, remedy="agree with --yes, or with --max-usd and an amount"))
