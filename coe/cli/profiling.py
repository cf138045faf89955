"""The verb profile: how long members take, on the nodes of a cluster and at hosted models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.cluster import check_reachable
from coe.cli.console import Out, progress, today, wrote
from coe.cli.hosted import DEFAULT_REQUESTS, MaxUsd, Requests, Spending, Yes, time_hosted
from coe.cli.offline import PricesFile
from coe.errors import InvalidInput, Problem
from coe.types import Pool, Profile, Profiles


def profile(
    pool_file: Annotated[Path, typer.Argument(metavar="POOL", help="pool.yaml")],
    prices: PricesFile,
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster; by default RAY_ADDRESS.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Draw batches from these items.")] = None,
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="Comma-separated.")] = "1,2,4,8,16,32",
    min_runs: Annotated[int, typer.Option("--min-runs", min=3, help="Runs per batch size, time permitting.")] = 100,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.01, help="Per member, node type and batch.")
    ] = 2.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run ended; unchanged members only.")
    ] = False,
    requests: Requests = DEFAULT_REQUESTS,
    yes: Yes = False,
    max_usd: MaxUsd = None,
    out: Out = Path("profiles.yaml"),
) -> None:
    """Time every member on every node type of a Ray cluster, and hosted models from here.

    Every finished profile is kept beside the output (OUT.partial.yaml) until all are there.

    Hosted models are those that the price list sells (apis). Each gets --requests real requests, once, from this machine; what
    they will about cost is said first, and without --yes or --max-usd nothing is sent. Where all members are hosted, no
    cluster is needed.

    \b
    Example:
      coe cluster up fleet.yaml
      coe profile pool.yaml --prices fleet.yaml -o profiles.yaml
      coe profile pool.yaml --prices fleet.yaml -o profiles.yaml --resume
      coe profile pool.yaml --prices prices.yaml --data data.npz --requests 200 --max-usd 0.50 -o profiles.yaml
    """
    from coe.profiler.predict import load_data
    from coe.profiler.quote import refuse_unlisted

    pool, offered = files.read(pool_file, Pool), files.read_prices(prices)
    refuse_unlisted(pool, offered, str(prices))
    items = None if data is None else load_data(data).x
    sizes = _sizes(batch_sizes)
    partial = out.with_suffix(".partial.yaml")
    done: list[Profile] = list(files.read(partial, Profiles).profiles) if resume and partial.exists() else []
    known = tuple(done)

    def keep(profile: Profile) -> None:
        done[:] = [p for p in done if (p.member, p.accelerator) != (profile.member, profile.accelerator)]
        done.append(profile)
        files.write(partial, Profiles(profiles=tuple(done)), "Not finished; go on with coe profile --resume.")

    folder = pool_file.resolve().parent
    hosted = time_hosted(pool, folder, offered, items, known, keep, Spending(requests, yes, max_usd))
    timed = list(hosted)
    if len(hosted) < len(pool.members):
        from coe.serving.profile import profile_members

        with progress("profile") as advance:
            on_nodes = profile_members(
                pool,
                folder,
                offered,
                _address(address),
                batch_sizes=sizes,
                min_runs=min_runs,
                max_s=max_seconds,
                today=today(),
                sample=items,
                progress=advance,
                known=known,
                keep=keep,
            )
        timed += on_nodes.profiles
    profiles = Profiles(profiles=tuple(timed))
    partial.unlink(missing_ok=True)
    files.write(out, profiles, f"Measured by coe profile on {today()}.")
    accelerators = sorted({p.accelerator for p in profiles.profiles})
    wrote(out, f"{len(pool.members)} members on {', '.join(accelerators)}")


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise InvalidInput(Problem("--batch-sizes", "must be whole numbers from 1 up, separated by commas", text))
    return sizes


def _address(given: str | None) -> str:
    """The cluster's address: the option, RAY_ADDRESS, or the local fleet that is up."""
    address = given or os.environ.get("RAY_ADDRESS")
    if address is None:
        from coe.serving.cluster import current

        state = current()
        address = None if state is None else state.address
    if address is None:
        remedy = "set RAY_ADDRESS, or start a local fleet with `coe cluster up FLEET`"
        raise InvalidInput(Problem("--address", "no Ray cluster is known", remedy=remedy))
    check_reachable(address)
    return address
