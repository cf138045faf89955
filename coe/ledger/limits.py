"""How large a file of a ledger becomes, how long files are kept, and how much may wait while the disk takes nothing."""

from __future__ import annotations

from pydantic import ConfigDict

from coe.types import Noun, Positive, PositiveCount


class LedgerLimits(Noun):
    """The part `ledger` of the deployment's arguments. The defaults suit about 1,000 queries per second.

    At that rate a router writes some 160 KB/s: a file lasts for half an hour, a day takes 14 GB, or 5.4 GB compressed.
    """

    model_config = ConfigDict(strict=True)

    max_part_mib: PositiveCount = 256
    """A file that has grown to this is closed and the next one begun."""
    max_part_hours: Positive = 24.0
    """So is a file of this age, so that files of quiet services can be taken away day by day."""
    compress: bool = False
    """Write gzip (a member of its own for each group of records, so that a kill tears no more than the last group). Off by
    default, because plain lines survive a kill to the last whole one and every tool reads them as they grow."""
    keep_days: Positive | None = None
    """Files of this folder that were last written so long ago are deleted when a file is begun, each with a line in the log
    and in the ledger, so that reports say what is gone. None deletes nothing."""
    max_waiting: PositiveCount = 100_000
    """Records that wait in memory (some 400 bytes each) while nothing can be written; those beyond are counted and lost."""
