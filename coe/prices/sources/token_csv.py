"""A table of hosted models with prices per million tokens.

Columns: key, provider, mode, usd_in_per_mtok, usd_out_per_mtok and others that are not read. The day does not stand in it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from coe.prices.rentals import checked
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.litellm import MODES
from coe.prices.sources.table import rows
from coe.types import ApiPrice

COLUMNS = ("key", "provider", "mode", "usd_in_per_mtok", "usd_out_per_mtok")


def read(path: Path, asked: Asked) -> Reading:
    """Prices per token of the hosted models in the table."""
    reading = Reading(asked.source_of("LLM API price table", path))
    day = asked.date(path)
    free = other = 0
    for line in rows(path, COLUMNS, reading.unusable, "a table of prices per million tokens"):
        model, provider = line.text("key"), line.text("provider")
        if not asked.keeps_row(provider, "", model):
            continue
        prompt, completion = line.optional("usd_in_per_mtok"), line.optional("usd_out_per_mtok")
        if not model or not provider:
            line.complain("key", "and provider must not be empty")
        elif line.text("mode") not in MODES:
            other += 1
        elif not prompt and not completion:
            free += 1
        else:
            build = partial(
                ApiPrice,
                model=model,
                provider=provider,
                usd_per_million_prompt_tokens=prompt or 0.0,
                usd_per_million_completion_tokens=completion or 0.0,
                source=reading.source,
                date=day,
            )
            price = checked(build, line.where, reading.unusable)
            if price is not None:
                reading.apis.append(price)
    if free or other:
        reading.notes.append(f"models left out: {free} priced at zero, {other} of another mode")
    return reading
