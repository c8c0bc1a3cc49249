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

Tables are as large as they will ever be. Two identities in one place share the less that remains: who
floods it with made-up ones is believed to have used what he did.

Knows nothing of Redis. Time is milliseconds of the monotonic clock, which the processes of a host share.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from redis_infra.keys import digest
from redis_infra.resilience.statedir import Process, StateDir

__all__ = [
    "CLOSING",
    "ERA",
    "FORGOTTEN",
    "LEASE",
    "NEEDED",
    "RESTARTED",
    "RUN",
    "Host",
    "Known",
    "Note",
    "Spot",
    "Tag",
    "identity_of",
    "monotonic_ms",
    "wall_ms",
]

logger = logging.getLogger(__name__)

ERA, NEEDED, FORGOTTEN, RESTARTED, RUN, LEASE, CLOSING = range(7)
"""Words that are shared: see :class:`Host`."""

SLOTS: Final = 16_384
SLOT: Final = 32
"""Bytes of a slot: check and what is used; when Redis said so (its clock); until when it counts (ours); after
which restart of the server it was asked."""
_MASK: Final = SLOTS - 1
_SHIFT: Final = 5
_pack, _read = struct.Struct("@IIQQQ").pack, struct.Struct("@IIQQQ").unpack_from
_SHARED_BYTES: Final = 4096
_TABLE_BYTES: Final = SLOTS * SLOT
_ANYBODY: Final = 0
"""Check of a slot that two live identities share."""

HOLD: Final = 300
"""Milliseconds for which the host goes on deciding after somebody needed it to: no flapping within."""

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


class Tag(NamedTuple):
    """An identity, as keys and tables have it."""

    text: bytes
    """32 hexadecimal digits: a keyed digest, from which nobody reads an address or a name."""
    place: int
    check: int
    """Where it stands in tables, and what tells it from others there; 32 bits of the digest each."""


class Note(NamedTuple):
    """A limit, as tables have it."""

    place: int
    check: int
    """What makes identities stand elsewhere for another limit, and look different there."""
    window: int
    limit: int


class Spot(NamedTuple):
    """Where one identity stands for one limit."""

    place: int
    check: int
    window: int

    @classmethod
    def of(cls, tag: Tag, note: Note) -> Spot:
        return cls((tag.place ^ note.place) & _MASK, tag.check ^ note.check, note.window)


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis last said of one identity and limit."""

    used: int
    at: int
    """When it said so, by its own clock."""
    heard: int
    until: int
    """When all of that is forgotten."""
    restarted: int
    """The restart that was known of when it was asked: the server of another one may not remember it."""


class Host:
    """The eras of one database's limits on this host, and what its processes know.

    ``words`` is memory that all share: the era; until when the host is needed; how often logs were
    forgotten by hand; when Redis was found to be another run than before, and which run it is; until when
    somebody is giving the limits back, and until when the others wait for the end of that.

    Without a usable directory the process is its own host: everything works, for it alone, and ``problem``
    says why. Thread-safe; call :meth:`after_fork` in a forked child.
    """

    def __init__(self, state_dir: StateDir, about: str) -> None:
        self._state_dir = state_dir
        self._about = digest(about)
        self.problem = ""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[str, memoryview] = {}
        self._tables_of = -1
        self.directory: Path | None = None
        self._identity: tuple[int, int] | None = None
        self.words = memoryview(bytearray(_SHARED_BYTES)).cast("Q")
        self._table = memoryview(bytearray(_TABLE_BYTES))
        try:
            self._open()
        except OSError as error:
            self.problem = self._state_dir.problem or f"{error}"

    def _open(self) -> None:
        boot = digest(_boot_id())
        with self._state_dir.entered(create=True):
            parent = Path(self._state_dir.where)
            for old in parent.glob("limits-*"):
                if not old.name.endswith(f"-{boot}"):  # times of another run of the machine mean nothing
                    shutil.rmtree(old, ignore_errors=True)
            directory = parent / f"limits-{self._about}-{boot}"
            directory.mkdir(mode=0o700, exist_ok=True)
        self.words = _mapped(directory / "shared", _SHARED_BYTES).cast("Q")
        self._table = _mapped(self._claim(directory), _TABLE_BYTES)
        self._identity = identity_of(directory / "shared")
        self.directory = directory
        self.problem = ""

    def look(self) -> None:
        """Begin anew if the directory was removed, as cleaners of temporary files do; one ``stat``."""
        if self.directory is not None and identity_of(self.directory / "shared") != self._identity:
            self._begin()

    @staticmethod
    def decides_since(state_dir: StateDir, about: str) -> float | None:
        """Return for how many seconds this host has decided about a database's limits; None if Redis does.

        For who only looks: makes no file.
        """
        path = Path(state_dir.where, f"limits-{digest(about)}-{digest(_boot_id())}", "shared")
        try:
            with state_dir.entered(), path.open("rb") as file:
                era = int.from_bytes(file.read(8), sys.byteorder)
        except OSError:
            return None
        return max(0, time.monotonic_ns() - era) / 1e9 if era & 1 else None

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
        _inherited.append((self.words, self._table, self._tables))
        self._begin()

    # Eras

    @property
    def decides(self) -> bool:
        """Whether the host decides, rather than Redis."""
        return bool(self.words[ERA] & 1)

    @property
    def is_needed(self) -> bool:
        """Whether somebody found Redis away just now."""
        return self.words[NEEDED] > monotonic_ms()

    def take_over(self, hold: int = HOLD) -> bool:
        """Let the host decide, for ``hold`` milliseconds at least; return whether that is new.

        Two who do it at once both succeed: an era is a time, and not a count.
        """
        now = monotonic_ms()
        self.words[NEEDED] = max(self.words[NEEDED], now + hold)
        if self.words[ERA] & 1:
            return False
        self.words[ERA] = time.monotonic_ns() | 1
        return True

    def hand_back(self) -> None:
        """Let Redis decide again; it knows everything by now."""
        self.words[ERA] = time.monotonic_ns() & ~1

    def met(self, run_id: str) -> None:
        """Take note of which run of the server answers: another one may have forgotten its logs."""
        run = int(digest(run_id), 16)
        before = self.words[RUN]
        if run_id and before != run:
            if before:
                self.words[RESTARTED] = monotonic_ms()
            self.words[RUN] = run

    # What is known

    def note(
        self, notes: Sequence[Note], tags: Sequence[Tag], remaining: Sequence[int], at: int, restarted: int
    ) -> None:
        """Write down what Redis says to remain, at ``at`` of its clock; before the era is looked at again.

        ``restarted`` is the word of that name from before Redis was asked.
        """
        # Two microseconds for three limits: one call to read a slot and one to write it, and small numbers.
        table, now = self._table, time.monotonic_ns() // 1_000_000
        with self._lock:
            for (place, check, window, limit), (_, own, own_check), left in zip(
                notes, tags, remaining, strict=True
            ):
                slot, check, used = ((place ^ own) & _MASK) << _SHIFT, check ^ own_check, limit - left  # noqa: PLW2901
                until = now + window
                old_check, old_used, old_at, old_until, old_restarted = _read(table, slot)
                if old_until > now:
                    if old_check != check:
                        check, used, until = _ANYBODY, max(used, old_used), max(until, old_until)  # noqa: PLW2901
                    elif (old_restarted, old_at, old_used) > (restarted, at, used):
                        if old_restarted > restarted or old_used >= used:
                            continue  # another thread was told later, or more in the same millisecond
                        at = old_at  # the server's clock was set back
                # Not pack_into, which empties a slot before it fills it: others would read nothing.
                table[slot : slot + SLOT] = _pack(check, used, at, until, restarted)

    def note_total(self, spot: Spot, used: int, at: int, restarted: int) -> None:
        """:meth:`note` for one log of which is known how much is used."""
        note = Note(spot.place, spot.check, spot.window, used)
        self.note([note], [_PLAIN], [0], at, restarted)

    def known(self, spot: Spot) -> Known | None:
        """Return what any process of the host, living or dead, last knew; None if nothing counts."""
        slot, now = spot.place << _SHIFT, monotonic_ms()
        best, found = (-1, 0, 0), None
        for table in self._all_tables():
            check, used, at, until, restarted = _read(table, slot)
            rank = (restarted, at, used)
            if until > now and check in (spot.check, _ANYBODY) and rank > best:
                best, found = rank, Known(used, at, min(until - spot.window, now), until, restarted)
        return found if found and found.used else None

    def _all_tables(self) -> Iterator[memoryview]:
        """Yield every table; looks for new ones once an era: what counts has been written by then."""
        era = self.words[ERA] ^ self.words[RESTARTED]
        if self._tables_of != era and self.directory is not None:
            with contextlib.suppress(OSError):  # removed, or no descriptor left: those that are known do
                self._tables, self._tables_of = self._look_for_tables(self.directory), era
        yield self._table
        yield from list(self._tables.values())

    def _look_for_tables(self, directory: Path) -> dict[str, memoryview]:
        own = _table_name(Process.this())
        found: dict[str, memoryview] = {}
        for _ in range(LOOKS):
            names = [name for name, _ in _tables_in(directory) if name != own]
            try:
                return {
                    name: self._tables.get(name) or _mapped(directory / name, _TABLE_BYTES, create=False)
                    for name in names
                }
            except FileNotFoundError:
                continue  # renamed by its heir between two lines: look for it under its new name
            except OSError:
                logger.debug("redis_infra.table_unreadable", exc_info=True)
                for name in names:
                    with contextlib.suppress(OSError):
                        found[name] = _mapped(directory / name, _TABLE_BYTES, create=False)
                return found
        return found

    def unlearn(self, spot: Spot) -> None:
        """Know that nothing is used, although Redis did not say so: a log was forgotten by hand."""
        known = self.known(spot)
        if known is not None:
            self.note_total(spot, 0, known.at + 1, known.restarted)


_PLAIN: Final = Tag(b"", 0, 0)
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
