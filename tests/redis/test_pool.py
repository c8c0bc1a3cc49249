"""``LinkPool``: which connection a command gets, how many there may be, and what becomes of dead ones."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import exceptions as redis_errors

from redis_infra.connection.failures import LinkClosed, PoolExhausted, classify
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.pool import IDLE_TRUST, LinkPool
from redis_infra.connection.resolver import Resolver
from redis_infra.connection.wire import pack
from redis_infra.resilience.faults import Fault
from tests.faults.site import wait_until
from tests.forking import in_child
from tests.redis.conftest import UNHURRIED

PING = pack("PING")
WHO = pack("CLIENT", "ID")


class Witness:
    """Who learns of the connections."""

    def __init__(self):
        self.wants_identity = False
        self.known = []
        self.dead = []

    def met(self, facts):
        self.known.append(facts.connection_id)

    def died(self, link):
        self.dead.append((link.facts.connection_id, link.unanswered))


@pytest.fixture
def server(own_redis):
    return own_redis(unix_socket=False)


@pytest.fixture
def make_pool(server):
    """Make a pool of this server: ``make_pool(max_connections=2)``."""
    made = []

    def make(url="", *, patient=False, **options):
        said = ConnectionOptions.from_url(url or server.url, **{**UNHURRIED, "pool_wait": 10.0, **options})
        made.append(LinkPool(said, Resolver(), witness=Witness(), patient=patient))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def pool(make_pool):
    return make_pool()


def open_on(server):
    """How many connections there are on the server, without the one that asks."""
    return server.command("CLIENT", "LIST").count(b"\n") - 1


def kill_clients(server):
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def let_trust_end(pool):
    """As if the idle links had not been used for longer than they are trusted unseen."""
    for link in pool.idle:
        link.used_at -= IDLE_TRUST + 0.1


class TestReuse:
    def test_nothing_is_opened_before_the_first_command(self, pool, server):
        assert (pool.size, open_on(server)) == (0, 0)

    def test_one_caller_after_another_needs_one_connection(self, pool):
        assert len({pool.call(WHO) for _ in range(50)}) == 1
        assert (pool.size, pool.in_use) == (1, 0)

    def test_the_last_one_given_back_is_the_first_one_used(self, pool):
        """The others grow old, and there are no more than were needed at once."""
        first, second = pool.acquire(), pool.acquire()
        pool.give_back(first)
        pool.give_back(second)
        assert pool.acquire() is second
        assert pool.acquire() is first

    def test_an_error_reply_is_raised_and_the_connection_kept(self, pool):
        who = pool.call(WHO)
        with pytest.raises(redis_errors.ResponseError, match="unknown command"):
            pool.call(pack("NONSENSE"))
        assert pool.call(WHO) == who

    def test_among_several_replies_it_is_one_of_them(self, pool):
        who = pool.call(WHO)
        error, answer = pool.call_many(pack("NONSENSE") + WHO, 2)
        assert isinstance(error, redis_errors.ResponseError)
        assert answer == who

    def test_it_knows_the_ids_of_its_connections(self, pool):
        link = pool.acquire()
        other = pool.call(WHO)
        assert sorted(pool.connection_ids()) == sorted([link.facts.connection_id, other])
        assert (pool.size, pool.in_use) == (2, 1)
        assert sorted(pool.witness.known) == sorted(pool.connection_ids())


class TestBound:
    def test_threads_share_what_there_may_be_and_lose_nothing(self, make_pool, server):
        pool = make_pool(max_connections=3)

        def count(_):
            return [pool.call(pack("INCR", "n")) for _ in range(50)]

        with ThreadPoolExecutor(16) as threads:
            seen = sorted(number for counted in threads.map(count, range(16)) for number in counted)
        assert seen == list(range(1, 801))
        assert pool.size <= 3
        assert open_on(server) <= 3

    def test_one_too_many_waits_and_is_told(self, make_pool):
        pool = make_pool(max_connections=2, pool_wait=0.05)
        pool.acquire(), pool.acquire()
        began = time.monotonic()
        with pytest.raises(PoolExhausted, match="all 2 connections") as caught:
            pool.call(PING)
        assert time.monotonic() - began >= 0.05
        failure = classify(caught.value)
        assert (failure.fault, failure.executed) == (Fault.OVERLOADED, False)

    def test_without_patience_it_is_told_at_once(self, make_pool):
        pool = make_pool(max_connections=1, pool_wait=0.0)
        pool.acquire()
        with pytest.raises(PoolExhausted):
            pool.call(PING)

    @pytest.mark.parametrize("back", ["give_back", "discard"])
    def test_who_waits_goes_on_when_one_comes_back_or_dies(self, make_pool, back):
        pool = make_pool(max_connections=1)
        link = pool.acquire()
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(pool.call, PING)
            wait_until(lambda: pool._waiting, 10)
            getattr(pool, back)(link)
            assert answer.result(10) == b"PONG"

    def test_who_waits_goes_on_after_a_command_of_another(self, make_pool):
        """The hot path gives back on its own."""
        pool = make_pool(max_connections=1)
        with ThreadPoolExecutor(2) as threads:
            blocked = threads.submit(pool.call, pack("BLPOP", "list", 5))
            wait_until(lambda: pool.in_use, 10)
            answer = threads.submit(pool.call, PING)
            wait_until(lambda: pool._waiting, 10)
            other = LinkPool(pool.options, Resolver(), witness=Witness())
            other.call(pack("RPUSH", "list", "v"))
            other.close()
            assert blocked.result(10) == [b"list", b"v"]
            assert answer.result(10) == b"PONG"

    def test_what_could_not_be_opened_takes_no_room(self, make_pool, server):
        pool = make_pool(max_connections=1)
        server.kill()
        for _ in range(3):
            with pytest.raises(redis_errors.ConnectionError):
                pool.call(PING)
        server.start()
        assert pool.call(PING) == b"PONG"

    def test_a_burst_does_not_open_more_than_were_needed_at_once(self, pool):
        barrier = threading.Barrier(8, timeout=10)

        def ask(_):
            link = pool.acquire()
            barrier.wait()
            pool.give_back(link)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        for _ in range(100):
            pool.call(PING)
        assert pool.size == 8


class TestDeath:
    def test_an_idle_one_that_the_server_closed_is_replaced_unseen(self, pool, server):
        old = pool.call(WHO)
        kill_clients(server)
        let_trust_end(pool)
        assert pool.call(WHO) != old
        assert pool.size == 1

    def test_one_just_used_is_trusted_and_the_caller_learns_that_it_had_gone_stale(self, pool, server):
        """A look at the socket before each command would cost more than the second try that this one gets."""
        pool.call(PING)
        kill_clients(server)
        with pytest.raises(LinkClosed) as caught:
            pool.call(PING)
        assert caught.value.stale
        assert pool.call(PING) == b"PONG"

    def test_so_does_one_who_sent_several(self, pool, server):
        pool.call(PING)
        kill_clients(server)
        with pytest.raises(LinkClosed) as caught:
            pool.call_many(PING * 2, 2)
        assert caught.value.stale
        assert pool.size == 0

    def test_idle_ones_that_are_well_are_kept_after_a_look(self, pool):
        who = pool.call(WHO)
        let_trust_end(pool)
        assert pool.call(WHO) == who

    def test_who_died_with_a_command_on_its_way_is_remembered(self, pool, server):
        """The server may execute it yet: recovery kills the connection by its id."""
        who = pool.call(WHO)
        pool.options = pool.idle[0].options = ConnectionOptions.from_url(server.url, command_timeout=0.05)
        pool.idle[0].offer_kernel_time()
        server.freeze()
        with pytest.raises(redis_errors.TimeoutError):
            pool.call(PING)
        assert pool.witness.dead == [(who, True)]


class TestRenewal:
    def test_idle_connections_are_closed(self, pool, server):
        pool.call(PING)
        pool.renew()
        wait_until(lambda: open_on(server) == 0, 10)
        assert pool.size == 0

    def test_busy_ones_when_they_come_back(self, pool):
        link = pool.acquire()
        pool.renew()
        assert link.call(PING) == b"PONG"
        pool.give_back(link)
        assert pool.size == 0
        assert not link.is_usable()

    def test_one_in_the_middle_of_a_command_answers_and_is_closed_then(self, pool, server):
        with ThreadPoolExecutor(1) as thread:
            blocked = thread.submit(pool.call, pack("BLPOP", "list", 10))
            wait_until(lambda: server.command("INFO", "clients").count(b"blocked_clients:1\r\n"), 10)
            pool.renew()
            server.command("RPUSH", "list", "v")
            assert blocked.result(10) == [b"list", b"v"]
        assert pool.size == 0

    def test_the_next_command_gets_a_new_one(self, pool):
        old = pool.call(WHO)
        pool.renew()
        assert pool.call(WHO) != old

    def test_one_of_before_that_is_idle_all_the_same_is_not_used(self, pool):
        """Given back in the moment of the renewal."""
        old = pool.call(WHO)
        pool.generation += 1
        assert pool.call(WHO) != old
        assert pool.size == 1


class TestFork:
    def test_the_child_opens_its_own(self, pool):
        mine = pool.call(WHO)
        theirs = in_child(lambda: [pool.call(WHO) for _ in range(2)])
        assert theirs[0] == theirs[1] != mine

    def test_what_the_child_does_and_its_end_are_nothing_to_the_parent(self, pool, server):
        mine = pool.call(WHO)

        def use_and_close():
            pool.call(PING)
            pool.renew()
            pool.close()

        in_child(use_and_close)
        assert pool.call(WHO) == mine
        wait_until(lambda: open_on(server) == 1, 10)

    def test_a_grandchild_does_not_close_the_parents_either(self, pool):
        mine = pool.call(WHO)
        assert in_child(lambda: in_child(lambda: pool.call(WHO))) != mine
        assert pool.call(WHO) == mine

    def test_one_that_was_lent_at_the_fork_is_not_used_in_the_child(self, pool):
        link = pool.acquire()

        def give_back_and_use():
            pool.give_back(link)
            return pool.call(WHO)

        assert in_child(give_back_and_use) != link.facts.connection_id
        assert link.call(PING) == b"PONG"

    def test_nor_closed_there(self, pool):
        link = pool.acquire()
        in_child(lambda: pool.discard(link))
        assert link.call(WHO) == link.facts.connection_id

    def test_the_bound_is_the_childs_own(self, make_pool):
        pool = make_pool(max_connections=1, pool_wait=0.0)
        pool.acquire()
        assert in_child(lambda: pool.call(PING)) == b"PONG"

    def test_locks_that_another_thread_held_are_made_anew(self, pool):
        pool.call(PING)

        def use():
            pool.after_fork()
            return pool.call(PING)

        with pool._room:
            assert in_child(use) == b"PONG"


class TestRedisPy:
    """What raw clients ask of a pool."""

    def test_they_share_its_connections(self, pool):
        mine = pool.call(WHO)
        connection = pool.get_connection()
        assert pool.owns_connection(connection)
        connection.send_command("CLIENT", "ID")
        assert connection.read_response() == mine
        pool.release(connection)
        assert pool.call(WHO) == mine

    def test_the_clock_is_python_s_meanwhile(self, pool):
        """redis-py takes the kernel's timeout for a broken connection."""
        connection = pool.get_connection()
        assert connection._sock.gettimeout() == pool.options.command_timeout
        pool.release(connection)
        assert connection._sock.gettimeout() == connection.timeout

    def test_one_that_they_have_closed_is_not_kept(self, pool):
        connection = pool.get_connection()
        connection.disconnect()
        pool.release(connection)
        assert pool.size == 0

    def test_a_patient_pool_has_no_timeout(self, make_pool):
        pool = make_pool(patient=True)
        connection = pool.get_connection()
        assert connection._sock.gettimeout() is None
        pool.release(connection)
        assert pool.get_connection() is connection

    @pytest.mark.parametrize("way", ["disconnect", "close"])
    def test_closing_it_closes_its_connections_and_it_works_on(self, pool, way):
        old = pool.call(WHO)
        getattr(pool, way)()
        assert pool.size == 0
        assert pool.call(WHO) != old


class TestThroughTheCache:
    @pytest.fixture
    def cache(self, server, make_cache):
        cache = make_cache(server.url, COMMAND_TIMEOUT="5s", CONNECT_TIMEOUT="5s")
        cache.set("k", "v")
        cache.set("n", 1)
        cache.incr("n")
        return cache

    def test_a_connection_that_was_killed_costs_one_silent_retry(self, cache, server):
        kill_clients(server)
        assert cache.get("k") == "v"
        counters = cache.status()["counters"]
        assert (counters["retries"], counters["fallback_ops"]) == (1, 0)
        assert not cache.is_degraded

    def test_so_does_one_of_an_event_loop(self, cache, server, call):
        call(cache.get, "k")
        kill_clients(server)
        assert call(cache.get, "k") == "v"
        assert not cache.is_degraded

    def test_a_counter_whose_reply_was_lost_is_not_sent_again(self, server, make_cache, call):
        from redis_infra.testing import TcpProxy

        with TcpProxy(server.url) as proxy:
            cache = make_cache(proxy.url)
            call(cache.set, "n", 1)
            call(cache.incr, "n")
            proxy.lose_replies(request=b"EVALSHA")
            with pytest.raises(ValueError, match="not found"):
                call(cache.incr, "n")  # memory knows no such counter
            assert server.command("GET", cache.make_key("n")) == b"3"

    def test_one_that_had_certainly_not_left_is(self, server, make_cache, call):
        from redis_infra.testing import TcpProxy

        with TcpProxy(server.url) as proxy:
            cache = make_cache(proxy.url)
            call(cache.set, "n", 1)
            call(cache.incr, "n")
            proxy.reset()
            proxy.wait_until(lambda proxy: not proxy.active)
            try:
                assert call(cache.incr, "n") == 3
            except ValueError:  # the system took the packet before it knew
                assert server.command("GET", cache.make_key("n")) == b"2"

    def test_an_exhausted_pool_is_served_from_memory_and_opens_nothing(self, server, make_cache):
        cache = make_cache(server.url, MAX_CONNECTIONS=1, POOL_WAIT="1ms")
        cache.set("k", "v")
        pool = cache._engine.connections.pool
        link = pool.acquire()
        assert cache.get("k") is None
        assert not cache.is_degraded
        pool.give_back(link)
        assert cache.get("k") == "v"
