"""The verb build: the deployment of a plan or of gears, as Ray Serve's config or with the files of clusters that run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coe import files
from coe.cli.auditing import unaudited
from coe.cli.console import say, wrote
from coe.cli.gearing import plan_or_gears
from coe.cli.offline import check_sources
from coe.cli.service_files import (
    AccessFile,
    AuditsFile,
    LedgerFolder,
    LedgerLimitsFile,
    ScalingFile,
    ServiceFiles,
    TracingFile,
)
from coe.errors import InvalidInput, Problem
from coe.fleet.setup import Setup
from coe.table import PredictionTable
from coe.types import Gears, Plan

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
    ledger: LedgerFolder = None,
    ledger_limits: LedgerLimitsFile = None,
    access: AccessFile = None,
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
    scaling: ScalingFile = None,
    audits: AuditsFile = None,
    tracing: TracingFile = None,
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
      coe build plan.yaml --ledger ledger --ledger-limits ledger-limits.yaml --tracing tracing.yaml -o serve.yaml
      coe build plan.yaml --predictions predictions.npz --ledger /home/ray/ledger -o deploy
      cd deploy && ray up aws.yaml
    """
    from coe.fleet.groups import LOOPBACK, listens_on
    from coe.serving.build import serve_config, setup_here

    plan, gears = plan_or_gears(plan_file)
    table = None if predictions is None else files.read_predictions(predictions)
    if uncertified:
        say("building WITHOUT checking the certificate: no accuracy is promised")
    else:
        _verify(plan, gears, table, str(plan_file), str(predictions))
    beside = ServiceFiles(
        ledger=ledger, ledger_limits=ledger_limits, tracing=tracing, access=access, scaling=scaling, audits=audits
    )
    if pin is not None and (live is None or gears is None):
        remedy = "give gears.yaml and --live serve.yaml"
        raise InvalidInput(Problem("--pin", "names a gear of a deployed file", pin, remedy))
    if live is not None:
        _write_live(plan, gears, pin, live, beside, out)
        return
    folder = None if out.suffix in YAML else out
    config = serve_config(
        plan,
        **beside.arguments(plan, gears, table, is_elsewhere=folder is not None),
        gears=gears,
        host=(host or LOOPBACK) if folder is None else listens_on(plan, host),
        port=port,
        grpc_port=grpc_port,
    )
    if gears is not None:
        _tell_gears(gears, plan)
        if audits is not None and (one_tier := unaudited(gears)):
            say(f"audits: none of {', '.join(one_tier)}, where the one tier is the last")
    if folder is None:
        _write_file(plan, gears, config, out)
    else:
        setup = setup_here(
            image=image, machine_image=machine_image, zone=zone, project=project, is_traced=tracing is not None
        )
        _write_folder(plan, gears, config, setup, folder)


# --- Promises ---------------------------------------------------------------------------------------------------------


def _verify(plan: Plan, gears: Gears | None, table: PredictionTable | None, where: str, predictions: str) -> None:
    """What is promised must have a certificate that holds, of members as they are now."""
    from coe.cascade.certify import verify_certificate

    if gears is None:
        verify_certificate(plan.cascade, table)
    else:
        _verify_gears(gears, table, where)
    if table is not None:
        check_sources(plan.pool, table, Path(plan.python_path or "."), predictions)


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


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write_file(plan: Plan, gears: Gears | None, config: dict[str, Any], out: Path) -> None:
    """serve.yaml alone."""
    _write_commented(plan, gears, config, out)
    wrote(out, f"{_what(plan, gears)}; run it with: serve run {out}")


def _write_folder(plan: Plan, gears: Gears | None, config: dict[str, Any], setup: Setup, folder: Path) -> None:
    """serve.yaml and the files of clusters that can run it; what is left out is said."""
    from coe.serving.build import write_folder

    for note in write_folder(plan, config, folder, setup, gears):
        say(note)
    names = ", ".join(sorted(p.name for p in folder.glob("*.yaml")))
    wrote(folder, f"{_what(plan, gears)}: {names}; how to use each is said at its top")


def _write_live(
    plan: Plan, gears: Gears | None, pin: str | None, deployed: Path, beside: ServiceFiles, out: Path
) -> None:
    """The deployed file, whose router goes over to the plan, stays in one gear or follows the load."""
    from coe.serving.build import live_config, pinned_config

    beside.refuse_live()
    there = files.yaml_mapping(deployed)
    if gears is not None:
        _write_commented(plan, gears, pinned_config(gears, pin, there), out)
        how = "follows the load" if pin is None else f"stays in {pin}"
        wrote(out, f"the router of {deployed} {how}; go over to it with: serve deploy {out}")
        return
    _write_commented(plan, None, live_config(plan, there), out)
    wrote(out, f"the plan of {deployed}'s router changes without a restart; go over to it with: serve deploy {out}")


def _write_commented(plan: Plan, gears: Gears | None, config: dict[str, Any], out: Path) -> None:
    """A config of Serve's with what it deploys and promises on top."""
    from coe.serving.build import gears_header, header

    told = header(plan) if gears is None else gears_header(plan, gears)
    comment = "".join(f"# {line}\n" for line in told.splitlines())
    files.write_text(out, comment + files.to_yaml(config))


def _what(plan: Plan, gears: Gears | None) -> str:
    """What is deployed, in words."""
    what = f"{len(plan.placements)} deployments and the router"
    return what if gears is None else f"{what}, {len(gears.gears)} gears"
