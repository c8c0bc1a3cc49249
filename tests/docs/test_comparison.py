"""What README and explanation/comparison.md say of Django's own cache and of django-redis 7, tried."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import django
import pytest
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.redis import RedisCache as DjangosOwn
from django_redis.cache import RedisCache as DjangoRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from redis_infra.cache import RedisCache
from redis_infra.testing import RedisServer, TcpProxy

DURABLE = {"appendonly": "yes", "appendfsync": "no"}
OURS = "redis_infra"
PEERS = ["django", "django-redis"]
ALL = [*PEERS, OURS]
Make = Callable[..., Any]


@pytest.fixture
def make(make_cache: Callable[..., RedisCache]) -> Make:
    """Make a cache of one of the three: ``make("django-redis", url, IGNORE_EXCEPTIONS=True)``."""

    def build(kind: str, url: str, **options: Any) -> Any:
        if kind == OURS:
            return make_cache(url, KEY_PREFIX="mine", **options)
        cls = DjangosOwn if kind == "django" else DjangoRedis
        return cls(url, {"KEY_PREFIX": "mine", "OPTIONS": options})

    return build


@pytest.mark.parametrize("kind", ALL)
def test_when_redis_refuses(kind: str, make: Make, redis_down: RedisServer) -> None:
    cache = make(kind, redis_down.url)
    if kind == OURS:
        assert (cache.get("k"), cache.add("n", 1), cache.incr("n")) == (None, True, 2)
    else:
        with pytest.raises(RedisConnectionError):
            cache.get("k")


def test_what_django_redis_answers_when_it_ignores_errors(make: Make, redis_down: RedisServer) -> None:
    cache = make("django-redis", redis_down.url, IGNORE_EXCEPTIONS=True)
    assert cache.get("k", "default") == "default"
    assert [cache.incr("n"), cache.add("n", 1), cache.has_key("n"), cache.keys("*")] == [None] * 4


@pytest.mark.parametrize("method", ["touch", "ttl", "smembers", "hlen", "zcard"])
def test_what_django_redis_raises_all_the_same(method: str, make: Make, redis_down: RedisServer) -> None:
    cache = make("django-redis", redis_down.url, IGNORE_EXCEPTIONS=True)
    with pytest.raises(RedisConnectionError):
        getattr(cache, method)("k")


@pytest.mark.parametrize("kind", ALL)
def test_deleted_while_redis_was_away(kind: str, make: Make, redis_proxy: TcpProxy) -> None:
    options = {"IGNORE_EXCEPTIONS": True} if kind == "django-redis" else {}
    cache = make(kind, redis_proxy.url, **options)
    cache.set("k", "old")
    redis_proxy.refuse()
    try:
        cache.delete("k")
    except RedisConnectionError:
        assert kind == "django"
    redis_proxy.heal()
    deadline = time.monotonic() + 20
    while getattr(cache, "is_degraded", False):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert cache.get("k") == (None if kind == OURS else "old")


@pytest.mark.parametrize("method", ["aget", "aset", "adelete", "aget_many", "aset_many", "aincr", "ahas_key"])
def test_whose_coroutines_are_djangos_thread_hops(method: str) -> None:
    inherited = getattr(BaseCache, method)
    assert getattr(DjangosOwn, method) is getattr(DjangoRedis, method) is inherited
    assert getattr(RedisCache, method) is not inherited


@pytest.mark.parametrize("kind", ALL)
def test_twenty_aincr_at_once(kind: str, make: Make, redis_server: Any) -> None:
    cache = make(kind, redis_server.url)
    cache.set("n", 0)

    async def count() -> None:
        await asyncio.gather(*[cache.aincr("n") for _ in range(20)])

    asyncio.run(count())
    # Django 6.1 calls an incr that is the backend's own, in a thread, instead of reading and writing.
    assert (cache.get("n") == 20) is (kind == OURS or django.VERSION >= (6, 1))


@pytest.mark.parametrize("kind", ALL)
def test_what_clear_empties(kind: str, make: Make, redis_server: Any) -> None:
    cache = make(kind, redis_server.url)
    cache.set("k", 1)
    redis_server.command("SET", "somebody else's", "1")
    cache.clear()
    assert cache.get("k") is None
    assert redis_server.command("EXISTS", "somebody else's") == (1 if kind == OURS else 0)


@pytest.mark.parametrize("kind", ALL)
def test_a_timeout_of_half_a_second(kind: str, make: Make, redis_server: Any) -> None:
    cache = make(kind, redis_server.url)
    cache.set("k", 1, timeout=0.5)
    left = redis_server.command("PTTL", "mine:1:k")
    assert left == -2 if kind == "django" else 0 < left <= 500


@pytest.mark.parametrize("kind", ALL)
def test_a_value_that_cannot_be_read(kind: str, make: Make, redis_server: Any) -> None:
    cache = make(kind, redis_server.url)
    redis_server.command("SET", "mine:1:k", pickle.dumps("cut off")[:-4])
    if kind == OURS:
        assert cache.get("k") is None
    else:
        with pytest.raises((UnpicklingError, EOFError)):
            cache.get("k")


@pytest.mark.parametrize("method", ["sadd", "hset", "zadd", "lock", "ttl", "delete_pattern"])
def test_who_has_more_than_djangos_methods(method: str) -> None:
    assert [hasattr(cls, method) for cls in (DjangosOwn, DjangoRedis, RedisCache)] == [False, True, True]


def test_what_django_redis_has_and_we_have_not() -> None:
    from django_redis.client import HerdClient, SentinelClient, ShardClient
    from django_redis.compressors.gzip import GzipCompressor
    from django_redis.compressors.lzma import LzmaCompressor

    theirs = (HerdClient, SentinelClient, ShardClient, GzipCompressor, LzmaCompressor)
    assert all(inspect.isclass(each) for each in theirs)
