"""The cache contract with every kind of broken Redis: nothing raises that would not raise on locmem.

The fault is there before a test and stays; outages that begin and end are tests of their own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.cache.backends.locmem import LocMemCache

from redis_infra.cache.engine import forget_engines
from redis_infra.connection.lifecycle import reset_for_tests
from redis_infra.testing.contract import CacheContract, Call, ContractFixtures
from tests.contract.faults import FAULTS, HANGS

# What one request may wait in all, and a margin of three.
BUDGET = 3 * 0.55


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Let what the process knows of a server live as long as the server, and not a test: as in a site."""


@pytest.fixture(scope="module", params=FAULTS)
def faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """A server that has a fault; one serves all tests of that fault."""
    # Not tmp_path: with the name of a test in it a socket's path would be too long.
    with (
        tempfile.TemporaryDirectory(prefix="ri-") as directory,
        FAULTS[request.param](Path(directory)) as url,
    ):
        yield Faulty(request.param, url, str(tmp_path_factory.mktemp("state")))
        forget()


class Faulty(NamedTuple):
    fault: str
    url: str
    state_dir: str


def forget() -> None:
    """Begin as a new process would."""
    forget_engines()
    reset_for_tests()


class OnFaulty:
    """A cache, and others over the same data, on the server with the fault."""

    @pytest.fixture
    def make_cache(self, alias_on: Callable[..., Any], faulty: Faulty) -> Iterator[Callable[..., Any]]:
        # With the waits of the defaults: it probes as seldom as it would in a site.
        options = {"BREAKER": {}, "STATE_DIR": faulty.state_dir}
        made: list[Any] = []

        def make(**changes: Any) -> Any:
            made.append(alias_on(faulty.url, OPTIONS=options, **changes))
            return made[-1]

        yield make
        for each in made:
            each.clear()

    @pytest.fixture
    def cache(self, make_cache: Callable[..., Any]) -> Any:
        """A cache of a process that has met the fault; how the first operations fare is asked below."""
        cache = make_cache()
        for _ in range(2):  # the second timeout in a row opens
            cache.set("met", 1)
        cache.delete("met")
        return cache


@pytest.mark.long
class TestWholeContract(OnFaulty, CacheContract):
    pass


class TestContractInShort(OnFaulty, ContractFixtures):
    """What might depend on who answers. Which values, names and lives there are does not."""


IN_SHORT = """
    test_a_missing_key_is_the_callers_default  test_what_was_set_is_there  test_set_replaces
    test_set_nx_leaves_what_is_there  test_set_xx_replaces_what_is_there  test_add_stores_where_nothing_is
    test_add_leaves_what_is_there  test_add_lets_one_of_many_in  test_add_after_delete_stores_again
    test_delete_tells_whether_something_was_there  test_has_key_is_a_bool  test_a_stored_none_is_no_miss
    test_add_does_not_replace_a_stored_none  test_add_stores_none
    test_get_many_leaves_out_what_is_missing  test_set_many_stores_all
    test_set_many_returns_the_keys_that_failed_which_are_none
    test_many_more_keys_than_one_command_should_hold
    test_delete_many_counts_what_was_there  test_clear_removes_all
    test_incr_adds_and_returns_the_sum  test_an_added_counter_counts  test_a_counter_of_set_many_counts
    test_incr_past_64_bits_is_an_overflow_and_changes_nothing  test_floats_count
    test_concurrent_incr_counts_each_once  test_incr_or_create_counts_on
    test_concurrent_incr_or_create_counts_each_once  test_incr_does_not_lengthen_a_life
    test_touch_of_a_key_that_is_there_is_true  test_touch_of_a_missing_key_is_false
    test_incr_version_moves_the_key_and_returns_its_version
    test_clear_follows_a_prefix_that_was_reassigned  test_clear_under_a_key_function_of_the_sites_own
    test_delete_pattern_removes_and_counts_what_matches  test_delete_pattern_keeps_to_one_version
    test_get_or_set_computes_once  test_get_or_set_returns_a_stored_none
      test_a_computation_may_use_the_cache
    test_aliases_with_one_location_share_data  test_one_unpicklable_value_keeps_set_many_from_storing_any
    test_close_can_be_called_at_any_time  test_sync_and_async_see_the_same_data
    test_every_loop_is_as_good_as_the_first  test_tasks_get_their_own_answers
    test_a_cancelled_task_leaves_no_reply_behind
"""
for _name in IN_SHORT.split():
    setattr(TestContractInShort, _name, getattr(CacheContract, _name))


# A request as sites make them. Whichever operation comes first is the one that meets the fault.
REQUEST: list[tuple[str, tuple[Any, ...]]] = [
    ("get", ("missing", "default")),
    ("set", ("k", {"a": 1})),
    ("get", ("k",)),
    ("add", ("k", 2)),
    ("add", ("added", 2)),
    ("has_key", ("k",)),
    ("touch", ("k", 60)),
    ("touch", ("missing", 60)),
    ("set_many", ({"a": 1, "b": None},)),
    ("get_many", (["a", "b", "missing"],)),
    ("incr", ("a", 2)),
    ("decr", ("a",)),
    ("incr", ("missing",)),
    ("incr_version", ("a",)),
    ("get_or_set", ("filled", lambda: "computed")),
    ("get_or_set", ("filled", "not again")),
    ("delete", ("k",)),
    ("delete", ("k",)),
    ("delete_many", (["a", "b"],)),
    ("clear", ()),
]
QUICK, SLOW = range(0, len(REQUEST), 3), range(0, len(REQUEST), 9)


def answers(call: Call, cache: Any, first: int) -> list[Any]:
    """Make the request, beginning with its ``first`` operation; return what came back, or what was raised."""
    came: list[Any] = []
    for name, arguments in REQUEST[first:] + REQUEST[:first]:
        try:
            answer = call(getattr(cache, name), *arguments)
        except (ValueError, TypeError) as error:
            answer = type(error)
        # Their counts and None are no matter of faults.
        came.append((name, None if name in ("set", "delete_many", "clear") else answer))
    return came


class TestFirstRequest(OnFaulty):
    """A process that has not met the fault yet answers as locmem does, and waits no longer than it may."""

    @pytest.fixture
    def cache(self, alias_on: Callable[..., Any], faulty: Faulty) -> Iterator[Any]:
        forget()
        yield alias_on(faulty.url, OPTIONS={"BREAKER": {}})
        # What a request leaves in memory is not for the next test to find, whichever comes next.
        forget()

    @pytest.mark.parametrize("first", QUICK)
    def test_a_request_is_answered_as_locmem_would(
        self, cache: Any, faulty: Faulty, call: Call, first: int
    ) -> None:
        if faulty.fault in HANGS and first not in SLOW:
            return  # each costs the budget; the faults that show at once try all
        began = time.monotonic()
        came = answers(call, cache, first)
        waited = time.monotonic() - began
        assert came == answers(Call(), LocMemCache(uuid.uuid4().hex, {}), first)
        assert waited < BUDGET

    def test_threads_that_meet_it_at_once_wait_no_longer(self, cache: Any) -> None:
        began = time.monotonic()
        assert Call().at_once(16, cache.get, "missing", "default") == ["default"] * 16
        assert time.monotonic() - began < BUDGET

    def test_reads_that_succeed_do_not_have_every_write_wait(self, cache: Any, call: Call) -> None:
        """A server that reads and does not write answers every second operation of such a request."""
        began = time.monotonic()
        for number in range(10):
            call(cache.set, f"k{number}", number)
            assert call(cache.get, f"missing{number}") is None
        assert time.monotonic() - began < BUDGET

    @pytest.mark.parametrize("is_async", [False, True])
    def test_counters_that_meet_it_at_once_count_each_once(self, cache: Any, is_async: bool) -> None:
        """Fifty operations fail one after the other; only one of them opens the circuit."""
        with asyncio.Runner() as runner:
            call = Call(runner if is_async else None)
            assert sorted(call.at_once(50, cache.incr_or_create, "n")) == list(range(1, 51))
