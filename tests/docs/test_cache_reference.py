"""What reference/cache.md says of each method, tried: coroutine, round trips, answers in an outage."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django_redis.cache import RedisCache as DjangoRedisCache

from redis_infra.cache import RedisCache
from redis_infra.exceptions import StoreUnavailable
from redis_infra.testing import TcpProxy
from tests.docs.pages import page

PAGE = page("reference/cache.md")
WHEN = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)

CALLS: dict[str, tuple[Any, ...]] = {
    "get": ("hit",),
    "get_many": (["hit", "counter"],),
    "has_key": ("hit",),
    "set": ("new", 1),
    "add": ("new", 1),
    "set_many": ({"a": 1, "b": 2},),
    "get_or_set": ("hit", 1),
    "touch": ("hit", 10),
    "delete": ("hit",),
    "delete_many": (["hit", "counter"],),
    "incr": ("counter",),
    "decr": ("counter",),
    "incr_version": ("hit",),
    "decr_version": ("hit",),
    "close": (),
    "incr_or_create": ("new",),
}
"""Arguments with which a method goes to Redis as often as its row says first."""

NEEDS_REDIS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("ttl", "pttl", "persist", "lock", "keys", "iter_keys"), ("k",)),
    **dict.fromkeys(("expire", "pexpire"), ("k", 10)),
    **dict.fromkeys(("expire_at", "pexpire_at"), ("k", WHEN)),
    **dict.fromkeys(("scard", "smembers", "spop", "srandmember", "sscan", "sscan_iter"), ("k",)),
    **dict.fromkeys(("sadd", "sismember", "smismember", "srem"), ("k", "m")),
    **dict.fromkeys(("sdiff", "sinter", "sunion"), ("k", "l")),
    **dict.fromkeys(("sdiffstore", "sinterstore", "sunionstore"), ("d", "k", "l")),
    "smove": ("k", "l", "m"),
    **dict.fromkeys(("hdel", "hexists"), ("k", "f")),
    **dict.fromkeys(("hkeys", "hlen"), ("k",)),
    "hset": ("k", "f", 1),
    "zadd": ("k", {"m": 1.0}),
    **dict.fromkeys(("zcard", "zpopmax", "zpopmin"), ("k",)),
    **dict.fromkeys(("zrank", "zrem", "zscore"), ("k", "m")),
    "zincrby": ("k", 1.0, "m"),
    **dict.fromkeys(
        ("zcount", "zrange", "zrangebyscore", "zremrangebyscore", "zrevrange", "zrevrangebyscore"),
        ("k", 0, 1),
    ),
}


ROWS = {re.sub(r"\W.*", "", row[0].strip("`")): row for row in PAGE.table("method")}
"""The rows of all tables of methods, by name."""


@pytest.fixture
def cache(make_cache: Callable[..., RedisCache], redis_proxy: TcpProxy) -> RedisCache:
    return make_cache(redis_proxy.url)


def test_the_tables_have_rows() -> None:
    assert {*CALLS, "clear", "delete_pattern", "status"} <= {*ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_coroutine_is_the_one_that_there_is(name: str) -> None:
    said = ROWS[name][1].strip("`")
    assert said == (f"a{name}" if hasattr(RedisCache, f"a{name}") else "")


@pytest.mark.parametrize("name", CALLS)
def test_round_trips_are_as_many_as_the_page_says(
    name: str, cache: Any, call: Callable[..., Any], redis_proxy: TcpProxy
) -> None:
    def prepare() -> None:
        cache.delete("new")
        cache.set_many({"hit": "value", "counter": 1})

    prepare()
    call(getattr(cache, name), *CALLS[name])  # connects, and lets the server meet the script
    prepare()
    redis_proxy.reset_counts()
    call(getattr(cache, name), *CALLS[name])
    said = re.match(r"\d+", ROWS[name][-1])
    assert said
    assert redis_proxy.round_trips == int(said[0])


def test_a_miss_is_a_round_trip_more(cache: Any, call: Callable[..., Any], redis_proxy: TcpProxy) -> None:
    call(cache.get, "connect")
    redis_proxy.reset_counts()
    assert call(cache.get_or_set, "missing", 1) == 1
    assert redis_proxy.round_trips == 2


def test_a_float_is_counted_in_three(cache: Any, call: Callable[..., Any], redis_proxy: TcpProxy) -> None:
    cache.set("k", 0.5)
    call(cache.incr, "k")  # the server meets the scripts
    redis_proxy.reset_counts()
    assert call(cache.incr, "k") == 2.5
    assert redis_proxy.round_trips == 3


def test_a_thousand_keys_are_one_round_trip_and_more_are_more(
    cache: Any, call: Callable[..., Any], redis_proxy: TcpProxy
) -> None:
    keys = [f"k{number}" for number in range(2500)]
    trips = []
    call(cache.get, "connect")
    for method, argument in (
        (cache.set_many, dict.fromkeys(keys, 1)),
        (cache.get_many, keys),
        (cache.delete_many, keys),
    ):
        redis_proxy.reset_counts()
        call(method, argument)
        trips.append(redis_proxy.round_trips)
    assert trips == [3, 3, 3]


def test_what_needs_redis_is_listed_and_nothing_else() -> None:
    theirs = {name for name in vars(DjangoRedisCache) if not name.startswith("_")}
    ours = {name for name in vars(RedisCache) if not name.startswith("_")}
    assert {*NEEDS_REDIS} == (theirs - ours) | {"lock", "keys", "iter_keys"}
    listed = {name for row in PAGE.table("for") for name in re.findall(r"`(\w+)`", row[1])}
    assert {*NEEDS_REDIS} - {"keys", "iter_keys"} == listed - {"client"} - {"redis"}


@pytest.mark.parametrize("name", NEEDS_REDIS)
def test_what_needs_redis_refuses_without_it(
    name: str, make_cache: Callable[..., RedisCache], redis_down: Any
) -> None:
    cache = make_cache(redis_down.url)
    with pytest.raises(StoreUnavailable):
        _consume(getattr(cache, name)(*NEEDS_REDIS[name]))


def _consume(answer: Any) -> None:
    """Generators and locks ask Redis when they are used."""
    if isinstance(answer, Iterator):
        list(answer)
    else:
        answer.acquire(blocking=False)


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("get", ("k",), None),
        ("set", ("k", 1), None),
        ("add", ("k", 1), True),
        ("touch", ("k",), False),
        ("delete", ("k",), False),
        ("delete_many", (["k"],), 0),
        ("delete_pattern", ("*",), 0),
        ("incr_or_create", ("k", 3), 3),
    ],
)
def test_what_miss_answers(
    name: str,
    arguments: tuple[Any, ...],
    answer: Any,
    make_cache: Callable[..., RedisCache],
    call: Callable[..., Any],
    redis_down: Any,
) -> None:
    cache = make_cache(redis_down.url, ON_OUTAGE="miss")
    call(cache.set, "k", 1)
    assert call(getattr(cache, name), *arguments) == answer
