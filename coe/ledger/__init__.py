"""The ledger on disk: append-only JSON lines in files that follow each other, written in groups, readable after a crash.

`writing` is an open ledger of one router, `part` one file of it, `lines` what stands in a file,
`part_reading` what one file says, `reading` what one or several ledgers say and what is missing from them.
"""

from coe.ledger.lines import VERSION, encoded
from coe.ledger.reading import LedgerFile, LedgerReader, plans_in, read_ledger
from coe.ledger.writing import Ledger, LedgerState, write_ledger
from coe.types import LedgerLimits

__all__ = [
    "VERSION",
    "Ledger",
    "LedgerFile",
    "LedgerLimits",
    "LedgerReader",
    "LedgerState",
    "encoded",
    "plans_in",
    "read_ledger",
    "write_ledger",
]
