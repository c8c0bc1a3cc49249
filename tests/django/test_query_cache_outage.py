"""The query cache in an outage: it answers, forgets what it is told to, and spares the database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.cache import caches

from redis_infra.cache.lease import Leases
from redis_infra.connection.failures import RedisUnavailable
from redis_infra.querycache import cached, cached_many, invalidate, loading
from redis_infra.querycache import many as many_module
from redis_infra.querycache.gate import Gate
from redis_infra.testing import outage
from tests.forking import in_child


@pytest.fixture(params=["local", "miss", "raise"])
def on_outage(request, redis_server, settings, tmp_path):
    use(settings, redis_server, tmp_path, request.param)
    return request.param


@pytest.fixture
def site(redis_server, settings, tmp_path):
    use(settings, redis_server, tmp_path, "local")


def use(settings, server, tmp_path, on_outage):
    options = {"STATE_DIR": str(tmp_path), "COMMAND_TIMEOUT": "5s", "ON_OUTAGE": on_outage}
    backend = {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": server.url, "OPTIONS": options}
    settings.CACHES = {"default": backend}


def test_a_cached_function_answers_whatever_the_alias_does_in_an_outage(on_outage):
    load = cached("doc:{number}", ttl=30, tags=["docs"])(lambda number: [number])
    many = cached_many("row:{row}", ttl=30)(lambda rows: {row: row for row in rows})
    assert load(1) == [1]
    with outage():
        assert (load(1), load(1), load(2)) == ([1], [1], [2])
        assert many([1, 2]) == {1: 1, 2: 2}
        invalidate("doc:1", tag="docs")
        assert load(1) == [1]
    assert load(1) == [1]
    if on_outage == "raise":
        with outage(), pytest.raises(RedisUnavailable):
            caches["default"].get("other")


def test_what_is_invalidated_in_an_outage_is_not_served_then_nor_afterwards(site):
    row = ["before"]
    by_pattern = cached("a:{number}:x", ttl=30)(lambda number: row[0])
    by_key = cached("b:{number}", ttl=30)(lambda number: row[0])
    by_tag = cached("c:{number}", ttl=30, tags=["tag:{number}"])(lambda number: row[0])
    untouched = cached("d:{number}", ttl=30)(lambda number: row[0])
    functions = [by_pattern, by_key, by_tag]
    assert [each(1) for each in (*functions, untouched)] == ["before"] * 4
    with outage():
        row[0] = "during"
        invalidate("a:1:*", "b:1", tag="tag:1")
        assert [each(1) for each in functions] == ["during"] * 3
        row[0] = "late"
        invalidate("a:1:*", "b:1", tag="tag:1")
        assert [each(1) for each in functions] == ["late"] * 3
        row[0] = "after"
    assert [each(1) for each in functions] == ["after"] * 3
    assert untouched(1) == "before"


def test_what_was_computed_before_an_outage_ended_is_not_kept_by_another_side(site):
    """A lease of memory is none in Redis, and the other way round."""
    began, may_end = threading.Event(), threading.Event()

    @cached("slow:{number}", ttl=30)
    def load(number):
        began.set()
        assert may_end.wait(30)
        return number

    with ThreadPoolExecutor(1) as pool:
        with outage():
            running = pool.submit(load, 1)
            assert began.wait(30)
        may_end.set()
        assert running.result() == 1
    assert load.get(1) is None


def test_a_cold_process_runs_so_many_loaders_at_once(site, settings, monkeypatch):
    settings.REDIS_INFRA = {"LOADERS": 3}
    own = Gate()
    monkeypatch.setattr(loading, "gate", own)
    monkeypatch.setattr(many_module, "gate", own)
    inside, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(3)

    def count(number):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        full.wait(30)  # three come in together, or nobody goes on
        with lock:
            inside -= 1
        return number

    one = cached("cold:{number}", ttl=30)(count)
    several = cached_many("colder:{row}", ttl=30)(lambda rows: {rows[0]: count(rows[0])})
    with outage(), ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(6))) + list(pool.map(lambda row: several([row])[row], range(6)))
    assert found == [*range(6), *range(6)]
    assert most == 3


def test_a_loader_inside_of_another_needs_no_place_of_its_own(site, settings, monkeypatch):
    settings.REDIS_INFRA = {"LOADERS": 1}
    monkeypatch.setattr(loading, "gate", Gate())
    inner = cached("inner:{number}", ttl=30)(lambda number: number)
    outer = cached("outer:{number}", ttl=30)(lambda number: inner(number) + 1)
    waited = []
    monkeypatch.setattr(Gate, "waits", lambda self, engine: waited.append(engine) or iter(()))
    with outage():
        assert outer(1) == 2
    assert len(waited) == 1


def test_a_lease_that_cannot_be_prolonged_is_given_up():
    leases, asked = Leases(), threading.Event()

    def renew():
        asked.set()
        raise RedisUnavailable("EVALSHA")

    leases.hold(b"token", renew)
    assert asked.wait(30)
    ends = threading.Event()
    for _ in range(3000):
        if not leases._held:
            break
        ends.wait(0.01)
    assert not leases._held


def test_what_is_left_is_released_by_the_thread():
    leases, released = Leases(), threading.Event()
    leases.hold(b"token", lambda: 1)
    leases.leave(b"token", released.set)
    assert released.wait(30)
    assert not leases._held


def test_a_lease_may_be_left_in_the_middle_of_taking_another(monkeypatch):
    """The garbage collector closes the computation of a cancelled task wherever it comes to it."""
    leases, released = Leases(), threading.Event()
    see_to_thread = leases._see_to_thread

    def interrupted():
        monkeypatch.setattr(leases, "_see_to_thread", see_to_thread)
        leases.leave(b"another", released.set)
        see_to_thread()

    monkeypatch.setattr(leases, "_see_to_thread", interrupted)
    holding = threading.Thread(target=leases.hold, args=(b"token", lambda: 1), daemon=True)
    holding.start()
    holding.join(30)
    assert not holding.is_alive()
    assert released.wait(30)


def test_a_forked_child_begins_with_nobody_inside():
    own = Gate()
    with own.entered():
        assert own.inside == 1
        assert in_child(lambda: entered_in_child(own)) == 1


def entered_in_child(own):
    with own.entered():
        return own.inside
