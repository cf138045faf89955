"""Shares of items that leave before each block: of real thresholds, and of the perfect-threshold bound above them.

The bound lets an item leave at the first cache whose label is the wrapped model's, which only a threshold that knows the
model's answer could do. It says what the caches' labels would allow, never what was achieved.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coe.errors import Unavailable
from coe.types import BoolArray, FloatArray


@dataclass(frozen=True, eq=False)
class Curve:
    """One way of deciding who leaves. `left_before` has one entry per block, the first of them 0."""

    name: str
    left_before: FloatArray
    agreement: float
    """With the wrapped model, on the same items."""
    memory_mib: float
    is_bound: bool = False


def left_before(leaves: BoolArray) -> FloatArray:
    """Share of items that have left before each of L blocks, if item i leaves at the first block l with leaves[l, i].

    `leaves` has shape (L - 1, items): nobody leaves after the last block, where everyone is done.
    """
    gone = np.logical_or.accumulate(leaves, axis=0).mean(axis=1)
    return np.concatenate([[0.0], gone]).astype(np.float64)


def perfect(name: str, right: BoolArray, memory_mib: float = 0.0) -> Curve:
    """The perfect-threshold bound from right (L - 1, items): whether the cached label is the model's."""
    return Curve(name, left_before(right), 1.0, memory_mib, is_bound=True)


def half_saved(curve: Curve) -> float:
    """Share of items that leave with at least half of the blocks before the last still to run.

    The last block is the output layer, which the paper does not count as one.
    """
    body = len(curve.left_before) - 1
    return float(curve.left_before[body // 2])


def plot_svg(curves: Sequence[Curve], title: str = "") -> str:
    """The curves as a standalone SVG, bounds dashed; raises `Unavailable` without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable(f"plots need matplotlib ({error}): pip install 'coe[report]'") from error
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "freeze", "font.size": 9}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            blocks = np.arange(len(curve.left_before)) + 1
            label = curve.name if curve.is_bound else f"{curve.name} (agrees on {100 * curve.agreement:.1f}%)"
            axes.plot(blocks, 100 * curve.left_before, "--" if curve.is_bound else "o-", label=label, markersize=3.5)
        axes.set(xlabel="block (the last is the output layer)", ylabel="items that left before it, %", ylim=(-2, 102))
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
