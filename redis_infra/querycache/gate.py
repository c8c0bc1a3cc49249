"""The gate: how many loaders a process runs at once while its cache is cold, so that the database survives.

In an outage, and for a while after it, what was in Redis is nowhere, and every request would go to the
database at the same moment.

And turns: where a loader takes longer than anybody waits for another, all who wait would begin at that
moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from redis_infra.cache.lease import WAIT
from redis_infra.conf import get_settings

if TYPE_CHECKING:
    from redis_infra.cache.engine import Engine

__all__ = ["Gate", "Turns", "gate", "turns"]

AFTERWARDS: Final = 30.0
"""Seconds for which the bound holds after a loader last ran in an outage."""
PATIENCE: Final = 2.0
"""Seconds for which a loader waits to be let in. Then it runs all the same: late beats never."""
LOOK: Final = 0.005
TURN: Final = 0.1
"""Seconds between two looks of somebody who waits for his turn."""


class Gate:
    """Let so many in at once. Thread-safe; a forked child begins with nobody inside."""

    def __init__(self) -> None:
        self._until = 0.0
        # A set and no number behind a lock: who is closed by the garbage collector leaves in the middle of
        # anything, also of somebody's coming in.
        self._inside: set[object] = set()
        self._pid = os.getpid()

    @property
    def inside(self) -> int:
        """How many there are."""
        return len(self._inside)

    def is_narrow(self, engine: Engine) -> bool:
        """Whether the bound holds now."""
        now = time.monotonic()
        if engine.is_degraded:
            self._until = now + AFTERWARDS
        return now < self._until

    def waits(self, engine: Engine) -> Iterator[float]:
        """Yield pauses until there is room; at most for two seconds."""
        if not self.is_narrow(engine):
            return
        most, ends = get_settings().loaders, time.monotonic() + PATIENCE
        while self.inside >= most and time.monotonic() < ends:
            yield LOOK

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be one of those inside."""
        if self._pid != os.getpid():
            self._pid, self._inside = os.getpid(), set()
        place = object()
        self._inside.add(place)
        try:
            yield
        finally:
            self._inside.discard(place)


gate = Gate()
"""Of this process."""


class Turns:
    """Who computes what somebody else is computing still: one at a time for each entry. Thread-safe.

    Without a lock, as the gate: where two threads come at once both have a turn, one computation too many.
    """

    def __init__(self) -> None:
        self._taken: dict[str, object] = {}
        self._pid = os.getpid()

    def take(self, names: Collection[str], owner: object) -> bool:
        """Take the turn for all of these entries, if nobody has it for one of them."""
        if self._pid != os.getpid():
            self._pid, self._taken = os.getpid(), {}
        if any(name in self._taken for name in names):
            return False
        self._taken.update(dict.fromkeys(names, owner))
        return True

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
