"""Sets that timed out lie in the sockets of a frozen server, and it executes them when it wakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from redis_infra.connection.plainsocket import PlainConnection
from redis_infra.testing import RedisServer
from tests.faults.holding import HoldingProxy
from tests.faults.site import MARGIN, wait_until

CONNECTIONS = 50
KEYS_EACH = 40
VALUE = "x" * 1000


def name(connection: int, number: int) -> str:
    return f"late{connection}-{number}"


NAMES = [name(connection, number) for connection in range(CONNECTIONS) for number in range(KEYS_EACH)]


@pytest.fixture
def cache(server: RedisServer, make_cache: Any) -> Any:
    """A cache with many connections open, as after a busy hour."""
    cache = make_cache(server.url, KEY_PREFIX="p", MAX_CONNECTIONS=2 * CONNECTIONS)
    pool = cache._engine.connections.pool
    for link in [pool.acquire() for _ in range(CONNECTIONS)]:
        pool.give_back(link)
    return cache


@contextmanager
def load_of_another_client(server: RedisServer) -> Iterator[None]:
    """Requests that keep the server busy from the moment it wakes."""
    stop = threading.Event()

    def work() -> None:
        with PlainConnection(server._socket_path, timeout=60) as connection:
            while not stop.is_set():
                connection.call("EVAL", "for i = 1, 20000 do redis.call('GET', 'other') end", 0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        server.thaw()
        for thread in threads:
            thread.join()


def set_all(cache: Any) -> None:
    """Two thousand sets at once, in so many sockets."""
    barrier = threading.Barrier(CONNECTIONS)

    def set_some(connection: int) -> None:
        barrier.wait()
        cache.set_many({name(connection, number): VALUE for number in range(KEYS_EACH)})

    threads = [threading.Thread(target=set_some, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def what_is_there(server: RedisServer) -> int:
    return int(server.command("EXISTS", *[f"p:1:{each}" for each in NAMES], timeout=30))


def expect_nothing_late(server: RedisServer, cache: Any) -> None:
    server.freeze()
    set_all(cache)
    cache.delete_many(NAMES)
    server.thaw()
    wait_until(lambda: not cache.is_degraded and cache.status()["pending"] == 0, 10 * MARGIN)
    assert cache.get_many(NAMES) == {}
    # A server that has told a client of now what it has, and again, has read what came before.
    for _ in range(3):
        assert what_is_there(server) == 0


@pytest.fixture
def holding(own_redis: Any) -> Iterator[HoldingProxy]:
    """A proxy that delivers late, in front of a server of this test."""
    with HoldingProxy(own_redis()._socket_path) as proxy:
        yield proxy


VALUES = {"a command": 10, "a batch": 100, "a batch that was cut short": 40_000}
"""Bytes of each of a thousand values; forty megabytes do not fit into the buffers on the way."""


@pytest.mark.parametrize("size", VALUES.values(), ids=VALUES)
def test_what_a_proxy_delivers_after_the_drain_finds_its_connection_closed(
    holding: HoldingProxy, make_cache: Any, size: int
) -> None:
    """No luck is in it: it comes when all has been put right, and the server would execute it."""
    cache = make_cache(holding.url, KEY_PREFIX="p")
    names = [f"k{number}" for number in range(1000 if size > 10 else 1)]
    cache.set("warm", 1)
    holding.hold()
    assert cache.set_many(dict.fromkeys(names, "x" * size)) == []
    cache.delete_many(names)
    wait_until(lambda: cache.get("x") is None and cache.status()["pending"] == 0, 5 * MARGIN)
    holding.deliver()
    expect_none(cache, names)


def test_nor_does_what_a_dead_process_had_sent(
    holding: HoldingProxy, make_site: Any, make_cache: Any
) -> None:
    """Who drains its journal has its connections killed: nobody else can."""
    site = make_site(holding.url, KEY_PREFIX="p")
    dies = site.process()
    names = [f"k{number}" for number in range(300)]
    dies.set("warm", 1)
    holding.hold()
    dies.set_many(dict.fromkeys(names, "x" * 100))
    dies.delete_many(names)
    dies.kill()
    cache = make_cache(holding.url, KEY_PREFIX="p", STATE_DIR=site.state_dir)
    wait_until(lambda: cache.get("x") is None and cache.status()["pending"] == 0, 5 * MARGIN)
    holding.deliver()
    expect_none(cache, names)


def expect_none(cache: Any, names: list[str]) -> None:
    """Look for as long as what was delivered may take to be executed."""
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert cache.get_many(names) == {}


def test_sets_that_timed_out_and_were_deleted_do_not_come_late(server: RedisServer, cache: Any) -> None:
    expect_nothing_late(server, cache)


def test_nor_under_another_clients_load(server: RedisServer, cache: Any) -> None:
    with load_of_another_client(server):
        expect_nothing_late(server, cache)


def test_nor_over_a_unix_socket(own_redis: Any, make_cache: Any) -> None:
    """There, what was sent can be read after the sender has closed."""
    server = own_redis()
    cache = make_cache(server.url, KEY_PREFIX="p", MAX_CONNECTIONS=2 * CONNECTIONS)
    pool = cache._engine.connections.pool
    for link in [pool.acquire() for _ in range(CONNECTIONS)]:
        pool.give_back(link)
    expect_nothing_late(server, cache)


def test_nor_where_client_kill_is_forbidden(own_redis: Any, make_cache: Any) -> None:
    server = own_redis()
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-client|kill")
    url = server.url.replace("unix://", "unix://app:secret@")
    cache = make_cache(url, KEY_PREFIX="p", MAX_CONNECTIONS=2 * CONNECTIONS)
    cache.set("warm", 1)
    assert cache.get("warm") == 1
    expect_nothing_late(server, cache)
    cache.set("k", 1)
    assert cache.get("k") == 1
