"""One connection through a ``TcpProxy``: two sockets, two directions, and what goes wrong between them.

Runs on the proxy's event loop and nowhere else. Decides from the proxy's
behaviour of the moment; counts nothing itself, but says what has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

__all__ = ["Behaviour", "FaultyLink", "Proxy"]

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: closing sends RST in place of FIN."""

REQUEST_KEPT: Final = 64 * 1024
"""Bytes of a request that are looked at to tell whether a fault is about it."""

NOT_REDIS: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """What is wrong at the moment; as made, nothing is. Durations in seconds."""

    delay: float = 0.0
    hold: bool = False
    drop: bool = False
    http: bool = False
    reset_new: bool = False
    drip: tuple[int, float] | None = None
    """So many bytes of a reply, every so many seconds."""
    half_reply: int | None = None
    """So many bytes of a reply, then a reset."""
    lose_replies: int = 0
    request: bytes = b""
    """`half_reply` and `lose_replies` are about requests that contain this."""


class Proxy(Protocol):
    """What a link needs of its proxy."""

    behaviour: Behaviour

    async def open_server(self, protocol: asyncio.Protocol) -> None:
        """Connect to the server. Raises OSError."""
        ...

    def passed(self, size: int, *, answered: bool = False) -> None:
        """Count bytes; ``answered`` with the first ones of a reply."""
        ...

    def client_came(self, link: FaultyLink) -> None: ...

    def client_left(self, link: FaultyLink) -> None: ...

    def link_ended(self, link: FaultyLink) -> None: ...


class FaultyLink:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._has_hole = False
        self._request = b""
        self._answered = True
        self._up = _Flow(lambda: self._server is not None and not self._now.hold, self._to_server)
        self._down = _Flow(lambda: not self._now.hold, self._to_client)

    def protocol(self) -> asyncio.Protocol:
        """What the listening socket hands a new connection to."""
        return _Side(self._client_came, self._client_sent, self._client_left)

    def heal(self) -> None:
        """Deliver what is held or late; a stream that has lost bytes cannot go on and is reset."""
        if self._has_hole:
            self.reset()
        else:
            self._up.hurry()
            self._down.hurry()

    def reset(self) -> None:
        """End both connections with RST; what was on its way is lost."""
        self._up.discard()
        self._down.discard()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        for transport in self._transports():
            _give(transport, _End.RESET)
        self._check_ended()

    def descriptors(self) -> list[int]:
        return [transport.get_extra_info("socket").fileno() for transport in self._transports()]

    @property
    def _now(self) -> Behaviour:
        return self._proxy.behaviour

    def _transports(self) -> list[asyncio.Transport]:
        return [transport for transport in (self._client, self._server) if transport is not None]

    def _client_came(self, transport: asyncio.Transport) -> None:
        self._client = transport
        self._proxy.client_came(self)
        if self._now.reset_new:
            self.reset()
        elif not (self._now.drop or self._now.http):
            self._connect()

    def _client_sent(self, data: bytes) -> None:
        self._proxy.passed(len(data))
        self._note_request(data)
        if self._now.http:
            self._to_client(NOT_REDIS)
            self._to_client(_End.CLOSE)
        elif self._now.drop:
            self._has_hole = True
        else:
            self._connect()
            self._up.push(data, self._now.delay)

    def _note_request(self, data: bytes) -> None:
        if self._answered:
            self._request = b""
            self._answered = False
        if len(self._request) < REQUEST_KEPT:
            self._request += data[:REQUEST_KEPT]

    def _client_left(self) -> None:
        self._client = None
        self._proxy.client_left(self)
        if self._now.drop:
            self._has_hole = True
        else:
            self._up.push(_End.CLOSE, self._now.delay)
        self._check_ended()

    def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._open_server())
            self._connecting.add_done_callback(lambda _: self._check_ended())

    async def _open_server(self) -> None:
        try:
            await self._proxy.open_server(_Side(self._server_came, self._server_sent, self._server_left))
        except OSError:
            self.reset()

    def _server_came(self, transport: asyncio.Transport) -> None:
        self._server = transport
        self._up.flush()

    def _server_sent(self, data: bytes) -> None:
        if self._now.drop:
            self._has_hole = True
            return
        begins, self._answered = not self._answered, True
        self._proxy.passed(len(data), answered=begins)
        if begins and self._now.request in self._request and self._spoil(data):
            return
        for piece, pause in self._pieces(data):
            self._down.push(piece, self._now.delay + pause)

    def _spoil(self, data: bytes) -> bool:
        """Do to the beginning of a reply what was asked for; say whether anything was."""
        now = self._now
        if now.lose_replies > 0:
            now.lose_replies -= 1
        elif now.half_reply is not None:
            self._down.push(data[: now.half_reply], now.delay)
        else:
            return False
        self._down.push(_End.RESET, now.delay)
        return True

    def _pieces(self, data: bytes) -> Iterator[tuple[bytes, float]]:
        """Cut a reply as `Behaviour.drip` says, each piece with the time that it comes late."""
        size, interval = self._now.drip or (len(data), 0.0)
        for number, start in enumerate(range(0, len(data), size)):
            yield data[start : start + size], number * interval

    def _server_left(self) -> None:
        self._server = None
        if self._now.drop:
            self._has_hole = True
        else:
            self._down.push(_End.CLOSE, self._now.delay)
        self._check_ended()

    def _to_client(self, item: bytes | _End) -> None:
        if item is _End.RESET:
            self.reset()
        elif self._client is not None:
            _give(self._client, item)

    def _to_server(self, item: bytes | _End) -> None:
        if self._server is not None:
            _give(self._server, item)

    def _check_ended(self) -> None:
        is_connecting = self._connecting is not None and not self._connecting.done()
        if self._client is None and self._server is None and not is_connecting:
            self._proxy.link_ended(self)


class _End(enum.Enum):
    """How a direction ends, in its place after the bytes."""

    CLOSE = enum.auto()
    RESET = enum.auto()


class _Flow:
    """One direction: what was pushed, in order, nothing before its time, nothing while ``ready`` says no."""

    def __init__(self, ready: Callable[[], bool], deliver: Callable[[bytes | _End], None]) -> None:
        self._ready = ready
        self._deliver = deliver
        self._waiting: deque[tuple[float, bytes | _End]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def push(self, item: bytes | _End, delay: float) -> None:
        due = self._loop.time() + delay
        # Nothing overtakes what was sent while the delay was longer.
        self._waiting.append((max(due, self._waiting[-1][0]) if self._waiting else due, item))
        self.flush()

    def flush(self) -> None:
        """Deliver what is due, and come back for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._ready():
            due, item = self._waiting[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.flush)
                return
            self._waiting.popleft()
            self._deliver(item)

    def hurry(self) -> None:
        """Let nothing wait for its time any longer."""
        self._waiting = deque((0.0, item) for _, item in self._waiting)
        self.flush()

    def discard(self) -> None:
        self._waiting.clear()
        self.flush()


class _Side(asyncio.Protocol):
    """One of a link's two connections, as asyncio sees it."""

    def __init__(
        self,
        came: Callable[[asyncio.Transport], None],
        received: Callable[[bytes], None],
        left: Callable[[], None],
    ) -> None:
        self._came = came
        self._received = received
        self._left = left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._came(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()


def _give(transport: asyncio.Transport, item: bytes | _End) -> None:
    if item is _End.RESET:
        _reset(transport)
    elif transport.is_closing():
        return
    elif item is _End.CLOSE:
        transport.close()
    else:
        transport.write(item)


def _reset(transport: asyncio.Transport) -> None:
    own: Any = transport.get_extra_info("socket")
    if own.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # it is closed already
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()
