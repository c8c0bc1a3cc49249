"""``get_or_set`` among threads, tasks, processes and outages: what is missing is computed once a process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from redis_infra.cache import lease
from redis_infra.connection.failures import RedisUnavailable
from redis_infra.testing import outage
from tests.faults.site import wait_until
from tests.forking import in_child

PATIENCE = 30


@pytest.fixture
def cache(redis_server, make_cache):
    return make_cache(redis_server.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s", POOL_WAIT="10s")


class Work:
    """A computation that takes until it is told to end, and knows how often it was begun."""

    def __init__(self, value="computed"):
        self.value = value
        self.begun = 0
        self.may_end = threading.Event()

    def __call__(self):
        self.begun += 1
        assert self.may_end.wait(PATIENCE)
        return self.value

    async def acall(self):
        self.begun += 1
        while not self.may_end.is_set():  # noqa: ASYNC110 - another thread's event
            await asyncio.sleep(0.001)
        return self.value


class Unloadable(Exception):
    """Can be pickled and not unpickled, as many a site's own exception."""

    def __init__(self, one, two):
        super().__init__("only one")


@pytest.fixture
def work():
    work = Work()
    yield work
    work.may_end.set()


@pytest.fixture
def threads(work):
    with ThreadPoolExecutor(20) as pool:
        yield pool
        work.may_end.set()


def waiting(cache):
    """How many wait for a computation of this cache's."""
    return sum(len(flight.waiters) for flight in list(cache._engine.flights._flights.values()))


async def in_tasks(cache, work, count):
    return await asyncio.gather(*[cache.aget_or_set("k", work.acall) for _ in range(count)])


class TestTogether:
    def test_threads_that_miss_at_once_compute_once(self, cache, work, threads):
        answers = [threads.submit(cache.get_or_set, "k", work) for _ in range(10)]
        wait_until(lambda: waiting(cache) == 9, PATIENCE)
        work.may_end.set()
        assert [answer.result(PATIENCE) for answer in answers] == ["computed"] * 10
        assert work.begun == 1

    def test_threads_wait_for_tasks(self, cache, work, threads):
        tasks = threads.submit(lambda: asyncio.run(in_tasks(cache, work, 5)))
        wait_until(lambda: work.begun and waiting(cache) == 4, PATIENCE)
        answers = [threads.submit(cache.get_or_set, "k", work) for _ in range(5)]
        wait_until(lambda: waiting(cache) == 9, PATIENCE)
        work.may_end.set()
        assert [answer.result(PATIENCE) for answer in answers] + tasks.result(PATIENCE) == ["computed"] * 10
        assert work.begun == 1

    def test_tasks_wait_for_threads(self, cache, work, threads):
        answer = threads.submit(cache.get_or_set, "k", work)
        wait_until(lambda: work.begun, PATIENCE)
        tasks = threads.submit(lambda: asyncio.run(in_tasks(cache, work, 5)))
        wait_until(lambda: waiting(cache) == 5, PATIENCE)
        work.may_end.set()
        assert [answer.result(PATIENCE), *tasks.result(PATIENCE)] == ["computed"] * 6
        assert work.begun == 1

    def test_keys_and_versions_do_not_wait_for_each_other(self, cache, work, threads):
        blocked = threads.submit(cache.get_or_set, "k", work)
        wait_until(lambda: work.begun, PATIENCE)
        assert cache.get_or_set("other", lambda: 1) == 1
        assert cache.get_or_set("k", lambda: 2, version=2) == 2
        work.may_end.set()
        assert blocked.result(PATIENCE) == "computed"

    def test_who_looked_before_it_was_stored_and_came_after_does_not_compute(self, cache, work, threads):
        """Its miss is from before; somebody has computed since, so it looks again."""
        engine, fetch = cache._engine, cache._engine.fetch
        first = threads.submit(cache.get_or_set, "k", work)
        wait_until(lambda: work.begun, PATIENCE)

        def look_and_be_late(name):
            raw = fetch(name)
            engine.fetch = fetch
            work.may_end.set()
            first.result(PATIENCE)
            return raw

        engine.fetch = look_and_be_late
        assert cache.get_or_set("k", work) == "computed"
        assert work.begun == 1

    def test_so_does_a_task(self, cache, work, threads):
        engine, afetch = cache._engine, cache._engine.afetch
        first = threads.submit(cache.get_or_set, "k", work)
        wait_until(lambda: work.begun, PATIENCE)

        async def look_and_be_late(name):
            raw = await afetch(name)
            engine.afetch = afetch
            work.may_end.set()
            first.result(PATIENCE)
            return raw

        engine.afetch = look_and_be_late
        assert asyncio.run(cache.aget_or_set("k", work.acall)) == "computed"
        assert work.begun == 1

    def test_of_threads_that_wait_no_longer_for_a_task_one_computes(self, cache, work, threads, monkeypatch):
        monkeypatch.setattr(cache._engine.flights, "_patience", 0.05)
        leader = threads.submit(lambda: asyncio.run(in_tasks(cache, work, 1)))
        wait_until(lambda: work.begun, PATIENCE)
        mine = Work("mine")
        answers = [threads.submit(cache.get_or_set, "k", mine) for _ in range(10)]
        wait_until(lambda: mine.begun and not waiting(cache), PATIENCE)
        work.may_end.set()
        assert leader.result(PATIENCE) == ["computed"]
        wait_until(lambda: sum(answer.done() for answer in answers) == 9, PATIENCE)
        mine.may_end.set()
        assert [answer.result(PATIENCE) for answer in answers] == ["computed"] * 10
        assert mine.begun == 1

    def test_who_waited_gets_a_copy(self, cache, threads):
        work = Work(["computed"])
        answers = [threads.submit(cache.get_or_set, "k", work) for _ in range(3)]
        wait_until(lambda: waiting(cache) == 2, PATIENCE)
        work.may_end.set()
        values = [answer.result(PATIENCE) for answer in answers]
        for value in values:
            value.append("mine")
        assert values == [["computed", "mine"]] * 3
        assert cache.get("k") == ["computed"]

    @pytest.mark.parametrize("face", ["threads", "tasks"])
    def test_a_value_that_cannot_be_read_again_is_everybodys_own(self, cache, threads, face):
        """Computed too often, and not an exception for those who waited."""
        work = Work(Unloadable(1, 2))
        if face == "threads":
            answers = [threads.submit(cache.get_or_set, "k", work) for _ in range(3)]
        else:
            answers = [threads.submit(lambda: asyncio.run(in_tasks(cache, work, 3)))]
        wait_until(lambda: waiting(cache) == 2, PATIENCE)
        work.may_end.set()
        values = [answer.result(PATIENCE) for answer in answers]
        assert [type(value) for value in (values if face == "threads" else values[0])] == [Unloadable] * 3

    def test_a_forked_child_does_not_wait_for_its_parents_threads(self, cache, work, threads, monkeypatch):
        monkeypatch.setattr(lease, "WAIT", 0.1)  # for the parent's lease, as for any process'
        monkeypatch.setattr(cache._engine.flights, "_bound", None)
        blocked = threads.submit(cache.get_or_set, "k", work)
        wait_until(lambda: work.begun, PATIENCE)
        assert in_child(lambda: cache.get_or_set("k", lambda: "the child's")) == "the child's"
        work.may_end.set()
        assert blocked.result(PATIENCE) == "the child's"  # who stored first wins


class TestOtherProcesses:
    def test_what_another_has_stored_meanwhile_wins(self, cache, call):
        def compute():
            cache.client.get_client().set(cache.make_key("k"), b"7")
            return 8

        assert call(cache.get_or_set, "k", compute) == 7

    def test_what_nobody_can_read_is_replaced(self, cache, call):
        cache.client.get_client().set(cache.make_key("k"), b"\xc1\xff")
        assert call(cache.get_or_set, "k", "new") == "new"
        assert call(cache.get, "k") == "new"


class TestOutage:
    def test_memory_is_filled_once_too(self, cache, work, threads):
        with outage(cache):
            answers = [threads.submit(cache.get_or_set, "k", work) for _ in range(10)]
            wait_until(lambda: waiting(cache) == 9, PATIENCE)
            work.may_end.set()
            assert [answer.result(PATIENCE) for answer in answers] == ["computed"] * 10
            assert cache.get_or_set("k", work) == "computed"
        assert work.begun == 1

    def test_a_fill_takes_nothing_away_when_redis_returns(self, cache, call, redis_server):
        """Another host has filled it meanwhile, and nobody has changed anything."""
        with outage(cache):
            assert call(cache.get_or_set, "k", "here") == "here"
            redis_server.command("SET", cache.make_key("k"), "5")
        assert call(cache.get, "k") == 5

    def test_where_misses_are_wanted_each_caller_computes(self, redis_server, make_cache, call):
        cache = make_cache(redis_server.url, ON_OUTAGE="miss")
        numbers = iter(range(10))
        with outage(cache):
            assert [call(cache.get_or_set, "k", lambda: next(numbers)) for _ in range(3)] == [0, 1, 2]

    def test_where_errors_are_wanted_nothing_is_computed(self, redis_server, make_cache, call, work):
        cache = make_cache(redis_server.url, ON_OUTAGE="raise")
        with outage(cache), pytest.raises(RedisUnavailable):
            call(cache.get_or_set, "k", work)
        assert work.begun == 0


def test_processes_compute_once_too(cache, redis_server, make_cache):
    """Each child asks while another one computes."""
    first = make_cache(redis_server.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s", POOL_WAIT="10s")
    work = Work()
    with ThreadPoolExecutor(4) as pool:
        leading = pool.submit(first.get_or_set, "k", work)
        wait_until(lambda: work.begun == 1, PATIENCE)
        waiting = [pool.submit(in_child, lambda: cache.get_or_set("k", lambda: "another")) for _ in range(3)]
        wait_until(lambda: lease_was_asked_for(cache, len(waiting)), PATIENCE)
        work.may_end.set()
        assert leading.result() == "computed"
        assert [each.result() for each in waiting] == ["computed"] * 3


def lease_was_asked_for(cache, times):
    stats = cache.client.get_client().info("commandstats")
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"] >= times


def test_a_lease_whose_holder_died_is_taken_over(cache):
    client = cache.client.get_client()
    name = cache.client.make_key("k")
    client.set(f"{name}~lease", b"of-the-dead", px=300)
    assert cache.get_or_set("k", lambda: "mine") == "mine"
    assert not client.exists(f"{name}~lease")


def test_a_loader_that_raises_leaves_no_lease(cache):
    with pytest.raises(LookupError):
        cache.get_or_set("k", lambda: (_ for _ in ()).throw(LookupError()))
    lease = f"{cache.client.make_key('k')}~lease"
    wait_until(lambda: not cache.client.get_client().exists(lease), PATIENCE)
    assert cache.get_or_set("k", lambda: 1) == 1
