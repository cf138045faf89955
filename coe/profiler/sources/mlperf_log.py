"""MLPerf LoadGen's ``mlperf_log_summary.txt``, one per run, as submissions publish it.

Lines used: Scenario, Result is, ``Samples per second`` (offline, of the whole system), ``50.00`` and ``99.00 percentile latency
(ns)`` (single stream). Model, device, number of devices and batch size do not stand in the file. A run that LoadGen calls
INVALID is refused; of multistream and server runs no service time can be told.
"""

from __future__ import annotations

import re
from pathlib import Path

from coe.errors import InvalidInput, Problem
from coe.prices.sources.table import text_of
from coe.profiler.sources.asked import Asked, Reading, Timed, member_name

_LINE = re.compile(r"^\s*(?P<key>[^:]+?)\s*:\s*(?P<value>.*?)\s*$")


def read(path: Path, asked: Asked, batch_size: int | None = None) -> Reading:
    """One timing: of one item (single stream), or of a batch of the size that the user states (offline)."""
    reading = Reading(asked.source_of("MLPerf LoadGen summary", path), asked.date(path))
    said = _lines(path)
    if asked.member is None:
        raise InvalidInput(Problem(str(path), "does not say which model it measured", remedy="give --member"))
    device = asked.device(None, str(path))
    if isinstance(device, Problem):
        raise InvalidInput(device)
    if said.get("Result is") != "VALID":
        rule = "must be a run that LoadGen calls VALID"
        raise InvalidInput(Problem(f"{path}: Result is", rule, f"'{said.get('Result is', '')}'"))
    scenario = said.get("Scenario", "").replace(" ", "").lower()
    if scenario not in ("offline", "singlestream"):
        rule = "must be Offline or SingleStream; others have queues in their figures"
        raise InvalidInput(Problem(f"{path}: Scenario", rule, f"'{said.get('Scenario', '')}'"))
    if device is None:
        return reading
    member = member_name(asked.member)
    if scenario == "singlestream":
        p50, p99 = (_figure(path, said, f"{q} percentile latency (ns)") / 1e9 for q in ("50.00", "99.00"))
        reading.timed.append(Timed(str(path), member, device.name, 1, p50, p99))
        return reading
    for what, given, option in (
        ("at which batch size", batch_size, "--batch-size, once per file"),
        ("on how many devices", asked.devices, "--devices"),
    ):
        if given is None:
            raise InvalidInput(Problem(str(path), f"does not say {what} it ran", remedy=f"give {option}"))
    rate = _figure(path, said, "Samples per second")
    size, devices = batch_size or 1, asked.devices or 1
    reading.timed.append(Timed(str(path), member, device.name, size, size * devices / rate))
    return reading


def _lines(path: Path) -> dict[str, str]:
    text = text_of(path)
    if "MLPerf Results Summary" not in text:
        rule = "is not a summary of MLPerf LoadGen"
        raise InvalidInput(Problem(str(path), rule, remedy="give the mlperf_log_summary.txt of a performance run"))
    found: dict[str, str] = {}
    for line in text.splitlines():
        if parts := _LINE.match(line):
            found.setdefault(parts["key"], parts["value"])
    return found


def _figure(path: Path, said: dict[str, str], key: str) -> float:
    try:
        value = float(said[key])
    except KeyError:
        raise InvalidInput(Problem(f"{path}: {key}", "is missing", remedy="is the file complete?")) from None
    except ValueError:
        raise InvalidInput(Problem(f"{path}: {key}", "must be a number", f"'{said[key]}'")) from None
    if not 0 < value < float("inf"):
        raise InvalidInput(Problem(f"{path}: {key}", "must be > 0", said[key]))
    return value
