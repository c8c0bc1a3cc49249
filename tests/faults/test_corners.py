"""Corners that reviewers found: each of them once served something stale, raised, or never came back."""

from __future__ import annotations

import gc
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from redis_infra.connection.embedded import RedisServer
from redis_infra.testing import TcpProxy
from tests.faults.site import MARGIN, wait_until

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

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(3000):
            cache.delete(f"k{number}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
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
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        cache = make_cache(server.url)
        cache.set("k", 1)
        server.freeze()
        began = time.monotonic()
        assert cache.get("k") is None
        assert time.monotonic() - began < 0.25 * MARGIN
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
