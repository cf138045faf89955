"""The data of the example: which items of a record are asked, as row numbers, and the texts that they stand for.

    python -m deployments.llm.items RECORDED.npz DATA.npz ITEMS.json [--items 4000]

The questions themselves are not part of the record, so the text of an item is its id. With questions of your own, ITEMS.json
is an array of their texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from coe.files import read_predictions, write_atomically, write_text
from coe.table import PredictionTable

SEED = 5


def chosen(table: PredictionTable, items: int) -> PredictionTable:
    """So many of the items, drawn at random, in the order of the table; all of them where there are no more."""
    rows = np.random.default_rng(SEED).permutation(len(table))[:items]
    mask = np.zeros(len(table), dtype=np.bool_)
    mask[rows] = True
    return table.rows(mask)


def arrays(table: PredictionTable) -> dict[str, np.ndarray]:
    """What `coe predict` reads: row numbers x (n, 1), labels y, ids items, splits, and the classes in the order of y."""
    return {
        "x": np.arange(len(table), dtype=np.float32)[:, None],
        "y": table.labels,
        "items": table.items,
        "splits": table.splits,
        "classes": np.array(table.classes),
    }


def texts(table: PredictionTable) -> list[str]:
    """The text of each item: an id by which the replay endpoint knows it."""
    return [f"Question [item {item}]" for item in table.items]


def main() -> None:
    """Write data and texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recorded")
    parser.add_argument("data", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--items", type=int, default=4000)
    given = parser.parse_args()
    table = chosen(read_predictions(given.recorded), given.items)
    write_atomically(given.data, lambda file: np.savez_compressed(file, **arrays(table)))
    write_text(given.texts, json.dumps(texts(table), indent=0) + "\n")
    print(f"wrote {given.data} and {given.texts}: {len(table)} items", file=sys.stderr)


if __name__ == "__main__":
    main()
