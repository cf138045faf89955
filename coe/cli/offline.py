"""Verbs that need no cluster: predict, search, calibrate, plan, explain."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import Out, place, progress, today, wrote
from coe.errors import CannotCertify, InvalidInput, Problem
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


def search(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="predictions.npz from `coe predict`")],
    profiles: ProfilesFile,
    prices: PricesFile,
    workload: WorkloadFile,
    out: Out = Path("front.json"),
    cascade: Annotated[
        Path | None, typer.Option("--cascade", help="Also write the chosen cascade there.", callback=place)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the front there (SVG).", callback=place)
    ] = None,
    batch: Annotated[
        float | None,
        typer.Option("--batch", min=1, help="Batch size to price calls at; by default what the load fills."),
    ] = None,
) -> None:
    """Find the cheapest cascade that should keep the accuracy promise, and the whole accuracy/cost front.

    \b
    Example:
      coe search predictions.npz --profiles profiles.yaml --prices fleet.yaml \\
          --workload workload.yaml -o front.json --cascade cascade.yaml --plot front.svg
    """
    from coe.cascade import search as searching
    from coe.cost.model import unit_costs
    from coe.prices.catalog import provenance

    table = files.read_predictions(predictions)
    offers = files.read_prices(prices)
    work = files.read(workload, Workload)
    # calls are priced at the batch that opens when one query waits for company
    filled = batch if batch is not None else max(1.0, 1 + work.rate_per_s * work.batch_wait_s)
    costs = unit_costs(table.members, files.read(profiles, Profiles), offers, batch=filled)
    with progress("search") as advance:
        front = searching.search(
            table,
            costs,
            work.reference,
            work.max_accuracy_loss,
            work.delta,
            provenance(offers.offers),
            progress=advance,
        )
    files.write(out, front)
    wrote(out, f"{front.evaluated} configurations, {len(front.points)} on the front")
    if plot is not None:
        from coe.report.plots import front_plot

        files.write_text(plot, front_plot(front))
        wrote(plot, "the front as a picture")
    print(front.verdict)
    if cascade is not None:
        if front.chosen is None:
            raise CannotCertify(f"{predictions}: {front.verdict} Allow a larger loss, or label more items.")
        files.write(cascade, front.chosen.cascade, f"Chosen by coe search on {today()}. {front.verdict}")
        wrote(cascade, front.chosen.cascade.name)


def calibrate(
    cascade: Annotated[Path, typer.Argument(metavar="CASCADE", help="cascade.yaml: members and rules")],
    predictions: Predictions,
    workload: Annotated[
        Path | None, typer.Option("--workload", help="Takes reference, loss and delta from it.")
    ] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Member to compare with.")] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Largest loss of accuracy, between 0 and 1.")
    ] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="1 - confidence, between 0 and 1.")] = None,
    out: Out = Path("cascade.calibrated.yaml"),
) -> None:
    """Choose thresholds on one split and certify the accuracy on another.

    \b
    Example:
      coe calibrate cascade.yaml --predictions predictions.npz --workload workload.yaml
      coe calibrate cascade.yaml --predictions predictions.npz --reference large --epsilon 0.01 --delta 0.05
    """
    from coe.cascade import calibrate as calibrating

    work = None if workload is None else files.read(workload, Workload)
    if work is not None:
        reference = reference or work.reference
        epsilon = work.max_accuracy_loss if epsilon is None else epsilon
        delta = work.delta if delta is None else delta
    if reference is None or epsilon is None:
        raise InvalidInput(Problem("", "give --workload, or --reference and --epsilon"))
    delta = 0.05 if delta is None else delta
    for option, value in (("--epsilon", epsilon), ("--delta", delta)):
        if not 0 < value < 1:
            raise InvalidInput(Problem(option, "must lie between 0 and 1, ends excluded", f"{value:g}"))
    shape = files.read(cascade, Cascade)
    table = files.read_predictions(predictions)
    certified = calibrating.calibrate(shape, table, reference, epsilon, delta)
    files.write(out, certified, f"Certified by coe calibrate on {today()}.")
    certificate = certified.certificate
    assert certificate is not None
    wrote(
        out,
        f"certified at most {certificate.epsilon:.2%} below {reference} with {1 - certificate.delta:.0%} confidence "
        f"({certificate.losses} losses in {certificate.items} items)",
    )


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
