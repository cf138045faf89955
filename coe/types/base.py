"""What all nouns share: constrained numbers and names, arrays, and the frozen base class."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

MISSING_VOTE = -1
"""The answer of a member that did not answer (dead, late, or never asked)."""
ABSTAINED = -2
"""The answer of a member that was asked and billed, and whose output holds no answer: it agrees with nobody."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+\-/]*$", max_length=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Probabilities = NDArray[np.float32]
Classes = NDArray[np.int32]
Tokens = NDArray[np.int32]


class Noun(BaseModel):
    """A frozen value read from or written to a file; unknown keys, NaN and infinities are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, so that a file can say which inputs it was made from."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def refuse_repeats(names: list[str], key: str, why: str) -> None:
    """ValueError naming the first name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: '{name}' appears twice; {why}")
        seen.add(name)
