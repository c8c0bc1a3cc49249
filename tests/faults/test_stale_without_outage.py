"""One operation fails and Redis is well: nobody declares an outage, and still nothing stale is served."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from redis_infra.testing import RedisServer, TcpProxy
from tests.faults.site import MARGIN, wait_until
from tests.faults.test_stale import WAYS, expect_gone, let_know, let_notice, three_that_know

FACES = pytest.mark.parametrize("face", ["sync", "async"])


@pytest.mark.parametrize(
    ("way", "face"),
    [
        *[(way, "sync") for way in ("delete", "delete_many", "set", "touch", "clear", "delete_pattern")],
        *[(way, "async") for way in ("delete", "set")],
    ],
)
def test_one_single_timeout(way: str, face: str, proxy: TcpProxy, make_site: Any) -> None:
    """The network swallows one command."""
    changing, busy, idle = three_that_know(make_site(proxy.url), face=face)
    proxy.drop()
    WAYS[way](changing)
    proxy.heal()
    assert changing.get("k") in (None, "new")
    expect_gone(changing, busy, idle)


@FACES
def test_a_pause_of_the_server(face: str, server: RedisServer, make_site: Any) -> None:
    """CLIENT PAUSE: the set is executed after its caller has given up, and after the next one's delete."""
    changing, busy, idle = three_that_know(make_site(server.url), face=face)
    server.command("CLIENT", "PAUSE", 350, "WRITE")
    changing.set("k", "old")
    changing.delete("k")
    assert changing.get("k") is None
    assert not changing.is_degraded()
    expect_gone(changing, busy, idle)
    assert changing.logs() == []


def test_an_exhausted_pool(server: RedisServer, make_site: Any) -> None:
    site = make_site(server.url, MAX_CONNECTIONS=2, POOL_WAIT=0.001)
    changing, busy, idle = three_that_know(site)
    changing.hold_connections(2)
    changing.delete("k")
    assert changing.get("k") is None
    assert not changing.is_degraded()
    assert busy.get("k") != "old" or wait_until(lambda: busy.get("k") is None, MARGIN)
    changing.let_go()
    expect_gone(changing, busy, idle)


def test_a_server_without_memory(server: RedisServer, make_site: Any) -> None:
    changing, busy, idle = three_that_know(make_site(server.url))
    server.config_set("maxmemory", 1)
    changing.set("k", "new")
    wait_until(lambda: all(each.get("k") != "old" for each in (busy, idle)), MARGIN)
    server.config_set("maxmemory", 0)
    expect_gone(changing, busy, idle)


def test_a_lost_reply(proxy: TcpProxy, make_site: Any) -> None:
    """The server did it, nobody can know: what the caller wrote is not served as if it had been confirmed."""
    changing, busy, idle = three_that_know(make_site(proxy.url))
    proxy.lose_replies(2, request=b"UNLINK")
    changing.delete("k")
    expect_gone(changing, busy, idle)


@FACES
def test_deletes_of_the_last_seconds_before_a_crash(face: str, own_redis: Any, make_site: Any) -> None:
    """Confirmed, but not yet in the snapshot that the server starts from."""
    server = own_redis(config={"save": "3600 1000000"})
    site = make_site(server.url)
    changing = site.process(face=face)
    changing.set("k", "old")
    server.command("SAVE")
    changing.delete("k")
    server.kill()
    changing.get("k")
    server.start()
    assert server.command("EXISTS", "site:1:k") == 1
    assert changing.get("k") is None
    wait_until(changing.is_well, 5 * MARGIN)
    assert changing.get("k") is None
    assert site.process().get("k") is None


def test_a_read_of_many_that_outlasts_the_drain(
    server: RedisServer, proxy: TcpProxy, make_cache: Any, call: Any
) -> None:
    """Asked while Redis still had the old value, answered when everything was put right."""
    cache = make_cache(proxy.url, MAX_CONNECTIONS=1, POOL_WAIT=0.001)
    cache.set_many({"k": "old", "big": b"x" * 500_000})
    call(cache.get, "k")
    pool = cache._engine.connections.pool
    link = pool.acquire()
    server.command("CLIENT", "PAUSE", 120, "WRITE")  # the drain waits, reads do not
    cache.delete("k")
    pool.give_back(link)
    proxy.drip(65536, 0.025)
    assert "k" not in call(cache.get_many, ["k", "big"])


def test_a_first_read_of_many_finds_what_the_dead_have_left(
    server: RedisServer, proxy: TcpProxy, make_site: Any, make_cache: Any, call: Any
) -> None:
    """The journal is found by the very read that asks Redis for the old value, and drained before it ends."""
    site = make_site(proxy.url)
    deleting = site.process()
    let_know(deleting)
    server.command("SET", "site:1:big", pickle.dumps("x" * 500_000))
    proxy.refuse()
    let_notice(deleting)
    deleting.delete("k")
    deleting.kill()
    proxy.heal()
    cache = make_cache(proxy.url, KEY_PREFIX="site", STATE_DIR=site.state_dir)
    assert not cache.is_degraded
    server.command("CLIENT", "PAUSE", 120, "WRITE")
    proxy.drip(65536, 0.025)
    assert "k" not in call(cache.get_many, ["k", "big"])
