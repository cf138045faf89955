"""Predictions that others recorded, in their own formats, as prediction tables of ours with what their calls cost.

`topk` reads arrays of most probable classes, `texts` tables of free-text answers with token counts, `apis` labels and
confidences of commercial services, `plain` a CSV, Parquet or NPZ file with one row per item. Each gives a `Recorded`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.plugins import import_path
from coe.profiler.recorded import apis, plain, texts, topk
from coe.profiler.recorded.common import Asked, Recorded

READERS: dict[str, Callable[[Path, Asked], Recorded]] = {
    "topk": topk.read,
    "texts": texts.read,
    "apis": apis.read,
    "plain": plain.read,
}


def import_predictions(kind: str, path: Path, asked: Asked) -> Recorded:
    """What `path` records, read by the reader called `kind` or at that dotted path. Raises `InvalidInput`."""
    if kind in READERS:
        return READERS[kind](path, asked)
    if ":" not in kind:
        known = ", ".join(READERS)
        raise InvalidInput(
            Problem(f"kind '{kind}'", "is not known", remedy=f"known: {known}; or package.module:reader")
        )
    reader: Callable[[Path, Asked], Recorded] = import_path(kind, "reader of predictions")
    return reader(path, asked)


__all__ = ["READERS", "Asked", "Recorded", "import_predictions"]
