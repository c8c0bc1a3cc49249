"""Turns: where a computation takes longer than anybody waits for another, all who wait would begin at once.

One of them does, the others look whether its value, or the first one's, is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from typing import Final

from redis_infra.cache.lease import WAIT

__all__ = ["Turns", "turns"]

TURN: Final = 0.1
"""Seconds between two looks of somebody who waits for his turn."""


class Turns:
    """Who computes what somebody else is computing still: one at a time for each entry. Thread-safe.

    Without a lock, as who is closed by the garbage collector leaves in the middle of anything.
    """

    def __init__(self) -> None:
        self._taken: dict[str, object] = {}
        self._pid = os.getpid()

    def take(self, names: Collection[str], owner: object) -> bool:
        """Take the turn for all of these entries, if nobody has it for one of them."""
        if self._pid != os.getpid():
            self._pid, self._taken = os.getpid(), {}
        # One step of a dictionary each: those who wait for one computation give up at the same moment.
        if all(self._taken.setdefault(name, owner) is owner for name in names):
            return True
        self.leave(owner)
        return False

    def leave(self, owner: object) -> None:
        """Give back what is one's own."""
        for name in [name for name, each in list(self._taken.items()) if each is owner]:
            self._taken.pop(name, None)

    def waits(self, names: Collection[str], owner: object) -> Iterator[float]:
        """Yield pauses until it is one's turn, which is then taken; after ten seconds it is so anyway."""
        ends = time.monotonic() + WAIT
        while not self.take(names, owner) and time.monotonic() < ends:
            yield TURN


turns = Turns()
"""Of this process."""
