"""Who may ask a service, how much, and what it writes down about requests."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from coe.types.base import Name, Noun, Positive, PositiveCount, refuse_repeats


class BearerToken(Noun):
    """One bearer token, known by its hash only: who reads the file cannot use it."""

    name: Name
    """Of the client, for the access log and the rate limit."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the token's bytes, in lower-case hexadecimals."""


class BearerTokens(Noun):
    """The bearer tokens that a service accepts."""

    kind: Literal["tokens"] = "tokens"
    version: Literal[1] = 1
    tokens: Annotated[tuple[BearerToken, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _hashes_are_unique(self) -> Self:
        refuse_repeats([t.sha256 for t in self.tokens], "tokens", "every token needs one owner")
        return self


class Access(Noun):
    """Limits of a service and what it logs; the part `access` of the deployment's arguments. Strict: no guessed types."""

    model_config = ConfigDict(strict=True)

    kind: Literal["access"] = "access"
    version: Literal[1] = 1
    tokens: Annotated[str, Field(min_length=1)] | None = None
    """The file of accepted tokens, on the router's node; None lets everyone in."""
    max_body_bytes: PositiveCount = 64 * 2**20
    max_items: PositiveCount = 1000
    """In one request."""
    requests_per_s: Positive | None = None
    """What one client may ask of one router replica on average; None for any rate."""
    burst: PositiveCount = 20
    """Requests that a client may send at once after a pause."""
    access_log: bool = False
    """One line of JSON per request, on the router's standard error."""
