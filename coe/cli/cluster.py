"""Verbs about machines: doctor, cluster up, cluster down."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import progress, say, with_common_flags
from coe.errors import Unavailable
from coe.types import Fleet

app = typer.Typer(help="Start and end a local Ray cluster that plays a mixed fleet.", no_args_is_help=True)
State = Annotated[Path, typer.Option("--state", help="Folder that remembers the cluster's processes.")]
CONNECT_TIMEOUT_S = 5.0


@app.command()
@with_common_flags
def up(
    fleet_file: Annotated[Path, typer.Argument(metavar="FLEET", help="A fleet file")],
    state: State = Path(".coe"),
) -> None:
    """Start every node of a fleet file as a raylet on this machine.

    \b
    Example:
      coe cluster up cluster_configs/laptop.yaml
    """
    from coe.serving.cluster import up as start

    fleet = files.read(fleet_file, Fleet)
    with progress("start nodes") as advance:
        running = start(fleet, state, progress=advance)
    say(f"{len(running.nodes)} nodes are up. To use them:")
    print(f"export RAY_ADDRESS={running.address}")


@app.command()
@with_common_flags
def down(state: State = Path(".coe")) -> None:
    """End the cluster that `up` started, and nothing else.

    \b
    Example:
      coe cluster down
    """
    from coe.serving.cluster import down as end

    count = end(state)
    say(f"ended {count} nodes" if count else "no cluster was up")


def doctor(
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster; by default RAY_ADDRESS.")] = None,
) -> None:
    """Tell what this machine, or a Ray cluster, offers and what is missing.

    \b
    Example:
      coe doctor
      coe doctor --address 127.0.0.1:6379
    """
    from coe.serving.doctor import examine

    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_reachable(address)
    print(examine(address).text)


def check_reachable(address: str) -> None:
    """Raise `Unavailable` where nothing listens at ``host:port``: Ray itself would try for many minutes.

    Addresses of another form (``auto``) are left to Ray.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        remedy = "start one with `coe cluster up FLEET`, or give another --address"
        raise Unavailable(f"no Ray cluster answers at {address} ({error}); {remedy}") from None
