"""One computation a key and process at a time: whoever comes while it is under way waits for its outcome.

A value that everybody misses at the same moment is computed once, by a thread or by a task, and threads and
tasks wait for each other's. What would wait for itself computes by itself instead: the worst that can happen
here is a computation too many.

Knows nothing of caches. Other processes compute for themselves.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

__all__ = ["SingleFlight"]

T = TypeVar("T")

LOOK_AT_LOOP: Final = 1.0
"""Seconds between two looks of a task at the loop of the one that computes: it may be closed."""
PATIENCE: Final = 2.0
"""Seconds for which a thread waits for a task before it computes by itself."""


class SingleFlight:
    """Compute once for all who ask for a key at the same time, in threads and in tasks.

    Waiters get the leader's value itself, not a copy, or its exception. Where waiting could never end, the
    caller computes by itself: a leader that asks for its own key again (also in a task of its own, or through
    ``sync_to_async`` or ``async_to_sync``), leaders that wait for each other, a synchronous caller in the
    thread of an event loop whose task leads. Nobody can tell whether a leading task needs the thread that
    would wait for it (``sync_to_async`` may run everything in one), so a thread waits for a task for
    ``patience`` seconds at most. Without a ``bound`` in seconds on all waiting, a leader that starts threads
    of its own and joins them while they ask for its key waits for ever.

    Thread-safe, and shared by event loops. A forked child begins without flights.
    """

    def __init__(self, *, patience: float = PATIENCE, bound: float | None = None) -> None:
        self._patience = patience if bound is None else min(patience, bound)
        self._bound = bound
        self.landed = 0
        """How many computations have ended so far; who remembers it can tell that none has since."""
        self._flights: dict[Hashable, _Flight] = {}
        self.after_fork()

    def __len__(self) -> int:
        """How many computations are under way."""
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        """Whether somebody computes this key now."""
        return key in self._flights

    def do(self, key: Hashable, compute: Callable[[], T], alone: Callable[[bool], T] | None = None) -> T:
        """Return ``compute()``, or what it gives somebody who is computing this key now.

        Who must not wait, or not any longer, does ``alone`` instead, if there is such a thing; it is told
        whether he has waited.
        Raises what ``compute`` raises, whoever called it. A leader that is interrupted (cancelled, or by
        ``SystemExit`` and its kind) fails alone: the next one leads.
        """
        while True:
            place = self._board(key, _ThreadWait)
            if place is None:
                return alone(False) if alone else compute()
            if isinstance(place, _Flight):
                with _Lead(self, key, place) as lead:
                    value = lead.value = compute()
                return value
            try:
                outcome = place.outcome(self._patience, self._bound)
            finally:
                self._leave(place)
            if outcome is None:
                return alone(True) if alone else compute()
            if outcome.is_final:
                return outcome.get()  # type: ignore[no-any-return]

    async def ado(
        self,
        key: Hashable,
        compute: Callable[[], Awaitable[T]],
        alone: Callable[[bool], Awaitable[T]] | None = None,
    ) -> T:
        """:meth:`do` for a coroutine function. Cancelling a waiter does nothing to the leader."""
        while True:
            place = self._board(key, _TaskWait)
            if place is None:
                return await (alone(False) if alone else compute())
            if isinstance(place, _Flight):
                with _Lead(self, key, place) as lead:
                    value = lead.value = await compute()
                return value
            try:
                outcome = await place.outcome(self._bound)
            finally:
                self._leave(place)
            if outcome is None:
                return await (alone(True) if alone else compute())
            if outcome.is_final:
                return outcome.get()  # type: ignore[no-any-return]

    def forget(self, key: Hashable) -> None:
        """Let whoever comes from now on compute anew: what is being computed is known to be out of date.

        Those who wait already get it all the same.
        """
        with self._lock:
            self._flights.pop(key, None)

    def after_fork(self) -> None:
        """In a forked child: nobody leads, and nobody waits here."""
        self._pid = os.getpid()
        # Reentrant: the garbage collector may close a coroutine in here, and so end the flight it led.
        self._lock = threading.RLock()
        for flight in self._flights.values():
            flight.waiters.clear()
        self._flights = {}

    def _board(self, key: Hashable, wait_type: type[W]) -> _Flight | W | None:
        """Return the flight that the caller leads, or how it waits, or None where it must do neither."""
        if self._pid != os.getpid():
            self.after_fork()
        with self._lock:
            flight = self._flights.get(key)
            if flight is None or (flight.loop is not None and flight.loop.is_closed()):
                flight = self._flights[key] = _Flight(is_async=wait_type is _TaskWait)
                return flight
            held_up = self._held_up(is_blocking=wait_type is _ThreadWait)
            if flight.depends_on(held_up):
                return None
            wait = wait_type(flight, held_up)
            flight.waiters.append(wait)
            for each in held_up:
                each.waits_for.append(flight)
            if flight.has_landed:  # in the lines above, by the garbage collector
                wait.deliver(_HANDED_OVER)
            return wait

    def _held_up(self, *, is_blocking: bool) -> list[_Flight]:
        """Return the flights that cannot land while the caller waits."""
        mine = [flight for flight in _led_here.get() if not flight.has_landed]
        # A waiting thread holds up all that was begun in it, a waiting task what lies below it on the stack.
        here = threading.get_ident()
        for flight in list(self._flights.values()):
            if flight.thread == here and (is_blocking or not flight.is_async) and flight not in mine:
                mine.append(flight)
        return mine

    def _leave(self, wait: _Wait) -> None:
        with self._lock:
            for flight in wait.held_up:
                flight.waits_for.remove(wait.flight)
            if wait in wait.flight.waiters:
                wait.flight.waiters.remove(wait)

    def _land(self, key: Hashable, flight: _Flight, outcome: _Outcome) -> None:
        if self._pid != os.getpid():
            self.after_fork()
        with self._lock:
            flight.has_landed = True
            self.landed += 1
            waiters, flight.waiters = flight.waiters, []
            if self._flights.get(key) is flight:
                del self._flights[key]
        for wait in waiters:
            wait.deliver(outcome)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the leader came to. Not final if it was interrupted, and somebody else has to lead."""

    value: Any = None
    error: Exception | None = None
    is_final: bool = True

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


_HANDED_OVER: Final = _Outcome(is_final=False)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # a coroutine that is driven by hand
        return None


class _Flight:
    """One computation under way. It never holds the outcome, which goes to those who wait for it."""

    __slots__ = ("has_landed", "is_async", "loop", "thread", "waiters", "waits_for")

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async
        self.loop = _running_loop() if is_async else None
        self.thread = threading.get_ident()
        self.has_landed = False
        self.waiters: list[_Wait] = []
        self.waits_for: list[_Flight] = []
        """Flights that have to land before this one can."""

    def depends_on(self, others: list[_Flight]) -> bool:
        """Whether it is one of these, or waits for one, also by way of others."""
        seen: set[_Flight] = set()
        ahead = [self]
        while ahead:
            flight = ahead.pop()
            if flight in others:
                return True
            if flight not in seen:
                seen.add(flight)
                ahead += flight.waits_for
        return False


_led_here: ContextVar[tuple[_Flight, ...]] = ContextVar("redis_infra_led_here", default=())
"""Flights that the running code is part of. Tasks inherit it, and so does what asgiref runs elsewhere."""


class _Lead:
    """The time in which one caller computes; however it ends, the flight lands."""

    __slots__ = ("_flight", "_group", "_key", "_token", "value")

    def __init__(self, group: SingleFlight, key: Hashable, flight: _Flight) -> None:
        self._group = group
        self._key = key
        self._flight = flight
        self.value: Any = None

    def __enter__(self) -> _Lead:
        self._token = _led_here.set((*_led_here.get(), self._flight))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            outcome = _Outcome(self.value)
        elif isinstance(error, Exception):
            outcome = _Outcome(error=error)
        else:
            outcome = _HANDED_OVER
        self._group._land(self._key, self._flight, outcome)
        with suppress(ValueError):  # a coroutine that is closed by somebody else ends in another context
            _led_here.reset(self._token)


class _Wait:
    """One caller that waits for a flight; meanwhile ``held_up`` cannot land."""

    __slots__ = ("flight", "held_up")

    def __init__(self, flight: _Flight, held_up: list[_Flight]) -> None:
        self.flight = flight
        self.held_up = held_up

    def deliver(self, outcome: _Outcome) -> None:
        raise NotImplementedError


class _ThreadWait(_Wait):
    __slots__ = ("_arrived", "_outcome")

    def __init__(self, flight: _Flight, held_up: list[_Flight]) -> None:
        super().__init__(flight, held_up)
        self._arrived = threading.Event()
        self._outcome: _Outcome | None = None

    def deliver(self, outcome: _Outcome) -> None:
        self._outcome = outcome
        self._arrived.set()

    def outcome(self, patience: float, bound: float | None) -> _Outcome | None:
        """Wait for it; None if a task took longer than ``patience`` seconds, or anybody than ``bound``."""
        self._arrived.wait(patience if self.flight.is_async else bound)
        return self._outcome


class _TaskWait(_Wait):
    __slots__ = ("_future", "_loop")

    def __init__(self, flight: _Flight, held_up: list[_Flight]) -> None:
        super().__init__(flight, held_up)
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[_Outcome] = self._loop.create_future()

    def deliver(self, outcome: _Outcome) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: _Outcome) -> None:
        if not self._future.done():  # cancelled
            self._future.set_result(outcome)

    async def outcome(self, bound: float | None) -> _Outcome | None:
        """Wait for it; None if it took longer than ``bound``, or if the loop of its leader is closed."""
        loop = self.flight.loop
        is_elsewhere = loop is not None and loop is not self._loop
        ends = math.inf if bound is None else self._loop.time() + bound
        while (is_elsewhere or bound is not None) and not self._future.done():
            left = ends - self._loop.time()
            if left <= 0 or (loop is not None and loop.is_closed()):
                return None
            await asyncio.wait({self._future}, timeout=min(left, LOOK_AT_LOOP) if is_elsewhere else left)
        return await self._future


W = TypeVar("W", _ThreadWait, _TaskWait)
