"""The verb rehearse: a plan's deployment tried out on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import say
from coe.errors import GateExceeded
from coe.types import Plan


def rehearse(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.yaml")],
    max_processes: Annotated[
        int, typer.Option("--max-processes", min=2, help="Refuse plans of more nodes and replicas together.")
    ] = 24,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=1.0, help="Seconds to wait for the deployments at most.")
    ] = 300.0,
) -> None:
    """Deploy a plan on a local fleet with members that stand in, and see whether every replica finds its node.

    Every node of the plan is a real raylet with its labels and devices, serve.yaml is what `coe build` writes; only the models
    are replaced. A fleet that is up already is left alone. Exits with 4 where something is not as planned.

    \b
    Example:
      coe rehearse plan.yaml
      coe rehearse plan.yaml --max-processes 40 --time-limit 600
    """
    from coe.serving.rehearsal import rehearse as rehearsed

    found = rehearsed(
        files.read(plan_file, Plan), most_processes=max_processes, time_limit_s=time_limit, tell=lambda text: say(text)
    )
    print(found.text, end="")
    if found.missed:
        raise GateExceeded(found.missed)
    say(f"as planned; took {found.seconds:.0f} s")
