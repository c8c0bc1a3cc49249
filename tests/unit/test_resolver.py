"""``Resolver``: a name server that is slow or dead holds up nobody for longer than he is ready to wait."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from redis_infra.connection import resolver as resolver_module
from redis_infra.connection.resolver import FRESH_FOR, Resolver
from redis_infra.testing import FakeClock
from tests.forking import in_child

PATIENCE = 10


class NameServer:
    """What ``getaddrinfo`` asks here: it answers what it was told to, when it was told to."""

    def __init__(self):
        self.addresses = {"redis.example": "192.0.2.1"}
        self.questions = []
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Semaphore(0)

    def getaddrinfo(self, host, port, family=0, kind=0):
        self.questions.append(host)
        self.asked.release()
        assert self.open.wait(PATIENCE)
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, kind, 6, "", (self.addresses[host], port))]

    def wait_for_question(self):
        assert self.asked.acquire(timeout=PATIENCE)


@pytest.fixture
def names(monkeypatch):
    """In place of the system's name service, which a test cannot slow down."""
    server = NameServer()
    monkeypatch.setattr(resolver_module.socket, "getaddrinfo", server.getaddrinfo)
    return server


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def resolver(names, clock):
    resolver = Resolver(clock=clock)
    yield resolver
    names.open.set()
    until_idle(resolver)


def until_idle(resolver):
    """Wait until no look-up is under way."""
    deadline = time.monotonic() + PATIENCE
    for lookup in list(resolver._under_way.values()):
        assert lookup.done.wait(deadline - time.monotonic())


def hosts(addresses):
    return [address[0] for *_, address in addresses]


def resolve(resolver, *, wait=PATIENCE):
    return hosts(resolver.resolve("redis.example", 6379, wait=wait))


def test_a_name_becomes_addresses_that_a_socket_takes():
    for family, kind, proto, address in Resolver().resolve("localhost", 6379, wait=PATIENCE):
        socket.socket(family, kind, proto).close()
        assert address[1] == 6379


@pytest.mark.parametrize("literal", ["127.0.0.1", "::1"])
def test_an_address_is_not_asked_for(names, resolver, literal):
    names.addresses[literal] = literal
    before = threading.active_count()
    assert hosts(resolver.resolve(literal, 6379, wait=0)) == [literal]
    assert threading.active_count() == before


def test_what_is_known_is_not_asked_again(names, resolver, clock):
    assert [resolve(resolver) for _ in range(3)] == [["192.0.2.1"]] * 3
    clock.advance(FRESH_FOR - 1)
    resolve(resolver)
    assert names.questions == ["redis.example"]


def test_a_slow_answer_is_waited_for_no_longer_than_asked(names, resolver):
    names.open.clear()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no address for redis\.example within"):
        resolve(resolver, wait=0.05)
    assert time.monotonic() - began < PATIENCE / 2


def test_it_is_there_for_whoever_comes_later(names, resolver):
    names.open.clear()
    with pytest.raises(TimeoutError):
        resolve(resolver, wait=0.01)
    names.open.set()
    assert resolve(resolver) == ["192.0.2.1"]
    assert names.questions == ["redis.example"]


def test_all_who_wait_ask_one_question(names, resolver):
    names.open.clear()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(resolve(resolver))) for _ in range(8)]
    for thread in threads:
        thread.start()
    names.wait_for_question()
    names.open.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [["192.0.2.1"]] * 8
    assert names.questions == ["redis.example"]


def test_a_name_that_does_not_exist_is_an_error_at_once(names, resolver):
    del names.addresses["redis.example"]
    with pytest.raises(OSError, match="Name or service not known"):
        resolve(resolver)


def test_an_error_is_not_remembered(names, resolver):
    """The server's container may be starting this moment."""
    address = names.addresses.pop("redis.example")
    with pytest.raises(OSError, match="not known"):
        resolve(resolver)
    until_idle(resolver)
    names.addresses["redis.example"] = address
    assert resolve(resolver) == ["192.0.2.1"]


class TestStale:
    def test_what_is_old_is_used_while_it_is_asked_anew(self, names, resolver, clock):
        resolve(resolver)
        clock.advance(FRESH_FOR)
        names.addresses["redis.example"] = "192.0.2.2"
        names.open.clear()
        assert resolve(resolver, wait=0) == ["192.0.2.1"]
        names.open.set()
        until_idle(resolver)
        assert resolve(resolver, wait=0) == ["192.0.2.2"]

    def test_it_is_used_too_when_the_name_server_is_gone(self, names, resolver, clock):
        resolve(resolver)
        names.addresses.clear()
        for _ in range(3):
            clock.advance(FRESH_FOR)
            assert resolve(resolver, wait=0) == ["192.0.2.1"]
            until_idle(resolver)

    def test_what_did_not_work_is_asked_for_anew_and_used_meanwhile(self, names, resolver):
        resolve(resolver)
        names.addresses["redis.example"] = "192.0.2.2"
        names.open.clear()
        resolver.forget("redis.example", 6379)
        assert resolve(resolver, wait=0) == ["192.0.2.1"]
        names.open.set()
        until_idle(resolver)
        assert resolve(resolver, wait=0) == ["192.0.2.2"]

    def test_forgetting_what_is_not_known_asks_nobody(self, names, resolver):
        resolver.forget("redis.example", 6379)
        assert names.questions == []


def test_a_forked_child_knows_what_the_parent_knew_and_looks_up_the_rest_itself(names, resolver):
    names.addresses["other.example"] = "192.0.2.9"
    resolve(resolver)
    names.open.clear()
    with pytest.raises(TimeoutError):  # under way in a thread that the child does not have
        resolver.resolve("other.example", 6379, wait=0)

    def in_the_child():
        names.open.set()
        known = resolve(resolver, wait=0)
        return known + hosts(resolver.resolve("other.example", 6379, wait=PATIENCE))

    assert in_child(in_the_child) == ["192.0.2.1", "192.0.2.9"]


def test_where_no_thread_can_be_had_it_is_looked_up_here(names, resolver, monkeypatch):
    """Better late than never: without an address there is no connection at all."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert resolve(resolver, wait=0.01) == ["192.0.2.1"]
    assert resolver._under_way == {}
