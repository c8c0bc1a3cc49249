"""The gate: how many loaders a process runs at once while its cache is cold, so that the database survives.

In an outage, and for a while after it, what was in Redis is nowhere, and every request would go to the
database at the same moment.
"""

from __future__ import annotations

import threading
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
    """Let so many in at once. Thread-safe; a forked child may inherit a place or two that are taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self.inside = 0

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
        with self._lock:
            self.inside += 1
        try:
            yield
        finally:
            with self._lock:
                self.inside -= 1


gate = Gate()
"""Of this process."""
