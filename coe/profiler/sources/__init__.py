"""Measurements that others published, read strictly into profiles. One module per format.

Adding a format is one function ``read(path, asked) -> Reading`` and one line in `READERS`; a dotted path
``package.module:function`` works as a kind, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from coe import files
from coe.cost.roofline import Measured, Work, estimate, fit, peak_of
from coe.errors import InvalidInput, Problem
from coe.plugins import resolve
from coe.prices.accelerators import Precision, accelerator, find
from coe.prices.sources import shown
from coe.prices.sources.table import finite, rows
from coe.profiler.sources import batch_latency, mlperf, mlperf_log, perf_analyzer, timm, vllm
from coe.profiler.sources.asked import Asked, Reading, profiles_of
from coe.types import Profile, Profiles

Reader = Callable[[Path, Asked], Reading]


def read_yaml(path: Path, asked: Asked) -> Reading:
    """Profiles of ours, to merge with others or to estimate from."""
    found = files.read(path, Profiles).profiles
    reading = Reading(path.name, found[0].date)
    reading.profiles += [
        p
        for p in found
        if asked.keeps_member(p.member) and (not asked.accelerators or p.accelerator in asked.accelerators)
    ]
    return reading


READERS: dict[str, Reader] = {
    "timm": timm.read,
    "mlperf": mlperf.read,
    "mlperf-log": mlperf_log.read,
    "batch-latency": batch_latency.read,
    "perf-analyzer": perf_analyzer.read,
    "vllm": vllm.read,
    "yaml": read_yaml,
}
"""Kind -> reader; `coe import profiles KIND FILE`."""


def import_profiles(
    kind: str, paths: Sequence[Path], asked: Asked, estimate_on: Sequence[str] = (), work: Path | None = None
) -> tuple[Profiles, tuple[str, ...]]:
    """The profiles that are in the files, and what is worth knowing about them.

    For every accelerator in `estimate_on`, members that were not measured there get an estimate, fitted on the measurements of
    these files; `work` is a table of what members do per item, where the files do not say. Raises `InvalidInput` with
    every row that cannot be used unless `asked.skip_unusable`.
    """
    readings = [_read(kind, path, asked, i) for i, path in enumerate(paths)]
    unusable = [p for r in readings for p in r.unusable]
    notes = []
    if unusable and not asked.skip_unusable:
        raise InvalidInput(shown(unusable))
    if unusable:
        notes.append(f"{len(unusable)} reasons to leave rows out; the first: {unusable[0]}")
    merged = _merged(readings)
    profiles = profiles_of(merged, asked)
    if not profiles:
        files_given = ", ".join(str(p) for p in paths)
        raise InvalidInput(Problem(files_given, "has no usable measurement that was asked for", remedy="ask for less"))
    if estimate_on:
        profiles += _estimates(profiles, merged, asked, estimate_on, work)
    return Profiles(profiles=tuple(profiles)), tuple(notes + merged.notes)


def _read(kind: str, path: Path, asked: Asked, index: int) -> Reading:
    size = asked.batch_sizes[index] if index < len(asked.batch_sizes) else None
    if kind == "perf-analyzer":  # a file of these is one batch size, and does not say which
        return perf_analyzer.read(path, asked, size)
    if kind == "mlperf-log":
        return mlperf_log.read(path, asked, size)
    return resolve(kind, READERS, "profile format")(path, asked)


def _merged(readings: Sequence[Reading]) -> Reading:
    """All files as one: one profile may rest on several files, as where each has one batch size."""
    first = readings[0]
    whole = Reading(
        "; ".join(dict.fromkeys(r.source for r in readings)),
        min(r.date for r in readings),
        memory_said=first.memory_said,
    )
    for reading in readings:
        whole.timed += reading.timed
        whole.profiles += reading.profiles
        whole.memory_gib |= reading.memory_gib
        whole.work |= reading.work
        whole.measured += reading.measured
        whole.notes += reading.notes
    return whole


def _estimates(
    profiles: Sequence[Profile], merged: Reading, asked: Asked, estimate_on: Sequence[str], table: Path | None
) -> list[Profile]:
    """Estimated profiles of every member with known work on every accelerator where it was not measured."""
    precision = asked.precision or "fp16"
    work = merged.work | (read_work(table) if table is not None else {})
    measured = merged.measured or _measured(profiles, work, precision)
    known = {p.member: p for p in profiles if p.member in work}
    if not known:
        remedy = "give --work, a CSV with member, flops_per_item, bytes_per_item, weight_bytes"
        raise InvalidInput(Problem("--estimate", "needs to know what the members do per item", remedy=remedy))
    roofline = fit(measured)
    have = {(p.member, p.accelerator) for p in profiles}
    found = []
    for name in estimate_on:
        device = accelerator(name, where="--estimate")
        for member, profile in known.items():
            if (member, device.name) not in have:
                sizes = [t.batch_size for t in profile.timings]
                found.append(
                    estimate(roofline, member, work[member], device, precision, sizes, profile.memory_gib, profile.date)
                )
    return found


def _measured(profiles: Sequence[Profile], work: dict[str, Work], precision: Precision) -> list[Measured]:
    """Measured batches of members whose work is known, on accelerators with published rates."""
    found = []
    for profile in profiles:
        device = find(profile.accelerator)
        if profile.member not in work or device is None or profile.origin == "estimated":
            continue
        peak = peak_of(device, precision)
        found += [
            Measured(profile.member, work[profile.member], peak, t.batch_size, t.latency_p50_s) for t in profile.timings
        ]
    return found


def read_work(path: Path) -> dict[str, Work]:
    """Member -> work, from a CSV with member, flops_per_item, bytes_per_item and weight_bytes."""
    problems: list[Problem] = []
    columns = ("member", "flops_per_item", "bytes_per_item", "weight_bytes")
    found = {}
    for line in rows(path, columns, problems, "a table of work per item"):
        figures = (
            line.number("flops_per_item", above=True),
            line.number("bytes_per_item"),
            line.number("weight_bytes"),
        )
        if finite(*figures):
            found[line.text("member")] = Work(*figures)
    if problems:
        raise InvalidInput(shown(problems))
    return found
