"""What calls of hosted models cost, from their token counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from coe.errors import InvalidInput, Problem
from coe.types import ApiPrice, FloatArray, TokenPrice

PER_MILLION = 1_000_000


def call_usd(price: ApiPrice | TokenPrice, prompt_tokens: ArrayLike, completion_tokens: ArrayLike) -> FloatArray:
    """Dollars of each call; token counts broadcast against each other, so one count may stand for all calls.

    Both are counts as the provider bills them (completion tokens include reasoning). Raises `InvalidInput` for negative
    counts and for arrays that do not fit together.
    """
    prompt = np.asarray(prompt_tokens, dtype=np.float64)
    completion = np.asarray(completion_tokens, dtype=np.float64)
    for name, counts in (("prompt_tokens", prompt), ("completion_tokens", completion)):
        if not np.all(counts >= 0):  # catches NaN too
            raise InvalidInput(Problem(name, "must be counts >= 0", f"{np.min(counts):g}"))
    try:
        prompt, completion = np.broadcast_arrays(prompt, completion)
    except ValueError:
        found = f"{prompt.shape} and {completion.shape}"
        raise InvalidInput(Problem("token counts", "must have one entry per call", found)) from None
    usd = (
        prompt * price.usd_per_million_prompt_tokens + completion * price.usd_per_million_completion_tokens
    ) / PER_MILLION + price.usd_per_call
    return np.asarray(usd, dtype=np.float64)
