"""One blocking connection to a server: redis-py's, with a fast lane and a deadline.

Raw clients use a link as the redis-py connection it is. Our own hot path calls
:meth:`Link.call`: one write, one read, hiredis in between. That is 1.0 to 1.1
times a bare socket where redis-py's own send and read are 1.2 (research:
transport, section 6). redis-py's socket timeout is per ``recv``: a reply that
drips a byte at a time takes for ever; ``call`` holds a deadline for the whole.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import hiredis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from redis_infra.connection.failures import LinkClosed, LinkTimeout
from redis_infra.connection.handshake import (
    ServerFacts,
    first_words,
    knows_no_hello,
    old_first_words,
    read_facts,
)
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.resolver import Resolver

if TYPE_CHECKING:
    from redis._parsers import _HiredisParser

__all__ = ["INCOMPLETE", "Link", "open_link", "reply_reader"]

READ_SIZE = 65536
BYTES_PER_SECOND = 50e6
"""A command or reply of this many bytes may take a second longer than the deadline: at a tenth of
a gigabit a value of 100 MB would otherwise look like an outage, and two of them open the circuit."""


BIG = 256 * 1024
"""Bytes that may not fit into the socket's buffer, so that sending them takes as long as they are taken."""

_PLAIN_SOCKET = socket.socket if socket.socket.__module__ == "socket" else None
"""The standard library's class, unless gevent or eventlet has put its own in that place."""


class _Incomplete:
    def __repr__(self) -> str:
        return "INCOMPLETE"


INCOMPLETE = _Incomplete()


def reply_reader() -> hiredis.Reader:
    """A parser that gives redis-py's exceptions for error replies, and INCOMPLETE for half ones."""
    from redis._parsers import _HiredisParser

    parse_error = _HiredisParser.parse_error
    return hiredis.Reader(
        protocolError=redis_errors.InvalidResponse, replyError=parse_error, notEnoughData=INCOMPLETE
    )


class Link:
    """The fast lane, mixed into redis-py's three kinds of connection.

    Not thread-safe: a pool hands a link to one thread at a time. After any
    exception but an error reply it is closed and must not be used again.
    """

    facts: ServerFacts
    options: ConnectionOptions
    identify: bool
    """Whether to ask for the server's run id on connect."""
    pid: int
    timeout: float | None
    """What Python's own socket timeout is set to between commands; None where the kernel keeps it."""
    born: int
    """Generation of the pool in which the link was made."""
    used_at: float
    """Monotonic seconds of the last use; 0 before the first."""
    unanswered: bool
    """Whether the link was closed with a command on its way, which the server may still execute."""
    _sock: Any

    def call(self, packed: bytes, timeout: float | None = None) -> Any:
        """Send one packed command and return its reply; an error reply is returned, not raised.

        Raises:
            LinkTimeout: no reply within ``timeout`` seconds (default: COMMAND_TIMEOUT).
            LinkClosed: the connection broke; ``stale`` if it had been idle before.
        """
        sock = self._sock
        if sock is None:
            closed = LinkClosed("the connection is closed")
            closed.executed = False
            raise closed
        sent = False
        is_big = len(packed) > BIG
        if is_big:
            # Bound the sending as a whole; the kernel's clock begins anew with each piece that is taken.
            sock.settimeout(self.options.command_timeout + len(packed) / BYTES_PER_SECOND)
        try:
            sock.sendall(packed)
            sent = True
            count = sock.recv_into(self.buffer)
            if count:
                self.reader.feed(self.buffer, 0, count)  # type: ignore[arg-type]  # takes any buffer
                reply = self.reader.gets()
                if reply is not INCOMPLETE:
                    if is_big:
                        sock.settimeout(self.timeout)
                    return reply
            return self._read_rest(sock, count, len(packed), timeout)
        except (TimeoutError, BlockingIOError) as error:
            return self._judge_silence(sock, sent, error, len(packed))
        except OSError as error:
            raise self._broken(error, sent) from error
        except BaseException:
            self._abandon(sent)
            raise

    def call_many(self, packed: bytes, replies: int) -> list[Any]:
        """Send several packed commands in one write, return their replies in order; one deadline for all."""
        deadline = time.monotonic() + self.options.command_timeout + len(packed) / BYTES_PER_SECOND
        was_open = self._sock is not None
        try:
            first = self.call(packed)
        except BaseException as error:
            # Perhaps not all of it went out; but commands that did are whole, and may be executed yet.
            self.unanswered = was_open
            if was_open and isinstance(error, LinkClosed | LinkTimeout):
                error.executed = None
            raise
        return [first, *(self._next_reply(deadline) for _ in range(replies - 1))]

    def _next_reply(self, deadline: float | None = None) -> Any:
        reply = self.reader.gets()
        if reply is not INCOMPLETE:
            return reply
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        try:
            assert self._sock is not None
            return self._read_rest(self._sock, -1, 0, left)
        except (TimeoutError, BlockingIOError) as error:
            raise self._silent(True) from error
        except OSError as error:
            raise self._broken(error, True) from error
        except BaseException:
            self._abandon(True)
            raise

    def _read_rest(self, sock: socket.socket, count: int, sent: int, timeout: float | None) -> Any:
        """Go on reading a reply that did not come in one piece, until the deadline."""
        deadline = time.monotonic() + (timeout or self.options.command_timeout)
        received = 0
        try:
            while count:
                received += max(count, 0)
                allowed = deadline + (sent + received) / BYTES_PER_SECOND
                sock.settimeout(max(allowed - time.monotonic(), 0.001))
                count = sock.recv_into(self.buffer)
                self.reader.feed(self.buffer, 0, count)  # type: ignore[arg-type]
                reply = self.reader.gets()
                if reply is not INCOMPLETE:
                    return reply
        finally:
            if self._sock is not None:
                sock.settimeout(self.timeout)
        raise ConnectionResetError("connection closed by server")

    def _judge_silence(self, sock: socket.socket, sent: bool, error: OSError, size: int) -> Any:
        """A timeout is the server's fault only if nothing has come by now.

        A deadline that fires late means that our own thread was held up (the
        GIL, a stopped process): the reply lies in the socket and is read.
        """
        extra = size / BYTES_PER_SECOND
        if sent and (extra > 0.01 or _readable(sock)):
            try:
                return self._read_rest(sock, -1, 0, max(extra, 0.01))
            except TimeoutError as still:
                error = still
            except OSError as broken:
                raise self._broken(broken, sent) from broken
        raise self._silent(sent) from error

    def _silent(self, sent: bool) -> LinkTimeout:
        self._abandon(sent)
        timeout = LinkTimeout(f"no reply within {self.options.command_timeout:g} s")
        timeout.executed = None if sent else False
        return timeout

    def _broken(self, error: OSError, sent: bool) -> LinkClosed:
        """Close, and return the exception that says what became of the command."""
        self._abandon(sent)
        closed = LinkClosed(f"{type(error).__name__}: {error}")
        # sendall that raised had not handed over the whole command, so nobody can execute it.
        closed.executed = None if sent else False
        closed.stale = self.used_at > 0.0
        return closed

    def _abandon(self, sent: bool) -> None:
        self.unanswered = sent
        self.close_link()

    def keep_time(self, *, in_kernel: bool) -> None:
        """Choose who watches the clock while a command waits: the kernel, or Python.

        Python polls before each send and each receive: two system calls more,
        9 % of a get. The kernel's own SO_RCVTIMEO costs nothing, but redis-py
        would take its EAGAIN for a broken connection, gevent's sockets never
        block, and TLS reads in its own way; all those keep Python's.
        """
        sock = self._sock
        if sock is not None:
            self.timeout = None if in_kernel and self.kernel_time else self.options.command_timeout
            sock.settimeout(self.timeout)

    def offer_kernel_time(self) -> None:
        """Tell the kernel the timeout, where it can keep it."""
        sock = self._sock
        self.kernel_time = (
            type(sock) is _PLAIN_SOCKET and sys.platform == "linux" and not _is_interrupted_regularly()
        )
        if sock is not None and self.kernel_time:
            seconds, fraction = divmod(self.options.command_timeout, 1)
            limit = struct.pack("ll", int(seconds), max(int(fraction * 1e6), 1))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.keep_time(in_kernel=True)

    def is_usable(self) -> bool:
        """Whether an idle link is still open and silent; one poll, no wait."""
        sock = self._sock
        return sock is not None and not _readable(sock)

    def close_link(self) -> None:
        """Close the socket; never waits, never raises."""
        self.disconnect()  # type: ignore[attr-defined]

    def greet(self, _connection: object = None) -> None:
        """Log in and choose the database, in one round trip (redis-py calls this on connect)."""
        self._parser.on_connect(self)  # type: ignore[no-untyped-call]
        self.reader = reply_reader()
        self.buffer = bytearray(READ_SIZE)
        packed, count = first_words(self.options, identify=self.identify)
        replies = [self.call(packed)]
        is_old = knows_no_hello(replies[0], self.options)
        if isinstance(replies[0], redis_errors.ConnectionError) and not is_old:
            raise replies[0]  # a server full of clients says so and hangs up: there is no second reply
        replies += [self._next_reply() for _ in range(count - 1)]
        if is_old:
            self.identify = False
            replies = self.call_many(*old_first_words(self.options))
        self.facts = read_facts(replies, identify=self.identify)

    if TYPE_CHECKING:
        kernel_time: bool
        _parser: _HiredisParser
        reader: hiredis.Reader
        buffer: bytearray


class TcpLink(Link, Connection):
    """A link over TCP, whose host name is resolved within the deadline."""

    resolver: Resolver

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + self.options.connect_timeout
        error: OSError | None = None
        for family, kind, proto, address in self.resolver.resolve(
            self.host, self.port, wait=self.options.connect_timeout
        ):
            sock = socket.socket(family, kind, proto)
            try:
                self._tune(sock)
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(address)
                sock.settimeout(self.socket_timeout)
                return sock
            except OSError as failed:
                sock.close()
                error = failed
        self.resolver.forget(self.host, self.port)
        raise error or OSError(f"no address for {self.host}")

    def _tune(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in self.socket_keepalive_options.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class TlsLink(SSLConnection, TcpLink):
    """A link over TLS: redis-py wraps the socket that :class:`TcpLink` connected."""


class UnixLink(Link, UnixDomainSocketConnection):
    """A link over a Unix domain socket."""


def open_link(
    options: ConnectionOptions, resolver: Resolver, *, patient: bool = False, identify: bool = False
) -> TcpLink | TlsLink | UnixLink:
    """Make a link, connect it and say hello; at most about one CONNECT_TIMEOUT.

    ``patient`` links have no read timeout, for blocking commands and Pub/Sub.

    Raises:
        redis.exceptions.RedisError: as :mod:`.failures` classifies it.
    """
    kind, kwargs = _kind(options)
    link = kind(
        socket_timeout=options.command_timeout,
        socket_connect_timeout=options.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        redis_connect_func=None,
        **kwargs,
    )
    link.options = options
    link.pid = os.getpid()
    link.used_at = 0.0
    link.unanswered = False
    link.timeout = options.command_timeout
    link.identify = identify
    link.born = 0
    if isinstance(link, TcpLink):
        link.resolver = resolver
    link.redis_connect_func = link.greet
    _connect(link)
    if patient:
        link.socket_timeout = None
        assert link._sock is not None
        link._sock.settimeout(None)
        link._parser.on_connect(link)  # type: ignore[no-untyped-call]
    else:
        link.offer_kernel_time()
    return link


def _connect(link: TcpLink | TlsLink | UnixLink) -> None:
    try:
        link.connect()  # type: ignore[no-untyped-call]
    except (redis_errors.ConnectionError, redis_errors.TimeoutError) as error:
        link.close_link()
        # Nothing of the caller's command was sent: it is safe to send it elsewhere.
        error.executed = False  # type: ignore[union-attr]
        raise
    except BaseException:
        link.close_link()
        raise


def _kind(options: ConnectionOptions) -> tuple[type[TcpLink | TlsLink | UnixLink], dict[str, Any]]:
    if options.path:
        return UnixLink, {"path": options.path}
    address: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.scheme == "rediss":
        return TlsLink, {**address, **dict(options.tls)}
    return TcpLink, address


def _is_interrupted_regularly() -> bool:
    """Whether an interval timer is set, a profiler's say.

    Python begins a receive anew after each signal, and the kernel its clock with it: it would never end.
    """
    return any(signal.getitimer(each)[1] for each in _INTERVAL_TIMERS)


_INTERVAL_TIMERS = [
    getattr(signal, name)
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
    if hasattr(signal, name)
]


def _readable(sock: socket.socket) -> bool:
    """Whether bytes, or the end of the stream, wait to be read. Does not wait."""
    pending = getattr(sock, "pending", None)
    if pending is not None and pending():
        return True
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))
