"""The report as one HTML file that needs nothing else: inline style, inline SVG, no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from coe.report import words
from coe.report.nouns import Report
from coe.report.sections import Row, Section, Table, sections, title, traffic
from coe.report.style import CSS

CAPTIONS = {
    "savings": "Dollars per 1,000 queries: the cascade as metered, the best single model as planned. Scales differ.",
    "nodes": "Dollars per 1,000 queries by node type: who used it, and what was rented and idle.",
    "predicted": "Usage dollars per 1,000 queries by member. The upright line is the plan.",
    "tiers": "Who answers: of the queries that arrive at a tier the coloured part is answered there. The upright line is "
    "the planned reach.",
    "latency": "Share of requests answered within a time. Failed requests never are.",
    "accuracy": "Accuracy on the same queries with exact 95% intervals.",
}
PLOTS_OF = {
    "savings": ("savings",),
    "bill": ("nodes",),
    "tiers": ("tiers",),
    "members": ("predicted",),
    "latency": ("latency",),
    "accuracy": ("accuracy",),
}
"""Section -> the plots that stand in it."""


def render_html(report: Report, plots: Mapping[str, str] | None = None) -> str:
    """The report as a self-contained page. `plots` are those of `coe.report.plots.report_plots`; none are drawn here."""
    parts = [_section(section, plots or {}) for section in sections(report)]
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(report))}: cost report</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<p class=kicker>coe cost report</p>\n<h1>{escape(title(report))}</h1>\n"
        f"<p class=sub>{escape(traffic(report))}</p>\n{_cards(report)}</header>\n"
        + "".join(parts)
        + f"<footer>plan {escape(report.plan)}, {escape(report.plan_fingerprint[:12])} · "
        "every figure here is in the JSON report too</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


# --- The cards on top -------------------------------------------------------------------------------------------------


def _cards(report: Report) -> str:
    cards = [*_saving_cards(report), *_quality_cards(report)]
    return f"<div class=cards>{''.join(cards)}</div>\n"


def _saving_cards(report: Report) -> Iterator[str]:
    """One card per basis: saved or not, and the two prices."""
    savings = {s.basis: s for s in report.against.savings} if report.against is not None else {}
    for cost in report.costs:
        saving = savings.get(cost.basis)
        if saving is None or saving.saved is None or report.against is None:
            yield _card(f"{cost.basis}, per 1,000", words.usd(cost.usd_per_1k), "nothing to compare with", "")
            continue
        cascade, single = words.usd_column([saving.cascade_usd_per_1k, saving.baseline_usd_per_1k])
        word = "saved" if saving.saved >= 0 else "dearer"
        detail = f"{cascade} against {single} per 1,000 with {report.against.member} alone"
        yield _card(
            f"{word} on {cost.basis}", words.percent(abs(saving.saved)), detail, "good" if saving.saved >= 0 else "bad"
        )


def _quality_cards(report: Report) -> Iterator[str]:
    tone = {p.name: {True: "good", False: "bad", None: ""}[p.kept] for p in report.promises}
    cascade = next((a for a in report.accuracy if a.role == "cascade"), None)
    if cascade is not None:
        promise = next(p for p in report.promises if p.name == "accuracy")
        yield _card("accuracy", words.percent(cascade.accuracy, 2), f"promised {promise.promised}", tone["accuracy"])
    latency = report.latency
    if latency is not None:
        share = f"{100 * latency.quantile:.4g}%"
        value = "never" if latency.observed_s is None else words.seconds(latency.observed_s)
        yield _card(f"{share} answered within", value, f"promised {words.seconds(latency.promised_s)}", tone["latency"])


def _card(label: str, value: str, detail: str, tone: str) -> str:
    return (
        f'<div class="card {tone}"><div class=label>{escape(label)}</div>'
        f"<div class=value>{escape(value)}</div><div class=detail>{escape(detail)}</div></div>"
    )


# --- Sections ---------------------------------------------------------------------------------------------------------


def _section(section: Section, plots: Mapping[str, str]) -> str:
    own = "".join(_figure(name, plots[name]) for name in PLOTS_OF.get(section.key, ()) if name in plots)
    table = _table(section.table) if section.table is not None and section.table.rows else ""
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in section.sentences)
    notes = f"<ul>{sentences}</ul>" if sentences else ""
    body = notes + own + table if section.key == "savings" else own + table + notes
    return f'<section id="{section.key}" class="{section.key}">\n<h2>{escape(section.title)}</h2>\n{body}</section>\n'


def _figure(name: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>\n"


def _table(table: Table) -> str:
    heads = "".join(f"<th class={side}>{escape(t)}</th>" for t, side in zip(table.titles, table.sides, strict=True))
    rows = "".join(_row(row, table.sides) for row in table.rows)
    return f"<div class=scroll><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"


def _row(row: Row, sides: str) -> str:
    cells = "".join(f"<td class={side}>{_cell(cell)}</td>" for cell, side in zip(row.cells, sides, strict=True))
    return f'<tr class="{row.tone}">{cells}</tr>\n'


def _cell(text: str) -> str:
    """Verdict words stand out as pills; everything else is text."""
    if text in ("kept", "MISSED", "unknown"):
        return f'<span class="pill {text.lower()}">{text.lower()}</span>'
    return escape(text)
