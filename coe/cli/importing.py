"""The verbs that bring in what others measured and published: `coe import ...`, and `coe prices` to look at a price list."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe import files
from coe.cli.console import Out, place, say, settings, today, with_common_flags, wrote
from coe.cli.requests import lengths, trace
from coe.errors import InvalidInput, Problem
from coe.types import ApiPrice, Offer, Profile

app = typer.Typer(
    name="import",
    help="Read what others recorded or published: predictions, prices, profiles, traces.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Day = Annotated[
    str | None, typer.Option("--date", help="YYYY-MM-DD the figures were published, if the file does not say.")
]
Source = Annotated[str | None, typer.Option("--source", help="Where the figures were published, e.g. an address.")]
Skip = Annotated[bool, typer.Option("--skip-unusable", help="Leave out rows that cannot be used, and say how many.")]
Many = list[str] | None


def prices(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="skypilot, gpuhunt, cloud-vm, fullstack, "
            "fullstack-serverless, litellm, llm-csv, owned, yaml, or package.module:reader",
        ),
    ],
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of that kind, plain or .gz.")],
    out: Out = Path("prices.yaml"),
    day: Day = None,
    source: Source = None,
    provider: Annotated[Many, typer.Option("--provider", help="Whose prices these are, or which to keep.")] = None,
    region: Annotated[Many, typer.Option("--region", help="Keep this region; us-* keeps several.")] = None,
    accelerator: Annotated[
        Many, typer.Option("--accelerator", help="Keep this accelerator, e.g. A100-80GB; CPU: none.")
    ] = None,
    market: Annotated[
        Many, typer.Option("--market", help="Keep on_demand, spot, reserved, owned or serverless.")
    ] = None,
    instance: Annotated[
        Many, typer.Option("--instance", help="Keep this instance type or hosted model; g5.* keeps several.")
    ] = None,
    quota: Annotated[int | None, typer.Option("--quota", min=0, help="At most so many nodes of each.")] = None,
    skip_unusable: Skip = False,
) -> None:
    """Read a published price list into a price list of ours.

    \b
    Example:
      coe import prices skypilot vms.csv --provider aws --date 2026-11-20 --region us-east-1 \\
          --accelerator T4 --accelerator L4 --accelerator CPU -o prices.yaml
      coe import prices litellm model_prices_and_context_window.json --date 2026-11-20 --instance 'gpt-4o*'
    """
    from coe.prices.sources import import_prices
    from coe.prices.sources.asked import Asked

    asked = Asked(
        day=day,
        source=source,
        providers=tuple(provider or ()),
        regions=tuple(region or ()),
        accelerators=_our_names("--accelerator", accelerator),
        markets=tuple(market or ()),
        instances=tuple(instance or ()),
        quota=quota,
        skip_unusable=skip_unusable,
    )
    found, notes = import_prices(kind, paths, asked)
    _tell(notes)
    files.write(out, found, f"Imported by coe import prices {kind} on {today()}. {_ages([*found.offers, *found.apis])}")
    wrote(out, f"{len(found.offers)} offers, {len(found.apis)} hosted models; {_ages([*found.offers, *found.apis])}")


Sort = Literal["name", "price", "accelerator", "per-accelerator", "age"]


def show_prices(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A price list, or a fleet file.")],
    accelerator: Annotated[
        Many, typer.Option("--accelerator", help="Only this accelerator; CPU: machines without.")
    ] = None,
    region: Annotated[Many, typer.Option("--region", help="Only this region; us-* for several.")] = None,
    market: Annotated[Many, typer.Option("--market", help="Only this market.")] = None,
    provider: Annotated[Many, typer.Option("--provider", help="Only this provider.")] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="What to sort by.")] = "name",
    max_price_age: Annotated[int | None, typer.Option("--max-price-age", help="Refuse prices older than DAYS.")] = None,
) -> None:
    """List what a price list offers: price, age and source of every figure.

    \b
    Example:
      coe prices cluster_configs/prices-2026-11-20.yaml --accelerator L4 --sort price
    """
    from coe.prices.catalog import check_age
    from coe.prices.sources.asked import Asked
    from coe.prices.sources.plain import rental

    found = files.read_prices(path)
    if max_price_age is not None:
        check_age(found, today(), max_price_age)
    asked = Asked(
        providers=tuple(provider or ()),
        regions=tuple(region or ()),
        accelerators=tuple("CPU" if a.upper() == "CPU" else a for a in accelerator or ()),
        markets=tuple(market or ()),
    )
    offers = [
        o for o in found.offers if asked.keeps_row(o.provider or "", o.region, o.node_type) and asked.keeps(rental(o))
    ]
    apis = () if accelerator or region or market else found.apis
    apis = tuple(a for a in apis if asked.keeps_row(a.provider, "", a.model))
    if not offers and not apis:
        raise InvalidInput(asked.nothing_left([path]))
    console = Console(no_color=not settings.color, width=None if Console().is_terminal else 160)
    sources = list(dict.fromkeys([o.source for o in offers] + [a.source for a in apis]))
    if offers:
        console.print(_offer_table(sorted(offers, key=SORT[sort]), sources))
    if apis:
        console.print(_api_table(sorted(apis, key=lambda a: (a.provider, a.model)), sources))
    for number, source in enumerate(sources, start=1):
        console.print(f"[{number}] {source}", markup=False, highlight=False, soft_wrap=True)


show_prices.__name__ = "prices"  # what the verb is called


def _offer_table(offers: list[Offer], sources: list[str]) -> Table:
    from coe.prices.catalog import age_days

    table = Table(
        "node type", "accelerator", "GiB", "vCPUs", "$/h", "$/h each", "market", "region", "date", "days old", "from"
    )
    for offer in offers:
        devices = f"{offer.accelerators_per_node} x {offer.accelerator}" if offer.accelerators_per_node else "none"
        table.add_row(
            offer.node_type,
            devices,
            f"{offer.device_memory_gib:g}",
            f"{offer.vcpus:g}",
            f"{offer.usd_per_hour:.4f}",
            f"{offer.usd_per_hour / offer.devices_per_node:.4f}",
            offer.market,
            offer.region,
            offer.date,
            str(age_days(offer, today())),
            _number(offer.source, sources),
        )
    return table


def _api_table(apis: list[ApiPrice], sources: list[str]) -> Table:
    from coe.prices.catalog import age_days

    table = Table("hosted model", "provider", "$/M prompt", "$/M completion", "$/call", "date", "days old", "from")
    for api in apis:
        table.add_row(
            api.model,
            api.provider,
            f"{api.usd_per_million_prompt_tokens:g}",
            f"{api.usd_per_million_completion_tokens:g}",
            f"{api.usd_per_call:g}",
            api.date,
            str(age_days(api, today())),
            _number(api.source, sources),
        )
    return table


def _number(source: str, sources: list[str]) -> str:
    """The number under which a source stands below the table."""
    return escape(f"[{sources.index(source) + 1}]")


SORT: dict[Sort, Callable[[Offer], tuple[float | str, ...]]] = {
    "name": lambda o: (o.node_type,),
    "price": lambda o: (o.usd_per_hour, o.node_type),
    "accelerator": lambda o: (o.accelerator, o.usd_per_hour, o.node_type),
    "per-accelerator": lambda o: (o.usd_per_hour / o.devices_per_node, o.node_type),
    "age": lambda o: (o.date, o.node_type),
}


def _ages(priced: Iterable[Offer | ApiPrice]) -> str:
    from coe.prices.catalog import provenance

    return f"prices: {provenance(priced, today())}"


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def profiles(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="timm, mlperf, mlperf-log, batch-latency, perf-analyzer, vllm, yaml, or package.module:reader",
        ),
    ],
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of that kind, plain or .gz.")],
    out: Out = Path("profiles.yaml"),
    day: Day = None,
    source: Source = None,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", help="What it was measured on, where the file does not say.")
    ] = None,
    rename: Annotated[
        Many, typer.Option("--rename", help="LABEL=NAME: what a device label of the file stands for.")
    ] = None,
    only: Annotated[Many, typer.Option("--only", help="Keep this accelerator.")] = None,
    member: Annotated[
        Many, typer.Option("--member", help="Which model it is, or which to keep; resnet* keeps several.")
    ] = None,
    where: Annotated[Many, typer.Option("--where", help="COLUMN=VALUE: keep rows with that value.")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option("--batch-size", min=1, help="Of each file, where it does not say.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Of the system measured, where it does not say.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None, typer.Option("--precision", help="At which it ran, where not said.")
    ] = None,
    p99_factor: Annotated[
        float | None, typer.Option("--p99-factor", min=1, help="p99 / p50, where the file has no p99.")
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option("--memory-gib", min=0, help="What one replica takes, where not said.")
    ] = None,
    pick: Annotated[
        Literal["median", "slowest", "fastest"] | None, typer.Option("--pick", help="Which of several rows counts.")
    ] = None,
    estimate: Annotated[
        Many,
        typer.Option("--estimate", help="Also estimate members on this accelerator, labelled, with an error band."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="CSV: member, flops_per_item, bytes_per_item, weight_bytes.")
    ] = None,
    skip_unusable: Skip = False,
) -> None:
    """Read published measurements into profiles of ours, and estimate the devices that nobody measured.

    \b
    Example:
      coe import profiles timm benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv --accelerator RTX-3090 \\
          --precision fp16 --date 2024-08-21 --p99-factor 1.2 --member 'resnet*' -o profiles.yaml
      coe import profiles perf-analyzer b1.csv b8.csv --batch-size 1 --batch-size 8 --member resnet50 \\
          --accelerator T4 --memory-gib 2 --date 2026-11-01
    """
    from coe.profiler.sources import import_profiles
    from coe.profiler.sources.asked import Asked

    names = tuple(member or ())
    asked = Asked(
        day=day,
        source=source,
        accelerator=accelerator,
        rename=_pairs("--rename", rename),
        member=names[0] if len(names) == 1 and "*" not in names[0] else None,
        members=() if kind in ("perf-analyzer", "mlperf-log", "vllm") and len(names) == 1 else names,
        accelerators=_our_names("--only", only),
        where=_pairs("--where", where),
        batch_sizes=tuple(batch_size or ()),
        devices=devices,
        precision=precision,
        p99_factor=p99_factor,
        memory_gib=memory_gib,
        pick=pick,
        skip_unusable=skip_unusable,
    )
    found, notes = import_profiles(kind, paths, asked, tuple(estimate or ()), work)
    _tell(notes)
    estimated = [p for p in found.profiles if p.origin == "estimated"]
    files.write(out, found, f"Imported by coe import profiles {kind} on {today()}.")
    told = f", {len(estimated)} of them estimated within a factor of {_worst(estimated):.2f}" if estimated else ""
    wrote(out, f"{len(found.profiles)} profiles{told}")


def _our_names(option: str, given: Many) -> tuple[str, ...]:
    """Accelerators as we call them; `InvalidInput` for one that is not known, or that stands for two."""
    from coe.prices.accelerators import accelerator as known

    return tuple("CPU" if name.upper() == "CPU" else known(name, where=option).name for name in given or ())


def _worst(estimated: list[Profile]) -> float:
    return max(p.error_factor or 1.0 for p in estimated)


def _pairs(option: str, given: Many) -> dict[str, str]:
    """``KEY=VALUE`` options as a mapping; `InvalidInput` for one without a sign between."""
    wrong = [Problem(option, "must be KEY=VALUE", f"'{text}'") for text in given or () if "=" not in text]
    if wrong:
        raise InvalidInput(wrong)
    return dict(text.split("=", 1) for text in given or ())


def predictions(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="topk, texts, apis, plain, or package.module:reader; see the recipes.")
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder or a file of that kind.")],
    out: Out = Path("predictions.npz"),
    costs: Annotated[
        Path | None, typer.Option("--costs", help="Also write what calls cost there.", callback=place)
    ] = None,
    cost: Annotated[
        str, typer.Option("--cost", help="What prices a call: a column of models.csv; listed, size-class, ...")
    ] = "",
    task: Annotated[str, typer.Option("--task", help="Which of several data sets in a folder.")] = "",
    member: Annotated[Many, typer.Option("--member", help="Keep this model; repeat for more.")] = None,
    splits: Annotated[
        str, typer.Option("--splits", help="Shares of the splits.")
    ] = "calibration=0.5,certification=0.25,test=0.25",
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of the splits.")] = 0,
    complete: Annotated[
        float | None,
        typer.Option(
            "--complete",
            min=0,
            max=1,
            help="Leave out models that answered less than this share, then items that some model lacks.",
        ),
    ] = None,
    drop_uncosted: Annotated[
        bool, typer.Option("--drop-uncosted", help="Leave out models without a cost, and say which.")
    ] = False,
    extract: Annotated[
        str, typer.Option("--extract", help="Answer within a text: whole, letter, number, boxed, or a dotted path.")
    ] = "whole",
    normalise: Annotated[
        str, typer.Option("--normalise", help="Spelling of an answer: none, number, words, or a dotted path.")
    ] = "none",
) -> None:
    """Read predictions that somebody recorded, and what their calls cost.

    \b
    Example:
      coe import predictions topk imagenet/ --cost img_per_s_rtx4090_amp --drop-uncosted --costs costs.yaml
      coe import predictions texts zeroeval/ --task gsm8k --cost listed-or-size-class --drop-uncosted \\
          --complete 0.95 --costs costs.yaml -o predictions.npz
      coe import predictions plain answers.csv --extract number --normalise number
    """
    from coe.profiler.recorded import Asked, import_predictions

    asked = Asked(
        task=task,
        members=tuple(member or ()),
        cost=cost,
        splits=_shares(splits),
        seed=seed,
        complete=complete,
        uncosted="drop" if drop_uncosted else "refuse",
        extract=extract,
        normalise=normalise,
    )
    found = import_predictions(kind, path, asked)
    _tell(found.notes)
    files.write_predictions(out, found.table)
    wrote(out, f"{len(found.table.members)} members on {len(found.table)} items")
    if costs is not None:
        if found.costs is None:
            raise InvalidInput(Problem("--costs", "nothing says what calls cost", remedy="name it with --cost"))
        files.write(costs, found.costs, f"Imported by coe import predictions {kind} on {today()}.")
        wrote(costs, f"in {found.costs.unit}, from {found.costs.source}")


def _shares(text: str) -> dict[str, float]:
    """``calibration=0.5,test=0.5`` as numbers."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError:
            raise InvalidInput(Problem("--splits", "must look like calibration=0.5,test=0.5", text)) from None
    return shares


app.command("predictions")(with_common_flags(predictions))
app.command("prices")(with_common_flags(prices))
app.command("profiles")(with_common_flags(profiles))
app.command("lengths")(with_common_flags(lengths))
app.command("trace")(with_common_flags(trace))
