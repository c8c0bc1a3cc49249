"""Who caches what functions return, each behind the same door: it takes a function and returns it cached.

Whoever is not installed is left out, and the tables say so. A door connects when what it returned is called,
not before: a process can find out who is there, fork, and open doors in its children.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from benchmarks.peers import BACKENDS, DJANGO_REDIS, OURS, TTL, VALUE, configure

Get = Callable[[int], Any]
AsyncGet = Callable[[int], Awaitable[Any]]
GetMany = Callable[[list[int]], Any]

CACHEOPS = "cacheops"
CASHEWS = "cashews"
DOGPILE = "dogpile.cache"
LRU = "functools.lru_cache"

PACKAGES = {CACHEOPS: "django-cacheops", CASHEWS: "cashews", DOGPILE: "dogpile.cache"}
NEEDS = {CACHEOPS: "cacheops", CASHEWS: "cashews", DOGPILE: "dogpile"}


def is_installed(name: str) -> bool:
    """Return whether a contender can be asked on this machine."""
    return name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None


def presence_notes() -> list[str]:
    """Return footnotes about which peers were asked, and which could not be."""
    there = [f"{package} {version(package)}" for name, package in PACKAGES.items() if is_installed(name)]
    absent = [package for name, package in PACKAGES.items() if not is_installed(name)]
    notes = [f"Measured beside: {', '.join(there)}."] if there else []
    return notes + ([f"Not installed here, so not measured: {', '.join(absent)}."] if absent else [])


# The site


@contextmanager
def site(urls: Mapping[str, str], state_dir: str) -> Iterator[None]:
    """Set Django up with our cache under each alias, on the server that it names, and cacheops on the first.

    Beside each alias is one of django-redis, ``djrd:`` before its name. May be entered again for other
    servers, and after another suite has set Django up for itself.
    """
    from django.conf import settings
    from django.test.utils import override_settings

    first = next(iter(urls.values()))
    if not settings.configured:
        configure({OURS: BACKENDS[OURS].settings(first)}, state_dir=state_dir)
    caches = {alias: BACKENDS[OURS].settings(url) for alias, url in urls.items()}
    caches |= {f"djrd:{alias}": BACKENDS[DJANGO_REDIS].settings(url) for alias, url in urls.items()}
    # A busy machine may hold a command up for longer than the 250 ms after which ours answers without Redis;
    # what is timed is the work. As long as nothing is late, the deadline costs the same whatever it is.
    patient = {"URL": first, "STATE_DIR": state_dir, "COMMAND_TIMEOUT": "5s"}
    with override_settings(CACHES=caches, REDIS_INFRA=patient, CACHEOPS_REDIS=first):
        if is_installed(CACHEOPS):
            point_cacheops_at(first)
        yield


def point_cacheops_at(url: str) -> None:
    """Have cacheops ask the server at ``url``: its one client is made at first use, and for ever."""
    import redis

    client: Any = import_module("cacheops.redis").redis_client
    client.connection_pool = redis.ConnectionPool.from_url(url)


# What is cached


@dataclass(frozen=True, slots=True)
class Loads:
    """Functions to cache, and the last computations: none of them is to happen in a hit."""

    computed: deque[Any] = field(default_factory=lambda: deque(maxlen=1))

    def user(self) -> Get:
        computed = self.computed

        def get_user(user_id: int) -> Any:
            computed.append(user_id)
            return VALUE

        return get_user

    def awaited_user(self) -> AsyncGet:
        computed = self.computed

        async def get_user(user_id: int) -> Any:
            computed.append(user_id)
            return VALUE

        return get_user

    def users(self) -> Callable[[list[int]], dict[int, Any]]:
        computed = self.computed

        def load_users(user_ids: list[int]) -> dict[int, Any]:
            computed.append(user_ids)
            return dict.fromkeys(user_ids, VALUE)

        return load_users


# Doors: one value


def ours(function: Any) -> Any:
    from redis_infra.querycache import cached

    return cached("user:{user_id}", ttl=TTL)(function)


def ours_with_tag(function: Any) -> Any:
    from redis_infra.querycache import cached

    return cached("tagged:{user_id}", ttl=TTL, tags=["team:{user_id}"])(function)


def ours_for_many(function: Any) -> Any:
    from redis_infra.querycache import cached_many

    return cached_many("many:{user_id}", ttl=TTL)(function)


def django_redis(function: Get) -> Get:
    """Return what is written without a decorator."""
    from django.core.cache import caches

    cache = caches["djrd:default"]
    return lambda user_id: cache.get_or_set(f"user:{user_id}", partial(function, user_id), TTL)


def django_redis_for_many(function: GetMany) -> GetMany:
    """Return what is written without a decorator."""
    from django.core.cache import caches

    cache = caches["djrd:default"]

    def get(user_ids: list[int]) -> Any:
        found = cache.get_many([f"many:{user_id}" for user_id in user_ids])
        missing = [user_id for user_id in user_ids if f"many:{user_id}" not in found]
        if missing:
            loaded = function(missing)
            cache.set_many({f"many:{user_id}": value for user_id, value in loaded.items()}, TTL)
            found |= {f"many:{user_id}": value for user_id, value in loaded.items()}
        return {user_id: found[f"many:{user_id}"] for user_id in user_ids}

    return get


def cacheops(function: Get) -> Get:
    cached: Get = import_module("cacheops.simple").cached(timeout=TTL)(function)
    return cached


def dogpile_region(url: str, *, lock: bool = False, expires: float = TTL) -> Any:
    """Return a region; its values live on after they have expired, so that they can be served stale."""
    make_region: Any = import_module("dogpile.cache").make_region
    arguments = {"url": url, "redis_expiration_time": 2 * TTL}
    if lock:
        arguments |= {"distributed_lock": True, "thread_local_lock": False, "lock_timeout": 30}
    return make_region().configure("dogpile.cache.redis", expiration_time=expires, arguments=arguments)


def dogpile(url: str, function: Get) -> Get:
    cached: Get = dogpile_region(url).cache_on_arguments()(function)
    return cached


def dogpile_for_many(url: str, function: GetMany) -> GetMany:
    def load(*user_ids: int) -> Any:
        return function(list(user_ids))

    cached: Any = dogpile_region(url).cache_multi_on_arguments(asdict=True)(load)
    return lambda user_ids: cached(*user_ids)


def lru(function: Get) -> Get:
    return lru_cache(maxsize=10_000)(function)


def one_value(url: str) -> dict[str, Callable[[Any], Any]]:
    """Return who caches one value, synchronously."""
    doors: dict[str, Callable[[Any], Any]] = {
        OURS: ours,
        CACHEOPS: cacheops,
        DOGPILE: partial(dogpile, url),
        DJANGO_REDIS: django_redis,
        LRU: lru,
    }
    return {name: door for name, door in doors.items() if is_installed(name)}


def many_values(url: str) -> dict[str, Callable[[Any], Any]]:
    """Return who caches many values at once."""
    doors: dict[str, Callable[[Any], Any]] = {
        OURS: ours_for_many,
        DOGPILE: partial(dogpile_for_many, url),
        DJANGO_REDIS: django_redis_for_many,
    }
    return {name: door for name, door in doors.items() if is_installed(name)}


# Doors that are awaited


def cashews_cache(url: str) -> Any:
    """Return a cache of the running loop; ``await cache.close()`` gives back its connections."""
    cache: Any = import_module("cashews").Cache()
    cache.setup(url, suppress=False)
    return cache


def cashews(cache: Any, function: AsyncGet) -> AsyncGet:
    cached: AsyncGet = cache(ttl=TTL, key="user:{user_id}")(function)
    return cached


def cashews_with_tag(cache: Any, function: AsyncGet) -> AsyncGet:
    cached: AsyncGet = cache(ttl=TTL, key="tagged:{user_id}", tags=["team:{user_id}"])(function)
    return cached


def django_redis_awaited(function: AsyncGet) -> AsyncGet:
    """Return what is written without a decorator: on Django 5.2 ``aget_or_set`` would store a coroutine."""
    from django.core.cache import caches

    cache = caches["djrd:default"]

    async def get(user_id: int) -> Any:
        found = await cache.aget(f"user:{user_id}")
        if found is None:
            found = await function(user_id)
            await cache.aset(f"user:{user_id}", found, TTL)
        return found

    return get
