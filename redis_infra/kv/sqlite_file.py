"""A file of SQLite's for a store of record: turns among threads and processes, and what failed.

Two connections a process: reads do not wait for the disk that a write waits for. Knows rows by their schema
only, and no commands.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from os import PathLike
from typing import Final, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from redis_infra.exceptions import (
    StoreError,
    StoreIndeterminate,
    StoreReadOnly,
    StoreRejected,
    StoreUnavailable,
)
from redis_infra.resilience.forks import close_before_forks, without_forks

__all__ = ["Failed", "SqliteFile"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OURS: Final = 0x72694B56
"""``riKV``: what SQLite's header says of whose file it is."""
_VERSION: Final = 1

# In WAL mode FULL syncs the log at each commit: after a power loss there is what was answered. fullfsync is
# for macOS, where a sync is none without it.
_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = 1",
    "PRAGMA journal_size_limit = 67108864",
)
_SCHEMA: Final = (
    "CREATE TABLE rows (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, deadline INTEGER)",
    "CREATE INDEX deadlines ON rows (deadline) WHERE deadline IS NOT NULL",
    f"PRAGMA application_id = {_OURS}",
    f"PRAGMA user_version = {_VERSION}",
)

_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_HARMLESS: Final = (*_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG)
"""Errors after which a connection is as good as before."""
_REASONS: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_FULL: (StoreUnavailable, "the disk is full"),
    sqlite3.SQLITE_READONLY: (StoreReadOnly, "the file may only be read"),
    sqlite3.SQLITE_TOOBIG: (StoreRejected, "a value is larger than the file takes"),
    sqlite3.SQLITE_CANTOPEN: (
        StoreUnavailable,
        "the file cannot be opened; look at its permissions and its directory's",
    ),
}
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Failed(Exception):
    """It was not done, for a ``reason``, which as a store's error is of a ``kind``."""

    def __init__(self, kind: type[StoreError], reason: str, waited: float = 0.0) -> None:
        super().__init__(kind, reason, waited)
        self.kind = kind
        self.reason = reason
        self.waited = waited


class SqliteFile:
    """The file at ``path``; opened when first used. Thread-safe.

    Made, or taken over if it is empty, by whoever writes first. Until then nothing is found in it.

    Raises (:meth:`read` and :meth:`write`):
        Failed: nothing was done; unless its kind is ``StoreIndeterminate``.
    """

    def __init__(self, path: str | PathLike[str], patience: float) -> None:
        self.path = os.path.abspath(path)
        self._patience = patience
        self._begin()
        close_before_forks(self)

    def _begin(self) -> None:
        self._reader, self._writer = _Link(self.path, makes=False), _Link(self.path, makes=True)
        self._gate = _Gate(self.path)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` finds, in the file as it is between two writes; may be called again."""
        deadline = _Deadline(self._patience)
        with self._turn(self._reader, deadline):
            database = self._reader.current(deadline)
            if database is None:
                return _looked_at_nothing(work)
            return deadline.keep(lambda: _looked(database, work))

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Let ``work`` change the file, alone among all processes; what it raises undoes it."""
        deadline = _Deadline(self._patience)
        with self._turn(self._writer, deadline), self._begun(deadline) as database:
            try:
                result = work(database)
            except BaseException:
                _roll_back(database)
                raise
            _commit(database)
            return result

    @contextlib.contextmanager
    def _begun(self, deadline: _Deadline) -> Iterator[sqlite3.Connection]:
        while True:
            with self._gate.closed(deadline):
                database = self._writer.begun(deadline)
                if self._gate.is_current():
                    yield database
                    return
                _roll_back(database)  # the lock went with the file: others have another one

    @contextlib.contextmanager
    def _turn(self, link: _Link, deadline: _Deadline) -> Iterator[None]:
        if not link.lock.acquire(timeout=max(0.0, deadline.left)):
            raise deadline.missed("other threads keep the file")
        try:
            yield
        except StoreError:  # a refusal, and perhaps an OverflowError of its own
            raise
        except (sqlite3.Error, OverflowError) as error:  # the latter: more than 2 GB
            if _code(error) not in _HARMLESS:
                link.drop()
            raise _failed(error, self.path) from error
        except Failed as failed:
            if failed.kind is StoreIndeterminate:
                link.drop()
            raise
        finally:
            link.lock.release()

    def close(self) -> None:
        """Close the file when those who are at it are done; usable again afterwards."""
        for link in (self._reader, self._writer):
            with link.lock:
                self._drop(link)

    def _drop(self, link: _Link) -> None:
        link.drop()
        if link is self._writer:
            self._gate.drop()

    # Forks

    def before_fork(self, deadline: float, taken: list[threading.Lock]) -> None:
        """Close the file and let nobody open it: by locks that are put into ``taken``.

        SQLite notes in the process' memory which locks it has, and a child would believe that it has them:
        its new connection to a file that the parent had open takes none at all.
        """
        for link in (self._reader, self._writer):
            if link.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                taken.append(link.lock)
                self._drop(link)

    def after_fork(self) -> None:
        """In a forked child: connections of its own."""
        # Open only where nobody told us of the fork; closing them would touch what the parent shares.
        _inherited.extend(link.database for link in (self._reader, self._writer) if link.database)
        self._begin()


class _Deadline:
    """What is left of somebody's patience."""

    def __init__(self, patience: float) -> None:
        self._began = time.monotonic()
        self._ends = self._began + patience

    @property
    def left(self) -> float:
        return self._ends - time.monotonic()

    def missed(self, reason: str) -> Failed:
        return Failed(StoreUnavailable, reason, waited=time.monotonic() - self._began)

    def keep(self, step: Callable[[], T]) -> T:
        """Do a step for which others may have to be waited for; tried again until it is too late."""
        while True:
            try:
                return step()
            except (sqlite3.OperationalError, BlockingIOError) as error:
                if isinstance(error, sqlite3.Error) and _code(error) not in _BUSY:
                    raise
                if self.left <= 0:
                    raise self.missed("other processes keep the file") from error
            # SQLite's own waiting grows to 100 ms a turn, in which others have twenty.
            time.sleep(random.uniform(0.0001, 0.001))  # noqa: S311  # jitter, not a secret


class _Gate:
    """Lets one process write and move the log into the file at a time: a lock on a file beside it.

    SQLite before 3.51.3 may lose what was committed when a connection begins to move the log while another
    one commits (sqlite.org/wal.html#walresetbug): connections of ours never do. Where there can be no such
    lock there is what SQLite does by itself.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-lock"
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None

    @contextlib.contextmanager
    def closed(self, deadline: _Deadline) -> Iterator[None]:
        descriptor = self._opened()
        if descriptor is None or not deadline.keep(lambda: _locked(descriptor)):
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def is_current(self) -> bool:
        """Return whether the lock is that of the file beside which it is; true where there is none."""
        return self._descriptor is None or _identity_of(self._path) == self._identity

    def _opened(self) -> int | None:
        if not self.is_current():
            self.drop()
        if self._descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
                found = os.fstat(self._descriptor)
                self._identity = found.st_dev, found.st_ino
        return self._descriptor

    def drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Return whether a file is locked by us now; False where files cannot be.

    Raises:
        BlockingIOError: somebody else has the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


class _Link:
    """A connection, and the lock that one has who uses it. ``makes``: the file, if it is not there."""

    def __init__(self, path: str, *, makes: bool) -> None:
        self.lock = threading.Lock()
        self.database: sqlite3.Connection | None = None
        self._path = path
        self._makes = makes
        self._identity: tuple[int, int] | None = None

    def drop(self) -> None:
        database, self.database = self.database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def begun(self, deadline: _Deadline) -> sqlite3.Connection:
        """Return the connection, with a transaction that no other process writes beside."""
        while True:
            database = self.current(deadline)
            assert database is not None  # it was made
            deadline.keep(partial(database.execute, "BEGIN IMMEDIATE"))
            if self._is_current():
                return database
            _roll_back(database)

    def current(self, deadline: _Deadline) -> sqlite3.Connection | None:
        """Return the connection; None if there is no file of ours, and we do not make one."""
        if self.database is not None and not self._is_current():
            # What is written to a file without a name is lost.
            logger.error("redis_infra.kv_file_replaced path=%s", self._path)
            self.drop()
        return self.database or self._open(deadline)

    def _is_current(self) -> bool:
        return _identity_of(self._path) == self._identity

    def _open(self, deadline: _Deadline) -> sqlite3.Connection | None:
        if self._makes:
            _make_sure_of(self._path)
        elif _is_nothing(self._path):
            return None
        database = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            is_ours = deadline.keep(lambda: _prepare(database, self._path, makes=self._makes))
        except BaseException:
            database.close()
            raise
        if not is_ours:
            database.close()
            return None
        self.database, self._identity = database, _identity_of(self._path)
        return database


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_sure_of(path: str) -> None:
    """Make an empty file, for this user alone, if there is none.

    Raises:
        Failed: that cannot be.
    """
    try:
        # Who closes a file takes all locks that the process has on it: nobody connects until this is closed.
        with without_forks():
            if not os.path.exists(path):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                _sync_directory(os.path.dirname(path))
    except FileExistsError:
        pass
    except FileNotFoundError as error:
        raise _no_directory(path) from error
    except OSError as error:
        remedy = "see REDIS_INFRA['KV']['FILE']"
        raise Failed(StoreUnavailable, f"{path} cannot be made: {error.strerror}; {remedy}") from error


def _is_nothing(path: str) -> bool:
    """Return whether there is no file, or an empty one, which may be anybody's.

    Raises:
        Failed: there is not even a directory for it.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        if not os.path.isdir(os.path.dirname(path)):
            raise _no_directory(path) from error
        return True
    except OSError:
        return False  # SQLite will say why
    return stat.S_ISREG(found.st_mode) and not found.st_size


def _no_directory(path: str) -> Failed:
    remedy = "make it, or name another file in REDIS_INFRA['KV']['FILE']"
    return Failed(StoreUnavailable, f"the directory of {path} does not exist; {remedy}")


def _sync_directory(path: str) -> None:
    """See to it that a file that was made is there after a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare(database: sqlite3.Connection, path: str, *, makes: bool) -> bool:
    """Make the table, unless it is there; return whether it is.

    Raises:
        Failed: this is the file of something else, or of a later version.
    """
    for pragma in _PRAGMAS:
        database.execute(pragma)
    if not _is_ours(database, path):
        if not makes:
            return False
        _make_table(database, path)
    try:
        database.execute("PRAGMA journal_mode = WAL")  # a backup may have lost it
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_READONLY:
            raise
    return True


def _make_table(database: sqlite3.Connection, path: str) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        if not _is_ours(database, path):  # nobody was faster
            for statement in _SCHEMA:
                database.execute(statement)
        database.execute("COMMIT")
    except BaseException:
        _roll_back(database)
        raise


def _is_ours(database: sqlite3.Connection, path: str) -> bool:
    """Return whether it is a file of this store; False if it is empty."""
    whose, version = (_number(database, f"PRAGMA {name}") for name in ("application_id", "user_version"))
    if whose == _OURS and version <= _VERSION:
        return True
    if whose == _OURS:
        raise Failed(StoreError, f"{path} was written by a later version of this package")
    if whose or _number(database, "SELECT COUNT(*) FROM sqlite_master"):
        remedy = "name a file of its own in REDIS_INFRA['KV']['FILE']"
        raise Failed(StoreError, f"{path} is a database of something else; {remedy}")
    return False


def _number(database: sqlite3.Connection, query: str) -> int:
    (number,) = database.execute(query).fetchone()
    return int(number)


def _looked(database: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    database.execute("BEGIN")
    try:
        return work(database)
    finally:
        _roll_back(database)


def _looked_at_nothing(work: Callable[[sqlite3.Connection], T]) -> T:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        for statement in _SCHEMA:
            database.execute(statement)
        return work(database)


def _commit(database: sqlite3.Connection) -> None:
    try:
        database.execute("COMMIT")
    except sqlite3.Error as error:
        _roll_back(database)
        if _code(error) == sqlite3.SQLITE_IOERR:
            # It may have been written to the end, and count when the log is read again.
            reason = f"the disk failed when it was to be synced: {error}"
            raise Failed(StoreIndeterminate, reason) from error
        raise


def _roll_back(database: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # SQLite has done so itself, or cannot even do that
        database.execute("ROLLBACK")


def _failed(error: Exception, path: str) -> Failed:
    code = _code(error)
    if code in _DAMAGED:
        remedy = "nothing was changed; put a backup in its place, or see sqlite3's .recover"
        return Failed(StoreError, f"{path} is damaged ({error}): {remedy}")
    kind, reason = _REASONS.get(code, (StoreUnavailable, str(error)))
    return Failed(kind, reason)


def _code(error: Exception) -> int:
    if isinstance(error, OverflowError):
        return sqlite3.SQLITE_TOOBIG
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_inherited: list[sqlite3.Connection] = []
"""Connections that a fork brought along, for ever: SQLite must not even close them."""
