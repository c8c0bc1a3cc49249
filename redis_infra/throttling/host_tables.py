"""Tables: what Redis last said of each identity, where the other processes of the host can read it.

A process writes to a table of its own with each request that Redis lets through, so writing is what has to
be cheap: one decision is one *slot* of 64 bytes, whatever the number of its limits (up to three of one policy
and identity). The writer remembers where an identity sits, and so writes without reading, in one assignment.
A log that is appended to would be no cheaper, and would have to be folded before it is overwritten: what is
written here counts until its window ends, which may be a day.

An identity has two *rows* of the table to sit in, of seven seats each, and takes one in the emptier; seats
whose windows have ended are free. So a table is nearly full before anybody finds no seat. Then who has used
least gets up: what he used is entered in the eighth slot of his row, which speaks for everybody who belongs
there and has no seat. It says the largest part of a limit that any of them used: nobody gets a fresh budget
by a flood of made-up identities, who has used much keeps his seat, and strangers are taken for having used
as little as the least of all. It forgets too, in two generations, or else a steady stream would keep it what
it once was.

Half-written slots do no harm (:mod:`.host` says why), as long as nobody gets up before he is entered.
Knows nothing of files, processes and eras. Time is milliseconds of the monotonic clock.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = [
    "ROWS",
    "SEATS",
    "TABLE_BYTES",
    "Known",
    "Note",
    "Page",
    "Pages",
    "Spot",
    "Table",
    "Tag",
    "look_up",
    "most_of",
    "page_from",
    "page_text",
    "pages_of",
]

SLOT: Final = 64
ROWS: Final = 4096
SEATS: Final = 7
"""Slots of a row that are somebody's; the eighth is spare."""
_ROW_BYTES: Final = (SEATS + 1) * SLOT
RESTS: Final = 8
"""Slots of a row, behind all seats, that speak for all others: each for the limits of some salts."""
_RESTS_AT: Final = ROWS * _ROW_BYTES
TABLE_BYTES: Final = _RESTS_AT + ROWS * RESTS * SLOT
"""4 MiB, for 28,672 identities; pages of a file that are not written to take no memory."""
MOST_TOGETHER: Final = 3
"""Limits in one slot."""
MOST_REMEMBERED: Final = 8192
"""Identities of which the writer remembers where they sit; others he looks for, in two microseconds."""
SOON: Final = 60_000
"""Milliseconds: what claims to have been heard later than that is no time, but garbage."""
_MOST: Final = 0xFFFFFFFF
_WHOLE: Final = 24
"""Bits of a part of a limit."""
_LITTLE: Final = 1 << _WHOLE - 3

# A slot: number; the longest window in seconds; which three limits; after which restart of the server it was
# asked, when it said so (its clock), when that was heard (ours), how much of each is used, which is what
# changes; roughly how high the limits are.
_SLOT: Final = struct.Struct("@QI3IQQQ3II")
_CHANGES: Final = SLOT - 40
_change1 = struct.Struct("@QQQI").pack
_change2 = struct.Struct("@QQQII").pack
_change3 = struct.Struct("@QQQIII").pack
_ENDS: Final = _CHANGES + 28, _CHANGES + 32, _CHANGES + 36
# What speaks for all others: restart and time as above, the older generation's end; the younger one's end,
# beginning and longest window; which part of a limit is used, older and younger; whose salt it is, or
# several; the second in which the last was heard.
_REST: Final = struct.Struct("@QQQQQQIIII")
_ROW_END: Final = SEATS * SLOT
_SEVERAL: Final = 0xFFFFFFFF
_numbers = struct.Struct("@" + f"Q{SLOT - 8}x" * SEATS).unpack_from
_read, _read_rest = _SLOT.unpack_from, _REST.unpack_from


class Tag(NamedTuple):
    """An identity, as keys and tables have it."""

    text: bytes
    """32 hexadecimal digits: a keyed digest, from which nobody reads an address or a name."""
    number: int
    """64 bits of it: what tables have."""


class Note(NamedTuple):
    """A limit, as tables have it."""

    policy: int
    """What makes identities sit elsewhere for another policy: 64 bits that stand for its name."""
    salt: int
    """What tells the limits of one policy apart; 32 bits, not 0."""
    window: int
    limit: int


class Spot(NamedTuple):
    """Where one identity sits for one limit."""

    number: int
    salt: int
    window: int
    limit: int

    @classmethod
    def of(cls, tag: Tag, note: Note) -> Spot:
        return cls(tag.number ^ note.policy, note.salt, note.window, note.limit)


class Known(NamedTuple):
    """What Redis last said of one identity and limit."""

    used: int
    at: int
    """When it said so, by its own clock."""
    heard: int
    until: int
    """When all of that is forgotten."""
    restarted: int
    """The restart that was known of when it was asked: the server of another one may not remember it."""

    @property
    def rank(self) -> tuple[int, int, int]:
        """What was said last is the greatest; of what was said in one millisecond, the most that is used."""
        return self.restarted, self.at, self.used


class Page(NamedTuple):
    """Limits of one policy that are written together, for one identity."""

    mixed: int
    """With the identity's number, what tells this page of his from his others."""
    first: int
    """Which limit of the plan is the first one."""
    size: int
    """How many limits, of three at most: these."""
    limit: int
    second: int
    third: int
    policy: int
    salts: tuple[int, ...]
    windows: tuple[int, ...]
    longest: int
    """Seconds."""
    height: int
    """The limits, in the bits that a slot has for them."""

    @property
    def limits(self) -> tuple[int, ...]:
        return (self.limit, self.second, self.third)[: self.size]

    def spots(self, number: int) -> list[Spot]:
        """Return where the identity with this number sits, for each of these limits."""
        limits = zip(self.salts, self.windows, self.limits, strict=False)
        return [Spot(number, *limit) for limit in limits]


Pages: TypeAlias = tuple[tuple[Page, ...], tuple[Page, ...]]
"""A plan's: if all limits are for one identity, and if they are not."""


def pages_of(notes: Sequence[Note]) -> Pages:
    """Return the pages of a plan's limits."""
    together: list[Page] = []
    start = 0
    for end in range(1, len(notes) + 1):
        whole = end - start == MOST_TOGETHER or end == len(notes)
        if whole or notes[end].policy != notes[start].policy:
            together.append(page_of(notes[start:end], start))
            start = end
    return tuple(together), tuple(page_of([note], first) for first, note in enumerate(notes))


def page_of(notes: Sequence[Note], first: int = 0) -> Page:
    """Return the page of these limits, of which there are three at most."""
    padding = (0,) * (MOST_TOGETHER - len(notes))
    salts = tuple(note.salt for note in notes) + padding
    windows = tuple(note.window for note in notes)
    limit, second, third = *(note.limit for note in notes), *padding
    policy, longest = notes[0].policy, min(-(-max(windows) // 1000), _MOST)
    mixed = policy ^ _mixed(salts)
    height = _rough(limit) | _rough(second) << 10 | _rough(third) << 20
    return Page(mixed, first, len(notes), limit, second, third, policy, salts, windows, longest, height)


@lru_cache(maxsize=1024)
def page_text(page: Page) -> str:
    """Return what :func:`page_from` makes the page from again, wherever it stands in a plan."""
    limits = [f"{spot.salt},{spot.window},{spot.limit}" for spot in page.spots(0)]
    return ";".join([str(page.policy), *limits])


@lru_cache(maxsize=1024)
def page_from(text: str) -> Page:
    policy, *limits = text.split(";")
    return page_of([Note(int(policy), *map(int, each.split(","))) for each in limits])


def _mixed(salts: Sequence[int]) -> int:
    return salts[0] ^ salts[1] << 32 ^ salts[2] << 16


class Table:
    """What one process was told. Thread-safe; others may read ``memory`` while it is written."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._seats: dict[int, list[Any]] = {}
        """Of whom it is known where he sits: there, when Redis said so, after which restart, what is used."""
        self._lock = threading.Lock()

    def note(self, pages: Pages, tags: Sequence[Tag], reply: Sequence[int], restarted: int) -> None:
        """Write down what a reply of ``hit.lua`` says to remain.

        ``restarted`` is the word of that name from before Redis was asked.
        """
        # 0.9 microseconds for up to three limits of one identity: nothing is read, and each call counts.
        at, now = reply[1], time.monotonic_ns() // 1_000_000
        apart = tags.count(tags[0]) != len(tags)
        with self._lock:
            for page in pages[apart]:
                mixed, first, size, limit, second, third, policy, _, _, _, _ = page
                number, left = tags[first].number, 3 * first + 2
                seat = self._seats.get(number ^ mixed)
                if seat is None or seat[1] > at or seat[2] != restarted:
                    used = [most - reply[left + 3 * n] for n, most in enumerate(page.limits)]
                    self._write(number ^ policy, page, used, at, restarted, now)
                    continue
                used1 = limit - reply[left]
                used2 = second - reply[left + 3] if size > 1 else 0
                used3 = third - reply[left + 6] if size > 2 else 0
                if seat[1] == at:  # of two replies of one millisecond, which came first nobody knows
                    used1, used2, used3 = max(used1, seat[3]), max(used2, seat[4]), max(used3, seat[5])
                seat[1], seat[3], seat[4], seat[5] = at, used1, used2, used3
                # Not pack_into, which empties a slot before it fills it: others would read nothing.
                if size == 1:
                    change = _change1(restarted, at, now, used1)
                elif size == 2:
                    change = _change2(restarted, at, now, used1, used2)
                else:
                    change = _change3(restarted, at, now, used1, used2, used3)
                self.memory[seat[0]] = change

    def note_used(
        self, number: int, page: Page, used: Sequence[int], at: int, restarted: int, now: int
    ) -> None:
        """Write down how much is used of each limit of a page."""
        with self._lock:
            self._write(number, page, used, at, restarted, now)

    # Seats. Whoever comes here has the lock.

    def _write(self, number: int, page: Page, used: Sequence[int], at: int, restarted: int, now: int) -> None:
        """Write to the seat of an identity, or to one that it takes."""
        told, rows = (restarted, at), _rows_of(number)
        sitting = _numbers(self.memory, rows[0]), _numbers(self.memory, rows[1])
        where = self._find(number, page.salts, rows, sitting)
        if where is None:
            where = _free(rows, sitting)
            if where is None:
                part = _part(used, page.height)
                mine = _Left(page.salts, tuple(used), page.height, told, now, now + page.longest * 1000)
                if part < _LITTLE and number not in sitting[0] + sitting[1] and self._is_rest(rows[0], mine):
                    self._enter(rows[0], mine, now)  # in a flood, what most are: like others
                    return
                where = self._make_room(number, part, mine, now, rows)
            if where is None:
                return
        else:
            _, _, *_, old_restarted, old_at, heard, u1, u2, u3, _ = _read(self.memory, where)
            old = [
                each if heard + window > now else 0
                for each, window in zip((u1, u2, u3), page.windows, strict=False)
            ]
            if any(old) and (old_restarted, old_at) >= told:
                if old_restarted > restarted or all(a >= b for a, b in zip(old, used, strict=True)):
                    return  # another thread was told later, or more in the same millisecond
                # Both in one millisecond, or the server's clock was set back.
                at, used = old_at, [max(pair) for pair in zip(old, used, strict=True)]
        u1, u2, u3 = (*used, 0, 0)[:MOST_TOGETHER]
        self.memory[where : where + SLOT] = _SLOT.pack(
            number, page.longest, *page.salts, restarted, at, now, u1, u2, u3, page.height
        )
        if len(self._seats) >= MOST_REMEMBERED:
            self._seats.clear()
        changes = slice(where + _CHANGES, where + _ENDS[page.size - 1])
        self._seats[number ^ page.policy ^ page.mixed] = [changes, at, restarted, u1, u2, u3]

    def _find(self, number: int, salts: tuple[int, ...], rows: _Pair, sitting: _Sitting) -> int | None:
        for row, numbers in zip(rows, sitting, strict=True):
            for place in _places(numbers, row, number):
                if _read(self.memory, place)[2:5] == salts:
                    return place
        return None

    def _make_room(self, number: int, part: int, mine: _Left, now: int, rows: _Pair) -> int | None:
        """Return a seat for a newcomer; None if he was entered among the others."""
        lightest, least = None, part
        for row in rows:
            for place in range(row, row + _ROW_END, SLOT):
                owner, longest, *_, heard, u1, u2, u3, height = _read(self.memory, place)
                if heard + longest * 1000 <= now or heard > now + SOON:
                    self._forget_seat(place)
                    return place
                # Of one identity never one page on a seat and another among the others, where it counts less.
                weight = -1 if owner == number else _part((u1, u2, u3), height)
                if weight < least:
                    lightest, least = place, weight
        if lightest is None:
            self._enter(rows[0], mine, now)
            return None
        _, longest, s1, s2, s3, restarted, at, heard, u1, u2, u3, height = _read(self.memory, lightest)
        left = _Left((s1, s2, s3), (u1, u2, u3), height, (restarted, at), heard, heard + longest * 1000)
        self._enter(lightest - lightest % _ROW_BYTES, left, now)
        self._forget_seat(lightest)
        return lightest

    def _forget_seat(self, place: int) -> None:
        number, _, *salts = _read(self.memory, place)[:5]
        self._seats.pop(number ^ _mixed(salts), None)

    def _is_rest(self, row: int, mine: _Left) -> bool:
        return all(_read_rest(self.memory, _rest_place(row, salt))[7] == part for salt, part in mine.parts())

    def _enter(self, row: int, left: _Left, now: int) -> None:
        """Enter what somebody used of each limit among what the others of his row did of it."""
        for salt, part in left.parts():
            self._enter_one(_rest_place(row, salt), salt, part, left, now)

    def _enter_one(self, place: int, salt: int, part: int, left: _Left, now: int) -> None:
        restarted, at = left.told
        was, said, older, end, began, span, older_part, younger_part, whose, last = _read_rest(
            self.memory, place
        )
        if younger_part and began + span <= now and older <= now:
            older, older_part = end, younger_part
            # In two steps: who reads between them finds the same twice, and not nothing.
            self._put_rest(place, was, said, older, end, began, span, older_part, younger_part, whose, last)
            younger_part = 0
        if not (older_part and older > now) and not (younger_part and end > now):
            whose = 0
        if not younger_part or end <= now:
            end, began, span, younger_part = 0, now, 0, 0
        # The oldest restart of all that live: or else one who was told after it would make the others known
        # to a server that has forgotten them.
        was, said = (min(was, restarted), max(said, at)) if whose else (restarted, at)
        end, span, younger_part = max(end, left.until), max(span, left.until - now), max(younger_part, part)
        whose = salt if whose in (0, salt) else _SEVERAL
        last = max(last, -(-left.heard // 1000)) if last <= (now + SOON) // 1000 else now // 1000 + 1
        self._put_rest(place, was, said, older, end, began, span, older_part, younger_part, whose, last)

    def _put_rest(self, place: int, *rest: int) -> None:
        self.memory[place : place + SLOT] = _REST.pack(*rest)


class _Left(NamedTuple):
    """What somebody used who has no seat."""

    salts: tuple[int, ...]
    used: tuple[int, ...]
    height: int
    told: tuple[int, int]
    heard: int
    until: int

    def parts(self) -> list[tuple[int, int]]:
        """Return which part of each limit is used, by its salt."""
        return [
            (salt, _part((used,), self.height >> 10 * n))
            for n, (salt, used) in enumerate(zip(self.salts, self.used, strict=False))
            if salt and used
        ]


def _rest_place(row: int, salt: int) -> int:
    return _RESTS_AT + (row // _ROW_BYTES * RESTS + salt % RESTS) * SLOT


_Pair: TypeAlias = tuple[int, int]
_Sitting: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
_Told: TypeAlias = tuple[tuple[int, int], int]
"""After which restart and when Redis said it, and until when it counts."""


def look_up(memory: memoryview, spot: Spot, now: int) -> tuple[Known | None, Known | None]:
    """Return what a table says of an identity; and of those who have no seat there, if he has none."""
    number, salt, window, _ = spot
    best, rank, sits = None, (-1, 0, 0), False
    rows = _rows_of(number)
    for row in rows:
        for place in _places(_numbers(memory, row), row, number):
            sitting, _, s1, s2, s3, restarted, at, heard, u1, u2, u3, _ = _read(memory, place)
            if sitting != number or salt not in (s1, s2, s3):
                continue  # he got up meanwhile; or other limits
            sits = True
            used = u1 if salt == s1 else u2 if salt == s2 else u3
            if heard + window > now and heard <= now + SOON and (restarted, at, used) > rank:
                rank = restarted, at, used
                best = Known(used, at, min(heard, now), heard + window, restarted)
    if sits:
        return best, None
    return None, most_of([_rest_of(memory, row, spot, now) for row in rows])


def most_of(found: Sequence[Known | None]) -> Known | None:
    """Return what is on the safe side of all that is known."""
    known = [each for each in found if each is not None]
    if len(known) < 2:
        return known[0] if known else None
    # Of who has a seat it is known what he was told after (he is the first); of others the oldest counts.
    restarted, at = min(each.restarted for each in known), max(each.at for each in known)
    heard, until = max(each.heard for each in known), max(each.until for each in known)
    return Known(max(each.used for each in known), at, heard, until, restarted)


def _rest_of(memory: memoryview, row: int, spot: Spot, now: int) -> Known | None:
    place = _rest_place(row, spot.salt)
    restarted, at, older, end, _, _, older_part, younger_part, whose, last = _read_rest(memory, place)
    if whose not in (spot.salt, _SEVERAL) or last * 1000 + spot.window <= now:
        return None
    older, end = (each if now < each < now + 1000 * _MOST else 0 for each in (older, end))
    part = max(older_part if older else 0, younger_part if end else 0)
    if not part:
        return None
    # Whose and of which limit it is nobody knows; of this one it counts no longer than a window.
    until = min(max(older, end), now + spot.window)
    # Rounded down, since the part was rounded up: never below the whole number that it was made from.
    return Known(part * spot.limit >> _WHOLE, at, min(until - spot.window, now), until, restarted)


def _part(used: Sequence[int], height: int) -> int:
    """Return the largest part of a limit that is used, rounded up: in 2 ** -24 of it, up to 255 times it."""
    parts = [-(-(each << _WHOLE) // _smooth(height >> 10 * n)) for n, each in enumerate(used) if each]
    return min(max(parts, default=0), _MOST)


def _rough(limit: int) -> int:
    """Return a limit in 10 bits: rounded down by 3 % at most."""
    shift = max(min(limit, _MOST).bit_length() - 5, 0)
    return shift << 5 | min(limit, _MOST) >> shift


def _smooth(rough: int) -> int:
    return max((rough & 31) << (rough >> 5 & 31), 1)


def _rows_of(number: int) -> _Pair:
    """Return where the two rows of an identity begin."""
    return number % ROWS * _ROW_BYTES, (number >> 32) % ROWS * _ROW_BYTES


def _places(numbers: tuple[int, ...], row: int, number: int) -> list[int]:
    """Return where a row has slots of an identity."""
    if number not in numbers:
        return []
    return [row + SLOT * n for n, each in enumerate(numbers) if each == number]


def _free(rows: _Pair, sitting: _Sitting) -> int | None:
    """Return a place that nobody ever took, in the emptier row."""
    first, second = sitting[0].count(0), sitting[1].count(0)
    if not (first or second):
        return None
    emptier = second > first
    return rows[emptier] + SLOT * sitting[emptier].index(0)
