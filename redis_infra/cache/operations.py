"""What each operation of the cache sends, how its reply reads, and what answers without Redis.

Without I/O and without Django: names and bytes in, a :class:`Plan` out. The
backend's sync and async methods are two thin shells around the same plans.
Times to live are milliseconds: a positive number, or None for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, TypeAlias

from redis_infra.cache.fallback import FallbackStore
from redis_infra.connection.bulk import batches, unlink, unlink_matching
from redis_infra.connection.scripts import INCR_EXISTING, Script, Talk, is_unknown_script
from redis_infra.connection.wire import pack
from redis_infra.exceptions import CounterOverflow, RedisInfraError
from redis_infra.keys import glob_to_regex
from redis_infra.resilience.failover import Effect, Home, Kind

__all__ = [
    "NotACounter",
    "Plan",
    "absent",
    "add",
    "clear",
    "count",
    "count_or_create",
    "delete",
    "delete_many",
    "exists",
    "get_many",
    "rename",
    "replace",
    "set_",
    "set_many",
    "touch",
]

INCR_OR_CREATE = Script("redis_infra.cache", "incr_or_create")
PERSIST = Script("redis_infra.cache", "persist")
RENAME = Script("redis_infra.cache", "rename")
REPLACE = Script("redis_infra.cache", "replace")

Local: TypeAlias = Callable[[FallbackStore], Any]


class NotACounter(RedisInfraError):
    """What is stored is no integer of 64 bits; the caller may know how to count it up."""


class Plan(Effect):
    """One operation, ready to be carried out by either shell, and what its loss would mean.

    Either ``packed`` is sent and ``read`` makes the answer of the reply, or
    ``talk`` is held. ``recover`` may know what to say to an error reply.
    ``local`` answers instead of Redis.
    """

    __slots__ = ("local", "packed", "read", "recover", "talk")

    def __init__(
        self,
        kind: Kind,
        names: tuple[str, ...],
        home: Home | None,
        local: Local,
        *,
        packed: bytes = b"",
        read: Callable[[Any], Any] = bool,
        talk: Callable[[], Talk] | None = None,
        recover: Callable[[Exception], Talk] | None = None,
        pattern: str | None = None,
        delta: int = 0,
        stores: bool = False,
        repeatable: bool = True,
        relative: bool = False,
    ) -> None:
        # Not super().__init__: a call less on the hot path.
        self.kind = kind
        self.names = names
        self.home = home
        self.pattern = pattern
        self.delta = delta
        self.stores = stores
        self.repeatable = repeatable
        self.relative = relative
        self.local = local
        self.packed = packed
        self.read = read
        self.talk = talk
        self.recover = recover


# Reading


def get_many(
    names: Sequence[str],
    untrusted: Callable[[], frozenset[str]],
    correct: Callable[[frozenset[str], list[bytes | None]], list[bytes | None]],
) -> Plan:
    """Answer: the stored bytes or None, in order. One MGET for up to a thousand names.

    ``untrusted`` says which of them Redis is not trusted with before it is
    asked; ``correct`` gets that and Redis' answer, and puts it right.
    """

    def talk() -> Talk:
        # Here and not earlier: the journals of other processes were looked at only just now.
        before = untrusted()
        found: list[bytes | None] = []
        for batch in batches(names):
            found += yield pack("MGET", *batch)
        return correct(before, found)

    return Plan(Kind.READ, (), None, methodcaller("get_many", names), talk=talk)


def exists(name: str) -> Plan:
    """Answer: a bool."""
    return Plan(Kind.READ, (name,), None, methodcaller("exists", name), packed=pack("EXISTS", name))


def absent(name: str) -> Plan:
    """Answer: whether there is nothing, which is all that an add without a lifetime can find out."""
    return Plan(
        Kind.READ,
        (name,),
        None,
        lambda store: not store.exists(name),
        packed=pack("EXISTS", name),
        read=lambda reply: not reply,
    )


# Storing


def set_(name: str, home: Home, raw: bytes, ttl: int | None, *, nx: bool = False, xx: bool = False) -> Plan:
    """Answer: True once Redis has it, None if only memory has; with ``nx`` or ``xx``: was it stored?"""
    conditional = nx or xx
    if ttl is not None and not conditional:
        packed = pack("SET", name, raw, "PX", ttl)
    else:
        command: list[str | bytes | int] = ["SET", name, raw]
        if ttl is not None:
            command += ["PX", ttl]
        if conditional:
            command.append("NX" if nx else "XX")
        packed = pack(*command)
    return Plan(
        Kind.FILL if nx else Kind.CHANGE,
        (name,),
        home,
        partial(_set_locally, name, raw, ttl, nx, xx),
        packed=packed,
        stores=True,
        # A first try whose reply was lost would make the second one say no to its own key.
        repeatable=not conditional,
    )


def _set_locally(
    name: str, raw: bytes, ttl: int | None, nx: bool, xx: bool, store: FallbackStore
) -> bool | None:
    stored = store.set(name, raw, _seconds(ttl), nx=nx, xx=xx)
    return stored if nx or xx else None


def add(name: str, home: Home, raw: bytes, ttl: int | None) -> Plan:
    """Answer: whether it was stored. Its loss does no harm, so nothing is unlinked for it later."""
    return Plan(
        Kind.FILL,
        (name,),
        home,
        partial(_add_locally, name, raw, ttl),
        packed=pack("SET", name, raw, "NX") if ttl is None else pack("SET", name, raw, "NX", "PX", ttl),
        stores=True,
        repeatable=False,
    )


def _add_locally(name: str, raw: bytes, ttl: int | None, store: FallbackStore) -> bool:
    return store.set(name, raw, _seconds(ttl), nx=True)


def set_many(values: dict[str, bytes], home: Home, ttl: int | None) -> Plan:
    """Answer: None. One write and one read for up to a thousand keys."""

    def packed(batch: Sequence[tuple[str, bytes]]) -> bytes:
        if ttl is None:
            return b"".join([pack("SET", name, raw) for name, raw in batch])
        return b"".join([pack("SET", name, raw, "PX", ttl) for name, raw in batch])

    def talk() -> Talk:
        for batch in batches(values.items()):
            yield packed(batch), len(batch)

    def local(store: FallbackStore) -> None:
        for name, raw in values.items():
            store.set(name, raw, _seconds(ttl))

    return Plan(Kind.CHANGE, tuple(values), home, local, talk=talk, stores=True)


def touch(name: str, home: Home, ttl: int | None) -> Plan:
    """Answer: whether the key was there. A ``ttl`` of 0 or less removes it."""
    local: Local = methodcaller("touch", name, _seconds(ttl))
    if ttl is None:
        return _scripted(PERSIST, (name,), (), Plan(Kind.CHANGE, (name,), home, local, relative=True))
    packed = pack("PEXPIRE", name, max(ttl, 0))
    return Plan(Kind.CHANGE, (name,), home, local, packed=packed, relative=ttl > 0)


def rename(old: str, new: str, home: Home) -> Plan:
    """Answer: whether there was something to move. It keeps its time to live."""
    plan = Plan(
        Kind.CHANGE,
        (old, new),
        home,
        methodcaller("rename", old, new),
        stores=True,
        repeatable=False,
        relative=True,
    )
    return _scripted(RENAME, (old, new), (), plan)


def replace(name: str, home: Home, old: bytes, new: bytes, *, create: bool) -> Plan:
    """Answer: whether the value was still ``old`` and is ``new`` now. Keeps the time to live.

    With ``create`` memory begins with ``new`` where it has nothing: ``old`` is what a Redis had that
    refuses stores now. Without, it raises Missing then.
    """

    def local(store: FallbackStore) -> bool:
        was_old = False

        def exchange(raw: bytes) -> bytes:
            nonlocal was_old
            was_old = raw == old
            return new if was_old else raw

        if create and store.set(name, new, None, nx=True):
            return True
        store.update(name, exchange)
        return was_old

    plan = Plan(Kind.CHANGE, (name,), home, local, stores=True, repeatable=False, relative=True)
    return _scripted(REPLACE, (name,), (old, new), plan)


def _seconds(ttl: int | None) -> float | None:
    return None if ttl is None else ttl / 1000


# Removing


def delete(name: str, home: Home, noted: Callable[[str], object]) -> Plan:
    """Answer: whether it was there. ``noted`` learns of it when Redis has confirmed."""

    def read(reply: int) -> bool:
        noted(name)
        return bool(reply)

    return Plan(
        Kind.CHANGE,
        (name,),
        home,
        lambda store: bool(store.delete(name)),
        packed=pack("UNLINK", name),
        read=read,
    )


def delete_many(names: Sequence[str], home: Home, noted: Callable[[str], object]) -> Plan:
    """Answer: how many were there."""

    def talk() -> Talk:
        removed = yield from unlink(names)
        for name in names:
            noted(name)
        return removed

    return Plan(Kind.CHANGE, tuple(names), home, methodcaller("delete", *names), talk=talk)


def clear(
    pattern: str,
    home: Home,
    *,
    batch: int,
    also: Callable[[str], set[str]],
    only: Callable[[str], bool] | None = None,
) -> Plan:
    """Answer: how many keys matched the glob (and ``only``, which is exact) and are gone.

    ``also`` removes what memory holds of them for keys that Redis is not
    trusted with at this moment, and returns their names.
    """

    taken: set[str] = set()

    def talk() -> Talk:
        taken.update(also(pattern))
        only_here = set(taken)
        removed = yield from unlink_matching(pattern, count=batch, seen=only_here, only=only)
        return removed + len(only_here)

    def local(store: FallbackStore) -> int:
        # Redis may have failed halfway: what was taken from here by then counts all the same.
        matches = glob_to_regex(pattern).match
        return len(taken) + store.delete_where(lambda name: matches(name) and (only is None or only(name)))

    return Plan(Kind.CHANGE, (), home, local, talk=talk, pattern=pattern)


# Counting


def count(name: str, home: Home, delta: int) -> Plan:
    """Answer: the new value; None if there is no such counter. Never sent twice.

    Raises:
        NotACounter, CounterOverflow: when carried out.
    """
    plan = Plan(
        Kind.COUNT,
        (name,),
        home,
        methodcaller("incr", name, delta),
        read=_as_integer,
        delta=delta,
        repeatable=False,
    )
    return _scripted(INCR_EXISTING, (name,), (delta,), plan)


def count_or_create(name: str, home: Home, delta: int, ttl: int | None) -> Plan:
    """Answer: the new value. A new counter gets the time to live, an old one keeps its own."""
    plan = Plan(
        Kind.COUNT,
        (name,),
        home,
        methodcaller("incr", name, delta, create_ttl=_seconds(ttl)),
        read=_as_integer,
        delta=delta,
        stores=True,
        repeatable=False,
    )
    return _scripted(INCR_OR_CREATE, (name,), (delta, 0 if ttl is None else ttl or -1), plan)


def _as_integer(reply: Any) -> int | None:
    """What a counting script says: an integer, its text beyond 2 ** 53, or nothing."""
    return int(reply) if type(reply) is bytes else reply


# Scripts


def _scripted(script: Script, keys: tuple[str, ...], args: tuple[str | bytes | int, ...], plan: Plan) -> Plan:
    """Send the script's digest; the whole of it only to a server that asks."""
    plan.packed = script.packed(keys, args)
    plan.recover = partial(_recover, script, keys, args, plan)
    return plan


def _recover(
    script: Script, keys: tuple[str, ...], args: tuple[str | bytes | int, ...], plan: Plan, error: Exception
) -> Talk:
    if is_unknown_script(error):
        try:
            return plan.read((yield script.whole(keys, args)))
        except Exception as answer:
            error = answer
    text = str(error)
    if "not an integer" in text:
        raise NotACounter from error
    if "would overflow" in text:
        raise CounterOverflow("INCR", keys[0], "a counter holds 64 bits") from error
    raise error
