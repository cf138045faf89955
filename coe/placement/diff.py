"""Two plans side by side: what changes in dollars, machines, promises and cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coe.types import CostLine, Plan

_SAME = 1e-9


@dataclass(frozen=True)
class Change:
    """One figure or fact before and after; `ratio` is the relative change of a number, None otherwise."""

    what: str
    before: str
    after: str
    ratio: float | None = None


@dataclass(frozen=True)
class PlanDiff:
    """Everything that differs. `cost_increase` is the relative change of dollars per 1,000 queries rented."""

    before: str
    after: str
    cost_increase: float
    dollars: tuple[Change, ...]
    lines: tuple[Change, ...]
    placements: tuple[Change, ...]
    promises: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)


def diff(before: Plan, after: Plan, names: tuple[str, str] = ("before", "after")) -> PlanDiff:
    """What changes from one plan to another. Costs are compared per 1,000 queries, so that loads may differ."""
    old, new = before.cost.usd_per_1k_allocation, after.cost.usd_per_1k_allocation
    return PlanDiff(
        before=names[0],
        after=names[1],
        cost_increase=new / old - 1 if old else (0.0 if new == old else float("inf")),
        dollars=tuple(_dollars(before, after)),
        lines=tuple(_lines(before.allocation_lines, after.allocation_lines)),
        placements=tuple(_placements(before, after)),
        promises=tuple(_promises(before, after)),
    )


def _dollars(before: Plan, after: Plan) -> Iterator[Change]:
    """Both bases, per hour, per 1,000 queries and per 1,000 correct ones."""
    for key, words in (
        ("usd_per_hour_allocation", "rented, per hour"),
        ("usd_per_hour_usage", "used, per hour"),
        ("usd_per_1k_allocation", "rented, per 1,000 queries"),
        ("usd_per_1k_usage", "used, per 1,000 queries"),
        ("usd_per_1k_correct_allocation", "rented, per 1,000 correct"),
    ):
        old, new = getattr(before.cost, key), getattr(after.cost, key)
        yield Change(words, f"${old:.4f}", f"${new:.4f}", new / old - 1 if old else None)


def _lines(before: Sequence[CostLine], after: Sequence[CostLine]) -> Iterator[Change]:
    """Lines of the rented bill whose quantity, price or presence changed."""
    old, new = {line.name: line for line in before}, {line.name: line for line in after}
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if a is None or b is None or abs(a.usd - b.usd) > _SAME or abs(a.unit_price_usd - b.unit_price_usd) > _SAME:
            ratio = b.usd / a.usd - 1 if a and b and a.usd else None
            yield Change(name, _line(a), _line(b), ratio)


def _line(line: CostLine | None) -> str:
    if line is None:
        return "-"
    return f"{line.quantity:g} {line.unit} x ${line.unit_price_usd:.4f} = ${line.usd:.4f}"


def _placements(before: Plan, after: Plan) -> Iterator[Change]:
    """Deployments that came, went or changed."""
    old, new = ({p.deployment: p for p in plan.placements} for plan in (before, after))
    for name in dict.fromkeys([*old, *new]):
        words = [
            "-" if p is None else f"{p.replicas} x {p.share:g}, batch <= {p.batch_size}"
            for p in (old.get(name), new.get(name))
        ]
        if words[0] != words[1]:
            yield Change(name, words[0], words[1])


def _promises(before: Plan, after: Plan) -> Iterator[Change]:
    """Workload, cascade, accuracy and latency where they differ."""
    facts: tuple[tuple[str, Callable[[Plan], str]], ...] = (
        ("cascade", lambda p: " > ".join("+".join(t.members) for t in p.cascade.tiers)),
        ("gates", lambda p: ", ".join(f"{t.rule} {t.bar:g}" for t in p.cascade.tiers[:-1]) or "none"),
        ("load", lambda p: f"{p.workload.rate_per_s:g}/s"),
        (
            "latency promise",
            lambda p: f"{p.workload.latency_quantile:.0%} within {p.workload.latency_s:g} s",
        ),
        ("latency bound", lambda p: f"{p.latency_bound_s:.3f} s"),
        ("accuracy", lambda p: f"{p.stats.accuracy:.2%}"),
        ("reach", lambda p: ", ".join(f"{r:.1%}" for r in p.stats.reach)),
        (
            "certificate",
            lambda p: (
                "none"
                if p.cascade.certificate is None
                else f"{p.cascade.certificate.epsilon:.2%} below {p.cascade.certificate.reference}"
            ),
        ),
    )
    for what, told in facts:
        if told(before) != told(after):
            yield Change(what, told(before), told(after))


def as_text(found: PlanDiff) -> str:
    """The difference for a terminal."""
    blocks = [f"{found.before} -> {found.after}: {_increase(found)}"]
    for title, changes in _sections(found):
        width = max(len(c.what) for c in changes)
        blocks.append(
            "\n".join([title, *(f"  {c.what:<{width}}  {c.before} -> {c.after}{_per_cent(c)}" for c in changes)])
        )
    return "\n\n".join(blocks) + "\n"


def as_markdown(found: PlanDiff) -> str:
    """The difference for a pull request."""
    blocks = [f"**{found.before} → {found.after}: {_increase(found)}**"]
    for title, changes in _sections(found):
        rows = [
            f"| {_cell(c.what)} | {_cell(c.before)} | {_cell(c.after)} | {_per_cent(c).strip(' ()')} |" for c in changes
        ]
        blocks.append("\n".join([f"| {title} | before | after | |", "|---|---|---|---|", *rows]))
    return "\n\n".join(blocks) + "\n"


def _sections(found: PlanDiff) -> Iterator[tuple[str, tuple[Change, ...]]]:
    for title, changes in (
        ("Dollars", found.dollars),
        ("Rented", found.lines),
        ("Deployments", found.placements),
        ("Promises and cascade", found.promises),
    ):
        if changes:
            yield title, changes


def _increase(found: PlanDiff) -> str:
    change = found.cost_increase
    if abs(change) < 0.0005:
        return "costs the same per query"
    return f"costs {abs(change):.1%} {'more' if change > 0 else 'less'} per query"


def _per_cent(change: Change) -> str:
    return "" if change.ratio is None or abs(change.ratio) < 0.0005 else f"  ({change.ratio:+.1%})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
