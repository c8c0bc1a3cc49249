"""Contract of an outage: what cannot be done without Redis. What can, the cache API, is in ``CacheContract``.

For a cache whose server does not answer. Such a method says so at once, by name; a silent ``None`` would read
as "the lock is yours" or "the set is empty".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.exceptions import StoreUnavailable
from redis_infra.testing.contract.calling import Call, ContractFixtures

__all__ = ["OutageContract"]

_AT_ONCE = 1.0  # seconds for all of a test's refusals, of which none may wait for a timeout of 0.25
_NEEDS_REDIS: dict[str, Callable[[Any], Any]] = {
    "lock": lambda cache: cache.lock("k", timeout=1).acquire(blocking=False),
    "lock, blocking": lambda cache: cache.lock("k", timeout=1).acquire(blocking_timeout=5),
    "with lock": lambda cache: cache.lock("k", timeout=1, blocking_timeout=5).__enter__(),
    "sadd": lambda cache: cache.sadd("k", "member"),
    "scard": lambda cache: cache.scard("k"),
    "sismember": lambda cache: cache.sismember("k", "member"),
    "smembers": lambda cache: cache.smembers("k"),
    "spop": lambda cache: cache.spop("k"),
    "srem": lambda cache: cache.srem("k", "member"),
    "sscan": lambda cache: cache.sscan("k"),
    "sscan_iter": lambda cache: list(cache.sscan_iter("k")),
    "sunion": lambda cache: cache.sunion("k", "l"),
    "hset": lambda cache: cache.hset("k", "field", 1),
    "hdel": lambda cache: cache.hdel("k", "field"),
    "hlen": lambda cache: cache.hlen("k"),
    "hkeys": lambda cache: cache.hkeys("k"),
    "hexists": lambda cache: cache.hexists("k", "field"),
    "zadd": lambda cache: cache.zadd("k", {"member": 1.0}),
    "zcard": lambda cache: cache.zcard("k"),
    "zrange": lambda cache: cache.zrange("k", 0, -1),
    "zscore": lambda cache: cache.zscore("k", "member"),
    "raw client": lambda cache: cache.client.get_client().get("k"),
    "raw pipeline": lambda cache: cache.client.get_client().pipeline().get("k").execute(),
}
_TTL_FAMILY: dict[str, Callable[[Any], Any]] = {
    "ttl": lambda cache: cache.ttl("k"),
    "pttl": lambda cache: cache.pttl("k"),
    "persist": lambda cache: cache.persist("k"),
    "expire": lambda cache: cache.expire("k", 10),
    "pexpire": lambda cache: cache.pexpire("k", 10_000),
}


class OutageContract(ContractFixtures):
    """What an outage must look like to those who need Redis."""

    @pytest.fixture(autouse=True)
    def known_outage(self, cache: Any) -> None:
        """Let the cache find out; what it costs to find out is not asked here."""
        for _ in range(3):
            cache.get("k")

    def test_is_degraded(self, cache: Any) -> None:
        assert cache.is_degraded is True

    def test_set_returns_none(self, cache: Any, call: Call) -> None:
        """Not True: nothing reached Redis. Not False: the value is there for whoever asks."""
        assert call(cache.set, "k", 1) is None
        assert call(cache.get, "k") == 1

    @pytest.mark.parametrize("use", _NEEDS_REDIS.values(), ids=_NEEDS_REDIS)
    def test_what_needs_redis_says_so_at_once(self, cache: Any, use: Callable[[Any], Any]) -> None:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            use(cache)
        assert time.monotonic() - began < _AT_ONCE

    @pytest.mark.parametrize("use", _NEEDS_REDIS.values(), ids=_NEEDS_REDIS)
    def test_the_refusal_is_a_connection_error_of_redis_py(
        self, cache: Any, use: Callable[[Any], Any]
    ) -> None:
        """So that code which catches redis-py's errors goes on working."""
        from redis.exceptions import ConnectionError as RedisConnectionError

        with pytest.raises(RedisConnectionError):
            use(cache)

    @pytest.mark.parametrize("use", _TTL_FAMILY.values(), ids=_TTL_FAMILY)
    def test_a_life_is_told_truly_or_not_at_all(self, cache: Any, use: Callable[[Any], Any]) -> None:
        """None would say "for ever" of a key that has ten seconds."""
        cache.set("k", 1, timeout=10)
        try:
            assert use(cache) is not None
        except StoreUnavailable:
            assert cache.get("k") == 1

    def test_operations_cost_what_the_fallback_costs(self, cache: Any, call: Call) -> None:
        began = time.monotonic()
        for number in range(100):
            call(cache.set, f"k{number}", number)
            assert call(cache.get, f"k{number}") == number
        assert time.monotonic() - began < _AT_ONCE
