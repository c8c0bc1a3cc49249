"""Processes that fork, cannot start threads, are green, or have several loops: each recovers by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from redis_infra.testing import RedisServer
from tests.faults.outages import Outage
from tests.faults.site import MARGIN, wait_until
from tests.faults.test_stale import let_know, let_notice

BY_ITSELF = 5.0 * MARGIN
"""Seconds within which whatever is open closes again."""

GREEN = """
import sys, time
from gevent import monkey
monkey.patch_all()
import gevent
from django.conf import settings
settings.configure(SECRET_KEY="x", CACHES={})
from redis_infra.cache import RedisCache

url, state_dir = sys.argv[1:]
cache = RedisCache(url, {"OPTIONS": {"STATE_DIR": state_dir}})
ticks = 0

def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1

def ask(line):
    print(line, flush=True)
    assert sys.stdin.readline()

cache.set("k", "old")
assert cache.get("k") == "old"
gevent.spawn(tick)
ask("frozen?")
began = time.monotonic()
ticks = 0
gevent.joinall([gevent.spawn(cache.delete, "k") for _ in range(50)], raise_error=True)
assert time.monotonic() - began < 1.65, time.monotonic() - began
assert ticks > 5, ticks  # other greenlets went on
assert cache.is_degraded
ask("thawed?")
deadline = time.monotonic() + 15
while cache.is_degraded and time.monotonic() < deadline:
    cache.get("x")
    gevent.sleep(0.01)
assert not cache.is_degraded
assert cache.get("k") is None
cache.set("k", "new")
assert cache.get("k") == "new"
print("done")
"""


@pytest.fixture
def outage(make_outage: Any) -> Outage:
    return make_outage("refused")


def test_a_child_forked_while_open_recovers_by_itself(outage: Outage, make_site: Any) -> None:
    """The parent's prober is no thread of the child's."""
    parent = make_site(outage.url).process()
    let_know(parent)
    outage.begin()
    let_notice(parent)
    child = parent.fork()
    assert not any("prober" in name for name in child.threads())
    parent.kill()
    outage.end()
    wait_until(lambda: child.get("x") is None and child.is_well(), BY_ITSELF)
    assert child.get("k") == "old"


def test_a_child_leaves_its_parents_connections_alone(server: RedisServer, make_site: Any) -> None:
    parent = make_site(server.url).process()
    parent.set("k", "parent")
    child = parent.fork()
    for number in range(20):
        child.set("c", number)
        parent.set("p", number)
        assert child.get("c") == number
        assert parent.get("p") == number
    child.kill()
    assert parent.get("k") == "parent"
    assert parent.logs() == []


def test_a_child_forked_while_another_thread_uses_the_memory(server: RedisServer, make_cache: Any) -> None:
    """A lock that was held at the fork is nobody's in the child."""
    cache = make_cache(server.url)
    cache.get("k")
    server.kill()
    cache.set("k", "v")
    inside, leave = threading.Event(), threading.Event()

    def use(_name: str) -> bool:
        inside.set()
        return leave.wait(30) and False

    thread = threading.Thread(target=cache._engine.shared.delete_where, args=(use,))
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        threading.Timer(10, os._exit, (1,)).start()
        os._exit(0 if cache.get("other") is None else 2)
    leave.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("kind", ["refused", "frozen"])
def test_a_process_that_can_start_no_thread_recovers_in_its_requests(
    kind: str, face: str, make_outage: Any, make_site: Any
) -> None:
    outage = make_outage(kind)
    process = make_site(outage.url).process(threads=False, face=face)
    let_know(process)
    outage.begin()
    let_notice(process)
    process.delete("k")
    outage.end()
    wait_until(lambda: process.get("k") is None and process.is_well(), BY_ITSELF)
    assert not any("prober" in name for name in process.threads())
    assert process.get("k") is None


def test_a_request_that_heals_gives_a_tenth_of_a_second(make_outage: Any, make_site: Any) -> None:
    """Without a thread, and with a server that hangs: no request waits for a probe much longer than that."""
    outage = make_outage("frozen")
    process = make_site(outage.url).process(threads=False)
    let_know(process)
    outage.begin()
    let_notice(process)
    assert max(process.timed("get", 1, "k") for _ in range(50)) < 0.1 * MARGIN
    outage.end()


def test_green_threads(server: RedisServer, tmp_path: Any) -> None:
    """gevent, monkey-patched: fifty greenlets wait together, the others go on, and it recovers."""
    pytest.importorskip("gevent")
    process = subprocess.Popen(
        [sys.executable, "-c", GREEN, server.url, str(tmp_path / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = []
        for act in (server.freeze, server.thaw, lambda: None):
            said.append(process.stdout.readline().strip())
            act()
            process.stdin.write("yes\n")
            process.stdin.flush()
        error = process.stderr.read()
    assert said == ["frozen?", "thawed?", "done"], error
    assert process.returncode == 0, error


def test_two_event_loops_at_once(server: RedisServer, make_cache: Any, leak_check: Any) -> None:
    """Each has its own connections, and one knowledge of the outage."""
    cache = make_cache(server.url)

    async def work(name: str) -> None:
        for number in range(20):
            await cache.aset(name, number)
            assert await cache.aget(name) in (number, None)

    def run(name: str) -> None:
        asyncio.run(work(name))

    with leak_check(server):
        for change in (lambda: None, server.freeze, server.thaw):
            change()
            threads = [threading.Thread(target=run, args=(f"loop{number}",)) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        wait_until(lambda: cache.get("x") is None and not cache.is_degraded, BY_ITSELF)
        cache._engine.database.close()


def test_a_loop_that_ended_in_the_outage_leaves_nothing(
    server: RedisServer, make_cache: Any, leak_check: Any
) -> None:
    cache = make_cache(server.url)
    with leak_check(server):
        asyncio.run(cache.aset("k", "old"))
        server.freeze()
        asyncio.run(cache.adelete("k"))
        assert asyncio.run(cache.aget("k")) is None
        server.thaw()
        wait_until(lambda: cache._engine.database.journal.empty, BY_ITSELF)
        assert asyncio.run(cache.aget("k")) is None
        cache._engine.database.close()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_cancelled_tasks(server: RedisServer, make_cache: Any, leak_check: Any, is_frozen: bool) -> None:
    """A view whose client has gone: nobody gets another one's reply, nothing is left open, nobody votes."""
    cache = make_cache(server.url)

    async def use(number: int) -> None:
        await cache.aset(f"k{number}", number)
        assert await cache.aget(f"k{number}") == number

    async def work() -> None:
        for turn in range(20):
            tasks = [asyncio.create_task(use(number)) for number in range(20)]
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            if not is_frozen:
                await asyncio.gather(*tasks[1::2])
            else:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with leak_check(server):
        asyncio.run(cache.aset("k", 1))
        if is_frozen:
            server.freeze()
        asyncio.run(work())
        if is_frozen:
            server.thaw()
        wait_until(lambda: cache.get("x") is None and not cache.is_degraded, BY_ITSELF)
        wait_until(lambda: cache._engine.database.journal.empty, BY_ITSELF)
        for number in range(20):
            assert cache.get(f"k{number}") in (number, None)
        cache._engine.database.close()


def test_a_cancelled_delete_is_not_forgotten(server: RedisServer, make_cache: Any) -> None:
    """Cancelled on its way, nobody knows whether it arrived; the key is put right all the same."""
    cache = make_cache(server.url)
    cache.set("k", "old")

    async def cancel_it() -> None:
        await cache.aget("k")
        server.freeze()
        task = asyncio.create_task(cache.adelete("k"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_it())
    assert not cache.is_degraded
    assert cache.get("k") is None
    server.thaw()
    wait_until(lambda: cache.get("k") is None and cache._engine.database.journal.empty, BY_ITSELF)
    assert cache.get("k") is None


def test_outages_leave_nothing_behind(server: RedisServer, make_cache: Any, leak_check: Any) -> None:
    cache = make_cache(server.url, BREAKER={"probe_base": "20ms", "probe_cap": "50ms"})
    cache.set("k", 1)
    with leak_check(server):
        for take_away, bring_back in [(server.kill, server.start), (server.freeze, server.thaw)] * 3:
            cache.set("k", 1)
            take_away()
            threads = [threading.Thread(target=cache.delete, args=(f"k{number}",)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            bring_back()
            wait_until(lambda: cache.get("x") is None and not cache.is_degraded, BY_ITSELF)
        cache._engine.database.renew()
        cache.get("k")
