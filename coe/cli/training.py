"""The verb that trains gates for a cascade's tiers on recorded predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coe import files
from coe.cli.console import progress, say, today, wrote
from coe.errors import InvalidInput, Problem, Unavailable
from coe.table import PredictionTable
from coe.types import Cascade, Profiles

if TYPE_CHECKING:
    from coe.learned.stages import Loss, StagedGates, Stages, TradeOff
    from coe.learned.stopping import Progress

Method = Literal["idk-cost-aware", "idk-cross-entropy", "policy-exact", "policy-reinforce"]
Split = Literal["train", "calibration"]
LossName = Literal["zero-one", "log"]
_LOSSES: dict[LossName, Loss] = {"zero-one": "zero_one", "log": "log"}


def train_gate(
    cascade: Annotated[Path, typer.Argument(metavar="CASCADE", help="cascade.yaml: the tiers' members")],
    predictions: Annotated[Path, typer.Option("--predictions", help="predictions.npz from `coe predict`")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; made where it does not exist.")],
    method: Annotated[
        Method, typer.Option("--method", help="Gates of IDK cascades, or a stop policy.")
    ] = "idk-cost-aware",
    trade: Annotated[
        float,
        typer.Option("--trade", min=0, help="What a visit to the last tier is worth, in wrong answers (or log loss)."),
    ] = 0.1,
    costs: Annotated[
        str | None, typer.Option("--costs", help="Cost of a call by member, any unit: small=1,large=12.5")
    ] = None,
    profiles: Annotated[Path | None, typer.Option("--profiles", help="With --prices: costs in dollars.")] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="A price list, or a fleet file.")] = None,
    split: Annotated[
        Split | None, typer.Option("--split", help="Items to train on; train, where there are such items.")
    ] = None,
    loss: Annotated[
        LossName | None, typer.Option("--loss", help="By default zero-one for IDK gates and log for stop policies.")
    ] = None,
    features: Annotated[
        str | None, typer.Option("--features", help="What gates look at, like max_prob,entropy; see docs/learned.md.")
    ] = None,
    hidden: Annotated[int, typer.Option("--hidden", min=0, help="Width of the hidden layer; 0 for none.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the optimiser.")] = 400,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same gates.")] = 0,
) -> None:
    """Train a gate for every tier but the last, and write them with a cascade that uses them.

    \b
    Example:
      coe train-gate cascade.yaml --predictions predictions.npz --method idk-cost-aware \\
          --trade 0.1 --costs small=1,large=12.5 -o gated
      coe calibrate gated/cascade.yaml --predictions predictions.npz --workload workload.yaml
    """
    shape = files.read(cascade, Cascade)
    target = _target(out, cascade)
    table = files.read_predictions(predictions)
    part = _training_part(table, split, predictions)
    unit_costs = _unit_costs(shape, costs, profiles, prices, method)

    from coe.learned.stages import cascade_of, deployed, stages_of

    stages = stages_of(shape, part, unit_costs)
    with progress(f"train {method}") as advance:
        trained = _train(stages, method, trade, loss, features, (hidden, steps, seed), advance)
    out.mkdir(exist_ok=True)
    gated = cascade_of(trained, shape, part, out)
    say(f"on the {len(part)} training items: {_in_words(deployed(trained, stages))}")
    other = (table.splits == "calibration") & (part.splits[0] != "calibration")
    if other.any():
        held_out = stages_of(shape, table.rows(other), unit_costs)
        say(f"on {len(held_out)} calibration items: {_in_words(deployed(trained, held_out))}")
        alone = ", ".join(f"{a:.2%}" for a in held_out.accuracy)
        say(f"tiers alone on these: {alone}")
    files.write(target, gated, f"Gates trained by coe train-gate on {today()}: {trained.method}, trade {trade:g}.")
    wrote(target, f"{len(trained.gates)} gates beside it, trained on {trained.items} items; calibrate it next")


def refuse_seen(cascade: Cascade, table: PredictionTable, where: str) -> None:
    """Refuse to certify on items that a gate was trained on, and warn of choosing thresholds on them."""
    if not any(tier.rule.startswith("gate:") for tier in cascade.tiers):
        return
    from coe.learned.gate_rule import seen_in

    known = {split: seen_in(cascade, table.rows(table.splits == split)) for split in sorted(set(table.splits.tolist()))}
    if known.get("certification"):
        rule = "gates must not be certified on items that they were trained on"
        found = f"{known['certification']} such items in the certification split"
        raise InvalidInput(Problem(where, rule, found, "train on the split 'train', or certify on other items"))
    if known.get("calibration"):
        say(
            f"warning: {where}: the gates were trained on {known['calibration']} items of the calibration split, where they "
            "look better than they are; the certificate will hold, but thresholds may be stricter or looser than they need be"
        )


def _target(out: Path, cascade: Path) -> Path:
    """The cascade file to write; not the one that was read."""
    target = out / "cascade.yaml"
    if out.exists() and not out.is_dir():
        raise InvalidInput(Problem(str(out), "is a file", remedy="name a folder"))
    if target.exists() and target.samefile(cascade):
        raise InvalidInput(Problem(str(target), "would be overwritten by its own gates", remedy="name another folder"))
    files.check_place(target if out.is_dir() else out)
    return target


def _training_part(table: PredictionTable, split: Split | None, where: Path) -> PredictionTable:
    """The items to train on."""
    if split is None and not (table.splits == "train").any():
        remedy = (
            "record predictions of training items, or say --split calibration; thresholds chosen by `coe calibrate` on "
            "the same items will then be somewhat off, which it warns of"
        )
        raise InvalidInput(Problem(str(where), "has no items in the split 'train'", remedy=remedy))
    return table.split(split or "train")


def _unit_costs(
    shape: Cascade, costs: str | None, profiles: Path | None, prices: Path | None, method: Method
) -> dict[str, float]:
    """Member -> cost of a call."""
    if (profiles is None) != (prices is None) or (costs is not None and profiles is not None):
        raise InvalidInput(Problem("--costs", "give either --costs, or --profiles and --prices"))
    if profiles is not None and prices is not None:
        from coe.cost.model import unit_costs

        return unit_costs(shape.members, files.read(profiles, Profiles), files.read_prices(prices))
    if costs is None:
        if method != "idk-cross-entropy":
            rule = f"method {method} weighs accuracy against cost and needs costs"
            raise InvalidInput(Problem("--costs", rule, remedy="give --costs small=1,…, or --profiles and --prices"))
        return dict.fromkeys(shape.members, 1.0)  # calls are counted
    return _parsed_costs(costs, shape)


def _parsed_costs(text: str, shape: Cascade) -> dict[str, float]:
    found: dict[str, float] = {}
    for pair in text.split(","):
        name, _, number = pair.strip().rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise InvalidInput(Problem("--costs", "must look like small=1,large=12.5", pair)) from None
    strangers = sorted(set(found) - set(shape.members))
    if strangers:
        known = ", ".join(shape.members)
        raise InvalidInput(Problem("--costs", f"'{strangers[0]}' is a member of no tier", remedy=f"members: {known}"))
    return found


def _train(
    stages: Stages,
    method: Method,
    trade: float,
    loss: LossName | None,
    features: str | None,
    sizes: tuple[int, int, int],
    advance: Progress,
) -> StagedGates:
    try:
        from coe.learned.methods import train
        from coe.learned.stopping import Settings
    except ImportError as error:
        raise Unavailable(f"training needs torch ({error}): pip install 'coe[torch]'") from error
    hidden, steps, seed = sizes
    return train(
        stages,
        method,
        trade,
        loss=None if loss is None else _LOSSES[loss],
        features=None if features is None else tuple(name.strip() for name in features.split(",")),
        settings=Settings(hidden=hidden, steps=steps, seed=seed),
        progress=advance,
    )


def _in_words(found: TradeOff) -> str:
    reach = ", ".join(f"{share:.1%}" for share in found.reach[1:])
    return f"accuracy {found.accuracy:.2%}, {reach} reach the later tiers, {found.relative_cost:.1%} of the last tier's cost"
