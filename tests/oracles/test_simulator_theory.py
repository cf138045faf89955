"""The simulator against queueing theory, and the compiled engine against the readable one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import simulator_speed
from coe.cascade.evaluate import Routing
from coe.cost.capacity import expected_batch, service_s
from coe.simulator import fast
from coe.simulator.arrivals import gamma, poisson, stream
from coe.simulator.engine import Engine, Outcome
from coe.simulator.network import Load, Network
from tests import factories

UNLIMITED = 10**6
QUERIES = 200_000


def network(
    tiers: list[list[list[tuple[int, float]]]],
    batch_size: int = 1,
    wait_s: float = 0.0,
    in_flight: int = UNLIMITED,
    at_work: int | None = None,
    per_item: bool = False,
    staged: bool = False,
    hop_s: float = 0.0,
) -> Network:
    """tiers -> members -> placements as (replicas, mean service time). A batch takes as long as an item, or n times so."""
    members = [m for tier in tiers for m in tier]
    placements = [p for m in members for p in m]
    grows = np.arange(batch_size + 1) if per_item else np.ones(batch_size + 1)
    return Network(
        batch_size=np.full(len(tiers), batch_size),
        in_flight=np.full(len(tiers), in_flight),
        at_work=np.full(len(tiers), in_flight if at_work is None else at_work),
        wait_s=wait_s,
        staged=np.full(len(tiers), staged),
        member_tier=np.array([t for t, tier in enumerate(tiers) for _ in tier]),
        first_placement=np.cumsum([0, *(len(m) for m in members)]),
        replicas=np.array([r for r, _ in placements]),
        traffic=np.array([r / sum(x for x, _ in m) for m in members for r, _ in m]),
        hop_s=np.full(len(placements), hop_s),
        sigma=np.zeros(len(placements)),
        service_s=np.array([s * grows for _, s in placements]),
    )


def load(arrival_s: np.ndarray, tiers: int = 1, reach: float = 0.0, seed: int = 0, members: int = 1) -> Load:
    """Items of which a share goes on from tier to tier; staged members are asked at random."""
    rng = stream(seed, "items")
    items = 5000
    end = np.zeros(items, dtype=np.int64)
    for t in range(tiers - 1):
        end[(end == t) & (rng.random(items) < reach)] = t + 1
    asked = rng.random((items, members)) < 0.7
    routing = Routing(end, end, np.zeros(items, dtype=np.bool_), asked)
    return Load(arrival_s, rng.integers(0, items, len(arrival_s)), routing)


def alike(net: Network, factors: np.ndarray) -> np.ndarray:
    """The same factors for every placement."""
    return np.tile(factors, (len(net.replicas), 1))


def waits_s(rate: float, net: Network, jitter: np.ndarray, seed: int = 1) -> np.ndarray:
    """Time from arrival to the start of computing, of a network of one tier and one member, without the first tenth."""
    arrivals = poisson(stream(seed, "arrivals"), rate, QUERIES / rate)
    found = fast.run(net, load(arrivals), alike(net, jitter))
    mine = found.done_s - arrivals
    return mine[len(mine) // 10 :]


def exponential(seed: int = 2) -> np.ndarray:
    return stream(seed, "service").exponential(1.0, QUERIES + 7)


def test_m_m_1() -> None:
    """Mean time in system 1 / (mu - lambda); its distribution is exponential."""
    rate, mean = 0.7, 1.0
    spent = waits_s(rate, network([[[(1, mean)]]]), exponential())
    assert spent.mean() == pytest.approx(1 / (1 / mean - rate), rel=0.06)
    assert np.quantile(spent, 0.9) == pytest.approx(math.log(10) / (1 / mean - rate), rel=0.08)


@pytest.mark.parametrize("servers", [2, 8])
def test_m_m_c(servers: int) -> None:
    """Erlang C: the probability to wait, and the mean wait of those who do."""
    offered = 0.8 * servers
    spent = waits_s(offered, network([[[(servers, 1.0)]]]), exponential())
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - 0.8)
    erlang_c = last / (sum(terms) + last)
    assert spent.mean() == pytest.approx(1 + erlang_c / (servers - offered), rel=0.05)


@pytest.mark.parametrize(("name", "scv"), [("M/D/1", 0.0), ("M/G/1, gamma", 2.0)])
def test_pollaczek_khinchine(name: str, scv: float) -> None:
    """Mean wait rho (1 + scv) / (2 (1 - rho)) of mean service times."""
    rng = stream(3, name)
    jitter = np.ones(1) if scv == 0 else rng.gamma(1 / scv, scv, QUERIES + 3)
    rho = 0.75
    spent = waits_s(rho, network([[[(1, 1.0)]]]), jitter)
    assert spent.mean() == pytest.approx(1 + rho * (1 + scv) / (2 * (1 - rho)), rel=0.06)


def test_bulk_service() -> None:
    """Batches of at most b, whoever is there is taken, service exponential (M/M^[1,b]/1): mean number in system from the root of
    its characteristic equation r^(b+1) - (1 + rho) r + rho = 0 in (0, 1), queue length geometric."""
    b, rate, mu = 4, 2.4, 1.0
    rho = rate / mu
    roots = np.roots([*([1.0] + [0.0] * (b - 1)), -(1 + rho), rho])
    r = next(float(x.real) for x in roots if abs(x.imag) < 1e-9 and 0 < x.real < 1 - 1e-9)
    arrivals = poisson(stream(4, "arrivals"), rate, QUERIES / rate)
    net = network([[[(1, 1 / mu)]]], batch_size=b, in_flight=1)
    found = fast.run(net, load(arrivals), alike(net, exponential()))
    waiting = found.batched_s[:, 0] - found.entered_s[:, 0]
    # P(idle) p0, then q_n = q_0 r^n waiting while busy; q_0 = rho p0, normalised
    q0_over_p0 = rho * 1.0
    p0 = 1 / (1 + q0_over_p0 / (1 - r))
    mean_waiting = p0 * q0_over_p0 * r / (1 - r) ** 2
    assert waiting[QUERIES // 10 :].mean() == pytest.approx(mean_waiting / rate, rel=0.08)


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("utilisation", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_batches_are_as_large_as_the_plan_expects(replicas: int, utilisation: float) -> None:
    """What the planner bills by (`expected_batch`) against the simulator's batches, which follow the router's rules."""
    profile = factories.profile("m", "T4", 0.01)
    rate = utilisation * 16 * replicas / service_s(profile, 16)
    net = replace(
        network([[[(replicas, 1.0)]]], batch_size=16, in_flight=2 * replicas, at_work=replicas),
        service_s=np.array([[service_s(profile, max(1, n)) for n in range(17)]]),
    )
    arrivals = poisson(stream(8, "arrivals"), rate, 20_000 / rate)
    totals = fast.run_totals(net, load(arrivals), np.ones((1, 1)))
    mean = totals.items.sum() / totals.calls.sum()
    assert expected_batch(profile, rate, 0.0, 16, float(replicas)) == pytest.approx(mean, rel=0.1)


def test_tandem_with_splitting() -> None:
    """Burke: what leaves an M/M/1 queue is Poisson, so the second tier is M/M/1 at the share that goes on."""
    rate, reach = 0.6, 0.5
    arrivals = poisson(stream(5, "arrivals"), rate, QUERIES / rate)
    net = network([[[(1, 1.0)]], [[(1, 1.5)]]])
    queries = load(arrivals, tiers=2, reach=reach)
    share = float((queries.routing.tier[queries.item] == 1).mean())
    found = fast.run(net, queries, alike(net, exponential()))
    second = found.done_s - found.entered_s[:, 1]
    first = found.entered_s[:, 1] - found.entered_s[:, 0]
    assert np.nanmean(first[QUERIES // 10 :]) == pytest.approx(1 / (1 - rate), rel=0.06)
    assert np.nanmean(second[QUERIES // 10 :]) == pytest.approx(1 / (1 / 1.5 - rate * share), rel=0.08)


def test_little() -> None:
    """Mean number in the system is the rate times the mean time there, whatever the network."""
    arrivals = gamma(stream(6, "arrivals"), 5.0, 4000.0, 2.0)
    net = network([[[(3, 0.2)], [(2, 0.1), (1, 0.3)]], [[(2, 0.3)]]], batch_size=4, wait_s=0.05, in_flight=6)
    found = fast.run(net, load(arrivals, 2, 0.3), alike(net, np.ones(1)))
    times = np.linspace(100, 3900, 4000)
    there = [(np.searchsorted(arrivals, t) - np.searchsorted(np.sort(found.done_s), t)) for t in times]
    spent = (found.done_s - arrivals).mean()
    assert np.mean(there) == pytest.approx(5.0 * spent, rel=0.08)


def both(net: Network, queries: Load, jitter: np.ndarray) -> tuple[Outcome, Outcome]:
    return Engine(net, queries, jitter).run(), fast.run(net, queries, jitter)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_both_engines_do_the_same(seed: int, staged: bool) -> None:
    rng = np.random.default_rng(seed)
    arrivals = poisson(stream(seed, "arrivals"), 30.0, 40.0)
    net = network(
        [[[(int(rng.integers(1, 4)), 0.05), (1, 0.1)], [(2, 0.07)]], [[(2, 0.1)], [(1, 0.05)]], [[(1, 0.15)]]],
        batch_size=int(rng.integers(1, 9)),
        wait_s=float(rng.choice([0.0, 0.02])),
        in_flight=int(rng.integers(1, 7)),
        at_work=int(rng.integers(1, 7)),
        per_item=bool(rng.random() < 0.5),
        staged=staged,
        hop_s=0.003,
    )
    queries = load(arrivals, 3, 0.4, seed, members=5)
    jitter = stream(seed, "service").lognormal(0, 0.2, (len(net.replicas), 997))
    one, other = both(net, queries, jitter)
    for name in ("done_s", "entered_s", "batched_s"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in vars(one.calls):
        np.testing.assert_array_equal(getattr(one.calls, name), getattr(other.calls, name), err_msg=name)
    totals = fast.run_totals(net, queries, jitter)
    np.testing.assert_array_equal(totals.done_s, one.done_s)
    assert totals.calls.sum() == len(one.calls.member)
    assert not np.isnan(one.done_s).any()


def test_turns_over_many_equal_placements_are_the_same() -> None:
    for placements in range(2, 17):
        net = network([[[(1, 0.1)] * placements]], batch_size=2)
        queries = load(poisson(stream(placements, "arrivals"), 30.0, 40.0))
        one, other = both(net, queries, alike(net, np.ones(1)))
        np.testing.assert_array_equal(one.done_s, other.done_s)


def test_the_same_seed_gives_the_same_run() -> None:
    again = [poisson(stream(9, "arrivals"), 10.0, 100.0) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0][:10], poisson(stream(9, "items"), 10.0, 100.0)[:10])


def test_simpy_says_the_same() -> None:
    """The same cascade as SimPy processes: other code, other library, the same times."""
    net, queries = simulator_speed.network(500.0), simulator_speed.load(650.0, 3_000)  # busy enough for batches to wait
    theirs = simulator_speed.in_simpy(net, queries)
    ours = Engine(net, queries, alike(net, np.ones(1))).run().done_s
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)
