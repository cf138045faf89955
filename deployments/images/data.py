"""CIFAR-10 as a data file: 18,000 of its pictures, split once by seed.

    python -m deployments.images.data FOLDER OUT.npz

FOLDER holds train_0.npz, ... and test.npz, each with `jpeg`, `offset` and `label`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from coe.files import write_atomically

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 12_000, "calibration": 2_000, "certification": 3_000, "test": 1_000}
SEED = 10


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """x (n, 3, 32, 32) float32 in 0..1, y (n,), items (n,) ids, splits (n,) names, classes (10,)."""
    own = sum(SIZES[split] for split in ("train", "calibration", "certification"))
    parts = [
        drawn(sorted(folder.glob("train_*.npz")), own, "train"),
        drawn([folder / "test.npz"], SIZES["test"], "test"),
    ]
    x, y, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {
        "x": x,
        "y": y,
        "items": items,
        "splits": np.repeat(list(SIZES), list(SIZES.values())),
        "classes": np.array(CLASSES),
    }


def drawn(files: list[Path], count: int, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, labels and ids of `count` pictures of these files, drawn by seed."""
    archives = [np.load(file) for file in files]
    places = [(number, row) for number, archive in enumerate(archives) for row in range(len(archive["label"]))]
    chosen = [places[i] for i in np.random.default_rng(SEED).permutation(len(places))[:count]]
    jpegs, offsets, labels = ([archive[key] for archive in archives] for key in ("jpeg", "offset", "label"))
    x = np.empty((count, 3, 32, 32), dtype=np.float32)
    for at, (number, row) in enumerate(chosen):
        begin, end = offsets[number][row], offsets[number][row + 1]
        picture = Image.open(io.BytesIO(jpegs[number][begin:end].tobytes())).convert("RGB")
        x[at] = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255
    y = np.array([labels[number][row] for number, row in chosen], dtype=np.int64)
    return x, y, np.array([f"{name}-{number}-{row:05d}" for number, row in chosen])


def main(folder: str, out: str) -> None:
    """Write the data file that `coe predict` reads."""
    made = arrays(Path(folder))
    write_atomically(out, lambda file: np.savez(file, **made))
    names, counts = np.unique(made["splits"], return_counts=True)
    shares = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
    print(f"wrote {out}: {len(made['classes'])} classes, {shares}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
