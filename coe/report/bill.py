"""The bill: node time x price, shared among members by busy time, with the router and idle time as lines of their own.

Node time for which the ledger has no span counts as rented as planned, so that a killed router does not make the bill
smaller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coe.cost.model import SECONDS_PER_HOUR, usd_per_busy_s
from coe.prices.catalog import age_days
from coe.records import BatchRun, NodeSpan
from coe.report import words
from coe.report.nouns import (
    Basis,
    CallRow,
    Cost,
    NodeRow,
    Served,
    Window,
)
from coe.report.window import Clipped, PartOfRun, uncovered_s
from coe.types import CostLine, Offer, Placement, Plan

Key = tuple[int, str, str]
"""(tier, member, node type)"""


def nodes_and_calls(
    plan: Plan, inside: Clipped, window: Window, answers: int
) -> tuple[dict[str, NodeRow], tuple[CallRow, ...]]:
    """Every node type that is rented and every (tier, member, node type) that was planned or called."""
    rented = {
        node.node_type: _rented(plan, node.node_type, inside.spans, window)
        for node in sorted(plan.nodes, key=lambda n: n.node_type == plan.router.node_type)  # the router's come last
    }
    offers = {t: plan.offer(t).model_copy(update={"usd_per_hour": r.usd_per_hour}) for t, r in rented.items()}
    calls = _calls(plan, inside.runs, offers, answers)
    end_day = words.day(window.end_s)
    nodes = {}
    for node_type, time in rented.items():
        offer = plan.offer(node_type)
        usd = time.hours * time.usd_per_hour
        usd_router = time.router_hours * time.usd_per_hour
        own = [row for row in calls if row.node_type == node_type]
        usd_busy, busy_hours = sum(row.usd for row in own), sum(row.device_s for row in own) / SECONDS_PER_HOUR
        nodes[node_type] = NodeRow(
            node_type=node_type,
            accelerator=offer.accelerator,
            devices_per_node=offer.devices_per_node,
            planned=time.planned,
            node_hours=time.hours,
            router_hours=time.router_hours,
            busy_device_hours=busy_hours,
            idle_device_hours=(time.hours - time.router_hours) * offer.devices_per_node - busy_hours,
            unmetered_node_hours=time.unmetered_hours,
            usd_per_hour=time.usd_per_hour,
            usd=usd,
            usd_busy=usd_busy,
            usd_router=usd_router,
            usd_idle=usd - usd_busy - usd_router,
            market=offer.market,
            region=offer.region,
            source=offer.source,
            date=offer.date,
            age_days=age_days(offer, end_day),
        )
    return nodes, calls


@dataclass(frozen=True)
class _Rented:
    """Node time of one type in the window. usd_per_hour is the mean over that time, of one node."""

    planned: int
    hours: float
    router_hours: float
    unmetered_hours: float
    usd_per_hour: float


def _rented(plan: Plan, node_type: str, spans: Sequence[NodeSpan], window: Window) -> _Rented:
    """Node time from the spans; time without a span counts as rented as planned, at the planned price."""
    node = next(n for n in plan.nodes if n.node_type == node_type)
    routers = plan.router.replicas if node_type == plan.router.node_type else 0
    own = [s for s in spans if s.node_type == node_type]
    gap_s = uncovered_s(own, window)
    stretches = [(s.end_s - s.start_s, s.count, s.usd_per_hour) for s in own] + [(gap_s, node.count, node.usd_per_hour)]
    node_s = sum(length * count for length, count, _ in stretches)
    spent = sum(length * count * price for length, count, price in stretches)
    return _Rented(
        planned=node.count,
        hours=node_s / SECONDS_PER_HOUR,
        router_hours=sum(length * min(count, routers) for length, count, _ in stretches) / SECONDS_PER_HOUR,
        unmetered_hours=gap_s * node.count / SECONDS_PER_HOUR,
        usd_per_hour=spent / node_s if node_s > 0 else node.usd_per_hour,
    )


def _calls(plan: Plan, runs: Sequence[PartOfRun], offers: Mapping[str, Offer], answers: int) -> tuple[CallRow, ...]:
    """One row per (tier, member, node type), in the order of the cascade and of the plan's nodes."""
    tier_of = {m: t for t, tier in enumerate(plan.cascade.tiers) for m in tier.members}
    planned: dict[Key, Placement] = {(tier_of[p.member], p.member, p.node_type): p for p in plan.placements}
    made: dict[Key, list[PartOfRun]] = defaultdict(list)
    for part in runs:
        made[part.run.tier, part.run.member, part.run.node_type].append(part)
    members, types = plan.cascade.members, [n.node_type for n in plan.nodes]
    keys = sorted(planned.keys() | made.keys(), key=lambda k: (k[0], members.index(k[1]), types.index(k[2])))
    return tuple(_call_row(plan, key, planned.get(key), made[key], offers[key[2]], answers) for key in keys)


def _call_row(
    plan: Plan, key: Key, placement: Placement | None, parts: Sequence[PartOfRun], offer: Offer, answers: int
) -> CallRow:
    tier, member, node_type = key
    # a call that was cancelled before it started was never made: it cost nothing, and tells what early decisions saved
    saved = sum(p.run.items for p in parts if _was_never_made(p.run))
    parts = [p for p in parts if not _was_never_made(p.run)]
    spent = [part.busy_s * usd_per_busy_s(offer, part.run.share) for part in parts]
    status = {s: sum(p.part for p in parts if p.run.status == s) for s in ("late", "failed", "cancelled")}
    calls, items = sum(p.part for p in parts), sum(p.part * p.run.items for p in parts)
    busy_s, usd = sum(p.busy_s for p in parts), sum(spent)
    fees = sum(p.run.fee_usd * p.part for p in parts)
    return CallRow(
        tier=tier,
        member=member,
        node_type=node_type,
        calls=calls,
        items=items,
        batch_predicted=placement.expected_batch if placement else None,
        batch=items / calls if calls else None,
        busy_s=busy_s,
        device_s=sum(p.busy_s * p.run.share for p in parts),
        busy_per_item_predicted_s=placement.expected_busy_s if placement else None,
        busy_per_item_s=busy_s / items if items else None,
        usd=usd,
        usd_per_1k_predicted=1000 * _predicted_usd_per_query(plan, placement) if placement else 0.0,
        usd_per_1k=per_1k(usd + fees, answers),
        usd_fees=fees,
        late=status["late"],
        failed=status["failed"],
        cancelled=status["cancelled"],
        saved_items=saved,
        usd_wasted=sum(usd for usd, part in zip(spent, parts, strict=True) if part.run.status != "ok"),
    )


def _was_never_made(run: BatchRun) -> bool:
    return run.status == "cancelled" and run.busy_s == 0


def _predicted_usd_per_query(plan: Plan, placement: Placement) -> float:
    """Calls per query x the placement's part of them x busy time per item x its price."""
    per_busy_s = usd_per_busy_s(plan.offer(placement.node_type), placement.share)
    return plan.stats.calls[placement.member] * placement.traffic * placement.expected_busy_s * per_busy_s


def per_1k(usd: float, answers: int) -> float | None:
    return 1000 * usd / answers if answers else None


def usage_line(row: CallRow, node: NodeRow) -> CostLine:
    """Busy accelerator time x its price; a replica's busy time counts with the share it owns."""
    return CostLine(
        name=f"tier {row.tier + 1}: {row.member} on {row.node_type}",
        quantity=row.device_s / SECONDS_PER_HOUR,
        unit="busy device-h",
        unit_price_usd=node.usd_per_hour / node.devices_per_node,
        usd=row.usd,
    )


def fee_line(row: CallRow) -> CostLine:
    """What a member's calls cost beside machines."""
    thousands = row.items / 1000
    return CostLine(
        name=f"tier {row.tier + 1}: fees of {row.member}",
        quantity=thousands,
        unit="1,000 items",
        unit_price_usd=row.usd_fees / thousands if thousands else 0.0,
        usd=row.usd_fees,
    )


def other_lines(node: NodeRow) -> Iterable[CostLine]:
    """The router's node time and the idle accelerator time of one node type."""
    if node.router_hours > 0:
        yield CostLine(
            name=f"router: {node.node_type}",
            quantity=node.router_hours,
            unit="node-h",
            unit_price_usd=node.usd_per_hour,
            usd=node.usd_router,
        )
    if node.node_hours > node.router_hours or node.busy_device_hours > 0:
        yield CostLine(
            name=f"idle: {node.node_type}",
            quantity=node.idle_device_hours,
            unit="idle device-h",
            unit_price_usd=node.usd_per_hour / node.devices_per_node,
            usd=node.usd_idle,
        )


def cost_of(plan: Plan, basis: Basis, usd: float, window: Window, served: Served, accuracy: float | None) -> Cost:
    """Dollars of the window on one basis, per query and per correct query, beside the plan's.

    What is rented costs the same per hour at any load, so on allocation the plan's dollars per query are those of its
    nodes at the load that was observed.
    """
    answers = served.answered + served.other
    dollars = per_1k(usd, answers)
    planned = plan.cost
    if basis == "usage":
        per_hour, planned_per_1k, factor = planned.usd_per_hour_usage, planned.usd_per_1k_usage, 1.0
    else:
        per_hour, planned_per_1k = planned.usd_per_hour_allocation, planned.usd_per_1k_allocation
        factor = plan.workload.rate_per_s / served.rate_per_s if served.rate_per_s else 1.0
    return Cost(
        basis=basis,
        usd=usd,
        usd_per_hour=usd / window.hours if window.hours > 0 else None,
        usd_per_1k=dollars,
        usd_per_1k_correct=dollars / accuracy if dollars is not None and accuracy else None,
        usd_per_hour_predicted=per_hour,
        usd_per_1k_predicted=planned_per_1k * factor,
        usd_per_1k_correct_predicted=planned_per_1k * factor / plan.stats.accuracy if plan.stats.accuracy else 0.0,
    )
