"""Counters, and observers of what changes: how the rest of the site learns of an outage.

Knows nothing of Redis or Django. Engines count in plain integers, which costs
some tens of nanoseconds and no lock, and report each *change* (never an
operation) to the observers. Logging is one observer, Django's signals another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypeAlias

from redis_infra.clock import SYSTEM_CLOCK, Clock

__all__ = [
    "ClearObserver",
    "Counters",
    "Observer",
    "ThrottleCounters",
    "Transition",
    "TransitionLog",
    "anotify_cleared",
    "notify",
    "notify_cleared",
    "notify_used",
    "observe_clears",
    "observe_use",
    "reset_log",
    "subscribe",
    "unsubscribe",
]

logger = logging.getLogger(__name__)

LOG_INTERVAL = 30.0
"""Seconds in which one server gets at most one pair of log lines, however often it flaps."""


@dataclass(slots=True)
class Counters:
    """What one database did for this process since it started.

    Plain integers without a lock: under threads a count in a million may be
    lost, which statistics can bear and the hot path cannot pay for.
    """

    hits: int = 0
    misses: int = 0
    fallback_ops: int = 0
    """Operations that were answered without Redis."""
    failures: int = 0
    """Calls to Redis that got no usable reply."""
    retries: int = 0
    unreadable: int = 0
    """Values that could not be decoded and counted as misses."""
    drained: int = 0
    """Keys that were unlinked because Redis had missed what happened to them."""

    def snapshot(self) -> dict[str, int]:
        return asdict(self)


@dataclass(slots=True)
class ThrottleCounters:
    """What one limiter said in this process since it started; see :class:`Counters` for how exact that is."""

    allowed: int = 0
    denied: int = 0
    local: int = 0
    """Decisions that were made without Redis."""

    def snapshot(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a circuit, as observers see it. No secret is in it."""

    server: str
    """Address without user and password."""
    circuit: str
    """What the circuit guards: ``reach``, ``access`` or ``writes``."""
    before: str
    after: str
    cause: str = ""
    lasted: float = 0.0
    """Seconds since the circuit opened (0 when it opens)."""
    served_locally: int = 0
    """Operations answered without Redis since it opened."""
    drained: int = 0
    """Keys unlinked before Redis was trusted again."""


Observer: TypeAlias = Callable[[Transition], None]
_observers: list[Observer] = []


def subscribe(observer: Observer) -> None:
    """Call ``observer`` at each transition from now on; twice is as once.

    Observers run in the thread that met the change, after the locks are gone.
    One that raises is logged and does no harm to the others.
    """
    if observer not in _observers:
        _observers.append(observer)


def unsubscribe(observer: Observer) -> None:
    """Stop calling ``observer``; unknown ones are ignored."""
    if observer in _observers:
        _observers.remove(observer)


def notify(transition: Transition) -> None:
    """Tell every observer, and let none of them break the caller."""
    observers: list[Observer] = [_log, *_observers]
    for observer in observers:
        try:
            observer(transition)
        except Exception:  # a site's own observer: its bug must not become an outage
            logger.exception("redis_infra.observer_failed")


_use_observers: list[Callable[[], None]] = []


def observe_use(observer: Callable[[], None]) -> None:
    """Call ``observer`` from now on whenever this process takes a Redis into use; twice is as once."""
    if observer not in _use_observers:
        _use_observers.append(observer)


def notify_used() -> None:
    """Tell every observer, and let none of them break the caller."""
    for observer in _use_observers:
        try:
            observer()
        except Exception:  # as above: what somebody else makes of it is no reason to do without the cache
            logger.exception("redis_infra.observer_failed")


class ClearObserver(Protocol):
    """Told of each cache of ours that somebody cleared, once it is empty."""

    def cleared(self, cache: object) -> None: ...
    async def acleared(self, cache: object) -> None: ...


_clear_observers: list[ClearObserver] = []


def observe_clears(observer: ClearObserver) -> None:
    """Tell ``observer`` of each ``cache.clear()`` from now on; twice is as once."""
    if observer not in _clear_observers:
        _clear_observers.append(observer)


def notify_cleared(cache: object) -> None:
    """Tell every observer, and let none of them break the caller."""
    for observer in _clear_observers:
        try:
            observer.cleared(cache)
        except Exception:  # the cache is empty: that somebody else could not follow is no error of clear()
            logger.exception("redis_infra.observer_failed")


async def anotify_cleared(cache: object) -> None:
    """:func:`notify_cleared` in the running event loop."""
    for observer in _clear_observers:
        try:
            await observer.acleared(cache)
        except Exception:
            logger.exception("redis_infra.observer_failed")


@dataclass(slots=True)
class TransitionLog:
    """Write one WARNING when a circuit opens and one INFO when it closes.

    A server that flaps gets at most one pair in ``interval`` seconds; what was
    left out is counted and said with the next line.
    """

    interval: float = LOG_INTERVAL
    clock: Clock = SYSTEM_CLOCK
    _opened_at: dict[tuple[str, str], float] = field(default_factory=dict)
    _announced: set[tuple[str, str]] = field(default_factory=set)
    _suppressed: dict[tuple[str, str], int] = field(default_factory=dict)

    def __call__(self, change: Transition) -> None:
        circuit = (change.server, change.circuit)
        if change.before == "closed" or (change.after == "open" and self._is_owed(circuit)):
            self._opened(circuit, change)
        elif change.after == "closed":
            self._closed(circuit, change)

    def _is_owed(self, circuit: tuple[str, str]) -> bool:
        """Whether an outage that began within the interval of another one goes on beyond it."""
        last = self._opened_at.get(circuit)
        return (
            circuit not in self._announced
            and last is not None
            and self.clock.monotonic() - last >= self.interval
        )

    def _opened(self, circuit: tuple[str, str], change: Transition) -> None:
        now = self.clock.monotonic()
        last = self._opened_at.get(circuit)
        if last is not None and now - last < self.interval:
            self._suppressed[circuit] = self._suppressed.get(circuit, 0) + 1
            return
        self._opened_at[circuit] = now
        self._announced.add(circuit)
        level = logging.ERROR if change.circuit == "access" else logging.WARNING
        logger.log(
            level,
            "redis_infra.circuit_opened server=%s circuit=%s cause=%s",
            change.server,
            change.circuit,
            change.cause,
            extra=self._extra(circuit, change),
        )

    def _closed(self, circuit: tuple[str, str], change: Transition) -> None:
        if circuit not in self._announced:
            return
        self._announced.discard(circuit)
        logger.info(
            "redis_infra.circuit_closed server=%s circuit=%s lasted=%.2fs served_locally=%d drained=%d",
            change.server,
            change.circuit,
            change.lasted,
            change.served_locally,
            change.drained,
            extra=self._extra(circuit, change),
        )

    def _extra(self, circuit: tuple[str, str], change: Transition) -> dict[str, object]:
        facts: dict[str, object] = {f"redis_infra.{name}": value for name, value in asdict(change).items()}
        facts["redis_infra.suppressed"] = self._suppressed.pop(circuit, 0)
        return facts

    def reset(self) -> None:
        """Forget which lines were written (tests)."""
        self._opened_at.clear()
        self._announced.clear()
        self._suppressed.clear()


_log = TransitionLog()


def reset_log() -> None:
    """Let the next outage log again at once, whatever was logged before (tests)."""
    _log.reset()
