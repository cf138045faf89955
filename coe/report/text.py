"""The report for a terminal: plain, aligned, no wider than a terminal where the names allow it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from coe.report.nouns import Report
from coe.report.sections import Section, Table, sections, title, traffic

WIDTH = 110
RULE = "─"


def render_text(report: Report) -> str:
    """The report as plain text, with a newline at its end."""
    lines = [f"coe report: {title(report)}", traffic(report), RULE * WIDTH]
    for section in sections(report):
        lines += _section(section)
    return "\n".join(lines) + "\n"


def _section(section: Section) -> Iterator[str]:
    """The title, then the verdict's sentences before its figures, all other sentences after theirs."""
    yield section.title
    sentences = [line for sentence in section.sentences for line in _wrapped(sentence)]
    table = list(_table(section.table)) if section.table is not None else []
    yield from (*sentences, *table) if section.key == "savings" else (*table, *sentences)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(
        sentence,
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(table: Table) -> Iterator[str]:
    """Aligned columns under their titles."""
    rows = [table.titles, *(row.cells for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.titles))]
    for row in rows:
        cells = (
            f"{cell:<{width}}" if side == "l" else f"{cell:>{width}}"
            for cell, width, side in zip(row, widths, table.sides, strict=True)
        )
        yield ("  " + "  ".join(cells)).rstrip()
