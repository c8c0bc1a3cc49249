"""Corners that reviewers found: each of them once served something stale, raised, or never came back."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from redis_infra.connection.plainsocket import PlainConnection
from redis_infra.testing import RedisServer, TcpProxy
from tests.faults.site import MARGIN, wait_until
from tests.forking import in_child

RECOVERED = 5.0 * MARGIN
HALF = "\ud800"
"""Half of a surrogate pair: Python takes it for a character, no server can be sent it."""


def is_well(cache: Any) -> bool:
    """Ask, so that the cache looks, and say whether nothing is left to be put right."""
    cache.get("anything")
    return not cache.is_degraded and cache.status()["pending"] == 0


# Keys and key functions


def test_a_key_that_no_server_can_be_sent_is_refused_with_and_without_redis(
    server: RedisServer, make_cache: Any, call: Callable[..., Any]
) -> None:
    """Once in the journal, it kept every drain from ending, in every process of the host."""
    cache = make_cache(server.url)
    for _ in range(2):
        for name, argument in (("set", HALF), ("delete", HALF), ("delete_many", [HALF, "k"])):
            with pytest.raises(UnicodeEncodeError):
                call(getattr(cache, name), argument, *(["value"] if name == "set" else []))
        with pytest.raises(UnicodeEncodeError):
            call(cache.delete_pattern, f"{HALF}*")
        server.kill()
    call(cache.delete, "k")
    server.start()
    wait_until(lambda: is_well(cache), RECOVERED)


def test_one_that_a_journal_has_all_the_same_is_passed_over(
    server: RedisServer, make_cache: Any, make_site: Any
) -> None:
    cache = make_cache(server.url)
    cache.set("k", "old")
    server.freeze()
    cache.get("k"), cache.get("k")
    cache.delete("k")
    cache._engine.database.journal.add([f"site:1:{HALF}"], "")
    cache._engine.database.journal.add_pattern(f"site:{HALF}*")
    server.thaw()
    wait_until(lambda: is_well(cache), RECOVERED)
    assert cache.get("k") is None


def digest_of_all(key: str, prefix: str, version: Any) -> str:
    return hashlib.sha256(f"{prefix}:{version}:{key}".encode()).hexdigest()


def numbers_only(key: str, prefix: str, version: Any) -> str:
    return f"{prefix}:{int(version)}:{int(key)}"


@pytest.mark.parametrize("function", [digest_of_all, numbers_only])
def test_a_key_function_that_says_nothing_of_its_names_works_in_an_outage(
    server: RedisServer, make_cache: Any, call: Callable[..., Any], function: Any
) -> None:
    cache = make_cache(server.url, KEY_FUNCTION=function, KEY_PREFIX="site", SIGNED=True)
    call(cache.set, 7, "old")
    server.freeze()
    assert [call(cache.get, 7) for _ in range(2)] == [None, None]
    assert call(cache.set_many, {7: 1}) == []
    assert call(cache.incr, 7) == 2
    assert call(cache.delete, 7) is True
    server.thaw()
    wait_until(lambda: is_well_of(cache, 8), RECOVERED)
    assert call(cache.get, 7) is None


def is_well_of(cache: Any, key: Any) -> bool:
    cache.get(key)
    return not cache.is_degraded and cache.status()["pending"] == 0


served = {"tenant": ""}
"""Who is being served, as a site's middleware would say."""


def of_tenant(key: str, prefix: str, version: Any) -> str:
    return f"{served['tenant']}:{prefix}:{version}:{key}"


@pytest.mark.parametrize("is_frozen", [False, True])
def test_clear_is_about_the_tenant_of_the_moment(
    server: RedisServer, make_cache: Any, call: Callable[..., Any], is_frozen: bool
) -> None:
    cache = make_cache(server.url, KEY_FUNCTION=of_tenant, KEY_PREFIX="site")
    for who in ("a", "b"):
        served["tenant"] = who
        call(cache.set, "k", who)
        call(cache.clear)
        call(cache.set, "k", who)
    if is_frozen:
        server.freeze()
        assert [call(cache.get, "k") for _ in range(2)] == [None, None]
    call(cache.clear)
    server.thaw()
    wait_until(lambda: is_well(cache), RECOVERED)
    assert call(cache.get, "k") is None
    served["tenant"] = "a"
    assert call(cache.get, "k") == "a"


# Several users, and processes that are no more


def test_what_one_user_could_not_delete_another_does_not_read(
    server: RedisServer, make_cache: Any, call: Callable[..., Any]
) -> None:
    """They share the keys; whose connection failed makes no difference to what is stale."""
    server.command("ACL", "SETUSER", "web", "on", ">word", "~*", "&*", "+@all")
    with TcpProxy(server.url) as proxy:
        one = make_cache(proxy.url)
        other = make_cache(proxy.url.replace("//", "//web:word@"))
        call(one.set, "k", "old")
        assert call(other.get, "k") == "old"
        proxy.lose_replies(1, request=b"UNLINK")
        proxy.drop()
        call(other.delete, "k")
        assert call(one.get, "k") is None
        proxy.heal()
        wait_until(lambda: is_well(one) and is_well(other), RECOVERED)
        assert call(one.get, "k") is None


def test_what_another_user_s_dead_process_left_is_drained_too(server: RedisServer, make_site: Any) -> None:
    server.command("ACL", "SETUSER", "web", "on", ">word", "~*", "&*", "+@all")
    site = make_site(server.url)
    ours, theirs = site.process(), site.process(url=server.url.replace("//", "//web:word@"))
    ours.set("k", "old")
    assert theirs.get("k") == "old"
    server.freeze()
    theirs.get("k"), theirs.get("k")
    theirs.delete("k")
    theirs.kill()
    server.thaw()
    wait_until(lambda: ours.get("k") is None, RECOVERED)


def test_late_writes_of_a_process_that_is_dead_are_not_executed_after_the_drain(
    server: RedisServer, make_site: Any
) -> None:
    """Nobody but who drains its journal can have its connections killed."""
    site = make_site(server.url)
    dies, lives = site.processes(2)
    for process in (dies, lives):
        process.set("warm", 1)
    names = [f"late{number}" for number in range(300)]
    server.freeze()
    dies.set_many(dict.fromkeys(names, "x" * 400))
    dies.delete_many(names)
    lives.get("warm"), lives.get("warm")
    dies.kill()
    server.thaw()
    wait_until(lambda: lives.get("x") is None and lives.is_well(), RECOVERED)
    server.command("PING")
    assert server.command("KEYS", "site:1:late*") == []
    assert lives.get_many(names) == {}


# No threads, no permissions


@contextmanager
def no_threads() -> Iterator[None]:
    """As with a limit on processes: no thread can be started."""
    before = threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_without_threads_and_without_client_kill_requests_bring_redis_back(
    server: RedisServer, make_cache: Any
) -> None:
    server.command("ACL", "SETUSER", "web", "on", ">word", "~*", "&*", "+@all", "-client|kill")
    cache = make_cache(server.url.replace("//", "//web:word@"))
    cache.set("k", "old")
    with no_threads():
        server.freeze()
        cache.get("k"), cache.get("k")
        cache.delete("k")
        assert cache.is_degraded
        server.thaw()
        wait_until(lambda: is_well(cache), 3 * RECOVERED)
    assert cache.get("k") is None


# Reentrance


def test_a_signal_handler_may_delete_while_the_thread_it_interrupts_does(
    server: RedisServer, make_cache: Any
) -> None:
    cache = make_cache(server.url, JOURNAL={"max_keys": 500, "max_bytes": "16mb"})
    cache.delete("made")
    server.kill()
    handled = 0

    def handler(*_: Any) -> None:
        nonlocal handled
        handled += 1
        cache.delete(f"handled-{handled}")

    before = signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    try:
        for number in range(3000):
            cache.delete(f"k{number}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert handled > 3
    covers = cache._engine.database.journal.covers
    assert all(covers(cache.make_key(f"handled-{number + 1}")) for number in range(handled))


def test_a_finalizer_may_delete_wherever_the_garbage_collector_runs(
    server: RedisServer, make_cache: Any
) -> None:
    cache = make_cache(server.url)
    server.kill()

    class Ends:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            cache.delete("finalized")

    threshold = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    worker = threading.Thread(
        target=lambda: [(Ends(), cache.delete_pattern(f"p{number}*")) for number in range(300)], daemon=True
    )
    try:
        worker.start()
        worker.join(60)
    finally:
        gc.set_threshold(*threshold)
    assert not worker.is_alive(), "it waits for a lock of its own"


# An interval timer


def test_a_profilers_timer_does_not_make_a_read_wait_for_ever(server: RedisServer, make_cache: Any) -> None:
    """Python begins a receive anew after each signal, and the kernel its clock with it."""
    cache = make_cache(server.url)

    def read() -> float:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        cache.set("k", 1)
        server.freeze()
        began = time.monotonic()
        assert cache.get("k") is None
        return time.monotonic() - began

    assert in_child(read) < 0.25 * MARGIN  # in a child, because pytest-timeout has that timer here


# Permissions


@pytest.fixture
def of_user(server: RedisServer, make_cache: Any) -> Callable[[str], Any]:
    """A cache of a user who may do all but what is said: ``of_user("-scan")``."""

    def make(*rules: str) -> Any:
        server.command("ACL", "SETUSER", "web", "on", ">word", "~*", "&*", "+@all", *rules)
        return make_cache(server.url.replace("//", "//web:word@"), KEY_PREFIX="p")

    return make


def test_who_may_not_run_scripts_keeps_what_they_would_have_changed(
    server: RedisServer, of_user: Any, call: Callable[..., Any]
) -> None:
    """It was refused, so it is as it was: nothing is stale, and nothing is to be drained."""
    cache = of_user("-@scripting")
    call(cache.set, "n", 5)
    for name, argument in (("incr", "n"), ("incr_version", "n")):
        with pytest.raises(ValueError, match="not found"):
            call(getattr(cache, name), argument)
    call(cache.touch, "n", None)
    assert cache.status()["pending"] == 0
    assert call(cache.get, "n") == 5
    assert server.command("GET", "p:1:n") == b"5"


def test_who_may_not_scan_is_not_cut_off_by_a_clear(
    server: RedisServer, of_user: Any, call: Callable[..., Any]
) -> None:
    cache = of_user("-scan")
    call(cache.set, "k", 1)
    call(cache.clear)
    call(cache.delete_pattern, "k*")
    assert cache.status()["pending"] == 0
    server.command("SET", "p:1:other", "7")
    assert call(cache.get, "other") == 7


# Moving what is not to be trusted


@pytest.mark.parametrize("change", ["delete", "set"])
def test_a_value_that_is_out_of_date_is_not_moved_to_another_version(
    server: RedisServer, make_cache: Any, call: Callable[..., Any], change: str
) -> None:
    """Under the other name nobody would distrust it."""
    with TcpProxy(server.url) as proxy:
        cache = make_cache(proxy.url, KEY_PREFIX="p", BREAKER={"timeouts": 9})
        call(cache.set, "k", "old")
        proxy.lose_replies(1, request=b"UNLINK" if change == "delete" else b"SET")
        proxy.drop()
        call(getattr(cache, change), "k", *(["new"] if change == "set" else []))
        proxy.heal()
        try:
            call(cache.incr_version, "k")
        except ValueError:
            assert change == "delete"
        wait_until(lambda: cache.get("x") is None and cache.status()["pending"] == 0, RECOVERED)
        assert call(cache.get, "k", version=2) in (None, "new")
        assert call(cache.get, "k") is None


# Somebody else's


def test_recovery_closes_no_strangers_connections(server: RedisServer, make_cache: Any) -> None:
    """A server that was started anew gives the numbers of our connections to others."""
    cache = make_cache(server.url, MAX_CONNECTIONS=40, BREAKER={"probe_base": "2s", "probe_cap": "2s"})
    cache.set("k", 1)
    pool = cache._engine.connections.pool
    for link in [pool.acquire() for _ in range(30)]:
        pool.give_back(link)
    server.freeze()
    threads = [threading.Thread(target=cache.get, args=("k",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.kill()
    server.start()
    strangers = [PlainConnection(server._socket_path, timeout=10) for _ in range(40)]
    try:
        wait_until(lambda: is_well(cache), RECOVERED)
        assert [stranger.call("PING") for stranger in strangers] == ["PONG"] * 40
    finally:
        for stranger in strangers:
            stranger.close()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_clear_in_an_outage_takes_its_own_and_no_longer_prefix(
    server: RedisServer, make_cache: Any, call: Callable[..., Any], is_frozen: bool
) -> None:
    """A glob cannot say "digits": that of "site" covers "site:2nd" as well."""
    mine = make_cache(server.url, KEY_PREFIX="site")
    theirs = make_cache(server.url, KEY_PREFIX="site:2nd")
    call(mine.set, "k", 1)
    call(theirs.add, "lock", "held")
    if is_frozen:
        server.freeze()
        assert [call(mine.get, "x") for _ in range(2)] == [None, None]
        call(theirs.add, "mine", "here")
    call(mine.clear)
    if is_frozen:
        assert call(theirs.get, "mine") == "here"
    server.thaw()
    wait_until(lambda: is_well(mine), RECOVERED)
    assert call(mine.get, "k") is None
    assert server.command("EXISTS", "site:2nd:1:lock") == 1


# What is let fall


# In a cycle the socket's finalizer may come before its connection's, which closes it; Python chooses.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_connection_that_was_let_fall_is_not_in_use_for_ever(server: RedisServer, make_cache: Any) -> None:
    """As when a signal handler raises between taking it and using it."""
    cache = make_cache(server.url, MAX_CONNECTIONS=2)
    pool = cache._engine.connections.pool
    for _ in range(5):
        pool.acquire()
        gc.collect()
    assert cache.set("k", 1) is True
    assert pool.size <= 2


def test_a_computation_in_a_loop_that_is_closed_is_nobodys(server: RedisServer, make_cache: Any) -> None:
    cache = make_cache(server.url)
    loop = asyncio.new_event_loop()
    task = loop.create_task(cache.aget_or_set("k", partial(asyncio.sleep, 100)))
    while not cache._engine.flights:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert asyncio.run(asyncio.wait_for(cache.aget_or_set("k", lambda: "mine"), 10)) == "mine"
    task._log_destroy_pending = False  # that it never ends is the point
    task.get_coro().close()


def test_a_raw_client_can_have_a_connection_to_itself(server: RedisServer, make_cache: Any) -> None:
    with make_cache(server.url).client.get_client().client() as client:
        assert client.ping() is True


# Names


def test_a_loop_asks_for_the_servers_name_no_more_than_a_thread(
    server: RedisServer, make_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``async_to_sync`` makes a loop a call: with a slow name server each of them was an outage."""
    cache = make_cache(server.url.replace("127.0.0.1", "localhost"))
    assert cache.set("k", 1) is True

    def slow(*_: Any, **__: Any) -> Any:
        time.sleep(1.0)
        raise OSError("no name server answers")

    monkeypatch.setattr("socket.getaddrinfo", slow)
    assert [asyncio.run(cache.aget("k")) for _ in range(3)] == [1, 1, 1]
    assert not cache.is_degraded
