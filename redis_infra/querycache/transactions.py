"""Transactions: what is stored or invalidated inside ``atomic()`` happens at commit, or not at all.

Django keeps the list of what is to happen at commit, and drops from it what a rollback or a savepoint undoes;
there is no second list here, but one entry of that list for all invalidations of a savepoint. It stands
before the site's own callbacks, one of which may raise, or read what is to be forgotten. What was computed
before an invalidation and is stored after it finds its lease gone. Until the commit this thread does not read
what it has invalidated itself.

Where transactions of several databases are open, nobody knows whose rows a value was made of: an invalidation
happens at the commit of each, and a value is stored when all of them have committed.

After ``set_autocommit(False)`` there is no commit that Django would tell of: then what is computed is not
stored, and what is invalidated goes at once, before others can read what it is about.

Inside Django's ``TestCase``, which never commits, its own ``atomic`` does not count for what is stored or
invalidated by hand; what is to be invalidated at commit waits for ``captureOnCommitCallbacks``, or until
somebody reads what it is about.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar

from asgiref.sync import AsyncToSync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from redis_infra.keys import escape, glob_to_regex, is_literal, literal_start

__all__ = [
    "Invalidation",
    "ask_around",
    "invalidate_at_commit",
    "is_by_hand",
    "is_invalidated_here",
    "open_transactions",
    "store_at_commit",
]


T = TypeVar("T")


class Invalidation:
    """What is to be invalidated of one alias, now or at commit."""

    def __init__(
        self, alias: str, patterns: tuple[str, ...], tags: tuple[str, ...], run: Callable[[Invalidation], int]
    ) -> None:
        self.alias = alias
        self.patterns = patterns
        self.tags = tags
        self._run = run

    def __call__(self) -> int:
        """Carry it out; return how many entries there were."""
        return self._run(self)


class Waiting:
    """Invalidations that wait for one commit. Each is carried out once, however often it was asked for."""

    def __init__(self) -> None:
        self.__qualname__ = "redis_infra.querycache.invalidate"  # Django's log names what has raised
        self.is_done = False
        self._actions: dict[object, Invalidation] = {}
        self._covered: dict[str, _Covered] = {}

    def add(self, action: Invalidation) -> None:
        self._actions.setdefault((action.alias, action.patterns, action.tags), action)
        self._covered.setdefault(action.alias, _Covered()).add(action)

    def __call__(self) -> None:
        """Carry all of them out, also those after one that fails.

        Raises:
            Exception: what the first that failed has raised.
        """
        self.is_done = True
        errors = []
        for action in self._actions.values():
            try:
                action()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def covers(self, alias: str, key: str, tags: tuple[str, ...]) -> bool:
        """Whether an entry is invalidated by one of them."""
        covered = self._covered.get(alias)
        return covered is not None and covered.has(key, tags)


class _Covered:
    """Keys and tags that patterns are for; ten thousand of them are looked through in some microseconds."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._starts: dict[int, set[str]] = {}
        self._others: list[re.Pattern[str]] = []
        self._tags: set[str] = set()

    def add(self, action: Invalidation) -> None:
        self._tags.update(action.tags)
        for pattern in action.patterns:
            start = literal_start(pattern)
            if is_literal(pattern):
                self._keys.add(start)
            elif pattern == f"{escape(start)}*":
                self._starts.setdefault(len(start), set()).add(start)
            else:
                self._others.append(glob_to_regex(pattern))

    def has(self, key: str, tags: tuple[str, ...]) -> bool:
        return (
            key in self._keys
            or any(key[:size] in starts for size, starts in self._starts.items())
            or any(regex.match(key) for regex in self._others)
            or not self._tags.isdisjoint(tags)
        )


pending: weakref.WeakSet[Waiting] = weakref.WeakSet()
"""Those that wait for a commit, of all threads. Who finds it empty need not look further."""

_waiting_for: weakref.WeakKeyDictionary[Any, weakref.WeakValueDictionary[frozenset[str], Waiting]] = (
    weakref.WeakKeyDictionary()
)
"""By connection and by the savepoints that are open: Django's list alone keeps them alive."""


def invalidate_at_commit(action: Invalidation, transactions: Iterable[Any]) -> None:
    """Invalidate when one of these transactions commits, and again when another one does; never if none."""
    for connection in transactions:
        _waiting_of(connection).add(action)


def _waiting_of(connection: Any) -> Waiting:
    """Return what waits for the commit of a transaction, as far as it is open now."""
    is_test = _is_in_test(connection)
    known = _waiting_for.setdefault(connection, weakref.WeakValueDictionary())
    savepoints = frozenset(connection.savepoint_ids)
    found = known.get(savepoints)
    # A test counts callbacks, and has those executed that came within its with block. And one that was rolled
    # back may be kept by a traceback.
    if found is not None and not is_test and found in _waiting(connection):
        return found
    made = known[savepoints] = Waiting()
    pending.add(made)
    # Robust: an error here must not keep the site's own callbacks from running.
    connection.on_commit(made, robust=True)
    if not is_test:
        callbacks = connection.run_on_commit
        callbacks.insert(0, callbacks.pop())
    return made


def store_at_commit(store: Callable[[], Any], transactions: Sequence[Any]) -> None:
    """Store when all of these transactions have committed; never if one of them does not."""
    left = {connection.alias for connection in transactions}

    def committed(alias: str) -> None:
        left.discard(alias)
        if not left:
            store()

    for connection in transactions:
        connection.on_commit(_named(partial(committed, connection.alias)), robust=True)


def _named(callback: partial[None]) -> partial[None]:
    """Give it a name, by which Django's log calls it if it raises."""
    callback.__qualname__ = "redis_infra.querycache.store"  # type: ignore[attr-defined]
    return callback


def is_invalidated_here(alias: str, key: str, tags: tuple[str, ...]) -> bool:
    """Whether this thread has invalidated an entry in a transaction that is still open."""
    return any(
        not _would_be_over(connection, waiting)
        for connection in connections.all(initialized_only=True)
        for waiting in _waiting(connection)
        if waiting.covers(alias, key, tags)
    )


def _waiting(connection: Any) -> list[Waiting]:
    callbacks: Iterable[Any] = (callback for _, callback, *_ in connection.run_on_commit)
    if not _is_in_test(connection):  # then they stand before all others, of which there may be thousands
        callbacks = takewhile(lambda callback: isinstance(callback, Waiting), callbacks)
    return [each for each in callbacks if isinstance(each, Waiting) and not each.is_done]


def _would_be_over(connection: Any, waiting: Waiting) -> bool:
    """Do what waits for the end of a test's transaction, which the site does not know of, and say so."""
    if _is_real(connection):
        return False
    waiting()
    return True


def open_transactions(using: str | None = None, *, tests_count: bool = False) -> list[Any]:
    """Return the connections of this thread that are in a transaction (``using``: of that one).

    With ``tests_count`` the one around a test of Django's TestCase is one as well.
    """
    found: Iterable[Any] = connections.all(initialized_only=True) if using is None else [connections[using]]
    return [each for each in found if each.in_atomic_block and (tests_count or _is_real(each))]


def ask_around(question: Callable[..., T], *arguments: Any) -> T:
    """Return what a question of this module comes to, in the thread whose transactions the caller is part of.

    Raises:
        SynchronousOnlyOperation: in the loop of an ``async_to_sync``, whose database is its caller's: ask
            again by ``sync_to_async``, which leads there.
    """
    if getattr(AsyncToSync.executors, "current", None) is not None and _is_in_loop():
        raise SynchronousOnlyOperation("the transaction is in the thread that waits for this coroutine")
    return question(*arguments)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def is_by_hand() -> bool:
    """Whether a connection of this thread is in a transaction of which Django knows neither end.

    After ``set_autocommit(False)``, or with ``"AUTOCOMMIT": False``: there is no commit to wait for.
    """
    return any(
        each.connection is not None and not each.autocommit and not each.in_atomic_block
        for each in connections.all(initialized_only=True)
    )


def _is_real(connection: Any) -> bool:
    """Whether a transaction is open that is not a test's own."""
    return not all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def _is_in_test(connection: Any) -> bool:
    """Whether a transaction around a test of Django's TestCase is open, perhaps with the site's own in it."""
    return any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)
