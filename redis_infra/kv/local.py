"""What commands mean, for stores that are their own server: Redis' meaning, over a table of rows.

One interpreter for memory and file, so that they cannot differ. Knows neither; a table finds, keeps and
orders rows, and does not look at what is in them. Who calls sees to it that nobody else is at the table
meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias

from redis_infra.exceptions import StoreError, StoreQuotaExceeded
from redis_infra.kv.commands import (
    OP_LIFETIME,
    Command,
    Delete,
    Exists,
    Expire,
    Get,
    GetBytes,
    Incr,
    MGet,
    MSet,
    Ping,
    PTtl,
    Scan,
    Set,
    Ttl,
)
from redis_infra.kv.refusals import refusal

__all__ = ["PAGE", "NoRoom", "Row", "Table", "answer", "answers"]

Row: TypeAlias = tuple[bytes, int | None]
"""A value, and the millisecond after which it is there no more; None if it stays."""

PAGE: Final = 1000
"""Rows that one page of a scan looks at."""

_INT64: Final = 2**63
# What Redis counts with: no plus, no space, no zero in front, not even "-0".
_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")


class NoRoom(Exception):
    """A table is full; the text says of what."""


class Table(Protocol):
    """Rows by key, those that have expired among them."""

    now: int
    """The time that deadlines are compared with; one for all that is executed together."""

    def get(self, key: str, /) -> Row | None: ...

    def put(self, rows: Mapping[str, Row]) -> None:
        """Keep these rows, all or none.

        Raises:
            NoRoom: the table is full.
        """
        ...

    def remove(self, key: str) -> None:
        """Forget a row; there may be none."""
        ...

    def names_from(self, first: str) -> Iterator[tuple[str, int | None]]:
        """Yield keys and deadlines in the order of code points, from ``first`` on."""
        ...


def answers(commands: Sequence[Command[Any]], table: Table) -> list[Any]:
    """Execute commands in their order; return a reply of Redis' for each, or the error that refuses it."""
    return [_answer_or_refusal(command, table, index) for index, command in enumerate(commands)]


def _answer_or_refusal(command: Command[Any], table: Table, index: int) -> Any:
    try:
        return answer(command, table, index)
    except StoreError as error:
        return error


def answer(command: Command[Any], table: Table, index: int | None = None) -> Any:
    """Execute one command, and return what Redis would reply. What is refused has changed nothing.

    Raises:
        StoreTypeError, CounterOverflow: as a server would; of ``index`` in a pipeline.
        StoreRejected: it is a command of somebody else's.
        StoreQuotaExceeded: the table has no room.
    """
    try:
        return _reply(command, table, index)
    except NoRoom as full:
        raise StoreQuotaExceeded(command.name, command.key, str(full)) from None


def _reply(command: Command[Any], table: Table, index: int | None) -> Any:
    match command:
        case Get(at) | GetBytes(at):
            row = _live(table, at)
            return row[0] if row is not None else None
        case Set():
            return _set(table, command)
        case Incr():
            return _incr_once(table, command, index) if command.mark else _incr(table, command, index)
        case MGet(keys):
            found = [_live(table, key) for key in keys]
            return [row[0] if row is not None else None for row in found]
        case Delete(keys):
            return sum([_remove(table, key) for key in keys])
        case Exists(keys):
            return sum([_live(table, key) is not None for key in keys])
        case Expire(at, px):
            return _expire(table, at, px)
        case Ttl(at) | PTtl(at):
            left = _left(table, at)
            return (left + 500) // 1000 if left > 0 and isinstance(command, Ttl) else left
        case MSet(items):
            table.put({key: (value, None) for key, value in items})
            return b"OK"
        case Scan(start=start, cursor=cursor):
            return _page(table, start, cursor, command, index)
        case Ping():
            table.get("")  # a table that cannot be read does not answer
            return b"PONG"
        case _:
            raise refusal(f"ERR unknown command '{command.name}'", command, index)


def _live(table: Table, key: str) -> Row | None:
    row = table.get(key)
    if row is None:
        return None
    deadline = row[1]
    # In its last millisecond a key is there yet, as in Redis: none lives shorter than it was told to.
    return row if deadline is None or deadline >= table.now else None


def _set(table: Table, command: Set) -> bytes | None:
    known = _live(table, command.at) if command.condition or command.keepttl else None
    if command.condition and (known is None) is (command.condition == "XX"):
        return None
    deadline = known[1] if known is not None and command.keepttl else None
    if command.px is not None:
        deadline = table.now + command.px
    table.put({command.at: (command.value, deadline)})
    return b"OK"


def _incr(table: Table, command: Incr, index: int | None) -> int:
    count, row = _counted(table, command, index)
    table.put({command.at: row})
    return count


def _incr_once(table: Table, command: Incr, index: int | None) -> bytes:
    known = _live(table, command.mark)
    if known is not None:
        return known[0]
    _, row = _counted(table, command, index)
    table.put({command.at: row, command.mark: (row[0], table.now + OP_LIFETIME)})
    return row[0]


def _counted(table: Table, command: Incr, index: int | None) -> tuple[int, Row]:
    """Return what a counter becomes."""
    value, deadline = _live(table, command.at) or (b"0", None)
    number = int(value) if _INTEGER.fullmatch(value) else _INT64
    if not -_INT64 <= number < _INT64:
        raise refusal("ERR value is not an integer or out of range", command, index)
    number += command.by
    if not -_INT64 <= number < _INT64:
        raise refusal("ERR increment or decrement would overflow", command, index)
    return number, (b"%d" % number, deadline)


def _remove(table: Table, key: str) -> bool:
    if _live(table, key) is None:
        return False
    table.remove(key)
    return True


def _expire(table: Table, key: str, px: int) -> int:
    row = _live(table, key)
    if row is None:
        return 0
    if px > 0:
        table.put({key: (row[0], table.now + px)})
    else:
        table.remove(key)
    return 1


def _left(table: Table, key: str) -> int:
    """Return the milliseconds a key has left; -1 if it stays, -2 if there is none."""
    row = _live(table, key)
    if row is None:
        return -2
    return -1 if row[1] is None else row[1] - table.now


def _page(table: Table, start: str, cursor: str, command: Scan, index: int | None) -> list[Any]:
    """Return a page of keys. The cursor is the last key that was looked at: right whatever comes and goes."""
    if cursor != "0" and not cursor.startswith(">"):
        raise refusal("ERR invalid cursor", command, index)
    # The text that comes next after a text has a NUL more.
    first = start if cursor == "0" else f"{cursor[1:]}\0"
    names, last, looked = list[bytes](), "", 0
    for last, deadline in islice(table.names_from(first), PAGE):
        if not last.startswith(start):  # in their order, they are past
            return [b"0", names]
        looked += 1
        if deadline is None or deadline >= table.now:
            names.append(last.encode())
    return [f">{last}".encode() if looked == PAGE else b"0", names]
