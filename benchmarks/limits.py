"""The wire's own price: a prebuilt command is sent, and its reply is read and not looked at.

No client in Python can be faster than these two; every ratio of the tables is to them. They keep no
key, no value, no deadline, and are no client: a reply is so many bytes.
"""

from __future__ import annotations

import asyncio
import socket
from typing import cast

BUFFER = 65536


def pack(*words: str | bytes | int) -> bytes:
    """Return the command as Redis reads it."""
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join([b"*%d\r\n" % len(encoded), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)])


class RawSocket:
    """A blocking socket without a time limit. One exchange at a time, one thread."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER))
        self._sendall = self._socket.sendall
        self._recv_into = self._socket.recv_into

    def exchange(self, command: bytes, size: int) -> int:
        """Send ``command``, wait for a reply of at least ``size`` bytes, return how many came.

        Raises:
            ConnectionError: The server hung up.
        """
        self._sendall(command)
        received = self._recv_into(self._buffer)
        while received < size:
            chunk = self._recv_into(self._buffer[received:])
            if not chunk:
                raise ConnectionError("the server closed the connection")
            received += chunk
        return received

    def last_reply(self, size: int) -> bytes:
        """Return the ``size`` bytes that the last exchange received."""
        return bytes(self._buffer[:size])

    def close(self) -> None:
        self._socket.close()


class RawProtocol(asyncio.BufferedProtocol):
    """The same in an event loop. A ``BufferedProtocol``, since asyncio gives others a new 256 KB a read."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER))
        self._received = 0
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[int] = self._loop.create_future()

    def exchange(self, command: bytes, size: int) -> asyncio.Future[int]:
        """Send ``command``; the result is how many bytes came, once there are at least ``size``."""
        self._received = 0
        self._size = size
        self._reply = self._loop.create_future()
        self.transport.write(command)
        return self._reply

    def last_reply(self) -> bytes:
        """Return what the last exchange received."""
        return bytes(self._buffer[: self._received])

    def close(self) -> None:
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._received :] if self._received else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        if self._received >= self._size:
            self._reply.set_result(self._received)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._reply.done():
            self._reply.set_exception(exc or ConnectionError("the server closed the connection"))


async def connect_raw(host: str, port: int) -> RawProtocol:
    """Return a connection of the running loop."""
    _, protocol = await asyncio.get_running_loop().create_connection(RawProtocol, host, port)
    return protocol
