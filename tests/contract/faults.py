"""Faults of a Redis server, each a real one: frozen, full, loading, busy, not ours, or broken on the way.

``FAULTS[name](directory)`` is a context manager that gives the URL; in the block the fault is there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from redis_infra.testing import RedisServer, TcpProxy

FAULTS: dict[str, Callable[[Path], contextlib.AbstractContextManager[str]]] = {}
HANGS = {"frozen", "swallowing", "writes paused"}
"""Faults that show by a timeout; all others show at once."""


def fault(name: str) -> Callable[[Callable[[Path], Iterator[str]]], None]:
    """Register a generator that sets a fault up, yields the URL, and takes it down."""

    def register(make: Callable[[Path], Iterator[str]]) -> None:
        FAULTS[name] = contextlib.contextmanager(make)

    return register


@contextlib.contextmanager
def in_background(server: RedisServer, *command: str) -> Iterator[None]:
    """Send a command that keeps the server from answering others, and do not wait for its reply."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{server.directory}/redis_infra.sock")
        words = [f"${len(word)}\r\n{word}\r\n" for word in command]
        connection.sendall(f"*{len(words)}\r\n{''.join(words)}".encode())
        yield


def wait_for_reply(server: RedisServer, *command: str, starting: str) -> None:
    """Ask until the server refuses with this error."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            server.command(*command, timeout=1.0)
        except TimeoutError:
            continue
        except Exception as error:  # the server's error, or a connection that it has closed
            if starting in str(error):
                return
    raise AssertionError(f"no {starting} within 10 s")


@fault("frozen")
def _frozen(_: Path) -> Iterator[str]:
    with RedisServer() as server:
        server.freeze()
        yield server.url


@fault("swallowing")
def _swallowing(_: Path) -> Iterator[str]:
    with RedisServer() as server, TcpProxy(server.url) as proxy:
        proxy.drop()
        yield proxy.url


@fault("resetting")
def _resetting(_: Path) -> Iterator[str]:
    with RedisServer() as server, TcpProxy(server.url) as proxy:
        proxy.reset(new=True)
        yield proxy.url


@fault("cutting replies")
def _cutting(_: Path) -> Iterator[str]:
    with RedisServer() as server, TcpProxy(server.url) as proxy:
        proxy.half_reply(3)
        yield proxy.url


@fault("HTTP")
def _http(_: Path) -> Iterator[str]:
    with RedisServer() as server, TcpProxy(server.url) as proxy:
        proxy.http()
        yield proxy.url


@fault("LOADING")
def _loading(directory: Path) -> Iterator[str]:
    with RedisServer(directory=directory) as server:
        for start in range(0, 50_000, 5000):
            words = itertools.chain.from_iterable((f"k{n}", "x" * 500) for n in range(start, start + 5000))
            server.command("MSET", *words)
        server.command("SAVE")
    # 2 ms a key: it loads until it is killed, and answers every few keys.
    slow = {"key-load-delay": "2000", "loading-process-events-interval-bytes": "1024"}
    server = RedisServer(directory=directory, config=slow)
    try:
        server.start(loaded=False)
        wait_for_reply(server, "GET", "k", starting="LOADING")
        yield server.url
    finally:
        server.kill()
        server.stop()


@fault("OOM")
def _oom(_: Path) -> Iterator[str]:
    with RedisServer(config={"maxmemory-policy": "noeviction"}) as server:
        server.config_set("maxmemory", "1")
        wait_for_reply(server, "SET", "k", "v", starting="OOM")
        yield server.url


@fault("READONLY")
def _readonly(_: Path) -> Iterator[str]:
    with RedisServer() as server, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server.command("REPLICAOF", "127.0.0.1", nobody.getsockname()[1])
        wait_for_reply(server, "SET", "k", "v", starting="READONLY")
        yield server.url


@fault("MASTERDOWN")
def _masterdown(_: Path) -> Iterator[str]:
    with RedisServer(config={"replica-serve-stale-data": "no"}) as server, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server.command("REPLICAOF", "127.0.0.1", nobody.getsockname()[1])
        wait_for_reply(server, "GET", "k", starting="MASTERDOWN")
        yield server.url


@fault("NOREPLICAS")
def _noreplicas(_: Path) -> Iterator[str]:
    with RedisServer(config={"min-replicas-to-write": "1"}) as server:
        wait_for_reply(server, "SET", "k", "v", starting="NOREPLICAS")
        yield server.url


@fault("NOAUTH")
def _noauth(_: Path) -> Iterator[str]:
    with RedisServer(config={"requirepass": "secret"}, unix_socket=False) as server:
        yield server.url


@fault("WRONGPASS")
def _wrongpass(_: Path) -> Iterator[str]:
    with RedisServer(config={"requirepass": "secret"}, unix_socket=False) as server:
        yield server.url.replace("//", "//:guess@")


@fault("NOPERM")
def _noperm(_: Path) -> Iterator[str]:
    with RedisServer(unix_socket=False) as server:
        server.command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+@read", "+@connection")
        yield server.url.replace("//", "//reader:word@")


@fault("MISCONF")
def _misconf(_: Path) -> Iterator[str]:
    with RedisServer() as server:
        # A directory where the snapshot should be: the one disk error that root gets too.
        os.makedirs(f"{server.directory}/dump.rdb/not-empty")
        server.config_set("save", "3600 1")
        with contextlib.suppress(Exception):
            server.command("BGSAVE")
        wait_for_reply(server, "SET", "k", "v", starting="MISCONF")
        yield server.url
        server.kill()  # it would try to save once more


@fault("BUSY")
def _busy(_: Path) -> Iterator[str]:
    with RedisServer(config={"lua-time-limit": "1"}) as server:
        with in_background(server, "EVAL", "while true do end", "0"):
            wait_for_reply(server, "GET", "k", starting="BUSY")
            yield server.url
        server.kill()


@fault("writes paused")
def _paused(_: Path) -> Iterator[str]:
    with RedisServer() as server:
        server.command("CLIENT", "PAUSE", 10**9, "WRITE")
        yield server.url


@fault("maxclients")
def _maxclients(_: Path) -> Iterator[str]:
    with RedisServer() as server, socket.socket(socket.AF_UNIX) as last:
        last.connect(f"{server.directory}/redis_infra.sock")
        server.config_set("maxclients", 1)
        wait_for_reply(server, "PING", starting="max number of clients")
        yield server.url
