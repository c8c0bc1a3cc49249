"""A server that answers, but not with what was asked: what each refusal does, and how it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from redis_infra.connection.plainsocket import PlainConnection, ServerError
from redis_infra.testing import RedisServer, TcpProxy
from tests.faults.site import MARGIN, wait_until

Log = Callable[[int], list[str]]
RECOVERED = 5.0 * MARGIN
AT_ONCE = 0.05 * MARGIN
ONE_REQUEST = 0.55 * MARGIN


@pytest.fixture
def cache(server: RedisServer, make_cache: Any) -> Any:
    cache = make_cache(server.url)
    cache.set("old", "old")
    assert cache.get("old") == "old"
    return cache


def timed(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def use(cache: Any) -> None:
    """Nothing here raises that would not raise on locmem, and all of it is at once."""
    for number in range(5):
        cache.set(f"k{number}", number)
        cache.get(f"k{number}")
        cache.add(f"a{number}", 1)
        cache.delete(f"k{number}")
        cache.get_many(["k1", "old"])


def state(cache: Any) -> str:
    found = cache.status()
    return f"{found['circuit']} {found['state']}" if found["circuit"] else "well"


def expect_recovery(cache: Any, call: Callable[..., Any]) -> None:
    wait_until(lambda: call(cache.get, "x") is None and not cache.is_degraded, RECOVERED)
    wait_until(lambda: cache.status()["pending"] == 0, RECOVERED)
    call(cache.set, "after", 1)
    assert call(cache.get, "after") == 1
    assert cache._engine.database.failover.clear or wait_until(
        lambda: cache._engine.database.failover.clear, RECOVERED
    )


# Writes are refused, reads go on


def test_out_of_memory(server: RedisServer, cache: Any, call: Callable[..., Any], log: Log) -> None:
    cache.set("other", "kept")
    server.config_set("maxmemory", 1)
    assert call(cache.set, "old", "new") is None
    assert call(cache.get, "old") == "new"
    assert call(cache.get, "other") == "kept"
    wait_until(lambda: server.command("EXISTS", ":1:old") == 0, MARGIN)
    assert server.command("EXISTS", ":1:other") == 1
    assert state(cache).startswith("writes")
    assert cache.is_degraded
    for number in range(20):
        assert call(cache.set, f"k{number}", number) is None
        assert call(cache.get, f"k{number}") == number
    assert len(log(logging.WARNING)) == 1
    assert "OOM" in log(logging.WARNING)[0] or "OutOfMemory" in log(logging.WARNING)[0]
    server.config_set("maxmemory", 0)
    expect_recovery(cache, call)
    assert cache.get("old") is None
    assert cache.get("other") == "kept"
    assert (len(log(logging.WARNING)), len(log(logging.INFO))) == (1, 1)


def test_out_of_memory_leaves_deletes_alone(
    server: RedisServer, cache: Any, call: Callable[..., Any]
) -> None:
    server.config_set("maxmemory", 1)
    call(cache.set, "k", 1)
    assert call(cache.delete, "old") is True
    assert server.command("EXISTS", ":1:old") == 0


def test_out_of_memory_does_not_stop_floats_and_what_was_added_here_from_counting(
    server: RedisServer, cache: Any, call: Callable[..., Any]
) -> None:
    cache.set("float", 1.5)
    server.config_set("maxmemory", 1)
    assert call(cache.incr, "float", 0.5) == 2.0
    assert call(cache.incr, "float", 0.5) == 2.5
    assert call(cache.get, "float") == 2.5
    # Nothing of it is in the journal, so Redis is asked, and has not got it.
    wait_until(lambda: cache.status()["pending"] == 0 or cache._engine.database.unlinked > 0, RECOVERED)
    assert call(cache.add, "added", 5) is True
    assert call(cache.incr, "added") == 6
    with pytest.raises(ValueError, match="not found"):
        call(cache.incr, "missing")
    server.config_set("maxmemory", 0)
    expect_recovery(cache, call)
    assert call(cache.get_many, ["float", "added"]) == {}


def test_paused_writes(server: RedisServer, cache: Any, call: Callable[..., Any], log: Log) -> None:
    """CLIENT PAUSE WRITE, as in every failover that was asked for: reads are answered, writes hang."""
    cache.set_many({"other": "kept", "gone": "old"})
    server.command("CLIENT", "PAUSE", 60_000, "WRITE")

    def request() -> None:
        for number in range(10):
            call(cache.set, f"k{number}", number)
            assert call(cache.get, "other") == "kept"
        call(cache.delete, "gone")
        assert call(cache.get, "gone") is None

    assert timed(request) < ONE_REQUEST
    assert state(cache).startswith("writes")
    assert call(cache.get, "k9") == 9
    assert len(log(logging.WARNING)) == 1
    server.command("CLIENT", "UNPAUSE")
    expect_recovery(cache, call)
    assert call(cache.get_many, ["other", "gone", "k9"]) == {"other": "kept"}
    assert (len(log(logging.WARNING)), len(log(logging.INFO))) == (1, 1)


def test_a_failed_snapshot(own_redis: Any, make_cache: Any, call: Callable[..., Any], tmp_path: Path) -> None:
    """MISCONF: also PING is refused, and reads go on."""
    server = own_redis(unix_socket=False, config={"enable-protected-configs": "yes"})
    cache = make_cache(server.url)
    cache.set("old", "old")
    gone = tmp_path / "gone"
    gone.mkdir()
    server.command("CONFIG", "SET", "dir", str(gone))
    gone.rmdir()
    server.config_set("save", "3600 1")
    server.command("BGSAVE")
    wait_until(lambda: b"rdb_last_bgsave_status:err" in server.command("INFO", "persistence"), 10)
    assert call(cache.set, "k", "new") is None
    assert call(cache.get, "k") == "new"
    assert call(cache.get, "old") == "old"
    assert state(cache).startswith("writes")
    assert "MISCONF" in cache.status()["cause"] or "RDB" in cache.status()["cause"]
    server.config_set("save", "")
    expect_recovery(cache, call)
    assert cache.get("k") is None


def test_too_few_replicas(server: RedisServer, cache: Any, call: Callable[..., Any]) -> None:
    server.config_set("min-replicas-to-write", 1)
    assert call(cache.set, "old", "new") is None
    assert call(cache.get, "old") == "new"
    assert state(cache).startswith("writes")
    server.config_set("min-replicas-to-write", 0)
    expect_recovery(cache, call)
    assert cache.get("old") is None


# The whole server is of no use for now


def test_a_replica_where_a_primary_should_be(
    server: RedisServer, cache: Any, call: Callable[..., Any], log: Log, refusing_url: str
) -> None:
    port = refusing_url.rpartition(":")[2].partition("/")[0]
    server.command("REPLICAOF", "127.0.0.1", port)
    assert timed(lambda: call(cache.set, "old", "new")) < AT_ONCE
    assert call(cache.get, "old") == "new"
    assert state(cache).startswith("reach")
    use(cache)
    server.command("REPLICAOF", "NO", "ONE")
    expect_recovery(cache, call)
    assert cache.get("old") is None
    assert (len(log(logging.WARNING)), len(log(logging.INFO))) == (1, 1)


def test_a_failover_behind_the_address_costs_nothing(own_redis: Any, make_cache: Any) -> None:
    """The address leads to the new primary by now; pooled connections lead to the old one."""
    old, new = own_redis(unix_socket=False), own_redis(unix_socket=False)
    with TcpProxy(old.url) as proxy:
        cache = make_cache(proxy.url)
        cache.set("k", 1)
        old.command("REPLICAOF", "127.0.0.1", new.port)
        proxy._upstream = ("127.0.0.1", new.port)
        assert cache.set("k", 2) is True
        assert not cache.is_degraded
        assert new.command("EXISTS", ":1:k") == 1


def test_loading(own_redis: Any, make_cache: Any, call: Callable[..., Any], log: Log) -> None:
    server = own_redis(unix_socket=False, config={"save": "3600 1000000", "key-load-delay": "0"})
    cache = make_cache(server.url)
    cache.set("old", "old")
    fill = "for i = 1, 800 do redis.call('SET', 'fill' .. i, i) end"
    server.command("EVAL", fill, 0)
    server.command("SAVE")
    server.kill()
    server.config["key-load-delay"] = "1000"
    server.config["loading-process-events-interval-bytes"] = "1024"
    server.start(loaded=False)
    with pytest.raises(ServerError, match="LOADING"):
        server.command("GET", "x")
    assert timed(lambda: use(cache)) < ONE_REQUEST  # it answers when it has loaded some more
    assert state(cache).startswith("reach")
    degraded = []
    while True:
        try:
            server.command("PING")
            break
        except ServerError:
            call(cache.get, "old")
            degraded.append(cache.is_degraded)
    assert all(degraded)
    expect_recovery(cache, call)
    assert call(cache.get, "old") == "old"
    assert (len(log(logging.WARNING)), len(log(logging.INFO))) == (1, 1)


@contextmanager
def endless_script(server: RedisServer) -> Iterator[None]:
    def run() -> None:
        with PlainConnection(server._socket_path, timeout=60) as connection, pytest.raises(ServerError):
            connection.call("EVAL", "while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: _is_busy(server), 10)
    try:
        yield
    finally:
        server.command("SCRIPT", "KILL")
        thread.join()


def _is_busy(server: RedisServer) -> bool:
    try:
        server.command("GET", "x", timeout=1)
    except ServerError as error:
        return str(error).startswith("BUSY")
    except TimeoutError:
        pass
    return False


def test_a_script_that_does_not_end(
    own_redis: Any, make_cache: Any, call: Callable[..., Any], log: Log
) -> None:
    server = own_redis(unix_socket=False, config={"lua-time-limit": "50"})
    cache = make_cache(server.url)
    cache.set("old", "old")
    with endless_script(server):
        use(cache)
        assert state(cache).startswith("reach")
        cache.delete("old")
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert call(cache.get, "old") is None
            assert cache.is_degraded
    expect_recovery(cache, call)
    assert call(cache.get, "old") is None
    assert len(log(logging.WARNING)) == 1


def test_too_many_clients(own_redis: Any, make_cache: Any, call: Callable[..., Any]) -> None:
    server = own_redis(unix_socket=False, config={"maxclients": "4"})
    cache = make_cache(server.url)
    with ExitStack() as others:
        for _ in range(4):
            others.enter_context(PlainConnection(server._socket_path)).call("PING")
        assert timed(lambda: use(cache)) < AT_ONCE
        assert state(cache).startswith("reach")
        assert "max number of clients" in cache.status()["cause"]
    expect_recovery(cache, call)


# It is not ours, or not a Redis


def test_no_password(server: RedisServer, make_cache: Any, call: Callable[..., Any], log: Log) -> None:
    """One ERROR: somebody has to do something about it."""
    server.config_set("requirepass", "secret")
    cache = make_cache(server.url)
    assert timed(lambda: use(cache)) < AT_ONCE
    assert state(cache).startswith("access")
    assert len(log(logging.ERROR)) == 1
    assert "NOAUTH" in log(logging.ERROR)[0] or "Authentication" in log(logging.ERROR)[0]
    server.config_set("requirepass", "")
    expect_recovery(cache, call)
    assert log(logging.WARNING) == []


def test_a_wrong_password(server: RedisServer, make_cache: Any, call: Callable[..., Any], log: Log) -> None:
    server.config_set("requirepass", "secret")
    cache = make_cache(server.url.replace("redis://", "redis://:hunter2@"))
    use(cache)
    assert state(cache).startswith("access")
    assert len(log(logging.ERROR)) == 1
    assert "hunter2" not in str(log(logging.ERROR)) + str(cache.status())
    server.config_set("requirepass", "hunter2")
    expect_recovery(cache, call)


def test_a_database_that_does_not_exist(server: RedisServer, make_cache: Any, log: Log) -> None:
    cache = make_cache(server.url.replace("/0", "/99"))
    use(cache)
    assert state(cache).startswith("access")
    assert len(log(logging.ERROR)) == 1


def test_a_web_server_on_the_port(
    proxy: TcpProxy, make_cache: Any, call: Callable[..., Any], log: Log
) -> None:
    proxy.http()
    cache = make_cache(proxy.url)
    assert timed(lambda: use(cache)) < AT_ONCE
    assert state(cache).startswith("access")
    assert "not a Redis server" in log(logging.ERROR)[0]
    assert len(log(logging.ERROR)) == 1
    proxy.heal()
    expect_recovery(cache, call)


def test_half_a_reply(proxy: TcpProxy, make_cache: Any, call: Callable[..., Any]) -> None:
    cache = make_cache(proxy.url)
    cache.set("old", "x" * 100)
    proxy.half_reply(20, request=b"old")
    assert call(cache.get, "old") is None
    proxy.heal()
    expect_recovery(cache, call)
    assert call(cache.get, "old") == "x" * 100


def test_a_denied_command_is_that_commands_alone(
    server: RedisServer, make_cache: Any, call: Callable[..., Any], log: Log
) -> None:
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-mget")
    cache = make_cache(server.url.replace("redis://", "redis://app:secret@"))
    call(cache.set, "k", 1)
    for _ in range(5):
        assert call(cache.get_many, ["k"]) == {}
    assert call(cache.get, "k") == 1
    assert state(cache) == "well"
    assert len(log(logging.ERROR)) == 1


def test_one_alias_wrong_password_is_not_anothers(
    server: RedisServer, make_cache: Any, call: Callable[..., Any]
) -> None:
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    good = make_cache(server.url.replace("redis://", "redis://app:secret@"))
    bad = make_cache(server.url.replace("redis://", "redis://app:wrong@"))
    for number in range(10):
        call(bad.set, f"k{number}", number)
        assert call(bad.get, f"k{number}") == number
        assert call(good.set, "k", number) is True
        assert call(good.get, "k") == number
    assert bad.is_degraded
    assert not good.is_degraded
    assert good.status()["counters"]["failures"] == 0


def test_both_recover_from_an_outage_when_one_has_a_wrong_password(
    server: RedisServer, make_cache: Any, call: Callable[..., Any]
) -> None:
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    good = make_cache(server.url.replace("redis://", "redis://app:secret@"))
    bad = make_cache(server.url.replace("redis://", "redis://app:wrong@"))
    call(good.set, "k", "old")
    call(bad.get, "k")
    server.freeze()
    call(good.delete, "k")
    use(good)
    assert good.is_degraded
    server.thaw()
    expect_recovery(good, call)
    assert call(good.get, "k") is None
    assert bad.is_degraded
