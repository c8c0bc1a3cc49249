"""How often a cache operation goes to the server: once; and how often the first time, and for many keys."""

from __future__ import annotations

import pytest

from redis_infra.testing import TcpProxy, outage

MANY = {f"k{number}": number for number in range(1000)}

ONCE = {
    "get": ("get", "k"),
    "get, a miss": ("get", "missing"),
    "has_key": ("has_key", "k"),
    "set": ("set", "k", {"a": 1}, 60),
    "set for ever": ("set", "k", "v", None),
    "set nothing for no time": ("set", "k", "v", 0),
    "add": ("add", "k", 1),
    "add for no time": ("add", "k", 1, 0),
    "touch": ("touch", "n", 60),
    "touch for ever": ("touch", "n", None),
    "delete": ("delete", "k"),
    "incr": ("incr", "n"),
    "decr": ("decr", "n", 5),
    "incr_or_create": ("incr_or_create", "n"),
    "incr_or_create, new": ("incr_or_create", "new", 5, 60),
    "incr_version": ("incr_version", "n"),
    "get_or_set, a hit": ("get_or_set", "n", 1),
    "get_many": ("get_many", list(MANY)),
    "set_many": ("set_many", MANY),
    "set_many for no time": ("set_many", MANY, 0),
    "delete_many": ("delete_many", list(MANY)),
}

TWICE = {
    "get_many, more than a thousand": ("get_many", [*MANY, "one_more"]),
    "set_many, more than a thousand": ("set_many", {**MANY, "one_more": 1}),
    "delete_many, more than a thousand": ("delete_many", [*MANY, "one_more"]),
    "incr of what is no integer": ("incr", "f", 0.5),
    "delete_pattern": ("delete_pattern", "few*"),
    "clear": ("clear",),
}

NEVER = {
    "get_many of nothing": ("get_many", []),
    "set_many of nothing": ("set_many", {}),
    "delete_many of nothing": ("delete_many", []),
}


@pytest.fixture
def proxy(own_redis):
    with TcpProxy(own_redis().url) as proxy:
        yield proxy


@pytest.fixture
def cache(proxy, make_cache):
    return make_cache(proxy.url, COMMAND_TIMEOUT="10s", CONNECT_TIMEOUT="10s")


@pytest.fixture
def round_trips(proxy, cache, call):
    """How many an operation takes on a connection that is open, of a server that has met our scripts."""

    def count(operation):
        method, *args = operation
        call(cache.set_many, {"n": 1, "k": 1, "f": 1.5, "few": 1})
        for name in ("incr", "incr_or_create", "incr_version"):
            call(getattr(cache, name), "n")
        call(cache.touch, "n", None, 2)
        call(cache.incr, "f", 0.5)
        call(cache.decr_version, "n", version=2)
        call(cache.get_or_set, "filled", lambda: 1)
        before = proxy.round_trips
        call(getattr(cache, method), *args)
        assert not cache.is_degraded
        return proxy.round_trips - before

    return count


@pytest.mark.parametrize("operation", ONCE.values(), ids=ONCE)
def test_one_round_trip(round_trips, operation):
    assert round_trips(operation) == 1


@pytest.mark.parametrize("operation", TWICE.values(), ids=TWICE)
def test_two_round_trips(round_trips, operation):
    """A value that is not there has to be stored; more than a thousand keys go in batches."""
    assert round_trips(operation) == 2


def test_what_is_computed_for_all_processes_takes_three(round_trips):
    """A look, the lease, and storing it, which ends the lease."""
    assert round_trips(("get_or_set", "missing", lambda: 5)) == 3


@pytest.mark.parametrize("operation", NEVER.values(), ids=NEVER)
def test_nothing_is_not_asked_for(round_trips, operation):
    assert round_trips(operation) == 0


def test_the_first_operation_greets_the_server_before(proxy, cache, call):
    call(cache.get, "k")
    assert proxy.round_trips == 2


def test_a_script_that_the_server_has_not_met_costs_one_more_once(proxy, cache, call):
    call(cache.set, "n", 1)
    for round_trips in (2, 1):
        before = proxy.round_trips
        call(cache.incr, "n")
        assert proxy.round_trips - before == round_trips
    assert call(cache.get, "n") == 3


def test_a_server_that_has_forgotten_its_scripts_is_told_them_again(proxy, cache, call):
    """``SCRIPT FLUSH``, a restart, a failover."""
    call(cache.set, "n", 1)
    call(cache.incr, "n")
    cache.client.get_client().script_flush()
    assert call(cache.incr, "n") == 3
    assert not cache.is_degraded


def test_values_of_a_whole_page_travel_in_one_write(proxy, cache, call):
    call(cache.set_many, MANY)
    before = proxy.round_trips
    assert call(cache.get_many, list(MANY)) == MANY
    assert proxy.round_trips - before == 1


def test_more_than_a_batch_of_values_arrives_whole(cache, call):
    values = {f"k{number}": str(number) for number in range(2500)}
    assert call(cache.set_many, values) == []
    assert call(cache.get_many, list(values)) == values
    assert call(cache.delete_many, list(values)) == 2500


def test_a_scan_looks_at_a_thousand_keys_at_a_time(proxy, cache, call):
    call(cache.set_many, {f"k{number}": 1 for number in range(5000)})
    before = proxy.round_trips
    assert call(cache.delete_pattern, "k*") == 5000
    assert proxy.round_trips - before <= 2 * 5 + 5


def test_a_counter_that_another_changes_meanwhile_is_counted_all_the_same(cache, call):
    """What is no integer is read, added to, and stored if nobody was faster."""
    cache.set("f", 0.5)
    engine, faster = cache._engine, [1.5, 2.5]
    fetch, afetch = engine.fetch, engine.afetch

    def interfere(raw):
        if faster:
            cache.set("f", faster.pop(0))
        return raw

    async def afetch_and_interfere(name):
        return interfere(await afetch(name))

    engine.fetch = lambda name: interfere(fetch(name))
    engine.afetch = afetch_and_interfere
    try:
        assert call(cache.incr, "f", 1) == 3.5
    finally:
        del engine.fetch, engine.afetch
    assert cache.get("f") == 3.5


def test_one_that_redis_lost_between_the_read_and_the_write_goes_on_in_memory(proxy, cache, call):
    call(cache.set, "f", 1.5)
    call(cache.incr, "f", 0.5)
    proxy.half_reply(0, request=b"EVALSHA")
    assert call(cache.incr, "f", 0.5) == 2.5
    assert call(cache.get, "f") == 2.5
    assert cache.status()["pending"] == 1, "Redis may have added it as well, or not"


@pytest.mark.parametrize("operation", {**ONCE, **TWICE}.values(), ids={**ONCE, **TWICE})
def test_while_the_circuit_is_open_there_is_none(proxy, cache, call, operation):
    method, *args = operation
    call(cache.set, "n", 1)
    with outage(cache):
        before = proxy.round_trips
        try:
            call(getattr(cache, method), *args)
        except ValueError:
            assert method in ("incr", "decr", "incr_version")  # memory has no such key
        assert proxy.round_trips == before
