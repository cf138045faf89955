"""What shadow audits would see of a sample: where the last tier's own answer is another than the cascade's."""

from __future__ import annotations

from coe.cascade.certify import loss_upper_bound
from coe.cascade.evaluate import route
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
