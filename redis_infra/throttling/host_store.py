"""Logs that the processes of a host keep together while Redis is away: SQLite in the state directory.

Exact among all of them, and across a ``kill -9``: one transaction a decision, in which the era is looked at
again. Nothing is synced, so the machine's own death forgets them. Each host of ``HOSTS`` gives out its share
of a limit, and counts what Redis was last known to have let through.

What was let through without Redis waits here until it is in Redis' logs: see :meth:`HostStore.handing_back`.
Room is bounded. Newcomers beyond it share logs, whose budgets bound how many of them are let through; who is
gets a log of his own then, so that Redis is told of him too.
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
from typing import Any, Final, NamedTuple, TypeAlias

from redis_infra.connection.scripts import Talk, is_unknown_script
from redis_infra.connection.wire import pack
from redis_infra.throttling import sliding_log
from redis_infra.throttling.host import (
    CLOSING,
    LAST_WORDS,
    LEASE,
    RESTARTED,
    TURN,
    Host,
    Known,
    Spot,
    identity_of,
    monotonic_ms,
    wall_ms,
)
from redis_infra.throttling.local import SHARED_LOGS, Name, decide
from redis_infra.throttling.plans import MERGE, Entry, note_of, tag_from
from redis_infra.throttling.sliding_log import Log, Terms

__all__ = ["HostBusy", "HostStore", "Row", "is_damaged", "share_of", "with_known"]

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.1
"""Seconds that a decision waits for its turn; a transaction takes a tenth of a millisecond."""
MOST_ROWS: Final = 250_000
"""Identities with a log of their own, some 50 MB; beyond them newcomers share."""
GUESTS: Final = 20_000
"""What newcomers beyond that are let through in a window of a limit, all together; or the limit itself."""
BATCH: Final = 128
"""Logs that are told in one round trip, and frozen in one transaction: a millisecond or two, each of them."""
FEW: Final = 100
"""Logs that are handed back with everybody waiting who can."""
COUNT_EVERY: Final = 4096

_FILE: Final = "logs.sqlite3"

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS logs (
    label TEXT NOT NULL, identity TEXT NOT NULL, key TEXT NOT NULL,
    most INTEGER NOT NULL, window INTEGER NOT NULL, grain INTEGER NOT NULL,
    log TEXT NOT NULL, pending TEXT NOT NULL, token TEXT NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (label, identity)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ends ON logs (until);
CREATE INDEX IF NOT EXISTS frozen ON logs (token) WHERE token != '';
CREATE TABLE IF NOT EXISTS forgotten (start TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
"""
_COLUMNS: Final = "label, identity, key, most, window, grain, log, pending, token, until"
_SELECT: Final = f"SELECT {_COLUMNS} FROM logs"  # noqa: S608  # no value is in it, here and below
_WRITE: Final = f"INSERT OR REPLACE INTO logs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_OF_ONE: Final = "WHERE label = ? AND identity = ?"
_SWEEP: Final = """
DELETE FROM logs WHERE (label, identity) IN (SELECT label, identity FROM logs WHERE until <= ? LIMIT 2000)
"""
_FREEZE: Final = f"UPDATE logs SET pending = log, log = '[]', token = ? {_OF_ONE}"  # noqa: S608
_NOTHING_NEW: Final = f"DELETE FROM logs {_OF_ONE} AND token = ? AND log = '[]'"  # noqa: S608
_TOLD: Final = "UPDATE logs SET pending = '[]', token = '' WHERE label = ? AND identity = ? AND token = ?"


class HostBusy(Exception):
    """Others kept the logs for longer than a request may wait."""


class Row(NamedTuple):
    """One identity's log: what was let through, and what of it is on its way to Redis under ``token``."""

    name: Name
    key: str
    limit: int
    window: int
    grain: int
    log: Log
    pending: Log
    token: str
    until: int

    @property
    def spot(self) -> Spot:
        """Where it stands in the tables of the host; not of a shared log."""
        return Spot.of(tag_from(self.name.identity), note_of(self.name.label, self.window, self.limit))

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

    def hit(
        self,
        entries: Sequence[Entry],
        cost: int,
        *,
        needed: bool,
        beside: Sequence[Log] = (),
        hosts: int | None = None,
    ) -> list[int] | None:
        """Charge ``cost`` to all logs or to none, and return the script's reply.

        ``beside`` is what counts too and stands elsewhere. None where Redis decides again by now; unless the
        host is ``needed`` to, which begins an era.
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
            terms = [share_of(entry.terms, hosts or self._hosts) for entry in entries]
            logs = [
                with_known(row.live(now), self._known(database, entry), entry.terms, each, now, offset)
                for row, entry, each in zip(rows, entries, terms, strict=True)
            ]
            for at, (more, each) in enumerate(zip(beside, terms, strict=False)):
                logs[at] = sliding_log.live(sliding_log.merge(logs[at], more), now, each.window)
            reply, charged = decide(logs, terms, now, cost, offset)
            if charged:
                for row, entry, each in zip(rows, entries, terms, strict=True):
                    stamp = sliding_log.stamp_of(now, each, offset)
                    sliding_log.charge(row.log, stamp, cost)
                    self._write(database, row, now)
                    if row.name != entry.name:
                        self._write(database, _new_row(entry)._replace(log=[[stamp, cost]]), now)
            return reply

    def refund(self, entries: Sequence[Entry], cost: int, charged: int) -> bool:
        """Take back what was charged at ``charged``; return False if Redis is told of it already."""
        with self._transaction() as database:
            now = monotonic_ms()
            rows = [self._row(database, entry) for entry in entries]
            stamps = [sliding_log.stamp_of(charged, entry.terms, wall_ms() - now) for entry in entries]
            if charged and not all(
                # The stamps of a calendar may differ by the millisecond that two clocks are read apart.
                row.log if not row.grain else any(at == stamp for at, _ in row.log)
                for row, stamp in zip(rows, stamps, strict=True)
            ):
                return False
            for row, stamp in zip(rows, stamps, strict=True):
                sliding_log.refund(row.log, stamp, cost)
                self._write(database, row, now)
            return True

    def logs(self, entries: Sequence[Entry]) -> list[Log]:
        """Return what was let through of each, for who decides elsewhere. Writes nothing."""
        with self._connected(time.monotonic() + PATIENCE) as database:
            now = monotonic_ms()
            found = [self._find(database, entry.name) for entry in entries]
            return [row.live(now) if row else [] for row in found]

    def forget(self, names: Iterable[Name]) -> int:
        """Drop these logs; return how many there were."""
        with self._transaction() as database:
            return sum(
                database.execute(f"DELETE FROM logs {_OF_ONE}", name).rowcount  # noqa: S608
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
        found = self._find(database, entry.name)
        if found is None and self._is_full(database):
            entry = entry._replace(name=_shared(entry), key="")
            found = self._find(database, entry.name)
        return found or _new_row(entry)

    @staticmethod
    def _find(database: sqlite3.Connection, name: Name) -> Row | None:
        found = database.execute(f"{_SELECT} {_OF_ONE}", name).fetchone()
        return _row_of(found) if found else None

    def _write(self, database: sqlite3.Connection, row: Row, now: int) -> None:
        log = sliding_log.live(row.log, now, row.window)
        if not log and not row.pending:
            database.execute(f"DELETE FROM logs {_OF_ONE}", row.name)  # noqa: S608
            return
        until = max(entry[0] for entry in (*log, *row.pending)) + row.window
        texts = json.dumps(log), json.dumps(row.pending) if row.pending else "[]"
        terms = row.limit, row.window, row.grain
        database.execute(_WRITE, (*row.name, row.key, *terms, *texts, row.token, until))

    def _is_full(self, database: sqlite3.Connection) -> bool:
        self._until_count -= 1
        if self._until_count <= 0:
            self._until_count = COUNT_EVERY
            database.execute(_SWEEP, (monotonic_ms(),))
            self._rows = database.execute("SELECT COUNT(*) FROM logs").fetchone()[0]
        self._rows += 1
        return self._rows > self._most

    # The way back

    def handing_back(self, *, last: bool) -> Talk:
        """Tell Redis what was let through without it; returns how many logs that were.

        With the ``last`` of the host's stores Redis decides again, from the moment when it knows everything.
        A conversation without I/O, for whoever has a connection. Each log is frozen under a token, on disk,
        before it is sent, so that it is added once, whoever fails or dies in between. Most are sent while
        requests go on being decided here, in batches between which these get their turn; for the last few,
        those who do not need the host wait.
        """
        told, rows = 0, list[Row]()
        try:
            while True:
                with self._transaction() as database:
                    self._forget_told(database, rows)
                    rows = self._freeze(database)
                    if not rows:
                        database.execute(
                            "DELETE FROM logs"
                        )  # shared ones: of who was let through Redis knows
                        if last and not self._host.is_needed:
                            self._host.hand_back()
                        return told
                    labels = {row.name.label for row in rows}
                    forgotten = {label: _forgotten_at(database, label) for label in labels}
                if len(rows) <= FEW:
                    self._host.keep(CLOSING, LAST_WORDS)
                yield from self._telling(rows, forgotten)
                told += len(rows)
        finally:
            self._host.words[CLOSING] = 0

    def _let_close(self) -> None:
        """Wait while the era is being ended: Redis will decide in a moment."""
        while self._host.left(CLOSING) > 0:
            time.sleep(0.0005)

    @staticmethod
    def _forget_told(database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Drop what Redis knows by now; what came since then is new."""
        names = [(*row.name, row.token) for row in rows]
        if names and database.executemany(_NOTHING_NEW, names).rowcount < len(names):
            database.executemany(_TOLD, names)

    @staticmethod
    def _freeze(database: sqlite3.Connection) -> list[Row]:
        """Put some of what is new under a token, and return it; first what has one: it may be on its way."""
        now = monotonic_ms()
        database.execute(_SWEEP, (now,))
        found = database.execute(f"{_SELECT} WHERE token != '' LIMIT ?", (BATCH,)).fetchall()
        frozen = [_row_of(each) for each in found]
        # In the order of the table, of which what was told is gone: not by the index of ends, hence the plus.
        new = "WHERE token = '' AND log != '[]' AND key != '' AND +until > ? LIMIT ?"
        found = database.execute(f"{_SELECT} {new}", (now, BATCH - len(frozen))).fetchall()
        token, rows = os.urandom(8).hex(), [_row_of(each) for each in found]
        database.executemany(_FREEZE, [(token, *row.name) for row in rows])
        return frozen + [row._replace(pending=row.log, log=[], token=token) for row in rows]

    def _telling(self, rows: Sequence[Row], forgotten: Mapping[str, int]) -> Talk:
        """Send a batch in one round trip; one by one if one is refused: none is added twice."""
        self._host.keep(LEASE, TURN)
        restarted = self._host.words[RESTARTED]
        commands = [self._command(row, restarted, forgotten) for row in rows]
        try:
            replies = yield from _at_once(commands)
        except Exception as error:
            if _is_outage(error):
                raise
            replies = []
            for row, command in zip(rows, commands, strict=True):
                replies.append((yield from self._telling_one(row, command)))
        for row, (at, total) in zip(rows, replies, strict=True):
            self._host.note_total(row.spot, total, at, restarted)

    def _command(self, row: Row, restarted: int, forgotten: Mapping[str, int]) -> _Command:
        """Return keys and arguments of ``merge.lua``."""
        known = self._host.known(row.spot) if restarted else None
        is_lost = known is not None and known.restarted != restarted
        if known is None or not is_lost or known.heard <= forgotten[row.name.label]:
            return _merging(row, 0, 0)
        return _merging(row, known.used, known.at)

    def _telling_one(self, row: Row, command: _Command) -> Talk:
        self._host.keep(LEASE, TURN)
        keys, arguments = command
        try:
            return (yield from MERGE.talk(keys, *arguments))
        except Exception as error:
            if _is_outage(error):
                raise
            # The key is ours, and what is in it no log: of another type, or damaged. It is made anew.
            logger.error("redis_infra.limit_not_told cause=%s", type(error).__name__, exc_info=error)
            yield pack("UNLINK", *keys)
            known = self._host.known(row.spot)
            keys, arguments = _merging(row, known.used, known.at) if known is not None else command
            return (yield from MERGE.talk(keys, *arguments))

    # The file

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + PATIENCE
        with self._connected(deadline) as database:
            _within(deadline, lambda: database.execute("BEGIN IMMEDIATE"))
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a damaged file cannot even do that
                    database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _connected(self, deadline: float) -> Iterator[sqlite3.Connection]:
        if not self._lock.acquire(timeout=PATIENCE):
            raise HostBusy("other threads keep the logs")
        try:
            if self._database is not None and not self._in_memory and identity_of(self._file) != self._opened:
                self._drop()  # it was removed, and others have begun another one
            yield self._database or self._open(deadline)
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


_Command: TypeAlias = tuple[tuple[str, str], list[int]]


def _merging(row: Row, known: int, known_at: int) -> _Command:
    """Return keys and arguments of ``merge.lua`` for what of a log is on its way."""
    now = monotonic_ms()
    arguments = [row.window, row.grain, known, known_at]
    for stamp, count in sliding_log.live(row.pending, now, row.window):
        # A window of the calendar begins on the server's clock: what is of today here is of today there.
        arguments += max(0, now - stamp) if row.grain else 0, count
    return (row.key, f"{row.key}:+{row.token}"), arguments


def _at_once(commands: Sequence[_Command]) -> Talk:
    """Run ``merge.lua`` for each in one round trip; in three if the server has not met it yet."""
    packed = b"".join(MERGE.packed(keys, tuple(arguments)) for keys, arguments in commands)
    try:
        return (yield packed, len(commands))
    except Exception as error:
        if not is_unknown_script(error):
            raise
        # Whatever of it was executed is not added again.
        keys, arguments = commands[0]
        yield MERGE.whole(keys, tuple(arguments))
        return (yield packed, len(commands))


def _is_outage(error: Exception) -> bool:
    """Whether it says something about the server, rather than about one key."""
    from redis_infra.connection.failures import classify  # imports redis-py: not with the package

    return classify(error) is not None


def _new_row(entry: Entry) -> Row:
    return Row(entry.name, entry.key, *entry.terms, [], [], "", 0)


def _shared(entry: Entry) -> Name:
    """Return the log that stands in for one when there is no more room: of few where a limit is high."""
    places = min(SHARED_LOGS, max(1, GUESTS // max(1, entry.terms.limit)))
    return Name(entry.name.label, f"shared:{int(entry.name.identity, 16) % places}")


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
    label, identity, key, limit, window, grain, log, pending, token, until = found
    # Most of the time nothing is on its way.
    on_its_way = [] if pending == "[]" else json.loads(pending)
    return Row(Name(label, identity), key, limit, window, grain, json.loads(log), on_its_way, token, until)


_inherited: list[object] = []
"""Connections that a fork brought along: closing them would end the parent's locks."""
