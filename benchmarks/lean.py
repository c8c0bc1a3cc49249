"""The least a client can do: pack, send, parse, pickle. No pool, deadline, retry, version or thread safety.

Nobody should use it. It shows how much of a cache's price is the work itself on this machine, and so
whether a figure can be held here at all. It has just those methods of Django's cache that are timed.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import hiredis

from benchmarks.limits import BUFFER

Words = tuple[str | bytes | int, ...]
pack = cast(Callable[[Words], bytes], hiredis.pack_command)  # its stub says: one word


def dumps(value: object) -> bytes | int:
    """Return what is stored of ``value``: an integer as it is, else its pickle."""
    return value if type(value) is int else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


class LeanClient:
    """Django's cache in blocking calls. One thread."""

    def __init__(self, host: str, port: int, prefix: str) -> None:
        self._prefix = f"{prefix}:1:"
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)

    def close(self) -> None:
        self._socket.close()

    def get(self, key: str) -> Any:
        found = self._ask(("GET", self._prefix + key))
        return None if found is None else pickle.loads(found)

    def set(self, key: str, value: object, timeout: int) -> None:
        self._ask(("SET", self._prefix + key, dumps(value), "EX", timeout))

    def add(self, key: str, value: object, timeout: int) -> bool:
        return self._ask(("SET", self._prefix + key, dumps(value), "EX", timeout, "NX")) is not None

    def incr(self, key: str) -> int:
        return int(self._ask(("INCR", self._prefix + key)))

    def touch(self, key: str, timeout: int) -> bool:
        return bool(self._ask(("EXPIRE", self._prefix + key, timeout)))

    def delete(self, key: str) -> bool:
        return bool(self._ask(("DEL", self._prefix + key)))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        names = list(keys)
        found = self._ask(("MGET", *[self._prefix + name for name in names]))
        return {
            name: pickle.loads(value) for name, value in zip(names, found, strict=True) if value is not None
        }

    def set_many(self, data: Mapping[str, object], timeout: int) -> list[str]:
        commands = [
            pack(("SET", self._prefix + key, dumps(value), "EX", timeout)) for key, value in data.items()
        ]
        self._socket.sendall(b"".join(commands))
        for _ in commands:
            self._reply()
        return []

    def delete_many(self, keys: Iterable[str]) -> None:
        self._ask(("DEL", *[self._prefix + key for key in keys]))

    def _ask(self, words: Words) -> Any:
        self._socket.sendall(pack(words))
        return self._reply()

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is Ellipsis:
            self._reader.feed(self._socket.recv(BUFFER))
        return reply


class LeanAsyncClient(asyncio.BufferedProtocol):
    """The awaited calls, on one connection of one loop; commands of a turn of the loop share a write."""

    _transport: asyncio.Transport

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}:1:"
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._feed = cast(Callable[[memoryview], None], self._reader.feed)  # its stub knows only bytes
        self._buffer = memoryview(bytearray(BUFFER))
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._queued: list[bytes] = []

    async def aget(self, key: str) -> Any:
        found = await self._ask(("GET", self._prefix + key))
        return None if found is None else pickle.loads(found)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        names = list(keys)
        found = await self._ask(("MGET", *[self._prefix + name for name in names]))
        return {
            name: pickle.loads(value) for name, value in zip(names, found, strict=True) if value is not None
        }

    async def aclose(self) -> None:
        self._transport.close()

    def _ask(self, words: Words) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._waiting:
            self._transport.write(pack(words))
        else:
            if not self._queued:
                self._loop.call_soon(self._flush)
            self._queued.append(pack(words))
        self._waiting.append(future)
        return future

    def _flush(self) -> None:
        self._transport.write(b"".join(self._queued))
        self._queued.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._feed(self._buffer[:nbytes])
        while (reply := self._reader.gets()) is not Ellipsis:
            self._waiting.popleft().set_result(reply)


async def connect_lean(host: str, port: int, prefix: str) -> LeanAsyncClient:
    """Return a client of the running loop."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: LeanAsyncClient(prefix), host, port)
    return client
