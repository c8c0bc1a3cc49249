"""Who asks whether Redis is back: a thread that exists only while something is wrong.

Knows nothing of Redis. ``heal`` does what is due and says when to come again.
Threads die in a fork and sleep in a uWSGI worker without ``enable-threads``;
so that no process stays degraded for ever, requests look after the prober and
do its work themselves when it does not.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from redis_infra.clock import SYSTEM_CLOCK, Clock

__all__ = ["Prober"]

logger = logging.getLogger(__name__)

OVERDUE = 1.0
"""Seconds by which a round may be late before a request does it."""
INLINE_BUDGET = 0.1
"""Seconds that a request gives to healing, at most."""


class Prober:
    """Run ``heal`` in one lazy daemon thread until it says that nothing is left.

    ``heal(budget)`` gets the seconds that one wait of it may take (None: its
    own default) and returns the seconds until it wants to be called again, or
    None when all is well. Rounds never overlap. Thread-safe; after a fork the
    child starts its own thread at its first :meth:`look_after`.
    """

    def __init__(
        self, heal: Callable[[float | None], float | None], name: str, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._heal = heal
        self._name = name
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._round = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._due_at = 0.0

    after_fork = _reset

    @property
    def alive(self) -> bool:
        """Whether a thread of this very process is at work."""
        return self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def wake(self) -> None:
        """Make sure that a round begins soon."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self._due_at = self._clock.monotonic()
            self._wake.set()
            if self._thread is None or not self._thread.is_alive():
                self._start()

    def look_after(self, now: float, *, may_wait: bool = True) -> None:
        """Called by operations while something is wrong; one comparison until a round is overdue.

        ``now`` is the monotonic time. ``may_wait=False`` (event loops) heals in
        the caller's time only where no thread can be had at all: better a tenth
        of a second now and then than degraded for ever.
        """
        if now <= self._due_at:
            return
        is_overdue = may_wait and now > self._due_at + OVERDUE
        if not self.alive:
            self.wake()
            is_overdue = not self.alive
        if is_overdue:
            self.run_once(INLINE_BUDGET)

    def retire(self) -> None:
        """Let the thread end after its round, for good: nobody needs this server any more."""
        with self._lock:
            self._heal = _nothing_to_do
            self._wake.set()

    def run_once(self, budget: float | None = None) -> float | None:
        """Do one round here unless one is under way; return when the next is due."""
        if not self._round.acquire(blocking=False):
            return self._due_at - self._clock.monotonic()
        try:
            delay = self._heal(budget)
            if delay is not None:
                self._due_at = self._clock.monotonic() + delay
            return delay
        finally:
            self._round.release()

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=self._run, name=f"redis_infra-prober-{self._name}", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            # No more threads to be had, or the interpreter is ending: requests heal instead.
            self._thread = None
            logger.debug("redis_infra.prober_not_started", exc_info=True)

    def _run(self) -> None:
        wake = self._wake
        while True:
            wake.clear()
            try:
                delay = self.run_once()
            except Exception:  # a bug of ours: never let it end the only one who brings Redis back
                logger.exception("redis_infra.prober_failed")
                delay = 1.0
            if delay is not None:
                wake.wait(max(0.0, delay))
            elif self._finish(wake):
                return

    def _finish(self, wake: threading.Event) -> bool:
        with self._lock:
            if wake.is_set():
                return False
            self._thread = None
            return True


def _nothing_to_do(_budget: float | None) -> None:
    return None
