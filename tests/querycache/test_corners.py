"""What one process does where several things meet: waiters, tags, transactions, outages, failing loaders."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from django.db import connection, transaction

from redis_infra.cache import lease, turns
from redis_infra.querycache import cached, cached_many, invalidate
from redis_infra.querycache.entries import new_token
from redis_infra.querycache.space import space_for
from tests.faults.holding import HoldingProxy
from tests.faults.site import wait_until

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

PATIENCE = 10.0


@pytest.fixture
def use(settings: Any, tmp_path: Any) -> Callable[..., None]:
    """Say where the cache is: ``use(url, ON_OUTAGE="miss")``."""

    def use(url: str, **options: Any) -> None:
        backend = "redis_infra.cache.RedisCache"
        options = {"STATE_DIR": str(tmp_path / "state"), **options} if "memory:" not in url else options
        settings.CACHES = {
            "default": {"BACKEND": backend, "LOCATION": url, "KEY_PREFIX": "site", "OPTIONS": options}
        }

    return use


@pytest.fixture(params=["memory", "redis"])
def anywhere(request: pytest.FixtureRequest, use: Callable[..., None]) -> None:
    """Once in memory, as in an outage, and once in Redis."""
    use("memory://corners" if request.param == "memory" else request.getfixturevalue("redis_infra_url"))


class Loader:
    """A database of one number, and a loader that reads it and then takes as long as the test says."""

    def __init__(self) -> None:
        self.version = 1
        self.calls = 0
        self.error: Exception | None = None
        self.has_read = threading.Event()
        self.may_return = threading.Event()

    def __call__(self, row: int) -> int:
        self.calls += 1
        seen = self.version
        self.has_read.set()
        assert self.may_return.wait(PATIENCE)
        if self.error:
            raise self.error
        return seen


@pytest.fixture
def loader() -> Loader:
    return Loader()


class Caller(threading.Thread):
    """A thread that calls once."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self._function = function
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._function()
        except Exception as error:
            self.answer = error
        finally:
            connection.close()

    def result(self) -> Any:
        self.join(PATIENCE)
        return self.answer


def wait_for_a_waiter() -> None:
    """Return when somebody waits for somebody else's computation."""
    space = space_for("default")
    assert space is not None
    flights = space.engine.flights._flights
    wait_until(lambda: any(flight.waiters for flight in list(flights.values())), PATIENCE)


# --- who waits ------------------------------------------------------------------------------------------


class Slow:
    """A loader that takes longer than anybody waits: each call until the test lets it go."""

    def __init__(self) -> None:
        self.gates: list[threading.Event] = []

    def __call__(self) -> int:
        mine, number = threading.Event(), len(self.gates)
        self.gates.append(mine)
        assert mine.wait(PATIENCE)
        return number


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("kind", ["one", "many"])
def test_of_those_who_have_waited_long_enough_one_computes_and_the_others_look(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_for("default")
    assert space is not None
    monkeypatch.setattr(lease, "WAIT", 0.1)
    monkeypatch.setattr(space.engine.flights, "_bound", 0.1)
    slow, late = Slow(), 12

    one = cached("row:{row}:view", ttl=60)(lambda row: slow())
    many = cached_many("row:{row}:view", ttl=60)(lambda rows: dict.fromkeys(rows, slow()))
    callers = [Caller((lambda: one(1)) if kind == "one" else (lambda: many([1])[1])) for _ in range(late + 2)]
    wait_until(lambda: len(slow.gates) == 2, PATIENCE)
    assert list(turns.turns._taken) == [f"{space.base()}row:1:view"]
    slow.gates[0].set()
    wait_until(lambda: sum(each.is_alive() for each in callers) == 1, PATIENCE)
    slow.gates[1].set()
    assert sorted(caller.result() for caller in callers) == [0] * (late + 1) + [1]
    assert len(slow.gates) == 2
    assert not turns.turns._taken


@pytest.mark.usefixtures("anywhere")
def test_of_threads_that_wait_no_longer_for_a_task_one_computes_and_the_others_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = space_for("default")
    assert space is not None
    monkeypatch.setattr(space.engine.flights, "_patience", 0.05)
    slow, late = Slow(), 12

    @cached("row:{row}:view", ttl=60)
    async def leading(row: int) -> int:
        return await asyncio.to_thread(slow)

    one = cached("row:{row}:view", ttl=60)(lambda row: slow())
    leader = Caller(lambda: asyncio.run(leading(1)))
    wait_until(lambda: len(slow.gates) == 1, PATIENCE)
    callers = [Caller(lambda: one(1)) for _ in range(late)]
    wait_until(lambda: len(slow.gates) == 2, PATIENCE)
    slow.gates[0].set()
    wait_until(lambda: sum(each.is_alive() for each in callers) == 1, PATIENCE)
    slow.gates[1].set()
    assert leader.result() == 0
    assert sorted(caller.result() for caller in callers) == [0] * (late - 1) + [1]
    assert len(slow.gates) == 2


def test_a_turn_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT", 0.0)
    mine, first, second = turns.Turns(), object(), object()
    assert list(mine.waits(["a", "b"], first)) == []
    assert list(mine.waits(["c", "b"], second)) == []
    assert list(mine._taken) == ["a", "b"]
    mine.leave(first)
    assert mine.take(["c", "b"], second)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("how", ["key", "pattern", "tag"])
def test_who_comes_after_an_invalidation_is_not_given_what_was_computed_before(
    how: str, loader: Loader
) -> None:
    @cached("row:{row}:view", ttl=60, tags=["tag:{row}"])
    def view(row: int) -> int:
        return loader(row)

    early = Caller(lambda: view(1))
    assert loader.has_read.wait(PATIENCE)
    loader.version = 2
    {
        "key": lambda: view.invalidate(1),
        "pattern": lambda: invalidate("row:1:*"),
        "tag": lambda: invalidate(tag="tag:1"),
    }[how]()
    late = Caller(lambda: view(1))
    wait_for_a_waiter()
    loader.may_return.set()
    assert (early.result(), late.result()) == (1, 2)
    assert view(1) == 2


@pytest.mark.usefixtures("anywhere")
def test_a_lost_index_does_not_change_that(loader: Loader, redis_server: RedisServer) -> None:
    @cached("row:{row}:view", ttl=60, tags=["tag:{row}"])
    def view(row: int) -> int:
        return loader(row)

    early = Caller(lambda: view(1))
    assert loader.has_read.wait(PATIENCE)
    for bucket in range(64):
        redis_server.command("UNLINK", f"site:1:qci:{{{bucket}}}")
    loader.version = 2
    invalidate(tag="tag:1")
    late = Caller(lambda: view(1))
    wait_for_a_waiter()
    loader.may_return.set()
    assert (early.result(), late.result()) == (1, 2)
    assert view(1) == 2


@pytest.mark.parametrize("reason", ["a condition", "unpicklable"])
def test_what_is_not_kept_is_not_computed_one_after_the_other(
    reason: str, use: Callable[..., None], redis_infra_url: str
) -> None:
    """As if there were no cache; in a queue the last one would wait for 16 computations."""
    use(redis_infra_url)

    @cached("slow:{row}", ttl=60, condition=(lambda _: False) if reason == "a condition" else None)
    def slow(row: int) -> Any:
        time.sleep(0.2)
        return row if reason == "a condition" else lambda: row

    began = time.monotonic()
    callers = [Caller(lambda: slow(1)) for _ in range(16)]
    for caller in callers:
        assert not isinstance(caller.result(), Exception)
    assert time.monotonic() - began < 3 * 0.4


def test_in_an_outage_nobody_queues_where_memory_keeps_nothing(
    use: Callable[..., None], redis_down: RedisServer
) -> None:
    use(redis_down.url, ON_OUTAGE="miss")

    @cached("slow:{row}", ttl=60)
    def slow(row: int) -> int:
        time.sleep(0.2)
        return row

    began = time.monotonic()
    callers = [Caller(lambda: slow(1)) for _ in range(16)]
    assert [caller.result() for caller in callers] == [1] * 16
    assert time.monotonic() - began < 3 * 0.4


@pytest.mark.parametrize("on_outage", ["local", "miss"])
def test_a_cached_function_answers_in_an_outage(
    on_outage: str, use: Callable[..., None], redis_down: RedisServer
) -> None:
    use(redis_down.url, ON_OUTAGE=on_outage)

    @cached("row:{row}", ttl=60, tags=["tag:{row}"])
    def row(row: int) -> int:
        return row

    assert [row(1), row(1)] == [1, 1]


# --- leases ---------------------------------------------------------------------------------------------


def test_a_lease_that_is_asked_for_late_stores_nothing(
    loader: Loader, use: Callable[..., None], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for it timed out, so memory granted it; it reaches Redis when the value is out of date."""
    path = unquote(urlsplit(redis_server.url).path)
    with HoldingProxy(path) as proxy:
        use(proxy.url, COMMAND_TIMEOUT="150ms", BREAKER={"timeouts": 3})

        @cached("page:{row}", ttl=60)
        def page(row: int) -> int:
            return loader(row)

        loader.may_return.set()
        page(0)  # the server knows the script now
        loader.may_return.clear()
        loader.has_read.clear()
        held = threading.Event()

        def made_when_the_look_has_passed() -> bytes:
            if not held.is_set():
                proxy.hold()
                held.set()
            return new_token()

        monkeypatch.setattr("redis_infra.querycache.loading.new_token", made_when_the_look_has_passed)
        early = Caller(lambda: page(1))
        assert loader.has_read.wait(PATIENCE)
        loader.version = 2  # and another host invalidates what is not there yet
        proxy.deliver()
        wait_until(lambda: redis_server.command("EXISTS", "site:1:qc:page:1"), PATIENCE)
        loader.may_return.set()
        assert early.result() == 1
        assert page(1) == 2


@pytest.mark.usefixtures("anywhere")
def test_stale_does_not_serve_what_was_invalidated_while_its_loader_failed(loader: Loader) -> None:
    @cached("row:{row}", ttl=0.001, stale=60)
    def row(row: int) -> int:
        return loader(row)

    loader.may_return.set()
    assert row(1) == 1
    loader.may_return.clear()
    loader.has_read.clear()
    time.sleep(0.005)  # it has expired
    loader.error = LookupError("the database is away")
    caller = Caller(lambda: row(1))
    assert loader.has_read.wait(PATIENCE)
    row.invalidate(1)
    loader.may_return.set()
    assert isinstance(caller.result(), LookupError)


# --- transactions ---------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_overlapping_transactions_store_what_the_first_has_computed(
    use: Callable[..., None], redis_infra_url: str
) -> None:
    """With ATOMIC_REQUESTS all requests are transactions, and one is always under way."""
    use(redis_infra_url)
    calls: list[int] = []

    @cached("row:{row}", ttl=60)
    def row(row: int) -> int:
        calls.append(row)
        return row

    def request(has_asked: threading.Event, may_commit: threading.Event) -> int:
        with transaction.atomic():
            found = row(1)
            has_asked.set()
            assert may_commit.wait(PATIENCE)
        return found

    events = [(threading.Event(), threading.Event()) for _ in range(3)]
    requests = []
    for has_asked, may_commit in events:
        requests.append(Caller(partial(request, has_asked, may_commit)))
        assert has_asked.wait(PATIENCE)
    events[0][1].set()
    assert requests[0].result() == 1
    kept = row.get(1)
    for _, may_commit in events[1:]:
        may_commit.set()
    assert [each.result() for each in requests] == [1, 1, 1]
    assert kept == 1


# --- statistics and errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_hits_are_counted(signed: bool, use: Callable[..., None], redis_infra_url: str) -> None:
    use(redis_infra_url, SIGNED=signed)

    @cached("row:{row}", ttl=60)
    def row(row: int) -> int:
        return row

    for _ in range(5):
        row(1)
    assert (row.tally.misses, row.tally.hits, row.tally.computations) == (1, 4, 1)


def test_a_coroutine_under_a_sync_wrapper_is_named(
    use: Callable[..., None], redis_infra_url: str, settings: Any
) -> None:
    settings.DEBUG = True
    use(redis_infra_url)

    async def load(row: int) -> int:
        return row

    made: list[Any] = []

    def wrapper(row: int) -> Any:
        made.append(load(row))
        return made[-1]

    with pytest.raises(
        TypeError, match=r"wrapper returned a coroutine; decorate the coroutine function itself"
    ):
        cached("row:{row}", ttl=60)(wrapper)(1)
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED


@pytest.mark.parametrize("pattern", ["*", "**", ""])
def test_a_pattern_of_everything_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"would forget everything|an empty pattern"):
        invalidate(pattern)


@pytest.mark.parametrize("pattern", [7, None, b"a:*"])
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:
    with pytest.raises(ValueError, match="is neither a pattern nor a tag; write such as 'chat:42:"):
        invalidate(pattern)


def test_nothing_to_forget_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to forget"):
        invalidate()


def test_an_unhashable_argument_is_refused_by_name(use: Callable[..., None]) -> None:
    use("memory://corners")

    @cached("row:{row}", ttl=60)
    def row(row: Any) -> int:
        return 1

    with pytest.raises(TypeError, match="a list makes no key: pass a number, text or a tuple"):
        row([1])
