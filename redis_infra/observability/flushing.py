"""How what each process counts comes to be summed in Redis: every ten seconds, and when it ends.

One thread a process, begun with the first cache that is used; nothing runs at import. What is sent is what
was added since the last time, with a number by which Redis tells that it has it already: a flush whose reply
was lost is sent again as it was. While Redis is away counts stay here, and are sent when it is back.

What happens to circuits is sent along, for ``cache_monitor``.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from django.core.signals import request_finished

from redis_infra.conf import AliasSettings, Settings, get_settings
from redis_infra.connection.scripts import Script
from redis_infra.instrumentation import Transition, subscribe
from redis_infra.observability.counts import (
    MOST_FUNCTIONS,
    Numbers,
    Subject,
    counted,
    difference,
    forget_denials,
    rest_of,
    write_field,
    write_numbers,
)
from redis_infra.resilience.failover import Effect, Kind

if TYPE_CHECKING:
    from redis_infra.connection.connections import Connections
    from redis_infra.connection.endpoint import Database
    from redis_infra.connection.scripts import Talk

__all__ = ["MINUTES", "MOST_EVENTS", "Names", "Sums", "begin", "end", "flush", "open_sums"]

logger = logging.getLogger(__name__)

FLUSH: Final = Script("redis_infra.observability", "flush")
EFFECT: Final = Effect(Kind.FILL, stores=True)
"""Nothing to unlink if it is lost; it may be sent twice."""

MINUTES: Final = 65
"""Buckets of a minute that are kept, for the last hour; those of an hour are kept for ``KEEP``."""
MOST_EVENTS: Final = 200
ROWS: Final = 50
"""Rows that are sent at once: below a millisecond of the server's time."""
NUMBER_KEPT: Final = 6 * 3600
"""Seconds for which Redis knows the number of a process' last flush."""
GIVEN_UP: Final = 5 * 3600
"""Seconds after which a flush that may have been counted is not sent again: Redis may not know any more."""
AT_EXIT: Final = 0.5
"""Seconds for which a process that ends waits for its own thread; the flush takes COMMAND_TIMEOUT at most."""
FIRST: Final = 0.2
"""Part of the interval after which a process flushes first, at the earliest, so that not all do at once."""


class Names:
    """Names of the keys: one hash tag, so that one script reaches them all."""

    def __init__(self, prefix: str) -> None:
        self._base = f"{prefix}:stats:{{stats}}"
        self.events = f"{self._base}:events"

    def number(self, process: str) -> str:
        return f"{self._base}:n:{process}"

    def minute(self, at: float) -> str:
        return f"{self._base}:m:{int(at // 60)}"

    def hour(self, at: float) -> str:
        return f"{self._base}:h:{int(at // 3600)}"


class Sums:
    """Where the counts of all processes are summed. Opens nothing by itself; thread-safe."""

    def __init__(self, options: Any, alias: AliasSettings, settings: Settings) -> None:
        from redis_infra.connection.lifecycle import open_database

        self.names = Names(settings.key_prefix)
        self.keep = settings.stats.keep
        self.database: Database = open_database(options, alias)
        self.label: str = options.label
        self._connections: Connections = self.database.connections(options)

    def ask(self, talk: Talk) -> Any:
        """Hold a conversation, whatever circuits say: a command finds out for itself. Raises."""
        return self._connections.converse(talk)

    def add(self, batch: Batch) -> bool:
        """Return whether the sums have it now; False where nobody knows."""
        keys, arguments = batch.keys, batch.arguments
        reply = self.database.failover.attempt(
            lambda _: self._connections.converse(FLUSH.talk(keys, *arguments)), b"", EFFECT
        )
        return reply is not None


def open_sums(settings: Settings | None = None) -> Sums | None:
    """Return the sums of the site; None where no Redis is configured and each process counts for itself.

    Raises:
        SettingsError: the settings are wrong.
    """
    # redis-py is imported with the first flush, not with the settings.
    from redis_infra.connection.lifecycle import running
    from redis_infra.connection.options import ConnectionOptions

    settings = settings if settings is not None else get_settings()
    alias = AliasSettings.for_capability("STATS", settings)
    options = ConnectionOptions.from_settings(alias)
    return None if options.scheme == "memory" else Sums(running(options), alias, settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is sent at once, and again as it is until Redis has it."""

    keys: tuple[str, ...]
    arguments: tuple[str | int, ...]
    made: float
    """Monotonic seconds."""


class Flusher:
    """Sends what this process adds to the sums.

    Thread-safe. A forked child counts from zero, under a number of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[Subject, Numbers] = {}
        self._events: deque[str] = deque(maxlen=MOST_EVENTS)
        self._unsure: Batch | None = None
        self._process = os.urandom(8).hex()
        self._number = 0

    def note(self, event: str) -> None:
        """Send this along with the next flush, for all to see."""
        self._events.append(event)

    def flush(self, *, patience: float = -1) -> bool:
        """Send what is new; return whether the sums have all of it.

        ``patience`` is how long to wait for another thread that is at it, in seconds; without one, as long
        as it takes.
        """
        # Anew each time, which takes 0.1 ms: settings and servers can change while a process runs.
        sums = open_sums()
        if sums is None or not self._lock.acquire(timeout=patience):
            return False
        try:
            if self._unsure is not None and not self._send(sums, self._unsure):
                return False
            return all(self._send(sums, batch) for batch in self._batches(sums))
        finally:
            self._lock.release()

    def _send(self, sums: Sums, batch: Batch) -> bool:
        """Send a batch, again if need be; return whether it is dealt with."""
        self._unsure = batch
        if time.monotonic() - batch.made < GIVEN_UP and not sums.add(batch):
            return False
        self._unsure = None
        return True

    def _batches(self, sums: Sums) -> Iterator[Batch]:
        """Yield what was counted until now; what is counted while it is sent is for the next time."""
        now = counted()
        rows = list(difference(now, self._sent).items())
        events = [self._events.popleft() for _ in range(len(self._events))]
        while rows or events:
            some, rows = rows[:ROWS], rows[ROWS:]
            self._sent.update((subject, now[subject]) for subject, _ in some)
            self._number += 1
            yield self._batch(sums, some, events)
            events = []

    def _batch(self, sums: Sums, rows: Sequence[tuple[Subject, Numbers]], events: list[str]) -> Batch:
        now, hours = time.time(), max(int(sums.keep), 60)
        written: list[str] = [
            part
            for subject, numbers in rows
            for part in (write_field(subject), write_field(rest_of(subject)), write_numbers(numbers))
        ]
        names = sums.names
        number_and_lives = [self._number, NUMBER_KEPT, min(hours, MINUTES * 60), hours]
        bounds = [MOST_FUNCTIONS, MOST_EVENTS, len(events)]
        return Batch(
            keys=(names.number(self._process), names.events, names.minute(now), names.hour(now)),
            arguments=(*number_and_lives, *bounds, *events, *written),
            made=time.monotonic(),
        )

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._sent = counted()
        self._events.clear()
        self._unsure = None  # the parent sends it
        self._process, self._number = os.urandom(8).hex(), 0


class Beat:
    """Flushes every now and then, in a daemon thread of its own."""

    def __init__(self, flusher: Flusher, interval: float) -> None:
        self.flusher = flusher
        self._interval = interval
        self._overdue = time.monotonic() + 2 * interval
        self._start()

    def _start(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stopped,), name="redis_infra-statistics", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends: catch_up and the end of it flush
            logger.debug("redis_infra.statistics_without_thread", exc_info=True)

    def _run(self, stopped: threading.Event) -> None:
        wait = self._interval * random.uniform(FIRST, 1.0)  # noqa: S311  # spreads, protects nothing
        while not stopped.wait(wait):
            wait = self._interval
            self._overdue = time.monotonic() + 2 * self._interval
            self.flush()

    def flush(self, *, patience: float = -1) -> bool:
        """Flush, and let nothing that goes wrong become the site's trouble."""
        try:
            return self.flusher.flush(patience=patience)
        except Exception:  # Redis refuses (an ACL, a key of another type), or the settings are wrong
            if self not in _warned:
                _warned.add(self)
                logger.warning("redis_infra.statistics_refused", exc_info=True)
            return False

    def catch_up(self) -> None:
        """Do the thread's work where threads do not run (uWSGI without them)."""
        if time.monotonic() > self._overdue:
            self._overdue = time.monotonic() + 2 * self._interval
            self.flush(patience=0)

    def after_fork(self) -> None:
        self.flusher.after_fork()
        self._overdue = time.monotonic() + 2 * self._interval
        self._start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5)


_lock = threading.Lock()
_beat: Beat | None = None
_warned: weakref.WeakSet[Beat] = weakref.WeakSet()
_is_prepared = False


def begin() -> None:
    """Sum what this process counts, from now on; twice is as once. Does nothing where STATS say so."""
    global _beat
    with _lock:
        stats = get_settings().stats
        if _beat is None and stats.enabled:
            _prepare()
            _beat = Beat(Flusher(), stats.flush)


def flush() -> bool:
    """Add what this process has counted to the sums now; return whether they have it."""
    beat = _beat
    return beat is not None and beat.flush()


def end() -> None:
    """Stop, and send nothing more (tests)."""
    global _beat
    with _lock:
        beat, _beat = _beat, None
    forget_denials()
    if beat is not None:
        beat.stop()


def _prepare() -> None:
    """Connect what is to be told of, once a process."""
    global _is_prepared
    if _is_prepared:
        return
    _is_prepared = True
    subscribe(_note_transition)
    request_finished.connect(_at_end_of_request, dispatch_uid="redis_infra.observability.flushing")
    atexit.register(_at_exit)
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        _at_end_of_child(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _note_transition(change: Transition) -> None:
    beat = _beat
    if beat is not None and "closed" in (change.before, change.after):
        where = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        beat.flusher.note(json.dumps({**where, **asdict(change)}))


def _at_end_of_request(**_: Any) -> None:
    beat = _beat
    if beat is not None:
        beat.catch_up()


def _at_exit() -> None:
    beat = _beat
    # While Redis is away it would only be found away once more, by a process that ends.
    if beat is not None and not _is_away():
        beat.flush(patience=AT_EXIT)


def _at_end_of_child(do: Callable[[], None]) -> None:
    """Do something when a child of multiprocessing ends, which it may do by ``os._exit``, without atexit."""
    from multiprocessing.util import Finalize

    Finalize(None, do, exitpriority=-100)  # after what the site does at the end


def _is_away() -> bool:
    """Whether the Redis of the sums is known to be away."""
    try:
        sums = open_sums()
    except Exception:  # settings that are wrong have been warned of
        return True
    return sums is None or sums.database.is_degraded


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    beat = _beat
    if beat is not None:
        beat.after_fork()
        # multiprocessing forgets in its children what it was to finalize, and does then what it is told here.
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            util.register_after_fork(_at_exit, _at_end_of_child)
