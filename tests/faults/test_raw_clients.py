"""Raw clients: they wait as long as they ask, and otherwise pass the same guard."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.cache import CacheHandler
from django_redis import get_redis_connection

from redis_infra.exceptions import StoreUnavailable
from redis_infra.testing import RedisServer, TcpProxy
from tests.faults.site import MARGIN, wait_until

LONGER = 0.4
"""Seconds: more than COMMAND_TIMEOUT, which is what a command of the usual kind would wait."""


@pytest.fixture
def cache(server: RedisServer, make_cache: Callable[..., Any]) -> Any:
    return make_cache(server.url)


@pytest.fixture
def client(cache: Any) -> Any:
    return cache.client.get_client(write=True)


WAITING: dict[str, Callable[[Any], Any]] = {
    "blpop": lambda client: client.blpop("queue", timeout=LONGER),
    "brpop": lambda client: client.brpop("queue", timeout=LONGER),
    "blmove": lambda client: client.blmove("queue", "other", LONGER),
    "bzpopmin": lambda client: client.bzpopmin("queue", timeout=LONGER),
    "xread": lambda client: client.xread({"stream": "$"}, block=int(LONGER * 1000)),
    "xread, count": lambda client: client.xread({"stream": "$"}, count=10, block=int(LONGER * 1000)),
    "xreadgroup": lambda client: client.xreadgroup("group", "me", {"stream": ">"}, block=int(LONGER * 1000)),
    "xreadgroup, count": lambda client: client.xreadgroup(
        "group", "me", {"stream": ">"}, count=10, block=int(LONGER * 1000)
    ),
    "xreadgroup, count and noack": lambda client: client.xreadgroup(
        "group", "me", {"stream": ">"}, count=10, block=int(LONGER * 1000), noack=True
    ),
    "by hand": lambda client: client.execute_command(
        "XREAD", "BLOCK", int(LONGER * 1000), "STREAMS", "s", "$"
    ),
    "lower case": lambda client: client.execute_command("blpop", "queue", str(LONGER)),
    "bytes": lambda client: client.execute_command(b"BLPOP", b"queue", str(LONGER)),
    "one string": lambda client: client.execute_command("BLPOP queue", str(LONGER)),
    "wait": lambda client: client.wait(5, int(LONGER * 1000)),
}


@pytest.mark.parametrize("wait", WAITING.values(), ids=WAITING)
def test_who_asks_to_wait_waits(cache: Any, client: Any, wait: Callable[[Any], Any]) -> None:
    client.xgroup_create("stream", "group", mkstream=True)
    began = time.monotonic()
    assert not wait(client)
    assert time.monotonic() - began > LONGER * 0.9
    assert not cache.is_degraded
    assert cache.status()["counters"]["failures"] == 0


@contextmanager
def later(action: Callable[..., Any], *args: Any) -> Iterator[None]:
    """Act while the block waits, and be done, reply and all, before the server may go."""
    timer = threading.Timer(LONGER, action, args)
    timer.start()
    yield
    timer.join()


def test_who_waits_gets_what_comes(cache: Any, client: Any) -> None:
    with later(client.rpush, "queue", "job"):
        assert client.blpop("queue", timeout=60) == (b"queue", b"job")


def test_subscribers_wait(cache: Any, client: Any) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe("news")
        assert subscriber.get_message(timeout=LONGER) is None
        assert wait_until(lambda: client.publish("news", "hello"), MARGIN) == 1
        assert wait_until(lambda: subscriber.get_message(timeout=1), MARGIN)["data"] == b"hello"
    assert cache.status()["counters"]["failures"] == 0


def test_a_listener_hears_what_comes_late(client: Any) -> None:
    with client.pubsub() as subscriber:
        subscriber.subscribe("news")
        messages = subscriber.listen()
        assert next(messages)["type"] == "subscribe"
        with later(client.publish, "news", "hello"):
            assert next(messages)["data"] == b"hello"


def test_who_waits_does_not_hold_up_the_rest(cache: Any, client: Any, make_cache: Any, server: Any) -> None:
    """Blocking clients have connections of their own: they do not use up those of the cache."""
    small = make_cache(server.url, MAX_CONNECTIONS=2)
    raw = small.client.get_client(write=True)
    threads = [threading.Thread(target=raw.blpop, args=("queue", LONGER)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(50):
        assert small.set("k", number) is True
        assert small.get("k") == number
    for thread in threads:
        thread.join()


def test_the_connection_of_an_alias(server: RedisServer, settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": server.url}}
    client = get_redis_connection("default")
    assert client.set("k", "v") is True
    assert client.blpop("queue", timeout=0.3) is None


def test_an_exhausted_pool_opens_nothing(server: RedisServer, make_cache: Any, call: Any) -> None:
    cache = make_cache(server.url, MAX_CONNECTIONS=1, POOL_WAIT=0.001)
    cache.set("k", "old")
    link = cache._engine.connections.pool.acquire()
    # A loop has connections of its own; those of the threads are what is used up.
    for _ in range(10):
        assert cache.get("k") is None
        assert cache.set("other", 1) is None
    assert not cache.is_degraded
    cache._engine.connections.pool.give_back(link)
    assert call(cache.get, "k") == "old"
    wait_until(lambda: cache.status()["pending"] == 0, MARGIN)


def test_while_open_everything_raw_fails_at_once(server: RedisServer, cache: Any, client: Any) -> None:
    client.set("k", 1)
    server.freeze()
    for _ in range(3):
        cache.get("k")
    began = time.monotonic()
    for attempt in (
        lambda: client.get("k"),
        lambda: client.pipeline().get("k").execute(),
        lambda: client.blpop("queue", timeout=10),
        client.pubsub,
        lambda: client.eval("return 1", 0),
        lambda: client.lock("l", timeout=1).acquire(),
        lambda: list(client.scan_iter("*")),
        lambda: client.transaction(lambda pipe: pipe.get("k"), "k"),
    ):
        with pytest.raises(StoreUnavailable):
            attempt()
    assert time.monotonic() - began < 0.1 * MARGIN


def test_raw_commands_vote(server: RedisServer, cache: Any, client: Any) -> None:
    """A queue worker that never touches the cache opens the circuit for the rest of the process."""
    client.get("k")
    server.freeze()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            client.get("k")
    assert cache.is_degraded


def test_a_raw_counter_is_never_sent_twice(proxy: TcpProxy, make_cache: Any, server: RedisServer) -> None:
    client = make_cache(proxy.url).client.get_client(write=True)
    client.get("x")
    proxy.lose_replies(1, request=b"INCR")
    with pytest.raises(StoreUnavailable):
        client.incr("n")
    assert server.command("GET", "n") == b"1"


def test_a_raw_pipeline_is_never_sent_twice(proxy: TcpProxy, make_cache: Any, server: RedisServer) -> None:
    client = make_cache(proxy.url).client.get_client(write=True)
    client.get("x")
    proxy.lose_replies(1, request=b"INCR")
    with pytest.raises(StoreUnavailable):
        client.pipeline().incr("n").incr("n").execute()
    assert server.command("GET", "n") == b"2"


def test_a_lost_connection_while_waiting_is_an_error_and_no_vote(proxy: TcpProxy, make_cache: Any) -> None:
    from redis.exceptions import ConnectionError as RedisConnectionError

    cache = make_cache(proxy.url)
    client = cache.client.get_client(write=True)
    client.get("x")
    with later(proxy.reset), pytest.raises(RedisConnectionError):
        client.blpop("queue", timeout=30)
    assert not cache.is_degraded


def test_caches_made_by_django(server: RedisServer) -> None:
    """Two aliases on one server learn of its outage together."""
    handler = CacheHandler(
        {
            "a": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": server.url},
            "b": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": server.url.replace("/0", "/1")},
        }
    )
    for alias in "ab":
        handler[alias].set("k", alias)
    server.freeze()
    for _ in range(3):
        handler["a"].get("k")
    began = time.monotonic()
    handler["b"].get("k")
    assert time.monotonic() - began < 0.02 * MARGIN
    assert handler["b"].is_degraded
    server.thaw()
    wait_until(lambda: not handler["b"].is_degraded, 5 * MARGIN)
    assert handler["b"].get("k") == "b"
