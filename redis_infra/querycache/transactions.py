"""Transactions: what is stored or invalidated inside ``atomic()`` happens at commit, in order, or not at all.

Django keeps the list of what is to happen at commit, and drops from it what a rollback or a savepoint undoes;
there is no second list here. Until then this thread does not read what it has invalidated itself.

After ``set_autocommit(False)`` there is no commit that Django would tell of: then what is computed is not
stored, and what is invalidated goes at once, before others can read what it is about. Callbacks of
``on_commit`` run in the order in which they were registered, and one from before an invalidation runs before
it.

Inside Django's ``TestCase``, which never commits, its own ``atomic`` does not count for what is stored or
invalidated by hand; what is to be invalidated at commit waits for ``captureOnCommitCallbacks``, or until
somebody reads what it is about.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from django.db import connections

from redis_infra.keys import glob_to_regex

__all__ = ["Invalidation", "at_commit", "is_by_hand", "is_invalidated_here", "open_transaction"]


class Invalidation:
    """What is to be invalidated of one alias, now or at commit."""

    def __init__(
        self, alias: str, patterns: tuple[str, ...], tags: tuple[str, ...], run: Callable[[Invalidation], int]
    ) -> None:
        self.alias = alias
        self.patterns = patterns
        self.tags = tags
        self.is_done = False
        self._run = run

    def __call__(self) -> int:
        """Carry it out; return how many entries there were."""
        self.is_done = True
        return self._run(self)

    def covers(self, key: str, tags: tuple[str, ...]) -> bool:
        """Whether an entry is invalidated by it."""
        return any(regex.match(key) for regex in self._regexes) or not self._tags.isdisjoint(tags)

    @cached_property
    def _regexes(self) -> tuple[re.Pattern[str], ...]:
        return tuple(glob_to_regex(pattern) for pattern in self.patterns)

    @cached_property
    def _tags(self) -> frozenset[str]:
        return frozenset(self.tags)


pending: weakref.WeakSet[Invalidation] = weakref.WeakSet()
"""Those that wait for a commit, of all threads. Who finds it empty need not look further."""


def at_commit(action: Callable[[], Any], connection: Any) -> None:
    """Do something when the transaction commits; never if it does not."""
    if isinstance(action, Invalidation):
        pending.add(action)
    # Robust: an error here must not keep the site's own callbacks from running.
    connection.on_commit(action, robust=True)


def is_invalidated_here(alias: str, key: str, tags: tuple[str, ...]) -> bool:
    """Whether this thread has invalidated an entry in a transaction that is still open."""
    return any(
        not _would_be_over(connection, action)
        for connection in connections.all(initialized_only=True)
        for action in _waiting(connection)
        if action.alias == alias and action.covers(key, tags)
    )


def _waiting(connection: Any) -> list[Invalidation]:
    found = [action for _, action, *_ in connection.run_on_commit]
    return [action for action in found if isinstance(action, Invalidation) and not action.is_done]


def _would_be_over(connection: Any, action: Invalidation) -> bool:
    """Do what waits for the end of a test's transaction, which the site does not know of, and say so."""
    if _is_real(connection):
        return False
    action()
    return True


def open_transaction(using: str | None = None, *, tests_count: bool = False) -> Any:
    """Return the connection of this thread that is in a transaction (``using``: that one); None if none is.

    With ``tests_count`` the one around a test of Django's TestCase is one as well.
    """
    found: Iterable[Any] = connections.all(initialized_only=True) if using is None else [connections[using]]
    return next((each for each in found if each.in_atomic_block and (tests_count or _is_real(each))), None)


def is_by_hand() -> bool:
    """Whether a connection of this thread is in a transaction of which Django knows neither end.

    After ``set_autocommit(False)``, or with ``"AUTOCOMMIT": False``: there is no commit to wait for.
    """
    return any(
        each.connection is not None and not each.autocommit and not each.in_atomic_block
        for each in connections.all(initialized_only=True)
    )


def _is_real(connection: Any) -> bool:
    return not all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)
