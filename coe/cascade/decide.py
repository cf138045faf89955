"""The one decision function. Evaluation, calibration, search, simulator and router all call `decide`."""

from __future__ import annotations

import numpy as np

from coe.cascade.rules import rule
from coe.table import Decision, Outputs
from coe.types import MISSING_VOTE, Tier


def decide(tier: Tier, outputs: Outputs) -> Decision:
    """Answer or defer each item, from the members' outputs in the order of `tier.members`.

    A tier accepts where its score reaches the quorum or the threshold (``>=``). With a missing vote it accepts only
    where no value of that vote could have changed answer or acceptance. A tier without quorum and threshold answers
    whatever at least one member answered.

    Raises ValueError if the outputs are not those of `tier.members`.
    """
    if outputs.answers.shape[1] != len(tier.members):
        raise ValueError(f"outputs of {outputs.answers.shape[1]} members for a tier of {len(tier.members)}")
    scored = rule(tier.rule)(outputs)
    degraded = (outputs.answers == MISSING_VOTE).any(axis=1)
    if tier.always_answers:
        accepted = scored.answer != MISSING_VOTE
    else:
        accepted = (scored.score >= tier.bar) & scored.certain & (scored.answer != MISSING_VOTE)
    return Decision(scored.answer, np.asarray(accepted, dtype=np.bool_), scored.score, degraded)
