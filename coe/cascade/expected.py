"""What shadow audits would see: where, of a sample, the last tier's own answer is another than the cascade's; and after how many
of them a share of such answers would be shown to be too large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coe.cascade.anytime import ANY, DIFFERING_PART, RARE, log_evidence, lower_bound
from coe.cascade.certify import loss_upper_bound
from coe.cascade.evaluate import route
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Cascade


def differing_bound(cascade: Cascade, sample: PredictionTable, delta: float) -> tuple[int, int, float]:
    """Items that are answered early and otherwise than by the last tier's own members, items in all, and the exact one-sided
    (1-delta) upper bound of that share."""
    last = cascade.tiers[-1]
    alone = Cascade(
        tiers=(last.model_copy(update={"carry": 0}),),
        top_k=cascade.top_k,
        temperatures={m: t for m, t in cascade.temperatures.items() if m in last.members},
    )
    routing = route(cascade, sample)
    early = routing.tier < len(cascade.tiers) - 1
    differing = int((early & (routing.answer != route(alone, sample).answer)).sum())
    return differing, len(sample), loss_upper_bound(differing, len(sample), delta)


# --- After how many audits --------------------------------------------------------------------------------------------

LONGEST = 20_000
"""Audits that are looked ahead."""
_GONE = 1e-4
"""Streams that are left may be so few."""
_STEP = 1.1
"""The bound of the share of early answers is taken anew when the audits have grown by so much; it changes slowly."""


@dataclass(frozen=True)
class Showing:
    """Audits until drift is shown; None where it takes more than are looked ahead."""

    mean: float | None
    half: int | None
    """In half of all streams it is shown by then."""
    most: int | None
    """In nine of ten."""


def audits_until_shown(share: float, alarm: float, delta: float, *, early: float, audited: float) -> Showing:
    """How soon audits show that the last tier answers more than `alarm` of all queries differently, where it does so on `share`.

    early: share of queries that are answered early.   audited: share of those that are compared with the last tier's answers.

    Exact for independent queries, but for the share of early answers, which is taken for what it is in the mean: the
    distribution of differing answers is followed audit by audit (dynamic programming), and leaves where the bound of
    `coe.report.audits` passes the alarm. Raises `InvalidInput` for a share that early answers cannot come to.
    """
    if not 0 < share <= early:
        rule = f"must be above 0 and at most the share of queries that are answered early, {early:.4g}"
        raise InvalidInput(Problem("breach", rule, f"{share:g}", "name a smaller one"))
    rate, left = share / early, np.ones(1)
    mean, half, most = 0.0, None, None
    for audits, fewest in enumerate(_fewest_that_show(alarm, delta, early, audited), 1):
        mean += float(left.sum())
        left = np.append(left * (1 - rate), 0.0) + np.insert(left * rate, 0, 0.0)
        left = left[:fewest]
        remaining = float(left.sum())
        half = audits if half is None and remaining <= 0.5 else half
        most = audits if most is None and remaining <= 0.1 else most
        if remaining <= _GONE:
            return Showing(mean, half, most)
    return Showing(None, half, most)


def _fewest_that_show(alarm: float, delta: float, early: float, audited: float) -> Iterator[int]:
    """After 1, 2, ... audits: how many differing ones there must be among them for drift to be shown."""
    wanted, fewest, again = math.log(1 / (DIFFERING_PART * delta)), 1, 1.0
    at_most = 1.0
    for audits in range(1, LONGEST + 1):
        if audits >= again:
            again = max(audits + 1.0, _STEP * audits)
            queries = round(audits / (early * audited))
            known = lower_bound(round(queries * early), queries, (1 - DIFFERING_PART) * delta, ANY)
            at_most = alarm / known if known > alarm else 1.0

        def shows(hits: int, audits: int = audits, at_most: float = at_most) -> bool:
            return hits > at_most * audits and float(log_evidence(hits, audits, at_most, RARE)) >= wanted

        if at_most >= 1:
            yield audits + 1
            continue
        while fewest > 1 and shows(fewest - 1):
            fewest -= 1
        while fewest <= audits and not shows(fewest):
            fewest += 1
        yield fewest
