"""Every error that this app raises, in one tree.

::

    RedisInfraError
    ├── SettingsError (ValueError)               configured wrongly; says which setting and what it may be
    │   └── MissingExtra                         needs a package that is not installed; says the pip line
    └── StoreError
        ├── StoreUnavailable                     transient: nobody answered in time; try again later
        │   └── connection.RedisUnavailable      ... and a redis.exceptions.ConnectionError
        └── StoreRejected                        permanent: the server answered no (WRONGTYPE, OOM)
            └── CounterOverflow (OverflowError)  a counter would leave the signed 64-bit range

Errors carry facts as attributes and can be pickled. Keys are an attribute and never part of the text or
the repr: an error's text ends in logs, and a key may hold what should not (a session id).

Knows nothing of Redis or Django.
"""

from __future__ import annotations

__all__ = [
    "CounterOverflow",
    "MissingExtra",
    "RedisInfraError",
    "SettingsError",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
]


class RedisInfraError(Exception):
    """Base of every error that this app raises."""


class SettingsError(RedisInfraError, ValueError):
    """A setting, option or URL is wrong, and the text says which and what would be right."""


class MissingExtra(SettingsError):
    """A setting asks for an optional package that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        # args are exactly the constructor's, here and below: that is how exceptions are pickled and copied.
        super().__init__(package, extra)
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f'{self.package} is not installed; run: pip install "redis-infra[{self.extra}]"'


class StoreError(RedisInfraError):
    """A store (Redis, or what stands in for it) did not do what it was asked.

    ``command`` is the operation's name, ``key`` its first key as the server knows it, ``reason`` a short
    text without keys or passwords; each is empty where it is not known.
    """

    def __init__(self, command: str = "", key: str = "", reason: str = "") -> None:
        super().__init__(command, key, reason)
        self.command = command
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return _sentence(self.command or "The operation", "failed", self.reason)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class StoreUnavailable(StoreError):
    """Nobody answered in time. Whether the command was executed may be unknown; later it may succeed.

    ``waited`` is how long the caller was kept, in seconds; 0.0 where it was refused at once.
    """

    def __init__(self, command: str = "", key: str = "", *, waited: float = 0.0, reason: str = "") -> None:
        super().__init__(command, key, reason)
        self.args = (command, key)
        self.waited = waited

    def __str__(self) -> str:
        waited = f" within {self.waited:.3g} s" if self.waited else ""
        return _sentence(self.command or "The operation", f"was not answered{waited}", self.reason)


class StoreRejected(StoreError):
    """The server answered no (wrong type, no permission, out of memory); asking again changes nothing."""

    def __init__(self, command: str, key: str, reason: str) -> None:
        super().__init__(command, key, reason)

    def __str__(self) -> str:
        return _sentence(self.command, "was rejected", self.reason)


class CounterOverflow(StoreRejected, OverflowError):
    """An increment or decrement would leave the signed 64-bit range; the counter keeps its value."""


def _sentence(subject: str, verb: str, reason: str) -> str:
    return f"{subject} {verb}: {reason}" if reason else f"{subject} {verb}"
