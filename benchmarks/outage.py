"""What an outage costs: a server just frozen, a server killed, and reading on while it is away.

A process meets an outage once, so each figure comes from a process and a server of its own:
``python -m benchmarks.outage`` is the child that has the outage, and prints what it saw as JSON.
Who waits out its timeout at every operation is not waited for twenty times: one call is measured and
multiplied, and the table says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.children import run_child
from benchmarks.harness import Cell, Plan, Row, Samples, Table, Target, duration, interleave, time_calls
from benchmarks.peers import BACKENDS, DJANGO, DJANGO_REDIS, KEY, LOCMEM, OURS, TTL, VALUE, configure
from benchmarks.server import private_server

if TYPE_CHECKING:
    from django.core.cache.backends.base import BaseCache

    from redis_infra.testing import RedisServer

OPERATIONS = 20


@dataclass(frozen=True, slots=True)
class Subject:
    """A cache with the options that it meets the outage with.

    ``learns`` is False for those that wait at every operation for as long as at the first.
    """

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False


PATIENT = {"IGNORE_EXCEPTIONS": True, "SOCKET_TIMEOUT": 0.5, "SOCKET_CONNECT_TIMEOUT": 0.5}
SUBJECTS = {
    OURS: Subject(OURS, learns=True),
    DJANGO_REDIS: Subject(DJANGO_REDIS),
    f"{DJANGO_REDIS}, ignoring errors, 0.5 s": Subject(DJANGO_REDIS, PATIENT),
    DJANGO: Subject(DJANGO),
}
READERS = (LOCMEM, OURS, f"{DJANGO_REDIS}, ignoring errors, 0.5 s")

TITLES = {
    "fallback_get": "`get` while Redis is away, hit",
    "frozen": f"request of {OPERATIONS} operations, server just frozen",
    "killed": f"request of {OPERATIONS} operations, server just killed",
}
TARGETS = {
    "fallback_get": Target(1, " µs", added=True),
    "frozen": Target(0.55, " s"),
    "killed": Target(20, " ms"),
}
ROWS = tuple(TITLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Seconds that the first request of an outage took and the next; ``raised`` names what the caller got.

    ``is_estimate``: one call was measured and multiplied.
    """

    first: float
    next: float
    raised: str
    is_estimate: bool = False

    def text(self) -> str:
        about = "≈ " if self.is_estimate else ""
        outcome = f", raises {self.raised}" if self.raised else ""
        return f"{about}{duration(self.first)}, then {about}{duration(self.next)}{outcome}"


def table(rows: Sequence[str], plan: Plan, say: Callable[[str], None]) -> Table:
    """Measure ``rows``, each in processes and on servers of their own."""
    measures: dict[str, Callable[[Plan], Row]] = {
        "fallback_get": fallback_row,
        "frozen": partial(request_row, "frozen"),
        "killed": partial(request_row, "killed"),
    }
    measured = []
    for slug in rows:
        say(slug)
        measured.append(measures[slug](plan))
    return Table(
        title="Cache, Redis away",
        note=(
            f"Requests: the slowest of {plan.repeats} fresh processes, each warm when its server went; "
            "the first request, then the next one. `get`: median, and how much more than "
            f"`{LOCMEM}` in the same round."
        ),
        contenders=[*SUBJECTS, LOCMEM],
        rows=measured,
        footnotes=[f"≈: one operation measured, times {OPERATIONS}."] if "frozen" in rows else [],
    )


def request_row(scenario: str, plan: Plan) -> Row:
    """Return what a request costs in ``scenario``."""
    requests = measure_requests(scenario, plan.repeats)
    target = TARGETS[scenario]
    scale = 1e3 if target.unit == " ms" else 1.0
    return Row(
        slug=scenario,
        title=TITLES[scenario],
        cells={name: request_cell(request) for name, request in requests.items()},
        target=target,
        figure=requests[OURS].first * scale,
        broken=f"raises {requests[OURS].raised}" if requests[OURS].raised else "",
    )


def request_cell(request: Request) -> Cell:
    """Return the cell of ``request``."""
    facts = {
        "first_ms": round(request.first * 1e3, 3),
        "next_ms": round(request.next * 1e3, 3),
        "raised": request.raised,
        "is_estimate": request.is_estimate,
    }
    return Cell(request.text(), facts)


def measure_requests(scenario: str, repeats: int) -> dict[str, Request]:
    """Return the slowest request of each subject.

    Who only sits out timeouts does so beside the others like it, once: it uses no processor meanwhile.
    """
    waiting = [name for name, it in SUBJECTS.items() if scenario == "frozen" and not it.learns]
    requests = {
        name: slowest(Request(**child(scenario, name)) for _ in range(repeats))
        for name in SUBJECTS
        if name not in waiting
    }
    with ThreadPoolExecutor(len(SUBJECTS)) as pool:
        for name, answer in zip(waiting, pool.map(partial(child, scenario), waiting), strict=True):
            requests[name] = Request(**answer)
    return requests


def slowest(requests: Iterable[Request]) -> Request:
    """Return the request whose first part took longest."""
    return max(requests, key=lambda request: request.first)


def fallback_row(plan: Plan) -> Row:
    """Return what a hit costs that is answered without Redis."""
    samples = Samples(child("fallback_get", OURS, plan))
    return Row(
        slug="fallback_get",
        title=TITLES["fallback_get"],
        cells={name: added_cell(samples, name) for name in samples.by_name},
        target=TARGETS["fallback_get"],
        figure=samples.added(OURS, LOCMEM) * 1e6,
    )


def added_cell(samples: Samples, name: str) -> Cell:
    """Return what ``name`` took, and how much more than locmem that is."""
    median, added = samples.median(name), samples.added(name, LOCMEM)
    low, high = samples.spread(name)
    more = "" if name == LOCMEM else f" ({added * 1e6:+.2f} µs)"
    facts = {
        "median_us": round(median * 1e6, 3),
        "added_us": round(added * 1e6, 3),
        "p10_us": round(low * 1e6, 3),
        "p90_us": round(high * 1e6, 3),
    }
    return Cell(f"{duration(median)}{more}", facts)


def child(scenario: str, subject: str, plan: Plan | None = None) -> Any:
    """Have the outage in a fresh interpreter and return what it saw."""
    sizes = [str(plan.rounds), str(plan.seconds)] if plan else []
    return run_child("benchmarks.outage", scenario, subject, *sizes)


def have_outage(scenario: str, name: str, sizes: Sequence[str]) -> Any:
    """Start a server, warm the subject up, take the server away, and return what that cost."""
    with private_server() as server, TemporaryDirectory() as state_dir:
        if scenario == "fallback_get":
            return read_on(server, state_dir, Plan(rounds=int(sizes[0]), seconds=float(sizes[1]), repeats=1))
        return serve_requests(scenario, SUBJECTS[name], server, state_dir)


def serve_requests(scenario: str, subject: Subject, server: RedisServer, state_dir: str) -> dict[str, Any]:
    """Return the first and the next request after the server froze or died, as ``Request`` takes them."""
    cache = open_caches({"subject": subject}, server.url, state_dir)["subject"]
    is_estimate = scenario == "frozen" and not subject.learns
    operations = request(cache)[:1] if is_estimate else request(cache)
    serve(operations)
    if scenario == "killed":
        server.kill()
        return two_requests(operations, is_estimate=False)
    server.freeze()
    try:
        return two_requests(operations, is_estimate=is_estimate)
    finally:
        server.thaw()


def two_requests(operations: Sequence[Callable[[], object]], *, is_estimate: bool) -> dict[str, Any]:
    """Serve two requests and return their times and the error that the first one met."""
    factor = OPERATIONS / len(operations)
    (first, raised), (following, _) = serve(operations), serve(operations)
    return {
        "first": first * factor,
        "next": following * factor,
        "raised": raised,
        "is_estimate": is_estimate,
    }


def request(cache: BaseCache) -> list[Callable[[], object]]:
    """Return what a page of a site asks of its cache: mostly reads, some writes."""
    page: list[Callable[[], object]] = [
        partial(cache.get, KEY),
        partial(cache.get_many, [KEY, "user:43", "user:44"]),
        partial(cache.set, "page:1", VALUE, TTL),
        partial(cache.get, "page:1"),
        partial(cache.add, "seen:42", 1, TTL),
        partial(cache.get, "user:43"),
        partial(cache.set, KEY, VALUE, TTL),
        partial(cache.get, KEY),
        partial(cache.delete, "user:44"),
        partial(cache.get, "user:44"),
    ]
    return page * (OPERATIONS // len(page))


def serve(operations: Sequence[Callable[[], object]]) -> tuple[float, str]:
    """Return how many seconds the operations took, and the name of the last error."""
    raised = ""
    started = time.perf_counter()
    for operation in operations:
        try:
            operation()
        except Exception as error:  # whatever a peer raises is what its caller gets: part of the result
            raised = type(error).__name__
    return time.perf_counter() - started, raised


def read_on(server: RedisServer, state_dir: str, plan: Plan) -> dict[str, list[float]]:
    """Kill the server and return what a hit costs afterwards, by reader, in seconds."""
    subjects = {name: SUBJECTS.get(name, Subject(name)) for name in READERS}
    caches = open_caches(subjects, server.url, state_dir)
    for cache in caches.values():
        cache.set(KEY, VALUE, TTL)
    server.kill()
    check_answers(caches[OURS])
    return interleave({name: reader(cache) for name, cache in caches.items()}, plan).by_name


def reader(cache: BaseCache) -> Callable[[int], float]:
    """Return a trial of hits. Each is filled anew, since the fallback keeps nothing for longer than 30 s."""

    def trial(count: int) -> float:
        cache.set(KEY, VALUE, TTL)
        return time_calls(partial(cache.get, KEY), count)

    return trial


def check_answers(cache: BaseCache) -> None:
    """Make sure that ours knows of the outage and still serves what was stored during it."""
    cache.set(KEY, VALUE, TTL)
    if cache.get(KEY) != VALUE or not getattr(cache, "is_degraded", False):
        raise RuntimeError("the fallback does not serve")


def open_caches(subjects: Mapping[str, Subject], url: str, state_dir: str) -> dict[str, BaseCache]:
    """Set Django up with the subjects and return their caches."""
    from django.core.cache import caches

    settings = {name: BACKENDS[it.backend].settings(url, **it.options) for name, it in subjects.items()}
    configure(settings, state_dir=state_dir)
    return {name: caches[name] for name in subjects}


if __name__ == "__main__":
    print(json.dumps(have_outage(sys.argv[1], sys.argv[2], sys.argv[3:])))
