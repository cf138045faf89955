"""Shadow audits from the records of a ledger: what they bound, and whether the promise holds. The service and the report say the
same, since both count here.

What is bounded is the share of all queries on which the last tier would have answered otherwise than the cascade did:

    share answered early  x  rate of differing answers among those

Both are watched by bounds that hold at all times at once (`coe.cascade.anytime`), the first on every answer, the second on the
audited ones; their products hold with what the two leave of the confidence. Answers that fell back or failed are no claim of
the certificate's, and count in neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from coe.cascade.anytime import ANY, DIFFERING_PART, Bounds
from coe.records import Answer, Audit, Auditing, Record
from coe.report import words
from coe.router.audits import can_be_broken, promised_rate
from coe.router.tightening import tightened
from coe.types import MISSING_VOTE, Cascade, Count, Fraction, NotNegative, Noun, OpenFraction, Positive

SKIPPED = ("unpaid", "busy", "resting", "dropped")

Verdict = Literal["kept", "open", "drift"]


class Audited(Noun):
    """Shadow audits: what the last tier says about queries that were answered before it.

    Counts, shares and bounds are those since the gates were last changed. low and high each hold with confidence 1-delta at
    all times at once, for queries like those of that time.
    """

    share: Fraction
    usd_per_hour: Positive
    """The budget, of as many routers as the other figures are of; gears share it."""
    usd: NotNegative
    """Spent so far; part of the usage."""
    chosen: Count
    """Early answers that were chosen, and whose audit has come to its end."""
    observed: Count
    differing: Count
    failed: Count
    skipped: Count
    """Chosen ones that no money or no time was left for."""
    resting: Count = 0
    """Of these, those that were left out because another gear had taken over."""
    early: Fraction | None
    """Share of the answered queries that a tier before the last answered."""
    rate: Fraction | None
    """Share of all queries on which the last tier answers differently, as seen."""
    low: Fraction
    high: Fraction
    delta: OpenFraction
    promised: Fraction | None
    """What the certificate claims the rate, or what it bounds, to be at most."""
    alarm_above: Fraction
    verdict: Verdict
    """kept: at most what is promised, with confidence.   drift: above what the alarm is set to, with confidence."""
    is_broken: bool = False
    """The certificate claims the rate itself, and it is above that with confidence."""
    drift_since_s: float | None
    """When drift was first shown."""
    strictness: Count = 0
    """Steps by which the early tiers' gates are stricter than planned."""
    says: str


class AuditSums:
    """Counts records as they come, in the order of time. Before the first `Auditing` there are no audits."""

    def __init__(self, cascade: Cascade) -> None:
        self._cascade = cascade
        self._last = len(cascade.tiers) - 1
        self.settings: Auditing | None = None
        self._begin(0.0, 0.05)

    def _begin(self, since_s: float, delta: float) -> None:
        self._since_s = since_s
        self._answers = self._early = 0
        self._outcomes: dict[str, int] = {}
        self._early_share = Bounds((1 - DIFFERING_PART) * delta, ANY)
        self._differing = Bounds(DIFFERING_PART * delta)
        self.drift_since_s: float | None = None
        """When drift was first shown, at these gates."""

    def add(self, record: Record) -> None:
        """Count a record; those that are no answers and no audits change nothing."""
        if isinstance(record, Auditing):
            before, self.settings = self.settings, record
            if before is None or _terms(before) != _terms(record):
                self._begin(record.at_s, record.delta)
        elif self.settings is None:
            return
        elif isinstance(record, Answer):
            if record.status == "ok" and record.answer != MISSING_VOTE:
                self._answers += 1
                self._early += record.tier < self._last
        elif isinstance(record, Audit) and record.asked_s >= self._since_s:  # else of an answer by the gates before
            self._outcomes[record.outcome] = self._outcomes.get(record.outcome, 0) + 1
            if record.outcome in ("same", "differs"):
                self._look(record.done_s, self.settings)

    def add_answers(self, answers: int, early: int) -> None:
        """Count answers without fault at once, `early` of them of a tier before the last, since the record added last."""
        if self.settings is not None:
            self._answers += answers
            self._early += early

    def _look(self, now_s: float, settings: Auditing) -> None:
        """Both bounds as they are now. Between audits nobody looks, which bounds that hold at all times allow."""
        self._differing = self._differing.after(self._outcomes.get("differs", 0), self._observed)
        self._early_share = self._early_share.after(self._early, self._answers)
        if self.drift_since_s is None and self.low > settings.alarm_above:
            self.drift_since_s = now_s

    @property
    def _observed(self) -> int:
        return self._outcomes.get("same", 0) + self._outcomes.get("differs", 0)

    @property
    def low(self) -> float:
        """Lower bound of the share of all queries on which the last tier answers differently."""
        return self._early_share.low * self._differing.low

    @property
    def high(self) -> float:
        """Upper bound of that share."""
        return self._early_share.high * self._differing.high

    def figures(self, usd: float, routers: int = 1) -> Audited | None:
        """What is shown, or None where no audits are made. usd: what they took.   routers: that share one budget, of which these
        are the figures of one."""
        settings = self.settings
        if settings is None:
            return None
        observed, differing = self._observed, self._outcomes.get("differs", 0)
        early = self._early / self._answers if self._answers else None
        promised = promised_rate(self._cascade)
        low, high = min(self.low, self.high), self.high
        kept = high <= (settings.alarm_above if promised is None else promised)
        verdict: Verdict = "drift" if self.drift_since_s is not None else "kept" if kept else "open"
        figures = Audited(
            share=settings.share,
            usd_per_hour=settings.usd_per_hour / routers,
            usd=usd,
            chosen=sum(self._outcomes.values()),
            observed=observed,
            differing=differing,
            failed=self._outcomes.get("failed", 0),
            skipped=sum(self._outcomes.get(outcome, 0) for outcome in SKIPPED),
            resting=self._outcomes.get("resting", 0),
            early=early,
            rate=early * differing / observed if observed and early is not None else None,
            low=low,
            high=high,
            delta=settings.delta,
            promised=promised,
            alarm_above=settings.alarm_above,
            verdict=verdict,
            is_broken=promised is not None and can_be_broken(self._cascade) and self.low > promised,
            drift_since_s=self.drift_since_s,
            strictness=settings.strictness,
            says="",
        )
        return figures.model_copy(update={"says": ". ".join(_sentences(figures, self._cascade))})


def audited(cascade: Cascade, records: Iterable[Record], usd: float) -> Audited | None:
    """The figures of a whole ledger, or of several routers' ledgers together, whose records need no order."""
    sums = AuditSums(cascade)
    for record in sorted((r for r in records if isinstance(r, Auditing | Answer | Audit)), key=_when):
        sums.add(record)
    return sums.figures(usd)


def _terms(settings: Auditing) -> tuple[int, float, float]:
    """What counting begins anew for, when it changes."""
    return settings.strictness, settings.delta, settings.alarm_above


def _when(record: Auditing | Answer | Audit) -> tuple[float, int]:
    """Time and, within an instant, the order in which a router writes."""
    if isinstance(record, Auditing):
        return record.at_s, 0
    return record.done_s, 1 if isinstance(record, Answer) else 2


def _sentences(a: Audited, cascade: Cascade) -> Iterable[str]:
    sure = f"with {words.percent(1 - a.delta, 0)} confidence at all times"
    if not a.observed:
        yield "No early answer has been compared with the last tier's so far"
    elif a.verdict == "drift":
        seen = "" if a.rate is None else f", {words.percent(a.rate, 2)} as seen"
        yield (
            f"The last tier answers at least {words.percent(a.low, 2)} of all queries differently {sure}{seen}; the alarm is set "
            f"to {words.percent(a.alarm_above, 2)}"
        )
    elif a.verdict == "kept":
        yield f"The last tier answers at most {words.percent(a.high, 2)} of all queries differently {sure}; {_line(a)}"
    else:
        yield (
            f"The last tier answers between {words.percent(a.low, 2)} and {words.percent(a.high, 2)} of all queries differently "
            f"{sure}; {_line(a)}"
        )
    if a.is_broken and a.promised is not None and cascade.certificate is not None:
        yield f"The certificate claims at most {words.percent(a.promised, 2)}: it does not hold for these queries"
    if a.strictness:
        yield f"Made stricter because of drift: {tightened(cascade, a.strictness).says}"


def _line(a: Audited) -> str:
    """What the bounds are held against."""
    if a.promised is None:
        return f"the alarm is set to {words.percent(a.alarm_above, 2)}"
    return f"the certificate allows {words.percent(a.promised, 2)}"
