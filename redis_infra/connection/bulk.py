"""Work on many keys, in batches small enough that no command of ours is the slow one.

Without I/O, as all conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack

__all__ = ["BATCH", "batches", "scan", "unlink", "unlink_matching"]

T = TypeVar("T")

BATCH = 1000
"""Keys a command, at most. SCAN with COUNT 1000 is 19 times faster than django-redis' 10 and takes
the server well under a millisecond (research: ux, 0.2)."""


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Cut ``items`` into lists of at most ``size``."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def unlink(names: Sequence[str | bytes]) -> Talk:
    """Remove ``names``; returns how many were there."""
    removed = 0
    for batch in batches(names):
        removed += yield pack("UNLINK", *batch)
    return removed


def unlink_matching(
    pattern: str,
    *,
    count: int = BATCH,
    seen: set[str] | None = None,
    only: Callable[[str], object] | None = None,
) -> Talk:
    """Remove all keys that match the glob; returns how many. Other keys are only looked at.

    The names met are taken out of ``seen``; of them ``only`` may choose.
    """
    removed, cursor = 0, b"0"
    while True:
        cursor, names = yield scan(cursor, pattern, count)
        if seen:
            seen.difference_update(map(_text, names))
        if only is not None:
            names = [name for name in names if only(_text(name))]
        for batch in batches(names):
            removed += yield pack("UNLINK", *batch)
        if cursor == b"0":
            return removed


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def scan(cursor: bytes, pattern: str, count: int = BATCH) -> bytes:
    """One step of SCAN."""
    return pack("SCAN", cursor, "MATCH", pattern, "COUNT", count)
