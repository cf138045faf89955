"""From what a language model wrote to one of the pool's classes, or to none: then it abstains."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from coe.errors import InvalidInput, Problem
from coe.profiler.recorded.extract import Extract, extractor, normaliser

Read = Callable[[str], int | None]
"""Class index of a reply, or None where it holds no answer."""

_AROUND = string.whitespace + ".,;:!?\"'`*()[]"


def reader(
    classes: Sequence[str],
    *,
    extract: str = "whole",
    pattern: str | None = None,
    normalise: str = "none",
    letters: bool = False,
) -> Read:
    """How replies are read.

    extract: ``whole``, ``letter``, ``number``, ``boxed`` (`coe.profiler.recorded.extract`), ``mention`` (the one class that the
    reply names; several are no answer), or a dotted path. pattern: a regular expression with one group instead; its last
    match counts. normalise: what is done to answer and class names before they are compared, without regard to case and
    to punctuation around them. letters: the answer is a letter, A for the first class.

    Raises `InvalidInput` for a pattern that is none, and for classes that would be read alike.
    """
    spelling = normaliser(normalise)

    def key(text: str) -> str:
        return spelling(text.strip(_AROUND)).casefold()

    names = [chr(ord("A") + i) for i in range(len(classes))] if letters else list(classes)
    if letters and len(names) > 26:
        raise InvalidInput(Problem("letters", "there are 26 letters", f"{len(names)} classes", "extract the names"))
    index: dict[str, int] = {}
    for number, name in enumerate(names):
        if (other := index.setdefault(key(name), number)) != number:
            rule = f"would be read like '{classes[other]}'"
            raise InvalidInput(Problem(f"class '{name}'", rule, remedy="choose another normalise, or letters"))
    found = (
        _matching(pattern) if pattern is not None else _mention(names) if extract == "mention" else extractor(extract)
    )

    def read(reply: str) -> int | None:
        answer = found(reply)
        return None if answer is None else index.get(key(answer))

    return read


def _matching(pattern: str) -> Extract:
    """The group of the last match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InvalidInput(Problem("pattern", "is not a regular expression", f"{pattern}: {error}")) from None
    if compiled.groups != 1:
        raise InvalidInput(Problem("pattern", "must have one group: the answer", f"{compiled.groups} in {pattern}"))

    def find(text: str) -> str | None:
        found: list[str] = compiled.findall(text)
        return found[-1] if found else None

    return find


def _mention(names: Sequence[str]) -> Extract:
    """The only class that a text names; where one name holds another, the longer one counts."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(" + "|".join(re.escape(n) for n in longest_first) + r")(?!\w)", re.IGNORECASE)

    def find(text: str) -> str | None:
        found: set[str] = {match.casefold() for match in pattern.findall(text)}
        return found.pop() if len(found) == 1 else None

    return find
