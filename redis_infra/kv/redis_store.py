"""The store that is a Redis server: the site's own connections, breaker and budget.

No fallback: while the circuit is open every command fails at once. A write is never sent twice where it may
have been executed, unless it says itself that this does no harm.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeVar, cast

from redis.exceptions import RedisError

from redis_infra.conf import AliasSettings
from redis_infra.connection.failures import classify, describe
from redis_infra.connection.lifecycle import open_database, running
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.wire import pack
from redis_infra.exceptions import (
    StoreAuthError,
    StoreError,
    StoreIndeterminate,
    StoreReadOnly,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv.base import KVStore, StoreHealth
from redis_infra.kv.commands import Command, name_of
from redis_infra.kv.refusals import refusal
from redis_infra.resilience.failover import Effect, Kind
from redis_infra.resilience.faults import Failure, Fault

__all__ = ["RedisStore"]

T = TypeVar("T")

# A write that is lost is the caller's to know of: nothing is journalled for it, and nothing answers instead.
_READ: Final = Effect(Kind.READ)
_WRITES: Final = {
    (stores, repeatable): Effect(Kind.FILL, stores=stores, repeatable=repeatable)
    for stores in (False, True)
    for repeatable in (False, True)
}
LOOK_AGAIN: Final = 5.0
"""Seconds between two looks whether a replica's name leads to a primary by now: each drops connections."""
_PING: Final = pack("PING")
_MULTI: Final = pack("MULTI")
_EXEC: Final = pack("EXEC")


class RedisStore(KVStore):
    """A ``KVStore`` over the pools and the circuit that everything of this process uses for the server.

    Opens no connection before the first command, which waits as long as the settings let any operation wait.
    """

    provider = "redis"

    def __init__(self, home: str, alias: AliasSettings) -> None:
        super().__init__(home)
        options = running(ConnectionOptions.from_settings(alias))
        self._options = options
        self._database = open_database(options, alias)
        self._connections = self._database.connections(options)
        self._run, self._arun = self._database.failover.run, self._database.failover.arun
        self._looked_at = -LOOK_AGAIN

    @property
    def where(self) -> str:
        return self._options.label

    def may_be_primary(self) -> bool:
        """Return whether a server that says it is a replica is to be looked for anew: now and then."""
        now = time.monotonic()
        looks = now - self._looked_at >= LOOK_AGAIN
        if looks:
            self._looked_at = now
        return looks

    def health(self) -> StoreHealth:
        # Past the circuit, which who only looks must not open: it would count as a worker that lost Redis.
        try:
            self._connections.call(_PING)
        except Exception as error:
            return self._health(describe(error))
        return self._health_by_circuits()

    async def ahealth(self) -> StoreHealth:
        try:
            await self._connections.acall(_PING)
        except Exception as error:
            return self._health(describe(error))
        return self._health_by_circuits()

    def _health_by_circuits(self) -> StoreHealth:
        """Say how commands of this process do, of a server that answers."""
        found = self._health(self._database.unavailable().reason if self._database.is_degraded else "")
        if self._is_there:
            return dataclasses.replace(found, status="degraded" if found.problem else "ok")
        return found

    @property
    def _is_there(self) -> bool:
        """Whether the server is asked at all, be it for reads alone."""
        return self._database.endpoint.reach.closed and self._database.access.closed

    # One command

    def call(self, command: Command[T]) -> T:
        attempt = _Attempt(self, (command,))
        try:
            reply = self._run(attempt.ask, attempt.refuse, _effect(command), pack(*command.words))
        except RedisError as error:
            raise _refused(error, command) from None
        return command.read(reply)

    async def acall(self, command: Command[T]) -> T:
        attempt = _Attempt(self, (command,))
        try:
            reply = await self._arun(attempt.aask, attempt.refuse, _effect(command), pack(*command.words))
        except RedisError as error:
            raise _refused(error, command) from None
        return command.read(reply)

    # Several

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        attempt, packed = _Attempt(self, commands, atomic=atomic), _packed(commands, atomic=atomic)
        try:
            replies = self._run(attempt.ask_many, attempt.refuse, _effect_of_all(commands), *packed)
        except RedisError as error:
            raise _refused(error, attempt.name) from None
        return attempt.read(replies)

    async def aexecute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        attempt, packed = _Attempt(self, commands, atomic=atomic), _packed(commands, atomic=atomic)
        try:
            replies = await self._arun(attempt.aask_many, attempt.refuse, _effect_of_all(commands), *packed)
        except RedisError as error:
            raise _refused(error, attempt.name) from None
        return attempt.read(replies)


class _Attempt:
    """Commands on their way: sends them, and remembers what went wrong for who has to say it."""

    __slots__ = ("_atomic", "_commands", "_failure", "_store")

    def __init__(self, store: RedisStore, commands: Sequence[Command[Any]], *, atomic: bool = False) -> None:
        self._store = store
        self._commands = commands
        self._atomic = atomic
        self._failure: Failure | None = None

    @property
    def name(self) -> str:
        return name_of(self._commands, atomic=self._atomic)

    def ask(self, packed: bytes) -> Any:
        try:
            return self._store._connections.call(packed)
        except Exception as error:
            if not self._may_insist(error):
                raise
        try:
            return self._store._connections.call(packed)
        except Exception as error:
            self._note(error)
            raise

    async def aask(self, packed: bytes) -> Any:
        try:
            return await self._store._connections.acall(packed)
        except Exception as error:
            if not self._may_insist(error):
                raise
        try:
            return await self._store._connections.acall(packed)
        except Exception as error:
            self._note(error)
            raise

    def ask_many(self, packed: bytes, replies: int) -> list[Any]:
        try:
            return self._heard(self._store._connections.pool.call_many(packed, replies))
        except Exception as error:
            self._note(error)
            raise

    async def aask_many(self, packed: bytes, replies: int) -> list[Any]:
        try:
            pool = self._store._connections.streams.current()
            return self._heard(await pool.call_many(packed, replies))
        except Exception as error:
            self._note(error)
            raise

    def _heard(self, replies: list[Any]) -> list[Any]:
        """Return the replies, unless all of them say that the server does not serve us."""
        first = replies[0]
        refused = replies[:1] if self._atomic else replies  # without MULTI, EXEC complains of something else
        failures = [classify(each) if isinstance(each, RedisError) else None for each in refused]
        if all(failure is not None and failure.fault is not Fault.READONLY for failure in failures):
            raise first
        is_replica = any(failure is not None and failure.fault is Fault.READONLY for failure in failures)
        if is_replica and self._store.may_be_primary():
            self._store._database.renew()
        return replies

    def _may_insist(self, error: Exception) -> bool:
        """Whether a connection broke with a write on it that counts once however often it is sent."""
        self._note(error)
        failure = self._failure
        if failure is None or failure.fault is not Fault.UNREACHABLE or failure.executed is False:
            return False
        return all(command.writes and command.repeatable for command in self._commands)

    def _note(self, error: Exception) -> None:
        """Remember what went wrong.

        Raises:
            StoreReadOnly: it is a replica, on a fresh connection too. Its reads go on, so no circuit is told.
        """
        failure = classify(error)
        if failure is not None and failure.fault is Fault.READONLY and not self._store.may_be_primary():
            raise _refused(cast("RedisError", error), self._commands[0]) from None
        # Of several tries the one that may have been executed counts.
        if self._failure is None or self._failure.executed is False:
            self._failure = failure

    def refuse(self, *_: object) -> NoReturn:
        """Say that Redis does not answer, as the failover's fallback."""
        command, key = self.name, self._commands[0].key
        database, failure = self._store._database, self._failure
        writes = any(each.writes for each in self._commands)
        if failure is None:
            reason = database.unavailable().reason
        else:
            reason = f"{database.options.server}: {failure.cause}"
            if failure.executed is not False and writes:
                raise StoreIndeterminate(command, key, reason)
        said = refusal(reason, command)
        if isinstance(said, StoreAuthError) or (isinstance(said, StoreReadOnly) and writes):
            raise type(said)(command, key, reason)
        refused = failure is not None and failure.fault is Fault.WRITES_STOPPED
        answered = refused or (failure is None and self._store._is_there)
        raise StoreUnavailable(command, key, reason=reason, answered=answered)

    def read(self, replies: list[Any]) -> list[Any]:
        """Return a reply for each command, errors as ours."""
        if self._atomic:
            replies = self._executed(replies)
        return [
            _refused(reply, command, at) if isinstance(reply, RedisError) else reply
            for at, (command, reply) in enumerate(zip(self._commands, replies, strict=True))
        ]

    def _executed(self, replies: list[Any]) -> list[Any]:
        """Return what EXEC says.

        Raises:
            TransactionDiscarded: it, or MULTI, was refused.
        """
        answer = replies[-1]
        if isinstance(answer, list):
            return answer
        first = next((reply for reply in replies if isinstance(reply, RedisError)), answer)
        place = next((at for at, each in enumerate(replies[1:-1]) if isinstance(each, RedisError)), None)
        raise TransactionDiscarded("transaction", self._commands[place or 0].key, str(first), place)


def _effect(command: Command[Any]) -> Effect:
    return _WRITES[command.stores, command.repeatable] if command.writes else _READ


def _effect_of_all(commands: Sequence[Command[Any]]) -> Effect:
    if not any(command.writes for command in commands):
        return _READ
    stores = any(command.stores for command in commands)
    return _WRITES[stores, all(command.repeatable for command in commands)]


def _packed(commands: Sequence[Command[Any]], *, atomic: bool) -> tuple[bytes, int]:
    """Return commands for one write, and how many replies they get."""
    packed = [pack(*command.words) for command in commands]
    if atomic:
        packed = [_MULTI, *packed, _EXEC]
    return b"".join(packed), len(packed)


def _refused(error: RedisError, command: Command[Any] | str, index: int | None = None) -> StoreError:
    # The driver takes the code out of some texts.
    code, text = error.status_code or "", str(error)
    return refusal(text if text.startswith(code) else f"{code} {text}", command, index)
