"""Verbs that need no cluster: predict, plan, explain."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import Out, progress, today, wrote
from coe.errors import Problem
from coe.table import PredictionTable
from coe.types import Cascade, Plan, Pool, Profiles, Workload

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


def plan(
    cascades: Annotated[list[Path], typer.Argument(metavar="CASCADE...", help="Calibrated cascades to choose from.")],
    pool: PoolFile,
    predictions: Predictions,
    profiles: ProfilesFile,
    prices: PricesFile,
    workload: WorkloadFile,
    uncertified: Annotated[bool, typer.Option("--uncertified", help="Accept cascades without certificate.")] = False,
    max_price_age: Annotated[int | None, typer.Option("--max-price-age", help="Refuse prices older than DAYS.")] = None,
    out: Out = Path("plan.yaml"),
) -> None:
    """Find the cheapest placement that carries the load and keeps the promises.

    \b
    Example:
      coe plan cascade.calibrated.yaml --pool pool.yaml --predictions predictions.npz \\
          --profiles profiles.yaml --prices fleet.yaml --workload workload.yaml -o plan.yaml
    """
    from coe.placement import optimize
    from coe.prices.catalog import check_age, provenance

    models = files.read(pool, Pool)
    table = files.read_predictions(predictions)
    offers = files.read_prices(prices)
    if max_price_age is not None:
        check_age(offers, today(), max_price_age)
    folder = pool.resolve().parent
    check_sources(models, table, folder, str(predictions))
    with progress("plan") as advance:
        found = optimize.plan(
            models,
            [files.read(path, Cascade) for path in cascades],
            table,
            files.read(profiles, Profiles),
            offers,
            files.read(workload, Workload),
            inputs=_fingerprints([*cascades, pool, predictions, profiles, prices, workload]),
            uncertified=uncertified,
            python_path=str(folder),
            progress=advance,
        )
    comment = f"Found by coe plan on {today()}. Prices: {provenance(found.offers)}"
    files.write(out, found, comment)
    nodes = sum(n.count for n in found.nodes)
    wrote(out, f"${found.cost.usd_per_hour_allocation:.3f} per hour, {nodes} nodes; prices: {provenance(found.offers)}")


def explain(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.yaml")],
    profiles: Annotated[Path | None, typer.Option("--profiles", help="Say which profiles were measured.")] = None,
) -> None:
    """Print the bill of a plan line by line, its promises, and why it was chosen.

    \b
    Example:
      coe explain plan.yaml
    """
    from coe.placement import explain as explaining

    known = None if profiles is None else files.read(profiles, Profiles)
    print(explaining.explain(files.read(plan_file, Plan), known), end="")


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


def _fingerprints(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of every file under its name, or under its path where two files have the same name."""
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
