"""The verb bench: a labelled split sent to a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import Out, progress, wrote
from coe.errors import InvalidInput, Problem
from coe.types import Workload


def bench(
    url: Annotated[str, typer.Argument(help="Where the service listens, e.g. http://127.0.0.1:8000")],
    data: Annotated[Path, typer.Option("--data", help="Labelled items to send.")],
    split: Annotated[str, typer.Option("--split", help="Which of them.")] = "test",
    workload: Annotated[Path | None, typer.Option("--workload", help="Takes the rate from it.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Queries per second.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the arrival times.")] = 0,
    token: Annotated[
        str | None, typer.Option("--token", envvar="COE_TOKEN", help="For a service that asks for one.")
    ] = None,
    out: Out = Path("bench.json"),
) -> None:
    """Send a labelled split to a running service at a fixed mean rate and keep every answer.

    \b
    Example:
      coe bench http://127.0.0.1:8000 --data data.npz --split test --workload workload.yaml -o bench.json
    """
    from coe.bench import data_name, run_bench
    from coe.profiler.predict import load_data

    if rate is None:
        if workload is None:
            raise InvalidInput(Problem("", "give --rate or --workload"))
        rate = files.read(workload, Workload).rate_per_s
    items = load_data(data).split(split)
    with progress("bench") as advance:
        result = run_bench(url, items, data_name(data, split), rate, seed, advance, token)
    files.write(out, result)
    failed = sum(a.http_status != 200 for a in result.answers)
    right = sum(a.answer == a.label for a in result.answers)
    wrote(out, f"{len(result.answers)} queries, {failed} failed, {right / len(result.answers):.2%} right")
