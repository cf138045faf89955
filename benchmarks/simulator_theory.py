"""The simulator beside queueing theory: mean wait and tail of queues whose answers are known.

    python -m benchmarks.simulator_theory [--runs 10] [--queries 200000] [--json OUT]

Each queue is run with several seeds, the first tenth left out; shown are theory, the simulated mean with its 95% interval, and
how far off it is. The same comparisons are tests (tests/oracles/test_simulator_theory.py).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from benchmarks.figures import publish
from coe.simulator import fast
from coe.simulator.arrivals import poisson, stream
from coe.simulator.figures import interval
from tests.oracles.test_simulator_theory import alike, load, network

Factors = Callable[[np.random.Generator, int], np.ndarray]
"""Service times in units of their mean."""


def system_s(rate: float, servers: int, factors: Factors, seed: int, queries: int) -> np.ndarray:
    """Times in a system of mean service time 1."""
    net = network([[[(servers, 1.0)]]])
    arrivals = poisson(stream(seed, "arrivals"), rate, queries / rate)
    jitter = alike(net, factors(stream(seed, "service"), queries + 7))
    spent: np.ndarray = (fast.run(net, load(arrivals), jitter).done_s - arrivals)[queries // 10 :]
    return spent


def exponential(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.exponential(1.0, count)


def constant(_rng: np.random.Generator, _count: int) -> np.ndarray:
    return np.ones(1)


def erlang_c(offered: float, servers: int) -> float:
    """Probability to wait in an M/M/c queue."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - offered / servers)
    return last / (sum(terms) + last)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--queries", type=int, default=200_000)
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    c8 = erlang_c(6.4, 8)
    cases: list[tuple[str, float, int, Factors, float, Callable[[np.ndarray], float]]] = [
        ("M/M/1 at 70%, mean", 0.7, 1, exponential, 1 / 0.3, np.mean),
        ("M/M/1 at 70%, p99", 0.7, 1, exponential, math.log(100) / 0.3, lambda x: float(np.quantile(x, 0.99))),
        ("M/M/8 at 80%, mean", 6.4, 8, exponential, 1 + c8 / 1.6, np.mean),
        ("M/D/1 at 75%, mean", 0.75, 1, constant, 1 + 0.75 / (2 * 0.25), np.mean),
        (
            "M/G/1 (gamma, scv 2) at 75%, mean",
            0.75,
            1,
            lambda r, n: r.gamma(0.5, 2.0, n),
            1 + 0.75 * 3 / (2 * 0.25),
            np.mean,
        ),
    ]
    rows = []
    for name, rate, servers, factors, theory, figure in cases:
        found = [float(figure(system_s(rate, servers, factors, seed, args.queries))) for seed in range(args.runs)]
        mean, half = interval(found)
        rows.append(
            {"queue": name, "theory": theory, "simulated": mean, "95% +-": half, "off by %": 100 * (mean / theory - 1)}
        )
    publish("simulator_theory", rows, args.json)


if __name__ == "__main__":
    main()
