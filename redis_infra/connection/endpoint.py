"""One server, and one database on it, as one process sees them.

An :class:`Endpoint` is a server: whether it can be reached is one fact, shared
by every alias and capability that uses it, so one detection spares all of them
the wait. A :class:`Database` is one user and database on it, with its own
connections, journal and failover: a wrong password there is nobody else's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.conf import BreakerPolicy, JournalLimits
from redis_infra.connection import recovery
from redis_infra.connection.connections import Connections
from redis_infra.connection.failures import RedisUnavailable, classify
from redis_infra.connection.handshake import ServerFacts
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.pool import DeadLink
from redis_infra.connection.resolver import Resolver
from redis_infra.connection.scripts import Talk
from redis_infra.instrumentation import Counters
from redis_infra.resilience.breaker import CircuitBreaker
from redis_infra.resilience.failover import Failover, LocalStore
from redis_infra.resilience.journal import Journal
from redis_infra.resilience.prober import Prober
from redis_infra.resilience.statedir import StateDir

__all__ = ["Companion", "Database", "Endpoint", "Policy"]

S = TypeVar("S", bound=LocalStore)
C = TypeVar("C", bound="Companion")

MOST_DEAD_LINKS = 1000
"""Ids of broken connections remembered for recovery to kill; a link dies at most once an outage."""


class Policy(Protocol):
    """What an endpoint needs of the settings; an alias' and the site's both have it."""

    @property
    def breaker(self) -> BreakerPolicy: ...
    @property
    def journal(self) -> JournalLimits: ...


class Companion(Protocol):
    """What a capability keeps beside a database for the time without it. Asked by whoever recovers it."""

    def met(self, run_id: str) -> None:
        """Learn of a connection to this run of the server ("" if it did not say), before it is used."""

    def look(self) -> None:
        """Look at the host's files; asked at most once a second."""

    def due(self) -> float | None:
        """Return the seconds until there is something to tell the server; None if there is nothing."""

    def talk(self) -> Talk:
        """Tell it: a conversation, held while the server is well for everybody else."""

    def after_fork(self) -> None: ...
    def close(self) -> None: ...


class Endpoint:
    """One server: the circuits for reaching it and writing to it, and the prober that heals them.

    Thread-safe. Opens nothing by itself; its thread exists only while something is wrong.
    """

    def __init__(self, server: str, breaker: BreakerPolicy, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.server = server
        self.clock = clock
        self.resolver = Resolver(clock=clock)
        self.prober = Prober(self._heal, server, clock=clock)
        self.reach = self._circuit("reach", breaker)
        self.writes = self._circuit("writes", breaker)
        self.databases: dict[tuple[str, str | None], Database] = {}
        self._keyspaces: dict[str, Keyspace] = {}

    def _circuit(self, guards: str, policy: BreakerPolicy) -> CircuitBreaker:
        return CircuitBreaker(
            self.server,
            guards,
            timeouts=policy.timeouts,
            probe_base=policy.probe_base,
            probe_cap=policy.probe_cap,
            clock=self.clock,
        )

    def keyspace(self, name: str, make: Callable[[], Journal]) -> Keyspace:
        """What this process knows of the keys of one database, whichever of its aliases' users touch them."""
        known = self._keyspaces.get(name)
        if known is None:
            known = self._keyspaces[name] = Keyspace(make(), recovery.Adopted())
        return known

    def _heal(self, budget: float | None) -> float | None:
        return recovery.heal(self, budget)

    def hold_open(self, cause: str = "held open") -> None:
        """Behave as if the server were down until :meth:`release_hold`; touches no socket."""
        self.reach.hold_open(cause)

    def release_hold(self) -> None:
        """End :meth:`hold_open`, and recover before returning if the server answers."""
        self.reach.release()
        deadline = self.clock.monotonic() + 1.0
        while self.prober.run_once() is not None and not self.reach.closed:
            # A round of the prober's own thread was under way, or the server is really down.
            if self.clock.monotonic() > deadline:
                return
            time.sleep(0.005)

    def after_fork(self) -> None:
        self.reach.after_fork()
        self.writes.after_fork()
        self.resolver.after_fork()
        self.prober.after_fork()
        for keyspace in self._keyspaces.values():
            keyspace.journal.after_fork()
        for database in self.databases.values():
            database.after_fork()


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Which keys of a database Redis cannot be trusted with, and whose word for it was taken in.

    A key that one user's alias could not delete is not to be read from Redis by another user's.
    """

    journal: Journal
    adopted: recovery.Adopted


class _NothingLocal:
    """Until a capability brings a store of its own."""

    def delete(self, *names: str) -> int:
        return 0

    def delete_where(self, matches: Callable[[str], object]) -> int:
        return 0

    def clear(self) -> None:
        return None

    def after_fork(self) -> None:
        return None


class Database:
    """One user and database of a server: connections, journal, failover.

    ``options`` are the first user's: what recovery connects with. Aliases that
    differ in timeouts or pool sizes have :meth:`connections` of their own, and
    share all that is true of the data: journal, failover, fallback.
    """

    def __init__(
        self, endpoint: Endpoint, options: ConnectionOptions, policy: Policy, state_dir: StateDir
    ) -> None:
        self.endpoint = endpoint
        self.options = options
        self.state_dir = state_dir
        self.counters = Counters()
        self.facts: ServerFacts | None = None
        self.run_id = ""
        self.probe_name = "ri:probe"
        self.access = endpoint._circuit("access", policy.breaker)
        keyspace = endpoint.keyspace(
            options.keyspace,
            lambda: Journal(
                policy.journal.max_keys,
                policy.journal.max_bytes,
                state_dir.journal(endpoint.server, options.keyspace),
                endpoint.clock,
            ),
        )
        self.journal, self.adopted = keyspace.journal, keyspace.adopted
        self.dead_ids: set[int] = set()
        self.unlinked = -1
        """Serial of the journal up to which names were unlinked while writes are refused."""
        self.late_until: float | None = None
        """Monotonic seconds until which a late write may come that nobody was allowed to prevent."""
        self._local: LocalStore = _NothingLocal()
        self._connections: dict[ConnectionOptions, Connections] = {}
        self.companions: dict[str, Companion] = {}
        self._lock = threading.RLock()
        self.failover = Failover(
            reach=endpoint.reach,
            access=self.access,
            writes=endpoint.writes,
            journal=self.journal,
            local=self._local,
            prober=endpoint.prober,
            classify=classify,
            renew=self.renew,
            watch=self.watch,
            counters=self.counters,
            clock=endpoint.clock,
        )

    def share(self, make: Callable[[], S]) -> S:
        """The store that answers instead of this database: ``make()`` at the first call, then that one.

        Two aliases on one database share it, as they share the database.
        """
        with self._lock:
            if isinstance(self._local, _NothingLocal):
                self._local = self.failover.local = make()
            return self._local  # type: ignore[return-value]

    def companion(self, name: str, make: Callable[[], C]) -> C:
        """What a capability keeps beside this database: ``make()`` at the first call, then that one."""
        with self._lock:
            known = self.companions.get(name)
            if known is None:
                known = self.companions[name] = make()
            return known  # type: ignore[return-value]

    def unavailable(self, command: str = "", key: str = "") -> RedisUnavailable:
        """The error for what cannot be answered without Redis; names the cause, not the password."""
        for circuit in (self.access, self.endpoint.reach, self.endpoint.writes):
            if not circuit.closed:
                return RedisUnavailable(command, key, reason=f"{self.options.server}: {circuit.cause}")
        return RedisUnavailable(command, key, reason=f"{self.options.server} did not answer")

    # Connections

    def connections(self, options: ConnectionOptions) -> Connections:
        """The pools for these timeouts and bounds; made at the first call, opens nothing."""
        with self._lock:
            known = self._connections.get(options)
            if known is None:
                known = self._connections[options] = Connections(options, self.endpoint.resolver, self)
            return known

    def connection_ids(self) -> list[int]:
        """Ids, on the server, of all connections that operations of this process use now."""
        return [known for each in list(self._connections.values()) for known in each.connection_ids()]

    @property
    def wants_identity(self) -> bool:
        # Companions have to know when the server was another one before: it may have forgotten things.
        return not self.run_id or bool(self.companions)

    def met(self, facts: ServerFacts) -> None:
        """Remember what the server said of itself on a new connection."""
        self.facts = facts
        self.run_id = self.run_id or facts.run_id
        for companion in self.companions.values():
            companion.met(facts.run_id)

    def died(self, link: DeadLink) -> None:
        """Remember a connection that broke with a command on its way: the server may execute it yet."""
        known = link.facts.connection_id if link.unanswered and hasattr(link, "facts") else None
        if known is not None and len(self.dead_ids) < MOST_DEAD_LINKS:
            self.dead_ids.add(known)
            self.journal.note_connection(f"{self.run_id}:{known}")

    def renew(self) -> None:
        """Use none of today's connections again, and ask anew where the server is."""
        for each in list(self._connections.values()):
            each.renew()
        if self.options.host:
            self.endpoint.resolver.forget(self.options.host, self.options.port)

    def watch(self, now: float) -> None:
        """Take in what other processes of this host left in their journals; at most once a second."""
        for companion in list(self.companions.values()):
            companion.look()
        if not self.state_dir.changed(now, self.options.keyspace):
            return
        _, found = self.adopted.take_in(self)
        if found:
            self.failover.distrust()
        if not self.endpoint.reach.closed:
            # Somebody wrote or took away a file: it may be that Redis is back for him.
            self.endpoint.reach.hurry()
            self.endpoint.prober.wake()

    @property
    def is_degraded(self) -> bool:
        """Whether something is answered without Redis now, other than single keys of the journal."""
        return not (self.endpoint.reach.closed and self.access.closed and self.endpoint.writes.closed)

    def close(self) -> None:
        """Close every connection of the process; the next call opens new ones."""
        for each in list(self._connections.values()):
            each.close()
        for companion in self.companions.values():
            companion.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        for each in list(self._connections.values()):
            await each.streams.aclose()

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        for each in self._connections.values():
            each.after_fork()
        self.access.after_fork()
        self._local.after_fork()
        for companion in self.companions.values():
            companion.after_fork()
        self.failover.after_fork()
