"""Commands of a key-value store: checked arguments on one side, the reply as Python has it on the other.

A store executes them and nothing else: one that speaks with a server sends their :attr:`~Command.words`,
one that is its own server looks at their fields. Replies are Redis' own: bytes, integers, lists, None.

Knows nothing of stores, and does no I/O.
"""

from __future__ import annotations

import binascii
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, ClassVar, Final, Generic, TypeAlias, TypeVar, cast

from redis_infra.exceptions import StoreTypeError
from redis_infra.keys import escape

__all__ = [
    "OP_LIFETIME",
    "Command",
    "Commands",
    "Delete",
    "Exists",
    "Expire",
    "Get",
    "GetBytes",
    "Incr",
    "MGet",
    "MSet",
    "PTtl",
    "Ping",
    "Scan",
    "Seconds",
    "Set",
    "Ttl",
    "Value",
    "Word",
    "name_of",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Word: TypeAlias = str | bytes | int
Value: TypeAlias = str | bytes | int | float
"""What may be stored; it is read as text, or as bytes."""
Seconds: TypeAlias = int | float | timedelta

OP_LIFETIME: Final = 600_000
"""Milliseconds for which a store remembers that it did the operation of an ``op_id``."""
_INT64: Final = 2**63
_SLOTS: Final = 16384
_PAGE: Final = 1000
"""Keys that a page of a scan looks at."""

# KEYS counter, mark; ARGV by, milliseconds. The mark holds the answer, so that whoever asks again gets it; as
# text all the way, because numbers of Lua are exact to 2 ** 53 only.
_INCR_ONCE: Final = """
local known = redis.call('GET', KEYS[2])
if known then return known end
redis.call('INCRBY', KEYS[1], ARGV[1])
local count = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[2], count, 'PX', ARGV[2])
return count
"""


@dataclass(frozen=True, slots=True)
class Command(ABC, Generic[T_co]):
    """One command. ``keys`` are as the store knows them, with the site's prefix."""

    name: ClassVar[str]
    """What users call it, which errors name."""
    writes: ClassVar[bool] = False
    stores: ClassVar[bool] = False
    """Whether it may take room."""

    @property
    @abstractmethod
    def words(self) -> tuple[Word, ...]:
        """The command as Redis takes it."""

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> str:
        """The first key, for errors."""
        return self.keys[0] if self.keys else ""

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again although it may have been executed, with the same answer."""
        return not self.writes

    @abstractmethod
    def read(self, reply: Any) -> T_co:
        """Return a reply as callers get it.

        Raises:
            StoreTypeError: bytes that are no text were asked for as text.
        """


@dataclass(frozen=True, slots=True)
class _OfOneKey(Command[T_co]):
    at: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.at,)


@dataclass(frozen=True, slots=True)
class _OfKeys(Command[T_co]):
    all: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.all


@dataclass(frozen=True, slots=True)
class GetBytes(_OfOneKey[bytes | None]):
    name = "get_bytes"

    @property
    def words(self) -> tuple[Word, ...]:
        return "GET", self.at

    def read(self, reply: Any) -> bytes | None:
        return cast("bytes | None", reply)


@dataclass(frozen=True, slots=True)
class Get(_OfOneKey[str | None]):
    name = "get"

    @property
    def words(self) -> tuple[Word, ...]:
        return "GET", self.at

    def read(self, reply: Any) -> str | None:
        return _text(reply, self.name, self.at)


@dataclass(frozen=True, slots=True)
class MGet(_OfKeys[list[str | None]]):
    name = "mget"

    @property
    def words(self) -> tuple[Word, ...]:
        return "MGET", *self.all

    def read(self, reply: Any) -> list[str | None]:
        return [_text(each, self.name, key) for each, key in zip(reply, self.all, strict=True)]


@dataclass(frozen=True, slots=True)
class Set(_OfOneKey[bool]):
    name = "set"
    writes = stores = True
    value: bytes
    px: int | None
    """Milliseconds until it expires."""
    condition: str
    """``NX``, ``XX`` or nothing."""
    keepttl: bool

    @property
    def words(self) -> tuple[Word, ...]:
        words: tuple[Word, ...] = ("SET", self.at, self.value)
        if self.px is not None:
            words += ("PX", self.px)
        if self.condition:
            words += (self.condition,)
        return (*words, "KEEPTTL") if self.keepttl else words

    def read(self, reply: Any) -> bool:
        return reply is not None


@dataclass(frozen=True, slots=True)
class MSet(Command[None]):
    name = "mset"
    writes = stores = True
    items: tuple[tuple[str, bytes], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key, _ in self.items)

    @property
    def words(self) -> tuple[Word, ...]:
        return "MSET", *[word for item in self.items for word in item]

    def read(self, reply: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Incr(_OfOneKey[int]):
    name = "incr"
    writes = stores = True
    by: int
    mark: str
    """The key that says that this was done; nothing where nobody wants to know."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.at, self.mark) if self.mark else (self.at,)

    @property
    def words(self) -> tuple[Word, ...]:
        if not self.mark:
            return "INCRBY", self.at, self.by
        return "EVAL", _INCR_ONCE, 2, self.at, self.mark, self.by, OP_LIFETIME

    @property
    def repeatable(self) -> bool:
        return bool(self.mark)

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, slots=True)
class Delete(_OfKeys[int]):
    name = "delete"
    writes = True

    @property
    def words(self) -> tuple[Word, ...]:
        return "DEL", *self.all

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, slots=True)
class Exists(_OfKeys[int]):
    name = "exists"

    @property
    def words(self) -> tuple[Word, ...]:
        return "EXISTS", *self.all

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, slots=True)
class Expire(_OfOneKey[bool]):
    name = "expire"
    writes = True
    px: int
    """Milliseconds; with none left the key is deleted."""

    @property
    def words(self) -> tuple[Word, ...]:
        return "PEXPIRE", self.at, self.px

    def read(self, reply: Any) -> bool:
        return bool(reply)


@dataclass(frozen=True, slots=True)
class PTtl(_OfOneKey[int]):
    name = "pttl"

    @property
    def words(self) -> tuple[Word, ...]:
        return "PTTL", self.at

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, slots=True)
class Ttl(_OfOneKey[int]):
    name = "ttl"

    @property
    def words(self) -> tuple[Word, ...]:
        return "TTL", self.at

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, slots=True)
class Scan(Command[tuple[str, list[str]]]):
    """One page of the keys that begin with ``start``: from cursor ``"0"`` on, until it is ``"0"`` again."""

    name = "scan"
    start: str
    cursor: str

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    @property
    def words(self) -> tuple[Word, ...]:
        return "SCAN", self.cursor, "MATCH", f"{escape(self.start)}*", "COUNT", _PAGE

    def read(self, reply: Any) -> tuple[str, list[str]]:
        cursor, names = reply
        return str(_text(cursor, self.name, "")), [name.decode(errors="surrogateescape") for name in names]


@dataclass(frozen=True, slots=True)
class Ping(Command[bool]):
    name = "ping"

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    @property
    def words(self) -> tuple[Word, ...]:
        return ("PING",)

    def read(self, reply: Any) -> bool:
        return True


def _text(reply: Any, name: str, key: str) -> str | None:
    if not isinstance(reply, bytes):
        return None if reply is None else str(reply)
    try:
        return reply.decode()
    except UnicodeDecodeError:
        raise StoreTypeError(name, key, "its value is no UTF-8 text; read it with get_bytes()") from None


def name_of(commands: Sequence[Command[Any]], *, atomic: bool = False) -> str:
    """Return what errors call commands that are executed together."""
    if len(commands) == 1 and not atomic:
        return commands[0].name
    return "transaction" if atomic else "pipeline"


# --- from what people write -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commands:
    """Make commands from what people write. ``home`` is what leads every key of this site.

    Raises (all methods):
        TypeError, ValueError: an argument is wrong; the text says which and what would be right.
    """

    home: str

    def get(self, key: str) -> Get:
        return Get(self.named(key))

    def get_bytes(self, key: str) -> GetBytes:
        return GetBytes(self.named(key))

    def mget(self, *keys: str | Iterable[str]) -> MGet:
        return MGet(self._named_all(keys, "mget"))

    def set(
        self,
        key: str,
        value: Value,
        *,
        ex: Seconds | None = None,
        px: int | None = None,
        nx: bool = False,
        xx: bool = False,
        keepttl: bool = False,
    ) -> Set:
        if nx and xx:
            raise ValueError("set: nx and xx exclude each other; pass one of them")
        lifetime = _lifetime(ex, px)
        if keepttl and lifetime is not None:
            raise ValueError("set: keepttl keeps the time to live that there is; pass it, or ex or px")
        condition = "NX" if nx else "XX" if xx else ""
        return Set(self.named(key), value_bytes(value), lifetime, condition, keepttl)

    def mset(self, mapping: Mapping[str, Value]) -> MSet:
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mset: takes a mapping of keys to values, not {type(mapping).__name__}")
        if not mapping:
            raise ValueError("mset: takes a mapping of keys to values, not an empty one")
        return MSet(tuple([(self.named(key), value_bytes(value)) for key, value in mapping.items()]))

    def incr(self, key: str, by: int = 1, *, op_id: str | None = None) -> Incr:
        if not isinstance(by, int) or isinstance(by, bool):
            raise TypeError(f"incr: by is a whole number, not {type(by).__name__}")
        if not -_INT64 <= by < _INT64:
            raise ValueError("incr: by is beyond the signed 64-bit range of counters")
        name = self.named(key)
        return Incr(name, by, self._mark(name, op_id) if op_id is not None else "")

    def _mark(self, name: str, op_id: str) -> str:
        what = "incr: op_id is a text that nobody else uses, such as str(uuid.uuid4())"
        if not isinstance(op_id, str):
            raise TypeError(f"{what}, not {type(op_id).__name__}")
        if not op_id:
            raise ValueError(what)
        # In the slot of the counter, and outside of what a scan of this store finds. With all of its name,
        # and where that ends, since counters share slots: {a}x has not done what {a}y did.
        lead = f"{self.home.removesuffix(':')}-op:{{{_slot_tag(name)}}}"
        return f"{lead}:{len(name)}:{name}:{_encoded(op_id, 'incr: op_id')}"

    def delete(self, *keys: str | Iterable[str]) -> Delete:
        return Delete(self._named_all(keys, "delete"))

    def exists(self, *keys: str | Iterable[str]) -> Exists:
        return Exists(self._named_all(keys, "exists"))

    def expire(self, key: str, seconds: Seconds) -> Expire:
        return Expire(self.named(key), _milliseconds(seconds, "expire: seconds"))

    def ttl(self, key: str) -> Ttl:
        return Ttl(self.named(key))

    def pttl(self, key: str) -> PTtl:
        return PTtl(self.named(key))

    def scan(self, prefix: str, cursor: str) -> Scan:
        return Scan(self.named(prefix), cursor)

    def named(self, key: str) -> str:
        """Return a key as the store knows it."""
        if not isinstance(key, str):
            raise TypeError(f"a key is text, not {type(key).__name__}")
        return self.home + _encoded(key, "a key")

    def bare(self, name: str) -> str:
        """Return a key of the store as people know it."""
        return name[len(self.home) :]

    def _named_all(self, keys: tuple[str | Iterable[str], ...], name: str) -> tuple[str, ...]:
        flat: list[str] = []
        for key in keys:
            is_one = isinstance(key, str | bytes) or not isinstance(key, Iterable)
            flat += [cast("str", key)] if is_one else key
        if not flat:
            raise ValueError(f"{name}: needs a key at least")
        return tuple([self.named(key) for key in flat])


def _slot_tag(name: str) -> str:
    """Return what in braces is in the slot of a key in a cluster: if they hold it, what decides about it."""
    begin = name.find("{")
    end = name.find("}", begin + 1) if begin >= 0 else -1
    if end > begin + 1:
        return name[begin + 1 : end]
    return _other_text_of_slot(name) if "}" in name else name


@lru_cache(maxsize=1000)
def _other_text_of_slot(name: str) -> str:
    """Return a number in the slot of a key that braces cannot hold, such as ``a}b``: the first there is."""
    slot = _slot(name)
    return next(text for text in map(str, itertools.count()) if _slot(text) == slot)


def _slot(text: str) -> int:
    return binascii.crc_hqx(text.encode(), 0) % _SLOTS


def _encoded(text: str, what: str) -> str:
    """Return a text that can be sent."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{what} has a lone surrogate in it, which is no text that can be sent"
            ) from None
    return text


def value_bytes(value: Value) -> bytes:
    """Return a value as it is stored.

    Raises:
        TypeError: it is neither text nor bytes nor a number.
    """
    if isinstance(value, str):
        return _encoded(value, "a value").encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Of the class itself: NumPy's floats are some, and their repr is Python code.
        return float.__repr__(value).encode() if isinstance(value, float) else b"%d" % value
    kind = type(value).__name__
    raise TypeError(f"a value is text, bytes or a number, not {kind}; json.dumps() makes a text of it")


def _lifetime(ex: Seconds | None, px: int | None) -> int | None:
    if ex is not None and px is not None:
        raise ValueError("set: ex and px both say when it expires; pass one of them")
    if ex is None and px is None:
        return None
    milliseconds = _milliseconds(ex, "set: ex") if ex is not None else _whole(px, "set: px")
    if milliseconds <= 0:
        name = "px" if ex is None else "ex"
        raise ValueError(f"set: {name} is a time to come, not {px if ex is None else ex!r}; delete() deletes")
    return milliseconds


def _milliseconds(seconds: object, label: str) -> int:
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, int) and not isinstance(seconds, bool):
        milliseconds = seconds * 1000
    elif isinstance(seconds, float):
        if not math.isfinite(seconds):
            raise ValueError(f"{label} is a number of seconds, not {seconds!r}; leave it away for what stays")
        bounded = max(-_INT64, min(seconds * 1000, _INT64))  # which may be infinite only now
        milliseconds = math.ceil(bounded) if seconds > 0 else math.floor(bounded)
    else:
        raise TypeError(f"{label} is a number of seconds or a timedelta, not {seconds!r}")
    return _in_range(milliseconds, label)


def _whole(number: object, label: str) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{label} is a whole number of milliseconds, not {number!r}")
    return _in_range(number, label)


def _in_range(milliseconds: int, label: str) -> int:
    # A server adds the time since the epoch to it.
    if abs(milliseconds) >= _INT64 // 4:
        raise ValueError(f"{label} is more than a store can count")
    return milliseconds
