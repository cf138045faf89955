"""The verb `coe simulate`: a plan on a virtual clock."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from coe import files
from coe.cli.console import place, progress, say, wrote
from coe.errors import GateExceeded, InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import FloatArray, Plan, Profiles

DURATION_S = 300.0
SPLIT = "test"


class Arrivals(StrEnum):
    """How queries arrive where no trace says it."""

    poisson = "poisson"
    bursty = "bursty"
    diurnal = "diurnal"


class Unit(StrEnum):
    """Of the times of a trace."""

    s = "s"
    ms = "ms"


class Form(StrEnum):
    """How the figures are printed."""

    text = "text"
    json = "json"


def simulate(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.yaml")],
    predictions: Annotated[Path, typer.Option("--predictions", help="predictions.npz: items and answers to replay")],
    profiles: Annotated[Path, typer.Option("--profiles", help="profiles.yaml that the plan was made from")],
    rate: Annotated[
        float | None, typer.Option("--rate", min=1e-6, help="Queries per second; by default the plan's.")
    ] = None,
    arrivals: Annotated[Arrivals, typer.Option("--arrivals", help="Where there is no trace.")] = Arrivals.poisson,
    burstiness: Annotated[
        float, typer.Option("--burstiness", min=0.01, help="Of bursty arrivals: spread of the gaps over their mean.")
    ] = 2.0,
    trace: Annotated[Path | None, typer.Option("--trace", help="CSV of arrival times, plain or .gz.")] = None,
    time_column: Annotated[str, typer.Option("--time-column", help="Column of the trace.")] = "t_s",
    scale: Annotated[float, typer.Option("--scale", min=1e-6, help="Replay the trace so many times as fast.")] = 1.0,
    time_unit: Annotated[Unit, typer.Option("--time-unit", help="Of the trace's times.")] = Unit.s,
    duration: Annotated[
        float | None,
        typer.Option("--duration", min=0.001, help="Seconds to simulate [default: 300, or the whole trace]."),
    ] = None,
    warm_up: Annotated[float, typer.Option("--warm-up", min=0, help="Seconds left out of the figures.")] = 0.0,
    split: Annotated[str, typer.Option("--split", help="Items to replay.")] = SPLIT,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same ledger.")] = 0,
    replications: Annotated[int, typer.Option("--replications", min=1, help="Independent runs.")] = 1,
    parallel: Annotated[bool, typer.Option("--parallel", help="Replications side by side, in processes.")] = False,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", help="Write the first run's ledger, for `coe report`.", callback=place),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="A ledger of the service (file or folder) to put beside.")
    ] = None,
    form: Annotated[Form, typer.Option("--format")] = Form.text,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 if the latency promise is missed.")] = False,
) -> None:
    """Run a plan on a virtual clock: latency by part, goodput, utilisation, dollars.

    \b
    Example:
      coe simulate plan.yaml --predictions predictions.npz --profiles profiles.yaml --replications 10 --parallel
      coe simulate plan.yaml --predictions predictions.npz --profiles profiles.yaml --rate 500 --ledger simulated.jsonl
      coe simulate plan.yaml --predictions predictions.npz --profiles profiles.yaml --trace trace.csv.gz --scale 10
    """
    from coe.simulator.verify import verdict

    if trace is not None and rate is not None:
        raise InvalidInput(Problem("--rate", "a trace has its own rate", remedy="use --scale to replay it faster"))
    if compare is not None and form is Form.json:
        raise InvalidInput(Problem("--compare", "prints text alone", remedy="leave out --format json"))
    plan, known = files.read(plan_file, Plan), files.read(profiles, Profiles)
    table = files.read_predictions(predictions).split(split)
    times = [
        _times(
            trace,
            time_column,
            time_unit,
            scale,
            duration,
            rate or plan.workload.rate_per_s,
            arrivals,
            burstiness,
            seed + i,
        )
        for i in range(replications if trace is None else 1)
    ]
    jobs = [(plan, known, table, times[i % len(times)], seed + i, warm_up) for i in range(replications)]
    figures = []
    with progress("simulate") as advance:
        if parallel and replications > 1:
            with ProcessPoolExecutor() as processes:
                for found in processes.map(_figures, jobs):
                    figures.append(found)
                    advance(len(figures), replications)
        else:
            for job in jobs:
                figures.append(_figures(job))
                advance(len(figures), replications)
    if ledger is not None:
        _write_ledger(ledger, jobs[0])
    if form is Form.json:
        print(json.dumps([dataclasses.asdict(f) for f in figures], indent=2))
    else:
        print(_told(figures), end="")
        if compare is not None:
            print(_compared(plan, figures, compare), end="")
    judged = verdict(figures, plan.workload)
    say(str(judged))
    if gate and not judged.kept:
        raise GateExceeded([str(judged)])


_Job = tuple[Plan, Profiles, PredictionTable, FloatArray, int, float]


def _figures(job: _Job):  # type: ignore[no-untyped-def]
    """One run, in whatever process."""
    from coe.simulator.run import simulate as run

    plan, profiles, table, arrival_s, seed, warm_up_s = job
    return run(plan, profiles, table, arrival_s, seed=seed, warm_up_s=warm_up_s).figures


def _times(
    trace: Path | None,
    column: str,
    unit: Unit,
    scale: float,
    duration: float | None,
    rate_per_s: float,
    kind: Arrivals,
    burstiness: float,
    seed: int,
) -> FloatArray:
    """When queries arrive: a trace, whole or its first seconds, or a stream."""
    from coe.prices.sources.table import rows
    from coe.simulator import arrivals

    duration_s = DURATION_S if duration is None else duration
    if trace is None:
        rng = arrivals.stream(seed, "arrivals")
        if kind is Arrivals.poisson:
            return arrivals.poisson(rng, rate_per_s, duration_s)
        if kind is Arrivals.bursty:
            return arrivals.gamma(rng, rate_per_s, duration_s, burstiness)
        return arrivals.diurnal(rng, rate_per_s, duration_s)
    problems: list[Problem] = []
    raw = [line.number(column, least=-1e18) for line in rows(trace, (column,), problems, "a trace of arrivals")]
    if problems:
        raise InvalidInput(problems)
    replayed = arrivals.replay(np.array(raw, dtype=np.float64) / (1000 if unit is Unit.ms else 1), scale)
    return replayed if duration is None else replayed[replayed < duration]


def _write_ledger(path: Path, job: _Job) -> None:
    from coe.ledger import write_ledger
    from coe.simulator.run import records_of
    from coe.simulator.run import simulate as run

    plan, profiles, table, arrival_s, seed, warm_up_s = job
    found = run(plan, profiles, table, arrival_s, seed=seed, warm_up_s=warm_up_s)
    path.unlink(missing_ok=True)
    # a fixed day, so that the same seed gives the same bytes: that of the newest price
    newest = max(datetime.date.fromisoformat(o.date) for o in plan.offers)
    started_s = datetime.datetime.combine(newest, datetime.time(), datetime.UTC).timestamp()
    write_ledger(path, plan.fingerprint(), started_s, records_of(plan, found, started_s))
    wrote(path, f"{found.figures.queries} answers; read it with: coe report --ledger {path}")


def _told(figures: Sequence) -> str:  # type: ignore[type-arg]
    """The figures of all runs: means, with 95% intervals where there are several."""
    from coe.simulator.figures import interval

    first = figures[0]
    rows = [
        ("latency, mean", "s", [f.latency_mean_s for f in figures]),
        ("latency, p50", "s", [f.latency_p50_s for f in figures]),
        ("latency, p99", "s", [f.latency_p99_s for f in figures]),
        ("within the promise", "", [f.goodput for f in figures]),
        ("accuracy", "", [f.accuracy for f in figures]),
        ("$ per 1,000, used", "", [f.usd_per_1k_usage for f in figures]),
        ("$ per 1,000, rented", "", [f.usd_per_1k_allocation for f in figures]),
    ]
    lines = [f"{len(figures)} run(s), {first.queries} queries in {first.duration_s:.0f} s (the first)"]
    for name, unit, values in rows:
        mean, half = interval(values)
        spread = f" ± {half:.2g}" if np.isfinite(half) else ""
        lines.append(f"  {name:<22}{mean:.4g}{spread} {unit}".rstrip())
    lines.append("  tier  reach    batch   filling  replica  service  network   (mean s per query, the first run)")
    lines += [
        f"  {t.tier + 1:<4}{t.reach:>7.1%}{t.mean_batch:>9.2f}{t.batch_wait_s:>10.4f}{t.replica_wait_s:>9.4f}"
        f"{t.service_s:>9.4f}{t.network_s:>9.4f}"
        for t in first.tiers
    ]
    lines += [f"  {name}: {busy:.0%} busy" for name, busy in first.utilisation.items()]
    return "\n".join(lines) + "\n"


def _compared(plan: Plan, figures: Sequence, path: Path) -> str:  # type: ignore[type-arg]
    """Simulated and observed side by side."""
    from coe.ledger import read_ledger
    from coe.records import Answer, BatchRun
    from coe.simulator.observed import observed

    records = read_ledger(path).records
    seen = observed(
        plan, [r for r in records if isinstance(r, Answer)], [r for r in records if isinstance(r, BatchRun)]
    )
    lines = ["", "                        simulated   observed   off by"]
    for name, of, value in seen.rows():
        mean = float(np.mean([of(f) for f in figures]))
        off = f"{mean / value - 1:+8.1%}" if value else ""
        lines.append(f"  {name:<20}{mean:>11.4g}{value:>11.4g}  {off}")
    return "\n".join(lines) + "\n"
