"""Fixtures of the tests on real servers: connections, and TLS in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from redis_infra.connection.links import Link

DATA = Path(__file__).parent / "data"
CERTIFICATE, KEY = DATA / "tls-cert.pem", DATA / "tls-key.pem"
TRUSTING = f"ssl_ca_certs={quote(str(CERTIFICATE))}"

UNHURRIED = {"command_timeout": 10.0, "connect_timeout": 10.0}
"""For tests that are not about time: the machine may be busy."""


@pytest.fixture
def open_one() -> Iterator[Callable[..., Link]]:
    """Open a link: ``open_one(url, command_timeout=0.1)``. It is closed after the test."""
    from redis_infra.connection.links import open_link
    from redis_infra.connection.options import ConnectionOptions
    from redis_infra.connection.resolver import Resolver

    opened: list[Link] = []

    def open_one(url: str, *, patient: bool = False, identify: bool = False, **options: Any) -> Link:
        said = ConnectionOptions.from_url(url, **{**UNHURRIED, **options})
        opened.append(open_link(said, Resolver(), patient=patient, identify=identify))
        return opened[-1]

    yield open_one
    for link in opened:
        link.close_link()


class TlsFront:
    """Ends TLS in front of a server that has none, as stunnel does; a context manager."""

    def __init__(self, upstream_url: str) -> None:
        self._upstream = urlsplit(upstream_url)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> TlsFront:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self._port}/0?{TRUSTING}"

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._busy: set[asyncio.Task[Any]] = set()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE, KEY)
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0, ssl=context)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._upstream.scheme == "unix":
            up = await asyncio.open_unix_connection(unquote(self._upstream.path))
        else:
            up = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        ways = [asyncio.ensure_future(_copy(reader, up[1])), asyncio.ensure_future(_copy(up[0], writer))]
        self._busy.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        up[1].close()
        writer.close()


class Peer:
    """A listener that greets one client as a server does, and then does what a test says; a context manager.

    For what no server and no proxy does at the moment that matters. ``act`` gets the connection.
    """

    def __init__(self, act: Callable[[socket.socket], Any]) -> None:
        self._act = act
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or nobody came
            client, _ = self._listener.accept()
            with client:
                client.recv(65536)
                client.sendall(b"+OK\r\n")
                self._act(client)
                self.over.wait(10)

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        self._listener.close()
        self._thread.join(10)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # somebody hung up


@pytest.fixture(params=["server", "front"])
def tls_url(request: pytest.FixtureRequest, own_redis: Callable[..., Any]) -> Iterator[str]:
    """A ``rediss://`` URL: of a server that speaks TLS itself, and of one that has something in front."""
    if request.param == "front":
        with TlsFront(own_redis().url) as front:
            yield front.url
        return
    from redis_infra.connection.embedded import free_port
    from redis_infra.testing import ServerError

    port = free_port()
    config = {
        "tls-port": str(port),
        "tls-cert-file": str(CERTIFICATE),
        "tls-key-file": str(KEY),
        "tls-auth-clients": "no",
    }
    try:
        own_redis(config=config)
    except ServerError as error:
        pytest.skip(f"this machine's server program has no TLS in it: {str(error).splitlines()[-1]}")
    yield f"rediss://127.0.0.1:{port}/0?{TRUSTING}"
