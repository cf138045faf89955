"""Which early answers are also shown to the last tier, and what that may cost. Pure: time and chance are given in.

The chance of being chosen is the same for every early answer and hangs on nothing that a client sends, so what the last tier
says of the chosen ones holds for all. What is chosen and not audited, for want of money or because the last tier has its
hands full, is left out for reasons that have nothing to do with its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from coe.cost.model import SECONDS_PER_HOUR, usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.placement.fees import call_fee_usd
from coe.records import Auditing, BatchRun
from coe.types import Audits, Cascade, Gears, Placement, Plan

BURST_S = 60.0
"""The purse holds the money of so long, or of one audit if that is more."""
PART_OF_PROMISE = 0.5
"""A batch of audits takes at most so much of the promised latency, as planned: a query may have to wait for it, and what takes
longer than the promise counts as late."""
ROUNDING = 1e-9
"""Of the largest purse: what rounding may leave missing."""


class Purse:
    """Dollars that come in at a steady rate and are reserved before they are spent. It is empty at first.

    So at no time more has been reserved than the budget of the time that has passed, and in no hour more than that of an hour and
    what the purse holds. What a thing cost in the end is settled afterwards; the purse may then owe, and reserves nothing
    until it is out of debt.
    """

    def __init__(self, usd_per_hour: float, smallest_usd: float, now_s: float) -> None:
        """smallest_usd: what one audit is planned to cost."""
        self._usd_per_s = usd_per_hour / SECONDS_PER_HOUR
        self.most_usd = max(self._usd_per_s * BURST_S, smallest_usd)
        self._usd, self._at_s = 0.0, now_s

    def hold(self, usd: float) -> None:
        """Be large enough for an audit of so much."""
        self.most_usd = max(self.most_usd, usd)

    def reserve(self, usd: float, now_s: float) -> bool:
        """Take so much if it is there."""
        if now_s > self._at_s:
            self._usd = min(self.most_usd, self._usd + (now_s - self._at_s) * self._usd_per_s)
            self._at_s = now_s
        if usd > self._usd + ROUNDING * self.most_usd:
            return False
        self._usd -= usd
        return True

    def settle(self, reserved_usd: float, spent_usd: float) -> None:
        """Put back what was reserved, and take what it came to."""
        self._usd = min(self.most_usd, self._usd + reserved_usd - spent_usd)


class Auditor:
    """Chooses among the early answers that one router gives by one plan, and pays for their audits."""

    def __init__(
        self, audits: Audits, plan: Plan, rng: np.random.Generator, now_s: float, purse: Purse | None = None
    ) -> None:
        """purse: that of the router, where it serves other plans, too; else a new one.

        Raises `InvalidInput` where nothing is answered early, nobody says what drift is, or no audit can be paid.
        """
        if len(plan.cascade.tiers) == 1:
            raise InvalidInput(Problem("audits", "need a tier before the last, and the cascade has one tier"))
        self.audits, self.alarm_above = audits, alarm_of(audits, plan.cascade)
        self.usd_each = usd_per_audit(plan)
        usd_per_hour = audits.usd_per_hour / plan.router.replicas
        if self.usd_each > usd_per_hour:
            found = f"{usd_per_hour:g} per router, and an audit is planned to cost {self.usd_each:.4g}"
            raise InvalidInput(Problem("audits: usd_per_hour", "must pay for one audit an hour", found, "raise it"))
        self._rng = rng
        self._last = [p for p in plan.placements if p.member in plan.cascade.tiers[-1].members]
        self._purse = purse or Purse(usd_per_hour, self.usd_each, now_s)
        self._purse.hold(self.usd_each)
        self._usd_per_s: Mapping[str, float] = {o.node_type: usd_per_busy_s(o, 1.0) for o in plan.offers}

    def batch_size(self, latency_s: float) -> int:
        """How many audits go in one batch where a call must end within `latency_s`."""
        return most_items(self._last, PART_OF_PROMISE * latency_s)

    def began(self, now_s: float, strictness: int = 0) -> Auditing:
        """For the ledger: how audits are made from now on."""
        a = self.audits
        return Auditing(now_s, a.share, a.usd_per_hour, a.delta, self.alarm_above, strictness)

    def chooses(self) -> bool:
        """Whether to audit the next early answer: chance alone says so."""
        return bool(self._rng.random() < self.audits.share)

    def can_pay(self, now_s: float) -> bool:
        """Whether there is money for one more audit; it is reserved then."""
        return self._purse.reserve(self.usd_each, now_s)

    def ended(self, audits: int) -> None:
        """So many audits have ended: what was reserved for them is free; what their calls took has been billed."""
        self._purse.settle(audits * self.usd_each, 0.0)

    def billed(self, run: BatchRun) -> None:
        """A call of audits has been paid."""
        self._purse.settle(0.0, run.busy_s * run.share * self._usd_per_s[run.node_type] + run.fee_usd)


class Accounts:
    """The audits of one router: an account for every plan that it serves, and one purse for all.

    Each gear has a certificate of its own, so it is audited by itself: its early answers, its last tier, its alarm, its gates.
    They share the money, which is one budget in the file; whoever has an answer to audit takes from it.
    """

    def __init__(self, audits: Audits, served: Plan | Gears, rng: np.random.Generator, now_s: float) -> None:
        """served: the plan, or gears as `coe.placement.together` has them served.

        Raises `InvalidInput` with everything for which audits cannot be of these plans, and for alarms of unknown gears.
        """
        plans: list[tuple[str | None, Plan]] = [(None, served)] if isinstance(served, Plan) else []
        if isinstance(served, Gears):
            plans += [(name, gear.plan) for name, gear in zip(served.names, served.gears, strict=True)]
        self._audits, self._rng = audits, rng
        self._name_of = {plan.fingerprint(): name for name, plan in plans}
        routers = plans[0][1].router.replicas
        self._purse = Purse(audits.usd_per_hour / routers, 0.0, now_s)
        if problems := list(_problems(audits, plans)):
            raise InvalidInput(problems)

    def auditor(self, plan: Plan, now_s: float) -> Auditor | None:
        """The auditor of a plan that comes into service; None for a gear that has one tier, whose answers are the last tier's.

        Raises `InvalidInput` for a plan that is no gear and cannot be audited.
        """
        fingerprint = plan.fingerprint()
        name = self._name_of.get(fingerprint)
        if name is not None and len(plan.cascade.tiers) == 1:
            return None
        return Auditor(self._audits.of_gear(name), plan, self._rng, now_s, self._purse)


def _problems(audits: Audits, plans: Sequence[tuple[str | None, Plan]]) -> Iterator[Problem]:
    """Why these plans cannot be audited so."""
    gears = [name for name, _ in plans if name is not None]
    for name in sorted(set(audits.alarms or ()) - set(gears)):
        remedy = f"there are: {', '.join(gears)}" if gears else "give `alarm_above`: one plan is served, without gears"
        yield Problem("audits: alarms", "must be of gears of the service", name, remedy)
    early = [(name, plan) for name, plan in plans if name is None or len(plan.cascade.tiers) > 1]
    if not early:
        yield Problem("audits", "need a tier before the last, and every gear has one tier")
    for gear, plan in early:
        try:
            Auditor(audits.of_gear(gear), plan, np.random.default_rng(0), 0.0)
        except InvalidInput as error:
            for p in error.problems:
                yield p if gear is None else Problem(f"gear '{gear}': {p.where}", p.rule, p.found, p.remedy)


def usd_per_audit(plan: Plan) -> float:
    """What the plan expects that one query costs in the last tier, on usage: busy time x price, and fees."""
    last = set(plan.cascade.tiers[-1].members)
    return sum(p.traffic * _usd_per_item(plan, p) for p in plan.placements if p.member in last)


def _usd_per_item(plan: Plan, placement: Placement) -> float:
    busy_usd = placement.expected_busy_s * usd_per_busy_s(plan.offer(placement.node_type), placement.share)
    return busy_usd + call_fee_usd(plan, placement)


def most_items(placements: Sequence[Placement], seconds: float) -> int:
    """The largest batch that all of them are planned to answer within so long; at least one item, at most their batch size.

    Between the expected batch and the full one time is taken to be linear.
    """
    return max(1, min(_items_within(p, seconds) for p in placements))


def _items_within(p: Placement, seconds: float) -> int:
    expected_s, more = p.expected_batch * p.expected_busy_s, p.batch_size - p.expected_batch
    if p.full_batch_s is None or p.full_s <= seconds:
        return p.batch_size
    if more <= 0 or p.full_s <= expected_s:
        return int(p.batch_size * seconds / p.full_s)
    return int(p.batch_size - more * (p.full_s - seconds) / (p.full_s - expected_s))


def promised_rate(cascade: Cascade) -> float | None:
    """What the certificate says that the share of differing answers is at most, or what that share bounds from above.

    Only where the last tier is the reference and nothing else: what differs from its answer then differs from the reference's.
    The claims `loss` and `excess` are about a part of that, so they are kept where the share is below their epsilon, and not
    surely broken where it is above.
    """
    certificate, last = cascade.certificate, cascade.tiers[-1]
    if certificate is None or last.members != (certificate.reference,) or last.carry:
        return None
    return certificate.epsilon


def can_be_broken(cascade: Cascade) -> bool:
    """Whether audits alone can contradict the certificate: where it claims what they observe."""
    return (
        promised_rate(cascade) is not None
        and cascade.certificate is not None
        and (cascade.certificate.claim == "disagreement")
    )


def alarm_of(audits: Audits, cascade: Cascade) -> float:
    """Above which share of differing answers there is drift. Raises `InvalidInput` where nobody has said."""
    if audits.alarm_above is not None:
        return audits.alarm_above
    promised = promised_rate(cascade)
    if promised is not None and can_be_broken(cascade):
        return promised
    certificate = cascade.certificate
    why = "no certificate" if certificate is None else f"a certificate that claims {certificate.claim}"
    if certificate is not None and certificate.claim == "disagreement":
        why = f"a last tier that is not {certificate.reference} alone"
    rule = "must be given: audits see how often answers differ, and the cascade has " + why
    remedy = "give a share, or have `coe build --predictions` take what was calibrated"
    raise InvalidInput(Problem("audits: alarm_above", rule, remedy=remedy))
