"""How much of Redis' memory each data type of the query cache takes, by a sample.

Looks at 100,000 keys of a database at most (SCAN), and asks for the size of 1,000 of them; what is beyond is
reckoned from that. Reads only, and never KEYS.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from redis_infra.cache.engine import RedisEngine
from redis_infra.connection.bulk import BATCH, batches, scan
from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack
from redis_infra.exceptions import SettingsError
from redis_infra.keys import escape, glob_to_regex
from redis_infra.observability.counts import Subject
from redis_infra.observability.health import our_aliases
from redis_infra.querycache.space import Space, space_for

__all__ = ["INDEX", "Sample", "TypeSize", "kinds_of", "sample_memory"]

MOST_LOOKED_AT: Final = 100_000
MOST_MEASURED: Final = 1000
_AT_ONCE: Final = 200
INDEX: Final = "(index)"
"""What the query cache keeps beside its entries: names by pattern and tag, stamps of tags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeSize:
    """One data type. ``nbytes`` is None where the server does not say (an ACL, a hosted service)."""

    name: str
    keys: int
    nbytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was found. Where not all keys were looked at, counts are reckoned from those that were."""

    missing: dict[str, str]
    """Aliases whose server could not be asked, and why."""

    is_complete: bool
    """Whether all keys were looked at; sizes are reckoned from those of 1,000 in any case."""
    keys: int
    nbytes: int | None
    types: tuple[TypeSize, ...]


class _Found:
    """Names by type, as many as are to be measured, and how many there were."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()
        self.chosen: list[tuple[str, bytes]] = []
        self._seen = 0

    def take(self, kind: str, name: bytes) -> None:
        """Count it; keep a fair choice of all (reservoir sampling)."""
        self.keys[kind] += 1
        self._seen += 1
        if len(self.chosen) < MOST_MEASURED:
            self.chosen.append((kind, name))
            return
        at = random.randrange(self._seen)  # noqa: S311  # a sample, not a secret
        if at < MOST_MEASURED:
            self.chosen[at] = (kind, name)


def sample_memory(rows: Iterable[Subject]) -> Sample:
    """Look at the query caches of all aliases; ``rows`` say which keys belong to which type."""
    from redis_infra.connection.failures import describe

    rows = list(rows)
    sizes: list[TypeSize] = []
    missing: dict[str, str] = {}
    is_complete = True
    for alias, space, engine in _spaces():
        kind_of = kinds_of(rows, alias)
        try:
            found, looked_at = engine.connections.converse(_measure(space.base(), kind_of))
        except Exception as error:  # whatever it is: the other aliases, and all counts, are worth having
            missing[alias] = describe(error)
            continue
        sizes += found
        is_complete = is_complete and looked_at
    names = dict.fromkeys(each.name for each in sizes)
    types = tuple(_together(name, [each for each in sizes if each.name == name]) for name in names)
    entries = [each for each in types if each.name != INDEX]
    return Sample(
        missing=missing,
        is_complete=is_complete,
        keys=sum(each.keys for each in entries),
        nbytes=_total(types),
        types=tuple(sorted(types, key=lambda each: (each.name == INDEX, -(each.nbytes or 0), each.name))),
    )


def _spaces() -> list[tuple[str, Space, RedisEngine]]:
    """Return the query caches that are in Redis; aliases that share one are named once."""
    found: dict[tuple[str, str], tuple[str, Space, RedisEngine]] = {}
    for alias in our_aliases():
        with suppress(SettingsError):  # no query cache there, and cache_health says why
            space = space_for(alias)
            if space is not None and isinstance(space.engine, RedisEngine):
                found.setdefault((space.engine.options.keyspace, space.base()), (alias, space, space.engine))
    return list(found.values())


def _together(name: str, sizes: Sequence[TypeSize]) -> TypeSize:
    return TypeSize(name=name, keys=sum(each.keys for each in sizes), nbytes=_total(sizes))


def _total(sizes: Sequence[TypeSize]) -> int | None:
    known = [each.nbytes for each in sizes if each.nbytes is not None]
    return sum(known) if len(known) == len(sizes) else None


# --- one database ---------------------------------------------------------------------------------------


def _measure(base: str, kind_of: Callable[[str], str]) -> Talk:
    """Return the sizes of the types, and whether all keys were looked at."""
    found, looked_at, cursor = _Found(), 0, b"0"
    start = base.encode()
    pattern = f"{escape(base[:-1])}[:it]*"  # entries, the index, tags
    while True:
        cursor, names = yield scan(cursor, pattern)
        looked_at += BATCH
        for name in names:
            kind = _kind(name, start, kind_of)
            if kind is not None:
                found.take(kind, name)
        if cursor == b"0" or looked_at >= MOST_LOOKED_AT:
            break
    scale = 1.0
    if cursor != b"0":
        scale = max(1.0, (yield pack("DBSIZE")) / looked_at)
    sizes = yield from _sizes(found.chosen)
    return _reckoned(found.keys, sizes, scale), cursor == b"0"


def _kind(name: bytes, start: bytes, kind_of: Callable[[str], str]) -> str | None:
    """Return the type of a key; None for what somebody else keeps under such a name."""
    if name.startswith(start):
        return kind_of(name[len(start) :].decode("utf-8", "surrogateescape"))
    return INDEX if name[len(start) - 1 :].startswith((b"i:{", b"t:")) else None


def _sizes(chosen: Sequence[tuple[str, bytes]]) -> Talk:
    """Return the sizes of each type's keys; None where the server does not say. What has gone has none."""
    from redis.exceptions import ResponseError

    sizes: dict[str, list[int]] = {}
    for batch in batches(chosen, _AT_ONCE):
        try:
            replies = yield b"".join([pack("MEMORY", "USAGE", name) for _, name in batch]), len(batch)
        except ResponseError:  # NOPERM, or no such command: the rest of the report is worth having
            return None
        for (kind, _), size in zip(batch, replies, strict=True):
            if size is not None:
                sizes.setdefault(kind, []).append(size)
    return sizes


def _reckoned(keys: Counter[str], sizes: dict[str, list[int]] | None, scale: float) -> list[TypeSize]:
    found = []
    for name, count in keys.items():
        there = round(count * scale)
        known = None if sizes is None else sizes.get(name, [0])
        nbytes = None if known is None else round(there * sum(known) / len(known))
        found.append(TypeSize(name=name, keys=there, nbytes=nbytes))
    return found


# --- which key is of which type -------------------------------------------------------------------------


def kinds_of(rows: Iterable[Subject], alias: str) -> Callable[[str], str]:
    """Return what tells the type of a key: the templates of functions, else its first field."""
    by_lead: dict[str, list[tuple[Callable[[str], object], str]]] = {}
    known = [each for each in rows if each[0] == "function" and len(each) == 5 and each[1] == alias]
    # The longest first: "chat:*:messages:*" says more than "chat:*".
    for subject in sorted(known, key=lambda each: -len(each[4])):
        by_lead.setdefault(_lead(subject[4]), []).append((glob_to_regex(subject[4]).match, subject[2]))
    anywhere = by_lead.get("*", [])

    def kind_of(key: str) -> str:
        kind: str
        for matches, kind in (*by_lead.get(_lead(key), ()), *anywhere):
            if matches(key):
                return kind
        return _lead(key)

    return kind_of


def _lead(text: str) -> str:
    first = text.partition(":")[0]
    return "*" if set(first) & set("*?[\\") else first
