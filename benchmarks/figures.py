"""Printing and saving the figures of a benchmark."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def publish(name: str, rows: Sequence[Mapping[str, object]], out: str | None) -> None:
    """Print `rows` as a table; with `out`, also write them as JSON together with the machine they were measured on."""
    table = Table(title=name)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if out:
        save(name, rows, out)


def save(name: str, rows: Sequence[Mapping[str, object]], out: str) -> None:
    """Write rows, which need not have the same columns, as JSON together with the machine they were measured on."""
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    Path(out).write_text(json.dumps({"benchmark": name, "machine": machine, "rows": list(rows)}, indent=1) + "\n")
