"""Logs that the processes of a host keep together while Redis is away: SQLite in the state directory.

Exact among all of them, and across a ``kill -9``: one transaction a decision, in which the era is looked at
again. Nothing is synced, so the machine's own death forgets them. Each host of ``HOSTS`` gives out its share
of a limit, and counts what Redis was last known to have let through.

What was let through without Redis waits here until it is in Redis' logs: see :meth:`HostStore.handing_back`.
Room is bounded. Newcomers beyond it share logs, whose budgets bound how many of them are let through; who is
gets a log of his own then, so that Redis is told of him too.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis_infra.connection.scripts import Talk
from redis_infra.keys import digest
from redis_infra.throttling import sliding_log
from redis_infra.throttling.host import CLOSING, ERA, LAST_WORDS, Host, Known, monotonic_ms, wall_ms
from redis_infra.throttling.host_file import HostFile
from redis_infra.throttling.host_rows import COLUMNS, Row, new_row, row_of, values_of
from redis_infra.throttling.local import SHARED_LOGS, Name, decide
from redis_infra.throttling.plans import Entry
from redis_infra.throttling.sliding_log import Log, Terms
from redis_infra.throttling.telling import BATCH, tell

__all__ = ["HostStore", "share_of", "with_known"]

MOST_ROWS: Final = 250_000
"""Identities with a log of their own, some 50 MB; beyond them newcomers share."""
GUESTS: Final = 20_000
"""What newcomers beyond that are let through in a window of a limit, all together; or the limit itself."""
FEW: Final = 100
"""Logs that are handed back with everybody waiting who can."""
COUNT_EVERY: Final = 4096
ENOUGH: Final = 2
"""Passes over logs that cannot be frozen, while others decide; after them who can waits."""

_SELECT: Final = f"SELECT {COLUMNS} FROM logs"  # noqa: S608  # no value is in it, here and below
_PLACES: Final = re.sub(r"\w+", "?", COLUMNS)
_WRITE: Final = f"INSERT OR REPLACE INTO logs ({COLUMNS}) VALUES ({_PLACES})"  # noqa: S608
_OF_ONE: Final = "WHERE label = ? AND identity = ?"
_SWEEP: Final = """
DELETE FROM logs WHERE (identity, label) IN (SELECT identity, label FROM logs WHERE until <= ? LIMIT 2000)
"""
# By identity, which is the order of the table, and not by the index of ends: hence the plus.
_NEXT: Final = "key != '' AND +until > ? AND (identity, label) > (?, ?)"
_NEW: Final = "key != '' AND +until > ? AND token = '' AND log != '[]'"
_FREEZE: Final = f"UPDATE logs SET pending = log, log = '[]', token = ? {_OF_ONE}"  # noqa: S608
_NOTHING_NEW: Final = f"DELETE FROM logs {_OF_ONE} AND token = ? AND log = '[]'"  # noqa: S608
_TOLD: Final = "UPDATE logs SET pending = '[]', token = '' WHERE label = ? AND identity = ? AND token = ?"


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
        self._most = most
        self.file = HostFile(host, in_memory=in_memory)
        self._forget_count()

    def _forget_count(self) -> None:
        self._rows = 0
        self._until_count = 0

    def after_fork(self) -> None:
        """In a forked child: a connection of its own."""
        self.file.after_fork()
        self._forget_count()

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
        with self.file.transaction() as database:
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
                        self._write(database, new_row(entry)._replace(log=[[stamp, cost]]), now)
            return reply

    def refund(self, entries: Sequence[Entry], cost: int, charged: int) -> bool:
        """Take back what was charged at ``charged``; return False if Redis is told of it already."""
        with self.file.transaction() as database:
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
        with self.file.reading() as database:
            now = monotonic_ms()
            found = [self._find(database, entry.name) for entry in entries]
            return [row.live(now) if row else [] for row in found]

    def forget(self, names: Iterable[Name]) -> int:
        """Drop these logs; return how many there were."""
        with self.file.transaction() as database:
            return sum(
                database.execute(f"DELETE FROM logs {_OF_ONE}", name).rowcount  # noqa: S608
                for name in names
            )

    def forget_where(self, label_start: str) -> int:
        """Drop the logs of limits whose label begins so, and what was known; return how many logs."""
        with self.file.transaction() as database:
            database.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (label_start, monotonic_ms()))
            pattern = f"{_glob(label_start)}*"
            return database.execute("DELETE FROM logs WHERE label GLOB ?", (pattern,)).rowcount

    def still_known(self, entries: Sequence[Entry]) -> list[Known | None]:
        """Return what the host's processes know of each log, but for what was forgotten since."""
        with self.file.transaction() as database:
            return [self._known(database, entry) for entry in entries]

    def _known(self, database: sqlite3.Connection, entry: Entry) -> Known | None:
        known = self._host.known(entry.spot)
        if known is None:
            return None
        return known if known.heard > _forgotten_at(database, entry.name.label) else None

    @property
    def holds_any(self) -> bool:
        """Whether anything was let through that Redis may not know."""
        if not self.file.exists:
            return False
        with self.file.reading() as database:
            return bool(database.execute("SELECT EXISTS (SELECT 1 FROM logs)").fetchone()[0])

    def rows(self) -> list[Row]:
        """Every log that counts now."""
        with self.file.transaction() as database:
            found = database.execute(f"{_SELECT} WHERE until > ?", (monotonic_ms(),))
            return [row_of(each) for each in found]

    def _row(self, database: sqlite3.Connection, entry: Entry) -> Row:
        """Return an identity's log as it stands, or the one to begin: of his own while there is room."""
        found = self._find(database, entry.name)
        if found is None and self._is_full(database):
            entry = entry._replace(name=_shared(entry), key="")
            found = self._find(database, entry.name)
        return found or new_row(entry)

    @staticmethod
    def _find(database: sqlite3.Connection, name: Name) -> Row | None:
        found = database.execute(f"{_SELECT} {_OF_ONE}", name).fetchone()
        return row_of(found) if found else None

    def _write(self, database: sqlite3.Connection, row: Row, now: int) -> None:
        log = sliding_log.live(row.log, now, row.window)
        if not log and not row.pending:
            database.execute(f"DELETE FROM logs {_OF_ONE}", row.name)  # noqa: S608
            return
        database.execute(_WRITE, values_of(row, log))

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
                with self.file.transaction() as database:
                    self._forget_told(database, rows)
                    rows = self._freeze(database)
                    if not rows:
                        # Shared ones: of who was let through Redis knows.
                        database.execute("DELETE FROM logs")
                        if last and not self._host.is_needed:
                            self._host.hand_back()
                        return told
                    forgotten = self._forgotten(database, rows)
                if len(rows) <= FEW:
                    self._host.keep(CLOSING, LAST_WORDS)
                yield from tell(self._host, rows, forgotten)
                told += len(rows)
        finally:
            self._host.words[CLOSING] = 0

    def handing_back_as_it_is(self) -> Talk:
        """:meth:`handing_back` with the last, where nothing can be written: the disk is full, say.

        What is told has a token made from the log itself, and the end is another file, which the processes
        are told of in memory. Should this fail half-way, and the disk have room again afterwards, what was
        told may be told again, and somebody is denied too early.
        """
        told, passes, done = 0, 0, False
        try:
            while not done:
                version, passes = self.file.version(), passes + 1
                told += yield from self._telling_as_it_is(alone=passes > ENOUGH)
                with self.file.transaction():
                    if self._host.is_needed:
                        return told
                    # Unless somebody found room to write, meanwhile, in what the file has already.
                    if done := self.file.version() == version:
                        self.file.begin_another()
                        self._host.hand_back()
        finally:
            self._host.words[CLOSING] = 0
        self.file.remove_others()
        return told

    def _telling_as_it_is(self, *, alone: bool) -> Talk:
        """Tell all that there is, everybody waiting who can if ``alone``; return how many logs that were."""
        told, last = 0, Name("", "")
        while True:
            if alone:
                self._host.keep(CLOSING, LAST_WORDS)
            with self.file.reading() as database:
                rows = _in_order(database, _NEXT, (monotonic_ms(), last.identity, last.label), BATCH)
                parts = [part for row in rows for part in _as_it_is(row, self._host.words[ERA])]
                forgotten = self._forgotten(database, parts)
            if not rows:
                return told
            yield from tell(self._host, parts, forgotten)
            told, last = told + len(rows), rows[-1].name

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
        frozen = [row_of(each) for each in found]
        token, rows = os.urandom(8).hex(), _in_order(database, _NEW, (now,), BATCH - len(frozen))
        database.executemany(_FREEZE, [(token, *row.name) for row in rows])
        return frozen + [row._replace(pending=row.log, log=[], token=token) for row in rows]

    @staticmethod
    def _forgotten(database: sqlite3.Connection, rows: Sequence[Row]) -> dict[str, int]:
        """Return when the logs of each label were last forgotten together."""
        return {label: _forgotten_at(database, label) for label in {row.name.label for row in rows}}


def _in_order(database: sqlite3.Connection, where: str, values: tuple[Any, ...], most: int) -> list[Row]:
    """Return rows by identity; some more than ``most``, so that the limits of the last one are together."""
    query = f"{_SELECT} WHERE {where}"
    found = database.execute(f"{query} ORDER BY identity, label LIMIT ?", (*values, most)).fetchall()
    rows = [row_of(each) for each in found]
    if len(rows) < most or not rows:
        return rows
    label, identity = rows[-1].name
    rest = database.execute(f"{query} AND identity = ? AND label > ?", (*values, identity, label))
    return rows + [row_of(each) for each in rest]


def _as_it_is(row: Row, era: int) -> list[Row]:
    """Return what Redis is to be told of a row that cannot be frozen: what is on its way, and what is new."""
    parts = [row] if row.pending else []
    if row.log:
        # Of this era: a calendar's log looks the same in each outage of a day.
        token = digest(f"{era} {row.name} {row.log}")
        parts.append(row._replace(pending=row.log, log=[], token=token))
    return parts


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


def _forgotten_at(database: sqlite3.Connection, label: str) -> int:
    """Return when the logs of a limit were last forgotten together; 0 if never."""
    starts = database.execute("SELECT start, at FROM forgotten").fetchall()
    return max((at for start, at in starts if label.startswith(start)), default=0)


def _glob(text: str) -> str:
    """Return a pattern of SQLite's that matches exactly ``text``."""
    return re.sub(r"[*?\[]", r"[\g<0>]", text)
