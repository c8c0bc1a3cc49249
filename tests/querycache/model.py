"""Processes that read, write and invalidate at random, and the proof that nobody saw what was invalidated.

Who invalidates notes what the database said before he began; once his call has returned, that is the oldest
version that a reader may see who begins then. Expiry, stale values, early recomputation and computing twice
are all allowed; to see an older version is not.

While Redis is away each process is held to what it has invalidated itself.
"""

from __future__ import annotations

import asyncio
import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from redis_infra.querycache import ainvalidate, invalidate
from tests.querycache.functions import GROUPS, ITEM, PAGE, ROWS, VIEW, Database, Shop

PATIENCE: Final = 600.0
THREADS: Final = 3
TASKS: Final = 3


class Player:
    """One process' threads and tasks, and what they have seen that they should not have."""

    def __init__(self, path: Path, seed: int, steps: int) -> None:
        self.database = Database(path)
        self.shop = Shop(self.database)
        self.seed = seed
        self.steps = steps
        self.wrong: list[str] = []
        self._own: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._play, args=(number,)) for number in range(THREADS)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._aplay())))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def verdict(self) -> list[str]:
        for thread in self._threads:
            thread.join(PATIENCE)
        return self.wrong

    def _goes_on(self) -> bool:
        if self.wrong:
            self.database.finish()
        return self.database.count_step() <= self.steps

    def _play(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        try:
            while self._goes_on():
                self._step(chance)
        except Exception:
            self.wrong.append(traceback.format_exc())

    async def _aplay(self) -> None:
        try:
            await asyncio.gather(*[self._atask(number) for number in range(TASKS)])
        except Exception:
            self.wrong.append(traceback.format_exc())

    async def _atask(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + 50 + number)
        while self._goes_on():
            row = chance.randrange(ROWS)
            if chance.random() < 0.8:
                before = self._before(PAGE, row)
                self._check(PAGE, row, before, await self.shop.page(row % GROUPS, row))
                continue
            self.database.write(row)
            covered = {PAGE: {row: self.database.version(row)}}
            await chance.choice([self._forget_page, self._forget_pages])(row)
            self._covered(covered)

    # What a reader may see

    def _before(self, way: int, row: int) -> tuple[int, int, int]:
        """Return what is known before a read: whether all is well, and the floors of all and of our own."""
        unsettled = self.database.unsettled
        return unsettled, self.database.floor(way, row), self._own.get((way, row), 0)

    def _check(self, way: int, row: int, before: tuple[int, int, int], seen: Any) -> None:
        unsettled, floor, own = before
        settled = unsettled % 2 == 0 and self.database.unsettled == unsettled
        least = max(floor, own) if settled else own
        if not isinstance(seen, int) or not least <= seen <= self.database.version(row):
            kind = ("item", "view", "page")[way]
            self.wrong.append(
                f"{kind} of row {row} is version {seen}, invalidated by {least} "
                f"({'well' if settled else 'in an outage'}, own {own}, all {floor})"
            )

    def _covered(self, versions: dict[int, dict[int, int]]) -> None:
        """Note what an invalidation that has returned covered, by way and row."""
        for way, rows in versions.items():
            with self._lock:
                for row, version in rows.items():
                    self._own[way, row] = max(self._own.get((way, row), 0), version)
            self.database.raise_floor(way, rows)

    # Steps

    def _step(self, chance: random.Random) -> None:
        row = chance.randrange(ROWS)
        act = chance.choice(_ACTS)
        if act in (ITEM, VIEW):
            before = self._before(act, row)
            group = row % GROUPS
            seen = self.shop.item(group, row) if act == ITEM else self.shop.view(row, group)
            self._check(act, row, before, seen)
            return
        self.database.write(row)
        ways, rows, forget = act(self, row)
        covered = {way: {each: self.database.version(each) for each in rows} for way in ways}
        forget()
        self._covered(covered)

    async def _forget_page(self, row: int) -> None:
        await self.shop.page.ainvalidate(row % GROUPS, row)

    async def _forget_pages(self, row: int) -> None:
        await ainvalidate(f"page:{row % GROUPS}:{row}:*")


Act = Callable[[Player, int], tuple[tuple[int, ...], list[int], Callable[[], Any]]]
"""Returns the ways and the rows that it covers, and what invalidates them."""


def _of_group(row: int) -> list[int]:
    return [each for each in range(ROWS) if each % GROUPS == row % GROUPS]


def _one_item(player: Player, row: int) -> Any:
    return (ITEM,), [row], lambda: player.shop.item.invalidate(row % GROUPS, row)


def _items_of_group(_: Player, row: int) -> Any:
    return (ITEM,), _of_group(row), lambda: invalidate(f"item:{row % GROUPS}:*")


def _all_items(_: Player, row: int) -> Any:
    return (ITEM,), list(range(ROWS)), lambda: invalidate("item:*")


def _wildcard_in_front(_: Player, row: int) -> Any:
    return (ITEM, VIEW), [row], lambda: invalidate(f"*:{row}")


def _one_view(player: Player, row: int) -> Any:
    return (VIEW,), [row], lambda: player.shop.view.invalidate(row, row % GROUPS)


def _tag_of_row(_: Player, row: int) -> Any:
    return (VIEW,), [row], lambda: invalidate(tag=f"row:{row}")


def _tag_of_group(_: Player, row: int) -> Any:
    return (VIEW,), _of_group(row), lambda: invalidate(tag=f"group:{row % GROUPS}")


def _pages(_: Player, row: int) -> Any:
    return (PAGE,), [row], lambda: invalidate(f"page:*:{row}:body")


_ACTS: Final[tuple[Any, ...]] = (
    *[ITEM] * 10, *[VIEW] * 10, _one_item, _items_of_group, _all_items, _wildcard_in_front,
    _one_view, _tag_of_row, _tag_of_group, _pages,
)  # fmt: skip
