"""LiteLLM's ``model_prices_and_context_window.json`` (github.com/BerriAI/litellm): prices of hosted models.

A mapping of model to ``litellm_provider``, ``mode`` and prices in dollars per token: ``input_cost_per_token``,
``output_cost_per_token``, and per call ``input_cost_per_request`` or ``input_cost_per_query``. The entry ``sample_spec`` explains
the format and is no model. The day does not stand in the file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from coe.errors import InvalidInput, Problem
from coe.prices.rentals import checked
from coe.prices.sources.asked import Asked, Reading
from coe.prices.sources.table import text_of
from coe.types import ApiPrice

MODES = ("chat", "completion", "responses", "embedding", "rerank")
"""What answers a query with tokens; images, audio and the like are billed by other units."""


def read(path: Path, asked: Asked) -> Reading:
    """Prices per token or call of the hosted models in the list."""
    reading = Reading(asked.source_of("LiteLLM model prices", path))
    day = asked.date(path)
    left: Counter[str] = Counter()
    tiered = 0
    for model, entry in _entries(path).items():
        if model == "sample_spec":
            continue
        where = f"{path}: {model}"
        if not isinstance(entry, dict) or not isinstance(entry.get("litellm_provider"), str):
            reading.problems.append(Problem(where, "must be a mapping with litellm_provider"))
            continue
        if not asked.keeps_row(entry["litellm_provider"], "", model):
            continue
        if entry.get("mode") not in MODES:
            left[f"mode {entry.get('mode')}"] += 1
            continue
        price = _price(reading, where, model, entry, day)
        if price is None:
            left["without a price per token or call, or priced at zero"] += 1
        else:
            reading.apis.append(price)
            tiered += any(key.startswith("input_cost_per_token_above_") for key in entry)
    if left:
        said = "; ".join(f"{n} {why}" for why, n in left.most_common())
        reading.notes.append(f"models left out: {said}")
    if tiered:
        reading.notes.append(f"{tiered} models cost more for very long prompts; only their base price is imported")
    return reading


def _entries(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text_of(path))
    except ValueError as error:
        raise InvalidInput(Problem(str(path), "is not valid JSON", str(error), "is the file complete?")) from None
    if not isinstance(data, dict) or not data:
        raise InvalidInput(Problem(str(path), "must be a mapping of models to prices", type(data).__name__))
    return data


def _price(reading: Reading, where: str, model: str, entry: dict[str, Any], day: str) -> ApiPrice | None:
    """The price of one model; None where there is none, or a wrong one, which is reported."""
    keys = ("input_cost_per_token", "output_cost_per_token", "input_cost_per_request", "input_cost_per_query")
    found: dict[str, float] = {}
    for key in keys:
        value = entry.get(key, 0.0)
        if value is None:
            value = 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            reading.problems.append(Problem(f"{where}.{key}", "must be a number >= 0", json.dumps(value)))
            return None
        found[key] = float(value)
    if not any(found.values()):
        return None
    build = partial(
        ApiPrice,
        model=model,
        provider=entry["litellm_provider"],
        usd_per_million_prompt_tokens=per_million(found["input_cost_per_token"]),
        usd_per_million_completion_tokens=per_million(found["output_cost_per_token"]),
        usd_per_call=found["input_cost_per_request"] + found["input_cost_per_query"],
        source=reading.source,
        date=day,
    )
    return checked(build, where, reading.unusable)


def per_million(usd_per_token: float) -> float:
    """Dollars per million tokens, without the dust of binary fractions: 1.5e-07 is 0.15."""
    return float(f"{usd_per_token * 1e6:.12g}")
