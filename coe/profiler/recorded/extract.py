"""From what a language model wrote to the answer it gave, in a form in which equal answers are equal texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from coe.plugins import resolve

Extract = Callable[[str], str | None]
"""The answer within a text, or None where there is none: the model abstains."""
Normalise = Callable[[str], str]

_IS = re.compile(r"answer is:?\s*\(?([A-Z])\)?(?![A-Za-z])", re.IGNORECASE)
_COLON = re.compile(r"answer:\s*\(?([A-Z])\)?(?![A-Za-z])", re.IGNORECASE)
_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s]")


def whole(text: str) -> str | None:
    """All of it."""
    return text.strip() or None


def letter(text: str) -> str | None:
    """The option of a multiple-choice question: "answer is (X)", then "Answer: X", then the last letter that stands alone."""
    for pattern in (_IS, _COLON):
        found = pattern.search(text)
        if found:
            return found.group(1).upper()
    alone: list[str] = _LETTER.findall(text)
    return alone[-1] if alone else None


def number(text: str) -> str | None:
    """The last number."""
    found: list[str] = _NUMBER.findall(text)
    return found[-1] if found else None


def boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{...}``, braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for at in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : at]
    return None


def as_is(text: str) -> str:
    """Unchanged."""
    return text


def as_number(text: str) -> str:
    """One spelling per number: no ``$`` or thousands commas, fractions as decimals, ``18.0`` as ``18``; others unchanged."""
    plain = text.replace("$", "").replace(",", "").strip()
    try:
        value = Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return text.strip()
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def as_words(text: str) -> str:
    """Lower case, without articles and punctuation, single spaces (the normalisation of SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub(" ", text.casefold())).split())


EXTRACTORS: dict[str, Extract] = {"whole": whole, "letter": letter, "number": number, "boxed": boxed}
NORMALISERS: dict[str, Normalise] = {"none": as_is, "number": as_number, "words": as_words}


def extractor(name: str) -> Extract:
    """The extractor called `name`, or the one at that dotted path."""
    return resolve(name, EXTRACTORS, "extractor")


def normaliser(name: str) -> Normalise:
    """The normaliser called `name`, or the one at that dotted path."""
    return resolve(name, NORMALISERS, "normaliser")
