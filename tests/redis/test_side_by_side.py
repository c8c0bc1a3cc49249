"""Processes on django-redis and on this app, over one Redis at the same time, as in a rolling deployment."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from django_redis.cache import RedisCache as DjangoRedis

from redis_infra.cache import RedisCache


class Level(enum.IntEnum):
    LOW = 1


MEMBERS = ["text", 5, -7, 2**70, True, 1.5, None, "12", Level.LOW, b"raw", ("t", 1), "long " * 1000]
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "an old pickle": {"PICKLE_VERSION": 2},
    "JSON": {"SERIALIZER": "django_redis.serializers.json.JSONSerializer"},
    "zlib": {"COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_ours_first", [True, False])
def test_members_of_sets_are_the_same_to_both(
    redis_infra_url: str, options: dict[str, Any], is_ours_first: bool
) -> None:
    params = {"OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient", **options}}
    both: list[Any] = [RedisCache(redis_infra_url, params), DjangoRedis(redis_infra_url, params)]
    first, second = both if is_ours_first else reversed(both)
    members = [
        member for member in MEMBERS if "SERIALIZER" not in options or type(member) in (str, int, bool)
    ]
    for number, member in enumerate(members):
        key = f"s{number}"
        assert first.sadd(key, member) == 1
        assert second.sadd(key, member) == 0, f"{member!r} is another member to the second"
        assert second.sismember(key, member)
        assert first.zadd(f"z{number}", {member: 1.5}) == 1
        assert second.zscore(f"z{number}", member) == 1.5
        assert second.srem(key, member) == 1


def test_what_the_client_makes_of_a_number_is_a_number(redis_infra_url: str) -> None:
    client = RedisCache(redis_infra_url, {}).client
    assert [client.decode(5), client.decode("5"), client.decode(b"5")] == [5, 5, 5]
    assert client.encode(5) == 5
