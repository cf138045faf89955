"""Who can answer: members and pools."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from coe.errors import InvalidInput, Problem
from coe.types.base import Name, Noun, PositiveCount, refuse_repeats


class Member(Noun):
    """One model of the pool: how to run it and where its code and weights are."""

    name: Name
    runner: str = "torch"
    """A key of `coe.runners.base.RUNNERS` or a dotted path ``package.module:Class``."""
    model: str = ""
    """Import path of the factory or function, ``package.module:callable``; code never comes from a pickle."""
    weights: str | None = None
    """A safetensors file, relative to the pool file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    description: str = ""


class Pool(Noun):
    """The models that a cascade may be built from; they answer the same questions with the same classes."""

    kind: Literal["pool"] = "pool"
    version: Literal[1] = 1
    name: Name = "pool"
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    input_shape: Annotated[tuple[PositiveCount, ...], Field(min_length=1)]
    """Shape of one item, without the batch axis; [1] for text."""
    input_dtype: Literal["float32", "text"] = "float32"
    """What items are made of: numbers, or one text each."""
    members: Annotated[tuple[Member, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        refuse_repeats([m.name for m in self.members], "members", "every member needs its own name")
        refuse_repeats(list(self.classes), "classes", "every class needs its own name")
        if self.is_text and self.input_shape != (1,):
            raise ValueError(f"input_shape: an item of text has the shape [1], got {list(self.input_shape)}")
        return self

    @property
    def is_text(self) -> bool:
        """True where every item is one text: batches are arrays (n, 1) of str."""
        return self.input_dtype == "text"

    def member(self, name: str) -> Member:
        """The member called `name`; `InvalidInput` if the pool has none."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(m.name for m in self.members)
        raise InvalidInput(Problem("pool", f"no member is called '{name}'", remedy=f"the pool has: {known}"))
