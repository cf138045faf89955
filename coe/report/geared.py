"""The report of a service that changed gears: how long each gear served, what it promised, what came of it, and one bill for all.

Every gear has ledgers of its own, one of each router. A call is in the ledger of the gear that asked. Node time is in the ledger
of the gear that was in service; all gears stand on the same machines, so spans that overlap are of the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from coe.cost.model import SECONDS_PER_HOUR
from coe.errors import InvalidInput, Problem
from coe.records import Bench, NodeSpan, Record
from coe.report import words
from coe.report.audits import Audited
from coe.report.bill import nodes_and_calls, per_1k
from coe.report.gathering import Gathered, gather_gear, window_of
from coe.report.nouns import Window
from coe.report.quality import claim_in_words
from coe.report.queries import (
    AnswerColumns,
    Asked,
    merged,
    quantile_of,
    refuse_other_classes,
    rows_of,
    share_within,
)
from coe.report.window import disjoint, uncovered_s
from coe.table import PredictionTable
from coe.types import Count, Fraction, Gear, Gears, Name, NotNegative, Noun, OpenFraction, Plan, Positive


class GearRow(Noun):
    """One gear in the window. None where nothing was answered, or no label is known."""

    name: Name
    plan_fingerprint: str
    up_to_per_s: Positive
    promised: str
    accuracy_planned: Fraction
    accuracy: Fraction | None
    """Among the judged queries that were answered."""
    judged: Count
    seconds: NotNegative
    """In service, the mean over routers."""
    requests: Count
    answered: Count
    degraded: Count
    p50_s: NotNegative | None
    p99_s: NotNegative | None
    promised_s: Positive
    quantile: OpenFraction
    """What share of requests must be in time."""
    in_time: Fraction | None
    """Of all requests, those answered within the gear's promise."""
    usd_usage: NotNegative
    """Of calls that this gear made, fees included."""
    usd_rented: NotNegative
    """Of what was rented, the part of its time in service."""
    usd_per_1k_usage: NotNegative | None
    audits: Audited | None = None
    """Of this gear's early answers; None where none were made."""


class GearsReport(Noun):
    """All gears, and the bill of the whole service."""

    kind: str = "gears_report"
    version: int = 1
    window: Window
    gears: tuple[GearRow, ...]
    requests: Count
    answered: Count
    in_time: Fraction | None
    """Each by the promise of the gear that answered it."""
    p99_s: NotNegative | None
    accuracy: Fraction | None
    usd_usage: NotNegative
    usd_allocation: NotNegative
    """All that was rented, and fees."""
    usd_per_1k_usage: NotNegative | None
    usd_per_1k_allocation: NotNegative | None
    unmetered_s: NotNegative
    """Seconds that no gear's ledger speaks of; they are billed as planned."""
    notes: tuple[str, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """Every promise that was broken, in words."""
        late = [
            f"latency in {r.name}: promised {words.percent(r.quantile)} within {words.seconds(r.promised_s)},"
            f" observed {words.percent(r.in_time)}"
            for r in self.gears
            if r.in_time is not None and r.in_time < r.quantile
        ]
        failed = self.requests - self.answered
        return (*late, *([f"answers: {failed:,} of {self.requests:,} queries got none"] if failed else []))


def summarise_gears(
    gears: Gears,
    records: Mapping[str, Iterable[Record]],
    *,
    bench: Bench | None = None,
    table: PredictionTable | None = None,
    unaccounted: int = 0,
    ledger_notes: Sequence[str] = (),
) -> GearsReport:
    """The report over the bench's window, or over all ledgers without one.

    gears: as `coe.placement.together` has them served.   records: gear's name -> the records of its ledgers, for every gear that
    was in service.   table: labels of the served items.   unaccounted: records known to be lost.   ledger_notes: what is missing,
    in words.

    Raises `InvalidInput` where there are no records, and for names that are no gears.
    """
    gathered = gather_gears(gears, records, bench, table)
    return summarised_gears(
        gears, gathered, bench=bench, table=table, unaccounted=unaccounted, ledger_notes=ledger_notes
    )


def gather_gears(
    gears: Gears,
    records: Mapping[str, Iterable[Record]],
    bench: Bench | None = None,
    table: PredictionTable | None = None,
) -> dict[str, Gathered]:
    """Gear's name -> its records, of which none is kept; each gear's pass by after those of the one before."""
    if strangers := set(records) - set(gears.names):
        raise InvalidInput(Problem("ledger", "must be of the gears", ", ".join(sorted(strangers))))
    rows = rows_of(table)
    for gear in gears.gears:
        refuse_other_classes(gear.plan, table)
    return {
        name: gather_gear(gear.plan, records.get(name, ()), bench, rows)
        for gear, name in zip(gears.gears, gears.names, strict=True)
    }


def summarised_gears(
    gears: Gears,
    gathered: Mapping[str, Gathered],
    *,
    bench: Bench | None = None,
    table: PredictionTable | None = None,
    unaccounted: int = 0,
    ledger_notes: Sequence[str] = (),
) -> GearsReport:
    """The same of records that have passed by (`gather_gears`, with the same `bench` and `table`)."""
    window = window_of(gathered.values(), bench)
    if strangers := dict.fromkeys(problem for own in gathered.values() for problem in own.strangers):
        raise InvalidInput(strangers)
    asked = {name: _asked(own, table) for name, own in gathered.items()}
    plan = gears.gears[0].plan
    seconds = {name: _in_service_s(plan, own.spans) for name, own in gathered.items()}
    rented_usd, unmetered_s = _rent(plan, [s for own in gathered.values() for s in own.spans], window)
    rows = tuple(
        _row(gear, name, gathered[name], asked[name], window, seconds[name], rented_usd * _part(seconds, name))
        for gear, name in zip(gears.gears, gears.names, strict=True)
    )
    answered, requests = sum(r.answered for r in rows), sum(r.requests for r in rows)
    usage = sum(r.usd_usage for r in rows)
    fees = sum(calls.fee_usd for own in gathered.values() for calls in own.made.values())
    right, judged = (
        sum(a.count(which) for a in asked.values())
        for which in (lambda b: b.judged & b.correct, lambda b: b.judged & b.answered)
    )
    return GearsReport(
        window=window,
        gears=rows,
        requests=requests,
        answered=answered,
        in_time=sum((r.in_time or 0.0) * r.requests for r in rows) / requests if requests else None,
        p99_s=quantile_of(merged([a.latency_s for a in asked.values()]), 0.99),
        accuracy=right / judged if judged else None,
        usd_usage=usage,
        usd_allocation=rented_usd + fees,
        usd_per_1k_usage=per_1k(usage, answered),
        usd_per_1k_allocation=per_1k(rented_usd + fees, answered),
        unmetered_s=unmetered_s,
        notes=(*_notes(rows, requests - answered, unaccounted, unmetered_s, window, bench), *ledger_notes),
    )


def _asked(gathered: Gathered, table: PredictionTable | None) -> Asked:
    """What a gear was asked: by its ledger, and with the client's labels where there is a client."""
    assert isinstance(gathered.answers, AnswerColumns)
    return Asked.of_ledger(gathered.answers, table)


def _in_service_s(plan: Plan, spans: Sequence[NodeSpan]) -> float:
    """Seconds of a mean router; each writes the spans of all node types."""
    own = [s for s in spans if s.node_type == plan.router.node_type]
    return sum(s.end_s - s.start_s for s in own) / plan.router.replicas


def _part(seconds: Mapping[str, float], name: str) -> float:
    total = sum(seconds.values())
    return seconds[name] / total if total else 1 / len(seconds)


def _rent(plan: Plan, spans: Sequence[NodeSpan], window: Window) -> tuple[float, float]:
    """Dollars of all nodes in the window, and the seconds that no span covers, which count as planned."""
    usd, longest_s = 0.0, 0.0
    for node in plan.nodes:
        own = disjoint([s for s in spans if s.node_type == node.node_type])
        gap_s = uncovered_s(own, window)
        usd += sum((s.end_s - s.start_s) * s.count * s.usd_per_hour for s in own) / SECONDS_PER_HOUR
        usd += gap_s * node.count * node.usd_per_hour / SECONDS_PER_HOUR
        longest_s = max(longest_s, gap_s)
    return usd, longest_s


def _row(
    gear: Gear, name: str, gathered: Gathered, asked: Asked, window: Window, in_service_s: float, rented_usd: float
) -> GearRow:
    plan = gear.plan
    _, calls = nodes_and_calls(plan, gathered.spans, gathered.made, window, len(asked))
    usage = sum(row.usd + row.usd_fees for row in calls)
    times = asked.latency_s
    answered = asked.count(lambda b: b.answered)
    return GearRow(
        name=name,
        plan_fingerprint=plan.fingerprint(),
        up_to_per_s=gear.up_to_per_s,
        promised=claim_in_words(plan),
        accuracy_planned=plan.stats.accuracy,
        accuracy=asked.accuracy,
        judged=asked.count(lambda b: b.judged & b.answered),
        seconds=in_service_s,
        requests=len(asked),
        answered=answered,
        degraded=asked.count(lambda b: b.degraded & b.answered),
        p50_s=quantile_of(times, 0.5),
        p99_s=quantile_of(times, 0.99),
        promised_s=plan.workload.latency_s,
        quantile=plan.workload.latency_quantile,
        in_time=share_within(times, plan.workload.latency_s),
        usd_usage=usage,
        usd_rented=rented_usd,
        usd_per_1k_usage=per_1k(usage, answered),
        audits=gathered.audits.figures(sum(row.usd_audits for row in calls)),
    )


def _notes(
    rows: Sequence[GearRow], failed: int, unaccounted: int, unmetered_s: float, window: Window, bench: Bench | None
) -> list[str]:
    told = []
    if failed:
        told.append(f"{failed:,} queries got no answer.")
    if unaccounted:
        told.append(f"{unaccounted:,} records are known to be lost, so their calls are not billed here.")
    if window.seconds and unmetered_s > 0.01 * window.seconds:
        told.append(f"For {words.seconds(unmetered_s)} no ledger says what was rented; they are billed as planned.")
    if bench is not None:
        lost = len(bench.answers) - sum(r.requests for r in rows)
        if lost > 0:
            told.append(f"{lost:,} of the client's {len(bench.answers):,} queries are in no ledger: refused, or lost.")
    return told


# --- Shown ------------------------------------------------------------------------------------------------------------

COLUMNS = (
    "gear",
    "up to/s",
    "in service",
    "answers",
    "p99",
    "in time",
    "accuracy",
    "planned",
    "$ used",
    "$ per 1,000 used",
)


def as_table(report: GearsReport) -> list[tuple[str, ...]]:
    """A line per gear and one for all, in the order of `COLUMNS`."""
    total_s = sum(r.seconds for r in report.gears) or 1.0
    lines = [
        (
            r.name,
            f"{r.up_to_per_s:g}",
            f"{words.seconds(r.seconds)} ({words.percent(r.seconds / total_s)})",
            f"{r.answered:,}",
            words.seconds(r.p99_s),
            words.percent(r.in_time),
            words.percent(r.accuracy),
            words.percent(r.accuracy_planned),
            words.usd(r.usd_usage),
            words.usd(r.usd_per_1k_usage),
        )
        for r in report.gears
    ]
    everything = (
        "all",
        "",
        words.seconds(sum(r.seconds for r in report.gears)),
        f"{report.answered:,}",
        words.seconds(report.p99_s),
        words.percent(report.in_time),
        words.percent(report.accuracy),
        "",
        words.usd(report.usd_usage),
        words.usd(report.usd_per_1k_usage),
    )
    return [*lines, everything]


def as_text(report: GearsReport) -> str:
    """For people at a terminal."""
    rows = [COLUMNS, *as_table(report)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", *_sentences(report)]) + "\n"


def as_markdown(report: GearsReport) -> str:
    """For a pull request or a page."""
    rows = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ("---",) * len(COLUMNS), *as_table(report))]
    return "\n".join([*rows, "", *(f"- {line}" for line in _sentences(report))]) + "\n"


def _sentences(report: GearsReport) -> list[str]:
    rented = words.usd(report.usd_per_1k_allocation)
    return [
        f"Rented all the while: {words.usd(report.usd_allocation)}, {rented} per 1,000 queries, whichever gear served.",
        *(f"{r.name}: {r.promised}" for r in report.gears),
        *(f"{r.name}, shadow audits: {_audits(r.audits)}" for r in report.gears if r.audits is not None),
        *report.notes,
    ]


def _audits(a: Audited) -> str:
    """How many, for how much, and what they have shown."""
    skipped = f", {a.skipped:,} left out" if a.skipped else ""
    resting = f" ({a.resting:,} because another gear had taken over)" if a.resting else ""
    since = "" if a.drift_since_s is None else f" First shown at {words.moment(a.drift_since_s)}."
    drift = "DRIFT. " if a.verdict == "drift" else ""
    return (
        f"{a.observed:,} early answers compared for {words.usd(a.usd)}, {a.differing:,} differ{skipped}{resting}. "
        f"{drift}{a.says}.{since}"
    )
