"""The whole cache contract, sync and async: on Redis, without Redis, and while Redis comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from redis_infra.testing import RedisServer
from redis_infra.testing.contract import CacheContract, OutageContract, RedisFeaturesContract, eventually


class OnLocation:
    """A cache, and others over the same data, at what the fixture ``location`` says."""

    @pytest.fixture
    def make_cache(self, alias_on: Callable[..., Any], location: str) -> Callable[..., Any]:
        return partial(alias_on, location)

    @pytest.fixture
    def cache(self, make_cache: Callable[..., Any]) -> Any:
        return make_cache()


class TestOnRedis(OnLocation, CacheContract, RedisFeaturesContract):
    @pytest.fixture
    def location(self, redis_infra_url: str) -> str:
        return redis_infra_url

    @pytest.fixture(autouse=True)
    def redis_answered(self, cache: Any) -> Iterator[None]:
        """Make sure that all this was Redis' doing, and not the fallback's."""
        yield
        assert cache.is_degraded is False


class TestRefusedFromTheStart(OnLocation, CacheContract, OutageContract):
    @pytest.fixture
    def location(self, refusing_url: str) -> str:
        return refusing_url


class TestInMemory(OnLocation, CacheContract):
    """No Redis is configured at all."""

    @pytest.fixture
    def location(self) -> str:
        return "memory://"


@pytest.fixture(scope="module")
def mortal_server() -> Iterator[RedisServer]:
    """A server that these tests stop and start."""
    with RedisServer() as server:
        yield server


def use(cache: Any) -> None:
    """Open what a process that is at work has open."""
    cache.set("used", 1)
    assert cache.get("used") == 1
    assert cache.is_degraded is False
    cache.delete("used")


def meet_the_outage(cache: Any) -> None:
    cache.set("k", "written in the outage")
    assert cache.get("k") == "written in the outage"
    assert cache.is_degraded is True


def recover(cache: Any, server: RedisServer) -> None:
    server.start()
    assert eventually(lambda: cache.is_degraded is False)
    assert cache.get("k") is None


class OnMortalServer(OnLocation):
    @pytest.fixture
    def location(self, mortal_server: RedisServer) -> str:
        return mortal_server.url

    @pytest.fixture(autouse=True)
    def interrupted(self, cache: Any) -> None:
        """Have the server stopped, or back, for tests too that make caches of their own."""


class TestStoppedAndStartedInTurn(OnMortalServer, CacheContract):
    """One test finds the server stopped just before, the next one finds it back.

    Which finds which is chance, as the order of tests is; the long classes below have all tests find both.
    """

    @pytest.fixture
    def cache(self, make_cache: Callable[..., Any], mortal_server: RedisServer) -> Any:
        cache = make_cache()
        if mortal_server.alive:
            use(cache)
            mortal_server.kill()
        else:
            meet_the_outage(cache)
            recover(cache, mortal_server)
        return cache


class StoppedJustBefore(OnMortalServer):
    """The test's first operation is the one that meets the fault, on a connection that was good."""

    @pytest.fixture
    def cache(self, make_cache: Callable[..., Any], mortal_server: RedisServer) -> Any:
        mortal_server.start()
        cache = make_cache()
        use(cache)
        mortal_server.kill()
        return cache


class BackAgain(OnMortalServer):
    """The server was used, stopped, missed, and started again."""

    @pytest.fixture
    def cache(self, make_cache: Callable[..., Any], mortal_server: RedisServer) -> Any:
        mortal_server.start()
        cache = make_cache()
        use(cache)
        mortal_server.kill()
        meet_the_outage(cache)
        recover(cache, mortal_server)
        return cache


class TestOutageOfAProcessAtWork(StoppedJustBefore, OutageContract):
    pass


class TestRedisFeaturesOfAServerThatIsBack(BackAgain, RedisFeaturesContract):
    pass


@pytest.mark.long
class TestStoppedJustBefore(StoppedJustBefore, CacheContract):
    pass


@pytest.mark.long
class TestBackAgain(BackAgain, CacheContract):
    pass
