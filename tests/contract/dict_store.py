"""A provider of a site's own: a dictionary, a lock, and what each command means."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from math import inf
from typing import Any

from redis_infra.exceptions import CounterOverflow, StoreError, StoreRejected, StoreTypeError
from redis_infra.kv import Command, KVStore

__all__ = ["DictStore"]


class DictStore(KVStore):
    """What a provider has to do, and no more: what people call, twins and pipelines are KVStore's."""

    def __init__(self, home: str) -> None:
        super().__init__(home)
        self.rows: dict[str, tuple[bytes, float]] = {}
        """Values, and the millisecond in which each ends."""
        self.lock = threading.Lock()

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        with self.lock:
            return [self.reply(command) for command in commands]

    def reply(self, command: Any) -> Any:
        do = getattr(self, f"do_{command.name}", None)
        try:
            return do(command) if do else StoreRejected(command.name, command.key, "unknown command")
        except StoreError as error:
            return error

    def end(self, key: str) -> float:
        return self.rows.get(key, (b"", 0))[1]

    def has(self, key: str) -> bool:
        return self.end(key) > self.now()

    def now(self) -> float:
        return time.monotonic() * 1000

    def do_ping(self, ping: Any) -> bytes:
        return b"PONG"

    def do_get(self, get: Any) -> bytes | None:
        return self.rows[get.key][0] if self.has(get.key) else None

    do_get_bytes = do_get

    def do_mget(self, mget: Any) -> list[bytes | None]:
        return [self.rows[key][0] if self.has(key) else None for key in mget.keys]

    def do_set(self, command: Any) -> bytes | None:
        there = self.has(command.key)
        if (command.condition == "NX" and there) or (command.condition == "XX" and not there):
            return None
        end = (
            self.now() + command.px
            if command.px
            else self.end(command.key)
            if command.keepttl and there
            else inf
        )
        self.rows[command.key] = command.value, end
        return b"OK"

    def do_mset(self, mset: Any) -> bytes:
        self.rows.update({key: (value, inf) for key, value in mset.items})
        return b"OK"

    def do_incr(self, incr: Any) -> int:
        if incr.mark and self.has(incr.mark):
            return int(self.rows[incr.mark][0])
        value = self.rows[incr.at][0] if self.has(incr.at) else b"0"
        if not re.fullmatch(rb"0|-?[1-9][0-9]{0,18}", value) or not -(2**63) <= int(value) < 2**63:
            raise StoreTypeError(incr.name, incr.key, "value is no integer")
        total = int(value) + incr.by
        if not -(2**63) <= total < 2**63:
            raise CounterOverflow(incr.name, incr.key, "the counter would overflow")
        self.rows[incr.at] = b"%d" % total, self.end(incr.at) if self.has(incr.at) else inf
        if incr.mark:
            self.rows[incr.mark] = b"%d" % total, self.now() + 600_000
        return total

    def do_delete(self, delete: Any) -> int:
        there = [key for key in dict.fromkeys(delete.keys) if self.has(key)]
        for key in there:
            del self.rows[key]
        return len(there)

    def do_exists(self, exists: Any) -> int:
        return sum([self.has(key) for key in exists.keys])

    def do_expire(self, expire: Any) -> int:
        there = self.has(expire.key)
        if there:
            self.rows[expire.key] = self.rows[expire.key][0], self.now() + expire.px
        return there

    def do_pttl(self, pttl: Any) -> int:
        if not self.has(pttl.key):
            return -2
        end = self.end(pttl.key)
        return -1 if end == inf else int(end - self.now())

    def do_ttl(self, ttl: Any) -> int:
        left = self.do_pttl(ttl)
        return left if left < 0 else (left + 500) // 1000

    def do_scan(self, scan: Any) -> list[Any]:
        return [b"0", [key.encode() for key in self.rows if key.startswith(scan.start) and self.has(key)]]
