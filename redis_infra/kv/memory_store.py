"""The store that is the memory of this process: for development, tests, and sites of one process.

Gone when the process ends, and each process has its own. Bounded: a store of record forgets nothing that it
was not told to, so one that is full refuses what needs more room, as Redis does with ``noeviction``.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.exceptions import StoreQuotaExceeded, StoreUnavailable, TransactionDiscarded
from redis_infra.kv.base import KVStore
from redis_infra.kv.commands import Command, name_of
from redis_infra.kv.local import NoRoom, Row, answer, answers

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "MemoryStore"]

T = TypeVar("T")

MAX_ENTRIES: Final = 100_000
MAX_BYTES: Final = 64 * 2**20

ROW_BYTES: Final = 250
"""What a row takes beside its key and value: the objects, the place in the dictionary, its deadline."""
_SWEEP: Final = 20
"""Expired rows that one command clears away at most; each adds one at most, but ``mset``."""
_SPARE: Final = 1000
"""Outdated places in an order that are not worth making it anew."""


class MemoryStore(KVStore):
    """A ``KVStore`` in a dictionary. Bytes are counted as keys, values and 250 a row.

    Thread-safe, and used from event loops without a thread in between: nothing waits longer than another
    command takes. A forked child goes on with a copy. What interrupts a command in its own thread, a signal
    handler or a ``__del__``, is refused: it would find half of what that one does.
    """

    provider = "memory"

    def __init__(
        self,
        home: str,
        *,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(home)
        self._table = _Table(max_entries, max_bytes)
        self._clock = clock
        # Lets its own thread in once more, for which there is the flag: a lock that does not would wait for
        # the command that it has interrupted.
        self._lock = threading.RLock()
        self._inside = False

    @property
    def where(self) -> str:
        return "this process"

    def after_fork(self) -> None:
        # Another thread may have been in the middle of something, and is not here.
        self._lock = threading.RLock()
        self._inside = False
        self._table.reckon()

    def call(self, command: Command[T]) -> T:
        with self._lock:
            if self._inside:
                raise _interrupts((command,))
            try:
                self._inside = True
                self._table.advance(self._now())
                reply = answer(command, self._table)
            finally:
                self._inside = False
        return command.read(reply)

    async def acall(self, command: Command[T]) -> T:
        return self.call(command)

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        with self._lock:
            if self._inside:
                raise _interrupts(commands, atomic=atomic)
            try:
                self._inside = True
                self._table.advance(self._now())
                return self._all_or_none(commands) if atomic else answers(commands, self._table)
            finally:
                self._inside = False

    async def aexecute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        return self.execute(commands, atomic=atomic)

    def _all_or_none(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Execute commands, and undo them if there is no room for one of them: Redis does not begin then."""
        self._table.remember()
        try:
            replies = answers(commands, self._table)
        except BaseException:  # Ctrl-C, out of memory
            self._table.undo()
            raise
        full = next((at for at, each in enumerate(replies) if isinstance(each, StoreQuotaExceeded)), None)
        if full is None:
            self._table.settle()
            return replies
        self._table.undo()
        raise TransactionDiscarded("transaction", commands[full].key, replies[full].reason, full)

    def _now(self) -> int:
        return int(self._clock.monotonic() * 1000)


def _interrupts(commands: Sequence[Command[Any]], *, atomic: bool = False) -> StoreUnavailable:
    reason = (
        "this thread is in the middle of another command, which a signal handler or a __del__ interrupts; "
        "use the store when that has returned, or from another thread"
    )
    return StoreUnavailable(
        name_of(commands, atomic=atomic), commands[0].key if commands else "", reason=reason
    )


class _Table:
    """Rows in memory: their size, what expires next, and their order if somebody wants it."""

    def __init__(self, most_entries: int, most_bytes: int) -> None:
        self.now = 0
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._rows: dict[str, Row] = {}
        self.get = self._rows.get
        self._before: dict[str, Row | None] | None = None
        self.reckon()

    def reckon(self) -> None:
        """Make anew what follows from the rows."""
        self.settle()
        self.bytes = sum(_size(key, row) for key, row in self._rows.items())
        self._make_queue()
        self._order: list[str] | None = None

    def advance(self, now: int) -> None:
        """Let it be ``now``, and clear away some of what has expired."""
        self.now = now
        if self._queue and self._queue[0][0] < now:
            self._sweep(_SWEEP)

    # Rows

    def put(self, rows: Mapping[str, Row]) -> None:
        self._make_room(rows)
        for key, row in rows.items():
            self._note(key)
            self._place(key, row)

    def remove(self, key: str) -> None:
        self._note(key)
        self._take(key)

    def _place(self, key: str, row: Row) -> None:
        known = self._rows.get(key)
        if known is None:
            self._add_to_order(key)
        else:
            self.bytes -= _size(key, known)
        self._rows[key] = row
        self.bytes += _size(key, row)
        if row[1] is not None and (known is None or known[1] != row[1]):
            heapq.heappush(self._queue, (row[1], key))
            if len(self._queue) > 2 * len(self._rows) + _SPARE:
                self._make_queue()

    def _take(self, key: str) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self.bytes -= _size(key, row)

    # Room

    def _make_room(self, rows: Mapping[str, Row]) -> None:
        if self._lacks(rows):
            self._sweep(len(self._queue))
            if bound := self._lacks(rows):
                raise NoRoom(f"the store in memory is full: {bound}")

    def _lacks(self, rows: Mapping[str, Row]) -> str:
        """Return the bound that rows would go beyond; nothing if there is room."""
        entries = sum([key not in self._rows for key in rows])
        if entries and len(self._rows) + entries > self._most_entries:
            return f"{self._most_entries} entries (max_entries of MemoryStore)"
        more = sum([_size(key, row) for key, row in rows.items()])
        if self.bytes + more <= self._most_bytes:
            return ""
        more -= sum([_size(key, self._rows[key]) for key in rows if key in self._rows])
        if more > 0 and self.bytes + more > self._most_bytes:
            return f"{self._most_bytes} bytes (max_bytes of MemoryStore)"
        return ""

    # Undoing

    def remember(self) -> None:
        """From now on remember what is replaced, until :meth:`settle` or :meth:`undo`."""
        self._before = {}

    def settle(self) -> None:
        self._before = None

    def undo(self) -> None:
        """Let everything be as it was."""
        before, self._before = self._before or {}, None
        for key, row in before.items():
            if row is None:
                self._take(key)
            else:
                self._place(key, row)

    def _note(self, key: str) -> None:
        if self._before is not None:
            self._before.setdefault(key, self._rows.get(key))

    # What expires

    def _sweep(self, most: int) -> None:
        queue = self._queue
        while queue and most and queue[0][0] < self.now:
            deadline, key = heapq.heappop(queue)
            most -= 1
            row = self._rows.get(key)
            if row is not None and row[1] == deadline:  # or else it was given another one since
                self._take(key)

    def _make_queue(self) -> None:
        self._queue = [(row[1], key) for key, row in self._rows.items() if row[1] is not None]
        heapq.heapify(self._queue)

    # Their order

    def names_from(self, first: str) -> Iterator[tuple[str, int | None]]:
        # Made when first asked for, and kept up from then on: a list that is sorted but for its end is soon
        # sorted. What was deleted stays in it; what was deleted and came again is in it twice.
        if self._order is None:
            self._order = list(self._rows)
            self._is_sorted = False
        if not self._is_sorted:
            self._order.sort()
            self._is_sorted = True
        last = None
        for at in range(bisect_left(self._order, first), len(self._order)):
            key = self._order[at]
            row = self._rows.get(key)
            if row is not None and key != last:
                last = key
                yield key, row[1]

    def _add_to_order(self, key: str) -> None:
        if self._order is None:
            return
        self._order.append(key)
        self._is_sorted = False
        if len(self._order) > 2 * len(self._rows) + _SPARE:
            self._order = None


def _size(key: str, row: Row) -> int:
    return len(key) + len(row[0]) + ROW_BYTES
