"""The report for a pull request or a wiki: GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from coe.report.nouns import Report
from coe.report.sections import Row, Section, Table, sections, title, traffic

_MARKS = {"good": "✅ ", "bad": "❌ ", "plain": "", "sum": ""}


def render_markdown(report: Report) -> str:
    """The report as Markdown, with a newline at its end."""
    lines = [f"# Cost report: {_escaped(title(report))}", "", _escaped(traffic(report)), ""]
    for section in sections(report):
        lines += _section(section)
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    if section.key == "savings":
        yield from _sentences(section)
    if section.table is not None and section.table.rows:
        yield from _table(section.table)
    if section.key != "savings":
        yield from _sentences(section)


def _sentences(section: Section) -> Iterator[str]:
    """A bullet each; the verdict is in bold."""
    strong = "**" if section.key == "savings" else ""
    yield from (f"- {strong}{_escaped(sentence)}{strong}" for sentence in section.sentences)
    if section.sentences:
        yield ""


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(_escaped(title) for title in table.titles)} |"
    yield f"|{'|'.join(':--' if side == 'l' else '--:' for side in table.sides)}|"
    yield from (_row(row) for row in table.rows)
    yield ""


def _row(row: Row) -> str:
    strong = "**" if row.tone == "sum" else ""
    cells = [f"{strong}{_escaped(cell)}{strong}" if cell else "" for cell in row.cells]
    cells[0] = _MARKS[row.tone] + cells[0]
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text with the characters that Markdown would act upon taken literally."""
    for character in "\\`*_|<>#":
        text = text.replace(character, "\\" + character)
    return text
