"""``invalidate``: what is kept is forgotten, by pattern and by tag.

Patterns are Redis' globs over keys as their templates write them; ``keys.escape`` makes literal text of
anything, and ``keys.value`` writes a value as keys have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redis_infra.conf import did_you_mean, get_settings
from redis_infra.exceptions import SettingsError
from redis_infra.keys import Template, template
from redis_infra.querycache import transactions
from redis_infra.querycache.space import space_for
from redis_infra.querycache.transactions import Invalidation

__all__ = ["ainvalidate", "carry_out", "invalidate", "is_everything", "is_text", "listed"]


def invalidate(
    *patterns: str | Template,
    tag: str | None = None,
    tags: Iterable[str] = (),
    cache: str = "default",
    **fields: Any,
) -> int:
    """Forget what matches a pattern or has a tag; return how many entries there were.

    A pattern is a glob, a template, or the name of one in ``REDIS_INFRA["KEYS"]``. ``fields`` are values for
    templates: ``invalidate("chat:{chat_id}:*", chat_id=42)``; a field without one is any.

    In ``atomic()`` it happens at commit, and 0 is returned; not at all on rollback. In an outage it holds
    for this process at once, and for Redis before it is read again.

    Raises:
        ValueError: nothing is named, or everything (``"*"``), or a field that has no value (a forgotten f).
        SettingsError: there is no such cache.
    """
    wanted = _wanted(_rendered(patterns, fields), tag, tags)
    action = Invalidation(cache, *wanted, carry_out)
    if waits_for := transactions.open_transactions():
        transactions.invalidate_at_commit(action, waits_for)
        return 0
    return action()


async def ainvalidate(
    *patterns: str | Template,
    tag: str | None = None,
    tags: Iterable[str] = (),
    cache: str = "default",
    **fields: Any,
) -> int:
    """:func:`invalidate` in the running event loop."""
    wanted_patterns, wanted_tags = _wanted(_rendered(patterns, fields), tag, tags)
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


def is_text(text: str) -> bool:
    """Whether text can be written in UTF-8, as keys are."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def is_everything(pattern: str) -> bool:
    """Whether a pattern is nothing but wildcards, and so means all keys, or all that are not very short."""
    return "*" in pattern and not pattern.strip("*?")


def listed(tags: Any, error: type[Exception]) -> tuple[Any, ...]:
    """Return tags, of which one alone may be written without a list. Raises ``error``: they are none."""
    if isinstance(tags, str | Template):
        return (tags,)
    if not isinstance(tags, Iterable):
        raise error(f"tags {tags!r} is no list of tags; write such as tags=['room:42'], or leave it out")
    return tuple(tags)


def _rendered(patterns: Iterable[str | Template], fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return globs, of templates those for these values."""
    named = get_settings().keys
    found: list[str] = []
    used: set[str] = set()
    for each in patterns:
        text = named.get(each, each) if isinstance(each, str) else each
        is_glob = text is each and not isinstance(each, Template) and not (fields and "{" in str(each))
        if is_glob:
            found.append(text)  # type: ignore[arg-type]  # or something else, which is looked at next
            continue
        made = template(text)
        used |= made.names
        found.append(made.pattern(**{name: fields[name] for name in made.names & fields.keys()}))
    if unknown := sorted(fields.keys() - used):
        raise ValueError(f"no template here has a field {unknown[0]!r}{did_you_mean(unknown[0], used)}")
    return tuple(found)


def _wanted(
    patterns: tuple[str, ...], tag: str | None, tags: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return patterns and tags, checked."""
    wanted_tags = ((tag,) if tag is not None else ()) + listed(tags, ValueError)
    for each in (*patterns, *wanted_tags):
        if not isinstance(each, str):
            raise ValueError(f"{each!r} is neither a pattern nor a tag; write such as 'chat:42:*'")
        if not each:
            raise ValueError("an empty pattern or tag matches nothing; write such as 'chat:42:*'")
        if not is_text(each):
            raise ValueError(f"{each!r} has half a character (a surrogate) in it, which no key has")
        if "{" in each or "}" in each:
            raise ValueError(_with_braces(each, is_pattern=each in patterns))
    for pattern in patterns:
        if is_everything(pattern):
            raise ValueError(f"{pattern!r} would forget everything; run: manage.py cache_clear --all")
    if not patterns and not wanted_tags:
        raise ValueError("nothing to forget: name a pattern, such as 'chat:42:*', or tag='room:42'")
    return tuple(patterns), wanted_tags


def _with_braces(text: str, *, is_pattern: bool) -> str:
    """Return what is wrong with a text that has braces, as no key has: most often an f is missing."""
    try:
        names = sorted(template(text).names)
    except SettingsError:
        names = []
    if not names:
        return f"{text!r} has braces in it, which no key has; write such as 'chat:42:*'"
    given = ", ".join(f"{name}=..." for name in names)
    return (
        f"{text!r} has the field {{{names[0]}}} and no value for it; write f{text!r}, with value() around "
        "what somebody typed" + (f", or invalidate({text!r}, {given})" if is_pattern else "")
    )
