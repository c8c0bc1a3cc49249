"""What a Django site can use as a cache, each with the operations that the suite times.

An operation is the bare call, and beside it how to prepare for it and how to tell that it did what it
should: nobody is timed before that was checked. Peers work on one server under prefixes of their own.
redis-py moves the ready-made bytes of the value; whoever speaks Django's cache API pickles it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.limits import RawProtocol, RawSocket, pack

if TYPE_CHECKING:
    import redis
    import redis.asyncio
    from django.core.cache.backends.base import BaseCache

    from benchmarks.lean import LeanAsyncClient, LeanClient

OURS = "redis_infra"
DJANGO_REDIS = "django-redis"
DJANGO = "Django RedisCache"
LOCMEM = "Django locmem"
RAW_SOCKET = "limit: raw socket"
RAW_ASYNCIO = "limit: asyncio protocol"
LEAN = "lean client, no safety"

VALUE: dict[str, Any] = {"id": 42, "name": "Ada Lovelace", "mail": "ada.lovelace@example.org", "active": True}
PICKLED = pickle.dumps(VALUE, pickle.HIGHEST_PROTOCOL)  # about 100 bytes
KEY = "user:42"
COUNTER = "visits:42"
MANY = {f"message:{number:03}": VALUE for number in range(100)}
TTL = 3600
TASKS = 50

AnyRedis = Any  # redis-py's stubs promise Awaitable | value for one and the same client


@dataclass(frozen=True, slots=True)
class Operation:
    """``prepare()``, then ``call()``; ``is_right`` says of its result, and of what is stored, if it worked.

    Where the call returns an awaitable, the result is what that gives, and ``tasks`` is how many tasks
    are to await it at the same time.
    """

    call: Callable[[], Any]
    prepare: Callable[[], object]
    is_right: Callable[[Any], bool]
    tasks: int = 1


Operations = Mapping[str, Operation]


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to fill in ``CACHES[alias]``; ``path`` is its class."""

    path: str
    prefix: str
    on_redis: bool = True

    def settings(self, url: str, **options: Any) -> dict[str, Any]:
        """Return the entry for ``CACHES``."""
        location = url if self.on_redis else self.prefix
        return {"BACKEND": self.path, "LOCATION": location, "KEY_PREFIX": self.prefix, "OPTIONS": options}


BACKENDS = {
    OURS: Backend("redis_infra.cache.RedisCache", "ours"),
    DJANGO_REDIS: Backend("django_redis.cache.RedisCache", "djrd"),
    DJANGO: Backend("django.core.cache.backends.redis.RedisCache", "djco"),
    LOCMEM: Backend("django.core.cache.backends.locmem.LocMemCache", "lmem", on_redis=False),
}


def configure(caches: Mapping[str, Mapping[str, Any]], *, state_dir: str) -> None:
    """Set Django up with these caches, once a process.

    ``state_dir`` keeps what ours notes of an outage out of the directory that sites of this machine use.
    """
    import django
    from django.conf import settings

    app = OURS if any(cache["BACKEND"] == BACKENDS[OURS].path for cache in caches.values()) else None
    settings.configure(
        CACHES={"default": BACKENDS[LOCMEM].settings(""), **caches},
        INSTALLED_APPS=[app] if app else [],
        REDIS_INFRA={"STATE_DIR": state_dir},
        SECRET_KEY="only for benchmarks",
        USE_TZ=True,
    )
    django.setup()


def django_operations(cache: BaseCache | LeanClient) -> Operations:
    """Return what Django's cache API can do."""
    fill = partial(cache.set, KEY, VALUE, TTL)

    def is_filled(_: object = None) -> bool:
        return bool(cache.get(KEY) == VALUE)

    return {
        "get": Operation(partial(cache.get, KEY), fill, lambda result: result == VALUE),
        "set": Operation(fill, partial(cache.delete, KEY), is_filled),
        "add": Operation(
            partial(cache.add, KEY, "taken", TTL), fill, lambda result: not result and is_filled()
        ),
        "incr": Operation(
            partial(cache.incr, COUNTER), partial(cache.set, COUNTER, 41, TTL), lambda result: result == 42
        ),
        "touch": Operation(partial(cache.touch, KEY, TTL), fill, lambda result: result is True),
        "get_many": Operation(
            partial(cache.get_many, list(MANY)),
            partial(cache.set_many, MANY, TTL),
            lambda result: result == MANY,
        ),
        "set_many": Operation(
            partial(cache.set_many, MANY, TTL),
            partial(cache.delete_many, list(MANY)),
            lambda failed: not failed and cache.get_many(list(MANY)) == MANY,
        ),
    }


def django_async_operations(cache: BaseCache | LeanAsyncClient, filler: BaseCache | LeanClient) -> Operations:
    """Return what the asynchronous half of Django's cache API can do; ``filler`` prepares its keys."""
    fill = partial(filler.set, KEY, VALUE, TTL)
    get = Operation(partial(cache.aget, KEY), fill, lambda result: result == VALUE)
    return {
        "aget": get,
        "aget_50": replace(get, tasks=TASKS),
        "aget_many": Operation(
            partial(cache.aget_many, list(MANY)),
            partial(filler.set_many, MANY, TTL),
            lambda result: result == MANY,
        ),
    }


def redis_operations(client: redis.Redis, prefix: str) -> Operations:
    """Return the same in bytes, through redis-py."""
    store: AnyRedis = client
    key, counter = f"{prefix}:1:{KEY}", f"{prefix}:1:{COUNTER}"
    many = {f"{prefix}:1:{name}": PICKLED for name in MANY}
    fill = partial(store.set, key, PICKLED, ex=TTL)

    def are_filled(values: object) -> bool:
        return values == list(many.values())

    def set_many() -> object:
        pipeline = store.pipeline(transaction=False)
        for name, value in many.items():
            pipeline.set(name, value, ex=TTL)
        return pipeline.execute()

    return {
        "get": Operation(partial(store.get, key), fill, lambda result: result == PICKLED),
        "set": Operation(fill, partial(store.delete, key), lambda _: store.get(key) == PICKLED),
        "add": Operation(
            partial(store.set, key, b"taken", ex=TTL, nx=True), fill, lambda result: result is None
        ),
        "incr": Operation(
            partial(store.incr, counter), partial(store.set, counter, 41), lambda result: result == 42
        ),
        "touch": Operation(partial(store.expire, key, TTL), fill, lambda result: result is True),
        "get_many": Operation(partial(store.mget, list(many)), set_many, are_filled),
        "set_many": Operation(
            set_many, partial(store.delete, *many), lambda _: are_filled(store.mget(list(many)))
        ),
    }


def redis_async_operations(client: redis.asyncio.Redis, helper: redis.Redis, prefix: str) -> Operations:
    """Return the same on an event loop; ``helper`` is who prepares."""
    store: AnyRedis = client
    prepared = redis_operations(helper, prefix)
    get = Operation(
        partial(store.get, f"{prefix}:1:{KEY}"), prepared["get"].prepare, prepared["get"].is_right
    )
    many = [f"{prefix}:1:{name}" for name in MANY]
    return {
        "aget": get,
        "aget_50": replace(get, tasks=TASKS),
        "aget_many": Operation(
            partial(store.mget, many), prepared["get_many"].prepare, prepared["get_many"].is_right
        ),
    }


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prebuilt command and the reply it must get, to the byte."""

    command: bytes
    reply: bytes


def raw_exchanges(prefix: str) -> dict[str, Exchange]:
    """Return what crosses the wire for each operation."""
    key = f"{prefix}:1:{KEY}"
    names = [f"{prefix}:1:{name}" for name in MANY]
    bulk = b"$%d\r\n%b\r\n" % (len(PICKLED), PICKLED)
    fill = pack("SET", key, PICKLED, "EX", TTL)
    get = pack("GET", key)
    return {
        "get": Exchange(get, bulk),
        "set": Exchange(fill, b"+OK\r\n"),
        "add": Exchange(pack("SET", key, "taken", "EX", TTL, "NX"), b"$-1\r\n"),
        "incr": Exchange(pack("INCR", f"{prefix}:1:{COUNTER}"), b":42\r\n"),
        "touch": Exchange(pack("EXPIRE", key, TTL), b":1\r\n"),
        "get_many": Exchange(pack("MGET", *names), b"*%d\r\n" % len(names) + bulk * len(names)),
        "set_many": Exchange(
            b"".join(pack("SET", name, PICKLED, "EX", TTL) for name in names), b"+OK\r\n" * len(names)
        ),
        "get_50": Exchange(get * TASKS, bulk * TASKS),
    }


def raw_operations(limit: RawSocket, helper: redis.Redis, prefix: str) -> Operations:
    """Return the limit of every operation."""
    prepared = redis_operations(helper, prefix)
    exchanges = raw_exchanges(prefix)

    def operation(slug: str) -> Operation:
        exchange = exchanges[slug]
        size = 1 if slug == "incr" else len(exchange.reply)  # a counter grows
        return Operation(
            partial(limit.exchange, exchange.command, size),
            prepared[slug].prepare,
            lambda received: received == len(exchange.reply) and limit.last_reply(received) == exchange.reply,
        )

    return {slug: operation(slug) for slug in prepared}


def raw_async_operations(limit: RawProtocol, helper: redis.Redis, prefix: str) -> Operations:
    """Return the limit of every awaited operation; fifty at once are one write and one reply."""
    prepared = redis_operations(helper, prefix)
    exchanges = raw_exchanges(prefix)

    def operation(slug: str, prepare: Callable[[], object]) -> Operation:
        exchange = exchanges[slug]
        return Operation(
            partial(limit.exchange, exchange.command, len(exchange.reply)),
            prepare,
            lambda _: limit.last_reply() == exchange.reply,
        )

    return {
        "aget": operation("get", prepared["get"].prepare),
        "aget_50": operation("get_50", prepared["get"].prepare),
        "aget_many": operation("get_many", prepared["get_many"].prepare),
    }
