"""Verbs that choose cascades from recorded predictions: search, calibrate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coe import files
from coe.cli.console import Out, place, progress, say, today, wrote
from coe.cli.training import refuse_seen
from coe.errors import CannotCertify, InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Cascade, Claim, Costs, Pool, Profiles, Workload

if TYPE_CHECKING:
    from coe.cascade.space import Space
    from coe.cost.calls import CallCosts

Predictions = Annotated[Path, typer.Option("--predictions", help="predictions.npz from `coe predict` or `coe import`")]
Reference = Annotated[str | None, typer.Option("--reference", help="Member to compare with.")]
Epsilon = Annotated[float | None, typer.Option("--epsilon", help="Largest loss of accuracy, between 0 and 1.")]
Delta = Annotated[float | None, typer.Option("--delta", help="1 - confidence, between 0 and 1.")]
ClaimOption = Annotated[
    str,
    typer.Option(
        "--claim",
        help="What stays within epsilon: excess (accuracy lost on balance), loss (wrong where the reference is right), "
        "or disagreement (another answer than the reference's; needs no labels).",
    ),
]


def search(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="predictions.npz")],
    profiles: Annotated[Path | None, typer.Option("--profiles", help="profiles.yaml from `coe profile`")] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="A price list, or a fleet file.")] = None,
    workload: Annotated[Path | None, typer.Option("--workload", help="workload.yaml: load and promises")] = None,
    costs: Annotated[
        Path | None,
        typer.Option("--costs", help="costs.yaml, instead of profiles and prices: cost of a call, any unit."),
    ] = None,
    pool: Annotated[
        Path | None, typer.Option("--pool", help="pool.yaml: which models hosted members are; only needed for these.")
    ] = None,
    reference: Reference = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    claim: ClaimOption = "excess",
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
    tiers: Annotated[int, typer.Option("--tiers", min=2, max=3, help="At most so many tiers.")] = 2,
    first: Annotated[int, typer.Option("--first", min=1, max=5, help="Members of the first tier, at most.")] = 3,
    last: Annotated[int, typer.Option("--last", min=1, max=3, help="Members of the last tier, at most.")] = 2,
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="Rules of gated tiers, comma-separated, or all; by default vote,score."),
    ] = None,
    carry: Annotated[
        bool, typer.Option("--carry/--no-carry", help="Let last tiers count the votes of the tier before.")
    ] = True,
    dispatch: Annotated[
        str,
        typer.Option("--dispatch", help="parallel (fast), staged (fewer calls, longer waits), or both."),
    ] = "parallel",
    temperatures: Annotated[
        bool, typer.Option("--temperatures", help="Fit a temperature per member on the calibration split first.")
    ] = False,
    learned: Annotated[
        Path | None,
        typer.Option("--learned", help="Also try a learned gate per tier, and keep the gates in this folder."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Search what a published method tries: idk-probability, idk-entropy, model-cascades, agreement, coe.",
        ),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="Leave out cascades dearer than this per query.")
    ] = None,
    max_price_age: Annotated[int | None, typer.Option("--max-price-age", help="Refuse prices older than DAYS.")] = None,
) -> None:
    """Find the cheapest cascade that should keep the accuracy promise, and the whole accuracy/cost front.

    \b
    Example:
      coe search predictions.npz --profiles profiles.yaml --prices fleet.yaml \\
          --workload workload.yaml -o front.json --cascade cascade.yaml --plot front.svg
      coe search predictions.npz --costs costs.yaml --reference large --epsilon 0.005 --tiers 3 --temperatures \\
          --learned gates
      coe search predictions.npz --costs costs.yaml --reference large --epsilon 0.01 --method idk-entropy
      coe search predictions.npz --pool pool.yaml --profiles profiles.yaml --prices prices.yaml --workload workload.yaml
    """
    from coe.cascade import search as searching
    from coe.cascade.temperature import fitted_temperatures

    work = None if workload is None else files.read(workload, Workload)
    promise = _promise(work, reference, epsilon, delta)
    table = files.read_predictions(predictions)
    prepared = _costs(table, costs, profiles, prices, pool, work, batch, max_price_age)
    space = (
        _space(tiers, first, last, rules, carry, dispatch, max_cost) if method is None else _preset(method, max_cost)
    )
    fitted = fitted_temperatures(table.split(searching.SPLIT)) if temperatures else None
    gated = () if learned is None else _learned(table, prepared, promise[0], learned, fitted)
    with progress("search") as advance:
        front = searching.search(
            table,
            prepared,
            *promise,
            space,
            temperatures=fitted,
            extra=gated,
            claim=_claim(claim),
            threads=os.cpu_count() or 1,
            progress=advance,
        )
    files.write(out, front)
    wrote(out, f"{front.evaluated} configurations, {len(front.points)} on the front")
    if plot is not None:
        from coe.report.front_plot import front_plot

        files.write_text(plot, front_plot(front))
        wrote(plot, "the front as a picture")
    print(front.verdict)
    if cascade is not None:
        if front.chosen is None:
            raise CannotCertify(f"{predictions}: {front.verdict} Allow a larger loss, or label more items.")
        files.write(cascade, front.chosen.cascade, f"Chosen by coe search on {today()}. {front.verdict}")
        wrote(cascade, front.chosen.cascade.name)


def calibrate(
    cascade: Annotated[
        Path,
        typer.Argument(metavar="CASCADE", help="cascade.yaml: members and rules; or front.json: walk down the front"),
    ],
    predictions: Predictions,
    workload: Annotated[
        Path | None, typer.Option("--workload", help="Takes reference, loss and delta from it.")
    ] = None,
    reference: Reference = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    claim: ClaimOption = "excess",
    out: Out = Path("cascade.calibrated.yaml"),
) -> None:
    """Choose thresholds on one split and certify the accuracy on another.

    \b
    Example:
      coe calibrate cascade.yaml --predictions predictions.npz --workload workload.yaml
      coe calibrate cascade.yaml --predictions predictions.npz --reference large --epsilon 0.01 --delta 0.05
      coe calibrate front.json --predictions predictions.npz --reference large --epsilon 0.005
      coe calibrate cascade.yaml --predictions predictions.npz --workload workload.yaml --claim disagreement
    """
    from coe.cascade import calibrate as calibrating
    from coe.types import Front

    work = None if workload is None else files.read(workload, Workload)
    promise = _promise(work, reference, epsilon, delta)
    shape = files.read_any(cascade)
    if not isinstance(shape, Cascade | Front):
        raise InvalidInput(Problem(str(cascade), "must be a cascade or a front"))
    table = files.read_predictions(predictions)
    if isinstance(shape, Cascade):
        refuse_seen(shape, table, str(predictions))
    certify = calibrating.calibrate if isinstance(shape, Cascade) else calibrating.calibrate_front
    certified = certify(shape, table, *promise, _claim(claim))  # type: ignore[arg-type]  # each with its own noun
    files.write(out, certified, f"Certified by coe calibrate on {today()}.")
    certificate = certified.certificate
    assert certificate is not None
    gains = f", {certificate.gains} gains" if certificate.claim == "excess" else ""
    what = {
        "excess": f"at most {certificate.epsilon:.2%} below {certificate.reference}",
        "loss": f"at most {certificate.epsilon:.2%} below {certificate.reference}",
        "disagreement": f"another answer than {certificate.reference} on at most {certificate.epsilon:.2%}",
    }[certificate.claim]
    wrote(
        out,
        f"certified {what} with {1 - certificate.delta:.0%} confidence "
        f"({certificate.losses} losses{gains} in {certificate.items} items)",
    )


def _promise(
    work: Workload | None, reference: str | None, epsilon: float | None, delta: float | None
) -> tuple[str, float, float]:
    """Reference, epsilon and delta, from options first and the workload second."""
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
    return reference, epsilon, delta


def _costs(
    table: PredictionTable,
    costs: Path | None,
    profiles: Path | None,
    prices: Path | None,
    pool: Path | None,
    work: Workload | None,
    batch: float | None,
    max_price_age: int | None,
) -> CallCosts:
    """What calls cost: from a costs file, or from profiles and prices at the batch that the load fills."""
    from coe.cost.calls import call_costs
    from coe.placement.call_prices import call_prices
    from coe.prices.catalog import check_age, provenance

    if costs is not None:
        if profiles is not None or prices is not None:
            raise InvalidInput(Problem("--costs", "stands in for --profiles and --prices: give one or the other"))
        return call_costs(files.read(costs, Costs), table)
    if profiles is None or prices is None or (work is None and batch is None):
        raise InvalidInput(Problem("", "give --profiles, --prices and --workload, or --costs"))
    offers = files.read_prices(prices)
    # calls are priced at the batch that opens when one query waits for company
    if batch is None:
        assert work is not None
        batch = max(1.0, 1 + work.rate_per_s * work.batch_wait_s)
    if max_price_age is not None:
        check_age(offers, today(), max_price_age)
    say(f"prices: {provenance((*offers.offers, *offers.apis), today())}")
    models = None if pool is None else files.read(pool, Pool)
    return call_prices(table, models, files.read(profiles, Profiles), offers, work, batch, str(prices))


def _space(
    tiers: int, first: int, last: int, rules: str | None, carry: bool, dispatch: str, max_cost: float | None
) -> Space:
    """What to search."""
    from coe.cascade.rules import RULES
    from coe.cascade.space import Space

    ways = {"parallel": ("parallel",), "staged": ("staged", "parallel"), "both": ("parallel", "staged")}
    if dispatch not in ways:
        raise InvalidInput(Problem("--dispatch", f"must be one of {', '.join(ways)}", dispatch))
    named = None if rules is None else tuple(RULES) if rules == "all" else tuple(r.strip() for r in rules.split(","))
    return Space(
        first_members=first,
        last_members=last,
        rules=named,
        carry=(False, True) if carry else (False,),
        dispatch=ways[dispatch],  # type: ignore[arg-type]  # literals lost in the dict
        tiers=tiers,
        most_cost=float("inf") if max_cost is None else max_cost,
    )


def _preset(method: str, max_cost: float | None) -> Space:
    """The space of a published method."""
    from dataclasses import replace

    from coe.cascade.presets import preset

    space = preset(method)
    return space if max_cost is None else replace(space, most_cost=max_cost)


def _learned(
    table: PredictionTable, costs: CallCosts, reference: str, folder: Path, temperatures: dict[str, float] | None
) -> tuple[Cascade, ...]:
    """Cascades with learned gates, kept in `folder`."""
    from coe.cascade.search import SPLIT
    from coe.learned.gate_rule import save
    from coe.learned.searching import learned_front

    folder.mkdir(parents=True, exist_ok=True)
    sample = table.split(SPLIT)
    own = costs.rows(table.splits == SPLIT)
    with progress("gates") as advance:
        found = learned_front(
            sample,
            own,
            reference,
            lambda name, gate: save(folder / f"{name}.safetensors", gate),
            temperatures,
            progress=advance,
        )
    wrote(folder, f"gates of {len(found)} cascades")
    return found


def _claim(text: str) -> Claim:
    """The claim by name."""
    for claim in ("excess", "loss", "disagreement"):
        if text == claim:
            return claim
    raise InvalidInput(Problem("--claim", "must be excess, loss or disagreement", text))
