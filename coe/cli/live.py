"""Verbs around a cluster or a running service: profile, build, bench, report."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coe import files
from coe.cli.auditing import audits_of, unaudited
from coe.cli.cluster import check_reachable
from coe.cli.console import Out, place, progress, say, today, wrote
from coe.cli.hosted import DEFAULT_REQUESTS, MaxUsd, Requests, Spending, Yes, time_hosted
from coe.cli.offline import PricesFile, check_sources
from coe.errors import GateExceeded, InvalidInput, Problem
from coe.records import Bench
from coe.table import PredictionTable
from coe.types import Access, BearerTokens, Gears, Plan, Pool, Profile, Profiles, Scaling, Workload

if TYPE_CHECKING:
    from coe.report.summarise import Report
    from coe.table import PredictionTable


class Format(StrEnum):
    """How a report is written."""

    text = "text"
    json = "json"
    markdown = "markdown"
    html = "html"


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


YAML = (".yaml", ".yml")
"""An output that ends otherwise is a folder."""


def _file_or_folder(path: Path) -> Path:
    """An output path at which a YAML file or a folder can be written; found out before the work."""
    if path.suffix in YAML:
        files.check_place(path)
    elif path.exists() and not path.is_dir():
        raise InvalidInput(Problem(str(path), "is a file", remedy="name a folder, or a file that ends in .yaml"))
    elif path.suffix == ".json":
        raise InvalidInput(Problem(str(path), "must end in .yaml, or be a folder", remedy="serve run reads YAML"))
    elif not path.parent.is_dir():
        raise InvalidInput(Problem(str(path), f"the folder {path.parent} does not exist", remedy="create it first"))
    return path


def build(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.yaml, or gears.yaml")],
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Check the certificate against them.")
    ] = None,
    uncertified: Annotated[bool, typer.Option("--uncertified", help="Build without a valid certificate.")] = False,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", help="Folder for the ledger, on the router's node.")
    ] = None,
    access: Annotated[
        Path | None, typer.Option("--access", help="access.yaml: tokens, limits, access log; see docs/protocols.md.")
    ] = None,
    live: Annotated[
        Path | None,
        typer.Option("--live", help="The deployed serve.yaml: change its plan without a restart, by `serve deploy`."),
    ] = None,
    pin: Annotated[
        str | None,
        typer.Option(
            "--pin", metavar="GEAR", help="With --live of gears: stay in this one; without it follow the load."
        ),
    ] = None,
    scaling: Annotated[
        Path | None,
        typer.Option("--scaling", help="scaling.yaml: replicas that follow the load; see docs/deploying.md."),
    ] = None,
    audits: Annotated[
        Path | None,
        typer.Option(
            "--audits", help="audits.yaml: early answers that the last tier sees, too; see docs/operating.md."
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on; 0.0.0.0 for all. By default the loopback if it can be."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port", min=1, max=65535, help="Listen here for the Open Inference Protocol over gRPC, too."
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Container image with Ray, coe and the members' packages.")
    ] = None,
    machine_image: Annotated[
        str | None, typer.Option("--machine-image", help="AMI, or source image of Google Cloud, of the machines.")
    ] = None,
    zone: Annotated[str | None, typer.Option("--zone", help="Zone of Google Cloud, in the plan's region.")] = None,
    project: Annotated[str | None, typer.Option("--project", help="Project of Google Cloud that pays.")] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File (.yaml), or folder for all cluster files.", callback=_file_or_folder),
    ] = Path("serve.yaml"),
) -> None:
    """Write the Ray Serve config of a plan; with a folder as output, also the files of clusters that can run it.

    A folder gets serve.yaml, aws.yaml or gcp.yaml for `ray up` (where all nodes are of that cloud), rayservice.yaml for KubeRay,
    local.yaml for `coe cluster up`, and the gate files of the cascade. What is left out is said, and why.

    \b
    Example:
      coe build plan.yaml --predictions predictions.npz --ledger ledger -o serve.yaml
      coe build plan.yaml --access access.yaml -o serve.yaml
      coe build tighter.yaml --live serve.yaml -o serve.yaml
      coe build gears.yaml --ledger ledger -o serve.yaml                    plans by load, changed while it serves
      coe build gears.yaml --live serve.yaml --pin accurate -o serve.yaml   stay in one gear; without --pin follow the load
      coe build plan.yaml --access access.yaml --scaling scaling.yaml -o serve.yaml
      coe build plan.yaml --predictions predictions.npz --audits audits.yaml -o serve.yaml
      coe build gears.yaml --predictions predictions.npz --audits audits.yaml -o serve.yaml   each gear is audited by itself
      coe build plan.yaml --predictions predictions.npz --ledger /home/ray/ledger -o deploy
      cd deploy && ray up aws.yaml
    """
    from coe.cascade.certify import verify_certificate
    from coe.fleet.groups import LOOPBACK, listens_on
    from coe.serving.build import gears_header, header, serve_config, setup_here, write_folder

    plan, gears = _plan_or_gears(plan_file)
    table = None if predictions is None else files.read_predictions(predictions)
    if uncertified:
        say("building WITHOUT checking the certificate: no accuracy is promised")
    else:
        if gears is None:
            verify_certificate(plan.cascade, table)
        else:
            _verify_gears(gears, table, str(plan_file))
        if table is not None:
            check_sources(plan.pool, table, Path(plan.python_path or "."), str(predictions))
    if pin is not None and (live is None or gears is None):
        raise InvalidInput(
            Problem("--pin", "names a gear of a deployed file", pin, "give gears.yaml and --live serve.yaml")
        )
    if live is not None:
        if scaling is not None:
            remedy = "deploy the scaling first, with a serve.yaml that is built without --live"
            raise InvalidInput(Problem("--scaling", "is that of the deployed file, with --live", remedy=remedy))
        if audits is not None:
            remedy = "deploy the audits first, with a serve.yaml that is built without --live"
            raise InvalidInput(Problem("--audits", "are those of the deployed file, with --live", remedy=remedy))
        if gears is None:
            _write_live(plan, live, out)
        else:
            _write_pin(plan, gears, pin, live, out)
        return
    folder = None if out.suffix in YAML else out
    if folder is not None and ledger is not None and not ledger.is_absolute():
        remedy = "name a folder that can be written on the router's node, like /home/ray/ledger"
        raise InvalidInput(Problem("--ledger", "must be absolute in files for other machines", str(ledger), remedy))
    address = (host or LOOPBACK) if folder is None else listens_on(plan, host)
    config = serve_config(
        plan,
        ledger_dir=None if ledger is None else str(ledger),
        access=None if access is None else _read_access(access, is_elsewhere=folder is not None),
        scaling=None if scaling is None else _read_scaling(scaling, plan),
        audits=None if audits is None else audits_of(audits, gears or plan, table),
        gears=gears,
        host=address,
        port=port,
        grpc_port=grpc_port,
    )
    what = f"{len(plan.placements)} deployments and the router"
    if gears is not None:
        _tell_gears(gears, plan)
        if audits is not None and (one_tier := unaudited(gears)):
            say(f"audits: none of {', '.join(one_tier)}, where the one tier is the last")
        what += f", {len(gears.gears)} gears"
    if folder is None:
        told = header(plan) if gears is None else gears_header(plan, gears)
        comment = "".join(f"# {line}\n" for line in told.splitlines())
        files.write_text(out, comment + files.to_yaml(config))
        wrote(out, f"{what}; run it with: serve run {out}")
        return
    setup = setup_here(image=image, machine_image=machine_image, zone=zone, project=project)
    for note in write_folder(plan, config, folder, setup, gears):
        say(note)
    wrote(
        folder,
        f"{what}: {', '.join(sorted(p.name for p in folder.glob('*.yaml')))}; how to use each is said at its top",
    )


def _plan_or_gears(path: Path) -> tuple[Plan, Gears | None]:
    """What the file holds: a plan, or the deployment of its gears and each of them as it is served there."""
    from coe.placement.together import together

    found = files.read_any(path)
    if not isinstance(found, Gears):
        return files.read(path, Plan), None
    deployment = together(found, str(path))
    return deployment.plan, deployment.gears


def _verify_gears(gears: Gears, table: PredictionTable | None, where: str) -> None:
    """Every gear must have a certificate of its own that holds; all that have none are named."""
    from coe.cascade.certify import verify_certificate

    problems = []
    for number, (gear, name) in enumerate(zip(gears.gears, gears.names, strict=True)):
        try:
            verify_certificate(gear.plan.cascade, table)
        except InvalidInput as error:
            at = f"{where}: gears[{number}] '{name}'"
            problems += [Problem(f"{at}: {p.where}", p.rule, p.found, p.remedy) for p in error.problems]
    if problems:
        raise InvalidInput(problems)


def _tell_gears(gears: Gears, plan: Plan) -> None:
    """What every gear is for and promises, and what all of them cost together."""
    from coe.report.quality import claim_in_words

    for gear in gears.gears:
        say(f"{gear.name}: up to {gear.up_to_per_s:g}/s; {claim_in_words(gear.plan)}")
    nodes = ", ".join(f"{n.count} {n.node_type}" for n in plan.nodes)
    say(f"all gears stand together on {nodes}: ${plan.cost.usd_per_hour_allocation:.3f} per hour, whichever serves")


def _write_pin(plan: Plan, gears: Gears, pin: str | None, deployed: Path, out: Path) -> None:
    """The deployed file of gears, whose router stays in one of them or follows the load."""
    from coe.serving.build import gears_header, pinned_config

    config = pinned_config(gears, pin, files.yaml_mapping(deployed))
    comment = "".join(f"# {line}\n" for line in gears_header(plan, gears).splitlines())
    files.write_text(out, comment + files.to_yaml(config))
    how = "follows the load" if pin is None else f"stays in {pin}"
    wrote(out, f"the router of {deployed} {how}; go over to it with: serve deploy {out}")


def _write_live(plan: Plan, deployed: Path, out: Path) -> None:
    """The deployed file, whose router goes over to the plan."""
    from coe.serving.build import header, live_config

    config = live_config(plan, files.yaml_mapping(deployed))
    comment = "".join(f"# {line}\n" for line in header(plan).splitlines())
    files.write_text(out, comment + files.to_yaml(config))
    wrote(out, f"the plan of {deployed}'s router changes without a restart; go over to it with: serve deploy {out}")


def _read_scaling(path: Path, plan: Plan) -> Scaling:
    """How replicas follow the load; what the plan's nodes have no room for is said."""
    from coe.serving.scaling_policy import beyond_the_nodes

    scaling = files.read(path, Scaling)
    if beyond := beyond_the_nodes(plan, scaling):
        say(
            f"{path}: max_replicas {scaling.max_replicas} is more than the plan's nodes hold, even alone: {', '.join(beyond)}; "
            "further ones wait until nodes are added"
        )
    return scaling


def _read_access(path: Path, *, is_elsewhere: bool) -> Access:
    """Limits of a service, whose file of tokens is found from beside them; for other machines it must say where it lies there."""
    access = files.read(path, Access)
    if access.tokens is None:
        return access
    if is_elsewhere:
        if not Path(access.tokens).is_absolute():
            remedy = "name the file's place on the router's node, and put it there: cluster files carry no tokens"
            raise InvalidInput(
                Problem(f"{path}: tokens", "must be absolute in files for other machines", access.tokens, remedy)
            )
        return access
    tokens = (path.parent / access.tokens).resolve()
    if tokens.exists():
        files.read(tokens, BearerTokens)
    else:
        say(f"{tokens} is not on this machine; the service needs it on the router's node")
    return access.model_copy(update={"tokens": str(tokens)})


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


def report(
    plan: Annotated[Path, typer.Option("--plan", help="plan.yaml that was served, or gears.yaml")],
    ledger: Annotated[Path, typer.Option("--ledger", help="A ledger file, or the folder of them.")],
    bench: Annotated[
        Path | None, typer.Option("--bench", help="bench.json: restrict to this run, use its labels.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="For the reference's accuracy on the same items.")
    ] = None,
    form: Annotated[Format, typer.Option("--format")] = Format.text,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 if a promise was missed.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; stdout by default.", callback=place)
    ] = None,
) -> None:
    """The dollar report of a ledger: quality, tiers, dollars on both cost bases, latency, promises.

    \b
    Example:
      coe report --plan plan.yaml --ledger ledger --bench bench.json --predictions predictions.npz
      coe report --plan plan.yaml --ledger ledger --format html -o report.html
      coe report --plan gears.yaml --ledger ledger --bench bench.json
    """
    from coe.ledger import read_ledger
    from coe.report.summarise import summarise

    planned, gears = _plan_or_gears(plan)
    if gears is not None:
        _report_gears(gears, ledger, bench, predictions, form, gate, out)
        return
    written = read_ledger(ledger, planned.fingerprint())
    if written.plan_fingerprint != planned.fingerprint():
        rule = f"is the ledger of another plan than {plan}"
        raise InvalidInput(Problem(str(ledger), rule, written.plan_fingerprint[:12], "give the plan that was served"))
    result = summarise(
        planned,
        written.records,
        bench=None if bench is None else files.read(bench, Bench),
        table=None if predictions is None else files.read_predictions(predictions),
        unaccounted=written.unaccounted,
        ledger_notes=written.notes,
    )
    text = _rendered(result, form)
    if out is None:
        print(text, end="")
    else:
        files.write_text(out, text)
        wrote(out, f"report on {result.served.answered} answers")
    if gate and result.missed:
        raise GateExceeded(result.missed)


def _report_gears(
    gears: Gears, ledger: Path, bench: Path | None, predictions: Path | None, form: Format, gate: bool, out: Path | None
) -> None:
    """How long each gear was in service, what it promised, what came of it, and the bill of all."""
    from coe.ledger import plans_in, read_ledger
    from coe.report.geared import as_markdown, as_text, summarise_gears

    if form is Format.html:
        remedy = "use text, markdown or json; the live page draws one gear"
        raise InvalidInput(Problem("--format", "is not made of gears", "html", remedy))
    prints = {name: g.plan.fingerprint() for name, g in zip(gears.names, gears.gears, strict=True)}
    there = plans_in(ledger)
    written = {
        name: read_ledger(ledger, print_, comes_and_goes=True) for name, print_ in prints.items() if print_ in there
    }
    if not written:
        remedy = "give the gears that were served, and the folder that `coe build --ledger` named"
        raise InvalidInput(Problem(str(ledger), "holds no ledger of these gears", remedy=remedy))
    result = summarise_gears(
        gears,
        {name: found.records for name, found in written.items()},
        bench=None if bench is None else files.read(bench, Bench),
        table=None if predictions is None else files.read_predictions(predictions),
        unaccounted=sum(found.unaccounted for found in written.values()),
        ledger_notes=[note for found in written.values() for note in found.notes],
    )
    if form is Format.json:
        text = result.model_dump_json(indent=1) + "\n"
    else:
        text = as_markdown(result) if form is Format.markdown else as_text(result)
    if out is None:
        print(text, end="")
    else:
        files.write_text(out, text)
        wrote(out, f"report on {result.answered} answers of {len(written)} gears")
    if gate and result.missed:
        raise GateExceeded(result.missed)


def _rendered(result: Report, form: Format) -> str:
    """The report in one format."""
    if form is Format.json:
        return result.model_dump_json(indent=1) + "\n"
    if form is Format.html:
        from coe.report.html import render_html
        from coe.report.plots import report_plots

        return render_html(result, report_plots(result))
    if form is Format.markdown:
        from coe.report.markdown import render_markdown

        return render_markdown(result)
    from coe.report.text import render_text

    return render_text(result)


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
