"""Values and keys that are too big: Django's behaviour or a clear error, nothing lost, nobody blamed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.core.cache.backends.base import CacheKeyWarning

from redis_infra.testing import RedisServer
from tests.faults.site import MARGIN, wait_until

MEGABYTE = 1 << 20


@pytest.fixture
def small_server(own_redis: Any) -> RedisServer:
    return own_redis(unix_socket=False, config={"maxmemory": "64mb"})


def test_a_value_that_the_server_has_no_room_for(
    small_server: RedisServer, make_cache: Any, call: Any
) -> None:
    """100 MB for a server of 64 MB: no exception, the old value gone, all others still there."""
    cache = make_cache(small_server.url)
    call(cache.set, "big", "old")
    call(cache.set, "other", "kept")
    assert call(cache.set, "big", b"x" * (100 * MEGABYTE)) is None
    assert call(cache.get, "big") != "old"
    wait_until(lambda: call(cache.get, "other") == "kept", 5 * MARGIN)
    wait_until(lambda: not cache.is_degraded and cache.status()["pending"] == 0, 10 * MARGIN)
    assert call(cache.get, "big") is None
    assert call(cache.get, "other") == "kept"
    assert call(cache.set, "after", 1) is True


def test_a_big_value_that_fits_is_no_outage(server: RedisServer, make_cache: Any, call: Any) -> None:
    cache = make_cache(server.url)
    value = b"x" * (20 * MEGABYTE)
    assert call(cache.set, "big", value) is True
    assert call(cache.get, "big") == value
    assert not cache.is_degraded
    assert cache.status()["counters"]["failures"] == 0


def test_a_big_value_is_not_kept_in_memory(server: RedisServer, make_cache: Any) -> None:
    """The fallback is bounded: what is larger than all of it goes at once, with what it replaces."""
    cache = make_cache(server.url, FALLBACK={"max_bytes": "1mb"})
    server.kill()
    cache.set("k", "small")
    assert cache.get("k") == "small"
    cache.set("k", b"x" * (2 * MEGABYTE))
    assert cache.get("k") is None


KEYS = {
    "spaces": "a key with spaces",
    "10 KB": "k" * 10_240,
    "control characters": "a\r\nb\0c\x7f",
    "unicode": "schlüssel-鍵-🔑",
    "glob": "a*b?c[d]e\\f",
    "backslashes": "\\n\\x00\\",
    "number": 42,
    "empty": "",
}


@pytest.mark.filterwarnings("ignore::django.core.cache.backends.base.CacheKeyWarning")
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_unusual_keys_through_an_outage(key: Any, server: RedisServer, make_cache: Any) -> None:
    """They arrive, and they survive the journal and its file."""
    cache = make_cache(server.url)
    cache.set(key, "old")
    cache.set("neighbour", "kept")
    assert cache.get(key) == "old"
    server.freeze()
    cache.delete(key)
    assert cache.get(key) is None
    server.thaw()
    wait_until(lambda: cache.get("x") is None and not cache.is_degraded, 5 * MARGIN)
    wait_until(lambda: cache.status()["pending"] == 0, 5 * MARGIN)
    assert cache.get(key) is None
    assert cache.get("neighbour") == "kept"


@pytest.mark.parametrize("key", ["a key with spaces", "k" * 10_240], ids=["spaces", "10 KB"])
def test_django_warns_of_keys_that_memcached_would_not_take(
    key: str, server: RedisServer, make_cache: Any
) -> None:
    with pytest.warns(CacheKeyWarning):
        make_cache(server.url).set(key, 1)


def test_a_value_that_cannot_be_pickled_is_the_callers(
    server: RedisServer, make_cache: Any, call: Any
) -> None:
    """Before and during an outage alike, and it opens nothing."""
    cache = make_cache(server.url)
    for _ in range(2):
        with pytest.raises((TypeError, AttributeError), match=r"pickle|local"):
            call(cache.set, "k", lambda: None)
        server.kill()
        call(cache.get, "k")


def test_many_big_values_do_not_look_like_an_outage(server: RedisServer, make_cache: Any, call: Any) -> None:
    cache = make_cache(server.url)
    values = {f"k{number}": b"x" * MEGABYTE for number in range(40)}
    began = time.monotonic()
    call(cache.set_many, values)
    assert len(call(cache.get_many, list(values))) == 40
    assert not cache.is_degraded, time.monotonic() - began
