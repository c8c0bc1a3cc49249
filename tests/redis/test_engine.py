"""The engine behind a cache alias: who shares it, what answers for it in an outage, what it counts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils.asyncio import async_unsafe
from django_redis.compressors.identity import IdentityCompressor
from django_redis.compressors.zlib import ZlibCompressor
from django_redis.serializers.json import JSONSerializer
from django_redis.serializers.pickle import PickleSerializer
from django_redis.util import CacheKey

from redis_infra.cache.engine import forget_engines
from redis_infra.connection.failures import RedisUnavailable
from redis_infra.testing import outage

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
def cache(redis_server, make_cache):
    return make_cache(redis_server.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s")


class TestSharing:
    def test_one_configuration_is_one_engine(self, make_cache):
        assert make_cache(NOBODY)._engine is make_cache(NOBODY)._engine

    @pytest.mark.parametrize(
        "options",
        [{"COMMAND_TIMEOUT": "1s"}, {"SERIALIZER": "json"}, {"ON_OUTAGE": "miss"}, {"SIGNED": True}],
    )
    def test_another_one_is_another(self, make_cache, options):
        assert make_cache(NOBODY)._engine is not make_cache(NOBODY, **options)._engine

    def test_another_password_is_another(self, make_cache):
        one, other = (make_cache(NOBODY.replace("redis://", f"redis://:{word}@")) for word in ("a", "b"))
        assert one._engine is not other._engine

    def test_prefixes_share_one(self, make_cache):
        assert make_cache(NOBODY, KEY_PREFIX="a")._engine is make_cache(NOBODY, KEY_PREFIX="b")._engine

    def test_once_forgotten_it_is_made_anew(self, make_cache):
        engine = make_cache(NOBODY)._engine
        forget_engines()
        assert make_cache(NOBODY)._engine is not engine

    def test_a_new_secret_key_is_a_new_engine(self, make_cache, settings):
        """It signs with the key that it was made with."""
        engine = make_cache(NOBODY, SIGNED=True)._engine
        settings.SECRET_KEY = "another"
        assert make_cache(NOBODY, SIGNED=True)._engine is not engine

    def test_memory_of_one_name_is_one(self, make_cache):
        one, same, other = (make_cache(url) for url in ("memory://a", "memory://a", "memory://b"))
        one.set("k", 1)
        assert (same.get("k"), other.get("k")) == (1, None)

    def test_options_that_are_lists_and_dictionaries_do_no_harm(self, make_cache):
        options = {"CONNECTION_POOL_KWARGS": {"retry_on_error": [TimeoutError]}}
        assert make_cache(NOBODY, **options)._engine is make_cache(NOBODY, **options)._engine

    @pytest.mark.parametrize(
        "options", [{"COMAND_TIMEOUT": 1}, {"SERIALIZER": "no.such.Class"}, {"SIGNED": "yes"}]
    )
    def test_what_is_configured_wrongly_is_djangos_own_error(self, make_cache, options):
        with pytest.raises(ImproperlyConfigured):
            make_cache(NOBODY, **options).get("k")


class TestSigned:
    def test_values_are_read_with_every_key_that_may_have_signed_them(
        self, redis_server, make_cache, settings
    ):
        settings.SECRET_KEY = b"the old one"
        make_cache(redis_server.url, SIGNED=True).set("k", {"a": 1})
        settings.SECRET_KEY = "the new one"
        assert make_cache(redis_server.url, SIGNED=True).get("k") is None
        settings.SECRET_KEY_FALLBACKS = ["the old one"]
        assert make_cache(redis_server.url, SIGNED=True).get("k") == {"a": 1}

    def test_a_value_is_not_believed_under_another_key(self, redis_server, make_cache, call):
        """But a new version of its own key keeps it."""
        cache = make_cache(redis_server.url, SIGNED=True)
        call(cache.set, "k", {"a": 1})
        redis_server.command("COPY", cache.make_key("k"), cache.make_key("other"))
        assert call(cache.get, "other") is None
        assert call(cache.get_many, ["k", "other"]) == {"k": {"a": 1}}
        call(cache.incr_version, "k")
        assert call(cache.get, "k", version=2) == {"a": 1}


class TestCounting:
    def test_hits_and_misses(self, cache, call):
        call(cache.set, "k", 1)
        call(cache.get, "k")
        call(cache.get, "missing")
        call(cache.get_many, ["k", "missing", "other"])
        counters = cache.status()["counters"]
        assert (counters["hits"], counters["misses"]) == (2, 3)

    def test_what_cannot_be_read_is_a_miss_with_one_warning(self, cache, call, redis_server, caplog):
        redis_server.command("SET", cache.make_key("k"), b"\x80\x04half of a pickle")
        with caplog.at_level(logging.WARNING, "redis_infra"):
            assert [call(cache.get, "k", "default") for _ in range(3)] == ["default"] * 3
            assert call(cache.get_many, ["k"]) == {}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        counters = cache.status()["counters"]
        assert (counters["unreadable"], counters["hits"], counters["misses"]) == (4, 0, 4)

    def test_what_was_served_without_redis(self, cache, call):
        with outage(cache):
            for _ in range(3):
                call(cache.get, "k")
            assert cache.status()["counters"]["fallback_ops"] == 3


class TestStatus:
    def test_a_cache_that_is_well(self, cache, redis_server):
        cache.get("k")
        status = cache.status()
        assert (status["state"], status["cause"], status["since"], status["pending"]) == (
            "closed",
            None,
            None,
            0,
        )
        assert status["server"] == cache._engine.label

    def test_one_that_is_not(self, cache):
        with outage(cache):
            cache.delete("k")
            cache.set("other", 1)
            status = cache.status()
        assert (status["state"], status["circuit"], status["pending"]) == ("open", "reach", 2)
        assert status["fallback_entries"] == 1
        assert status["cause"]
        assert status["since"]

    def test_one_in_memory(self, make_cache):
        status = make_cache("memory://").status()
        assert (status["state"], status["server"], status["pending"]) == ("memory", "memory://", 0)

    def test_no_password_is_in_it(self, make_cache):
        assert "s3cr3t" not in repr(make_cache("redis://:s3cr3t@127.0.0.1:1/0").status())


class TestMiss:
    """``ON_OUTAGE = "miss"``: for what has its truth elsewhere."""

    @pytest.fixture
    def cache(self, redis_server, make_cache):
        cache = make_cache(redis_server.url, ON_OUTAGE="miss")
        cache.set_many({"k": 1, "n": 1})
        with outage(cache):
            yield cache

    def test_reads_miss(self, cache, call):
        call(cache.set, "k", 2)
        assert call(cache.get, "k", "default") == "default"
        assert call(cache.get_many, ["k", "n"]) == {}
        assert call(cache.has_key, "k") is False
        assert call(cache.touch, "k") is False
        with pytest.raises(ValueError, match="not found"):
            call(cache.incr, "n")

    def test_writes_go_nowhere_and_say_what_a_session_expects(self, cache, call):
        assert call(cache.set, "k", 2) is None
        assert call(cache.add, "k", 2) is True
        assert call(cache.add, "k", 2) is True
        assert call(cache.set, "k", 2, nx=True) is True
        assert call(cache.set, "k", 2, xx=True) is False
        assert call(cache.set_many, {"k": 3}) == []
        assert call(cache.incr_or_create, "new", 5) == 5
        assert call(cache.delete, "k") is False
        assert cache.status()["fallback_entries"] == 0

    def test_but_they_are_not_forgotten(self, cache, call):
        call(cache.delete, "k")
        assert cache.status()["pending"] == 1


class TestRaise:
    """``ON_OUTAGE = "raise"``: for locks, where a local yes would be a lie."""

    @pytest.mark.parametrize(
        "operation",
        [
            ("get", "k"),
            ("get_many", ["k"]),
            ("set", "k", 1),
            ("set_many", {"k": 1}),
            ("add", "k", 1),
            ("touch", "k"),
            ("delete", "k"),
            ("delete_many", ["k"]),
            ("delete_pattern", "k*"),
            ("clear",),
            ("incr", "k"),
            ("incr_or_create", "k"),
            ("incr_version", "k"),
            ("has_key", "k"),
            ("get_or_set", "k", 1),
        ],
        ids=lambda operation: operation[0],
    )
    def test_everything_does_at_once(self, redis_server, make_cache, call, operation):
        cache = make_cache(redis_server.url, ON_OUTAGE="raise")
        method, *args = operation
        with outage(cache), pytest.raises(RedisUnavailable, match="held open"):
            call(getattr(cache, method), *args)

    def test_while_redis_is_up_nothing_does(self, redis_server, make_cache, call):
        cache = make_cache(redis_server.url, ON_OUTAGE="raise")
        assert call(cache.set, "k", 1) is True
        assert call(cache.get, "k") == 1


class TestOddArguments:
    def test_a_timeout_that_is_no_number_is_the_callers_bug(self, cache, call):
        with pytest.raises(TypeError, match="seconds or None"):
            call(cache.set, "k", 1, object())
        with pytest.raises(TypeError, match="seconds or None"):
            call(cache.set, "k", 1, "soon")

    def test_so_is_one_that_means_nothing(self, cache, call):
        with pytest.raises(ValueError, match="NaN"):
            call(cache.set, "k", 1, float("nan"))

    def test_infinity_is_for_ever(self, cache, call):
        call(cache.set, "k", 1, float("inf"))
        assert cache.ttl("k") is None

    @pytest.mark.parametrize("timeout", [10**30, 1e30])
    def test_more_than_a_server_can_count_is_as_long_as_it_can(self, cache, call, timeout):
        call(cache.set, "k", 1, timeout)
        assert cache.ttl("k") > 10**9

    def test_less_than_a_millisecond_is_not_at_once(self, cache, call):
        assert call(cache.set, "k", 1, 0.0001) is True

    def test_a_key_that_is_made_already_is_not_made_again(self, cache, call):
        """As ``cache.client.make_key`` gives it."""
        call(cache.set, "k", 1)
        key = cache.client.make_key("k")
        assert isinstance(key, CacheKey)
        assert call(cache.get, key) == 1
        assert call(cache.get_many, [key]) == {key: 1}

    @pytest.mark.parametrize("where", ["redis", "memory"])
    def test_what_is_no_counter_cannot_be_counted_up(self, cache, call, make_cache, where):
        cache = cache if where == "redis" else make_cache("memory://")
        call(cache.set, "k", "text")
        with pytest.raises(TypeError, match="'k' is not an integer"):
            call(cache.incr_or_create, "k")

    def test_aget_or_set_takes_what_is_awaited(self, cache):
        async def compute():
            return 5

        async def work():
            return await cache.aget_or_set("k", compute), await cache.aget_or_set("j", lambda: compute())  # noqa: PLW0108

        assert asyncio.run(work()) == (5, 5)


class TestDjangoRedisPieces:
    """What extensions of django-redis look for on ``cache.client``."""

    def test_its_serializer_and_compressor_are_the_alias_own(self, make_cache):
        client = make_cache("memory://").client
        assert isinstance(client._serializer, PickleSerializer)
        assert isinstance(client._compressor, IdentityCompressor)

    def test_also_by_our_names_and_by_theirs(self, make_cache):
        ours = make_cache(NOBODY, SERIALIZER="json", COMPRESSOR="zlib").client
        theirs = make_cache(
            NOBODY,
            SERIALIZER="django_redis.serializers.json.JSONSerializer",
            COMPRESSOR="django_redis.compressors.zlib.ZlibCompressor",
        ).client
        assert isinstance(ours._serializer, JSONSerializer)
        assert isinstance(theirs._serializer, JSONSerializer)
        assert isinstance(ours._compressor, IdentityCompressor)
        assert isinstance(theirs._compressor, ZlibCompressor)


class Lazy:
    """As a queryset: pickling it evaluates it, which Django allows in a thread only."""

    def __reduce__(self) -> Any:
        return str, (evaluate(),)


@async_unsafe("evaluated in an event loop")
def evaluate() -> str:
    return "rows"


@pytest.mark.parametrize("where", ["redis", "memory"])
def test_what_is_evaluated_when_it_is_stored_can_be_stored_in_a_loop(make_cache, redis_infra_url, where):
    cache = make_cache(redis_infra_url if where == "redis" else "memory://")

    async def store() -> list[Any]:
        await cache.aset("set", Lazy())
        await cache.aadd("added", Lazy())
        await cache.aset_many({"many": Lazy()})
        await cache.aget_or_set("filled", Lazy)
        return [await cache.aget(key) for key in ("set", "added", "many", "filled")]

    assert asyncio.run(store()) == ["rows"] * 4
