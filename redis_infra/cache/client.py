"""django-redis' client over our connections: the methods that Django's cache API does not have.

Sets, hashes, sorted sets, locks, times to live: django-redis' code, unchanged,
on a raw client that passes the guard. Values are in the alias' own format.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.core.cache.backends.base import get_key_func
from django.utils.module_loading import import_string
from django_redis.client.default import DefaultClient

from redis_infra.cache.engine import Engine, RedisEngine
from redis_infra.connection.bulk import BATCH
from redis_infra.connection.failures import RedisUnavailable
from redis_infra.connection.raw import GuardedRedis

if TYPE_CHECKING:
    from redis_infra.cache.backend import RedisCache

__all__ = ["Client"]


_SERIALIZERS = {
    "pickle": "django_redis.serializers.pickle.PickleSerializer",
    "json": "django_redis.serializers.json.JSONSerializer",
    "msgpack": "django_redis.serializers.msgpack.MSGPackSerializer",
}


class _Factory:
    """What django-redis asks for connections: all clients share the ones of the process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def connect(self, url: str) -> GuardedRedis:
        engine = self._engine
        if not isinstance(engine, RedisEngine):
            raise RedisUnavailable(reason="no Redis is configured for this cache; it works in memory")
        return GuardedRedis(engine.database, engine.connections)

    def disconnect(self, connection: GuardedRedis) -> None:
        connection.connections.close()


class Client(DefaultClient):
    """What ``cache.client`` is. Holds no connection of its own; thread-safe."""

    def __init__(self, engine: Engine, params: dict[str, Any], backend: RedisCache) -> None:
        # Not DefaultClient's constructor: it would make connections of its own.
        self._engine = engine
        self._backend = backend
        self._params = params
        self._options = params.get("OPTIONS", {})
        self._server = [engine.label]
        self._clients = [None]
        self._replica_read_only = True
        self.connection_factory = _Factory(engine)  # type: ignore[assignment]  # of its protocol, what is used
        self.reverse_key = get_key_func(
            params.get("REVERSE_KEY_FUNCTION") or "django_redis.util.default_reverse_key"
        )

    @cached_property
    def _serializer(self) -> Any:  # type: ignore[override]
        """What django-redis would have made of the options; encoding and decoding are the engine's."""
        name = self._engine.settings.serializer
        return import_string(_SERIALIZERS.get(name, name))(options=self._options)

    @cached_property
    def _compressor(self) -> Any:  # type: ignore[override]
        """As :attr:`_serializer`."""
        name = self._options.get("COMPRESSOR") or ""
        path = name if "." in name else "django_redis.compressors.identity.IdentityCompressor"
        return import_string(path)(options=self._options)

    def require(self, command: str) -> None:
        """Raise ``RedisUnavailable`` unless Redis may be asked now."""
        client = self.get_client(write=True)
        if isinstance(client, GuardedRedis):
            client.require(command)

    def encode(self, value: Any, *, allow_int: bool = True) -> Any:
        """As django-redis does, where the options are its own.

        Members of sets are compared byte by byte: old and new processes side by side have to write the same.
        """
        if self._writes_as_django_redis:
            return super().encode(value, allow_int=allow_int)
        return self._engine.codec.encode("", value)

    @cached_property
    def _writes_as_django_redis(self) -> bool:
        settings = self._engine.settings
        is_theirs = settings.serializer == "pickle" or "." in settings.serializer
        return is_theirs and "." in (settings.compressor or ".") and not self._engine.is_signed

    def decode(self, value: Any) -> Any:
        if isinstance(value, int):
            return value
        return self._engine.decode("", value.encode() if isinstance(value, str) else value, None)

    def iter_keys(
        self, search: str, itersize: int | None = None, client: Any = None, version: int | None = None
    ) -> Iterator[str]:
        return super().iter_keys(search, itersize or BATCH, client=client, version=version)

    def keys(self, search: str, version: int | None = None, client: Any = None) -> list[Any]:
        """By SCAN: KEYS holds up everybody else on the server."""
        return list(dict.fromkeys(self.iter_keys(search, client=client, version=version)))

    def clear(self, client: Any = None) -> None:
        """What the cache itself clears; never FLUSHDB, which takes other people's keys too."""
        self._backend.clear()
