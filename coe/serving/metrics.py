"""The router's figures for Prometheus, in its text format. Read from the running sums when asked: nothing is counted twice.

Every sample carries the label `router`, since each router of a service answers for itself; sums over routers are the service's,
because each counts its part of what is rented. Tiers count from 1, as in reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from coe.report.audits import Audited
from coe.report.live import LiveView
from coe.report.live_gears import LiveGears
from coe.report.running import Running

CONTENT_TYPE: str = CONTENT_TYPE_LATEST
Labels = tuple[str, ...]
Gear = tuple[str, Running, LiveView]
PINNED = "none"
"""Label of a plan that an operator holds and that is no gear."""
LASTING_GAUGES = frozenset(
    {
        "coe_cost_saved_usd_total",
        "coe_audit_disagreement_ratio",
        "coe_certificate_drift",
        "coe_certificate_broken",
        "coe_audit_strictness",
    }
)
"""Of gears that are not in service, too: a sum that may fall and so is no counter to Prometheus, and what audits have shown."""


def exposition(running: Running, view: LiveView) -> bytes:
    """The text that Prometheus scrapes; `view` is that of `running`."""
    return as_text(_of_plan(running, view))


def exposition_of_gears(now: tuple[Running, LiveView], others: Sequence[Gear], gears: LiveGears) -> bytes:
    """The same of a router that changes gears: every sample of a plan has the label `gear` too. Of gears that are not in service
    there are sums, and what their audits have shown, but no other gauges; so the service's sums are those over its gears.

    others: (name, sums, view) of the gears that were in service and are not now.
    """
    return as_text(_of_gears((gears.now or PINNED, *now), others, gears))


def as_text(families: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(families))
    text: bytes = generate_latest(registry)
    return text


class _Scrape:
    """What prometheus_client calls a collector, of one scrape."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Every metric once."""
        return self._families

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry lives for one scrape."""
        return ()


def _of_plan(running: Running, view: LiveView) -> Iterator[Metric]:
    """In the order of their names' parts: requests, tiers, members, dollars, audits."""
    yield from _requests(running, view)
    yield from _tiers(view)
    yield from _members(view)
    yield from _dollars(view)
    yield from _audits(view)


def _of_gears(now: Gear, others: Sequence[Gear], gears: LiveGears) -> Iterator[Metric]:
    """Those of every gear's plan, where families of one name are one family; then those of the gears themselves."""
    families: dict[str, Metric] = {}
    for name, running, view in (now, *others):
        for family in _of_plan(running, view):
            if name != now[0] and family.type == "gauge" and family.name not in LASTING_GAUGES:
                continue
            samples = [s._replace(labels={**s.labels, "gear": name}) for s in family.samples]
            if family.name in families:
                families[family.name].samples += samples
            else:
                family.samples = samples
                families[family.name] = family
    yield from families.values()
    yield from _gears(now[2], gears)


def _gears(view: LiveView, gears: LiveGears) -> Iterator[Metric]:
    of_gear = ("gear",)
    yield _gauge(
        "coe_gear",
        "1 for the gear in service, 0 for the others.",
        view,
        of_gear,
        {(g.name,): g.name == gears.now for g in gears.gears},
    )
    yield _gauge("coe_gear_pinned", "1 while an operator holds the gear or a plan.", view, (), {(): gears.is_pinned})
    yield _counter("coe_gear_changes_total", "Changes of gear.", view, (), {(): gears.changes})
    yield _counter(
        "coe_gear_seconds_total",
        "Seconds in service.",
        view,
        of_gear,
        {(g.name,): g.seconds for g in gears.gears},
    )
    yield _gauge(
        "coe_gear_rate_per_second",
        "The load of the whole service that gears are chosen by, as this router sees it.",
        view,
        (),
        {(): gears.rate_per_s},
    )
    yield _gauge(
        "coe_gear_limit_per_second",
        "Above this load the gear is left upwards.",
        view,
        of_gear,
        {(g.name,): g.up_to_per_s for g in gears.gears},
    )
    yield _gauge(
        "coe_gear_promised_loss_ratio",
        "What the gear's certificate says that it loses against the reference at most.",
        view,
        of_gear,
        {(g.name,): g.epsilon for g in gears.gears if g.epsilon is not None},
    )


def _requests(running: Running, view: LiveView) -> Iterator[Metric]:
    everything, total = view.window("all"), running.total()
    degraded, fallback = sum(total.degraded), sum(total.fallback)
    yield _counter(
        "coe_requests_total",
        "Queries that have come to their end. degraded: answered with a vote missing. fallback: answered by a tier that had"
        " passed the query on. failed: not answered.",
        view,
        ("status",),
        {
            ("ok",): everything.answers - degraded,
            ("degraded",): degraded - fallback,
            ("fallback",): fallback,
            ("failed",): everything.failed,
        },
    )
    histogram = HistogramMetricFamily(
        "coe_request_latency_seconds", "From a query's arrival at the router to its answer.", labels=("router",)
    )
    bounds = [("+Inf" if bound == float("inf") else repr(bound), float(n)) for bound, n in running.within()]
    histogram.add_metric((view.router,), bounds, sum_value=running.latency_sum_s)
    yield histogram
    yield _gauge("coe_request_latency_promise_seconds", "What the plan promises.", view, (), {(): view.promised_s})
    yield _gauge(
        "coe_request_latency_promise_quantile",
        "The share of queries that it is promised to.",
        view,
        (),
        {(): view.quantile},
    )
    yield _gauge(
        "coe_plan_info",
        "The plan that is served.",
        view,
        ("plan", "fingerprint"),
        {(view.plan, view.plan_fingerprint): 1},
    )
    yield _gauge(
        "coe_alarms",
        "Things that an operator should look into; /live.json says what.",
        view,
        (),
        {(): len(view.alarms)},
    )


def _tiers(view: LiveView) -> Iterator[Metric]:
    everything, minute = view.window("all").tiers, view.window("minute").tiers
    of_tier = ("tier",)
    yield _counter(
        "coe_tier_arrivals_total",
        "Answered queries that came as far as a tier.",
        view,
        of_tier,
        {(_number(t.tier),): t.arrivals for t in everything},
    )
    yield _counter(
        "coe_escalations_total",
        "Queries that a tier passed on.",
        view,
        of_tier,
        {(_number(t.tier),): t.escalations for t in everything},
    )
    yield _gauge(
        "coe_agreement_ratio",
        "Share of the queries that arrived at a tier in the last minute that it answered.",
        view,
        of_tier,
        {(_number(t.tier),): t.agreement for t in minute if t.agreement is not None},
    )
    yield _gauge(
        "coe_agreement_planned_ratio",
        "The same as calibrated.",
        view,
        of_tier,
        {(_number(t.tier),): t.agreement_planned for t in minute if t.agreement_planned is not None},
    )
    yield _gauge(
        "coe_queue_length",
        "Queries that wait before a tier.",
        view,
        of_tier,
        {(_number(tier),): waiting for tier, waiting in enumerate(view.waiting)},
    )


def _members(view: LiveView) -> Iterator[Metric]:
    calls = view.window("all").calls
    names = ("tier", "member", "node_type")
    of = {(_number(c.tier), c.member, c.node_type): c for c in calls}
    votes: dict[Labels, float] = {}
    made: dict[Labels, float] = {}
    for labels, row in of.items():
        votes |= {
            (*labels, "ok"): row.ok_items,
            (*labels, "missing"): row.items - row.ok_items,
            (*labels, "saved"): row.saved_items,
        }
        lost = row.late + row.failed + row.cancelled
        made |= {
            (*labels, "ok"): row.calls - lost,
            (*labels, "late"): row.late,
            (*labels, "failed"): row.failed,
            (*labels, "cancelled"): row.cancelled,
        }
    yield _counter(
        "coe_votes_total",
        "Votes that members were asked for. missing: the call was late, failed or cancelled. saved: never asked for, because"
        " early decisions had settled the query.",
        view,
        (*names, "status"),
        votes,
    )
    yield _counter("coe_calls_total", "Calls of members; each carries a batch.", view, (*names, "status"), made)
    yield _counter(
        "coe_busy_seconds_total",
        "Busy seconds of replicas.",
        view,
        names,
        {labels: row.busy_s for labels, row in of.items()},
    )
    yield _counter(
        "coe_member_cost_usd_total",
        "Usage dollars by member: busy time and fees.",
        view,
        names,
        {labels: row.usd for labels, row in of.items()},
    )


def _dollars(view: LiveView) -> Iterator[Metric]:
    basis = ("cost_basis",)
    everything, minute = view.window("all").costs, view.window("minute").costs
    yield _counter(
        "coe_cost_usd_total",
        "Dollars so far. usage: busy time and fees. allocation: what is rented, busy or not, and fees.",
        view,
        basis,
        {(c.basis,): c.usd for c in everything},
    )
    yield _gauge(
        "coe_hourly_cost_usd",
        "Dollars per hour over the last minute.",
        view,
        basis,
        {(c.basis,): c.usd_per_hour for c in minute},
    )
    yield _gauge(
        "coe_planned_hourly_cost_usd",
        "Dollars per hour as planned.",
        view,
        basis,
        {(c.basis,): c.usd_per_hour_planned for c in minute},
    )
    yield _gauge(
        "coe_cost_usd_per_1k",
        "Dollars per 1,000 queries over the last minute.",
        view,
        basis,
        {(c.basis,): c.usd_per_1k for c in minute if c.usd_per_1k is not None},
    )
    if view.baseline is not None:
        yield _gauge(  # no counter: it falls while the cascade is dearer
            "coe_cost_saved_usd_total",
            "Dollars saved so far against the best single model as planned; falls while the cascade is dearer.",
            view,
            ("baseline", "cost_basis"),
            {(view.baseline, c.basis): c.saved_usd for c in everything if c.saved_usd is not None},
        )


def _audits(view: LiveView) -> Iterator[Metric]:
    """None of these where no audits are made."""
    audits: Audited | None = view.audits
    if audits is None:
        return
    yield _counter(
        "coe_audits_total",
        "Queries chosen for a shadow audit. same, differs: by the last tier's answer. failed: it did not answer."
        " skipped: no money or no time. resting: another gear had taken over.",
        view,
        ("outcome",),
        {
            ("same",): audits.observed - audits.differing,
            ("differs",): audits.differing,
            ("failed",): audits.failed,
            ("skipped",): audits.skipped - audits.resting,
            ("resting",): audits.resting,
        },
    )
    yield _counter(
        "coe_audit_cost_usd_total", "Dollars spent on audits, part of the usage.", view, (), {(): audits.usd}
    )
    yield _gauge(
        "coe_audit_disagreement_ratio",
        "Share of all queries on which the last tier answers differently: seen, and its anytime-valid bounds.",
        view,
        ("bound",),
        {
            **({} if audits.rate is None else {("seen",): audits.rate}),
            ("low",): audits.low,
            ("high",): audits.high,
            **({} if audits.promised is None else {("promised",): audits.promised}),
            ("alarm",): audits.alarm_above,
        },
    )
    yield _gauge(
        "coe_certificate_drift",
        "1 where audits contradict what was calibrated.",
        view,
        (),
        {(): audits.verdict == "drift"},
    )
    yield _gauge(
        "coe_certificate_broken",
        "1 where audits contradict the certificate itself, which they can where it claims disagreement.",
        view,
        (),
        {(): audits.is_broken},
    )
    yield _gauge(
        "coe_audit_strictness",
        "Steps by which early tiers decide more strictly than planned, because of drift.",
        view,
        (),
        {(): audits.strictness},
    )


def _number(tier: int) -> str:
    return str(tier + 1)


def _counter(name: str, text: str, view: LiveView, names: Labels, values: dict[Labels, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=("router", *names))
    for labels, value in values.items():
        family.add_metric((view.router, *labels), float(value))
    return family


def _gauge(name: str, text: str, view: LiveView, names: Labels, values: dict[Labels, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("router", *names))
    for labels, value in values.items():
        family.add_metric((view.router, *labels), float(value))
    return family
