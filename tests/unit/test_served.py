"""Plans on the virtual clock, run by the router's own code: against the compiled engine, against theory, and under failures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from coe.cascade.evaluate import route
from coe.errors import InvalidInput
from coe.ledger import encoded
from coe.placement.gears import gears_of
from coe.placement.optimize import plan as optimised
from coe.placement.together import together
from coe.records import Answer, BatchRun, NodeSpan
from coe.report.summarise import summarise
from coe.simulator.arrivals import poisson, stream
from coe.simulator.run import simulate
from coe.simulator.served import Served, serve
from coe.types import (
    ApiPrice,
    Cascade,
    Failures,
    Gears,
    Link,
    Loss,
    Plan,
    Profile,
    Profiles,
    Scaling,
    Scenario,
    Sites,
    Tier,
    TokenLengths,
    TokenRate,
)
from tests import factories, gears_case

TABLE = factories.table(n=2000)
SAMPLE = TABLE.split("certification")
PROFILES = factories.profiles()
ROW = Cascade(tiers=(Tier(members=("small",), rule="score", threshold=0.8), Tier(members=("large",))))


def exact(profiles: Profiles) -> Profiles:
    """The profiles of machines that always take the same time."""
    return Profiles(
        profiles=tuple(
            p.model_copy(
                update={"timings": tuple(t.model_copy(update={"latency_p99_s": t.latency_p50_s}) for t in p.timings)}
            )
            for p in profiles.profiles
        )
    )


def planned(cascade: Cascade | None = None, profiles: Profiles = PROFILES, prices: Any = None, **work: Any) -> Plan:
    return optimised(
        factories.pool(),
        [cascade or factories.cascade()],
        TABLE,
        profiles,
        prices or factories.prices(),
        factories.workload(**work),
        inputs={},
        uncertified=True,
        reasons=False,
    )


def arrivals(rate: float = 100.0, duration_s: float = 30.0, seed: int = 0) -> np.ndarray:
    return poisson(stream(seed, "arrivals"), rate, duration_s)


PLAN = planned()


def served(scenario: Scenario | None = None, plan: Plan = PLAN, rate: float = 100.0, **more: Any) -> Served:
    duration_s = more.pop("duration_s", 30.0)
    return serve(plan, PROFILES, SAMPLE, arrivals(rate, duration_s), scenario, **more)


def answers_of(run: Served) -> list[Answer]:
    return [r for r in run.records if isinstance(r, Answer)]


def incommensurable(profiles: Profiles) -> Profiles:
    """Members whose service times have no common multiple, so that no two things end at one moment, in either order."""
    odd = {"small": 1.0, "large": 1.0173, "middle": 0.9881, "other": 1.0057}

    def slower(profile: Profile) -> Profile:
        factor = odd[profile.member]
        timings = [
            t.model_copy(update={"latency_p50_s": factor * t.latency_p50_s, "latency_p99_s": factor * t.latency_p99_s})
            for t in profile.timings
        ]
        return profile.model_copy(update={"timings": tuple(timings)})

    return Profiles(profiles=tuple(slower(p) for p in profiles.profiles))


def test_where_nothing_can_be_decided_early_both_engines_give_the_same_times() -> None:
    """One member per tier, no jitter: the router's own code and the compiled engine agree on every query."""
    profiles = incommensurable(exact(PROFILES))
    plan = planned(ROW, profiles, batch_wait_s=0.00437)
    came = arrivals(100.0)
    ours = serve(plan, profiles, SAMPLE, came)
    compiled = simulate(plan, profiles, SAMPLE, came)
    np.testing.assert_allclose(ours.latency_s, compiled.outcome.done_s - came, rtol=1e-6)
    assert ours.figures.usd_per_1k_usage == pytest.approx(compiled.figures.usd_per_1k_usage, rel=1e-9)
    for one, other in zip(ours.figures.tiers, compiled.figures.tiers, strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-6)


def test_the_parts_of_latency_add_up() -> None:
    """One member, batches of one: waiting in the queue and for a replica, computing and the way are the whole."""
    single = planned(Cascade(tiers=(Tier(members=("large",)),)), batch_wait_s=0.0, rate_per_s=8.0)
    for figures in (
        simulate(single, PROFILES, SAMPLE, arrivals(8.0, 60.0)).figures,
        served(plan=single, rate=8.0, duration_s=60.0).figures,
    ):
        tier = figures.tiers[0]
        assert tier.mean_batch < 1.3
        parts = tier.batch_wait_s + tier.replica_wait_s + tier.service_s + tier.network_s
        assert parts == pytest.approx(figures.latency_mean_s, rel=0.1)


def test_answers_and_tiers_are_those_of_evaluation() -> None:
    run, routing = served(), route(PLAN.cascade, SAMPLE)
    for answer in answers_of(run):
        item = run.item[int(answer.query_id[1:])]
        assert (answer.answer, answer.tier) == (routing.answer[item], routing.tier[item])
        assert answer.status == "ok"
    assert len(answers_of(run)) == len(run.arrival_s)
    assert run.figures.unanswered == 0


def test_early_decisions_save_calls_and_time() -> None:
    """A vote of two among three is often over before the third has been asked."""
    eager = planned(factories.cascade(rule="vote", quorum=2))
    # the third member is far slower than the two others, so that it is often still waiting when they agree
    slow = {**factories.SERVICE_S, "small": 0.004}
    profiles = factories.profiles(slow)
    came = arrivals(40.0, 30.0)
    early = serve(eager, profiles, SAMPLE, came)
    late = simulate(eager, profiles, SAMPLE, came)
    assert early.figures.saved_items > 0
    assert early.figures.latency_p50_s < late.figures.latency_p50_s
    made = sum(r.items for r in early.records if isinstance(r, BatchRun) and r.member == "small" and r.busy_s > 0)
    assert made < len(answers_of(early))


def test_the_same_seed_gives_the_same_ledger_byte_for_byte() -> None:
    scenario = Scenario(failures=Failures(replica_mtbf_s=10.0, replica_restart_s=1.0, node_mtbf_s=40.0))
    texts = ["".join(encoded(r) for r in served(scenario, seed=s).records) for s in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_simulated_ledger_is_read_by_the_report_which_finds_the_same_dollars() -> None:
    run = served(Scenario(failures=Failures(replica_mtbf_s=20.0)))
    report = summarise(PLAN, run.records)
    refused = round(run.figures.refused * run.figures.queries)
    assert report.served.requests + refused == len(run.arrival_s)
    used, rented = (next(c for c in report.costs if c.basis == b) for b in ("usage", "allocation"))
    # the report bills lost calls for as long as the router waited for them, which the figures cannot know
    assert used.usd_per_1k >= run.figures.usd_per_1k_usage * 0.999
    assert rented.usd_per_1k == pytest.approx(run.figures.usd_per_1k_allocation, rel=0.01)


# --- Failures ----------------------------------------------------------------------------------------------------------


def test_a_plan_that_survives_a_lost_node_answers_everything_and_one_that_does_not_is_honest() -> None:
    sure = planned(survive_node_loss=True, router_replicas=2, latency_s=1.0)
    bare = planned(latency_s=1.0, target_utilisation=0.95)
    lost = Scenario(failures=Failures(losses=(Loss(at_s=10.0, node_type="t4-node"),)), node_start_s=15.0)
    survivor, fragile = served(lost, sure), served(lost, bare)
    assert survivor.figures.unanswered == 0
    assert survivor.figures.goodput > 0.99
    assert fragile.figures.goodput < 0.9
    assert any("lost" in what for _, what in survivor.told)
    for run, plan in ((survivor, sure), (fragile, bare)):
        routing = route(plan.cascade, SAMPLE)
        for answer in answers_of(run):
            item = run.item[int(answer.query_id[1:])]
            # whatever was lost: an answer that does not own up to it is the right one
            if answer.status == "ok" and not answer.degraded:
                assert answer.answer == routing.answer[item]


def test_a_warning_before_a_spot_node_goes_saves_its_calls() -> None:
    calls = {}
    for notice_s in (0.0, 8.0):
        losses = tuple(Loss(at_s=10.0 + 2 * i, node_type="t4-node", notice_s=notice_s) for i in range(3))
        run = served(Scenario(failures=Failures(losses=losses), node_start_s=5.0))
        calls[notice_s] = sum(r.status == "failed" for r in run.records if isinstance(r, BatchRun))
    assert calls[0.0] > 0
    assert calls[8.0] == 0


def test_replicas_are_there_as_often_as_their_failures_and_repairs_say() -> None:
    """Availability of a process that runs for M seconds on average and is gone for R: M / (M + R)."""
    failures = Failures(replica_mtbf_s=60.0, replica_restart_s=20.0)
    run = served(Scenario(failures=failures), rate=0.05, duration_s=20_000.0)
    crashes = [what for _, what in run.told if "crashed" in what]
    replicas = sum(p.replicas for p in PLAN.placements)
    assert len(crashes) == pytest.approx(replicas * 20_000 / 80, rel=0.1)


def test_a_lost_node_is_replaced_after_its_start_and_billed_to_the_begun_hour() -> None:
    scenario = Scenario(
        failures=Failures(losses=(Loss(at_s=10.0, node_type="t4-node"),)), node_start_s=5.0, billed_in_s=3600.0
    )
    run = served(scenario)
    spans = [r for r in run.records if isinstance(r, NodeSpan) and r.node_type == "t4-node"]
    planned_nodes = next(n.count for n in PLAN.nodes if n.node_type == "t4-node")
    assert len(spans) == planned_nodes + 1
    assert sum(s.end_s == 3600.0 for s in spans) == 1
    assert sum(s.start_s == 10.0 for s in spans) == 1


def test_a_failed_router_loses_what_it_had_and_nothing_else() -> None:
    three = planned(router_replicas=3)
    run = serve(three, PROFILES, SAMPLE, arrivals(50.0, 60.0), Scenario(router_mtbf_s=30.0, node_start_s=5.0))
    failed = [what for _, what in run.told if "router" in what]
    assert failed
    lost = sum(int(what.split("with ")[1].split()[0]) for what in failed)
    assert run.figures.unanswered * run.figures.queries == pytest.approx(lost, abs=0.1)


def test_cold_machines_answer_once_they_have_started() -> None:
    run = served(Scenario(is_cold=True, node_start_s=10.0))
    early = run.arrival_s < 8.0
    assert np.isnan(run.latency_s[early]).mean() > 0.9
    assert not np.isnan(run.latency_s[run.arrival_s > 15.0]).any()


def test_after_the_deadline_a_query_has_what_there_was_or_failed() -> None:
    run = served(Scenario(deadline_s=0.05), rate=150.0)
    there = run.latency_s[~np.isnan(run.latency_s)]
    assert there.max() < 0.05 + 0.02
    assert run.figures.unanswered > 0 or run.figures.degraded > 0


def test_overload_is_refused_and_what_is_accepted_is_answered_in_time() -> None:
    run = served(rate=1500.0, duration_s=10.0)
    assert run.figures.refused > 0.5
    assert run.figures.unanswered == pytest.approx(run.figures.refused, abs=0.02)
    assert run.figures.latency_p99_s < 2 * PLAN.workload.latency_s


def test_a_slow_router_is_a_queue_of_its_own() -> None:
    """M/D/1 in front: at 50% a query waits half a service time on average."""
    cost_s = 0.005
    quick, slow = served(), served(Scenario(router_s_per_query=cost_s))
    more = slow.figures.latency_mean_s - quick.figures.latency_mean_s
    assert more == pytest.approx(1.5 * cost_s, rel=0.5)


# --- Links, tokens, hosted models --------------------------------------------------------------------------------------


def test_a_full_link_is_a_queue() -> None:
    """200 kB per item at 100/s over 100 Mbit/s is 160% of it: calls wait longer and longer."""

    def run(bits_per_s: float) -> Served:
        sites = Sites(
            ingress="edge",
            links=(Link(to_site="cloud", round_trip_s=0.02, bits_per_s=bits_per_s),),
            bytes_per_item=200_000,
        )
        away = tuple(o.model_copy(update={"site": "cloud"}) if o.node_type == "t4-node" else o for o in PLAN.offers)
        far = PLAN.model_copy(
            update={"offers": away, "workload": PLAN.workload.model_copy(update={"sites": sites, "latency_s": 3.0})}
        )
        return serve(far, PROFILES, SAMPLE, arrivals(100.0, 20.0))

    wide, narrow = run(1e10), run(1e8)
    assert wide.figures.tiers[0].network_s == pytest.approx(0.02 + 0.0025, rel=0.1)
    assert narrow.figures.latency_p99_s > 5 * wide.figures.latency_p99_s


def test_language_models_carry_the_rate_that_was_measured_and_no_more() -> None:
    """At 80% of the measured requests per second the replica is 80% busy; at 150% it falls behind."""
    rate = TokenRate(prompt_tokens=512, completion_tokens=256, requests_per_s=4.0, latency_p99_s=5.0)
    profiles = Profiles(
        profiles=tuple(p.model_copy(update={"token_rates": (rate,)}) for p in PROFILES.profiles if p.member == "large")
    )
    tokens = (TokenLengths(prompt_tokens=512, completion_tokens=256, share=1.0),)
    alone = Cascade(tiers=(Tier(members=("large",)),))
    plan = planned(alone, profiles, rate_per_s=3.2, latency_s=20.0, target_utilisation=0.9, tokens=tokens)
    carried = plan.placements[0]
    assert (carried.replicas, carried.share) == (1, 1.0)
    easy = serve(plan, profiles, SAMPLE, arrivals(3.2, 2000.0), warm_up_s=100.0)
    assert easy.figures.utilisation[carried.deployment] == pytest.approx(0.8, rel=0.1)
    assert easy.figures.latency_p50_s == pytest.approx(5.0, rel=0.1)
    hard = serve(plan, profiles, SAMPLE, arrivals(6.0, 500.0))
    assert hard.figures.goodput < 0.8


def test_a_hosted_model_is_billed_by_the_call_and_never_full() -> None:
    """Poisson requests that nobody queues for: the time is the model's own, whatever the load; the fee is per call."""
    api = ApiPrice(model="big", provider="them", usd_per_call=0.002, source="tests", date=factories.DAY)
    members = tuple(
        m.model_copy(update={"runner": "openai", "options": {"model": "big"}}) if m.name == "large" else m
        for m in factories.pool().members
    )
    slow = factories.profile("large", "API", 0.02)
    profiles = Profiles(profiles=(*(p for p in PROFILES.profiles if p.member != "large"), slow))
    plan = optimised(
        factories.pool().model_copy(update={"members": members}),
        [ROW],
        TABLE,
        profiles,
        factories.prices().model_copy(update={"apis": (api,)}),
        factories.workload(),
        inputs={},
        uncertified=True,
        reasons=False,
    )
    assert any(p.api == "big" for p in plan.placements)
    run = serve(plan, profiles, SAMPLE, arrivals())
    asked = sum(r.items for r in run.records if isinstance(r, BatchRun) and r.member == "large")
    report = summarise(plan, run.records)
    fees = [line.usd for line in report.usage_lines if "fees of large" in line.name]
    assert fees == [pytest.approx(0.002 * asked)]
    used, rented = (next(c for c in report.costs if c.basis == b) for b in ("usage", "allocation"))
    assert used.usd_per_1k == pytest.approx(run.figures.usd_per_1k_usage, rel=1e-6)
    assert rented.usd_per_1k == pytest.approx(run.figures.usd_per_1k_allocation, rel=0.01)
    assert run.figures.tiers[1].replica_wait_s == pytest.approx(0.0, abs=1e-9)


# --- Replicas and gears that follow the load -----------------------------------------------------------------------------


def step(low: float, high: float, at_s: float, duration_s: float) -> np.ndarray:
    return np.concatenate([arrivals(low, at_s), at_s + arrivals(high, duration_s - at_s, seed=1)])


def test_sizing_by_reach_recovers_sooner_than_by_queues() -> None:
    """A load that doubles: the policy that looks at the first tier's arrivals orders the later tier at the same time."""
    came, good = step(20.0, 60.0, 30.0, 150.0), {}
    for policy in ("reach", "ongoing"):
        scaling = Scaling(policy=policy, upscale_delay_s=5.0, look_back_s=10.0, downscale_delay_s=300.0)  # type: ignore[arg-type]
        run = serve(planned(rate_per_s=20.0), PROFILES, SAMPLE, came, Scenario(scaling=scaling, node_start_s=20.0))
        good[policy] = run.figures.goodput
        assert any("replicas" in what for _, what in run.told)
    assert good["reach"] > good["ongoing"]


def test_replicas_and_nodes_are_given_back_after_the_load() -> None:
    came = step(150.0, 5.0, 20.0, 400.0)
    scaling = Scaling(downscale_delay_s=30.0, node_idle_s=30.0, look_back_s=10.0)
    run = serve(planned(rate_per_s=150.0), PROFILES, SAMPLE, came, Scenario(scaling=scaling, node_start_s=10.0))
    still = serve(planned(rate_per_s=150.0), PROFILES, SAMPLE, came)
    assert run.figures.usd_per_1k_allocation < 0.8 * still.figures.usd_per_1k_allocation
    assert run.figures.unanswered == 0


def gears() -> Gears:
    return gears_of([50.0, 150.0], lambda rate: planned(rate_per_s=rate))


def test_gears_follow_the_load_up_and_down_and_lose_nothing() -> None:
    came = np.concatenate([arrivals(30.0, 30.0), 30 + arrivals(140.0, 50.0), 80 + arrivals(20.0, 60.0)])
    scenario = Scenario(node_start_s=10.0, gear_look_back_s=10.0)
    run = serve(PLAN, PROFILES, SAMPLE, came, scenario, gears=gears())
    shifts = [what for _, what in run.told if "->" in what]
    assert shifts == ["gear 1 -> 2", "gear 2 -> 1"]
    # until the new gear runs the old one refuses what it cannot carry; nothing that was accepted is lost
    assert run.figures.unanswered == pytest.approx(run.figures.refused)
    late = came[np.isnan(run.latency_s)]
    assert late.min() > 30.0
    assert late.max() < 60.0
    high = serve(gears().gears[1].plan, PROFILES, SAMPLE, came)
    assert run.figures.usd_per_1k_allocation < high.figures.usd_per_1k_allocation


def test_gears_deployed_together_change_at_once_and_refuse_only_while_the_load_is_not_seen() -> None:
    gears = gears_case.two_gears(look_back_s=6.0, dwell_s=10.0)
    came = np.concatenate([arrivals(30.0, 12.0), 12 + arrivals(300.0, 8.0), 20 + arrivals(20.0, 15.0)])
    sample, low = gears_case.TABLE.split("test"), gears.gears[0].plan
    run = serve(low, PROFILES, sample, came, gears=gears, deployed=True)
    alone = serve(low, PROFILES, sample, came)
    assert [what for _, what in run.told] == ["gear 1 -> 2", "gear 2 -> 1"]
    up_s, down_s = (at for at, _ in run.told)
    assert 12 < up_s < 14
    assert down_s >= up_s + 10
    refused = came[np.isnan(run.latency_s)]
    assert 12 < refused.min() <= refused.max() < up_s  # before the change; afterwards nothing is refused
    assert run.figures.goodput > 0.9 > 0.6 > alone.figures.goodput
    # the rent is that of one deployment from beginning to end, and calls are billed whichever gear made them
    whole = together(gears).plan
    rented = (
        sum(s.count * (s.end_s - s.start_s) * s.usd_per_hour for s in run.records if isinstance(s, NodeSpan)) / 3600
    )
    end_s = max(s.end_s for s in run.records if isinstance(s, NodeSpan))
    assert rented == pytest.approx(end_s * sum(n.count * n.usd_per_hour for n in whole.nodes) / 3600)
    price = {o.node_type: o.usd_per_hour / o.devices_per_node for o in whole.offers}
    used = sum(r.busy_s * r.share * price[r.node_type] for r in run.records if isinstance(r, BatchRun)) / 3600
    answered = (~np.isnan(run.latency_s)).sum()
    assert run.figures.usd_per_1k_usage == pytest.approx(1000 * used / answered)


def test_routers_change_gears_each_by_itself() -> None:
    kinds = ((gears_case.ACCURATE, 50.0, 0.1), (gears_case.FAST, 400.0, 0.2))
    gears = gears_case.two_gears(look_back_s=6.0)
    both = [
        gear.model_copy(update={"plan": gears_case.planned(cascade, rate, epsilon, router_replicas=2)})
        for gear, (cascade, rate, epsilon) in zip(gears.gears, kinds, strict=True)
    ]
    gears = gears.model_copy(update={"gears": tuple(both)})
    came = np.concatenate([arrivals(30.0, 5.0), 5 + arrivals(300.0, 5.0)])
    run = serve(both[0].plan, PROFILES, gears_case.TABLE.split("test"), came, gears=gears, deployed=True)
    assert sorted(what for _, what in run.told) == ["router 1: gear 1 -> 2", "router 2: gear 1 -> 2"]


# --- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: serve(PLAN, PROFILES, SAMPLE, np.empty(0)), "arrivals: there are none"),
        (lambda: served(warm_up_s=99.0), "warm-up: must end before the last"),
        (lambda: serve(PLAN, PROFILES, SAMPLE.only(["large"]), arrivals()), "no predictions of"),
        (lambda: serve(PLAN, factories.profiles({"large": 0.1}), SAMPLE, arrivals()), "has no profile on"),
        (lambda: served(Scenario(scaling=Scaling()), gears=gears()), "gears say how many replicas there are"),
        (
            lambda: served(
                plan=PLAN.model_copy(update={"nodes": (PLAN.nodes[0], PLAN.nodes[1].model_copy(update={"count": 1}))})
            ),
            "has no room for all",
        ),
    ],
)
def test_bad_input_is_named(what: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        what()
