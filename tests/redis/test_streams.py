"""Native asyncio connections: few, each of one event loop and gone with it, whatever tasks come and go."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import importlib.util
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync
from redis import exceptions as redis_errors

from redis_infra.connection import streams as streams_module
from redis_infra.connection.failures import LinkClosed, LinkTimeout, PoolExhausted, classify
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.resolver import Resolver
from redis_infra.connection.streams import MOST_STREAMS, StreamPools
from redis_infra.connection.wire import pack
from redis_infra.resilience.faults import Fault
from redis_infra.testing import TcpProxy
from tests.faults.site import MARGIN, wait_until
from tests.forking import in_child
from tests.redis.conftest import UNHURRIED, Peer

PING = pack("PING")
WHO = pack("CLIENT", "ID")
GET = pack("GET", "k")
SHORT = 0.1
"""Seconds of a timeout that is to pass."""
LOOPS = [asyncio.new_event_loop]
if importlib.util.find_spec("uvloop"):
    import uvloop

    LOOPS.append(uvloop.new_event_loop)


class Witness:
    wants_identity = False

    def __init__(self):
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
def proxy(server):
    with TcpProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def make_pools():
    """Make the pools of one database: ``make_pools(url, max_connections=2)``."""
    made = []

    def make(url, **options):
        said = ConnectionOptions.from_url(url, **{**UNHURRIED, **options})
        made.append(StreamPools(said, Resolver(), Witness()))
        return made[-1]

    yield make
    for pools in made:
        pools.close_all()


@pytest.fixture
def pools(make_pools, server):
    return make_pools(server.url)


@pytest.fixture
def cache(server, make_cache):
    """A cache that does not take a busy machine for a silent server."""
    return make_cache(server.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s")


@pytest.fixture(params=LOOPS, ids=lambda factory: factory.__module__.partition(".")[0])
def run(request):
    """Run a coroutine in a loop that lives as long as the test does."""
    complaints = []
    with asyncio.Runner(loop_factory=request.param) as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        yield runner.run
        gc.collect()
    assert complaints == []


async def call(pools, packed):
    """One command on the pool of the running loop."""
    return await pools.current().call(packed)


async def settle():
    """Let everything happen that is about to."""
    for _ in range(5):
        await asyncio.sleep(0)


async def until(condition, patience=10.0):
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 - nobody sets an event when a server has noticed something
            await asyncio.sleep(0.005)


def spin(seconds):
    """Hold the loop up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def open_on(server):
    """How many connections there are on the server, without the one that asks."""
    return server.command("CLIENT", "LIST").count(b"\n") - 1


def open_files():
    return len(os.listdir("/dev/fd"))


class TestTalking:
    @pytest.fixture(params=["tcp", "unix"])
    def server(self, request, own_redis):
        return own_redis(unix_socket=request.param == "unix")

    def test_a_command_gets_its_reply(self, pools, run):
        async def talk():
            assert await call(pools, pack("SET", "k", b"\x00\xff")) == b"OK"
            assert await call(pools, GET) == b"\x00\xff"
            assert await call(pools, pack("MGET", "k", "nothing")) == [b"\x00\xff", None]

        run(talk())

    def test_an_error_reply_is_raised_and_the_connection_kept(self, pools, run):
        async def talk():
            who = await call(pools, WHO)
            with pytest.raises(redis_errors.ResponseError, match="unknown command"):
                await call(pools, pack("NONSENSE"))
            assert await call(pools, WHO) == who

        run(talk())

    def test_several_in_one_write_get_theirs_in_order(self, pools, run):
        packed = pack("SET", "k", 1) + pack("LPUSH", "k", 1) + GET
        ok, error, value = run(_current(pools, "call_many", packed, 3))
        assert (ok, value) == (b"OK", b"1")
        assert "WRONGTYPE" in str(error)

    def test_one_in_one_write_too(self, pools, run):
        assert run(_current(pools, "call_many", PING, 1)) == [b"PONG"]

    def test_a_value_larger_than_any_buffer_passes(self, pools, run):
        value = os.urandom(20_000_000)

        async def talk():
            await call(pools, pack("SET", "k", value))
            assert await pools.current().call_many(GET * 2, 2) == [value] * 2
            assert await call(pools, PING) == b"PONG"

        run(talk())


async def _current(pools, method, *args):
    return await getattr(pools.current(), method)(*args)


class TestGreeting:
    def test_it_is_one_round_trip_and_asks_for_all_that_was_said(self, make_pools, proxy, run):
        pools = make_pools(proxy.url.replace("/0", "/3") + "?client_name=web")
        info = run(call(pools, pack("CLIENT", "INFO"))).decode()
        assert " name=web " in info
        assert " db=3 " in info
        assert proxy.round_trips == 2

    def test_it_learns_the_connections_id(self, pools, run):
        assert run(call(pools, WHO)) in pools.connection_ids()
        assert pools._witness.known == pools.connection_ids()

    def test_a_server_that_does_not_know_hello_is_greeted_in_the_old_way(self, own_redis, make_pools, run):
        server = own_redis(unix_socket=False, config={"rename-command": 'HELLO ""', "requirepass": "secret"})
        pools = make_pools(server.url.replace("redis://", "redis://:secret@"))
        assert run(call(pools, PING)) == b"PONG"
        assert pools.connection_ids() == []

    @pytest.mark.parametrize(
        ("before", "after"),
        [("redis://", "redis://nobody:wrong@"), ("/0", "/99")],
        ids=["password", "database"],
    )
    def test_what_is_configured_wrongly_is_said(self, server, make_pools, run, before, after):
        pools = make_pools(server.url.replace(before, after))
        with pytest.raises(redis_errors.RedisError) as caught:
            run(call(pools, PING))
        assert classify(caught.value).fault is Fault.MISCONFIGURED
        assert pools.size == 0

    def test_somebody_elses_port_is_found_out(self, proxy, make_pools, run):
        proxy.http()
        with pytest.raises(redis_errors.InvalidResponse):
            run(call(make_pools(proxy.url), PING))

    def test_a_port_that_refuses_is_said_at_once(self, proxy, make_pools, run):
        proxy.refuse()
        with pytest.raises(LinkClosed) as caught:
            run(call(make_pools(proxy.url), PING))
        failure = classify(caught.value)
        assert (failure.fault, failure.executed, failure.stale) == (Fault.UNREACHABLE, False, False)

    @pytest.mark.parametrize("way", ["silent", "cut off"])
    def test_one_that_does_not_answer_the_greeting_was_not_asked_anything(self, proxy, make_pools, run, way):
        proxy.drop() if way == "silent" else proxy.half_reply(5)
        with pytest.raises((LinkTimeout, LinkClosed)) as caught:
            run(call(make_pools(proxy.url, command_timeout=SHORT), PING))
        assert classify(caught.value).executed is False

    def test_what_the_request_that_connected_first_refers_to_can_be_forgotten(self, server, make_pools, run):
        """A connection outlives the request; its callbacks must not keep the request's context alive."""
        # Its timers do, until they would have rung.
        pools = make_pools(server.url, command_timeout=0.5, connect_timeout=0.5)

        class Request:
            pass

        current = contextvars.ContextVar("current")

        async def handle():
            request = Request()
            current.set(request)
            await call(pools, PING)
            return weakref.ref(request)

        async def serve():
            return await asyncio.create_task(handle())  # in a context of its own, as a request is

        request = run(serve())
        run(until(lambda: gc.collect() < 0 or request() is None))
        assert pools.size == 1


class TestDeadline:
    def test_a_server_that_is_silent_is_waited_for_as_long_as_asked(self, proxy, make_pools, run):
        pools = make_pools(proxy.url, command_timeout=SHORT)
        run(call(pools, PING))
        proxy.hold()
        began = time.monotonic()
        with pytest.raises(LinkTimeout) as caught:
            run(call(pools, PING))
        assert SHORT * 0.9 < time.monotonic() - began < SHORT * MARGIN
        assert classify(caught.value).executed is None

    def test_the_connection_is_not_used_again(self, proxy, make_pools, run):
        """The reply may come yet, and would be taken for another command's."""
        pools = make_pools(proxy.url, command_timeout=SHORT)
        who = run(call(pools, WHO))
        proxy.hold()
        with pytest.raises(LinkTimeout):
            run(call(pools, PING))
        proxy.heal()
        assert run(call(pools, WHO)) != who
        assert pools._witness.dead == [(who, True)]

    def test_a_reply_that_drips_is_bounded_as_a_whole(self, proxy, make_pools, run):
        pools = make_pools(proxy.url, command_timeout=SHORT)
        run(call(pools, pack("SET", "k", "x" * 1000)))
        proxy.drip(1, SHORT / 2)
        began = time.monotonic()
        with pytest.raises(LinkTimeout):
            run(call(pools, GET))
        assert time.monotonic() - began < SHORT * MARGIN

    def test_one_that_comes_in_pieces_and_in_time_is_read(self, proxy, make_pools, run):
        pools = make_pools(proxy.url)
        run(call(pools, pack("SET", "k", "x" * 100)))
        proxy.drip(10, 0.002)
        assert run(_current(pools, "call_many", GET * 2, 2)) == [b"x" * 100] * 2

    def test_a_large_reply_may_take_as_long_as_its_size_does(self, make_pools, run):
        size, over = 20_000_000, threading.Event()

        def act(client):
            client.recv(1000)
            client.sendall(b"$%d\r\n" % size + b"x" * (size - 1))
            over.wait(SHORT * 1.5)  # past the deadline of a small one
            client.sendall(b"x\r\n")

        with Peer(act) as peer:
            assert run(call(make_pools(peer.url, command_timeout=SHORT), GET)) == b"x" * size


class TestBreaking:
    @pytest.mark.parametrize("way", ["lose_replies", "half_reply", "closed"])
    def test_a_command_whose_reply_did_not_come_may_have_been_executed(
        self, proxy, server, make_pools, run, way
    ):
        pools = make_pools(proxy.url)
        run(call(pools, PING))
        if way == "closed":
            packed = pack("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
            proxy.half_reply(0, request=b"KILL")
        else:
            packed = pack("INCR", "n")
            getattr(proxy, way)(1, request=b"INCR")
        with pytest.raises(LinkClosed) as caught:
            run(call(pools, packed))
        assert classify(caught.value).executed is None
        assert pools.size == 0

    def test_so_may_several_of_which_one_was_answered(self, proxy, make_pools, run):
        pools = make_pools(proxy.url)
        run(call(pools, PING))
        proxy.half_reply(7, request=b"PING")
        with pytest.raises(LinkClosed) as caught:
            run(_current(pools, "call_many", PING * 2, 2))
        assert classify(caught.value).executed is None
        assert pools.size == 0

    def test_a_connection_that_had_gone_bad_between_two_runs_of_the_loop_is_stale(self, pools, server, run):
        run(call(pools, PING))
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with contextlib.suppress(LinkClosed):  # unless the loop has seen it in time
            run(call(pools, PING))
            return
        assert run(call(pools, PING)) == b"PONG"

    def test_one_that_the_loop_saw_going_bad_is_not_used(self, pools, server, run):
        async def talk():
            old = await call(pools, WHO)
            server.command("CLIENT", "KILL", "ID", old)
            stream = pools.current()._idle[0]
            await until(lambda: stream.transport is None)
            assert await call(pools, WHO) != old
            assert pools.size == 1

        run(talk())

    def test_one_on_which_something_has_come_unasked_is_not_used(self, proxy, make_pools, run):
        """The next command would take it for its reply."""
        pools = make_pools(proxy.url)

        async def talk():
            old = await call(pools, WHO)
            stream = pools.current()._idle[0]
            stream.transport.write(PING)
            await until(lambda: stream.transport is None)
            assert await call(pools, WHO) != old

        run(talk())

    def test_on_a_closed_connection_nothing_is_sent(self, pools, run):
        async def talk():
            await call(pools, PING)
            stream = pools.current()._idle[0]
            stream.close()
            with pytest.raises(LinkClosed) as caught:
                await stream.call(PING)
            return classify(caught.value)

        failure = run(talk())
        assert (failure.executed, failure.stale) == (False, True)

    def test_an_answer_that_is_none_of_redis_is_raised(self, proxy, make_pools, run):
        pools = make_pools(proxy.url)
        run(call(pools, PING))
        proxy.http()
        with pytest.raises(redis_errors.InvalidResponse):
            run(call(pools, PING))
        assert pools.size == 0

    def test_closing_under_a_caller_is_an_error_to_him(self, proxy, make_pools, run):
        pools = make_pools(proxy.url)

        async def talk():
            await call(pools, PING)
            proxy.hold()
            task = asyncio.ensure_future(call(pools, PING))
            await settle()
            await pools.aclose()
            with pytest.raises(LinkClosed):
                await task

        run(talk())


class TestHeldUp:
    """A loop that was blocked itself says nothing about Redis."""

    def test_replies_that_came_while_the_loop_was_blocked_are_read(self, server, make_pools, run):
        pools = make_pools(server.url, command_timeout=SHORT)

        async def talk():
            with contextlib.suppress(LinkTimeout, PoolExhausted):  # a busy machine
                await asyncio.gather(*[call(pools, PING) for _ in range(10)])
            tasks = [asyncio.ensure_future(call(pools, PING)) for _ in range(10)]
            await asyncio.sleep(0)
            spin(SHORT * 2)
            return await asyncio.gather(*tasks)

        assert run(talk()) == [b"PONG"] * 10

    def test_but_a_server_that_was_silent_as_well_is_silent(self, proxy, make_pools, run):
        pools = make_pools(proxy.url, command_timeout=SHORT)

        async def talk():
            await call(pools, PING)
            proxy.hold()
            task = asyncio.ensure_future(call(pools, PING))
            await asyncio.sleep(0)
            spin(SHORT * 2)
            await task

        with pytest.raises(LinkTimeout):
            run(talk())

    def test_a_connection_that_was_made_meanwhile_is_made(self, server, make_pools, run):
        pools = make_pools(server.url, connect_timeout=SHORT)

        async def talk():
            task = asyncio.ensure_future(call(pools, PING))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            spin(SHORT * 2)
            return await task

        assert run(talk()) == b"PONG"

    def test_one_that_is_not_made_is_given_up(self, make_pools, run):
        from tests.redis.test_links import full_house

        with full_house() as port:
            pools = make_pools(f"redis://127.0.0.1:{port}/0", connect_timeout=SHORT)
            began = time.monotonic()
            with pytest.raises(LinkTimeout) as caught:
                run(call(pools, PING))
            assert time.monotonic() - began < SHORT * MARGIN
        assert classify(caught.value).executed is False


class TestBound:
    def test_many_tasks_share_few_connections(self, pools, server, run):
        async def talk():
            return await asyncio.gather(*[call(pools, pack("INCR", "n")) for _ in range(200)])

        assert sorted(run(talk())) == list(range(1, 201))
        assert pools.size <= MOST_STREAMS
        assert open_on(server) == pools.size

    def test_there_are_never_more_than_asked(self, make_pools, server, run):
        pools = make_pools(server.url, max_connections=2)

        async def talk():
            await asyncio.gather(*[call(pools, PING) for _ in range(50)])

        run(talk())
        assert pools.size == 2

    def test_one_caller_after_another_needs_one_connection(self, pools, run):
        async def talk():
            return {await call(pools, WHO) for _ in range(50)}

        assert len(run(talk())) == 1

    def test_who_waits_in_vain_behind_his_own_is_told(self, make_pools, server, run, monkeypatch):
        monkeypatch.setattr(streams_module, "QUEUE_PATIENCE", SHORT)
        pools = make_pools(server.url, max_connections=1)

        async def talk():
            blocked = asyncio.ensure_future(call(pools, pack("BLPOP", "list", 10)))
            await until(lambda: server.command("INFO", "clients").count(b"blocked_clients:1\r\n"))
            with pytest.raises(PoolExhausted):
                await call(pools, PING)
            server.command("RPUSH", "list", "v")
            assert await blocked == [b"list", b"v"]
            assert await call(pools, PING) == b"PONG"

        run(talk())

    @pytest.mark.parametrize("opened", [True, False], ids=["warm", "cold"])
    def test_nobody_waits_in_turn_for_a_server_that_is_silent(self, make_pools, proxy, run, opened):
        """Fifty tasks behind one connection would else be told one after another."""
        pools = make_pools(proxy.url, max_connections=1, command_timeout=SHORT)
        if opened:
            run(call(pools, PING))
        proxy.hold()

        async def talk():
            tasks = [asyncio.ensure_future(call(pools, PING)) for _ in range(50)]
            return await asyncio.gather(*tasks, return_exceptions=True)

        began = time.monotonic()
        answers = run(talk())
        assert time.monotonic() - began < SHORT * MARGIN
        assert {type(answer) for answer in answers} == {LinkTimeout, PoolExhausted}

    def test_a_turn_that_comes_too_late_is_passed_on(self, make_pools, server, run, monkeypatch):
        """Woken and out of time in one and the same turn of the loop: the next in line must not sleep on."""
        pools = make_pools(server.url, max_connections=1)

        async def talk():
            loop, pool = asyncio.get_running_loop(), pools.current()
            stream = await pool._open()
            monkeypatch.setattr(streams_module, "QUEUE_PATIENCE", SHORT)
            late = asyncio.ensure_future(pool.call(PING))
            await settle()
            monkeypatch.setattr(streams_module, "QUEUE_PATIENCE", 60.0)
            next_in_line = asyncio.ensure_future(pool.call(PING))
            await settle()

            def hold_up():
                loop.call_soon(pool._give_back, stream)  # runs together with the timer of the late one
                spin(SHORT)

            loop.call_soon(hold_up)
            await asyncio.wait({late}, timeout=10)
            assert isinstance(late.exception(), PoolExhausted)
            return await asyncio.wait_for(next_in_line, 10)

        assert run(talk()) == b"PONG"

    def test_a_turn_that_is_cancelled_is_passed_on(self, make_pools, server, run):
        pools = make_pools(server.url, max_connections=1)

        async def talk():
            pool = pools.current()
            stream = await pool._open()
            first, second = (asyncio.ensure_future(pool.call(PING)) for _ in range(2))
            await settle()
            pool._give_back(stream)
            first.cancel()
            assert await asyncio.wait_for(second, 10) == b"PONG"
            assert first.cancelled()

        run(talk())

    def test_one_who_is_turned_away_and_cancelled_at_once_leaves_no_complaint(self, make_pools, server, run):
        pools = make_pools(server.url, max_connections=1)

        async def talk():
            pool = pools.current()
            stream = await pool._open()
            waiting = asyncio.ensure_future(pool.call(PING))
            await settle()
            pool._turn_away()
            waiting.cancel()
            await asyncio.wait({waiting})
            pool._give_back(stream)
            assert waiting.cancelled()

        run(talk())


class TestCancelling:
    def test_a_caller_who_goes_takes_his_connection_with_him(self, proxy, make_pools, run):
        pools = make_pools(proxy.url)

        async def talk():
            who = await call(pools, WHO)
            proxy.hold()
            task = asyncio.ensure_future(call(pools, PING))
            await settle()
            task.cancel()
            await asyncio.wait({task})
            proxy.heal()
            assert pools._witness.dead == [(who, True)]
            assert await call(pools, WHO) != who

        run(talk())

    def test_at_whatever_moment_nothing_is_left_and_the_others_are_served(self, server, run, make_pools):
        async def talk(turns):
            pools = make_pools(server.url, max_connections=2)
            tasks = [asyncio.ensure_future(call(pools, PING)) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            done = tasks[0].done()
            tasks[0].cancel()
            tasks[3].cancel()
            await asyncio.wait(tasks)
            answers = [task.result() for task in tasks if not task.cancelled()]
            assert answers == [b"PONG"] * len(answers)
            assert len(answers) >= 3
            assert await call(pools, PING) == b"PONG"
            await pools.aclose()
            return done

        for turns in range(200):
            if run(talk(turns)):
                break
        wait_until(lambda: open_on(server) == 0, 10)

    def test_a_loop_that_ends_in_the_middle_leaves_nothing(self, proxy, make_pools):
        pools = make_pools(proxy.url)

        async def talk():
            await call(pools, PING)
            proxy.hold()
            asyncio.ensure_future(call(pools, PING))  # noqa: RUF006 - its loop ends it
            await settle()

        asyncio.run(talk())
        proxy.heal()
        proxy.wait_until(lambda proxy: proxy.active == 0)


class TestManyLoops:
    @pytest.mark.parametrize("times", [200, pytest.param(1000, marks=pytest.mark.long)])
    def test_loops_of_async_to_sync_leave_nothing_behind(self, cache, server, times):
        async def view():
            await cache.aset("k", 1)
            return await cache.aget("k")

        run_view = async_to_sync(view)
        run_view()
        wait_until(lambda: open_on(server) == 0, 10)
        before = open_files()
        for _ in range(times):
            assert run_view() == 1
        wait_until(lambda: open_on(server) == 0, 10)
        assert open_files() <= before
        assert cache._engine.connections.streams.size <= 1
        assert not cache.is_degraded

    @pytest.mark.parametrize("factory", LOOPS, ids=lambda factory: factory.__module__.partition(".")[0])
    def test_each_run_closes_what_it_has_opened(self, cache, server, factory):
        def run_once():
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(cache.aset("k", 1))

        run_once()  # what a process opens once (uvloop's own, the test's connection) is no leak
        wait_until(lambda: open_on(server) == 0, 10)
        before = open_files()
        for _ in range(20):
            run_once()
        wait_until(lambda: open_on(server) == 0, 10)
        # What the last one left is buried by the next; a prober that looked after a slow machine ends too.
        wait_until(lambda: open_files() <= before + 1, 10)

    @pytest.mark.filterwarnings("ignore:unclosed resource:ResourceWarning")  # uvloop's, of such a close
    @pytest.mark.parametrize("factory", LOOPS, ids=lambda factory: factory.__module__.partition(".")[0])
    def test_what_a_bare_close_leaves_is_buried_by_the_next(self, pools, server, factory):
        """``loop.close()`` without ``shutdown_asyncgens`` tells nobody."""
        for _ in range(5):
            loop = factory()
            loop.run_until_complete(call(pools, PING))
            loop.close()
        assert open_on(server) <= 1
        assert len(pools._pools) == 1

    def test_two_loops_in_two_threads_do_not_share(self, pools):
        barrier = threading.Barrier(2, timeout=10)

        async def talk():
            barrier.wait()
            return {await call(pools, WHO) for _ in range(100)}

        with ThreadPoolExecutor(2) as threads:
            one, other = threads.map(lambda _: asyncio.run(talk()), range(2))
        assert len(one) == len(other) == 1
        assert not one & other

    def test_a_loop_in_one_thread_and_callers_in_another_count_together(self, cache):
        cache.set("n", 0)

        async def count():
            return await asyncio.gather(*[cache.aincr("n") for _ in range(100)])

        with ThreadPoolExecutor(2) as threads:
            loops = threads.submit(lambda: asyncio.run(count()))
            plain = threads.submit(lambda: [cache.incr("n") for _ in range(100)])
            seen = sorted(loops.result(30) + plain.result(30))
        assert seen == list(range(1, 201))

    def test_outside_of_a_loop_there_is_no_pool(self, pools):
        with pytest.raises(RuntimeError, match="no running event loop"):
            pools.current()

    def test_loops_that_do_not_run_can_be_closed_from_outside(self, pools, server):
        with asyncio.Runner() as runner:
            runner.run(call(pools, PING))
            pools.close_all()
            assert pools.size == 0
            runner.run(settle())
            wait_until(lambda: open_on(server) == 0, 10)
            assert runner.run(call(pools, PING)) == b"PONG"

    def test_one_that_runs_keeps_its_own(self, pools):
        async def talk():
            who = await call(pools, WHO)
            pools.close_all()
            assert await call(pools, WHO) == who

        asyncio.run(talk())

    def test_a_loop_can_close_its_own(self, pools, server, run):
        async def talk():
            old = await call(pools, WHO)
            await pools.aclose()
            await pools.aclose()
            assert await call(pools, WHO) != old

        run(talk())


class TestRenewal:
    def test_idle_connections_are_not_used_again(self, pools, run):
        old = run(call(pools, WHO))
        pools.renew()
        assert run(call(pools, WHO)) != old
        assert pools.size == 1

    def test_busy_ones_answer_and_are_closed_then(self, pools, server, run):
        async def talk():
            blocked = asyncio.ensure_future(call(pools, pack("BLPOP", "list", 10)))
            await until(lambda: server.command("INFO", "clients").count(b"blocked_clients:1\r\n"))
            pools.renew()
            server.command("RPUSH", "list", "v")
            assert await blocked == [b"list", b"v"]
            assert pools.size == 0

        run(talk())


class TestFork:
    def test_the_child_opens_its_own_and_the_parent_goes_on(self, pools, run):
        who = run(call(pools, WHO))

        def use():
            pools.after_fork()
            return asyncio.run(call(pools, WHO))

        assert in_child(use) not in (who, None)
        assert run(call(pools, WHO)) == who

    def test_nor_does_the_end_of_a_child_that_used_nothing_touch_it(self, pools, run):
        who = run(call(pools, WHO))
        in_child(pools.after_fork)
        assert run(call(pools, WHO)) == who


class TestTls:
    def test_commands_and_replies_pass(self, tls_url, make_pools, run):
        pools = make_pools(tls_url)
        value = os.urandom(3_000_000)

        async def talk():
            await call(pools, pack("SET", "k", value))
            return await call(pools, GET)

        assert run(talk()) == value

    def test_a_certificate_that_is_not_trusted_is_refused(self, tls_url, make_pools, run):
        with pytest.raises(LinkClosed, match="certificate verify failed") as caught:
            run(call(make_pools(tls_url.partition("?")[0]), PING))
        assert classify(caught.value).executed is False

    def test_what_a_bare_close_leaves_is_buried_too(self, tls_url, make_pools):
        pools = make_pools(tls_url)
        before = open_files()
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(call(pools, PING))
            loop.close()
        pools.close_all()
        wait_until(lambda: open_files() <= before, 10)  # what stands in front has files too


class TestThroughTheCache:
    def test_two_hundred_increments_at_once_are_two_hundred_and_the_ttl_is_kept(self, cache, run):
        async def count():
            await cache.aset("n", 0, timeout=100)
            return await asyncio.gather(*[cache.aincr("n") for _ in range(200)])

        assert sorted(run(count())) == list(range(1, 201))
        assert 90 < cache.ttl("n") <= 100

    @pytest.mark.parametrize(
        ("method", "argument"),
        [
            ("aget_many", [f"k{number}" for number in range(100)]),
            ("aset_many", {f"k{number}": number for number in range(100)}),
            ("adelete_many", [f"k{number}" for number in range(100)]),
        ],
    )
    def test_a_hundred_keys_are_one_round_trip(self, proxy, make_cache, run, method, argument):
        cache = make_cache(proxy.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s")
        run(cache.aset_many({f"k{number}": number for number in range(100)}))
        proxy.reset_counts()
        answer = run(getattr(cache, method)(argument))
        assert proxy.round_trips == 1
        assert answer in ({f"k{number}": number for number in range(100)}, [], 100)

    def test_a_hundred_values_are_one_mget(self, cache, server, run):
        server.command("CONFIG", "RESETSTAT")
        run(cache.aget_many([f"k{number}" for number in range(100)]))
        assert b"cmdstat_mget:calls=1," in server.command("INFO", "commandstats")

    def test_cancelled_tasks_cost_the_others_nothing(self, cache, run):
        async def talk():
            await cache.aset("k", "v")
            for turns in range(60):
                task = asyncio.ensure_future(cache.aget("k"))
                for _ in range(turns % 6):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            return await asyncio.gather(*[cache.aget("k") for _ in range(200)])

        assert run(talk()) == ["v"] * 200
        assert not cache.is_degraded
        assert cache._engine.connections.streams.size <= MOST_STREAMS

    def test_a_loop_that_was_blocked_is_no_outage(self, server, make_cache, run):
        cache = make_cache(server.url)

        async def talk():
            await cache.aset("k", "v")
            for _ in range(3):
                tasks = [asyncio.ensure_future(cache.aget("k")) for _ in range(20)]
                await asyncio.sleep(0)
                spin(0.3)
                assert await asyncio.gather(*tasks) == ["v"] * 20

        run(talk())
        assert cache.status()["counters"]["failures"] == 0
