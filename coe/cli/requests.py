"""The verbs that read traces of requests: when they came (`coe import trace`), how long they were (`coe import lengths`)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.arriving import Trace, Unit, read_trace
from coe.cli.console import Out, place, wrote
from coe.errors import InvalidInput, Problem


def lengths(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="CSV of requests, plain or .gz, one per row.")],
    prompt: Annotated[str, typer.Option("--prompt-column", help="Column with the prompt's tokens.")] = "context_tokens",
    completion: Annotated[
        str, typer.Option("--completion-column", help="Column with the completion's tokens.")
    ] = "generated_tokens",
    workload: Annotated[
        Path | None, typer.Option("--workload", help="The workload that gets these lengths; else they are printed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Workload to write [default: the one read].", callback=place)
    ] = None,
) -> None:
    """Count how long the requests of a trace are, for plans with language models.

    \b
    Example:
      coe import lengths trace.csv.gz --workload workload.yaml -o workload-llm.yaml
    """
    import numpy as np
    import yaml

    from coe.cost.lengths import length_classes
    from coe.prices.sources.table import rows
    from coe.types import Workload

    problems: list[Problem] = []
    lines = [
        (line.whole(prompt), line.whole(completion))
        for line in rows(path, (prompt, completion), problems, "a trace with token counts")
    ]
    if problems:
        raise InvalidInput(problems)
    counts = np.array(lines, dtype=np.int64).reshape(-1, 2)
    classes = length_classes(counts[:, 0], counts[:, 1])
    if workload is None:
        print(yaml.safe_dump({"tokens": [c.model_dump() for c in classes]}, sort_keys=False), end="")
        return
    work = files.read(workload, Workload).model_copy(update={"tokens": classes})
    files.write(out or workload, work, f"Lengths of {len(lines)} requests of {path.name}.")
    wrote(out or workload, f"{len(classes)} classes of length, from {len(lines)} requests")


def trace(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="CSV of requests, plain or .gz, one per row.")],
    out: Out = Path("trace.csv"),
    time_column: Annotated[str, typer.Option("--time-column", help="Column with the moment of each request.")] = "t_s",
    time_unit: Annotated[Unit, typer.Option("--time-unit", help="Of that column; iso for dates with times.")] = Unit.s,
    item_column: Annotated[
        str | None, typer.Option("--item-column", help="Column with the item that was asked about, to keep.")
    ] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Bring requests that are out of order into order.")] = False,
    workload: Annotated[
        Path | None, typer.Option("--workload", help="A workload to set to this trace's rate.", exists=True)
    ] = None,
    peak_s: Annotated[
        float, typer.Option("--peak", min=0.001, help="The workload gets the busiest stretch of so many seconds.")
    ] = 60.0,
) -> None:
    """Read the arrival times of a log as a trace for `coe simulate --trace`, and say how bursty it is.

    \b
    Example:
      coe import trace requests.csv.gz --time-column timestamp --time-unit iso -o trace.csv
      coe import trace requests.csv --time-column t_ms --time-unit ms --sort --workload workload.yaml
    """
    import numpy as np

    from coe.simulator.arrivals import replay, summary
    from coe.types import Workload

    raw, names = read_trace(path, Trace(time_column, time_unit, item_column))
    order = np.argsort(raw, kind="stable") if sort else np.arange(len(raw))
    times = replay(raw[order])
    found = summary(times, peak_s)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["t_s"] if names is None else ["t_s", "item"])
        for t, i in zip(times.tolist(), order.tolist(), strict=True):
            writer.writerow([f"{t:.6f}"] if names is None else [f"{t:.6f}", names[i]])
    wrote(out, str(found))
    if workload is not None:
        work = files.read(workload, Workload).model_copy(update={"rate_per_s": found.peak_per_s})
        files.write(workload, work, f"Rate of the busiest {peak_s:g} s of {path.name}.")
        wrote(workload, f"rate_per_s: {found.peak_per_s:g}")
