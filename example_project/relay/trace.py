"""What is served from where: Relay's cache, with a record of who answered.

``cache`` is used as ``django.core.cache.cache`` is, and ``asked(query, ...)`` is a
call of a function that is ``cached``; each is passed on and noted: the key, how
long it took, and whether Redis, the process itself or the database gave the
answer. A site has no need of this; the demo lives on it.

It judges by what is counted before and after the call: operations that the
backend answered without Redis, and the function's own tally. While Redis is fine
the first rests, and during an outage every call raises it. Both are of the whole
process, so calls that race with each other or with the change may be misjudged.

Thread-safe; the async methods may be called from any event loop.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ParamSpec, Protocol, TypedDict, TypeVar, cast

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache

from redis_infra.querycache.loading import Tally

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Source(StrEnum):
    """Who gave an answer."""

    REDIS = "redis"
    FALLBACK = "fallback"
    """The process, because Redis did not answer."""
    MEMORY = "memory"
    """The process, because there is no Redis at all."""
    DATABASE = "database"
    """Nobody had it: it was computed."""
    STALE = "stale"
    """What has expired, because somebody else computes already, or because that failed."""


class Status(TypedDict):
    """What the backend says of itself (``RedisCache.status()``)."""

    state: str
    server: str
    rule: str
    reason: str
    since: float | None
    cause: str | None
    pending: int
    fallback_entries: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call to the cache."""

    at: float
    """Unix time at which it ended."""
    page: str
    op: str
    key: str
    source: Source
    seconds: float


RECENT = 400
recent: deque[Operation] = deque(maxlen=RECENT)
"""The last operations of this process, newest last."""
totals: Counter[Source] = Counter()
"""How many operations each source has answered since the process started."""

_page: ContextVar[str] = ContextVar("relay_page", default="")
_of_request: ContextVar[list[Operation] | None] = ContextVar("relay_operations", default=None)

_NO_COUNTERS = {"hits": 0, "misses": 0, "fallback_ops": 0}


def status() -> Status:
    """Return what the default cache says of itself; of any other backend, that it is memory."""
    ask = getattr(caches["default"], "status", None)
    if ask is None:
        return Status(
            state="memory",
            server=type(caches["default"]).__name__,
            rule="BACKEND",
            reason="another backend",
            since=None,
            cause=None,
            pending=0,
            fallback_entries=0,
            counters=dict(_NO_COUNTERS),
        )
    return cast(Status, ask())


@contextmanager
def watching(page: str) -> Iterator[list[Operation]]:
    """Collect the operations of what runs inside, and name ``page`` as their reason."""
    operations: list[Operation] = []
    page_token, list_token = _page.set(page), _of_request.set(operations)
    try:
        yield operations
    finally:
        _page.reset(page_token)
        _of_request.reset(list_token)


class _Call:
    """One operation while it runs: notes whether the database was asked."""

    __slots__ = ("computed", "key", "local_before", "op", "started", "tally", "tally_before")

    def __init__(self, op: str, key: str, tally: Tally | None = None) -> None:
        self.op, self.key, self.computed, self.tally = op, key, False, tally
        self.local_before = status()["counters"]["fallback_ops"]
        self.tally_before = _counts(tally)
        self.started = time.perf_counter()

    def loading(self, load: Callable[[], Any]) -> Callable[[], Any]:
        """Return ``load`` so wrapped that its being called is noticed."""

        def loaded() -> Any:
            self.computed = True
            return load()

        return loaded

    def done(self) -> None:
        """Note the operation for the page, the totals and the recent ones."""
        seconds = time.perf_counter() - self.started
        operation = Operation(
            at=time.time(), page=_page.get(), op=self.op, key=self.key, source=self._source(), seconds=seconds
        )
        recent.append(operation)
        totals[operation.source] += 1
        mine = _of_request.get()
        if mine is not None:
            mine.append(operation)

    def _source(self) -> Source:
        was_stale, was_computed = (
            after > before for before, after in zip(self.tally_before, _counts(self.tally), strict=True)
        )
        if was_stale:  # first: a loader that failed was called, too
            return Source.STALE
        if self.computed or was_computed:
            return Source.DATABASE
        now = status()
        if now["state"] == "memory":
            return Source.MEMORY
        return Source.FALLBACK if now["counters"]["fallback_ops"] != self.local_before else Source.REDIS


def _counts(tally: Tally | None) -> tuple[int, int]:
    """Return how often a function's callers got something stale, and how often they came by computing.

    Who waited for somebody else's computation did so, too.
    """
    return (tally.stale, tally.computations + tally.waits) if tally is not None else (0, 0)


@contextmanager
def _noted(op: str, key: str, tally: Tally | None = None) -> Iterator[_Call]:
    call = _Call(op, key, tally)
    try:
        yield call
    finally:
        call.done()


class Query(Protocol[P, R_co]):
    """A function that is ``cached`` or ``cached_many``."""

    @property
    def tally(self) -> Tally:
        """What its callers got."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return what is kept, or compute it."""


def asked(query: Query[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of the query cache, and note who answered."""
    with _noted_query(query, args, kwargs):
        return query(*args, **kwargs)


async def aasked(query: Query[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a coroutine function of the query cache, and note who answered."""
    with _noted_query(query, args, kwargs):
        return await query(*args, **kwargs)


def _noted_query(query: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if hasattr(query, "keys"):
        return _noted("cached_many", _names(query.keys(*args, **kwargs).values()), query.tally)
    return _noted("cached", query.key(*args, **kwargs), query.tally)


def _names(keys: Iterable[str]) -> str:
    names = list(keys)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if names else "nothing"


class TracedCache:
    """Django's cache API over the default cache, each call noted."""

    @property
    def _backend(self) -> BaseCache:
        return caches["default"]

    def get_or_set(self, key: str, default: Callable[[], Any], timeout: float | None) -> Any:
        """As Django's ``get_or_set``; noted as the database's answer when ``default`` was called."""
        with _noted("get_or_set", key) as call:
            return self._backend.get_or_set(key, call.loading(default), timeout)

    def set(self, key: str, value: Any, timeout: float | None) -> None:
        """As Django's ``set``."""
        with _noted("set", key):
            self._backend.set(key, value, timeout)

    def add(self, key: str, value: Any, timeout: float | None) -> bool:
        """As Django's ``add``."""
        with _noted("add", key):
            return self._backend.add(key, value, timeout)

    def delete(self, key: str) -> bool:
        """As Django's ``delete``."""
        with _noted("delete", key):
            return self._backend.delete(key)

    def incr(self, key: str, delta: int = 1) -> int:
        """As Django's ``incr``; raises ValueError where the key is not there."""
        with _noted("incr", key):
            return self._backend.incr(key, delta)


cache = TracedCache()
