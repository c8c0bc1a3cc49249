"""Contract of what only Redis can do: exact lives, locks, sets, hashes, sorted sets, raw clients.

For a cache that is connected. The names and results are django-redis'.
"""

from __future__ import annotations

import datetime
import logging
import pickle
from typing import Any

import pytest

from redis_infra.testing.contract.calling import Call, ContractFixtures

__all__ = ["RedisFeaturesContract"]

_UNREADABLE = {
    "cut off": pickle.dumps({"a": "value"})[:-3],
    "class gone": b"\x80\x04\x8c\x10no.such.module.x\x8c\x03Row\x93.",
    "other serializer": b'{"json": true}',
    "our header, cut off": b"\xc1",
    "our header, unknown": b"\xc1\xff\xff\xff",
    "nothing": b"",
    "not quite a number": b"12x",
}


class RedisFeaturesContract(ContractFixtures):
    """What locmem has no equivalent of."""

    def test_is_a_django_redis_cache(self, cache: Any) -> None:
        from django_redis.cache import RedisCache

        assert isinstance(cache, RedisCache)

    def test_is_not_degraded(self, cache: Any) -> None:
        cache.get("k")
        assert cache.is_degraded is False

    def test_set_gives_the_time_asked_for(self, cache: Any, call: Call) -> None:
        call(cache.set, "set", 1, timeout=100)
        call(cache.add, "added", 1, timeout=100)
        call(cache.set_many, {"many": 1}, timeout=100)
        call(cache.get_or_set, "filled", 1, timeout=100)
        assert [round(cache.pttl(key) / 1000) for key in ("set", "added", "many", "filled")] == [100] * 4

    def test_set_without_a_timeout_gives_the_alias_default(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1)
        assert round(cache.pttl("k") / 1000) == cache.default_timeout

    def test_fractions_of_a_second_are_kept(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=10.75)
        assert 10_000 < cache.pttl("k") <= 10_750

    def test_a_timeout_of_text_is_seconds(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout="60")
        assert round(cache.pttl("k") / 1000) == 60

    def test_none_is_no_ttl(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=None)
        assert cache.ttl("k") is None

    def test_touch_sets_the_time_asked_for(self, cache: Any, call: Call) -> None:
        call(cache.set, "k", 1, timeout=10)
        call(cache.touch, "k", 500)
        assert round(cache.pttl("k") / 1000) == 500
        call(cache.touch, "k", None)
        assert cache.ttl("k") is None

    @pytest.mark.parametrize("value", [1, 1.5, True])
    def test_incr_keeps_the_ttl(self, cache: Any, call: Call, value: Any) -> None:
        call(cache.set, "n", value, timeout=1000)
        call(cache.incr, "n")
        assert round(cache.pttl("n") / 1000) == 1000

    def test_incr_keeps_a_counter_for_ever(self, cache: Any, call: Call) -> None:
        call(cache.set, "n", 1, timeout=None)
        call(cache.incr, "n")
        assert cache.ttl("n") is None

    @pytest.mark.parametrize("timeout", [1000, None])
    def test_incr_version_keeps_the_ttl(self, cache: Any, call: Call, timeout: int | None) -> None:
        call(cache.set, "k", 1, timeout=timeout)
        call(cache.incr_version, "k")
        assert cache.ttl("k", version=2) == (None if timeout is None else pytest.approx(timeout, abs=1))

    def test_incr_or_create_gives_its_ttl_once(self, cache: Any, call: Call) -> None:
        call(cache.incr_or_create, "n", timeout=1000)
        call(cache.incr_or_create, "n", timeout=10)
        assert round(cache.pttl("n") / 1000) == 1000

    def test_ttl_of_a_missing_key_is_zero(self, cache: Any) -> None:
        assert cache.ttl("missing") == 0
        assert cache.pttl("missing") == 0

    def test_persist_and_expire(self, cache: Any) -> None:
        cache.set("k", 1, timeout=10)
        assert cache.persist("k") is True
        assert cache.ttl("k") is None
        assert cache.expire("k", 100) is True
        assert round(cache.pttl("k") / 1000) == 100
        assert cache.pexpire("k", 5_500) is True
        assert 5_000 < cache.pttl("k") <= 5_500
        assert (cache.persist("missing"), cache.expire("missing", 1), cache.pexpire("missing", 1)) == (
            False,
        ) * 3

    def test_expire_at_takes_a_date(self, cache: Any) -> None:
        when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
        cache.set_many({"k": 1, "ms": 1})
        assert cache.expire_at("k", when) is True
        assert cache.pexpire_at("ms", when) is True
        assert all(98 <= cache.pttl(key) / 1000 <= 101 for key in ("k", "ms"))

    def test_a_lock_is_held_by_one(self, cache: Any) -> None:
        with cache.lock("lock", timeout=10):
            assert cache.lock("lock", timeout=10).acquire(blocking=False) is False
        assert cache.lock("lock", timeout=10).acquire(blocking=False) is True

    def test_sets(self, cache: Any) -> None:
        assert cache.sadd("s", "a", "b", 3) == 3
        assert cache.smembers("s") == {"a", "b", 3}
        assert cache.sismember("s", "a") is True
        assert (cache.srem("s", "a"), cache.scard("s")) == (1, 2)

    def test_hashes(self, cache: Any) -> None:
        assert cache.hset("h", "field", {"a": 1}) == 1
        assert cache.hkeys("h") == ["field"]
        assert (cache.hexists("h", "field"), cache.hlen("h"), cache.hdel("h", "field")) == (True, 1, 1)

    def test_sorted_sets(self, cache: Any) -> None:
        assert cache.zadd("z", {"low": 1.0, "high": 2.0}) == 2
        assert cache.zrange("z", 0, -1) == ["low", "high"]
        assert (cache.zscore("z", "high"), cache.zcard("z")) == (2.0, 2)

    def test_a_number_can_be_read_by_anybody(self, cache: Any, call: Call) -> None:
        """Redis' own INCR works on it, and so does a person with redis-cli."""
        call(cache.set, "n", -5)
        client = cache.client.get_client()
        assert client.get(cache.make_key("n")) == b"-5"
        client.incr(cache.make_key("n"))
        assert call(cache.get, "n") == -4

    @pytest.mark.parametrize("raw", _UNREADABLE.values(), ids=_UNREADABLE)
    def test_what_cannot_be_read_is_a_miss(self, cache: Any, call: Call, raw: bytes) -> None:
        """Cut off, or of a class that a deployment moved: computed anew, not a page of errors."""
        cache.client.get_client().set(cache.make_key("k"), raw)
        assert call(cache.get, "k", "default") == "default"
        assert call(cache.get_many, ["k"]) == {}

    def test_what_cannot_be_read_is_not_said_at_every_read(
        self, cache: Any, call: Call, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache.client.get_client().set(cache.make_key("k"), _UNREADABLE["cut off"])
        with caplog.at_level(logging.WARNING, "redis_infra"):
            for _ in range(10):
                call(cache.get, "k")
        assert [record.levelno for record in caplog.records] in ([], [logging.WARNING])

    def test_what_cannot_be_read_can_be_replaced(self, cache: Any, call: Call) -> None:
        cache.client.get_client().set(cache.make_key("k"), _UNREADABLE["cut off"])
        assert call(cache.get_or_set, "k", "new") == "new"
        assert call(cache.get, "k") == "new"

    def test_an_operation_on_the_wrong_type_is_the_callers_error(self, cache: Any, call: Call) -> None:
        from redis.exceptions import ResponseError

        from redis_infra.exceptions import StoreRejected

        cache.sadd("s", "member")
        with pytest.raises((ResponseError, StoreRejected), match="WRONGTYPE"):
            call(cache.get, "s")
        assert cache.is_degraded is False

    def test_keys_are_listed_as_the_caller_named_them(self, cache: Any) -> None:
        cache.set_many({"user:1": 1, "user:2": 2, "room:1": 3})
        cache.set("user:3", 4, version=2)
        assert sorted(cache.keys("user:*")) == sorted(cache.iter_keys("user:*")) == ["user:1", "user:2"]

    def test_delete_pattern_counts_past_one_page_of_the_scan(self, cache: Any, call: Call) -> None:
        cache.set_many({f"k{number}": 1 for number in range(2500)} | {"other": 1})
        assert call(cache.delete_pattern, "k*") == 2500
        assert call(cache.get, "other") == 1

    def test_clear_leaves_keys_of_other_programs_alone(self, cache: Any, call: Call) -> None:
        client = cache.client.get_client()
        client.set("contract:not-a-cache-key", "1")
        try:
            cache.set_many({f"k{number}": 1 for number in range(2500)})
            call(cache.clear)
            assert list(cache.iter_keys("*")) == []
            assert client.get("contract:not-a-cache-key") == b"1"
        finally:
            client.delete("contract:not-a-cache-key")
