"""When queries arrive: streams drawn from a generator of their own, or a trace replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coe.errors import InvalidInput, Problem
from coe.types import FloatArray

DAY_S = 86_400.0


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A generator for one purpose: what one part of a simulation draws does not shift what another draws."""
    return np.random.default_rng(np.random.SeedSequence([seed, *purpose.encode()]))


def poisson(rng: np.random.Generator, rate_per_s: float, duration_s: float) -> FloatArray:
    """Memoryless arrivals, in seconds from 0."""
    return gamma(rng, rate_per_s, duration_s, 1.0)


def gamma(rng: np.random.Generator, rate_per_s: float, duration_s: float, burstiness: float) -> FloatArray:
    """Independent gamma gaps whose coefficient of variation is `burstiness`: 1 is Poisson, above 1 comes in bursts."""
    _check(rate_per_s, duration_s)
    if burstiness <= 0:
        raise InvalidInput(Problem("burstiness", "must be above 0", f"{burstiness:g}"))
    shape = 1 / burstiness**2
    arrivals = np.empty(0)
    end = 0.0
    while end < duration_s:
        count = max(16, math.ceil(1.1 * rate_per_s * (duration_s - end)))
        more = end + np.cumsum(rng.gamma(shape, 1 / (shape * rate_per_s), count))
        arrivals = np.concatenate([arrivals, more])
        end = float(arrivals[-1])
    return arrivals[arrivals < duration_s]


def on_off(rng: np.random.Generator, rate_per_s: float, duration_s: float, on_s: float, off_s: float) -> FloatArray:
    """Poisson arrivals in periods of mean length `on_s` between silent ones of mean `off_s`, both exponential; `rate_per_s` on
    average over both."""
    _check(rate_per_s, duration_s)
    if on_s <= 0 or off_s < 0:
        raise InvalidInput(Problem("on/off", "on must be above 0 s and off not below", f"{on_s:g} s and {off_s:g} s"))
    busy = rate_per_s * (on_s + off_s) / on_s
    parts, now = [np.empty(0)], 0.0
    while now < duration_s:
        length = float(rng.exponential(on_s))
        parts.append(now + poisson(rng, busy, length))
        now += length + float(rng.exponential(off_s)) if off_s else length
    arrivals = np.concatenate(parts)
    return arrivals[arrivals < duration_s]


def varying(
    rng: np.random.Generator, rate_at: Callable[[FloatArray], FloatArray], most_per_s: float, duration_s: float
) -> FloatArray:
    """Poisson arrivals at a rate that changes over time, by thinning; `most_per_s` bounds `rate_at`."""
    candidates = poisson(rng, most_per_s, duration_s)
    rates = rate_at(candidates)
    if np.any(rates > most_per_s * (1 + 1e-9)) or np.any(rates < 0):
        raise InvalidInput(Problem("rate", f"must lie between 0 and {most_per_s:g} per second", f"{rates.max():g}"))
    kept: FloatArray = candidates[rng.random(len(candidates)) * most_per_s < rates]
    return kept


def diurnal(
    rng: np.random.Generator, rate_per_s: float, duration_s: float, swing: float = 0.5, period_s: float = DAY_S
) -> FloatArray:
    """A sine over the day around `rate_per_s`, up and down by `swing` of it."""
    _check(rate_per_s, duration_s)
    if not 0 <= swing <= 1:
        raise InvalidInput(Problem("swing", "must lie between 0 and 1", f"{swing:g}"))
    return varying(
        rng,
        lambda t: rate_per_s * (1 + swing * np.sin(2 * np.pi * t / period_s)),
        rate_per_s * (1 + swing),
        duration_s,
    )


def replay(times_s: FloatArray, scale: float = 1.0) -> FloatArray:
    """A trace from its first request on, `scale` times as fast. `InvalidInput` where it is empty or goes back in time."""
    if len(times_s) == 0:
        raise InvalidInput(Problem("trace", "holds no request"))
    if not np.all(np.isfinite(times_s)):
        raise InvalidInput(Problem("trace", "holds a time that is no number"))
    back = np.flatnonzero(np.diff(times_s) < 0)
    if len(back):
        row = int(back[0]) + 1
        found = f"{times_s[row]:g} s after {times_s[row - 1]:g} s"
        raise InvalidInput(Problem(f"trace: request {row + 1}", "goes back in time", found, "sort the trace"))
    if scale <= 0:
        raise InvalidInput(Problem("scale", "must be above 0", f"{scale:g}"))
    replayed: FloatArray = (times_s - times_s[0]) / scale
    return replayed


@dataclass(frozen=True)
class TraceSummary:
    """How a trace loads a service. `peak_per_s`: mean rate of its busiest stretch of `peak_s`; `burstiness`: spread of the gaps
    over their mean, 1 for Poisson."""

    requests: int
    duration_s: float
    mean_per_s: float
    peak_per_s: float
    peak_s: float
    burstiness: float

    def __str__(self) -> str:
        return (
            f"{self.requests} requests in {self.duration_s:.0f} s, {self.mean_per_s:.3g}/s on average, {self.peak_per_s:.3g}/s "
            f"in the busiest {self.peak_s:g} s; the gaps vary {self.burstiness:.2g} times their mean (Poisson: 1)"
        )


def summary(times_s: FloatArray, peak_s: float) -> TraceSummary:
    """Of rising arrival times from 0; a trace shorter than `peak_s` has its mean rate as its peak.

    Raises `InvalidInput` for fewer than two requests, or all at one moment.
    """
    if len(times_s) < 2 or times_s[-1] <= 0:
        raise InvalidInput(Problem("trace", "must hold two requests at different moments", f"{len(times_s)} requests"))
    duration_s = float(times_s[-1])
    window_s = min(peak_s, duration_s)
    ends = np.searchsorted(times_s, times_s + window_s, side="right")
    gaps = np.diff(times_s)
    return TraceSummary(
        len(times_s),
        duration_s,
        len(times_s) / duration_s,
        float((ends - np.arange(len(times_s))).max() / window_s),
        window_s,
        float(gaps.std() / gaps.mean()),
    )


def _check(rate_per_s: float, duration_s: float) -> None:
    for name, value in (("rate", rate_per_s), ("duration", duration_s)):
        if not 0 < value < math.inf:
            raise InvalidInput(Problem(name, "must be above 0", f"{value:g}"))
