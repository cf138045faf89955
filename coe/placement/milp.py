"""The placement problem as a mixed-integer linear program, solved by SciPy's HiGHS.

    sets        c columns (member m(c), tier t(c), offer o(c), batch b(c), share s_c), o offers, t tiers
    variables   x_c  replicas, integer             f_c  items per second served, >= 0
                y_c  1 where column c is used      n_o  nodes rented, integer
                z_tb 1 where tier t batches by b   L_t  latency bound of tier t, >= 0
                r    part of the rate that is carried; 1, but for the question how much could be

    minimise    sum_o usd_o n_o
    subject to  sum_{c of m} f_c = demand_m r                     all traffic of every member is served
                f_c <= capacity_c x_c                             within the target utilisation
                x_c <= most_c y_c,  y_c <= x_c                    used means at least one replica
                sum_{c of m} x_c >= min_replicas
                sum_{c of m on o} y_c <= 1                        one deployment per member and node type
                y_c <= z_{t(c) b(c)},  sum_b z_tb = 1             one batch size per tier
                sum_{c on o} s_c x_c <= devices_o n_o             accelerator shares pack (powers of two)
                n_o <= quota_o
                L_t >= latency_c y_c,  sum_{t on path} L_t <= latency promise

Among plans of equal cost the second solve takes the one with least usage dollars, a second of latency counting as
`USD_PER_LATENCY_S`; so the answer does not depend on chance. The other questions (is there a plan at all, which latency
or which part of the rate is within reach) change the objective and one limit. Nothing else in the package knows the solver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from coe.errors import Unavailable
from coe.placement.problem import PlacementProblem, Solution

USD_PER_LATENCY_S = 0.01
TIME_LIMIT_S = 60.0
_SLACK = 1e-7
_INFEASIBLE = (2, 4)
"""SciPy's statuses for infeasible, and (as HiGHS's presolve says it) infeasible or unbounded; nothing here is unbounded."""


def solve(problem: PlacementProblem, time_limit_s: float = TIME_LIMIT_S) -> Solution | None:
    """The cheapest solution, or None where it is proved that there is none.

    `Solution.proved` is False, with the bound beside it, where the time limit ended the search first. Raises
    `Unavailable` where it ended before anything was found: then nobody knows.
    """
    if problem.homeless:
        return None
    program = _Program(problem)
    first = program.solve(program.rent(), time_limit_s=time_limit_s)
    if first is None:
        return None
    values, bound, proved = first
    rented = float(program.rent() @ values)
    try:
        second = program.solve(program.usage(), {"rent": rented + _SLACK}, time_limit_s=time_limit_s)
    except Unavailable:  # no time left for niceties; the first answer stands
        second = None
    if second is not None:
        values = second[0]
    return program.solution(values, bound + problem.router_usd_per_hour, proved)


def feasible(problem: PlacementProblem) -> bool:
    """True where some plan exists, whatever it costs."""
    if problem.homeless:
        return False
    program = _Program(problem)
    return program.solve(np.zeros(program.size)) is not None


def lower_bound_usd_per_hour(problem: PlacementProblem) -> float | None:
    """Cost of the linear relaxation, which no plan undercuts; None where even that is infeasible."""
    if problem.homeless:
        return None
    program = _Program(problem)
    relaxed = program.solve(program.rent(), integral=False)
    return None if relaxed is None else relaxed[1] + problem.router_usd_per_hour


def least_latency_s(problem: PlacementProblem) -> float | None:
    """The smallest latency bound that any plan reaches when the latency promise is left out; None where none exists."""
    program = _Program(problem)
    result = program.solve(program.latency(), {"latency": np.inf})
    return None if result is None else float(program.latency() @ result[0])


def most_of_the_rate(problem: PlacementProblem) -> float:
    """The largest part of the rate (0 to 1) that a plan within all other promises can carry."""
    program = _Program(problem)
    result = program.solve(-program.carried(), least_carried=0.0)
    return 0.0 if result is None else float(program.carried() @ result[0])


@dataclass
class _Rows:
    """Constraint rows low <= a x <= high, collected as triplets."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: list[tuple[int, float]], low: float, high: float) -> int:
        """Append a row of (variable, coefficient) terms; its number."""
        row = len(self.low)
        self.entries += [(row, variable, value) for variable, value in terms]
        self.low.append(low)
        self.high.append(high)
        return row


class _Program:
    """The numbering of variables, and the constraints in the order of the module's docstring."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        columns = problem.columns
        self.batches = sorted({(c.tier, c.batch_size) for c in columns})
        k = len(columns)
        self.x, self.f, self.y = (np.arange(k) + i * k for i in range(3))
        self.n = {o.node_type: 3 * k + i for i, o in enumerate(problem.offers)}
        start = 3 * k + len(problem.offers)
        self.z = {pair: start + i for i, pair in enumerate(self.batches)}
        start += len(self.batches)
        self.latency_of = {t: start + t for t in range(problem.tiers)}
        self.r = start + problem.tiers
        self.size = self.r + 1
        self.rows = _Rows()
        self.named = {"rent": self.rows.add([(self.n[o.node_type], o.usd_per_hour) for o in problem.offers], 0, np.inf)}
        self._serve_all_traffic()
        self._link_and_limit_columns()
        self._pack()
        self.named["latency"] = self.rows.add([(self.latency_of[t], 1.0) for t in problem.path], 0, problem.latency_s)

    def _serve_all_traffic(self) -> None:
        """Demand and the minimum of replicas, per member."""
        for member, demand in self.problem.demand_per_s.items():
            own = [i for i, c in enumerate(self.problem.columns) if c.member == member]
            self.rows.add([*((self.f[i], 1.0) for i in own), (self.r, -demand)], 0, 0)
            self.rows.add([(self.x[i], 1.0) for i in own], self.problem.min_replicas, np.inf)
            for offer in self.problem.offers:
                here = [(self.y[i], 1.0) for i in own if self.problem.columns[i].offer.node_type == offer.node_type]
                if here:
                    self.rows.add(here, 0, 1)

    def _link_and_limit_columns(self) -> None:
        """Capacity, use, batch size and latency of every column; one batch size per tier."""
        for i, column in enumerate(self.problem.columns):
            self.rows.add([(self.f[i], 1.0), (self.x[i], -column.capacity_per_s)], -np.inf, 0)
            self.rows.add([(self.x[i], 1.0), (self.y[i], -float(self.problem.most_replicas(column)))], -np.inf, 0)
            self.rows.add([(self.y[i], 1.0), (self.x[i], -1.0)], -np.inf, 0)
            self.rows.add([(self.y[i], 1.0), (self.z[column.tier, column.batch_size], -1.0)], -np.inf, 0)
            self.rows.add([(self.y[i], column.latency_s), (self.latency_of[column.tier], -1.0)], -np.inf, 0)
        for tier in range(self.problem.tiers):
            self.rows.add([(v, 1.0) for (t, _), v in self.z.items() if t == tier], 1, 1)

    def _pack(self) -> None:
        """Accelerator shares against rented nodes."""
        for offer in self.problem.offers:
            here = [
                (self.x[i], c.share) for i, c in enumerate(self.problem.columns) if c.offer.node_type == offer.node_type
            ]
            if here:
                self.rows.add([*here, (self.n[offer.node_type], -float(offer.devices_per_node))], -np.inf, 0)

    def rent(self) -> np.ndarray:
        """Objective: dollars per hour of rented nodes."""
        objective = np.zeros(self.size)
        for offer in self.problem.offers:
            objective[self.n[offer.node_type]] = offer.usd_per_hour
        return objective

    def usage(self) -> np.ndarray:
        """Objective: usage dollars per hour, and a little for latency and for replicas that do nothing."""
        objective = USD_PER_LATENCY_S * self.latency()
        for i, column in enumerate(self.problem.columns):
            objective[self.f[i]] = 3600 * column.usd_per_item
            objective[self.x[i]] = 1e-6
        return objective

    def latency(self) -> np.ndarray:
        """Objective: the latency bound along the path."""
        objective = np.zeros(self.size)
        for tier in self.problem.path:
            objective[self.latency_of[tier]] = 1.0
        return objective

    def carried(self) -> np.ndarray:
        """Objective: the part of the rate that is carried."""
        objective = np.zeros(self.size)
        objective[self.r] = 1.0
        return objective

    def solve(
        self,
        objective: np.ndarray,
        limits: Mapping[str, float] | None = None,
        *,
        least_carried: float = 1.0,
        integral: bool = True,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> tuple[np.ndarray, float, bool] | None:
        """Values, lower bound of the objective, and whether it is proved; None where nothing is feasible.

        `limits` replaces the upper ends of named rows.
        """
        high = np.array(self.rows.high)
        for name, value in (limits or {}).items():
            high[self.named[name]] = value
        row, variable, coefficient = (np.array(v) for v in zip(*self.rows.entries, strict=True))
        matrix = coo_array((coefficient, (row, variable)), shape=(len(high), self.size)).tocsr()
        low = np.zeros(self.size)
        low[self.r] = least_carried
        result = milp(
            objective,
            constraints=LinearConstraint(matrix, np.array(self.rows.low), high),
            bounds=Bounds(low, self._upper()),
            integrality=self._whole() if integral else np.zeros(self.size, dtype=np.int64),
            options={"time_limit": time_limit_s, "mip_rel_gap": 1e-9},
        )
        if result.x is None:
            if result.status in _INFEASIBLE:
                return None
            raise Unavailable(f"the solver neither found a plan nor showed that there is none: {result.message}")
        bound = result.fun if not integral or result.mip_dual_bound is None else result.mip_dual_bound
        return result.x, float(bound), result.status == 0

    def _upper(self) -> np.ndarray:
        """Upper bounds of the variables."""
        upper = np.full(self.size, np.inf)
        upper[[*self.y, *self.z.values(), self.r]] = 1
        upper[self.x] = [self.problem.most_replicas(c) for c in self.problem.columns]
        for node_type, quota in self.problem.quota.items():
            upper[self.n[node_type]] = np.inf if quota is None else quota
        return upper

    def _whole(self) -> np.ndarray:
        """1 for variables that are integers."""
        whole = np.zeros(self.size, dtype=np.int64)
        whole[[*self.x, *self.y, *self.n.values(), *self.z.values()]] = 1
        return whole

    def solution(self, values: np.ndarray, bound: float, proved: bool) -> Solution:
        """The solver's numbers as a solution: traffic adds up exactly, and no more nodes than the replicas need.

        The solver has no reason to leave out a node that costs nothing.
        """
        columns = self.problem.columns
        replicas = {i: round(values[v]) for i, v in enumerate(self.x) if round(values[v]) > 0}
        traffic: dict[int, float] = {}
        for member, demand in self.problem.demand_per_s.items():
            own = {i: float(values[self.f[i]]) for i in replicas if columns[i].member == member}
            total = sum(own.values())
            traffic |= {i: demand * rate / total for i, rate in own.items()}
        nodes = {}
        for offer in self.problem.offers:
            devices = sum(
                columns[i].share * n for i, n in replicas.items() if columns[i].offer.node_type == offer.node_type
            )
            if devices > 0:
                nodes[offer.node_type] = math.ceil(devices / offer.devices_per_node)
        return Solution(replicas, {i: traffic[i] for i in replicas}, nodes, bound, proved)
