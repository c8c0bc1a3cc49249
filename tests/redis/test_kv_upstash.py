"""The store behind a REST API: through every fault of the way, and beside three other clients."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import upstash_redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from upstash_redis.errors import UpstashError

from redis_infra.conf import AliasSettings, readers
from redis_infra.connection.embedded import free_port
from redis_infra.exceptions import (
    CounterOverflow,
    MissingExtra,
    SettingsError,
    StoreAuthError,
    StoreError,
    StoreIndeterminate,
    StoreQuotaExceeded,
    StoreReadOnly,
    StoreRejected,
    StoreTypeError,
    StoreUnavailable,
    TransactionDiscarded,
)
from redis_infra.kv import rest, upstash_store
from redis_infra.kv.commands import Command
from redis_infra.kv.redis_store import RedisStore
from redis_infra.kv.upstash_store import UpstashStore
from redis_infra.testing import FakeClock, UpstashServer
from tests.forking import in_child
from tests.redis.conftest import CERTIFICATE, TlsFront

HOME, TOKEN, READER = "ri:kv:", "s3cret-t0ken", "r3ad-t0ken"
UNHURRIED = {"connect_timeout": 20.0, "command_timeout": 20.0}
BINARY = b"\xff\x00\xfe\r\n\"'\\"


@pytest.fixture
def server(redis_server):
    with UpstashServer(redis_server, token=TOKEN, read_only_token=READER) as server:
        yield server


@pytest.fixture
def open_store(server):
    """Make stores before the server, or another URL; they are closed after the test."""
    stores = []

    def open_store(url=None, token=TOKEN, **options):
        stores.append(UpstashStore(HOME, url or server.url, token, **{**UNHURRIED, **options}))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()


@pytest.fixture
def dead_url():
    """Where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- what people call -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["v", "", "OK", "値😀", '\0\n"\\', b"", b"\xff", BINARY, bytes(range(256)) * 9, 7, 1.5]
)
@pytest.mark.parametrize("key", ["k", "", "a/b?c=d#e%20", "ключ", "\0\r\n", ".."])
def test_any_value_under_any_key_is_what_it_was(store, call, key, value, redis_server):
    assert call(store.set, key, value)
    stored = value if isinstance(value, bytes) else str(value).encode()
    assert redis_server.command("GET", HOME + key) == stored
    assert call(store.get_bytes, key) == stored


@given(values=st.lists(st.one_of(st.binary(max_size=50), st.text(max_size=20)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_binary_survives_in_every_form_of_a_request(store, values):
    stored = [value.encode() if isinstance(value, str) else value for value in values]
    names = [f"k{n}" for n in range(len(values))]
    store.mset(dict(zip(names, values, strict=True)))
    assert [store.get_bytes(name) for name in names] == stored
    for form in (store.pipeline, store.transaction):
        with form() as several:
            for name, value in zip(names, reversed(values), strict=True):
                several.set(name, value, px=60_000)
            read = [several.get_bytes(name) for name in names]
        assert [handle.value for handle in read] == stored[::-1]


@pytest.mark.parametrize("size", range(1, 20))
def test_binary_of_any_length_modulo_base64(store, size):
    store.set("k", b"\xff" * size)
    assert store.get_bytes("k") == b"\xff" * size


def test_the_options_of_set_hold_for_binary_too(store):
    assert store.set("k", b"\xff", xx=True) is False
    assert store.set("k", b"\xff", ex=100, nx=True) is True
    assert store.set("k", b"\xfe", nx=True) is False
    assert store.set("k", b"\xfd", keepttl=True) is True
    assert (store.get_bytes("k"), store.ttl("k")) == (b"\xfd", 100)


def test_a_binary_value_of_a_megabyte(store):
    value = os.urandom(2**20)
    store.set("k", value)
    assert store.get_bytes("k") == value


def test_mset_of_more_values_than_lua_unpacks_is_one_command(store, server):
    values = {f"k{n}": b"\xff%d" % n for n in range(10_000)}
    store.mset(values)
    assert len(server.seen) == 1
    with store.pipeline() as pipeline:
        read = [pipeline.get_bytes(key) for key in values]
    assert [handle.value for handle in read] == list(values.values())


def test_a_binary_write_that_redis_refuses_is_refused_in_its_words(own_redis):
    full = own_redis(config={"maxmemory": "1", "maxmemory-policy": "noeviction"})
    with UpstashServer(full) as server, UpstashStore(HOME, server.url, server.token, **UNHURRIED) as store:
        for value in ("text", b"\xff"):
            with pytest.raises(StoreUnavailable, match="OOM"):
                store.set("k", value)


def test_counting(store, call):
    assert [call(store.incr, "n"), call(store.incr, "n", 9), call(store.incr, "n", -20)] == [1, 10, -10]
    call(store.set, "n", str(2**63 - 2))
    assert call(store.incr, "n") == 2**63 - 1
    with pytest.raises(CounterOverflow):
        call(store.incr, "n")
    call(store.set, "n", "x")
    with pytest.raises(StoreTypeError):
        call(store.incr, "n")


def test_a_scan_finds_every_key_once(store, server, redis_server):
    store.mset({f"k{n}": n for n in range(3000)} | {"k*": 0, "other": 0})
    redis_server.command("SET", "elsewhere", "1")
    assert sorted(store.scan("k")) == sorted(["k*", *(f"k{n}" for n in range(3000))])
    assert list(store.scan("k*")) == ["k*"]


def test_a_command_of_a_sites_own_passes(store, redis_server):
    class Append(Command):
        name, writes, keys, words = "append", True, (HOME + "k",), ("APPEND", HOME + "k", b"\xff")

        def read(self, reply):
            return reply

    assert [store.call(Append()), store.call(Append())] == [1, 2]
    assert redis_server.command("GET", HOME + "k") == b"\xff\xff"


def test_a_failing_command_leaves_the_others_of_its_pipeline(store, call):
    answers = call(store.batch, [("set", "k", "x"), ("incr", "k"), ("get", "k")])
    assert (answers[0], answers[2]) == (True, "x")
    assert isinstance(answers[1], StoreTypeError)
    assert answers[1].index == 1


def test_a_transaction_is_one_request(store, server):
    with store.transaction() as transaction:
        transaction.set("k", "1")
        count = transaction.incr("k")
    assert count.value == 2
    assert [seen.path for seen in server.seen] == ["/multi-exec"]


def test_a_transaction_that_is_discarded_executes_nothing(store, server, redis_server):
    class Wrong(Command):
        name, keys, words = "wrong", (), ("GET",)

        def read(self, reply):
            return reply

    transaction = store.transaction()
    transaction.set("k", "1")
    transaction.add(Wrong())
    with pytest.raises(TransactionDiscarded, match="EXECABORT"):
        transaction.execute()
    assert redis_server.command("DBSIZE") == 0


def test_an_api_may_have_a_path(redis_server, dead_url):
    assert UpstashStore(HOME, f"{dead_url}/base/", TOKEN).where == dead_url


# --- tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f" {TOKEN}\r\n", f"{TOKEN}\t"])
def test_space_around_a_token_is_no_part_of_it(open_store, token, call):
    assert call(open_store(token=token).ping)


def test_a_wrong_token_is_an_auth_error_and_no_outage(open_store, call):
    store = open_store(token="wrong")
    for _ in range(5):
        with pytest.raises(StoreAuthError, match="check the token"):
            call(store.get, "k")
    assert store.breaker.closed


def test_a_read_only_token_reads_and_is_told_what_it_may_not(open_store, call, redis_server):
    redis_server.command("SET", HOME + "k", "v")
    store = open_store(token=READER)
    assert call(store.get, "k") == "v"
    for refused in (store.incr, store.delete):
        with pytest.raises(StoreReadOnly, match="NOPERM"):
            call(refused, "k")
    with pytest.raises(StoreAuthError, match="NOPERM"):
        list(store.scan())
    assert [type(each) for each in call(store.batch, [("get", "k"), ("incr", "k")])] == [str, StoreReadOnly]


def test_what_was_written_is_read_by_way_of_the_sync_token(store, server, call):
    for _ in range(3):
        call(store.set, "k", "v")
    tokens = [seen.headers.get("Upstash-Sync-Token") for seen in server.seen]
    assert tokens == [None, "1", "2"]


def test_two_stores_have_two_sync_tokens(open_store, server):
    open_store().ping()
    open_store().ping()
    assert [seen.headers.get("Upstash-Sync-Token") for seen in server.seen] == [None, None]


def faults(server):
    """Let requests fail in every way, one after the other; yield whether the server is there."""
    for befall in (
        lambda: server.lose_replies(9),
        lambda: server.close_before_reading(9),
        lambda: server.gateway(502, 9),
        lambda: server.limit_rate(9),
        lambda: server.answer_error(f"ERR {TOKEN} is no good", 9, status=500),
        lambda: server.answer(401, b"", 9),
        lambda: server.answer_error(f"ERR {TOKEN} is no token", 9),
        lambda: server.answer(302, b"", 9, headers={"Location": "https://example.com"}),
        lambda: server.answer(200, b"<html>", 9),
        lambda: server.stall(9),
        lambda: server.truncate(3, 9),
    ):
        befall()
        yield "up"
        server.heal()
    server.stop()
    yield "down"


def shown(error):
    """Return all that a report of an error may show: variables, causes, and what came before."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(report.format()) + repr(error) + str(error) + repr(error.args)


def test_no_failure_shows_the_token(open_store, server, call, caplog):
    for name in ("", "httpx", "httpcore", "redis_infra"):
        caplog.set_level(logging.DEBUG, logger=name)
    store = open_store(command_timeout=0.2)
    for state in faults(server):
        for method, argument in ((store.incr, "k"), (store.get, "k"), (store.batch, [("incr", "k")])):
            with pytest.raises(StoreError) as caught:
                call(method, argument)
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)
            assert TOKEN not in shown(caught.value)
            assert TOKEN not in repr(store.health())
            pickle.loads(pickle.dumps(caught.value))
        if state == "up":
            store.breaker.close()
    assert caplog.records
    assert TOKEN not in caplog.text
    assert not any(TOKEN in repr(vars(record)) for record in caplog.records)


def test_a_store_shows_no_token_and_is_not_pickled(store):
    assert TOKEN not in repr(store) + str(vars(store)) + repr(store.health()) + store.where
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            copying(store)


def test_a_token_goes_to_the_api_alone(store, server, monkeypatch, dead_url):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead_url)
    assert store.ping()


def test_a_redirect_is_not_followed(open_store, server, call):
    server.answer(307, b"", headers={"Location": server.url})
    with pytest.raises(StoreRejected, match=r"HTTP 307.*set the URL"):
        call(open_store().incr, "n")
    assert len(server.seen) == 1


# --- what is wrong from the beginning -------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://example.com", "http://10.0.0.1", "ftp://localhost", "", "localhost", "https://"]
)
def test_a_url_that_is_not_https_is_refused(url):
    with pytest.raises(SettingsError, match="url"):
        UpstashStore(HOME, url, TOKEN)


@pytest.mark.parametrize(
    "url", ["http://localhost:8079", "http://127.0.0.1:8079", "http://[::1]:8079", "https://x.upstash.io"]
)
def test_https_and_this_machine_are_taken(url):
    assert UpstashStore(HOME, url, TOKEN).where == url


@pytest.mark.parametrize("token", ["", " \n", "two words", "line\nend", "tökén", "\0"])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(SettingsError, match="token"):
        UpstashStore(HOME, "https://x.upstash.io", token)


@pytest.mark.parametrize("url", [f"https://:{TOKEN}@x.upstash.io", f"http://:{TOKEN}@example.com"])
def test_a_token_in_the_url_is_refused_and_not_shown(url):
    with pytest.raises(SettingsError) as caught:
        UpstashStore(HOME, url, "another")
    assert TOKEN not in str(caught.value)


def test_a_refusal_of_the_url_does_not_show_the_token():
    with pytest.raises(SettingsError) as caught:
        UpstashStore(HOME, "http://example.com", TOKEN)
    ours = caught.value.with_traceback(caught.tb.tb_next)  # pytest keeps the token as a variable of this test
    assert TOKEN not in shown(ours)


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("https://x.upstash.io", f"{TOKEN} and more"),
        ("https://x.upstash.io", f'"{TOKEN}\0"'),
        ("https://x.upstash.io", TOKEN.encode()),
        (f"https://:{TOKEN}@x.upstash.io", "another"),
        (f"http://:{TOKEN}@example.com", "another"),
        (f"https://:{TOKEN}@", "another"),
        (f"https://:{TOKEN}@two words", "another"),
    ],
)
def test_no_variable_of_a_refusal_shows_the_token(url, token):
    with pytest.raises(SettingsError) as caught:
        UpstashStore(HOME, url, token)
    assert caught.value.__context__ is None
    assert TOKEN not in shown(caught.value.with_traceback(caught.tb.tb_next))


@pytest.mark.parametrize("url", [f"https://:{TOKEN}@", f"http://:{TOKEN}@example.com"])
def test_no_variable_of_the_reader_of_urls_shows_a_token(url):
    with pytest.raises(SettingsError) as caught:
        readers.rest_url(url, "a setting")
    assert TOKEN not in shown(caught.value.with_traceback(caught.tb.tb_next))


def test_without_httpx_there_is_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r'pip install "redis-infra\[upstash\]"'):
        UpstashStore(HOME, "https://x.upstash.io", TOKEN)


def test_httpx_is_imported_by_the_first_command_and_not_before():
    code = (
        "import sys; from redis_infra.kv.upstash_store import UpstashStore\n"
        f"store = UpstashStore({HOME!r}, 'http://127.0.0.1:1', 't'); print('httpx' in sys.modules)\n"
        "print(store.ping(), 'httpx' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["False", "False", "True"]


# --- failures -------------------------------------------------------------------------------------------

MAYBE = {
    "lost": lambda server, count: server.lose_replies(count),
    "closed": lambda server, count: server.close_before_reading(count),
    "gateway": lambda server, count: server.gateway(502, count),
    "executed behind a gateway": lambda server, count: server.gateway(504, count, executed=True),
    "truncated": lambda server, count: server.truncate(3, count),
    "no JSON": lambda server, count: server.answer(200, b"<html>", count),
    "something else": lambda server, count: server.answer(200, b'{"result": {"a": 1}}', count),
}


@pytest.mark.parametrize("fault", MAYBE)
def test_a_write_without_an_answer_is_sent_once_and_indeterminate(store, server, call, fault):
    MAYBE[fault](server, 1)
    with pytest.raises(StoreIndeterminate) as caught:
        call(store.incr, "n")
    assert (caught.value.command, caught.value.key) == ("incr", HOME + "n")
    assert call(store.incr, "n") in (1, 2)


@pytest.mark.parametrize("fault", MAYBE)
@pytest.mark.parametrize("calls", [[("incr", "n")], [("get", "n"), ("set", "n", "1")]])
def test_a_pipeline_with_a_write_is_sent_once(store, server, call, fault, calls, redis_server):
    MAYBE[fault](server, 2)
    with pytest.raises(StoreIndeterminate, match="pipeline"):
        call(store.batch, calls)
    assert redis_server.command("GET", HOME + "n") in (None, b"1")


@pytest.mark.parametrize("fault", MAYBE)
def test_a_read_is_asked_for_once_more(store, server, call, fault, redis_server):
    redis_server.command("SET", HOME + "k", "v")
    MAYBE[fault](server, 1)
    assert call(store.get, "k") == "v"


@pytest.mark.parametrize("fault", MAYBE)
def test_a_read_that_fails_twice_is_unavailable(store, server, call, fault):
    MAYBE[fault](server, 2)
    with pytest.raises(StoreUnavailable):
        call(store.get, "k")


def test_a_write_that_times_out_is_sent_once_and_indeterminate(open_store, server, call):
    store = open_store(command_timeout=0.2)
    store.ping()
    server.stall(executed=True)
    began = time.monotonic()
    with pytest.raises(StoreIndeterminate, match=r"no answer within 0\.2 s"):
        call(store.incr, "n")
    assert time.monotonic() - began < 2
    assert len(server.seen) == 2


def test_a_read_that_times_out_is_not_waited_for_again(open_store, server, call):
    store = open_store(command_timeout=0.2)
    server.stall()
    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.2 s"):
        call(store.get, "k")
    assert len(server.seen) == 1


def test_nobody_there_means_that_nothing_was_executed(open_store, dead_url, call):
    with pytest.raises(StoreUnavailable):
        call(open_store(dead_url).incr, "n")


def test_a_server_without_the_right_certificate_is_never_asked(open_store, server, call):
    with TlsFront(server.url) as front, pytest.raises(StoreUnavailable, match="certificate"):
        call(open_store(f"https://127.0.0.1:{front._port}").incr, "n")
    assert server.seen == []


def test_https_with_a_trusted_certificate(open_store, server, call, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with TlsFront(server.url) as front:
        store = open_store(f"https://127.0.0.1:{front._port}")
        assert call(store.set, "k", BINARY)
        assert call(store.get_bytes, "k") == BINARY
        call(store.close)


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, None), (7, 7.0)])
def test_too_many_requests_say_when_to_come_again_and_are_no_outage(
    open_store, server, call, retry_after, seconds
):
    store = open_store()
    server.limit_rate(5, retry_after=retry_after)
    for _ in range(5):
        with pytest.raises(StoreQuotaExceeded) as caught:
            call(store.incr, "n")
        assert caught.value.retry_after == seconds
    assert call(store.incr, "n") == 1


@pytest.mark.parametrize(
    "text", ["ERR max daily request limit exceeded. Limit: 10", "ERR max requests limit exceeded"]
)
def test_a_used_up_quota_is_told(store, server, call, text):
    server.answer_error(text)
    with pytest.raises(StoreQuotaExceeded, match="limit exceeded"):
        call(store.incr, "n")


def test_what_is_no_api_is_told(open_store, server, call):
    server.answer(404, b"<html>Not Found</html>")
    with pytest.raises(StoreRejected, match="check the URL"):
        call(open_store().get, "k")


def test_an_answer_beyond_all_bounds_is_not_read(open_store, server, call):
    store = open_store(max_reply=10_000)
    store.set("k", "x" * 10_000)
    with pytest.raises(StoreRejected, match="more than 10000 bytes"):
        call(store.get, "k")
    with pytest.raises(StoreIndeterminate, match="more than 10000 bytes"):
        call(store.batch, [("incr", "n"), ("get", "k")])
    assert store.breaker.closed


DRIPS = {
    "header": (b"HTTP/1.1 200 OK\r\n", b"X"),
    "1xx": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"n"),
    "gzip": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n"
        b"\x1f\x8b\x08\x08\0\0\0\0\0\3",  # and then the name of a file
        b"n",
    ),
}


@pytest.fixture
def dripping():
    """Servers that answer ``beginning`` and then ``drop`` again and again, and see who hangs up."""
    over, started = threading.Event(), []

    def dripping(beginning, drop):
        def answer():
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                client.sendall(beginning)
                while not over.wait(0.02):
                    client.sendall(drop)

        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=answer)
        thread.start()
        started.append((thread, listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}", thread

    yield dripping
    over.set()
    for thread, listener in started:
        thread.join(10)
        listener.close()


@pytest.mark.parametrize("what", DRIPS)
def test_an_answer_that_comes_in_drops_is_not_waited_for(open_store, call, dripping, what):
    """Each byte is within the timeout, and all of them are not."""
    url, answering = dripping(*DRIPS[what])
    store = open_store(url, command_timeout=0.3)
    with pytest.raises(StoreIndeterminate, match=r"no answer within 0\.3 s"):
        call(store.incr, "n")
    answering.join(10)
    assert not answering.is_alive()  # it was hung up on


def test_a_kept_connection_is_bounded_by_the_exchange_that_it_is_used_for(store, server, monkeypatch):
    assert store.incr("n") == 1
    monkeypatch.setattr(upstash_store._exchange, "ends", 0.0)  # of another one, which a signal interrupted
    assert store.incr("n") == 2
    assert (server.connections, upstash_store._exchange.ends) == (1, 0.0)


def test_more_to_send_may_take_longer(open_store):
    """At a megabyte in a second: what goes over the internet has its time."""
    store = open_store(command_timeout=0.001)
    request = rest.one(store.commands.set("k", "v" * 5_000_000))
    assert 5 < store._api._time_for(request) < 6


# --- counting through lost replies ----------------------------------------------------------------------


def test_a_counter_never_counts_twice(store, server, call, redis_server):
    counted, unknown = 0, 0
    for n in range(30):
        if n % 3 == 0:
            server.lose_replies()
        try:
            counted = call(store.incr, "n")
        except StoreIndeterminate:
            unknown += 1
            store.breaker.record_success()
    assert (unknown, counted) == (10, 30)
    assert redis_server.command("GET", HOME + "n") == b"30"


def test_with_an_op_id_a_lost_reply_is_the_right_number(store, server, call):
    numbers = []
    for n in range(10):
        server.lose_replies()
        numbers.append(call(store.incr, "n", op_id=f"op-{n}"))
    assert numbers == list(range(1, 11))


def test_an_op_id_that_is_lost_twice_may_be_asked_for_again(store, server, call):
    server.lose_replies(2)
    with pytest.raises(StoreIndeterminate):
        call(store.incr, "n", op_id="a")
    assert [call(store.incr, "n", op_id="a"), call(store.incr, "n", op_id="b")] == [1, 2]


@pytest.mark.parametrize("second", ["limit_rate", "gateway", "close_before_reading"])
def test_a_refusal_after_a_lost_reply_is_no_proof_that_nothing_was_executed(store, server, call, second):
    server.lose_replies()
    getattr(server, second)()
    with pytest.raises(StoreIndeterminate):
        call(store.incr, "n", op_id="a")
    assert call(store.incr, "n", op_id="a") == 1


def test_many_threads_count_exactly(store):
    barrier = threading.Barrier(8)

    def count(_):
        barrier.wait()
        return [store.incr("n") for _ in range(25)]

    with ThreadPoolExecutor(8) as threads:
        numbers = [number for each in threads.map(count, range(8)) for number in each]
    assert sorted(numbers) == list(range(1, 201))


def test_many_tasks_count_exactly(store):
    async def count():
        return await asyncio.gather(*(store.aincr("n") for _ in range(100)))

    assert sorted(asyncio.run(count())) == list(range(1, 101))


def test_many_processes_count_exactly(store):
    store.incr("n", 0)
    with ThreadPoolExecutor(8) as threads:
        counts = threads.map(lambda _: in_child(lambda: [store.incr("n") for _ in range(25)]), range(8))
        numbers = [number for each in counts for number in each]
    assert sorted(numbers) == list(range(1, 201))


# --- the circuit ----------------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return FakeClock()


def test_nobody_there_opens_it_at_once(open_store, dead_url, clock, call):
    store = open_store(dead_url, clock=clock)
    with pytest.raises(StoreUnavailable):
        call(store.get, "k")
    with pytest.raises(StoreUnavailable, match=r"circuit is open: .*Errno"):
        call(store.get, "k")
    health = call(store.health)
    assert health.status == "down"
    assert "circuit is open" in health.problem


@pytest.mark.parametrize("fault", ["lose_replies", "gateway", "truncate"])
def test_three_missing_answers_in_a_row_open_it(open_store, server, clock, call, fault):
    store = open_store(clock=clock)
    for expected in (True, True, False):
        getattr(server, fault)()
        with pytest.raises(StoreIndeterminate):
            call(store.incr, "n")
        assert store.breaker.closed is expected
    asked = len(server.seen)
    with pytest.raises(StoreUnavailable, match="not asked"):
        call(store.incr, "n")
    assert len(server.seen) == asked


def test_an_answer_in_between_begins_the_count_anew(open_store, server, clock, call):
    store = open_store(clock=clock)
    for _ in range(5):
        server.lose_replies()
        with pytest.raises(StoreIndeterminate):
            call(store.incr, "n")
        call(store.get, "n")
    assert store.breaker.closed


def test_a_no_is_an_answer(open_store, server, clock, call):
    store = open_store(clock=clock)
    for _ in range(5):
        server.answer_error("ERR no")
        with pytest.raises(StoreRejected):
            call(store.incr, "n")
    assert store.breaker.closed


def test_too_few_connections_of_our_own_are_no_outage(open_store, server, clock, monkeypatch):
    monkeypatch.setattr(upstash_store, "MOST", 3)
    store = open_store(clock=clock, connect_timeout=1.0, command_timeout=20.0)
    server.stall(3)

    async def crowd():
        waiting = [asyncio.ensure_future(store.aget("k")) for _ in range(3)]
        await asyncio.to_thread(until, lambda: len(server.seen) == 3)
        with pytest.raises(StoreUnavailable, match="connections were in use"):
            await store.aincr("n")
        server.heal()
        return await asyncio.gather(*waiting)

    assert asyncio.run(crowd()) == [None] * 3
    assert store.breaker.closed


def test_one_command_finds_out_whether_it_is_back(open_store, server, clock, call):
    store = open_store(clock=clock)
    store.breaker.trip("test")
    with pytest.raises(StoreUnavailable):
        call(store.get, "k")
    assert server.seen == []
    clock.advance(10)
    assert call(store.get, "k") is None
    assert store.breaker.closed


def test_who_finds_out_that_it_is_not_waits_longer(open_store, server, clock, call):
    store = open_store(clock=clock)
    store.breaker.trip("test")
    clock.advance(10)
    server.gateway(502, 2)
    with pytest.raises(StoreUnavailable, match="HTTP 502"):
        call(store.get, "k")
    asked = len(server.seen)
    with pytest.raises(StoreUnavailable, match="not asked"):
        call(store.get, "k")
    assert len(server.seen) == asked


def test_while_one_finds_out_nobody_else_is_let_through(open_store, server, clock):
    store = open_store(clock=clock)
    store.ping()
    store.breaker.trip("test")
    clock.advance(10)
    server.stall()
    with ThreadPoolExecutor(1) as thread:
        probe = thread.submit(store.get, "k")
        until(lambda: len(server.seen) == 2)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="not asked"):
                store.get("k")
        server.heal()
        assert probe.result(30) is None  # a read: asked for once more
    assert store.breaker.closed


def test_who_is_called_off_while_finding_out_leaves_it_to_the_next(open_store, server, clock):
    store = open_store(clock=clock)
    store.breaker.trip("test")
    clock.advance(10)
    server.stall()

    async def call_off():
        probe = asyncio.ensure_future(store.aget("k"))
        await asyncio.to_thread(until, lambda: server.seen)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        server.heal()
        return await store.aget("k")

    assert asyncio.run(call_off()) is None
    assert store.breaker.closed


def test_an_outage_is_logged_once(open_store, dead_url, caplog, call):
    store = open_store(dead_url)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            call(store.get, "k")
    opened = [record for record in caplog.records if "circuit_opened" in record.getMessage()]
    assert len(opened) == 1
    assert dead_url in opened[0].getMessage()


# --- connections ----------------------------------------------------------------------------------------


def test_a_connection_is_kept(store, server, call):
    for _ in range(10):
        call(store.incr, "n")
    assert server.connections == 1


def test_a_connection_that_was_closed_while_idle_is_no_failure(store, server, call, redis_server):
    assert call(store.incr, "n") == 1
    behind = redis_server.command("CLIENT", "LIST").count(b"\n")
    server.drop_connections()
    until(lambda: redis_server.command("CLIENT", "LIST").count(b"\n") < behind)
    assert call(store.incr, "n") == 2


def test_a_closed_store_opens_again(store, call):
    assert call(store.incr, "n") == 1
    call(store.close)
    call(store.close)
    assert call(store.incr, "n") == 2


def test_a_store_may_be_closed_while_it_is_used(store, redis_server, leak_check):
    """Whoever is under way gets his answer, and nothing stays open."""
    over = threading.Event()

    def use():
        count = 0
        while not over.is_set():
            store.incr("n")
            count += 1
        return count

    with leak_check(redis_server), ThreadPoolExecutor(4) as threads:
        using = [threads.submit(use) for _ in range(4)]
        for _ in range(50):
            store.ping()
            store.close()
        over.set()
        counted = sum(each.result() for each in using)
        assert store.get("n") == str(counted)
        store.close()


def test_a_store_may_be_closed_in_a_loop_while_it_is_used(store, redis_server, leak_check):
    async def use():
        counting = [asyncio.ensure_future(store.aincr("n")) for _ in range(20)]
        await asyncio.sleep(0)
        await store.aclose()
        return sorted(await asyncio.gather(*counting))

    with leak_check(redis_server):
        assert asyncio.run(use()) == list(range(1, 21))


def test_a_store_is_a_context_manager(server, redis_server, leak_check):
    with leak_check(redis_server):
        with UpstashStore(HOME, server.url, TOKEN) as store:
            assert store.set("k", "v")

        async def again():
            async with UpstashStore(HOME, server.url, TOKEN) as store:
                return await store.aget("k")

        assert asyncio.run(again()) == "v"


def test_an_event_loop_takes_its_connections_with_it(store, server, redis_server, leak_check):
    async def count():
        return await asyncio.gather(*(store.aincr("n") for _ in range(10)))

    asyncio.run(count())
    with leak_check(redis_server):
        for _ in range(5):
            asyncio.run(count())
    assert store.get("n") == "60"


def dropped(use):
    """Use a store in an event loop that nobody closes, and forget it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Python says so: of the loop, and of its connection
        asyncio.new_event_loop().run_until_complete(use())
        gc.collect()


def test_an_event_loop_that_is_dropped_takes_its_connections_with_it(store, redis_server, leak_check):
    dropped(lambda: store.aincr("n"))
    with leak_check(redis_server):
        for _ in range(5):
            dropped(lambda: store.aincr("n"))
    assert store.get("n") == "6"
    assert not store._api._in_loops


def test_an_event_loop_that_was_only_closed_leaves_nothing_behind(store):
    loops = [asyncio.new_event_loop() for _ in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for loop in loops:
            loop.run_until_complete(store.aincr("n"))
            loop.close()
        gc.collect()
        assert asyncio.run(store.aincr("n")) == 6
        gc.collect()
        assert not store._api._in_loops


def test_two_stores_have_two_clients_in_one_event_loop(open_store, server):
    async def count():
        return [await store.aincr("n") for store in (open_store(), open_store())]

    assert asyncio.run(count()) == [1, 2]
    assert server.connections == 2


def test_a_forked_child_has_connections_of_its_own(store, server):
    assert store.incr("n") == 1
    assert in_child(lambda: (store.incr("n"), server.connections)) == (2, 1)
    assert store.incr("n") == 3
    assert server.connections == 2


def test_a_forked_child_leaves_the_parents_event_loop_alone(store):
    async def fork_in_a_loop():
        before = await store.aincr("n")
        child = in_child(lambda: store.incr("n"))
        return before, child, await store.aincr("n")

    assert asyncio.run(fork_in_a_loop()) == (1, 2, 3)


# --- beside others --------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "ключ", "c*[x]?"])
TEXTS = st.one_of(
    st.sampled_from(["0", "7", "-3", "OK", "", "x", str(2**63 - 1), str(-(2**63)), "01", " 1", "1.5"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
LIFETIMES = st.sampled_from([None, 300_000, 900_000])
OPERATIONS = st.one_of(
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("set"), KEYS, TEXTS, LIFETIMES, st.sampled_from(["", "nx", "xx"])),
    st.tuples(st.just("keepttl"), KEYS, TEXTS),
    st.tuples(st.just("incr"), KEYS, st.sampled_from([1, 0, -1, 5, 2**63 - 1, -(2**63)])),
    st.tuples(st.just("mget"), st.lists(KEYS, min_size=1, max_size=4)),
    st.tuples(st.just("mset"), st.dictionaries(KEYS, TEXTS, min_size=1, max_size=3)),
    st.tuples(st.just("delete"), st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("exists"), st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("expire"), KEYS, st.sampled_from([-1, 0, 300, 900])),
    st.tuples(st.just("ttl"), KEYS),
    st.tuples(st.just("pttl"), KEYS),
    st.tuples(st.just("push"), KEYS),
    st.tuples(st.just("keys")),
)


class Ours:
    """A store, asked what the operation says."""

    def __init__(self, store, server):
        self.store, self.server, self.home = store, server, store.commands.home

    def get(self, key):
        return self.store.get(key)

    def set(self, key, value, px, condition):
        return self.store.set(key, value, px=px, nx=condition == "nx", xx=condition == "xx")

    def keepttl(self, key, value):
        return self.store.set(key, value, keepttl=True)

    def incr(self, key, by):
        return self.store.incr(key, by)

    def mget(self, keys):
        return self.store.mget(keys)

    def mset(self, mapping):
        return self.store.mset(mapping)

    def delete(self, keys):
        return self.store.delete(keys)

    def exists(self, keys):
        return self.store.exists(keys)

    def expire(self, key, seconds):
        return self.store.expire(key, seconds)

    def ttl(self, key):
        return coarse(self.store.ttl(key))

    def pttl(self, key):
        return coarse(self.store.pttl(key), 1000)

    def push(self, key):
        self.server.command("DEL", self.home + key)
        return self.server.command("RPUSH", self.home + key, "1")

    def keys(self):
        return sorted(self.store.scan())


class Theirs(Ours):
    """The client of redis-py, or the official one for REST: their methods have the same names."""

    def __init__(self, client, server, home):
        self.client, self.server, self.home = client, server, home

    def get(self, key):
        return self.client.get(self.home + key)

    def set(self, key, value, px, condition):
        options = {condition: True} if condition else {}
        return bool(self.client.set(self.home + key, value, px=px, **options))

    def keepttl(self, key, value):
        return bool(self.client.set(self.home + key, value, keepttl=True))

    def incr(self, key, by):
        return self.client.incrby(self.home + key, by if abs(by) < 2**53 else str(by))

    def mget(self, keys):
        return self.client.mget(*[self.home + key for key in keys])

    def mset(self, mapping):
        self.client.mset({self.home + key: value for key, value in mapping.items()})

    def delete(self, keys):
        return self.client.delete(*[self.home + key for key in keys])

    def exists(self, keys):
        return self.client.exists(*[self.home + key for key in keys])

    def expire(self, key, seconds):
        return bool(self.client.expire(self.home + key, seconds))

    def ttl(self, key):
        return coarse(self.client.ttl(self.home + key))

    def pttl(self, key):
        return coarse(self.client.pttl(self.home + key), 1000)

    def keys(self):
        cursor, found = 0, set()
        while True:
            cursor, names = self.client.scan(cursor, match=f"{self.home}*", count=1000)
            found.update(name.removeprefix(self.home) for name in names)
            if cursor == 0:
                return sorted(found)


def coarse(left, unit=1):
    """Return a time to live to some ten seconds: the clients ask one after the other."""
    return left if left < 0 else round(left / unit / 20)


def told(client, operation):
    """Return what a client says, an error by its words."""
    name, *arguments = operation
    try:
        return getattr(client, name)(*arguments)
    except StoreError as error:
        return f"error: {error.reason.removeprefix('ERR ')}"
    except (UpstashError, redis.ResponseError) as error:
        return f"error: {str(error).removeprefix('ERR ')}"


@pytest.fixture(scope="module")
def four(redis_server):
    """A store over REST, one over TCP, the official client and redis-py, each with keys of its own."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(UpstashServer(redis_server, token=TOKEN))
        over_rest = stack.enter_context(UpstashStore("u:", server.url, TOKEN, **UNHURRIED))
        official = stack.enter_context(upstash_redis.Redis(server.url, TOKEN, rest_retries=0))
        raw = stack.enter_context(redis.Redis.from_url(redis_server.url, decode_responses=True))

        def fresh():
            redis_server.flush()
            over_tcp = RedisStore("r:", AliasSettings.load(redis_server.url, {}))
            return [
                Ours(over_rest, redis_server),
                Ours(over_tcp, redis_server),
                Theirs(official, redis_server, "o:"),
                Theirs(raw, redis_server, "p:"),
            ]

        yield fresh


@given(st.lists(OPERATIONS, min_size=1, max_size=12))
@example([("set", "a", "OK", None, ""), ("get", "a"), ("mget", ["a", "b"])])
@example(
    [("set", "a", str(2**63 - 1), None, ""), ("incr", "a", 1), ("push", "b"), ("get", "b"), ("mget", ["b"])]
)
@settings(max_examples=150, deadline=None)
def test_four_clients_say_the_same(four, operations):
    clients = four()
    for operation in operations:
        over_rest, *others = [told(client, operation) for client in clients]
        assert others == [over_rest] * 3, operation
