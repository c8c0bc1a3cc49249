"""The file of the host's logs: one connection a process, one transaction a decision, short waits.

Or memory, where a process is alone. Nothing is synced: a dead process loses nothing by it, and a dead machine
forgets the logs.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from redis_infra.resilience.forks import close_before_forks
from redis_infra.throttling.host import FILE, Host, identity_of
from redis_infra.throttling.host_rows import SCHEMA

__all__ = ["HostBusy", "HostFile", "is_damaged"]

PATIENCE: Final = 0.1
"""Seconds that a decision waits for its turn; a transaction takes a tenth of a millisecond."""

_NAME: Final = "logs-2"
"""The number is the schema's: two versions of this package on one host do not read each other's logs."""
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PRAGMAS: Final = "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"


class HostBusy(Exception):
    """Others kept the logs for longer than a request may wait."""


class HostFile:
    """A connection to the file that is the host's logs at the moment. Thread-safe.

    Raises (all methods but :meth:`close` and :meth:`remove`):
        HostBusy: it was not this process' turn in time.
        OSError, sqlite3.Error: the directory is not usable.
    """

    def __init__(self, host: Host, *, in_memory: bool) -> None:
        self._host = host
        self._in_memory = in_memory
        self._reset()
        if not in_memory:
            close_before_forks(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._opened = ""
        self._commits = 0
        self._identity: tuple[int, int] | None = None

    def before_fork(self, deadline: float, taken: list[threading.Lock]) -> None:
        """Close the file, and let nobody open it before the fork is over."""
        if self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            taken.append(self._lock)
            self._drop()

    def after_fork(self) -> None:
        """In a forked child: a connection of its own; closing the parent's would take its locks away."""
        if self._database is not None:
            _inherited.append(self._database)
        self._reset()

    def close(self) -> None:
        """Close the file; usable again afterwards."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def remove(self) -> None:
        """Remove the file, so that the next one is whole."""
        self.close()
        self._remove()

    def _remove(self, but: str | None = None) -> None:
        for path in self._host.directory.glob(f"{_NAME}.*") if self._host.directory else ():
            if but is None or not str(path).startswith(but):
                with contextlib.suppress(OSError):
                    path.unlink()

    @property
    def exists(self) -> bool:
        """Whether anything can be in it."""
        if self._in_memory:
            return self._database is not None
        return self._host.directory is not None and identity_of(self._path()) is not None

    # Turns

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The logs, for this thread alone among all processes; undone as a whole if it fails."""
        deadline = time.monotonic() + PATIENCE
        with self._having(deadline):
            database = self._begun(deadline)
            changes = database.total_changes
            try:
                yield database
                database.execute("COMMIT")
                self._commits += database.total_changes != changes
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a damaged file cannot even do that
                    database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The logs as they are between two transactions of others."""
        deadline = time.monotonic() + PATIENCE
        with self._having(deadline):
            yield self._current(deadline)

    def version(self) -> object:
        """Return what is another one as soon as anything was written; within a turn or between turns."""
        database = self._database
        if database is None:
            return object()
        # Others' commits, and ours: total_changes also counts what was rolled back, as all is on a full disk.
        return database, database.execute("PRAGMA data_version").fetchone(), self._commits

    def begin_another(self) -> None:
        """Let all processes take to an empty file, from within a transaction: whoever waits for it sees that.

        Needs no room on the disk.
        """
        self._host.words[FILE] += 1

    def remove_others(self) -> None:
        """Remove the files that are the host's logs no more."""
        self._remove(but=self._path())

    @contextlib.contextmanager
    def _having(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise HostBusy("other threads keep the logs")
        try:
            yield
        except sqlite3.DatabaseError as error:
            if _code(error) not in (*_BUSY, sqlite3.SQLITE_FULL):
                self._drop()  # opened anew next time: the file may have been removed or damaged
            raise
        finally:
            self._lock.release()

    def _begun(self, deadline: float) -> sqlite3.Connection:
        while True:
            database = self._current(deadline)
            _within(deadline, partial(database.execute, "BEGIN IMMEDIATE"))
            if self._is_current():
                return database
            database.execute("ROLLBACK")  # while this waited its turn, others have begun another file

    def _current(self, deadline: float) -> sqlite3.Connection:
        if self._database is not None and not self._is_current():
            self._drop()
        return self._database or self._open(deadline)

    def _is_current(self) -> bool:
        if self._in_memory:
            return True
        return self._opened == self._path() and identity_of(self._opened) == self._identity

    def _open(self, deadline: float) -> sqlite3.Connection:
        path = ":memory:"
        if not self._in_memory:
            path = self._path()
            Path(path).touch(mode=0o600)
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            _within(deadline, lambda: database.executescript(_PRAGMAS + SCHEMA))
        except BaseException:
            database.close()
            raise
        self._database, self._opened = database, path
        self._identity = None if self._in_memory else identity_of(path)
        return database

    def _path(self) -> str:
        if self._host.directory is None:
            raise OSError(self._host.problem)
        return f"{self._host.directory}/{_NAME}.{self._host.words[FILE]}.sqlite3"


def _within(deadline: float, step: Callable[[], Any]) -> None:
    """Do a step that needs the file for itself; in turns of less than a millisecond until the deadline."""
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY:
                raise
            if time.monotonic() > deadline:
                raise HostBusy("other processes keep the logs") from error
        # SQLite's own waiting grows to 100 ms a turn, after which a request is over.
        time.sleep(random.uniform(0.0001, 0.001))  # noqa: S311  # jitter, not a secret


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether a file will never be read again, rather than cannot be written at the moment."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_inherited: list[object] = []
"""Connections that a fork brought along: closing them would end the parent's locks."""
