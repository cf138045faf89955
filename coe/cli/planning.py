"""Verbs about plans: plan, explain, diff."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import place, progress, quiet_solver, say, today, wrote
from coe.cli.offline import PoolFile, Predictions, PricesFile, ProfilesFile, WorkloadFile, check_sources
from coe.errors import GateExceeded, InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Cascade, Gears, Plan, Pool, Prices, Profiles, Workload

DEFAULT_OUT = Path("plan.yaml")
DEFAULT_GEARS = Path("gears.yaml")
SHOWN_ODD = 3


class Dispatch(StrEnum):
    """Who decides whether the members of a tier are asked at once or one after the other."""

    given = "given"
    either = "either"


class Format(StrEnum):
    """How a difference is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


@dataclass(frozen=True)
class _Inputs:
    """What `coe plan` read."""

    pool: Pool
    cascades: list[Cascade]
    table: PredictionTable
    profiles: Profiles
    prices: Prices
    workload: Workload
    fingerprints: dict[str, str]
    folder: Path


def plan(
    cascades: Annotated[list[Path], typer.Argument(metavar="CASCADE...", help="Calibrated cascades to choose from.")],
    pool: PoolFile,
    predictions: Predictions,
    profiles: ProfilesFile,
    prices: PricesFile,
    workload: WorkloadFile,
    uncertified: Annotated[bool, typer.Option("--uncertified", help="Accept cascades without certificate.")] = False,
    max_price_age: Annotated[int | None, typer.Option("--max-price-age", help="Refuse prices older than DAYS.")] = None,
    dispatch: Annotated[
        Dispatch, typer.Option("--dispatch", help="either: tiers may be parallel or staged, whichever is cheaper.")
    ] = Dispatch.given,
    rates: Annotated[
        str | None, typer.Option("--rates", metavar="R,R,...", help="Gears: a plan for each of these loads.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if", metavar="KEY=VALUE", help="Compare with another price, quota or promise; repeatable."
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, help="Seconds; then the best so far, with its gap.")
    ] = 300,
    reasons: Annotated[
        bool, typer.Option("--reasons/--no-reasons", help="Also find what other promises and loads would cost.")
    ] = True,
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulate/--no-simulate",
            help="Try the plan on a virtual clock, and plan again where it misses its promise.",
        ),
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="[default: plan.yaml; gears.yaml with --rates]", callback=place)
    ] = None,
) -> None:
    """Find the cheapest placement that carries the load and keeps the promises.

    \b
    Example:
      coe plan cascade.calibrated.yaml --pool pool.yaml --predictions predictions.npz \\
          --profiles profiles.yaml --prices fleet.yaml --workload workload.yaml -o plan.yaml
      ... --rates 10,50,200,1000 -o gears.yaml       a plan per load, for a service to follow
      ... --what-if price.A100=1.2 --what-if rate=500     what would change; writes nothing without -o
    """
    inputs = _read(cascades, pool, predictions, profiles, prices, workload)
    if max_price_age is not None:
        from coe.prices.catalog import check_age

        check_age(inputs.prices, today(), max_price_age)
    solve = _Solve(inputs, uncertified, dispatch is Dispatch.either, reasons, time.monotonic() + time_limit)
    if rates is not None:
        _plan_gears(solve, rates, out or DEFAULT_GEARS)
    elif what_if:
        _compare(solve, what_if, out)
    else:
        _write_plan(solve.simulated() if simulated else solve.plan(inputs.workload, inputs.prices), out or DEFAULT_OUT)


@dataclass(frozen=True)
class _Solve:
    """Plans from one set of inputs, all before one deadline."""

    inputs: _Inputs
    uncertified: bool
    any_dispatch: bool
    reasons: bool
    deadline: float

    def plan(self, workload: Workload, prices: Prices, told: str = "plan") -> Plan:
        """The cheapest plan for a workload and a price list."""
        from coe.placement import optimize

        given = self.inputs
        with progress(told) as advance, quiet_solver():
            return optimize.plan(
                given.pool,
                given.cascades,
                given.table,
                given.profiles,
                prices,
                workload,
                inputs=given.fingerprints,
                uncertified=self.uncertified,
                any_dispatch=self.any_dispatch,
                reasons=self.reasons,
                python_path=str(given.folder),
                progress=advance,
                remaining=lambda: self.deadline - time.monotonic(),
            )

    def simulated(self) -> Plan:
        """The plan that keeps its latency promise on a virtual clock too."""
        from coe.placement.optimize import SPLIT
        from coe.simulator.verify import verified

        given = self.inputs
        return verified(
            lambda workload: self.plan(workload, given.prices), given.workload, given.profiles, given.table.split(SPLIT)
        )


def _read(cascades: list[Path], pool: Path, predictions: Path, profiles: Path, prices: Path, workload: Path) -> _Inputs:
    """Every input, checked against each other; irregular timings are told."""
    from coe.cost.capacity import irregularities

    models = files.read(pool, Pool)
    table = files.read_predictions(predictions)
    folder = pool.resolve().parent
    check_sources(models, table, folder, str(predictions))
    timings = files.read(profiles, Profiles)
    odd = irregularities(timings)
    for line in odd[:SHOWN_ODD]:
        say(f"warning: {profiles}: {line}")
    if len(odd) > SHOWN_ODD:
        say(f"warning: {profiles}: and {len(odd) - SHOWN_ODD} more such timings, less striking")
    return _Inputs(
        models,
        [files.read(path, Cascade) for path in cascades],
        table,
        timings,
        files.read_prices(prices),
        files.read(workload, Workload),
        _fingerprints([*cascades, pool, predictions, profiles, prices, workload]),
        folder,
    )


def _write_plan(found: Plan, out: Path) -> None:
    """The plan's file, and its price in one line."""
    from coe.prices.catalog import provenance

    aged = provenance(found.offers, today())
    files.write(out, found, f"Found by coe plan on {today()}. Prices: {provenance(found.offers)}")
    nodes = sum(n.count for n in found.nodes)
    gap = "" if found.solver.status == "proved" else f", NOT PROVED: at least ${found.solver.bound_usd_per_hour:.3f}"
    wrote(out, f"${found.cost.usd_per_hour_allocation:.3f} per hour{gap}, {nodes} nodes; prices: {aged}")
    if found.simulated is not None:
        say(found.simulated)


def _plan_gears(solve: _Solve, rates: str, out: Path) -> None:
    """One plan per load, and the table of when to change."""
    from coe.placement import gears
    from coe.placement.writing import load_of

    try:
        loads = [float(part) for part in rates.split(",")]
    except ValueError:
        raise InvalidInput(Problem("--rates", "must be numbers separated by commas", rates)) from None
    inputs = solve.inputs
    found = gears.gears_of(loads, lambda r: solve.plan(load_of(inputs.workload, r), inputs.prices, f"plan {r:g}/s"))
    files.write(out, found, f"Found by coe plan --rates on {today()}")
    print(gears.table(found), end="")
    wrote(out, f"{len(found.gears)} gears")


def _compare(solve: _Solve, settings: list[str], out: Path | None) -> None:
    """The plan as things are beside the plan as they might be."""
    from coe.placement.diff import as_text, diff
    from coe.placement.what_if import changed

    inputs = solve.inputs
    prices, workload = changed(settings, inputs.prices, inputs.workload)
    now = solve.plan(inputs.workload, inputs.prices)
    then = solve.plan(workload, prices, "what if")
    print(as_text(diff(now, then, ("as it is", ", ".join(settings)))), end="")
    if out is not None:
        _write_plan(then, out)


def explain(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.yaml, or gears.yaml")],
    profiles: Annotated[Path | None, typer.Option("--profiles", help="Say which profiles were measured.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw who runs where and what it costs (SVG).", callback=place)
    ] = None,
) -> None:
    """Print the bill of a plan line by line, its promises and what they cost, and why it was chosen.

    \b
    Example:
      coe explain plan.yaml --plot plan.svg
      coe explain gears.yaml
    """
    from coe.placement import explain as explaining
    from coe.placement import gears

    known = None if profiles is None else files.read(profiles, Profiles)
    found = files.read_any(plan_file)
    if isinstance(found, Gears):
        print(gears.table(found), end="")
        return
    read = files.read(plan_file, Plan)
    print(explaining.explain(read, known, today()), end="")
    if plot is not None:
        from coe.report.plan_plot import plan_plot

        files.write_text(plot, plan_plot(read))
        wrote(plot, f"{sum(n.count for n in read.nodes)} nodes and what they cost")


def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="plan.yaml")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="another plan.yaml")],
    format: Annotated[Format, typer.Option("--format", help="text, json or markdown")] = Format.text,
    fail_if_cost_increases: Annotated[
        str | None,
        typer.Option(
            "--fail-if-cost-increases", metavar="P%", help="Exit 4 where a query costs over P% more (rented)."
        ),
    ] = None,
) -> None:
    """Compare two plans: dollars, nodes, deployments, promises.

    \b
    Example:
      coe diff old/plan.yaml plan.yaml
      coe diff main.yaml plan.yaml --format markdown --fail-if-cost-increases 10%
    """
    from coe.placement import diff as diffing

    limit = None if fail_if_cost_increases is None else _per_cent(fail_if_cost_increases)
    found = diffing.diff(files.read(before, Plan), files.read(after, Plan), (str(before), str(after)))
    if format is Format.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print(diffing.as_text(found) if format is Format.text else diffing.as_markdown(found), end="")
    if limit is not None and found.cost_increase > limit + 1e-12:
        raise GateExceeded([f"a query costs {found.cost_increase:.1%} more (rented), allowed are {limit:.1%}"])


def _per_cent(text: str) -> float:
    """10% or 0.1 as a fraction."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not value >= 0:
        raise InvalidInput(Problem("--fail-if-cost-increases", "must be a percentage such as 10%", text))
    return value


def _fingerprints(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of every file under its name, or under its path where two files have the same name."""
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
