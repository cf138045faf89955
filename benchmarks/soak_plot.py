"""The picture of a soak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.soak_watch import KINDS, Sample, second_half

MIB = 2**20


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Memory since half-time by kind of process; open files; tasks and ledger; over minutes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    minutes = [s.at_s / 60 for s in samples]
    figure, (memory, files, tasks, ledger) = pyplot.subplots(4, 1, figsize=(8, 11), sharex=True, layout="constrained")
    half = second_half(samples)[0]
    for kind in KINDS:
        memory.plot(minutes, [(s.rss[kind] - half.rss[kind]) / MIB for s in samples], label=kind)
        files.plot(minutes, [s.files[kind] for s in samples], label=kind)
    memory.axvline(minutes[-1] / 2, color="grey", linestyle=":")
    grown = max(abs(s.rss[kind] - half.rss[kind]) for s in second_half(samples) for kind in KINDS) / MIB
    memory.set_ylim(-3 * grown - 1, 1.5 * grown + 1)
    memory.set_ylabel("memory since half-time, MiB")
    memory.legend(frameon=False, ncols=len(KINDS))
    files.set_ylabel("open files")
    tasks.plot(minutes, [s.tasks for s in samples])
    tasks.set_ylabel("tasks of the router")
    ledger.plot(minutes, [s.ledger_bytes / MIB for s in samples], label="MiB")
    ledger.plot(minutes, [s.ledger_files for s in samples], label="files", drawstyle="steps-post")
    ledger.set_ylabel("ledger")
    ledger.legend(frameon=False)
    ledger.set_xlabel("minutes")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
