"""Scikit-learn's handwritten digits (1,797 real images of 8 x 8 pixels), split once by seed.

python -m deployments.digits.data OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from coe.files import write_atomically

SIZES = {"train": 500, "calibration": 300, "certification": 600, "test": 397}
SEED = 20


def arrays() -> dict[str, np.ndarray]:
    """x (1797, 8, 8) float32 in 0..1, y (1797,), items (1797,) ids, splits (1797,) names."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    return {
        "x": (digits.images[order] / 16).astype(np.float32),
        "y": digits.target[order].astype(np.int64),
        "items": np.array([f"digit-{i:04d}" for i in order]),
        "splits": np.repeat(list(SIZES), list(SIZES.values())),
    }


def main(out: str) -> None:
    """Write the data file that `coe predict` and `coe bench` read."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: np.savez_compressed(file, **arrays()))
    print(f"wrote {out}: 1,797 digits, " + ", ".join(f"{n} {name}" for name, n in SIZES.items()), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
