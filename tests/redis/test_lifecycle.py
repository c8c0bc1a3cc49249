"""What a process has once, endpoints and connections, and what closing, forgetting and forking do to it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading

import pytest
from django.core.cache import caches

from redis_infra.cache import engine as engine_module
from redis_infra.cache.signals import redis_unavailable
from redis_infra.conf import Settings
from redis_infra.connection import lifecycle
from redis_infra.connection.endpoint import MOST_DEAD_LINKS
from redis_infra.connection.failures import RedisUnavailable
from redis_infra.connection.lifecycle import aclose_all, close_all, databases, open_database, reset_for_tests
from redis_infra.connection.options import ConnectionOptions
from redis_infra.testing import outage
from tests.faults.site import wait_until
from tests.forking import in_child

QUICK = {"probe_base": "5ms", "probe_cap": "20ms"}


@pytest.fixture
def server(own_redis):
    return own_redis()


@pytest.fixture
def cache(server, make_cache):
    return make_cache(server.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s", BREAKER=QUICK)


def opened(url="redis://127.0.0.1:1/0", **settings):
    """The database of a URL that nobody listens on."""
    policy = Settings.load({"STATE_DIR": None, **settings})
    return open_database(ConnectionOptions.from_url(url), policy)


def open_on(server):
    return server.command("CLIENT", "LIST").count(b"\n") - 1


def probers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("redis_infra-prober")]


def identity(cache):
    """The id of the connection that the cache uses."""
    return cache._engine.connections.call(b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n")


async def aidentity(cache):
    return await cache._engine.connections.acall(b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n")


class TestOpening:
    def test_opening_a_database_opens_no_connection(self, server, make_cache):
        make_cache(server.url)._engine  # noqa: B018 - making it is what is tested
        assert open_on(server) == 0

    def test_the_same_one_is_one(self):
        assert opened() is opened()

    def test_the_first_ones_policy_holds(self):
        database = opened(BREAKER={"timeouts": 5})
        assert opened(BREAKER={"timeouts": 9}).endpoint.reach.timeouts == 5
        assert database.access.timeouts == 5

    @pytest.mark.parametrize(
        ("other", "same_keys"),
        [
            ("redis://127.0.0.1:1/1", False),
            ("redis://user@127.0.0.1:1/0", True),
            ("redis://:secret@127.0.0.1:1/0", True),
        ],
    )
    def test_databases_and_users_of_one_server_share_what_is_true_of_it_and_nothing_else(
        self, other, same_keys
    ):
        """Which keys cannot be trusted is true of the keys, and not of who asks for them."""
        one, two = opened(), opened(other)
        assert one.endpoint is two.endpoint
        assert (one.journal is two.journal) is same_keys
        assert one.access is not two.access

    def test_servers_share_nothing(self):
        assert opened().endpoint is not opened("redis://127.0.0.1:2/0").endpoint

    def test_aliases_that_differ_in_patience_share_the_data_and_not_the_connections(self, server, make_cache):
        one = make_cache(server.url, COMMAND_TIMEOUT="1s")._engine
        two = make_cache(server.url, COMMAND_TIMEOUT="2s")._engine
        assert one.database is two.database
        assert one.shared is two.shared
        assert one.connections is not two.connections

    def test_all_that_were_used_are_known(self):
        one, two = opened(), opened("redis://127.0.0.1:2/0")
        assert databases() == [one, two]

    def test_threads_that_open_at_once_get_the_same(self):
        barrier, found = threading.Barrier(8, timeout=10), []

        def work():
            barrier.wait()
            found.append(opened())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(set(map(id, found))) == 1


class TestDatabase:
    @pytest.mark.parametrize(
        ("circuit", "says"),
        [
            (lambda database: database.endpoint.reach, "redis://127.0.0.1:1: refused"),
            (lambda database: database.access, "redis://127.0.0.1:1: refused"),
            (lambda database: database.endpoint.writes, "redis://127.0.0.1:1: refused"),
        ],
        ids=["reach", "access", "writes"],
    )
    def test_what_cannot_be_had_says_why(self, circuit, says):
        database = opened("redis://user:secret@127.0.0.1:1/0")
        circuit(database).trip("refused")
        error = database.unavailable("LOCK", "k")
        assert isinstance(error, RedisUnavailable)
        assert str(error) == f"LOCK was not answered: {says}"

    def test_where_nothing_is_open_it_did_not_answer(self):
        assert str(opened().unavailable("GET")) == "GET was not answered: redis://127.0.0.1:1 did not answer"

    def test_the_memory_of_connections_that_died_is_bounded(self):
        class Dead:
            unanswered = True

            def __init__(self, number):
                self.facts = type("Facts", (), {"connection_id": number})

        database = opened()
        for number in range(MOST_DEAD_LINKS + 10):
            database.died(Dead(number))
        assert len(database.dead_ids) == MOST_DEAD_LINKS

    def test_one_that_died_before_it_was_greeted_has_no_id(self):
        database = opened()
        database.died(type("Dead", (), {"unanswered": True})())
        assert database.dead_ids == set()

    def test_without_a_store_of_anybodys_an_outage_is_survived_all_the_same(self):
        """A capability that brings no fallback."""
        database = opened()
        database.endpoint.hold_open()
        database.after_fork()
        assert database.failover.run(int, lambda: "nobody") == "nobody"

    def test_a_hold_that_ends_on_a_server_that_is_down_is_an_outage(self):
        endpoint = opened().endpoint
        endpoint.hold_open()
        endpoint.release_hold()
        assert not endpoint.reach.closed
        assert "refused" in endpoint.reach.cause


class TestClosing:
    def test_all_connections_are_closed_and_the_next_call_opens_new_ones(self, cache, server):
        before = identity(cache)
        close_all()
        wait_until(lambda: open_on(server) == 0, 10)
        assert identity(cache) != before

    def test_those_of_waiting_clients_too(self, cache, server):
        pubsub = cache.client.get_client().pubsub()
        pubsub.subscribe("news")
        pubsub.close()
        close_all()
        wait_until(lambda: open_on(server) == 0, 10)

    def test_a_running_loop_keeps_its_own(self, cache):
        async def work():
            before = await aidentity(cache)
            close_all()
            assert await aidentity(cache) == before

        asyncio.run(work())

    def test_a_loop_closes_its_own(self, cache, server):
        before = identity(cache)

        async def work():
            other = await aidentity(cache)
            await aclose_all()
            assert await aidentity(cache) != other

        asyncio.run(work())
        assert identity(cache) == before

    def test_so_does_the_cache_where_it_was_asked_to(self, server, make_cache):
        cache = make_cache(server.url, CLOSE_CONNECTION=True)

        async def work():
            await cache.aget("k")
            await cache.aclose()
            assert cache._engine.connections.streams.size == 0

        asyncio.run(work())

    def test_and_not_where_it_was_not(self, cache):
        async def work():
            before = await aidentity(cache)
            await cache.aclose()
            assert await aidentity(cache) == before

        asyncio.run(work())


class TestForgetting:
    def test_a_process_that_forgot_begins_anew(self, cache, server):
        database = cache._engine.database
        cache.get("k")
        reset_for_tests()
        assert databases() == []
        wait_until(lambda: open_on(server) == 0, 10)
        assert open_database(database.options, Settings()) is not database

    def test_nothing_of_an_outage_is_left(self, cache, server, tmp_path):
        cache.set("k", 1)
        server.kill()
        cache.delete("k")
        wait_until(lambda: list((tmp_path / "state").glob("status-*")), 10)
        mine = probers()
        assert mine
        reset_for_tests()
        for thread in mine:
            thread.join(10)
        assert not any(thread.is_alive() for thread in mine)
        assert list((tmp_path / "state").glob("status-*")) == []

    def test_nobody_is_told_of_an_outage_that_is_none(self, cache, caplog):
        heard = []

        def hear(**facts):
            heard.append(facts)

        caplog.set_level(logging.INFO, "redis_infra")
        cache.get("k")
        redis_unavailable.connect(hear)
        try:
            reset_for_tests()
        finally:
            redis_unavailable.disconnect(hear)
        assert (heard, caplog.records) == ([], [])

    def test_files_are_closed(self, cache):
        cache._engine.database.endpoint.hold_open()
        cache.delete("k")
        before = len(os.listdir("/dev/fd"))
        reset_for_tests()
        assert len(os.listdir("/dev/fd")) < before


class TestFork:
    def test_a_child_has_connections_of_its_own(self, cache):
        mine = identity(cache)
        assert in_child(lambda: [identity(cache), identity(cache)]) != [mine, mine]
        assert identity(cache) == mine

    def test_so_has_a_loop_in_it(self, cache):
        with asyncio.Runner() as runner:
            mine = runner.run(aidentity(cache))
            assert in_child(lambda: asyncio.run(aidentity(cache))) != mine
            assert runner.run(aidentity(cache)) == mine

    def test_locks_that_other_threads_held_do_not_hold_it_up(self, cache, server, make_cache):
        database = cache._engine.database
        cache.get("k")
        locks = [
            lifecycle._lock,
            engine_module._lock,
            database._lock,
            database.journal.gate,
            database.endpoint.reach._lock,
            database.endpoint.resolver._lock,
            cache._engine.shared._lock,
            cache._engine.flights._lock,
            cache._engine.connections.pool._room,
        ]
        held, over = threading.Barrier(2, timeout=10), threading.Event()

        def hold():
            for lock in locks:
                lock.acquire()
            held.wait()
            over.wait(30)
            for lock in locks:
                lock.release()

        def use():
            assert cache.set("k", 1)
            assert cache.get_or_set("k", lambda: 2) == 1
            with outage(cache):
                cache.delete("k")
            return make_cache(server.url, KEY_PREFIX="other").get("k")

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        try:
            assert in_child(use) is None
        finally:
            over.set()
            holder.join(10)

    @pytest.mark.parametrize("on_outage", ["local", "miss", "raise"])
    def test_so_do_those_of_what_answers_instead_of_redis(self, server, make_cache, on_outage):
        cache = make_cache(server.url, ON_OUTAGE=on_outage)
        lock = getattr(vars(cache._engine.store), "_lock", threading.Lock())
        held, over = threading.Event(), threading.Event()

        def hold():
            with vars(cache._engine.store).get("_lock", lock):
                held.set()
                over.wait(30)

        def use():
            with outage(cache):
                try:
                    return cache.get("k")
                except RedisUnavailable:
                    return None

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10)
        try:
            assert in_child(use) is None
        finally:
            over.set()
            holder.join(10)

    def test_a_cache_in_memory_is_each_processs_own(self, make_cache):
        cache = make_cache("memory://")
        cache.set("k", "before")
        assert in_child(lambda: (cache.get("k"), cache.set("k", "the child's"))[0]) == "before"
        assert cache.get("k") == "before"

    def test_a_child_of_a_degraded_process_recovers_by_itself(self, cache, server, tmp_path):
        """Its parent's prober is a thread, and threads do not come along."""
        cache.get("k")
        server.kill()
        cache.get("k")
        has_begun = tmp_path / "the child has begun"

        def start_when_it_has():
            wait_until(has_begun.exists, 10)
            server.start()

        def recover():
            assert cache.is_degraded
            assert not cache._engine.database.endpoint.prober.alive
            has_begun.touch()
            wait_until(lambda: (cache.get("k"), not cache.is_degraded)[1], 10)
            return cache.set("k", "the child's")

        starter = threading.Thread(target=start_when_it_has)
        starter.start()
        assert in_child(recover) is True
        starter.join(10)
        wait_until(lambda: not cache.is_degraded, 10)
        assert cache.get("k") == "the child's"


def test_the_site_of_the_tests_is_the_one_that_django_sees():
    assert caches["default"].status()["state"] == "memory"
