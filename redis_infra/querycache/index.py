"""The index: which entries there are, in lexical order, so that a pattern costs what it deletes.

A sorted set for each of 64 buckets. An entry belongs to the bucket of its first two fields
(``chat:42`` of ``chat:42:messages:1``), so a pattern that begins with them looks into one; any other looks
into all. Members are ``=key``, and ``#tag NUL key`` for each of an entry's tags.

An index can be lost, to an eviction or to somebody's UNLINK, and then begins anew with what is written from
then on. It is trusted only with the member ``!`` in it, which is lost with it and which nobody sets but
:func:`rebuilding`, that has looked at all keys there are.

Without I/O: conversations, for whoever has a connection.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from redis_infra.connection.bulk import BATCH, batches, scan
from redis_infra.connection.scripts import Script, Talk
from redis_infra.connection.wire import pack
from redis_infra.keys import escape, glob_to_regex, is_literal, literal_start

__all__ = ["BUCKETS", "Index", "Selection", "bucket_of"]

logger = logging.getLogger(__name__)

BUCKETS: Final = 64
STAY: Final = 24 * 3600 * 1000
"""Milliseconds for which an index stays at least after the last write to it."""

SWEEP = Script("redis_infra.querycache", "sweep")
DROP = Script("redis_infra.querycache", "drop")
PAGE = Script("redis_infra.querycache", "page")
COMPLETE = Script("redis_infra.querycache", "complete")


def bucket_of(key: str) -> int:
    """Return the bucket of an entry: that of its first two fields."""
    first, _, rest = key.partition(":")
    return zlib.crc32(f"{first}:{rest.partition(':')[0]}".encode()) % BUCKETS


class Selection(NamedTuple):
    """The entries that a pattern is for, and where they are to be found."""

    pattern: str
    key: str | None
    """The only one, where the pattern has no wildcard."""
    start: str
    """What all their keys begin with."""
    is_prefix: bool
    """Whether all that begins so is meant."""
    bucket: int | None
    """The bucket that all of them are in; None where they are in several."""

    @classmethod
    def of(cls, pattern: str) -> Selection:
        start = literal_start(pattern)
        bucket = bucket_of(start) if start.count(":") >= 2 or is_literal(pattern) else None
        if is_literal(pattern):
            return cls(pattern, start, start, False, bucket)
        return cls(pattern, None, start, pattern == f"{escape(start)}*", bucket)


class Index:
    """The indexes of one alias' query cache, by the text that all of its names begin with."""

    def __init__(self, base: str, names: Sequence[str]) -> None:
        self.base = base
        self.names = tuple(names)
        """Of each bucket's index."""

    def members(self, key: str, tags: Iterable[str]) -> tuple[str, ...]:
        """Return how an entry is written down in the index of its bucket."""
        return (f"={key}", *[f"#{tag}\0{key}" for tag in tags])

    # Removing

    def drop(self, keys: Iterable[str]) -> Talk:
        """Remove entries by key; returns how many there were."""
        removed = 0
        for bucket, found in groupby(sorted(keys, key=bucket_of), key=bucket_of):
            for batch in batches(found):
                removed += yield from DROP.talk((self.names[bucket],), self.base, *batch)
        return removed

    def remove(self, selection: Selection) -> Talk:
        """Remove the entries of a pattern; returns how many there were."""
        if selection.key is not None:
            return (yield from self.drop([selection.key]))
        if not selection.start:
            logger.debug("redis_infra.pattern_without_start pattern=%s", selection.pattern)
        names = self.names if selection.bucket is None else (self.names[selection.bucket],)
        if selection.is_prefix:
            removed, incomplete = yield from self._sweep(names, *_stretch("=", selection.start))
        else:
            removed, incomplete = yield from self._pick(names, selection)
        if incomplete:
            # What was written before the index was lost is only to be found by looking at all keys.
            removed += yield from self.rebuild(selection)
        return removed

    def remove_tagged(self, tag: str) -> Talk:
        """Remove the entries of a tag that the index knows of; returns how many there were.

        Those that it does not know of are worth nothing all the same, by the tag's stamp.
        """
        removed, _ = yield from self._sweep(self.names, *_stretch("#", f"{tag}\0"))
        return removed

    def _sweep(self, names: Sequence[str], first: bytes, last: bytes) -> Talk:
        removed = 0
        while True:
            found, more, incomplete = yield from SWEEP.talk(tuple(names), self.base, first, last, BATCH)
            removed += found
            if not more:
                return removed, incomplete

    def _pick(self, names: Sequence[str], selection: Selection) -> Talk:
        """Remove those in a stretch that the glob matches, which the server cannot tell."""
        removed, incomplete = 0, 0
        for name in names:
            keys, is_complete = yield from self._keys_in(name, selection)
            incomplete += not is_complete
            removed += yield from self.drop(keys)
        return removed, incomplete

    # Looking

    def matching(self, selection: Selection) -> Talk:
        """Return the keys of a pattern that the index knows of, of living and of dead entries."""
        if selection.key is not None:
            return [selection.key]
        names = self.names if selection.bucket is None else (self.names[selection.bucket],)
        found: list[str] = []
        for name in names:
            keys, _ = yield from self._keys_in(name, selection)
            found += keys
        return found

    def tagged(self, tag: str) -> Talk:
        """Return the keys of a tag that the index knows of."""
        found: list[str] = []
        for name in self.names:
            first, last = _stretch("#", f"{tag}\0")
            pages, _ = yield from _pages(name, first, last)
            found += [_key_of(member) for page in pages for member in page]
        return list(dict.fromkeys(found))

    def _keys_in(self, name: str, selection: Selection) -> Talk:
        matches = glob_to_regex(selection.pattern).match
        pages, is_complete = yield from _pages(name, *_stretch("=", selection.start))
        return [key for page in pages for key in map(_key_of, page) if matches(key)], is_complete

    # When it was lost

    def make_sure(self) -> Talk:
        """Rebuild what was lost, if anything was: who only looks must not be told too little."""
        if (yield from self._lost()):
            yield from self.rebuild()

    def rebuild(self, selection: Selection | None = None) -> Talk:
        """Look at all keys of the database, index those of lost indexes, and remove those of ``selection``.

        Returns how many were removed. Entries that are written meanwhile index themselves.
        """
        lost = yield from self._lost()
        names = tuple(self.names[bucket] for bucket in sorted(lost))
        ticket = os.urandom(8).hex()
        if names:
            yield from COMPLETE.talk(names, ticket, "begin", STAY)
        matches = glob_to_regex(selection.pattern).match if selection is not None else None
        removed, found, cursor = 0, 0, b"0"
        while True:
            cursor, page = yield scan(cursor, f"{escape(self.base)}*", BATCH)
            keys = [name.decode("utf-8", "surrogateescape")[len(self.base) :] for name in page]
            if matches is not None:
                removed += yield from self.drop([key for key in keys if matches(key)])
                keys = [key for key in keys if not matches(key)]
            keys = [key for key in keys if bucket_of(key) in lost]
            if keys:
                found += len(keys)
                yield from self._add(keys)
            if cursor == b"0":
                break
        complete = (yield from COMPLETE.talk(names, ticket, "end", STAY)) if names else 0
        if found or removed:  # else there was nothing that could have been lost: a new server
            logger.info("redis_infra.index_rebuilt complete=%d of=%d", complete, len(names))
        return removed

    def _lost(self) -> Talk:
        """Return the buckets whose index is not complete."""
        marks = yield b"".join([pack("ZSCORE", name, "!") for name in self.names]), len(self.names)
        return {bucket for bucket, mark in enumerate(marks) if mark is None}

    def _add(self, keys: list[str]) -> Talk:
        turns = []
        for bucket, found in groupby(sorted(keys, key=bucket_of), key=bucket_of):
            members = [argument for key in found for argument in (0, f"={key}")]
            turns.append(pack("ZADD", self.names[bucket], *members))
        yield b"".join(turns), len(turns)


def _stretch(kind: str, start: str) -> tuple[bytes, bytes]:
    """Return the first and last of what begins so; no text has the byte 0xFF in it."""
    text = f"{kind}{start}".encode("utf-8", "surrogateescape")
    return b"[" + text, b"(" + text + b"\xff"


def _pages(name: str, first: bytes, last: bytes) -> Talk:
    """Return the members of a stretch, in pages of a thousand, and whether the index was complete."""
    pages: list[list[bytes]] = []
    is_complete = True
    while True:
        # With each page: the index may be lost between any two.
        page, marked = yield from PAGE.talk((name,), first, last, BATCH)
        is_complete = is_complete and bool(marked)
        pages.append(page)
        if len(page) < BATCH:
            return pages, is_complete
        first = b"(" + page[-1]


def _key_of(member: bytes) -> str:
    key = member.rpartition(b"\0")[2] if member[:1] == b"#" else member[1:]
    return key.decode("utf-8", "surrogateescape")
