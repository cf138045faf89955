"""Response headers of a prediction: how far it had to go. And which ids of requests have a place in a log."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.types import Scope

from coe.records import Answer
from coe.router.queries import Answers, Unanswered
from coe.router.spending import Spent
from coe.serving.http_api import after

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def first_headers(scope: Scope) -> dict[str, str]:
    """A request's headers by their names in lower case; of those that came twice the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def request_id(asked: str | None, fresh: str) -> str:
    """The client's `x-request-id`, or `fresh` where it sent none or one that has no place in a log or a header."""
    return asked if asked is not None and _GOOD_ID.fullmatch(asked) else fresh


def answer_headers(answers: Sequence[Answer | Unanswered]) -> dict[str, str]:
    """The last tier that answered an item of a request, and how many items lacked a vote or an answer.

    And the votes for the answer with the least agreement, of those that were cast; and the cost of the items' parts of the calls
    that have ended, with the number of those that have not. Where items have no answer because all members rest, when the first
    of them is tried again.
    """
    answered = [a for a in answers if isinstance(a, Answer)]
    headers = {"x-coe-degraded": str(sum(a.degraded for a in answered) + len(answers) - len(answered))}
    if answered:
        headers["x-coe-tier"] = str(max(a.tier for a in answered))
    if counted := [a for a in answered if a.voted]:
        least = min(counted, key=lambda a: a.agreed / a.voted)
        headers["x-coe-votes"] = f"{least.agreed}/{least.voted}"
    if spent := spent_of(answers):
        headers["x-coe-cost-usd"] = f"{sum(s.usd for s in spent):.12f}"
        if under_way := sum(s.under_way for s in spent):
            headers["x-coe-calls-under-way"] = str(under_way)
    if isinstance(answers, Answers) and answers.retry_after_s is not None:
        headers |= after(answers.retry_after_s)
    return headers


def spent_of(answers: Sequence[Answer | Unanswered]) -> tuple[Spent, ...]:
    """What the calls of each item took; empty where nobody accounts for it."""
    return answers.spent if isinstance(answers, Answers) else ()
