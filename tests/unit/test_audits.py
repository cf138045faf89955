"""Shadow audits without a router: money, stricter gates, what is held against what, and bounds counted from a ledger."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade.decide import decide
from coe.cascade.evaluate import route, tier_outputs
from coe.errors import InvalidInput
from coe.records import Answer, Audit, Auditing, BatchRun, Record
from coe.report.audits import Audited, AuditSums, audited
from coe.router.audits import Auditor, Purse, alarm_of, promised_rate, usd_per_audit
from coe.router.tightening import tightened
from coe.types import Audits, Cascade, Claim, Tier
from tests import factories
from tests import report_case as case

AUDITS = Audits(share=0.5, usd_per_hour=1.0, alarm_above=0.05)
CASCADE = case.plan().cascade


def with_claim(claim: Claim, cascade: Cascade = CASCADE) -> Cascade:
    certificate = cascade.certificate
    assert certificate is not None
    return cascade.model_copy(update={"certificate": certificate.model_copy(update={"claim": claim})})


# --- Money ------------------------------------------------------------------------------------------------------------


@given(
    st.floats(0.01, 100),
    st.floats(1e-6, 1),
    st.lists(st.tuples(st.floats(0, 2000), st.floats(0.1, 3)), min_size=1, max_size=80),
)
def test_never_more_is_reserved_than_has_come_in(budget: float, part: float, steps: list[tuple[float, float]]) -> None:
    each = part * budget
    purse, now_s, reserved = Purse(budget, each, 0.0), 0.0, list[tuple[float, float]]()
    for gap_s, factor in steps:
        now_s += gap_s
        while len(reserved) < 500 and purse.reserve(factor * each, now_s):
            reserved.append((now_s, factor * each))
    for start_s, _ in reserved:
        assert sum(usd for at_s, usd in reserved if at_s <= start_s) <= budget * start_s / 3600 * (1 + 1e-6) + 1e-12
        hour = sum(usd for at_s, usd in reserved if start_s <= at_s <= start_s + 3600)
        assert hour <= (budget + purse.most_usd) * (1 + 1e-6)


@pytest.mark.parametrize("each", [0.001, 0.4], ids=["cheap", "nearly half an hour's money"])
def test_a_purse_pays_what_comes_in(each: float) -> None:
    purse = Purse(1.0, each, 0.0)
    paid = sum(purse.reserve(each, float(second)) for second in np.arange(0, 36_000, 0.5))
    assert 10.0 - 2 * each < paid * each <= 10.0


def test_what_costs_more_than_planned_is_paid_off_before_the_next() -> None:
    purse = Purse(3600.0, 1.0, 0.0)  # a dollar per second
    assert purse.reserve(1.0, 1.0)
    purse.settle(1.0, 100.0)
    assert not purse.reserve(1.0, 100.5)
    assert purse.reserve(1.0, 101.5)


def test_the_planned_price_of_an_audit() -> None:
    """large: 0.8 s of an accelerator at 3.60 dollars per hour."""
    assert usd_per_audit(case.plan()) == pytest.approx(0.8 * 3.6 / 3600)


def test_calls_are_settled_at_what_they_took() -> None:
    auditor = Auditor(AUDITS.model_copy(update={"usd_per_hour": 0.0016}), case.plan(), np.random.default_rng(0), 0.0)
    assert not auditor.can_pay(0.0)
    assert auditor.can_pay(1801.0)
    auditor.billed(BatchRun(1, "large", "a100-node", 1.0, 1, 0.0, 1.6, audit=True))  # twice as long as planned
    auditor.ended(1)
    assert not auditor.can_pay(5399.0), "0.0016 an hour comes in, it owes 0.0008, and the next costs 0.0008"
    assert auditor.can_pay(5402.0)


def test_chance_chooses_the_share() -> None:
    auditor = Auditor(AUDITS.model_copy(update={"share": 0.1}), case.plan(), np.random.default_rng(1), 0.0)
    chosen = sum(auditor.chooses() for _ in range(20_000))
    assert chosen == pytest.approx(2000, abs=5 * math.sqrt(20_000 * 0.09))


# --- What is held against what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["excess", "loss", "disagreement"])
def test_a_certificate_about_the_last_tier_is_what_is_promised(claim: Claim) -> None:
    assert promised_rate(with_claim(claim)) == 0.05


def test_a_last_tier_that_is_not_the_reference_promises_nothing() -> None:
    certificate = CASCADE.certificate
    assert certificate is not None
    other = certificate.model_copy(update={"reference": "middle"})
    assert promised_rate(CASCADE.model_copy(update={"certificate": other})) is None
    carrying = (CASCADE.tiers[0], CASCADE.tiers[1].model_copy(update={"carry": 1}))
    assert promised_rate(CASCADE.model_copy(update={"tiers": carrying})) is None
    assert promised_rate(case.plan(certified=False).cascade) is None


def test_the_alarm_is_the_claim_only_where_that_is_about_differing_answers() -> None:
    silent = AUDITS.model_copy(update={"alarm_above": None})
    assert alarm_of(AUDITS, CASCADE) == 0.05
    assert alarm_of(silent, with_claim("disagreement")) == 0.05
    for cascade, why in (
        (with_claim("loss"), "claims loss"),
        (with_claim("excess"), "claims excess"),
        (case.plan(certified=False).cascade, "no certificate"),
    ):
        with pytest.raises(InvalidInput, match=f"alarm_above.*{why}"):
            alarm_of(silent, cascade)


def test_audits_that_cannot_be_are_refused() -> None:
    plan, rng = case.plan(), np.random.default_rng(0)
    with pytest.raises(InvalidInput, match="usd_per_hour.*one audit an hour.*0.0008"):
        Auditor(AUDITS.model_copy(update={"usd_per_hour": 0.0007}), plan, rng, 0.0)
    alone = plan.model_copy(update={"cascade": Cascade(tiers=(Tier(members=("large",)),))})
    with pytest.raises(InvalidInput, match="a tier before the last"):
        Auditor(AUDITS, alone, rng, 0.0)


# --- Stricter gates ---------------------------------------------------------------------------------------------------

TABLE = factories.table(400)
CASCADES = [
    factories.cascade(rule="vote", quorum=2),
    factories.cascade(threshold=0.6),
    Cascade(tiers=(Tier(members=("small", "other"), rule="both", quorum=2, threshold=0.7), Tier(members=("large",)))),
    Cascade(tiers=(Tier(members=("small",), rule="margin", threshold=1.0), Tier(members=("large",)))),
    Cascade(
        tiers=(
            Tier(members=("small", "other"), quorum=2),
            Tier(members=("middle",), quorum=2, carry=1),
            Tier(members=("large",)),
        )
    ),
]


@pytest.mark.parametrize("cascade", CASCADES, ids=["vote", "score", "both", "nothing above", "carried"])
def test_every_step_accepts_a_part_of_the_step_before_until_nothing(cascade: Cascade) -> None:
    assert tightened(cascade, 0).tiers == cascade.tiers
    assert tightened(cascade, 0).says == ""
    steps = [tightened(cascade, n) for n in range(5)]
    assert steps[-1].are_closed
    for before, after in itertools.pairwise(steps):
        assert before.closed <= after.closed
        for number in range(len(cascade.tiers) - 1):
            outputs = tier_outputs(cascade, number, TABLE)
            was = decide(before.tiers[number], outputs).accepted & (number not in before.closed)
            now = decide(after.tiers[number], outputs).accepted & (number not in after.closed)
            assert not (now & ~was).any()
            assert now.sum() < was.sum() or number in after.closed
        assert after.says
        assert after.tiers[-1] == cascade.tiers[-1]


def test_a_rule_without_known_ends_is_closed_at_once() -> None:
    cascade = Cascade(tiers=(Tier(members=("small",), rule="gate:a.npz#0", threshold=3.5), Tier(members=("large",))))
    gates = tightened(cascade, 1)
    assert gates.are_closed
    assert gates.says == "tier 1 passes on everything (nothing is known of how far gate:a.npz#0 reaches)"


def test_with_closed_gates_the_last_tier_answers_everything() -> None:
    cascade = CASCADES[0]
    stricter = cascade.model_copy(update={"tiers": tightened(cascade, 1).tiers})
    assert route(stricter, TABLE).tier.mean() > route(cascade, TABLE).tier.mean()


# --- Counted from records ---------------------------------------------------------------------------------------------


def stream(
    rng: np.random.Generator, queries: int, early: float, differs: float, share: float = 1.0, start_s: float = 0.0
) -> list[Record]:
    """Answers one second apart; audits end half a second after theirs."""
    records: list[Record] = []
    for n in range(queries):
        at = start_s + n
        tier = int(rng.random() >= early)
        records.append(Answer(f"q{n}", at, at + 0.1, tier, 0, 1.0, False))
        if tier == 0 and rng.random() < share:
            last = int(rng.random() < differs)
            records.append(Audit(f"q{n}", 0, 0, last, at + 0.1, at + 0.5, "differs" if last else "same"))
    return records


SETTINGS = Auditing(0.0, 1.0, 1.0, 0.05, 0.05)


def counted(records: list[Record], cascade: Cascade = CASCADE) -> Audited:
    found = audited(cascade, records, 0.5)
    assert found is not None
    return found


def test_no_settings_no_audits() -> None:
    assert audited(CASCADE, stream(np.random.default_rng(0), 10, 0.5, 0.5), 0.0) is None
    assert counted([SETTINGS]).says == "No early answer has been compared with the last tier's so far"


def test_counts_are_the_records() -> None:
    records = stream(np.random.default_rng(2), 500, 0.7, 0.1, share=0.5)
    others: list[Record] = [
        Audit("x", 0, 0, -1, 600.0, 601.0, outcome) for outcome in ("failed", "unpaid", "unpaid", "busy", "dropped")
    ]
    fallback: list[Record] = [
        Answer("f", 1.0, 2.0, 0, 0, 1.0, True, "fallback"),
        Answer("g", 1.0, 2.0, -1, -1, 0.0, True, "failed"),
    ]
    found = counted([SETTINGS, *records, *others, *fallback])
    answers = [r for r in records if isinstance(r, Answer)]
    looked = [r for r in records if isinstance(r, Audit)]
    differing = sum(r.last != r.answer for r in looked)
    early = sum(r.tier == 0 for r in answers) / len(answers)
    assert (found.observed, found.differing, found.failed, found.skipped) == (len(looked), differing, 1, 4)
    assert found.chosen == len(looked) + 5
    assert found.early == early
    assert found.rate == pytest.approx(early * differing / len(looked))
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.usd == 0.5


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_the_order_of_a_ledger_does_not_matter(rng: object) -> None:
    records = [SETTINGS, *stream(np.random.default_rng(3), 200, 0.7, 0.1)]
    shuffled = list(records)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counted(shuffled) == counted(records)


@pytest.mark.parametrize(
    ("differs", "verdict"), [(0.0, "kept"), (0.071, "open"), (0.2, "drift")], ids=["well below", "at it", "far above"]
)
def test_verdicts(differs: float, verdict: str) -> None:
    """Allowed are 5% of all queries; seven of ten are answered early, so 7.1% of these are allowed."""
    found = counted([SETTINGS, *stream(np.random.default_rng(4), 800, 0.7, differs)], with_claim("disagreement"))
    assert found.verdict == verdict
    assert found.is_broken == (verdict == "drift")
    assert (found.drift_since_s is not None) == (verdict == "drift")
    assert ("does not hold" in found.says) == (verdict == "drift")


def test_drift_does_not_break_a_claim_about_losses() -> None:
    """Where both are wrong and differ nothing is lost, so differing answers alone prove nothing against it."""
    found = counted([SETTINGS, *stream(np.random.default_rng(4), 800, 0.7, 0.2)], with_claim("loss"))
    assert found.verdict == "drift"
    assert not found.is_broken


def test_drift_is_dated_when_it_is_first_shown_and_stays() -> None:
    rng = np.random.default_rng(5)
    bad = stream(rng, 400, 0.8, 0.3)
    good = stream(rng, 400, 0.8, 0.0, start_s=400.0)
    sums = AuditSums(CASCADE)
    sums.add(SETTINGS)
    first = None
    for record in bad:
        sums.add(record)
        if first is None and sums.low > SETTINGS.alarm_above and isinstance(record, Audit):
            first = record.done_s
    assert first is not None
    assert first < 200
    found = counted([SETTINGS, *bad, *good])
    assert found.drift_since_s == first
    assert found.verdict == "drift"


def test_stricter_gates_are_watched_anew() -> None:
    rng = np.random.default_rng(6)
    before = stream(rng, 300, 0.8, 0.3)
    stricter = Auditing(300.0, 1.0, 1.0, 0.05, 0.05, strictness=1)
    after = stream(rng, 100, 0.5, 0.0, start_s=300.5)
    stale = Audit("old", 0, 0, 1, 299.9, 305.0, "differs")  # of an answer that the old gates let through
    found = counted([SETTINGS, *before, stricter, stale, *after])
    assert found.verdict == "kept" or found.verdict == "open"
    assert found.drift_since_s is None
    assert found.strictness == 1
    assert found.differing == 0
    assert "tier 1 passes on everything" in found.says


@pytest.mark.parametrize(("early", "differs"), [(0.7, 0.05), (0.3, 0.02)])
def test_both_bounds_of_all_queries_are_wrong_at_any_time_in_at_most_delta_of_streams(
    early: float, differs: float
) -> None:
    truth, runs, delta = early * differs, 120, 0.1
    wrong = 0
    for run in range(runs):
        sums = AuditSums(CASCADE)
        sums.add(Auditing(0.0, 1.0, 1.0, delta, 0.9))
        for record in stream(np.random.default_rng(run), 250, early, differs, share=0.5):
            sums.add(record)
        wrong += sums.low > truth  # the tightest bound so far, so wrong once is wrong
    assert wrong <= runs * delta + 3 * math.sqrt(runs * delta * (1 - delta))
