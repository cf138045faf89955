"""Shadow audits of a ledger that need no order: of each answer and each audit its time is kept, and all are counted in the order
of time once the ledger has been read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from coe.records import Answer, Audit, Auditing
from coe.report.audits import Audited, AuditSums
from coe.types import MISSING_VOTE, Cascade, FloatArray


class AuditTimes:
    """When answers were given, before the last tier and by it, and what came of audits when: 8 and 17 bytes for each."""

    def __init__(self, cascade: Cascade) -> None:
        self._cascade = cascade
        self._last = len(cascade.tiers) - 1
        self._settings: list[Auditing] = []
        self._early_s, self._last_s = array("d"), array("d")
        self._ended_s, self._asked_s, self._outcomes = array("d"), array("d"), array("b")
        self._names: list[str] = []

    def add(self, record: Answer | Auditing | Audit, *, is_recent: bool = True) -> None:
        """Take down a record. is_recent: of settings, those that were made before count as well."""
        if isinstance(record, Auditing):
            self._settings.append(record)
        elif isinstance(record, Answer):
            if self._last and record.status == "ok" and record.answer != MISSING_VOTE:
                (self._early_s if record.tier < self._last else self._last_s).append(record.done_s)
        elif is_recent:
            if record.outcome not in self._names:
                self._names.append(record.outcome)
            self._ended_s.append(record.done_s)
            self._asked_s.append(record.asked_s)
            self._outcomes.append(self._names.index(record.outcome))

    def figures(self, usd: float) -> Audited | None:
        """What is shown; None where no audits are made. usd: what they took."""
        if not self._settings:
            return None
        early_s, last_s = np.asarray(self._early_s), np.asarray(self._last_s)
        early_s.sort()
        last_s.sort()
        sums, seen_early, seen = AuditSums(self._cascade), 0, 0
        for event, early, last in self._events(early_s, last_s):
            sums.add_answers(early + last - seen, early - seen_early)
            sums.add(event)
            seen_early, seen = early, early + last
        sums.add_answers(len(early_s) + len(last_s) - seen, len(early_s) - seen_early)
        return sums.figures(usd)

    def _events(self, early_s: FloatArray, last_s: FloatArray) -> Iterator[tuple[Auditing | Audit, int, int]]:
        """Settings and audits in the order of time, and how many answers of both kinds there were before each.

        Within an instant a router writes settings first, then answers, then audits.
        """
        settings = sorted(self._settings, key=lambda s: s.at_s)
        ended_s, asked_s, outcomes = (np.asarray(c) for c in (self._ended_s, self._asked_s, self._outcomes))
        order = np.argsort(ended_s, kind="stable")
        early, last = (np.searchsorted(times_s, ended_s[order], side="right") for times_s in (early_s, last_s))
        for number, at in enumerate(order.tolist()):
            done_s = float(ended_s[at])
            while settings and settings[0].at_s <= done_s:
                yield _settled(settings.pop(0), early_s, last_s)
            audit = Audit("", 0, 0, 0, float(asked_s[at]), done_s, self._names[outcomes[at]])
            yield audit, int(early[number]), int(last[number])
        for setting in settings:
            yield _settled(setting, early_s, last_s)


def _settled(settings: Auditing, early_s: FloatArray, last_s: FloatArray) -> tuple[Auditing, int, int]:
    """Settings, and how many answers there were before them."""
    return settings, int(np.searchsorted(early_s, settings.at_s)), int(np.searchsorted(last_s, settings.at_s))
