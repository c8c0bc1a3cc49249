"""The cache as the playground shows it: state in words, figures, the last reads.

Everything comes from this process: no command is sent to Redis for it, so the
page costs nothing and works the same while Redis is away. The visitor that it
plays is the one exception: it opens a page a second, as a person would.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import TypedDict

from example_project.relay import demo, reads, trace
from example_project.relay.board import Comparison, board
from example_project.relay.trace import Operation, Source, Status
from redis_infra.instrumentation import Transition

SPARKS = 90
"""Operations that the latency curve shows."""
ROWS = 18
"""Operations that the table shows."""


class Event(TypedDict):
    """Something that happened to Redis, or that a visitor did to it."""

    at: float
    text: str
    kind: str


class OperationRow(TypedDict):
    """One operation, as the table shows it."""

    at: float
    page: str
    op: str
    key: str
    source: str
    ms: float


class Snapshot(TypedDict):
    """Everything the playground shows, at one moment."""

    now: float
    state: str
    headline: str
    detail: str
    cause: str | None
    server: str
    reason: str
    title: str
    power: str
    owned: bool
    pending: int
    fallback_entries: int
    counters: dict[str, int]
    totals: dict[str, int]
    latency: dict[str, float]
    sparks: list[tuple[float, str]]
    reads: list[OperationRow]
    events: list[Event]
    board: Comparison | None


timeline: deque[Event] = deque(maxlen=9)
"""What happened lately, newest first."""


def note(text: str, kind: str = "visitor") -> None:
    """Put a line on the timeline."""
    timeline.appendleft(Event(at=time.time(), text=text, kind=kind))


def on_transition(change: Transition) -> None:
    """Put a circuit that opened or closed on the timeline (an observer of ``instrumentation``)."""
    if change.before == "closed":
        note(f"Redis does not answer: {_words(change.cause)}. The process answers instead.", "opened")
    elif change.after == "closed":
        note(
            f"Redis answers again after {change.lasted:.1f} s: {change.served_locally} operations "
            f"were served locally, {change.drained} keys deleted before the first read.",
            "closed",
        )


def snapshot() -> Snapshot:
    """Return what there is to show now; compares the notice board on the way."""
    compared = board.compare()
    now, running = trace.status(), demo.current()
    operations = list(trace.recent)
    return Snapshot(
        now=time.time(),
        state=now["state"],
        headline=headline(now),
        detail=detail(now),
        cause=now["cause"],
        server=now["server"],
        reason=now["reason"],
        title=running.backing.title if running else now["server"],
        power=running.backing.power if running else "none",
        owned=bool(running and running.backing.owned),
        pending=now["pending"],
        fallback_entries=now["fallback_entries"],
        counters=now["counters"],
        totals={source.value: trace.totals[source] for source in Source},
        latency=_latency(operations),
        sparks=[(round(op.seconds * 1000, 3), op.source.value) for op in operations[-SPARKS:]],
        reads=[_row(op) for op in reversed(operations[-ROWS:])],
        events=list(timeline),
        board=compared,
    )


def headline(now: Status) -> str:
    """Say the state in a few words."""
    match now["state"]:
        case "closed":
            return "Redis is up"
        case "recovering":
            return "Redis is back"
        case "memory":
            return "No Redis: serving from memory"
    return "Redis is away, the site is not"


def detail(now: Status) -> str:
    """Say why, since when, and what is being done about it."""
    match now["state"]:
        case "closed":
            return "Every read and write goes to it."
        case "recovering":
            return "What was deleted meanwhile is deleted there, before anything is read from it."
        case "memory":
            return "The same site, the same cache API, in this process alone."
    running = demo.current()
    if running and running.backing.owned and running.backing.power == "running":
        return "It runs again. This process asks it now and then, and trusts it when it has answered."
    seconds = max(0, time.time() - (now["since"] or time.time()))
    return f"For {seconds:.0f} s: {_words(now['cause'])}. This process answers until it is back."


def _words(cause: str | None) -> str:
    return (cause or "no answer").rstrip(".")


def _latency(operations: list[Operation]) -> dict[str, float]:
    """Return the median and the slowest of what the curve shows, in milliseconds."""
    times = [op.seconds * 1000 for op in operations[-SPARKS:]]
    if not times:
        return {"median": 0.0, "slowest": 0.0}
    return {"median": round(statistics.median(times), 3), "slowest": round(max(times), 3)}


def _row(op: Operation) -> OperationRow:
    return OperationRow(
        at=op.at, page=op.page, op=op.op, key=op.key, source=op.source.value, ms=round(op.seconds * 1000, 3)
    )


_steps = itertools.count()


def visit() -> None:
    """Read what the next page of an endless walk through the site would read."""
    step = next(_steps)
    page, read = WALK[step % len(WALK)]
    with trace.watching(page):
        read(step)


def _home(step: int) -> None:
    reads.room_cards()
    reads.people(row["author_id"] for row in reads.activity())


def _room(step: int) -> None:
    rooms = reads.room_cards()
    if not rooms:
        return
    slug = rooms[step % len(rooms)]["slug"]
    reads.people(row["author_id"] for row in reads.latest_messages(slug))
    reads.seen("room", slug)


def _documents(step: int) -> None:
    found = reads.documents("", 1 + step % 3)
    reads.people(row["owner_id"] for row in found["items"])


def _person(step: int) -> None:
    for row in reads.activity()[:1]:
        reads.profile(row["author_id"])


WALK: list[tuple[str, Callable[[int], None]]] = [
    ("/", _home),
    ("/rooms/", _room),
    ("/documents/", _documents),
    ("/people/", _person),
]
