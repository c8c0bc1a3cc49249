"""Several commands in one round trip: collected first, executed together, answered one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from redis_infra.exceptions import StoreError
from redis_infra.kv.commands import Command, Commands, Seconds, Value

__all__ = ["Handle", "Pipeline", "batch_of"]

T = TypeVar("T")

_NOT_YET: Final = object()


class Handle(Generic[T]):
    """What one command of a pipeline comes to, once that was executed."""

    __slots__ = ("_answer",)

    def __init__(self) -> None:
        self._answer: Any = _NOT_YET

    @property
    def value(self) -> T:
        """The answer.

        Raises:
            StoreError: this command failed, or nothing of the pipeline was executed.
            RuntimeError: it was not executed yet.
        """
        if self._answer is _NOT_YET:
            raise RuntimeError("the pipeline was not executed; leave its with block, or call execute()")
        if isinstance(self._answer, StoreError):
            raise self._answer
        answer: T = self._answer
        return answer


class Pipeline:
    """Commands for one round trip, in their order; ``with`` or ``execute()`` sends them.

    A ``with`` block that raises sends nothing, and forgets what it had collected.
    One command that fails is one error among the answers, and the others have been executed. A
    ``transaction()`` lets nobody in between, and is refused as a whole where the store refuses it.

    Made by a store: ``pipeline()`` or ``transaction()``. Of one thread or task.
    """

    def __init__(
        self,
        make: Commands,
        execute: Callable[[Sequence[Command[Any]]], list[Any]],
        aexecute: Callable[[Sequence[Command[Any]]], Awaitable[list[Any]]],
    ) -> None:
        self._make = make
        self._execute = execute
        self._aexecute = aexecute
        self._commands: list[Command[Any]] = []
        self._handles: list[Handle[Any]] = []

    # Commands: as the store has them, with a handle in place of the answer

    def get(self, key: str) -> Handle[str | None]:
        return self.add(self._make.get(key))

    def get_bytes(self, key: str) -> Handle[bytes | None]:
        return self.add(self._make.get_bytes(key))

    def mget(self, *keys: str | Iterable[str]) -> Handle[list[str | None]]:
        return self.add(self._make.mget(*keys))

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
    ) -> Handle[bool]:
        return self.add(self._make.set(key, value, ex=ex, px=px, nx=nx, xx=xx, keepttl=keepttl))

    def mset(self, mapping: Mapping[str, Value]) -> Handle[None]:
        return self.add(self._make.mset(mapping))

    def incr(self, key: str, by: int = 1, *, op_id: str | None = None) -> Handle[int]:
        return self.add(self._make.incr(key, by, op_id=op_id))

    def delete(self, *keys: str | Iterable[str]) -> Handle[int]:
        return self.add(self._make.delete(*keys))

    def exists(self, *keys: str | Iterable[str]) -> Handle[int]:
        return self.add(self._make.exists(*keys))

    def expire(self, key: str, seconds: Seconds) -> Handle[bool]:
        return self.add(self._make.expire(key, seconds))

    def ttl(self, key: str) -> Handle[int]:
        return self.add(self._make.ttl(key))

    def pttl(self, key: str) -> Handle[int]:
        return self.add(self._make.pttl(key))

    def add(self, command: Command[T]) -> Handle[T]:
        """Put a command at the end."""
        handle: Handle[T] = Handle()
        self._commands.append(command)
        self._handles.append(handle)
        return handle

    def __len__(self) -> int:
        return len(self._commands)

    # Execution

    def execute(self) -> list[Any]:
        """Send everything, and return the answers in order; of what failed, the ``StoreError``.

        The pipeline is empty afterwards, whatever comes of it.

        Raises:
            StoreUnavailable: nothing was executed.
            StoreIndeterminate: it is not known what was executed.
            TransactionDiscarded: the store refused the transaction; nothing was executed.
        """
        commands, handles = self._taken()
        if not commands:
            return []
        try:
            return _answered(handles, self._execute(commands))
        except StoreError as error:
            _failed(handles, error)
            raise

    async def aexecute(self) -> list[Any]:
        """:meth:`execute` in the running event loop."""
        commands, handles = self._taken()
        if not commands:
            return []
        try:
            return _answered(handles, await self._aexecute(commands))
        except StoreError as error:
            _failed(handles, error)
            raise

    def _taken(self) -> tuple[list[Command[Any]], list[Handle[Any]]]:
        taken = self._commands, self._handles
        self._commands, self._handles = [], []
        return taken

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.execute()
        else:
            self._taken()

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.aexecute()
        else:
            self._taken()


def _answered(handles: Sequence[Handle[Any]], answers: list[Any]) -> list[Any]:
    for handle, answer in zip(handles, answers, strict=True):
        handle._answer = answer
    return answers


def _failed(handles: Sequence[Handle[Any]], error: StoreError) -> None:
    for handle in handles:
        handle._answer = error


_NAMES: Final = (
    "get", "get_bytes", "mget", "set", "mset", "incr", "delete", "exists", "expire", "ttl", "pttl"
)  # fmt: skip


def batch_of(pipeline: Pipeline, calls: Iterable[Sequence[Any]]) -> Pipeline:
    """Put calls given as data into a pipeline: ``("set", "k", "v", {"ex": 60})``.

    Raises:
        ValueError, TypeError: one is no call of a pipeline; the text says which one.
    """
    for place, call in enumerate(calls):
        if isinstance(call, str | bytes) or not isinstance(call, Sequence) or not call:
            raise ValueError(f"batch: item {place} is no call such as ('set', 'key', 'value')")
        name, *arguments = call
        known = "delete" if str(name).lower() == "del" else str(name).lower()
        if known not in _NAMES:
            raise ValueError(f"batch: item {place} is no command; write one of {', '.join(_NAMES)}")
        named = arguments.pop() if _has_options(known, arguments) else {}
        try:
            getattr(pipeline, known)(*arguments, **named)
        except (TypeError, ValueError) as error:
            raise type(error)(f"batch: item {place}: {error}") from None
    return pipeline


def _has_options(name: str, arguments: Sequence[Any]) -> bool:
    least = 1 if name == "mset" else 0
    return len(arguments) > least and isinstance(arguments[-1], Mapping)
