"""Banking77 as a data file of texts: 13,072 different questions of 77 kinds, split once by seed.

    python -m deployments.text.data FOLDER OUT.npz

FOLDER holds train.csv.gz and test.csv.gz with the columns text and category. Their own split is not kept: a certificate needs
more labelled questions than the test file has.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from pathlib import Path

import numpy as np

from coe.files import write_atomically

SIZES = {"train": 5000, "calibration": 2000, "certification": 4000, "test": 2072}
SEED = 77


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """x (n, 1) texts, y (n,), items (n,) ids, splits (n,) names, classes (77,) in the order of y. No text occurs twice."""
    rows = [*dict(_rows(folder / "train.csv.gz") + _rows(folder / "test.csv.gz")).items()]
    order = np.random.default_rng(SEED).permutation(len(rows))
    classes = sorted({label for _, label in rows})
    number = {name: i for i, name in enumerate(classes)}
    return {
        "x": np.array([rows[i][0] for i in order])[:, None],
        "y": np.array([number[rows[i][1]] for i in order], dtype=np.int64),
        "items": np.array([f"question-{i:05d}" for i in order]),
        "splits": np.repeat(list(SIZES), list(SIZES.values())),
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
