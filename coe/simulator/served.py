"""A plan served on the virtual clock by the router's own code: queues, early decisions, deadlines, retries, refusals and missing
votes are those of the service, and so is the ledger. Machines come late, fail, follow the load or change gear as a scenario says.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coe.cost.model import usd_per_busy_s
from coe.errors import InvalidInput, Problem
from coe.placement.fees import call_fee_usd
from coe.placement.together import Deployment, together
from coe.records import Answer, Audit, Auditing, BatchRun, NodeSpan, Record
from coe.router.audits import Accounts
from coe.router.core import RouterCore
from coe.router.queries import Overloaded, Reply
from coe.router.scaling import Patience, wanted_by_ongoing, wanted_by_reach
from coe.router.shadow import is_for_audits
from coe.router.shifting import Gearbox, follow_load, next_gear
from coe.simulator import by_gear
from coe.simulator.arrivals import stream
from coe.simulator.auditing import Account, SimulatedAudits, simulated_audits
from coe.simulator.figures import Simulated, Tally, figures, placements_of
from coe.simulator.machines import Machines
from coe.simulator.network import items_of
from coe.simulator.stations import Replica, Station, station_of
from coe.simulator.virtual import run_virtually
from coe.table import PredictionTable
from coe.types import (
    ABSTAINED,
    MISSING_VOTE,
    Audits,
    FloatArray,
    Gears,
    IntArray,
    Link,
    Placement,
    Plan,
    Probabilities,
    Profiles,
    Scaling,
    Scenario,
)


@dataclass(frozen=True)
class Served:
    """One run: its figures, its ledger, what happened to machines (virtual second, words), and what became of every query.

    latency_s: (queries,), NaN where nobody answered.    item: (queries,), the row of the sample that each replayed.
    """

    figures: Simulated
    records: tuple[Record, ...]
    told: tuple[tuple[float, str], ...]
    arrival_s: FloatArray
    latency_s: FloatArray
    item: IntArray
    plans: tuple[Plan, ...] = ()
    """In service at any time, as they are served."""
    plan_of: tuple[str, ...] = ()
    """Of each record, its plan's fingerprint; "" for node time, which is every plan's."""

    shifts: tuple[tuple[by_gear.Shift, ...], ...] = ()
    """Of every router, the gears that it was in; empty where they are not deployed together."""

    def records_of(self, plan: Plan) -> tuple[Record, ...]:
        """Calls, answers and audits of one of the plans."""
        wanted = plan.fingerprint()
        return tuple(r for r, of in zip(self.records, self.plan_of, strict=True) if of == wanted)

    def ledgers(self, gears: Gears) -> dict[str, tuple[Record, ...]]:
        """What the service writes of every gear that was in service. gears: as `together` has them served."""
        spans = [r for r in self.records if isinstance(r, NodeSpan)]
        known = {plan.fingerprint() for plan in self.plans}
        return {
            name: by_gear.ledger(number, self.records_of(gear.plan), spans, self.shifts)
            for number, (gear, name) in enumerate(zip(gears.gears, gears.names, strict=True))
            if gear.plan.fingerprint() in known
        }


def serve(
    plan: Plan,
    profiles: Profiles,
    table: PredictionTable,
    arrival_s: FloatArray,
    scenario: Scenario | None = None,
    *,
    item: IntArray | None = None,
    gears: Gears | None = None,
    deployed: bool = False,
    audits: Audits | None = None,
    seed: int = 0,
    warm_up_s: float = 0.0,
) -> Served:
    """Serve queries that arrive at `arrival_s` (rising seconds from 0) and replay the rows `item` of `table`, else drawn ones.

    With `gears` the service follows the load, and `plan` only says the promises. Each gear's machines are rented when it comes,
    and it begins in the one for the first look-back's load; where they are `deployed`, the machines of all gears stand all the
    while, and every router begins in the lowest gear and changes as the service does (`coe.placement.together`).

    With `audits` every router shows early answers to the last tier, as the service does, and gates may become stricter.

    Raises `InvalidInput` for no arrivals, for a warm-up that leaves none, for members without predictions or profiles, and for
    audits that cannot be of these plans.
    """
    if len(arrival_s) == 0:
        raise InvalidInput(Problem("arrivals", "there are none", remedy="simulate longer, or at a higher rate"))
    if not 0 <= warm_up_s < arrival_s[-1]:
        found = f"{warm_up_s:g} s of {arrival_s[-1]:g} s"
        raise InvalidInput(Problem("warm-up", "must end before the last arrival", found, "simulate longer"))
    for one in [plan] if gears is None else [g.plan for g in gears.gears]:
        table.columns(one.cascade.members)
    if gears is not None and scenario is not None and scenario.scaling is not None:
        raise InvalidInput(
            Problem("scenario: scaling", "gears say how many replicas there are", remedy="use one of the two")
        )
    rows = items_of(table, len(arrival_s), item, seed)
    deployment = together(gears) if gears is not None and deployed else None
    service = _Service(
        plan, profiles, table, arrival_s, rows, scenario or Scenario(), gears, deployment, audits, seed, warm_up_s
    )
    return run_virtually(service.run())


@dataclass
class _Wire:
    """One direction of a link: bytes go one call after the other."""

    bits_per_s: float | None
    free_s: float = 0.0

    def crossing_s(self, now_s: float, size_bytes: float) -> float:
        """Seconds until so many bytes are across, if they are sent now."""
        if self.bits_per_s is None:
            return 0.0
        self.free_s = max(now_s, self.free_s) + 8 * size_bytes / self.bits_per_s
        return self.free_s - now_s


@dataclass
class _Sums:
    """Of one deployment, since the warm-up."""

    calls: int = 0
    items: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    computed_s: float = 0.0
    away_s: float = 0.0
    audit_items: int = 0
    audit_busy_s: float = 0.0


@dataclass
class _Ledger:
    """Where one router writes; a killed one writes nothing more."""

    write: Callable[[Record, str], None]
    accounts: Accounts | None
    """A router that starts again begins with an empty purse."""
    is_open: bool = True

    def of(self, fingerprint: str) -> Callable[[Record], None]:
        """Writes records of a plan."""

        def record(record: Record) -> None:
            if self.is_open:
                self.write(record, fingerprint)

        return record


@dataclass(eq=False)
class _Router:
    """One router: the core that takes queries now, older ones that end what they have, and its own processor."""

    core: RouterCore
    tasks: list[asyncio.Task[None]]
    ledger: _Ledger
    free_s: float = 0.0
    is_up: bool = True
    open: dict[asyncio.Task[None], None] = field(default_factory=dict)
    box: Gearbox | None = None
    """Where gears are deployed together, each router changes by itself."""
    cores: dict[int, RouterCore] = field(default_factory=dict)
    """Gear -> the queues that it has had."""
    left: list[RouterCore] = field(default_factory=list)
    """Those of gears that were left for good."""
    shifts: list[by_gear.Shift] = field(default_factory=list)
    """Where gears are deployed together."""

    @property
    def every_core(self) -> tuple[RouterCore, ...]:
        """The present one last."""
        others = [c for c in (*self.left, *self.cores.values()) if c is not self.core]
        return (*others, self.core)


class _Service:
    def __init__(
        self,
        plan: Plan,
        profiles: Profiles,
        table: PredictionTable,
        arrival_s: FloatArray,
        item: IntArray,
        scenario: Scenario,
        gears: Gears | None,
        deployment: Deployment | None,
        audits: Audits | None,
        seed: int,
        warm_up_s: float,
    ) -> None:
        self._promised, self._profiles, self._table = plan, profiles, table
        self._arrival_s, self._item = arrival_s, item
        self._scenario, self._seed, self._warm_up_s = scenario, seed, warm_up_s
        self._plan_in: dict[RouterCore, str] = {}
        """Core -> fingerprint of its plan."""
        self._gears = gears if deployment is None else deployment.gears
        self._deployment = deployment
        self._told: list[tuple[float, str]] = []
        self._records: list[Record] = []
        self._plan_of: list[str] = []
        """Of each record."""
        self._served: dict[str, Plan] = {}
        """Fingerprint -> plan that was in service."""
        self._asked: dict[str, int] = {}
        """Fingerprint -> queries that the plan took."""
        self._audits, self._started = audits, 0
        queries = len(arrival_s)
        self._done_s, self._answer = np.full(queries, np.nan), np.full(queries, MISSING_VOTE)
        self._refused = np.zeros(queries, dtype=np.bool_)
        self._degraded = np.zeros(queries, dtype=np.bool_)
        self._sums: dict[str, _Sums] = {}
        self._fees: dict[str, float] = {}
        """Deployment -> dollars per item beside machines."""
        self._entered: dict[int, int] = {}
        self._waited_s: dict[int, float] = {}
        self._saved_items = 0
        self._arrived: deque[float] = deque()
        self._look_back_s = scenario.scaling.look_back_s if scenario.scaling else 0.0
        self._box: Gearbox | None = None
        if self._gears is not None:
            self._box = self._new_box(self._gears, 0.0)
            if deployment is None:
                look_back_s = scenario.gear_look_back_s or self._gears.look_back_s
                self._box.current = next_gear(self._gears, 0, float((arrival_s < look_back_s).sum() / look_back_s))
            plan = self._gears.gears[self._box.current].plan
        self._plan = plan
        self._machines = Machines(scenario, seed, self._tell)
        self._stations: dict[tuple[str, float], Station] = {}
        self._probs: dict[str, Probabilities] = {}
        sites = plan.workload.sites
        self._wires = (
            {}
            if sites is None
            else {link.to_site: (_Wire(link.bits_per_s), _Wire(link.bits_per_s)) for link in sites.links}
        )

    # --- The run -------------------------------------------------------------------------------------------------------

    async def run(self) -> Served:
        """Every query to its end."""
        self._loop = asyncio.get_running_loop()
        self._machines.rent(self._rented(), self._stations_to_rent(), is_running=not self._scenario.is_cold)
        await asyncio.sleep(0)  # what runs already runs before the first query comes
        self._routers = [self._new_router() for _ in range(self._plan.router.replicas)]
        watching = [asyncio.ensure_future(w) for w in self._watchers()]
        await self._arrivals()
        while waiting := [t for r in self._routers for t in r.open]:
            await asyncio.wait(waiting)
        await asyncio.sleep(0)
        end_s = self._loop.time()
        for task in [*watching, *(t for r in self._routers for t in r.tasks)]:
            task.cancel()
        for router in self._routers:
            for core in router.every_core:
                await core.close()
        self._machines.stop()
        spans = self._machines.spans(end_s)
        tally = self._tally(end_s, spans)
        return Served(
            figures(self._planned_in_the_end(), tally, self._seed),
            (*spans, *self._records),
            tuple(self._told),
            self._arrival_s,
            self._done_s - self._arrival_s,
            self._item,
            tuple(self._served.values()),
            (*("" for _ in spans), *self._plan_of),
            tuple(tuple(router.shifts) for router in self._routers) if self._deployment is not None else (),
        )

    async def _arrivals(self) -> None:
        turns = itertools.count()
        for number, at in enumerate(self._arrival_s.tolist()):
            if at > (now := self._loop.time()):
                await asyncio.sleep(at - now)
            if self._look_back_s:
                self._arrived.append(at)
            up = [r for r in self._routers if r.is_up]
            if not up:
                continue  # nobody takes the connection
            router = up[next(turns) % len(up)]
            if (box := router.box or self._box) is not None:
                box.arrived(1, at)
            task = asyncio.ensure_future(self._query(router, number))
            router.open[task] = None
            task.add_done_callback(lambda done, router=router: router.open.pop(done, None))  # type: ignore[misc]

    async def _query(self, router: _Router, number: int) -> None:
        if cost_s := self._scenario.router_s_per_query:
            now = self._loop.time()
            router.free_s = max(now, router.free_s) + cost_s
            await asyncio.sleep(router.free_s - now)
        item = np.array([self._item[number]])
        fingerprint = self._plan_in[router.core]
        try:
            await router.core.ask({f"q{number}": item}, timeout_s=self._scenario.deadline_s or math.inf)
            self._asked[fingerprint] = self._asked.get(fingerprint, 0) + 1
        except Overloaded:
            self._refused[number] = True

    def _tell(self, what: str) -> None:
        self._told.append((self._loop.time(), what))

    # --- Members -------------------------------------------------------------------------------------------------------

    def _rented(self) -> Plan:
        """The plan whose machines are rented in the beginning."""
        return self._plan if self._deployment is None else self._deployment.plan

    def _stations_to_rent(self) -> list[Station]:
        """Those of the plan that begins, or of all gears where they are deployed together."""
        if self._deployment is None:
            return self._opened(self._plan)
        opened = [s for gear in self._deployment.gears.gears for s in self._opened(gear.plan)]
        return list({s.placement.deployment: s for s in opened}.values())

    def _opened(self, plan: Plan) -> list[Station]:
        """The stations of a plan's placements; those that another gear has too are the same."""
        stations = []
        for placement in placements_of(plan):
            key = (placement.deployment, placement.share)
            if placement.member not in self._probs:
                self._probs[placement.member] = _probabilities(self._table, placement.member)
            if key not in self._stations:
                rng = stream(self._seed, f"service of {placement.deployment} {placement.share:g}")
                self._stations[key] = station_of(plan, placement, self._profiles, rng)
                self._sums.setdefault(placement.deployment, _Sums())
                self._fees[placement.deployment] = call_fee_usd(plan, placement)
                if placement.api:
                    self._stations[key].replicas.append(Replica(self._stations[key], 0, is_up=True))
            stations.append(self._stations[key])
        return stations

    async def _call(self, placement: Placement, batch: np.ndarray) -> Reply:
        """A member's reply, after queueing, computing and the way there and back."""
        rows = batch[:, 0]
        station = self._stations[placement.deployment, placement.share]
        asked_s, link, sites = self._loop.time(), self._plan.link(placement), self._plan.workload.sites
        if link is not None and sites is not None:
            there, _ = self._wires[link.to_site]
            await asyncio.sleep(self._away_s(link, there, len(rows) * sites.bytes_per_item))
        waited_s, computed_s, busy_s = await station.call(rows)
        await asyncio.sleep(station.hop_s)
        if link is not None and sites is not None:
            _, back = self._wires[link.to_site]
            await asyncio.sleep(self._away_s(link, back, len(rows) * sites.bytes_per_answer))
        if asked_s >= self._warm_up_s:
            sums = self._sums[placement.deployment]
            if is_for_audits.get():
                sums.audit_items += len(rows)
                sums.audit_busy_s += busy_s
                return self._reply(placement, rows, busy_s)
            sums.calls += 1
            sums.items += len(rows)
            sums.busy_s += busy_s
            sums.waited_s += len(rows) * waited_s
            sums.computed_s += len(rows) * computed_s
            sums.away_s += len(rows) * (self._loop.time() - asked_s - waited_s - computed_s)
        return self._reply(placement, rows, busy_s)

    def _reply(self, placement: Placement, rows: IntArray, busy_s: float) -> Reply:
        return Reply(self._probs[placement.member][rows], busy_s, fee_usd=len(rows) * self._fees[placement.deployment])

    def _away_s(self, link: Link, wire: _Wire, size_bytes: float) -> float:
        return link.round_trip_s / 2 + wire.crossing_s(self._loop.time(), size_bytes)

    # --- Routers -------------------------------------------------------------------------------------------------------

    def _new_router(self) -> _Router:
        ledger = self._new_ledger()
        router = _Router(self._new_core(ledger, self._plan), [], ledger)
        self._start(router)
        return router

    def _new_ledger(self) -> _Ledger:
        """Of a router that starts, with its accounts."""
        if self._audits is None:
            return _Ledger(self._record, None)
        rng = stream(self._seed, f"audits of router {self._started}")
        self._started += 1
        served = self._gears or self._plan
        return _Ledger(self._record, Accounts(self._audits, served, rng, self._loop.time()))

    def _start(self, router: _Router) -> None:
        """Keep the queues of a router's core moving, and let it follow the load where it does so by itself."""
        router.tasks = [asyncio.ensure_future(router.core.run())]
        if self._deployment is not None:
            router.box, router.cores = self._new_box(self._deployment.gears, self._loop.time()), {0: router.core}
            router.shifts.append(by_gear.Shift(self._loop.time(), 0))
            router.tasks.append(asyncio.ensure_future(self._shift_router(router, router.box)))

    def _new_box(self, gears: Gears, now_s: float) -> Gearbox:
        return Gearbox(gears, now_s, look_back_s=self._scenario.gear_look_back_s)

    def _new_core(self, ledger: _Ledger, plan: Plan) -> RouterCore:
        fingerprint = plan.fingerprint()
        self._served.setdefault(fingerprint, plan)
        write, clock = ledger.of(fingerprint), self._loop.time
        auditor = None if ledger.accounts is None else ledger.accounts.auditor(plan, clock())
        account = None if auditor is None else Account(auditor, plan, write, clock, self._teller(plan))
        core = RouterCore(
            plan.cascade,
            plan.placements,
            self._table.classes,
            wait_s=plan.workload.batch_wait_s,
            latency_s=plan.workload.latency_s,
            away_s=plan.away_s,
            call=self._call,
            clock=clock,
            record=write if account is None else account.record,
            note_batch=self._note_batch,
            auditor=auditor,
        )
        self._plan_in[core] = fingerprint
        if account is not None:
            account.watch(core)
        return core

    def _teller(self, plan: Plan) -> Callable[[str], None]:
        """Tells what the audits of a plan show."""
        where = "" if self._gears is None else f"{plan.name}: "
        return lambda what: self._tell(f"{where}{what}")

    def _note_batch(self, tier: int, waited_s: Sequence[float]) -> None:
        if self._loop.time() >= self._warm_up_s:
            self._entered[tier] = self._entered.get(tier, 0) + len(waited_s)
            self._waited_s[tier] = self._waited_s.get(tier, 0.0) + sum(waited_s)

    def _record(self, record: Record, fingerprint: str) -> None:
        self._records.append(record)
        self._plan_of.append(fingerprint)
        if isinstance(record, Answer):
            number = int(record.query_id[1:])
            if record.answer != MISSING_VOTE:
                self._done_s[number], self._answer[number] = record.done_s, record.answer
                self._degraded[number] = record.degraded
        elif isinstance(record, BatchRun) and record.status == "cancelled" and record.busy_s == 0:
            self._saved_items += record.items if record.start_s >= self._warm_up_s else 0

    # --- What happens meanwhile ----------------------------------------------------------------------------------------

    def _watchers(self) -> list[asyncio.Future[None]]:
        scenario = self._scenario
        watchers = [self._losses()]
        if scenario.scaling is not None:
            watchers.append(self._scale(scenario.scaling))
        if self._gears is not None and self._box is not None and self._deployment is None:
            watchers.append(self._shift(self._gears, self._box))
        if scenario.router_mtbf_s is not None:
            watchers += [self._router_fails(r, n, scenario.router_mtbf_s) for n, r in enumerate(self._routers)]
        return [asyncio.ensure_future(w) for w in watchers]

    async def _losses(self) -> None:
        """Nodes that the scenario takes away at known moments."""
        for loss in sorted(self._scenario.failures.losses, key=lambda loss: loss.at_s - loss.notice_s):
            at = max(0.0, loss.at_s - loss.notice_s)
            await asyncio.sleep(max(0.0, at - self._loop.time()))
            self._machines.lose(loss.node_type, min(loss.notice_s, loss.at_s))

    async def _router_fails(self, router: _Router, number: int, mtbf_s: float) -> None:
        """A router that fails loses its open queries, and is back with empty queues after a node's start."""
        rng = stream(self._seed, f"failures of router {number}")
        while True:
            await asyncio.sleep(float(rng.exponential(mtbf_s)))
            self._tell(f"router {number + 1} failed with {len(router.open)} open queries")
            router.is_up = router.ledger.is_open = False
            for task in [*router.open, *router.tasks]:
                task.cancel()
            for core in router.every_core:
                if core.shadow is not None:
                    core.shadow.close()
                await core.abandon()
            await asyncio.sleep(self._scenario.node_start_s)
            router.ledger = self._new_ledger()
            router.core = self._new_core(router.ledger, self._plan)
            self._start(router)
            router.is_up = True

    def _rate_per_s(self, look_back_s: float) -> float:
        """Arrivals per second over the look-back, or since the beginning where that is shorter."""
        now = self._loop.time()
        while self._arrived and self._arrived[0] < now - self._look_back_s:
            self._arrived.popleft()
        recent = sum(at >= now - look_back_s for at in self._arrived)
        return recent / min(look_back_s, now) if now > 0 else 0.0

    async def _scale(self, scaling: Scaling) -> None:
        """Ask the policy again and again, and do as it says."""
        placements = [p for p in placements_of(self._plan) if not p.api]
        patience = {p.deployment: Patience(scaling) for p in placements}
        seen: dict[str, deque[int]] = {
            p.deployment: deque(maxlen=max(1, round(scaling.look_back_s / scaling.interval_s))) for p in placements
        }
        while True:
            await asyncio.sleep(scaling.interval_s)
            rate = self._rate_per_s(scaling.look_back_s)
            for p in placements:
                station = self._stations[p.deployment, p.share]
                seen[p.deployment].append(station.under_way)
                current = self._machines.replicas_of(station)
                if scaling.policy == "ongoing":
                    wanted = wanted_by_ongoing(current, float(np.mean(seen[p.deployment])), scaling)
                else:
                    wanted = wanted_by_reach(self._plan, p, rate, scaling)
                self._scale_to(station, current, patience[p.deployment].allowed(self._loop.time(), current, wanted))
            self._machines.give_back_idle()

    def _scale_to(self, station: Station, current: int, wanted: int) -> None:
        if wanted == current:
            return
        self._tell(f"{station.placement.deployment}: {current} -> {wanted} replicas")
        for _ in range(current - wanted):
            self._machines.remove_replica(station)
        for _ in range(wanted - current):
            if self._machines.add_replica(self._plan, station) is None:
                self._tell(f"{station.placement.node_type}: its quota is used up")
                break
        for router in self._routers:
            router.core.resize(station.placement.deployment, self._machines.replicas_of(station))

    async def _shift(self, gears: Gears, box: Gearbox) -> None:
        """Follow the load from gear to gear: start what is new, move the traffic, stop what is old."""
        before = box.current

        async def change(gear: int) -> None:
            nonlocal before
            self._tell(f"gear {before + 1} -> {gear + 1}")
            before = gear
            await self._changed_to(gears.gears[gear].plan)
            self._tell(f"in gear {gear + 1}")

        await follow_load(box, change, clock=self._loop.time)

    async def _shift_router(self, router: _Router, box: Gearbox) -> None:
        """Let one router follow the load; the queues that it leaves end what they have, and wait for their gear to come back."""
        before = box.current

        async def change(gear: int) -> None:
            nonlocal before
            who = f"router {self._routers.index(router) + 1}: " if len(self._routers) > 1 else ""
            self._tell(f"{who}gear {before + 1} -> {gear + 1}")
            before = gear
            router.shifts.append(by_gear.Shift(self._loop.time(), gear))
            if gear not in router.cores:
                router.cores[gear] = self._new_core(router.ledger, box.gears.gears[gear].plan)
                router.tasks.append(asyncio.ensure_future(router.cores[gear].run()))
            _rest(router.core)
            router.core = router.cores[gear]
            if router.core.shadow is not None:
                router.core.shadow.wake()

        await follow_load(
            box, change, clock=self._loop.time, routers=lambda: max(1, sum(r.is_up for r in self._routers))
        )

    async def _changed_to(self, plan: Plan) -> None:
        before = [n for n in self._machines.nodes if n.gone_s is None and not n.is_leaving]
        await asyncio.gather(*self._machines.rent(plan, self._opened(plan), is_running=False))
        self._plan = plan
        for router in self._routers:  # the old core ends what it has
            _rest(router.core)
            router.left.append(router.core)
            router.core = self._new_core(router.ledger, plan)
            router.tasks.append(asyncio.ensure_future(router.core.run()))
        await asyncio.sleep(plan.workload.latency_s)
        for node in before:
            self._machines.give_back(node)

    # --- Afterwards ----------------------------------------------------------------------------------------------------

    def _planned_in_the_end(self) -> Plan:
        """The plan whose tiers and placements the figures name."""
        return self._plan.model_copy(update={"workload": self._promised.workload})

    def _tally(self, end_s: float, spans: Sequence[NodeSpan]) -> Tally:
        plan, start_s = self._planned_in_the_end(), self._warm_up_s
        counted = self._arrival_s >= start_s
        placements = placements_of(plan)
        sums = [self._sums[p.deployment] for p in placements]
        there = [self._stations[p.deployment, p.share] for p in placements]
        labels = self._table.labels[self._item]
        tiers = range(len(plan.cascade.tiers))
        return Tally(
            duration_s=end_s - start_s,
            latency_s=(self._done_s - self._arrival_s)[counted],
            is_right=(self._answer == labels)[counted],
            entered=np.array([self._entered.get(t, 0) for t in tiers]),
            waited_s=np.array([self._waited_s.get(t, 0.0) for t in tiers]),
            calls=np.array([s.calls for s in sums]),
            items=np.array([s.items for s in sums]),
            busy_s=np.array([s.busy_s + s.audit_busy_s for s in sums]),
            replica_wait_s=np.array([s.waited_s for s in sums]),
            service_s=np.array([s.computed_s for s in sums]),
            network_s=np.array([s.away_s for s in sums]),
            rented_usd=sum(_since_s(s, start_s) * s.usd_per_hour / 3600 for s in spans),
            replica_s=np.array([s.up_s + sum(end_s - r.up_since_s for r in s.replicas if r.is_up) for s in there]),
            fees_usd=sum(
                (s.items + s.audit_items) * self._fees[p.deployment] for s, p in zip(sums, placements, strict=True)
            )
            if self._gears is None
            else sum(r.fee_usd for r in self._runs_since_the_warm_up()),
            refused=int(self._refused[counted].sum()),
            degraded=int(self._degraded[counted].sum()),
            saved_items=self._saved_items,
            used_usd=None if self._gears is None else self._used_usd(self._gears),
            audits=self._audited(end_s),
        )

    def _audited(self, end_s: float) -> tuple[SimulatedAudits, ...]:
        if self._audits is None:
            return ()
        name_of: dict[str, str] = {}
        if self._gears is not None:
            name_of = {g.plan.fingerprint(): n for n, g in zip(self._gears.names, self._gears.gears, strict=True)}
        served = [
            (
                name_of.get(fingerprint, ""),
                plan,
                [r for r, of in zip(self._records, self._plan_of, strict=True) if of == fingerprint],
            )
            for fingerprint, plan in self._served.items()
        ]
        queries = {name_of.get(f, ""): self._asked.get(f, 0) for f in self._served}
        return simulated_audits(self._audits, served, queries, end_s)

    def _used_usd(self, gears: Gears) -> float:
        """Dollars for busy time since the warm-up, whichever gear asked."""
        offers = {o.node_type: o for gear in gears.gears for o in gear.plan.offers}
        hosted = {p.deployment for gear in gears.gears for p in gear.plan.placements if p.api}
        return sum(
            r.busy_s * usd_per_busy_s(offers[r.node_type], r.share)
            for r in self._runs_since_the_warm_up()
            if f"{r.member}@{r.node_type}" not in hosted
        )

    def _runs_since_the_warm_up(self) -> list[BatchRun]:
        return [r for r in self._records if isinstance(r, BatchRun) and r.start_s >= self._warm_up_s]


def _rest(core: RouterCore) -> None:
    """Another gear is in service from now on."""
    if core.shadow is not None:
        core.shadow.rest()


def _since_s(span: NodeSpan, start_s: float) -> float:
    """Billed seconds after the warm-up; begun units of nodes that are gone count whole."""
    return max(0.0, span.end_s - max(span.start_s, start_s))


def _probabilities(table: PredictionTable, member: str) -> Probabilities:
    """(items, classes): what a member's replicas return; NaN where it did not answer, zeros where its output held no answer."""
    column, classes = table.members.index(member), len(table.classes)
    answers = table.answers[:, column]
    probs = np.zeros((len(table), classes), dtype=np.float32)
    if table.probs is None:
        known = answers >= 0
        probs[known, answers[known]] = 1.0
    elif table.top is None:
        probs[:] = table.probs[:, column]
    else:
        np.put_along_axis(
            probs, table.top[:, column].astype(np.int64), table.probs[:, column].astype(np.float32), axis=1
        )
    probs[answers == MISSING_VOTE] = np.nan
    probs[answers == ABSTAINED] = 0.0
    return probs


def with_start(records: Sequence[Record], started_s: float) -> list[Record]:
    """The records of a run that began at `started_s` instead of 0."""
    moved: list[Record] = []
    for r in records:
        if isinstance(r, NodeSpan):
            moved.append(replace(r, start_s=r.start_s + started_s, end_s=r.end_s + started_s))
        elif isinstance(r, BatchRun):
            moved.append(replace(r, start_s=r.start_s + started_s))
        elif isinstance(r, Auditing):
            moved.append(replace(r, at_s=r.at_s + started_s))
        elif isinstance(r, Audit):
            moved.append(replace(r, asked_s=r.asked_s + started_s, done_s=r.done_s + started_s))
        else:
            moved.append(replace(r, arrival_s=r.arrival_s + started_s, done_s=r.done_s + started_s))
    return moved
