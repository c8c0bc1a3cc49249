"""Forgetting: a thousand entries of many, by pattern and by tag, and what the index costs that finds them.

Each cache has a server of its own, because who scans would look at everybody's keys. What was forgotten is
stored again before the next turn, so that there are as many as the row says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import cast

from benchmarks.harness import FULL, Cell, Plan, Row, Samples, Table, Target, digits, duration
from benchmarks.peers import DJANGO_REDIS, OURS
from benchmarks.querycache_peers import CACHEOPS, is_installed, presence_notes, site
from benchmarks.querycache_stock import NAMED, PAGES, PINS, SCAN, STOCKS, Ours, Plain, Stock
from benchmarks.server import private_server

ROWS = ("forget",)

SMALL, LARGE = 100_000, 1_000_000
CONTENDERS = (OURS, NAMED, SCAN, DJANGO_REDIS, CACHEOPS)
HOLD = Target(12, " ms")
GROWTH = Target(2, " x")
"""The server's own part: the same thousand keys lie further apart. A third of what is held at 1,000,000."""
KEY_LENGTH = len("chat:42:messages:042")
MEMORY = Target(2 * KEY_LENGTH + 250, " B")
TURNED = Target(1.5, " x")
TURNS = 10
LIVE = {False: 5_000, True: 20_000}
"""Entries that live while others take their place, in a hurry and else."""

NOTE = (
    f"Median time to forget {PAGES:,} entries of 100 B; each cache alone on its server. {SCAN} is redis-py "
    f"by hand; {DJANGO_REDIS} is `delete_pattern`; {NAMED} needs no pattern, and shows what the server takes "
    "to remove as much; cacheops forgets what depends on a chat, not what matches a pattern. Growth is from "
    "the smaller to the larger number of entries, in the same round."
)


@dataclass(slots=True)
class Warehouse:
    """All stocks of one size, and how each of them forgets."""

    size: int
    stocks: dict[str, Stock] = field(default_factory=dict)

    @property
    def ours(self) -> Ours:
        return cast(Ours, self.stocks[OURS])

    @property
    def plain(self) -> Plain:
        return cast(Plain, self.stocks[DJANGO_REDIS])

    def chat(self, turn: int) -> int:
        """Return whose turn it is."""
        return (7 * turn + 42) % (self.size // PAGES)

    def pages(self) -> str:
        """Return the glob of as many pages as there are a thousand of, in all chats."""
        return "077" if self.size == LARGE else "07?"

    def forget_chat(self, name: str, turn: int) -> float:
        """Return how many seconds a contender took to forget a chat; store it again."""
        chat = self.chat(turn)
        by_hand = {SCAN: self.plain.scan_chat, NAMED: self.plain.unlink_chat}
        stock = self.plain if name in by_hand else self.stocks[name]
        forget = by_hand.get(name, stock.forget_chat)
        seconds = timed(lambda: forget(chat))
        stock.store_chat(chat)
        return seconds

    def forget_pages(self, name: str) -> float:
        stock = self.ours if name == OURS else self.plain
        forget = self.ours.forget_pages if name == OURS else self.plain.scan_pages
        seconds = timed(lambda: forget(self.pages()))
        first, last = (77, 77) if self.size == LARGE else (70, 79)
        stock.store([(chat, page) for chat in range(stock.chats) for page in range(first, last + 1)])
        return seconds

    def forget_pins(self) -> float:
        seconds = timed(self.ours.forget_pins)
        self.ours.store_pins()
        return seconds

    def forget_without_index(self) -> tuple[float, float]:
        """Return what it takes when the index was lost, and after what time it is whole again."""
        self.ours.lose_index()
        started = time.perf_counter()
        seconds = self.forget_chat(OURS, 0)
        self.ours.wait_for_index()
        return seconds, time.perf_counter() - started


def tables(plan: Plan, say: Callable[[str], None]) -> list[Table]:
    """Measure how each cache forgets, and what ours keeps for that."""
    sizes = (SMALL, LARGE) if plan is FULL else (SMALL,)
    rounds = 9 if plan is FULL else 5
    with opened(sizes, say) as warehouses:
        found = Found()
        for turn in range(rounds):
            say(f"forget: round {turn + 1} of {rounds}")
            for warehouse in warehouses:
                found.take(warehouse, turn)
        for warehouse in warehouses:
            say(f"forget: without an index, {warehouse.size:,}")
            lost, rebuilt = warehouse.forget_without_index()
            found.add("lost", OURS, warehouse.size, lost)
            found.add("rebuilt", OURS, warehouse.size, rebuilt)
        rows = [*forget_rows(found, sizes), *memory_rows(warehouses)]
        say("forget: turnover")
        rows.append(turnover_row(warehouses[0].ours, LIVE[plan is FULL]))
    names = [name for name in CONTENDERS if is_installed(name)]
    return [
        Table(
            title="Query cache, forgetting",
            note=NOTE,
            contenders=names,
            rows=rows,
            footnotes=presence_notes(),
        )
    ]


@contextmanager
def opened(sizes: Sequence[int], say: Callable[[str], None]) -> Iterator[list[Warehouse]]:
    """Start a server for each cache and size, and fill them."""
    names = [name for name in STOCKS if is_installed(name)]
    with ExitStack() as stack:
        state_dir = stack.enter_context(TemporaryDirectory())
        urls = {
            alias_of(name, size): stack.enter_context(private_server()).url
            for size in sizes
            for name in names
        }
        stack.enter_context(site(urls, state_dir))
        warehouses = []
        for size in sizes:
            warehouse = Warehouse(size)
            for name in names:
                say(f"forget: {name}, filling {size:,}")
                alias = alias_of(name, size)
                stock = STOCKS[name](size // PAGES, urls[alias], alias)
                stack.callback(stock.close)
                stock.fill()
                warehouse.stocks[name] = stock
            warehouses.append(warehouse)
        yield warehouses


def alias_of(name: str, size: int) -> str:
    return f"{name}-{size}"


@dataclass(slots=True)
class Found:
    """Seconds of what was done, by contender and number of entries, a value a round."""

    samples: Samples = field(default_factory=Samples)

    def add(self, what: str, name: str, size: int, seconds: float) -> None:
        self.samples.add(label(what, name, size), seconds)

    def take(self, warehouse: Warehouse, turn: int) -> None:
        """Have everybody take a turn."""
        size = warehouse.size
        for name in CONTENDERS:
            if is_installed(name):
                self.add("chat", name, size, warehouse.forget_chat(name, turn))
        for name in (OURS, SCAN):
            self.add("pages", name, size, warehouse.forget_pages(name))
        self.add("tag", OURS, size, warehouse.forget_pins())

    def cells(self, what: str, size: int) -> dict[str, Cell]:
        """Return what each contender took."""
        there = [name for name in CONTENDERS if label(what, name, size) in self.samples.by_name]
        return {name: self._cell(label(what, name, size)) for name in there}

    def growths(self, what: str) -> dict[str, float]:
        """Return how many times as long each contender takes with the larger number of entries."""
        return {
            name: self.samples.ratio(label(what, name, LARGE), label(what, name, SMALL))
            for name in CONTENDERS
            if label(what, name, LARGE) in self.samples.by_name
        }

    def milliseconds(self, what: str, size: int) -> float:
        """Return what ours took."""
        return 1000 * self.samples.median(label(what, OURS, size))

    def _cell(self, name: str) -> Cell:
        median, (low, high) = self.samples.median(name), self.samples.spread(name)
        facts = {"median_ms": median * 1e3, "p10_ms": low * 1e3, "p90_ms": high * 1e3}
        return Cell(duration(median), {key: round(value, 3) for key, value in facts.items()})


def label(what: str, name: str, size: int) -> str:
    return f"{what} {name} {size}"


def forget_rows(found: Found, sizes: Sequence[int]) -> list[Row]:
    """Return what forgetting takes."""
    titles = {
        "chat": f"`chat:42:*`, {PAGES:,} of {{size:,}}",
        "tag": f"a tag of {PINS:,} beside {{size:,}}",
        "pages": f"`chat:*:messages:{{pages}}`, {PAGES:,} of {{size:,}}",
        "lost": "`chat:42:*` of {size:,}, the index lost",
        "rebuilt": "until it is whole again, of {size:,}",
    }
    rows = []
    for what, title in titles.items():
        for size in sizes:
            cells = found.cells(what, size)
            if not cells:
                continue
            hold = HOLD if what == "chat" and size == LARGE else None
            figure = found.milliseconds(what, size)
            said = title.format(size=size, pages=Warehouse(size).pages())
            rows.append(Row(slug="forget", title=said, cells=cells, figure=figure, target=hold))
        if what == "chat" and len(sizes) > 1:
            rows.append(growth_row(found.growths(what)))
    return rows


def growth_row(growths: dict[str, float]) -> Row:
    """Return how much longer it takes with ten times as many entries."""
    cells = {name: Cell(f"{digits(times)} x", {"times": round(times, 3)}) for name, times in growths.items()}
    return Row(slug="forget", title="growth", cells=cells, figure=growths[OURS], target=GROWTH)


def memory_rows(warehouses: Sequence[Warehouse]) -> list[Row]:
    """Return what is kept beside the entries, for each of them."""
    rows = []
    for warehouse in warehouses:
        cells, figure = {}, 0.0
        for name, stock in warehouse.stocks.items():
            kept = stock.index_bytes()
            if kept is not None:
                each = kept / stock.size
                cells[name] = Cell(f"{digits(each)} B", {"bytes": round(each, 1)})
                figure = each if name == OURS else figure
        title = f"index memory an entry, {warehouse.size:,}, keys of {KEY_LENGTH} B"
        rows.append(Row(slug="forget", title=title, cells=cells, figure=figure, target=MEMORY))
    return rows


def turnover_row(ours: Ours, live: int) -> Row:
    """Return how much is left of what is gone, in the index."""
    ours.helper.flushdb()
    members = ours.turn_over(live, TURNS)
    cells = {OURS: Cell(f"{digits(members)} x", {"members": round(members, 3), "live": live})}
    title = f"index members a live entry, {live:,} turned over {TURNS} times by eviction"
    return Row(slug="forget", title=title, cells=cells, figure=members, target=TURNED)


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds one call took."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
