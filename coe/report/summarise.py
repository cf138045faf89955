"""From a plan and a ledger to a report: what was promised, what happened, what it cost.

Money enters once, as node time x price. Members receive shares of it by busy time, the router's nodes and idle time
are lines of their own, and the lines add up to the bill. Nothing is measured here: the ledger and the client's run say
what happened, the plan says what was expected, and the two stand beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from coe.cost.model import total_usd
from coe.errors import InvalidInput, Problem
from coe.records import Bench, Record
from coe.report import words
from coe.report.audits import Audited
from coe.report.bill import cost_of, fee_line, nodes_and_calls, other_lines, per_1k, usage_line
from coe.report.gathering import Gathered, gather, strange_tier, window_of
from coe.report.nouns import (
    AccuracyRow,
    Against,
    Basis,
    CallRow,
    Comparison,
    Cost,
    Latency,
    Loss,
    Mismatch,
    NodeRow,
    Promise,
    Report,
    Saving,
    Served,
    TierRow,
    Window,
)
from coe.report.quality import (
    accuracy_rows,
    claim_in_words,
    claimed,
    loss_of,
    mismatch_of,
    observed_in_words,
    row_of,
)
from coe.report.queries import AnswerColumns, Asked, Block, latency_of, served_of
from coe.table import PredictionTable
from coe.types import MISSING_VOTE, BoolArray, Plan, Tier

__all__ = ["Report", "gather", "summarise", "summarised"]

BASES: tuple[Basis, Basis] = ("usage", "allocation")
OLD_PRICE_DAYS = 90
SAME = 0.005
"""Savings smaller than this are called none."""
UNMETERED = 0.01
"""Share of node time without a span from which on a note says so."""


def summarise(
    plan: Plan,
    records: Iterable[Record],
    *,
    bench: Bench | None = None,
    table: PredictionTable | None = None,
    unaccounted: int = 0,
    ledger_notes: Sequence[str] = (),
) -> Report:
    """The report of a plan's service over the bench's window, or over the whole ledger without one.

    `table` holds recorded predictions of the served items (matched by id): with it the report compares accuracy with
    the best single model and the reference, checks the certificate's claim, and compares every live answer with
    `route`. `unaccounted` is the number of ledger records known to be lost, such as torn lines;
    `ledger_notes` says what is missing from it, in words.

    Raises `InvalidInput` for an empty ledger, and for records that cannot be this plan's.
    """
    gathered = gather(plan, records, bench, table)
    return summarised(plan, gathered, bench=bench, table=table, unaccounted=unaccounted, ledger_notes=ledger_notes)


def summarised(
    plan: Plan,
    gathered: Gathered,
    *,
    bench: Bench | None = None,
    table: PredictionTable | None = None,
    unaccounted: int = 0,
    ledger_notes: Sequence[str] = (),
) -> Report:
    """The same of records that have passed by (`gather`, with the same `bench` and `table`)."""
    window = window_of([gathered], bench)
    if strangers := (*gathered.strangers, *_strange_tiers(plan, bench)):
        raise InvalidInput(strangers)
    asked, lacking, other = _asked(gathered, bench, table)
    served = served_of(plan, asked, window, lacking=lacking, other=other, unaccounted=unaccounted)
    bill = nodes_and_calls(plan, gathered.spans, gathered.made, window, served.answered + served.other)
    tiers = range(len(plan.cascade.tiers))
    return assembled(
        plan,
        window,
        served,
        latency_of(plan, asked, "router" if bench is None else "client"),
        bill,
        [asked.count(_answered_by(number)) for number in tiers],
        Quality(
            rows=accuracy_rows(plan, asked, table),
            loss=loss_of(plan, asked, table),
            mismatch=mismatch_of(plan, asked, table),
            observed=asked.accuracy,
            by_tier=tuple(asked.accuracy_of(_answered_by(number)) for number in tiers),
            audits=gathered.audits.figures(sum(row.usd_audits for row in bill[1])),
        ),
        ledger_notes,
    )


def _asked(gathered: Gathered, bench: Bench | None, table: PredictionTable | None) -> tuple[Asked, int, int]:
    """The queries, how many answers of the client's the ledger lacks, and how many it has of others."""
    answers = gathered.answers
    if isinstance(answers, AnswerColumns):
        return Asked.of_ledger(answers, table), 0, 0
    assert bench is not None, "gathered beside a client's run"
    asked = Asked.of_client(bench, table)
    answered = [a for a in bench.answers if a.http_status == 200 and a.answer != MISSING_VOTE]
    return asked, answers.lacking(a.item for a in answered), answers.others


def _answered_by(tier: int) -> Callable[[Block], BoolArray]:
    """Whether a query was answered by that tier."""
    return lambda block: block.answered & (block.tiers == tier)


@dataclass(frozen=True)
class Quality:
    """How right the answers were, as far as anybody knows."""

    rows: tuple[AccuracyRow, ...] = ()
    loss: Loss | None = None
    mismatch: Mismatch | None = None
    observed: float | None = None
    """Accuracy among the judged queries that were answered."""
    by_tier: tuple[float | None, ...] | None = None
    """The same among those that each tier answered; None where no label is known."""
    audits: Audited | None = None


def assembled(
    plan: Plan,
    window: Window,
    served: Served,
    latency: Latency | None,
    bill: tuple[Mapping[str, NodeRow], tuple[CallRow, ...]],
    answered: Sequence[int],
    quality: Quality,
    ledger_notes: Sequence[str] = (),
) -> Report:
    """The report from what was counted: the bill's rows, and how many queries each tier answered."""
    nodes, calls = bill
    used = tuple(usage_line(row, nodes[row.node_type]) for row in calls if row.busy_s > 0)
    used += tuple(fee_line(row) for row in calls if row.usd_fees > 0)
    rest = tuple(line for row in nodes.values() for line in other_lines(row))
    costs = tuple(
        cost_of(plan, basis, total_usd(lines), window, served, quality.observed)
        for basis, lines in zip(BASES, (used, used + rest), strict=True)
    )
    tiers = _tiers(plan, answered, quality.by_tier, calls, served.answered + served.other)
    against = _against(plan, costs, quality.rows, window, served)
    return Report(
        plan=plan.name,
        plan_fingerprint=plan.fingerprint(),
        window=window,
        verdict=_verdict(plan, against),
        promises=tuple(_promises(plan, served, latency, quality.rows, quality.loss)),
        served=served,
        accuracy=quality.rows,
        max_accuracy_loss=plan.workload.max_accuracy_loss,
        loss=quality.loss,
        certificate=claim_in_words(plan),
        mismatch=quality.mismatch,
        latency=latency,
        costs=costs,
        against=against,
        usage_lines=used,
        other_lines=rest,
        tiers=tiers,
        calls=calls,
        nodes=tuple(nodes.values()),
        comparisons=tuple(_comparisons(plan, costs, quality.rows, tiers, calls)),
        notes=(*_notes(plan, served, latency, tuple(nodes.values()), calls, window, against), *ledger_notes),
        audits=quality.audits,
    )


def _strange_tiers(plan: Plan, bench: Bench | None) -> tuple[Problem, ...]:
    """Tiers that the client was told of and the plan does not have."""
    known, answers = range(len(plan.cascade.tiers)), () if bench is None else bench.answers
    tiers = {a.tier for a in answers if a.answer != MISSING_VOTE and a.tier not in known}
    return tuple(strange_tier(tier) for tier in sorted(tiers))


# --- Savings ----------------------------------------------------------------------------------------------------------


def _against(
    plan: Plan, costs: Sequence[Cost], rows: Sequence[AccuracyRow], window: Window, served: Served
) -> Against | None:
    """The cascade as metered against the best single model, which is planned for the same load and not run.

    On usage the single model costs its planned dollars per query. On allocation its planned nodes are rented for the
    length of the window, whatever the load was.
    """
    baseline = plan.baseline
    if baseline is None:
        return None
    usage, allocation = costs
    answers = served.answered + served.other
    row = row_of(rows, "best single model")
    accuracy = row.accuracy if row is not None else baseline.accuracy
    rented = per_1k(baseline.cost.usd_per_hour_allocation * window.hours, answers)
    savings = (
        _saving(usage, baseline.cost.usd_per_1k_usage, accuracy),
        _saving(allocation, rented, accuracy),
    )
    return Against(
        member=baseline.member,
        node_type=baseline.node_type,
        nodes=baseline.nodes,
        savings=tuple(s for s in savings if s is not None),
        note=baseline.note,
    )


def _saving(cascade: Cost, baseline_per_1k: float | None, accuracy: float) -> Saving | None:
    """None where nothing was answered."""
    if cascade.usd_per_1k is None or baseline_per_1k is None:
        return None
    correct = baseline_per_1k / accuracy if accuracy else None
    return Saving(
        basis=cascade.basis,
        cascade_usd_per_1k=cascade.usd_per_1k,
        baseline_usd_per_1k=baseline_per_1k,
        saved=_saved(cascade.usd_per_1k, baseline_per_1k),
        saved_planned=_saved(cascade.usd_per_1k_predicted, baseline_per_1k),
        cascade_usd_per_1k_correct=cascade.usd_per_1k_correct,
        baseline_usd_per_1k_correct=correct,
        saved_correct=_saved(cascade.usd_per_1k_correct, correct),
    )


def _saved(cascade: float | None, baseline: float | None) -> float | None:
    return 1 - cascade / baseline if cascade is not None and baseline else None


def _verdict(plan: Plan, against: Against | None) -> tuple[str, ...]:
    """Whether the cascade saved money, in one plain sentence per basis."""
    if against is None:
        return ("No single model keeps these promises on the hardware on offer, so there is nothing to save against.",)
    if not against.savings:
        return ("Nothing was answered in this window, so there is no saving to state.",)
    what = "the cascade" if len(plan.cascade.members) > 1 else f"the plan (a single model, {plan.cascade.members[0]})"
    return tuple(_sentence(saving, what, f"{against.member} alone") for saving in against.savings)


def _sentence(saving: Saving, what: str, model: str) -> str:
    cascade, baseline = words.usd_column([saving.cascade_usd_per_1k, saving.baseline_usd_per_1k])
    dollars = f"{cascade} against {baseline} per 1,000 queries"
    planned = "" if saving.saved_planned is None else f" (planned: {_saved_words(saving.saved_planned)})"
    if saving.saved is None:
        return f"On {saving.basis} {what} costs {cascade} per 1,000 queries, and {model} costs nothing."
    if abs(saving.saved) < SAME:
        return f"On {saving.basis} {what} cost the same as {model}: {dollars}{planned}."
    if saving.saved > 0:
        return f"On {saving.basis} {what} SAVED {words.percent(saving.saved)}: {dollars}{planned}."
    return f"On {saving.basis} {what} did NOT save, it cost {words.percent(-saving.saved)} MORE: {dollars}{planned}."


def _saved_words(saved: float) -> str:
    if abs(saved) < SAME:
        return "the same"
    return f"{words.percent(abs(saved))} {'saved' if saved > 0 else 'more'}"


# --- Plan and reality -------------------------------------------------------------------------------------------------


def _tiers(
    plan: Plan,
    answered: Sequence[int],
    accuracy: Sequence[float | None] | None,
    calls: Sequence[CallRow],
    answers: int,
) -> tuple[TierRow, ...]:
    """Reach, escalation and dollars of every tier beside the plan's. answered: queries that each tier answered."""
    total = sum(answered)
    rows = []
    for number, tier in enumerate(plan.cascade.tiers):
        reached, accepted = sum(answered[number:]), answered[number]
        own = [row for row in calls if row.tier == number]
        stats = plan.stats
        rows.append(
            TierRow(
                tier=number,
                members=tier.members,
                rule=rule_in_words(tier),
                reach_predicted=stats.reach[number],
                reach=reached / total if total else None,
                accepted_predicted=stats.accepted[number],
                accepted=accepted / total if total else None,
                escalated_predicted=_passed_on(stats.accepted[number], stats.reach[number]) or 0.0,
                escalated=_passed_on(accepted, reached),
                accuracy_predicted=stats.accuracy_accepted[number],
                accuracy=None if accuracy is None else accuracy[number],
                usd_per_1k_predicted=sum(row.usd_per_1k_predicted for row in own),
                usd_per_1k=per_1k(sum(row.usd + row.usd_fees for row in own), answers),
            )
        )
    return tuple(rows)


def _passed_on(accepted: float, reached: float) -> float | None:
    """Share of those that arrived which were passed on; None where none arrived."""
    return min(1.0, max(0.0, 1 - accepted / reached)) if reached else None


def rule_in_words(tier: Tier) -> str:
    """When a tier answers: ``3 of 3 votes``, ``score at least 0.83``."""
    if tier.always_answers:
        return "always answers"
    if tier.quorum is not None:
        return f"{tier.quorum} of {len(tier.members)} votes"
    return f"{tier.rule} at least {tier.threshold:.4g}"


def _comparisons(
    plan: Plan,
    costs: Sequence[Cost],
    rows: Sequence[AccuracyRow],
    tiers: Sequence[TierRow],
    calls: Sequence[CallRow],
) -> Iterable[Comparison]:
    """Every figure that the plan predicts and the service shows."""
    for cost in costs:
        name = f"{cost.basis}, $ per 1,000 queries"
        yield Comparison(name=name, unit="usd", predicted=cost.usd_per_1k_predicted, metered=cost.usd_per_1k)
    rented = costs[1]
    name = "allocation, $ per hour"
    yield Comparison(name=name, unit="usd", predicted=rented.usd_per_hour_predicted, metered=rented.usd_per_hour)
    cascade = row_of(rows, "cascade")
    observed = cascade.accuracy if cascade is not None else None
    yield Comparison(name="accuracy", unit="share", predicted=plan.stats.accuracy, metered=observed)
    for tier in tiers[1:]:
        name = f"reach of tier {tier.tier + 1}"
        yield Comparison(name=name, unit="share", predicted=tier.reach_predicted, metered=tier.reach)
    for row in calls:
        if row.batch_predicted is not None and row.busy_per_item_predicted_s is not None:
            name = f"busy per item, {row.member} on {row.node_type}"
            yield Comparison(name=name, unit="s", predicted=row.busy_per_item_predicted_s, metered=row.busy_per_item_s)
            name = f"items per call, {row.member} on {row.node_type}"
            yield Comparison(name=name, unit="items", predicted=row.batch_predicted, metered=row.batch)


def _promises(
    plan: Plan, served: Served, latency: Latency | None, rows: Sequence[AccuracyRow], loss: Loss | None
) -> Iterable[Promise]:
    """The workload's promises and the certificate's claim, each with what was observed."""
    work = plan.workload
    quantile = f"{100 * work.latency_quantile:.4g}%"
    yield Promise(
        name="latency",
        promised=f"{quantile} answered within {words.seconds(work.latency_s)}",
        observed=_latency_observed(latency, quantile),
        kept=None if latency is None else latency.observed_s is not None and latency.observed_s <= work.latency_s,
    )
    cascade, reference = row_of(rows, "cascade"), row_of(rows, "reference")
    lost = None if cascade is None or reference is None else reference.accuracy - cascade.accuracy
    yield Promise(
        name="accuracy",
        promised=f"at most {words.points(work.max_accuracy_loss)} below {work.reference}",
        observed=_lost_in_words(lost),
        kept=None if lost is None else lost <= work.max_accuracy_loss + 1e-12,
    )
    claim = plan.cascade.certificate
    if claim is not None:
        yield Promise(
            name="certificate",
            promised=claimed(claim),
            observed="unknown without recorded answers to these queries" if loss is None else observed_in_words(loss),
            kept=None if loss is None else loss.verdict != "contradicted",
        )
    yield Promise(
        name="answers",
        promised="every query is answered",
        observed=f"{served.answered:,} of {served.requests:,}",
        kept=served.failed == 0 if served.requests else None,
    )
    yield Promise(
        name="ledger",
        promised="every answer is accounted for",
        observed=f"{served.unaccounted:,} unaccounted",
        kept=served.unaccounted == 0,
    )


def _latency_observed(latency: Latency | None, quantile: str) -> str:
    if latency is None:
        return "nothing was asked"
    if latency.observed_s is None:
        return f"fewer than {quantile} were answered at all"
    return f"{quantile} within {words.seconds(latency.observed_s)}"


def _lost_in_words(lost: float | None) -> str:
    if lost is None:
        return "unknown without recorded answers to these queries"
    return f"{words.points(abs(lost))} {'below' if lost > 0 else 'above'}" if abs(lost) > 1e-12 else "equal"


def _notes(
    plan: Plan,
    served: Served,
    latency: Latency | None,
    nodes: Sequence[NodeRow],
    calls: Sequence[CallRow],
    window: Window,
    against: Against | None,
) -> Iterable[str]:
    """What a reader should know before trusting a figure."""
    if against is not None:
        yield f"The dollars of {against.member} alone are planned, for the same load; it was not run."
    if served.failed:
        yield f"{served.failed} of {served.requests} requests failed; they count as wrong and as never answered."
    if served.degraded:
        yield f"{served.degraded} answers were given with a vote missing."
    if served.unaccounted:
        yield f"{served.unaccounted} answers or records are missing from the ledger, so their calls are not billed here."
    if served.other:
        yield f"{served.other} answers in the window went to other clients; dollars per query count them."
    yield from _load_notes(served, latency)
    yield from _node_notes(plan, nodes, window)
    wasted = sum(row.usd_wasted for row in calls)
    if wasted > 0:
        count = words.number(sum(row.late + row.failed + row.cancelled for row in calls))
        yield f"Calls that were late, failed or cancelled ({count}) are billed: {words.usd(wasted)}."
    if saved := sum(row.saved_items for row in calls):
        usd = sum(row.saved_items * (row.usd + row.usd_fees) / row.items for row in calls if row.items)
        what = "busy time and fees" if any(row.usd_fees for row in calls) else "busy time"
        yield f"Early decisions saved {words.number(saved)} questions to members, about {words.usd(usd)} of {what}."


def _load_notes(served: Served, latency: Latency | None) -> Iterable[str]:
    ratio = served.rate_per_s / served.planned_rate_per_s
    if served.requests and not 0.8 <= ratio <= 1.2:
        rates = f"{served.rate_per_s:.3g} answers per second were served and {served.planned_rate_per_s:.3g} planned"
        yield f"{rates}: what is rented was shared by that many, and the promises are made for the planned load."
    if latency is not None and latency.observed_s is not None and latency.observed_s > 1.01 * latency.bound_s:
        times = f"{words.seconds(latency.observed_s)} and the plan's upper bound {words.seconds(latency.bound_s)}"
        yield f"The observed {100 * latency.quantile:.4g}% latency was {times}: the service was slower than its profiles."
    if latency is not None and latency.requests * (1 - latency.quantile) < 5:
        share = f"{100 * latency.quantile:.4g}%"
        yield f"With {latency.requests} requests the {share} quantile rests on fewer than five slow ones."


def _node_notes(plan: Plan, nodes: Sequence[NodeRow], window: Window) -> Iterable[str]:
    planned = {n.node_type: n.usd_per_hour for n in plan.nodes}
    old = [n for n in nodes if n.age_days > OLD_PRICE_DAYS]
    if old:
        which = ", ".join(n.node_type for n in old)
        yield f"Prices are up to {max(n.age_days for n in old)} days old ({which}); a newer list may change every dollar."
    for node in nodes:
        mean = node.node_hours / window.hours if window.hours > 0 else node.planned
        if abs(mean - node.planned) > UNMETERED * node.planned:
            count = words.number(mean, 2)
            yield f"{count} nodes of {node.node_type} were rented and {node.planned} planned: replicas ran on that many."
        if node.node_hours and node.unmetered_node_hours > UNMETERED * node.node_hours:
            share = words.percent(node.unmetered_node_hours / node.node_hours)
            yield f"{share} of the time of {node.node_type} is not in the ledger and billed as planned ({node.planned})."
        if not math.isclose(node.usd_per_hour, planned[node.node_type], rel_tol=1e-9, abs_tol=1e-12):
            prices = f"{words.usd(node.usd_per_hour)} per hour and planned at {words.usd(planned[node.node_type])}"
            yield f"{node.node_type} was billed at {prices}."
        if node.usd_idle < -1e-9 * max(node.usd, 1e-12):
            yield f"{node.node_type} was busy for longer than it was rented, so its idle line is negative."
        if node.age_days < 0:
            yield f"The price of {node.node_type} dates from after the window ({node.date})."
