"""What an operator sees of a running service: the last minute, the last hour and everything so far, beside the plan.

Pure functions of `coe.report.running`; the service shows them as `/live.json` and on its page, and `/report` is the report
of the ledger so far, made of the same sums. Where a service has several routers each speaks of its own queries, and every
rented dollar counts for one router's part of it, so that the figures of all routers add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from coe.cost.model import SECONDS_PER_HOUR, usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.report import words
from coe.report.audits import Audited
from coe.report.bill import bill_of
from coe.report.live_gears import LiveGears
from coe.report.live_gears import alarms as gear_alarms
from coe.report.nouns import Basis, Latency, Report, Served, Window
from coe.report.queries import CURVE_POINTS
from coe.report.running import HOUR_S, MINUTE_S, Running, Tally
from coe.report.sketch import ACCURACY
from coe.report.summarise import Quality, assembled, rule_in_words
from coe.types import Count, Fraction, Name, NotNegative, Noun, OpenFraction, Plan, Positive

WindowName = Literal["minute", "hour", "all"]
FEWEST_ANSWERS = 100
"""Below so many answers in a window no alarm is raised about its shares."""


class LiveTier(Noun):
    """One tier in a window. Shares are of the queries that arrived at it; None where none did."""

    tier: Count
    members: tuple[Name, ...]
    rule: str
    arrivals: Count
    """Answered queries that came as far."""
    arrivals_per_s: NotNegative
    answers: Count
    escalations: Count
    agreement: Fraction | None
    """Share that was answered here: on which the members agreed well enough."""
    agreement_planned: Fraction | None
    degraded: Count
    fallback: Count
    p50_s: NotNegative | None
    """Response times of what was answered here."""
    p99_s: NotNegative | None


class LiveCalls(Noun):
    """One member on one node type in a window."""

    tier: Count
    member: Name
    node_type: Name
    calls: NotNegative
    items: NotNegative
    ok_items: NotNegative
    """Of those, in calls that were answered in time."""
    busy_s: NotNegative
    usd: NotNegative
    """Busy time and fees."""
    usd_audits: NotNegative = 0.0
    """Of those, what shadow audits took."""
    saved_items: Count
    """Items that it was not asked about, because early decisions had settled them."""
    late: NotNegative
    failed: NotNegative
    cancelled: NotNegative


class LiveCost(Noun):
    """Dollars on one basis in a window, beside the plan's and those of the best single model; None where nothing was
    answered, or no single model keeps the promises."""

    basis: Basis
    usd: NotNegative
    usd_per_hour: NotNegative
    usd_per_hour_planned: NotNegative
    usd_per_1k: NotNegative | None
    usd_per_1k_planned: NotNegative
    """At the planned load."""
    baseline_usd_per_1k: NotNegative | None
    """On allocation: of the single model's planned nodes, rented for as long."""
    saved: float | None
    """Share of the single model's dollars; negative where the cascade is dearer."""
    saved_usd: float | None


class LiveWindow(Noun):
    """What happened in a stretch of time that ends now."""

    name: WindowName
    since_s: float
    seconds: NotNegative
    requests: Count
    answers: Count
    failed: Count
    rate_per_s: NotNegative
    p50_s: NotNegative | None
    """None where nothing was answered, or so much failed."""
    p99_s: NotNegative | None
    tiers: tuple[LiveTier, ...]
    calls: tuple[LiveCalls, ...]
    costs: tuple[LiveCost, LiveCost]


class LiveView(Noun):
    """Everything on the page."""

    kind: Literal["live"] = "live"
    version: Literal[1] = 1
    plan: Name
    plan_fingerprint: str
    router: str
    routers: Count
    """Routers of the service; this view is of one of them, with its part of what is rented."""
    baseline: str | None
    now_s: float
    started_s: float
    promised_s: Positive
    quantile: OpenFraction
    in_time: Fraction | None
    """Share of all requests so far that were answered within the promise."""
    planned_rate_per_s: Positive
    windows: tuple[LiveWindow, ...]
    waiting: tuple[Count, ...]
    """Queries in each tier's queue."""
    audits: Audited | None = None
    gears: LiveGears | None = None
    """None where the service has one gear only."""
    certificate: str
    alarms: tuple[str, ...] = ()
    """What an operator should look into, in words."""

    def window(self, name: WindowName) -> LiveWindow:
        """The window of that name."""
        return next(w for w in self.windows if w.name == name)


def live_view(
    running: Running,
    now_s: float,
    *,
    router: str = "",
    waiting: Sequence[int] = (),
    audits: Audited | None = None,
    gears: LiveGears | None = None,
    certificate: str = "",
) -> LiveView:
    """The view at `now_s`. waiting: queries in each tier's queue.   audits: others than those that were counted."""
    plan = running.plan
    windows = (
        _window(running, "minute", now_s, *running.window(MINUTE_S, now_s)),
        _window(running, "hour", now_s, *running.window(HOUR_S, now_s)),
        _window(running, "all", now_s, running.started_s, running.total()),
    )
    everything = windows[-1]
    view = LiveView(
        plan=plan.name,
        plan_fingerprint=plan.fingerprint(),
        router=router,
        routers=plan.router.replicas,
        baseline=None if plan.baseline is None else f"{plan.baseline.member} on {plan.baseline.node_type}",
        now_s=now_s,
        started_s=running.started_s,
        promised_s=plan.workload.latency_s,
        quantile=plan.workload.latency_quantile,
        in_time=_within(running, plan.workload.latency_s) / everything.requests if everything.requests else None,
        planned_rate_per_s=plan.workload.rate_per_s,
        windows=windows,
        waiting=tuple(waiting) or (0,) * len(plan.cascade.tiers),
        audits=audits or audits_so_far(running, everything.calls),
        gears=gears,
        certificate=certificate,
    )
    return view.model_copy(update={"alarms": tuple(_alarms(plan, view))})


def audits_so_far(running: Running, calls: Iterable[LiveCalls] | None = None) -> Audited | None:
    """The figures of this router's audits; None where it makes none. calls: everything so far, if that has been counted."""
    calls = _calls(running, running.total()) if calls is None else calls
    return running.audits.figures(sum(row.usd_audits for row in calls), running.plan.router.replicas)


def _window(running: Running, name: WindowName, now_s: float, since_s: float, tally: Tally) -> LiveWindow:
    seconds = max(0.0, now_s - since_s - running.presence.absent_s(since_s, now_s))
    answers, requests = tally.answers, tally.answers + tally.failed
    times = tally.response_times()
    calls = tuple(_calls(running, tally))
    return LiveWindow(
        name=name,
        since_s=since_s,
        seconds=seconds,
        requests=requests,
        answers=answers,
        failed=tally.failed,
        rate_per_s=answers / seconds if seconds else 0.0,
        p50_s=times.quantile(0.5, requests),
        p99_s=times.quantile(0.99, requests),
        tiers=tuple(_tiers(running.plan, tally, seconds)),
        calls=calls,
        costs=_costs(running, name, seconds, now_s, sum(row.usd for row in calls), tally),
    )


def _tiers(plan: Plan, tally: Tally, seconds: float) -> Iterable[LiveTier]:
    for number, tier in enumerate(plan.cascade.tiers):
        arrivals, answers, reach = tally.arrived(number), tally.answered[number], plan.stats.reach[number]
        yield LiveTier(
            tier=number,
            members=tier.members,
            rule=rule_in_words(tier),
            arrivals=arrivals,
            arrivals_per_s=arrivals / seconds if seconds else 0.0,
            answers=answers,
            escalations=arrivals - answers,
            agreement=answers / arrivals if arrivals else None,
            agreement_planned=min(1.0, plan.stats.accepted[number] / reach) if reach else None,
            degraded=tally.degraded[number],
            fallback=tally.fallback[number],
            p50_s=tally.latency[number].quantile(0.5),
            p99_s=tally.latency[number].quantile(0.99),
        )


def _calls(running: Running, tally: Tally) -> Iterable[LiveCalls]:
    """In the order of the cascade."""
    prices, members = running.prices_per_hour(), running.plan.cascade.members
    for key in sorted(tally.calls, key=lambda k: (k[0], members.index(k[1]), k[2])):
        (tier, member, node_type), made = key, tally.calls[key]
        offer = running.plan.offer(node_type).model_copy(update={"usd_per_hour": prices[node_type]})
        yield LiveCalls(
            tier=tier,
            member=member,
            node_type=node_type,
            calls=made.calls,
            items=made.items,
            ok_items=made.ok_items,
            busy_s=made.busy_s,
            usd=made.device_s * usd_per_busy_s(offer, 1.0) + made.fee_usd,
            usd_audits=made.audit_device_s * usd_per_busy_s(offer, 1.0) + made.audit_fee_usd,
            saved_items=made.saved_items,
            late=made.late,
            failed=made.failed,
            cancelled=made.cancelled,
        )


def _costs(
    running: Running, name: WindowName, seconds: float, now_s: float, usage_usd: float, tally: Tally
) -> tuple[LiveCost, LiveCost]:
    """Both bases. In a sliding window what is rented now counts as rented all the while; over all, the node time does."""
    plan, routers, hours = running.plan, running.plan.router.replicas, seconds / SECONDS_PER_HOUR
    if name == "all":
        rented = sum(r.hours * r.usd_per_hour for r in running.rented(now_s).values()) / routers
    else:
        rented = running.usd_per_hour_now() * hours / routers
    fees = sum(made.fee_usd for made in tally.calls.values())
    planned, single = plan.cost, None if plan.baseline is None else plan.baseline.cost
    return (
        _cost(
            "usage",
            usage_usd,
            hours,
            tally.answers,
            (planned.usd_per_hour_usage / routers, planned.usd_per_1k_usage),
            None if single is None else single.usd_per_1k_usage * tally.answers / 1000,
        ),
        _cost(
            "allocation",
            rented + fees,
            hours,
            tally.answers,
            (planned.usd_per_hour_allocation / routers, planned.usd_per_1k_allocation),
            None if single is None else single.usd_per_hour_allocation * hours / routers,
        ),
    )


def _cost(
    basis: Basis, usd: float, hours: float, answers: int, planned: tuple[float, float], single_usd: float | None
) -> LiveCost:
    """planned: dollars per hour and per 1,000.   single_usd: what the single model would have cost."""
    return LiveCost(
        basis=basis,
        usd=usd,
        usd_per_hour=usd / hours if hours else 0.0,
        usd_per_hour_planned=planned[0],
        usd_per_1k=1000 * usd / answers if answers else None,
        usd_per_1k_planned=planned[1],
        baseline_usd_per_1k=None if single_usd is None or not answers else 1000 * single_usd / answers,
        saved=1 - usd / single_usd if single_usd and answers else None,
        saved_usd=None if single_usd is None else single_usd - usd,
    )


def _within(running: Running, bound_s: float) -> int:
    """Answers within one of the histogram's bounds; exact, where quantiles are not."""
    return next(count for bound, count in running.within() if bound >= bound_s)


def _alarms(plan: Plan, view: LiveView) -> Iterable[str]:
    """What is not as it should be, the gravest first."""
    if view.audits is not None and view.audits.verdict == "drift":
        yield f"Drift: {view.audits.says}."
    if view.gears is not None:
        yield from gear_alarms(view.gears)
    hour, minute = view.window("hour"), view.window("minute")
    if hour.failed:
        yield f"{hour.failed} of {hour.requests} queries of the last hour got no answer."
    enough = hour.requests >= FEWEST_ANSWERS
    if (
        enough
        and (hour.p99_s is None or hour.p99_s > plan.workload.latency_s)
        and plan.workload.latency_quantile >= 0.99
    ):
        observed = "never" if hour.p99_s is None else f"within {words.seconds(hour.p99_s)}"
        yield f"99% of the last hour's queries were answered {observed}; promised are {words.seconds(plan.workload.latency_s)}."
    if minute.requests >= FEWEST_ANSWERS and minute.rate_per_s > 1.2 * plan.workload.rate_per_s:
        yield f"{minute.rate_per_s:.3g} answers per second in the last minute, and {plan.workload.rate_per_s:.3g} planned."
    for row in hour.calls:
        if row.calls and row.failed + row.late > 0.01 * row.calls:
            lost = words.number(row.failed + row.late)
            yield f"{lost} of {words.number(row.calls)} calls of {row.member} on {row.node_type} failed or were late."


# --- The report of the ledger so far ----------------------------------------------------------------------------------


def report_so_far(running: Running, notes: Sequence[str] = ()) -> Report:
    """What `coe.report.summarise` says of a ledger of the records so far, without a client's view; from the sums alone.

    notes: what else a reader should know. Response times are within `ACCURACY`, and a note says so. Raises `InvalidInput` where
    nothing was recorded, and where the service has several routers, since one knows only its own answers.
    """
    plan, total = running.plan, running.total()
    if plan.router.replicas > 1:
        remedy = "run `coe report` on the folder of their ledgers"
        raise InvalidInput(
            Problem("report", f"needs the answers of all {plan.router.replicas} routers of the service", remedy=remedy)
        )
    absent_s = running.presence.absent_s(running.started_s, running.end_s)
    window = Window(start_s=running.started_s, end_s=running.end_s, source="ledger", absent_s=absent_s)
    if window.seconds <= 0:
        raise InvalidInput(Problem("report", "needs a record at least, and nothing has happened so far"))
    served = Served(
        requests=total.answers + total.failed,
        answered=total.answers,
        failed=total.failed,
        degraded=sum(total.degraded),
        other=0,
        unaccounted=0,
        rate_per_s=total.answers / window.seconds,
        planned_rate_per_s=plan.workload.rate_per_s,
    )
    bill = bill_of(plan, running.rented(window.end_s), total.calls, total.answers, window)
    audits = running.audits.figures(sum(row.usd_audits for row in bill[1]))
    result = assembled(plan, window, served, _latency(running, total), bill, total.answered, Quality(audits=audits))
    off = f"Response times are counted in buckets, so quantiles are within {100 * ACCURACY:g}%."
    return result.model_copy(update={"notes": (*result.notes, *notes, off)})


def _latency(running: Running, total: Tally) -> Latency | None:
    requests = total.answers + total.failed
    if not requests:
        return None
    times, work = total.response_times(), running.plan.workload
    within = _within(running, work.latency_s)
    observed_s = times.quantile(work.latency_quantile, requests)
    if observed_s is not None:  # the verdict on the promise is exact, since that bound is one of the histogram's
        kept = within >= math.ceil(work.latency_quantile * requests - 1e-9)
        observed_s = (
            min(observed_s, work.latency_s) if kept else max(observed_s, math.nextafter(work.latency_s, math.inf))
        )
    curve = list(times.cumulated())
    step = max(1, math.ceil(len(curve) / CURVE_POINTS))
    return Latency(
        source="router",
        requests=requests,
        quantile=work.latency_quantile,
        promised_s=work.latency_s,
        bound_s=running.plan.latency_bound_s,
        observed_s=observed_s,
        p50_s=times.quantile(0.5, requests),
        p95_s=times.quantile(0.95, requests),
        p99_s=times.quantile(0.99, requests),
        max_s=None if total.failed else running.latency_max_s,
        in_time=within / requests,
        curve=tuple((value, below / requests) for value, below in (*curve[:-1:step], *curve[-1:])),
    )
