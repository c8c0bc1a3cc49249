"""The engine of one cache alias: where its values are, who answers, in which bytes.

Django makes a cache object per thread and per task; this is what they share.
One engine per process and configuration; it knows names and bytes, while
versions, timeouts and Django's contract are the backend's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

from django.conf import settings as django_settings

from redis_infra.cache.codec import Codec, Unreadable
from redis_infra.cache.fallback import FallbackStore
from redis_infra.cache.lease import WAIT
from redis_infra.cache.operations import Plan
from redis_infra.cache.signals import connect as connect_signals
from redis_infra.conf import AliasSettings
from redis_infra.connection.wire import pack
from redis_infra.instrumentation import Counters, notify_used
from redis_infra.resilience.single_flight import SingleFlight

__all__ = ["Engine", "MemoryEngine", "RedisEngine", "engine_for", "forget_engines"]

logger = logging.getLogger(__name__)


class Engine:
    """What both kinds of engine have: a codec, a store in memory, counters, single flight."""

    is_memory = False

    def __init__(self, settings: AliasSettings, counters: Counters) -> None:
        self.settings = settings
        self.counters = counters
        self.is_signed = bool(settings.signed)
        self.codec = Codec.build(
            serializer=settings.serializer,
            compressor=settings.compressor,
            compress_min=settings.compress_min,
            signed=settings.signed,
            options=settings.options,
            key_material=_key_material() if settings.signed else (),
        )
        self.flights = SingleFlight(bound=WAIT)
        self._unreadable: set[str] = set()

    def run(self, plan: Plan) -> Any:
        """Carry out a plan and return its answer."""
        raise NotImplementedError

    async def arun(self, plan: Plan) -> Any:
        """:meth:`run` in the running event loop."""
        raise NotImplementedError

    def fetch(self, name: str) -> bytes | None:
        """What is stored under a name: the plan for ``get``, without the plan."""
        raise NotImplementedError

    async def afetch(self, name: str) -> bytes | None:
        """:meth:`fetch` in the running event loop."""
        raise NotImplementedError

    def untrusted(self, names: list[str]) -> frozenset[str]:
        """Those of ``names`` that Redis is not trusted with at this moment."""
        return frozenset()

    def correct(
        self, names: list[str], untrusted: frozenset[str], raws: list[bytes | None]
    ) -> list[bytes | None]:
        """Put right what Redis is not trusted with; ``untrusted`` is what it was before it was asked."""
        return raws

    def holds(self, name: str) -> bool:
        """Whether memory has a key that Redis does not have because it refuses stores now."""
        return False

    def note_deleted(self, name: str) -> None:
        """Redis has confirmed a delete."""

    def take_matching(self, pattern: str) -> set[str]:
        """Remove from memory what matches the glob; return the names."""
        return set()

    @property
    def is_degraded(self) -> bool:
        return False

    @property
    def label(self) -> str:
        """Where the values are, for people; no password."""
        return self.settings.source.url

    def status(self) -> dict[str, Any]:
        """Plain values for pages and commands; no secrets, no I/O."""
        return {
            "state": "memory",
            "server": self.label,
            "rule": self.settings.source.rule,
            "reason": self.settings.source.reason,
            "on_outage": self.settings.on_outage,
            "since": None,
            "cause": None,
            "pending": 0,
            "fallback_entries": 0,
            "counters": self.counters.snapshot(),
        }

    def close(self) -> None:
        """Close the connections that the threads of the process share."""

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""

    def after_fork(self) -> None:
        """In a forked child: nobody computes here, and nobody holds a lock."""
        self.flights.after_fork()

    def decode(self, bound: str, raw: bytes, missing: Any) -> Any:
        """The value in ``raw``; ``missing``, and one warning per reason, if nobody can read it."""
        try:
            return self.codec.decode(bound, raw)
        except Unreadable as error:
            self.note_unreadable(error)
            return missing

    def note_unreadable(self, error: Unreadable) -> None:
        """A value counted as a miss because nobody can read it; one warning per reason."""
        self.counters.unreadable += 1
        if error.reason not in self._unreadable:
            self._unreadable.add(error.reason)
            logger.warning("redis_infra.value_unreadable reason=%s", error.reason, exc_info=error.__cause__)


class MemoryEngine(Engine):
    """No Redis is configured: values live in this process, within the same bounds, for as long as asked."""

    is_memory = True

    def __init__(self, settings: AliasSettings, shared: FallbackStore) -> None:
        super().__init__(settings, Counters())
        self.store = shared

    def run(self, plan: Plan) -> Any:
        return plan.local(self.store)

    async def arun(self, plan: Plan) -> Any:
        return plan.local(self.store)

    def fetch(self, name: str) -> bytes | None:
        return self.store.get(name)

    async def afetch(self, name: str) -> bytes | None:
        return self.store.get(name)


class RedisEngine(Engine):
    """Values live in Redis; while it cannot be reached, what ``ON_OUTAGE`` names answers."""

    def __init__(self, settings: AliasSettings) -> None:
        # redis-py is imported with the first engine, not with the settings: 41 ms that a management
        # command which never touches the cache does not pay.
        from redis_infra.connection.lifecycle import open_database, running
        from redis_infra.connection.options import ConnectionOptions

        self.options = running(ConnectionOptions.from_settings(settings))
        self.database = open_database(self.options, settings)
        super().__init__(settings, self.database.counters)
        limits = settings.fallback
        shared = self.database.share(
            partial(FallbackStore, limits.max_entries, limits.max_bytes, limits.max_ttl)
        )
        self.shared: FallbackStore = shared
        self.store = _store_for(settings.on_outage, shared, self)
        self.connections = self.database.connections(self.options)
        self.failover = self.database.failover
        self._keeps = settings.on_outage == "local"
        self.call = self.connections.call
        self.acall = self.connections.acall
        notify_used()

    def run(self, plan: Plan) -> Any:
        return self.failover.run(self._ask, self._answer, plan, plan)

    async def arun(self, plan: Plan) -> Any:
        return await self.failover.arun(self._aask, self._answer, plan, plan)

    def fetch(self, name: str) -> bytes | None:
        raw: bytes | None = self.failover.read(self.call, pack("GET", name), self.store.get, name)
        return raw if raw is not None else self._filled_in(name)

    async def afetch(self, name: str) -> bytes | None:
        raw: bytes | None = await self.failover.aread(self.acall, pack("GET", name), self.store.get, name)
        return raw if raw is not None else self._filled_in(name)

    def _filled_in(self, name: str) -> bytes | None:
        """What Redis does not have only because it refuses stores now."""
        return self.store.get(name) if self._fills else None

    @property
    def _fills(self) -> bool:
        return self._keeps and self.failover.fills_locally

    def _ask(self, plan: Plan) -> Any:
        if plan.talk is not None:
            return self.connections.converse(plan.talk())
        try:
            reply = self.call(plan.packed)
        except Exception as error:  # the plan may know what to say to an error reply
            if plan.recover is None:
                raise
            return self.connections.converse(plan.recover(error))
        return plan.read(reply)

    async def _aask(self, plan: Plan) -> Any:
        if plan.talk is not None:
            return await self.connections.aconverse(plan.talk())
        try:
            reply = await self.acall(plan.packed)
        except Exception as error:  # as above
            if plan.recover is None:
                raise
            return await self.connections.aconverse(plan.recover(error))
        return plan.read(reply)

    def _answer(self, plan: Plan) -> Any:
        return plan.local(self.store)

    def unavailable(self, command: str = "") -> Exception:
        return self.database.unavailable(command)

    def untrusted(self, names: list[str]) -> frozenset[str]:
        return frozenset(self.failover.untrusted(tuple(names)))

    def correct(
        self, names: list[str], untrusted: frozenset[str], raws: list[bytes | None]
    ) -> list[bytes | None]:
        # Both: a drain may end, or begin, while the reply is on its way.
        covers = self.failover.journal.covers
        fills = self._fills
        if not untrusted and self.failover.journal.empty and not fills:
            return raws
        return [
            self.store.get(name) if name in untrusted or covers(name) or (raw is None and fills) else raw
            for name, raw in zip(names, raws, strict=True)
        ]

    def holds(self, name: str) -> bool:
        return self._fills and bool(self.store.exists(name))

    def note_deleted(self, name: str) -> None:
        self.failover.journal.note_deleted(name, time.monotonic())

    def take_matching(self, pattern: str) -> set[str]:
        if self.failover.clear:
            return set()
        names = set(self.shared.names(pattern))
        self.shared.delete(*names)
        return names

    @property
    def is_degraded(self) -> bool:
        return self.database.is_degraded

    @property
    def label(self) -> str:
        return self.options.label

    def status(self) -> dict[str, Any]:
        from redis_infra.connection.recovery import status_of

        now = status_of(self.database)
        return {
            **super().status(),
            "state": now["state"],
            "circuit": now["circuit"],
            "since": now["since"],
            "cause": now["cause"] or None,
            "pending": now["pending"],
            "fallback_entries": len(self.shared),
        }

    def close(self) -> None:
        self.connections.close()

    async def aclose(self) -> None:
        await self.database.aclose()

    def after_fork(self) -> None:
        super().after_fork()
        if isinstance(self.store, FallbackStore):
            self.store.after_fork()


class _NoStore(FallbackStore):
    """``ON_OUTAGE = "miss"``: reads miss, writes go nowhere (but into the journal).

    ``add`` says yes: sessions retry a refused ``add`` ten thousand times.
    """

    def __init__(self) -> None:
        super().__init__(max_entries=1, max_bytes=0, max_ttl=0.0)

    def set(self, name: str, raw: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False) -> bool:
        return not xx


class _RefusingStore:
    """``ON_OUTAGE = "raise"``: for locks and other people's limiters, where a local yes would be a lie."""

    def __init__(self, engine: RedisEngine) -> None:
        self._engine = engine

    def __getattr__(self, operation: str) -> Any:
        return partial(self._refuse, operation)

    def _refuse(self, operation: str, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise self._engine.unavailable(operation.upper())


def _store_for(on_outage: str, shared: FallbackStore, engine: RedisEngine) -> Any:
    if on_outage == "miss":
        return _NoStore()
    if on_outage == "raise":
        return _RefusingStore(engine)
    return shared


def _key_material() -> list[bytes]:
    """What values are signed with: SECRET_KEY; and what else may have signed them."""
    keys = [django_settings.SECRET_KEY, *getattr(django_settings, "SECRET_KEY_FALLBACKS", [])]
    return [key.encode() if isinstance(key, str) else key for key in keys]


# One engine per process and configuration

_lock = threading.RLock()
_engines: dict[object, Engine] = {}
_memories: dict[str, FallbackStore] = {}
_is_prepared = False


def engine_for(location: object, params: Mapping[str, Any]) -> Engine:
    """Return the engine for what ``CACHES`` says of an alias; made at the first call.

    Raises:
        SettingsError: something in ``LOCATION`` or ``OPTIONS`` is wrong.
        MissingExtra: a package that OPTIONS ask for is not installed.
    """
    settings = AliasSettings.load(location, params)
    key = _frozen((repr(settings), settings.url, settings.connection, settings.options, _secret(settings)))
    with _lock:
        engine = _engines.get(key)
        if engine is None:
            _prepare_process()
            engine = _engines[key] = _make(settings, location)
        return engine


def _prepare_process() -> None:
    """What the first cache that is used sets up, so that importing has no effect on the world."""
    global _is_prepared
    if not _is_prepared:
        _is_prepared = True
        connect_signals()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _make(settings: AliasSettings, location: object) -> Engine:
    if settings.source.url.startswith("memory:"):
        limits = settings.fallback
        shared = _memories.setdefault(
            f"{settings.source.url} {location}", FallbackStore(limits.max_entries, limits.max_bytes, None)
        )
        logger.info("redis_infra.in_memory rule=%s reason=%s", settings.source.rule, settings.source.reason)
        return MemoryEngine(settings, shared)
    return RedisEngine(settings)


def _secret(settings: AliasSettings) -> object:
    return tuple(_key_material()) if settings.signed else None


def _frozen(value: Any) -> object:
    """A hashable stand-in for nested settings."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(name), _frozen(each)) for name, each in value.items()))
    if isinstance(value, list | tuple | set):
        return tuple(_frozen(each) for each in value)
    return value if value.__hash__ is not None else repr(value)


def _after_fork() -> None:
    """In a forked child: locks that another thread of the parent may have held are made anew."""
    global _lock
    _lock = threading.RLock()
    for store in _memories.values():
        store.after_fork()
    for engine in _engines.values():
        engine.after_fork()


def forget_engines() -> None:
    """Make every engine anew (a setting has changed, or a test begins)."""
    with _lock:
        _engines.clear()
        _memories.clear()
