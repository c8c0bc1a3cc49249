"""What ``manage.py cache_clear`` selects: what there is of it, and how it goes.

A selection is of the query cache of one alias, by data type, pattern and tag; or it is all of the alias.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from redis_infra.cache.fallback import FallbackStore
from redis_infra.cache.operations import Plan
from redis_infra.conf import did_you_mean, get_settings
from redis_infra.connection.bulk import BATCH, batches, scan
from redis_infra.connection.scripts import Talk
from redis_infra.connection.wire import pack
from redis_infra.exceptions import SettingsError, StoreUnavailable
from redis_infra.instrumentation import notify_cleared
from redis_infra.keys import escape
from redis_infra.querycache.decorators import functions
from redis_infra.querycache.reach import check_reach
from redis_infra.querycache.space import Space
from redis_infra.querycache.tallies import tallies
from redis_infra.resilience.failover import Kind

__all__ = ["Cleared", "Extent", "Selector", "clear", "extent_of", "patterns_of_type"]

SAMPLE: Final = 1000
"""Keys whose memory is asked for; of more, so many at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """What is to go. With ``all``, everything under the alias, also what is not of the query cache."""

    alias: str = "default"
    types: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    all: bool = False

    def __bool__(self) -> bool:
        return bool(self.types or self.patterns or self.tags or self.all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much a selector selects."""

    keys: int
    size: int | None
    """Bytes on the server; None if it may not be asked."""
    sampled: int
    """From how many keys ``size`` was estimated; 0 if it was counted."""
    unavailable: str = ""
    """Why Redis could not be reached; then it is what this process' memory holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What became of it."""

    removed: int
    """Entries, or keys; where Redis is away, those in this process' memory."""
    unavailable: str
    """Why Redis could not be reached. It will forget them before it is read again."""


def patterns_of_type(kind: str, alias: str) -> list[str]:
    """Return the patterns of a data type: of its functions' keys, and of what begins with its name.

    Raises:
        SettingsError: there is no such type.
    """
    there = [(each._recipe.policy.kind, each.glob) for each in functions.values() if each.cache == alias]
    # What a function has stored outlives it, if it was decorated within another one.
    known = [*there, *[(of.kind, of.glob) for of in tallies.known() if of.alias == alias and of.glob]]
    types = {*get_settings().ttl, *[each for each, _ in known]}
    if kind not in types:
        raise SettingsError(
            f"{kind!r} is not a data type{did_you_mean(kind, types)} "
            f"(for keys that begin with it: --pattern '{escape(kind)}:*')"
        )
    found = [f"{escape(kind)}:*"]
    for its_kind, glob in known:
        if its_kind == kind:
            found += _patterns_of(glob)
    return list(dict.fromkeys(found))


def _patterns_of(glob: str) -> list[str]:
    """Return the patterns of all keys that a function can have; what one varies by stands behind it."""
    return [glob] if glob.endswith("*") else [glob, f"{glob}:@*"]


# --- how much there is ----------------------------------------------------------------------------------


def extent_of(space: Space, selector: Selector) -> Extent:
    """Count what is selected, and its bytes; of more than a thousand keys, bytes are estimated."""
    lost = _absence(space)
    try:
        names = space.engine.run(_find(space, selector))
        extent: Extent = space.engine.run(_measure(names))
    except StoreUnavailable as error:  # ON_OUTAGE "raise"
        extent, lost = Extent(keys=0, size=None, sampled=0), error.reason
    return replace(extent, unavailable=lost)


def _find(space: Space, selector: Selector) -> Plan:
    """Answer: names of what is selected; also of entries that have ended."""
    if not selector.all:
        return space.find(_patterns(selector), selector.tags)
    home = space.backend._home

    def talk() -> Talk:
        return [name for name in (yield from _scanned(home.pattern)) if name in home]

    def local(store: FallbackStore) -> list[str]:
        return [name for name in store.names(home.pattern) if name in home]

    return Plan(Kind.READ, (), None, local, talk=talk)


def _scanned(pattern: str) -> Talk:
    found: dict[str, None] = {}  # SCAN may name one twice
    cursor = b"0"
    while True:
        cursor, names = yield scan(cursor, pattern, BATCH)
        found.update(dict.fromkeys(name.decode("utf-8", "surrogateescape") for name in names))
        if cursor == b"0":
            return list(found)


def _measure(names: list[str]) -> Plan:
    """Answer: the extent of those that there are."""

    def talk() -> Talk:
        keys = 0
        for batch in batches(names):
            keys += yield pack("EXISTS", *batch)
        some = names if len(names) <= SAMPLE else random.sample(names, SAMPLE)
        sizes = yield from _sizes(some)
        if sizes is None:
            return Extent(keys=keys, size=None, sampled=0)
        there = [size for size in sizes if size is not None]
        if some is names:
            return Extent(keys=keys, size=sum(there), sampled=0)
        return Extent(keys=keys, size=round(keys * sum(there) / max(len(there), 1)), sampled=len(there))

    def local(store: FallbackStore) -> Extent:
        found = [(name, raw) for name in names if (raw := store.get(name)) is not None]
        return Extent(keys=len(found), size=sum(len(name) + len(raw) for name, raw in found), sampled=0)

    return Plan(Kind.READ, (), None, local, talk=talk)


def _sizes(names: list[str]) -> Talk:
    """Return the bytes of each, None of those that are gone; None if an ACL forbids to ask."""
    if not names:
        return []
    try:
        return (yield b"".join([pack("MEMORY", "USAGE", name) for name in names]), len(names))
    except Exception as error:
        if "NOPERM" in str(error) or "permission" in str(error):
            return None
        raise


# --- removing -------------------------------------------------------------------------------------------


def clear(space: Space, selector: Selector, watch: Callable[[str], None]) -> Cleared:
    """Remove what is selected; ``watch`` is told of each part before it goes.

    Where Redis is away, this process' memory forgets it at once, and Redis before it is read again.
    """
    removed, lost = 0, ""
    for what, remove in _removals(space, selector):
        watch(what)
        try:
            removed += remove()
        except StoreUnavailable as error:  # ON_OUTAGE "raise": it is journalled all the same
            lost = error.reason
    return Cleared(removed=removed, unavailable=_absence(space) or lost)


def _removals(space: Space, selector: Selector) -> Iterator[tuple[str, Callable[[], int]]]:
    engine = space.engine
    if selector.all:
        yield "everything", partial(_clear_all, space)
    for pattern in _patterns(selector):
        yield pattern, partial(engine.run, space.remove(pattern))
    for tag in selector.tags:
        yield f"tag {tag}", partial(engine.run, space.remove_tagged(tag))


def _clear_all(space: Space) -> int:
    """Do what ``cache.clear()`` does, and count."""
    removed: int = space.engine.run(space.backend._clear())
    notify_cleared(space.backend)
    return removed


def _patterns(selector: Selector) -> list[str]:
    of_types = [pattern for kind in selector.types for pattern in patterns_of_type(kind, selector.alias)]
    return list(dict.fromkeys([*of_types, *selector.patterns]))


def _absence(space: Space) -> str:
    try:
        check_reach(space, stores=False)
    except StoreUnavailable as error:
        return error.reason
    return ""
