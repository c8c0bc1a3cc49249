"""A clock that moves when a test says so.

For whatever takes a ``Clock``: breakers, limiters, caches in memory. It does not
patch the ``time`` module, so code that reads the time by itself does not see it.
Knows nothing of Redis or Django.
"""

from __future__ import annotations

import threading

__all__ = ["FakeClock"]


class FakeClock:
    """Stand still until :meth:`advance`; both readings are in seconds.

    ``monotonic`` and ``time`` are where the two readings start. They differ, so
    that code which mixes them up is found out. Safe from any thread and loop.
    """

    def __init__(self, *, monotonic: float = 1_000.0, time: float = 1_700_000_000.0) -> None:
        self._lock = threading.Lock()
        self._monotonic = monotonic
        self._time = time

    def monotonic(self) -> float:
        """Return the reading that never goes back."""
        return self._monotonic

    def time(self) -> float:
        """Return the seconds since 1970 that the wall clock shows."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks.

        Raises:
            ValueError: ``seconds`` is negative; time does not go back (see :meth:`jump`).
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds!r})")
        with self._lock:
            self._monotonic += seconds
            self._time += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back if negative, as NTP or an administrator does.

        The monotonic reading stays.
        """
        with self._lock:
            self._time += seconds

    def __repr__(self) -> str:
        return f"FakeClock(monotonic={self._monotonic!r}, time={self._time!r})"
