"""From a ledger and a plan to a report: one pure function, the same for every source of ledgers.

Money enters as node time x price. Tiers and members get their share by busy time, the router's node and idle time are lines of
their own, and the lines add up to the bill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from coe.cascade.evaluate import accuracy_interval, losses, route
from coe.cost.model import node_lines, total_usd, usage_line, usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.prices.catalog import provenance
from coe.types import (
    MISSING_VOTE,
    Answer,
    BatchRun,
    Bench,
    CostLine,
    NodeSpan,
    Noun,
    Placement,
    Plan,
    PlannedNodes,
    PredictionTable,
    Record,
)


class Accuracy(Noun):
    """Right answers among those with known labels, with the exact 95% interval; None where nothing is labelled."""

    labelled: int
    cascade: float
    low: float
    high: float
    reference: str
    reference_accuracy: float | None
    baseline: str | None
    baseline_accuracy: float | None
    loss: float | None
    """Share of items on which the cascade was wrong and the reference right."""


class TierReport(Noun):
    """One tier, predicted and observed; shares are of all answered queries."""

    number: int
    members: tuple[str, ...]
    gate: str
    reach_predicted: float
    reach: float
    accepted: float
    accuracy_accepted: float | None
    degraded: float


class DeploymentReport(Noun):
    """What one deployment did and what it cost."""

    deployment: str
    tier: int
    calls: int
    items: int
    mean_batch: float
    expected_batch: float
    busy_s: float
    busy_s_per_item: float
    expected_busy_s_per_item: float
    not_ok: int
    """Calls that failed, came late or were cancelled; they are billed like the others."""


class Latency(Noun):
    """Seconds from due (client) or arrival (ledger) to the answer. `quantiles_s` holds 101 values, 0% to 100%."""

    source: Literal["client", "ledger"]
    p50_s: float
    p90_s: float
    p99_s: float
    promised_quantile_s: float
    quantiles_s: Annotated[tuple[float, ...], Field(min_length=101, max_length=101)]


class BasisCost(Noun):
    """Dollars on one cost basis, observed and predicted, and against the best single model as predicted."""

    basis: Literal["usage", "allocation"]
    usd: float
    usd_per_1k: float
    usd_per_1k_correct: float | None
    predicted_usd_per_1k: float
    baseline_usd_per_1k: float | None
    saving: float | None
    """1 - observed / baseline; negative where the cascade cost more. None without a baseline that costs anything."""


class Kept(Noun):
    """One promise and whether it was kept."""

    name: str
    promised: str
    observed: str
    kept: bool


class Report(Noun):
    """Everything that the renderers show."""

    kind: Literal["report"] = "report"
    version: Literal[1] = 1
    plan: str
    cascade: str
    started_s: float
    duration_s: float
    queries: int
    rate_per_s: float
    planned_rate_per_s: float
    accuracy: Accuracy | None
    certificate: str
    tiers: tuple[TierReport, ...]
    deployments: tuple[DeploymentReport, ...]
    latency: Latency
    costs: tuple[BasisCost, BasisCost]
    """Usage, then allocation."""
    usage_lines: tuple[CostLine, ...]
    allocation_lines: tuple[CostLine, ...]
    use_of_allocation: tuple[CostLine, ...]
    """The same bill by what it was used for: busy time by member, the router's node, idle."""
    idle_usd: float
    baseline: str
    promises: tuple[Kept, ...]
    compared: int
    """Answers compared with what the cascade gives offline on the same items."""
    different: int
    unaccounted: int
    """Answers that the client got and the ledger does not know, and torn lines."""
    price_source: str
    accelerators: tuple[str, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """Promises that were not kept, in words."""
        return tuple(f"{p.name}: promised {p.promised}, observed {p.observed}" for p in self.promises if not p.kept)


@dataclass(frozen=True)
class _Window:
    """What happened between two moments."""

    start_s: float
    end_s: float
    spans: tuple[NodeSpan, ...]
    runs: tuple[BatchRun, ...]
    answers: tuple[Answer, ...]


def summarise(
    plan: Plan,
    records: Sequence[Record],
    *,
    bench: Bench | None = None,
    table: PredictionTable | None = None,
    torn_lines: int = 0,
) -> Report:
    """The report of a ledger.

    With `bench` the window is the client's run, accuracy comes from its labels and latency from its clock; without, the
    window is the whole ledger. With `table` the reference's accuracy on the same items is known, and every answer is
    compared with what the cascade gives offline. Raises `InvalidInput` where the window holds no answers.
    """
    window = _window(records, bench)
    good = [a for a in window.answers if a.status != "failed"]
    if not good:
        raise InvalidInput(Problem("ledger", "holds no answers in the window of the report"))
    accuracy = None if bench is None else _accuracy(plan, bench, table)
    correct = None if accuracy is None else accuracy.cascade * len(good)
    latency = _latency(plan, window, bench)
    usage_lines, runs_usd = _usage(plan, window)
    allocation_lines = _allocation(plan, window)
    router_usd = total_usd(line for line in allocation_lines if line.name.startswith("router"))
    bill = total_usd(allocation_lines)
    idle_usd = bill - router_usd - runs_usd
    compared, different = _compared(plan, bench, table)
    unaccounted = torn_lines + (0 if bench is None else _unaccounted(bench, window))
    report = Report(
        plan=plan.name,
        cascade=plan.cascade.name,
        started_s=window.start_s,
        duration_s=window.end_s - window.start_s,
        queries=len(window.answers),
        rate_per_s=len(window.answers) / (window.end_s - window.start_s),
        planned_rate_per_s=plan.workload.rate_per_s,
        accuracy=accuracy,
        certificate=_certificate(plan),
        tiers=tuple(_tier(plan, t, good, bench) for t in range(len(plan.cascade.tiers))),
        deployments=tuple(_deployment(p, plan, window) for p in plan.placements),
        latency=latency,
        costs=(
            _basis(plan, "usage", runs_usd, window, correct),
            _basis(plan, "allocation", bill, window, correct),
        ),
        usage_lines=usage_lines,
        allocation_lines=allocation_lines,
        use_of_allocation=(
            *usage_lines,
            *(line for line in allocation_lines if line.name.startswith("router")),
            CostLine(name="idle", quantity=1.0, unit="rest", unit_price_usd=idle_usd, usd=idle_usd),
        ),
        idle_usd=idle_usd,
        baseline="no single model keeps the promises" if plan.baseline is None else plan.baseline.note,
        promises=(),
        compared=compared,
        different=different,
        unaccounted=unaccounted,
        price_source=provenance(plan.offers),
        accelerators=tuple(dict.fromkeys(o.accelerator for o in plan.offers)),
    )
    return report.model_copy(update={"promises": _promises(plan, report, window, bench)})


def _window(records: Sequence[Record], bench: Bench | None) -> _Window:
    """Records of the client's run, node spans clipped to it; without a client the extent of the ledger."""
    answers = [r for r in records if isinstance(r, Answer)]
    runs = [r for r in records if isinstance(r, BatchRun)]
    spans = [r for r in records if isinstance(r, NodeSpan)]
    if bench is not None:
        start, end = bench.started_s, bench.ended_s
    else:
        edges = [s.start_s for s in spans] + [s.end_s for s in spans] + [a.done_s for a in answers]
        if not edges:
            raise InvalidInput(Problem("ledger", "is empty", remedy="was the service asked anything?"))
        start, end = min(edges), max(edges)
    clipped = (
        NodeSpan(s.node_type, s.count, s.usd_per_hour, max(s.start_s, start), min(s.end_s, end))
        for s in spans
        if s.end_s > start and s.start_s < end
    )
    return _Window(
        start,
        end,
        tuple(clipped),
        tuple(r for r in runs if start <= r.start_s <= end),
        tuple(a for a in answers if start <= a.arrival_s <= end),
    )


# --- Quality ----------------------------------------------------------------------------------------------------------


def _accuracy(plan: Plan, bench: Bench, table: PredictionTable | None) -> Accuracy:
    """Accuracy over everything the client sent; a failed request is a wrong answer."""
    labels = np.array([a.label for a in bench.answers])
    answers = np.array([a.answer for a in bench.answers])
    right = int((answers == labels).sum())
    low, high = accuracy_interval(right, len(labels))
    reference = plan.workload.reference
    single = None if plan.baseline is None else plan.baseline.member
    known = None if table is None else _outputs_of(table, bench, [reference, *([single] if single else [])])
    loss = None if known is None else float(losses(answers, known[reference], labels).mean())
    return Accuracy(
        labelled=len(labels),
        cascade=right / len(labels),
        low=low,
        high=high,
        reference=reference,
        reference_accuracy=None if known is None else float((known[reference] == labels).mean()),
        baseline=single,
        baseline_accuracy=None if known is None or single is None else float((known[single] == labels).mean()),
        loss=loss,
    )


def _rows_of(table: PredictionTable, bench: Bench) -> np.ndarray:
    """Row of the table for every item that the client sent."""
    row_of = {item: row for row, item in enumerate(table.items.tolist())}
    lacking = [a.item for a in bench.answers if a.item not in row_of]
    if lacking:
        found = f"'{lacking[0]}' and {len(lacking) - 1} more"
        raise InvalidInput(Problem("predictions", "must hold every item that the client sent", f"it lacks {found}"))
    return np.array([row_of[a.item] for a in bench.answers])


def _outputs_of(table: PredictionTable, bench: Bench, members: Sequence[str]) -> dict[str, np.ndarray]:
    rows = _rows_of(table, bench)
    return {m: table.answers[rows, table.columns([m])[0]] for m in members}


def _compared(plan: Plan, bench: Bench | None, table: PredictionTable | None) -> tuple[int, int]:
    """Answers compared with the cascade's offline routing, and how many differ in answer or tier."""
    if bench is None or table is None:
        return 0, 0
    routing = route(plan.cascade, table)
    rows = _rows_of(table, bench)
    different = sum(
        a.answer != routing.answer[row] or a.tier != routing.tier[row]
        for a, row in zip(bench.answers, rows, strict=True)
    )
    return len(bench.answers), int(different)


def _tier(plan: Plan, number: int, answers: Sequence[Answer], bench: Bench | None) -> TierReport:
    tier = plan.cascade.tiers[number]
    here = [a for a in answers if a.tier == number]
    labelled = [] if bench is None else [a for a in bench.answers if a.tier == number]
    return TierReport(
        number=number,
        members=tier.members,
        gate="always answers" if tier.always_answers else f"{tier.rule} ≥ {tier.bar:.4g}",
        reach_predicted=plan.stats.reach[number],
        reach=sum(a.tier >= number for a in answers) / len(answers),
        accepted=len(here) / len(answers),
        accuracy_accepted=sum(a.answer == a.label for a in labelled) / len(labelled) if labelled else None,
        degraded=sum(a.degraded for a in here) / len(answers),
    )


def _certificate(plan: Plan) -> str:
    c = plan.cascade.certificate
    if c is None:
        return "none: this cascade was built without one"
    return (
        f"with {1 - c.delta:.0%} confidence at most {c.epsilon:.2%} less accurate than {c.reference} "
        f"({c.losses} losses in {c.items} unseen items; upper bound {c.upper_bound:.2%}; {c.method})"
    )


def _latency(plan: Plan, window: _Window, bench: Bench | None) -> Latency:
    """Client's latencies where there is a client; requests that failed count as endless only if no answer came at all."""
    if bench is not None:
        seconds = np.array([a.latency_s for a in bench.answers])
    else:
        seconds = np.array([a.done_s - a.arrival_s for a in window.answers])
    return Latency(
        source="ledger" if bench is None else "client",
        p50_s=float(np.quantile(seconds, 0.5)),
        p90_s=float(np.quantile(seconds, 0.9)),
        p99_s=float(np.quantile(seconds, 0.99)),
        promised_quantile_s=float(np.quantile(seconds, plan.workload.latency_quantile)),
        quantiles_s=tuple(float(q) for q in np.quantile(seconds, np.linspace(0, 1, 101))),
    )


# --- Money ------------------------------------------------------------------------------------------------------------


def _usage(plan: Plan, window: _Window) -> tuple[tuple[CostLine, ...], float]:
    """Busy time by tier, member and node type: the lines and their sum. Every call counts, whatever its status."""
    lines = []
    for placement in plan.placements:
        offer = plan.offer(placement.node_type)
        runs = _runs_of(placement, window)
        usd = sum(r.busy_s * usd_per_busy_s(offer, r.share) for r in runs)
        device_hours = sum(r.busy_s * r.share for r in runs) / 3600
        line = usage_line(_tier_of(plan, placement.member), placement.member, offer, device_hours)
        lines.append(line.model_copy(update={"usd": usd}))
    return tuple(lines), total_usd(lines)


def _allocation(plan: Plan, window: _Window) -> tuple[CostLine, ...]:
    """Node time by type, the router's as a line of its own; adds up to the bill."""
    lines: list[CostLine] = []
    for planned in plan.nodes:
        spans = [s for s in window.spans if s.node_type == planned.node_type]
        for span in spans:
            node = PlannedNodes(**{**planned.model_dump(), "count": span.count, "usd_per_hour": span.usd_per_hour})
            lines += node_lines([node], plan.router, (span.end_s - span.start_s) / 3600)
    return _merged(lines)


def _merged(lines: Sequence[CostLine]) -> tuple[CostLine, ...]:
    """Lines of the same name and price added up."""
    sums: dict[tuple[str, float], CostLine] = {}
    for line in lines:
        key = (line.name, line.unit_price_usd)
        old = sums.get(key)
        sums[key] = (
            line
            if old is None
            else line.model_copy(update={"quantity": old.quantity + line.quantity, "usd": old.usd + line.usd})
        )
    return tuple(sums.values())


def _basis(
    plan: Plan, basis: Literal["usage", "allocation"], usd: float, window: _Window, correct: float | None
) -> BasisCost:
    """One basis per 1,000, beside the plan's prediction and the best single model's at the observed rate.

    What is rented costs the same per hour at any rate, so per query it is converted to the rate that was observed.
    """
    per_1k = 1000 * usd / len(window.answers)
    rented = plan.workload.rate_per_s * (window.end_s - window.start_s) / len(window.answers)
    factor = rented if basis == "allocation" else 1.0
    baseline = None if plan.baseline is None else factor * getattr(plan.baseline.cost, f"usd_per_1k_{basis}")
    return BasisCost(
        basis=basis,
        usd=usd,
        usd_per_1k=per_1k,
        usd_per_1k_correct=1000 * usd / correct if correct else None,
        predicted_usd_per_1k=factor * getattr(plan.cost, f"usd_per_1k_{basis}"),
        baseline_usd_per_1k=baseline,
        saving=1 - per_1k / baseline if baseline else None,
    )


def _deployment(placement: Placement, plan: Plan, window: _Window) -> DeploymentReport:
    runs = _runs_of(placement, window)
    items, busy = sum(r.items for r in runs), sum(r.busy_s for r in runs)
    return DeploymentReport(
        deployment=placement.deployment,
        tier=_tier_of(plan, placement.member),
        calls=len(runs),
        items=items,
        mean_batch=items / len(runs) if runs else 0.0,
        expected_batch=placement.expected_batch,
        busy_s=busy,
        busy_s_per_item=busy / items if items else 0.0,
        expected_busy_s_per_item=placement.expected_busy_s,
        not_ok=sum(r.status != "ok" for r in runs),
    )


def _runs_of(placement: Placement, window: _Window) -> list[BatchRun]:
    return [r for r in window.runs if (r.member, r.node_type) == (placement.member, placement.node_type)]


def _tier_of(plan: Plan, member: str) -> int:
    return next(t for t, tier in enumerate(plan.cascade.tiers) if member in tier.members)


# --- Promises ---------------------------------------------------------------------------------------------------------


def _unaccounted(bench: Bench, window: _Window) -> int:
    """Answers that the client got and the ledger does not know."""
    in_ledger = {a.query_id for a in window.answers}
    return sum(a.http_status == 200 and a.item not in in_ledger for a in bench.answers)


def _promises(plan: Plan, report: Report, window: _Window, bench: Bench | None) -> tuple[Kept, ...]:
    work = plan.workload
    answers = window.answers if bench is None else bench.answers
    failed = sum(a.answer == MISSING_VOTE for a in answers)
    kept = [
        Kept(
            name="latency",
            promised=f"{work.latency_quantile:.0%} within {1000 * work.latency_s:.0f} ms",
            observed=f"{1000 * report.latency.promised_quantile_s:.0f} ms",
            kept=report.latency.promised_quantile_s <= work.latency_s,
        ),
        Kept(name="answers", promised="every query is answered", observed=f"{failed} failed", kept=failed == 0),
        Kept(
            name="ledger",
            promised="every answer is accounted for",
            observed=f"{report.unaccounted} unaccounted",
            kept=report.unaccounted == 0,
        ),
    ]
    accuracy = report.accuracy
    if accuracy is not None and accuracy.reference_accuracy is not None:
        lost = accuracy.reference_accuracy - accuracy.cascade
        kept.insert(
            0,
            Kept(
                name="accuracy",
                promised=f"at most {work.max_accuracy_loss:.2%} below {work.reference}",
                observed=f"{lost:.2%} below" if lost > 0 else f"{-lost:.2%} above",
                kept=lost <= work.max_accuracy_loss,
            ),
        )
    return tuple(kept)
