"""Telling Redis what the host let through without it. Conversations, without I/O of their own.

What is on its way has a token, by which the server adds it once, however often it is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from redis_infra.connection.scripts import Talk, is_unknown_script
from redis_infra.connection.wire import pack
from redis_infra.throttling import sliding_log
from redis_infra.throttling.host import LEASE, RESTARTED, TURN, Host, Said, monotonic_ms
from redis_infra.throttling.host_rows import Row
from redis_infra.throttling.plans import MERGE

__all__ = ["BATCH", "tell"]

logger = logging.getLogger(__name__)

BATCH: Final = 128
"""Logs that are told in one round trip, and frozen in one transaction: a millisecond or two, each of them."""


def tell(host: Host, rows: Sequence[Row], forgotten: Mapping[str, int]) -> Talk:
    """Send what is pending of a batch in one round trip; one by one if one is refused.

    Writes down what the server says to be used by then. ``forgotten`` says when each label's logs were
    last forgotten by hand.
    """
    host.keep(LEASE, TURN)
    restarted, said = host.words[RESTARTED], Said()
    commands = [_command(host, row, restarted, forgotten) for row in rows]
    try:
        replies = yield from _at_once(commands)
    except Exception as error:
        if _is_outage(error):
            raise
        replies = []
        for row, command in zip(rows, commands, strict=True):
            replies.append((yield from _tell_one(host, row, command)))
    for row, (at, total) in zip(rows, replies, strict=True):
        said.add(row.spot, row.page, total, at)
    host.note_said(said, restarted)


_Command: TypeAlias = tuple[tuple[str, str], list[int]]
"""Keys and arguments of ``merge.lua``."""


def _command(host: Host, row: Row, restarted: int, forgotten: Mapping[str, int]) -> _Command:
    known = host.known(row.spot) if restarted else None
    is_lost = known is not None and known.restarted != restarted
    if known is None or not is_lost or known.heard <= forgotten[row.name.label]:
        return _merging(row, 0, 0)
    return _merging(row, known.used, known.at)


def _tell_one(host: Host, row: Row, command: _Command) -> Talk:
    host.keep(LEASE, TURN)
    keys, arguments = command
    try:
        return (yield from MERGE.talk(keys, *arguments))
    except Exception as error:
        if _is_outage(error):
            raise
        # The key is ours, and what is in it no log: of another type, or damaged. It is made anew.
        logger.error("redis_infra.limit_not_told cause=%s", type(error).__name__, exc_info=error)
        yield pack("UNLINK", *keys)
        known = host.known(row.spot)
        keys, arguments = _merging(row, known.used, known.at) if known is not None else command
        return (yield from MERGE.talk(keys, *arguments))


def _merging(row: Row, known: int, known_at: int) -> _Command:
    """Return the command for what of a log is on its way, and for what was known before."""
    now = monotonic_ms()
    arguments = [row.window, row.grain, known, known_at]
    for stamp, count in sliding_log.live(row.pending, now, row.window):
        # A window of the calendar begins on the server's clock: what is of today here is of today there.
        arguments += max(0, now - stamp) if row.grain else 0, count
    return (row.key, f"{row.key}:+{row.token}"), arguments


def _at_once(commands: Sequence[_Command]) -> Talk:
    """Run ``merge.lua`` for each in one round trip; in three if the server has not met it yet."""
    packed = b"".join(MERGE.packed(keys, tuple(arguments)) for keys, arguments in commands)
    try:
        return (yield packed, len(commands))
    except Exception as error:
        if not is_unknown_script(error):
            raise
        # Whatever of it was executed is not added again.
        keys, arguments = commands[0]
        yield MERGE.whole(keys, tuple(arguments))
        return (yield packed, len(commands))


def _is_outage(error: Exception) -> bool:
    """Whether it says something about the server, rather than about one key."""
    from redis_infra.connection.failures import classify  # imports redis-py: not with the package

    return classify(error) is not None
