"""Shadow audits of a simulated service: each router's accounts as in the service, and what they came to beside the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coe.cost.model import SECONDS_PER_HOUR, usd_per_busy_s
from coe.records import Audit, BatchRun, Record
from coe.report.audits import AuditSums, audited
from coe.router.audits import Auditor, alarm_of, usd_per_audit
from coe.router.core import RouterCore
from coe.router.tightening import Gates, Tightening
from coe.types import Audits, Plan

Write = Callable[[Record], None]


class Account:
    """The audits of one plan in one router. It counts every record on its way to the ledger, as the service's sums do."""

    def __init__(
        self, auditor: Auditor, plan: Plan, write: Write, clock: Callable[[], float], tell: Callable[[str], None]
    ) -> None:
        """write: to the ledger.   tell: what happens, in words."""
        self._auditor, self._plan, self._write, self._clock, self._tell = auditor, plan, write, clock, tell
        self._sums = AuditSums(plan.cascade)
        self._tightening: Tightening | None = None

    def watch(self, core: RouterCore) -> None:
        """Follow the audits of this core from now on, and say in the ledger how they are made."""
        self._tightening = Tightening(self._auditor, self._plan.cascade, self._sums, core.follow, self.record)
        self.record(self._auditor.began(self._clock()))

    def record(self, record: Record) -> None:
        """Write and count a record; one that first shows drift makes the gates stricter, if that is wanted."""
        self._write(record)
        drifted = self._sums.drift_since_s is not None
        self._sums.add(record)
        if not drifted and self._sums.drift_since_s is not None:
            self._tell("drift is shown")
        if isinstance(record, Audit) and self._tightening is not None:
            gates: Gates | None = self._tightening.audited(self._clock())
            if gates is not None:
                self._tell(gates.says)


@dataclass(frozen=True)
class SimulatedAudits:
    """The audits of one plan in a whole run, the warm-up included; of all routers together.

    gear: its name, "" for a plan that is no gear.    chosen: early answers whose audit has come to its end: they were compared
    (`observed`), the last tier did not answer (`failed`), or they were left out for lack of money (`unpaid`) or of time (`busy`),
    since another gear had taken over (`resting`), or at the end (`dropped`).    planned, planned_usd: by the plan's early answers
    and its price of an audit, within the budget.    busy_s: of replicas.    low, high, verdict, drift_since_s: as in
    `coe.report.audits`, since the gates last changed.
    """

    gear: str
    share: float
    seconds: float
    usd_per_hour: float
    usd_each: float
    planned: float
    planned_usd: float
    usd: float
    busy_s: float
    chosen: int
    observed: int
    differing: int
    failed: int
    unpaid: int
    busy: int
    resting: int
    dropped: int
    early: float | None
    low: float
    high: float
    delta: float
    alarm_above: float
    verdict: str
    strictness: int
    drift_since_s: float | None


def simulated_audits(
    audits: Audits, served: Sequence[tuple[str, Plan, Sequence[Record]]], queries: Mapping[str, int], seconds: float
) -> tuple[SimulatedAudits, ...]:
    """What audits came to in a run of so many seconds.

    served: gear's name, plan and records, of those that were in service; those of one tier are left out.   queries: gear's
    name -> queries that it took.
    """
    early = [(name, plan, records) for name, plan, records in served if len(plan.cascade.tiers) > 1]
    wanted = {n: queries[n] * sum(p.stats.accepted[:-1]) * audits.share for n, p, _ in early}
    usd = sum(wanted[n] * usd_per_audit(p) for n, p, _ in early)
    within = min(1.0, audits.usd_per_hour * seconds / SECONDS_PER_HOUR / usd) if usd else 0.0
    return tuple(_of(audits, name, plan, records, within * wanted[name], seconds) for name, plan, records in early)


def _of(
    audits: Audits, name: str, plan: Plan, records: Sequence[Record], planned: float, seconds: float
) -> SimulatedAudits:
    price = {o.node_type: usd_per_busy_s(o, 1.0) for o in plan.offers}
    hosted = {(p.member, p.node_type) for p in plan.placements if p.api}
    runs = [r for r in records if isinstance(r, BatchRun) and r.audit]
    own = [r for r in runs if (r.member, r.node_type) not in hosted]
    usd = sum(r.busy_s * r.share * price[r.node_type] for r in own) + sum(r.fee_usd for r in runs)
    ended = [r.outcome for r in records if isinstance(r, Audit)]
    seen = audited(plan.cascade, records, usd)
    assert seen is not None
    return SimulatedAudits(
        gear=name,
        share=audits.share,
        seconds=seconds,
        usd_per_hour=audits.usd_per_hour,
        usd_each=usd_per_audit(plan),
        planned=planned,
        planned_usd=planned * usd_per_audit(plan),
        usd=usd,
        busy_s=sum(r.busy_s for r in own),
        chosen=len(ended),
        observed=ended.count("same") + ended.count("differs"),
        differing=ended.count("differs"),
        failed=ended.count("failed"),
        unpaid=ended.count("unpaid"),
        busy=ended.count("busy"),
        resting=ended.count("resting"),
        dropped=ended.count("dropped"),
        early=seen.early,
        low=seen.low,
        high=seen.high,
        delta=audits.delta,
        alarm_above=alarm_of(audits.of_gear(name or None), plan.cascade),
        verdict=seen.verdict,
        strictness=seen.strictness,
        drift_since_s=seen.drift_since_s,
    )
