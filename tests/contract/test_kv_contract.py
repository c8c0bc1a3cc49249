"""The whole contract of the key-value store, sync and async, over every provider and a site's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from redis_infra.conf import AliasSettings
from redis_infra.kv.fallback_store import FallbackStore
from redis_infra.kv.file_store import FileStore
from redis_infra.kv.memory_store import MemoryStore
from redis_infra.kv.redis_store import RedisStore
from redis_infra.testing import RedisServer, UpstashServer
from redis_infra.testing.kv_contract import (
    FullStoreContract,
    KVStoreContract,
    OtherTypesContract,
    StoreFixtures,
)
from tests.contract.dict_store import DictStore

if TYPE_CHECKING:
    from pathlib import Path

    from redis_infra.kv import KVStore
    from redis_infra.kv.upstash_store import UpstashStore

HOME = "contract:kv:"
TOKEN = "t0ken-of-the-contract"
PASSWORD = "passw0rd-of-the-contract"


def redis_store(url: str) -> RedisStore:
    # Patient: a machine that is busy with other tests is no outage; those are tested elsewhere.
    options = {"STATE_DIR": None, "COMMAND_TIMEOUT": "10s", "CONNECT_TIMEOUT": "10s", "POOL_WAIT": "10s"}
    return RedisStore(HOME, AliasSettings.load(url, options))


class OnServer(OtherTypesContract):
    @pytest.fixture
    def make_list(self, redis_server: Any) -> Callable[[str], None]:
        return lambda key: redis_server.command("RPUSH", HOME + key, "item")


class TestRedis(KVStoreContract, OnServer):
    @pytest.fixture
    def store(self, redis_infra_url: str) -> RedisStore:
        return redis_store(redis_infra_url)


@pytest.fixture(scope="module")
def rest_url(redis_server: Any) -> Iterator[str]:
    with UpstashServer(redis_server.url, token=TOKEN) as rest:
        yield rest.url


class TestUpstash(KVStoreContract, OnServer):
    @pytest.fixture
    def store(self, redis_infra_url: str, rest_url: str) -> Iterator[UpstashStore]:
        from redis_infra.kv.upstash_store import UpstashStore

        # As patient as the other.
        with UpstashStore(HOME, rest_url, TOKEN, command_timeout=10.0) as store:
            yield store

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        return (TOKEN,)


class TestMemory(KVStoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(HOME)


class TestFile(KVStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[FileStore]:
        with FileStore(HOME, tmp_path / "kv.sqlite3") as store:
            yield store


@pytest.mark.long
class TestFallback(KVStoreContract):
    """Redis with memory behind it, while Redis answers."""

    @pytest.fixture
    def store(self, redis_infra_url: str) -> FallbackStore:
        return FallbackStore(redis_store(redis_infra_url), lambda: MemoryStore(HOME))

    def test_health_is_ok_and_says_what_it_is(self, store: FallbackStore) -> None:  # type: ignore[override]
        """It is the primary's."""
        assert store.health() == store.primary.health()


@pytest.mark.long  # what it finds in us the four providers find too
class TestOwnProvider(KVStoreContract):
    @pytest.fixture
    def store(self) -> DictStore:
        return DictStore(HOME)


class TestRedisWithAPassword(StoreFixtures):
    """In the one test that looks for it."""

    test_no_secret_shows = KVStoreContract.test_no_secret_shows

    @pytest.fixture
    def store(self, own_redis: Callable[..., RedisServer]) -> RedisStore:
        server = own_redis(config={"requirepass": PASSWORD}, unix_socket=False)
        return redis_store(server.url.replace("//", f"//:{PASSWORD}@"))

    @pytest.fixture
    def secrets(self) -> tuple[str, ...]:
        return (PASSWORD,)


class TestFullMemory(FullStoreContract):
    @pytest.fixture
    def full_store(self) -> KVStore:
        store = MemoryStore(HOME, max_entries=2)
        store.mset({"old": "old", "n": 1})
        return store


class TestFullRedis(FullStoreContract):
    @pytest.fixture
    def full_store(self, own_redis: Callable[..., RedisServer]) -> KVStore:
        server = own_redis(config={"maxmemory-policy": "noeviction"})
        store = redis_store(server.url)
        store.mset({"old": "old", "n": 1})
        server.config_set("maxmemory", 1)
        return store


class TestFullUpstash(FullStoreContract):
    @pytest.fixture
    def full_store(self, own_redis: Callable[..., RedisServer]) -> Iterator[KVStore]:
        from redis_infra.kv.upstash_store import UpstashStore

        server = own_redis(config={"maxmemory-policy": "noeviction"})
        with UpstashServer(server.url, token=TOKEN) as rest, UpstashStore(HOME, rest.url, TOKEN) as store:
            store.mset({"old": "old", "n": 1})
            server.config_set("maxmemory", 1)
            yield store
