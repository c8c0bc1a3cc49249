"""One WARNING when an outage begins, one INFO when it ends, and nothing per operation."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.instrumentation import Transition, TransitionLog
from redis_infra.testing import FakeClock, RedisServer
from tests.faults.site import MARGIN, wait_until

Log = Callable[[int], list[str]]
RECOVERED = 5.0 * MARGIN
QUICK = {"probe_base": "10ms", "probe_cap": "20ms"}


def recover(cache: Any) -> None:
    wait_until(lambda: cache.get("x") is None and not cache.is_degraded, RECOVERED)


def in_threads(count: int, action: Callable[[], Any]) -> None:
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        for _ in range(20):
            action()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("kind", ["kill", "freeze"])
def test_one_line_each_with_sixteen_threads(
    kind: str, server: RedisServer, make_cache: Any, log: Log
) -> None:
    cache = make_cache(server.url)
    in_threads(16, lambda: cache.set("k", 1))
    getattr(server, kind)()
    in_threads(16, lambda: cache.set("k", 1))
    (warning,) = log(logging.WARNING)
    assert "circuit_opened" in warning
    server.start() if kind == "kill" else server.thaw()
    recover(cache)
    (info,) = wait_until(lambda: log(logging.INFO), 1)
    assert "circuit_closed" in info
    assert len(log(logging.WARNING)) == 1
    assert log(logging.ERROR) == []


def test_one_line_each_with_fifty_tasks(server: RedisServer, make_cache: Any, log: Log) -> None:
    cache = make_cache(server.url)

    async def tasks() -> None:
        await asyncio.gather(*[cache.aset(f"k{number}", 1) for number in range(50)])

    asyncio.run(tasks())
    server.freeze()
    for _ in range(3):
        asyncio.run(tasks())
    server.thaw()
    recover(cache)
    wait_until(lambda: log(logging.INFO), 1)
    assert (len(log(logging.WARNING)), len(log(logging.INFO))) == (1, 1)


def test_the_lines_say_what_an_operator_asks(server: RedisServer, make_cache: Any, log: Log) -> None:
    """Why, where, how long, what it came to; and no password."""
    server.config_set("requirepass", "hunter2")
    cache = make_cache(server.url.replace("redis://", "redis://:hunter2@"))
    cache.set("k", 1)
    server.kill()
    for number in range(10):
        cache.delete(f"k{number}")
    (warning,) = log(logging.WARNING)
    assert "Connection" in warning
    assert "127.0.0.1" in warning
    server.start()
    server.config_set("requirepass", "hunter2")
    recover(cache)
    (info,) = wait_until(lambda: log(logging.INFO), 1)
    assert "lasted=" in info
    served = re.search(r"served_locally=(\d+)", info)
    assert served is not None
    assert int(served[1]) >= 10
    assert "drained=" in info
    assert "hunter2" not in warning + info


def test_an_outage_without_use_says_nothing(server: RedisServer, make_cache: Any, log: Log) -> None:
    make_cache(server.url).set("k", 1)
    server.kill()
    server.start()
    assert log(logging.WARNING) == []


def test_a_flapping_server_is_one_pair(server: RedisServer, make_cache: Any, log: Log) -> None:
    cache = make_cache(server.url, BREAKER=QUICK)
    for _ in range(10):
        server.kill()
        cache.get("k")
        assert cache.is_degraded
        server.start()
        recover(cache)
    assert (len(log(logging.WARNING)), len(log(logging.INFO))) == (1, 1)


def transition(before: str, after: str) -> Transition:
    return Transition(server="redis://x:6379", circuit="reach", before=before, after=after, cause="reset")


def test_a_server_that_flaps_all_day_is_a_pair_in_thirty_seconds(fake_clock: FakeClock, log: Log) -> None:
    lines = TransitionLog(clock=fake_clock)
    for _ in range(600):
        lines(transition("closed", "open"))
        fake_clock.advance(0.5)
        lines(transition("recovering", "closed"))
        fake_clock.advance(0.5)
    assert len(log(logging.WARNING)) == len(log(logging.INFO)) == 600 / 30


def test_an_outage_soon_after_another_one_is_not_kept_secret(fake_clock: FakeClock, log: Log) -> None:
    """The second one lasts: nobody may find out from the log that Redis is well."""
    lines = TransitionLog(clock=fake_clock)
    lines(transition("closed", "open"))
    fake_clock.advance(1)
    lines(transition("recovering", "closed"))
    fake_clock.advance(1)
    lines(transition("closed", "open"))
    for _ in range(60):
        fake_clock.advance(5)
        lines(transition("open", "half_open"))
        lines(transition("half_open", "open"))
    assert len(log(logging.WARNING)) == 2
    lines(transition("recovering", "closed"))
    assert len(log(logging.INFO)) == 2


def test_the_backoff_of_a_flapping_server_grows(server: RedisServer, make_cache: Any) -> None:
    """It is not asked more and more often because it answers now and then."""
    cache = make_cache(server.url)
    reach = cache._engine.database.endpoint.reach
    waits = []
    for _ in range(4):
        server.kill()
        cache.get("k")
        waits.append(reach.next_probe_at - time.monotonic())
        server.start()
        recover(cache)
    assert waits[-1] > waits[0]


def test_starting_without_redis_says_so_once(refusing_url: str, make_cache: Any, log: Log) -> None:
    cache = make_cache(refusing_url)
    assert log(logging.WARNING) == []
    for _ in range(100):
        cache.get("k")
    assert len(log(logging.WARNING)) == 1
