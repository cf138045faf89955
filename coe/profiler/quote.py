"""What timing hosted models will cost, told before anything is asked, and a limit that is kept while it goes on."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from coe.cost.tokens import call_usd
from coe.errors import InvalidInput, Problem, Unavailable
from coe.placement.candidates import HOSTED_RUNNER, hosted_model
from coe.runners.base import Said
from coe.types import ApiPrice, Member, Pool, Prices

BYTES_PER_TOKEN = 3.0
"""English has about four; fewer make an estimate that is rather too high."""
ASSUMED_COMPLETION = 1000
"""Completion tokens of a member that sets no max_tokens."""
SHOWN_ITEMS = 1000
LEAST_RUNS = 3
WARM_UP_RUNS = 1


@dataclass(frozen=True)
class Quote:
    """What timing one hosted member will about cost."""

    member: str
    model: str
    requests: int
    prompt_tokens: float
    completion_tokens: int
    is_bounded: bool
    usd: float

    def __str__(self) -> str:
        """One line: requests, dollars, and what they rest on."""
        completion = "max_tokens" if self.is_bounded else "assumed, since the member sets no max_tokens"
        return (
            f"{self.member}: {self.requests} requests to {self.model}, about ${self.usd:.4f} "
            f"({self.prompt_tokens:.0f} prompt tokens each by length, {self.completion_tokens} of completion: {completion})"
        )


def runs_within(requests: int, sizes: Sequence[int]) -> int:
    """Batches of each size that `requests` allow, beside one to warm up; `InvalidInput` where they are too few to time."""
    runs = requests // sum(sizes) - WARM_UP_RUNS
    if runs < LEAST_RUNS:
        least = (LEAST_RUNS + WARM_UP_RUNS) * sum(sizes)
        rule = f"must be at least {least}: {LEAST_RUNS} batches each of {', '.join(map(str, sizes))} at once, and one to warm up"
        raise InvalidInput(Problem("--requests", rule, str(requests)))
    return runs


def quotes(
    pool: Pool, base_dir: Path, prices: Prices, sample: NDArray[Any], sizes: Sequence[int], runs: int
) -> tuple[Quote, ...]:
    """One quote per member that the price list sells; nothing is asked.

    Raises `InvalidInput` where a key is not set, and for a price by the token of an endpoint that counts none.
    """
    return tuple(
        _quote(member, pool, base_dir, prices.api(model), sample, (runs + WARM_UP_RUNS) * sum(sizes))
        for member in pool.members
        if (model := hosted_model(member, prices)) is not None
    )


def _quote(member: Member, pool: Pool, base_dir: Path, price: ApiPrice, sample: NDArray[Any], requests: int) -> Quote:
    if member.options.get("count_tokens") is False and _goes_by_token(price):
        where, rule = f"prices: apis: {price.model}", "is priced by the token, and the endpoint does not count them"
        remedy = "give usd_per_call, or leave out count_tokens: false"
        raise InvalidInput(Problem(where, rule, remedy=remedy))
    from coe.runners.openai_runner import OpenAIRunner  # here, for nodes that time members without it

    runner = OpenAIRunner(member, pool, base_dir)
    runner.load()
    try:
        prompt = float(np.mean(runner.request_bytes(sample[:SHOWN_ITEMS]))) / BYTES_PER_TOKEN
    finally:
        runner.close()
    most = member.options.get("max_tokens")
    completion = ASSUMED_COMPLETION if most is None else int(most)
    usd = requests * float(call_usd(price, prompt, completion))
    return Quote(member.name, price.model, requests, prompt, completion, most is not None, usd)


def _goes_by_token(price: ApiPrice) -> bool:
    return bool(price.usd_per_million_prompt_tokens or price.usd_per_million_completion_tokens)


class Purse:
    """Counts what requests cost, and ends the work where that is more than was allowed."""

    def __init__(self, most_usd: float | None = None) -> None:
        self._most_usd = most_usd
        self.spent_usd = 0.0

    def pay(self, member: str, price: ApiPrice, said: Said) -> None:
        """Add the price of a batch's answers: by their tokens, by the call, or both. Failed requests cost nothing.

        Raises `Unavailable` once more was spent than was allowed: the batch that did so is paid.
        """
        answered = ~np.isnan(said.probs).any(axis=1)
        tokens = np.zeros((len(said.probs), 2)) if said.tokens is None else said.tokens
        self.spent_usd += float(call_usd(price, tokens[answered, 0], tokens[answered, 1]).sum())
        if self._most_usd is not None and self.spent_usd > self._most_usd:
            raise Unavailable(
                f"member '{member}': stopped at ${self.spent_usd:.4f}, since --max-usd allows ${self._most_usd:g}; "
                "what was timed before is kept, and --resume goes on from there"
            )


def refuse_unlisted(pool: Pool, prices: Prices, source: str) -> None:
    """Refuse members that call an endpoint elsewhere which the price list does not sell: every node type would ask it.

    An endpoint on the node itself (``localhost``) is a server of one's own, which is timed where it runs. Raises `InvalidInput`
    naming each; `source` is the price list's file.
    """
    problems = list(_unlisted(pool, prices, source))
    if problems:
        raise InvalidInput(problems)


def _unlisted(pool: Pool, prices: Prices, source: str) -> Iterator[Problem]:
    for number, member in enumerate(pool.members):
        url = str(member.options.get("base_url", ""))
        if member.runner == HOSTED_RUNNER and hosted_model(member, prices) is None and not _is_here(url):
            rule = (
                f"is not among the apis of {source}, so every node type would send it requests, and each may be billed"
            )
            remedy = (
                f"list it in {source} under apis (model, provider, price, source, date; 0 dollars for a server of yours); a "
                "fleet file has no apis: give a file of kind prices with the fleet's offers"
            )
            found = f"{member.options.get('model')} at {url}"
            yield Problem(f"pool: members[{number}] '{member.name}': options.model", rule, found, remedy)


def _is_here(url: str) -> bool:
    """True for an address of the machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
