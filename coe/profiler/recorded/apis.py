"""Labels and confidences of commercial classification services: ``TASK.npz`` beside ``meta.csv``.

TASK.npz: `label` (n,), and for each service `pred__NAME` (n,) and `conf__NAME` (n,). meta.csv: `dataset`, `api`, `usd_per_10k`. A
predicted code that no label has means "something else": the service abstains. A confidence counts as the probability of
the predicted class (a list of one); scales differ by service, so temperatures or thresholds per service are in order.
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
from coe.types import ABSTAINED, Costs


def read(path: Path, asked: Asked) -> Recorded:
    """The table of one data set: an NPZ file, or its folder and `task`."""
    if path.is_dir():
        path = path / f"{(asked.task or '?').lower()}.npz"
    arrays = arrays_of(path, "label")
    apis = [name.removeprefix("pred__") for name in arrays if name.startswith("pred__")]
    if not apis:
        raise InvalidInput(Problem(str(path), "needs arrays pred__NAME", f"there: {', '.join(arrays)}"))
    names, notes = member_names(apis, str(path))
    known = np.unique(arrays["label"])
    label = np.searchsorted(known, arrays["label"])
    answers, conf = (
        np.empty((len(label), len(apis)), dtype=np.int64),
        np.zeros((len(label), len(apis), 1), dtype=np.float32),
    )
    for column, api in enumerate(apis):
        said = arrays[f"pred__{api}"]
        sure = arrays.get(f"conf__{api}")
        for name, array in (("pred", said), ("conf", sure)):
            if array is not None and array.shape != label.shape:
                raise InvalidInput(
                    Problem(f"{path}: {name}__{api}", f"must have shape {label.shape}", str(array.shape))
                )
        at = np.minimum(np.searchsorted(known, said), len(known) - 1)
        answers[:, column] = np.where(known[at] == said, at, ABSTAINED)
        if sure is not None:
            degree = sure.astype(np.float64)
            if not ((degree >= 0) & (degree <= 1)).all():
                row = int(np.flatnonzero(~((degree >= 0) & (degree <= 1)))[0])
                raise InvalidInput(Problem(f"{path}: conf__{api}[{row}]", "must lie in 0..1", f"{sure[row]}"))
            conf[:, column, 0] = sure
    if asked.cost not in ("", "usd_per_10k"):
        raise InvalidInput(Problem("--cost", "must be usd_per_10k", asked.cost))
    items = np.array([str(i) for i in range(len(label))], dtype=np.str_)
    table = PredictionTable(
        members=names,
        classes=tuple(str(c) for c in known.tolist()),
        items=items,
        labels=label.astype(np.int64),
        splits=drawn_splits(items, asked.splits, asked.seed),
        answers=answers,
        probs=conf,
        sources=dict.fromkeys(names, f"imported from {path.name}"),
        top=np.maximum(answers, 0).astype(np.int32)[:, :, None],
    )
    return finished(table, _costs(path, dict(zip(apis, names, strict=True))) if asked.cost else None, asked, notes)


def _costs(path: Path, names: dict[str, str]) -> Costs:
    meta = path.parent / "meta.csv"
    header, rows = rows_of(meta)
    data, api, price = (column_of(meta, header, c) for c in ("dataset", "api", "usd_per_10k"))
    found: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        if row[data].lower() == path.stem.lower() and row[api] in names:
            try:
                found[names[row[api]]] = float(row[price]) / 10_000
            except ValueError:
                raise InvalidInput(Problem(f"{meta}:{number}: usd_per_10k", "must be a number", row[price])) from None
    if not found:
        raise InvalidInput(Problem(str(meta), f"has no row for the services of {path.name}"))
    return Costs(unit="usd", source=f"{meta.name}, usd_per_10k", per_call=found)
