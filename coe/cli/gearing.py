"""The verb gears: plans by load for a service to follow, on the machines of one plan or joined from several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import Out, today, wrote
from coe.errors import InvalidInput, Problem
from coe.types import Cascade, Gears, Plan


def gears(
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="One plan.yaml, or several to join.")],
    cascade: Annotated[
        list[Path] | None,
        typer.Option("--cascade", help="A calibrated cascade of the plan's members, for higher loads; repeatable."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="With --cascade: what it does on the certification split.")
    ] = None,
    uncertified: Annotated[bool, typer.Option("--uncertified", help="Accept cascades without certificate.")] = False,
    look_back: Annotated[
        float, typer.Option("--look-back", min=0.1, help="Seconds that the load is averaged over.")
    ] = Gears.model_fields["look_back_s"].default,
    dwell: Annotated[
        float, typer.Option("--dwell", min=0.0, help="Seconds after a change before the service goes back down.")
    ] = Gears.model_fields["dwell_s"].default,
    out: Out = Path("gears.yaml"),
) -> None:
    """Make gears: cascades by load, which a service changes between while it serves.

    With --cascade on the machines of one plan, nothing more rented: each cascade up to the load that they carry with it. Without,
    of several plans, each up to the load that it was planned for; they are deployed together (coe build says what that rents).

    \b
    Example:
      coe gears plan.yaml --cascade fast.calibrated.yaml --predictions predictions.npz -o gears.yaml
      coe gears quiet.yaml busy.yaml -o gears.yaml
      coe build gears.yaml -o serve.yaml
    """
    from coe.placement import gears as tables
    from coe.placement.standing import joined

    read = [files.read(path, Plan) for path in plans]
    found = (
        _on_one(read, plans, cascade, predictions, uncertified) if cascade else joined(read, [str(p) for p in plans])
    )
    found = found.model_copy(update={"look_back_s": look_back, "dwell_s": dwell})
    files.write(out, found, f"Made by coe gears on {today()}")
    print(tables.table(found), end="")
    wrote(out, f"{len(found.gears)} gears: {', '.join(found.names)}")


def _on_one(
    plans: list[Plan], paths: list[Path], cascades: list[Path], predictions: Path | None, uncertified: bool
) -> Gears:
    """Gears on the machines of the one plan."""
    from coe.cascade.certify import verify_certificate
    from coe.placement.optimize import SPLIT
    from coe.placement.standing import gears_on

    if len(plans) > 1:
        raise InvalidInput(
            Problem("--cascade", "goes with one plan", ", ".join(map(str, paths)), "join plans without it")
        )
    if predictions is None:
        rule = "is needed to say what the cascades do"
        raise InvalidInput(Problem("--predictions", rule, remedy="give those that they were calibrated on"))
    table = files.read_predictions(predictions)
    more = [files.read(path, Cascade) for path in cascades]
    if not uncertified:
        for one in (plans[0].cascade, *more):
            verify_certificate(one, table)
    return gears_on(plans[0], more, table.split(SPLIT))


def plan_or_gears(path: Path) -> tuple[Plan, Gears | None]:
    """What the file holds: a plan, or the deployment of its gears and each of them as it is served there."""
    from coe.placement.together import together

    found = files.read_any(path)
    if not isinstance(found, Gears):
        return files.read(path, Plan), None
    deployment = together(found, str(path))
    return deployment.plan, deployment.gears
