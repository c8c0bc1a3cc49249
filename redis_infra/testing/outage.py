"""Pretend, for a block, that Redis is down: for tests of what a site does then.

Nothing is stopped and no socket is touched: the circuit of the server is opened
and held open, so every operation takes the way that it takes in an outage, at
once. The server may be anyone's and may be in use by others.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis_infra.exceptions import SettingsError

if TYPE_CHECKING:
    from django.core.cache.backends.base import BaseCache

    from redis_infra.connection.endpoint import Endpoint

__all__ = ["outage"]

RECOVERY_TIMEOUT: Final = 10.0
"""Seconds after which `outage` is left though what Redis missed is still being put right."""

POLL_INTERVAL: Final = 0.002

_lock = threading.Lock()
_held: weakref.WeakKeyDictionary[Endpoint, int] = weakref.WeakKeyDictionary()


class HasUrl(Protocol):
    """A server, as `RedisServer` and `ExternalServer` are."""

    @property
    def url(self) -> str: ...


@contextmanager
def outage(target: str | BaseCache | HasUrl = "default") -> Iterator[None]:
    """Make this process believe that a server is down until the block ends.

    ``target`` is a cache alias, a cache, or a server such as the fixture
    ``redis_server``. A server is down for every alias and capability that uses it.
    In the block nothing probes it; at the end what it missed is put right before
    the block is left, provided that it answers. Blocks may be nested. It holds for
    all threads and event loops of this process, and for no other process.

    Raises:
        SettingsError: the cache works in memory, is not one of ours, or no alias uses the server.
    """
    endpoint = _endpoint_of_server(target) if _has_url(target) else _endpoint_of_cache(target)
    _hold(endpoint)
    try:
        yield
    finally:
        _release(endpoint)


def _hold(endpoint: Endpoint) -> None:
    with _lock:
        _held[endpoint] = _held.get(endpoint, 0) + 1
        if _held[endpoint] == 1:
            endpoint.hold_open()


def _release(endpoint: Endpoint) -> None:
    with _lock:
        _held[endpoint] -= 1
        is_last = _held[endpoint] == 0
    if is_last:  # outside the lock: this recovers
        endpoint.release_hold()
        _wait_for_verdict(endpoint)


def _wait_for_verdict(endpoint: Endpoint) -> None:
    """Return when somebody, be it the prober's own thread, has asked the server and knows how it is."""
    deadline = time.monotonic() + RECOVERY_TIMEOUT
    while _is_being_asked(endpoint) and time.monotonic() < deadline:
        endpoint.prober.run_once()
        time.sleep(POLL_INTERVAL)


def _is_being_asked(endpoint: Endpoint) -> bool:
    return endpoint.reach.probe_due() or endpoint.reach.state.value in ("half_open", "recovering")


def _has_url(target: object) -> bool:
    return not isinstance(target, str) and hasattr(target, "url")


def _endpoint_of_cache(target: Any) -> Endpoint:
    from django.core.cache import caches

    cache = caches[target] if isinstance(target, str) else target
    database = getattr(getattr(cache, "_engine", None), "database", None)
    if database is None:
        raise SettingsError(
            f"{target!r} uses no Redis that could be down: outage() is for a redis_infra.cache.RedisCache "
            "with a server, and this one is of another kind or works in memory"
        )
    endpoint: Endpoint = database.endpoint
    return endpoint


def _endpoint_of_server(target: Any) -> Endpoint:
    from django.core.cache import caches

    from redis_infra.connection.lifecycle import databases
    from redis_infra.connection.options import ConnectionOptions

    for cache in caches.all(initialized_only=False):
        getattr(cache, "_engine", None)  # makes an alias that was not used yet known
    server = ConnectionOptions.from_url(target.url).server
    for database in databases():
        if database.endpoint.server == server:
            return database.endpoint
    raise SettingsError(f"no cache alias uses {target!r}")
