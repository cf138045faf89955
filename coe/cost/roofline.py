"""How long a batch would take on an accelerator that one does not own.

A roofline (Williams, Waterman, Patterson, CACM 2009) from the work of a model and the datasheet of a device:

    seconds(b) = overhead + b * flops / (peak_flops * e_c) + (weights + b * bytes) / (bandwidth * e_m)

Time for arithmetic and time for memory add up: fitted on published tables this is closer than the larger of the two, because
the layers of a model alternate between both. The efficiencies e_c and e_m (at most 1) and the overhead are fitted on whatever
was measured, by least absolute error of the logarithm, so that twice too slow counts as much as twice too fast and single odd
measurements do not bend the fit. A model that was itself measured elsewhere is *anchored*: its estimate is multiplied by how
far the formula was off there.

Every estimate carries an error factor: each device that was measured is left out of the fit and predicted; the factor is the
one that nine of ten further such predictions would keep (the conformal quantile, Vovk et al. 2005; the largest error seen where
there are fewer than nine). That holds as far as the new device is like the measured ones: a band from gaming cards says little
about a CPU. A fit on one device cannot know it, and is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.prices.accelerators import Accelerator, Precision
from coe.types import BatchTiming, FloatArray, Profile

COVERED = 0.9
"""Share of left-out predictions that are within the error factor."""

ENOUGH = 9
"""With fewer predictions the largest error stands for nine of ten."""

IN_TURN = "each in turn"
"""Stands for the device in the row of all predictions."""

_WIDEST = np.log(1000.0)
"""No efficiency is below one in a thousand."""


@dataclass(frozen=True)
class Work:
    """What a model does per item, at the precision it runs in."""

    flops_per_item: float
    """Floating-point operations; a multiply-accumulate is two."""
    bytes_per_item: float
    """Activations written or read."""
    weight_bytes: float
    """Parameters, read once per batch."""


@dataclass(frozen=True)
class Peak:
    """What a device could do at best, at one precision."""

    device: str
    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Measured:
    """One measured batch."""

    member: str
    work: Work
    peak: Peak
    batch_size: float
    seconds: float


@dataclass(frozen=True)
class Roofline:
    """A fit, and how far off it was on devices that it had not seen."""

    compute_efficiency: float
    memory_efficiency: float
    overhead_s: float
    member_factor: Mapping[str, float]
    """Measured member -> how many times longer it took than the formula says (geometric mean)."""
    error_factor: float
    """For members that were measured nowhere."""
    anchored_error_factor: float
    """For members that were measured on another device."""
    devices: tuple[str, ...]
    measurements: int
    left_out: int
    """Predictions of left-out devices that `error_factor` rests on."""
    anchored_left_out: int

    def seconds(self, work: Work, peak: Peak, batch_size: float, member: str | None = None) -> float:
        """Estimated seconds of a batch; anchored where `member` was measured elsewhere."""
        if not batch_size > 0:
            raise InvalidInput(Problem("batch_size", "must be > 0", f"{batch_size:g}"))
        terms = _terms([Measured("", work, peak, batch_size, 1.0)])
        found = terms @ np.array([self.overhead_s, 1 / self.compute_efficiency, 1 / self.memory_efficiency])
        return float(found[0]) * self.member_factor.get(member or "", 1.0)

    def error_factor_of(self, member: str | None) -> float:
        """Nine of ten left-out predictions of such members were within this factor."""
        return self.anchored_error_factor if member in self.member_factor else self.error_factor


@dataclass(frozen=True)
class LeftOut:
    """How well one device was predicted from the others."""

    device: str
    anchored: bool
    predictions: int
    bias: float
    """Median of predicted / measured."""
    median_error: float
    """Median of |predicted / measured - 1|."""
    factor: float
    """Nine of ten predictions are within this factor of the measurement."""


def peak_of(accelerator: Accelerator, precision: Precision) -> Peak:
    """Datasheet rates of an accelerator; `InvalidInput` where its maker publishes none at that precision."""
    flops, bandwidth = accelerator.peak_flops_per_s(precision), accelerator.bandwidth_bytes_per_s
    if flops is None or bandwidth is None:
        rule = f"has no published {precision} rate, so nothing can be estimated on it"
        raise InvalidInput(Problem(f"accelerator {accelerator.name}", rule, remedy="choose another precision"))
    return Peak(accelerator.name, flops, bandwidth)


def fit(measured: Sequence[Measured]) -> Roofline:
    """Efficiencies from measurements on at least two devices.

    Raises `InvalidInput` for measurements that are not positive, and where fewer than two devices were measured: the error of
    an estimate on a third could not be known.
    """
    _check(measured)
    devices = tuple(dict.fromkeys(m.peak.device for m in measured))
    if len(devices) < 2:
        rule = "must come from at least two devices, so that the error on another one is known"
        remedy = "import a public table of another device beside them"
        raise InvalidInput(Problem("measurements", rule, ", ".join(devices) or "none", remedy))
    factors = _fitted(measured)
    cold = np.concatenate([_log_errors(measured, d, anchored=False) for d in devices])
    anchored = np.concatenate([_log_errors(measured, d, anchored=True) for d in devices])
    cold_factor = _factor(cold)
    return Roofline(
        compute_efficiency=float(1 / factors[1]),
        memory_efficiency=float(1 / factors[2]),
        overhead_s=float(factors[0]),
        member_factor=_member_factors(measured, factors),
        error_factor=cold_factor,
        anchored_error_factor=_factor(anchored) if len(anchored) else cold_factor,
        devices=devices,
        measurements=len(measured),
        left_out=len(cold),
        anchored_left_out=len(anchored),
    )


def left_out_errors(measured: Sequence[Measured], anchored: bool) -> tuple[LeftOut, ...]:
    """Each device predicted from the others, and last all of these predictions together.

    Anchored predictions are of members that the others measured, too.
    """
    _check(measured)
    logs = {d: _log_errors(measured, d, anchored) for d in dict.fromkeys(m.peak.device for m in measured)}
    rows = [_left_out(device, anchored, log) for device, log in logs.items() if len(log)]
    if not rows:
        return ()
    return (*rows, _left_out(IN_TURN, anchored, np.concatenate(list(logs.values()))))


def _left_out(device: str, anchored: bool, log_errors: FloatArray) -> LeftOut:
    ratio = np.exp(log_errors)
    return LeftOut(
        device=device,
        anchored=anchored,
        predictions=len(ratio),
        bias=float(np.median(ratio)),
        median_error=float(np.median(np.abs(ratio - 1))),
        factor=_factor(log_errors),
    )


def estimate(
    roofline: Roofline,
    member: str,
    work: Work,
    accelerator: Accelerator,
    precision: Precision,
    batch_sizes: Sequence[int],
    memory_gib: float,
    date: str,
) -> Profile:
    """A profile that nobody measured, labelled so. Its p99 is the upper end of the error band."""
    peak = peak_of(accelerator, precision)
    factor = roofline.error_factor_of(member)
    seconds = [roofline.seconds(work, peak, b, member) for b in batch_sizes]
    is_anchored = member in roofline.member_factor
    left_out = roofline.anchored_left_out if is_anchored else roofline.left_out
    how = "anchored" if is_anchored else "from its work alone"
    share = "nine in ten" if left_out >= ENOUGH else "all"
    return Profile(
        member=member,
        accelerator=accelerator.name,
        timings=tuple(
            BatchTiming(batch_size=b, latency_p50_s=s, latency_p99_s=s * factor)
            for b, s in zip(batch_sizes, seconds, strict=True)
        ),
        memory_gib=memory_gib,
        origin="estimated",
        error_factor=factor,
        source=(
            f"roofline at {precision}, {how}: {roofline.measurements} measurements on {', '.join(roofline.devices)}; "
            f"{accelerator.source}; {share} of {left_out} left-out figures within a factor of {factor:.2f}, which p99 includes"
        ),
        date=date,
    )


# --- Fitting ----------------------------------------------------------------------------------------------------------


def _terms(measured: Sequence[Measured]) -> FloatArray:
    """(measurements, 3): one second of overhead, ideal seconds of arithmetic, ideal seconds of memory."""
    return np.array(
        [
            (
                1.0,
                m.batch_size * m.work.flops_per_item / m.peak.flops_per_s,
                (m.work.weight_bytes + m.batch_size * m.work.bytes_per_item) / m.peak.bytes_per_s,
            )
            for m in measured
        ]
    )


def _fitted(measured: Sequence[Measured]) -> FloatArray:
    """(overhead_s, 1 / e_c, 1 / e_m) with the least mean |log(predicted / measured)|.

    A grid that is halved around its best point: exact enough, the same everywhere, and no local slope to get stuck on. The
    overhead is fitted only where a member was measured at several batch sizes on a device, which is what shows it.
    """
    terms, log_s = _terms(measured), np.log([m.seconds for m in measured])
    shortest = float(np.exp(log_s.min()))
    low = np.array([np.log(shortest * 1e-4), 0.0, 0.0])
    high = np.array([np.log(shortest), _WIDEST, _WIDEST])
    grid = [np.linspace(a, b, 13) for a, b in zip(low, high, strict=True)]
    with_overhead = _shows_overhead(measured)
    if not with_overhead:
        grid[0] = np.array([-np.inf])
    best, least = np.zeros(3), np.inf
    step = (high - low) / 12
    for _ in range(14):
        for overhead in grid[0]:
            for compute in grid[1]:
                base = np.exp(overhead) * terms[:, 0] + np.exp(compute) * terms[:, 1]
                for memory in grid[2]:
                    error = float(np.mean(np.abs(np.log(base + np.exp(memory) * terms[:, 2]) - log_s)))
                    if error < least - 1e-12:
                        best, least = np.array([overhead, compute, memory]), error
        step = step / 2
        grid = [
            np.unique(np.clip(best[i] + step[i] * np.arange(-2, 3), low[i], high[i]))
            if np.isfinite(best[i])
            else grid[i]
            for i in range(3)
        ]
    return np.exp(best)


def _shows_overhead(measured: Sequence[Measured]) -> bool:
    sizes: dict[tuple[str, str], set[float]] = defaultdict(set)
    for m in measured:
        sizes[m.member, m.peak.device].add(m.batch_size)
    return any(len(s) > 1 for s in sizes.values())


def _member_factors(measured: Sequence[Measured], factors: FloatArray) -> dict[str, float]:
    """Member -> geometric mean of measured / predicted; every device counts once."""
    logs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for m, predicted in zip(measured, _terms(measured) @ factors, strict=True):
        logs[m.member][m.peak.device].append(float(np.log(m.seconds / predicted)))
    return {
        member: float(np.exp(np.mean([np.mean(values) for values in devices.values()])))
        for member, devices in logs.items()
    }


def _log_errors(measured: Sequence[Measured], device: str, anchored: bool) -> FloatArray:
    """log(predicted / measured) of what was measured on `device`, from all other devices."""
    others = [m for m in measured if m.peak.device != device]
    own = [m for m in measured if m.peak.device == device]
    if not others:
        return np.zeros(0)
    factors = _fitted(others)
    anchors = _member_factors(others, factors)
    if anchored:
        own = [m for m in own if m.member in anchors]
    if not own:
        return np.zeros(0)
    predicted = _terms(own) @ factors
    if anchored:
        predicted = predicted * np.array([anchors[m.member] for m in own])
    return np.asarray(np.log(predicted) - np.log([m.seconds for m in own]))


def _factor(log_errors: FloatArray) -> float:
    """The conformal quantile: of n errors the ceil(0.9 (n + 1))-th smallest, or the largest where n is too small."""
    rank = int(np.ceil(COVERED * (len(log_errors) + 1)))
    return float(np.exp(np.sort(np.abs(log_errors))[min(rank, len(log_errors)) - 1]))


def _check(measured: Sequence[Measured]) -> None:
    """`InvalidInput` for figures that no measurement can have."""
    problems = [
        Problem(f"measurement of {m.member} on {m.peak.device}", f"{what} must be > 0", f"{value:g}")
        for m in measured
        for what, value in (
            ("seconds", m.seconds),
            ("batch size", m.batch_size),
            ("FLOPs per item", m.work.flops_per_item),
            ("peak FLOP/s", m.peak.flops_per_s),
            ("bandwidth", m.peak.bytes_per_s),
        )
        if not (np.isfinite(value) and value > 0)
    ]
    if problems:
        raise InvalidInput(problems[:20])
