"""The links of one database in one process: a stack of idle ones, and a bound.

Last in, first out: as fast as a connection a thread, and it keeps far fewer of
them (13 instead of 64 for 64 threads that mostly do something else; research:
transport, section 6). ``deque.pop`` and ``append`` are atomic, so the hot path
takes no lock.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from os import getpid
from time import monotonic
from typing import Any, Protocol

from redis.connection import ConnectionPool

from redis_infra.connection.failures import PoolExhausted
from redis_infra.connection.handshake import ServerFacts
from redis_infra.connection.links import TcpLink, TlsLink, UnixLink, open_link
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.resolver import Resolver

__all__ = ["DeadLink", "LinkPool", "LinkWitness"]

IDLE_TRUST = 1.0
"""Seconds for which an idle link is used without a look at its socket (0.7 us)."""


class LinkWitness(Protocol):
    """Who learns of the connections: what the server said of itself, and which ones died."""

    @property
    def wants_identity(self) -> bool: ...
    def met(self, facts: ServerFacts) -> None: ...
    def died(self, link: DeadLink) -> None: ...


class DeadLink(Protocol):
    """What is left of a connection, sync or async."""

    facts: ServerFacts
    unanswered: bool


class LinkPool(ConnectionPool):
    """Hand out links; also a redis-py pool, so that raw clients share its connections.

    At most ``max_connections`` exist at a time. When all are in use a caller
    waits ``pool_wait`` seconds and then gets :class:`PoolExhausted`, which is
    served locally and opens nothing.

    Thread-safe. After a fork the child forgets the parent's links and opens its own.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        resolver: Resolver,
        *,
        witness: LinkWitness,
        patient: bool = False,
    ) -> None:
        super().__init__(
            connection_class=UnixLink if options.path else TcpLink,
            max_connections=options.max_connections,
            protocol=2,  # or redis-py reads the replies as RESP3
        )
        self.options = options
        self.resolver = resolver
        self.patient = patient
        self.witness = witness
        self.generation = 0
        self.after_fork()

    def after_fork(self) -> None:
        """Forget every link without touching its socket: it is the parent's."""
        self.pid = getpid()
        self._inherited: set[Any] = set(getattr(self, "_all", ()))
        self.idle: deque[TcpLink | TlsLink | UnixLink] = deque()
        # Weakly: a link that an exception from a signal handler let fall, between two lines, is not in use.
        self._all: weakref.WeakSet[TcpLink | TlsLink | UnixLink] = weakref.WeakSet()
        self._room = threading.Condition()
        self._opening = 0
        self._waiting = 0

    # The hot path

    def call(self, packed: bytes) -> Any:
        """One command on some link; an error reply is raised."""
        # acquire and give_back, spelled out: two calls are a microsecond of twenty.
        try:
            link = self.idle.pop()
        except IndexError:
            link = self._open()
        else:
            if (
                link.pid != getpid()
                or link.born != self.generation
                or monotonic() - link.used_at > IDLE_TRUST
            ):
                self.idle.append(link)
                link = self.acquire()
        try:
            reply = link.call(packed)
        except BaseException:
            self.discard(link)
            raise
        if link.born != self.generation:
            self.discard(link)
        else:
            link.used_at = monotonic()
            self.idle.append(link)
            if self._waiting:
                self._wake()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def call_many(self, packed: bytes, replies: int) -> list[Any]:
        """Several commands in one write; error replies are returned among the others."""
        link = self.acquire()
        try:
            answer = link.call_many(packed, replies)
        except BaseException:
            self.discard(link)
            raise
        self.give_back(link)
        return answer

    def acquire(self) -> TcpLink | TlsLink | UnixLink:
        """Return a link that is connected, of this process and not known to be dead."""
        while True:
            try:
                link = self.idle.pop()
            except IndexError:
                return self._open()
            if link.pid != getpid():
                self.after_fork()
            elif link.born != self.generation or (
                monotonic() - link.used_at > IDLE_TRUST and not link.is_usable()
            ):
                self.discard(link)
            else:
                return link

    def give_back(self, link: TcpLink | TlsLink | UnixLink) -> None:
        """Return a link in good order; one of an older generation is closed."""
        if link.born != self.generation or link.pid != self.pid or link._sock is None:
            self.discard(link)
            return
        link.used_at = monotonic()
        self.idle.append(link)
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        with self._room:
            self._room.notify()

    def discard(self, link: TcpLink | TlsLink | UnixLink) -> None:
        """Close a link for good and make room for another."""
        if link.pid != getpid():
            return
        self.witness.died(link)
        link.close_link()
        with self._room:
            self._all.discard(link)
            self._room.notify()

    def _open(self) -> TcpLink | TlsLink | UnixLink:
        if self.pid != getpid():
            self.after_fork()
        link = self._wait_for_room()
        if link is not None:
            return link
        try:
            generation = self.generation
            link = open_link(
                self.options, self.resolver, patient=self.patient, identify=self.witness.wants_identity
            )
            link.born = generation
            self.witness.met(link.facts)
            with self._room:
                self._all.add(link)
        finally:
            with self._room:
                self._opening -= 1
        return link

    def _wait_for_room(self) -> TcpLink | TlsLink | UnixLink | None:
        """Claim the right to open one (None), or return one that was given back meanwhile."""
        deadline = monotonic() + self.options.pool_wait
        with self._room:
            while len(self._all) + self._opening >= self.options.max_connections:
                self._waiting += 1
                try:
                    if self.idle:
                        return self.idle.pop()
                    if not self._room.wait(deadline - monotonic()) and not self.idle:
                        raise PoolExhausted(self.options.max_connections)
                except IndexError:
                    continue
                finally:
                    self._waiting -= 1
            self._opening += 1
        return None

    def renew(self) -> None:
        """Use none of today's links again: idle ones are closed, busy ones when they come back."""
        self.generation += 1
        while self.idle:
            try:
                self.discard(self.idle.pop())
            except IndexError:
                return

    def connection_ids(self) -> list[int]:
        """Ids, on the server, of all links that are open now."""
        with self._room:
            links = list(self._all)
        return [link.facts.connection_id for link in links if link.facts.connection_id is not None]

    @property
    def size(self) -> int:
        """Open links, idle and in use."""
        return len(self._all)

    @property
    def in_use(self) -> int:
        return max(0, len(self._all) - len(self.idle))

    # What redis-py asks of a pool

    def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Any:
        link = self.acquire()
        if not self.patient:
            link.keep_time(in_kernel=False)
        return link

    def release(self, connection: Any) -> None:
        if not self.patient:
            connection.keep_time(in_kernel=True)
        self.give_back(connection)

    def owns_connection(self, connection: Any) -> bool:
        return connection in self._all

    def disconnect(self, inuse_connections: bool = True) -> None:
        self.renew()

    def reset(self) -> None:
        """redis-py's constructor calls this; there is nothing to do before ours has run."""

    def close(self) -> None:
        self.renew()
