"""What a service keeps of what it has done: the files of its ledger, and traces."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from coe.types.base import Fraction, Noun, Positive, PositiveCount

OTLP_PATH = "/v1/traces"
"""Where collectors take OTLP over HTTP, unless they say otherwise."""


class LedgerLimits(Noun):
    """How large a file of a ledger becomes, how long files are kept, and how much may wait while the disk takes nothing; the part
    `ledger` of the deployment's arguments. The defaults suit about 1,000 queries per second.

    At that rate a router writes some 160 KB/s: a file lasts for half an hour, a day takes 14 GB, or 5.4 GB compressed.
    """

    model_config = ConfigDict(strict=True)

    kind: Literal["ledger_limits"] = "ledger_limits"
    version: Literal[1] = 1
    max_part_mib: PositiveCount = 256
    """A file that has grown to this is closed and the next one begun."""
    max_part_hours: Positive = 24.0
    """So is a file of this age, so that files of quiet services can be taken away day by day."""
    compress: bool = False
    """Write gzip (a member of its own for each group of records, so that a kill tears no more than the last group). Off by
    default, because plain lines survive a kill to the last whole one and every tool reads them as they grow."""
    keep_days: Positive | None = None
    """Files of this folder that were last written so long ago are deleted when a file is begun, each with a line in the log
    and in the ledger, so that reports say what is gone. None deletes nothing."""
    max_waiting: PositiveCount = 100_000
    """Records that wait in memory (some 400 bytes each) while nothing can be written; those beyond are counted and lost."""


class Tracing(Noun):
    """Where OpenTelemetry's spans go; the part `tracing` of the deployment's arguments. What is left out is OpenTelemetry's own,
    from its variables."""

    model_config = ConfigDict(strict=True)

    kind: Literal["tracing"] = "tracing"
    version: Literal[1] = 1
    endpoint: Annotated[str, Field(min_length=1)] | None = None
    """Where OTLP over HTTP goes to, such as http://collector:4318/v1/traces."""
    service_name: Annotated[str, Field(min_length=1)] | None = None
    sample: Fraction | None = None
    """Share of the requests that are traced, of those that come without a decision of their sender."""

    @field_validator("endpoint")
    @classmethod
    def _is_where_spans_are_taken(cls, endpoint: str | None) -> str | None:
        """The exporter takes it as it is, and tells of a wrong one only in the log of a service that runs."""
        if endpoint is None:
            return None
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(
                f"must be the URL of OTLP over HTTP, such as http://collector:4318{OTLP_PATH}, got '{endpoint}'"
            )
        if url.path in ("", "/"):
            raise ValueError(f"must name the path too, got '{endpoint}'; most collectors take {OTLP_PATH}")
        return endpoint
