"""The verb token new: a bearer token for a client of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe import files
from coe.cli.console import say, with_common_flags, wrote
from coe.errors import InvalidInput, Problem
from coe.types import BearerTokens

app = typer.Typer(help="Make bearer tokens for clients of the service.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keeps `new` a word of its own, as long as it is the only one."""


@app.command()
@with_common_flags
def new(
    name: Annotated[str, typer.Option("--name", help="Of the client, for the access log and the rate limit.")],
    add: Annotated[Path | None, typer.Option("--add", help="File of tokens to add it to; made where missing.")] = None,
) -> None:
    """Print a new token, which is shown this once, and the line by which a service knows it.

    \b
    Example:
      coe token new --name anna
      coe token new --name anna --add tokens.yaml
    """
    from pydantic import ValidationError

    from coe.serving.auth import hashed, new_token

    token = new_token()
    try:
        entry = hashed(name, token)
    except ValidationError as error:
        raise InvalidInput(Problem("--name", error.errors()[0]["msg"], name)) from None
    if add is None:
        print(token)
        say("for the list `tokens` of the service's file of tokens:")
        print(f"- {{name: {entry.name}, sha256: {entry.sha256}}}")
        return
    known = files.read(add, BearerTokens).tokens if add.exists() else ()
    files.write(add, BearerTokens(tokens=(*known, entry)))
    print(token)
    wrote(add, f"{len(known) + 1} tokens; a running service takes them up by itself")
