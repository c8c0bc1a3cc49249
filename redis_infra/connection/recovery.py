"""The way back: what has to happen before Redis is trusted again, in its order.

1. Reach it on a connection of our own (and, where writes failed, write to it).
2. Kill this process' old connections on the server: what timed out may lie in
   one of their sockets and be executed after the drain (1,943 of 2,000 keys
   were stale without this; research: transport, late writes).
3. Unlink what the journals name: ours, and those of every process of this host.
4. Drop what the fallback held. Never merge it up: others may have written newer.
5. Close the circuit. Only now does a read go to Redis.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from redis_infra.connection.bulk import unlink, unlink_matching
from redis_infra.connection.failures import classify, describe
from redis_infra.connection.links import Link, open_link
from redis_infra.connection.scripts import INCR_EXISTING, Talk
from redis_infra.connection.wire import pack
from redis_infra.keys import namespace_regex
from redis_infra.resilience.breaker import CircuitBreaker, State
from redis_infra.resilience.faults import Failure, Fault
from redis_infra.resilience.journal import Kind

if TYPE_CHECKING:
    from redis_infra.connection.endpoint import Companion, Database, Endpoint
    from redis_infra.resilience.journal import Batch, Entry
    from redis_infra.resilience.statedir import ForeignJournal

__all__ = ["Adopted", "heal", "leave_status", "status_of"]

logger = logging.getLogger(__name__)

DRAIN_PATIENCE = 2.0
"""Seconds that one command of a drain may take: it runs in the prober's thread, and a server that
just woke up has a backlog. Requests that heal themselves keep to their own budget."""


class Adopted:
    """What this process has taken over from other processes' journals, and how far it has read them."""

    def __init__(self) -> None:
        self._read: dict[object, int] = {}
        self.connections: set[str] = set()
        """Broken connections of theirs, as ``run id:id``; who died cannot have them killed itself."""

    def take_in(self, database: Database) -> tuple[list[ForeignJournal], bool]:
        """Read what is new in them into our own journal; return them, and whether there was anything new."""
        journals = database.state_dir.foreign_journals(database.options.keyspace)
        self._read = {each.path: self._read.get(each.path, 0) for each in journals}
        found = False
        for each in journals:
            entries, self._read[each.path] = each.entries(since=self._read[each.path])
            if entries:
                self.connections.update(entry.text for entry in entries if entry.kind is Kind.CONNECTION)
                database.journal.absorb(entries)
                _drop_copies(database, entries)
                found = True
        return journals, found

    def bury(self, drained: Iterable[ForeignJournal]) -> None:
        """Remove the drained journals of processes that are no more; the living keep theirs."""
        for each in drained:
            if not each.alive and self._read.get(each.path):
                each.remove()


def _drop_copies(database: Database, entries: Iterable[Entry]) -> None:
    """What another process took away is not to be served from the memory of this one either."""
    local = database.failover.local
    if any(entry.kind is Kind.PATTERN for entry in entries):
        local.clear()
    else:
        local.delete(*[entry.text for entry in entries if entry.kind is Kind.KEY])


def heal(endpoint: Endpoint, budget: float | None) -> float | None:
    """Do what is due for a server; return the seconds until there is more to do, or None.

    ``budget`` bounds each wait (a request that heals gives 0.1 s); None waits
    as long as the settings say.
    """
    if not endpoint.reach.closed:
        delay = _return(endpoint, budget)
        if delay is not None:
            return delay
    delays = [_mend(database, budget) for database in list(endpoint.databases.values())]
    due = [delay for delay in delays if delay is not None]
    return min(due) if due else None


def _return(endpoint: Endpoint, budget: float | None) -> float | None:
    """Probe and recover a server that could not be reached; None once it is back."""
    reach = endpoint.reach
    databases = list(endpoint.databases.values())
    if not (reach.probe_due() and reach.begin_probe()):
        leave_status(databases)
        return _until(reach)
    for database in databases:
        failure = _attempt(database, budget)
        if failure is not None and failure.fault is Fault.WRITES_STOPPED:
            endpoint.writes.trip(failure.cause)
        elif failure is None or failure.fault in (Fault.MISCONFIGURED, Fault.DENIED):
            # Somebody answered: this user may not enter, or not drain, but the server is there.
            _settle_access(database, failure)
        else:
            reach.probe_failed(failure.cause)
            leave_status(databases)
            return _until(reach)
    reach.close(
        served_locally=sum(database.failover.served_locally for database in databases),
        drained=sum(database.failover.drained for database in databases),
    )
    leave_status(databases)
    return None if reach.closed else _until(reach)


def _attempt(database: Database, budget: float | None) -> Failure | None:
    """Connect, ask, write if that was the trouble, and recover; return what went wrong."""
    reach = database.endpoint.reach
    try:
        link = _open(database, budget)
    except Exception as error:
        return _failure(error)
    try:
        # HELLO is answered by a server that is loading, PING is not.
        _try(link, "PING")
        if "read only" in reach.cause.lower() or "readonly" in reach.cause.lower():
            _try_to_write(database, link)
        reach.begin_recovery()
        _recover(database, link, everything=True, may_sleep=budget is None)
        database.failover.forget_local()
    except Exception as error:
        return _failure(error)
    finally:
        link.close_link()
    return None


def _mend(database: Database, budget: float | None) -> float | None:
    """Heal what is wrong with one database of a server that can be reached."""
    if not database.endpoint.reach.closed:
        return _until(database.endpoint.reach)
    if not database.access.closed:
        return _enter(database, budget)
    writes = database.endpoint.writes
    if not database.journal.empty or not writes.closed:
        if not (writes.closed or writes.probe_due()) and (database.journal.empty or writes.hangs):
            return _until(writes)
        return _drain(database, budget)
    database.failover.settle()
    database.state_dir.clear_status(database.options.database)
    return _visit(database, budget)


def _visit(database: Database, budget: float | None) -> float | None:
    """Let companions tell the server what is due; return when to come again."""
    for companion in list(database.companions.values()):
        if companion.due() == 0 and (delay := _attend(database, companion, budget)) is not None:
            return delay
    return _next_visit(database)


def _next_visit(database: Database) -> float | None:
    """Return the seconds until a companion has something to tell the server; None if none has."""
    due = [companion.due() for companion in list(database.companions.values())]
    return min((delay for delay in due if delay is not None), default=None)


def _attend(database: Database, companion: Companion, budget: float | None) -> float | None:
    """Let a companion tell the server what it has to; return when to come again if it could not."""
    patience = database.options.command_timeout  # and no more: others may wait for it to end
    try:
        link = _open(database, min(patience, budget or patience))
        try:
            companion.met(link.facts.run_id)
            _converse(link, companion.talk())
        finally:
            link.close_link()
    except Exception as error:
        return _drain_failed(database, _failure(error))
    # It may have been turned away by another process that is at it.
    return 0.05 if companion.due() == 0 else None


def _enter(database: Database, budget: float | None) -> float | None:
    """Probe whether the password or database is right by now."""
    access = database.access
    if not (access.probe_due() and access.begin_probe()):
        return _until(access)
    failure = _attempt(database, budget)
    if failure is not None and failure.fault is Fault.UNREACHABLE:
        database.endpoint.reach.trip(failure.cause)
    _settle_access(database, failure)
    leave_status([database])
    return None if access.closed and database.journal.empty else _until(access)


def _settle_access(database: Database, failure: Failure | None) -> None:
    access = database.access
    if failure is None or failure.fault in (Fault.DENIED, Fault.WRITES_STOPPED):
        # In: what waits in the journal goes on waiting, and so do its keys alone.
        access.close(served_locally=database.failover.served_locally)
    elif not access.trip(failure.cause):
        access.probe_failed(failure.cause)


def _drain(database: Database, budget: float | None) -> float | None:
    """Unlink what is in the journal of a database that is otherwise well; see whether it takes writes."""
    writes = database.endpoint.writes
    try:
        link = _open(database, budget)
    except Exception as error:
        return _drain_failed(database, _failure(error))
    try:
        if not writes.closed:
            _probe_writes(database, link)
        _recover(database, link, everything=False, may_sleep=budget is None)
    except Exception as error:
        failure = _failure(error)
        delay = _drain_failed(database, failure)
        if failure.fault is Fault.DENIED and writes.closed:
            # An ACL forbids to drain: keys stay here, and companions must not wait for that for ever.
            return _visit(database, budget) or delay
        return delay
    finally:
        link.close_link()
    if writes.state is State.RECOVERING:
        writes.close(served_locally=database.failover.served_locally)
    _settle(database)
    leave_status([database])
    if not writes.closed:
        return min(_until(writes), writes.probe_base)
    return 0.0 if not database.journal.empty or _next_visit(database) is not None else None


def _settle(database: Database) -> None:
    for each in database.endpoint.databases.values():
        if each.journal is database.journal:
            each.failover.settle()


def _probe_writes(database: Database, link: Link) -> None:
    """Write if it is time to; a server that still refuses may take deletes all the same."""
    writes = database.endpoint.writes
    if not (writes.probe_due() and writes.begin_probe()):
        return
    try:
        _try_to_write(database, link)
    except ResponseError as error:
        writes.probe_failed(describe(error))
    else:
        writes.begin_recovery()


def _drain_failed(database: Database, failure: Failure) -> float:
    """A drain met a fault itself: tell the circuit whose fault it is, and come again later."""
    reach, writes = database.endpoint.reach, database.endpoint.writes
    writes.probe_failed(failure.cause)
    match failure.fault:
        case Fault.TIMEOUT if writes.closed or not writes.hangs:
            reach.record_timeout(failure.cause, reach.epoch)
        case Fault.UNREACHABLE | Fault.READONLY:
            reach.trip(failure.cause)
        case Fault.MISCONFIGURED:
            database.access.trip(failure.cause)
        case Fault.WRITES_STOPPED:
            writes.trip(failure.cause)
        case Fault.DENIED:
            # An ACL does not change by itself: asking four times a second would only fill its log.
            return reach.probe_cap
    leave_status([database])
    return max(_until(reach), reach.probe_base)


# The steps of recovery


def _recover(database: Database, link: Link, *, everything: bool, may_sleep: bool) -> None:
    """Kill old connections, unlink what the journals name, forget it here."""
    adopted, _ = database.adopted.take_in(database)
    batch = database.journal.take()
    writes_are_refused = database.endpoint.writes.state in (State.OPEN, State.HALF_OPEN)
    if not everything and writes_are_refused and batch.serial == database.unlinked:
        # Nothing is new since the last time these were unlinked.
        return
    is_new_run = _meet(database, link)
    killed = _kill_old_connections(database, link, everything=everything, is_new_run=is_new_run)
    # A replica that lagged, or a snapshot from before, brings back what was deleted in the last seconds.
    # Where the run is the same the server itself had confirmed it: unlinking again might take away a lock
    # that somebody else has got meanwhile.
    is_same_run = bool(link.facts.run_id) and not is_new_run
    suspects = database.failover.recent_deletes if everything and not is_same_run else ()
    drained = _converse(link, _replay(batch, suspects))
    if not killed:
        # ACL forbids CLIENT KILL: give what lies in the old sockets time to be executed, then drain again.
        _wait_for_late_writes(database, may_sleep=may_sleep)
        _converse(link, _replay(batch, suspects))
        database.dead_ids.clear()
    database.counters.drained += drained
    database.unlinked = batch.serial
    if not writes_are_refused:
        _forget(database, dataclasses.replace(batch, deltas={}), adopted)
        for name, delta in batch.deltas.items():
            _replay_delta(
                database, link, dataclasses.replace(batch, names=(), patterns=(), deltas={name: delta})
            )


def _wait_for_late_writes(database: Database, *, may_sleep: bool) -> None:
    """Return when what lay in old sockets has been executed; a request comes back for it instead."""
    patience = 2 * database.options.command_timeout
    now = database.endpoint.clock.monotonic()
    if may_sleep:
        time.sleep(patience)
    elif database.late_until is None or now < database.late_until:
        database.late_until = database.late_until or now + patience
        raise _LateWritesError("late writes may still come; to be drained again")
    database.late_until = None


def _forget(database: Database, batch: Batch, adopted: Iterable[ForeignJournal]) -> None:
    """The server has it: trust it with these keys again, and drop what was held for them."""
    journal, failover = database.journal, database.failover
    journal.done(batch)
    database.adopted.bury(adopted)
    if batch.patterns:
        # What a pattern covered is not known by name.
        failover.forget_local()
    else:
        failover.local.delete(*[name for name in batch.names if not journal.covers(name)])


def _kill_old_connections(database: Database, link: Link, *, everything: bool, is_new_run: bool) -> bool:
    """Let the server drop our broken connections, and all of them after an outage.

    Returns whether no late write can come any more.
    """
    if is_new_run:
        # They ended with the server; their numbers are somebody else's by now.
        database.dead_ids.clear()
    broken = database.dead_ids | _ids_of_others(database, link)
    dead = set(broken)
    if everything:
        if not is_new_run:
            dead |= set(database.connection_ids())
        database.renew()
    dead.discard(link.facts.connection_id or 0)
    if link.facts.connection_id is None:
        return not database.counters.failures
    try:
        for known in sorted(dead):
            _converse(link, _tell("CLIENT", "KILL", "ID", known))
    except ResponseError as error:
        failure = classify(error)
        # None: the command is unknown there, as a hosted server's may be.
        if failure is not None and failure.fault is not Fault.DENIED:
            raise
        logger.debug("redis_infra.client_kill_denied", exc_info=True)
        return not broken
    database.dead_ids -= dead
    database.adopted.connections.clear()
    return True


def _ids_of_others(database: Database, link: Link) -> set[int]:
    """Broken connections that other processes of the host left to this very run of the server."""
    named = (text.rpartition(":") for text in database.adopted.connections)
    return {int(number) for run, _, number in named if run == link.facts.run_id and number.isdigit()}


def _meet(database: Database, link: Link) -> bool:
    """Whether this is certainly another run of the server than the one that was known; it is known now."""
    before, now = database.run_id, link.facts.run_id
    database.run_id = now or before
    return bool(before and now) and before != now


def _replay(batch: Batch, suspects: tuple[str, ...]) -> Talk:
    """What Redis missed, as a conversation; returns how many keys were removed."""
    removed = yield from unlink([name for name in (*batch.names, *suspects) if _can_be_sent(name)])
    for pattern in filter(_can_be_sent, batch.patterns):
        only = namespace_regex(pattern).match if pattern in batch.namespaces else None
        removed += yield from unlink_matching(pattern, only=only)
    return removed


def _can_be_sent(text: str) -> bool:
    """Whether a server can have such a key; half of a surrogate pair would keep a drain from ever ending."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _replay_delta(database: Database, link: Link, part: Batch) -> None:
    """Add to one counter what was counted without it, if it exists; never twice.

    It is forgotten before it is sent: if the reply is lost nobody can know
    whether it counted, and too little is better than twice.
    """
    ((name, delta),) = part.deltas.items()
    with database.failover.keeping(name):
        database.journal.done(part)
        try:
            _converse(link, INCR_EXISTING.talk((name,), delta))
        except Exception as error:
            failure = classify(error)
            if failure is None:
                # It holds no integer, or would overflow: the caller's own increment would have failed too.
                logger.debug("redis_infra.delta_refused", exc_info=True)
                return
            if failure.executed is False:
                database.journal.add_delta(name, delta)
            raise


def _try_to_write(database: Database, link: Link) -> None:
    """Store a byte for a second: a server that is full or read-only answers PING as well."""
    _try(link, "SET", database.probe_name, "1", "PX", 1000)


def _try(link: Link, *command: str | int) -> None:
    """Send a command whose answer tells how the server is; that ACL forbids it tells nothing."""
    try:
        _converse(link, _tell(*command))
    except ResponseError as error:
        failure = classify(error)
        if failure is None or failure.fault is not Fault.DENIED:
            raise


def _tell(*command: str | int) -> Talk:
    return (yield pack(*command))


def _converse(link: Link, talk: Talk) -> Any:
    """Hold a conversation on this very link; error replies are thrown into it."""
    try:
        packed = next(talk)
        while True:
            reply = link.call(packed) if isinstance(packed, bytes) else _first_error(link.call_many(*packed))
            packed = talk.throw(reply) if isinstance(reply, Exception) else talk.send(reply)
    except StopIteration as end:
        return end.value


def _first_error(replies: list[Any]) -> Any:
    """Return the first reply that is an error, or else all of them."""
    return next((reply for reply in replies if isinstance(reply, Exception)), replies)


def _open(database: Database, budget: float | None) -> Link:
    options = database.options
    if options.scheme == "embedded":
        # It ended with the process that had started it: somebody has to start the next one.
        from redis_infra.connection.embedded import embedded_options

        embedded_options(options)
    patience = budget if budget is not None else DRAIN_PATIENCE
    first = dataclasses.replace(
        options,
        connect_timeout=min(options.connect_timeout, patience),
        command_timeout=min(options.command_timeout, patience),
    )
    link = open_link(first, database.endpoint.resolver, identify=True)
    link.options = dataclasses.replace(options, command_timeout=patience)
    link.keep_time(in_kernel=False)
    return link


class _LateWritesError(Exception):
    """A drain that has to be repeated by somebody who may wait; says nothing about the server."""


def _failure(error: Exception) -> Failure:
    """Every fault of a probe means "not yet", also one that we have no name for."""
    if isinstance(error, _LateWritesError):
        return Failure(Fault.OVERLOADED, str(error))
    return classify(error) or Failure(Fault.UNREACHABLE, describe(error))


def _until(circuit: CircuitBreaker) -> float:
    if circuit.held:
        return circuit.probe_cap
    return max(circuit.next_probe_at - circuit.clock.monotonic(), 0.01)


# What other processes may know


def leave_status(databases: Iterable[Database]) -> None:
    """Say in the state directory how this process stands, so that ``cache_health`` can tell."""
    for database in databases:
        if database.is_degraded or not database.journal.empty:
            database.state_dir.write_status(database.options.database, status_of(database))
        else:
            database.state_dir.clear_status(database.options.database)


def status_of(database: Database) -> dict[str, Any]:
    """How this process stands with one database, in plain values and without secrets."""
    circuits = (database.access, database.endpoint.reach, database.endpoint.writes)
    broken = next((circuit for circuit in circuits if not circuit.closed), None)
    return {
        "server": database.options.label,
        "circuit": broken.circuit if broken else "",
        "state": broken.state.value if broken else "closed",
        "since": broken.opened_at_wall if broken else None,
        "cause": broken.cause if broken else "",
        "pending": database.journal.pending,
        "fallback_ops": database.counters.fallback_ops,
        "process": " ".join(sys.argv[:2]),
    }
