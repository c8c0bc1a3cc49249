"""The way back, in one process: what is put right before Redis is trusted, and what ACL may forbid of it.

What several processes leave each other, and what comes late from old connections, is in ``tests/faults``.
"""

from __future__ import annotations

import re
import threading
import time

import pytest

from redis_infra.connection import recovery
from redis_infra.resilience.breaker import State
from redis_infra.testing import TcpProxy
from tests.faults.site import MARGIN, wait_until
from tests.forking import in_child

QUICK = {"probe_base": "5ms", "probe_cap": "20ms"}


@pytest.fixture
def server(own_redis):
    return own_redis(unix_socket=False)


@pytest.fixture
def proxy(server):
    with TcpProxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def make(make_cache):
    """Make a cache that notices a recovery at once, and does not take a busy machine for an outage."""

    def make(url, **options):
        return make_cache(
            url, **{"COMMAND_TIMEOUT": "5s", "CONNECT_TIMEOUT": "5s", "BREAKER": QUICK, **options}
        )

    return make


@pytest.fixture
def cache(make, proxy):
    return make(proxy.url)


def database_of(cache):
    return cache._engine.database


def is_well(cache):
    cache.get("anything")
    return not cache.is_degraded and database_of(cache).journal.empty


def is_at_rest(cache):
    """Whether nobody is at work on it any more."""
    return not database_of(cache).endpoint.prober.alive


class TestAfterAnOutage:
    def test_what_was_deleted_is_gone_and_the_rest_is_there(self, cache, proxy, call):
        call(cache.set_many, {"k": 1, "other": 2})
        proxy.refuse()
        call(cache.delete, "k")
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert (call(cache.get, "k"), call(cache.get, "other")) == (None, 2)

    def test_patterns_are_drained_too(self, cache, proxy, call):
        call(cache.set_many, {"chat:1": 1, "chat:2": 2, "user:1": 3})
        proxy.refuse()
        call(cache.delete_pattern, "chat:*")
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get_many, ["chat:1", "chat:2", "user:1"]) == {"user:1": 3}

    def test_what_memory_held_is_dropped_and_never_merged_up(self, cache, proxy, server, call):
        call(cache.set, "k", "before")
        proxy.refuse()
        call(cache.set, "k", "in memory")
        assert call(cache.get, "k") == "in memory"
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get, "k") is None
        assert len(cache._engine.shared) == 0

    def test_its_prober_ends(self, cache, proxy):
        cache.get("k")
        proxy.refuse()
        cache.get("k")
        proxy.heal()
        wait_until(lambda: is_at_rest(cache), 10)
        assert not cache.is_degraded

    def test_its_old_connections_are_killed(self, cache, proxy, server):
        """What timed out may lie in one of them."""
        cache.get("k")
        old = database_of(cache).connection_ids()
        database_of(cache).endpoint.hold_open()
        database_of(cache).endpoint.release_hold()
        wait_until(lambda: not cache.is_degraded, 10)
        listed = server.command("CLIENT", "LIST").decode()
        assert not any(f"id={each} " in listed for each in old)
        assert old

    def test_a_counter_gets_what_was_counted_without_it(self, cache, proxy, call):
        call(cache.set, "n", 10)
        call(cache.set, "f", 1.5)
        call(cache.incr, "n")
        pool = cache._engine.connections
        pool.renew()
        proxy.refuse()
        for key in ("n", "f", "missing"):
            with pytest.raises(ValueError, match="not found"):  # memory has no such counter
                call(cache.incr, key, 5)
        assert database_of(cache).journal.take().deltas
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert (call(cache.get, "n"), call(cache.get, "f"), call(cache.get, "missing")) == (16, 1.5, None)

    def test_deletes_just_before_a_crash_are_repeated_on_what_comes_up_instead(self, own_redis, make, call):
        """A snapshot from before the delete brings the key back."""
        server = own_redis(unix_socket=False)
        cache = make(server.url)
        call(cache.set, "k", 1)
        server.command("SAVE")
        call(cache.delete, "k")
        server.kill()
        call(cache.get, "k")
        server.start()
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get, "k") is None

    def test_but_not_on_the_same_server(self, cache, proxy, server, call):
        """It had confirmed them: a lock that somebody else has got meanwhile is not taken away."""
        call(cache.set, "lock", 1)
        call(cache.delete, "lock")
        proxy.refuse()
        call(cache.get, "k")
        server.command("SET", cache.make_key("lock"), "7")
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get, "lock") == 7

    def test_a_request_heals_where_no_thread_can_be_had(self, cache, proxy, monkeypatch, call):
        call(cache.get, "k")
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
        proxy.reset(new=True)
        call(cache.delete, "k")
        assert cache.is_degraded
        proxy.heal()
        wait_until(lambda: (call(cache.get, "k"), not cache.is_degraded)[1], 10)

    def test_a_server_that_comes_and_goes_again_is_not_trusted(self, cache, proxy):
        cache.set("k", 1)
        proxy.refuse()
        cache.delete("k")
        proxy.heal()
        proxy.half_reply(0, request=b"UNLINK")
        time_of_probe = database_of(cache).endpoint.reach.next_probe_at
        wait_until(lambda: database_of(cache).endpoint.reach.next_probe_at > time_of_probe + 0.05, 10)
        assert cache.is_degraded
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("k") is None


class TestWithoutAnOutage:
    def test_one_lost_delete_is_drained_though_the_circuit_stayed_closed(self, cache):
        cache.set("k", 1)
        pool = cache._engine.connections.pool
        held = [pool.acquire() for _ in range(pool.options.max_connections)]
        cache.delete("k")
        assert not cache.is_degraded
        for link in held:
            pool.give_back(link)
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("k") is None

    def test_a_drain_that_meets_a_dead_server_opens_the_circuit(self, cache, proxy):
        cache.set("k", 1)
        database = database_of(cache)
        proxy.refuse()
        database.journal.add([cache.make_key("k")], cache.namespace)
        database.failover.distrust()
        wait_until(lambda: not database.endpoint.reach.closed, 10)
        proxy.heal()
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("k") is None

    def test_one_that_meets_a_silent_server_counts_as_a_timeout(self, make, server):
        cache = make(server.url, COMMAND_TIMEOUT="50ms")
        cache.set("k", 1)
        database = database_of(cache)
        server.freeze()
        database.journal.add([cache.make_key("k")], cache.namespace)
        database.failover.distrust()
        wait_until(lambda: not database.endpoint.reach.closed, 20)
        server.thaw()
        wait_until(lambda: is_well(cache), 10)

    def test_what_a_process_that_died_has_left_is_drained_and_removed(self, make, proxy, tmp_path):
        cache = make(proxy.url)
        cache.set_many({"k": 1, "chat:1": 2, "other": 3})

        def delete_and_die():
            proxy_is_unreachable(cache)
            cache.delete("k")
            cache.delete_pattern("chat:*")

        in_child(delete_and_die)
        journals = tmp_path / "state"
        assert list(journals.glob("journal-*"))
        wait_until(lambda: (cache.get("k"), not list(journals.glob("journal-*")))[1], 10)
        assert cache.get_many(["k", "chat:1", "other"]) == {"other": 3}


def proxy_is_unreachable(cache):
    """In a forked child: an outage that only this process sees."""
    database_of(cache).endpoint.hold_open()


class TestSeveral:
    """Databases of one server: what is true of it is true for all, and the rest is each one's own."""

    def test_a_drain_of_one_that_finds_the_server_gone_spares_the_others_theirs(self, make, proxy):
        caches = [make(proxy.url), make(proxy.url.replace("/0", "/1"))]
        for cache in caches:
            cache.set("k", 1)
        proxy.refuse()
        for cache in caches:
            database_of(cache).journal.add([cache.make_key("k")], cache.namespace)
        database_of(caches[0]).endpoint.prober.run_once()
        assert [cache.is_degraded for cache in caches] == [True, True]
        proxy.heal()
        wait_until(lambda: all(is_well(cache) for cache in caches), 10)
        assert [cache.get("k") for cache in caches] == [None, None]

    def test_one_whose_password_has_changed_meanwhile_does_not_keep_the_server_away(self, own_redis, make):
        server = own_redis(unix_socket=False, config={"user": "app on >right ~* &* +@all"})
        with TcpProxy(server.url) as proxy:
            one = make(proxy.url)
            other = make(proxy.url.replace("redis://", "redis://app:right@"))
            one.set("k", 1), other.set("k", 2)
            proxy.refuse()
            one.get("k"), other.get("k")
            server.command("ACL", "SETUSER", "app", "resetpass", ">another")
            proxy.heal()
            wait_until(lambda: is_well(one), 10)
            assert database_of(other).access.closed is False
            assert one.get("k") == 2


class TestRefusedWrites:
    def test_a_server_without_memory_is_read_and_not_written_until_it_has_some(self, cache, server, call):
        call(cache.set, "old", 1)
        server.config_set("maxmemory", 1)
        assert call(cache.set, "k", 2) is None
        assert call(cache.get, "k") == 2
        assert call(cache.get, "old") == 1
        assert database_of(cache).endpoint.writes.state is not State.CLOSED
        server.config_set("maxmemory", 0)
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.set, "k", 3) is True

    def test_the_value_that_was_to_be_replaced_is_gone_at_once(self, cache, server, call):
        call(cache.set, "k", "old")
        server.config_set("maxmemory", 1)
        call(cache.set, "k", "new")
        wait_until(lambda: server.command("EXISTS", cache.make_key("k")) == 0, 10)
        assert call(cache.get, "k") == "new"
        server.config_set("maxmemory", 0)
        wait_until(lambda: is_well(cache), 10)

    def test_a_replica_where_a_primary_should_be_is_an_outage_until_it_is_one(self, cache, server, call):
        call(cache.set, "k", 1)
        server.command("REPLICAOF", "127.0.0.1", 1)
        call(cache.set, "k", 2)
        assert cache.is_degraded
        assert call(cache.get, "k") == 2
        assert not comes_true_within(0.1, lambda: not cache.is_degraded)
        server.command("REPLICAOF", "NO", "ONE")
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get, "k") is None

    def test_a_counter_that_met_a_full_server_counts_when_there_is_room(self, cache, server, call):
        call(cache.set, "n", 1)
        call(cache.incr, "n")
        server.config_set("maxmemory", 1)
        with pytest.raises(ValueError, match="not found"):
            call(cache.incr, "n", 5)
        server.config_set("maxmemory", 0)
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get, "n") == 7

    def test_one_that_comes_back_full_is_read_until_there_is_room(self, cache, proxy, server, call):
        call(cache.set, "n", 1)
        call(cache.incr, "n")
        cache._engine.connections.renew()
        proxy.refuse()
        with pytest.raises(ValueError, match="not found"):
            call(cache.incr, "n", 5)
        server.config_set("maxmemory", 1)
        proxy.heal()
        wait_until(lambda: database_of(cache).endpoint.reach.closed, 10)
        assert database_of(cache).endpoint.writes.closed is False
        server.config_set("maxmemory", 0)
        wait_until(lambda: is_well(cache), 10)
        assert call(cache.get, "n") == 7

    def test_a_drain_that_meets_one_without_room_stops_writing(self, cache, server):
        cache.set("n", 1)
        cache.incr("n")
        server.config_set("maxmemory", 1)
        database = database_of(cache)
        database.journal.add_delta(cache.make_key("n"), 5, cache.namespace)
        database.failover.distrust()
        wait_until(lambda: not database.endpoint.writes.closed, 10)
        server.config_set("maxmemory", 0)
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("n") == 7


class TestLateWrites:
    """Where old connections cannot be killed, what lies in them gets time, and the drain is repeated."""

    @pytest.fixture(params=["forbidden", "unknown", "without ids"])
    def stubborn(self, request, own_redis):
        config = {
            "forbidden": {"user": "default on nopass ~* &* +@all -client|kill"},
            "unknown": {"rename-command": 'CLIENT ""'},
            "without ids": {"rename-command": 'HELLO ""'},
        }
        return own_redis(unix_socket=False, config=config[request.param])

    @pytest.fixture
    def lossy(self, stubborn, make):
        """A cache whose set was executed and not answered, behind its proxy."""
        with TcpProxy(stubborn.url) as proxy:
            cache = make(proxy.url, COMMAND_TIMEOUT="150ms")
            cache.set("k", "old")
            yield cache, proxy

    def test_it_recovers_all_the_same(self, lossy):
        cache, proxy = lossy
        proxy.lose_replies(2, request=b"SET")
        cache.set("k", "new")
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("k") is None

    def test_a_request_that_heals_leaves_the_waiting_to_others(self, lossy, monkeypatch):
        cache, proxy = lossy
        monkeypatch.setattr(threading.Thread, "start", no_more_threads)
        proxy.lose_replies(2, request=b"SET")
        cache.set("k", "new")
        endpoint = database_of(cache).endpoint
        wait_until(endpoint.reach.probe_due, 10)
        began = time.monotonic()
        endpoint.prober.run_once(0.1)
        assert time.monotonic() - began < 0.1 * MARGIN
        assert not is_well(cache)
        wait_until(endpoint.reach.probe_due, 10)
        endpoint.prober.run_once()
        assert is_well(cache)


def no_more_threads(_thread):
    raise RuntimeError("can't start new thread")


def comes_true_within(seconds, predicate):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if predicate():
            return True
        time.sleep(0.005)
    return False


class TestAccess:
    @pytest.fixture
    def locked(self, own_redis):
        return own_redis(unix_socket=False, config={"requirepass": "right"})

    def test_a_password_that_is_put_right_opens_the_door_by_itself(self, locked, make, call):
        cache = make(locked.url.replace("redis://", "redis://:soon@"))
        call(cache.set, "k", 1)
        assert (cache.is_degraded, database_of(cache).endpoint.reach.closed) == (True, True)
        locked.command("ACL", "SETUSER", "default", ">soon")
        wait_until(lambda: not cache.is_degraded, 10)
        assert call(cache.set, "k", 2) is True

    def test_a_server_that_dies_meanwhile_is_an_outage_too(self, locked, make):
        cache = make(locked.url.replace("redis://", "redis://:wrong@"))
        cache.get("k")
        locked.kill()
        wait_until(lambda: not database_of(cache).endpoint.reach.closed, 10)

    def test_a_door_that_closes_while_something_waits_is_found_by_the_drain(self, locked, make):
        cache = make(locked.url.replace("redis://", "redis://:right@"))
        cache.set("k", 1)
        database = database_of(cache)
        locked.command("ACL", "SETUSER", "default", "resetpass", ">another")
        locked._password = "another"
        database.journal.add([cache.make_key("k")], cache.namespace)
        database.failover.distrust()
        wait_until(lambda: not database.access.closed, 10)
        assert database.endpoint.reach.closed
        locked.command("ACL", "SETUSER", "default", ">right")
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("k") is None


class TestAcl:
    """A user who may not do all that recovery does is served as well as can be."""

    @pytest.fixture
    def make_user(self, own_redis, make):
        """Make a cache of a user who may do everything but these commands."""

        def make_user(*denied):
            words = " ".join(f"-{command}" for command in denied)
            server = own_redis(unix_socket=False, config={"user": f"app on nopass ~* &* +@all {words}"})
            return server, make(server.url.replace("redis://", "redis://app:x@"), COMMAND_TIMEOUT="100ms")

        return make_user

    @pytest.mark.parametrize("denied", [("ping",), ("client",), ("client|kill",), ("info",), ("hello",)])
    def test_who_may_not_help_himself_recovers_all_the_same(self, make_user, denied):
        _, cache = make_user(*denied)
        cache.set("k", 1)
        database_of(cache).endpoint.hold_open()
        cache.delete("k")
        database_of(cache).endpoint.release_hold()
        wait_until(lambda: is_well(cache), 10)
        assert cache.get("k") is None

    @pytest.mark.parametrize("denied", ["unlink", "scan"])
    def test_who_may_not_remove_is_served_by_redis_but_for_what_waits(self, make_user, denied):
        _, cache = make_user(denied)
        cache.set_many({"k": 1, "other": 2})
        database_of(cache).endpoint.hold_open()
        cache.delete("k") if denied == "unlink" else cache.delete_pattern("k*")
        database_of(cache).endpoint.release_hold()
        wait_until(lambda: not cache.is_degraded, 10)
        assert cache.get("other") == 2
        assert cache.get("k") is None

    def test_and_whoever_gives_him_the_right_is_noticed(self, make_user):
        server, cache = make_user("unlink")
        cache.set("k", 1)
        cache.delete("k")
        assert cache.get("k") is None
        server.command("ACL", "SETUSER", "app", "+unlink")
        wait_until(lambda: is_well(cache), 10)
        assert server.command("EXISTS", cache.make_key("k")) == 0

    def test_meanwhile_the_server_is_not_asked_all_the_time(self, own_redis, make_cache):
        """An ACL does not change by itself, and each attempt is a new connection."""
        server = own_redis(unix_socket=False, config={"user": "app on nopass ~* &* +@all -unlink"})
        cache = make_cache(
            server.url.replace("redis://", "redis://app:x@"),
            BREAKER={"probe_base": "5ms", "probe_cap": "60s"},
        )
        cache.delete("k")
        wait_until(lambda: refused(server, "unlink") == 2, 10)  # the caller's, and the drain's
        assert not comes_true_within(0.3, lambda: refused(server, "unlink") > 2)

    def test_who_may_not_write_is_no_replica(self, make_user):
        """The probe of a server that was read-only: what ACL forbids is another matter."""
        _, cache = make_user("set")
        database = database_of(cache)
        database.endpoint.reach.trip("ReadOnlyError: You can't write against a read only replica.")
        wait_until(lambda: not cache.is_degraded, 10)

    def test_a_door_that_opens_on_a_user_who_may_not_remove_is_open(self, own_redis, make):
        server = own_redis(unix_socket=False, config={"user": "app on >right ~* &* +@all -unlink"})
        cache = make(server.url.replace("redis://", "redis://app:soon@"))
        cache.delete("k")
        assert not database_of(cache).access.closed
        server.command("ACL", "SETUSER", "app", ">soon")
        wait_until(lambda: not cache.is_degraded, 10)
        cache.set("other", 1)
        assert cache.get("other") == 1


def refused(server, command):
    """How often the server has refused it."""
    statistics = server.command("INFO", "commandstats").decode()
    found = re.search(rf"cmdstat_{command}:.*rejected_calls=(\d+)", statistics)
    return int(found[1]) if found else 0


class TestStatus:
    """What a process that is not well leaves for ``cache_health``."""

    def test_it_is_there_while_it_is_degraded_and_gone_after(self, cache, proxy):
        def left():
            return [
                each for each in state_dir.statuses() if each["name"] == database_of(cache).options.database
            ]

        cache.set("k", 1)
        state_dir = database_of(cache).state_dir
        assert left() == []
        proxy.refuse()
        cache.delete("k")
        wait_until(lambda: left() and left()[0]["pending"], 10)
        (status,) = left()
        assert (status["state"] in ("open", "half_open"), status["circuit"]) == (True, "reach")
        assert status["cause"]
        proxy.heal()
        wait_until(lambda: is_well(cache) and not left(), 10)

    def test_it_shows_no_password(self, own_redis, make):
        server = own_redis(unix_socket=False, config={"requirepass": "s3cr3t"})
        cache = make(server.url.replace("redis://", "redis://:s3cr3t@"))
        cache.get("k")
        assert "s3cr3t" not in repr(recovery.status_of(database_of(cache)))


def test_an_embedded_server_that_died_is_started_again(make_cache, short_path):
    cache = make_cache(f"embedded://{short_path}/embedded", BREAKER=QUICK, COMMAND_TIMEOUT="5s")
    assert cache.set("k", 1) is True
    from redis_infra.connection import embedded

    for server in embedded._embedded.values():
        if server.alive:
            server.kill()
    cache.get("k")
    wait_until(lambda: is_well(cache), 20)
    assert cache.set("k", 2) is True
