"""The verb report: what a ledger says, of one plan or of gears, in four formats."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coe import files
from coe.cli.console import place, wrote
from coe.cli.gearing import plan_or_gears
from coe.errors import GateExceeded, InvalidInput, Problem
from coe.records import Bench
from coe.types import Gears, Plan

if TYPE_CHECKING:
    from coe.report.geared import GearsReport
    from coe.report.summarise import Report


class Format(StrEnum):
    """How a report is written."""

    text = "text"
    json = "json"
    markdown = "markdown"
    html = "html"


def report(
    plan: Annotated[Path, typer.Option("--plan", help="plan.yaml that was served, or gears.yaml")],
    ledger: Annotated[Path, typer.Option("--ledger", help="A ledger file, or the folder of them.")],
    bench: Annotated[
        Path | None, typer.Option("--bench", help="bench.json: restrict to this run, use its labels.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="For the reference's accuracy on the same items.")
    ] = None,
    form: Annotated[Format, typer.Option("--format")] = Format.text,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 if a promise was missed.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; stdout by default.", callback=place)
    ] = None,
) -> None:
    """The dollar report of a ledger: quality, tiers, dollars on both cost bases, latency, promises.

    \b
    Example:
      coe report --plan plan.yaml --ledger ledger --bench bench.json --predictions predictions.npz
      coe report --plan plan.yaml --ledger ledger --format html -o report.html
      coe report --plan gears.yaml --ledger ledger --bench bench.json
    """
    asked = Asked(ledger, bench, predictions, form)
    planned, gears = plan_or_gears(plan)
    found = _of_plan(planned, str(plan), asked) if gears is None else _of_gears(gears, asked)
    if out is None:
        print(found.text, end="")
    else:
        files.write_text(out, found.text)
        wrote(out, f"report on {found.what}")
    if gate and found.missed:
        raise GateExceeded(found.missed)


@dataclass(frozen=True)
class Asked:
    """What the report is made from, and how it is written."""

    ledger: Path
    bench: Path | None
    predictions: Path | None
    form: Format

    def beside_ledger(self) -> dict[str, Any]:
        """The client's run and the recorded predictions, where there are any."""
        return {
            "bench": None if self.bench is None else files.read(self.bench, Bench),
            "table": None if self.predictions is None else files.read_predictions(self.predictions),
        }


@dataclass(frozen=True)
class Written:
    """A report, the promises that were missed, and what it is about in words."""

    text: str
    missed: tuple[str, ...]
    what: str


def _of_plan(plan: Plan, where: str, asked: Asked) -> Written:
    """Quality, tiers, dollars, latency and promises of one plan."""
    from coe.ledger import LedgerReader
    from coe.report.summarise import gather, summarised

    written = LedgerReader(asked.ledger, plan.fingerprint())
    if written.plan_fingerprint != plan.fingerprint():
        rule, remedy = f"is the ledger of another plan than {where}", "give the plan that was served"
        raise InvalidInput(Problem(str(asked.ledger), rule, written.plan_fingerprint[:12], remedy))
    beside = asked.beside_ledger()
    gathered = gather(plan, written, **beside)  # first: what is missing is known once all has been read
    result = summarised(plan, gathered, unaccounted=written.unaccounted, ledger_notes=written.notes, **beside)
    return Written(_rendered(result, asked.form), result.missed, f"{result.served.answered} answers")


def _of_gears(gears: Gears, asked: Asked) -> Written:
    """How long each gear was in service, what it promised, what came of it, and the bill of all."""
    from coe.ledger import LedgerReader, plans_in
    from coe.report.geared import gather_gears, summarised_gears

    if asked.form is Format.html:
        remedy = "use text, markdown or json; the live page draws one gear"
        raise InvalidInput(Problem("--format", "is not made of gears", "html", remedy))
    prints = {name: g.plan.fingerprint() for name, g in zip(gears.names, gears.gears, strict=True)}
    there = plans_in(asked.ledger)
    written = {
        name: LedgerReader(asked.ledger, print_, comes_and_goes=True)
        for name, print_ in prints.items()
        if print_ in there
    }
    if not written:
        remedy = "give the gears that were served, and the folder that `coe build --ledger` named"
        raise InvalidInput(Problem(str(asked.ledger), "holds no ledger of these gears", remedy=remedy))
    beside = asked.beside_ledger()
    gathered = gather_gears(gears, written, **beside)
    result = summarised_gears(
        gears,
        gathered,
        unaccounted=sum(found.unaccounted for found in written.values()),
        ledger_notes=[note for found in written.values() for note in found.notes],
        **beside,
    )
    what = f"{result.answered} answers of {len(written)} gears"
    return Written(_rendered_gears(result, asked.form), result.missed, what)


def _rendered(result: Report, form: Format) -> str:
    """The report in one format."""
    if form is Format.json:
        return result.model_dump_json(indent=1) + "\n"
    if form is Format.html:
        from coe.report.html import render_html
        from coe.report.plots import report_plots

        return render_html(result, report_plots(result))
    if form is Format.markdown:
        from coe.report.markdown import render_markdown

        return render_markdown(result)
    from coe.report.text import render_text

    return render_text(result)


def _rendered_gears(result: GearsReport, form: Format) -> str:
    """The report of gears in one format."""
    from coe.report.geared import as_markdown, as_text

    if form is Format.json:
        return result.model_dump_json(indent=1) + "\n"
    return as_markdown(result) if form is Format.markdown else as_text(result)
