"""The key-value store: one interface, whatever keeps the values.

What people call is here, once for all providers, sync and async; a provider executes :mod:`.commands`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

from redis_infra.exceptions import StoreError, StoreRejected
from redis_infra.kv.commands import Command, Commands, Ping, Seconds, Value
from redis_infra.kv.pipelines import Pipeline, batch_of

__all__ = ["KVStore", "StoreHealth", "read_reply"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound="KVStore")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """How a store is. Shows no password and no token."""

    provider: str
    """``redis``, ``upstash``, ``memory``, ``file``, or the path of a site's own."""
    status: Literal["ok", "degraded", "down"]
    where: str
    """The server or file."""
    why: str = ""
    """What decided that it is this one."""
    problem: str = ""
    """What is wrong, if anything is."""


class KVStore(ABC):
    """Texts, numbers and bytes under names, with a time to live if one is wanted: a store of record.

    The same meaning on every provider, which is Redis'. Every method has an ``a`` twin for event loops.
    Keys get the site's prefix, which is taken off again where keys are returned. Thread-safe, shared by
    event loops, and usable after a fork.

    A provider of a site's own is a subclass with :meth:`execute`, and with :meth:`aexecute` if it waits for
    sockets. ``REDIS_INFRA["KV"]["PROVIDER"]`` has its dotted path, and it is made with ``Provider(home)``,
    where ``home`` is what leads every key.

    Raises (all methods but ``ping`` and ``health``):
        StoreUnavailable: nobody could be asked; the command was not executed.
        StoreIndeterminate: the command was sent, and it is not known whether it was executed.
        StoreAuthError, StoreReadOnly, StoreQuotaExceeded: the provider does not let us.
        StoreTypeError: there is no text, or no integer, under the key.
        StoreRejected: the provider said no for another reason.
        TypeError, ValueError: an argument is wrong; nothing was sent.
    """

    provider: str = ""
    """Its name; of a store in front of another one, that one's."""

    def __init__(self, home: str) -> None:
        self.commands = Commands(home)
        self.why = ""
        """What decided that it is this provider."""

    # What a provider has to do

    @abstractmethod
    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        """Execute commands in their order, in one round trip.

        Returns a reply for each, as Redis would give it (``command.read`` understands it), or the
        :class:`~redis_infra.exceptions.StoreError` by which it was refused. ``atomic``: nobody comes between.

        Raises:
            StoreError: nothing was executed, or that is not known.
        """

    async def aexecute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        """:meth:`execute` in the running event loop; in a thread, where a provider has nothing better."""
        return await asyncio.to_thread(self.execute, commands, atomic=atomic)

    def call(self, command: Command[T]) -> T:
        """Execute one command and return what it comes to."""
        (reply,) = self.execute((command,))
        return read_reply(command, reply)

    async def acall(self, command: Command[T]) -> T:
        """:meth:`call` in the running event loop."""
        (reply,) = await self.aexecute((command,))
        return read_reply(command, reply)

    @property
    def where(self) -> str:
        """The server or file, without secrets."""
        return ""

    def health(self) -> StoreHealth:
        """Say how the store is; never raises. Asks it, so it may take as long as a command may."""
        return self._health(self._problem())

    async def ahealth(self) -> StoreHealth:
        """:meth:`health` in the running event loop."""
        return self._health(await self._aproblem())

    def close(self) -> None:  # noqa: B027  # nothing is open here
        """Close connections and files; the next command opens them again. Again is harmless."""

    async def aclose(self) -> None:  # noqa: B027
        """Close what belongs to the running event loop; again is harmless."""

    def after_fork(self) -> None:  # noqa: B027
        """In a forked child: what was open is the parent's."""

    # What people call

    def get(self, key: str) -> str | None:
        """Return the text under a key; None if there is nothing."""
        return self.call(self.commands.get(key))

    async def aget(self, key: str) -> str | None:
        """:meth:`get` in the running event loop."""
        return await self.acall(self.commands.get(key))

    def get_bytes(self, key: str) -> bytes | None:
        """Return what lies under a key, to the byte; None if there is nothing."""
        return self.call(self.commands.get_bytes(key))

    async def aget_bytes(self, key: str) -> bytes | None:
        """:meth:`get_bytes` in the running event loop."""
        return await self.acall(self.commands.get_bytes(key))

    def mget(self, *keys: str | Iterable[str]) -> list[str | None]:
        """Return the texts under several keys, in their order; None where there is nothing."""
        return self.call(self.commands.mget(*keys))

    async def amget(self, *keys: str | Iterable[str]) -> list[str | None]:
        """:meth:`mget` in the running event loop."""
        return await self.acall(self.commands.mget(*keys))

    def set(
        self,
        key: str,
        value: Value,
        *,
        ex: Seconds | None = None,
        px: int | None = None,
        nx: bool = False,
        xx: bool = False,
        keepttl: bool = False,
    ) -> bool:
        """Put a value under a key; return whether that was done.

        ``ex`` seconds or ``px`` milliseconds until it expires; without either it never does, unless
        ``keepttl`` leaves what there was. ``nx`` only where there is nothing yet, ``xx`` only where there is.
        """
        return self.call(self.commands.set(key, value, ex=ex, px=px, nx=nx, xx=xx, keepttl=keepttl))

    async def aset(
        self,
        key: str,
        value: Value,
        *,
        ex: Seconds | None = None,
        px: int | None = None,
        nx: bool = False,
        xx: bool = False,
        keepttl: bool = False,
    ) -> bool:
        """:meth:`set` in the running event loop."""
        return await self.acall(self.commands.set(key, value, ex=ex, px=px, nx=nx, xx=xx, keepttl=keepttl))

    def mset(self, mapping: Mapping[str, Value]) -> None:
        """Put several values under their keys, all or none, without a time to live."""
        self.call(self.commands.mset(mapping))

    async def amset(self, mapping: Mapping[str, Value]) -> None:
        """:meth:`mset` in the running event loop."""
        await self.acall(self.commands.mset(mapping))

    def incr(self, key: str, by: int = 1, *, op_id: str | None = None) -> int:
        """Add to a counter, which begins at 0, and return it; its time to live stays.

        Never sent twice where it may have been executed, unless an ``op_id`` tells this operation from all
        others: then it counts once however often it is asked for, for ten minutes, with one answer.

        Raises:
            StoreTypeError: there is something that is no integer.
            CounterOverflow: it would leave the signed 64-bit range; it keeps its value.
        """
        return self.call(self.commands.incr(key, by, op_id=op_id))

    async def aincr(self, key: str, by: int = 1, *, op_id: str | None = None) -> int:
        """:meth:`incr` in the running event loop."""
        return await self.acall(self.commands.incr(key, by, op_id=op_id))

    def delete(self, *keys: str | Iterable[str]) -> int:
        """Delete keys; return how many there were."""
        return self.call(self.commands.delete(*keys))

    async def adelete(self, *keys: str | Iterable[str]) -> int:
        """:meth:`delete` in the running event loop."""
        return await self.acall(self.commands.delete(*keys))

    def exists(self, *keys: str | Iterable[str]) -> int:
        """Return how many of these keys there are; one named twice counts twice."""
        return self.call(self.commands.exists(*keys))

    async def aexists(self, *keys: str | Iterable[str]) -> int:
        """:meth:`exists` in the running event loop."""
        return await self.acall(self.commands.exists(*keys))

    def expire(self, key: str, seconds: Seconds) -> bool:
        """Let a key expire in so many seconds, at once if not positive; return whether it was there."""
        return self.call(self.commands.expire(key, seconds))

    async def aexpire(self, key: str, seconds: Seconds) -> bool:
        """:meth:`expire` in the running event loop."""
        return await self.acall(self.commands.expire(key, seconds))

    def ttl(self, key: str) -> int:
        """Return the seconds a key has left, rounded to the nearest; -1 if it stays, -2 if there is none."""
        return self.call(self.commands.ttl(key))

    async def attl(self, key: str) -> int:
        """:meth:`ttl` in the running event loop."""
        return await self.acall(self.commands.ttl(key))

    def pttl(self, key: str) -> int:
        """:meth:`ttl` in milliseconds."""
        return self.call(self.commands.pttl(key))

    async def apttl(self, key: str) -> int:
        """:meth:`pttl` in the running event loop."""
        return await self.acall(self.commands.pttl(key))

    def scan(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with ``prefix``, each once, in no order.

        In pages, which hold nobody up. What is set or deleted meanwhile may be among them or not.
        """
        cursor, seen = "0", dict[str, None]()
        while True:
            cursor, names = self.call(self.commands.scan(prefix, cursor))
            yield from self._new(names, seen)
            if cursor == "0":
                return

    async def ascan(self, prefix: str = "") -> AsyncIterator[str]:
        """:meth:`scan` in the running event loop: ``async for``."""
        cursor, seen = "0", dict[str, None]()
        while True:
            cursor, names = await self.acall(self.commands.scan(prefix, cursor))
            for key in self._new(names, seen):
                yield key
            if cursor == "0":
                return

    def _new(self, names: Iterable[str], seen: dict[str, None]) -> dict[str, None]:
        """Return what a page adds: while a server's table grows, a key may come twice."""
        fresh = {key: None for name in names if (key := self.commands.bare(name)) not in seen}
        seen.update(fresh)
        return fresh

    def pipeline(self) -> Pipeline:
        """Return a pipeline: commands for one round trip, in their order; others may come in between."""
        return Pipeline(self.commands, self._execute, self._aexecute)

    apipeline = pipeline
    """The same: what it collects is sent by ``await pipeline.aexecute()`` or by ``async with``."""

    def transaction(self) -> Pipeline:
        """Return a pipeline that nobody comes into; refused as a whole, or executed."""
        return Pipeline(self.commands, self._execute_atomic, self._aexecute_atomic)

    atransaction = transaction

    def batch(self, calls: Iterable[Sequence[Any]]) -> list[Any]:
        """Execute calls given as data as a pipeline: ``[("set", "k", "v", {"ex": 60}), ("incr", "n")]``."""
        return batch_of(self.pipeline(), calls).execute()

    async def abatch(self, calls: Iterable[Sequence[Any]]) -> list[Any]:
        """:meth:`batch` in the running event loop."""
        return await batch_of(self.pipeline(), calls).aexecute()

    def ping(self) -> bool:
        """Return whether the store answers; never raises."""
        return not self._problem()

    async def aping(self) -> bool:
        """:meth:`ping` in the running event loop."""
        return not await self._aproblem()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self: S) -> S:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r})"

    # Parts of the above

    def _execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        return _answers(commands, self.execute(commands))

    async def _aexecute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        return _answers(commands, await self.aexecute(commands))

    def _execute_atomic(self, commands: Sequence[Command[Any]]) -> list[Any]:
        return _answers(commands, self.execute(commands, atomic=True))

    async def _aexecute_atomic(self, commands: Sequence[Command[Any]]) -> list[Any]:
        return _answers(commands, await self.aexecute(commands, atomic=True))

    def _problem(self) -> str:
        """Return what a ping fails with; nothing if it does not."""
        try:
            self.call(Ping())
        except StoreError as error:
            return str(error)
        except Exception as error:  # a provider of the site's own
            logger.exception("redis_infra.kv_ping_failed provider=%s", self.provider)
            return type(error).__name__
        return ""

    async def _aproblem(self) -> str:
        try:
            await self.acall(Ping())
        except StoreError as error:
            return str(error)
        except Exception as error:
            logger.exception("redis_infra.kv_ping_failed provider=%s", self.provider)
            return type(error).__name__
        return ""

    def _health(self, problem: str) -> StoreHealth:
        name = self.provider or f"{type(self).__module__}.{type(self).__qualname__}"
        status: Literal["ok", "down"] = "down" if problem else "ok"
        return StoreHealth(provider=name, status=status, where=self.where, why=self.why, problem=problem)


def read_reply(command: Command[T], reply: Any) -> T:
    """Return what a provider's reply to a single command comes to.

    Raises:
        StoreError: it was refused, or is no text.
    """
    if isinstance(reply, StoreError):
        raise _placed(reply, None)
    return command.read(reply)


def _answers(commands: Sequence[Command[Any]], replies: list[Any]) -> list[Any]:
    """Return what replies come to; of what was refused, or is no text, the error."""
    answers: list[Any] = []
    for at, (command, reply) in enumerate(zip(commands, replies, strict=True)):
        try:
            answers.append(read_reply(command, reply))
        except StoreError as error:
            answers.append(_placed(error, at))
    return answers


def _placed(error: StoreError, at: int | None) -> StoreError:
    """Let an error know its command's place in a pipeline; who reads a reply does not, nor has to."""
    if isinstance(error, StoreRejected) and error.index != at:
        error.index = at
        error.args = (*error.args[:3], at)
    return error
