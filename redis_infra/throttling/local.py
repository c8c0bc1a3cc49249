"""Logs that this process keeps itself: where there is no Redis, or nothing that its host's processes share.

The same algorithm as the script's, and the same reply. Bounded: who fills the memory with made-up
identities makes limits stricter for newcomers, himself included, and flushes nobody's history.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from redis_infra.throttling import sliding_log
from redis_infra.throttling.host import monotonic_ms, wall_ms
from redis_infra.throttling.sliding_log import Log, Terms

__all__ = ["Name", "ProcessStore", "decide"]

MOST_LOGS: Final = 10_000
"""Identities with a log of their own."""
SHARED_LOGS: Final = 1024
"""Logs of a limit that are shared by those who come when there is no more room."""


class Name(NamedTuple):
    """What tells one log from others."""

    label: str
    """The limit: policy and window."""
    identity: str
    """32 hexadecimal digits."""

    @property
    def shared(self) -> Name:
        """The log that stands in for this one when there is no more room: one of a bounded number."""
        return Name(self.label, f"shared:{int(self.identity, 16) % SHARED_LOGS}")


def decide(
    logs: Sequence[Log], terms: Sequence[Terms], now: int, cost: int, offset: int = 0
) -> tuple[list[int], bool]:
    """Return what ``hit.lua`` replies for these logs, and whether it charged them (they are changed then).

    ``logs`` are live ones; ``offset`` is what makes the time since the epoch of ``now``.
    """
    weighed = [sliding_log.weigh(log, now, each, cost) for log, each in zip(logs, terms, strict=True)]
    allowed = all(each.fits for each in weighed)
    charges = allowed and cost > 0
    reply = [int(allowed), now]
    for log, each, found in zip(logs, terms, weighed, strict=True):
        remaining, reset = max(0, each.limit - found.used), found.reset
        if charges:
            stamp = sliding_log.charge(log, sliding_log.stamp_of(now, each, offset), cost)
            remaining -= cost
            reset = reset or stamp - now + each.window
        reply += (remaining, reset, found.retry)
    return reply, charges


class ProcessStore:
    """Logs in memory. Thread-safe; a forked child goes on with a copy of its own."""

    def __init__(
        self,
        *,
        most: int = MOST_LOGS,
        monotonic_ms: Callable[[], int] = monotonic_ms,
        wall_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._most = most
        self._now = monotonic_ms
        self._wall = wall_ms
        self._logs: dict[Name, tuple[Log, int]] = {}
        self._swept_at = 0
        self._lock = threading.Lock()

    def hit(self, names: Sequence[Name], terms: Sequence[Terms], cost: int) -> list[int]:
        """Charge ``cost`` to all logs, or to none if it does not fit into one; return the script's reply."""
        with self._lock:
            now = self._now()
            names = [self._placed(name, now) for name in names]
            logs = [
                sliding_log.live(self._logs.get(name, _NONE)[0], now, each.window)
                for name, each in zip(names, terms, strict=True)
            ]
            reply, charged = decide(logs, terms, now, cost, self._wall() - now)
            if charged:
                for name, log, each in zip(names, logs, terms, strict=True):
                    self._logs[name] = (log, log[-1][0] + each.window)
            return reply

    def refund(self, names: Sequence[Name], terms: Sequence[Terms], cost: int, charged: int) -> None:
        """Take back what was charged at ``charged``, the reply's second number."""
        with self._lock:
            now = self._now()
            for name, each in zip(names, terms, strict=True):
                place = self._placed(name, now)
                log, until = self._logs.get(place, _NONE)
                log = sliding_log.live(log, now, each.window)
                sliding_log.refund(log, sliding_log.stamp_of(charged, each, self._wall() - now), cost)
                if log:
                    self._logs[place] = (log, until)
                else:
                    self._logs.pop(place, None)

    def forget(self, names: Iterable[Name]) -> int:
        """Drop these logs; return how many there were."""
        with self._lock:
            return sum(self._logs.pop(name, None) is not None for name in names)

    def forget_where(self, matches: Callable[[Name], object]) -> int:
        """Drop the logs that match; return how many there were."""
        with self._lock:
            names = [name for name in self._logs if matches(name)]
            for name in names:
                del self._logs[name]
            return len(names)

    def used(self) -> list[tuple[Name, Log]]:
        """Every log that may still count, for people to look at."""
        with self._lock:
            now = self._now()
            return [(name, log) for name, (log, until) in self._logs.items() if until > now]

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._logs)

    def _placed(self, name: Name, now: int) -> Name:
        """Return where this log is kept: a newcomer shares one when there is no more room."""
        if name in self._logs or len(self._logs) < self._most:
            return name
        if now - self._swept_at > 1000:  # at most once a second: it looks at all of them
            self._swept_at = now
            self._logs = {each: log for each, log in self._logs.items() if log[1] > now}
        return name if len(self._logs) < self._most else name.shared


_NONE: Final[tuple[Log, int]] = ([], 0)
