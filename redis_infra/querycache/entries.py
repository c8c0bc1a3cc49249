"""Entries: what lies under a key of the query cache, as bytes.

::

    C1 51 01 | filled by, 8 | lease, 8 | lease ends, 13 digits
             | fresh, dead, cost, version, tags | stamps | value

An entry holds the lease of whoever computes its next value, because whatever removes the entry has to end the
lease with it. ``filled by`` names the lease under which the value was stored; zeros mean that there is none
yet. The stamps are those of the entry's tags from before its value was computed: once a tag is invalidated
its stamp is another one, and the entry is worth nothing. Leases end by the server's clock, values by the
wall clock of hosts, in milliseconds.

The form of the first 32 bytes is known to the ``.lua`` files too.
"""

from __future__ import annotations

import math
import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

__all__ = [
    "NOBODY",
    "STAMP",
    "Entry",
    "new_token",
    "now_ms",
    "pack_entry",
    "placeholder",
    "read_entry",
    "usable_payload",
]

MAGIC: Final = b"\xc1\x51\x01"
NOBODY: Final = bytes(8)
STAMP: Final = 8
"""Bytes of a stamp."""
_NO_LEASE: Final = b"0" * 13

_HEADER: Final = struct.Struct(">3s8s8s13sQQIHB")
_unpack = _HEADER.unpack_from
_SIZE: Final = _HEADER.size
_MOST_COST: Final = 2**32 - 1

EARLY: Final = 16
"""Computing times before the end in which early recomputation is at all likely: one in 9 million."""


class Entry(NamedTuple):
    """One entry as it was read."""

    filled_by: bytes
    fresh: int
    """Wall-clock milliseconds until which the value is good."""
    dead: int
    """Until when it may be served at all."""
    cost: int
    """Microseconds that it took to compute."""
    version: int
    stamps: bytes
    """Those of its tags, one after the other."""
    payload: bytes

    def is_good(self, version: int, stamps: bytes, now: int) -> bool:
        """Whether the value may be served at all, expired or not."""
        return self.version == version and self.stamps == stamps and now < self.dead

    def is_due(self, now: int, draw: Callable[[], float] = random.random) -> bool:
        """Whether it is time to compute it anew: it has expired, or it is this caller's turn to be early.

        XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB
        2015) with beta 1: the dearer a value and the nearer its end, the more likely.
        """
        left = self.fresh - now
        if left <= 0:
            return True
        cost = self.cost / 1000
        return left < EARLY * cost and -cost * math.log(1.0 - draw()) >= left


def read_entry(raw: bytes) -> Entry | None:
    """Return the entry in ``raw``; None if there is no value in it, or if it is none of ours."""
    if raw[:3] != MAGIC or len(raw) < _SIZE:
        return None
    _, filled_by, _, _, fresh, dead, cost, version, tags = _unpack(raw)
    if filled_by == NOBODY:
        return None
    start = _SIZE + tags * STAMP
    return Entry(filled_by, fresh, dead, cost, version, raw[_SIZE:start], raw[start:])


def usable_payload(
    raw: bytes, version: int, stamps: bytes, now: int, draw: Callable[[], float] = random.random
) -> bytes | None:
    """Return the value's bytes if it may be served and is not due; None otherwise.

    What :func:`read_entry`, ``is_good`` and ``is_due`` say together, for hits, which nearly all calls are.
    """
    if raw[:3] != MAGIC or len(raw) < _SIZE:
        return None
    _, filled_by, _, _, fresh, dead, cost, its_version, tags = _unpack(raw)
    start = _SIZE + tags * STAMP
    left = fresh - now
    if left <= 0 or now >= dead or its_version != version or filled_by == NOBODY:
        return None
    if raw[_SIZE:start] != stamps:
        return None
    millis = cost / 1000
    if left < EARLY * millis and -millis * math.log(1.0 - draw()) >= left:
        return None
    return raw[start:]


def pack_entry(
    token: bytes, *, fresh: int, dead: int, cost: float, version: int, stamps: Sequence[bytes], payload: bytes
) -> bytes:
    """Return the bytes of a value that was computed under the lease ``token`` in ``cost`` seconds."""
    micros = min(int(cost * 1e6), _MOST_COST)
    header = _HEADER.pack(MAGIC, token, NOBODY, _NO_LEASE, fresh, dead, micros, version, len(stamps))
    return b"".join((header, *stamps, payload))


def placeholder() -> bytes:
    """Return the entry of a value that is still being computed; scripts put the lease in."""
    return _HEADER.pack(MAGIC, NOBODY, NOBODY, _NO_LEASE, 0, 0, 0, 0, 0)


def now_ms() -> int:
    """Return the wall clock, in milliseconds."""
    return time.time_ns() // 1_000_000


def new_token() -> bytes:
    """Return what names a lease, or a stamp: eight bytes that nobody has had."""
    return os.urandom(8)


# --- the same for memory --------------------------------------------------------------------------------


def lease_of(raw: bytes) -> tuple[bytes, int]:
    """Return who has the lease of an entry, and until when."""
    _, _, token, ends, *_ = _unpack(raw)
    return token, int(ends)


def filler_of(raw: bytes) -> bytes:
    """Return who filled an entry; zeros if nobody has."""
    return raw[3:11]


def with_lease(raw: bytes, token: bytes, ends: int) -> bytes:
    """Return an entry with another lease."""
    return b"%b%b%013d%b" % (raw[:11], token, ends, raw[32:])


def is_entry(raw: bytes | None) -> bool:
    return raw is not None and raw[:3] == MAGIC and len(raw) >= _SIZE
