"""What the processes of a host know together: who asks Redis, and what Redis last said of each identity.

Two kinds of file in the state directory, mapped into memory, so that both cost some hundred nanoseconds a
decision and no system call:

* ``shared``: a few words for all. The first is the *era*: even while Redis decides, odd while the host does.
  Whoever finds Redis away makes it odd, and from then on nobody of the host asks Redis, or else two would
  give out one budget.
* ``seen-...``: a table for each process, in which it writes what remained after each request that Redis let
  through, *before* it looks at the era once more. So when a process makes the era odd and then reads the
  tables, each request that was let through is either in a table or its process sees the change, and has the
  host decide too. That is what makes the change of sides exact, and why half-written entries do no harm.
  What is in a table, and what becomes of a full one, :mod:`.host_tables` says.

A word that says what no process can have written counts for nothing (files can be damaged). A file that was
cut short is made whole by whoever looks first, once a second; who uses it before that is killed by the
kernel, as with any mapped file.

Knows nothing of Redis. Time is milliseconds of the monotonic clock, which the processes of a host share.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from redis_infra.keys import digest
from redis_infra.resilience.statedir import Process, StateDir
from redis_infra.throttling.host_tables import (
    TABLE_BYTES,
    Known,
    Note,
    Page,
    Pages,
    Spot,
    Table,
    Tag,
    look_up,
    most_of,
)

__all__ = [
    "CLOSING",
    "ERA",
    "FILE",
    "FORGOTTEN",
    "LEASE",
    "NEEDED",
    "RESTARTED",
    "RUN",
    "Host",
    "Known",
    "Note",
    "Said",
    "Spot",
    "Tag",
    "identity_of",
    "monotonic_ms",
    "wall_ms",
]

logger = logging.getLogger(__name__)

ERA, NEEDED, FORGOTTEN, RESTARTED, RUN, LEASE, CLOSING, FILE = range(8)
"""Words that are shared: see :class:`Host`."""

_SHARED_BYTES: Final = 4096
_WORD: Final = 0xFFFF_FFFF_FFFF_FFFF

HOLD: Final = 300
"""Milliseconds for which the host goes on deciding after somebody needed it to: no flapping within."""

TURN: Final = 2000
"""Milliseconds for which the others leave it to one process to give limits back, after each batch of logs."""

LAST_WORDS: Final = 100
"""Milliseconds that they wait for the end of that, at most: as long as a decision waits for Redis. Where
its answers take longer than this, somebody has always come meanwhile, and it would never end."""

_AT_MOST: Final = {NEEDED: HOLD, LEASE: TURN, CLOSING: LAST_WORDS}

TRY_AGAIN: Final = 5.0
"""Seconds after which a directory that was not usable is tried again: a full disk is emptied one day."""

LOOKS: Final = 10
"""How often the tables are listed, while heirs rename them."""


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def identity_of(path: Path | str) -> tuple[int, int] | None:
    """Return what tells a file from another one under the same name; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Host:
    """The eras of one database's limits on this host, and what its processes know.

    ``words`` is memory that all share: the era; until when the host is needed; how often logs were
    forgotten by hand; when Redis was found to be another run than before, and which run it is; until when
    somebody is giving the limits back, and until when the others wait for the end of that; which file the
    logs are in.

    Without a usable directory the process is its own host: everything works, for it alone, and ``problem``
    says why. Thread-safe; call :meth:`after_fork` in a forked child.
    """

    def __init__(self, state_dir: StateDir, about: str, prefix: str = "") -> None:
        self._state_dir = state_dir
        self._name = f"limits-{digest(about)}-{digest(prefix)}-{digest(_boot_id())}"
        self.problem = ""
        self._begin()

    def _begin(self) -> None:
        self._looking = threading.Lock()
        self._begin_alone()
        try:
            self._open()
        except OSError as error:
            self._failed(error)

    def _begin_alone(self) -> None:
        self._reset()
        self.words = memoryview(bytearray(_SHARED_BYTES)).cast("Q")
        self.table = Table(memoryview(bytearray(TABLE_BYTES)))

    def _reset(self) -> None:
        self._tables: dict[str, memoryview] = {}
        self._tables_of = -1
        self.directory: Path | None = None
        self._identity: tuple[int, int] | None = None

    def _failed(self, error: OSError) -> None:
        self.problem = self._state_dir.problem or f"{error}"
        self._try_at = time.monotonic() + TRY_AGAIN

    def _open(self, known: memoryview | None = None) -> None:
        with self._state_dir.entered(create=True):
            parent = Path(self._state_dir.where)
            boot = self._name.rpartition("-")[2]
            for old in parent.glob("limits-*"):
                if not old.name.endswith(f"-{boot}"):  # times of another run of the machine mean nothing
                    shutil.rmtree(old, ignore_errors=True)
            directory = parent / self._name
            directory.mkdir(mode=0o700, exist_ok=True)
        words = _mapped(directory / "shared", _SHARED_BYTES).cast("Q")
        own = self._claim(directory) if known is None else directory / _table_name(Process.this())
        table = _mapped(own, TABLE_BYTES)
        if known is not None:
            table[:] = known
        self._reset()
        self._identity = identity_of(directory / "shared")
        self.words, self.table, self.directory = words, Table(table), directory
        self.problem = ""

    def look(self, *, again: bool = False) -> None:
        """Begin anew if files were removed or cut short, or if there is a usable directory by now.

        A ``stat`` or two, for once a second; a directory that was not usable is tried less often, unless
        ``again``. What this process knows it takes along.
        """
        if self.directory is None:
            if not self._state_dir.where or (time.monotonic() < self._try_at and not again):
                return
        elif self._is_whole(self.directory):
            return
        if self._looking.acquire(blocking=False):
            try:
                self._begin_anew()
            finally:
                self._looking.release()

    def _begin_anew(self) -> None:
        words = self.words
        try:
            self._open(self.table.memory)
        except OSError as error:
            self._failed(error)
            if self.directory is not None:
                self._begin_alone()
            return
        if words[ERA] & 1:
            self.take_over()
        for word in (RUN, RESTARTED, FILE):
            self.words[word] = self.words[word] or words[word]

    def _is_whole(self, directory: Path) -> bool:
        try:
            shared, own = os.stat(directory / "shared"), os.stat(directory / _table_name(Process.this()))
        except OSError:
            return False
        is_same = (shared.st_dev, shared.st_ino) == self._identity
        return is_same and shared.st_size >= _SHARED_BYTES and own.st_size >= TABLE_BYTES

    @staticmethod
    def decides_since(state_dir: StateDir, about: str) -> float | None:
        """Return for how many seconds this host has decided about a database's limits; None if Redis does.

        Of one ``KEY_PREFIX`` at least. For who only looks: makes no file.
        """
        found = []
        with contextlib.suppress(OSError), state_dir.entered():
            for path in Path(state_dir.where).glob(f"limits-{digest(about)}-*-{digest(_boot_id())}/shared"):
                with contextlib.suppress(OSError), path.open("rb") as file:
                    found.append(int.from_bytes(file.read(8), sys.byteorder))
        return max((max(0, time.monotonic_ns() - era) / 1e9 for era in found if era & 1), default=None)

    def _claim(self, directory: Path) -> Path:
        """Return the path of our own table: one that a dead process left, if there is one."""
        own = directory / _table_name(Process.this())
        for name, process in [] if own.exists() else _tables_in(directory):
            if not process.alive:
                with contextlib.suppress(OSError):  # somebody else was faster
                    os.rename(directory / name, own)
                    break
        return own

    @property
    def shares(self) -> bool:
        """Whether other processes of the host see what this one writes."""
        return self.directory is not None

    def after_fork(self) -> None:
        """In a forked child: a table of its own; what it inherited is its parent's."""
        _inherited.append((self.words, self.table, self._tables))
        self._begin()

    # Eras

    @property
    def decides(self) -> bool:
        """Whether the host decides, rather than Redis."""
        return bool(self.words[ERA] & 1)

    @property
    def is_needed(self) -> bool:
        """Whether somebody found Redis away just now."""
        return self.left(NEEDED) > 0

    def left(self, word: int) -> int:
        """Return how many milliseconds are left until the time that a word names; none if that is past."""
        left, most = self.words[word] - monotonic_ms(), _AT_MOST[word]
        return max(left, 0) if left <= most + 1 else 0

    def keep(self, word: int, milliseconds: int) -> None:
        """Let a word name the time in so many milliseconds."""
        self.words[word] = monotonic_ms() + milliseconds

    def take_over(self, hold: int = HOLD) -> bool:
        """Let the host decide, for ``hold`` milliseconds at least; return whether that is new.

        Two who do it at once both succeed: an era is a time, and not a count.
        """
        self.keep(NEEDED, max(self.left(NEEDED), hold))
        if self.words[ERA] & 1:
            return False
        self.words[ERA] = time.monotonic_ns() | 1
        return True

    def hand_back(self) -> None:
        """Let Redis decide again; it knows everything by now."""
        self.words[ERA] = time.monotonic_ns() & ~1

    def has_forgotten(self) -> None:
        """Let every process of the host know that logs were forgotten by hand."""
        self.words[FORGOTTEN] = self.words[FORGOTTEN] + 1 & _WORD

    def met(self, run_id: str) -> None:
        """Take note of which run of the server answers: another one may have forgotten its logs."""
        run = int(digest(run_id), 16)
        before = self.words[RUN]
        if run_id and before != run:
            if before:
                self.words[RESTARTED] = monotonic_ms()
            self.words[RUN] = run

    # What is known

    def note_used(
        self, pages: Pages, tags: Sequence[Tag], used: Sequence[int], at: int, restarted: int
    ) -> None:
        """Write down how much Redis says to be used of each limit; before the era is looked at again."""
        now = monotonic_ms()
        for page in pages[tags.count(tags[0]) != len(tags)]:
            number, mine = tags[page.first].number ^ page.policy, used[page.first : page.first + page.size]
            self.table.note_used(number, page, mine, at, restarted, now)

    def note_said(self, said: Said, restarted: int) -> None:
        """:meth:`note_used` for logs that were asked for one by one."""
        now = monotonic_ms()
        for number, page, logs in said:
            used, told_after = [], restarted
            for spot in page.spots(number):
                known: Said.Log | Known | None = logs.get(spot.salt)
                if known is None and (known := self.known(spot)):
                    # A server that may have forgotten one log of a page is reminded of all of them.
                    told_after = min(told_after, known.restarted)
                used.append(min(known.used, _WORD >> 32) if known else 0)
            # The earliest: whoever was told of all of them after that knows better.
            at = min(each.at for each in logs.values())
            self.table.note_used(number, page, used, at, told_after, now)

    def known(self, spot: Spot) -> Known | None:
        """Return what any process of the host, living or dead, last knew; None if nothing counts."""
        now, best, rest = monotonic_ms(), None, []
        for table in self._all_tables():
            known, others = look_up(table, spot, now)
            if known is not None and (best is None or known.rank > best.rank):
                best = known
            if others is not None:
                rest.append(others)
        found = most_of([best, *rest]) if rest else best
        if rest and best is not None and found is not None:
            # Whoever was seated after a restart has been asked about, and told of, since.
            found = found._replace(restarted=best.restarted)
        return found if found and found.used else None

    def _all_tables(self) -> Iterator[memoryview]:
        """Yield every table; looks for new ones once an era: what counts has been written by then."""
        era = self.words[ERA] ^ self.words[RESTARTED]
        if self._tables_of != era and self.directory is not None:
            with contextlib.suppress(OSError):  # removed, or no descriptor left: those that are known do
                self._tables, self._tables_of = self._look_for_tables(self.directory), era
        yield self.table.memory
        yield from list(self._tables.values())

    def _look_for_tables(self, directory: Path) -> dict[str, memoryview]:
        own = _table_name(Process.this())
        found: dict[str, memoryview] = {}
        for _ in range(LOOKS):
            names = [name for name, _ in _tables_in(directory) if name != own]
            try:
                return {name: self._mapped_table(directory, name) for name in names}
            except FileNotFoundError:
                continue  # renamed by its heir between two lines: look for it under its new name
            except OSError:
                logger.debug("redis_infra.table_unreadable", exc_info=True)
                for name in names:
                    with contextlib.suppress(OSError):
                        found[name] = self._mapped_table(directory, name)
                return found
        return found

    def _mapped_table(self, directory: Path, name: str) -> memoryview:
        """Return a table of another process; not one that was cut short, which cannot be read."""
        known = self._tables.get(name)
        if known is not None and os.stat(directory / name).st_size >= TABLE_BYTES:
            return known
        return _mapped(directory / name, TABLE_BYTES, create=False)

    def unlearn(self, pages: Pages, tags: Sequence[Tag]) -> None:
        """Know that nothing is used, although Redis did not say so: logs were forgotten by hand."""
        for page in pages[tags.count(tags[0]) != len(tags)]:
            number = tags[page.first].number ^ page.policy
            known = [each for spot in page.spots(number) if (each := self.known(spot)) is not None]
            if known:
                last = max(known, key=attrgetter("rank"))
                nothing, now = [0] * page.size, monotonic_ms()
                self.table.note_used(number, page, nothing, last.at + 1, last.restarted, now)


class Said:
    """What Redis said of single logs, brought together as tables have it: by the page."""

    class Log(NamedTuple):
        used: int
        at: int

    def __init__(self) -> None:
        self._pages: dict[tuple[int, Page], dict[int, Said.Log]] = {}

    def add(self, spot: Spot, page: Page, used: int, at: int) -> None:
        self._pages.setdefault((spot.number, page), {})[spot.salt] = Said.Log(used, at)

    def __iter__(self) -> Iterator[tuple[int, Page, dict[int, Said.Log]]]:
        for (number, page), logs in self._pages.items():
            yield number, page, logs


_inherited: list[object] = []
"""Maps that a fork brought along: let go of nothing, the parent uses them."""


def _boot_id() -> str:
    """Return what tells this run of the machine from others: monotonic time begins anew with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{(time.time() - time.monotonic()) // 600:.0f}"


def _table_name(process: Process) -> str:
    return f"seen-{process.pid}-{process.start}"


def _tables_in(directory: Path) -> list[tuple[str, Process]]:
    found = []
    for name in sorted(os.listdir(directory)):
        kind, _, rest = name.partition("-")
        pid, _, start = rest.partition("-")
        if kind == "seen" and pid.isdecimal() and start:
            found.append((name, Process(int(pid), start)))
    return found


def _mapped(path: Path, size: int, *, create: bool = True) -> memoryview:
    """Return a file in memory. Its room is reserved first: a full disk is an error, not a SIGBUS."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
    try:
        if os.fstat(descriptor).st_size < size:
            if not create:
                raise OSError(f"{path} is not a whole table")
            _reserve(descriptor, size)
        return memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.pwrite(descriptor, bytes(size), 0)
