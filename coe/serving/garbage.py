"""How often Python looks for garbage in the router's process."""

from __future__ import annotations

import gc

ALLOCATIONS = 20_000
"""More objects than a few hundred requests under way consist of."""


def look_for_garbage_seldom() -> None:
    """Look at the youngest objects after so many new ones; Python's 700 are a handful of requests.

    The objects of requests under way are alive, and each look goes over all of them: with 128 clients that took a tenth of the
    router's processor time. What waits to be found meanwhile is at most so many objects.
    """
    gc.set_threshold(ALLOCATIONS, *gc.get_threshold()[1:])
