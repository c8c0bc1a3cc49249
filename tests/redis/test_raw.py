"""Raw redis-py clients, as ``get_redis_connection()`` gives them: our connections, behind our circuit."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from django.core.cache import caches
from django_redis import get_redis_connection
from redis import exceptions as redis_errors

from redis_infra.cache import RedisCache
from redis_infra.connection.failures import RedisUnavailable
from redis_infra.connection.raw import waits_by_design
from redis_infra.exceptions import StoreUnavailable
from redis_infra.testing import outage
from tests.faults.site import MARGIN, wait_until

WAIT = 0.4
"""Seconds that a command asks the server to wait: more than COMMAND_TIMEOUT."""


@pytest.fixture
def server(own_redis):
    return own_redis()


@pytest.fixture
def site(settings, tmp_path):
    """Set up the site's one cache: ``site(url, POOL_WAIT="1ms")``."""

    def make(url, **options):
        options = {"STATE_DIR": str(tmp_path / "state"), "CONNECT_TIMEOUT": "5s", **options}
        options.setdefault("COMMAND_TIMEOUT", "5s")
        settings.CACHES = {
            "default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": url, "OPTIONS": options}
        }
        return caches["default"]

    return make


@pytest.fixture
def cache(site, server):
    return site(server.url)


@pytest.fixture
def client(cache):
    return get_redis_connection("default")


@pytest.fixture
def hasty(site, server):
    """A client whose key commands wait for a quarter of a second."""
    cache = site(server.url, COMMAND_TIMEOUT="250ms")
    assert cache.get("k") is None
    return get_redis_connection("default")


def idle(client):
    """Whether all connections for key commands have come back."""
    return client.connections.pool.in_use == 0


class TestCommands:
    def test_it_is_redis_pys_client(self, client):
        assert isinstance(client, redis.Redis)

    def test_replies_are_bytes_as_redis_py_gives_them(self, client):
        assert client.set("k", "ü") is True
        assert client.get("k") == "ü".encode()
        assert client.lrange("nothing", 0, -1) == []
        assert client.hset("h", mapping={"a": 1}) == 1
        assert client.hgetall("h") == {b"a": b"1"}
        assert client.info("server")["process_id"] == client.info()["process_id"]

    def test_it_sees_what_the_cache_has_written(self, client, cache):
        cache.set("n", 5)
        assert client.get(cache.make_key("n")) == b"5"

    def test_it_uses_the_caches_own_connections(self, client, cache):
        cache.get("k")
        before = cache._engine.connections.pool.connection_ids()
        assert [client.client_id() for _ in range(3)] == before * 3
        assert idle(client)

    def test_an_error_reply_is_the_callers_and_no_outage(self, client, cache):
        client.set("k", "v")
        with pytest.raises(redis_errors.ResponseError, match="WRONGTYPE"):
            client.lpush("k", "v")
        assert not cache.is_degraded
        assert idle(client)

    def test_it_can_be_closed_and_used_again(self, client):
        with client as same:
            same.set("k", "v")
        assert client.get("k") == b"v"

    def test_threads_may_share_it(self, client):
        with ThreadPoolExecutor(8) as threads:
            seen = sorted(threads.map(lambda _: client.incr("n"), range(400)))
        assert seen == list(range(1, 401))

    def test_scripts_are_sent_by_their_digest(self, client):
        script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        assert [script(keys=["n"], args=[2]) for _ in range(2)] == [2, 4]

    def test_an_alias_in_memory_has_none(self, site):
        site("memory://")
        with pytest.raises(StoreUnavailable, match="works in memory"):
            get_redis_connection("default")


class TestPipelines:
    def test_a_transaction_is_all_or_nothing(self, client):
        with client.pipeline() as pipe:
            pipe.set("a", 1).incr("a").get("a")
            assert pipe.execute() == [True, 2, b"2"]
        assert idle(client)

    def test_without_one_the_commands_only_travel_together(self, client):
        with client.pipeline(transaction=False) as pipe:
            pipe.set("a", 1).lpush("a", 1).get("a")
            ok, error, value = pipe.execute(raise_on_error=False)
        assert (ok, value) == (True, b"1")
        assert isinstance(error, redis_errors.ResponseError)

    def test_an_error_among_them_is_raised_and_no_outage(self, client, cache):
        with client.pipeline(transaction=False) as pipe, pytest.raises(redis_errors.ResponseError):
            pipe.set("a", 1).lpush("a", 1).execute()
        assert not cache.is_degraded
        assert idle(client)

    def test_a_key_that_was_watched_and_changed_is_found_out(self, client):
        with client.pipeline() as pipe:
            pipe.watch("n")
            assert pipe.get("n") is None
            client.set("n", 1)
            pipe.multi()
            pipe.set("n", 2)
            with pytest.raises(redis_errors.WatchError):
                pipe.execute()
        assert client.get("n") == b"1"
        assert idle(client)

    def test_a_function_is_tried_until_nobody_interferes(self, client):
        rounds = []

        def double(pipe):
            value = int(pipe.get("n") or 1)
            if not rounds:
                client.set("n", 5)
            rounds.append(value)
            pipe.multi()
            pipe.set("n", value * 2)

        client.transaction(double, "n")
        assert (rounds, client.get("n")) == ([1, 5], b"10")


class TestLocks:
    def test_one_holds_it_and_the_other_learns_so(self, client):
        with client.lock("lock", timeout=10):
            assert not client.lock("lock", timeout=10).acquire(blocking=False)
        assert client.lock("lock", timeout=10).acquire(blocking=False)

    def test_who_waits_for_it_gets_it(self, client):
        first = client.lock("lock", timeout=10)
        first.acquire()
        with ThreadPoolExecutor(1) as thread:
            second = client.lock("lock", timeout=10, sleep=0.01, thread_local=False)
            waiting = thread.submit(second.acquire, blocking_timeout=10)
            first.release()
            assert waiting.result(10)
            assert second.owned()

    def test_it_can_be_extended_and_is_given_back_by_its_owner_alone(self, cache):
        lock = cache.lock("lock", timeout=10)
        lock.acquire()
        assert lock.extend(50, replace_ttl=True)
        assert 40 < cache.ttl("lock") <= 50
        cache.delete("lock")
        with pytest.raises(redis_errors.LockError):
            lock.release()


class TestWaiting:
    """What waits by design waits as long as it asks, and says nothing about Redis."""

    @pytest.mark.parametrize(
        "command",
        [
            ("BLPOP", "list", WAIT),
            ("XREAD", "COUNT", 1, "BLOCK", int(WAIT * 1000), "STREAMS", "stream", "$"),
            ("WAIT", 1, int(WAIT * 1000)),
        ],
        ids=lambda command: " ".join(map(str, command[:3])),
    )
    def test_a_command_that_waits_is_let_wait(self, hasty, command):
        began = time.monotonic()
        assert hasty.execute_command(*command) in (None, 0, {}, [])
        assert time.monotonic() - began >= WAIT * 0.9
        assert not caches["default"].is_degraded

    def test_so_is_a_reader_of_a_group(self, hasty):
        hasty.xgroup_create("stream", "group", mkstream=True)
        began = time.monotonic()
        read = hasty.xreadgroup("group", "me", {"stream": ">"}, count=5, block=int(WAIT * 1000))
        assert not read
        assert time.monotonic() - began >= WAIT * 0.9

    def test_it_gets_what_comes(self, hasty):
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(hasty.blpop, "list", timeout=10)
            wait_until(lambda: hasty.info("clients")["blocked_clients"], 10)
            hasty.rpush("list", "v")
            assert waiting.result(10) == (b"list", b"v")

    def test_it_does_not_take_the_connection_of_a_key_command(self, hasty):
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(hasty.blpop, "list", timeout=10)
            wait_until(lambda: hasty.info("clients")["blocked_clients"], 10)
            assert idle(hasty)
            hasty.rpush("list", "v")
            waiting.result(10)

    def test_a_server_that_dies_meanwhile_is_an_error_and_no_vote(self, hasty, server):
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(hasty.blpop, "list", timeout=30)
            wait_until(lambda: hasty.info("clients")["blocked_clients"], 10)
            server.kill()
            with pytest.raises(redis_errors.ConnectionError):
                waiting.result(10)
        assert not caches["default"].is_degraded

    def test_messages_come_to_who_subscribed_however_long_it_takes(self, hasty):
        with hasty.pubsub() as pubsub:
            pubsub.subscribe("news")
            assert pubsub.get_message(timeout=10)["type"] == "subscribe"
            assert pubsub.get_message(timeout=WAIT) is None
            assert hasty.publish("news", "hello") == 1
            assert pubsub.get_message(timeout=10)["data"] == b"hello"

    def test_one_who_listens_without_end_does_too(self, hasty):
        with hasty.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("news")
            timer = threading.Timer(WAIT, hasty.publish, ("news", "late"))
            timer.start()
            assert next(pubsub.listen())["data"] == b"late"
            timer.join()

    def test_a_subscription_that_ends_leaves_no_connection(self, hasty, server):
        with hasty.pubsub() as pubsub:
            pubsub.subscribe("news")
            pubsub.get_message(timeout=10)
        wait_until(lambda: server.command("PUBSUB", "NUMSUB", "news") == [b"news", 0], 10)
        assert hasty.connections.patient_pool.in_use == 0

    def test_a_monitor_sees_what_others_do(self, hasty):
        with hasty.monitor() as monitor:
            hasty.set("watched", 1)
            assert monitor.next_command()["command"] == "SET watched 1"


@pytest.mark.parametrize(
    ("command", "waits"),
    [
        (("BLPOP", "list", 0), True),
        (("blpop", "list", 0), True),
        (("BLPOP list", 0), True),
        *[((name, "k", 1), True) for name in ("BRPOP", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP")],
        (("XREAD", b"BLOCK", b"100", b"STREAMS", "s", "$"), True),
        (("XREAD", "STREAMS", "block", "$"), False),
        (("XREAD", "COUNT", 1, "STREAMS", "s", "0"), False),
        (("XREADGROUP", "GROUP", "g", "me", "COUNT", 5, "NOACK", "BLOCK", 100, "STREAMS", "s", ">"), True),
        (("XREADGROUP", "GROUP", "block", "me", "STREAMS", "s", ">"), False),
        (("GET", "BLOCK"), False),
        (("SET", "BLPOP", "BLOCK"), False),
        (("LPOP", "list"), False),
        (("CLIENT KILL", "ID", 5), False),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_which_commands_wait(command, waits):
    assert waits_by_design(command) is waits


class TestGuard:
    @pytest.mark.parametrize(
        "use",
        [
            lambda client: client.get("k"),
            lambda client: client.incr("n"),
            lambda client: client.pipeline().get("k").execute(),
            lambda client: client.pipeline(transaction=False).get("k").execute(),
            lambda client: client.pipeline().watch("k"),
            lambda client: client.lock("lock", timeout=1).acquire(blocking=False),
            lambda client: client.blpop("list", timeout=10),
            lambda client: client.xread({"stream": "$"}, block=10_000),
            lambda client: client.pubsub(),
            lambda client: client.monitor(),
            lambda client: list(client.scan_iter()),
        ],
        ids=[
            "get",
            "incr",
            "transaction",
            "pipeline",
            "watch",
            "lock",
            "blpop",
            "xread",
            "pubsub",
            "monitor",
            "scan",
        ],
    )
    def test_while_the_circuit_is_open_everything_fails_at_once(self, client, use):
        with outage("default"):
            began = time.monotonic()
            with pytest.raises(RedisUnavailable) as caught:
                use(client)
            assert time.monotonic() - began < 0.1 * MARGIN
        assert isinstance(caught.value, StoreUnavailable)
        assert isinstance(caught.value, redis_errors.ConnectionError)

    def test_it_says_which_command_and_why_and_no_password(self, site, own_redis):
        server = own_redis(unix_socket=False, config={"requirepass": "s3cr3t"})
        site(server.url.replace("redis://", "redis://:s3cr3t@"))
        client = get_redis_connection("default")
        client.ping()
        server.kill()
        for _ in range(2):
            with pytest.raises(RedisUnavailable) as caught:
                client.hget("h", "field")
            assert str(caught.value).startswith(f"HGET was not answered: redis://127.0.0.1:{server.port}: ")
            assert "s3cr3t" not in repr(caught.value) + str(caught.value)

    def test_the_command_that_met_the_fault_fails_with_the_same_error_and_opens_the_circuit(
        self, client, cache, server
    ):
        client.ping()
        server.kill()
        with pytest.raises(RedisUnavailable):
            client.get("k")
        assert cache.is_degraded

    def test_a_pipeline_does_too(self, client, cache, server):
        client.ping()
        server.kill()
        with pytest.raises(RedisUnavailable, match="EXEC"):
            client.pipeline().get("k").execute()
        assert cache.is_degraded
        assert idle(client)

    def test_two_timeouts_open_it(self, hasty, server):
        server.freeze()
        for degraded in (False, True):
            with pytest.raises(RedisUnavailable):
                hasty.get("k")
            assert caches["default"].is_degraded is degraded

    def test_a_counter_whose_reply_was_lost_is_not_sent_again(self, site, server):
        from redis_infra.testing import TcpProxy

        with TcpProxy(server.url) as proxy:
            site(proxy.url)
            client = get_redis_connection("default")
            client.incr("n")
            proxy.lose_replies(request=b"INCRBY")
            with pytest.raises(RedisUnavailable):
                client.incr("n")
            assert server.command("GET", "n") == b"2"

    def test_a_full_server_is_said_to_be_full(self, client, cache, server):
        client.set("old", "v")
        server.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailable, match="OutOfMemory"):
            client.set("k", "v")
        assert client.get("old") == b"v"

    def test_an_exhausted_pool_is_no_outage(self, site, server):
        cache = site(server.url, MAX_CONNECTIONS=1, POOL_WAIT="1ms")
        client = get_redis_connection("default")
        held = client.connections.pool.acquire()
        with pytest.raises(RedisUnavailable):
            client.get("k")
        assert not cache.is_degraded
        client.connections.pool.give_back(held)
        assert client.get("k") is None

    def test_when_redis_is_back_so_is_the_client(self, client, cache, server):
        client.ping()
        server.kill()
        with pytest.raises(RedisUnavailable):
            client.get("k")
        server.start()
        wait_until(lambda: not cache.is_degraded, 10)
        assert client.ping()


class TestThroughDjangoRedis:
    """``cache.client``, and what takes a client of the caller's own."""

    def test_methods_that_take_a_client_use_it(self, cache, client):
        assert cache.set("k", {"a": 1}, 100, client=client) is True
        assert cache.get("k", client=client) == cache.get("k") == {"a": 1}
        assert cache.add("k", 2, client=client) is False
        assert cache.get_many(["k", "none"], client=client) == {"k": {"a": 1}}
        assert cache.has_key("k", client=client) is True
        assert cache.touch("k", 500, client=client) is True
        assert 400 < cache.ttl("k", client=client) <= 500
        assert cache.set_many({"a": 1, "b": 2}, client=client) == []
        assert (cache.incr("a", 2, client=client), cache.decr("a", client=client)) == (3, 2)
        assert cache.delete("k", client=client) is True
        assert cache.delete_many(["a", "none"], client=client) == 1
        assert cache.delete_pattern("b*", client=client) == 1
        assert cache.keys("*", client=client) == []

    def test_a_set_that_does_not_store_says_so(self, cache, client):
        assert cache.set("k", 1, client=client, xx=True) is False
        assert cache.set("k", 1, client=client, nx=True) is True

    def test_counting_without_looking_creates(self, cache, client):
        assert cache.incr("n", ignore_key_check=True) == 1
        assert cache.incr("m", client=client, ignore_key_check=True) == 1

    def test_another_prefix_can_be_deleted_under(self, cache, client):
        client.set("other:1:k", "v")
        assert cache.delete("k", prefix="other") is True
        assert client.get("other:1:k") is None

    def test_its_client_never_empties_what_is_not_the_caches(self, cache, client):
        """django-redis' own does FLUSHDB."""
        client.set("not a cache key", "v")
        cache.set("k", "v")
        cache.client.clear()
        assert cache.get("k") is None
        assert client.get("not a cache key") == b"v"

    def test_nor_asks_for_keys_in_one_piece(self, cache, client, server):
        """KEYS holds up everybody else."""
        cache.set_many({"user:1": 1, "user:2": 2, "room": 3})
        server.command("CONFIG", "RESETSTAT")
        assert sorted(cache.client.keys("user:*")) == ["user:1", "user:2"]
        assert b"cmdstat_keys" not in server.command("INFO", "commandstats")

    def test_a_site_may_change_how_many_keys_a_scan_looks_at(self, cache, server, settings):
        settings.DJANGO_REDIS_SCAN_ITERSIZE = 10
        cache.set_many({f"k{number}": 1 for number in range(200)})
        server.command("CONFIG", "RESETSTAT")
        assert len(list(cache.iter_keys("k*"))) == 200
        statistics = server.command("INFO", "commandstats").decode()
        assert int(statistics.partition("cmdstat_scan:calls=")[2].partition(",")[0]) > 10

    def test_a_client_of_its_own_can_be_put_in(self, cache):
        mine = cache.client
        other = RedisCache(cache._server, cache._params)
        other.client = mine
        assert other.client is mine

    def test_the_wrong_type_among_many_is_the_callers_error(self, cache, client):
        client.lpush(cache.make_key("list"), "v")
        with pytest.raises(redis_errors.ResponseError, match="WRONGTYPE"):
            cache.get("list")


class TestClosing:
    def test_the_end_of_a_request_closes_nothing(self, cache, client):
        who = client.client_id()
        cache.close()
        assert client.client_id() == who

    @pytest.mark.parametrize("used", [True, False], ids=["through its client", "as a cache"])
    def test_with_close_connection_it_does(self, site, server, used):
        cache = site(server.url, CLOSE_CONNECTION=True)
        cache.get("k")
        if used:
            cache.client.get_client().ping()
        cache.close()
        assert cache._engine.connections.pool.size == 0
        assert cache.get("k") is None

    def test_so_it_does_where_the_whole_site_asks_for_it(self, site, server, settings):
        settings.DJANGO_REDIS_CLOSE_CONNECTION = True
        cache = site(server.url)
        cache.get("k")
        cache.close()
        assert cache._engine.connections.pool.size == 0

    def test_closing_a_cache_that_was_not_used_makes_nothing(self, site, server):
        cache = site(server.url, CLOSE_CONNECTION=True)
        cache.close()
        assert "_engine" not in vars(cache)

    def test_closing_one_that_works_in_memory_is_nothing(self, site):
        cache = site("memory://", CLOSE_CONNECTION=True)
        cache.set("k", 1)
        cache.close()
        assert cache.get("k") == 1
