"""``invalidate``: what is kept is forgotten, by pattern and by tag.

Patterns are Redis' globs over keys as their templates write them; ``keys.escape`` makes literal text of
anything, and ``keys.value`` writes a value as keys have it.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis_infra.querycache import transactions
from redis_infra.querycache.space import space_for
from redis_infra.querycache.transactions import Invalidation

__all__ = ["ainvalidate", "carry_out", "invalidate"]


def invalidate(
    *patterns: str, tag: str | None = None, tags: Iterable[str] = (), cache: str = "default"
) -> int:
    """Forget what matches a pattern or has a tag; return how many entries there were.

    In ``atomic()`` it happens at commit, and 0 is returned; not at all on rollback. In an outage it holds
    for this process at once, and for Redis before it is read again.

    Raises:
        ValueError: nothing is named, or everything (``"*"``).
        SettingsError: there is no such cache.
    """
    wanted = _wanted(patterns, tag, tags)
    action = Invalidation(cache, *wanted, carry_out)
    connection = transactions.open_transaction()
    if connection is not None:
        transactions.at_commit(action, connection)
        return 0
    return action()


async def ainvalidate(
    *patterns: str, tag: str | None = None, tags: Iterable[str] = (), cache: str = "default"
) -> int:
    """:func:`invalidate` in the running event loop."""
    wanted_patterns, wanted_tags = _wanted(patterns, tag, tags)
    space = space_for(cache)
    if space is None:
        return 0
    removed = 0
    for pattern in wanted_patterns:
        removed += await space.engine.arun(space.remove(pattern))
    for each in wanted_tags:
        removed += await space.engine.arun(space.remove_tagged(each))
    return removed


def carry_out(action: Invalidation) -> int:
    """Forget what an action names; return how many entries there were."""
    space = space_for(action.alias)
    if space is None:
        return 0
    removed = 0
    for pattern in action.patterns:
        removed += space.engine.run(space.remove(pattern))
    for tag in action.tags:
        removed += space.engine.run(space.remove_tagged(tag))
    return removed


def _wanted(
    patterns: tuple[str, ...], tag: str | None, tags: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return patterns and tags, checked."""
    wanted_tags = ((tag,) if tag is not None else ()) + ((tags,) if isinstance(tags, str) else tuple(tags))
    for each in (*patterns, *wanted_tags):
        if not isinstance(each, str):
            raise ValueError(f"{each!r} is neither a pattern nor a tag; write such as 'chat:42:*'")
        if not each:
            raise ValueError("an empty pattern or tag matches nothing; write such as 'chat:42:*'")
    for pattern in patterns:
        if not pattern.strip("*"):
            raise ValueError(f"{pattern!r} would forget everything; run: manage.py cache_clear --all")
    if not patterns and not wanted_tags:
        raise ValueError("nothing to forget: name a pattern, such as 'chat:42:*', or tag='room:42'")
    return tuple(patterns), wanted_tags
