"""The gears of one router: each with queues, ledger and sums of its own, made when it is first needed and kept from then on.

One ledger per gear and not one for all: a record belongs to the plan that asked, whose tiers and members it names, also where it
ends after the change; so every ledger is checked against one plan, and each call is billed once. Node time is counted by the gear
in service only, from the instant of a change to that of the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from coe.errors import InvalidInput, Problem
from coe.report.live import audits_so_far
from coe.report.live_gears import LiveGear, LiveGears
from coe.report.quality import claim_in_words
from coe.router.shifting import Gearbox
from coe.serving.in_service import InService
from coe.serving.live_page import Watch
from coe.types import Gear, Gears, Plan


class Geared:
    """The gears that a router may be in, and a gearbox that says which."""

    def __init__(
        self,
        gears: Gears,
        fresh: Callable[[Plan], InService],
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """fresh: puts a plan into service.   clock: of records.   ticks: of the load; never goes back."""
        self._fresh, self._clock, self._ticks = fresh, clock, ticks
        self.box = Gearbox(gears, ticks())
        self.routers = 1
        """That share the load at present."""
        self.is_gear_in_service = True
        self._kept: dict[int, InService] = {}
        self._claims = [claim_in_words(g.plan) for g in gears.gears]

    @property
    def kept(self) -> Sequence[InService]:
        """Every gear that was in service."""
        return tuple(self._kept.values())

    def current(self) -> InService:
        """The plan of the gear that is due."""
        return self.of(self.box.current)

    def of(self, gear: int) -> InService:
        """The plan of a gear, as it was when it was left."""
        if gear not in self._kept:
            self._kept[gear] = self._fresh(self.box.gears.gears[gear].plan)
            self._kept[gear].watch.gearing = self
        return self._kept[gear]

    def went_over(self, old: InService, to: InService) -> bool:
        """The router went over from one plan to another; whether the old one is a gear, and kept."""
        self.is_gear_in_service = to in self.kept
        to.watch.gearing = self
        return old in self.kept

    def arrived(self, queries: int) -> None:
        """So many have come to this router."""
        self.box.arrived(queries, self._ticks())

    def hold(self, name: str | None = None) -> None:
        """Stay in the gear of that name, or in the present one, until `release`. Raises `InvalidInput` for an unknown name."""
        names = self.box.gears.names
        if name is not None and name not in names:
            raise InvalidInput(
                Problem("user_config: gear", "must be a gear of the service", name, f"there are: {', '.join(names)}")
            )
        self.box.is_held = True
        if name is not None and (gear := names.index(name)) != self.box.current:
            self.box.put_into(gear, self._ticks())

    def release(self) -> None:
        """Follow the load again, from the gear that is due."""
        self.box.is_held = False

    # --- What is told -------------------------------------------------------------------------------------------------

    def watches(self) -> Sequence[tuple[str, Watch]]:
        """Name and watch of every gear that was in service."""
        return [(self.box.gears.names[number], kept.watch) for number, kept in self._kept.items()]

    def view(self) -> LiveGears:
        """What an operator sees."""
        gears = self.box.gears
        return LiveGears(
            now=gears.names[self.box.current] if self.is_gear_in_service else None,
            is_pinned=self.box.is_held,
            rate_per_s=self.box.rate_per_s(self._ticks(), self.routers),
            look_back_s=gears.look_back_s,
            changes=self.box.changes,
            gears=tuple(self._seen(number, gear) for number, gear in enumerate(gears.gears)),
        )

    def _seen(self, number: int, gear: Gear) -> LiveGear:
        seconds, requests, answers, audits = 0.0, 0, 0, None
        if number in self._kept:
            running = self._kept[number].watch.running
            total, now_s = running.total(), self._clock()
            answers, requests = total.answers, total.answers + total.failed
            audits = audits_so_far(running)
            seconds = max(0.0, now_s - running.started_s - running.presence.absent_s(running.started_s, now_s))
        certificate = gear.plan.cascade.certificate
        return LiveGear(
            name=self.box.gears.names[number],
            plan_fingerprint=gear.plan.fingerprint(),
            up_to_per_s=gear.up_to_per_s,
            back_below_per_s=gear.back_below_per_s,
            promised=self._claims[number],
            epsilon=None if certificate is None else certificate.epsilon,
            accuracy_planned=gear.plan.stats.accuracy,
            seconds=seconds,
            requests=requests,
            answers=answers,
            audits=audits,
        )
