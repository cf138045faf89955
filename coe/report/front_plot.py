"""The picture of a front: accuracy over cost, single models, cascades and the chosen one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

from coe.report import words
from coe.report.drawing import figure_of, ink, legend, ruled, svg
from coe.types import Front, FrontPoint


def front_plot(front: Front) -> str:
    """The accuracy/cost front with the single models and the chosen point: an SVG document that stands alone."""
    return svg(partial(_front, front), "front", alone=True)


def _front(front: Front) -> Any:
    """Accuracy over dollars per 1,000 queries: single models as diamonds, the front as a stair, the choice as a star."""
    figure, (axis,) = figure_of(4.2)
    points, singles = front.points, front.singles
    if points:
        x, y = _places(points)
        axis.step(x, y, where="post", color=ink("tier1"), linewidth=1.8, alpha=0.6)
        axis.plot(x, y, "o", markersize=5, color=ink("tier1"), label="front of cascades and single models")
    x, y = _places(singles)
    axis.plot(x, y, "D", markersize=7, color=ink("tier2"), linestyle="none", label="single model")
    for point, across, up in zip(singles, x, y, strict=True):
        name = point.cascade.members[0]
        axis.annotate(
            name, (across, up), xytext=(7, -3), textcoords="offset points", color=ink("soft"), fontsize=9, va="top"
        )
    reference = next((s for s in singles if s.cascade.members == (front.reference,)), None)
    if reference is not None:
        floor = 100 * (reference.stats.accuracy - front.epsilon)
        axis.axhline(floor, color=ink("good"), linewidth=1.2, linestyle=(0, (5, 3)))
        text = f"{front.reference} less {words.points(front.epsilon)}"
        axis.text(
            0.995,
            floor,
            text,
            transform=axis.get_yaxis_transform(),
            color=ink("good"),
            fontsize=9,
            ha="right",
            va="bottom",
        )
    if front.chosen is not None:
        chosen = front.chosen
        x, y = _places((chosen,))
        axis.plot(
            x,
            y,
            "*",
            markersize=17,
            color=ink("bad"),
            markeredgecolor=ink("paper"),
            linestyle="none",
            label="chosen",
        )
        text = f"{' + '.join(chosen.cascade.tiers[0].members)}"
        text += f" → {chosen.cascade.tiers[-1].members[0]}" if len(chosen.cascade.tiers) > 1 else ""
        axis.annotate(
            text,
            (x[0], y[0]),
            xytext=(-4, 11),
            textcoords="offset points",
            color=ink("ink"),
            fontsize=9.5,
            fontweight="bold",
        )
    costs = [p.cost_per_1k for p in (*points, *singles) if p.cost_per_1k > 0]
    if costs and max(costs) > 8 * min(costs) and len(costs) == len(points) + len(singles):
        axis.set_xscale("log")
        _plain_log_ticks(axis, min(costs), max(costs))
    unit = "usage dollars" if front.cost_unit == "usd" else front.cost_unit
    axis.set_xlabel(f"{unit} per 1,000 queries", color=ink("soft"), fontsize=9.5)
    prices = textwrap.fill(f"Prices: {front.cost_source}", 115)
    axis.text(0, -0.2, prices, transform=axis.transAxes, color=ink("soft"), fontsize=7.5, va="top", linespacing=1.4)
    axis.set_ylabel(f"accuracy, % of {front.items:,} {front.split} items", color=ink("soft"), fontsize=9.5)
    axis.margins(x=0.1, y=0.12)
    ruled(axis)
    handles, names = axis.get_legend_handles_labels()
    legend(figure, handles, names)
    return figure


def _places(points: Sequence[FrontPoint]) -> tuple[list[float], list[float]]:
    return [p.cost_per_1k for p in points], [100 * p.stats.accuracy for p in points]


def _plain_log_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as dollars."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps if low / 1.5 <= m * 10.0**e <= high * 1.5]
    axis.set_xticks(ticks, [f"${tick:.10f}".rstrip("0").rstrip(".") for tick in ticks])
    axis.set_xticks([], minor=True)
