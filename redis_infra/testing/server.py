"""The servers that tests run on: one of their own, or the one that ``REDIS_INFRA_TEST_URL`` names.

``RedisServer`` lives in ``redis_infra.connection.embedded``, because ``embedded://``
URLs start servers too; here is its public name. ``ExternalServer`` has as much of
its interface as a server that is somebody else's process can have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlencode, urlsplit

from redis_infra.connection.embedded import RedisServer, ServerError
from redis_infra.connection.plainsocket import PlainConnection

__all__ = ["ExternalServer", "RedisServer", "ServerError", "plain_connection", "server_for_tests"]

TEST_URL: Final = "REDIS_INFRA_TEST_URL"
WORKER: Final = "PYTEST_XDIST_WORKER"


def server_for_tests(environ: Mapping[str, str] = os.environ) -> RedisServer | ExternalServer:
    """Return a running server: the one that ``REDIS_INFRA_TEST_URL`` names, else a new one on a Unix socket.

    Worker n of pytest-xdist gets the nth database after the URL's, so that workers
    do not empty each other's. Whoever asks stops a `RedisServer`.

    Raises:
        MissingExtra: there is no such URL and no server program on this machine.
        ServerError: the server did not start.
    """
    if not (url := environ.get(TEST_URL)):
        return RedisServer().start()
    parts = urlsplit(url)
    database = _database(parts) + int(environ.get(WORKER, "").removeprefix("gw") or 0)
    if parts.scheme == "unix":
        query = urlencode({**dict(parse_qsl(parts.query)), "db": database})
        # Written out: geturl() leaves the slashes away where nothing stands between them.
        return ExternalServer(f"unix://{parts.netloc}{parts.path}?{query}")
    return ExternalServer(parts._replace(path=f"/{database}").geturl())


class ExternalServer:
    """A server that runs already: it can be asked and emptied, not killed or frozen.

    ``url`` is ``redis://``, ``rediss://`` or ``unix://`` with user, password and
    database as usual; ``rediss://`` verifies with the system's certificates.
    """

    alive = True

    def __init__(self, url: str) -> None:
        self.url = url

    def command(self, *args: str | bytes | float, timeout: float = 5.0) -> Any:
        """Run one command in the URL's database, on a connection of its own, and return the reply.

        ``timeout`` in seconds.

        Raises:
            ServerError: the server answered with an error.
            OSError: it is down; TimeoutError: it did not answer in time.
        """
        with plain_connection(self.url, timeout=timeout) as connection:
            return connection.call(*args)

    def config_set(self, name: str, value: str | float) -> None:
        """Change one setting of the server. It stays changed."""
        self.command("CONFIG", "SET", name, value)

    def flush(self) -> None:
        """Delete everything in the URL's database."""
        self.command("FLUSHDB")

    def __repr__(self) -> str:
        return f"<ExternalServer {urlsplit(self.url).hostname or 'on a Unix socket'}>"


def plain_connection(url: str, *, timeout: float = 5.0) -> PlainConnection:
    """Return a connection in the database of a ``redis://``, ``rediss://`` or ``unix://`` URL.

    Raises:
        ServerError: the server answered with an error.
        OSError: it is down; TimeoutError: it did not answer in time.
    """
    parts = urlsplit(url)
    connection = _connection(parts, timeout)
    try:
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            connection.call("AUTH", *user, unquote(parts.password))
        connection.call("SELECT", _database(parts))
    except BaseException:
        connection.close()
        raise
    return connection


def _connection(parts: SplitResult, timeout: float) -> PlainConnection:
    if parts.scheme == "unix":
        return PlainConnection(unquote(parts.path), timeout=timeout)
    address = parts.hostname or "127.0.0.1", parts.port or 6379
    if parts.scheme not in ("rediss", "valkeys"):
        return PlainConnection(address, timeout=timeout)
    import ssl

    return PlainConnection(address, timeout=timeout, tls=ssl.create_default_context())


def _database(parts: SplitResult) -> int:
    path = "" if parts.scheme == "unix" else parts.path.strip("/")
    return int(parse_qs(parts.query).get("db", [path or "0"])[0])
