"""The suite for the key-value store: over TCP beside redis-py, over REST beside Upstash's own client.

The limit of the first is a raw socket, that of the second a socket that sends a prebuilt HTTP request. The
REST server is ours, in a process of its own and on the same core, before the same Redis: what a client costs
is seen, and what the way to a real API costs is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cache import commands_processed
from benchmarks.contest import Contest, Say, Spec
from benchmarks.harness import Plan, Table
from benchmarks.kv_server import rest_server
from benchmarks.limits import RawSocket, pack
from benchmarks.peers import BACKENDS, LOCMEM, OURS, RAW_SOCKET, Operation, configure
from benchmarks.server import address, private_server

KEY, COUNTER, TTL = "user:42:settings", "visits:42", 3600
VALUE = json.dumps({"theme": "dark", "density": "compact", "language": "en", "digest": "0123456789" * 3})
MANY = {f"user:{number:03}": VALUE for number in range(100)}
TOKEN = "only-for-benchmarks"
HOME = "bench:kv:"
RAW_HTTP = "limit: raw HTTP"
MEMORY, FILE = f"{OURS}, memory", f"{OURS}, file"

TCP = (
    Spec("kv_get", "`get`, 100 B"),
    Spec("kv_set", "`set`, 100 B, with a time to live"),
    Spec("kv_incr", "`incr`"),
    Spec("kv_mget", "`mget`, 100 keys"),
)
REST = (
    Spec("rest_get", "`get`, 100 B"),
    Spec("rest_set", "`set`, 100 B, with a time to live"),
    Spec("rest_incr", "`incr`"),
    Spec("rest_pipeline", "a pipeline of 10 `get`"),
)
ROWS = tuple(spec.slug for spec in (*TCP, *REST))

TCP_NOTE = (
    f"Median time of a call (times `{RAW_SOCKET}` in the same round), one thread. "
    f"`{MEMORY}` and `{FILE}` are the other providers of the same interface; a write to the file is on disk "
    "when it returns."
)
REST_NOTE = (
    f"Median time of a call (times `{RAW_HTTP}` in the same round), one thread, one kept connection, "
    "`redis_infra.testing.UpstashServer` at the other end. A real API is 5 to 15 ms away."
)


def run(plan: Plan, only: Sequence[str], say: Say) -> list[Table]:
    """Measure the rows named in ``only``, or all; return their tables. Configures Django: once a process."""
    wanted = only or ROWS
    contests = ((TCP, tcp_contest), (REST, rest_contest))
    chosen = [([spec for spec in specs if spec.slug in wanted], contest) for specs, contest in contests]
    with private_server() as server, TemporaryDirectory() as directory:
        configure({LOCMEM: BACKENDS[LOCMEM].settings("")}, state_dir=directory)
        tables = []
        for specs, open_contest in chosen:
            if specs:
                with open_contest(server.url, Path(directory)) as contest:
                    tables.append(contest.table(specs, plan, say))
        return tables


@contextmanager
def tcp_contest(url: str, directory: Path) -> Iterator[Contest]:
    """Open whoever speaks with the server itself, and the providers that need none."""
    import redis

    from redis_infra.conf import AliasSettings, Settings
    from redis_infra.kv.file_store import FileStore
    from redis_infra.kv.memory_store import MemoryStore
    from redis_infra.kv.redis_store import RedisStore

    settings = Settings.load({"URL": url, "STATE_DIR": str(directory)}, environ={})
    ours = RedisStore(HOME, AliasSettings.for_capability("KV", settings, environ={}))
    with ExitStack() as stack:
        helper, pool = (
            stack.enter_context(redis.Redis.from_url(url, decode_responses=True)) for _ in range(2)
        )
        limit = RawSocket(*address(url))
        stack.callback(limit.close)
        file = stack.enter_context(FileStore(HOME, str(directory / "kv.sqlite3")))
        yield Contest(
            title="Key-value store over TCP",
            note=TCP_NOTE,
            contenders={
                RAW_SOCKET: raw_operations(limit, helper),
                OURS: client_operations(ours, "", "kv"),
                "redis-py, pool": client_operations(pool, "rpy:", "kv"),
                MEMORY: client_operations(MemoryStore(HOME), "", "kv"),
                FILE: client_operations(file, "", "kv"),
            },
            commands=partial(commands_processed, helper),
            elsewhere=(MEMORY, FILE),
        )


@contextmanager
def rest_contest(url: str, directory: Path) -> Iterator[Contest]:
    """Open whoever speaks REST."""
    import redis
    from upstash_redis import Redis

    from redis_infra.kv.upstash_store import UpstashStore

    with rest_server(url, TOKEN) as rest_url, ExitStack() as stack:
        helper = stack.enter_context(redis.Redis.from_url(url, decode_responses=True))
        ours = stack.enter_context(UpstashStore(HOME, rest_url, TOKEN))
        official = Redis(url=rest_url, token=TOKEN)
        stack.callback(official.close)
        limit = RawSocket(*address(rest_url))
        stack.callback(limit.close)
        yield Contest(
            title="Key-value store over REST",
            note=REST_NOTE,
            contenders={
                RAW_HTTP: raw_http_operations(limit, helper),
                OURS: client_operations(ours, "", "rest"),
                "upstash-redis": client_operations(official, "ups:", "rest"),
            },
            commands=partial(commands_processed, helper),
        )


def client_operations(client: Any, prefix: str, kind: str) -> dict[str, Operation]:
    """Return what a client can do: a ``KVStore``, redis-py or Upstash's, which share their names."""
    key, counter = prefix + KEY, prefix + COUNTER
    many = {prefix + name: value for name, value in MANY.items()}

    def pipeline() -> Any:
        collected = client.pipeline()
        for _ in range(10):
            collected.get(key)
        return collected.exec() if hasattr(collected, "exec") else collected.execute()

    fill = partial(client.set, key, VALUE, ex=TTL)
    return {
        f"{kind}_get": Operation(partial(client.get, key), fill, lambda result: result == VALUE),
        f"{kind}_set": Operation(fill, partial(client.delete, key), lambda _: client.get(key) == VALUE),
        f"{kind}_incr": Operation(
            partial(client.incr, counter), partial(client.set, counter, 41), lambda result: result == 42
        ),
        f"{kind}_mget": Operation(
            partial(client.mget, *many), partial(client.mset, many), lambda result: set(result) == {VALUE}
        ),
        f"{kind}_pipeline": Operation(pipeline, fill, lambda result: result == [VALUE] * 10),
    }


def raw_operations(limit: RawSocket, helper: Any) -> dict[str, Operation]:
    """Return the limit of every operation over TCP: the same commands, prebuilt."""
    prepared = client_operations(helper, "raw:", "kv")
    bulk = b"$%d\r\n%b\r\n" % (len(VALUE), VALUE.encode())
    exchanges = {
        "kv_get": (pack("GET", f"raw:{KEY}"), bulk),
        "kv_set": (pack("SET", f"raw:{KEY}", VALUE, "EX", TTL), b"+OK\r\n"),
        "kv_incr": (pack("INCR", f"raw:{COUNTER}"), b":42\r\n"),
        "kv_mget": (pack("MGET", *[f"raw:{name}" for name in MANY]), b"*100\r\n" + bulk * 100),
    }
    return {
        slug: raw_operation(limit, command, reply, prepared[slug].prepare, grows=slug == "kv_incr")
        for slug, (command, reply) in exchanges.items()
    }


def raw_operation(
    limit: RawSocket, command: bytes, reply: bytes, prepare: Callable[[], object], *, grows: bool
) -> Operation:
    return Operation(
        partial(limit.exchange, command, 1 if grows else len(reply)),
        prepare,
        lambda received: limit.last_reply(received) == reply,
    )


def raw_http_operations(limit: RawSocket, helper: Any) -> dict[str, Operation]:
    """Return the limit of every operation over REST: prebuilt requests, answers that are not looked at."""
    prepared = client_operations(helper, "raw:", "rest")
    get = ["GET", f"raw:{KEY}"]
    bodies = {
        "rest_get": ("/", get, VALUE),
        "rest_set": ("/", ["SET", f"raw:{KEY}", VALUE, "EX", TTL], "OK"),
        "rest_incr": ("/", ["INCR", f"raw:{COUNTER}"], "42"),
        "rest_pipeline": ("/pipeline", [get] * 10, VALUE),
    }
    found = {}
    for slug, (path, body, part) in bodies.items():
        request, prepare = http_request(path, json.dumps(body).encode()), prepared[slug].prepare
        prepare()
        size = answer_size(limit, request)
        found[slug] = Operation(
            partial(limit.exchange, request, size),
            prepare,
            lambda received, part=part: json.dumps(part).strip('"').encode() in limit.last_reply(received),
        )
    return found


def http_request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer_size(limit: RawSocket, request: bytes) -> int:
    """Return how many bytes an answer has, which does not change but for a counter's digits."""
    received = limit.exchange(request, 1)
    head, _, rest = limit.last_reply(received).partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"content-length" in line.lower()
    )
    missing = len(head) + 4 + length - received
    assert missing <= 0 or not rest, "the answer came in odd pieces"
    if missing > 0:
        limit.exchange(b"", missing)
    return len(head) + 4 + length
