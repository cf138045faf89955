"""Plots of a report and of an accuracy/cost front, as SVG with real text, made by matplotlib without any display.

Colours are CSS variables (`PALETTE`), so that a picture follows the page it stands in, light or dark; a picture that stands
alone brings them along. The same data gives the same bytes: ids are hashed from the content and carry the plot's name.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from coe.errors import Unavailable
from coe.report import words
from coe.report.nouns import CallRow, Report
from coe.types import Front, FrontPoint

PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1c2330", "#e8ebf2"),
    "soft": ("#5d6779", "#9aa5b8"),
    "line": ("#dde2ea", "#333c4d"),
    "idle": ("#dfe3ea", "#3a4354"),
    "router": ("#9aa4b5", "#6b778d"),
    "tier1": ("#2f6fde", "#6ea3ff"),
    "tier2": ("#e08a1e", "#f3ad4e"),
    "tier3": ("#8a4fcf", "#b48af0"),
    "tier4": ("#c2417c", "#ee82b0"),
    "single": ("#4a5568", "#aab4c6"),
    "good": ("#17845b", "#4cc793"),
    "bad": ("#c9352b", "#ff7b70"),
    "paper": ("#ffffff", "#171c26"),
}
"""CSS variable -> colour on light and on dark paper."""

TIERS = ("tier1", "tier2", "tier3", "tier4")
WIDTH_IN = 7.4


def palette_css(root: str = ":root") -> str:
    """The palette as CSS custom properties, dark where the reader's system asks for it."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    return f"{root}{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{{root}{{{dark}}}}}"


def report_plots(report: Report) -> dict[str, str]:
    """Name of a plot -> inline SVG that takes its colours from the page; plots without data are left out.

    Raises `Unavailable` where matplotlib is not installed.
    """
    plots: dict[str, Callable[[Report], Any]] = {
        "savings": _savings,
        "nodes": _nodes,
        "predicted": _predicted,
        "tiers": _reach,
        "latency": _latency,
        "accuracy": _accuracy,
    }
    drawn = ((name, _svg(partial(plot, report), name)) for name, plot in plots.items())
    return {name: svg for name, svg in drawn if svg}


def front_plot(front: Front) -> str:
    """The accuracy/cost front with the single models and the chosen point: an SVG document that stands alone."""
    return _svg(partial(_front, front), "front", alone=True)


# --- Where the money went ---------------------------------------------------------------------------------------------


def _savings(report: Report) -> Any:
    """Dollars per 1,000 queries, cascade over best single model, on both bases; the scales are separate."""
    usage, bill = report.cost("usage"), report.cost("allocation")
    if usage.usd_per_1k is None or bill.usd_per_1k is None:
        return None
    answers = report.served.answered + report.served.other
    savings = {s.basis: s for s in report.against.savings} if report.against else {}
    figure, axes = _figure(1.95, 1, 2)
    for axis, cost in zip(axes, (usage, bill), strict=True):
        parts = [(_tier_name(t.tier), TIERS[t.tier % len(TIERS)], t.usd_per_1k or 0.0) for t in report.tiers]
        if cost is bill:
            router, idle = (
                1000 * sum(getattr(n, key) for n in report.nodes) / answers for key in ("usd_router", "usd_idle")
            )
            parts += [("router", "router", router), ("idle", "idle", max(0.0, idle))]
        start = 0.0
        for name, colour, usd in parts:
            axis.barh(
                1, usd, left=start, height=0.62, color=_hex(colour), label=name, edgecolor=_hex("paper"), linewidth=1
            )
            start += usd
        rows, names = [(1.0, start, cost.usd_per_1k or 0.0)], ["cascade"]
        saving = savings.get(cost.basis)
        if saving is not None and report.against is not None:
            single = saving.baseline_usd_per_1k
            axis.barh(0, single, height=0.62, color=_hex("single"), label="single, planned")
            rows, names = [*rows, (0.0, single, single)], [*names, report.against.member]
        for (y, end, _), text in zip(rows, words.usd_column([usd for _, _, usd in rows]), strict=True):
            _beside(axis, end, y, text, bold=True)
        axis.set_yticks([y for y, _, _ in rows], names)
        axis.set_xlim(0, 1.42 * max(end for _, end, _ in rows))
        axis.set_ylim(-0.5, 1.5)
        axis.set_title(cost.basis, loc="left", color=_hex("ink"), fontsize=10.5, pad=7)
        _bare(axis)
    handles, names = axes[1].get_legend_handles_labels()
    _legend(figure, handles, names)
    return figure


def _nodes(report: Report) -> Any:
    """Dollars per 1,000 queries by node type, split into members, router and idle."""
    answers = report.served.answered + report.served.other
    nodes = [n for n in report.nodes if n.usd > 0]
    if not answers or not nodes:
        return None
    figure, (axis,) = _figure(0.75 + 0.5 * len(nodes))
    texts = words.usd_column([1000 * n.usd / answers for n in nodes])
    handles: dict[str, Any] = {}
    widest = max(n.usd for n in nodes) * 1000 / answers
    for y, node in enumerate(reversed(nodes)):
        start = 0.0
        own = [c for c in report.calls if c.node_type == node.node_type and c.usd > 0]
        parts = [(_member_name(c), _shade(report, c), c.usd) for c in own]
        parts += [
            ("router", (_hex("router"), 1.0), node.usd_router),
            ("idle", (_hex("idle"), 1.0), max(0.0, node.usd_idle)),
        ]
        for name, (colour, alpha), usd in parts:
            if usd <= 0:
                continue
            width = 1000 * usd / answers
            style = {"color": colour, "alpha": alpha, "edgecolor": _hex("paper"), "linewidth": 1}
            handles.setdefault(name, axis.barh(y, width, left=start, height=0.62, **style))
            if name == "idle" and width > 0.14 * widest:
                share = words.percent(node.usd_idle / node.usd, 0)
                centre = start + width / 2
                axis.text(centre, y, f"{share} idle", va="center", ha="center", color=_hex("soft"), fontsize=9)
            start += width
        text = texts[len(nodes) - 1 - y]
        _beside(axis, start, y, text, bold=True)
    names = [f"{n.node_type}\n{n.planned} × {n.accelerator}" for n in reversed(nodes)]
    axis.set_yticks(range(len(nodes)), names)
    axis.set_xlim(0, 1.16 * widest)
    _bare(axis)
    order = [*(_member_name(c) for c in report.calls), "router", "idle"]
    order = [name for name in dict.fromkeys(order) if name in handles]
    _legend(figure, [handles[n] for n in order], order)
    return figure


def _predicted(report: Report) -> Any:
    """Usage dollars per 1,000 queries of every member: planned as an outline, metered as a bar."""
    rows = [c for c in report.calls if c.usd_per_1k is not None]
    if not rows:
        return None
    figure, (axis,) = _figure(0.7 + 0.46 * len(rows))
    values = [v for c in rows for v in (c.usd_per_1k, c.usd_per_1k_predicted)]
    texts = words.usd_column(values)
    widest = max(v for v in values if v is not None) or 1.0
    for y, c in enumerate(reversed(rows)):
        i = len(rows) - 1 - y
        colour, alpha = _shade(report, c)
        metered = c.usd_per_1k or 0.0
        axis.barh(y, metered, height=0.56, color=colour, alpha=alpha)
        axis.plot(
            [c.usd_per_1k_predicted] * 2, [y - 0.38, y + 0.38], color=_hex("ink"), linewidth=2.2, solid_capstyle="butt"
        )
        end = max(metered, c.usd_per_1k_predicted)
        _beside(axis, end, y, f"{texts[2 * i]}, planned {texts[2 * i + 1]}", size=9.5)
    axis.set_yticks(range(len(rows)), [f"{c.member}\non {c.node_type}" for c in reversed(rows)])
    axis.set_xlim(0, 1.5 * widest)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    _bare(axis)
    return figure


# --- What happened to queries -----------------------------------------------------------------------------------------


def _reach(report: Report) -> Any:
    """A funnel: the share of queries that arrives at each tier, of which the coloured part is answered there."""
    tiers = [t for t in report.tiers if t.reach is not None]
    if not tiers:
        return None
    figure, (axis,) = _figure(0.55 + 0.62 * len(tiers))
    for y, t in enumerate(reversed(tiers)):
        colour = _hex(TIERS[t.tier % len(TIERS)])
        reach, accepted = t.reach or 0.0, t.accepted or 0.0
        axis.barh(y, reach, height=0.66, color=_hex("idle"))
        axis.barh(y, accepted, height=0.66, color=colour)
        axis.plot(
            [t.reach_predicted] * 2, [y - 0.42, y + 0.42], color=_hex("ink"), linewidth=2.2, solid_capstyle="butt"
        )
        arrive = f"{words.percent(reach)} arrive (planned {words.percent(t.reach_predicted)})"
        label = f"{arrive}, {words.percent(accepted)} answered"
        if max(reach, t.reach_predicted) > 0.55:
            axis.text(0, y + 0.47, label, va="bottom", ha="left", color=_hex("soft"), fontsize=9)
        else:
            _beside(axis, max(reach, t.reach_predicted), y, label, size=9, colour="soft")
    names = [f"tier {t.tier + 1}\n{_listed(t.members)}" for t in reversed(tiers)]
    axis.set_yticks(range(len(tiers)), names)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(-0.5, len(tiers) - 0.28)
    _bare(axis)
    return figure


def _latency(report: Report) -> Any:
    """Share of requests answered within a time, with the promise and the plan's bound."""
    latency = report.latency
    if latency is None or len(latency.curve) < 2:
        return None
    figure, (axis,) = _figure(2.7)
    x = [1000 * s for s, _ in latency.curve]
    y = [100 * share for _, share in latency.curve]
    axis.step([x[0], *x], [0, *y], where="post", color=_hex("tier1"), linewidth=2.2)
    axis.fill_between([x[0], *x], [0, *y], step="post", color=_hex("tier1"), alpha=0.12, linewidth=0)
    promised = 1000 * latency.promised_s
    kept = latency.observed_s is not None and latency.observed_s <= latency.promised_s
    colour = _hex("good" if kept else "bad")
    axis.axvline(promised, color=colour, linewidth=1.8)
    axis.axhline(100 * latency.quantile, color=_hex("soft"), linewidth=1, linestyle=(0, (2, 2)))
    right = 1.12 * max(promised, min(x[-1], 3 * promised), 1000 * latency.bound_s)
    text = f"promise: {100 * latency.quantile:.4g}% within {words.seconds(latency.promised_s)} "
    axis.text(
        promised - 0.008 * right, 50, text, color=colour, ha="right", va="bottom", fontsize=9.5, fontweight="bold"
    )
    axis.axvline(1000 * latency.bound_s, color=_hex("soft"), linewidth=1.2, linestyle=(0, (5, 3)))
    text = f"plan's bound {words.seconds(latency.bound_s)} "
    axis.text(1000 * latency.bound_s - 0.008 * right, 30, text, color=_hex("soft"), ha="right", va="bottom", fontsize=9)
    if latency.observed_s is not None:
        observed = 1000 * latency.observed_s
        axis.plot([observed], [100 * latency.quantile], marker="o", markersize=6.5, color=_hex("tier1"))
        label = f"{words.seconds(latency.observed_s)} "
        axis.annotate(
            label,
            (observed, 100 * latency.quantile),
            xytext=(-5, -13),
            textcoords="offset points",
            ha="right",
            color=_hex("ink"),
            fontsize=10,
            fontweight="bold",
        )
    axis.set_xlim(0, right)
    axis.set_ylim(0, 104)
    axis.set_yticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
    axis.set_xlabel(
        f"ms from {'due' if latency.source == 'client' else 'arrival'} to answer", color=_hex("soft"), fontsize=9.5
    )
    _ruled(axis)
    return figure


def _accuracy(report: Report) -> Any:
    """Points with 95% intervals, and the lowest accuracy that keeps the promise."""
    rows = report.accuracy
    if not rows:
        return None
    figure, (axis,) = _figure(0.75 + 0.46 * len(rows))
    colours = {"cascade": "tier1", "best single model": "single", "reference": "soft"}
    for y, row in enumerate(reversed(rows)):
        colour = _hex(colours[row.role])
        if row.low is not None and row.high is not None:
            axis.plot(
                [100 * row.low, 100 * row.high], [y, y], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round"
            )
        axis.plot([100 * row.accuracy], [y], marker="o", markersize=8.5, color=colour)
        label = words.percent(row.accuracy, 2)
        axis.annotate(
            label,
            (100 * row.accuracy, y),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=_hex("ink"),
            fontsize=9.5,
            fontweight="bold",
        )
    reference = next((r for r in rows if r.role == "reference"), None)
    if reference is not None:
        floor = 100 * (reference.accuracy - report.max_accuracy_loss)
        kept = 100 * rows[0].accuracy >= floor - 1e-9
        colour = _hex("good" if kept else "bad")
        axis.axvline(floor, color=colour, linewidth=1.8)
        axis.annotate(
            f"promised: at least {floor:.2f}%",
            (floor, len(rows) - 0.3),
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
        )
    axis.set_yticks(
        range(len(rows)), [r.role if r.role == "cascade" else f"{r.role}\n{r.name}" for r in reversed(rows)]
    )
    axis.set_ylim(-0.5, len(rows) - 0.05)
    left, right = axis.get_xlim()
    right = min(right, 100 + 0.04 * (100 - left))
    ticks = [t for t in axis.get_xticks() if left <= t <= 100]
    axis.set_xticks(ticks, [f"{t:g}%" for t in ticks])
    axis.set_xlim(left, right)
    _ruled(axis, "x")
    return figure


# --- The front --------------------------------------------------------------------------------------------------------


def _front(front: Front) -> Any:
    """Accuracy over dollars per 1,000 queries: single models as diamonds, the front as a stair, the choice as a star."""
    figure, (axis,) = _figure(4.2)
    points, singles = front.points, front.singles
    if points:
        x, y = _places(points)
        axis.step(x, y, where="post", color=_hex("tier1"), linewidth=1.8, alpha=0.6)
        axis.plot(x, y, "o", markersize=5, color=_hex("tier1"), label="front of cascades and single models")
    x, y = _places(singles)
    axis.plot(x, y, "D", markersize=7, color=_hex("tier2"), linestyle="none", label="single model")
    for point, across, up in zip(singles, x, y, strict=True):
        name = point.cascade.members[0]
        axis.annotate(
            name, (across, up), xytext=(7, -3), textcoords="offset points", color=_hex("soft"), fontsize=9, va="top"
        )
    reference = next((s for s in singles if s.cascade.members == (front.reference,)), None)
    if reference is not None:
        floor = 100 * (reference.stats.accuracy - front.epsilon)
        axis.axhline(floor, color=_hex("good"), linewidth=1.2, linestyle=(0, (5, 3)))
        text = f"{front.reference} less {words.points(front.epsilon)}"
        axis.text(
            0.995,
            floor,
            text,
            transform=axis.get_yaxis_transform(),
            color=_hex("good"),
            fontsize=9,
            ha="right",
            va="bottom",
        )
    if front.chosen is not None:
        chosen = front.chosen
        x, y = _places((chosen,))
        axis.plot(
            x, y, "*", markersize=17, color=_hex("bad"), markeredgecolor=_hex("paper"), linestyle="none", label="chosen"
        )
        text = f"{' + '.join(chosen.cascade.tiers[0].members)}"
        text += f" → {chosen.cascade.tiers[-1].members[0]}" if len(chosen.cascade.tiers) > 1 else ""
        axis.annotate(
            text,
            (x[0], y[0]),
            xytext=(-4, 11),
            textcoords="offset points",
            color=_hex("ink"),
            fontsize=9.5,
            fontweight="bold",
        )
    costs = [p.cost_per_1k for p in (*points, *singles) if p.cost_per_1k > 0]
    if costs and max(costs) > 8 * min(costs) and len(costs) == len(points) + len(singles):
        axis.set_xscale("log")
        _plain_log_ticks(axis, min(costs), max(costs))
    unit = "usage dollars" if front.cost_unit == "usd" else front.cost_unit
    axis.set_xlabel(f"{unit} per 1,000 queries", color=_hex("soft"), fontsize=9.5)
    prices = textwrap.fill(f"Prices: {front.cost_source}", 115)
    axis.text(0, -0.2, prices, transform=axis.transAxes, color=_hex("soft"), fontsize=7.5, va="top", linespacing=1.4)
    axis.set_ylabel(f"accuracy, % of {front.items:,} {front.split} items", color=_hex("soft"), fontsize=9.5)
    axis.margins(x=0.1, y=0.12)
    _ruled(axis)
    handles, names = axis.get_legend_handles_labels()
    _legend(figure, handles, names)
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


# --- Matplotlib -------------------------------------------------------------------------------------------------------


def _hex(name: str) -> str:
    """The light colour; `_svg` turns it into the CSS variable. No two of them are equal."""
    return PALETTE[name][0]


def _shade(report: Report, call: CallRow) -> tuple[str, float]:
    """The tier's colour, paler for the later members of a tier."""
    members = report.tiers[call.tier].members
    return _hex(TIERS[call.tier % len(TIERS)]), 1 - 0.5 * members.index(call.member) / max(1, len(members))


def _tier_name(tier: int) -> str:
    return f"tier {tier + 1}"


def _member_name(call: CallRow) -> str:
    return f"{call.member} (tier {call.tier + 1})"


def _listed(members: Sequence[str]) -> str:
    text = " + ".join(members)
    return text if len(text) <= 24 else f"{members[0]} + {len(members) - 1} more"


def _figure(height_in: float, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=_hex("soft"), labelcolor=_hex("ink"), labelsize=9.5, length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    return figure, axes


def _beside(
    axis: Any, x: float, y: float, text: str, size: float = 10, colour: str = "ink", bold: bool = False
) -> None:
    """Text a little to the right of a point."""
    axis.annotate(
        text,
        (x, y),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=_hex(colour),
        fontsize=size,
        fontweight="bold" if bold else "normal",
    )


def _bare(axis: Any) -> None:
    """Bars whose figures are written beside them need no scale."""
    axis.set_xticks([])
    axis.axvline(0, color=_hex("router"), linewidth=1.2)


def _ruled(axis: Any, which: str = "both") -> None:
    axis.grid(axis=which, color=_hex("line"), linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelcolor=_hex("soft"), axis="x")


def _legend(figure: Any, handles: Iterable[Any], names: Iterable[str]) -> None:
    legend = figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=6,
        frameon=False,
        fontsize=9,
        handlelength=1.0,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_color(_hex("soft"))


def _svg(draw: Callable[[], Any], name: str, alone: bool = False) -> str:
    """The figure as an `<svg>` element: text as text, colours as CSS variables, ids with the plot's name.

    Empty where there is nothing to draw.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise Unavailable("plots need matplotlib; run: pip install 'coe[report]'") from error
    out = io.StringIO()
    # a dollar sign is a dollar sign and no mathematics
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "coe", "text.parse_math": False}):
        figure = draw()
        if figure is None:
            return ""
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r' xmlns:xlink="[^"]+"', "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for variable, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{variable})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    svg = re.sub(r'<svg width="[^"]+" height="[^"]+"', "<svg", svg, count=1)
    label = f'<svg class="plot" role="img" aria-label="{name}"'
    if alone:
        label += f' width="{float(size[1]) * 4 / 3:.0f}" height="{float(size[2]) * 4 / 3:.0f}"'
        svg = svg.replace(
            ">", f'><style>{palette_css("svg")}</style><rect width="100%" height="100%" fill="var(--paper)"/>', 1
        )
    return svg.replace("<svg", label, 1) + "\n"
