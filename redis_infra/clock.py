"""Time, as something that is handed in.

Whatever waits, expires or backs off takes a ``Clock``, so that tests move time instead of spending it.
Knows nothing of Redis, Django or sleeping.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

__all__ = ["SYSTEM_CLOCK", "Clock"]


class Clock(Protocol):
    """Two readings of time, both in seconds; reading one has no effect and is safe from any thread."""

    def monotonic(self) -> float:
        """Return a reading that never goes back; only differences mean something, and only on this host."""
        ...

    def time(self) -> float:
        """Return seconds since 1970 (UTC). It may jump; use it for what leaves the process."""
        ...


class _SystemClock:
    """The operating system's clocks."""

    __slots__ = ()

    # Bound here and not looked up per call: half the cost, and a site's tests that freeze `time.time`
    # do not freeze our deadlines with it.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def __repr__(self) -> str:
        return "SYSTEM_CLOCK"


SYSTEM_CLOCK: Final[Clock] = _SystemClock()
