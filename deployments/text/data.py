"""Banking77 as a data file of texts: 9,999 questions to train on, 3,073 others for the three splits that follow.

    python -m deployments.text.data FOLDER OUT.npz

FOLDER holds train.csv.gz and test.csv.gz with the columns text and category.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from pathlib import Path

import numpy as np

from coe.files import write_atomically

SIZES = {"calibration": 800, "certification": 1280, "test": 993}
SEED = 77


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """x (n, 1) texts, y (n,), items (n,) ids, splits (n,) names, classes (77,) in the order of y.

    A text of the test file that occurs before, there or in the train file, is left out: no text is in two splits.
    """
    train, test = _rows(folder / "train.csv.gz"), _rows(folder / "test.csv.gz")
    seen = {text for text, _ in train}
    fresh = [(text, label) for text, label in dict(test).items() if text not in seen]
    order = np.random.default_rng(SEED).permutation(len(fresh))
    rows = [*dict(train).items(), *(fresh[i] for i in order)]
    known = len(rows) - len(fresh)
    splits = np.repeat(["train", *SIZES], [known, *SIZES.values()])
    classes = sorted({label for _, label in rows})
    number = {name: i for i, name in enumerate(classes)}
    return {
        "x": np.array([text for text, _ in rows])[:, None],
        "y": np.array([number[label] for _, label in rows], dtype=np.int64),
        "items": np.array([f"question-{i:05d}" for i in range(len(rows))]),
        "splits": splits,
        "classes": np.array(classes),
    }


def _rows(path: Path) -> list[tuple[str, str]]:
    """(text, category) of a gzipped CSV file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [(row["text"].strip(), row["category"]) for row in csv.DictReader(io.StringIO(file.read()))]


def main(folder: str, out: str) -> None:
    """Write the data file that `coe predict` reads."""
    made = arrays(Path(folder))
    write_atomically(out, lambda file: np.savez_compressed(file, **made))
    names, counts = np.unique(made["splits"], return_counts=True)
    shares = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
    print(f"wrote {out}: {len(made['classes'])} classes, {shares}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
