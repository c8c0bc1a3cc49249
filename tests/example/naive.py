"""The cache that most sites would write: it survives an outage, and forgets what it was told meanwhile.

The tour must find it out; with a tour that cannot fail, passing means nothing.
Also the settings module of a Relay that uses it.
"""

from __future__ import annotations

from typing import Any

from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache
from redis import RedisError

from example_project.settings import *  # noqa: F403

CACHES = {"default": {"BACKEND": "tests.example.naive.NaiveCache"}}
TIMEOUTS = {"socket_timeout": 0.1, "socket_connect_timeout": 0.1}

_down: dict[str, Any] = {"cause": None, "ops": 0}


class NaiveCache(RedisCache):
    """Redis if it answers, else this process, without a journal."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, {**params, "OPTIONS": TIMEOUTS})
        self._local = LocMemCache("naive", {})

    def status(self) -> dict[str, Any]:
        """What the playground shows."""
        return {
            "state": "open" if _down["cause"] else "closed",
            "server": "naive",
            "rule": "",
            "reason": "",
            "since": None,
            "cause": _down["cause"],
            "pending": 0,
            "fallback_entries": 0,
            "counters": {"hits": 0, "misses": 0, "fallback_ops": _down["ops"]},
        }

    def _try(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = getattr(super(), name)(*args, **kwargs)
        except RedisError as error:
            _down.update(cause=str(error), ops=_down["ops"] + 1)
            return getattr(self._local, name)(*args, **kwargs)
        _down["cause"] = None
        return answer


def _forward(name: str) -> Any:
    def method(self: NaiveCache, *args: Any, **kwargs: Any) -> Any:
        return self._try(name, *args, **kwargs)

    return method


for _name in ("get", "set", "add", "delete", "incr", "get_many", "set_many", "delete_many"):
    setattr(NaiveCache, _name, _forward(_name))
