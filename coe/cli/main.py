"""The program `coe`: collects the verbs and turns errors into messages and exit codes.

0 ok · 1 runtime error · 2 usage or invalid file · 3 infeasible · 4 promise missed · 5 cannot certify · 130 interrupted
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

import coe
from coe.cli import (
    benching,
    building,
    cluster,
    gearing,
    importing,
    offline,
    planning,
    profiling,
    rehearsing,
    reporting,
    searching,
    simulating,
    starters,
    tokens,
    training,
    validating,
)
from coe.cli.console import NoColor, Quiet, Settings, obey, settings, with_common_flags
from coe.errors import CoeError, InvalidInput

app = typer.Typer(
    name="coe",
    help="Cost-aware cascades of ensembles: from a pool of models to a served cascade and its dollar report.",
    epilog="Start with `coe init DIR`. Exit codes: 0 ok, 1 runtime error, 2 invalid file or usage, 3 infeasible, "
    "4 promise missed, 5 cannot certify, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version and stop, before a verb is asked for."""
    if wanted:
        print(coe.__version__)
        raise typer.Exit


@app.callback()
def common(
    quiet: Quiet = False,
    no_color: NoColor = False,
    version: Annotated[  # noqa: ARG001  # its callback acts
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Flags before the verb."""
    settings.quiet, settings.color = Settings.quiet, Settings.color
    obey(quiet, no_color)


for verb in (
    starters.init,
    offline.predict,
    profiling.profile,
    searching.search,
    training.train_gate,
    searching.calibrate,
    planning.plan,
    planning.explain,
    planning.diff,
    gearing.gears,
    simulating.simulate,
    building.build,
    rehearsing.rehearse,
    benching.bench,
    reporting.report,
    validating.validate,
    cluster.doctor,
    importing.show_prices,
):
    app.command()(with_common_flags(verb))
app.add_typer(cluster.app, name="cluster")
app.add_typer(importing.app, name="import")
app.add_typer(tokens.app, name="token")


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is no fault
    except CoeError as error:
        _complain(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `coe explain plan.yaml | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written to: neither a mistake in a file nor in coe
        _trace()
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line
            error.show()
            return 2
        _trace()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        print("This is a fault in coe, not in your files. COE_TRACEBACK=1 shows where.", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def _trace() -> None:
    """Where the error comes from, for those who asked."""
    if "COE_TRACEBACK" in os.environ:
        traceback.print_exc()


def _complain(error: CoeError) -> None:
    """One line per problem, so that editors and people find each place."""
    if isinstance(error, InvalidInput) and len(error.problems) > 1:
        print(f"error: {len(error.problems)} problems", file=sys.stderr)
        print("\n".join(f"  {problem}" for problem in error.problems), file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
