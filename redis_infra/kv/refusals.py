"""What a server says when it refuses a command, as an error of our tree. The same over TCP and over REST."""

from __future__ import annotations

from typing import Final

from redis_infra.exceptions import (
    CounterOverflow,
    StoreAuthError,
    StoreError,
    StoreQuotaExceeded,
    StoreReadOnly,
    StoreRejected,
    StoreTypeError,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv.commands import Command

__all__ = ["refusal"]

_BY_CODE: Final[dict[str, type[StoreRejected]]] = {
    "WRONGTYPE": StoreTypeError,
    "NOAUTH": StoreAuthError,
    "WRONGPASS": StoreAuthError,
    "NOPERM": StoreAuthError,
    "READONLY": StoreReadOnly,
    "EXECABORT": TransactionDiscarded,
}
_BY_TEXT: Final[tuple[tuple[str, type[StoreRejected]], ...]] = (
    ("is not an integer", StoreTypeError),
    ("would overflow", CounterOverflow),
    ("WRONGTYPE", StoreTypeError),
    ("READONLY", StoreReadOnly),
    ("NOPERM", StoreAuthError),
    ("WRONGPASS", StoreAuthError),
    ("NOAUTH", StoreAuthError),
    # As circuits remember them: by the driver's name for the code.
    ("AuthenticationError", StoreAuthError),
    ("NoPermissionError", StoreAuthError),
    ("ReadOnlyError", StoreReadOnly),
    ("Transaction discarded", TransactionDiscarded),
)
_NOT_NOW: Final = (
    "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "OOM", "MISCONF", "NOREPLICAS"
)  # fmt: skip


def refusal(text: str, command: Command[object] | str, index: int | None = None) -> StoreError:
    """Return the error for a server's ``text``. Whatever it says, the command was not executed.

    ``index`` is the command's place in its pipeline. Of the text only what the server says is kept: it may
    quote arguments in no case that is known.
    """
    name, key = (command, "") if isinstance(command, str) else (command.name, command.key)
    reason = " ".join(text.split())[:200]
    code = reason.partition(" ")[0]
    if code in _NOT_NOW or any(f"-{word} " in reason for word in _NOT_NOW):
        return StoreUnavailable(name, key, reason=reason, answered=True)
    if "limit exceeded" in reason or "quota" in reason.lower():
        return StoreQuotaExceeded(name, key, reason)
    found = _BY_CODE.get(code) or next((kind for part, kind in _BY_TEXT if part in reason), StoreRejected)
    return found(name, key, reason, index)
