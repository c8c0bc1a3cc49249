"""The kinds of failure, and what each of them means for the next operation.

Knows nothing of redis-py: ``connection.failures`` translates its exceptions.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Failure", "Fault"]


class Fault(enum.Enum):
    """What went wrong, told apart by what has to be done about it."""

    UNREACHABLE = "unreachable"
    """Refused, reset, no address, loading, full of clients: opens at once."""
    TIMEOUT = "timeout"
    """Nobody answered in time: opens at the second in a row; never repeated in a request."""
    READONLY = "read-only"
    """A replica where a primary should be: new connections once, then as unreachable."""
    WRITES_STOPPED = "writes stopped"
    """OOM, MISCONF, NOREPLICAS: reads go on, stores wait until a probe's write succeeds."""
    MISCONFIGURED = "misconfigured"
    """Wrong password, database or service: this user's circuit opens, the server's does not."""
    DENIED = "denied"
    """NOPERM: this command's alone."""
    OVERLOADED = "overloaded"
    """Our own pool is exhausted: served locally, says nothing about Redis."""
    INTERRUPTED = "interrupted"
    """The caller was cancelled or killed while waiting: says nothing about Redis."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed call: its kind, what the log may say of it, and what became of the command."""

    fault: Fault
    cause: str
    """Short and without secrets: ``ConnectionRefusedError: [Errno 111] ...``."""
    executed: bool | None = None
    """False: certainly not executed. None: nobody can know."""
    stale: bool = False
    """A pooled connection that had gone bad before the command; a fresh one may work."""

    @property
    def on_fresh_connection(self) -> bool:
        """Whether a second try, on a fresh connection, makes sense at all."""
        return self.stale or self.fault is Fault.READONLY
