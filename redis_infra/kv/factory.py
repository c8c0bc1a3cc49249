"""Stores by configuration: one for each in a process, made when somebody asks, closed when it ends."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, cast

from django.conf import settings as django_settings
from django.utils.module_loading import import_string

from redis_infra.conf import (
    STORE_VARIABLES,
    AliasSettings,
    KVSettings,
    Settings,
    StoreSource,
    find_store,
    get_settings,
)
from redis_infra.connection.options import ConnectionOptions
from redis_infra.exceptions import SettingsError
from redis_infra.instrumentation import notify_used
from redis_infra.kv.base import KVStore

__all__ = ["check_store_source", "close_stores", "forget_stores", "get_store", "make_store"]

_lock = threading.RLock()
_stores: dict[tuple[StoreSource, KVSettings, str], KVStore] = {}
_known: dict[str | None, tuple[_Configured, KVStore]] = {}
"""The store that was asked for by a name, and what was configured then."""
_hooked = False


def get_store(provider: str | None = None) -> KVStore:
    """Return the site's key-value store, or the one of a ``provider``: ``redis upstash memory file``.

    The same one for the same configuration, which is looked at each time (some ten microseconds). Opens
    nothing. Thread-safe.

    Raises:
        SettingsError: the configuration is wrong, or does not say where that provider is.
    """
    known = _known.get(provider)
    if known is not None and known[0].holds():
        return known[1]
    try:
        store = _made(provider)
    except SettingsError as error:
        # From here, and without what was looked at: pages that report errors show the variables of frames,
        # and those have the whole environment in them, and tokens.
        problem = error.with_traceback(None)
        problem.__cause__ = problem.__context__ = None
    else:
        notify_used()
        return store
    raise problem


def _made(provider: str | None) -> KVStore:
    configured, settings = _Configured.now(), get_settings()
    source = find_store(provider, settings=settings)
    with _lock:
        key = source, settings.kv, settings.key_prefix
        store = _stores.get(key)
        if store is None:
            _register_hooks()
            store = _stores[key] = make_store(source, settings)
        _known[provider] = configured, store
    return store


class _Configured(NamedTuple):
    """What decides, as it is written."""

    site: object
    caches: object
    environ: tuple[str | None, ...] = ()

    @classmethod
    def now(cls) -> _Configured:
        site, caches = (getattr(django_settings, name, None) for name in ("REDIS_INFRA", "CACHES"))
        return cls(site, caches, tuple([os.environ.get(name) for name in _VARIABLES]))

    def holds(self) -> bool:
        """Whether it is so now."""
        # By identity: a dictionary that was put in the place of another one is another configuration.
        now = self.now()
        return self.site is now.site and self.caches is now.caches and self.environ == now.environ

    def __repr__(self) -> str:
        return "_Configured(...)"  # passwords and tokens are in it


_VARIABLES: Final = ("REDIS_PREFIX", *STORE_VARIABLES)


def make_store(source: StoreSource, settings: Settings) -> KVStore:
    """Return a new store of ``source``; opens nothing.

    Raises:
        SettingsError: a site's own provider cannot be imported or made.
    """
    home = f"{settings.key_prefix}:kv:"
    store = _MAKERS.get(source.provider, _own)(source, settings, home)
    store.why = source.reason
    if settings.kv.fallback and source.provider != "memory":
        from redis_infra.kv.fallback_store import FallbackStore
        from redis_infra.kv.memory_store import MemoryStore

        store = FallbackStore(store, partial(MemoryStore, home))
    return store


def _redis(source: StoreSource, settings: Settings, home: str) -> KVStore:
    from redis_infra.kv.redis_store import RedisStore

    assert source.redis is not None
    return RedisStore(home, source.redis)


def _upstash(source: StoreSource, settings: Settings, home: str) -> KVStore:
    from redis_infra.kv.upstash_store import UpstashStore

    return UpstashStore(
        home,
        source.url,
        source.token,
        connect_timeout=settings.kv.connect_timeout,
        command_timeout=settings.kv.command_timeout,
    )


def _memory(source: StoreSource, settings: Settings, home: str) -> KVStore:
    from redis_infra.kv.memory_store import MemoryStore

    return MemoryStore(home)


def _file(source: StoreSource, settings: Settings, home: str) -> KVStore:
    from redis_infra.kv.file_store import FileStore

    return FileStore(home, source.path)


def _own(source: StoreSource, settings: Settings, home: str) -> KVStore:
    where = f"REDIS_INFRA['KV']['PROVIDER']: {source.provider!r}"
    try:
        found = import_string(source.provider)
    except ImportError as error:
        raise SettingsError(f"{where} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, KVStore)):
        raise SettingsError(f"{where} is no KVStore; derive it from redis_infra.kv.KVStore")
    try:
        return found(home)
    except Exception as error:  # of its own
        raise SettingsError(f"{where} cannot be made: {error}") from error


_MAKERS: Final[dict[str, Callable[[StoreSource, Settings, str], KVStore]]] = {
    "redis": _redis,
    "upstash": _upstash,
    "memory": _memory,
    "file": _file,
}


def check_store_source(source: StoreSource, settings: Settings) -> None:
    """Find out what a store of ``source`` would be refused for, without keeping it.

    Raises:
        SettingsError: as :func:`get_store`.
    """
    if source.provider == "redis":
        # Not made: a server of the site's own would be started.
        ConnectionOptions.from_settings(cast("AliasSettings", source.redis))
    else:
        make_store(source, settings).close()


def close_stores() -> None:
    """Close every store of the process; a command opens it again."""
    for store in list(_stores.values()):
        store.close()


def forget_stores() -> None:
    """Close and forget every store; start as a new process would."""
    with _lock:
        close_stores()
        _stores.clear()
        _known.clear()


def _register_hooks() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(close_stores)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for store in _stores.values():
        store.after_fork()
