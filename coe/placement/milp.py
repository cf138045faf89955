"""Placement within a region, as a mixed-integer linear program solved by SciPy's HiGHS.

The whole problem: choose for every member m columns c (offer o(c), batch b(c), share s_c of an accelerator) so that

    minimise    sum_o usd_o n_o + 3600 sum_c fee_c f_c            nodes, and tokens and bytes
    over        x_c  replicas, integer        n_o  nodes, integer        f_ck  items per second of class k, >= 0
                B_t  one batch size per tier  L_t  a latency budget per tier, sum_{t on path} L_t <= promise
    subject to  x_c = 0 unless b(c) = B_t(c);  f_ck = 0 unless latency_ck <= L_t(c), for tiers on the path
                sum_c f_ck = demand_m share_mk                    all traffic of every class of every member is served
                sum_k f_ck / (utilisation full_ck) <= x_c         by replicas that are not too busy
                sum_{c of m} x_c >= min_replicas
                sum_{c of m, not spot} capacity_c x_c >= floor demand_m
                sum_{c of m} full_c x_c - full_c min(x_c, per_node_c) >= demand_m / surviving   for each c: one node lost
                sum_{c on o} s_c x_c <= devices_o n_o,  n_o <= quota_o     shares pack (powers of two)
                sum_{c at site} f_c <= link_site

A region fixes which batch sizes and which latencies a tier may use, and leaves B and L open within them: then everything is
linear, and few columns matter, because of all shares that are fast enough the smallest is as good as any (a half carries half of
a whole and costs half). `coe.placement.branch` splits regions until batch sizes and budgets are consistent. A member with
one class and no fees needs no flows: its rows are sum_c capacity_c x_c >= demand_m. min(x, per_node) takes one binary per
column, and only where survival is promised. Nothing else in the package knows the solver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from coe.errors import Unavailable
from coe.placement.columns import Column
from coe.placement.problem import PlacementProblem
from coe.types import SURVIVING_UTILISATION

_INFEASIBLE = (2, 4)
"""SciPy's statuses for infeasible, and (as HiGHS's presolve says it) infeasible or unbounded; nothing here is unbounded."""
_UNKNOWN = "the solver neither found a plan nor showed that there is none"
_LEAST_TIME_S = 1e-3


@dataclass(frozen=True)
class Region:
    """What is still open: per tier the batch sizes, and the most and the least that its latency budget may be."""

    batch_sizes: tuple[frozenset[int], ...]
    most_s: tuple[float, ...]
    least_s: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """Replicas by column number, flows by column number and class, and a bound that nothing in the region undercuts."""

    replicas: dict[int, int]
    flows_per_s: dict[int, tuple[float, ...]]
    usd_per_hour: float
    bound_usd_per_hour: float
    proved: bool


def usable(problem: PlacementProblem, region: Region) -> dict[int, tuple[bool, ...]]:
    """Columns that matter in the region, with the classes of query that are fast enough there.

    Of the shares that serve the same classes the smallest stays; of batch sizes those that no other beats in every class.
    """
    kept: dict[int, tuple[bool, ...]] = {}
    for columns in problem.columns_of.values():
        by_place: dict[tuple[str, str | None, int | None], list[tuple[int, tuple[bool, ...]]]] = {}
        for i in columns:
            c = problem.columns[i]
            if c.batch_size not in region.batch_sizes[c.tier] or (problem.quota[c.offer.node_type] == 0 and c.share):
                continue
            limit = region.most_s[c.tier]
            fast = tuple(s <= limit for s in c.latency_s)
            if any(fast):
                by_place.setdefault((c.offer.node_type, c.api, batch_of(c)), []).append((i, fast))
        for options in by_place.values():
            kept |= dict(_undominated(problem, options))
    return kept


def _undominated(
    problem: PlacementProblem, options: Sequence[tuple[int, tuple[bool, ...]]]
) -> list[tuple[int, tuple[bool, ...]]]:
    """Options at one place of which no other is at least as finely divided and as fruitful per accelerator in every class."""

    def worth(i: int, fast: Sequence[bool]) -> tuple[float, ...]:
        c = problem.columns[i]
        whole = c.share or 1.0
        return tuple(rate / whole if ok else 0.0 for rate, ok in zip(c.full_per_s, fast, strict=True))

    result: list[tuple[int, tuple[bool, ...]]] = []
    ranked = sorted(options, key=lambda o: (problem.columns[o[0]].share, *(-w for w in worth(*o)), o[0]))
    worths: list[tuple[float, ...]] = []
    for option in ranked:
        mine = worth(*option)
        if not any(all(b >= a * (1 - 1e-12) for a, b in zip(mine, other, strict=True)) for other in worths):
            result.append(option)
            worths.append(mine)
    return result


_Terms = Sequence[tuple[int, float]]
"""(variable, coefficient) pairs."""


def batch_of(column: Column) -> int | None:
    """The batch size that the tier's members share; None where the member batches by itself, as language models do."""
    return None if column.profile.token_rates else column.batch_size


@dataclass
class _Rows:
    """Constraint rows low <= a x <= high, collected as triplets."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: _Terms, low: float, high: float = np.inf) -> None:
        """Append a row of (variable, coefficient) terms."""
        row = len(self.low)
        self.entries += [(row, variable, value) for variable, value in terms]
        self.low.append(low)
        self.high.append(high)


class Program:
    """The program of one region. Variables are numbered as they are made; `cost` is what the region's plans are ranked by."""

    def __init__(self, problem: PlacementProblem, region: Region, *, with_flows: bool = False) -> None:
        self.problem = problem
        self.fast = usable(problem, region)
        self.columns = sorted(self.fast)
        self._rows = _Rows()
        self._upper: list[float] = []
        self._whole: list[bool] = []
        self.x = {i: self._variable(problem.most_replicas(problem.columns[i]), whole=True) for i in self.columns}
        here = {problem.columns[i].offer.node_type for i in self.columns if problem.columns[i].share}
        self.n = {
            o.node_type: self._variable(np.inf if (q := problem.quota[o.node_type]) is None else q, whole=True)
            for o in problem.offers
            if o.node_type in here
        }
        self.f: dict[tuple[int, int], int] = {}
        self.possible = True
        self.z = self._batch_choices()
        for member, tier in problem.tier_of.items():
            own = [i for i in problem.columns_of[member] if i in self.fast]
            flows = with_flows or self._needs_flows(member, own)
            by_itself = all(batch_of(problem.columns[i]) is None for i in own)
            sizes: list[int | None] = [b for t, b in self.z if t == tier and not by_itself] or [None]
            for size in sizes:
                mine = [i for i in own if size is None or batch_of(problem.columns[i]) in (None, size)]
                chosen = [] if size is None else [(self.z[tier, size], -1.0)]
                self._carry(member, mine, flows, chosen)
                self._keep_apart(member, mine, chosen)
        self._pack()
        for site, limit in problem.link_items_per_s.items():
            self._rows.add(
                [(v, 1.0) for (i, _), v in self.f.items() if problem.columns[i].site == site], -np.inf, limit
            )
        self.size = len(self._upper)

    def _variable(self, upper: float, *, whole: bool = False) -> int:
        self._upper.append(float(upper))
        self._whole.append(whole)
        return len(self._upper) - 1

    def _batch_choices(self) -> dict[tuple[int, int], int]:
        """(tier, batch size) -> a binary, for tiers with more than one size that all of their members can have."""
        choices: dict[tuple[int, int], int] = {}
        for tier in range(self.problem.tiers):
            members = [m for m, t in self.problem.tier_of.items() if t == tier]
            sizes = [
                {batch_of(self.problem.columns[i]) for i in self.problem.columns_of[m] if i in self.fast}
                for m in members
            ]
            batching = [own for own in sizes if own != {None}]
            if not all(sizes):
                self.possible = False
            elif batching and (common := {b for b in set.intersection(*batching) if b is not None}):
                choices |= {(tier, b): self._variable(1, whole=True) for b in sorted(common)}
                self._rows.add([(v, 1.0) for (t, _), v in choices.items() if t == tier], 1, 1)
            elif batching:
                self.possible = False
        return choices

    def _needs_flows(self, member: str, own: Sequence[int]) -> bool:
        """True where it matters which column serves which query, and not only how much can be served."""
        columns = [self.problem.columns[i] for i in own]
        return len(self.problem.classes[member]) > 1 or any(
            c.fee_usd_per_item > 0 or c.site in self.problem.link_items_per_s for c in columns
        )

    def _carry(self, member: str, own: Sequence[int], flows: bool, chosen: _Terms) -> None:
        """All traffic of a member is served within the target utilisation."""
        problem, demand = self.problem, self.problem.demand_per_s[member]
        if not flows:
            self._at_least([(self.x[i], min(self._capacity(i), demand)) for i in own], demand, chosen)
            return
        for k, part in enumerate(problem.classes[member]):
            serving = [i for i in own if self.fast[i][k]]
            self.f |= {(i, k): self._variable(demand * part) for i in serving}
            self._at_least([(self.f[i, k], 1.0) for i in serving], demand * part, chosen)
        for i in own:
            busy = [
                (self.f[i, k], 1 / (problem.target_utilisation * rate))
                for k, rate in enumerate(problem.columns[i].full_per_s)
                if self.fast[i][k]
            ]
            self._rows.add([*busy, (self.x[i], -1.0)], -np.inf, 0)

    def _at_least(self, terms: _Terms, least: float, chosen: _Terms) -> None:
        """A row sum(terms) >= least, scaled to 1; if there is a choice of batch sizes, only where this one is chosen."""
        scaled = [(v, value / least) for v, value in terms]
        self._rows.add([*scaled, *chosen], 0.0 if chosen else 1.0)

    def _keep_apart(self, member: str, own: Sequence[int], chosen: _Terms) -> None:
        """The minimum of replicas, the on-demand floor, and what is left after the loss of a node."""
        problem, demand = self.problem, self.problem.demand_per_s[member]
        on_nodes = [i for i in own if problem.columns[i].api is None]
        if problem.min_replicas > 0:
            hosted = [(self.x[i], float(problem.min_replicas)) for i in own if problem.columns[i].api is not None]
            self._at_least([*((self.x[i], 1.0) for i in on_nodes), *hosted], problem.min_replicas, chosen)
        if any(problem.columns[i].is_spot for i in own) and problem.on_demand_floor > 0:
            self._keep_steady(member, [i for i in own if not problem.columns[i].is_spot], chosen)
        if problem.survive_node_loss:
            self._survive(own, demand / SURVIVING_UTILISATION, chosen)

    def _keep_steady(self, member: str, steady: Sequence[int], chosen: _Terms) -> None:
        """Nodes other than spot can carry their part; with several classes of query, so much of every class goes there."""
        problem = self.problem
        least = problem.on_demand_floor * problem.demand_per_s[member]
        if len(problem.classes[member]) == 1:
            self._at_least([(self.x[i], self._capacity(i)) for i in steady], least, chosen)
            return
        for k, part in enumerate(problem.classes[member]):
            self._at_least([(self.f[i, k], 1.0) for i in steady if (i, k) in self.f], least * part, chosen)

    def _survive(self, own: Sequence[int], needed_per_s: float, chosen: _Terms) -> None:
        """Whichever node is lost, the rest carries `needed_per_s`: e_i = max(0, x_i - replicas of one node) is what remains."""
        full = {i: self._capacity(i) / self.problem.target_utilisation for i in own}
        for lost in (i for i in own if self.problem.columns[i].api is None):
            per_node, most = self.problem.columns[lost].replicas_per_node, self._upper[self.x[lost]]
            rest, more = self._variable(most), self._variable(1, whole=True)
            self._rows.add([(rest, 1.0), (self.x[lost], -1.0), (more, float(per_node))], -np.inf, 0)
            # more = 1 allows rest <= x - per_node; more = 0 forces rest = 0
            self._rows.add([(rest, 1.0), (more, -most)], -np.inf, 0)
            others = [(self.x[i], full[i]) for i in own if i != lost]
            self._at_least([*others, (rest, full[lost])], needed_per_s, chosen)

    def _capacity(self, column: int) -> float:
        """Capacity in the member's mix; nothing where a class is too slow there."""
        return self.problem.capacity_per_s(self.problem.columns[column]) if all(self.fast[column]) else 0.0

    def _pack(self) -> None:
        """Accelerator shares against rented nodes."""
        for node_type, nodes in self.n.items():
            here = [(i, c) for i in self.columns if (c := self.problem.columns[i]).offer.node_type == node_type]
            devices = here[0][1].offer.devices_per_node
            self._rows.add([*((self.x[i], c.share) for i, c in here), (nodes, -float(devices))], -np.inf, 0)

    def cost(self) -> np.ndarray:
        """Objective: dollars per hour of nodes and fees, but for the router."""
        objective = np.zeros(self.size)
        for offer in self.problem.offers:
            if offer.node_type in self.n:
                objective[self.n[offer.node_type]] = offer.usd_per_hour
        for (i, _), v in self.f.items():
            objective[v] = 3600 * self.problem.columns[i].fee_usd_per_item
        return objective

    def usage(self) -> np.ndarray:
        """Objective: usage dollars per hour, and a little for replicas that do nothing; needs flows."""
        objective = np.zeros(self.size)
        for v in self.x.values():
            objective[v] = 1e-6
        for (i, _), v in self.f.items():
            column = self.problem.columns[i]
            objective[v] = 3600 * (column.usd_per_item + column.fee_usd_per_item)
        return objective

    def at_most(self, usd_per_hour: float) -> None:
        """Only plans that cost no more than this are of interest."""
        self._rows.add([(v, float(c)) for v, c in enumerate(self.cost()) if c], -np.inf, usd_per_hour)

    def relaxed(self, objective: np.ndarray) -> float | None:
        """Least value where nothing need be whole; None where even that is infeasible."""
        result = self._run(objective, np.zeros(self.size, dtype=np.int64), {}) if self.possible else None
        return None if result is None or result.x is None else float(result.fun)

    def best(self, objective: np.ndarray, time_limit_s: float) -> Found | None:
        """The best whole solution; None where there is none. Raises `Unavailable` where time ended before either was known."""
        if not self.possible:
            return None
        if time_limit_s < _LEAST_TIME_S:
            raise Unavailable(f"{_UNKNOWN}: no time left")
        options = {"time_limit": time_limit_s, "mip_rel_gap": 1e-9}
        result = self._run(objective, np.array(self._whole, dtype=np.int64), options)
        if result.x is None:
            if result.status in _INFEASIBLE:
                return None
            raise Unavailable(f"{_UNKNOWN}: {result.message}")
        chosen = {pair for pair, v in self.z.items() if round(result.x[v])}
        replicas = {
            i: round(result.x[v])
            for i, v in self.x.items()
            if round(result.x[v]) > 0 and self._is_chosen(self.problem.columns[i], chosen)
        }
        bound = result.fun if result.mip_dual_bound is None else result.mip_dual_bound
        flows = self._flows(replicas, result.x)
        return Found(replicas, flows, float(result.fun), float(bound), result.status == 0)

    def _is_chosen(self, column: Column, chosen: set[tuple[int, int]]) -> bool:
        """True for columns whose batch size is that of their tier."""
        size = batch_of(column)
        return size is None or (column.tier, size) in chosen

    def _run(self, objective: np.ndarray, whole: np.ndarray, options: Any) -> Any:
        """SciPy's answer to the rows collected so far."""
        row, variable, coefficient = (np.array(v) for v in zip(*self._rows.entries, strict=True))
        matrix = coo_array((coefficient, (row, variable)), shape=(len(self._rows.low), self.size)).tocsr()
        return milp(
            objective,
            constraints=LinearConstraint(matrix, np.array(self._rows.low), np.array(self._rows.high)),
            bounds=Bounds(np.zeros(self.size), np.array(self._upper)),
            integrality=whole,
            options=options,
        )

    def _flows(self, replicas: dict[int, int], values: np.ndarray) -> dict[int, tuple[float, ...]]:
        """Items per second by column and class; where the program has no flows, in proportion to capacity."""
        problem = self.problem
        flows: dict[int, tuple[float, ...]] = {}
        for member, demand in problem.demand_per_s.items():
            own = [i for i in replicas if problem.columns[i].member == member]
            classes = range(len(problem.classes[member]))
            if any((i, k) in self.f for i in own for k in classes):
                parts = [[values[self.f[i, k]] if (i, k) in self.f else 0.0 for i in own] for k in classes]
            else:
                parts = [[replicas[i] * self._capacity(i) for i in own]]
            served = [
                [demand * problem.classes[member][k] * max(0.0, p) / sum(parts[k]) for p in parts[k]] for k in classes
            ]
            flows |= {i: tuple(float(served[k][j]) for k in classes) for j, i in enumerate(own)}
        return flows


def nodes_of(columns: Sequence[Column], replicas: dict[int, int], devices: dict[str, int]) -> dict[str, int]:
    """Node type -> nodes that the shares of these replicas need; no more, also where a node costs nothing."""
    used: dict[str, float] = {}
    for i, count in replicas.items():
        if columns[i].share:
            used[columns[i].offer.node_type] = used.get(columns[i].offer.node_type, 0.0) + count * columns[i].share
    return {t: math.ceil(shares / devices[t] - 1e-9) for t, shares in used.items()}
