"""The store that is a file: SQLite, shared by the processes of a host, and whole after a ``kill -9``.

What was answered is on the disk: each write is synced, which is most of what it costs. Deadlines are of the
wall clock, so that they hold for all processes and across restarts; a clock that jumps takes them along.

Beside the file are SQLite's own two, ``-wal`` and ``-shm``, and ``-lock``: they belong together.

For a disk of this host. Not for network file systems (NFS, SMB): SQLite's log needs memory that processes
share, and locks that hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from sqlite3 import Connection
from typing import Any, Final, NoReturn, TypeVar

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.exceptions import StoreUnavailable
from redis_infra.kv.base import KVStore
from redis_infra.kv.commands import Command, name_of
from redis_infra.kv.local import Row, Table, answer, answers
from redis_infra.kv.sqlite_file import Failed, SqliteFile

__all__ = ["PATIENCE", "FileStore"]

T = TypeVar("T")

PATIENCE: Final = 1.0
"""Seconds to wait for one's turn."""

_SWEEP: Final = 100
"""Expired rows that a write clears away at most."""

_GET: Final = "SELECT value, deadline FROM rows WHERE key = ?"
_PUT: Final = """
INSERT INTO rows (key, value, deadline) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, deadline = excluded.deadline
"""
_REMOVE: Final = "DELETE FROM rows WHERE key = ?"
_FROM: Final = "SELECT key, deadline FROM rows WHERE key >= ? ORDER BY key"
_EXPIRED: Final = """
DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows WHERE deadline < ? LIMIT ?)
"""


class FileStore(KVStore):
    """A ``KVStore`` in the file ``path``, made when first used, for this user alone; its directory must be.

    Everything that is executed together is one transaction, a pipeline too: nobody comes between. A write
    waits ``patience`` seconds for those of others; reads wait for nobody. Thread-safe; event loops leave it
    to a thread. Usable after a fork, for which the file is closed.

    A damaged file, or one of something else, is reported and never touched.
    """

    provider = "file"

    def __init__(
        self,
        home: str,
        path: str | PathLike[str],
        *,
        patience: float = PATIENCE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(home)
        self._file = SqliteFile(path, patience)
        self._clock = clock

    @property
    def where(self) -> str:
        return self._file.path

    def close(self) -> None:
        self._file.close()

    def after_fork(self) -> None:
        self._file.after_fork()

    def call(self, command: Command[T]) -> T:
        return command.read(self._execute_with((command,), lambda table: answer(command, table)))

    async def acall(self, command: Command[T]) -> T:
        return await asyncio.to_thread(self.call, command)

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        if not commands:
            return []
        return self._execute_with(commands, lambda table: answers(commands, table), atomic=atomic)

    def _execute_with(
        self, commands: Sequence[Command[Any]], work: Callable[[Table], T], *, atomic: bool = False
    ) -> T:
        try:
            if any(command.writes for command in commands):
                return self._file.write(lambda database: self._write(database, work))
            return self._file.read(lambda database: work(_Rows(database, self._now())))
        except Failed as failed:
            _raise(failed, name_of(commands, atomic=atomic), commands[0].key)

    def _write(self, database: Connection, work: Callable[[Table], T]) -> T:
        # The time is looked at when it is our turn: what others did while we waited comes before.
        now = self._now()
        result = work(_Rows(database, now))
        database.execute(_EXPIRED, (now, _SWEEP))
        return result

    def _now(self) -> int:
        return int(self._clock.time() * 1000)


def _raise(failed: Failed, name: str, key: str) -> NoReturn:
    if issubclass(failed.kind, StoreUnavailable):
        raise failed.kind(name, key, waited=failed.waited, reason=failed.reason) from failed.__cause__
    raise failed.kind(name, key, failed.reason) from failed.__cause__


class _Rows:
    """The rows of the file, within a transaction."""

    def __init__(self, database: Connection, now: int) -> None:
        self.now = now
        self._database = database

    def get(self, key: str) -> Row | None:
        row: Row | None = self._database.execute(_GET, (key,)).fetchone()
        return row

    def put(self, rows: Mapping[str, Row]) -> None:
        self._database.executemany(_PUT, [(key, *row) for key, row in rows.items()])

    def remove(self, key: str) -> None:
        self._database.execute(_REMOVE, (key,))

    def names_from(self, first: str) -> Iterator[tuple[str, int | None]]:
        # SQLite compares texts by their UTF-8, which is the order of code points.
        yield from self._database.execute(_FROM, (first,))
