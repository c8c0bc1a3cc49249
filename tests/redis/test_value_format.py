"""One Redis, three backends: ours, django-redis and Django's own read what the others wrote."""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from django.core.cache.backends.redis import RedisCache as DjangoCache
from django_redis.cache import RedisCache as DjangoRedisCache

from redis_infra.cache.codec import Codec, Unreadable
from redis_infra.testing import ExternalServer, RedisServer

KEY = "user:7"
NAME = ":1:user:7"  # what Django's default key function makes of it
SECRET = [b"a secret"]


class Colour(enum.IntEnum):
    RED = 1


VALUES = [
    0,
    -7,
    2**63 - 1,
    -(2**63),
    10**30,
    True,
    False,
    None,
    1.5,
    float("inf"),
    "",
    "7",
    "-7",
    "żółw",
    b"",
    b"7",
    b"\xc1\x10\x00",
    (1, 2),
    {1: "one", "two": [2, None]},
    {1, 2},
    Colour.RED,
    decimal.Decimal("1.50"),
    uuid.UUID(int=7),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC),
    "all work and no play " * 200,
]


class Ours:
    """The codec's bytes in Redis, under the name that the backends give them."""

    def __init__(self, client: redis.Redis, **options: Any) -> None:
        self.client = client
        self.codec = Codec.build(**options)

    def set(self, key: str, value: Any) -> None:
        self.client.set(f":1:{key}", self.codec.encode(key, value))

    def get(self, key: str) -> Any:
        return self.codec.decode(key, self.client.get(f":1:{key}"))


@pytest.fixture
def client(redis_server: RedisServer | ExternalServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def django_cache(redis_server: RedisServer | ExternalServer) -> Iterator[DjangoCache]:
    cache = DjangoCache(redis_server.url, {})
    yield cache
    for pool in cache._cache._pools.values():
        pool.disconnect()


@pytest.fixture
def django_redis(redis_server: RedisServer | ExternalServer) -> Iterator[Callable[..., DjangoRedisCache]]:
    """Make a django-redis cache: ``django_redis(SERIALIZER=...)``."""
    made = []

    def make(**options: Any) -> DjangoRedisCache:
        cache = DjangoRedisCache(redis_server.url, {"OPTIONS": options})
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.client.get_client().connection_pool.disconnect()


def test_all_three_read_each_other(
    client: redis.Redis, django_redis: Callable[..., DjangoRedisCache], django_cache: DjangoCache
) -> None:
    backends = {"ours": Ours(client), "django-redis": django_redis(), "Django": django_cache}
    for (writer, reader), value in itertools.product(itertools.product(backends, repeat=2), VALUES):
        backends[writer].set(KEY, value)
        read = backends[reader].get(KEY)
        assert read == value, f"{writer} wrote {value!r}, {reader} read {read!r}"
        assert type(read) is type(value), f"{writer} wrote {value!r}, {reader} read {read!r}"


def test_all_three_count_the_same_counter(
    client: redis.Redis, django_redis: Callable[..., DjangoRedisCache], django_cache: DjangoCache
) -> None:
    ours, theirs = Ours(client), django_redis()
    ours.set(KEY, 5)
    assert theirs.incr(KEY) == 6
    assert django_cache.incr(KEY, 10) == 16
    assert client.incrby(NAME, -20) == -4
    assert (ours.get(KEY), theirs.get(KEY), django_cache.get(KEY)) == (-4, -4, -4)


JSON_VALUES = [0, -7, 10**30, True, None, 1.5, "", "7", "żółw", [1, {"a": None}], "all work " * 200]
OPTIONS = [
    {"PICKLE_VERSION": 0},
    {"PICKLE_VERSION": 2},
    {"SERIALIZER": "django_redis.serializers.pickle.PickleSerializer"},
    {"SERIALIZER": "django_redis.serializers.json.JSONSerializer"},
    {"SERIALIZER": "django_redis.serializers.msgpack.MSGPackSerializer"},
    {"COMPRESSOR": "django_redis.compressors.identity.IdentityCompressor"},
    {"COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"},
    {"COMPRESSOR": "django_redis.compressors.gzip.GzipCompressor"},
    {"COMPRESSOR": "django_redis.compressors.lz4.Lz4Compressor"},
    {"COMPRESSOR": "django_redis.compressors.lzma.LzmaCompressor"},
    {
        "SERIALIZER": "django_redis.serializers.json.JSONSerializer",
        "COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor",
    },
]


def with_the_options_of(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "serializer": options.get("SERIALIZER", "pickle"),
        "compressor": options.get("COMPRESSOR"),
        "options": options,
    }


@pytest.mark.parametrize("options", OPTIONS)
def test_django_redis_with_the_same_options_reads_and_is_read(
    client: redis.Redis, django_redis: Callable[..., DjangoRedisCache], options: dict[str, Any]
) -> None:
    ours, theirs = Ours(client, **with_the_options_of(options)), django_redis(**options)
    for value in JSON_VALUES:
        ours.set(KEY, value)
        assert theirs.get(KEY) == value
        theirs.set(KEY, value)
        assert ours.get(KEY) == value


@pytest.mark.parametrize("options", [options for options in OPTIONS if "SERIALIZER" in options])
def test_dotted_paths_write_the_very_bytes_of_django_redis(
    client: redis.Redis, django_redis: Callable[..., DjangoRedisCache], options: dict[str, Any]
) -> None:
    ours, theirs = Ours(client, **with_the_options_of(options)), django_redis(**options)
    for value in JSON_VALUES:
        ours.set(KEY, value)
        written = client.get(NAME)
        theirs.set(KEY, value)
        assert client.get(NAME) == written


@pytest.mark.parametrize(
    "options",
    [
        {"serializer": "json"},
        {"serializer": "msgpack"},
        {"compressor": "zlib"},
        {"compressor": "lz4"},
        {"compressor": "zstd"},
        {"signed": "migrate", "key_material": SECRET},
    ],
)
def test_change_of_options_needs_no_flush(
    client: redis.Redis,
    django_redis: Callable[..., DjangoRedisCache],
    django_cache: DjangoCache,
    options: dict[str, Any],
) -> None:
    """What the three have written in their default format is read by an alias with other options."""
    after = Ours(client, **options)
    for before in (Ours(client), django_redis(), django_cache):
        before.set(KEY, {"a": (1, 2)})
        assert after.get(KEY) == {"a": (1, 2)}


def test_signed_values_trust_nobody_else(
    client: redis.Redis, django_redis: Callable[..., DjangoRedisCache], django_cache: DjangoCache
) -> None:
    signed = Ours(client, signed=True, key_material=SECRET)
    for other in (Ours(client), django_redis(), django_cache):
        other.set(KEY, {"a": 1})
        with pytest.raises(Unreadable, match="not signed"):
            signed.get(KEY)
        other.set(KEY, 7)
        assert signed.get(KEY) == 7


def test_signed_value_moves_with_its_key_to_another_version_and_no_other_key(client: redis.Redis) -> None:
    signed = Ours(client, signed=True, key_material=SECRET)
    signed.set(KEY, {"a": 1})
    client.rename(NAME, ":2:user:7")
    assert signed.codec.decode(KEY, client.get(":2:user:7")) == {"a": 1}
    client.rename(":2:user:7", ":1:user:8")
    with pytest.raises(Unreadable, match="signature"):
        signed.get("user:8")
