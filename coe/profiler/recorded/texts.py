"""Free-text answers of language models with their token counts: a folder of CSV files, plain or gzipped.

``[TASK_]questions``: an item id (`question_id` or `item_id`), `gold`, and prompt tokens (a column whose name starts with
`prompt_tokens`). ``[TASK_]answers`` (or, better where there is one, ``[TASK_]answers_reextracted``) and
``[TASK_]completion_tokens``: the id and one column per model. In an answer ``-`` means that the model answered but nothing could
be extracted: it abstains; an empty cell means that it was never asked. models.csv: `model`, prices in dollars per
million tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.profiler.recorded.common import (
    Asked,
    Recorded,
    column_of,
    drawn_splits,
    finished,
    keyed,
    member_names,
    rows_of,
    same_items,
)
from coe.profiler.recorded.extract import extractor, normaliser
from coe.table import PredictionTable
from coe.types import ABSTAINED, MISSING_VOTE, Costs, TokenPrice

NOTHING_FOUND = "-"
LISTED = ("price_in_usd_per_mtok", "price_out_usd_per_mtok")
SIZE_CLASS = ("tier_price_in_usd_per_mtok", "tier_price_out_usd_per_mtok")
COSTS = ("listed", "size-class", "listed-or-size-class")


def read(folder: Path, asked: Asked) -> Recorded:
    """The table of a folder; `task` names one of several in it; `cost` is one of `COSTS`, or empty for none."""
    prefix = f"{asked.task}_" if asked.task else _only_prefix(folder)
    questions = _file(folder, f"{prefix}questions")
    header, rows = rows_of(questions)
    key, gold = column_of(questions, header, "item_id", "question_id"), column_of(questions, header, "gold")
    asking = keyed(questions, header, rows, key)
    items = sorted(asking)
    said = _file(folder, f"{prefix}answers_reextracted", f"{prefix}answers")
    names, answers = _by_model(said, items, questions)
    members, notes = member_names(names, f"{said}:1")
    extract, normalise = extractor(asked.extract), normaliser(asked.normalise)
    labels = [normalise(asking[i][gold]) for i in items]
    for item, label in zip(items, labels, strict=True):
        if not label:
            raise InvalidInput(Problem(f"{questions}: item '{item}': gold", "must not be empty"))
    read_out = [[_answer(cell, extract, normalise) for cell in row] for row in answers]
    vocabulary = sorted({*labels, *(a for row in read_out for a in row if isinstance(a, str))})
    index = {text: number for number, text in enumerate(vocabulary)}
    codes = np.array([[a if isinstance(a, int) else index[a] for a in row] for row in read_out], dtype=np.int64)
    ids = np.array(items, dtype=np.str_)
    table = PredictionTable(
        members=members,
        classes=tuple(vocabulary) if len(vocabulary) > 1 else (*vocabulary, ""),
        items=ids,
        labels=np.array([index[label] for label in labels], dtype=np.int64),
        splits=drawn_splits(ids, asked.splits, asked.seed),
        answers=codes,
        sources=dict.fromkeys(members, f"imported from {said.name}"),
        tokens=_tokens(folder, prefix, header, asking, items, names, questions),
    )
    costs = _costs(folder, asked, dict(zip(names, members, strict=True))) if asked.cost else None
    return finished(
        table, costs, asked, [*notes, f"{(codes == ABSTAINED).mean():.1%} of answers hold nothing to extract"]
    )


def _answer(cell: str, extract: object, normalise: object) -> str | int:
    """The normalised answer, or the code of an abstention or of a missing vote."""
    if cell == "":
        return MISSING_VOTE
    if cell == NOTHING_FOUND:
        return ABSTAINED
    found = extract(cell)  # type: ignore[operator]
    return ABSTAINED if found is None else str(normalise(found))  # type: ignore[operator]


def _by_model(path: Path, items: Sequence[str], questions: Path) -> tuple[list[str], list[list[str]]]:
    """Model names, and their cells in the order of `items`, (items, models)."""
    header, rows = rows_of(path)
    key = column_of(path, header, "item_id", "question_id")
    by_item = keyed(path, header, rows, key)
    same_items(path, list(by_item), items, questions)
    columns = [c for c in range(len(header)) if c != key]
    if not columns:
        raise InvalidInput(Problem(str(path), "needs a column per model"))
    return [header[c] for c in columns], [[by_item[i][c] for c in columns] for i in items]


def _tokens(
    folder: Path,
    prefix: str,
    header: Sequence[str],
    asking: dict[str, Sequence[str]],
    items: Sequence[str],
    names: Sequence[str],
    questions: Path,
) -> np.ndarray | None:
    """(items, models, 2) prompt and completion tokens, or None where they are not recorded."""
    path = _maybe(folder, f"{prefix}completion_tokens")
    column = next((c for c, name in enumerate(header) if name.startswith("prompt_tokens")), None)
    if path is None or column is None:
        return None
    models, cells = _by_model(path, items, questions)
    if set(models) != set(names):
        odd = sorted(set(models) ^ set(names))[0]
        raise InvalidInput(Problem(str(path), "must have the models of the answers", f"'{odd}' is only in one of them"))
    order = [models.index(n) for n in names]
    tokens = np.zeros((len(items), len(names), 2), dtype=np.int32)
    for row, item in enumerate(items):
        tokens[row, :, 0] = _count(asking[item][column], questions, item)
        for at, source in enumerate(order):
            text = cells[row][source]
            tokens[row, at, 1] = 0 if text in ("", "-1") else _count(text, path, item)  # never asked: nothing billed
    return tokens


def _count(text: str, path: Path, item: str) -> int:
    if not text.isdigit():
        raise InvalidInput(Problem(f"{path}: item '{item}'", "token counts must be whole numbers", text))
    return int(text)


def _costs(folder: Path, asked: Asked, names: dict[str, str]) -> Costs:
    """Token prices from models.csv."""
    if asked.cost not in COSTS:
        raise InvalidInput(Problem("--cost", f"must be one of {', '.join(COSTS)}", asked.cost))
    path = folder / "models.csv"
    header, rows = rows_of(path)
    model = column_of(path, header, "model")
    task = header.index("task") if "task" in header else None
    pairs = {"listed": (LISTED,), "size-class": (SIZE_CLASS,), "listed-or-size-class": (LISTED, SIZE_CLASS)}[asked.cost]
    found: dict[str, TokenPrice] = {}
    for number, row in enumerate(rows, start=2):
        if row[model] not in names or (task is not None and asked.task and row[task] != asked.task):
            continue
        for pair in pairs:
            at = [column_of(path, header, name) for name in pair]
            if all(row[c] for c in at):
                prompt, completion = (_price(row[c], f"{path}:{number}: {header[c]}") for c in at)
                found[names[row[model]]] = TokenPrice(
                    usd_per_million_prompt_tokens=prompt, usd_per_million_completion_tokens=completion
                )
                break
    if not found:
        raise InvalidInput(Problem(str(path), f"has no {asked.cost} price for any of the models"))
    return Costs(unit="usd", source=f"{path.name}, {asked.cost} prices", by_token=found)


def _price(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (np.isfinite(value) and value >= 0):
        raise InvalidInput(Problem(where, "must be dollars per million tokens, not negative", text))
    return value


def _only_prefix(folder: Path) -> str:
    """``TASK_`` of the only questions file; `InvalidInput` where there are several and none was named."""
    found = sorted({p.name.split("questions.csv")[0] for p in folder.glob("*questions.csv*")})
    if len(found) > 1:
        tasks = ", ".join(f.rstrip("_") or "(none)" for f in found)
        raise InvalidInput(Problem(str(folder), "holds several tasks", tasks, "name one with --task"))
    return found[0] if found else ""


def _maybe(folder: Path, *stems: str) -> Path | None:
    for stem in stems:
        for ending in (".csv", ".csv.gz"):
            if (folder / f"{stem}{ending}").exists():
                return folder / f"{stem}{ending}"
    return None


def _file(folder: Path, *stems: str) -> Path:
    path = _maybe(folder, *stems)
    if path is None:
        raise InvalidInput(Problem(str(folder), f"needs a file {' or '.join(f'{s}.csv[.gz]' for s in stems)}"))
    return path
