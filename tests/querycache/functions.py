"""What the workers cache: one slow function, and a small shop over a database that is a file of numbers.

The file is shared memory. It has a version for every row, and for every row and way of reading it the version
that readers may rely on: that of the last invalidation that had returned.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from redis_infra.querycache import cached

ROWS: Final = 12
GROUPS: Final = 3
ITEM, VIEW, PAGE = range(3)
"""Ways of reading a row: as an item of its group, as a tagged view that may be stale, as a coroutine."""
_SLOTS: Final = ROWS * 4 + 2
_UNSETTLED, _STEPS = ROWS * 4, ROWS * 4 + 1


class Database:
    """Versions of rows, shared by all processes that open the same file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        self._memory = mmap.mmap(self._file.fileno(), _SLOTS * 8)
        # Numbers as they are: struct writes zeros first, and another process may read those.
        self._numbers = memoryview(self._memory).cast("q")
        self._lock = threading.Lock()

    @staticmethod
    def create(path: Path) -> Database:
        path.write_bytes(bytes(_SLOTS * 8))
        return Database(path)

    def _get(self, slot: int) -> int:
        return self._numbers[slot]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _put(self, slot: int, number: int) -> None:
        self._numbers[slot] = number

    def version(self, row: int) -> int:
        return self._get(row)

    def write(self, row: int) -> None:
        with self._alone():
            self._put(row, self._get(row) + 1)

    def floor(self, way: int, row: int) -> int:
        """Return the oldest version that a reader may still see who begins now."""
        return self._get(ROWS * (1 + way) + row)

    def raise_floor(self, way: int, versions: dict[int, int]) -> None:
        with self._alone():
            for row, version in versions.items():
                slot = ROWS * (1 + way) + row
                self._put(slot, max(self._get(slot), version))

    @property
    def unsettled(self) -> int:
        """Odd from before an outage until all processes have had time to hear of its end."""
        return self._get(_UNSETTLED)

    def unsettle(self) -> None:
        with self._alone():
            self._put(_UNSETTLED, self.unsettled + 1)

    settle = unsettle

    def count_step(self) -> int:
        with self._alone():
            self._put(_STEPS, self._get(_STEPS) + 1)
            return self._get(_STEPS)

    def finish(self) -> None:
        """Let all who play come to an end."""
        with self._alone():
            self._put(_STEPS, 2**62)

    @property
    def steps(self) -> int:
        return self._get(_STEPS)

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()
        self._file.close()


class Shop:
    """Cached functions over a database, whose loaders take their time between reading and returning."""

    def __init__(self, database: Database) -> None:
        self.database = database

        @cached("item:{group}:{row}", ttl=0.3)
        def item(group: int, row: int) -> int:
            version = database.version(row)
            time.sleep(_moment())
            return version

        @cached("view:{row}", ttl=0.04, stale=20, tags=["row:{row}", "group:{group}"])
        def view(row: int, group: int) -> int:
            version = database.version(row)
            time.sleep(_moment())
            return version

        @cached("page:{group}:{row}:body", ttl=0.2, stale=0.2)
        async def page(group: int, row: int) -> int:
            version = database.version(row)
            await asyncio.sleep(_moment())
            return version

        self.item, self.view, self.page = item, view, page


def _moment() -> float:
    """Return seconds: mostly none, at times long enough for others to invalidate what was read."""
    return random.choice([0.0, 0.0, 0.002, 0.012])


def slow_functions(log: Path, seconds: float) -> dict[str, Callable[..., Any]]:
    """Return cached functions that take ``seconds``, say so in a file, and return who computed.

    A line a computation: the process, and when it began by the clock that all processes of a host share.
    """

    def note() -> None:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()} {time.monotonic()}\n")

    @cached("slow:{name}", ttl=30)
    def slow(name: str) -> int:
        note()
        time.sleep(seconds)
        return os.getpid()

    @cached("slow:{name}", ttl=30)
    async def aslow(name: str) -> int:
        note()
        await asyncio.sleep(seconds)
        return os.getpid()

    @cached("brief:{name}", ttl=lambda _: 0.1 if len(log.read_text().splitlines()) == 1 else 30)
    def brief(name: str) -> int:
        note()
        time.sleep(seconds)
        return os.getpid()

    @cached("refused:{name}", ttl=30, condition=lambda _: False)
    def refused(name: str) -> int:
        note()
        time.sleep(seconds)
        return os.getpid()

    return {"slow": slow, "aslow": aslow, "brief": brief, "refused": refused}
