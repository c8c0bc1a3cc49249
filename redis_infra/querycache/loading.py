"""One computation: who computes a value that is not there, and what everybody else gets meanwhile.

In a process one caller leads (single flight); among processes one holds the lease that lies in the entry
itself, and only what was computed under it is stored. Whatever invalidates an entry takes the lease with it,
so a value from before an invalidation is never stored after it.

Written as :mod:`~redis_infra.querycache.steps`, so without I/O.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db.models import QuerySet
from django.db.models.query import RawQuerySet

from redis_infra.cache.codec import Codec, Unreadable
from redis_infra.cache.lease import computing, held, is_computing, is_computing_any, pauses
from redis_infra.cache.steps import Call, Fly, Step, Steps, Work
from redis_infra.cache.turns import turns
from redis_infra.cache.values import MISSING
from redis_infra.querycache import transactions
from redis_infra.querycache.entries import NOBODY, Entry, new_token, now_ms, pack_entry, read_entry
from redis_infra.querycache.gate import gate
from redis_infra.querycache.policy import Policy
from redis_infra.querycache.space import Place, Space

__all__ = [
    "Recipe",
    "Seen",
    "Tally",
    "bound",
    "decode",
    "encode",
    "get",
    "judge",
    "packed",
]

logger = logging.getLogger(__name__)

LOADS: Final = 20
"""Classes of loading times that are told apart; the last begins at 33 s."""
ALONE: Final = b""
"""Instead of a value's bytes: it is not kept, and who waited for it computes by himself, as if uncached."""
PAUSE: Final = 1000
"""Milliseconds for which nobody tries again after a loader failed and an expired value was served."""


@dataclass(slots=True)
class Tally:
    """What one function's callers got, since the process started; see Counters for how exact that is."""

    hits: int = 0
    misses: int = 0
    stale: int = 0
    """Expired values that were served."""
    waits: int = 0
    """Callers that waited for somebody else's computation."""
    errors: int = 0
    """Loaders that raised."""
    computations: int = 0
    seconds: float = 0.0
    """In loaders."""
    loads: list[int] = field(default_factory=lambda: [0] * LOADS)
    """How many loads took how long: below 128 microseconds, and then each class twice as long."""

    def took(self, seconds: float) -> None:
        """Note how long a load took."""
        self.seconds += seconds
        self.loads[min(max(int(seconds * 1e6).bit_length() - 7, 0), LOADS - 1)] += 1

    def numbers(self) -> tuple[int, ...]:
        """Return all of it as whole numbers, which add up exactly: seconds as microseconds, loads last."""
        counts = (self.hits, self.misses, self.stale, self.waits, self.errors, self.computations)
        return (*counts, int(self.seconds * 1e6), *self.loads)


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Recipe:
    """What all calls of one function have in common."""

    label: str
    alias: str
    policy: Policy
    codec: Codec | None
    """Its own; None is the alias'."""
    tally: Tally


class Seen(NamedTuple):
    """What a look at an entry came to."""

    entry: Entry | None
    """The value, where it may be served at all."""
    is_due: bool
    """Whether it is to be computed anew: it has expired, or there is none."""
    filled_by: bytes
    """Who filled what lies there, good or not."""


def judge(raw: bytes | None, stamps: Sequence[bytes | None], version: int) -> Seen:
    """Return what the bytes of an entry are worth, given the stamps of its tags as they are now."""
    entry = read_entry(raw) if raw is not None else None
    if entry is None:
        return Seen(None, True, NOBODY)
    now = now_ms()
    if None in stamps or not entry.is_good(version, b"".join(stamps), now):  # type: ignore[arg-type]
        return Seen(None, True, entry.filled_by)
    return Seen(entry, entry.is_due(now), entry.filled_by)


# --- the algorithm --------------------------------------------------------------------------------------


def get(
    space: Space,
    recipe: Recipe,
    place: Place,
    compute: Callable[[], Any],
    read: Sequence[bytes | None] | None,
) -> Steps:
    """Return the value of an entry: what is there, or what ``compute`` comes to. Raises what that raises.

    ``read`` is what lies there and the stamps of its tags, if somebody has looked.
    """
    tally = recipe.tally
    if transactions.pending:
        about = (transactions.is_invalidated_here, recipe.alias, place.key, place.tags)
        if (yield Work(transactions.ask_around, about)):
            return (yield Call(compute))
    raw, *stamps = read if read is not None else (yield space.read_many((place.name, *place.stamps)))
    is_first = True
    while True:
        seen = judge(raw, stamps, recipe.policy.version)
        value = MISSING if seen.entry is None else decode(space, recipe, place, seen.entry.payload)
        if value is MISSING:
            seen = Seen(None, True, seen.filled_by)
        elif not seen.is_due:
            tally.hits += is_first
            return value
        tally.misses += is_first
        is_first = False
        if seen.entry is not None and place.name in space.engine.flights:
            tally.stale += seen.entry.fresh <= now_ms()
            return value
        mine: list[Any] = []
        payload = yield Fly(
            place.name,
            partial(_leading, space, recipe, place, seen, compute, mine),
            partial(_alone, space, recipe, place, compute, mine),
        )
        if mine:
            return mine[0]
        tally.waits += 1
        if payload == ALONE:
            tally.computations += 1
            return (yield Call(compute))
        if payload is not None:
            value = decode(space, recipe, place, payload)
            if value is not MISSING:
                return value
        raw, *stamps = yield space.read_many((place.name, *place.stamps))


def _leading(
    space: Space, recipe: Recipe, place: Place, seen: Seen, compute: Callable[[], Any], mine: list[Any]
) -> Generator[Step, Any, bytes | None]:
    """Get the value for ``mine``; return its bytes for those who wait, None if they have to look again."""
    loaded = yield from _lead(space, recipe, place, seen, compute)
    if loaded.value is not MISSING:
        mine.append(loaded.value)
    return loaded.payload


def _alone(
    space: Space, recipe: Recipe, place: Place, compute: Callable[[], Any], mine: list[Any], has_waited: bool
) -> Generator[Step, Any, None]:
    """Compute although somebody else does, and keep nothing."""
    if has_waited:
        mine.append((yield from _late(space, recipe, place, compute)))
    else:
        recipe.tally.computations += 1
        mine.append((yield Call(compute)))


def _late(
    space: Space, recipe: Recipe, place: Place, compute: Callable[[], Any]
) -> Generator[Step, Any, Any]:
    """Compute after having waited as long as anybody does, and keep nothing; one of a process at a time.

    Who waits for his turn looks whether the value has come.
    """
    owner = object()
    for pause in turns.waits((place.name,), owner):
        yield pause
        raw, *stamps = yield space.read_many((place.name, *place.stamps))
        entry = judge(raw, stamps, recipe.policy.version).entry
        if entry is not None and entry.fresh > now_ms():
            value = decode(space, recipe, place, entry.payload)
            if value is not MISSING:
                return value
    recipe.tally.computations += 1
    try:
        return (yield Call(compute))
    finally:
        turns.leave(owner)


class _Loaded(NamedTuple):
    """What a computation came to."""

    value: Any
    payload: bytes | None
    """For those who waited for it; None where they have to look for themselves, ALONE where to compute."""


def _lead(
    space: Space, recipe: Recipe, place: Place, seen: Seen, compute: Callable[[], Any]
) -> Generator[Step, Any, _Loaded]:
    """Get the value of an entry that is not there or is due, as the one caller of this process."""
    policy, tally = recipe.policy, recipe.tally
    stay = milliseconds(policy.longest())
    stamps = (yield space.stamps(place.stamps, stay)) if place.stamps else []
    token, waited = new_token(), False
    for pause in () if is_computing(place.name) else pauses():
        answer, *more = yield space.acquire(place, token, seen.filled_by, stay)
        if answer == b"granted":
            return (yield from _compute(space, recipe, place, seen, more[0], stamps, compute))
        if answer == b"filled":
            seen = judge(more[0], stamps, policy.version)
            if seen.entry is not None and seen.entry.fresh > now_ms():
                return _served(space, recipe, place, seen.entry)
        elif seen.entry is not None:
            tally.stale += seen.entry.fresh <= now_ms()
            return _served(space, recipe, place, seen.entry)
        else:
            tally.waits += not waited
            waited = True
            yield pause
    if waited:
        return _Loaded((yield from _late(space, recipe, place, compute)), None)
    tally.computations += 1
    return _Loaded((yield Call(compute)), None)


def _compute(
    space: Space,
    recipe: Recipe,
    place: Place,
    seen: Seen,
    token: bytes,
    stamps: list[bytes],
    compute: Callable[[], Any],
) -> Generator[Step, Any, _Loaded]:
    """Compute under a lease, and store what comes of it if the lease still stands then."""
    policy, tally = recipe.policy, recipe.tally
    stay = milliseconds(policy.longest())
    held.hold(token, partial(space.engine.run, space.renew(place, token)))
    try:
        tally.computations += 1
        if not is_computing_any():  # one that is part of another has been let in with it
            yield from gate.waits(space.engine)
        began = time.perf_counter()
        with computing(place.name), gate.entered():
            value = yield Call(compute)
            if isinstance(value, QuerySet):
                yield Work(len, (value,))  # what is cached is what it finds, and that takes its time
        cost = time.perf_counter() - began
        tally.took(cost)
        keeps = policy.keeps(value)
        payload = (yield Work(encode, (space, recipe, place, value))) if keeps else None
        raw, ttl = packed(policy, token, value, payload, stamps, cost) if payload is not None else (None, 0)
        if ttl > stay and place.stamps:
            yield space.stamps(place.stamps, ttl)  # as long as the result wants it
    except Exception as error:
        held.drop(token)
        tally.errors += 1
        is_usable = seen.entry is not None and seen.entry.dead > now_ms()
        stands = yield space.release(place, token, pause=PAUSE if is_usable else 0)
        if stands and is_usable and place.stamps:
            raw, *stamps_now = yield space.read_many((place.name, *place.stamps))
            is_usable = judge(raw, stamps_now, policy.version).entry is not None
        if seen.entry is None or not is_usable or not stands:
            raise  # also where it was invalidated meanwhile
        logger.warning("redis_infra.served_stale function=%s cause=%s", recipe.label, type(error).__name__)
        tally.stale += 1
        return _served(space, recipe, place, seen.entry)
    except BaseException:
        # Cancelled, or the process is to end: nobody waits for an answer from Redis here.
        held.leave(token, partial(space.engine.run, space.release(place, token)))
        raise
    held.drop(token)
    if raw is None or payload is None or transactions.is_by_hand():
        yield space.release(place, token)
        return _Loaded(value, ALONE)
    fill = space.fill(place, token, raw, ttl)
    if waits_for := (yield Work(transactions.ask_around, (transactions.open_transactions,))):
        yield space.park(place, token)
        transactions.store_at_commit(lambda: space.engine.run(fill), waits_for)
        return _Loaded(value, None)
    # Who comes from now on looks for himself: he may come after an invalidation that comes after the fill.
    space.engine.flights.forget(place.name)
    stored = yield fill
    if not stored:
        return _Loaded(value, ALONE if space.keeps_nothing else None)
    # Tags are no part of the lease: who waited has to look whether they are the same yet.
    return _Loaded(value, None if place.stamps else payload)


def _served(space: Space, recipe: Recipe, place: Place, entry: Entry) -> _Loaded:
    # Not for those who wait: they may have come after an invalidation that it did not live to see.
    return _Loaded(decode(space, recipe, place, entry.payload), None)


# --- bytes ----------------------------------------------------------------------------------------------


def decode(space: Space, recipe: Recipe, place: Place, payload: bytes) -> Any:
    """Return the value; MISSING, and one warning for each reason, if nobody can read it."""
    engine = space.engine
    try:
        return (recipe.codec or engine.codec).decode(bound(space, place.key), payload)
    except Unreadable as error:
        engine.note_unreadable(error)
        return MISSING


def encode(space: Space, recipe: Recipe, place: Place, value: Any) -> bytes | None:
    """Return the bytes of a value; None, and one warning, if it has none and the site is not in DEBUG."""
    remedy = _remedy(value)
    try:
        if remedy:
            raise TypeError(remedy)
        return (recipe.codec or space.engine.codec).encode(bound(space, place.key), value)
    except SynchronousOnlyOperation:
        raise
    except Exception as error:
        if django_settings.DEBUG:
            if inspect.iscoroutine(value):
                value.close()  # nobody is handed it who could await it
            said = f"; {remedy}" if remedy else f" that cannot be cached: {error}"
            raise TypeError(f"{recipe.label} returned a {type(value).__name__}{said}") from error
        if recipe.label not in _warned:
            _warned.add(recipe.label)
            logger.warning(
                "redis_infra.not_cacheable function=%s type=%s",
                recipe.label,
                type(value).__name__,
                exc_info=True,
            )
        return None


_warned: set[str] = set()

DECORATE_IT: Final = "decorate the coroutine function itself"


def _remedy(value: Any) -> str:
    """Return what to do about a result that cannot be kept, or that its bytes would not be; nothing else."""
    if inspect.iscoroutine(value):
        return DECORATE_IT
    if isinstance(value, RawQuerySet):  # its pickle is its SQL, without what it found
        return "it would ask the database again at each hit; return list(...) of it"
    return ""


def bound(space: Space, key: str) -> str:
    """Return what a signature ties the value of a key to; nothing where nothing is signed."""
    return space.backend._bound(f"qc:{key}", "") if space.engine.is_signed else ""


def packed(
    policy: Policy, token: bytes, value: Any, payload: bytes, stamps: Sequence[bytes], cost: float
) -> tuple[bytes, int]:
    """Return the entry of a value that took ``cost`` seconds, and the milliseconds that it lives."""
    now = now_ms()
    fresh = now + milliseconds(policy.lifetime(value))
    dead = fresh + milliseconds(policy.stale)
    raw = pack_entry(
        token, fresh=fresh, dead=dead, cost=cost, version=policy.version, stamps=stamps, payload=payload
    )
    return raw, dead - now


def milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000)) if seconds else 0
