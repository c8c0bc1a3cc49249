"""The gate: how many loaders a process runs at once while its cache is cold, so that the database survives.

In an outage, and for a while after it, what was in Redis is nowhere, and every request would go to the
database at the same moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from redis_infra.conf import get_settings

if TYPE_CHECKING:
    from redis_infra.cache.engine import Engine

__all__ = ["Gate", "gate"]

AFTERWARDS: Final = 30.0
"""Seconds for which the bound holds after a loader last ran in an outage."""
PATIENCE: Final = 2.0
"""Seconds for which a loader waits to be let in. Then it runs all the same: late beats never."""
LOOK: Final = 0.005


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
