"""A TCP proxy between a client and its server that misbehaves on command, and counts.

What a network and a dying server do to connections: late bytes, lost bytes,
resets, half a reply, nobody listening. It counts connections, round trips and
bytes, so that "one round trip" is an assertion and not a claim.

Knows nothing of Redis: any protocol passes in which a client asks and a server
answers. To stop or freeze the server itself, see ``RedisServer``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from redis_infra.connection.embedded import free_port
from redis_infra.testing.faultylink import Behaviour, FaultyLink

__all__ = ["TcpProxy"]

CONTROL_TIMEOUT: Final = 10.0
"""Seconds in which the proxy's own thread must have done what it was told."""

BACKLOG: Final = 1024

_running: weakref.WeakSet[TcpProxy] = weakref.WeakSet()


class TcpProxy:
    """Pass bytes between clients and a server, and do to them what a test asks for.

    ``upstream_url`` is the server's (``redis://``, ``rediss://`` or ``unix://``);
    :attr:`url` is what to give to the client: the same database, user and
    password, by way of the proxy, on loopback TCP. It listens when constructed and
    until :meth:`close`; it is a context manager.

    A behaviour is in effect when its method returns, for what passes from then on,
    and lasts until :meth:`heal`. Behaviours add up: ``delay`` and ``lose_replies``
    may hold at once. Runs in a thread of its own; its methods may be called from
    any other. A forked child must not call them, and its copies of the sockets are
    given up, so that a reset in the parent is one.

    It counts in plain attributes: ``connections`` accepted so far; ``active``
    ones, whose client has not closed them; ``round_trips``, requests that the
    server has begun to answer (what a client sends before it reads is one
    request); ``bytes`` received from both sides.
    """

    def __init__(self, upstream_url: str) -> None:
        self.behaviour = Behaviour()
        self.reset_counts()
        self.active = 0
        self._upstream = _address(upstream_url)
        self._listener: socket.socket | None = None
        self._port = 0
        self._accepting: set[asyncio.Task[Any]] = set()
        self._links: set[FaultyLink] = set()
        self._changed = threading.Condition()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="redis_infra-proxy", daemon=True)
        _running.add(self)
        _watch_forks()
        self._thread.start()
        self._ready.result(CONTROL_TIMEOUT)
        self.url = _by_way_of(upstream_url, self._port)

    def delay(self, seconds: float) -> None:
        """Hand on everything ``seconds`` later, in each direction: a round trip takes twice that longer."""
        self._set(delay=seconds)

    def drip(self, size: int, interval: float) -> None:
        """Hand on replies ``size`` bytes at a time, one piece every ``interval`` seconds."""
        self._set(drip=(size, interval))

    def hold(self) -> None:
        """Hand on nothing, in either direction, but keep it; :meth:`heal` delivers.

        What a network does that comes back: requests are executed long after their
        client has given up and gone.
        """
        self._set(hold=True)

    def drop(self) -> None:
        """Swallow everything, in either direction, the end of connections too: a half-open connection.

        New connections are accepted. :meth:`heal` resets those that have lost something.
        """
        self._set(drop=True)

    def http(self) -> None:
        """Answer every request with an HTTP error, and close: somebody else's port."""
        self._set(http=True)

    def half_reply(self, size: int, *, request: bytes = b"") -> None:
        """Hand on the first ``size`` bytes of each reply, then reset the connection.

        Only of replies to requests that contain ``request`` (a key's name, or a
        command as it goes over the wire); a new connection's greeting is a request too.
        """
        self._set(half_reply=size, request=request)

    def lose_replies(self, count: int = 1, *, request: bytes = b"") -> None:
        """Deliver the next ``count`` requests, and reset the connection in place of the reply.

        The server has executed them when the client sees the reset. Only of
        requests that contain ``request``, as in :meth:`half_reply`.
        """
        self._set(lose_replies=count, request=request)

    def reset(self, *, new: bool = False) -> None:
        """Reset (RST) all connections that there are, on both sides; with ``new``, every new one as well."""

        async def change() -> None:
            self.behaviour.reset_new = new
            self._reset_all()

        self._do(change)

    def refuse(self, *, keep: bool = False) -> None:
        """Stop listening: new connections are refused. Those that exist are reset, or go on with ``keep``."""

        async def change() -> None:
            self._stop_listening()
            if not keep:
                self.behaviour.reset_new = True  # for those that were being accepted
                self._reset_all()

        self._do(change)

    def heal(self) -> None:
        """Behave again: listen, deliver what was held or is late, reset connections that have lost bytes."""

        async def change() -> None:
            self.behaviour = Behaviour()
            for link in list(self._links):
                link.heal()
            self._listen()

        self._do(change)

    def reset_counts(self) -> None:
        """Count :attr:`connections`, :attr:`round_trips` and :attr:`bytes` from 0 again."""
        self.connections = self.round_trips = self.bytes = 0

    def wait_until(self, condition: Callable[[TcpProxy], bool], timeout: float = 5.0) -> None:
        """Return when ``condition`` is true of this proxy; it is asked whenever a count changes.

        It must only look at the counts: meanwhile the proxy stands still.

        Raises:
            TimeoutError: it was not within ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"not within {timeout} s: {self!r}")

    def close(self) -> None:
        """Reset all connections and stop listening, for good; twice is as once."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(CONTROL_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<TcpProxy port={self._port} connections={self.connections} active={self.active} "
            f"round_trips={self.round_trips} bytes={self.bytes}>"
        )

    # What links tell, on the proxy's loop.

    async def open_server(self, protocol: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self._upstream, str):
            await loop.create_unix_connection(lambda: protocol, self._upstream)
        else:
            await loop.create_connection(lambda: protocol, *self._upstream)

    def passed(self, size: int, *, answered: bool = False) -> None:
        with self._changed:
            self.bytes += size
            self.round_trips += answered
            self._changed.notify_all()

    def client_came(self, link: FaultyLink) -> None:
        self._links.add(link)
        with self._changed:
            self.connections += 1
            self.active += 1
            self._changed.notify_all()

    def client_left(self, link: FaultyLink) -> None:
        with self._changed:
            self.active -= 1
            self._changed.notify_all()

    def link_ended(self, link: FaultyLink) -> None:
        self._links.discard(link)

    # The thread.

    def _run(self) -> None:
        # Not in asyncio's debug mode, whatever the tests run in: it reports callbacks that were slow
        # because the machine was.
        asyncio.run(self._serve(), debug=False)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._listen()
        self._ready.set_result(None)
        await self._stopping.wait()
        self._stop_listening()
        self.behaviour = Behaviour(reset_new=True)
        while self._links or self._accepting:
            self._reset_all()
            await asyncio.sleep(0)

    def _set(self, **changes: Any) -> None:
        async def change() -> None:
            for name, value in changes.items():
                setattr(self.behaviour, name, value)

        self._do(change)

    def _do(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``change`` on the proxy's loop, and return when it shows on the sockets."""
        if not self._thread.is_alive():
            raise RuntimeError("this proxy is closed")

        async def act() -> None:
            await change()
            # A transport that was aborted closes its socket in the loop's next turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(CONTROL_TIMEOUT)

    # Not asyncio's server: one that is closed while it accepts forgets what it has just accepted
    # (Python 3.11: neither served nor closed), and to stop listening at the worst moment is what we are for.

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _listening_socket(self._port)
            self._port = self._listener.getsockname()[1]
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has given up
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            serve = self._loop.connect_accepted_socket(lambda: FaultyLink(self).protocol(), accepted)
            task = self._loop.create_task(serve)
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    def _let_go(self) -> None:
        """In a forked child: give up the copies of the sockets; a connection ends when its last copy does."""
        descriptors = [descriptor for link in self._links for descriptor in link.descriptors()]
        if self._listener is not None:
            descriptors.append(self._listener.fileno())
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            # Not closed: the objects that still have the number would one day close somebody else's.
            if descriptor >= 0:
                os.dup2(null, descriptor, inheritable=False)
        os.close(null)


@functools.cache
def _watch_forks() -> None:
    def in_child() -> None:
        for proxy in list(_running):
            proxy._let_go()

    os.register_at_fork(after_in_child=in_child)


def _listening_socket(port: int) -> socket.socket:
    """Listen on loopback at ``port``, or at a free one if it is 0."""
    while True:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port or free_port()))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if not port and error.errno == errno.EADDRINUSE:
                continue
            raise
        return listener


def _address(url: str) -> str | tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    return parts.hostname or "127.0.0.1", parts.port or 6379


def _by_way_of(url: str, port: int) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    here = f"{login}{at}127.0.0.1:{port}"
    if parts.scheme == "unix":
        return f"redis://{here}/{parse_qs(parts.query).get('db', ['0'])[0]}"
    return parts._replace(netloc=here).geturl()
