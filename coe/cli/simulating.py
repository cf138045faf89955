"""The verb `coe simulate`: a plan on a virtual clock."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from coe import files
from coe.cli.arriving import Arrivals, Trace, Unit, drawn, of_trace
from coe.cli.auditing import audits_of
from coe.cli.console import place, progress, say, wrote
from coe.errors import GateExceeded, InvalidInput, Problem
from coe.records import Record
from coe.table import PredictionTable
from coe.types import Audits, FloatArray, Gears, IntArray, Plan, Profiles, Scenario

if TYPE_CHECKING:
    from coe.simulator.auditing import SimulatedAudits
    from coe.simulator.figures import Simulated

DURATION_S = 300.0
SECONDS_PER_HOUR = 3600.0
SPLIT = "test"
SILENT_AT_ZERO = ("unanswered", "of them refused", "degraded")
TOLD = 12
"""So many happenings of a run are printed."""


def _file_or_folder(path: Path | None) -> Path | None:
    """A place for a file, or a folder that is there."""
    return path if path is not None and path.is_dir() else place(path)


class Form(StrEnum):
    """How the figures are printed."""

    text = "text"
    json = "json"


class EngineName(StrEnum):
    """What runs the queues."""

    auto = "auto"
    compiled = "compiled"
    router = "router"


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
    on_s: Annotated[
        float, typer.Option("--on", min=0.001, help="Mean seconds of traffic, with --arrivals on-off.")
    ] = 10.0,
    off_s: Annotated[float, typer.Option("--off", min=0, help="Mean seconds of silence between.")] = 10.0,
    period_s: Annotated[float, typer.Option("--period", min=0.001, help="Of diurnal arrivals, in seconds.")] = 86_400.0,
    swing: Annotated[float, typer.Option("--swing", min=0, max=1, help="Of diurnal arrivals, up and down.")] = 0.5,
    trace: Annotated[Path | None, typer.Option("--trace", help="CSV of arrival times, plain or .gz.")] = None,
    time_column: Annotated[str, typer.Option("--time-column", help="Column of the trace.")] = "t_s",
    item_column: Annotated[
        str | None, typer.Option("--item-column", help="Column that says which item each request replays; else drawn.")
    ] = None,
    scale: Annotated[float, typer.Option("--scale", min=1e-6, help="Replay the trace so many times as fast.")] = 1.0,
    time_unit: Annotated[Unit, typer.Option("--time-unit", help="Of the trace's times.")] = Unit.s,
    duration: Annotated[
        float | None,
        typer.Option("--duration", min=0.001, help="Seconds to simulate [default: 300, or the whole trace]."),
    ] = None,
    warm_up: Annotated[float, typer.Option("--warm-up", min=0, help="Seconds left out of the figures.")] = 0.0,
    scenario: Annotated[
        Path | None,
        typer.Option("--scenario", help="scenario.yaml: failures, preemption, start-up, billing, deadlines, scaling."),
    ] = None,
    gears: Annotated[
        Path | None,
        typer.Option("--gears", help="gears.yaml, followed live; each gear's machines are rented as it comes."),
    ] = None,
    deployed: Annotated[
        bool,
        typer.Option(
            "--deployed",
            help="With --gears: the machines of all gears stand all the while, as `coe build` deploys them.",
        ),
    ] = False,
    audits: Annotated[
        Path | None,
        typer.Option(
            "--audits", help="audits.yaml: early answers that the last tier sees, too; what they cost and show."
        ),
    ] = None,
    breach: Annotated[
        float | None,
        typer.Option(
            "--breach",
            min=1e-6,
            max=1.0,
            help="With --audits: say how soon they would show that so large a share of all queries differs "
            "[default: twice the alarm].",
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine",
            help="compiled: millions of queries, machines that never fail. router: the service's own code. auto: the first "
            "unless the second is needed.",
        ),
    ] = EngineName.auto,
    split: Annotated[str, typer.Option("--split", help="Items to replay.")] = SPLIT,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same ledger.")] = 0,
    replications: Annotated[int, typer.Option("--replications", min=1, help="Independent runs.")] = 1,
    parallel: Annotated[bool, typer.Option("--parallel", help="Replications side by side, in processes.")] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(
            "--ledger",
            help="Write the first run's ledger, for `coe report`; with --deployed a folder, with one of each gear.",
            callback=_file_or_folder,
        ),
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
      coe simulate plan.yaml --predictions predictions.npz --profiles profiles.yaml --scenario spot.yaml
      coe simulate plan.yaml --predictions predictions.npz --profiles profiles.yaml --gears gears.yaml --deployed
      coe simulate plan.yaml --predictions predictions.npz --profiles profiles.yaml --audits audits.yaml --breach 0.1
    """
    from coe.simulator.verify import verdict

    _check_traffic(trace, rate, item_column)
    _check_gears(gears, ledger, audits, deployed=deployed)
    _check_told(form, compare, breach, audits)
    plan, known = files.read(plan_file, Plan), files.read(profiles, Profiles)
    whole = files.read_predictions(predictions)
    _tell_of_other_inputs(plan, [profiles, predictions])
    table = whole.split(split)
    shifting = None if gears is None else files.read(gears, Gears)
    world = _World(
        plan,
        known,
        table,
        None if scenario is None else files.read(scenario, Scenario),
        shifting,
        deployed,
        None if audits is None else audits_of(audits, shifting or plan, whole),
        engine,
        warm_up,
    )
    world.check()
    traced = None
    if trace is not None:
        traced = of_trace(trace, Trace(time_column, time_unit, item_column, scale), table.items, duration)
    per_s, length_s = rate or plan.workload.rate_per_s, DURATION_S if duration is None else duration
    jobs = []
    for i in range(replications):
        came = traced or (
            drawn(arrivals, per_s, length_s, seed + i, burstiness, (on_s, off_s), (period_s, swing)),
            None,
        )
        jobs.append(_Job(world, *came, seed + i, with_records=ledger is not None and i == 0))
    runs = _run_all(jobs, parallel and replications > 1)
    figures = [r.figures for r in runs]
    if ledger is not None:
        _write_ledger(ledger, plan, runs[0])
    if form is Form.json:
        print(json.dumps([dataclasses.asdict(f) for f in figures], indent=2))
    else:
        compared = "" if compare is None else _compared(plan, figures, compare)
        print(_told(figures) + _audits_told(figures, breach) + _happened(runs[0].told) + compared, end="")
    judged = verdict(figures, plan.workload)
    say(str(judged))
    if gate and not judged.kept:
        raise GateExceeded([str(judged)])


@dataclass(frozen=True)
class _World:
    """All that a run is made of but its arrivals."""

    plan: Plan
    profiles: Profiles
    table: PredictionTable
    scenario: Scenario | None
    gears: Gears | None
    deployed: bool
    audits: Audits | None
    engine: EngineName
    warm_up_s: float

    @property
    def asks_for_router(self) -> str:
        """What the compiled engine does not know; empty where there is nothing."""
        from coe.simulator.verify import beyond_compiled

        if self.audits is not None:
            return "shadow audits"
        if self.scenario is not None or self.gears is not None:
            return "a scenario or gears"
        return beyond_compiled(self.plan, self.profiles)

    @property
    def is_compiled(self) -> bool:
        return self.engine is EngineName.compiled or (self.engine is EngineName.auto and not self.asks_for_router)

    def check(self) -> None:
        """Refuse an engine that would leave out what was asked for."""
        if self.engine is EngineName.compiled and (what := self.asks_for_router):
            raise InvalidInput(
                Problem("--engine", f"the compiled engine does not know {what}", "compiled", "use router")
            )


@dataclass(frozen=True)
class _Job:
    world: _World
    arrival_s: FloatArray
    item: IntArray | None
    seed: int
    with_records: bool


@dataclass(frozen=True)
class _Done:
    figures: Simulated
    records: tuple[Record, ...]
    told: tuple[tuple[float, str], ...]
    by_gear: tuple[tuple[str, str, tuple[Record, ...]], ...] = ()
    """Of gears that are deployed: name, fingerprint and ledger of each."""


def _run(job: _Job) -> _Done:
    """One run, in whatever process."""
    from coe.simulator.run import records_of
    from coe.simulator.run import simulate as run
    from coe.simulator.served import serve

    w = job.world
    if w.is_compiled:
        found = run(w.plan, w.profiles, w.table, job.arrival_s, item=job.item, seed=job.seed, warm_up_s=w.warm_up_s)
        records = tuple(records_of(w.plan, w.table, found)) if job.with_records else ()
        return _Done(found.figures, records, ())
    served = serve(
        w.plan,
        w.profiles,
        w.table,
        job.arrival_s,
        w.scenario,
        item=job.item,
        gears=w.gears,
        deployed=w.deployed,
        audits=w.audits,
        seed=job.seed,
        warm_up_s=w.warm_up_s,
    )
    if not job.with_records:
        return _Done(served.figures, (), served.told)
    if w.gears is None or not w.deployed:
        return _Done(served.figures, served.records, served.told)
    from coe.placement.together import together

    whole = together(w.gears).gears
    print_of = {name: gear.plan.fingerprint() for name, gear in zip(whole.names, whole.gears, strict=True)}
    ledgers = served.ledgers(whole).items()
    return _Done(served.figures, (), served.told, tuple((name, print_of[name], rows) for name, rows in ledgers))


def _run_all(jobs: Sequence[_Job], parallel: bool) -> list[_Done]:
    done: list[_Done] = []
    with progress("simulate") as advance:
        if parallel:
            with ProcessPoolExecutor() as processes:
                for found in processes.map(_run, jobs):
                    done.append(found)
                    advance(len(done), len(jobs))
        else:
            for job in jobs:
                done.append(_run(job))
                advance(len(done), len(jobs))
    return done


def _tell_of_other_inputs(plan: Plan, paths: Sequence[Path]) -> None:
    """Say so where a plan is simulated with other profiles or predictions than it was made from."""
    for path in paths:
        if plan.inputs and hashlib.sha256(path.read_bytes()).hexdigest() not in plan.inputs.values():
            say(f"note: the plan was not made from this {path}")


def _write_ledger(path: Path, plan: Plan, run: _Done) -> None:
    from coe.ledger import write_ledger
    from coe.simulator.served import with_start

    # a fixed day, so that the same seed gives the same bytes: that of the newest price
    newest = max(datetime.date.fromisoformat(o.date) for o in plan.offers)
    started_s = datetime.datetime.combine(newest, datetime.time(), datetime.UTC).timestamp()
    if run.by_gear:
        path.mkdir(exist_ok=True)
        for name, fingerprint, records in run.by_gear:
            (path / f"{name}.jsonl").unlink(missing_ok=True)
            write_ledger(path / f"{name}.jsonl", fingerprint, started_s, with_start(records, started_s))
        wrote(path, f"{run.figures.queries} queries; read it with: coe report --plan gears.yaml --ledger {path}")
        return
    path.unlink(missing_ok=True)
    write_ledger(path, plan.fingerprint(), started_s, with_start(run.records, started_s))
    wrote(path, f"{run.figures.queries} queries; read it with: coe report --ledger {path}")


def _happened(told: Sequence[tuple[float, str]]) -> str:
    """What happened to machines in the first run."""
    if not told:
        return ""
    lines = ["  happenings of the first run:", *(f"    {at:>10.1f} s  {what}" for at, what in told[:TOLD])]
    if len(told) > TOLD:
        lines.append(f"    and {len(told) - TOLD} more")
    return "\n".join(lines) + "\n"


def _check_traffic(trace: Path | None, rate: float | None, item_column: str | None) -> None:
    """Refuse what says twice, or nowhere, what comes."""
    if trace is not None and rate is not None:
        raise InvalidInput(Problem("--rate", "a trace has its own rate", remedy="use --scale to replay it faster"))
    if item_column is not None and trace is None:
        raise InvalidInput(Problem("--item-column", "is a column of a trace", remedy="give --trace"))


def _check_gears(gears: Path | None, ledger: Path | None, audits: Path | None, *, deployed: bool) -> None:
    """Refuse ways of serving gears where there are none, and ledgers that could not hold what they would have to."""
    if deployed and gears is None:
        raise InvalidInput(Problem("--deployed", "is how gears are served", remedy="give --gears"))
    if ledger is None:
        return
    if ledger.is_file() if deployed else ledger.is_dir():
        rule = "must be a folder with --deployed, for a ledger of each gear" if deployed else "must be a file"
        raise InvalidInput(Problem("--ledger", rule, str(ledger), "name another one"))
    if audits is not None and gears is not None and not deployed:
        rule = "is one file here, and audits are of one gear each"
        raise InvalidInput(Problem("--ledger", rule, remedy="give --deployed, and a folder"))


def _check_told(form: Form, compare: Path | None, breach: float | None, audits: Path | None) -> None:
    """Refuse questions whose answers have no place in what is printed."""
    if compare is not None and form is Form.json:
        raise InvalidInput(Problem("--compare", "prints text alone", remedy="leave out --format json"))
    if breach is not None and form is Form.json:
        raise InvalidInput(Problem("--breach", "prints text alone", remedy="leave out --format json"))
    if breach is not None and audits is None:
        raise InvalidInput(Problem("--breach", "is what audits are to show", remedy="give --audits"))


def _told(figures: Sequence[Simulated]) -> str:
    """The figures of all runs: means, with 95% intervals where there are several."""
    from coe.simulator.figures import interval

    first = figures[0]
    rows = [
        ("latency, mean", "s", [f.latency_mean_s for f in figures]),
        ("latency, p50", "s", [f.latency_p50_s for f in figures]),
        ("latency, p99", "s", [f.latency_p99_s for f in figures]),
        ("within the promise", "", [f.goodput for f in figures]),
        ("accuracy", "", [f.accuracy for f in figures]),
        ("unanswered", "", [f.unanswered for f in figures]),
        ("of them refused", "", [f.refused for f in figures]),
        ("degraded", "", [f.degraded for f in figures]),
        ("$ per 1,000, used", "", [f.usd_per_1k_usage for f in figures]),
        ("$ per 1,000, rented", "", [f.usd_per_1k_allocation for f in figures]),
    ]
    lines = [f"{len(figures)} run(s), {first.queries} queries in {first.duration_s:.0f} s (the first)"]
    for name, unit, values in rows:
        if name in SILENT_AT_ZERO and not any(values):
            continue
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
    if first.saved_items:
        lines.append(f"  decided early: {first.saved_items} calls of an item were not needed (the first run)")
    return "\n".join(lines) + "\n"


def _audits_told(figures: Sequence[Simulated], breach: float | None) -> str:
    """What audits cost and what they would show; means of all runs, and the first run's bounds."""
    lines = []
    for first in figures[0].audits:
        runs = [a for f in figures for a in f.audits if a.gear == first.gear]
        hours = sum(a.seconds for a in runs) / SECONDS_PER_HOUR
        per_hour, usd, planned, planned_usd = (
            sum(values) / hours
            for values in (
                [a.observed for a in runs],
                [a.usd for a in runs],
                [a.planned for a in runs],
                [a.planned_usd for a in runs],
            )
        )
        left_out = {
            name: sum(getattr(a, name) for a in runs) for name in ("unpaid", "busy", "resting", "dropped", "failed")
        }
        lines += [
            f"  audits{' of ' + first.gear if first.gear else ''} of {first.share:.4g} of the early answers, for at most "
            f"${first.usd_per_hour:.4g} per hour",
            f"    planned               {planned:.4g} per hour, ${planned_usd:.4g} at ${first.usd_each:.4g} each",
            f"    made                  {per_hour:.4g} per hour, ${usd:.4g}; {_counts(left_out)}",
            f"    differ, of all        {first.low:.2%} to {first.high:.2%} at {1 - first.delta:.0%}, by "
            f"{first.observed} audits: {first.verdict}; alarm above {first.alarm_above:.2%} (the first run)",
            f"    {_shown(first, runs, breach, per_hour)}",
        ]
    return "".join(f"{line}\n" for line in lines)


def _counts(left_out: dict[str, int]) -> str:
    told = ", ".join(f"{count} {name}" for name, count in left_out.items() if count)
    return f"left out: {told}" if told else "none left out"


def _shown(first: SimulatedAudits, runs: Sequence[SimulatedAudits], breach: float | None, per_hour: float) -> str:
    """How soon a share of differing answers would be shown."""
    from coe.cascade.expected import LONGEST, audits_until_shown

    early = float(np.mean([a.early or 0.0 for a in runs]))
    share = min(2 * first.alarm_above, early) if breach is None else breach
    if share <= first.alarm_above:
        return f"a breach of {share:.2%} is not above the alarm, so nothing would show it"
    chosen = sum(a.chosen for a in runs)
    audited = first.share * (sum(a.observed for a in runs) / chosen if chosen else 1.0)
    if not audited:
        return f"a breach of {share:.2%} would not be shown: no audit was made"
    found = audits_until_shown(share, first.alarm_above, first.delta, early=early, audited=audited)
    if found.half is None:
        return f"a breach of {share:.2%} would take more than {LONGEST:,} audits to show"
    mean = "" if found.mean is None else f"{found.mean:,.0f} audits in the mean, "
    most = f"more than {LONGEST:,}" if found.most is None else f"{found.most:,}"
    took = f" ({found.half / per_hour:.3g} hours)" if per_hour else ""
    return (
        f"a breach of {share:.2%} is shown after {mean}{found.half:,}{took} in half of all cases, {most} in nine of ten"
    )


def _compared(plan: Plan, figures: Sequence[Simulated], path: Path) -> str:
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
