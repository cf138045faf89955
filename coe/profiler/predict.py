"""Every member's answers on a labelled data set: the prediction table that all offline work rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import CoeError, InvalidInput, Problem
from coe.files import read_npz
from coe.runners.base import Checked, Said, fingerprint, make_runner
from coe.table import SPLITS, PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE, IntArray, Member, Pool, Probabilities

BATCH_SIZE = 64
REQUESTS = 512
"""Items per batch of members behind an endpoint: the last requests of a batch leave others waiting."""


@dataclass(frozen=True)
class DataSet:
    """Labelled items.

    x: (n, *input_shape), numbers; (n, 1) str for text.    y: (n,) class index.    items: (n,) unique ids.
    splits: (n,) one of `SPLITS`.     classes: names in the order of y, or None where the file does not say.
    """

    x: NDArray[Any]
    y: IntArray
    items: NDArray[np.str_]
    splits: NDArray[np.str_]
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def split(self, name: str) -> DataSet:
        """The items of one split; `InvalidInput` if it has none."""
        mask = self.splits == name
        if not mask.any():
            there = ", ".join(sorted(set(self.splits.tolist()))) or "none"
            raise InvalidInput(Problem("data", f"the split '{name}' has no items", remedy=f"splits there: {there}"))
        return DataSet(self.x[mask], self.y[mask], self.items[mask], self.splits[mask], self.classes)


def load_data(path: str | Path) -> DataSet:
    """Read a data set: an NPZ file with the arrays x, y, items and splits, and optionally classes.

    Texts are an x of shape (items,) or (items, 1) of NumPy's str; one dimension is added to the former.

    Raises `InvalidInput` that lists everything wrong with it.
    """
    arrays = read_npz(path)
    lacking = [name for name in ("x", "y", "items", "splits") if name not in arrays]
    if lacking:
        there = ", ".join(sorted(arrays)) or "none"
        rule = f"lacks the arrays {', '.join(lacking)}"
        remedy = "a data set has x, y, items and splits"
        raise InvalidInput(Problem(str(path), rule, f"the arrays {there}", remedy))
    if arrays["x"].dtype.kind == "U" and arrays["x"].ndim == 1:
        arrays["x"] = arrays["x"][:, None]
    problems = list(_data_problems(str(path), arrays))
    if problems:
        raise InvalidInput(problems)
    return DataSet(
        arrays["x"],
        arrays["y"].astype(np.int64),
        arrays["items"].astype(np.str_),
        arrays["splits"].astype(np.str_),
        tuple(arrays["classes"].astype(np.str_).tolist()) if "classes" in arrays else None,
    )


def _data_problems(path: str, arrays: dict[str, NDArray[Any]]) -> Iterable[Problem]:
    """What makes the arrays no data set; items are named where they can be."""
    x, y, items, splits = (arrays[name] for name in ("x", "y", "items", "splits"))
    if x.dtype.kind not in "fiubU":
        yield Problem(f"{path}: x", "must hold numbers, or texts as NumPy's str", str(x.dtype))
        return
    if x.ndim < 2 or len(x) == 0:
        yield Problem(f"{path}: x", "must have shape (items, …) with at least one item", str(x.shape))
        return
    for name, array in (("y", y), ("items", items), ("splits", splits)):
        if array.shape != (len(x),):
            yield Problem(f"{path}: {name}", f"must have shape ({len(x)},), one entry per item of x", str(array.shape))
            return
    if y.dtype.kind not in "iu":
        yield Problem(f"{path}: y", "must hold class indices (whole numbers)", str(y.dtype))
    elif (y < 0).any():
        yield Problem(f"{path}: y", "class indices must not be negative", str(y.min()))
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        yield Problem(f"{path}: x", "must not hold NaN or infinity", f"one in item '{items[bad.argmax()]}'")
    names, counts = np.unique(items, return_counts=True)
    if (counts > 1).any():
        yield Problem(f"{path}: items", "every item id must be unique", f"'{names[counts > 1][0]}' more than once")
    unknown = sorted(set(splits.astype(np.str_).tolist()) - set(SPLITS))
    if unknown:
        yield Problem(f"{path}: splits", f"must be among {', '.join(SPLITS)}", ", ".join(unknown))


def predict(
    pool: Pool, base_dir: Path, data: DataSet, progress: Callable[[int, int], None] | None = None
) -> PredictionTable:
    """Ask every member of the pool about every item. `progress` gets (answers so far, answers in all).

    `base_dir` is the folder of the pool file. The table has no probabilities where no member gives any, and tokens where one
    counts them. Raises `InvalidInput` for data that do not fit the pool, and for a member
    that cannot be loaded, fails, or returns something else than probabilities.
    """
    _check_fit(pool, data)
    n, m, c = len(data), len(pool.members), len(pool.classes)
    probs = np.empty((n, m, c), dtype=np.float32)
    tokens = np.zeros((n, m, 2), dtype=np.int32)
    has_tokens, has_probs = False, False
    sources = {}
    for column, member in enumerate(pool.members):
        sources[member.name] = fingerprint(member, base_dir)
        runner = make_runner(member, pool, base_dir)
        has_probs = has_probs or not runner.only_answers
        for rows, said in _outputs(member, runner, data):
            probs[rows, column] = said.probs
            if said.tokens is not None:
                tokens[rows, column], has_tokens = said.tokens, True
            if progress is not None:
                progress(column * n + rows.stop, n * m)
    answers = answered(probs)
    probs[answers == MISSING_VOTE] = 0.0
    return PredictionTable(
        members=tuple(member.name for member in pool.members),
        classes=pool.classes,
        items=data.items,
        labels=data.y,
        splits=data.splits,
        answers=answers,
        probs=probs if has_probs else None,
        sources=sources,
        tokens=tokens if has_tokens else None,
        content=content_hashes(data.x),
    )


def answered(probs: Probabilities) -> IntArray:
    """The most probable class along the last axis; rows of NaN are missing votes, rows of zeros abstentions."""
    best = np.where(probs.any(axis=-1), probs.argmax(axis=-1), ABSTAINED)
    return np.where(np.isnan(probs).any(axis=-1), MISSING_VOTE, best).astype(np.int64)


def content_hashes(x: NDArray[Any]) -> NDArray[np.str_]:
    """(items,): a hash of each item, so that copies of one item are found whatever their ids."""
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    contents = ("\0".join(row).encode() if x.dtype.kind == "U" else row.tobytes() for row in rows)
    return np.array([hashlib.blake2b(content, digest_size=8).hexdigest() for content in contents], dtype=np.str_)


def _check_fit(pool: Pool, data: DataSet) -> None:
    """Shape, labels and class names of the data against the pool."""
    problems = []
    if (data.x.dtype.kind == "U") != pool.is_text:
        rule = f"must hold {'texts (str)' if pool.is_text else 'numbers'}: the pool's input_dtype is {pool.input_dtype}"
        problems.append(Problem("data: x", rule, str(data.x.dtype)))
    if data.x.shape[1:] != pool.input_shape:
        rule = f"items must have the pool's input_shape {list(pool.input_shape)}"
        problems.append(Problem("data: x", rule, str(list(data.x.shape[1:]))))
    if data.y.max() >= len(pool.classes):
        rule = f"labels must be in 0..{len(pool.classes) - 1}: the pool has {len(pool.classes)} classes"
        problems.append(Problem("data: y", rule, str(data.y.max())))
    if data.classes is not None and data.classes != pool.classes:
        rule = f"must be the pool's classes in the same order: {', '.join(pool.classes[:8])}"
        problems.append(Problem("data: classes", rule, ", ".join(data.classes[:8])))
    if problems:
        raise InvalidInput(problems)


def _outputs(member: Member, runner: Checked, data: DataSet) -> Iterator[tuple[slice, Said]]:
    """Rows and what the member says about them, batch by batch."""
    runner.load()
    try:
        size = REQUESTS if runner.only_answers else BATCH_SIZE
        for start in range(0, len(data), size):
            rows = slice(start, min(start + size, len(data)))
            yield rows, _asked(member, runner, data, rows)
    finally:
        runner.close()


def _asked(member: Member, runner: Checked, data: DataSet, rows: slice) -> Said:
    """One batch; whatever the member's own code raises is reported with member and items."""
    try:
        return runner.ask(data.x[rows])
    except CoeError:
        raise
    except Exception as error:
        place = f"member '{member.name}'"
        rule = f"failed on the items '{data.items[rows.start]}' to '{data.items[rows.stop - 1]}'"
        raise InvalidInput(Problem(place, rule, f"{type(error).__name__}: {error}")) from error
