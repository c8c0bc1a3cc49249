"""What a visitor of the Query cache page does: read, write, forget, expire, come all at once.

Keeps what came of it last, for the page and for ``demo --check``. Polling it reads no query: only whether
each is kept.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from django.db import OperationalError, connection, connections, transaction
from django.db.models import Model
from django.utils import timezone

from example_project.relay import demo, live, trace
from example_project.relay.models import Message
from example_project.relay.trace import watching
from example_project.relay.watched import Sample, Watched, kept, sample, watched
from redis_infra.querycache import invalidate

CROWD = 16
SLOW = 0.15
"""Seconds that the first statement of each takes, of a crowd."""
PAGE = "query cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came of one read."""

    source: str
    ms: float
    said: str


class Row(TypedDict):
    """One query, as the page shows it."""

    name: str
    kind: str
    title: str
    key: str
    code: str
    kept: int
    keys: int
    source: str
    ms: float | None
    said: str
    computations: int


class Happening(TypedDict):
    """Something that a visitor did, and what it made the cache forget."""

    at: float
    text: str
    forgotten: list[str]
    """Keys, of those that the page watches."""
    count: int | None
    """How many the query cache said there were, of all that it keeps; None where it says nothing."""


class State(TypedDict):
    """Everything the page shows, at one moment."""

    state: str
    headline: str
    detail: str
    title: str
    power: str
    owned: bool
    rows: list[Row]
    happened: list[Happening]
    crowd: dict[str, float]


class Unknown(ValueError):
    """Nobody can do that here; the text says what can be done."""


class Bench:
    """The one bench of this process. Thread-safe: visitors take turns."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._readings: dict[str, Reading] = {}
        self._happened: deque[Happening] = deque(maxlen=7)
        self._crowd: dict[str, float] = {}

    def state(self) -> State:
        """Return what there is to show now."""
        now, running = trace.status(), demo.current()
        rows = sample()
        queries = watched(rows) if rows is not None else []
        there = kept(queries)
        with self._lock:
            return State(
                state=now["state"],
                headline=live.headline(now),
                detail=live.detail(now),
                title=running.backing.title if running else now["server"],
                power=running.backing.power if running else "none",
                owned=bool(running and running.backing.owned),
                rows=[self._row(each, there) for each in queries],
                happened=list(self._happened),
                crowd=dict(self._crowd),
            )

    def _row(self, each: Watched, there: set[str]) -> Row:
        last = self._readings.get(each.name)
        return Row(
            name=each.name,
            kind=each.kind,
            title=each.title,
            key=each.label,
            code=each.code,
            kept=len(there.intersection(each.keys)),
            keys=len(each.keys),
            source=last.source if last else "",
            ms=last.ms if last else None,
            said=last.said if last else "not read yet",
            computations=each.tally.computations,
        )

    # What visitors do

    def read(self, name: str, *, database_away: bool = False) -> None:
        """Read one query, or ``all``; with the database refusing, if it is to be away."""
        with self._lock:
            for each in self._chosen(name):
                self._readings[each.name] = _read(each, away=database_away)

    def expire(self, name: str) -> None:
        """End the time for which one query, or ``all``, is good."""
        with self._lock:
            before, chosen = self._there(), self._chosen(name)
            for each in chosen:
                each.expire()
            what = chosen[0].title if len(chosen) == 1 else "All of it"
            self._note(f"{what}: expired.", before)

    def write(self, what: str, *, roll_back: bool = False) -> None:
        """Save a row in a transaction that is committed, or rolled back."""
        rows = _rows()
        make = _one_of(WRITES, what)
        with self._lock:
            before = self._there()
            with transaction.atomic():
                make(rows).save()
                transaction.set_rollback(roll_back)
            done = "saved and rolled back" if roll_back else "saved"
            self._note(f"{what.capitalize()} {done}", before, counts=True)

    def forget(self, *, pattern: str = "", tag: str = "") -> None:
        """Invalidate by pattern or by tag."""
        with self._lock:
            before = self._there()
            try:
                count = invalidate(pattern) if pattern else invalidate(tag=tag)
            except ValueError as error:
                raise Unknown(str(error)) from error
            self._note(f"Invalidated {pattern or f'the tag {tag}'}", before, count, counts=True)

    def crowd(self) -> None:
        """Let many threads read a query at once that is not there, and that takes its time."""
        with self._lock:
            before = self._there()
            search = self._chosen("search")[0]
            search.query.invalidate(*search.args)
            computed = search.tally.computations
            barrier = threading.Barrier(CROWD)
            with ThreadPoolExecutor(CROWD) as threads:
                times = list(threads.map(lambda _: _come(search, barrier), range(CROWD)))
            self._crowd = {
                "threads": CROWD,
                "computations": search.tally.computations - computed,
                "slow": SLOW * 1000,
                "slowest": round(max(times), 1),
            }
            self._note(f"{CROWD} threads read the search at once.", before)

    def _chosen(self, name: str) -> list[Watched]:
        queries = watched(_rows())
        if name == "all":
            return queries
        return [_one_of({each.name: each for each in queries}, name)]

    def _there(self) -> set[str]:
        return kept(watched(_rows()))

    def _note(self, text: str, before: set[str], count: int | None = None, *, counts: bool = False) -> None:
        forgotten = sorted(before - self._there())
        if counts:
            many = len(forgotten) if count is None else count
            text = f"{text}: {many or 'nothing'} forgotten."
        self._happened.appendleft(Happening(at=time.time(), text=text, forgotten=forgotten, count=count))


def _rows() -> Sample:
    rows = sample()
    if rows is None:
        raise Unknown("there is nothing in the database; `python manage.py demo` brings something")
    return rows


def _one_of(choices: dict[str, Any], name: str) -> Any:
    if name not in choices:
        raise Unknown(f"{name!r} is none of {', '.join(choices)}")
    return choices[name]


def _read(each: Watched, *, away: bool) -> Reading:
    with watching(PAGE) as operations:
        try:
            with _database(_refuse if away else None):
                said = each.read()
        except OperationalError as error:
            return Reading(source="error", ms=round(operations[-1].seconds * 1000, 2), said=str(error))
    return Reading(source=operations[-1].source.value, ms=round(operations[-1].seconds * 1000, 2), said=said)


def _come(each: Watched, barrier: threading.Barrier) -> float:
    """Read a query together with others; return the milliseconds that it took."""
    try:
        with _database(_Slow()):
            barrier.wait()
            began = time.perf_counter()
            each.read()
            return (time.perf_counter() - began) * 1000
    finally:
        connections.close_all()  # of this thread, which ends


# --- a database that is away, or slow -------------------------------------------------------------------


@contextmanager
def _database(wrapper: Any) -> Iterator[None]:
    """Put something before the database, for this thread."""
    if wrapper is None:
        yield
        return
    with connection.execute_wrapper(wrapper):
        yield


def _refuse(*_: Any) -> Any:
    raise OperationalError("the database does not answer")


class _Slow:
    """Takes its time with the first statement."""

    def __init__(self) -> None:
        self._seconds = SLOW

    def __call__(self, execute: Callable[..., Any], *args: Any) -> Any:
        time.sleep(self._seconds)
        self._seconds = 0.0
        return execute(*args)


# --- what is written ------------------------------------------------------------------------------------


def _message(rows: Sample) -> Model:
    return Message(room=rows.room, author=rows.author, body=f"Said on the Query cache page at {_now()} UTC.")


def _now() -> str:
    """Return the time so exactly that no two writes look the same."""
    return timezone.now().time().isoformat("milliseconds")


def _document(rows: Sample) -> Model:
    rows.document.revision += 1
    rows.document.updated_at = timezone.now()
    return rows.document


def _room(rows: Sample) -> Model:
    topic = rows.room.topic.partition(" (")[0]
    rows.room.topic = f"{topic} (changed at {_now()})"
    return rows.room


def _person(rows: Sample) -> Model:
    user = rows.author
    user.last_name = "Visitor" if user.last_name != "Visitor" else "Guest"
    return user


WRITES: dict[str, Callable[[Sample], Model]] = {
    "message": _message,
    "document": _document,
    "room": _room,
    "person": _person,
}

bench = Bench()
