"""One table of anybody's: a CSV, Parquet or NPZ file with a row per item.

Columns (or arrays): `item` (its id), `label`, `answer:MODEL` per model, and optionally `split`, `content` (a hash of the
input), `confidence:MODEL` (probability of that answer, in 0..1), `prompt_tokens:MODEL` and `completion_tokens:MODEL`. In an
answer an empty cell means that the model was never asked and ``-`` that it gave no answer. Every text that occurs as a
label or an answer is a class; with `--extract` and `--normalise` answers are read out of longer texts first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.errors import InvalidInput, Problem, Unavailable
from coe.profiler.recorded.common import Asked, Recorded, arrays_of, drawn_splits, finished, member_names, rows_of
from coe.profiler.recorded.extract import extractor, normaliser
from coe.table import SPLITS, PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE

ANSWER, CONFIDENCE = "answer:", "confidence:"
PROMPT, COMPLETION = "prompt_tokens:", "completion_tokens:"
_PLAIN = ("item", "label", "split", "content")


def read(path: Path, asked: Asked) -> Recorded:
    """The table of one file."""
    columns = _columns(path)
    _check_columns(path, columns)
    models = [name.removeprefix(ANSWER) for name in columns if name.startswith(ANSWER)]
    names, notes = member_names(models, str(path))
    items = np.array(columns["item"], dtype=np.str_)
    extract, normalise = extractor(asked.extract), normaliser(asked.normalise)
    labels = [normalise(text) for text in columns["label"]]
    for row, text in enumerate(labels):
        if not text:
            raise InvalidInput(Problem(f"{path}: row {row + 1} (item '{items[row]}'): label", "must not be empty"))
    said = [[_answer(cell, extract, normalise) for cell in columns[ANSWER + m]] for m in models]
    classes = sorted({*labels, *(a for column in said for a in column if isinstance(a, str))})
    index = {text: number for number, text in enumerate(classes)}
    answers = np.array([[a if isinstance(a, int) else index[a] for a in column] for column in said], dtype=np.int64).T
    conf = _numbers(path, columns, models, CONFIDENCE, 1.0)
    prompt, completion = (_numbers(path, columns, models, kind, float("inf")) for kind in (PROMPT, COMPLETION))
    tokens = None if prompt is None or completion is None else np.stack([prompt, completion], axis=2).astype(np.int32)
    splits = (
        np.array(columns["split"], dtype=np.str_)
        if "split" in columns
        else drawn_splits(items, asked.splits, asked.seed)
    )
    unknown = sorted(set(splits.tolist()) - set(SPLITS))
    if unknown:
        raise InvalidInput(Problem(f"{path}: split", f"must be among {', '.join(SPLITS)}", unknown[0]))
    table = PredictionTable(
        members=names,
        classes=tuple(classes) if len(classes) > 1 else (*classes, ""),
        items=items,
        labels=np.array([index[text] for text in labels], dtype=np.int64),
        splits=splits,
        answers=np.ascontiguousarray(answers),
        probs=None if conf is None else conf.astype(np.float32)[:, :, None],
        sources=dict.fromkeys(names, f"imported from {path.name}"),
        top=None if conf is None else np.maximum(answers, 0).astype(np.int32)[:, :, None],
        tokens=tokens,
        content=np.array(columns["content"], dtype=np.str_) if "content" in columns else None,
    )
    return finished(table, None, asked, notes)


def _answer(cell: str, extract: Callable[[str], str | None], normalise: Callable[[str], str]) -> str | int:
    if cell == "":
        return MISSING_VOTE
    found = None if cell == "-" else extract(cell)
    return ABSTAINED if found is None else normalise(found)


def _columns(path: Path) -> dict[str, list[str]]:
    """Every column as texts."""
    if path.suffix == ".npz":
        arrays: dict[str, NDArray[np.generic]] = arrays_of(path, "item", "label")
        return {name: array.astype(np.str_).tolist() for name, array in arrays.items()}
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise Unavailable(f"{path}: reading Parquet needs pyarrow: pip install 'coe[parquet]'") from None
        try:
            found = parquet.read_table(path).to_pydict()
        except Exception as error:  # pyarrow has many
            raise InvalidInput(Problem(str(path), "cannot be read as Parquet", str(error))) from None
        return {name: ["" if v is None else str(v) for v in values] for name, values in found.items()}
    header, rows = rows_of(path)
    return {name: [row[c] for row in rows] for c, name in enumerate(header)}


def _check_columns(path: Path, columns: dict[str, list[str]]) -> None:
    lacking = [name for name in ("item", "label") if name not in columns]
    if lacking or not any(name.startswith(ANSWER) for name in columns):
        rule = "needs the columns item, label and answer:MODEL"
        raise InvalidInput(Problem(str(path), rule, f"there: {', '.join(columns)}"))
    models = {name.removeprefix(ANSWER) for name in columns if name.startswith(ANSWER)}
    for name in columns:
        kind, colon, model = name.partition(":")
        if name in _PLAIN or (colon and kind + colon in (ANSWER, CONFIDENCE, PROMPT, COMPLETION) and model in models):
            continue
        rule = (
            "is not a column that is understood" if not colon else f"speaks of a model without a column {ANSWER}{model}"
        )
        raise InvalidInput(Problem(f"{path}: {name}", rule, remedy="rename or remove it"))
    rows = len(columns["item"])
    for name, values in columns.items():
        if len(values) != rows:
            raise InvalidInput(Problem(f"{path}: {name}", f"must have {rows} entries, as item has", str(len(values))))


def _numbers(
    path: Path, columns: dict[str, list[str]], models: list[str], kind: str, most: float
) -> NDArray[np.float64] | None:
    """(items, models) numbers of one kind, 0 where a cell is empty; None where no model has them."""
    there = [m for m in models if kind + m in columns]
    if not there:
        return None
    if len(there) < len(models):
        odd = next(m for m in models if m not in there)
        raise InvalidInput(Problem(str(path), f"needs {kind}MODEL for every model or none", f"none for {odd}"))
    result = np.zeros((len(columns["item"]), len(models)))
    for column, model in enumerate(models):
        for row, text in enumerate(columns[kind + model]):
            try:
                value = float(text) if text else 0.0
            except ValueError:
                value = float("nan")
            if not 0 <= value <= most:
                place = f"{path}: row {row + 1} (item '{columns['item'][row]}'): {kind}{model}"
                raise InvalidInput(Problem(place, f"must be a number from 0 to {most:g}", text))
            result[row, column] = value
    return result
