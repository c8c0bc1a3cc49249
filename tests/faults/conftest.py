"""Fixtures of the fault tests: servers that keep their data, sites of several processes, what was logged."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.outages import Outage
from tests.faults.site import Nursery, Site

if TYPE_CHECKING:
    from pathlib import Path

    from redis_infra.testing import RedisServer, TcpProxy

DURABLE = {"appendonly": "yes", "appendfsync": "no"}


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def make_site(nursery: Nursery, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Make a site: ``make_site(url)``; with ``host="b"`` on another host, which has its own STATE_DIR."""
    sites: list[Site] = []

    def make(url: str, *, host: str = "a", **options: Any) -> Site:
        sites.append(Site(nursery, url, str(tmp_path / f"state-{host}"), **options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> RedisServer:
    """A server of this test alone, on loopback TCP."""
    return own_redis(unix_socket=False)


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    """A proxy in front of ``server``."""
    from redis_infra.testing import TcpProxy

    with TcpProxy(server.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _quiet_log_before() -> None:
    """Let each test's first outage log, whatever another one logged about the same address before."""
    from redis_infra.instrumentation import reset_log

    reset_log()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[str]]:
    """Return the messages of the app at a level, so far: ``log(logging.WARNING)``."""
    caplog.set_level(logging.INFO, logger="redis_infra")

    def messages(level: int) -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno == level and record.name.startswith("redis_infra")
        ]

    return messages


@pytest.fixture
def make_outage(own_redis: Callable[..., RedisServer]) -> Iterator[Callable[[str], Outage]]:
    """Make a server whose data survives, behind a proxy, that goes away in one of ``outages.KINDS``."""
    from redis_infra.testing import TcpProxy

    proxies: list[TcpProxy] = []

    def make(kind: str) -> Outage:
        server = own_redis(config=DURABLE if kind == "killed" else {})
        proxies.append(TcpProxy(server.url))
        return Outage(server, proxies[-1], kind)

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """Return an address that nobody listens on, and that is taken, so that nobody starts a server there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{bound.getsockname()[1]}/0"
