"""What can go wrong, sorted by whose move it is next.

CoeError
├── InvalidInput     the user's file or option is wrong: fix it and run again      (exit 2)
│   ├── WrongKind        a readable file, but not of the kind that the verb needs
│   └── Stale            a file no longer matches the inputs it was made from
├── Infeasible       every input is fine, but no plan keeps all the promises       (exit 3)
├── GateExceeded     it ran, and a promise (cost, latency, accuracy) was missed    (exit 4)
├── CannotCertify    the labels do not support the accuracy claim                  (exit 5)
└── Unavailable      something outside failed: cluster, network, missing extra     (exit 1)

Every message names the place, the rule, what was found and what to do. A file with several mistakes reports all of
them at once: `InvalidInput.problems` holds one `Problem` each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, which rule it breaks, what was found, and what to do about it."""

    where: str
    """File and key path, e.g. ``cascade.yaml:7: tiers[0].quorum``; or the option, e.g. ``--epsilon``."""
    rule: str
    found: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.rule}" if self.where else self.rule
        if self.found:
            text += f", got {self.found}"
        if self.remedy:
            text += f"; {self.remedy}"
        return text


class CoeError(Exception):
    """Base of every error that `coe` raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InvalidInput(CoeError):
    """The user's input is wrong. `problems` lists every mistake found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[tuple[Problem, ...]]]:
        """Pickled with its problems, so that one raised on another node arrives whole."""
        return type(self), (self.problems,)


class WrongKind(InvalidInput):
    """A readable file of another kind than the verb needs (a plan where a pool is due)."""


class Stale(InvalidInput):
    """A file made from inputs that have changed since."""


class Infeasible(CoeError):
    """No plan keeps every promise.

    `conflict` is the smallest set of promises that cannot hold together; `nearest` lists single changes, each of which
    makes a plan possible.
    """

    exit_code = 3

    def __init__(self, conflict: Iterable[str], nearest: Iterable[str] = ()) -> None:
        self.conflict = tuple(conflict)
        self.nearest = tuple(nearest)
        text = "no plan keeps these promises together:\n" + "\n".join(f"  - {c}" for c in self.conflict)
        if self.nearest:
            text += "\nany one of these would make a plan possible:\n" + "\n".join(f"  - {n}" for n in self.nearest)
        super().__init__(text)


class GateExceeded(CoeError):
    """It ran, and a promise was missed; `missed` says which, by how much."""

    exit_code = 4

    def __init__(self, missed: Iterable[str]) -> None:
        self.missed = tuple(missed)
        super().__init__("promises missed:\n" + "\n".join(f"  - {m}" for m in self.missed))


class CannotCertify(CoeError):
    """The labelled sample does not support the accuracy claim at the confidence asked for."""

    exit_code = 5


class Unavailable(CoeError):
    """Something outside the program is missing or failed: a cluster, a port, an optional package."""

    exit_code = 1
