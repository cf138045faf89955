"""A report as titled sections of sentences and tables, in words. Text, Markdown and HTML differ only in how they set them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coe.report import words
from coe.report.nouns import Comparison, Report, TierRow
from coe.types import CostLine

Tone = Literal["plain", "sum", "good", "bad"]


@dataclass(frozen=True)
class Row:
    """Cells of one line; the tone says whether it is a sum, or good or bad news."""

    cells: tuple[str, ...]
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """Column titles, the side that each column keeps to, as a string of `l` and `r`, and rows."""

    titles: tuple[str, ...]
    sides: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """One part of the report. `key` also names its plots."""

    key: str
    title: str
    table: Table | None = None
    sentences: tuple[str, ...] = ()


def sections(report: Report) -> tuple[Section, ...]:
    """Every section, in reading order; those that have nothing to say are left out."""
    every = (
        _savings(report),
        _promises(report),
        _bill(report),
        _tiers(report),
        _members(report),
        _predicted(report),
        _accuracy(report),
        _audits(report),
        _latency(report),
        _nodes(report),
        Section("notes", "Notes", sentences=report.notes),
    )
    return tuple(s for s in every if s.sentences or (s.table is not None and s.table.rows))


def title(report: Report) -> str:
    """The cascade: ``small + other → large``."""
    return " → ".join(" + ".join(tier.members) for tier in report.tiers)


def traffic(report: Report) -> str:
    """Window and rate in one line."""
    served, window = report.served, report.window
    count = f"{served.answered:,} answers in {words.seconds(window.seconds)}"
    rate = f"{served.rate_per_s:.1f}/s, planned {served.planned_rate_per_s:g}/s"
    return f"{words.span(window.start_s, window.end_s)}: {count} ({rate})"


def _savings(report: Report) -> Section:
    """The verdict, and dollars per 1,000 queries and per 1,000 correct ones on both bases."""
    against = {s.basis: s for s in report.against.savings} if report.against is not None else {}
    rows = []
    for cost in report.costs:
        saving = against.get(cost.basis)
        single, saved = (saving.baseline_usd_per_1k, saving.saved) if saving else (None, None)
        rows.append(_saving(cost.basis, "per 1,000", cost.usd_per_1k, cost.usd_per_1k_predicted, single, saved))
        single, saved = (saving.baseline_usd_per_1k_correct, saving.saved_correct) if saving else (None, None)
        planned = cost.usd_per_1k_correct_predicted
        rows.append(_saving(cost.basis, "per 1,000 correct", cost.usd_per_1k_correct, planned, single, saved))
    titles = ("basis", "queries", "metered", "planned", "off by", "best single", "saving")
    title = "Did the cascade save money?"
    if report.against is not None:
        title += f" Against the best single model, {report.against.member} on {report.against.node_type}"
    return Section("savings", title, Table(titles, "llrrrrr", tuple(rows)), report.verdict)


def _saving(
    basis: str, what: str, metered: float | None, planned: float, single: float | None, saved: float | None
) -> Row:
    money = words.usd_column([metered, planned, single])
    off_by = words.signed_percent(metered / planned - 1 if metered is not None and planned else None)
    cells = (basis, what, money[0], money[1], off_by, money[2] if single is not None else "-")
    if saved is None:
        return Row((*cells, "-"))
    if saved >= 0:
        return Row((*cells, f"{words.percent(saved)} saved"), "good")
    return Row((*cells, f"{words.percent(-saved)} MORE"), "bad")


def _promises(report: Report) -> Section:
    verdicts: dict[bool | None, tuple[str, Tone]] = {
        True: ("kept", "good"),
        False: ("MISSED", "bad"),
        None: ("unknown", "plain"),
    }
    rows = tuple(
        Row((p.name, verdicts[p.kept][0], p.promised, p.observed), verdicts[p.kept][1]) for p in report.promises
    )
    table = Table(("promise", "verdict", "promised", "observed"), "llll", rows)
    return Section("promises", "Promises", table, (f"Certificate: {report.certificate}.",))


def _bill(report: Report) -> Section:
    """Every line is quantity x unit price = dollars; usage lines, then router and idle, add up to the bill."""
    usage, bill = report.cost("usage"), report.cost("allocation")
    lines = (*report.usage_lines, *report.other_lines)
    answers = report.served.answered + report.served.other
    amounts = words.usd_column([*(line.usd for line in lines), usage.usd, bill.usd])
    per_1k = [1000 * line.usd / answers if answers else None for line in lines]
    shares = words.usd_column([*per_1k, usage.usd_per_1k, bill.usd_per_1k])
    prices = words.usd_column([line.unit_price_usd for line in lines])

    def row(i: int, line: CostLine) -> Row:
        part = words.percent(line.usd / bill.usd) if bill.usd else "-"
        return Row((line.name, words.hours(line.quantity), line.unit, prices[i], amounts[i], shares[i], part))

    def total(i: int, name: str, usd: float) -> Row:
        part = words.percent(usd / bill.usd) if bill.usd else "-"
        return Row((name, "", "", "", amounts[i], shares[i], part), "sum")

    n = len(report.usage_lines)
    rows = (
        *(row(i, line) for i, line in enumerate(report.usage_lines)),
        total(len(lines), "= usage", usage.usd),
        *(row(n + i, line) for i, line in enumerate(report.other_lines)),
        total(len(lines) + 1, "= allocation, the bill", bill.usd),
    )
    titles = ("line", "quantity", "unit", "unit price", "dollars", "per 1,000", "part")
    return Section("bill", "Where the dollars went", Table(titles, "lrlrrrr", rows))


def _tiers(report: Report) -> Section:
    rows = tuple(Row((str(t.tier + 1), " + ".join(t.members), t.rule, *_tier_figures(t))) for t in report.tiers)
    titles = ("tier", "members", "answers if", "reach", "planned", "passes on", "planned", "accuracy", "planned")
    return Section("tiers", "Tiers", Table(titles, "lllrrrrrr", rows))


def _tier_figures(tier: TierRow) -> tuple[str, ...]:
    last = tier.rule == "always answers"
    figures = (
        words.percent(tier.reach),
        words.percent(tier.reach_predicted),
        "-" if last else words.percent(tier.escalated),
        "-" if last else words.percent(tier.escalated_predicted),
        words.percent(tier.accuracy),
        words.percent(tier.accuracy_predicted),
    )
    return tuple("-" if f == words.UNKNOWN else f for f in figures)


def _members(report: Report) -> Section:
    """Every member on every node type; dollars are those of the queries of the whole service."""
    metered = words.usd_column([c.usd_per_1k for c in report.calls])
    planned = words.usd_column([c.usd_per_1k_predicted for c in report.calls])
    rows = []
    for i, c in enumerate(report.calls):
        bad = c.late + c.failed + c.cancelled
        cells = (
            f"{c.member} on {c.node_type}",
            words.number(c.calls, 1),
            words.number(c.items, 1),
            "-" if c.batch is None else f"{c.batch:.2f}",
            "-" if c.batch_predicted is None else f"{c.batch_predicted:.2f}",
            "-" if c.busy_per_item_s is None else words.seconds(c.busy_per_item_s),
            "-" if c.busy_per_item_predicted_s is None else words.seconds(c.busy_per_item_predicted_s),
            metered[i],
            planned[i],
            words.number(bad, 1),
        )
        rows.append(Row(cells))
    titles = ("member", "calls", "items", "batch", "plan", "busy/item", "plan", "per 1,000", "plan", "not ok")
    return Section("members", "Members", Table(titles, "lrrrrrrrrr", tuple(rows)))


def _predicted(report: Report) -> Section:
    """What no other section sets side by side: dollars per hour, accuracy and reach; and live against offline answers."""
    shown = (c for c in report.comparisons if c.unit in ("usd", "share") and "per 1,000" not in c.name)
    rows = tuple(Row((c.name, *_pair(c), words.signed_percent(c.off_by))) for c in shown)
    sentences = []
    if report.mismatch is not None:
        m = report.mismatch
        same = m.answers == m.tiers == 0
        verdict = "all agree in answer and tier" if same else f"{m.answers} answers and {m.tiers} tiers differ"
        example = "" if same else f" (first: {', '.join(m.examples)})"
        sentences.append(f"{m.compared:,} live answers compared with the offline cascade: {verdict}{example}.")
    table = Table(("figure", "predicted", "metered", "off by"), "lrrr", rows)
    return Section("predicted", "Predicted and metered", table, tuple(sentences))


def _pair(c: Comparison) -> tuple[str, str]:
    if c.unit == "usd":
        predicted, metered = words.usd_column([c.predicted, c.metered])
        return predicted, metered
    return words.percent(c.predicted, 2), words.percent(c.metered, 2)


def _accuracy(report: Report) -> Section:
    rows = tuple(
        Row(
            (
                a.role if a.role == "cascade" else f"{a.role}: {a.name}",
                words.percent(a.accuracy, 2),
                words.interval(a.low, a.high),
                f"{a.items:,}" if a.items else "-",
                a.source,
            )
        )
        for a in report.accuracy
    )
    return Section("accuracy", "Accuracy", Table(("who", "accuracy", "95% interval", "queries", "from"), "lrrrl", rows))


def _audits(report: Report) -> Section:
    """What the last tier said of early answers, what that bounds, and what it cost."""
    a = report.audits
    if a is None:
        return Section("audits", "Shadow audits")
    tones: dict[str, Tone] = {"kept": "good", "open": "plain", "drift": "bad"}
    cells = (
        words.number(a.observed, 0),
        words.number(a.differing, 0),
        words.percent(a.rate, 2) if a.rate is not None else "-",
        f"{100 * a.low:.2f} – {words.percent(a.high, 2)}",
        words.percent(a.promised, 2) if a.promised is not None else "-",
        words.percent(a.alarm_above, 2),
        a.verdict.upper() if a.verdict == "drift" else a.verdict,
        words.usd(a.usd),
        f"{a.failed} + {a.skipped}",
    )
    titles = (
        "compared",
        "differing",
        "of all",
        "bounds at all times",
        "allowed",
        "alarm",
        "verdict",
        "dollars",
        "failed + skipped",
    )
    says = (
        (f"{a.says}.",)
        if a.drift_since_s is None
        else (f"{a.says}.", f"First shown at {words.moment(a.drift_since_s)}.")
    )
    return Section("audits", "Shadow audits", Table(titles, "rrrrrrlrr", (Row(cells, tones[a.verdict]),)), says)


def _latency(report: Report) -> Section:
    latency = report.latency
    if latency is None:
        return Section("latency", "Latency")
    quantiles = (latency.p50_s, latency.p95_s, latency.p99_s, latency.max_s)
    cells = tuple("never" if q is None else words.seconds(q) for q in quantiles)
    row = Row(
        (*cells, words.seconds(latency.promised_s), words.seconds(latency.bound_s), words.percent(latency.in_time, 2))
    )
    share = f"{100 * latency.quantile:.4g}%"
    titles = ("p50", "p95", "p99", "max", f"promised for {share}", "plan's bound", "in time")
    return Section("latency", f"Latency, seen by the {latency.source}", Table(titles, "rrrrrrr", (row,)))


def _nodes(report: Report) -> Section:
    """What is rented and at what price; sources and dates once each."""
    sources = list(dict.fromkeys((n.source, n.date, n.age_days) for n in report.nodes))
    marks = {source: f"[{i + 1}]" for i, source in enumerate(sources)}
    prices = words.usd_column([n.usd_per_hour for n in report.nodes])
    dollars = words.usd_column([n.usd for n in report.nodes])
    rows = tuple(
        Row(
            (
                n.node_type,
                n.accelerator,
                n.market.replace("_", "-"),
                n.region or "-",
                words.number(n.node_hours * 3600 / report.window.seconds, 2) if report.window.seconds else "-",
                words.hours(n.node_hours),
                prices[i],
                dollars[i],
                words.percent(n.usd_idle / n.usd) if n.usd else "-",
                f"{n.date} {marks[n.source, n.date, n.age_days]}",
            )
        )
        for i, n in enumerate(report.nodes)
    )
    titles = (
        "node type",
        "accelerator",
        "market",
        "region",
        "nodes",
        "node-h",
        "$/node-h",
        "dollars",
        "idle",
        "price of",
    )
    cited = tuple(f"{marks[s]} {s[0]}, {_age(s[1], s[2])}." for s in sources)
    declared = "Accelerators are named and priced as the price list declares them; nothing here detects the hardware."
    return Section("nodes", "Nodes and prices", Table(titles, "llllrrrrrl", rows), (*cited, declared))


def _age(day: str, age_days: int) -> str:
    when = (
        "of the same day"
        if age_days == 0
        else f"{abs(age_days)} day{'' if abs(age_days) == 1 else 's'} {'old' if age_days > 0 else 'ahead'}"
    )
    return f"{day}, {when}"
