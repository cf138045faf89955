"""timm's inference benchmarks (github.com/huggingface/pytorch-image-models, results/benchmark-infer-*.csv).

As published: model, infer_img_size, infer_samples_per_sec, infer_step_time (ms per batch), infer_batch_size, param_count
(millions), infer_gmacs, infer_macts (millions of activations); device and precision stand in the file's name alone, so the
user states them. A collection of such files has the columns model, hw, precision, img_size, batch_size, samples_per_s,
step_ms, params_m, gmacs, macts.

One batch size per model, a mean, no p99 and no memory: weights are counted where the user does not state more.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from coe.cost.roofline import Measured, Work, peak_of
from coe.errors import InvalidInput, Problem
from coe.prices.accelerators import Accelerator, Precision
from coe.prices.sources.table import Line, finite, rows
from coe.profiler.sources.asked import Asked, Reading, Timed, member_name

PUBLISHED = {
    "img_size": "infer_img_size",
    "batch_size": "infer_batch_size",
    "samples_per_s": "infer_samples_per_sec",
    "step_ms": "infer_step_time",
    "params_m": "param_count",
    "gmacs": "infer_gmacs",
    "macts": "infer_macts",
}
PRECISIONS: dict[str, Precision] = {"amp": "fp16", "fp16": "fp16", "bf16": "fp16", "fp32": "fp32", "float32": "fp32"}
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Row:
    """One row of either kind of table; figures that it lacks are None."""

    line: Line
    asked_for: bool
    """False for models that only help to fit an estimate."""
    model: str
    accelerator: str
    precision: Precision
    img_size: float
    batch_size: float
    samples_per_s: float
    params_m: float | None
    gmacs: float | None
    macts: float | None


def rows_of(path: Path, asked: Asked, problems: list[Problem] | None = None) -> Iterator[Row]:
    """Well-formed rows; what is wrong with others of the models asked for is added to `problems`."""
    found: list[Problem] = [] if problems is None else problems
    columns: dict[str, str] = {}
    for line in rows(path, ("model",), found, "a timm benchmark"):
        if not columns:
            columns = _columns(line)
        if not asked.keeps_line(line):
            continue
        asked_for = asked.keeps_member(line.text("model"))
        if not asked_for:
            line = replace(line, problems=[])
        called = line.text("hw") or asked.accelerator
        precision = PRECISIONS.get(line.text("precision")) if "precision" in line.cells else asked.precision
        if called is None:
            rule = "does not say what it was measured on"
            raise InvalidInput(Problem(str(path), rule, remedy="give --accelerator, e.g. --accelerator RTX-3090"))
        if precision is None:
            remedy = "give --precision fp16 (amp) or fp32"
            raise InvalidInput(Problem(str(path), "does not say at which precision it was measured", remedy=remedy))
        size, batch = line.whole(columns["img_size"], least=1), line.whole(columns["batch_size"], least=1)
        rate, step = line.number(columns["samples_per_s"], above=True), line.number(columns["step_ms"], above=True)
        if finite(size, batch, rate, step):
            rest = [_millions(line, columns[c]) for c in ("params_m", "gmacs", "macts")]
            yield Row(line, asked_for, line.text("model"), called, precision, size, batch, rate, *rest)


def _columns(line: Line) -> dict[str, str]:
    names = PUBLISHED if "infer_samples_per_sec" in line.cells else {c: c for c in PUBLISHED}
    lacking = [n for n in names.values() if n not in line.cells]
    if lacking:
        rule = f"is not a timm benchmark: it lacks the columns {', '.join(lacking)}"
        raise InvalidInput(Problem(f"{line.path}:1", rule, remedy=f"it has: {', '.join(line.cells)}"))
    return names


def _millions(line: Line, column: str) -> float | None:
    """A figure that may be missing, and that the files write as ``1,014.45``."""
    line.cells[column] = line.text(column).replace(",", "")
    return line.optional(column, above=True)


def work_of(row: Row) -> Work | None:
    """What the model does per image; None where the table does not say."""
    if row.gmacs is None or row.macts is None or row.params_m is None:
        return None
    each = BYTES[row.precision]
    return Work(2e9 * row.gmacs, each * 1e6 * row.macts, each * 1e6 * row.params_m)


def read(path: Path, asked: Asked) -> Reading:
    """One timing per model, image size and device."""
    reading = Reading(asked.source_of("timm benchmark", path), asked.date(path))
    reading.memory_said = "memory is that of the weights alone"
    found = []
    for row in rows_of(path, asked, reading.unusable):
        device = asked.device(row.accelerator if "hw" in row.line.cells else None, f"{row.line.where}: hw")
        if isinstance(device, Accelerator):
            found.append((row, device))
        elif device is not None and row.asked_for:
            reading.unusable.append(device)
    sizes: dict[str, set[float]] = defaultdict(set)
    for row, _ in found:
        if row.asked_for:
            sizes[row.model].add(row.img_size)
    for row, device in found:
        alone = row.asked_for and len(sizes[row.model]) == 1
        member = member_name(row.model if alone else f"{row.model}-{row.img_size:g}px")
        _measure(reading, row, device, member)
        if row.asked_for:
            _add(reading, row, device.name, member)
    return reading


def _add(reading: Reading, row: Row, device_name: str, member: str) -> None:
    seconds = row.batch_size / row.samples_per_s
    told = ("precision", "layout", "torch", "cuda", "compile")
    reading.timed.append(
        Timed(
            where=row.line.where,
            member=member,
            accelerator=device_name,
            batch_size=int(row.batch_size),
            p50_s=seconds,
            said=" ".join(row.line.text(c) for c in told if row.line.text(c)),
        )
    )
    if row.params_m is not None:
        weights = row.params_m * 1e6 * BYTES[row.precision] / 2**30
        reading.memory_gib[member] = max(weights, reading.memory_gib.get(member, 0.0))


def _measure(reading: Reading, row: Row, device: Accelerator, member: str) -> None:
    """Remember the row for fitting, where the table says what the model does and the maker what the device can do."""
    work = work_of(row)
    if work is None:
        return
    if row.asked_for:
        reading.work[member] = work
    with contextlib.suppress(InvalidInput):
        peak = peak_of(device, row.precision)
        seconds = row.batch_size / row.samples_per_s
        reading.measured.append(Measured(member, work, peak, row.batch_size, seconds))
