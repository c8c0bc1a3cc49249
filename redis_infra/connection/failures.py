"""What redis-py and the operating system raise, translated into kinds of failure.

The only module that tells their exceptions apart. Order matters: in redis-py 8
AuthenticationError, BusyLoadingError and MaxConnectionsError *are*
ConnectionErrors, while TimeoutError and InvalidResponse are not.
"""

from __future__ import annotations

from redis import exceptions as redis_errors

from redis_infra.exceptions import RedisInfraError, StoreUnavailable
from redis_infra.resilience.faults import Failure, Fault

__all__ = [
    "LinkClosed",
    "LinkTimeout",
    "PoolExhausted",
    "RedisUnavailable",
    "ServerBusy",
    "classify",
    "describe",
]


class RedisUnavailable(StoreUnavailable, redis_errors.ConnectionError):
    """Redis cannot answer now, and nobody else may answer in its place.

    Also a ``redis.exceptions.ConnectionError``, so that code written for
    redis-py handles it as it always did. Raised at once while the circuit is
    open; retrying later is sensible.
    """

    def __init__(self, command: str = "", key: str = "", *, waited: float = 0.0, reason: str = "") -> None:
        StoreUnavailable.__init__(self, command, key, waited=waited, reason=reason)
        self.error_type = redis_errors.ExceptionType.NETWORK
        self.status_code = None


class LinkClosed(redis_errors.ConnectionError):
    """A connection broke. ``executed`` is False if no byte of the command had left."""

    executed: bool | None = None
    stale = False


class LinkTimeout(redis_errors.TimeoutError):
    """No reply within the deadline. ``executed`` is False if no byte of the command had left."""

    executed: bool | None = None


class PoolExhausted(redis_errors.MaxConnectionsError):
    """Every connection that this process may have is in use: our overload, not Redis' fault."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"all {limit} connections are in use (MAX_CONNECTIONS)")


class ServerBusy(redis_errors.ConnectionError):
    """The server answers, but only that it cannot answer now."""


_WRITES_STOPPED = frozenset({"OOM", "MISCONF", "NOREPLICAS"})
_NOBODY_HOME = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNKILLABLE"})
_CONFIGURATION = frozenset({"NOAUTH", "WRONGPASS", "DENIED", "MOVED", "ASK", "NOPROTO"})
_CONFIGURATION_TEXTS = (
    "invalid DB index",
    "DB index is out of range",
    "invalid password",
    "without any password",
    "invalid username-password",
)


def describe(error: BaseException) -> str:
    """One line for logs and status pages: class and text, never a password (ours are not in there)."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def classify(error: BaseException) -> Failure | None:
    """Say what kind of failure ``error`` is; None if it is the caller's own bug."""
    if not isinstance(error, Exception):
        return Failure(Fault.INTERRUPTED, type(error).__name__)
    if isinstance(error, RedisUnavailable):
        return None
    if isinstance(
        error, redis_errors.ResponseError | redis_errors.AuthenticationError | redis_errors.BusyLoadingError
    ):
        return _classify_reply(error)
    if isinstance(error, redis_errors.MaxConnectionsError):
        return Failure(Fault.OVERLOADED, describe(error), executed=False)
    if isinstance(error, redis_errors.TimeoutError | TimeoutError):
        return Failure(Fault.TIMEOUT, describe(error), executed=getattr(error, "executed", None))
    if isinstance(error, redis_errors.InvalidResponse):
        return Failure(Fault.MISCONFIGURED, f"not a Redis server: {describe(error)}")
    if isinstance(error, redis_errors.ConnectionError):
        return _classify_connection(error)
    if isinstance(error, OSError):
        return Failure(Fault.UNREACHABLE, describe(error), executed=getattr(error, "executed", None))
    if isinstance(error, redis_errors.RedisError | RedisInfraError):
        return None
    # A signal handler's (a task's soft time limit), thrown into the middle of a command.
    return Failure(Fault.INTERRUPTED, type(error).__name__)


def _classify_connection(error: redis_errors.ConnectionError) -> Failure:
    return Failure(
        Fault.UNREACHABLE,
        describe(error),
        executed=getattr(error, "executed", None),
        stale=getattr(error, "stale", False),
    )


def _classify_reply(error: redis_errors.RedisError) -> Failure | None:
    """An error reply: the server refused, so the command was certainly not executed."""
    text = str(error)
    word = error.status_code or text.partition(" ")[0]
    cause = describe(error)
    if word in _WRITES_STOPPED or _says_writes_stopped(text):
        return Failure(Fault.WRITES_STOPPED, cause, executed=False)
    if word == "READONLY" or "-READONLY" in text:
        return Failure(Fault.READONLY, cause, executed=False)
    if word in _NOBODY_HOME or isinstance(error, redis_errors.BusyLoadingError):
        return Failure(Fault.UNREACHABLE, cause, executed=False)
    is_ours = getattr(error, "to_greeting", False)
    if (word == "NOPERM" or "ACL failure in script" in text or "-NOPERM" in text) and not is_ours:
        return Failure(Fault.DENIED, cause, executed=False)
    if (
        word in _CONFIGURATION
        or isinstance(error, redis_errors.AuthenticationError)
        or any(known in text for known in _CONFIGURATION_TEXTS)
    ):
        return Failure(Fault.MISCONFIGURED, cause, executed=False)
    if is_ours:
        # "SELECT is not allowed in cluster mode", a proxy that knows half of Redis: wrong for every command.
        return Failure(Fault.MISCONFIGURED, cause, executed=False)
    return None


def _says_writes_stopped(text: str) -> bool:
    # From inside a script the code is not the first word:
    # "... script: <sha>, on @user_script:3: -OOM command not allowed".
    return any(f"-{word} " in text for word in _WRITES_STOPPED)
