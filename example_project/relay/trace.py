"""What is served from where: Relay's cache, with a record of who answered.

``cache`` is used as ``django.core.cache.cache`` is; each call is passed on and
noted: the key, how long it took, and whether Redis, the process itself or the
database gave the answer. A site has no need of this; the demo lives on it.

It judges by the backend's count of operations answered without Redis before and
after the call. While Redis is fine that count rests, and during an outage every
call raises it, so only calls that race with the change itself may be misjudged.

Thread-safe; the async methods may be called from any event loop.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict, cast

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache


class Source(StrEnum):
    """Who gave an answer."""

    REDIS = "redis"
    FALLBACK = "fallback"
    """The process, because Redis did not answer."""
    MEMORY = "memory"
    """The process, because there is no Redis at all."""
    DATABASE = "database"
    """Nobody had it: it was computed."""


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

    __slots__ = ("computed", "key", "local_before", "op", "started")

    def __init__(self, op: str, key: str) -> None:
        self.op, self.key, self.computed = op, key, False
        self.local_before = status()["counters"]["fallback_ops"]
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
        if self.computed:
            return Source.DATABASE
        now = status()
        if now["state"] == "memory":
            return Source.MEMORY
        return Source.FALLBACK if now["counters"]["fallback_ops"] != self.local_before else Source.REDIS


@contextmanager
def _noted(op: str, key: str) -> Iterator[_Call]:
    call = _Call(op, key)
    try:
        yield call
    finally:
        call.done()


@contextmanager
def from_database(what: str) -> Iterator[None]:
    """Note that what runs inside asks the database for ``what``."""
    with _noted("load", what) as call:
        call.computed = True
        yield


def _names(keys: Iterable[str]) -> str:
    names = list(keys)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if names else "nothing"


class TracedCache:
    """Django's cache API over the default cache, each call noted."""

    @property
    def _backend(self) -> BaseCache:
        return caches["default"]

    def get(self, key: str, default: Any = None) -> Any:
        """As Django's ``get``."""
        with _noted("get", key):
            return self._backend.get(key, default)

    def get_or_set(self, key: str, default: Callable[[], Any], timeout: float | None) -> Any:
        """As Django's ``get_or_set``; noted as the database's answer when ``default`` was called."""
        with _noted("get_or_set", key) as call:
            return self._backend.get_or_set(key, call.loading(default), timeout)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """As Django's ``get_many``."""
        names = list(keys)
        with _noted("get_many", _names(names)):
            return self._backend.get_many(names)

    def set(self, key: str, value: Any, timeout: float | None) -> None:
        """As Django's ``set``."""
        with _noted("set", key):
            self._backend.set(key, value, timeout)

    def set_many(self, data: Mapping[str, Any], timeout: float | None) -> None:
        """As Django's ``set_many``."""
        with _noted("set_many", _names(data)):
            self._backend.set_many(dict(data), timeout)

    def add(self, key: str, value: Any, timeout: float | None) -> bool:
        """As Django's ``add``."""
        with _noted("add", key):
            return self._backend.add(key, value, timeout)

    def delete(self, key: str) -> bool:
        """As Django's ``delete``."""
        with _noted("delete", key):
            return self._backend.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """As Django's ``delete_many``."""
        names = list(keys)
        with _noted("delete_many", _names(names)):
            self._backend.delete_many(names)

    def incr(self, key: str, delta: int = 1) -> int:
        """As Django's ``incr``; raises ValueError where the key is not there."""
        with _noted("incr", key):
            return self._backend.incr(key, delta)

    async def aget(self, key: str, default: Any = None) -> Any:
        """As Django's ``aget``."""
        with _noted("aget", key):
            return await self._backend.aget(key, default)

    async def aset(self, key: str, value: Any, timeout: float | None) -> None:
        """As Django's ``aset``."""
        with _noted("aset", key):
            await self._backend.aset(key, value, timeout)


cache = TracedCache()
