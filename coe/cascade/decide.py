"""The one decision function. Evaluation, calibration, search, simulator and router all call `decide`."""

from __future__ import annotations

import numpy as np

from coe.cascade.rules import Scored, rule_of
from coe.table import Decision, Outputs
from coe.types import MISSING_VOTE, Tier


def decide(tier: Tier, outputs: Outputs) -> Decision:
    """Answer or defer each item, from the outputs of the tier's members in their order.

    Where the tier carries, the outputs of earlier tiers' members follow, in the order of `Cascade.voters`.

    A tier accepts where its score reaches the quorum or the threshold (``>=``). With a missing vote it accepts only
    where no value of that vote could have changed answer or acceptance. A tier without quorum and threshold answers
    whatever at least one member answered.

    Raises ValueError if the outputs are not those of the tier's voters.
    """
    columns, own = outputs.answers.shape[1], len(tier.members)
    if columns < own or (columns > own and not tier.carry):
        raise ValueError(f"outputs of {columns} members for a tier of {own}")
    return settle(rule_of(tier)(outputs), tier.bar, outputs)


def settle(scored: Scored, bar: float, outputs: Outputs) -> Decision:
    """What a tier whose score must reach `bar` does with items that its rule has scored; -inf always answers."""
    missing = (outputs.answers == MISSING_VOTE).any(axis=1)
    accepted = scored.answer != MISSING_VOTE
    if bar > float("-inf"):
        accepted = (scored.score >= bar) & scored.certain & (scored.answer >= 0)
        hopeless = np.zeros(len(missing), dtype=np.bool_) if scored.highest is None else scored.highest < bar
        settled = ~missing | accepted | hopeless
    else:
        settled = ~missing | (scored.certain & accepted)
    return Decision(
        scored.answer,
        np.asarray(accepted, dtype=np.bool_),
        scored.score,
        missing,
        np.asarray(settled, dtype=np.bool_),
    )
