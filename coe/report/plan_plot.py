"""The picture of a plan: its nodes with the replicas on them, and what each line of the bill costs per hour."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from coe.placement.packing import PackedNode, packed
from coe.report import words
from coe.report.drawing import TIERS, bare, beside, figure_of, ink, svg
from coe.types import Placement, Plan

MOST_ROWS = 24
"""Nodes that hold the same are one row; beyond so many rows the rest is counted in words."""


def plan_plot(plan: Plan) -> str:
    """An SVG document that stands alone. Raises `Unavailable` where matplotlib is not installed."""
    return svg(partial(_plan, plan), "plan", alone=True)


def _plan(plan: Plan) -> Any:
    rows = _rows(plan)
    lines = [line for line in plan.allocation_lines if line.usd > 0]
    figure, (nodes, bill) = figure_of(1.3 + 0.42 * (min(len(rows), MOST_ROWS) + len(lines)), rows=2)
    bill.set_box_aspect(None)
    for y, (node, count) in enumerate(rows[:MOST_ROWS]):
        _node(plan, nodes, y, node, count)
    left_out = len(rows) - MOST_ROWS
    if left_out > 0:
        beside(nodes, 0, MOST_ROWS, f"and {left_out} more kinds of nodes", 9, "soft")
    nodes.set_yticks(range(min(len(rows), MOST_ROWS)), [_name(n, c) for n, c in rows[:MOST_ROWS]])
    nodes.invert_yaxis()
    nodes.set_xticks([])
    nodes.set_title(
        f"{plan.cascade.name} at {plan.workload.rate_per_s:g} queries/s: who runs where (a box is a device's share)",
        loc="left",
        fontsize=10,
        color=ink("ink"),
    )
    for y, line in enumerate(lines):
        bill.barh(y, line.usd, height=0.62, color=ink("router" if "router" in line.name else "tier1"))
        beside(bill, line.usd, y, words.usd(line.usd), 9)
    bill.set_yticks(range(len(lines)), [line.name for line in lines])
    bill.invert_yaxis()
    bill.margins(x=0.15)
    bare(bill)
    total = words.usd(sum(line.usd for line in lines))
    bill.set_title(f"what is rented, {total} per hour", loc="left", fontsize=10, color=ink("ink"))
    return figure


def _rows(plan: Plan) -> list[tuple[PackedNode, int]]:
    """Nodes with how many of them hold the same."""
    kinds: dict[tuple[object, ...], PackedNode] = {}
    counts: Counter[tuple[object, ...]] = Counter()
    for node in packed(plan):
        key = (node.offer.node_type, node.is_router, tuple((p.deployment, d) for p, d in node.replicas))
        kinds.setdefault(key, node)
        counts[key] += 1
    return [(kinds[key], counts[key]) for key in kinds]


def _name(node: PackedNode, count: int) -> str:
    return f"{count} × {node.offer.node_type}" if count > 1 else node.offer.node_type


def _node(plan: Plan, axis: Any, y: int, node: PackedNode, count: int) -> None:
    """One row: devices side by side, each with the shares of its replicas."""
    if node.is_router:
        axis.barh(y, 1.0, height=0.66, color=ink("router"))
        axis.text(
            0.5, y, "router" if count == 1 else "routers", ha="center", va="center", fontsize=8, color=ink("paper")
        )
        return
    for device, left in enumerate(node.devices):
        start = float(device)
        for placement in (p for p, d in node.replicas if d == device):
            _box(plan, axis, start, y, placement)
            start += placement.share
        if left > 0:
            axis.barh(y, left, left=start, height=0.66, color=ink("idle"), edgecolor=ink("paper"))


def _box(plan: Plan, axis: Any, start: float, y: int, placement: Placement) -> None:
    tier = next(t for t, tier in enumerate(plan.cascade.tiers) if placement.member in tier.members)
    colour = ink(TIERS[tier % len(TIERS)])
    axis.barh(y, placement.share, left=start, height=0.66, color=colour, edgecolor=ink("paper"))
    if placement.share >= 0.25:
        text = (
            placement.member
            if len(placement.member) <= 40 * placement.share
            else placement.member[: int(38 * placement.share)] + "…"
        )
        axis.text(start + placement.share / 2, y, text, ha="center", va="center", fontsize=8, color=ink("paper"))
