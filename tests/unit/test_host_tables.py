"""Tables: nobody is taken to have used less than he did, whoever else is in them; few to have used more."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from redis_infra.throttling import host_tables
from redis_infra.throttling.host_tables import (
    ROWS,
    SEATS,
    TABLE_BYTES,
    Known,
    Note,
    Spot,
    Table,
    Tag,
    look_up,
    most_of,
    pages_of,
)

MINUTE, DAY = 60_000, 86_400_000
CHAT = Note(policy=0, salt=1, window=MINUTE, limit=20)
THREE = [CHAT, Note(0, 2, 60 * MINUTE, 200), Note(0, 3, DAY, 1000)]


@pytest.fixture
def table() -> Table:
    return Table(memoryview(bytearray(TABLE_BYTES)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set what the table takes for now, in milliseconds from the beginning of the test."""
    begin = time.monotonic_ns()

    def to(milliseconds: int) -> None:
        monkeypatch.setattr(time, "monotonic_ns", lambda: begin + milliseconds * 1_000_000)

    to(0)
    return to


def note(table: Table, number: int, used: list[int], at: int, notes: list[Note] | None = None) -> None:
    notes = notes or [CHAT]
    reply = [1, at]
    for each, count in zip(notes, used, strict=True):
        reply += (each.limit - count, 0, 0)
    table.note(pages_of(notes), (Tag(b"", number),) * len(notes), reply, 0)


def used(table: Table, number: int, note: Note = CHAT) -> int:
    known = most_of(look_up(table.memory, Spot.of(Tag(b"", number), note), now()))
    return known.used if known else 0


def now() -> int:
    return time.monotonic_ns() // 1_000_000


def crowded(table: Table, count: int, part: int = 1) -> None:
    """Fill the row of number 0 with others: all of their rows are that one."""
    for number in range(1, count + 1):
        note(table, number * ROWS | number * ROWS << 32, [part], number)


def test_three_limits_of_one_identity_are_one_slot(table: Table) -> None:
    note(table, 7, [1, 2, 3], 1000, THREE)
    note(table, 7, [2, 3, 4], 2000, THREE)
    assert [used(table, 7, each) for each in THREE] == [2, 3, 4]
    assert sum(any(table.memory[at : at + 64]) for at in range(0, TABLE_BYTES, 64)) == 1


def test_limits_of_one_identity_are_known_each_for_itself(table: Table) -> None:
    """Another process may ask for another set of them, under the same names."""
    note(table, 7, [5], 1000)
    note(table, 7, [6, 9, 9], 2000, THREE)
    note(table, 7, [7], 3000)
    assert [used(table, 7, each) for each in THREE] == [7, 9, 9]


def test_more_limits_than_a_slot_holds_take_several(table: Table) -> None:
    notes = [Note(0, salt, MINUTE * salt, 100) for salt in range(1, 8)]
    note(table, 7, list(range(1, 8)), 1000, notes)
    assert [used(table, 7, each) for each in notes] == list(range(1, 8))


def test_limits_of_several_identities_are_written_to_each(table: Table) -> None:
    pages = pages_of(THREE)
    table.note(pages, (Tag(b"", 7), Tag(b"", 8), Tag(b"", 7)), [1, 1000, 19, 0, 0, 198, 0, 0, 997, 0, 0], 0)
    assert [used(table, 7, each) for each in THREE] == [1, 0, 3]
    assert [used(table, 8, each) for each in THREE] == [0, 2, 0]


@pytest.mark.parametrize("notes", [[CHAT], THREE[:2], THREE], ids=len)
def test_what_was_said_last_counts_whoever_was_told_first(table: Table, notes: list[Note]) -> None:
    for count, at in ((1, 1000), (9, 3000), (8, 2000)):
        note(table, 7, [count] * len(notes), at, notes)
    assert [used(table, 7, each) for each in notes] == [9] * len(notes)
    note(table, 7, [2] * len(notes), 4000, notes)
    assert [used(table, 7, each) for each in notes] == [2] * len(notes), "a refund, say"


def test_a_server_whose_clock_was_set_back_is_believed(table: Table) -> None:
    note(table, 7, [1], 9000)
    for count in (2, 3, 4):
        note(table, 7, [count], 1000 + count)
    assert used(table, 7) == 4


def test_fourteen_find_seats_where_two_rows_are_theirs(table: Table) -> None:
    numbers = [1 | 2 << 32 | other * ROWS for other in range(2 * SEATS)]
    for number in numbers:
        note(table, number, [number // ROWS % 20 + 1], 1000)
    assert [used(table, number) for number in numbers] == [number // ROWS % 20 + 1 for number in numbers]
    assert used(table, 1 | 2 << 32 | 99 * ROWS) == 0, "a stranger has used nothing"


def test_seats_of_those_who_do_not_count_any_more_are_free(
    table: Table, clock: Callable[[int], None]
) -> None:
    crowded(table, SEATS, part=20)
    clock(MINUTE + 1001)
    note(table, ROWS * 99, [5], 99)
    assert used(table, ROWS * 99) == 5
    assert used(table, 0) == 0, "nobody had to be entered among the others"


def test_who_used_least_gets_up_and_is_still_known(table: Table) -> None:
    crowded(table, SEATS, part=10)
    bob = ROWS * 98 | ROWS * 98 << 32
    note(table, bob, [3], 100)
    assert used(table, bob) == 3
    note(table, ROWS * 99 | ROWS * 99 << 32, [15], 101)
    assert used(table, ROWS * 99 | ROWS * 99 << 32) == 15
    assert used(table, bob) == 10, "he is one of those of whom one used ten"
    assert used(table, ROWS | ROWS << 32) == 10


def test_what_others_used_is_a_part_of_a_limit(table: Table) -> None:
    """30 of 1000 a day are not the whole of 5 log-ins."""
    day, login = Note(0, 9, DAY, 1000), Note(5, 8, MINUTE, 5)
    for number in range(1, 2 * SEATS):
        note(table, number * ROWS | number * ROWS << 32, [30], number, [day])
    assert used(table, 0, day) in (30, 31)
    assert used(table, 5, login) == 0, "whose row it is, with the policy's number"


def test_who_is_entered_among_the_others_ages_with_them(table: Table, clock: Callable[[int], None]) -> None:
    """A stream of those who use one of twenty does not keep alive what somebody once used up."""
    crowded(table, SEATS, part=20)
    note(table, ROWS * 50 | ROWS * 50 << 32, [20], 50)
    assert used(table, 0) == 20
    for second in range(0, 240, 5):
        clock(second * 1000)
        crowded(table, SEATS, part=20)
        for stranger in range(60, 64):
            number = stranger * ROWS + second * 100 * ROWS
            note(table, number | number << 32, [1], 100 + second)
    assert used(table, 0) == 1


def test_who_is_entered_after_a_restart_makes_nobody_else_known_to_the_server(table: Table) -> None:
    """Or those whom the server has forgotten would have a fresh budget of it."""
    crowded(table, SEATS, part=20)
    bob = ROWS * 98 | ROWS * 98 << 32
    note(table, bob, [19], 100)
    eve = Tag(b"", ROWS * 99 | ROWS * 99 << 32)
    table.note(pages_of([CHAT]), (eve,), [1, 200, CHAT.limit - 18, 0, 0], 7)  # after the seventh restart
    known = most_of(look_up(table.memory, Spot.of(Tag(b"", bob), CHAT), now()))
    assert known is not None
    assert (known.used, known.restarted) == (19, 0)


def test_a_crowd_of_one_policy_says_nothing_of_anothers_limit(table: Table) -> None:
    once, login = Note(0, 9, DAY, 1), Note(0, 10, 15 * MINUTE, 5)
    for number in range(1, 4 * SEATS):
        note(table, number * ROWS | number * ROWS << 32, [1], number, [once])
    stranger = ROWS * 500 | ROWS * 500 << 32
    assert used(table, stranger, once) == 1, "the crowd has filled the row"
    assert used(table, stranger, login) == 0


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_believed_to_have_used_less_whoever_floods(table: Table, seed: int) -> None:
    dice = random.Random(seed)
    truth: dict[int, int] = {}
    for at in range(1, 4000):
        number = dice.randrange(60) * ROWS + (dice.randrange(3) << 32)
        truth[number] = min(20, truth.get(number, 0) + dice.choice((1, 1, 1, 5)))
        note(table, number, [truth[number]], at)
    assert all(used(table, number) >= count for number, count in truth.items())


def test_a_thousand_times_as_many_as_there_are_seats_take_no_more_room(table: Table) -> None:
    bob = 12345
    note(table, bob, [20], 1)
    dice = random.Random(1)
    for at in range(2, 60_000):
        note(table, dice.getrandbits(64), [1], at)
    assert used(table, bob) == 20, "he keeps what he has used up"
    assert used(table, 54321) <= 1, "a stranger is none the worse"
    assert len(table.memory) == TABLE_BYTES
    assert len(table._seats) <= host_tables.MOST_REMEMBERED


def test_a_slot_of_garbage_counts_for_nothing(table: Table) -> None:
    table.memory[:] = b"\xff" * TABLE_BYTES
    note(table, 7, [5], 1000)
    assert used(table, 7) == 5
    assert used(table, 8) == 0


@pytest.mark.parametrize("limit", [0, 1, 5, 31, 32, 100, 1000, 12_345, 9_999_999])
def test_a_limit_is_kept_to_three_percent_and_never_above(limit: int) -> None:
    kept = host_tables._smooth(host_tables._rough(limit))
    assert limit * 0.968 <= kept <= max(limit, 1)


def test_what_is_on_the_safe_side_is_the_most_of_all() -> None:
    one, other = Known(5, 100, 7, 70, 0), Known(1, 200, 9, 60, 0)
    assert most_of([one, None, other]) == Known(5, 200, 9, 70, 0)
    assert most_of([None, None]) is None
