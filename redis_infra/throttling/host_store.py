"""Logs that the processes of a host keep together while Redis is away: SQLite in the state directory.

Exact among all of them, and across a ``kill -9``: one transaction a decision, in which the era is looked at
again. Nothing is synced, so the machine's own death forgets them. Each host of ``HOSTS`` gives out its share
of a limit, and counts what Redis was last known to have let through.

What was let through without Redis waits here until it is in Redis' logs: see :meth:`HostStore.handing_back`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack
from redis_infra.throttling import sliding_log
from redis_infra.throttling.host import (
    CLOSING,
    LEASE,
    RESTARTED,
    Host,
    Known,
    Spot,
    identity_of,
    monotonic_ms,
    wall_ms,
)
from redis_infra.throttling.local import Name, decide
from redis_infra.throttling.plans import MERGE, Entry, note_of, tag_from
from redis_infra.throttling.sliding_log import Log, Terms

__all__ = ["HostBusy", "HostStore", "Row", "is_damaged", "share_of", "with_known"]

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.1
"""Seconds that a decision waits for its turn; a transaction takes a tenth of a millisecond."""
MOST_ROWS: Final = 250_000
"""Identities with a log of their own, some 50 MB; beyond them newcomers share."""
FEW: Final = 100
"""Logs that are handed back with everybody waiting who can."""
TURN: Final = 2000
"""Milliseconds for which the others leave it to one process to give limits back, after each log."""
LAST_WORDS: Final = 50
"""Milliseconds that they wait, at most."""
COUNT_EVERY: Final = 4096

_FILE: Final = "logs.sqlite3"

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS logs (
    label TEXT NOT NULL, identity TEXT NOT NULL, key TEXT NOT NULL,
    window INTEGER NOT NULL, grain INTEGER NOT NULL,
    log TEXT NOT NULL, pending TEXT NOT NULL, token TEXT NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (label, identity)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ends ON logs (until);
CREATE TABLE IF NOT EXISTS forgotten (start TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
"""
_COLUMNS: Final = "label, identity, key, window, grain, log, pending, token, until"
_SELECT: Final = f"SELECT {_COLUMNS} FROM logs"  # noqa: S608  # no value is in it, here and below
_WRITE: Final = f"INSERT OR REPLACE INTO logs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_TOLD: Final = "UPDATE logs SET pending = '[]', token = '' WHERE label = ? AND identity = ? AND token = ?"


class HostBusy(Exception):
    """Others kept the logs for longer than a request may wait."""


class Row(NamedTuple):
    """One identity's log: what was let through, and what of it is on its way to Redis under ``token``."""

    name: Name
    key: str
    window: int
    grain: int
    log: Log
    pending: Log
    token: str
    until: int

    @property
    def spot(self) -> Spot:
        """Where it stands in the tables of the host; not of a shared log."""
        return Spot.of(tag_from(self.name.identity), note_of(self.name.label, self.window, 0))

    def live(self, now: int) -> Log:
        """All that counts and that Redis may not know."""
        return sliding_log.live(sliding_log.merge(self.log, self.pending), now, self.window)


class HostStore:
    """The logs of one database's limits on this host.

    Thread-safe; call :meth:`after_fork` in a forked child. Waits for other processes :data:`PATIENCE` at
    most, in an event loop too.

    Raises (all methods):
        HostBusy: it was not this process' turn in time.
        OSError, sqlite3.Error: the directory is not usable.
    """

    def __init__(self, host: Host, hosts: int, *, in_memory: bool = False, most: int = MOST_ROWS) -> None:
        self._host = host
        self._hosts = hosts
        self._in_memory = in_memory
        self._most = most
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._file = ""
        self._opened: tuple[int, int] | None = None
        self._rows = 0
        self._until_count = 0

    def after_fork(self) -> None:
        """In a forked child: a connection of its own; closing the parent's would take its locks away."""
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
        if self._host.directory is not None:
            for path in self._host.directory.glob(f"{_FILE}*"):
                with contextlib.suppress(OSError):
                    path.unlink()

    @property
    def exists(self) -> bool:
        """Whether anything can be in it."""
        if self._in_memory:
            return self._database is not None
        return self._host.directory is not None and (self._host.directory / _FILE).exists()

    # Decisions

    def hit(self, entries: Sequence[Entry], cost: int, *, needed: bool) -> list[int] | None:
        """Charge ``cost`` to all logs or to none, and return the script's reply.

        None where Redis decides again by now; unless the host is ``needed`` to, which begins an era.
        """
        if not needed:
            self._let_close()
        with self._transaction() as database:
            if not self._host.decides and not needed:
                return None
            if needed:
                self._host.take_over()
            now = monotonic_ms()
            offset = wall_ms() - now
            rows = [self._row(database, entry) for entry in entries]
            terms = [share_of(entry.terms, self._hosts) for entry in entries]
            logs = [
                with_known(row.live(now), self._known(database, entry), entry.terms, each, now, offset)
                for row, entry, each in zip(rows, entries, terms, strict=True)
            ]
            reply, charged = decide(logs, terms, now, cost, offset)
            if charged:
                for row, each in zip(rows, terms, strict=True):
                    sliding_log.charge(row.log, sliding_log.stamp_of(now, each, offset), cost)
                    self._write(database, row, now)
            return reply

    def refund(self, entries: Sequence[Entry], cost: int, charged: int) -> None:
        """Take back what was charged at ``charged``, as far as Redis has not been told of it."""
        with self._transaction() as database:
            now = monotonic_ms()
            for entry in entries:
                row = self._row(database, entry)
                stamp = sliding_log.stamp_of(charged, entry.terms, wall_ms() - now)
                sliding_log.refund(row.log, stamp, cost)
                self._write(database, row, now)

    def forget(self, names: Iterable[Name]) -> int:
        """Drop these logs; return how many there were."""
        with self._transaction() as database:
            return sum(
                database.execute("DELETE FROM logs WHERE label = ? AND identity = ?", name).rowcount
                for name in names
            )

    def forget_where(self, label_start: str) -> int:
        """Drop the logs of limits whose label begins so, and what was known; return how many logs."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (label_start, monotonic_ms()))
            pattern = f"{_glob(label_start)}*"
            return database.execute("DELETE FROM logs WHERE label GLOB ?", (pattern,)).rowcount

    def still_known(self, entries: Sequence[Entry]) -> list[Known | None]:
        """Return what the host's processes know of each log, but for what was forgotten since."""
        with self._transaction() as database:
            return [self._known(database, entry) for entry in entries]

    def _known(self, database: sqlite3.Connection, entry: Entry) -> Known | None:
        known = self._host.known(entry.spot)
        if known is None:
            return None
        return known if known.heard > _forgotten_at(database, entry.name.label) else None

    def rows(self) -> list[Row]:
        """Every log that counts now."""
        with self._transaction() as database:
            found = database.execute(f"{_SELECT} WHERE until > ?", (monotonic_ms(),))
            return [_row_of(each) for each in found]

    def _row(self, database: sqlite3.Connection, entry: Entry) -> Row:
        """Return an identity's log as it stands, or the one to begin: of his own while there is room."""
        name, key = entry.name, entry.key
        found = self._find(database, name)
        if found is None and self._is_full(database):
            name, key = name.shared, ""
            found = self._find(database, name)
        return found or Row(name, key, entry.terms.window, entry.terms.grain, [], [], "", 0)

    @staticmethod
    def _find(database: sqlite3.Connection, name: Name) -> Row | None:
        found = database.execute(f"{_SELECT} WHERE label = ? AND identity = ?", name).fetchone()
        return _row_of(found) if found else None

    def _write(self, database: sqlite3.Connection, row: Row, now: int) -> None:
        log = sliding_log.live(row.log, now, row.window)
        if not log and not row.pending:
            database.execute("DELETE FROM logs WHERE label = ? AND identity = ?", row.name)
            return
        until = max(entry[0] for entry in (*log, *row.pending)) + row.window
        texts = json.dumps(log), json.dumps(row.pending)
        database.execute(_WRITE, (*row.name, row.key, row.window, row.grain, *texts, row.token, until))

    def _is_full(self, database: sqlite3.Connection) -> bool:
        self._until_count -= 1
        if self._until_count <= 0:
            self._until_count = COUNT_EVERY
            database.execute("DELETE FROM logs WHERE until <= ?", (monotonic_ms(),))
            self._rows = database.execute("SELECT COUNT(*) FROM logs").fetchone()[0]
        self._rows += 1
        return self._rows > self._most

    # The way back

    def handing_back(self, *, last: bool) -> Talk:
        """Tell Redis what was let through without it; returns how many logs that were.

        With the ``last`` of the host's stores Redis decides again, from the moment when it knows everything.
        A conversation without I/O, for whoever has a connection. Each log is frozen under a token, on disk,
        before it is sent, so that it is added once, whoever fails or dies in between. Most are sent while
        requests go on being decided here; for the last few, those who do not need the host wait.
        """
        told = 0
        try:
            while True:
                with self._transaction() as database:
                    self._freeze(database)
                    rows = self._frozen(database)
                    forgotten = {row.name.label: _forgotten_at(database, row.name.label) for row in rows}
                    if not rows:
                        database.execute("DELETE FROM logs")  # what nobody can be told of: shared ones
                        if last and not self._host.is_needed:
                            self._host.hand_back()
                        return told
                if len(rows) <= FEW:
                    self._host.words[CLOSING] = monotonic_ms() + LAST_WORDS
                told += yield from self._telling(rows, forgotten)
                with self._transaction() as database:
                    self._forget_told(database, rows)
        finally:
            self._host.words[CLOSING] = 0

    def _let_close(self) -> None:
        """Wait while the era is being ended: Redis will decide in a moment."""
        while self._host.words[CLOSING] > monotonic_ms():
            time.sleep(0.0005)

    @staticmethod
    def _forget_told(database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        for row in rows:
            database.execute(_TOLD, (*row.name, row.token))

    def _freeze(self, database: sqlite3.Connection) -> None:
        """Put what is new under a token; what has one keeps it, since it may be on its way already."""
        now = monotonic_ms()
        database.execute("DELETE FROM logs WHERE until <= ?", (now,))
        found = database.execute(f"{_SELECT} WHERE token = '' AND log != '[]'").fetchall()
        for each in found:
            row = _row_of(each)
            frozen = sliding_log.live(row.log, now, row.window)
            if frozen and row.key:
                self._write(database, row._replace(log=[], pending=frozen, token=os.urandom(8).hex()), now)

    @staticmethod
    def _frozen(database: sqlite3.Connection) -> list[Row]:
        found = database.execute(f"{_SELECT} WHERE token != ''")
        return [_row_of(each) for each in found]

    def _telling(self, rows: Sequence[Row], forgotten: Mapping[str, int]) -> Talk:
        count = 0
        for row in rows:
            restarted = self._host.words[RESTARTED]
            known = self._host.known(row.spot)
            lost = (
                known is not None and known.restarted != restarted and known.heard > forgotten[row.name.label]
            )
            now = monotonic_ms()
            self._host.words[LEASE] = now + TURN
            # A window of the calendar begins on the server's clock: what is of today here is of today there.
            pending = sliding_log.live(row.pending, now, row.window)
            ages = [
                number
                for stamp, count in pending
                for number in (max(0, now - stamp) if row.grain else 0, count)
            ]
            told = row.key, f"{row.key}:+{row.token}"
            floor = (known.used, known.at) if known is not None and lost else (0, 0)
            try:
                at, total = yield from MERGE.talk(told, row.window, row.grain, *floor, *ages)
            except Exception as error:
                from redis_infra.connection.failures import classify  # imports redis-py: not with the package

                if classify(error) is not None:
                    raise
                # The key is ours, and what is in it no log: of another type, or damaged. It is made anew.
                logger.error("redis_infra.limit_not_told cause=%s", type(error).__name__, exc_info=error)
                yield pack("UNLINK", *told)
                floor = (known.used, known.at) if known is not None else (0, 0)
                at, total = yield from MERGE.talk(told, row.window, row.grain, *floor, *ages)
            self._host.note_total(row.spot, total, at, restarted)
            count += 1
        return count

    # The file

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + PATIENCE
        if not self._lock.acquire(timeout=PATIENCE):
            raise HostBusy("other threads keep the logs")
        try:
            if self._database is not None and not self._in_memory and identity_of(self._file) != self._opened:
                self._drop()  # it was removed, and others have begun another one
            database = self._database or self._open(deadline)
            _within(deadline, lambda: database.execute("BEGIN IMMEDIATE"))
            try:
                yield database
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a damaged file cannot even do that
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if not _is_busy(error):
                self._drop()  # opened anew next time: the file may have been removed or damaged
            raise
        finally:
            self._lock.release()

    def _open(self, deadline: float) -> sqlite3.Connection:
        path = ":memory:" if self._in_memory else self._path()
        database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            _within(deadline, lambda: database.executescript(_SCHEMA))
        except BaseException:
            database.close()
            raise
        self._database, self._file = database, path
        self._opened = None if self._in_memory else identity_of(path)
        return database

    def _path(self) -> str:
        if self._host.directory is None:
            raise OSError(self._host.problem)
        path = self._host.directory / _FILE
        path.touch(mode=0o600)
        return str(path)


def share_of(terms: Terms, hosts: int) -> Terms:
    """Return one host's part of a limit: rounded up, so that it is never nothing."""
    return terms._replace(limit=-(-terms.limit // hosts))


def with_known(log: Log, known: Known | None, terms: Terms, share: Terms, now: int, offset: int) -> Log:
    """Return what counts against an identity on this host: its log, and what Redis last knew."""
    if known is None:
        return log
    # As much of the share as leaves no more than the least that was known to remain.
    used = max(0, share.limit - max(0, terms.limit - known.used))
    seed = [[sliding_log.stamp_of(known.heard, terms, offset), used]] if used else []
    return sliding_log.live(sliding_log.merge(log, seed), now, terms.window)


def _within(deadline: float, step: Callable[[], Any]) -> None:
    """Do a step that needs the file for itself; in turns of less than a millisecond until the deadline."""
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
            if time.monotonic() > deadline:
                raise HostBusy("other processes keep the logs") from error
        # SQLite's own waiting grows to 100 ms a turn, after which a request is over.
        time.sleep(random.uniform(0.0001, 0.001))  # noqa: S311  # jitter, not a secret


def _forgotten_at(database: sqlite3.Connection, label: str) -> int:
    """Return when the logs of a limit were last forgotten together; 0 if never."""
    starts = database.execute("SELECT start, at FROM forgotten").fetchall()
    return max((at for start, at in starts if label.startswith(start)), default=0)


def _glob(text: str) -> str:
    """Return a pattern of SQLite's that matches exactly ``text``."""
    return re.sub(r"[*?\[]", r"[\g<0>]", text)


def is_damaged(error: Exception) -> bool:
    """Whether a file will never be read again, rather than cannot be written at the moment."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _row_of(found: Sequence[Any]) -> Row:
    label, identity, key, window, grain, log, pending, token, until = found
    return Row(Name(label, identity), key, window, grain, json.loads(log), json.loads(pending), token, until)


_inherited: list[object] = []
"""Connections that a fork brought along: closing them would end the parent's locks."""
