"""Leases: who computes a value for all processes, while the others wait for it.

A lease is a token in Redis for two seconds. A thread of its holder prolongs it for as long as the computation
runs, so that it ends two seconds at most after its holder died. Lazy, and one thread for all leases of a
process; where threads do not run (uWSGI without them) a lease ends after two seconds and somebody else may
compute as well, which costs a computation and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["LEASE", "WAIT", "Leases", "computing", "held", "is_computing", "is_computing_any", "pauses"]

logger = logging.getLogger(__name__)

LEASE: Final = 2000
"""Milliseconds after which somebody else computes if the holder of a lease is not heard of."""
WAIT: Final = 10.0
"""Seconds for which a caller waits for somebody else's computation before it computes by itself."""

RENEW_EVERY: Final = 0.6
"""Seconds; two renewals may be late or lost."""
IDLE: Final = 30.0
"""Seconds without a lease after which the thread ends."""
FIRST_LOOK: Final = 0.004
LONGEST_LOOK: Final = 0.025
"""Seconds between two looks at whether another process has finished: 25 ms of a computation of 200."""


class Leases:
    """What is held now. Thread-safe; a forked child holds nothing."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Reentrant: the garbage collector may close the computation of a cancelled task in here, which leaves
        # its lease.
        self._changed = threading.Condition(threading.RLock())
        self._held: dict[bytes, tuple[Callable[[], Any], float]] = {}
        self._left: list[Callable[[], Any]] = []
        self._thread: threading.Thread | None = None

    def hold(self, token: bytes, renew: Callable[[], Any]) -> None:
        """Call ``renew`` from time to time, until it returns nothing, raises, or the lease is dropped."""
        if self._pid != os.getpid():
            self._begin()
        with self._changed:
            self._held[token] = (renew, time.monotonic() + RENEW_EVERY)
            self._see_to_thread()

    def drop(self, token: bytes) -> None:
        """Prolong it no more."""
        # No lock: one step of a dictionary, and a renewal too many does no harm.
        self._held.pop(token, None)

    def leave(self, token: bytes, release: Callable[[], Any]) -> None:
        """Prolong it no more, and call ``release`` soon, in the thread: its holder was cancelled."""
        if self._pid != os.getpid():
            self._begin()
        with self._changed:
            self._held.pop(token, None)
            self._left.append(release)
            self._see_to_thread()
            self._changed.notify()

    def _see_to_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="redis_infra-leases", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._changed:
                now = time.monotonic()
                if self._held or self._left:
                    idle_since = now
                elif now - idle_since > IDLE:
                    self._thread = None
                    return
                if not self._left:
                    due = min([at for _, at in list(self._held.values())], default=now + RENEW_EVERY)
                    self._changed.wait(max(0.01, min(due - now, RENEW_EVERY)))
                left, self._left = self._left, []
            for release in left:
                self._tell(release)
            for token, (renew, at) in list(self._held.items()):
                if at > time.monotonic():
                    continue
                if not self._tell(renew):
                    self._held.pop(token, None)  # invalidated meanwhile, or taken over
                elif token in self._held:
                    self._held[token] = (renew, time.monotonic() + RENEW_EVERY)

    @staticmethod
    def _tell(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception:
            # ON_OUTAGE "raise", say. The lease ends by itself.
            logger.debug("redis_infra.lease_not_renewed", exc_info=True)
            return None


held = Leases()
"""The leases of this process."""


_computing: ContextVar[frozenset[str]] = ContextVar("redis_infra_computing", default=frozenset())


@contextmanager
def computing(*names: str) -> Iterator[None]:
    """Let code that runs within, in tasks and threads of asgiref too, know that these are being computed."""
    token = _computing.set(_computing.get() | frozenset(names))
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that is closed by somebody else ends in another context
            _computing.reset(token)


def is_computing(name: str) -> bool:
    """Whether the caller is part of a computation of this: waiting for its lease would never end."""
    return name in _computing.get()


def is_computing_any() -> bool:
    """Whether the caller is part of any computation."""
    return bool(_computing.get())


def pauses() -> Any:
    """Yield how long to wait before each look at whether somebody else has finished; ends after ``WAIT``."""
    ends, pause = time.monotonic() + WAIT, FIRST_LOOK
    while time.monotonic() < ends:
        yield pause
        pause = min(pause * 1.5, LONGEST_LOOK)
