"""One plain socket that speaks Redis' protocol, for what must not depend on the clients it looks after.

Starting a server, and tests that ask a server behind the back of the client
under test. Knows nothing of pools, retries, deadlines or redis-py.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Self

from redis_infra.exceptions import RedisInfraError

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["PlainConnection", "ServerError"]


class ServerError(RedisInfraError):
    """The server answered with an error, or did not start; the text is what it said."""


class PlainConnection:
    """A connection without options: commands out, RESP2 replies in; a context manager.

    ``address`` is the path of a Unix socket or a (host, port) pair; with
    ``tls`` the latter is encrypted. ``timeout``, in seconds, counts for each read
    and write. Not for several threads at once.

    Raises:
        OSError: nobody listens there; TimeoutError: nobody takes the connection in time.
    """

    def __init__(
        self, address: str | tuple[str, int], *, timeout: float = 5.0, tls: SSLContext | None = None
    ) -> None:
        self._socket = _connected(address, timeout)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname=address[0])
        self._replies = self._socket.makefile("rb")

    def call(self, *args: str | bytes | float) -> Any:
        """Send one command and return its reply: str for a status, bytes for a value, int, list or None.

        Raises:
            ServerError: the server answered with an error. Errors within a list are items of it.
            OSError: the connection broke; TimeoutError: no answer in time. Either way it is of no more use.
        """
        self._socket.sendall(_encoded(args))
        reply = self._read()
        if isinstance(reply, ServerError):
            raise reply
        return reply

    @property
    def timeout(self) -> float | None:
        """Seconds for each read and write from now on; may be set."""
        return self._socket.gettimeout()

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close the socket; twice is as once."""
        self._replies.close()
        self._socket.close()

    def _read(self) -> Any:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ServerError(rest.decode(errors="replace"))
        return self._read_sized(kind, int(rest))

    def _read_sized(self, kind: bytes, number: int) -> Any:
        if kind == b":":
            return number
        if number < 0:
            return None
        if kind == b"*":
            return [self._read() for _ in range(number)]
        value = self._replies.read(number + 2)
        if len(value) < number + 2:
            raise ConnectionResetError("the server closed the connection")
        return value[:-2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _connected(address: str | tuple[str, int], timeout: float) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _encoded(args: tuple[str | bytes | float, ...]) -> bytes:
    words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
