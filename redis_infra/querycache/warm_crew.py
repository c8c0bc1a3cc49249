"""Who does the work of a warmer: the caller itself or several threads, and no faster than they may.

Knows nothing of caches: tasks in, calls of a function out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.db import connections

__all__ = ["Crew", "Pace"]

TICK: Final = 0.1
"""Seconds between two words to whoever watches."""


class Pace:
    """So many a second, evenly; ``rate`` None is as fast as can be. Thread-safe."""

    def __init__(self, rate: float | None, stop: threading.Event) -> None:
        self.rate = rate
        self._stop = stop
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, number: int) -> bool:
        """Wait until that many more may be done; False if it is to stop before."""
        if self.rate is None:
            return not self._stop.is_set()
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + number / self.rate
        return not self._stop.wait(begin - now)

    def give_back(self, number: int) -> None:
        """Take back what was waited for and not done."""
        if self.rate is not None:
            with self._lock:
                self._next -= number / self.rate


class Crew:
    """``jobs`` threads, or fewer, that do tasks, a few at a time; with one job, the caller does.

    ``size`` says how many to take, of how many that are left; ``done`` is called in each thread at its end.
    Where ``stop`` is set, what has not been begun is left. Threads are daemons: a task that hangs keeps no
    process alive.
    """

    def __init__(
        self,
        jobs: int,
        work: Callable[[list[Any]], None],
        size: Callable[[int], int],
        done: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self.jobs = jobs
        self._work = work
        self._size = size
        self._done = done
        self._stop = stop
        self._changed = threading.Condition()
        self._todo: deque[Any] = deque()
        self._busy = 0
        self._is_over = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def do(self, tasks: Sequence[Any], tick: Callable[[], None]) -> None:
        """Have them done, and return then; ``tick`` is called meanwhile. Raises what ``work`` raises."""
        if self.jobs == 1:
            self._todo.extend(tasks)
            while some := self._taken():
                self._work(some)
                tick()
            return
        with self._changed:
            self._todo.extend(tasks)
            self._changed.notify_all()
        self._call_threads(len(tasks))
        while not self._is_idle():
            tick()
        if self._error is not None:
            raise self._error

    def put_back(self, tasks: Sequence[Any]) -> None:
        """Have tasks done that ``work`` has left undone; it may say so while it works."""
        with self._changed:
            self._todo.extendleft(reversed(tasks))
            self._changed.notify_all()

    @property
    def is_busy(self) -> bool:
        """Whether a thread is at work now."""
        return self._busy > 0

    def end(self, grace: float) -> None:
        """Let the threads go; those that are at work get so many seconds."""
        with self._changed:
            self._is_over = True
            self._todo.clear()
            self._changed.notify_all()
        ends = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _call_threads(self, most: int) -> None:
        """Have as many as there are jobs, and no more than there are tasks for."""
        while len(self._threads) < min(self.jobs, most):
            number = len(self._threads) + 1
            thread = threading.Thread(target=self._serve, name=f"redis_infra-warm-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _is_idle(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._todo and not self._busy, TICK)

    def _taken(self) -> list[Any]:
        if self._stop.is_set():
            self._todo.clear()
        number = min(len(self._todo), self._size(len(self._todo)))
        return [self._todo.popleft() for _ in range(number)]

    def _serve(self) -> None:
        try:
            while some := self._wait_for_some():
                self._try(some)
        finally:
            self._done()
            # A thread's connections are its own, and nobody else would close them.
            connections.close_all()

    def _wait_for_some(self) -> list[Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._todo or self._is_over)
            some = self._taken()
            self._busy += bool(some)
            # Empty when stopped: whoever waits for the end is told, and this thread has nothing left to do.
            self._changed.notify_all()
            return some

    def _try(self, some: list[Any]) -> None:
        try:
            self._work(some)
        except BaseException as error:  # is raised where do() was called, whatever it is
            self._error = self._error or error
            self._stop.set()
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
