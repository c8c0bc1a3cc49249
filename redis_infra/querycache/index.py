"""The index: which entries there are, in lexical order, so that a pattern costs what it deletes.

A sorted set for each of 64 buckets. An entry belongs to the bucket of its first two fields
(``chat:42`` of ``chat:42:messages:1``), so a pattern that begins with them looks into one; any other looks
into all. Members are ``=key``, and ``#tag NUL key`` for each of an entry's tags.

An index can be lost, to an eviction or to somebody's UNLINK, and then begins anew with what is written from
then on. It is trusted only with the member ``!`` in it, which is lost with it and which nobody sets but who
has looked at all keys there are (:mod:`redis_infra.querycache.rebuilding`). Without it, all keys are looked
at by SCAN, for what the pattern is for and for nothing else.

Without I/O: conversations, for whoever has a connection.
"""

from __future__ import annotations

import logging
import random
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from redis_infra.connection.bulk import BATCH, batches, scan, unlink_matching
from redis_infra.connection.scripts import Script, Talk, is_unknown_script
from redis_infra.connection.wire import pack
from redis_infra.keys import escape, glob_to_regex, is_literal, literal_start

__all__ = ["BUCKETS", "Command", "Index", "Selection", "bucket_of", "bucket_of_bytes", "run_many"]

logger = logging.getLogger(__name__)

BUCKETS: Final = 64
STAY: Final = 24 * 3600 * 1000
"""Milliseconds for which an index stays at least after the last write to it."""
TOGETHER: Final = 4
"""Buckets that are looked at in one write: 4,000 members, which take the server about a millisecond."""
FEW: Final = 100
"""Members that are read and matched here: less work than to have the server look at all of an index."""
LEASES: Final = 16
"""Leases after which four buckets are looked at for members whose entries are gone."""
TRAVEL: Final = 4
"""How many members the server looks at in the time in which one of them is read and matched here."""

SWEEP = Script("redis_infra.querycache", "sweep")
DROP = Script("redis_infra.querycache", "drop")
PAGE = Script("redis_infra.querycache", "page")
PRUNE = Script("redis_infra.querycache", "prune", uses=("dead",))

Command: TypeAlias = tuple[tuple[str, ...], tuple[str | bytes | int, ...]]
"""Keys and arguments of a script."""


def bucket_of(key: str) -> int:
    """Return the bucket of an entry: that of its first two fields."""
    first, _, rest = key.partition(":")
    return zlib.crc32(f"{first}:{rest.partition(':')[0]}".encode()) % BUCKETS


def bucket_of_bytes(key: bytes) -> int:
    """Return what :func:`bucket_of` does, of a key as the server has it, which need not be text."""
    first, _, rest = key.partition(b":")
    return zlib.crc32(b"%b:%b" % (first, rest.partition(b":")[0])) % BUCKETS


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
        self._leases = 0

    def members(self, key: str, tags: Iterable[str]) -> tuple[str, ...]:
        """Return how an entry is written down in the index of its bucket."""
        return (f"={key}", *[f"#{tag}\0{key}" for tag in tags])

    def prune(self, leases: int) -> Talk:
        """Remove some of what stands for nothing any more, in any bucket; for so many leases that were asked.

        Does nothing most of the time: it is done for sixteen leases at once.
        """
        before, self._leases = self._leases, self._leases + leases
        rounds = self._leases // LEASES - before // LEASES
        if rounds:
            start = random.randrange(len(self.names))  # noqa: S311  # which one is no secret
            yield from PRUNE.talk(self.names, self.base, 4 * rounds, start)

    # Removing

    def drop(self, keys: Iterable[str]) -> Talk:
        """Remove entries by key; returns how many there were."""
        found: dict[str, list[str]] = {}
        for key in keys:
            found.setdefault(self.names[bucket_of(key)], []).append(key)
        return (yield from self._drop(found))

    def _drop(self, found: Mapping[str, Sequence[str]]) -> Talk:
        """Remove entries by key, for each index; a thousand in one write."""
        removed = 0
        for batch in batches((name, key) for name, keys in found.items() for key in keys):
            commands: list[Command] = [
                ((name,), (self.base, *[key for _, key in some]))
                for name, some in groupby(batch, key=itemgetter(0))
            ]
            removed += sum((yield from run_many(DROP, commands)))
        return removed

    def remove(self, selection: Selection) -> Talk:
        """Remove the entries of a pattern; returns how many there were, and whether the index is complete."""
        if selection.key is not None:
            return (yield from self.drop([selection.key])), True
        if not selection.start:
            logger.debug("redis_infra.pattern_without_start pattern=%s", selection.pattern)
        if selection.is_prefix:
            first, last = _stretch("=", selection.start)
            removed, incomplete = yield from self._sweep(self._names_for(selection), first, last)
        else:
            removed, incomplete = yield from self._pick(selection)
        if incomplete:
            # What was written before the index was lost is only to be found by looking at all keys. Those
            # that somebody writes down meanwhile, to rebuild it, are pruned as those are that expire.
            name_matches = glob_to_regex(f"{escape(self.base)}{selection.pattern}").match
            removed += yield from unlink_matching(self._glob(selection), only=name_matches)
        return removed, not incomplete

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

    def _pick(self, selection: Selection) -> Talk:
        """Remove those in a stretch that the glob matches."""
        removed, incomplete = 0, 0
        for names in batches(self._names_for(selection), TOGETHER):
            found, lost = yield from _keys_in(names, selection)
            incomplete += lost
            removed += yield from self._drop(found)
        return removed, incomplete

    def _names_for(self, selection: Selection) -> Sequence[str]:
        return self.names if selection.bucket is None else (self.names[selection.bucket],)

    def _glob(self, selection: Selection) -> str:
        """Return what the server finds all names of a selection with; perhaps others, too."""
        return f"{escape(self.base)}{_widened(selection.pattern)}"

    # Looking

    def matching(self, selection: Selection) -> Talk:
        """Return the keys of a pattern, of dead entries too; of living ones only where an index is lost."""
        if selection.key is not None:
            return [selection.key]
        keys: list[str] = []
        for names in batches(self._names_for(selection), TOGETHER):
            found, lost = yield from _keys_in(names, selection)
            if lost:
                return (yield from self._scanned(selection))
            keys += [key for some in found.values() for key in some]
        return keys

    def _scanned(self, selection: Selection) -> Talk:
        """Return the keys of a pattern among all that there are."""
        matches = glob_to_regex(selection.pattern).match
        start = len(self.base)
        found: dict[str, None] = {}  # SCAN may name one twice
        cursor = b"0"
        while True:
            cursor, page = yield scan(cursor, self._glob(selection), BATCH)
            keys = [name.decode("utf-8", "surrogateescape")[start:] for name in page]
            found.update(dict.fromkeys(filter(matches, keys)))
            if cursor == b"0":
                return list(found)

    def tagged(self, tag: str) -> Talk:
        """Return the keys of a tag that the index knows of."""
        found: list[str] = []
        for name in self.names:
            members, _ = yield from _paged(name, *_stretch("#", f"{tag}\0"))
            found += map(_key_of, members)
        return list(dict.fromkeys(found))


def run_many(script: Script, commands: Sequence[Command]) -> Talk:
    """Run a script for each of many, a thousand in one write; returns their replies."""
    found: list[Any] = []
    for batch in batches(commands):
        turn = b"".join([script.packed(*command) for command in batch])
        try:
            found += yield turn, len(batch)
        except Exception as error:
            if not is_unknown_script(error):
                raise
            # None of them was executed: the server had not met the script.
            first, *rest = batch
            turn = b"".join([script.whole(*first), *[script.packed(*command) for command in rest]])
            found += yield turn, len(batch)
    return found


def _stretch(kind: str, start: str) -> tuple[bytes, bytes]:
    """Return the first and last of what begins so; no text has the byte 0xFF in it."""
    text = f"{kind}{start}".encode("utf-8", "surrogateescape")
    return b"[" + text, b"(" + text + b"\xff"


def _keys_in(names: Sequence[str], selection: Selection) -> Talk:
    """Return the keys of a pattern that each index knows of, and how many of the indexes are incomplete."""
    matches = glob_to_regex(selection.pattern).match
    first, last = _stretch("=", selection.start)
    sizes = b"".join([pack("ZLEXCOUNT", name, first, last) + pack("ZCARD", name) for name in names])
    counts = yield sizes, 2 * len(names)
    wide = [
        name
        for name, stretch, all_ in zip(names, counts[::2], counts[1::2], strict=True)
        if stretch > FEW and stretch * TRAVEL > all_
    ]
    found, lost = yield from _matched(wide, f"={_widened(selection.pattern)}")
    for name in names:
        if name not in found:
            found[name], is_complete = yield from _paged(name, first, last)
            lost += not is_complete
    return {name: list(filter(matches, map(_key_of, members))) for name, members in found.items()}, lost


def _paged(name: str, first: bytes, last: bytes) -> Talk:
    """Return the members of a stretch, read a thousand at a time, and whether the index was complete."""
    members: list[bytes] = []
    is_complete = True
    while True:
        # With each page: the index may be lost between any two.
        page, marked = yield from PAGE.talk((name,), first, last, BATCH)
        is_complete = is_complete and bool(marked)
        members += page
        if len(page) < BATCH:
            return members, is_complete
        first = b"(" + page[-1]


def _matched(names: Sequence[str], glob: str) -> Talk:
    """Return the members that match, of each index, and how many of these were incomplete.

    The server looks at all that an index has, and only what matches travels.
    """
    found: dict[str, dict[bytes, None]] = {name: {} for name in names}  # ZSCAN may name one twice
    lost: set[str] = set()
    cursors = dict.fromkeys(names, b"0")
    while cursors:
        turns = [
            pack("ZSCAN", name, cursor, "MATCH", glob, "COUNT", BATCH) + pack("ZSCORE", name, "!")
            for name, cursor in cursors.items()
        ]
        replies = yield b"".join(turns), 2 * len(turns)
        for name, (cursor, page), mark in zip(list(cursors), replies[::2], replies[1::2], strict=True):
            found[name].update(dict.fromkeys(page[::2]))
            if mark is None:
                lost.add(name)
            cursors[name] = cursor
            if cursor == b"0":
                del cursors[name]
    return {name: list(members) for name, members in found.items()}, len(lost)


def _widened(pattern: str) -> str:
    """Return a glob for the server that matches all that ours does, and may match more.

    It counts bytes, and we characters: what takes one character of ours takes one byte of its, or several.
    """
    return _ONE_OF_SEVERAL.sub(lambda found: found[0] if found[0][0] == "\\" else "?*", pattern)


_ONE_OF_SEVERAL: Final = re.compile(r"\\.|(?:\?|\[\^?(?:\\.|[^\]]-.|[^\]])*\]?)+", re.DOTALL)
"""An escaped character, or wildcards for one each; a class ends where Redis ends it (``[a-]x]`` is one)."""


def _key_of(member: bytes) -> str:
    key = member.rpartition(b"\0")[2] if member[:1] == b"#" else member[1:]
    return key.decode("utf-8", "surrogateescape")
