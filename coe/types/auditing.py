"""Shadow audits: how often a service also asks its last tier about what an earlier tier has answered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from coe.types.base import Noun, OpenFraction, Positive


class Audits(Noun):
    """How many, for how much, and what is done about what they show; the part `audits` of the deployment's arguments."""

    model_config = ConfigDict(strict=True)

    kind: Literal["audits"] = "audits"
    version: Literal[1] = 1
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the answers that a tier before the last gives, those that are chosen, at random."""
    usd_per_hour: Positive
    """What the service may spend on audits, at usage prices. What there is no money for is skipped and counted."""
    delta: OpenFraction = 0.05
    """Each bound is wrong, at any time ever, with at most this probability."""
    alarm_above: OpenFraction | None = None
    """The share of all queries on which the last tier may answer differently before it is called drift. None where the
    certificate says it: its epsilon, if it claims `disagreement`."""
    alarms: dict[str, OpenFraction] | None = None
    """Gear -> its own `alarm_above`, for a service that changes gears: each has another share of answers that differ."""
    tighten: bool = False
    """While there is drift, early tiers answer only what they are surer of: a step stricter each time that it shows anew."""

    def of_gear(self, name: str | None) -> Audits:
        """How the answers of one gear are audited, or those of a plan that is no gear."""
        alarm = self.alarm_above if name is None else (self.alarms or {}).get(name, self.alarm_above)
        return self.model_copy(update={"alarm_above": alarm, "alarms": None})
