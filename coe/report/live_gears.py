"""What an operator sees of a service that changes gears: which one it is in, why, what each promises and how long it served."""

from __future__ import annotations

from coe.report import words
from coe.report.audits import Audited
from coe.types import Count, Fraction, Name, NotNegative, Noun, OpenFraction, Positive


class LiveGear(Noun):
    """One gear of one router."""

    name: Name
    plan_fingerprint: str
    up_to_per_s: Positive
    back_below_per_s: NotNegative
    promised: str
    """The certificate's claim in words."""
    epsilon: OpenFraction | None
    """What may be lost against the reference; None without a certificate."""
    accuracy_planned: Fraction
    """On the certification split."""
    seconds: NotNegative
    """In service so far."""
    requests: Count
    answers: Count
    audits: Audited | None = None
    """Of its own early answers; None where none are made, or it was not in service so far."""


class LiveGears(Noun):
    """All gears of one router, the lowest first."""

    now: Name | None
    """The gear in service; None while a plan is pinned that is no gear."""
    is_pinned: bool
    """True while an operator holds it: it does not follow the load."""
    rate_per_s: NotNegative
    """The load of the service that gears are chosen by: a mean over the look-back."""
    look_back_s: Positive
    changes: Count
    gears: tuple[LiveGear, ...]


def notes(gears: LiveGears) -> tuple[str, ...]:
    """What the report of one gear must say about the others."""
    total_s = sum(g.seconds for g in gears.gears)
    told = (
        [f"This report is of gear {gears.now} alone; `coe report --plan gears.yaml` has all of them."]
        if gears.now
        else []
    )
    for gear in gears.gears:
        if gear.seconds:
            share = words.percent(gear.seconds / total_s)
            told.append(
                f"Gear {gear.name} was in service for {words.seconds(gear.seconds)} ({share}) and answered"
                f" {gear.answers:,} queries: {gear.promised}"
            )
        if gear.audits is not None and gear.name != gears.now:
            told.append(f"Audits of gear {gear.name}: {gear.audits.says}.")
    return tuple(told)


def alarms(gears: LiveGears) -> tuple[str, ...]:
    """What the audits of gears that are not in service have shown; of the one that is, its own page says it."""
    return tuple(
        f"Drift in gear {gear.name}: {gear.audits.says}."
        for gear in gears.gears
        if gear.name != gears.now and gear.audits is not None and gear.audits.verdict == "drift"
    )
