"""The cheapest placement: regions of batch sizes and latency budgets, split until the solution of one is consistent.

Best first: the region with the lowest bound is solved, its bound is that of `milp`, which ignores that a tier has one
batch size and that the budgets of the tiers share one promise. A solution that happens to respect both is a plan. Otherwise the
region is split so that neither half contains that solution: by the batch size of a tier, or by a tier's latency budget (this
tier is faster than a value between, or the others have to do with what it leaves). So every plan is in some region, and the
best found is optimal when no open region is bounded below it.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from coe.errors import Unavailable
from coe.placement.coarsen import coarsened
from coe.placement.judge import batches, column_latency_s, fees_usd_per_hour, rent_usd_per_hour
from coe.placement.milp import Found, Program, Region, nodes_of
from coe.placement.problem import PlacementProblem, Solution

TIME_LIMIT_S = 60.0
SAME_USD = 1e-6
"""Dollars per hour below which two plans cost the same."""

AT_ONCE = 2
"""Regions that are solved side by side; the solver lets other threads run."""

Remaining = Callable[[], float]
"""Seconds that are left; who calls has the clock."""


def solve(
    problem: PlacementProblem,
    time_limit_s: float = TIME_LIMIT_S,
    *,
    below_usd_per_hour: float = float("inf"),
    remaining: Remaining | None = None,
) -> Solution | None:
    """The cheapest solution, or None where it is proved that there is none (below `below_usd_per_hour`, router included).

    `Solution.proved` is False, with the bound beside it, where time ended the search first. `time_limit_s` limits every single
    program; `remaining` limits them all. Raises `Unavailable` where time ended before anything was found: then nobody knows.
    """
    search = _Search(problem, remaining or (lambda: time_limit_s), below_usd_per_hour - problem.router_usd_per_hour)
    found = search.run()
    if found is None:
        return None
    bound, proved = search.bound_usd_per_hour, search.is_proved
    tidy = _tidied(problem, found, search.remaining)
    devices = {o.node_type: o.devices_per_node for o in problem.offers}
    solution = Solution(tidy.replicas, tidy.flows_per_s, nodes_of(problem.columns, tidy.replicas, devices), 0.0, proved)
    cost = rent_usd_per_hour(problem, solution) + fees_usd_per_hour(problem, solution)
    bound = cost if proved else min(cost, bound + problem.router_usd_per_hour)
    return coarsened(problem, replace(solution, bound_usd_per_hour=bound))


def feasible(problem: PlacementProblem) -> bool:
    """True where some plan exists, whatever it costs."""
    return _Search(problem, lambda: TIME_LIMIT_S, float("inf"), any_will_do=True).run() is not None


def lower_bound_usd_per_hour(problem: PlacementProblem) -> float | None:
    """Cost of the linear relaxation, which no plan undercuts; None where even that is infeasible."""
    region = whole_region(problem)
    if region is None:
        return None
    program = Program(problem, region)
    relaxed = program.relaxed(program.cost())
    return None if relaxed is None else relaxed + problem.router_usd_per_hour


def whole_region(problem: PlacementProblem) -> Region | None:
    """Every batch size, and for every tier the budget that the fastest others leave it; None where there is nothing."""
    if problem.homeless:
        return None
    sizes = tuple(frozenset(c.batch_size for c in problem.columns if c.tier == t) for t in range(problem.tiers))
    least = tuple(_fastest_s(problem, t, sizes[t]) if t in problem.path else 0.0 for t in range(problem.tiers))
    return _tightened(problem, Region(sizes, (float("inf"),) * problem.tiers, least))


def _fastest_s(problem: PlacementProblem, tier: int, sizes: frozenset[int]) -> float:
    """The least budget at which every member and class of the tier has a column (of any of these batch sizes)."""
    members = [m for m, t in problem.tier_of.items() if t == tier]
    return max(
        min(
            (problem.columns[i].latency_s[k] for i in problem.columns_of[m] if problem.columns[i].batch_size in sizes),
            default=float("inf"),
        )
        for m in members
        for k in range(len(problem.classes[m]))
    )


def _tightened(problem: PlacementProblem, region: Region) -> Region | None:
    """The region with every budget limited to what the least of the others leaves; None where the promise is out of reach."""
    spare = problem.latency_s - sum(region.least_s[t] for t in problem.path)
    if spare < -1e-9 or any(region.least_s[t] > region.most_s[t] + 1e-12 for t in problem.path):
        return None
    most = tuple(
        min(region.most_s[t], region.least_s[t] + spare + 1e-9) if t in problem.path else float("inf")
        for t in range(problem.tiers)
    )
    return replace(region, most_s=most)


class _Search:
    """Best-first search over regions."""

    def __init__(
        self, problem: PlacementProblem, remaining: Remaining, below_usd_per_hour: float, *, any_will_do: bool = False
    ) -> None:
        self.problem = problem
        self.remaining = remaining
        self._best_usd = below_usd_per_hour
        self._any_will_do = any_will_do
        self._numbers = itertools.count()
        self.is_proved = True
        self.bound_usd_per_hour = float("inf")
        self.solved = 0

    def run(self) -> Found | None:
        """The best plan that costs less than the limit; None where there is none."""
        root = whole_region(self.problem)
        best: Found | None = None
        open_regions: list[tuple[float, int, Region]] = []
        if root is not None:
            self._push(open_regions, root, 0.0)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            while due := self._due(open_regions):
                answers = list(threads.map(self._solved, (region for _, _, region in due)))
                if any(isinstance(a, Unavailable) for a in answers):
                    if best is None:
                        raise next(a for a in answers if isinstance(a, Unavailable))
                    self.is_proved = False
                    for entry in due:
                        heapq.heappush(open_regions, entry)
                    break
                for (bound, _, region), found in zip(due, answers, strict=True):
                    if found is None or isinstance(found, Unavailable):
                        continue
                    children = list(_splits(self.problem, region, found))
                    if not children and found.usd_per_hour < self._best_usd - SAME_USD:
                        best = self._accepted(found)
                        if self._any_will_do:
                            return best
                    for child in children:
                        self._push(open_regions, child, max(bound, found.bound_usd_per_hour))
        self.bound_usd_per_hour = min([self.bound_usd_per_hour, self._best_usd, *(b for b, _, _ in open_regions[:1])])
        return best

    def _due(self, open_regions: list[tuple[float, int, Region]]) -> list[tuple[float, int, Region]]:
        """The regions with the lowest bounds that could still hold something better, taken off the heap; how many is fixed,
        so that the search does not depend on the machine."""
        due: list[tuple[float, int, Region]] = []
        while open_regions and len(due) < AT_ONCE and open_regions[0][0] < self._best_usd - SAME_USD:
            due.append(heapq.heappop(open_regions))
        return due

    def _accepted(self, found: Found) -> Found:
        """Take a plan as the best so far."""
        if not found.proved:
            self.is_proved = False
            self.bound_usd_per_hour = min(self.bound_usd_per_hour, found.bound_usd_per_hour)
        self._best_usd = found.usd_per_hour
        return found

    def _solved(self, region: Region) -> Found | Unavailable | None:
        """The region's solution; being out of time is an answer too."""
        try:
            return self._solve(region)
        except Unavailable as error:
            return error

    def _push(self, open_regions: list[tuple[float, int, Region]], region: Region, bound: float) -> None:
        heapq.heappush(open_regions, (bound, next(self._numbers), region))

    def _solve(self, region: Region) -> Found | None:
        self.solved += 1
        program = Program(self.problem, region)
        if self._any_will_do:
            return program.best(program.cost() * 0, self.remaining())
        if self._best_usd < float("inf"):
            program.at_most(self._best_usd - SAME_USD)
        return program.best(program.cost(), self.remaining())


def _splits(problem: PlacementProblem, region: Region, found: Found) -> Iterator[Region]:
    """Regions that together hold every plan of `region` and not this solution; none where it is a plan."""
    for tier in range(problem.tiers):
        used = {problem.columns[i].batch_size for i in found.replicas if batches(problem.columns[i], tier)}
        if len(used) > 1:
            for size in sorted(region.batch_sizes[tier]):
                yield from _narrowed(problem, region, tier, batch_sizes=frozenset({size}))
            return
    latency = {t: _tier_latency_s(problem, found, t) for t in problem.path}
    over = sum(latency.values()) - problem.latency_s
    if over <= 1e-9:
        return
    tier = max(problem.path, key=lambda t: (latency[t] - region.least_s[t], -t))
    others = sum(latency[t] for t in problem.path if t != tier)
    low = max(region.least_s[tier], problem.latency_s - others)
    between = (low + latency[tier]) / 2
    # a tier's latency is one of few values, so the halves end at the values next to the cut
    steps = _steps_s(problem, tier, region.batch_sizes[tier])
    cut = bisect.bisect_right(steps, between)
    if cut > 0:
        yield from _narrowed(problem, region, tier, most_s=steps[cut - 1])
    if cut < len(steps):
        yield from _narrowed(problem, region, tier, least_s=steps[cut])


def _tier_latency_s(problem: PlacementProblem, found: Found, tier: int) -> float:
    return max(
        (
            column_latency_s(problem.columns[i], found.flows_per_s[i])
            for i in found.replicas
            if problem.columns[i].tier == tier
        ),
        default=0.0,
    )


def _narrowed(
    problem: PlacementProblem,
    region: Region,
    tier: int,
    *,
    batch_sizes: frozenset[int] | None = None,
    most_s: float | None = None,
    least_s: float | None = None,
) -> Iterator[Region]:
    """The region with one thing narrowed for one tier, unless that leaves nothing."""

    def put(values: tuple[float, ...], value: float | None) -> tuple[float, ...]:
        return values if value is None else (*values[:tier], value, *values[tier + 1 :])

    sizes = region.batch_sizes
    if batch_sizes is not None:
        sizes = (*sizes[:tier], batch_sizes, *sizes[tier + 1 :])
        if tier in problem.path:
            least_s = max(region.least_s[tier], _fastest_s(problem, tier, batch_sizes))
    narrowed = Region(sizes, put(region.most_s, most_s), put(region.least_s, least_s))
    tightened = _tightened(problem, narrowed)
    if tightened is not None:
        yield tightened


def _steps_s(problem: PlacementProblem, tier: int, sizes: frozenset[int]) -> list[float]:
    """The latencies that the tier can have, rising: those of its columns of these batch sizes."""
    return sorted({s for c in problem.columns if c.tier == tier and c.batch_size in sizes for s in c.latency_s})


def _tidied(problem: PlacementProblem, found: Found, remaining: Remaining) -> Found:
    """Of the plans with the batch sizes and latencies of `found` that cost no more, the one that uses least."""
    sizes = tuple(
        frozenset(problem.columns[i].batch_size for i in found.replicas if problem.columns[i].tier == t)
        for t in range(problem.tiers)
    )
    budgets = tuple(
        _tier_latency_s(problem, found, t) if t in problem.path else float("inf") for t in range(problem.tiers)
    )
    program = Program(problem, Region(sizes, budgets, (0.0,) * problem.tiers), with_flows=True)
    program.at_most(found.usd_per_hour + SAME_USD)
    try:
        return program.best(program.usage(), remaining()) or found
    except Unavailable:  # no time left for niceties; the first answer stands
        return found
