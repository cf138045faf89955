"""The report for a terminal: aligned, plain, every dollar with its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coe.report.summarise import BasisCost, Report
from coe.types import CostLine

WIDTH = 100


def render_text(report: Report) -> str:
    """The report as plain text."""
    sections = (
        ("", _headline(report)),
        ("Quality", _quality(report)),
        ("Tiers", _tiers(report)),
        ("Dollars", _dollars(report)),
        ("Where the rented dollars went", _lines(report.use_of_allocation)),
        ("Nodes rented", _lines(report.allocation_lines)),
        ("Members, predicted and metered", _deployments(report)),
        ("Latency", _latency(report)),
        ("Promises", _promises(report)),
    )
    text = ""
    for title, lines in sections:
        text += (f"\n{title}\n" if title else "") + "".join(f"  {line}\n" if title else f"{line}\n" for line in lines)
    return text + f"\nPrices: {report.price_source}.\n"


def _headline(report: Report) -> Iterator[str]:
    yield f"{report.cascade}: {report.queries} queries in {report.duration_s:.1f} s ({report.rate_per_s:.0f}/s)"
    for cost in report.costs:
        yield f"  {saving_words(cost)}"


def saving_words(cost: BasisCost) -> str:
    """Whether the cascade saved money on one basis, in a sentence."""
    what = {"usage": "Used", "allocation": "Rented"}[cost.basis]
    text = f"{what}: ${cost.usd_per_1k:.4f} per 1,000 queries"
    if cost.saving is None or cost.baseline_usd_per_1k is None:
        return f"{text}; no single model to compare with"
    against = f"than the best single model (${cost.baseline_usd_per_1k:.4f}, predicted)"
    if cost.saving >= 0:
        return f"{text}, {cost.saving:.0%} less {against}"
    return f"{text}, {-cost.saving:.0%} MORE {against}"


def _quality(report: Report) -> Iterator[str]:
    a = report.accuracy
    if a is not None:
        yield f"cascade       {a.cascade:7.2%}   (95% interval {a.low:.2%} to {a.high:.2%}, {a.labelled} labelled answers)"
        if a.baseline_accuracy is not None:
            yield f"best single   {a.baseline_accuracy:7.2%}   {a.baseline}, the cheapest that keeps the promises"
        if a.reference_accuracy is not None:
            yield f"reference     {a.reference_accuracy:7.2%}   {a.reference}"
    yield f"certificate: {report.certificate}"
    if report.compared:
        same = report.compared - report.different
        yield f"live answers equal to the offline evaluation: {same} of {report.compared}"


def _tiers(report: Report) -> Iterator[str]:
    rows = [["tier", "members", "gate", "reach", "predicted", "answers", "accuracy", "degraded"]]
    for t in report.tiers:
        accuracy = "–" if t.accuracy_accepted is None else f"{t.accuracy_accepted:.2%}"
        rows.append(
            [
                str(t.number + 1),
                " + ".join(t.members),
                t.gate,
                f"{t.reach:.1%}",
                f"{t.reach_predicted:.1%}",
                f"{t.accepted:.1%}",
                accuracy,
                f"{t.degraded:.1%}",
            ]
        )
    yield from aligned(rows, left=3)


def _dollars(report: Report) -> Iterator[str]:
    rows = [["per 1,000", "queries", "predicted", "correct", "best single", "saving"]]
    for c in report.costs:
        rows.append(
            [
                {"usage": "used", "allocation": "rented"}[c.basis],
                f"${c.usd_per_1k:.4f}",
                f"${c.predicted_usd_per_1k:.4f}",
                "–" if c.usd_per_1k_correct is None else f"${c.usd_per_1k_correct:.4f}",
                "–" if c.baseline_usd_per_1k is None else f"${c.baseline_usd_per_1k:.4f}",
                "–" if c.saving is None else f"{c.saving:.1%}",
            ]
        )
    idle = 1000 * report.idle_usd / report.queries
    rows.append(["idle", f"${idle:.4f}", "", "", "", ""])
    yield from aligned(rows, left=1)
    if abs(report.rate_per_s / report.planned_rate_per_s - 1) > 0.1:
        yield f"planned for {report.planned_rate_per_s:g}/s, observed {report.rate_per_s:.1f}/s: rented dollars shift with it"


def _lines(lines: Sequence[CostLine]) -> Iterator[str]:
    total = sum(line.usd for line in lines)
    rows = []
    for line in lines:
        share = f"{line.usd / total:.1%}" if total else "–"
        amount = "" if line.unit == "rest" else f"{line.quantity:.6f} {line.unit} x ${line.unit_price_usd:.4f}"
        rows.append([line.name, amount, f"${line.usd:.6f}", share])
    rows.append(["total", "", f"${total:.6f}", ""])
    yield from aligned(rows, left=1)


def _deployments(report: Report) -> Iterator[str]:
    rows = [["deployment", "calls", "items", "batch", "expected", "ms/item", "expected", "not ok"]]
    for d in report.deployments:
        rows.append(
            [
                d.deployment,
                str(d.calls),
                str(d.items),
                f"{d.mean_batch:.2f}",
                f"{d.expected_batch:.2f}",
                f"{1000 * d.busy_s_per_item:.3f}",
                f"{1000 * d.expected_busy_s_per_item:.3f}",
                str(d.not_ok),
            ]
        )
    yield from aligned(rows, left=1)


def _latency(report: Report) -> Iterator[str]:
    q = report.latency
    yield f"p50 {1000 * q.p50_s:.0f} ms   p90 {1000 * q.p90_s:.0f} ms   p99 {1000 * q.p99_s:.0f} ms   (seen by the {q.source})"


def _promises(report: Report) -> Iterator[str]:
    rows = [["kept" if p.kept else "MISSED", p.name, p.promised, p.observed] for p in report.promises]
    yield from aligned(rows, left=4)


def aligned(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Rows as lines with aligned columns: the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
