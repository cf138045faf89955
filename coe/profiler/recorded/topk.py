"""Arrays of each model's most probable classes: a folder with `labels.npz` and `top5.npz` or `label_only.npz`.

labels.npz: `label` (n,) and optionally an id per item, `val_id` or `test_index`. top5.npz: `models` (m,), `cls` (n, m, k)
classes, most probable first, and `prob` (n, m, k), not renormalised. label_only.npz: `models` and `cls` (n, m). models.csv, where
there is one: a row per model; the column asked for with `cost` prices a call: seconds are one over a column of
items per second (``img_per_s_...``), any other number counts as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.profiler.recorded.common import (
    Asked,
    Recorded,
    arrays_of,
    column_of,
    drawn_splits,
    finished,
    member_names,
    rows_of,
)
from coe.table import PredictionTable
from coe.types import Costs

ITEM_IDS = ("val_id", "test_index", "item")


def read(folder: Path, asked: Asked) -> Recorded:
    """The table of a folder; `task` is ``top5`` (the default where there is one) or ``label_only``."""
    labels = arrays_of(folder / "labels.npz", "label")
    task = asked.task or ("top5" if (folder / "top5.npz").exists() else "label_only")
    path = folder / f"{task}.npz"
    arrays = arrays_of(path, "models", "cls")
    label = labels["label"].astype(np.int64)
    cls = arrays["cls"].astype(np.int32)
    if cls.ndim not in (2, 3) or len(cls) != len(label) or cls.shape[1] != len(arrays["models"]):
        rule = f"cls must have shape ({len(label)}, {len(arrays['models'])}) or that and k"
        raise InvalidInput(Problem(str(path), rule, str(cls.shape), "items must be those of labels.npz, in its order"))
    if cls.ndim == 3 and ("prob" not in arrays or arrays["prob"].shape != cls.shape):
        raise InvalidInput(Problem(str(path), f"prob must have the shape of cls, {cls.shape}"))
    names, notes = member_names(arrays["models"].astype(np.str_).tolist(), f"{path}: models")
    ids = next((labels[name] for name in ITEM_IDS if name in labels), np.arange(len(label)))
    items = ids.astype(np.str_)
    classes = max(int(label.max()), int(cls.max())) + 1
    table = PredictionTable(
        members=names,
        classes=tuple(str(c) for c in range(classes)),
        items=items,
        labels=label,
        splits=drawn_splits(items, asked.splits, asked.seed),
        answers=(cls if cls.ndim == 2 else cls[:, :, 0]).astype(np.int64),
        probs=arrays["prob"].astype(np.float32) if cls.ndim == 3 else None,
        sources=dict.fromkeys(names, f"imported from {path.name}"),
        top=cls if cls.ndim == 3 else None,
    )
    return finished(
        table,
        _costs(folder, asked.cost, dict(zip(arrays["models"].astype(np.str_).tolist(), names, strict=True))),
        asked,
        notes,
    )


def _costs(folder: Path, column: str, names: dict[str, str]) -> Costs | None:
    """Costs per call from a column of models.csv, or None where none was asked for."""
    if not column:
        return None
    path = folder / "models.csv"
    header, rows = rows_of(path)
    model, at = column_of(path, header, "model"), column_of(path, header, column)
    speeds = "_per_s" in column
    found: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        if row[model] not in names or not row[at]:
            continue
        try:
            value = float(row[at])
        except ValueError:
            value = float("nan")
        if not (np.isfinite(value) and (value > 0 if speeds else value >= 0)):
            raise InvalidInput(Problem(f"{path}:{number}: {column}", "must be a positive number", row[at]))
        found[names[row[model]]] = 1 / value if speeds else value
    if not found:
        raise InvalidInput(Problem(f"{path}: {column}", "prices none of the models"))
    unit = f"s ({column.split('_per_s_')[-1]})" if speeds else column
    return Costs(unit=unit, source=f"{path.name}, column {column}", per_call=found)
