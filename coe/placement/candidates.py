"""Candidates: a cascade with its measured statistics, and the problem of placing it; placed, with its solution."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coe.cascade.evaluate import check_against, route, stats_of
from coe.cost.tokens import call_usd
from coe.errors import InvalidInput, Problem, Unavailable
from coe.placement.branch import SAME_USD, Remaining, lower_bound_usd_per_hour, solve
from coe.placement.columns import HOSTED, Hosted
from coe.placement.dominance import without_dominated_offers
from coe.placement.judge import check, price, usage_usd_per_hour
from coe.placement.problem import PlacementProblem, Solution, build_problem
from coe.table import PredictionTable
from coe.types import (
    ApiPrice,
    BoolArray,
    Cascade,
    CascadeStats,
    Member,
    Pool,
    PredictedCost,
    Prices,
    Profiles,
    Workload,
)

HOSTED_RUNNER = "openai"
"""The runner of members that may be had as hosted models; their option ``model`` is the name in the price list."""


@dataclass(frozen=True)
class World:
    """What every candidate is placed in."""

    pool: Pool
    sample: PredictionTable
    profiles: Profiles
    prices: Prices
    workload: Workload


@dataclass(frozen=True)
class Candidate:
    """A cascade and the problem of placing it."""

    cascade: Cascade
    stats: CascadeStats
    problem: PlacementProblem


@dataclass(frozen=True)
class Placed(Candidate):
    """A candidate with the solution of its placement."""

    solution: Solution

    @property
    def usd_per_hour(self) -> float:
        """Dollars per hour that are paid: rent and fees."""
        return price(self.problem, self.solution)

    @property
    def cost(self) -> PredictedCost:
        """Both bases at the planned load."""
        rate = self.problem.demand_per_s[self.cascade.tiers[0].members[0]]
        usage = usage_usd_per_hour(self.problem, self.solution)
        return PredictedCost.of(usage, self.usd_per_hour, rate, self.stats.accuracy)

    @property
    def rank(self) -> tuple[float, float]:
        """Less is better: dollars paid, and among equals dollars used."""
        return round(self.usd_per_hour / SAME_USD) * SAME_USD, self.cost.usd_per_hour_usage

    @property
    def in_dollars(self) -> str:
        """Both bases in words."""
        return f"${self.usd_per_hour:.3f} per hour rented (${self.cost.usd_per_hour_usage:.3f} used)"


def candidate(cascade: Cascade, world: World) -> Candidate:
    """The cascade with its statistics on the sample; `InvalidInput` where it is never right."""
    check_against(cascade, world.sample)
    routing = route(cascade, world.sample)
    stats = stats_of(cascade, routing, world.sample.labels)
    if stats.accuracy == 0:
        rule = "has no correct answer on the certification split, so a correct answer has no price"
        raise InvalidInput(
            Problem(f"cascade '{cascade.name}'", rule, remedy="are classes and labels in the same order?")
        )
    asked = dict(zip(cascade.members, routing.asked.T, strict=True))
    problem = build_problem(
        cascade, stats, world.profiles, world.prices, world.workload, hosted_members(cascade.members, asked, world)
    )
    return Candidate(cascade, stats, without_dominated_offers(problem))


def place(
    of: Candidate, incumbent_usd_per_hour: float = float("inf"), remaining: Remaining | None = None
) -> Placed | str:
    """The placement, or the reason why there is none or none worth having."""
    bound = lower_bound_usd_per_hour(of.problem)
    if bound is None:
        return "no placement keeps the promises"
    if bound > incumbent_usd_per_hour + SAME_USD:
        return f"costs at least ${bound:.3f} per hour"
    # as cheap as the best so far is still of interest: usage decides among equals
    solution = solve(of.problem, below_usd_per_hour=incumbent_usd_per_hour + 2 * SAME_USD, remaining=remaining)
    if solution is None and incumbent_usd_per_hour < float("inf"):
        return f"costs more than ${incumbent_usd_per_hour:.3f} per hour, or no placement keeps the promises"
    if solution is None:
        return "no placement keeps the promises"
    if broken := check(of.problem, solution):
        raise Unavailable(f"the solver's placement of {of.cascade.name} is wrong: {'; '.join(broken)}")
    return Placed(of.cascade, of.stats, of.problem, solution)


def dispatch_variants(cascade: Cascade) -> Iterator[Cascade]:
    """The cascade, and the same with tiers parallel or staged where that changes nothing but who waits and who is asked.

    Tiers that a later one carries keep their dispatch: what was never asked cannot be carried.
    """
    free = [t for t, tier in enumerate(cascade.tiers) if len(tier.members) > 1 and not cascade.is_carried(t)]
    for choice in itertools.product((False, True), repeat=len(free)):
        switched = {t for t, switch in zip(free, choice, strict=True) if switch}
        if not switched:
            yield cascade
            continue
        tiers = tuple(
            tier.model_copy(update={"dispatch": "parallel" if tier.dispatch == "staged" else "staged"})
            if t in switched
            else tier
            for t, tier in enumerate(cascade.tiers)
        )
        what = ", ".join(f"tier {t + 1} {tiers[t].dispatch}" for t in sorted(switched))
        yield cascade.model_copy(update={"tiers": tiers, "name": f"{cascade.name} ({what})"})


def hosted_members(members: Sequence[str], asked: Mapping[str, BoolArray], world: World) -> dict[str, Hosted]:
    """Members that an API of the price list serves, with the mean price of the calls that they get.

    asked: member -> (items of the sample,), True where it is called. Raises `InvalidInput` where a hosted member has no profile
    on ``API``, or where tokens have a price and nobody counted them.
    """
    found: dict[str, Hosted] = {}
    for name in members:
        model = next((hosted_model(m, world.prices) for m in world.pool.members if m.name == name), None)
        if model is None:
            continue
        profile = world.profiles.find(name, HOSTED)
        if profile is None:
            remedy = f"add a profile with accelerator {HOSTED}: how long requests to {model} take"
            raise InvalidInput(Problem(f"profiles: {name}", "is hosted, and has no profile of its latency", "", remedy))
        usd = _mean_call_usd(name, world.prices.api(model), asked[name], world)
        found[name] = Hosted(model, usd, profile)
    return found


def hosted_model(member: Member, prices: Prices) -> str | None:
    """The name under which the price list sells a member as a hosted model; None where it does not."""
    model = member.options.get("model") if member.runner == HOSTED_RUNNER else None
    return model if any(a.model == model for a in prices.apis) else None


def _mean_call_usd(member: str, api: ApiPrice, asked: BoolArray, world: World) -> float:
    """Mean price of the calls a member gets: by its recorded tokens, else by the workload's lengths."""
    if world.sample.tokens is None or not _goes_by_token(api):
        return usd_by_lengths(api, world.workload)
    rows = asked if asked.any() else np.ones(len(world.sample), dtype=np.bool_)
    tokens = world.sample.tokens[rows, world.sample.members.index(member)]
    return float(call_usd(api, tokens[:, 0], tokens[:, 1]).mean())


def _goes_by_token(api: ApiPrice) -> bool:
    return bool(api.usd_per_million_prompt_tokens or api.usd_per_million_completion_tokens)


def usd_by_lengths(api: ApiPrice, workload: Workload | None) -> float:
    """Mean price of a call where none was counted: by the workload's lengths. `InvalidInput` where they are needed."""
    if not _goes_by_token(api):
        return api.usd_per_call
    if workload is not None and workload.tokens:
        return sum(
            part.share * float(call_usd(api, part.prompt_tokens, part.completion_tokens)) for part in workload.tokens
        )
    remedy = "import predictions with token counts, or give tokens (lengths and shares) in the workload"
    raise InvalidInput(
        Problem(f"prices: apis: {api.model}", "is priced by the token, and nobody counted them", remedy=remedy)
    )
