"""What callers of decorated functions got since the process started, also of functions that are gone.

A function that is decorated within another one lives as long as a call; what it counted is added up here, by
cache, data type, name and keys, and nothing else of it is kept.
"""

from __future__ import annotations

import os
import threading
import weakref
from itertools import zip_longest
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["MOST_GLOBS", "Of", "Tallies", "tallies"]

Numbers: TypeAlias = tuple[int, ...]

MOST_GLOBS: Final = 50
"""Keys of functions of one name that are told apart; where each call makes a template of its own, no more."""
_FEW: Final = 16
"""Functions alike of which nobody looks whether they are gone."""


class Of(NamedTuple):
    """What is counted apart."""

    alias: str
    kind: str
    label: str
    glob: str
    """Of all keys that there may be; "" where it is not told apart any more, or there is none."""


class _Sum:
    """What all functions of one kind got."""

    def __init__(self) -> None:
        # One object, so that who reads without a lock sees nothing twice and misses nothing.
        self.state: tuple[Numbers, list[tuple[weakref.ref[Any], Any]]] = ((), [])
        self._limit = _FEW

    def enter(self, recipe: Any) -> None:
        if len(self.state[1]) >= self._limit:
            self._add_up()
        self.state[1].append((weakref.ref(recipe), recipe.tally))

    def _add_up(self) -> None:
        """Keep of those that are gone what they counted."""
        # Who counts, be it a call that goes on, has the recipe.
        past, alive = self.state[0], []
        for each in self.state[1]:
            if each[0]() is not None:
                alive.append(each)
            else:
                past = _added(past, each[1].numbers())
        self.state = (past, alive)
        self._limit = 2 * len(alive) + _FEW

    def numbers(self) -> Numbers:
        past, entered = self.state
        for _, tally in tuple(entered):
            past = _added(past, tally.numbers())
        return past


class Tallies:
    """Thread-safe, and safe after ``fork``: reading takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[Of, _Sum] = {}
        self._globs: dict[str, set[str]] = {}

    def enter(self, label: str, function: Any) -> None:
        """Count what callers of this function get, as long as it is there, and remember it after that."""
        with self._lock:
            globs = self._globs.setdefault(label, set())
            if len(globs) < MOST_GLOBS:
                globs.add(function.glob)
            self._enter(label, function._recipe, function.glob if function.glob in globs else "")

    def enter_keys(self, recipe: Any) -> None:
        """Count what is loaded under keys that no template makes, by the recipe's own label."""
        with self._lock:
            self._enter(recipe.label, recipe, "")

    def _enter(self, label: str, recipe: Any, glob: str) -> None:
        of = Of(recipe.alias, recipe.policy.kind, label, glob)
        self._sums.setdefault(of, _Sum()).enter(recipe)

    def rows(self) -> list[tuple[Of, Numbers]]:
        """Return what was counted so far; numbers are those of ``Tally.numbers``, and never become less."""
        return [(of, each.numbers()) for of, each in list(self._sums.items())]

    def known(self) -> list[Of]:
        """Return what is counted apart."""
        return list(self._sums)

    def after_fork(self) -> None:
        self._lock = threading.Lock()


def _added(one: Numbers, other: Numbers) -> Numbers:
    return tuple(a + b for a, b in zip_longest(one, other, fillvalue=0))


tallies: Final = Tallies()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=tallies.after_fork)
