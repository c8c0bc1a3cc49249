"""The host's private directory: what the processes of one site leave there for each other.

Each process writes files of its own, named after what they are about, its id and the time it started; nobody
writes into another's. So there are no locks that a fork inherits or a dead process keeps. A journal file
names the keys for which Redis cannot be trusted (keys, never values); a status file says that a process is
not well.

What is written survives the death of the process, by ``kill -9`` too; nothing is synced, so not the host's.
Processes are told apart by what this host's kernel says of them: the directory is not for sharing between
containers with process ids of their own, where the living would be taken for dead (their journals are then
drained and removed by others as well, which costs misses).

Nothing here raises because of the disk. A directory that cannot be trusted or written is reported once, as a
WARNING ``redis_infra.state_dir_unusable``, and everything goes on in memory.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from redis_infra.keys import digest
from redis_infra.resilience.journal import Entry, Kind, decode, encode

__all__ = ["Entry", "ForeignJournal", "JournalFile", "Process", "StateDir"]

logger = logging.getLogger(__name__)

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at the directory."""
STATUS_KEPT: Final = 3600.0
"""Seconds for which the last words of a dead process are of interest."""
SETTLED: Final = 2_000_000_000
"""Nanoseconds after which a directory's time of change tells a later change: no file system is coarser."""

PROC = Path("/proc")

_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_AS_DIRECTORY: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NOFOLLOW
_NAME: Final = re.compile(
    r"(?P<kind>journal|status)-(?P<about>[0-9a-f]+)-(?P<pid>[0-9]{1,9})-(?P<start>[0-9a-z]+)(-[0-9]+)?\.(log|json|tmp)"
)

_serials = itertools.count(1)
_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this host; ``start`` tells it from an earlier one that had the same id."""

    pid: int
    start: str
    """Clock ticks from boot to start; "t" and a time of its own choice where there is no ``/proc``."""

    @staticmethod
    def this() -> Process:
        return _this(os.getpid())

    @property
    def alive(self) -> bool:
        """Whether it may still write. A zombie may not."""
        if self == Process.this():
            return True
        found = None if self.start.startswith("t") else _stat_fields(self.pid)
        if found is None:
            return self.pid != os.getpid() and _answers(self.pid)
        state, start = found
        return state not in "ZX" and start == self.start


@lru_cache(maxsize=1)
def _this(pid: int) -> Process:
    found = _stat_fields(pid)
    return Process(pid, found[1] if found else f"t{time.time_ns():x}")


def _stat_fields(pid: int) -> tuple[str, str] | None:
    """Return state and start time of a process as ``/proc`` has them; None where it has not."""
    try:
        text = Path(PROC, str(pid), "stat").read_bytes()
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may hold spaces and parentheses itself.
    fields = text[text.rindex(b")") + 2 :].decode("ascii").split()
    return fields[0], fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's, by now: better drained twice than removed while it is written
    return True


class StateDir:
    """One directory that only this user can read, made when the first thing is written to it.

    ``problem`` says in words why it is not used, with the remedy; it is empty, and ``usable`` true, while
    nothing is wrong. A directory that has been put right is used again. No method raises because of the disk.
    Thread-safe; in a forked child call :meth:`after_fork`.
    """

    def __init__(self, parent: str, name: str = "", *, refusal: str = "") -> None:
        self._parent = parent
        self._name = name
        self._refusal = refusal
        self._distrust = ""
        self._failure = ""
        self._journals: dict[tuple[str, str], JournalFile] = {}
        self._looks: dict[str, _Look] = {}
        self._foreign: dict[str, bool] = {}

    @classmethod
    def open(cls, setting: str | None) -> StateDir:
        """Return the directory of a ``STATE_DIR`` setting; looks at it, but makes nothing.

        ``"auto"`` is a directory of this user's under the system's temporary one; None or an empty text keeps
        everything in memory.
        """
        if not setting:
            return cls("", refusal="STATE_DIR is off: everything stays in memory")
        try:
            directory = cls._of(os.fspath(setting))
        except (OSError, ValueError) as error:
            directory = cls("", refusal=f"STATE_DIR {setting!r} cannot be used: {error}")
            directory._warn(repr(setting))
            return directory
        with directory.guarded(missing_ok=True), directory.entered():
            pass
        return directory

    @classmethod
    def _of(cls, setting: str) -> StateDir:
        if not hasattr(os, "geteuid"):
            raise OSError(errno.ENOSYS, "this platform has no user ids")
        if b"\0" in os.fsencode(setting):
            raise ValueError("it holds a null character")
        if setting == "auto":
            return cls(_temporary(), "redis_infra-{uid}")
        return cls(os.path.abspath(os.path.expanduser(setting)))

    @property
    def path(self) -> Path | None:
        """Where it is, or would be; None if there is none."""
        return Path(self.where) if self._parent else None

    @property
    def problem(self) -> str:
        return self._refusal or self._distrust or self._failure

    @property
    def usable(self) -> bool:
        return not self.problem

    @property
    def where(self) -> str:
        """:attr:`path` as text; empty if there is none."""
        # Worked out each time: a server that starts as root gives that up only after the fork.
        return os.path.join(self._parent, self._name.format(uid=os.geteuid())) if self._name else self._parent

    # Journals

    def journal(self, server: str, database: str) -> JournalFile:
        """Return this process' own journal file for a database; the same one each time. Makes no file."""
        return self._journals.setdefault((server, database), JournalFile(self, server, database))

    def foreign_journals(self, database: str) -> list[ForeignJournal]:
        """Return the journals that other processes, living or dead, have left for a database."""
        this = Process.this()
        found = [
            ForeignJournal(self, name, process)
            for name, process in self._files("journal", digest(database))
            if process != this and self._has_content(name, process)
        ]
        self._foreign[database] = bool(found)
        return found

    def _has_content(self, name: str, process: Process) -> bool:
        with self.guarded(missing_ok=True), self.entered() as directory:
            if _stat(directory, name).st_size:
                return True
            if not process.alive:
                _unlink(directory, name)  # killed between making the file and writing to it
        return False

    def changed(self, now: float, database: str = "") -> bool:
        """Whether it is worth listing the journals: at most once a second (``now``, monotonic) one ``lstat``.

        True where something came or went since the last look, or journals of others were there. Each
        ``database`` has looks of its own, so that none takes another one's; without one, it is about all.
        """
        look = self._looks.get(database)
        if look is None:
            look = self._looks.setdefault(database, _Look())
        if now < look.due:
            return False
        look.due = now + LOOK_INTERVAL
        return look.differs(self._changed_at()) or self._knows_foreign(database)

    def _knows_foreign(self, database: str) -> bool:
        return self._foreign.get(database, False) if database else any(self._foreign.values())

    def _changed_at(self) -> int | None:
        if not self._parent:
            return None
        try:
            return os.lstat(self.where).st_mtime_ns
        except OSError:
            self._foreign.clear()
            return None

    # Status

    def write_status(self, name: str, data: Mapping[str, Any]) -> None:
        """Leave word of how this process stands with ``name``, in place of what it left before."""
        target = self._status_name(name)
        text = json.dumps({"name": name, **data}, default=str, skipkeys=True)
        with self.guarded(missing_ok=False), self.entered(create=True) as directory:
            draft = f"{target[:-5]}-{next(_serials)}.tmp"
            try:
                _write_new(directory, draft, text.encode("ascii"))
                os.replace(draft, target, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                _unlink(directory, draft)
                raise
            self.worked()

    def clear_status(self, name: str) -> None:
        """Take back what :meth:`write_status` left."""
        with self.guarded(missing_ok=True), self.entered() as directory:
            _unlink(directory, self._status_name(name))

    def statuses(self) -> list[dict[str, Any]]:
        """Return what the processes that are not well have left, this one's included.

        To the data come ``name``, ``pid``, ``alive`` and ``age``, the seconds since it was written. What the
        dead have left goes after an hour.
        """
        found = (self._status(name, process) for name, process in self._files("status"))
        return [status for status in found if status is not None]

    def _status(self, name: str, process: Process) -> dict[str, Any] | None:
        with self.guarded(missing_ok=True), self.entered() as directory:
            age, alive = max(0.0, time.time() - _stat(directory, name).st_mtime), process.alive
            if not alive and age > STATUS_KEPT:
                _unlink(directory, name)
            elif name.endswith(".json"):
                data = _parse_object(_read(directory, name))
                return {**data, "pid": process.pid, "alive": alive, "age": age}
        return None

    @staticmethod
    def _status_name(name: str) -> str:
        process = Process.this()
        return f"status-{digest(name)}-{process.pid}-{process.start}.json"

    # Life

    def after_fork(self) -> None:
        """In a forked child: leave the parent's files to the parent."""
        _this.cache_clear()
        for journal in list(self._journals.values()):
            journal.after_fork()

    def close(self) -> None:
        """Close what is open; journal files stay for whoever drains them. Usable again afterwards."""
        for journal in list(self._journals.values()):
            journal.close()

    # The directory itself; for the files in it

    @contextlib.contextmanager
    def entered(self, *, create: bool = False) -> Iterator[int]:
        """Open the directory, verify what was opened, and hand out its descriptor.

        Raises:
            FileNotFoundError: there is none, and ``create`` is false.
            OSError: it is not to be trusted or cannot be opened.
        """
        if not self._parent:
            raise OSError(errno.EINVAL, self._refusal)
        where = self.where
        if create:
            os.makedirs(where, mode=0o700, exist_ok=True)
        # By descriptor, so that what is verified is what is used, whatever becomes of the path meanwhile.
        descriptor = os.open(where, _AS_DIRECTORY)
        try:
            reason = _distrust(os.fstat(descriptor), where)
            if reason:
                raise PermissionError(errno.EPERM, reason)
            self._distrust = ""
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def guarded(self, *, missing_ok: bool) -> Iterator[None]:
        """Swallow what the disk refuses, and take note of it; what is not there may be no trouble at all."""
        try:
            yield
        except OSError as error:
            if not (missing_ok and isinstance(error, FileNotFoundError)):
                self.failed(error)

    def failed(self, error: OSError) -> None:
        """Take note of what could not be done, and say so once a process."""
        if self._refusal:
            return
        where = self.where
        self._distrust = _reason_for_distrust(where)
        if not self._distrust:
            self._failure = f"{where}: {error.strerror or error}; until that is mended, all stays in memory"
        self._warn(where)

    def _warn(self, where: str) -> None:
        if where not in _warned:
            _warned.add(where)
            logger.warning(
                "redis_infra.state_dir_unusable problem=%s",
                self.problem,
                extra={"redis_infra.path": where, "redis_infra.problem": self.problem},
            )

    def worked(self) -> None:
        """Something was written: what went wrong before is over."""
        self._failure = ""

    def _files(self, kind: str, about: str = "") -> list[tuple[str, Process]]:
        """Return the files of one kind, and of one digest, with whose they are."""
        names: list[str] = []
        with self.guarded(missing_ok=True), self.entered() as directory:
            names = sorted(os.listdir(directory))
        parsed = ((name, _NAME.fullmatch(name)) for name in names)
        return [
            (name, Process(int(found["pid"]), found["start"]))
            for name, found in parsed
            if found and found["kind"] == kind and about in ("", found["about"])
        ]


class JournalFile:
    """The entries of one process and database on disk, append-only; gone when they are.

    Each time it begins anew under another name, so that an offset in one file means nothing in the next.
    Raises nothing: what returns a bool says whether the entries are on disk. Not locked: the
    :class:`~redis_infra.resilience.journal.Journal` that it belongs to calls it under its own lock.
    """

    def __init__(self, directory: StateDir, server: str, database: str) -> None:
        self._directory = directory
        self._server = server
        self._about = digest(database)
        self._log: _Log | None = None

    @property
    def path(self) -> Path | None:
        """Where it is; None while there is nothing to say."""
        log, directory = self._own(), self._directory.path
        return directory / log.name if log and directory else None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._log.size if self._log else 0

    @property
    def lines(self) -> int:
        """Entries in the file, with all that are there more than once."""
        return self._log.lines if self._log else 0

    def append(
        self, kind: Kind, texts: Sequence[str], namespace: str = "", connections: Collection[str] = ()
    ) -> bool:
        """Write entries, and before them the namespace and connections that this file does not have yet."""
        log = self._own() or self._begin()
        if log is None:
            return False
        data = b"".join([encode(kind, text) for text in texts])
        if namespace and namespace not in log.namespaces:
            data = encode(Kind.NAMESPACE, namespace) + data
        news = [each for each in connections if each not in log.connections] if connections else []
        if news:
            data = b"".join([encode(Kind.CONNECTION, each) for each in news]) + data
        try:
            log.write(data, len(texts))
        except OSError as error:
            self._directory.failed(error)
            if not log.size:
                self.remove()
            return False
        log.namespaces.update(texts if kind is Kind.NAMESPACE else (namespace,))
        log.connections.update(news)
        self._directory.worked()
        return True

    def rewrite(
        self,
        namespaces: Sequence[str],
        patterns: Sequence[str],
        names: Sequence[str],
        connections: Collection[str] = (),
    ) -> bool:
        """Begin a new file with these entries; the old one goes once the new one is complete."""
        old, self._log = self._own(), None
        if patterns or names:
            parts = ((Kind.NAMESPACE, namespaces), (Kind.PATTERN, patterns), (Kind.KEY, names))
            if not all(self.append(kind, texts, connections=connections) for kind, texts in parts):
                self.remove()
                self._log = old
                return False
        new, self._log = self._log, old
        self.remove()
        self._log = new
        return True

    def remove(self) -> None:
        """Nothing is left to be drained: remove the file."""
        log, self._log = self._own(), None
        if log is None:
            return
        try:
            with self._directory.entered() as directory:
                _unlink(directory, log.name)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.cut(0)
            self._directory.failed(error)
        log.close()

    def after_fork(self) -> None:
        """In a forked child: the file is the parent's; the next entry begins one of the child's own."""
        self.close()

    def close(self) -> None:
        """Leave the file to whoever drains it."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _own(self) -> _Log | None:
        if self._log is not None and self._log.pid != os.getpid():
            self.close()
        return self._log

    def _begin(self) -> _Log | None:
        process = Process.this()
        name = f"journal-{self._about}-{process.pid}-{process.start}-{next(_serials)}.log"
        try:
            with self._directory.entered(create=True) as directory:
                self._log = _Log(directory, name, f"# {self._server}")
        except OSError as error:
            self._directory.failed(error)
        return self._log


class _Log:
    """One file on disk that only grows, by whole lines."""

    __slots__ = (
        *("_descriptor", "_head", "_identity", "_torn"),
        *("connections", "lines", "name", "namespaces", "pid", "size"),
    )

    def __init__(self, directory: int, name: str, comment: str) -> None:
        self.name = name
        self.pid = os.getpid()
        self.size = 0
        self.lines = 0
        self.namespaces: set[str] = set()
        self.connections: set[str] = set()
        self._head = comment.encode("unicode_escape") + b"\n"
        self._torn = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _NOFOLLOW
        self._descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        self._identity = _identity(os.fstat(self._descriptor))

    def write(self, data: bytes, lines: int) -> None:
        """Append whole lines, all of them or none.

        Raises:
            OSError: they are not there, or nobody will find them.
        """
        if self._torn or not self._verified().st_nlink:
            raise OSError(errno.EIO, "a file was removed or damaged while it was written")
        if not self.size:
            data = self._head + data
        try:
            _write_all(self._descriptor, data)
        except OSError:
            self.cut(self.size)
            raise
        self.size += len(data)
        self.lines += lines

    def cut(self, size: int) -> None:
        """Shorten the file. Where that fails, nothing may be written behind half a line."""
        try:
            self._verified()
            os.ftruncate(self._descriptor, size)
        except OSError:
            self._torn = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._verified()
            os.close(self._descriptor)

    def _verified(self) -> os.stat_result:
        """Make sure that the descriptor still means this file: a daemon closes whatever it inherits."""
        found = os.fstat(self._descriptor)
        if _identity(found) != self._identity:
            raise OSError(errno.EBADF, "a file was closed while it was written")
        return found


class ForeignJournal:
    """What another process has left of the keys for which Redis cannot be trusted."""

    def __init__(self, directory: StateDir, name: str, process: Process) -> None:
        self._directory = directory
        self._name = name
        self._process = process
        self._read_to: int | None = None

    def __repr__(self) -> str:
        return f"ForeignJournal({self._name!r})"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there now, and may add to it."""
        return self._process.alive

    @property
    def path(self) -> Path:
        """Where it is; no other journal ever has this path."""
        return Path(self._directory.where, self._name)

    def entries(self, since: int = 0) -> tuple[list[Entry], int]:
        """Return the entries from an offset on, and the offset to go on from.

        Half a line at the end is left for the next time; a dead process never told anybody that it was
        written. A file that is gone has no entries.
        """
        data = b""
        with self._directory.guarded(missing_ok=True), self._directory.entered() as directory:
            data = _read(directory, self._name, since)
        self._read_to = since + len(data)
        whole = data[: data.rfind(b"\n") + 1]
        return decode(whole), since + len(whole)

    def remove(self) -> bool:
        """Remove the journal of a dead process, which has been drained; return whether it is gone.

        Refused while the process lives, and where :meth:`entries` has not read to the end of what it left.
        """
        if self.alive:
            return False
        try:
            with self._directory.entered() as directory:
                is_read = _stat(directory, self._name).st_size == self._read_to
                if is_read:
                    os.unlink(self._name, dir_fd=directory)
                return is_read
        except FileNotFoundError:
            return True  # somebody else was faster
        except OSError as error:
            self._directory.failed(error)
            return False


@dataclass(slots=True)
class _Look:
    """What one reader of the directory knows of it."""

    due: float = float("-inf")
    seen: int | None = None

    def differs(self, changed_at: int | None) -> bool:
        """Whether something came or went since the last look; nanoseconds, None if there is no directory."""
        differs = changed_at is not None and changed_at != self.seen
        # File systems count in steps: what comes in the same step as this look leaves the time as it is.
        is_settled = changed_at is not None and time.time_ns() - changed_at > SETTLED
        self.seen = changed_at if is_settled else None
        return differs


def _temporary() -> str:
    """Return the system's temporary directory, also when it is full.

    ``tempfile.gettempdir`` then goes on to the next one, and processes of one site would not meet.
    """
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    candidates = (tempfile.tempdir, *named, "/tmp", "/var/tmp")  # noqa: S108 - owner and mode are verified
    return os.path.abspath(next((each for each in candidates if each and os.path.isdir(each)), "/tmp"))  # noqa: S108


def _reason_for_distrust(where: str) -> str:
    try:
        return _distrust(os.lstat(where), where)
    except OSError:
        return ""


def _distrust(found: os.stat_result, where: str) -> str:
    """Return why a directory may not be used, and what to do; empty if it may."""
    if stat.S_ISLNK(found.st_mode):
        return f"{where} is a symbolic link; set STATE_DIR to the directory itself"
    if not stat.S_ISDIR(found.st_mode):
        return f"{where} is not a directory; remove it, or set STATE_DIR to another path"
    if found.st_uid != os.geteuid():
        return (
            f"{where} belongs to user {found.st_uid} and this process is user {os.geteuid()}; "
            "set STATE_DIR to a directory of its own"
        )
    if found.st_mode & 0o077:
        return f"{where} is open to other users (mode {found.st_mode & 0o777:04o}); run: chmod 700 {where}"
    return ""


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def _write_new(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _read(directory: int, name: str, since: int = 0) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=directory), "rb") as file:
        file.seek(since)
        return file.read()


def _stat(directory: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
