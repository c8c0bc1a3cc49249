"""Our server speaks Upstash's protocol: to plain HTTP, and to the official client."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import upstash_redis
import upstash_redis.asyncio
from upstash_redis.errors import UpstashError

from redis_infra.testing import UpstashServer
from redis_infra.testing.upstash import Seen

TOKEN, READER = "t0ken", "r3ader"


@pytest.fixture
def server(redis_server):
    with UpstashServer(redis_server, token=TOKEN, read_only_token=READER) as server:
        yield server


@dataclass
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def said(self):
        return json.loads(self.body)


@pytest.fixture
def ask(server):
    """Send one request on the test's connection: ``ask("POST", "/", ["GET", "k"])``."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)

    def ask(method, path, body=None, *, token=TOKEN, **headers):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    yield ask
    connection.close()


# --- commands -------------------------------------------------------------------------------------------


def test_a_command_is_an_array(ask):
    assert ask("POST", "/", ["SET", "k", "v"]).said == {"result": "OK"}
    assert ask("POST", "/", ["GET", "k"]).said == {"result": "v"}


def test_numbers_are_words_as_they_are_written(ask):
    ask("POST", "/", b'["SET", "k", 9007199254740993]')
    assert ask("POST", "/", ["INCRBYFLOAT", "k", 0.5]).said == {"result": "9007199254740993.5"}
    assert ask("POST", "/", ["STRLEN", "k"]).said == {"result": 18}


def test_a_path_is_a_command(ask):
    assert ask("GET", "/set/k/v/EX/100").said == {"result": "OK"}
    assert ask("GET", "/get/k").said == {"result": "v"}
    assert ask("GET", "/ttl/k").said == {"result": 100}


def test_a_path_is_percent_encoded_and_its_words_may_be_bytes(ask, redis_server):
    ask("GET", "/set/a%2Fb%20c/%FF%00")
    assert redis_server.command("GET", "a/b c") == b"\xff\x00"


def test_a_body_is_the_last_word_of_a_path_and_the_query_comes_after_it(ask, redis_server):
    assert ask("POST", "/set/k?EX=100&NX", b"\xff\x00\r\n").said == {"result": "OK"}
    assert redis_server.command("GET", "k") == b"\xff\x00\r\n"
    assert redis_server.command("TTL", "k") == 100


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_methods_are_all_the_same(ask, method):
    assert ask(method, "/ping").said == {"result": "PONG"}


def test_head_has_no_body(ask):
    reply = ask("HEAD", "/ping")
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "BREW"])
def test_other_methods_are_not_allowed(ask, method):
    assert ask(method, "/ping").status == 405


def test_an_error_is_a_400_with_redis_words(ask):
    ask("POST", "/", ["LPUSH", "l", "1"])
    reply = ask("POST", "/", ["GET", "l"])
    assert reply.status == 400
    assert reply.said == {"error": "WRONGTYPE Operation against a key holding the wrong kind of value"}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"[null]", b"[[]]", b'["GET"', b'"GET"', b"[" * 100_000, b'[{"a": 1}]']
)
def test_what_is_no_command_is_an_error(ask, body):
    reply = ask("POST", "/", body)
    assert reply.status == 400
    assert reply.said["error"].startswith("ERR ")


@pytest.mark.parametrize(
    "name", ["MULTI", "exec", "SUBSCRIBE", "blpop", "SELECT", "CLIENT", "WATCH", "MONITOR"]
)
def test_what_would_change_or_hold_a_connection_is_not_available(ask, name):
    assert "not available" in ask("POST", "/", [name, "x"]).said["error"]
    assert ask("POST", "/", ["PING"]).said == {"result": "PONG"}


def test_a_connection_is_kept(ask, server):
    for _ in range(5):
        ask("POST", "/", ["PING"])
    assert server.connections == 1


# --- base64 ---------------------------------------------------------------------------------------------


def test_strings_come_in_base64_where_that_is_asked_for(ask):
    ask("POST", "/set/k", b"\xff\x00")
    reply = ask("POST", "/", ["GET", "k"], Upstash_Encoding="base64")
    assert base64.b64decode(reply.said["result"]) == b"\xff\x00"


def test_the_status_ok_is_said_as_it_is_and_the_value_ok_is_not(ask):
    assert ask("POST", "/", ["SET", "k", "OK"], Upstash_Encoding="base64").said == {"result": "OK"}
    assert ask("POST", "/", ["GET", "k"], Upstash_Encoding="base64").said == {"result": "T0s="}


def test_base64_goes_into_lists_and_leaves_numbers(ask):
    reply = ask("POST", "/", ["EVAL", "return {1, 'a', {'b'}}", "0"], Upstash_Encoding="base64")
    assert reply.said == {"result": [1, "YQ==", ["Yg=="]]}


# --- several --------------------------------------------------------------------------------------------


def test_a_pipeline_has_an_answer_for_each_and_goes_on_after_an_error(ask):
    reply = ask("POST", "/pipeline", [["SET", "k", "x"], ["INCR", "k"], ["GET", "k"]])
    assert reply.status == 200
    assert reply.said == [
        {"result": "OK"},
        {"error": "ERR value is not an integer or out of range"},
        {"result": "x"},
    ]


@pytest.mark.parametrize("path", ["/pipeline", "/multi-exec"])
@pytest.mark.parametrize("body", [b"", b"[]", b'["GET", "k"]', b"[[]]", b"{}"])
def test_what_is_no_pipeline_is_an_error_as_a_whole(ask, path, body):
    reply = ask("POST", path, body)
    assert reply.status == 400
    assert reply.said["error"].startswith("ERR ")


def test_a_transaction_has_an_answer_for_each(ask):
    reply = ask("POST", "/multi-exec", [["SET", "k", "x"], ["INCR", "k"], ["GET", "k"]])
    assert [list(each) for each in reply.said] == [["result"], ["error"], ["result"]]


def test_a_transaction_that_is_discarded_is_one_error_and_nothing_was_executed(ask):
    reply = ask("POST", "/multi-exec", [["SET", "k", "x"], ["GET"]])
    assert reply.status == 400
    assert reply.said["error"].startswith("EXECABORT")
    assert ask("POST", "/", ["EXISTS", "k"]).said == {"result": 0}


def test_a_transaction_lets_nobody_in_between(ask, server):
    seen = set()
    with upstash_redis.Redis(server.url, TOKEN) as other:
        ending = threading.Event()

        def watch():
            while not ending.is_set():
                seen.add(tuple(other.mget("a", "b")))

        thread = threading.Thread(target=watch)
        thread.start()
        for n in map(str, range(100)):
            ask("POST", "/multi-exec", [["SET", "a", n], ["SET", "b", n]])
        ending.set()
        thread.join()
    assert all(a == b for a, b in seen)


# --- tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ü"])
def test_who_has_no_token_is_not_authorized(ask, token, redis_server):
    reply = ask("POST", "/", ["SET", "k", "v"], token=token.encode().decode("latin-1"))
    assert reply.status == 401
    assert "error" in reply.said
    assert redis_server.command("DBSIZE") == 0


def test_a_token_may_be_in_the_query_and_is_no_word(ask):
    assert ask("GET", f"/set/k/v?_token={TOKEN}&EX=100", token="").said == {"result": "OK"}
    assert ask("GET", "/get/k?_token=wrong", token="").status == 401


@pytest.mark.parametrize("command", [["GET", "k"], ["MGET", "k"], ["TTL", "k"], ["PING"], ["EXISTS", "k"]])
def test_a_read_only_token_reads(ask, command):
    assert ask("POST", "/", command, token=READER).status == 200


@pytest.mark.parametrize(
    "command", [["SET", "k", "v"], ["del", "k"], ["INCR", "k"], ["EVAL", "return 1", "0"], ["SCAN", "0"]]
)
def test_a_read_only_token_does_not_write_nor_scan(ask, command, redis_server):
    reply = ask("POST", "/", command, token=READER)
    assert (reply.status, reply.said["error"].split()[0]) == (400, "NOPERM")
    assert ask("POST", "/pipeline", [command], token=READER).said[0]["error"].startswith("NOPERM")
    assert ask("POST", "/multi-exec", [command], token=READER).said["error"].startswith("NOPERM")
    assert redis_server.command("DBSIZE") == 0


def test_a_token_is_made_up_where_none_is_given(redis_server):
    with UpstashServer(redis_server.url) as one, UpstashServer(redis_server.url) as other:
        assert one.token != other.token
        assert len(one.token) > 20


def test_every_answer_has_another_sync_token(ask):
    tokens = [ask("POST", "/", ["PING"]).headers["Upstash-Sync-Token"] for _ in range(3)]
    assert len(set(tokens)) == 3


def test_seen_has_what_came_and_shows_no_token(ask, server):
    ask("POST", "/", ["GET", "k"], X_Mine="1")
    (seen,) = server.seen
    assert (seen.method, seen.path, seen.data, seen.headers["X-Mine"]) == ("POST", "/", ["GET", "k"], "1")
    assert TOKEN not in repr(seen)
    assert TOKEN not in repr(server)


def test_seen_has_the_last_ones_only(redis_server):
    with UpstashServer(redis_server, token=TOKEN, keep=2) as server:
        for n in range(5):
            server.note(Seen(method="GET", path=f"/{n}", headers={}, body=b""))
        assert [seen.path for seen in server.seen] == ["/3", "/4"]
        server.seen.clear()
    with UpstashServer(redis_server, keep=0) as server:
        server.note(Seen(method="GET", path="/", headers={}, body=b""))
        assert server.seen == []


def test_seen_is_bounded_though_nobody_says_so(server):
    for n in range(1005):
        server.note(Seen(method="GET", path=f"/{n}", headers={}, body=b""))
    assert (len(server.seen), server.seen[0].path) == (1000, "/5")


@pytest.mark.parametrize("size", ["abc", "-1", "1.5", "+1", "9" * 5000])
def test_a_size_that_is_none_is_refused(ask, server, size):
    reply = ask("POST", "/", b"", Content_Length=size)
    assert (reply.status, "Content-Length" in reply.said["error"]) == (400, True)
    assert server.seen == []


# --- faults ---------------------------------------------------------------------------------------------


def test_a_lost_reply_was_executed(ask, server, redis_server):
    server.lose_replies()
    with pytest.raises(http.client.RemoteDisconnected):
        ask("POST", "/", ["INCR", "n"])
    assert redis_server.command("GET", "n") == b"1"
    assert ask("POST", "/", ["INCR", "n"]).said == {"result": 2}


def test_a_connection_closed_before_reading_executes_nothing(ask, server, redis_server):
    server.close_before_reading()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask("POST", "/", ["INCR", "n"])
    assert redis_server.command("GET", "n") is None


@pytest.mark.parametrize(("executed", "count"), [(False, None), (True, b"1")])
def test_a_gateway_speaks_html_whether_it_was_executed_or_not(ask, server, redis_server, executed, count):
    server.gateway(504, executed=executed)
    reply = ask("POST", "/", ["INCR", "n"])
    assert (reply.status, reply.headers["Content-Type"]) == (504, "text/html")
    assert redis_server.command("GET", "n") == count


def test_too_many_requests_are_told_when_to_come_again(ask, server):
    server.limit_rate(retry_after=7)
    reply = ask("POST", "/", ["PING"])
    assert (reply.status, reply.headers["Retry-After"]) == (429, "7")


def test_an_error_may_have_any_text(ask, server):
    server.answer_error("ERR max daily request limit exceeded")
    assert ask("POST", "/", ["PING"]).said == {"error": "ERR max daily request limit exceeded"}


def test_an_answer_may_be_anything(ask, server):
    server.answer(302, b"", headers={"Location": "https://example.com"})
    reply = ask("POST", "/", ["PING"])
    assert (reply.status, reply.headers["Location"]) == (302, "https://example.com")


def test_a_truncated_answer_was_executed(ask, server, redis_server):
    server.truncate(3)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask("POST", "/", ["INCR", "n"])
    assert caught.value.partial == b'{"r'
    assert redis_server.command("GET", "n") == b"1"


def test_a_stalled_request_is_let_go_by_heal(ask, server):
    server.stall()
    healing = threading.Timer(0.05, server.heal)
    healing.start()
    with pytest.raises(http.client.RemoteDisconnected):
        ask("POST", "/", ["PING"])
    healing.join()
    assert ask("POST", "/", ["PING"]).status == 200


def test_faults_queue_up_and_heal_ends_them(ask, server):
    server.limit_rate(2)
    server.gateway(502)
    assert [ask("POST", "/", ["PING"]).status for _ in range(4)] == [429, 429, 502, 200]
    server.limit_rate(9)
    server.heal()
    assert ask("POST", "/", ["PING"]).status == 200


def test_a_redis_that_is_down_is_a_503_and_comes_back(own_redis):
    redis = own_redis()
    with UpstashServer(redis) as server, upstash_redis.Redis(server.url, server.token) as client:
        assert client.ping() == "PONG"
        redis.kill()
        with pytest.raises(UpstashError, match="does not answer"):
            client.ping()
        redis.start()
        assert client.ping() == "PONG"


def test_it_leaves_nothing_behind(redis_server, leak_check):
    with leak_check(redis_server):
        server = UpstashServer(redis_server)
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
        connection.request("GET", f"/ping?_token={server.token}")
        assert connection.getresponse().read() == b'{"result": "PONG"}'
        server.stop()
        server.stop()
        connection.close()


def test_it_is_on_loopback(server):
    assert urlsplit(server.url).hostname == "127.0.0.1"


def test_a_port_may_be_chosen_and_is_taken_then(redis_server, server):
    with pytest.raises(OSError, match="in use"):
        UpstashServer(redis_server, port=urlsplit(server.url).port)


# --- the official client --------------------------------------------------------------------------------

CASES = {
    "ping": lambda r: [r.ping()],
    "echo": lambda r: [r.echo("ü\n\0")],
    "get nothing": lambda r: [r.get("k")],
    "set and get": lambda r: [r.set("k", "v"), r.get("k")],
    "the value OK": lambda r: [r.set("k", "OK"), r.get("k")],
    "an empty value": lambda r: [r.set("k", ""), r.get("k")],
    "unicode": lambda r: [r.set("ключ", "値😀"), r.get("ключ")],
    "control characters": lambda r: [r.set("k", "".join(map(chr, range(32)))), r.get("k")],
    "quotes": lambda r: [r.set("k", "\"'\\/"), r.get("k")],
    "a long value": lambda r: [r.set("k", "x" * 100_000), r.strlen("k")],
    "an integer value": lambda r: [r.set("k", 7), r.get("k")],
    "a float value": lambda r: [r.set("k", 1.5), r.get("k")],
    "set nx": lambda r: [r.set("k", "1", nx=True), r.set("k", "2", nx=True), r.get("k")],
    "set xx": lambda r: [r.set("k", "1", xx=True), r.get("k")],
    "set ex": lambda r: [r.set("k", "1", ex=100), r.ttl("k")],
    "set px": lambda r: [r.set("k", "1", px=100_000), r.ttl("k")],
    "set keepttl": lambda r: [r.set("k", "1", ex=100), r.set("k", "2", keepttl=True), r.ttl("k")],
    "set get": lambda r: [r.set("k", "1"), r.set("k", "2", get=True)],
    "getdel": lambda r: [r.set("k", "1"), r.getdel("k"), r.get("k")],
    "append": lambda r: [r.append("k", "a"), r.append("k", "b"), r.get("k")],
    "incr": lambda r: [r.incr("n"), r.incrby("n", 9), r.decr("n"), r.get("n")],
    "incr to the end": lambda r: [r.set("n", str(2**63 - 2)), r.incr("n")],
    "incrbyfloat": lambda r: [r.incrbyfloat("n", 1.5)],
    "mset and mget": lambda r: [r.mset({"a": "1", "b": "2"}), r.mget("a", "x", "b")],
    "msetnx": lambda r: [r.msetnx({"a": "1"}), r.msetnx({"a": "2", "b": "2"}), r.exists("b")],
    "del": lambda r: [r.set("a", "1"), r.delete("a", "b"), r.delete("a")],
    "exists twice": lambda r: [r.set("a", "1"), r.exists("a", "a", "b")],
    "expire": lambda r: [r.set("a", "1"), r.expire("a", 100), r.ttl("a"), r.persist("a"), r.ttl("a")],
    "ttl of nothing": lambda r: [r.ttl("a"), r.pttl("a"), r.expire("a", 1)],
    "type": lambda r: [r.set("a", "1"), r.type("a"), r.type("b")],
    "rename": lambda r: [r.set("a", "1"), r.rename("a", "b"), r.get("b")],
    "hash": lambda r: [r.hset("h", "f", "v"), r.hset("h", values={"a": "1"}), r.hget("h", "f"), r.hlen("h")],
    "hgetall": lambda r: [r.hset("h", values={"a": "1", "b": "2"}), r.hgetall("h")],
    "list": lambda r: [r.rpush("l", "a", "b"), r.lpush("l", "c"), r.lrange("l", 0, -1), r.lpop("l")],
    "set members": lambda r: [r.sadd("s", "a"), r.sismember("s", "a"), r.smembers("s"), r.scard("s")],
    "sorted set": lambda r: [r.zadd("z", {"a": 1, "b": 2}), r.zrange("z", 0, -1, withscores=True)],
    "scan": lambda r: [r.set("a", "1"), r.scan(0, match="a*", count=100)],
    "eval": lambda r: [r.eval("return {KEYS[1], ARGV[1], 3}", keys=["k"], args=["a"])],
    "setrange": lambda r: [r.set("k", "hello"), r.setrange("k", 1, "a"), r.getrange("k", 0, 2)],
    "bits": lambda r: [r.setbit("b", 7, 1), r.getbit("b", 7), r.bitcount("b")],
    "hyperloglog": lambda r: [r.pfadd("p", "a", "b"), r.pfcount("p")],
    "flushdb": lambda r: [r.set("a", "1"), r.flushdb(), r.dbsize()],
}  # fmt: skip

# What redis-py says to the same calls, written down: "set and get" is no claim about our server otherwise.
EXPECTED = {
    "ping": ["PONG"], "echo": ["ü\n\0"], "get nothing": [None], "set and get": [True, "v"],
    "the value OK": [True, "OK"], "an empty value": [True, ""], "unicode": [True, "値😀"],
    "control characters": [True, "".join(map(chr, range(32)))], "quotes": [True, "\"'\\/"],
    "a long value": [True, 100_000], "an integer value": [True, "7"], "a float value": [True, "1.5"],
    "set nx": [True, False, "1"], "set xx": [False, None], "set ex": [True, 100], "set px": [True, 100],
    "set keepttl": [True, True, 100], "set get": [True, "1"], "getdel": [True, "1", None],
    "append": [1, 2, "ab"], "incr": [1, 10, 9, "9"], "incr to the end": [True, 2**63 - 1],
    "incrbyfloat": [1.5], "mset and mget": [True, ["1", None, "2"]], "msetnx": [True, False, 0],
    "del": [True, 1, 0], "exists twice": [True, 2], "expire": [True, True, 100, True, -1],
    "ttl of nothing": [-2, -2, False], "type": [True, "string", "none"], "rename": [True, True, "1"],
    "hash": [1, 1, "v", 2], "hgetall": [2, {"a": "1", "b": "2"}], "list": [2, 3, ["c", "a", "b"], "c"],
    "set members": [1, True, ["a"], 1], "sorted set": [2, [("a", 1.0), ("b", 2.0)]],
    "scan": [True, (0, ["a"])], "eval": [["k", "a", 3]], "setrange": [True, 5, "hal"], "bits": [0, 1, 1],
    "hyperloglog": [True, 1 + 1], "flushdb": [True, True, 0],
}  # fmt: skip


class Waiting:
    """The official asynchronous client, with the methods of the synchronous one."""

    def __init__(self, runner, client):
        self._runner, self._client = runner, client

    def __getattr__(self, name):
        method = getattr(self._client, name)

        async def call(args, kwargs):
            return await method(*args, **kwargs)

        return lambda *args, **kwargs: self._runner.run(call(args, kwargs))


@pytest.fixture(params=["sync", "async"])
def official(request, server, redis_server):
    if request.param == "sync":
        with upstash_redis.Redis(server.url, TOKEN, rest_retries=0) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        client = upstash_redis.asyncio.Redis(server.url, TOKEN, rest_retries=0)
        yield Waiting(runner, client)
        runner.run(client.close())


@pytest.mark.parametrize("case", CASES)
def test_the_official_client_gets_what_redis_says(official, case):
    assert CASES[case](official) == EXPECTED[case]


@pytest.mark.parametrize("encoding", ["base64", None])
def test_the_official_client_may_do_without_base64(server, redis_server, encoding):
    with upstash_redis.Redis(server.url, TOKEN, rest_encoding=encoding) as client:
        assert client.set("k", "値")
        assert client.get("k") == "値"


def test_the_official_pipeline_and_transaction(server, redis_server):
    with upstash_redis.Redis(server.url, TOKEN) as client:
        assert client.pipeline().set("a", "1").incr("a").mget("a", "b").exec() == [True, 2, ["2", None]]
        assert client.multi().set("a", "1").incr("a").get("a").exec() == [True, 2, "2"]


def test_the_official_client_is_told_of_errors_in_redis_words(official):
    official.rpush("l", "a")
    with pytest.raises(UpstashError, match="WRONGTYPE"):
        official.get("l")


def test_the_official_client_is_told_of_a_wrong_token(server):
    with upstash_redis.Redis(server.url, "wrong") as client, pytest.raises(UpstashError, match="WRONGPASS"):
        client.ping()


def test_the_official_client_sends_back_the_sync_token(server):
    with upstash_redis.Redis(server.url, TOKEN) as client:
        client.ping()
        client.ping()
    assert [seen.headers["Upstash-Sync-Token"] for seen in server.seen] == ["", "1"]
