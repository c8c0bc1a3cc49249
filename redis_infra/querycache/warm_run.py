"""One run of a warmer: look at what is there, load what is not, store it under a lease.

A batch of up to a thousand is looked at in one round trip. What is missing is loaded in slices, each with one
round trip for its leases and one to store: as many at a time as take a twentieth of a second, since who reads
one of them meanwhile waits for the lease. A value that was invalidated while it was loaded is not stored.

Without Redis it ends: what would go into this process' memory would end with it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from django.db.models import QuerySet

from redis_infra.cache.lease import held
from redis_infra.cache.operations import Plan
from redis_infra.cache.values import MISSING
from redis_infra.connection.bulk import BATCH
from redis_infra.exceptions import StoreUnavailable
from redis_infra.querycache import loading, transactions
from redis_infra.querycache.entries import filler_of, is_entry, new_token, now_ms
from redis_infra.querycache.loading import Seen, Tally, judge
from redis_infra.querycache.many import mapping
from redis_infra.querycache.reach import ask, check_reach
from redis_infra.querycache.space import Filling, Place, Space, space_for
from redis_infra.querycache.warm_crew import Crew, Pace
from redis_infra.querycache.warming import Item, Warmer

__all__ = ["Outcome", "Trouble", "warm"]

HOLD: Final = 0.05
"""Seconds that loading a slice is to take: so long may a reader wait for an entry that comes later in it."""
MOST: Final = 250
"""Entries of a slice, at most."""
FIRST: Final = 10
"""Entries of the first slice where they are loaded together, which cannot be left off in the middle."""
AGE: Final = 0.5
"""Seconds for which a batch is filled. A value that was yielded may grow as old before it is stored, and as
much older as its generator takes for the next one, in which nobody looks at the clock."""
PATIENCE: Final = 10.0
"""Seconds for which a run waits for a Redis that goes away in the middle of it."""
GRACE: Final = 5.0
"""Seconds that loaders which are under way get to finish in, once a run is to end."""
TROUBLES: Final = 5
"""Errors that are kept; all are counted."""
_COUNTS: Final = ("items", "warmed", "fresh", "left", "unkept", "lost", "failed")
LINE: Final = 160
"""Characters of an error."""
_ITS_OWN: Final = (Exception, asyncio.CancelledError)
"""What the site's own code may fail with; nobody cancels it here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One thing that failed."""

    key: str
    """Of the entry, or which of what the generator yielded."""
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a warmer, or has so far. Counts are of entries."""

    name: str
    total: int | None
    """How many there are to be, where that is known."""
    items: int
    """How many were looked at."""
    warmed: int
    """Loaded and stored; with ``dry_run`` those that would be."""
    fresh: int
    """Were good already."""
    left: int
    """Somebody else is computing them, or they were invalidated while they were loaded."""
    unkept: int
    """Loaded, and not to be kept: by the function's condition, or its answer left them out, or it is in a
    transaction that was begun by hand."""
    lost: int
    """Loaded and not stored, since Redis went away or the run was interrupted."""
    failed: int
    troubles: tuple[Trouble, ...]
    """The first few."""
    seconds: float
    dry_run: bool
    interrupted: bool
    unavailable: str
    """Why Redis could not be reached; empty if it could."""

    @property
    def done(self) -> int:
        """How many are dealt with, one way or the other."""
        return self.warmed + self.fresh + self.left + self.unkept + self.lost + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """See :func:`warm`."""

    jobs: int
    rate: float | None
    limit: int | None
    force: bool
    dry_run: bool
    fail_fast: bool


def warm(
    warmer: Warmer,
    *,
    jobs: int = 1,
    rate: float | None = None,
    limit: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    fail_fast: bool = False,
    watch: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Load what a warmer yields and is not fresh.

    With one job the caller's thread loads, with more that many others do. ``rate`` is how many are loaded in
    a second at most, ``limit`` how many are looked at. ``force`` loads what is fresh as well, which is served
    until then. ``watch`` is told from time to time, in this thread. Failing loaders, Ctrl-C and an outage are
    in the outcome; nothing is raised for them. Leases are released in any case.
    """
    options = _Options(jobs=jobs, rate=rate, limit=limit, force=force, dry_run=dry_run, fail_fast=fail_fast)
    space = space_for(warmer.alias)
    if space is None:
        return _nothing(warmer, dry_run=dry_run)  # Django's dummy, which keeps nothing
    return _Run(space, warmer, options, watch).go()


class _Missing(NamedTuple):
    item: Item
    seen: Seen


class _Granted(NamedTuple):
    item: Item
    token: bytes


class _Failed(NamedTuple):
    """What there was instead of a value; a value may be an exception."""

    error: BaseException


class _Loaded(NamedTuple):
    granted: _Granted
    value: Any
    """Or :class:`_Failed`."""
    cost: float


class _Run:
    """See :func:`warm`."""

    def __init__(
        self, space: Space, warmer: Warmer, options: _Options, watch: Callable[[Outcome], None] | None
    ) -> None:
        self._space = space
        self._warmer = warmer
        self._options = options
        self._watch = watch
        self._stop = threading.Event()
        self._pace = Pace(options.rate, self._stop)
        self._crew = Crew(options.jobs, self._load, self._slice, self._wind_up, self._stop)
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._troubles: list[Trouble] = []
        self._total: int | None = None
        self._interrupted = False
        self._unavailable = ""
        self._leases: dict[bytes, Place] = {}
        self._unsure: list[Filling] = []
        self._size = FIRST if warmer.is_many else 1
        self._here = threading.local()

    def go(self) -> Outcome:
        try:
            check_reach(self._space)
            for batch in self._batches():
                self._look_and_load(batch)
                self._tell()
        except KeyboardInterrupt:
            self._interrupted = True
        except StoreUnavailable as error:
            self._unavailable = error.reason
        finally:
            self._end()
        return self._outcome()

    def _end(self) -> None:
        """Let go of everything; a second Ctrl-C does not wait for loaders."""
        self._stop.set()
        try:
            if self._interrupted and self._crew.is_busy:
                self._tell()  # it may take a moment now
            self._crew.end(GRACE)
            self._wind_up()
        except KeyboardInterrupt:
            self._interrupted = True
        for token, place in list(self._leases.items()):
            self._release(place, token)
        self._count_unsure()

    def _count_unsure(self) -> None:
        """Find out what became of that whose storing was broken off."""
        if self._unsure:
            stored = 0
            with suppress(StoreUnavailable):
                stored = self._stored(self._unsure, [0] * len(self._unsure))
            self._count("warmed", stored)
            self._count("lost", len(self._unsure) - stored)

    def _release(self, place: Place, token: bytes) -> None:
        held.drop(token)
        self._leases.pop(token, None)
        with suppress(StoreUnavailable):  # then it ends by itself
            self._space.engine.run(self._space.release(place, token))

    def _outcome(self) -> Outcome:
        with self._lock:
            return Outcome(
                name=self._warmer.name,
                total=self._total,
                troubles=tuple(self._troubles),
                seconds=time.perf_counter() - self._began,
                dry_run=self._options.dry_run,
                interrupted=self._interrupted,
                unavailable=self._unavailable,
                **self._counts,
            )

    def _tell(self) -> None:
        if self._watch is not None:
            self._watch(self._outcome())

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    def _fail(self, key: str, error: BaseException | str) -> None:
        with self._lock:
            self._counts["failed"] += 1
            if len(self._troubles) < TROUBLES:
                self._troubles.append(Trouble(key=key, error=_said(error)))
        if self._options.fail_fast:
            self._stop.set()

    # What there is to do

    def _batches(self) -> Iterator[list[Item]]:
        """Return the entries that the generator stands for, in batches that are full or half a second old."""
        most = BATCH if self._pace.rate is None else max(1, min(BATCH, int(self._pace.rate)))
        batch: list[Item] = []
        began, seen = time.monotonic(), 0
        for yielded in self._yielded():
            if not batch:
                began = time.monotonic()
            try:
                found = self._warmer.items(self._space, yielded)
            except Exception as error:  # the site's own objects make keys
                self._fail(f"item {seen + 1}", error)
                seen += 1
            else:
                seen += len(found)
                over = 0 if self._options.limit is None else max(0, seen - self._options.limit)
                batch += found[: len(found) - over]
            is_over = self._options.limit is not None and seen >= self._options.limit
            if batch and (len(batch) >= most or is_over or time.monotonic() - began >= AGE):
                yield batch
                batch = []
            if is_over or self._stop.is_set():
                return
        if batch:
            yield batch

    def _yielded(self) -> Iterator[Any]:
        try:
            self._total = self._find_total()
            yield from self._iterated(self._warmer.generate())
        except _ITS_OWN as error:  # the site's own generator
            self._fail(f"the generator of {self._warmer.name}", error)

    def _find_total(self) -> int | None:
        total = self._warmer.total
        total = total() if callable(total) else total
        return total if total is None or self._options.limit is None else min(total, self._options.limit)

    def _iterated(self, found: Any) -> Iterable[Any]:
        if isinstance(found, QuerySet):
            if self._total is None:
                count = found.count()
                self._total = count if self._options.limit is None else min(count, self._options.limit)
            return found.iterator(chunk_size=BATCH)
        if isinstance(found, AsyncIterable):
            return self._in_loop(found)
        return found  # type: ignore[no-any-return]  # what is not iterable says so

    def _in_loop(self, found: AsyncIterable[Any]) -> Iterator[Any]:
        items = aiter(found)

        async def step() -> Any:
            return await anext(items, MISSING)

        while (item := self._runner().run(step())) is not MISSING:
            yield item

    def _look_and_load(self, batch: list[Item]) -> None:
        """Look at all of a batch in one round trip, and load those that are not fresh."""
        self._count("items", len(batch))
        unique = {item.place.name: item for item in batch}
        stamps = list(dict.fromkeys(name for item in unique.values() for name in item.place.stamps))
        raws = self._ask(self._space.read_many([*unique, *stamps]))
        known = dict(zip(stamps, raws[len(unique) :], strict=True))
        missing = []
        for item, raw in zip(unique.values(), raws, strict=False):
            seen = judge(raw, [known[name] for name in item.place.stamps], self._warmer.recipe.policy.version)
            if self._options.force or not self._is_fresh(item, seen):
                missing.append(_Missing(item, seen))
        self._count("fresh", len(batch) - len(missing))
        if self._options.dry_run:
            self._count("warmed", len(missing))
        else:
            self._crew.do(missing, self._tell)

    def _is_fresh(self, item: Item, seen: Seen) -> bool:
        if seen.entry is None or seen.entry.fresh <= now_ms():
            return False
        return loading.decode(self._space, self._warmer.recipe, item.place, seen.entry.payload) is not MISSING

    def _ask(self, plan: Plan) -> Any:
        """Ask Redis, and for a while again if it goes away."""
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                return ask(self._space, plan)
            except StoreUnavailable as error:
                if time.monotonic() > ends or self._stop.wait(0.1):
                    self._unavailable = error.reason
                    self._stop.set()
                    raise

    # A slice

    def _slice(self, left: int) -> int:
        """Return how many to load together, of so many that are left."""
        size = min(self._size, MOST, max(1, -(-left // self._crew.jobs)))
        return size if self._pace.rate is None else min(size, max(1, int(self._pace.rate / 10)))

    def _load(self, todo: list[_Missing]) -> None:
        """Load a slice under leases, and store it in one round trip."""
        if not self._pace.wait(len(todo)):
            return
        stay = loading.milliseconds(self._warmer.recipe.policy.longest())
        names = list(dict.fromkeys(name for each in todo for name in each.item.place.stamps))
        answer = self._ask(self._space.stamps(names, stay)) if names else []
        stamps = dict(zip(names, answer, strict=True))
        granted = self._acquire(todo, stay)
        began, number = time.perf_counter(), 0
        ready: list[Filling] = []
        try:
            for loaded in self._values(granted):
                number += 1
                self._take_in(loaded, stamps, ready)
                if not self._warmer.is_many and time.perf_counter() - began > HOLD:
                    break  # the others are dearer than those before: nobody shall wait for all of them
        except BaseException:
            self._stop.set()  # nobody waits for Redis now
            raise
        finally:
            self._settle(granted, ready)
        self._adapt(number, time.perf_counter() - began)
        self._leave(todo, granted[number:])

    def _leave(self, todo: list[_Missing], granted: list[_Granted]) -> None:
        """Have these loaded later, under leases that are asked for then."""
        if granted and not self._stop.is_set():
            names = {each.item.place.name for each in granted}
            self._pace.give_back(len(granted))
            self._crew.put_back([each for each in todo if each.item.place.name in names])

    def _acquire(self, todo: list[_Missing], stay: int) -> list[_Granted]:
        tokens = [new_token() for _ in todo]
        places = [each.item.place for each in todo]
        self._leases.update(zip(tokens, places, strict=True))
        plan = self._space.acquire_many(places, tokens, [each.seen.filled_by for each in todo], stay)
        granted = []
        for each, token, answer in zip(todo, tokens, self._ask(plan), strict=True):
            place = each.item.place
            # Asked again, since its reply was lost, the lease may be held by ourselves.
            is_ours = answer[0] == b"held" and self._ask(self._space.renew(place, token))
            if answer[0] == b"granted" or is_ours:
                # What lies there is granted again: of a loader that failed, say, or a holder that was killed.
                own = token if is_ours else answer[1]
                self._leases[own] = self._leases.pop(token)
                held.hold(own, partial(self._space.engine.run, self._space.renew(place, own)))
                granted.append(_Granted(each.item, own))
            else:
                self._leases.pop(token, None)
                self._count("fresh" if answer[0] == b"filled" else "left")
        return granted

    def _values(self, granted: list[_Granted]) -> Iterator[_Loaded]:
        """Load what there are leases for, until the run is to end."""
        if not self._warmer.is_many:
            for each in granted:
                if self._stop.is_set():
                    return
                tally = self._warmer.recipe.tally if each.item.is_load else Tally()
                yield _Loaded(each, *self._called(each.item.what, tally))
        elif granted:
            wanted = [each.item.what for each in granted]
            call = partial(self._warmer.function.uncached, wanted)
            found, cost = self._called(call, self._warmer.recipe.tally)
            if not isinstance(found, _Failed):
                try:
                    found = mapping(self._warmer.recipe.label, found)
                except TypeError as error:
                    found = _Failed(error)
            for each in granted:
                value = found if isinstance(found, _Failed) else found.get(each.item.what, MISSING)
                yield _Loaded(each, value, cost / len(granted))

    def _called(self, function: Callable[[], Any], tally: Tally) -> tuple[Any, float]:
        """Call a loader; return its result, or its exception, and the seconds it took."""
        began = time.perf_counter()
        tally.computations += 1
        try:
            value = function()
            if inspect.iscoroutine(value):
                value = self._runner().run(value)
            if isinstance(value, QuerySet):
                len(value)  # what is cached is what it finds
        except _ITS_OWN as error:
            tally.errors += 1
            value = _Failed(error)
        cost = time.perf_counter() - began
        tally.took(cost)
        return value, cost

    def _take_in(self, loaded: _Loaded, stamps: dict[str, bytes], ready: list[Filling]) -> None:
        (item, token), value, cost = loaded
        recipe, place = self._warmer.recipe, item.place
        if isinstance(value, _Failed):
            return self._fail(place.key, value.error)
        if value is MISSING or not recipe.policy.keeps(value):
            return self._count("unkept")
        try:
            payload = loading.encode(self._space, recipe, place, value)
            if payload is None:
                raise TypeError(f"a {type(value).__name__} cannot be cached")
            own = [stamps[name] for name in place.stamps]
            ready.append(
                Filling(place, token, *loading.packed(recipe.policy, token, value, payload, own, cost))
            )
        except Exception as error:  # a value, or a function of it, that the site has made
            self._fail(place.key, error)
        return None

    def _settle(self, granted: list[_Granted], ready: list[Filling]) -> None:
        """Store what was loaded, and release the other leases."""
        try:
            if ready:
                self._store(ready)
        finally:
            for filling in ready:
                held.drop(filling.token)
                self._leases.pop(filling.token, None)
            for item, token in granted:
                if token in self._leases:
                    self._release(item.place, token)

    def _store(self, ready: list[Filling]) -> None:
        if transactions.is_by_hand():
            for each in ready:
                self._release(each.place, each.token)
            self._count("unkept", len(ready))
            return
        fill = self._space.fill_many(ready)
        if waits_for := transactions.open_transactions():
            # The generator, or who called, is in atomic(): as with cached(), at commit or not at all.
            for each in ready:
                self._ask(self._space.park(each.place, each.token))
            transactions.store_at_commit(lambda: self._space.engine.run(fill), waits_for)
            self._count("warmed", len(ready))
            return
        try:
            stored = self._stored(ready, self._ask(fill))
        except BaseException:  # Redis has gone, or Ctrl-C: the end will tell
            with self._lock:
                self._unsure += ready
            raise
        # The others were invalidated or taken over.
        self._count("warmed", stored)
        self._count("left", len(ready) - stored)

    def _stored(self, ready: list[Filling], answers: list[int]) -> int:
        """Return how many are there now; a no may be the answer to a second try, after the first did it."""
        doubtful = [filling for filling, answer in zip(ready, answers, strict=True) if not answer]
        if not doubtful:
            return len(ready)
        raws = self._ask(self._space.read_many([filling.place.name for filling in doubtful]))
        found = sum(
            raw is not None and is_entry(raw) and filler_of(raw) == filling.token
            for filling, raw in zip(doubtful, raws, strict=True)
        )
        return len(ready) - len(doubtful) + found

    def _adapt(self, number: int, seconds: float) -> None:
        if number:
            self._size = max(1, min(2 * self._size, MOST, int(HOLD * number / max(seconds, 1e-6))))

    # What a thread has of its own

    def _runner(self) -> asyncio.Runner:
        """Return this thread's event loop."""
        runner: asyncio.Runner | None = getattr(self._here, "runner", None)
        if runner is None:
            runner = self._here.runner = asyncio.Runner()
        return runner

    def _wind_up(self) -> None:
        runner: asyncio.Runner | None = getattr(self._here, "runner", None)
        if runner is not None:
            from redis_infra.connection.lifecycle import aclose_all

            del self._here.runner
            runner.run(aclose_all())
            runner.close()


def _nothing(warmer: Warmer, *, dry_run: bool) -> Outcome:
    """Return what becomes of a warmer where nothing is kept, as with Django's dummy cache."""
    return Outcome(
        name=warmer.name,
        total=0,
        troubles=(),
        seconds=0.0,
        dry_run=dry_run,
        interrupted=False,
        unavailable="",
        **dict.fromkeys(_COUNTS, 0),
    )


def _said(error: BaseException | str) -> str:
    """Return an error as one line, not too long."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}".rstrip(": ")
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[: LINE - 3]}..."
