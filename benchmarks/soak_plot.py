"""The picture of a soak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.soak_watch import KINDS, Sample

MIB = 2**20


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Memory since the start by kind of process; open files; tasks and ledger; over minutes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    minutes = [s.at_s / 60 for s in samples]
    figure, (memory, files, rest) = pyplot.subplots(3, 1, figsize=(8, 9), sharex=True, layout="constrained")
    for kind in KINDS:
        memory.plot(minutes, [(s.rss[kind] - samples[0].rss[kind]) / MIB for s in samples], label=kind)
        files.plot(minutes, [s.files[kind] for s in samples], label=kind)
    memory.axvline(minutes[-1] / 2, color="grey", linestyle=":")
    memory.set_ylabel("memory since the start, MiB")
    memory.legend(frameon=False, ncols=len(KINDS))
    files.set_ylabel("open files")
    rest.plot(minutes, [s.tasks for s in samples], label="tasks of the router")
    rest.plot(minutes, [s.ledger_bytes / MIB for s in samples], label="ledger, MiB")
    rest.plot(minutes, [s.ledger_files for s in samples], label="ledger, files", drawstyle="steps-post")
    rest.legend(frameon=False)
    rest.set_xlabel("minutes")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
