"""Profiling on a cluster: every member on every kind of accelerator that the cluster has.

One actor per node type owns a whole device there, pinned by label as the service's replicas are, and times one member
after the other with the same runners and the same pacing. The head node hosts the router and is not profiled. Of
several node types with the same accelerator the first in the price list stands for all.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from coe.errors import CoeError, InvalidInput, Problem, Unavailable
from coe.placement.candidates import hosted_model
from coe.profiler.measure import forget_caches, measure
from coe.profiler.quote import refuse_unlisted
from coe.runners.base import Runner, blank_batch, fingerprint, make_runner
from coe.runners.paced import Paced
from coe.serving.labels import CPU_SHARE_ENV, NODE_TYPE_LABEL, replica_options, simulated_speed
from coe.types import BatchTiming, Member, Offer, Pool, Prices, Profile, Profiles

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
HOP_CALLS = 200
READY_TIMEOUT_S = 90.0
CONNECT_S = 60.0
"""How long a cluster has to answer; those that are well take a second or two."""
AT_ONCE = 2
"""Node types that are profiled at the same time: simulated ones share the cores of one machine."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Measured:
    """What one actor found out about one member."""

    timings: tuple[BatchTiming, ...]
    memory_gib: float
    load_s: float


def profile_members(
    pool: Pool,
    base_dir: Path,
    prices: Prices,
    address: str,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    min_runs: int = 100,
    max_s: float = 1.0,
    today: str,
    sample: NDArray[Any] | None = None,
    progress: Progress | None = None,
    known: Sequence[Profile] = (),
    keep: Callable[[Profile], None] | None = None,
) -> Profiles:
    """Time every member of the pool on every accelerator that the cluster at `address` and the price list both have.

    Members that the price list sells as hosted models are left to `coe.profiler.hosted`.

    `max_s` bounds the seconds per member, accelerator and batch size; within it there are at least `min_runs` runs.
    Batches are drawn from `sample` (n, *input_shape) where given, and are uniform in [0, 1) otherwise; replayed
    tables are asked for their first row. `today` dates the profiles. `progress` gets (members measured, members
    times accelerators) from several threads, one at a time. What is in `known`, of the same code and batch sizes, is not
    measured again; `keep` gets every new profile as soon as it is there, one at a time.

    Raises `Unavailable` where the cluster cannot be reached or a node type has no free device, and `InvalidInput` for a
    cluster without any node of the price list, for members that do not run, and for hosted models without a price.
    """
    base_dir = base_dir.resolve()
    refuse_unlisted(pool, prices, "the price list")
    on_nodes = tuple(m for m in pool.members if hosted_model(m, prices) is None)
    if not on_nodes:
        raise InvalidInput(Problem("pool", "has no member that runs on a node: all are hosted models"))
    pool = pool.model_copy(update={"members": on_nodes})
    if sample is not None and sample.shape[1:] != pool.input_shape:
        rule = f"items must have the pool's input_shape {list(pool.input_shape)}"
        raise InvalidInput(Problem("sample", rule, str(list(sample.shape[1:]))))
    if pool.is_text and (sample is None or sample.dtype.kind != "U"):
        raise InvalidInput(
            Problem("sample", "members that read text are timed on texts", remedy="give them with --data")
        )
    with connected(address):
        offers = _offers_to_profile(prices)
        counter = _Counter(progress, len(offers) * len(pool.members), keep)
        work = _Work(pool, base_dir, tuple(batch_sizes), min_runs, max_s, today, sample, tuple(known))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = list(threads.map(lambda offer: _profiles_on(offer, work, counter), offers))
    return Profiles(profiles=tuple(profile for profiles in found for profile in profiles))


@dataclass(frozen=True)
class _Work:
    """What is the same on every node type."""

    pool: Pool
    base_dir: Path
    batch_sizes: tuple[int, ...]
    min_runs: int
    max_s: float
    today: str
    sample: NDArray[Any] | None
    known: tuple[Profile, ...] = ()

    def measured_before(self, member: Member, accelerator: str) -> Profile | None:
        """The known profile of the member there, if its code and the batch sizes are still the same."""
        code = fingerprint(member, self.base_dir)
        sizes = sorted(self.batch_sizes)
        for p in self.known:
            if (p.member, p.accelerator, p.code) == (member.name, accelerator, code):
                return p if [t.batch_size for t in p.timings] == sizes else None
        return None


class _Counter:
    """Counts finished measurements for whoever watches, and hands them to whoever keeps them."""

    def __init__(self, progress: Progress | None, total: int, keep: Callable[[Profile], None] | None) -> None:
        self._progress = progress
        self._keep = keep
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def step(self, new: Profile | None = None) -> None:
        with self._lock:
            self._done += 1
            if new is not None and self._keep is not None:
                self._keep(new)
            if self._progress is not None:
                self._progress(self._done, self._total)


def connect(address: str, within_s: float = CONNECT_S) -> None:
    """Connect this process to the cluster at `address`. Raises `Unavailable` where it does not answer in time.

    Ray itself tries for ever where something listens that is no Ray, or that hangs. So a thread tries, and is left to it.
    """
    failed: list[Exception] = []

    def trying() -> None:
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except Exception as error:  # whatever it is, the caller hears of it
            failed.append(error)

    thread = threading.Thread(target=trying, name="ray.init", daemon=True)
    thread.start()
    thread.join(within_s)
    if not failed and not thread.is_alive():
        return
    said = (
        str(failed[0]) if failed else f"something listens there, and does not answer as Ray does within {within_s:g} s"
    )
    raise Unavailable(f"no Ray cluster answers at {address} ({said}); start one: coe cluster up FLEET") from None


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A driver's connection to the cluster at `address`; one that is there already is used and left open."""
    if ray.is_initialized():
        yield
        return
    connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def _offers_to_profile(prices: Prices) -> list[Offer]:
    """One offer per accelerator that a living node of the cluster has, head nodes left out; in the prices' order."""
    alive = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]]
    there = {node["Labels"].get(NODE_TYPE_LABEL) for node in alive}
    offers: dict[str, Offer] = {}
    for offer in prices.offers:
        if offer.node_type in there:
            offers.setdefault(offer.accelerator, offer)
    if not offers:
        labels = ", ".join(sorted(str(label) for label in there if label)) or "none"
        wanted = ", ".join(offer.node_type for offer in prices.offers)
        rule = (
            f"no node of the cluster carries the label {NODE_TYPE_LABEL} with a node type of the price list ({wanted})"
        )
        raise InvalidInput(Problem("cluster", rule, labels, "label the nodes, or start a fleet: coe cluster up"))
    return list(offers.values())


def _profiles_on(offer: Offer, work: _Work, counter: _Counter) -> list[Profile]:
    """Profiles of all members on one node type."""
    actor = ray.remote(_Prober).options(**replica_options(offer, 1.0)).remote(work.pool, str(work.base_dir))
    try:
        device = _answer_of(actor.device.remote(), offer, READY_TIMEOUT_S)
        hop_p99_s = _hop_p99_s(actor, offer, max(work.batch_sizes), work.pool)
        profiles = []
        for member in work.pool.members:
            before = work.measured_before(member, offer.accelerator)
            if before is not None:
                profiles.append(before)
                counter.step()
                continue
            task = actor.measure.remote(member.name, work)
            measured = _answer_of(task, offer, None)
            code = fingerprint(member, work.base_dir)
            profiles.append(_profile(member, offer, measured, hop_p99_s, device, work.today, code))
            counter.step(profiles[-1])
        return profiles
    finally:
        ray.kill(actor)


def _profile(
    member: Member, offer: Offer, measured: Measured, hop_p99_s: float, device: str, today: str, code: str
) -> Profile:
    return Profile(
        member=member.name,
        accelerator=offer.accelerator,
        timings=measured.timings,
        memory_gib=measured.memory_gib,
        load_s=measured.load_s,
        hop_p99_s=hop_p99_s,
        origin="measured",
        source=f"{offer.node_type}: {device}",
        date=today,
        code=code,
    )


def _answer_of(task: Any, offer: Offer, timeout_s: float | None) -> Any:
    """What the actor returns; its errors arrive as ours."""
    try:
        return ray.get(task, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise Unavailable(
            f"no free device on a node of type {offer.node_type} within {timeout_s:.0f} s; "
            "is a service running there? end it with `serve shutdown`"
        ) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CoeError):
            raise error.cause from None
        raise Unavailable(f"profiling on {offer.node_type} failed: {error}") from error
    except ray.exceptions.RayError as error:
        raise Unavailable(f"profiling on {offer.node_type} failed: {error}") from error


def _hop_p99_s(actor: Any, offer: Offer, size: int, pool: Pool) -> float:
    """99th percentile of a call that carries a full batch there and its probabilities back, and does nothing else."""
    batch = blank_batch(pool, size)
    seconds = []
    for _ in range(HOP_CALLS):
        started = time.perf_counter()
        _answer_of(actor.echo.remote(batch), offer, READY_TIMEOUT_S)
        seconds.append(time.perf_counter() - started)
    return float(np.quantile(seconds, 0.99, method="higher"))


class _Prober:
    """Runs on the node: loads, times and closes one member after the other."""

    def __init__(self, pool: Pool, base_dir: str) -> None:
        self._pool = pool
        self._base_dir = Path(base_dir)

    def device(self) -> str:
        """What the figures were measured on, in words."""
        return describe_device()

    def echo(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """A reply as large as a member's."""
        return np.zeros((len(batch), len(self._pool.classes)), dtype=np.float32)

    def measure(self, name: str, work: _Work) -> Measured:
        """Load one member, time it on this device, and let it go."""
        member = self._pool.member(name)
        runner: Runner = make_runner(member, self._pool, self._base_dir)
        speed = simulated_speed(1.0)
        if speed is not None:
            runner = Paced(runner, speed)
        started = time.perf_counter()
        runner.load()
        load_s = time.perf_counter() - started
        try:
            make_batch = _batches(member, self._pool, work.sample)
            between = None if speed is None else forget_caches()  # simulated nodes compute on a shared CPU
            timings = measure(
                runner.predict,
                make_batch,
                work.batch_sizes,
                clock=device_clock(),
                min_runs=work.min_runs,
                max_s=work.max_s,
                between=between,
            )
            return Measured(timings, runner.memory_gib(), load_s)
        finally:
            runner.close()


def _batches(member: Member, pool: Pool, sample: NDArray[Any] | None) -> Callable[[int], NDArray[Any]]:
    """A function from batch size to a batch."""
    if sample is not None:
        return lambda size: np.resize(sample, (size, *pool.input_shape))
    if member.runner == "table":
        return lambda size: blank_batch(pool, size)
    rng = np.random.default_rng(0)
    return lambda size: rng.random((size, *pool.input_shape), dtype=np.float32)


def describe_device() -> str:
    """The device that a member would run on in this process, and the versions that matter."""
    versions = f"python {platform.python_version()}, ray {ray.__version__}{_torch_version()}"
    share = os.environ.get(CPU_SHARE_ENV)
    if share is not None:
        return f"simulated by {share} of one core ({cpu_name()}), {versions}"
    return f"{_gpu_name() or cpu_name()}, {versions}"


def device_clock() -> Callable[[], float]:
    """Seconds, read when everything that was asked of the device before is done.

    On a GPU these are times of CUDA events on its current stream, so that work which is still under way when a call returns
    counts for the call that asked for it; elsewhere the process's clock.
    """
    if not _gpu_name():
        return time.perf_counter
    import torch

    origin = torch.cuda.Event(enable_timing=True)
    origin.record()

    def seconds() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return float(origin.elapsed_time(now)) / 1000

    return seconds


def _torch_version() -> str:
    try:
        return f", torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        return ""


def _gpu_name() -> str:
    """Name of the GPU that torch would use; empty without one."""
    try:
        import torch
    except ImportError:
        return ""
    if not torch.cuda.is_available():
        return ""
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def cpu_name() -> str:
    """Model name of this machine's processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
