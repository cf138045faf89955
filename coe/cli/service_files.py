"""What a service is given beside its plan: the options of `coe build` that name a folder or a YAML file, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from coe import files
from coe.cli.auditing import audits_of
from coe.cli.console import say
from coe.errors import InvalidInput, Problem
from coe.table import PredictionTable
from coe.types import Access, BearerTokens, Gears, LedgerLimits, Plan, Scaling, Tracing

LedgerFolder = Annotated[Path | None, typer.Option("--ledger", help="Folder for the ledger, on the router's node.")]
LedgerLimitsFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger-limits", help="ledger-limits.yaml: size, age and compression of its files; see docs/operating.md."
    ),
]
TracingFile = Annotated[
    Path | None,
    typer.Option("--tracing", help="tracing.yaml: where OpenTelemetry's spans go; see docs/operating.md."),
]
AccessFile = Annotated[
    Path | None, typer.Option("--access", help="access.yaml: tokens, limits, access log; see docs/protocols.md.")
]
ScalingFile = Annotated[
    Path | None, typer.Option("--scaling", help="scaling.yaml: replicas that follow the load; see docs/deploying.md.")
]
AuditsFile = Annotated[
    Path | None,
    typer.Option("--audits", help="audits.yaml: early answers that the last tier sees, too; see docs/operating.md."),
]


@dataclass(frozen=True)
class ServiceFiles:
    """Those that were named."""

    ledger: Path | None = None
    ledger_limits: Path | None = None
    tracing: Path | None = None
    access: Path | None = None
    scaling: Path | None = None
    audits: Path | None = None

    def refuse_live(self) -> None:
        """`InvalidInput` for what a service that runs already has; all that were named are."""
        given = [field.name.replace("_", "-") for field in fields(self) if getattr(self, field.name) is not None]
        if given:
            raise InvalidInput(_deployed_already(name) for name in given)

    def arguments(
        self, plan: Plan, gears: Gears | None, table: PredictionTable | None, *, is_elsewhere: bool
    ) -> dict[str, Any]:
        """Their contents, as `coe.serving.build.serve_config` takes them.   is_elsewhere: for other machines than this one."""
        return {
            "ledger_dir": None if self.ledger is None else _ledger_folder(self.ledger, is_elsewhere=is_elsewhere),
            "ledger": None if self.ledger_limits is None else self._read_limits(self.ledger_limits),
            "tracing": None if self.tracing is None else _read_tracing(self.tracing, is_elsewhere=is_elsewhere),
            "access": None if self.access is None else _read_access(self.access, is_elsewhere=is_elsewhere),
            "scaling": None if self.scaling is None else _read_scaling(self.scaling, plan),
            "audits": None if self.audits is None else audits_of(self.audits, gears or plan, table),
        }

    def _read_limits(self, path: Path) -> LedgerLimits:
        """How the ledger's files are kept, where there is a ledger."""
        if self.ledger is None:
            raise InvalidInput(
                Problem("--ledger-limits", "are those of a ledger", str(path), "give --ledger FOLDER too")
            )
        return files.read(path, LedgerLimits)


def _deployed_already(name: str) -> Problem:
    """An option that says something else than the file that is deployed."""
    rule = f"{'are those' if name.endswith('s') else 'is that'} of the deployed file, with --live"
    what = name.replace("-", "'s ")
    return Problem(f"--{name}", rule, remedy=f"deploy the {what} first, with a serve.yaml that is built without --live")


def _ledger_folder(path: Path, *, is_elsewhere: bool) -> str:
    """Where the ledger goes; for other machines it must say where that is there."""
    if is_elsewhere and not path.is_absolute():
        remedy = "name a folder that can be written on the router's node, like /home/ray/ledger"
        raise InvalidInput(Problem("--ledger", "must be absolute in files for other machines", str(path), remedy))
    return str(path)


def _read_tracing(path: Path, *, is_elsewhere: bool) -> Tracing:
    """Where spans go; that OpenTelemetry is not here is said, where the router is."""
    tracing = files.read(path, Tracing)
    if not is_elsewhere and find_spec("opentelemetry") is None:
        say(f"{path}: OpenTelemetry is not on this machine; the router needs it: pip install 'coe[tracing]'")
    return tracing


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
