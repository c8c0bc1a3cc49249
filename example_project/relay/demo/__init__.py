"""What ``manage.py demo`` runs, and how the rest of Relay knows that it does.

Holds the one running demo of this process: its Redis and its password. Without
one (``runserver``, a real server) there is nothing to stop and nothing to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

_running: Running | None = None


class Backing(Protocol):
    """The Redis that a demo stands on, and the ways to take it away."""

    title: str
    """What runs and where, for people: "valkey 9.1.2 (embedded, unix socket)"."""
    url: str | None
    """What to point the cache at; None where the environment points it there already."""
    note: str
    """What else should be said: that the server which the environment names does not answer."""
    owned: bool
    """Whether the demo started it, so that visitors may stop it."""

    @property
    def power(self) -> str:
        """``running``, ``frozen``, ``stopped`` or ``none``."""

    def stop(self) -> None:
        """Take it away, as a crash does: connections are refused."""

    def freeze(self) -> None:
        """Make it silent: connections stay, answers do not come."""

    def start(self) -> None:
        """Give it back, with the data it had."""

    def close(self) -> None:
        """End it, if the demo started it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The demo that this process serves."""

    backing: Backing
    password: str


def current() -> Running | None:
    """Return the demo that this process serves, if it serves one."""
    return _running


@contextmanager
def serving(running: Running) -> Iterator[None]:
    """Make ``running`` the demo of this process for as long as the block lasts."""
    global _running
    _running = running
    try:
        yield
    finally:
        _running = None


def password() -> str | None:
    """Return the password of the demo's visitor, where a demo runs."""
    return _running.password if _running else None
