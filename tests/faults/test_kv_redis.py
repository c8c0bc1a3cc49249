"""The key-value store on a server that goes away: what was executed is known, or said not to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from redis_infra.conf import AliasSettings, Settings
from redis_infra.exceptions import (
    StoreAuthError,
    StoreError,
    StoreIndeterminate,
    StoreReadOnly,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv.redis_store import RedisStore
from redis_infra.testing import TcpProxy
from tests.forking import in_child

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

BUDGET = 0.75
"""Seconds that an operation may wait: longer than a busy machine keeps a process from the processor. Three
times that is the margin of tests."""
PATIENT = {"COMMAND_TIMEOUT": f"{BUDGET}s", "CONNECT_TIMEOUT": f"{BUDGET}s"}


@pytest.fixture
def server(own_redis: Callable[[], RedisServer]) -> RedisServer:
    return own_redis()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(server.url) as proxy:
        yield proxy


def made(url: str, **site: Any) -> RedisStore:
    settings = Settings.load({"URL": url, "STATE_DIR": None, **PATIENT, **site}, environ={})
    return RedisStore("ri:kv:", AliasSettings.for_capability("KV", settings, environ={}))


@pytest.fixture
def store(proxy: TcpProxy) -> RedisStore:
    return made(proxy.url)


# --- lost replies ---------------------------------------------------------------------------------------


def test_an_increment_whose_reply_is_lost_is_not_sent_again(
    store: RedisStore, proxy: TcpProxy, server: RedisServer, call: Callable[..., Any]
) -> None:
    call(store.incr, "hits")
    proxy.lose_replies(request=b"INCRBY")
    with pytest.raises(StoreIndeterminate) as caught:
        call(store.incr, "hits")
    assert (caught.value.command, caught.value.key) == ("incr", "ri:kv:hits")
    assert server.command("GET", "ri:kv:hits") == b"2"


def test_an_increment_with_an_id_counts_once_and_says_so(
    store: RedisStore, proxy: TcpProxy, server: RedisServer, call: Callable[..., Any]
) -> None:
    call(store.incr, "hits")
    proxy.lose_replies(request=b"EVAL")
    assert call(store.incr, "hits", 5, op_id="order 7") == 6
    assert call(store.incr, "hits", 5, op_id="order 7") == 6
    assert call(store.incr, "hits", 5, op_id="order 8") == 11
    assert server.command("GET", "ri:kv:hits") == b"11"


def test_an_increment_with_an_id_may_be_repeated_by_the_caller_after_any_outage(
    store: RedisStore, proxy: TcpProxy, server: RedisServer
) -> None:
    store.incr("hits")
    proxy.lose_replies(5, request=b"EVAL")
    with pytest.raises(StoreIndeterminate):
        store.incr("hits", op_id="order 7")
    proxy.heal()
    assert _when_back(lambda: store.incr("hits", op_id="order 7")) == 2


def test_a_write_whose_reply_is_lost_is_indeterminate(
    store: RedisStore, proxy: TcpProxy, call: Callable[..., Any]
) -> None:
    call(store.set, "a", 1)
    proxy.lose_replies(request=b"SET")
    with pytest.raises(StoreIndeterminate):
        call(store.set, "a", 2)
    proxy.heal()
    assert _when_back(lambda: store.get("a")) == "2"


def test_a_read_whose_reply_is_lost_is_asked_again(
    store: RedisStore, proxy: TcpProxy, call: Callable[..., Any]
) -> None:
    call(store.set, "a", 1)
    proxy.lose_replies(request=b"GET")
    assert call(store.get, "a") == "1"
    proxy.lose_replies(2, request=b"GET")
    with pytest.raises(StoreUnavailable):
        call(store.get, "a")


def test_a_pipeline_whose_replies_are_lost_is_indeterminate_and_so_are_its_handles(
    store: RedisStore, proxy: TcpProxy
) -> None:
    store.set("a", 1)
    proxy.lose_replies(request=b"INCRBY")
    pipeline = store.pipeline()
    pipeline.get("a")
    hits = pipeline.incr("hits")
    with pytest.raises(StoreIndeterminate) as caught:
        pipeline.execute()
    assert caught.value.command == "pipeline"
    with pytest.raises(StoreIndeterminate):
        _ = hits.value


def test_a_pipeline_of_reads_is_unavailable(store: RedisStore, proxy: TcpProxy) -> None:
    store.set("a", 1)
    proxy.lose_replies(2, request=b"MGET")
    with pytest.raises(StoreUnavailable):
        store.batch([("mget", "a", "b")])


# --- nobody there ---------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_unavailable_at_once(
    store: RedisStore, server: RedisServer, call: Callable[..., Any]
) -> None:
    server.kill()
    for operation in (store.get, store.incr, store.ttl, store.delete):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call(operation, "a")
        assert time.monotonic() - began < 3 * BUDGET
    assert call(store.ping) is False
    assert call(store.health).status == "down"


def test_a_frozen_server_costs_the_budget_and_then_nothing(store: RedisStore, server: RedisServer) -> None:
    store.set("a", 1)
    server.freeze()
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreError):
            store.incr("hits")
    assert time.monotonic() - began < 3 * 2 * BUDGET
    server.thaw()


def test_what_a_frozen_server_was_sent_is_indeterminate(store: RedisStore, server: RedisServer) -> None:
    store.set("a", 1)
    server.freeze()
    with pytest.raises(StoreIndeterminate):
        store.incr("a")
    server.thaw()


def test_a_store_works_again_when_the_server_is_back(store: RedisStore, server: RedisServer) -> None:
    store.set("a", 1)
    server.kill()
    with pytest.raises(StoreError):
        store.set("a", 2)
    server.start()
    assert _when_back(lambda: store.set("b", 3)) is True


def _when_back(ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 15
    while True:
        try:
            return ask()
        except StoreUnavailable:
            assert time.monotonic() < deadline, "it did not come back"
            time.sleep(0.02)


# --- a server that refuses ------------------------------------------------------------------------------


def test_a_wrong_password_is_an_error_of_its_own(own_redis: Any, call: Callable[..., Any]) -> None:
    server = own_redis()
    server.command("CONFIG", "SET", "requirepass", "s3cret")
    store = made(server.url)
    for _ in range(2):  # the second time nobody is asked
        with pytest.raises(StoreAuthError) as caught:
            call(store.get, "a")
        assert "s3cret" not in str(caught.value)


def test_a_command_that_is_denied_is_an_error_of_its_own(
    server: RedisServer, call: Callable[..., Any]
) -> None:
    store = made(server.url)
    call(store.set, "a", 1)
    server.command("ACL", "SETUSER", "default", "-incrby")
    with pytest.raises(StoreAuthError):
        call(store.incr, "a")
    assert call(store.get, "a") == "1"
    server.command("ACL", "SETUSER", "default", "+incrby")


def test_a_replica_takes_no_writes(own_redis: Any) -> None:
    replica = own_redis()
    store = made(replica.url)
    store.set("a", 1)
    replica.command("REPLICAOF", "127.0.0.1", "1")
    for _ in range(2):  # the second time nobody is asked
        with pytest.raises(StoreReadOnly):
            store.set("a", 2)


def test_a_replica_is_read_whatever_it_refuses(own_redis: Any, call: Callable[..., Any]) -> None:
    replica = own_redis()
    store = made(replica.url)
    call(store.set, "a", 1)
    replica.command("REPLICAOF", "127.0.0.1", "1")
    for _ in range(5):
        with pytest.raises(StoreReadOnly):
            call(store.incr, "a")
        assert call(store.get, "a") == "1"
        mixed = call(store.batch, [("get", "a"), ("set", "a", 2)])
        assert [mixed[0], type(mixed[1])] == ["1", StoreReadOnly]
    assert call(store.ping)
    replica.command("REPLICAOF", "NO", "ONE")
    assert call(store.incr, "a") == 2


def test_a_full_server_takes_no_more_and_is_still_read(server: RedisServer) -> None:
    store = made(server.url)
    store.set("a", 1)
    server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreUnavailable) as caught:
        store.set("b", 2)
    assert "maxmemory" in caught.value.reason
    assert store.get("a") == "1"
    assert store.delete("a") == 1


def test_a_transaction_is_discarded_as_a_whole(server: RedisServer, call: Callable[..., Any]) -> None:
    store = made(server.url)
    call(store.set, "a", 1)
    server.command("CONFIG", "SET", "maxmemory", "1")
    transaction = store.transaction()
    transaction.delete("a")
    transaction.set("b", 2)
    with pytest.raises(TransactionDiscarded) as caught:
        call(transaction.execute)
    assert caught.value.index == 1
    assert server.command("EXISTS", "ri:kv:a") == 1
    server.command("CONFIG", "SET", "maxmemory", "0")


def test_a_denied_transaction_is_an_error_of_its_own(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "default", "-multi")
    store = made(server.url)
    transaction = store.transaction()
    transaction.set("a", 1)
    with pytest.raises(StoreAuthError):
        transaction.execute()
    server.command("ACL", "SETUSER", "default", "+multi")


# --- processes and loops --------------------------------------------------------------------------------


def test_a_forked_child_has_connections_of_its_own(store: RedisStore) -> None:
    store.set("a", 1)

    def child() -> Any:
        return [store.incr("a") for _ in range(50)][-1]

    assert in_child(child) == 51
    assert store.incr("a") == 52


def test_event_loops_and_threads_share_a_store(store: RedisStore) -> None:
    async def count() -> list[int]:
        return await asyncio.gather(*[store.aincr("n") for _ in range(20)])

    counts = [*asyncio.run(count()), store.incr("n"), *asyncio.run(count())]
    assert sorted(counts) == list(range(1, 42))


def test_no_exception_of_the_driver_leaks(store: RedisStore, proxy: TcpProxy) -> None:
    store.set("a", 1)
    for fault in (proxy.http, proxy.refuse, proxy.drop, lambda: proxy.half_reply(2), proxy.heal):
        fault()
        for ask in (
            lambda: store.get("a"),
            lambda: store.incr("n"),
            lambda: store.batch([("get", "a"), ("incr", "n")]),
            lambda: list(store.scan()),
        ):
            try:
                ask()
            except Exception as error:
                assert type(error).__module__ == "redis_infra.exceptions"  # noqa: PT017
