"""`audits.yaml` as the service is to have it: with an alarm for every plan that is audited, as far as anybody can know one."""

from __future__ import annotations

from pathlib import Path

from coe import files
from coe.cli.console import say
from coe.table import PredictionTable
from coe.types import Audits, Gears, Plan


def audits_of(path: Path, served: Plan | Gears, table: PredictionTable | None) -> Audits:
    """How audits are made of a plan, or of gears; where the file does not set an alarm and predictions are there, it is set from
    them, for each gear from its own answers, and said."""
    audits = files.read(path, Audits)
    if audits.alarm_above is not None or table is None:
        return audits
    if isinstance(served, Plan):
        return audits.model_copy(update={"alarm_above": _alarm(served, table, audits.delta, "audits")})
    alarms = dict(audits.alarms or {})
    for name, gear in zip(served.names, served.gears, strict=True):
        if name in alarms or len(gear.plan.cascade.tiers) == 1:
            continue
        if (alarm := _alarm(gear.plan, table, audits.delta, f"audits of {name}")) is not None:
            alarms[name] = alarm
    return audits.model_copy(update={"alarms": alarms or None})


def _alarm(plan: Plan, table: PredictionTable, delta: float, what: str) -> float | None:
    """The upper bound of what was seen on the certification items; None where the certificate says it."""
    from coe.cascade.expected import differing_bound
    from coe.router.audits import can_be_broken

    if can_be_broken(plan.cascade):
        return None
    split = "certification" if plan.cascade.certificate is None else plan.cascade.certificate.split
    differing, items, bound = differing_bound(plan.cascade, table.split(split), delta)
    say(
        f"{what}: alarm above {bound:.2%} of all queries, since the last tier answers {differing} of {items} {split} items "
        f"differently (upper bound at {1 - delta:.0%})"
    )
    return bound


def unaudited(gears: Gears) -> list[str]:
    """Names of gears that have nothing to audit: their one tier is the last."""
    return [n for n, g in zip(gears.names, gears.gears, strict=True) if len(g.plan.cascade.tiers) == 1]
