"""``redis_unavailable`` and ``redis_recovered``: once each an outage, with what the site wants to know."""

from __future__ import annotations

import logging

import pytest

from redis_infra.cache.signals import redis_recovered, redis_unavailable
from redis_infra.testing import TcpProxy, outage
from tests.faults.site import wait_until

QUICK = {"probe_base": "5ms", "probe_cap": "20ms"}


@pytest.fixture
def server(own_redis):
    return own_redis(unix_socket=False)


@pytest.fixture
def cache(server, make_cache):
    return make_cache(server.url, COMMAND_TIMEOUT="5s", BREAKER=QUICK)


@pytest.fixture
def heard():
    """What receivers have got: name of the signal, and the facts."""
    heard: list[tuple[str, dict]] = []

    def lost(signal, sender, **facts):
        heard.append(("lost", facts))

    def back(signal, sender, **facts):
        heard.append(("back", facts))

    redis_unavailable.connect(lost)
    redis_recovered.connect(back)
    yield heard
    redis_unavailable.disconnect(lost)
    redis_recovered.disconnect(back)


def names(heard):
    return [name for name, _ in heard]


def test_an_outage_is_one_of_each(server, cache, heard):
    cache.get("k")
    server.kill()
    for _ in range(10):
        cache.get("k")
    assert names(heard) == ["lost"]
    server.start()
    wait_until(lambda: len(heard) == 2, 10)
    assert names(heard) == ["lost", "back"]


def test_it_says_which_server_and_why(server, cache, heard):
    cache.get("k")
    server.kill()
    cache.get("k")
    facts = heard[0][1]
    assert (facts["server"], facts["circuit"]) == (f"redis://127.0.0.1:{server.port}", "reach")
    assert facts["cause"]


def test_its_end_says_what_it_was(server, make_cache, heard):
    with TcpProxy(server.url) as proxy:
        cache = make_cache(proxy.url, COMMAND_TIMEOUT="5s", BREAKER=QUICK)
        cache.set("k", 1)
        proxy.refuse()
        for _ in range(5):
            cache.get("k")
        cache.delete("k")
        proxy.heal()
        wait_until(lambda: len(heard) == 2, 10)
    facts = heard[1][1]
    assert set(facts) == {"server", "circuit", "cause", "lasted", "served_locally", "drained"}
    assert facts["lasted"] > 0
    assert (facts["served_locally"], facts["drained"]) == (6, 1)


def test_no_password_is_in_it(own_redis, make_cache, heard):
    server = own_redis(unix_socket=False, config={"requirepass": "s3cr3t"})
    cache = make_cache(server.url.replace("redis://", "redis://:s3cr3t@"))
    cache.get("k")
    server.kill()
    cache.get("k")
    assert names(heard) == ["lost"]
    assert "s3cr3t" not in repr(heard)


def test_a_wrong_password_is_told_as_the_circuit_of_access(own_redis, make_cache, heard):
    server = own_redis(unix_socket=False, config={"requirepass": "secret"})
    make_cache(server.url.replace("redis://", "redis://:wrong@")).get("k")
    assert [(name, facts["circuit"]) for name, facts in heard] == [("lost", "access")]


def test_a_receiver_that_raises_breaks_nothing_and_is_logged(cache, heard, caplog):
    def broken(**facts):
        raise LookupError("a bug of the site")

    redis_unavailable.connect(broken)
    try:
        with outage(cache):
            assert cache.get("k") is None
    finally:
        redis_unavailable.disconnect(broken)
    assert names(heard) == ["lost", "back"]
    assert [record.levelname for record in caplog.records if record.name == "django.dispatch"] == ["ERROR"]


def test_a_receiver_may_use_the_cache(cache, heard):
    answers = []

    def use(**facts):
        answers.append(cache.get_or_set("k", "from memory"))

    redis_unavailable.connect(use)
    try:
        with outage(cache):
            pass
    finally:
        redis_unavailable.disconnect(use)
    assert answers == ["from memory"]


def test_two_aliases_on_one_server_lose_it_once(server, make_cache, heard):
    one, other = (make_cache(server.url, KEY_PREFIX=prefix, BREAKER=QUICK) for prefix in "ab")
    one.get("k"), other.get("k")
    server.kill()
    one.get("k"), other.get("k")
    assert names(heard) == ["lost"]


def test_a_single_timeout_is_nothing_to_tell(server, make_cache, heard, caplog):
    cache = make_cache(server.url, COMMAND_TIMEOUT="50ms")
    caplog.set_level(logging.INFO)
    cache.set("k", 1)
    server.freeze()
    cache.get("k")
    server.thaw()
    assert heard == []
