"""What a client learns of each item's cost if it asks for it: `?details=1`, or the header `x-coe-details: 1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from coe.records import Answer
from coe.router.queries import Unanswered
from coe.router.spending import Spent
from coe.serving.headers import spent_of
from coe.serving.http_api import SAID, refused
from coe.serving.service import visit_of


def wants_details(request: Request) -> bool:
    """Whether they were asked for. Raises `InvalidInput` for what is neither yes nor no; the query string comes first."""
    for where, asked in (
        ("details", request.query_params.get("details") if request.scope["query_string"] else None),
        ("x-coe-details", visit_of(request).headers.get("x-coe-details")),
    ):
        if asked is not None:
            if asked.lower() not in SAID:
                raise refused(where, f"must be one of {', '.join(SAID)}", repr(asked)[:60])
            return SAID[asked.lower()]
    return False


def with_details(told: Mapping[str, Any], answers: Sequence[Answer | Unanswered]) -> dict[str, Any]:
    """The body of `/predict` with the cost of each item."""
    spent = spent_of(answers)
    if not spent:
        return dict(told)
    items = [{**item, **details(one)} for item, one in zip(told["answers"], spent, strict=True)]
    return {**told, "answers": items}


def details(spent: Spent) -> dict[str, Any]:
    """Dollars of one item, calls under way that are not in them, and tokens where all of them are known."""
    return {"usd": spent.usd, "calls_under_way": spent.under_way, **(tokens(spent) or {})}


def tokens(spent: Spent) -> dict[str, int] | None:
    """Tokens of all hosted models that were asked about an item; None where there were none, or not all are known."""
    if spent.uncounted or not spent.counted:
        return None
    return {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
