"""Plug-ins: a name from a dict, or a dotted path ``package.module:attribute`` to somebody else's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar

from coe.errors import InvalidInput, Problem

T = TypeVar("T")


def resolve(name: str, known: Mapping[str, T], what: str) -> T:
    """The plug-in called `name`. `what` names the kind in errors: rule, runner, …

    Raises `InvalidInput` for an unknown name, and for a dotted path that cannot be imported.
    """
    if name in known:
        return known[name]
    if ":" not in name:
        choices = ", ".join(sorted(known))
        remedy = f"known: {choices}; or give a dotted path like package.module:name"
        raise InvalidInput(Problem(f"{what} '{name}'", f"is not a known {what}", remedy=remedy))
    found: T = import_path(name, what)
    return found


def import_path(path: str, what: str) -> T:  # type: ignore[type-var]  # the caller states the type
    """The object at ``package.module:attribute``; `InvalidInput` says what could not be imported."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        remedy = "is the package installed, here and on the cluster?"
        raise InvalidInput(Problem(f"{what} '{path}'", "cannot be imported", str(error), remedy)) from error
    except Exception as error:  # somebody else's module may raise anything while it is imported
        found_error = f"{type(error).__name__}: {error}"
        remedy = f"mend {module_name}: importing it must not fail"
        raise InvalidInput(Problem(f"{what} '{path}'", "cannot be imported", found_error, remedy)) from error
    try:
        found: T = getattr(module, attribute)
    except AttributeError:
        remedy = f"define it in {module.__file__}"
        raise InvalidInput(
            Problem(f"{what} '{path}'", f"module {module_name} has no '{attribute}'", remedy=remedy)
        ) from None
    return found
