"""What an outage costs the request that meets it: a budget, once; and then what memory costs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.testing import RedisServer, TcpProxy
from tests.faults.site import MARGIN

BUDGET = 0.55 * MARGIN
"""Seconds for a request of 20 operations on a server that just hangs: two timeouts and some."""

ONE_WAIT = 0.25 * MARGIN
AT_ONCE = 0.02 * MARGIN

Request = Callable[[Any], float]


def request(cache: Any) -> float:
    """Twenty operations of a view; return the seconds that they took."""
    began = time.monotonic()
    for number in range(5):
        cache.set(f"k{number}", number)
        assert cache.get(f"k{number}") in (number, None)
        cache.get_many(["k1", "k2", "k3"])
        cache.delete(f"k{number}")
    return time.monotonic() - began


async def arequest(cache: Any) -> float:
    began = time.monotonic()
    for number in range(5):
        await cache.aset(f"k{number}", number)
        assert await cache.aget(f"k{number}") in (*range(50), None)
        await cache.aget_many(["k1", "k2", "k3"])
        await cache.adelete(f"k{number}")
    return time.monotonic() - began


@pytest.fixture(params=["sync", "async"])
def run_request(request: pytest.FixtureRequest) -> Any:
    if request.param == "sync":
        yield globals()["request"]
        return
    with asyncio.Runner() as runner:
        yield lambda cache: runner.run(arequest(cache))


@pytest.fixture
def cache(server: RedisServer, make_cache: Callable[..., Any]) -> Any:
    return make_cache(server.url)


def at_once(count: int, action: Callable[[], float]) -> list[float]:
    """Do it in so many threads at the same moment; return what each gave."""
    barrier, results = threading.Barrier(count), []

    def run() -> None:
        barrier.wait()
        results.append(action())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_server_that_hangs_costs_a_process_its_budget_once(
    server: RedisServer, cache: Any, run_request: Request
) -> None:
    run_request(cache)
    server.freeze()
    assert run_request(cache) < BUDGET
    assert cache.is_degraded
    assert run_request(cache) < AT_ONCE


def test_a_server_that_hangs_before_it_was_ever_used(
    server: RedisServer, cache: Any, run_request: Request
) -> None:
    server.freeze()
    assert run_request(cache) < BUDGET
    assert run_request(cache) < AT_ONCE


def test_a_killed_server_costs_next_to_nothing(server: RedisServer, cache: Any, run_request: Request) -> None:
    run_request(cache)
    server.kill()
    assert run_request(cache) < AT_ONCE
    assert cache.is_degraded


def test_a_link_that_swallows_everything(
    proxy: TcpProxy, make_cache: Callable[..., Any], run_request: Request
) -> None:
    """Half-open: no reset, no reply; a firewall that forgot the connection."""
    cache = make_cache(proxy.url)
    run_request(cache)
    proxy.drop()
    assert run_request(cache) < BUDGET
    assert cache.is_degraded


@pytest.mark.parametrize("opened", [True, False], ids=["warm", "cold"])
def test_sixteen_threads_wait_together(server: RedisServer, cache: Any, opened: bool) -> None:
    if opened:
        at_once(16, lambda: request(cache))
    server.freeze()
    assert max(at_once(16, lambda: request(cache))) < BUDGET
    assert cache.is_degraded


@pytest.mark.parametrize("opened", [True, False], ids=["warm", "cold"])
def test_fifty_tasks_wait_together(server: RedisServer, cache: Any, opened: bool) -> None:
    async def tasks() -> list[float]:
        return await asyncio.gather(*[arequest(cache) for _ in range(50)])

    with asyncio.Runner() as runner:
        if opened:
            runner.run(tasks())
        server.freeze()
        assert max(runner.run(tasks())) < BUDGET
    assert cache.is_degraded


def test_threads_that_share_two_connections_wait_no_longer(
    server: RedisServer, make_cache: Callable[..., Any]
) -> None:
    """A queue for connections must not multiply the wait by its length."""
    cache = make_cache(server.url, MAX_CONNECTIONS=2)
    server.freeze()
    assert max(at_once(16, lambda: request(cache))) < BUDGET


def test_a_reply_that_drips_is_bounded_as_a_whole(
    proxy: TcpProxy, make_cache: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """A timeout for each byte would make this one take five seconds."""
    cache = make_cache(proxy.url)
    call(cache.set, "k", "x" * 50)
    proxy.drip(1, 0.1)
    began = time.monotonic()
    assert call(cache.get, "k") is None
    assert time.monotonic() - began < ONE_WAIT


def test_a_slow_network_is_bounded_as_a_whole_on_a_new_connection_too(
    proxy: TcpProxy, make_cache: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """Greeting and command are two round trips, and one operation."""
    cache = make_cache(proxy.url)
    proxy.delay(0.1)
    began = time.monotonic()
    call(cache.get, "k")
    assert time.monotonic() - began < ONE_WAIT


def test_a_host_that_was_held_up_itself_blames_nobody(server: RedisServer, cache: Any) -> None:
    """A loop that was blocked for longer than the deadline reads what has come before it judges."""

    async def blocked() -> Any:
        await cache.aset("k", "v")
        reading = asyncio.ensure_future(cache.aget("k"))
        await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251 - a slow view
        return await reading

    for _ in range(3):
        assert asyncio.run(blocked()) == "v"
    assert cache.status()["counters"]["failures"] == 0
