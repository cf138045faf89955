"""The bill: node time x price, shared among members by busy time, with the router and idle time as lines of their own.

Node time for which the ledger has no span counts as rented as planned, so that a killed router does not make the bill
smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coe.cost.model import SECONDS_PER_HOUR, usd_per_busy_s
from coe.placement.fees import call_fee_usd
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
from coe.report.window import uncovered_s
from coe.types import CostLine, Offer, Placement, Plan, PlannedNodes

Key = tuple[int, str, str]
"""(tier, member, node type)"""


def nodes_and_calls(
    plan: Plan, spans: Sequence[NodeSpan], made: Mapping[Key, CallTotals], window: Window, answers: int
) -> tuple[dict[str, NodeRow], tuple[CallRow, ...]]:
    """Every node type that is rented and every (tier, member, node type) that was planned or called.

    spans: node time within the window.   made: what was called in it."""
    rented = {node.node_type: _rented(plan, node.node_type, spans, window) for node in plan.nodes}
    return bill_of(plan, rented, made, answers, window)


def bill_of(
    plan: Plan, rented: Mapping[str, Rented], made: Mapping[Key, CallTotals], answers: int, window: Window
) -> tuple[dict[str, NodeRow], tuple[CallRow, ...]]:
    """The same from sums: node time by node type, and what was called of each (tier, member, node type)."""
    offers = {t: plan.offer(t).model_copy(update={"usd_per_hour": r.usd_per_hour}) for t, r in rented.items()}
    calls = _calls(plan, made, offers, answers)
    end_day = words.day(window.end_s)
    nodes = {}
    for node_type in sorted(rented, key=lambda t: t == plan.router.node_type):  # the router's come last
        time, offer = rented[node_type], plan.offer(node_type)
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


@dataclass
class CallTotals:
    """What was called of one member on one node type; a call that counts in part adds that part of everything.

    device_s: busy seconds in whole accelerators.   wasted_device_s: those of calls that were late, failed or cancelled.
    """

    calls: float = 0.0
    items: float = 0.0
    busy_s: float = 0.0
    device_s: float = 0.0
    wasted_device_s: float = 0.0
    fee_usd: float = 0.0
    late: float = 0.0
    failed: float = 0.0
    cancelled: float = 0.0
    saved_items: int = 0
    ok_items: float = 0.0
    """Of `items`, those of calls that were answered in time."""
    audit_device_s: float = 0.0
    audit_fee_usd: float = 0.0
    """Of `device_s` and `fee_usd`, what shadow audits took."""

    def add(self, run: BatchRun, part: float = 1.0) -> None:
        """Count a call, or a part of it."""
        if run.status == "cancelled" and run.busy_s == 0:
            # it was never made: it cost nothing, and tells what early decisions saved
            self.saved_items += run.items
            return
        self.calls += part
        self.items += part * run.items
        self.busy_s += part * run.busy_s
        self.device_s += part * run.busy_s * run.share
        self.fee_usd += part * run.fee_usd
        if run.audit:
            self.audit_device_s += part * run.busy_s * run.share
            self.audit_fee_usd += part * run.fee_usd
        if run.status == "ok":
            self.ok_items += part * run.items
            return
        self.wasted_device_s += part * run.busy_s * run.share
        if run.status == "late":
            self.late += part
        elif run.status == "failed":
            self.failed += part
        elif run.status == "cancelled":
            self.cancelled += part

    def merge(self, other: CallTotals) -> None:
        """Add what another one counted."""
        self.calls += other.calls
        self.items += other.items
        self.busy_s += other.busy_s
        self.device_s += other.device_s
        self.wasted_device_s += other.wasted_device_s
        self.fee_usd += other.fee_usd
        self.late += other.late
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.saved_items += other.saved_items
        self.ok_items += other.ok_items
        self.audit_device_s += other.audit_device_s
        self.audit_fee_usd += other.audit_fee_usd


@dataclass(frozen=True)
class Rented:
    """Node time of one type in the window. usd_per_hour is the mean over that time, of one node."""

    planned: int
    hours: float
    router_hours: float
    unmetered_hours: float
    usd_per_hour: float

    @classmethod
    def of(cls, plan: Plan, node_type: str, node_s: float, router_s: float, price_s: float, gap_s: float) -> Rented:
        """From node seconds, those of routers, seconds x dollars per hour, and the seconds for which nothing is known, which
        count as rented as planned, at the planned price."""
        node, routers = _node(plan, node_type), routers_on(plan, node_type)
        node_s += gap_s * node.count
        router_s += gap_s * min(node.count, routers)
        price_s += gap_s * node.count * node.usd_per_hour
        return cls(
            planned=node.count,
            hours=node_s / SECONDS_PER_HOUR,
            router_hours=router_s / SECONDS_PER_HOUR,
            unmetered_hours=gap_s * node.count / SECONDS_PER_HOUR,
            usd_per_hour=price_s / node_s if node_s > 0 else node.usd_per_hour,
        )


def routers_on(plan: Plan, node_type: str) -> int:
    """Nodes of that type that belong to routers."""
    return plan.router.replicas if node_type == plan.router.node_type else 0


def _node(plan: Plan, node_type: str) -> PlannedNodes:
    return next(n for n in plan.nodes if n.node_type == node_type)


def _rented(plan: Plan, node_type: str, spans: Sequence[NodeSpan], window: Window) -> Rented:
    own, routers = [s for s in spans if s.node_type == node_type], routers_on(plan, node_type)
    lengths = [s.end_s - s.start_s for s in own]
    return Rented.of(
        plan,
        node_type,
        sum(length * s.count for length, s in zip(lengths, own, strict=True)),
        sum(length * min(s.count, routers) for length, s in zip(lengths, own, strict=True)),
        sum(length * s.count * s.usd_per_hour for length, s in zip(lengths, own, strict=True)),
        uncovered_s(own, window),
    )


def _calls(
    plan: Plan, made: Mapping[Key, CallTotals], offers: Mapping[str, Offer], answers: int
) -> tuple[CallRow, ...]:
    """One row per (tier, member, node type), in the order of the cascade and of the plan's nodes."""
    tier_of = {m: t for t, tier in enumerate(plan.cascade.tiers) for m in tier.members}
    planned: dict[Key, Placement] = {(tier_of[p.member], p.member, p.node_type): p for p in plan.placements}
    members, types = plan.cascade.members, [n.node_type for n in plan.nodes]
    keys = sorted(planned.keys() | made.keys(), key=lambda k: (k[0], members.index(k[1]), types.index(k[2])))
    none = CallTotals()
    return tuple(_call_row(plan, k, planned.get(k), made.get(k, none), offers[k[2]], answers) for k in keys)


def _call_row(
    plan: Plan, key: Key, placement: Placement | None, made: CallTotals, offer: Offer, answers: int
) -> CallRow:
    tier, member, node_type = key
    usd_per_device_s = usd_per_busy_s(offer, 1.0)
    usd = made.device_s * usd_per_device_s
    return CallRow(
        tier=tier,
        member=member,
        node_type=node_type,
        calls=made.calls,
        items=made.items,
        batch_predicted=placement.expected_batch if placement else None,
        batch=made.items / made.calls if made.calls else None,
        busy_s=made.busy_s,
        device_s=made.device_s,
        busy_per_item_predicted_s=placement.expected_busy_s if placement else None,
        busy_per_item_s=made.busy_s / made.items if made.items else None,
        usd=usd,
        usd_per_1k_predicted=1000 * _predicted_usd_per_query(plan, placement) if placement else 0.0,
        usd_per_1k=per_1k(usd + made.fee_usd, answers),
        usd_fees=made.fee_usd,
        late=made.late,
        failed=made.failed,
        cancelled=made.cancelled,
        saved_items=made.saved_items,
        usd_wasted=made.wasted_device_s * usd_per_device_s,
        usd_audits=made.audit_device_s * usd_per_device_s + made.audit_fee_usd,
    )


def _predicted_usd_per_query(plan: Plan, placement: Placement) -> float:
    """Calls per query x the placement's part of them x what one costs: busy time per item at its price, and fees."""
    per_busy_s = usd_per_busy_s(plan.offer(placement.node_type), placement.share)
    per_call = placement.expected_busy_s * per_busy_s + call_fee_usd(plan, placement)
    return plan.stats.calls[placement.member] * placement.traffic * per_call


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
