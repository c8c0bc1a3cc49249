"""Lost indexes are built anew beside the work: in a thread that exists only as long as that takes.

Until one is whole again, patterns find what they are for by SCAN. So nobody waits for this, it may end
anywhere, and what is half done is worth nothing: the mark that makes an index trusted comes last, and only
to one that has not been lost since the first key was looked at.

What was looked at counts only for the run of the server that was asked: one that starts again from its file,
or a replica that is promoted, has what is half done, but not the keys that the other cursor led past. So each
step asks who answers (``run_id`` of INFO), and ends it all where that is another one. Where a server does not
say, indexes are not rebuilt.

One process of all does it at a time: who does has a lease in Redis, and who finds it taken has nothing to do.
Where threads do not run (uWSGI without them), patterns of a lost index go on by SCAN.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from redis_infra.cache.engine import Engine
from redis_infra.cache.fallback import FallbackStore
from redis_infra.cache.lease import LEASE
from redis_infra.cache.operations import Plan
from redis_infra.connection.bulk import BATCH, batches, scan
from redis_infra.connection.scripts import Script, Talk
from redis_infra.connection.wire import pack
from redis_infra.exceptions import StoreUnavailable
from redis_infra.keys import escape
from redis_infra.querycache.index import STAY, Index, bucket_of_bytes
from redis_infra.resilience.failover import Kind
from redis_infra.resilience.prober import Prober

__all__ = ["Rebuilding"]

logger = logging.getLogger(__name__)

BEGIN = Script("redis_infra.querycache", "rebuild_begin")
ADD = Script("redis_infra.querycache", "rebuild_add")
END = Script("redis_infra.querycache", "rebuild_end")

PAGE: Final = BATCH // 4
"""Keys in a step. To write one down takes the server 8 microseconds where there are a million."""
REST: Final = 1.0
"""For how long it rests after each step, in times that the step took: the site comes first, here and on the
server."""
AT_EXIT: Final = 0.5
"""Seconds for which a process that ends waits for the thread, which looks up after each step."""


class Rebuilding:
    """Builds lost indexes of a query cache anew when it is told of one. Thread-safe; nobody waits.

    A forked child does nothing until it is told of one itself.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_over = False
        self._warned: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lost: dict[str, Index] = {}
        self._prober = Prober(self._round, "index")
        self._stop = threading.Event()
        self._at_work = threading.Lock()

    def start(self, index: Index) -> None:
        """Build these indexes anew soon, those of them that are lost."""
        if self._is_over:
            return
        if self._pid != os.getpid():
            self._begin()
        _stop_at_exit(self)
        self._lost[index.base] = index
        self._prober.wake()

    def stop(self, patience: float) -> None:
        """End it, for good, and wait for that, so many seconds at most."""
        self._is_over = True
        if self._pid != os.getpid():
            return
        self._stop.set()
        self._prober.retire()
        if self._at_work.acquire(timeout=patience):
            self._at_work.release()

    def _round(self, _budget: float | None) -> float | None:
        """Rebuild what was asked for first; return when to come again."""
        try:
            index = self._lost.pop(next(iter(self._lost)))
        except (StopIteration, KeyError, RuntimeError):
            # Nothing is left, or somebody came in between.
            return 0.0 if self._lost else None
        with self._at_work:
            try:
                self._rebuild(index)
            except StoreUnavailable:
                logger.debug("redis_infra.index_not_rebuilt", exc_info=True)
            except Exception as error:  # a key of another type, say: the next pattern tries again
                level = logging.DEBUG if repr(error) in self._warned else logging.WARNING
                self._warned.add(repr(error))
                logger.log(level, "redis_infra.index_not_rebuilt", exc_info=True)
        return 0.0 if self._lost else None

    def _rebuild(self, index: Index) -> None:
        """Write down all keys that there are. Entries that are stored meanwhile write themselves down.

        Ends where Redis cannot be reached, or where somebody else has taken it over.
        """
        if self._stop.is_set():
            return
        ticket = os.urandom(8).hex()
        work = self._ask(partial(_begin, index, ticket))
        added, cursor = 0, b"0"
        while work is not None and work.buckets and not self._stop.is_set():
            began = time.monotonic()
            step = self._ask(partial(_add, index, work, cursor))
            if step is None:
                return
            cursor, number = step
            added += number
            if cursor == b"0":
                complete = self._ask(partial(_end, index, work))
                if added and complete is not None:  # else there was nothing to lose: a new server
                    logger.info("redis_infra.index_rebuilt complete=%d of=%d", complete, len(work.buckets))
                return
            self._stop.wait(REST * (time.monotonic() - began))

    def _ask(self, talk: Callable[[], Talk]) -> Any:
        """Hold a conversation; None where Redis is away, and nothing is to be done about it."""
        plan = Plan(Kind.FILL, (), None, _nothing, talk=talk, stores=True, repeatable=False, relative=True)
        return self._engine.run(plan)


def _nothing(_store: FallbackStore) -> None:
    return None


def _lease(index: Index) -> str:
    return f"{index.base[:-1]}i:rebuilding"


class _Work(NamedTuple):
    """What one rebuilds."""

    ticket: str
    run: bytes
    """Of the server in which it was begun."""
    buckets: frozenset[int]


def _begin(index: Index, ticket: str) -> Talk:
    """Return what is to be rebuilt: no buckets if nothing was lost, or somebody else is at it.

    None where the server does not say which run of it answers.
    """
    run = yield from _run()
    if run is None:
        return None
    lost = yield from BEGIN.talk((_lease(index), *index.names), ticket, LEASE, STAY)
    return _Work(ticket, run, frozenset(lost))


def _run() -> Talk:
    """Return which run of the server answers, None if it does not say.

    Asked on the connection that the rest of a conversation goes over: if the server ends meanwhile, so does
    that.
    """
    found = _RUN_ID.search((yield pack("INFO", "server")))
    return found[1] if found is not None else None


_RUN_ID: Final = re.compile(rb"^run_id:(\w+)", re.MULTILINE)


def _add(index: Index, work: _Work, cursor: bytes) -> Talk:
    """Look at some more keys; return where to go on and how many were added.

    None if somebody else has taken over, or it is another run of the server.
    """
    if (yield from _run()) != work.run:
        return None
    cursor, page = yield scan(cursor, f"{escape(index.base)}*", PAGE)
    start, added = len(index.base.encode("utf-8", "surrogateescape")), 0
    # In a database of others' keys, many pages have none of ours; the lease is to be kept all the same.
    for batch in list(batches(page)) or [[]]:
        found: dict[int, list[bytes]] = {}
        for name in batch:
            key = name[start:]
            bucket = bucket_of_bytes(key)
            if bucket in work.buckets:
                found.setdefault(bucket, []).append(b"=" + key)
        keys = (_lease(index), *[index.names[bucket] for bucket in found])
        arguments: list[bytes | int] = []
        for members in found.values():
            arguments += [len(members), *members]
        if not (yield from ADD.talk(keys, work.ticket, LEASE, *arguments)):
            return None
        added += sum(map(len, found.values()))
    return cursor, added


def _end(index: Index, work: _Work) -> Talk:
    """Trust those that were not lost meanwhile; return how many these are, None if it is another run."""
    if (yield from _run()) != work.run:
        return None
    names = [index.names[bucket] for bucket in work.buckets]
    return (yield from END.talk((_lease(index), *names), work.ticket))


# At exit

_all: weakref.WeakSet[Rebuilding] = weakref.WeakSet()
_is_registered = False


def _stop_at_exit(rebuilding: Rebuilding) -> None:
    global _is_registered
    _all.add(rebuilding)
    if not _is_registered:
        _is_registered = True
        atexit.register(_at_exit)


def _at_exit() -> None:
    for rebuilding in list(_all):
        rebuilding.stop(AT_EXIT)
