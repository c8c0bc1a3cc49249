"""Pytest fixtures: real servers, well, dead, frozen and behind a proxy.

Loaded by pytest wherever the app is installed; imports nothing of it until a
fixture is used. A machine without a server program fails the tests that need
one, with the pip line, and does not skip them: a run without Redis must not
look like a run that passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from redis_infra.testing import ExternalServer, FakeClock, RedisServer, TcpProxy

__all__ = [
    "fake_clock",
    "own_redis",
    "redis_down",
    "redis_frozen",
    "redis_infra_url",
    "redis_proxy",
    "redis_server",
]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer | ExternalServer]:
    """A running Redis or Valkey server, one for the session and worker.

    A new one on a Unix socket, or the one that the environment variable
    REDIS_INFRA_TEST_URL names. Not emptied between tests (see redis_infra_url), and
    not yours to kill (see own_redis).
    """
    from redis_infra.exceptions import MissingExtra
    from redis_infra.testing.server import RedisServer, server_for_tests

    try:
        server = server_for_tests()
    except MissingExtra as error:
        pytest.fail(f"{error} (or set REDIS_INFRA_TEST_URL)", pytrace=False)
    yield server
    if isinstance(server, RedisServer):
        server.stop()


@pytest.fixture
def redis_infra_url(redis_server: RedisServer | ExternalServer) -> str:
    """The URL of redis_server, emptied before the test."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    """Start servers for this test alone: own_redis(config={"maxmemory": "8mb"}). As RedisServer(...).

    They may be killed, frozen and reconfigured; they are stopped after the test.
    """
    from redis_infra.exceptions import MissingExtra
    from redis_infra.testing.server import RedisServer

    servers: list[RedisServer] = []

    def start(**arguments: Any) -> RedisServer:
        servers.append(RedisServer(**arguments))
        try:
            return servers[-1].start()
        except MissingExtra as error:
            pytest.fail(str(error), pytrace=False)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def redis_down(own_redis: Callable[..., RedisServer]) -> RedisServer:
    """A server of this test alone that has been killed. Its start() ends the outage."""
    server = own_redis()
    server.kill()
    return server


@pytest.fixture
def redis_frozen(own_redis: Callable[..., RedisServer]) -> RedisServer:
    """A server of this test alone that hangs: it takes connections, and answers nothing until thaw()."""
    server = own_redis()
    server.freeze()
    return server


@pytest.fixture
def redis_proxy(redis_server: RedisServer | ExternalServer) -> Iterator[TcpProxy]:
    """A TcpProxy in front of redis_server, well-behaved until told otherwise."""
    from redis_infra.testing.proxy import TcpProxy

    with TcpProxy(redis_server.url) as proxy:
        yield proxy


@pytest.fixture
def fake_clock() -> FakeClock:
    """A FakeClock: time that moves when the test says so."""
    from redis_infra.testing.clock import FakeClock

    return FakeClock()
