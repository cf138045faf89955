"""Plots of a report, for its page; see `coe.report.drawing` for what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from coe.report import words
from coe.report.drawing import TIERS, bare, beside, figure_of, ink, legend, ruled, svg
from coe.report.nouns import CallRow, Report


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
    drawn = ((name, svg(partial(plot, report), name)) for name, plot in plots.items())
    return {name: svg for name, svg in drawn if svg}


# --- Where the money went ---------------------------------------------------------------------------------------------


def _savings(report: Report) -> Any:
    """Dollars per 1,000 queries, cascade over best single model, on both bases; the scales are separate."""
    usage, bill = report.cost("usage"), report.cost("allocation")
    if usage.usd_per_1k is None or bill.usd_per_1k is None:
        return None
    answers = report.served.answered + report.served.other
    savings = {s.basis: s for s in report.against.savings} if report.against else {}
    figure, axes = figure_of(1.95, 1, 2)
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
                1,
                usd,
                left=start,
                height=0.62,
                color=ink(colour),
                label=name,
                edgecolor=ink("paper"),
                linewidth=1,
            )
            start += usd
        rows, names = [(1.0, start, cost.usd_per_1k or 0.0)], ["cascade"]
        saving = savings.get(cost.basis)
        if saving is not None and report.against is not None:
            single = saving.baseline_usd_per_1k
            axis.barh(0, single, height=0.62, color=ink("single"), label="single, planned")
            rows, names = [*rows, (0.0, single, single)], [*names, report.against.member]
        for (y, end, _), text in zip(rows, words.usd_column([usd for _, _, usd in rows]), strict=True):
            beside(axis, end, y, text, bold=True)
        axis.set_yticks([y for y, _, _ in rows], names)
        axis.set_xlim(0, 1.42 * max(end for _, end, _ in rows))
        axis.set_ylim(-0.5, 1.5)
        axis.set_title(cost.basis, loc="left", color=ink("ink"), fontsize=10.5, pad=7)
        bare(axis)
    handles, names = axes[1].get_legend_handles_labels()
    legend(figure, handles, names)
    return figure


def _nodes(report: Report) -> Any:
    """Dollars per 1,000 queries by node type, split into members, router and idle."""
    answers = report.served.answered + report.served.other
    nodes = [n for n in report.nodes if n.usd > 0]
    if not answers or not nodes:
        return None
    figure, (axis,) = figure_of(0.75 + 0.5 * len(nodes))
    texts = words.usd_column([1000 * n.usd / answers for n in nodes])
    handles: dict[str, Any] = {}
    widest = max(n.usd for n in nodes) * 1000 / answers
    for y, node in enumerate(reversed(nodes)):
        start = 0.0
        own = [c for c in report.calls if c.node_type == node.node_type and c.usd > 0]
        parts = [(_member_name(c), _shade(report, c), c.usd) for c in own]
        parts += [
            ("router", (ink("router"), 1.0), node.usd_router),
            ("idle", (ink("idle"), 1.0), max(0.0, node.usd_idle)),
        ]
        for name, (colour, alpha), usd in parts:
            if usd <= 0:
                continue
            width = 1000 * usd / answers
            style = {"color": colour, "alpha": alpha, "edgecolor": ink("paper"), "linewidth": 1}
            handles.setdefault(name, axis.barh(y, width, left=start, height=0.62, **style))
            if name == "idle" and width > 0.14 * widest:
                share = words.percent(node.usd_idle / node.usd, 0)
                centre = start + width / 2
                axis.text(centre, y, f"{share} idle", va="center", ha="center", color=ink("soft"), fontsize=9)
            start += width
        text = texts[len(nodes) - 1 - y]
        beside(axis, start, y, text, bold=True)
    names = [f"{n.node_type}\n{n.planned} × {n.accelerator}" for n in reversed(nodes)]
    axis.set_yticks(range(len(nodes)), names)
    axis.set_xlim(0, 1.16 * widest)
    bare(axis)
    order = [*(_member_name(c) for c in report.calls), "router", "idle"]
    order = [name for name in dict.fromkeys(order) if name in handles]
    legend(figure, [handles[n] for n in order], order)
    return figure


def _predicted(report: Report) -> Any:
    """Usage dollars per 1,000 queries of every member: planned as an outline, metered as a bar."""
    rows = [c for c in report.calls if c.usd_per_1k is not None]
    if not rows:
        return None
    figure, (axis,) = figure_of(0.7 + 0.46 * len(rows))
    values = [v for c in rows for v in (c.usd_per_1k, c.usd_per_1k_predicted)]
    texts = words.usd_column(values)
    widest = max(v for v in values if v is not None) or 1.0
    for y, c in enumerate(reversed(rows)):
        i = len(rows) - 1 - y
        colour, alpha = _shade(report, c)
        metered = c.usd_per_1k or 0.0
        axis.barh(y, metered, height=0.56, color=colour, alpha=alpha)
        axis.plot(
            [c.usd_per_1k_predicted] * 2,
            [y - 0.38, y + 0.38],
            color=ink("ink"),
            linewidth=2.2,
            solid_capstyle="butt",
        )
        end = max(metered, c.usd_per_1k_predicted)
        beside(axis, end, y, f"{texts[2 * i]}, planned {texts[2 * i + 1]}", size=9.5)
    axis.set_yticks(range(len(rows)), [f"{c.member}\non {c.node_type}" for c in reversed(rows)])
    axis.set_xlim(0, 1.5 * widest)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    bare(axis)
    return figure


# --- What happened to queries -----------------------------------------------------------------------------------------


def _reach(report: Report) -> Any:
    """A funnel: the share of queries that arrives at each tier, of which the coloured part is answered there."""
    tiers = [t for t in report.tiers if t.reach is not None]
    if not tiers:
        return None
    figure, (axis,) = figure_of(0.55 + 0.62 * len(tiers))
    for y, t in enumerate(reversed(tiers)):
        colour = ink(TIERS[t.tier % len(TIERS)])
        reach, accepted = t.reach or 0.0, t.accepted or 0.0
        axis.barh(y, reach, height=0.66, color=ink("idle"))
        axis.barh(y, accepted, height=0.66, color=colour)
        axis.plot([t.reach_predicted] * 2, [y - 0.42, y + 0.42], color=ink("ink"), linewidth=2.2, solid_capstyle="butt")
        arrive = f"{words.percent(reach)} arrive (planned {words.percent(t.reach_predicted)})"
        label = f"{arrive}, {words.percent(accepted)} answered"
        if max(reach, t.reach_predicted) > 0.55:
            axis.text(0, y + 0.47, label, va="bottom", ha="left", color=ink("soft"), fontsize=9)
        else:
            beside(axis, max(reach, t.reach_predicted), y, label, size=9, colour="soft")
    names = [f"tier {t.tier + 1}\n{_listed(t.members)}" for t in reversed(tiers)]
    axis.set_yticks(range(len(tiers)), names)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(-0.5, len(tiers) - 0.28)
    bare(axis)
    return figure


def _latency(report: Report) -> Any:
    """Share of requests answered within a time, with the promise and the plan's bound."""
    latency = report.latency
    if latency is None or len(latency.curve) < 2:
        return None
    figure, (axis,) = figure_of(2.7)
    x = [1000 * s for s, _ in latency.curve]
    y = [100 * share for _, share in latency.curve]
    axis.step([x[0], *x], [0, *y], where="post", color=ink("tier1"), linewidth=2.2)
    axis.fill_between([x[0], *x], [0, *y], step="post", color=ink("tier1"), alpha=0.12, linewidth=0)
    promised = 1000 * latency.promised_s
    kept = latency.observed_s is not None and latency.observed_s <= latency.promised_s
    colour = ink("good" if kept else "bad")
    axis.axvline(promised, color=colour, linewidth=1.8)
    axis.axhline(100 * latency.quantile, color=ink("soft"), linewidth=1, linestyle=(0, (2, 2)))
    right = 1.12 * max(promised, min(x[-1], 3 * promised), 1000 * latency.bound_s)
    text = f"promise: {100 * latency.quantile:.4g}% within {words.seconds(latency.promised_s)} "
    axis.text(
        promised - 0.008 * right, 50, text, color=colour, ha="right", va="bottom", fontsize=9.5, fontweight="bold"
    )
    axis.axvline(1000 * latency.bound_s, color=ink("soft"), linewidth=1.2, linestyle=(0, (5, 3)))
    text = f"plan's bound {words.seconds(latency.bound_s)} "
    axis.text(1000 * latency.bound_s - 0.008 * right, 30, text, color=ink("soft"), ha="right", va="bottom", fontsize=9)
    if latency.observed_s is not None:
        observed = 1000 * latency.observed_s
        axis.plot([observed], [100 * latency.quantile], marker="o", markersize=6.5, color=ink("tier1"))
        label = f"{words.seconds(latency.observed_s)} "
        axis.annotate(
            label,
            (observed, 100 * latency.quantile),
            xytext=(-5, -13),
            textcoords="offset points",
            ha="right",
            color=ink("ink"),
            fontsize=10,
            fontweight="bold",
        )
    axis.set_xlim(0, right)
    axis.set_ylim(0, 104)
    axis.set_yticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])
    axis.set_xlabel(
        f"ms from {'due' if latency.source == 'client' else 'arrival'} to answer", color=ink("soft"), fontsize=9.5
    )
    ruled(axis)
    return figure


def _accuracy(report: Report) -> Any:
    """Points with 95% intervals, and the lowest accuracy that keeps the promise."""
    rows = report.accuracy
    if not rows:
        return None
    figure, (axis,) = figure_of(0.75 + 0.46 * len(rows))
    colours = {"cascade": "tier1", "best single model": "single", "reference": "soft"}
    for y, row in enumerate(reversed(rows)):
        colour = ink(colours[row.role])
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
            color=ink("ink"),
            fontsize=9.5,
            fontweight="bold",
        )
    reference = next((r for r in rows if r.role == "reference"), None)
    if reference is not None:
        floor = 100 * (reference.accuracy - report.max_accuracy_loss)
        kept = 100 * rows[0].accuracy >= floor - 1e-9
        colour = ink("good" if kept else "bad")
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
    ruled(axis, "x")
    return figure


# --- The front --------------------------------------------------------------------------------------------------------


# --- Names and shades ---


def _shade(report: Report, call: CallRow) -> tuple[str, float]:
    """The tier's colour, paler for the later members of a tier."""
    members = report.tiers[call.tier].members
    return ink(TIERS[call.tier % len(TIERS)]), 1 - 0.5 * members.index(call.member) / max(1, len(members))


def _tier_name(tier: int) -> str:
    return f"tier {tier + 1}"


def _member_name(call: CallRow) -> str:
    return f"{call.member} (tier {call.tier + 1})"


def _listed(members: Sequence[str]) -> str:
    text = " + ".join(members)
    return text if len(text) <= 24 else f"{members[0]} + {len(members) - 1} more"
