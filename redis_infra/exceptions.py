"""Every error that this app raises, in one tree.

::

    RedisInfraError
    ├── SettingsError (ValueError)               configured wrongly; says which setting and what it may be
    │   └── MissingExtra                         needs a package that is not installed; says the pip line
    └── StoreError
        ├── StoreUnavailable                     not executed: nobody could be asked; try again later
        │   └── connection.RedisUnavailable      ... and a redis.exceptions.ConnectionError
        ├── StoreIndeterminate                   perhaps executed: it was sent, and no answer came
        ├── StoreQuotaExceeded                   not executed: the provider's quota or rate limit is used up
        └── StoreRejected                        permanent: the store answered no, and will again
            ├── StoreAuthError                   ... to this user, password or token
            ├── StoreReadOnly                    ... to writes: a replica, or a read-only token
            ├── StoreTypeError                   ... since what is there is of another type
            │   └── CounterOverflow (OverflowError)  a counter would leave the signed 64-bit range
            └── TransactionDiscarded             ... to a transaction as a whole: nothing of it was executed

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
    "StoreAuthError",
    "StoreError",
    "StoreIndeterminate",
    "StoreQuotaExceeded",
    "StoreReadOnly",
    "StoreRejected",
    "StoreTypeError",
    "StoreUnavailable",
    "TransactionDiscarded",
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
    """Nobody could be asked, or nobody answered in time; later it may succeed.

    From a ``KVStore`` it says that the command was certainly not executed, or only reads, so that it may be
    repeated; what may have been executed is a :class:`StoreIndeterminate`. Of the cache's locks and raw
    clients, which have no word for that, it may have been.

    ``waited`` is how long the caller was kept, in seconds; 0.0 where it was refused at once. ``answered``
    says that the store is there, and cannot do it now: it is full, or loading.
    """

    def __init__(
        self,
        command: str = "",
        key: str = "",
        *,
        waited: float = 0.0,
        reason: str = "",
        answered: bool = False,
    ) -> None:
        super().__init__(command, key, reason)
        self.args = (command, key)
        self.waited = waited
        self.answered = answered

    def __str__(self) -> str:
        waited = f" within {self.waited:.3g} s" if self.waited else ""
        return _sentence(self.command or "The operation", f"was not answered{waited}", self.reason)


class StoreIndeterminate(StoreError):
    """It was sent and no answer came: it may have been executed, once.

    Repeat what does no harm twice; ``incr`` takes an ``op_id`` for that. Of a pipeline, any number of its
    commands, from the first on, may have been executed.
    """

    def __str__(self) -> str:
        return _sentence(self.command or "The operation", "was sent and not answered", self.reason)


class StoreQuotaExceeded(StoreError):
    """The provider's quota or rate limit is used up; nothing was executed.

    ``retry_after`` is the seconds to wait as the provider says; None where it does not.
    """

    def __init__(
        self, command: str = "", key: str = "", reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(command, key, reason)
        self.args = (command, key, reason, retry_after)
        self.retry_after = retry_after


class StoreRejected(StoreError):
    """The store answered no (wrong type, no permission, too large); asking again changes nothing.

    ``index`` is the command's place in its pipeline or transaction; None where it was alone.
    """

    def __init__(self, command: str, key: str, reason: str, index: int | None = None) -> None:
        super().__init__(command, key, reason)
        self.args = (command, key, reason, index)
        self.index = index

    def __str__(self) -> str:
        place = "" if self.index is None else f" (command {self.index} of its pipeline)"
        return _sentence(f"{self.command}{place}", "was rejected", self.reason)


class StoreAuthError(StoreRejected):
    """User, password or token are wrong or missing, or do not permit this command."""


class StoreReadOnly(StoreRejected):
    """The store takes no writes from here: it is a replica, or the token or file may only be read."""


class StoreTypeError(StoreRejected):
    """What lies under the key is of another type: a list, or a text that is no integer."""


class CounterOverflow(StoreTypeError, OverflowError):
    """An increment or decrement would leave the signed 64-bit range; the counter keeps its value."""


class TransactionDiscarded(StoreRejected):
    """The store refused a transaction as a whole; nothing of it was executed."""


def _sentence(subject: str, verb: str, reason: str) -> str:
    return f"{subject} {verb}: {reason}" if reason else f"{subject} {verb}"
