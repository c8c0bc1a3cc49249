"""The process' own memory, used while Redis is away and as the store of ``memory://``.

Holds the bytes that Redis would hold, under the same full names, so that values are as isolated from their
callers, and pickling fails in the same way, as with Redis. Bounded in entries and bytes: what was not used
for longest goes first. Expired entries are dropped when met, and swept when room is needed, without a thread.

Does not know values, prefixes, versions, what Redis is doing, or who reads it.
"""

from __future__ import annotations

import enum
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias, TypeVar

from redis_infra.cache.values import COUNTER_MAX, COUNTER_MIN
from redis_infra.clock import SYSTEM_CLOCK, Clock
from redis_infra.exceptions import CounterOverflow
from redis_infra.keys import glob_to_regex

__all__ = ["NO_CREATE", "FallbackStore", "Missing", "NotInteger"]

T = TypeVar("T")
_Entry: TypeAlias = tuple[bytes, float]  # the value, and when it ends by the monotonic clock

# A sweep looks at every entry (0.5 ms for 10,000), so a store that is full sweeps once in so many seconds.
_SWEEP_INTERVAL = 1.0


class _Sentinel(enum.Enum):
    NO_CREATE = "NO_CREATE"

    def __repr__(self) -> str:
        return self.name


NO_CREATE: Final = _Sentinel.NO_CREATE


class Missing(KeyError):
    """There is nothing under that name, or no longer."""


class NotInteger(ValueError):
    """What is stored is not an integer as Redis writes it, so it cannot be counted up where it lies."""


class FallbackStore:
    """A bounded cache of bytes in this process that keeps Redis' contract.

    ``max_bytes`` counts names and values. A ttl is in seconds; None is for ever, and ``max_ttl`` caps either
    (None: no cap). A ttl of zero or less ends at once: the name is gone. A value that is larger than
    ``max_bytes`` all alone counts as stored and evicted in the same moment, with what it replaces.

    Thread-safe; every method is atomic. None waits, so event loops may share it. A forked child has a copy,
    and must call `after_fork` before anything else.
    """

    def __init__(
        self, max_entries: int, max_bytes: int, max_ttl: float | None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_ttl = max_ttl
        self._now = clock.monotonic
        # Reentrant: a signal handler or a destructor may use the cache while its thread is in here.
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._next_sweep = -math.inf
        self._hits = self._misses = self._evicted = self._expired = 0

    # --- one value

    def get(self, name: str) -> bytes | None:
        """Return what is stored, or None."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                if entry[1] > self._now():
                    self._entries.move_to_end(name)
                    self._hits += 1
                    return entry[0]
                self._expire(name)
            self._misses += 1
            return None

    def exists(self, name: str) -> bool:
        """Tell whether something is stored. Does not count as a use."""
        with self._lock:
            return self._live(name) is not None

    def set(self, name: str, raw: bytes, ttl: float | None, *, nx: bool = False, xx: bool = False) -> bool:
        """Store ``raw`` and return True; False if ``nx`` and something is there, or ``xx`` and nothing is."""
        with self._lock:
            if (nx or xx) and self._is_barred(name, nx, xx):
                return False
            if ttl is not None and ttl <= 0:
                self._drop(name)
            else:
                self._put(name, raw, self._deadline(ttl))
            return True

    def touch(self, name: str, ttl: float | None) -> bool:
        """Give what is stored a new ttl and return True; False if nothing is."""
        with self._lock:
            entry = self._live(name)
            if entry is None:
                return False
            if ttl is not None and ttl <= 0:
                self._drop(name)
            else:
                self._entries[name] = (entry[0], self._deadline(ttl))
                self._entries.move_to_end(name)
            return True

    def ttl(self, name: str) -> float | None:
        """Return the seconds that are left, None for ever.

        Raises:
            Missing: nothing is stored.
        """
        with self._lock:
            entry = self._live(name)
            if entry is None:
                raise Missing
            return None if entry[1] == math.inf else entry[1] - self._now()

    def rename(self, old: str, new: str) -> bool:
        """Move what is stored, with what is left of its ttl, over what is at ``new``; False if nothing is."""
        with self._lock:
            entry = self._live(old)
            if entry is None:
                return False
            self._drop(old)
            self._put(new, *entry)
            return True

    # --- counting

    def incr(
        self, name: str, delta: int, *, create_ttl: float | Literal[_Sentinel.NO_CREATE] | None = NO_CREATE
    ) -> int:
        """Add ``delta`` to a stored integer, which keeps its ttl, and return the sum.

        With ``create_ttl`` a missing counter starts at ``delta`` with that ttl.

        Raises:
            Missing: nothing is stored, and ``create_ttl`` was not given.
            NotInteger: what is stored is something else; see `update`.
            CounterOverflow: the sum does not fit 64 bits; nothing has changed.
        """
        with self._lock:
            entry = self._live(name)
            if entry is None:
                return self._create_counter(name, delta, create_ttl)
            total = _checked(name, _checked(name, _integer(entry[0])) + delta)
            self._put(name, b"%d" % total, entry[1])
            return total

    def update(self, name: str, function: Callable[[bytes], bytes]) -> bytes:
        """Replace what is stored by ``function`` of it, keep its ttl, and return the result.

        ``function`` is called again if somebody else was faster. Its errors pass through, nothing is changed.

        Raises:
            Missing: nothing is stored.
        """
        while True:
            with self._lock:
                entry = self._live(name)
            if entry is None:
                raise Missing
            # Outside of the lock: it may unpickle, which imports, and another thread may be in here while it
            # holds the lock of that import.
            raw = function(entry[0])
            with self._lock:
                if self._entries.get(name) is entry:
                    self._put(name, raw, entry[1])
                    return raw

    def exchange(self, name: str, decide: Callable[[bytes | None], tuple[bytes | None, float, T]]) -> T:
        """Let ``decide`` look at what is stored (None: nothing) and say what is to be stored instead, and how
        long at least; None leaves it as it is. Returns the third thing that ``decide`` says.

        One step: nobody comes in between. ``decide`` must not use the store, nor run anybody else's code.
        """
        with self._lock:
            entry = self._live(name)
            raw, ttl, answer = decide(entry[0] if entry else None)
            if raw is not None:
                ends = self._deadline(ttl)
                self._put(name, raw, max(ends, entry[1]) if entry else ends)
            return answer

    # --- many

    def get_many(self, names: Iterable[str]) -> list[bytes | None]:
        """Return what is stored under each name, or None, in the same order."""
        with self._lock:
            return [self.get(name) for name in names]

    def delete(self, *names: str) -> int:
        """Remove the names and return how many there were."""
        with self._lock:
            return sum(self._remove(name) for name in names)

    def delete_matching(self, pattern: str) -> int:
        """Remove all names that match Redis' glob ``pattern`` and return how many there were."""
        return self.delete_where(glob_to_regex(pattern).match)

    def delete_where(self, matches: Callable[[str], object]) -> int:
        """Remove all names for which ``matches`` is true, a pure function of the name; return how many."""
        with self._lock:
            return self.delete(*filter(matches, list(self._entries)))

    def delete_values(self, matches: Callable[[str, bytes], object]) -> int:
        """Remove what ``matches``, a pure function of name and value, is true for; return how many."""
        with self._lock:
            found = [name for name, entry in list(self._entries.items()) if matches(name, entry[0])]
            return self.delete(*found)

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match Redis' glob ``pattern``, in no particular order."""
        matches = glob_to_regex(pattern).match
        with self._lock:
            self._sweep()
            return [name for name in list(self._entries) if matches(name)]

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    # --- the store itself

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._entries)

    @property
    def nbytes(self) -> int:
        """The size of all names and values, in characters and bytes; never above ``max_bytes``."""
        with self._lock:
            self._sweep()
            return self._bytes

    def stats(self) -> dict[str, int]:
        """Return ``entries`` and ``bytes`` held now; ``hits``, ``misses``, ``evicted``, ``expired`` ever."""
        with self._lock:
            self._sweep()
            return {
                "entries": len(self._entries),
                "bytes": self._bytes,
                "hits": self._hits,
                "misses": self._misses,
                "evicted": self._evicted,
                "expired": self._expired,
            }

    def after_fork(self) -> None:
        """Make the copy in a forked child usable, whatever another thread of the parent was doing in it."""
        self._lock = threading.RLock()
        self._bytes = sum(len(name) + len(entry[0]) for name, entry in self._entries.items())

    # --- with the lock held

    def _live(self, name: str) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is None or entry[1] > self._now():
            return entry
        self._expire(name)
        return None

    def _is_barred(self, name: str, nx: bool, xx: bool) -> bool:
        return nx if self._live(name) else xx

    def _deadline(self, ttl: float | None) -> float:
        if self.max_ttl is not None:
            ttl = self.max_ttl if ttl is None else min(ttl, self.max_ttl)
        return math.inf if ttl is None else self._now() + ttl

    def _put(self, name: str, raw: bytes, ends: float) -> None:
        self._drop(name)
        size = len(name) + len(raw)
        if size > self.max_bytes:
            self._evicted += 1
            return
        self._entries[name] = (raw, ends)
        self._bytes += size
        if self._is_over():
            self._make_room()

    def _create_counter(self, name: str, value: int, ttl: float | Literal[_Sentinel.NO_CREATE] | None) -> int:
        if ttl is NO_CREATE:
            raise Missing
        self.set(name, b"%d" % _checked(name, value), ttl)
        return value

    def _remove(self, name: str) -> bool:
        return self._live(name) is not None and self._drop(name)

    def _drop(self, name: str) -> bool:
        entry = self._entries.pop(name, None)
        if entry is None:
            return False
        self._bytes -= len(name) + len(entry[0])
        return True

    def _expire(self, name: str) -> None:
        self._drop(name)
        self._expired += 1

    def _is_over(self) -> bool:
        return len(self._entries) > self.max_entries or self._bytes > self.max_bytes

    def _make_room(self) -> None:
        now = self._now()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_INTERVAL
            self._sweep()
        while self._entries and self._is_over():
            self._drop(next(iter(self._entries)))
            self._evicted += 1

    def _sweep(self) -> None:
        now = self._now()
        for name, entry in list(self._entries.items()):
            if entry[1] <= now:
                self._expire(name)


def _integer(raw: bytes) -> int:
    try:
        if raw.removeprefix(b"-").isdigit():  # int() alone takes spaces, underscores and a plus as well
            return int(raw)
    except ValueError:
        pass  # more digits than Python converts
    raise NotInteger


def _checked(name: str, number: int) -> int:
    if COUNTER_MIN <= number <= COUNTER_MAX:
        return number
    raise CounterOverflow("INCR", name, "a counter holds 64 bits")
