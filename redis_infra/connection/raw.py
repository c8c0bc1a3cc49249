"""Raw redis-py clients that pass the same guard as everything else.

What ``get_redis_connection()`` returns, and what locks, sets, hashes and
pipelines of the cache stand on: while the circuit is open they fail at once
with :class:`RedisUnavailable`, and what they meet counts for the circuit.
Commands that wait by design (BLPOP, XREAD BLOCK, Pub/Sub) keep their own
waiting time and never vote.
"""

from __future__ import annotations

from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from redis.client import Monitor, Pipeline, PubSub

from redis_infra.connection.connections import Connections
from redis_infra.connection.endpoint import Database
from redis_infra.resilience.failover import Effect, Kind

__all__ = ["GuardedRedis", "waits_by_design"]

_UNREPEATABLE = Effect(Kind.READ, repeatable=False)
"""A raw command is the caller's: nothing is journalled for it and it is never sent twice."""

_WAITING = frozenset(
    {"BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF"}
)


def waits_by_design(args: tuple[Any, ...]) -> bool:
    """Whether the server is asked not to answer at once."""
    # redis-py takes "BLPOP queue" for two words.
    words: list[Any] = [*_upper(args[0]).split(), *args[1:]]
    name, rest = words[0], words[1:]
    if name in _WAITING:
        return True
    if not name.startswith("XREAD"):
        return False
    # Options end with STREAMS; before them a GROUP has two names, which may be anything.
    options = rest[3:] if name == "XREADGROUP" else rest
    return "BLOCK" in takewhile(lambda word: word != "STREAMS", map(_upper, options))


def _upper(part: Any) -> str:
    return (part.decode(errors="replace") if isinstance(part, bytes) else str(part)).upper()


class GuardedRedis(redis.Redis):
    """A redis-py client on our connections and behind our circuit. Thread-safe, as redis-py's.

    Raises, beside what redis-py raises while the server is up:
        RedisUnavailable: while the circuit is open, at once, or with the failure that opened it.
    """

    def __init__(self, database: Database, connections: Connections, **kwargs: Any) -> None:
        super().__init__(connection_pool=connections.pool, **kwargs)
        self.database = database
        self.connections = connections

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if waits_by_design(args):
            self.require()
            return self._patient().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return self.guarded(partial(self._execute_command, *args, **options), str(args[0]))

    def guarded(self, primary: Any, command: str) -> Any:
        """``primary()`` through the failover, with an error instead of a fallback."""
        return self.database.failover.run(primary, partial(self._refuse, command), _UNREPEATABLE)

    def client(self) -> GuardedRedis:
        """A client of the same kind that keeps one connection to itself."""
        return GuardedRedis(self.database, self.connections, single_connection_client=True)

    def require(self, command: str = "") -> None:
        """Raise unless Redis may be asked now."""
        failover = self.database.failover
        if not (failover.reach.closed and failover.access.closed):
            # Through the failover, so that a request also looks after a dead prober.
            failover.run(_nothing, partial(self._refuse, command))

    def _refuse(self, command: str = "") -> NoReturn:
        raise self.database.unavailable(command)

    def _patient(self) -> redis.Redis:
        return redis.Redis(connection_pool=self.connections.patient_pool)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        return GuardedPipeline(self, transaction, shard_hint)

    def pubsub(self, **kwargs: Any) -> PubSub:
        self.require("SUBSCRIBE")
        return PubSub(self.connections.patient_pool, event_dispatcher=self._event_dispatcher, **kwargs)

    def monitor(self) -> Monitor:
        self.require("MONITOR")
        return Monitor(self.connections.patient_pool)  # type: ignore[no-untyped-call]

    if TYPE_CHECKING:
        _event_dispatcher: Any


def _nothing() -> None:
    return None


class GuardedPipeline(Pipeline):
    """A pipeline whose one trip to the server passes the guard."""

    def __init__(self, client: GuardedRedis, transaction: bool, shard_hint: Any) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self.guard = client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        answer: list[Any] = self.guard.guarded(partial(super().execute, raise_on_error), "EXEC")
        return answer

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        return self.guard.guarded(partial(super().immediate_execute_command, *args, **options), str(args[0]))
