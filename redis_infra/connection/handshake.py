"""The first words on a connection: who we are, which database, and who answers.

Without I/O: bytes to send, and a reading of the replies, for the sync and the
async links alike. One write and one read, where redis-py 8 needs four round
trips; HELLO also tells the connection's id, by which recovery kills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import exceptions as redis_errors

from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.wire import pack

__all__ = ["ServerFacts", "first_words", "knows_no_hello", "old_first_words", "read_facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What the server said of itself when the connection was made."""

    connection_id: int | None = None
    name: str = "redis"
    version: str = ""
    mode: str = "standalone"
    role: str = ""
    run_id: str = ""
    """Changes with each start of the server; empty if nobody asked or ACL forbids it."""


def first_words(options: ConnectionOptions, *, identify: bool = False) -> tuple[bytes, int]:
    """Return the packed greeting and the number of replies it will get.

    ``identify`` also asks for the server's run id, in the same round trip: once
    a process, so that recovery can tell whether it is the same server still.
    """
    hello: list[str | int] = ["HELLO", 2]
    if options.password is not None:
        hello += ["AUTH", options.username or "default", options.password]
    if options.client_name:
        hello += ["SETNAME", options.client_name]
    packed, replies = _with_database(pack(*hello), 1, options)
    return (packed + pack("INFO", "server"), replies + 1) if identify else (packed, replies)


def old_first_words(options: ConnectionOptions) -> tuple[bytes, int]:
    """The same for a server or proxy that does not know HELLO, or denies it."""
    if options.password is None:
        return _with_database(pack("PING"), 1, options)
    credentials = [options.username, options.password] if options.username else [options.password]
    return _with_database(pack("AUTH", *credentials), 1, options)


def _with_database(packed: bytes, replies: int, options: ConnectionOptions) -> tuple[bytes, int]:
    if not options.db:
        return packed, replies
    return packed + pack("SELECT", options.db), replies + 1


def knows_no_hello(reply: object, options: ConnectionOptions) -> bool:
    """Whether the server refused HELLO itself, not what it said."""
    text = str(reply).lower()
    if isinstance(reply, redis_errors.AuthenticationError):
        # Valkey 9 asks who is there before it looks whether it knows the word. To a HELLO that it
        # does know, with credentials in it, no server says that there were none.
        return "authentication required" in text and options.password is not None
    if not isinstance(reply, redis_errors.ResponseError):
        return False
    return "unknown command" in text or ("hello" in text and "permissions" in text) or "noproto" in text


def read_facts(replies: Sequence[Any], *, identify: bool = False) -> ServerFacts:
    """Read the replies to :func:`first_words`; raise the first one that is an error."""
    info = replies[-1] if identify and len(replies) > 1 else None
    for reply in replies[:-1] if info is not None else replies:
        if isinstance(reply, Exception):
            # Our words, not the caller's: whatever the server has against them is no bug of theirs.
            reply.to_greeting = True  # type: ignore[attr-defined]
            raise reply
    facts = _pairs(replies[0])
    return ServerFacts(
        connection_id=facts.get("id"),
        name=facts.get("server", "redis"),
        version=facts.get("version", ""),
        mode=facts.get("mode", "standalone"),
        role=facts.get("role", ""),
        run_id=_run_id(info),
    )


def _run_id(info: object) -> str:
    if not isinstance(info, bytes):
        return ""
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return line[7:].decode("ascii", "replace")
    return ""


def _pairs(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, list):
        return {}
    names, values = reply[::2], reply[1::2]
    return {
        name.decode(): value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in zip(names, values, strict=False)
        if isinstance(name, bytes)
    }
