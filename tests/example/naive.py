"""The cache that most sites would write: it survives an outage, and forgets what it was told meanwhile.

The tour must find it out; with a tour that cannot fail, passing means nothing.
Also the settings module of a Relay that uses it. Its query cache is the real one.
"""

from __future__ import annotations

from typing import Any

from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache as DjangoRedisCache
from redis import RedisError

from example_project.settings import *  # noqa: F403
from redis_infra.cache import RedisCache

CACHES = {"default": {"BACKEND": "tests.example.naive.NaiveCache"}}
TIMEOUTS = {"socket_timeout": 0.1, "socket_connect_timeout": 0.1}


class NaiveCache(RedisCache):
    """Redis if it answers, else this process, without a journal."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._remote = DjangoRedisCache(server, {**params, "OPTIONS": TIMEOUTS})
        self._local = LocMemCache("naive", {})

    def _try(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._remote, name)(*args, **kwargs)
        except RedisError:
            return getattr(self._local, name)(*args, **kwargs)


def _forward(name: str) -> Any:
    def method(self: NaiveCache, *args: Any, **kwargs: Any) -> Any:
        return self._try(name, *args, **kwargs)

    return method


for _name in ("get", "set", "add", "delete", "incr", "get_or_set"):
    setattr(NaiveCache, _name, _forward(_name))
