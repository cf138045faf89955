"""Recording predictions, and what verbs that read them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import Out, progress, wrote
from coe.errors import Problem
from coe.table import PredictionTable
from coe.types import Pool

PoolFile = Annotated[Path, typer.Option("--pool", help="pool.yaml")]
Predictions = Annotated[Path, typer.Option("--predictions", help="predictions.npz from `coe predict`")]
ProfilesFile = Annotated[Path, typer.Option("--profiles", help="profiles.yaml from `coe profile`")]
PricesFile = Annotated[Path, typer.Option("--prices", help="A price list, or a fleet file.")]
WorkloadFile = Annotated[Path, typer.Option("--workload", help="workload.yaml: load and promises")]


def predict(
    pool_file: Annotated[Path, typer.Argument(metavar="POOL", help="pool.yaml")],
    data: Annotated[Path, typer.Option("--data", help="NPZ with the arrays x, y, items and splits")],
    out: Out = Path("predictions.npz"),
) -> None:
    """Record what every member of a pool says about every item of a data file.

    \b
    Example:
      coe predict pool.yaml --data data.npz -o predictions.npz
    """
    from coe.profiler import predict as predicting

    pool = files.read(pool_file, Pool)
    items = predicting.load_data(data)
    with progress("predict") as advance:
        table = predicting.predict(pool, pool_file.resolve().parent, items, advance)
    files.write_predictions(out, table)
    wrote(out, f"{len(table.members)} members on {len(table)} items")


def check_sources(pool: Pool, table: PredictionTable, folder: Path, where: str) -> None:
    """Raise `Stale` where a member's code or weights changed after its predictions were made."""
    from coe.errors import Stale
    from coe.runners.base import fingerprint

    changed = [
        m.name for m in pool.members if m.name in table.sources and table.sources[m.name] != fingerprint(m, folder)
    ]
    if changed:
        rule = f"the code or weights of {', '.join(changed)} changed after these predictions were made"
        raise Stale(Problem(where, rule, remedy="run `coe predict` again, then calibrate and plan"))
