"""What Redis missed: the names for which it cannot be trusted until they are drained.

Keys, never values: whoever drains a journal deletes, which is idempotent and needs no order, costs one miss
and cannot overwrite what somebody else has written meanwhile. Increments that were certainly not executed
are kept as sums beside the names.

Knows nothing of Redis and, but for the :class:`~redis_infra.resilience.statedir.JournalFile` that it may be
given, of disks. The form of a line in that file is defined here, because it is the form of an entry.
"""

from __future__ import annotations

import enum
import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.keys import glob_to_regex, literal_start, namespace_regex

if TYPE_CHECKING:
    from redis_infra.resilience.statedir import JournalFile

__all__ = ["Batch", "Entry", "Journal", "Kind", "decode", "encode"]

CHUNK = 1000
"""Names that :meth:`Journal.done` forgets before it lets others have the lock."""
FILE_ROOM = 1 << 20
"""Bytes up to which a file is not worth rewriting, however much of it is out of date."""
FILE_RETRY = 5.0
"""Seconds after which a file that could not be written is tried again."""
MOST_CONNECTIONS = 1000
"""Broken connections that are named; a process has no more at a time, and each breaks once an outage."""
RECENT = 2000
"""Deletes that are remembered although Redis confirmed them."""


class Kind(bytes, enum.Enum):
    """What a line names; the kind itself is how the line begins."""

    KEY = b"K"
    PATTERN = b"P"
    CONNECTION = b"C"
    """Not a key: a broken connection whose commands the server may execute yet, as ``run id:id``."""
    NAMESPACE = b"N"
    """Not dirty by itself: the glob of an alias, which keys may be given up for when there are too many."""


class Entry(NamedTuple):
    """One line of a journal file."""

    kind: Kind
    text: str


_KINDS: dict[bytes, Kind] = {kind.value: kind for kind in Kind}
_PLAIN = rb"[ -\[\]-~]*"
_ESCAPE = rb"\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})"
_LINE = re.compile(rb"^([CKPN])(%b(?:%b%b)*)$" % (_PLAIN, _ESCAPE, _PLAIN), re.MULTILINE)


def encode(kind: Kind, text: str) -> bytes:
    """Return the line of an entry, printable ASCII and a line feed; :func:`decode` gives it back exactly."""
    return b"%b%b\n" % (kind, text.encode("unicode_escape"))


def decode(data: bytes) -> list[Entry]:
    """Return the entries of whole lines; what is none of ours (a comment, a damaged line) is left out."""
    return [Entry(_KINDS[kind], text.decode("unicode_escape")) for kind, text in _LINE.findall(data)]


class Reader(Protocol):
    """Who looks into a journal before it trusts Redis; ``clear`` is its shortcut around that look."""

    clear: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What was in a journal at one moment, to be drained.

    A part of it (``dataclasses.replace(batch, names=..., patterns=..., deltas=...)``) is a batch too, so that
    what is settled can be forgotten before the rest is.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    namespaces: frozenset[str] = frozenset()
    """Those of the patterns that are an alias' namespace, and mean no more than its names."""
    deltas: Mapping[str, int] = field(default_factory=dict)
    serial: int = 0

    def __len__(self) -> int:
        return len(self.names) + len(self.patterns) + len(self.deltas)


class _Scope(NamedTuple):
    serial: int
    regex: re.Pattern[str]
    absorbed: bool


@dataclass(slots=True)
class _Delta:
    amount: int
    born: int
    """Serial of the first increment of this sum: a batch taken before knows nothing of it."""


class Journal:
    """The bounded, coalescing record of what Redis missed, for one database and process.

    What is added gets a new serial, so that :meth:`done` forgets what was drained and keeps what was added
    again meanwhile. Past ``max_keys`` names, ``max_bytes`` (characters of all names, which is about what they
    take on disk) or ``max_patterns``, names and patterns give way to the globs of the aliases they belong to.
    What no known glob covers is kept: better over the bound than stale.

    With a ``file``, what is added is on disk before the call returns. Every addition is written, also of what
    the journal holds already: another process may have drained the first one. When the disk refuses, the
    journal goes on in memory, and writes all of itself when the disk is back. Deltas are never written:
    whoever read them could not know which of them had been sent, and a counter must not count twice. They die
    with their process.

    ``empty`` is a plain attribute for the hot path. Thread-safe; safe to share between event loops (no method
    waits for more than a write to a local file). In a forked child call :meth:`after_fork`.
    """

    def __init__(
        self,
        max_keys: int,
        max_bytes: int,
        file: JournalFile | None = None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        max_patterns: int = 100,
    ) -> None:
        self.empty = True
        self.gate = threading.RLock()
        """Held by whoever distrusts a key, and by whoever works out whether all are trusted."""
        self.readers: list[Reader] = []
        self._bounds = self._room = (max_keys, max_bytes, max_patterns)
        self._file = file
        self._clock = clock
        # Reentrant: a finalizer that the garbage collector runs in here may delete a key.
        self._lock = threading.RLock()
        self._serial = 0
        self._names: dict[str, int] = {}
        self._absorbed: set[str] = set()
        self._scopes: dict[str, _Scope] = {}
        self._deltas: dict[str, _Delta] = {}
        self._namespaces: dict[str, re.Pattern[str]] = {}
        self._size = 0
        self._taken = 0
        self._connections: dict[str, None] = {}
        self._collapsed: set[str] = set()
        self._began: tuple[float, float] | None = None
        self._file_due: float | None = None
        self._is_writing = False
        self._to_write: deque[tuple[Kind, Sequence[str], str]] = deque()
        # Replaced and never changed, because covers() reads them without the lock.
        self._regexes: tuple[re.Pattern[str], ...] = ()
        self._fresh: tuple[re.Pattern[str], ...] = ()
        self._recent: deque[tuple[float, str]] = deque(maxlen=RECENT)

    # Adding

    def add(self, names: Iterable[str], namespace: str) -> None:
        """Mark keys dirty. ``namespace`` is the glob of all keys of their alias."""
        names = tuple(names)
        if not names:
            return
        with self._lock:
            self._serial += 1
            self._know(namespace)
            self._mark(names)
            if self._absorbed:
                self._absorbed.difference_update(names)
            self._begin()
            self._write(Kind.KEY, names, namespace)

    def add_pattern(self, pattern: str, namespace: str = "") -> None:
        """Mark every key that matches the glob dirty, whether or not it is known here.

        With the ``namespace`` of its alias, too many patterns can give way to it.
        """
        with self._lock:
            self._serial += 1
            self._know(namespace)
            self._cover({pattern: self._regex_of(pattern)})
            self._begin()
            self._write(Kind.PATTERN, (pattern,), namespace)

    def add_delta(self, name: str, delta: int, namespace: str = "") -> None:
        """Remember an increment that was certainly not executed; several of one key are one sum.

        Ignored where the key is dirty: it will be deleted. In memory only.
        """
        with self._lock:
            if name in self._names or _matches(self._regexes, name):
                return
            self._serial += 1
            self._know(namespace)
            known = self._deltas.get(name)
            if known is None:
                self._deltas[name] = _Delta(delta, self._serial)
                self._size += len(name)
            else:
                known.amount += delta
            self._begin()
            if self._is_full():
                self._collapse()

    def note_connection(self, text: str) -> None:
        """Name a broken connection, should keys have to be named as well; ``run id:id``."""
        with self._lock:
            if len(self._connections) < MOST_CONNECTIONS:
                self._connections[text] = None

    def absorb(self, entries: Iterable[Entry]) -> None:
        """Take over what another process left; it stays in that one's file and is not written to ours."""
        texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        for kind, text in entries:
            texts[kind].append(text)
        with self._lock:
            for namespace in texts[Kind.NAMESPACE]:
                self._know(namespace)
            if not (texts[Kind.KEY] or texts[Kind.PATTERN]):
                return
            self._serial += 1
            news = [name for name in texts[Kind.KEY] if name not in self._names]
            self._mark(texts[Kind.KEY])
            self._absorbed.update(name for name in news if name in self._names)
            self._cover({text: self._regex_of(text) for text in texts[Kind.PATTERN]}, absorbed=True)
            self._begin()
            if self._is_full():
                self._collapse()

    # Asking

    def covers(self, name: str) -> bool:
        """Whether Redis cannot be trusted with this key now. Takes no lock."""
        if name in self._names or name in self._deltas:
            return True
        return bool(self._regexes) and _matches(self._regexes, name)

    def __len__(self) -> int:
        return len(self._names) + len(self._scopes) + len(self._deltas)

    @property
    def pending(self) -> int:
        """How many keys, patterns and sums wait to be drained."""
        return len(self)

    @property
    def collapsed(self) -> bool:
        """Whether names were given up for the namespaces of their aliases, which are pending now."""
        return not self._collapsed.isdisjoint(self._scopes)

    @property
    def since(self) -> float | None:
        """Wall-clock time (seconds since 1970) at which the journal ceased to be empty; None if it is."""
        began = self._began
        return began[0] if began else None

    @property
    def oldest(self) -> float:
        """Seconds since the journal ceased to be empty; 0.0 if it is."""
        began = self._began
        return self._clock.monotonic() - began[1] if began else 0.0

    # Draining

    def take(self) -> Batch:
        """Return what has to be drained now; it stays dirty until :meth:`done`.

        What is added from now on belongs to the next batch, also where a pattern of this one covers it: the
        scan may have passed it already.
        """
        with self._lock:
            self._taken = self._serial
            self._fresh = ()
            return Batch(
                names=tuple(self._names),
                patterns=tuple(self._scopes),
                namespaces=frozenset(self._scopes.keys() & self._namespaces.keys()),
                deltas={name: delta.amount for name, delta in self._deltas.items()},
                serial=self._serial,
            )

    def done(self, batch: Batch) -> None:
        """Forget what was drained, except what was added again since it was taken.

        The file is gone when nothing is left. A batch that could not be drained is simply not handed in: the
        next :meth:`take` has it again. Deltas that may have been sent must be handed in all the same.
        """
        for start in range(0, len(batch.names), CHUNK):
            with self._lock:
                self._forget(batch.names[start : start + CHUNK], batch.serial)
        with self._lock:
            left = {
                text: scope
                for text, scope in self._scopes.items()
                if text not in batch.patterns or scope.serial > batch.serial
            }
            if len(left) < len(self._scopes):
                self._set_scopes(left)
            self._subtract(batch)
            self._settle()

    # Deletes that were confirmed

    def note_deleted(self, name: str, now: float) -> None:
        """Remember a delete that Redis confirmed: a replica that lags may not have it. Monotonic seconds."""
        self._recent.append((now, name))

    def recent_deletes(self, now: float, within: float = 10.0) -> list[str]:
        """Return the names deleted in the last ``within`` seconds, the last 2,000 at most, oldest first."""
        return list(dict.fromkeys(name for at, name in self._recent.copy() if now - at <= within))

    def after_fork(self) -> None:
        """In a forked child: new lock; what is dirty stays so, what comes goes to a file of the child's own.

        The sums stay with the parent, or both would send them.
        """
        self._lock, self.gate = threading.RLock(), threading.RLock()
        self._file_due = None
        self._is_writing = False
        self._to_write.clear()
        self._connections = {}
        self._deltas = {}
        self._size = sum(map(len, self._names))
        self._set_scopes(self._scopes)
        if self._file is not None:
            self._file.after_fork()
        if not self:
            self._reset()

    # What is held; called with the lock

    def _begin(self) -> None:
        if self._began is None:
            self._began = (self._clock.time(), self._clock.monotonic())
        self.empty = False

    def _know(self, namespace: str) -> None:
        if namespace and namespace not in self._namespaces:
            self._namespaces[namespace] = namespace_regex(namespace)

    def _regex_of(self, pattern: str) -> re.Pattern[str]:
        """What a pattern covers; that of an alias, no other's names."""
        return self._namespaces.get(pattern) or glob_to_regex(pattern)

    def _mark(self, names: Sequence[str]) -> None:
        known, fresh, deltas = self._names, self._fresh, self._deltas
        for name in names:
            if name in deltas:
                del deltas[name]
                self._size -= len(name)
            if fresh and _matches(fresh, name):
                continue  # it goes with a pattern that nobody has begun to drain
            if name not in known:
                self._size += len(name)
            known[name] = self._serial

    def _cover(self, regexes: Mapping[str, re.Pattern[str]], *, absorbed: bool = False) -> None:
        """Make patterns dirty; what is ours already stays ours."""
        scopes = dict(self._scopes)
        for text, regex in regexes.items():
            known = scopes.get(text)
            scopes[text] = _Scope(self._serial, regex, absorbed and (known is None or known.absorbed))
        self._set_scopes(scopes)

    def _set_scopes(self, scopes: dict[str, _Scope]) -> None:
        self._scopes = scopes
        self._regexes = tuple(scope.regex for scope in scopes.values())
        self._fresh = tuple(
            scope.regex
            for scope in scopes.values()
            # Not those of others: a key that we missed has to be in our own file when that is rewritten.
            if scope.serial > self._taken and not scope.absorbed
        )
        for name in [name for name in list(self._deltas) if _matches(self._regexes, name)]:
            del self._deltas[name]
            self._size -= len(name)

    def _forget(self, names: Iterable[str], serial: int) -> None:
        known, later = self._names, serial + 1
        for name in names:
            if known.get(name, later) <= serial:
                del known[name]
                self._size -= len(name)
                self._absorbed.discard(name)

    def _subtract(self, batch: Batch) -> None:
        for name, amount in batch.deltas.items():
            delta = self._deltas.get(name)
            if delta is None or delta.born > batch.serial:
                continue
            delta.amount -= amount
            if not delta.amount:
                del self._deltas[name]
                self._size -= len(name)

    def _settle(self) -> None:
        """After draining: empty for good, or a file that says no more than what is left."""
        if not self:
            self._reset()
        elif self._file is not None and self._file_due is None and self._file.lines > 2 * len(self):
            self._rewrite()

    def _reset(self) -> None:
        self._names = {}
        self._absorbed = set()
        self._size = 0
        self._room = self._bounds
        self._collapsed = set()
        self._connections = {}
        self._began = None
        self._file_due = None
        self.empty = True
        if self._file is not None:
            self._file.remove()

    # Too much

    def _is_full(self) -> bool:
        keys, size, patterns = self._room
        return (
            len(self._names) + len(self._deltas) > keys or self._size > size or len(self._scopes) > patterns
        )

    def _collapse(self) -> None:
        """Let names and patterns give way to the namespaces that cover them; on disk first."""
        homes: dict[str, re.Pattern[str]] = {}
        # Copies: a signal handler may use the cache, and so come in here, between any two lines; and while a
        # list of pairs is made, of which each may begin a garbage collection and so run somebody's code.
        last, known = self._serial, self._names.copy()
        names = {name: serial for name, serial in known.items() if not self._has_home(name, homes)}
        scopes = {
            text: scope for text, scope in self._scopes.copy().items() if not self._is_within(text, homes)
        }
        for name in list(self._deltas):
            self._has_home(name, homes)
        scopes |= {text: _Scope(self._serial, regex, absorbed=False) for text, regex in homes.items()}
        self._collapsed |= homes.keys()
        self._set_scopes(scopes)
        self._rewrite(names)
        names |= {name: serial for name, serial in self._names.copy().items() if serial > last}
        self._names = names
        self._absorbed.intersection_update(names)
        self._size = sum(map(len, names)) + sum(map(len, self._deltas))
        # What nobody's namespace covers stays; do not go through it again at every addition.
        keys, size, patterns = self._bounds
        held = len(names) + len(self._deltas)
        self._room = (max(keys, 2 * held), max(size, 2 * self._size), max(patterns, 2 * len(scopes)))

    def _has_home(self, name: str, homes: dict[str, re.Pattern[str]]) -> bool:
        """Whether a namespace covers the name; adds that namespace to ``homes``."""
        for regex in homes.values():
            if regex.match(name):
                return True
        for text, regex in self._namespaces.items():
            if regex.match(name):
                homes[text] = regex
                return True
        return False

    def _is_within(self, pattern: str, homes: dict[str, re.Pattern[str]]) -> bool:
        """Whether a namespace certainly covers all that the pattern does; adds it to ``homes``."""
        # "site:[0-9]*" matches whatever begins as "site:1:" does, so also all of "site:1:user:*".
        start = literal_start(pattern)
        for text, regex in self._namespaces.items():
            if text.endswith("*") and not text.endswith("\\*") and regex.match(start):
                homes[text] = regex
                return True
        return False

    # On disk

    def _write(self, kind: Kind, texts: Sequence[str], namespace: str) -> None:
        self._to_write.append((kind, texts, namespace))
        if self._is_writing:
            return  # a signal handler or a finalizer, in the middle of another write: that one sees to it
        self._is_writing = True
        try:
            while self._to_write:
                self._write_or_collapse(*self._to_write.popleft())
        finally:
            self._is_writing = False

    def _write_or_collapse(self, kind: Kind, texts: Sequence[str], namespace: str) -> None:
        if self._is_full():
            self._collapse()
        elif self._file is None:
            return
        elif self._file_due is not None:
            if self._clock.monotonic() >= self._file_due:
                self._rewrite()
        elif not self._file.append(kind, texts, namespace, self._connections):
            self._rewrite()  # the file may have been removed, and a new one be all it takes
        elif self._file.size > FILE_ROOM and self._file.lines > 2 * len(self):
            self._rewrite()

    def _rewrite(self, names: Iterable[str] | None = None) -> None:
        """Begin a new file with all that is ours; the old one goes when the new one is complete."""
        if self._file is None:
            return
        own = [name for name in list(self._names if names is None else names) if name not in self._absorbed]
        patterns = [text for text, scope in list(self._scopes.items()) if not scope.absorbed]
        written = self._file.rewrite(list(self._namespaces), patterns, own, self._connections)
        self._file_due = None if written else self._clock.monotonic() + FILE_RETRY


def _matches(regexes: tuple[re.Pattern[str], ...], name: str) -> bool:
    for regex in regexes:  # noqa: SIM110 - any() with a generator takes three times as long
        if regex.match(name):
            return True
    return False
