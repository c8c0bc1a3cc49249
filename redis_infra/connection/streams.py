"""Native asyncio connections: a few links for each event loop, closed with it.

A link is a plain ``asyncio.Protocol`` with hiredis in it: no StreamReader, no
task and no lock per command. One command is on its way per link at a time; a
pool of links serves concurrent tasks. (One multiplexed connection a loop is
the next step; callers see only :class:`StreamPool`.)

Pools live in a plain dictionary by loop. A ``WeakKeyDictionary`` would never
let go, since the value holds its key; so a pool ends with its loop through an
async generator, which ``asyncio.run``, ``async_to_sync`` and uvloop all close,
and what a bare ``loop.close()`` leaves behind is buried at the next look-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
import ssl
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from redis import exceptions as redis_errors

from redis_infra.connection.failures import LinkClosed, LinkTimeout, PoolExhausted
from redis_infra.connection.handshake import (
    ServerFacts,
    first_words,
    knows_no_hello,
    old_first_words,
    read_facts,
)
from redis_infra.connection.links import BYTES_PER_SECOND, INCOMPLETE, reply_reader
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.pool import LinkWitness
from redis_infra.connection.resolver import Address, Resolver

__all__ = ["Stream", "StreamPool", "StreamPools"]

MOST_STREAMS = 16
QUEUE_PATIENCE = 5.0
"""Seconds for which a task waits behind others of its own loop. Redis is well then (silence turns all
away at once), the loop is overloaded, and a local answer would be worse than a late one: a counter's
is wrong. Two hundred increments at once took more than a second on a machine with much else to do."""
LATE = 0.01
"""Seconds by which a timer may be late before it is our own loop that was held up."""
SECOND_LOOK = 0.025
"""Seconds in which a loop that was held up gets to read what has come meanwhile."""
TURNS = 10
"""Turns of the loop that a connection gets to take in what has come already, before it is given up."""


class Stream(asyncio.Protocol):
    """One connection in one event loop. Hand it one command (or one batch) at a time."""

    def __init__(self, options: ConnectionOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        self.facts = ServerFacts()
        self.generation = 0
        self.used = False
        self.unanswered = False
        self.transport: asyncio.Transport | None = None
        self._reader = reply_reader()
        self._waiter: asyncio.Future[Any] | None = None
        self._replies: list[Any] = []
        self._wanted = 1
        self._received = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def call(self, packed: bytes) -> Any:
        """Send one packed command, return its reply; an error reply is returned, not raised.

        Raises:
            LinkTimeout, LinkClosed: as :meth:`.links.Link.call`; the stream is closed then.
        """
        return await self._exchange(packed, 1)

    async def call_many(self, packed: bytes, replies: int) -> list[Any]:
        """Send several packed commands in one write, return their replies in order."""
        await self._exchange(packed, replies)
        return self._replies

    async def _exchange(self, packed: bytes, replies: int) -> Any:
        transport = self.transport
        if transport is None:
            closed = LinkClosed("the connection is closed")
            closed.executed, closed.stale = False, self.used
            raise closed
        waiter = self._waiter = self.loop.create_future()
        self._wanted = replies
        self._replies = []
        self._received = 0
        transport.write(packed)
        self._arm(self.options.command_timeout + len(packed) / BYTES_PER_SECOND)
        try:
            return await waiter
        except BaseException:
            self.abandon()
            raise
        finally:
            self._disarm()

    def _arm(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        self._timer = self.loop.call_at(self._deadline, self._expire)

    def _disarm(self) -> None:
        self._waiter = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        now = self.loop.time()
        allowed = self._deadline + self._received / BYTES_PER_SECOND
        if now < allowed - 0.001:
            self._timer = self.loop.call_at(allowed, self._expire)
        elif now > self._deadline + LATE and self._timer is not None and self._timer.when() == self._deadline:
            # The timer itself fired late: a blocked loop, not a silent server. Read first, then judge.
            self._timer = self.loop.call_at(now + SECOND_LOOK, self._expire)
        else:
            waiter.set_exception(LinkTimeout(f"no reply within {self.options.command_timeout:g} s"))

    @property
    def refusal(self) -> Exception | None:
        """What a server said before it hung up (that it is full of clients, say)."""
        return next((reply for reply in self._replies if isinstance(reply, Exception)), None)

    def abandon(self) -> None:
        """Close at once, whatever is on its way."""
        self.unanswered = True
        self.close()

    def close(self) -> None:
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # Nobody asked: whatever it is, the next reply would be taken for it.
            self.close()
            return
        reader = self._reader
        try:
            reader.feed(data)
            reply = reader.gets()
        except redis_errors.RedisError as error:
            self._fail(error)
            return
        self._received += len(data)
        while reply is not INCOMPLETE:
            self._take(reply)
            if self._waiter is None or self._waiter.done():
                return
            reply = reader.gets()

    def _take(self, reply: Any) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._wanted > 1 or self._replies:
            self._replies.append(reply)
            if len(self._replies) < self._wanted:
                return
        else:
            self._replies = [reply]
        waiter.set_result(reply)

    def eof_received(self) -> bool:
        self._fail(self._closed("closed by server"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fail(self._closed(f"{type(exc).__name__}: {exc}" if exc else "closed by server"))

    def _closed(self, why: str) -> LinkClosed:
        closed = LinkClosed(why)
        closed.stale = self.used
        return closed

    def _fail(self, error: Exception) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


class StreamPool:
    """The streams of one database in one event loop. Use it in that loop only.

    At most :data:`MOST_STREAMS` (or ``max_connections``, if that is less);
    beyond that callers wait in turn, :data:`QUEUE_PATIENCE` seconds at most,
    then get :class:`PoolExhausted`; at once if the server falls silent. Waiting
    costs no thread, and more connections make a loop slower, not faster; they
    are opened one at a time. Cancelling a caller closes its stream and wakes
    the next in line.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        loop: asyncio.AbstractEventLoop,
        resolver: Resolver,
        witness: LinkWitness,
    ) -> None:
        self.options = options
        self._resolver = resolver
        self.loop = loop
        self.generation = 0
        self.most = min(MOST_STREAMS, options.max_connections)
        self._witness = witness
        self._idle: deque[Stream] = deque()
        self._all: set[Stream] = set()
        self._opening = False
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._keeper: AsyncGenerator[None, None] | None = None

    async def call(self, packed: bytes) -> Any:
        """One command; an error reply is raised."""
        stream = self._pop() or await self._open()
        try:
            reply = await stream.call(packed)
        except BaseException as error:
            self._discard(stream, error)
            raise
        self._give_back(stream)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def call_many(self, packed: bytes, replies: int) -> list[Any]:
        """Several commands in one write; error replies are returned among the others."""
        stream = self._pop() or await self._open()
        try:
            answer = await stream.call_many(packed, replies)
        except BaseException as error:
            self._discard(stream, error)
            raise
        self._give_back(stream)
        return answer

    def _pop(self) -> Stream | None:
        while self._idle:
            stream = self._idle.pop()
            if stream.transport is not None and stream.generation == self.generation:
                return stream
            self._discard(stream)
        return None

    def _give_back(self, stream: Stream) -> None:
        if stream.transport is None or stream.generation != self.generation:
            self._discard(stream)
            return
        stream.used = True
        self._idle.append(stream)
        self._wake_next()

    def _discard(self, stream: Stream, error: BaseException | None = None) -> None:
        self._all.discard(stream)
        self._witness.died(stream)
        stream.close()
        if isinstance(error, LinkTimeout):
            self._turn_away()
        self._wake_next()

    def _turn_away(self) -> None:
        """The server is silent: whoever waits for a stream would only wait again, for its reply."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(PoolExhausted(self.most))

    def _wake_next(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _open(self) -> Stream:
        stream = await self._wait_for_room()
        if stream is not None:
            return stream
        self._opening = True
        try:
            stream = await self._connect()
            self._all.add(stream)
            return stream
        except LinkTimeout:
            self._turn_away()
            raise
        finally:
            self._opening = False
            self._wake_next()

    async def _wait_for_room(self) -> Stream | None:
        deadline = self.loop.time() + QUEUE_PATIENCE
        while self._opening or len(self._all) >= self.most:
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter  # also raises PoolExhausted, see _turn_away
            except TimeoutError as error:
                self._pass_on(waiter)
                raise PoolExhausted(self.most) from error
            except asyncio.CancelledError:
                self._pass_on(waiter)
                raise
            stream = self._pop()
            if stream is not None:
                return stream
        return None

    def _pass_on(self, waiter: asyncio.Future[None]) -> None:
        """Woken, and cancelled or out of time in the same turn of the loop: the place is the next one's."""
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._wake_next()

    async def _connect(self) -> Stream:
        await self._keep()
        try:
            stream = await self._dial()
        except OSError as error:
            raise _not_connected(error) from error
        stream.generation = self.generation
        try:
            await self._greet(stream)
        except BaseException as error:
            stream.close()
            if isinstance(error, LinkClosed | LinkTimeout):
                error.executed = False
            raise
        return stream

    async def _dial(self) -> Stream:
        options, loop = self.options, self.loop

        def made() -> Stream:
            return Stream(options, loop)

        # A fresh context: the transport's handles would keep the request that
        # happened to connect first, and all it refers to, alive as long as the link.
        dial: asyncio.Task[tuple[asyncio.BaseTransport, Stream]]
        if options.path:
            dial = loop.create_task(
                loop.create_unix_connection(made, options.path), context=contextvars.Context()
            )
        else:
            dial = loop.create_task(self._dial_host(made), context=contextvars.Context())
        transport, stream = await self._in_time(dial)
        assert isinstance(stream, Stream)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return stream

    async def _dial_host(self, made: Callable[[], Stream]) -> tuple[asyncio.BaseTransport, Stream]:
        """Connect to the first address that takes it; asyncio alone would look the name up for each loop.

        Raises:
            OSError: none does, or there is none.
        """
        options, context = self.options, _tls_context(self.options)
        failed: OSError | None = None
        for family, _, proto, address in await self._addresses():
            try:
                return await self.loop.create_connection(
                    made,
                    str(address[0]),
                    int(address[1]),
                    family=family,
                    proto=proto,
                    ssl=context,
                    server_hostname=options.host if context else None,
                )
            except OSError as error:
                failed = error
        self._resolver.forget(options.host, options.port)
        raise failed or OSError(f"no address for {options.host}")

    async def _addresses(self) -> list[Address]:
        host, port = self.options.host, self.options.port
        known = self._resolver.known(host, port)
        if known is not None:
            return known
        ask = partial(self._resolver.resolve, host, port, wait=self.options.connect_timeout)
        return await self.loop.run_in_executor(None, ask)

    async def _in_time(self, dial: asyncio.Task[Any]) -> Any:
        """The task's result within CONNECT_TIMEOUT; a loop that was held up gets a second look."""
        deadline = self.loop.time() + self.options.connect_timeout
        try:
            await asyncio.wait({dial}, timeout=self.options.connect_timeout)
            if not dial.done() and self.loop.time() > deadline + LATE:
                await asyncio.wait({dial}, timeout=SECOND_LOOK)
            for _ in range(TURNS):
                # Held up for nearly all of the time, the loop may have had no turn to begin in.
                if dial.done():
                    break
                await asyncio.sleep(0)
        except BaseException:
            # Nobody will take it: neither now nor if it succeeds all the same.
            dial.add_done_callback(_hang_up)
            raise
        finally:
            if not dial.done():
                dial.add_done_callback(_hang_up)
                dial.cancel()
        if dial.cancelled() or not dial.done():
            raise TimeoutError("no connection in time")
        return dial.result()

    async def _greet(self, stream: Stream) -> None:
        identify = self._witness.wants_identity
        try:
            replies = await stream.call_many(*first_words(self.options, identify=identify))
        except LinkClosed as error:
            raise stream.refusal or error from None
        if knows_no_hello(replies[0], self.options):
            identify = False
            replies = await stream.call_many(*old_first_words(self.options))
        stream.facts = read_facts(replies, identify=identify)
        self._witness.met(stream.facts)

    async def _keep(self) -> None:
        """Tie the pool's end to the loop's, before the first connection is made."""
        if self._keeper is None:
            self._keeper = self._end_with_loop()
            await self._keeper.__anext__()

    async def _end_with_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Close every stream, in their loop; callers under way get LinkClosed."""
        self._idle.clear()
        for stream in list(self._all):
            stream.close()
        self._all.clear()

    def bury(self) -> None:
        """Close the sockets of a loop that is closed itself (``transport.abort`` would raise there)."""
        for stream in self._all:
            _close_socket(stream.transport)
            stream.transport = None
        self._all.clear()
        self._idle.clear()

    def connection_ids(self) -> list[int]:
        return [s.facts.connection_id for s in list(self._all) if s.facts.connection_id is not None]

    @property
    def size(self) -> int:
        return len(self._all)


class StreamPools:
    """The stream pools of one database, one for each running event loop of the process."""

    def __init__(self, options: ConnectionOptions, resolver: Resolver, witness: LinkWitness) -> None:
        self.options = options
        self._resolver = resolver
        self._witness = witness
        self._pools: dict[asyncio.AbstractEventLoop, StreamPool] = {}
        self._lock = threading.RLock()
        self._inherited: list[dict[asyncio.AbstractEventLoop, StreamPool]] = []

    def current(self) -> StreamPool:
        """The pool of the running loop; made at its first use.

        Raises:
            RuntimeError: no event loop is running.
        """
        loop = asyncio.get_running_loop()
        try:
            return self._pools[loop]
        except KeyError:
            return self._create(loop)

    def _create(self, loop: asyncio.AbstractEventLoop) -> StreamPool:
        with self._lock:
            for dead in [known for known in self._pools if known.is_closed()]:
                self._pools.pop(dead).bury()
            return self._pools.setdefault(loop, StreamPool(self.options, loop, self._resolver, self._witness))

    def renew(self) -> None:
        """Use none of today's streams again. Safe from any thread: they are closed in their loops."""
        for pool in list(self._pools.values()):
            pool.generation += 1

    def connection_ids(self) -> list[int]:
        return [known for pool in list(self._pools.values()) for known in pool.connection_ids()]

    @property
    def size(self) -> int:
        return sum(pool.size for pool in list(self._pools.values()))

    async def aclose(self) -> None:
        """Close what belongs to the running loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            pool.close()

    def close_all(self) -> None:
        """Close the pools of loops that are not running any more (tests, shutdown)."""
        with self._lock:
            for loop in list(self._pools):
                if loop.is_closed():
                    self._pools.pop(loop).bury()
                elif not loop.is_running():
                    self._pools.pop(loop).close()

    def after_fork(self) -> None:
        """Forget the parent's pools but keep them referenced and touch nothing: the child shares the
        parent's epoll instance, and one ``remove_reader`` here makes the parent deaf."""
        self._lock = threading.RLock()
        self._inherited.append(self._pools)
        self._pools = {}


def _hang_up(dial: asyncio.Task[Any]) -> None:
    if not dial.cancelled() and dial.exception() is None:
        dial.result()[0].abort()


def _not_connected(error: Exception) -> Exception:
    raised: LinkTimeout | LinkClosed
    if isinstance(error, TimeoutError):
        raised = LinkTimeout("no connection in time")
    else:
        raised = LinkClosed(f"{type(error).__name__}: {error}")
    raised.executed = False
    return raised


_contexts: dict[tuple[tuple[str, object], ...], ssl.SSLContext] = {}


def _tls_context(options: ConnectionOptions) -> ssl.SSLContext | None:
    """The same context that redis-py makes of the same options; made once."""
    if options.scheme != "rediss":
        return None
    context = _contexts.get(options.tls)
    if context is None:
        from redis.asyncio.connection import SSLConnection

        context = _contexts[options.tls] = SSLConnection(**dict(options.tls)).ssl_context.get()
    return context


def _close_socket(transport: Any) -> None:
    """Close what a closed loop left open. uvloop leaves nothing, and hands out no socket."""
    sock = getattr(transport.get_extra_info("socket"), "_sock", None) if transport is not None else None
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.close()
    # They are closed: no ResourceWarning from their finalizers. Under TLS there are two of them.
    tls = getattr(transport, "_ssl_protocol", None)
    for each in (transport, getattr(tls, "_transport", None)):
        for name, value in (("_sock", None), ("_closed", True)):
            if hasattr(each, name):
                setattr(each, name, value)
