"""The cache contract is Django's: its own LocMemCache passes it.

What LocMemCache does not do is listed here with the reason; a line too many fails as well.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import CacheHandler
from django.core.cache.backends.base import BaseCache

from redis_infra.testing.contract import CacheContract, Call, calling

OURS = "an addition of ours"
COUNT = "returns None where django-redis counts"
SHARED = "clears the whole LOCATION, other prefixes included"
RENEWS = "reads and sets again, which starts a new life"
LOSES = "reads and sets again, which loses updates"
COMPUTES = "has everybody compute"
BIG = "has integers of any size"

DIFFERENCES = {
    "test_set_nx_stores_where_nothing_is": OURS,
    "test_set_nx_leaves_what_is_there": OURS,
    "test_set_xx_replaces_what_is_there": OURS,
    "test_set_xx_stores_nothing_where_nothing_is": OURS,
    "test_delete_many_counts_what_was_there": COUNT,
    "test_delete_many_counts_a_key_named_twice_once": COUNT,
    "test_delete_many_of_what_is_missing_counts_zero": COUNT,
    "test_a_timeout_may_be_text": "adds it to a float",
    "test_patterns_are_redis_patterns": OURS,
    "test_a_backslash_escapes_in_a_pattern": OURS,
    "test_incr_past_64_bits_is_an_overflow_and_changes_nothing": BIG,
    "test_decr_past_64_bits_is_an_overflow_and_changes_nothing": BIG,
    "test_a_delta_of_more_than_64_bits_is_an_overflow": BIG,
    "test_the_overflow_is_an_overflow_error_and_no_value_error": BIG,
    "test_a_new_version_does_not_lengthen_a_life": RENEWS,
    "test_several_loops_at_once": LOSES,
    "test_a_delta_of_zero_keeps_the_key": "sets it, then deletes it",
    "test_one_unpicklable_value_keeps_set_many_from_storing_any": "stores one after the other",
    "test_clear_leaves_other_prefixes_alone": SHARED,
    "test_clear_follows_a_prefix_that_was_reassigned": SHARED,
    "test_clear_under_a_key_function_of_the_sites_own": SHARED,
    "test_thirty_callers_compute_once": COMPUTES,
    "test_callers_who_come_late_do_not_compute_again": COMPUTES,
    "test_thirty_callers_of_several_aliases_compute_once": COMPUTES,
}
DIFFERENCES |= {
    name: OURS for name in dir(CacheContract) if "incr_or_create" in name or "delete_pattern" in name
}
ASYNC_DIFFERENCES = {
    "test_incr_does_not_lengthen_a_life": RENEWS,
    "test_incr_of_a_float_does_not_lengthen_a_life": RENEWS,
    "test_concurrent_incr_counts_each_once": LOSES,
    "test_concurrent_decr_counts_each_once": LOSES,
    "test_concurrent_incr_of_a_float_counts_each_once": LOSES,
}


def _locmem(location: str, **changes: Any) -> BaseCache:
    params = {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "LOCATION": location,
        "OPTIONS": {"MAX_ENTRIES": 10_000},
    }
    return CacheHandler({"default": params | changes})["default"]


@pytest.mark.long
class TestLocMemCache(CacheContract):
    """Django's reference for what a cache does."""

    # LocMemCache would store the coroutine, and nobody would await it.
    test_aget_or_set_awaits_a_coroutine_function = None
    test_aget_or_set_awaits_what_any_callable_returns = None
    test_thirty_tasks_await_one_computation = None
    test_a_cancelled_computation_does_not_cancel_who_waits_for_it = None
    # It has no connections to mix up, and a thread's hop for each of many keys.
    test_many_more_keys_than_one_command_should_hold = None
    test_tasks_get_their_own_answers = None
    test_a_cancelled_task_leaves_no_reply_behind = None

    @pytest.fixture(params=["sync", "async"])
    def call(self, request: pytest.FixtureRequest) -> Iterator[Call]:
        if request.param == "sync":
            yield Call()
            return
        with asyncio.Runner(debug=False) as runner:  # in debug mode a thread's hop takes milliseconds
            yield Call(runner)

    @pytest.fixture
    def make_cache(self) -> Callable[..., BaseCache]:
        location = uuid.uuid4().hex
        return lambda **changes: _locmem(location, **changes)

    @pytest.fixture
    def cache(self, make_cache: Callable[..., BaseCache]) -> BaseCache:
        return make_cache()


def _differs(test: Callable[..., None], reason: str, *, in_async_only: bool) -> Callable[..., None]:
    """Turn a test round: it has to fail, but for races, which may be won by chance."""

    @functools.wraps(test)
    def turned(self: CacheContract, **arguments: Any) -> None:
        if in_async_only and not arguments["call"].is_async:
            test(self, **arguments)
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calling, "PATIENCE", 0.5)  # some wait for what will not come
            try:
                test(self, **arguments)
            except (AssertionError, AttributeError, TypeError, pytest.fail.Exception):
                return
        assert reason in (LOSES, COMPUTES), f"no difference any more: LocMemCache {reason}"

    return turned


for name, reason in (DIFFERENCES | ASYNC_DIFFERENCES).items():
    turned = _differs(getattr(CacheContract, name), reason, in_async_only=name in ASYNC_DIFFERENCES)
    setattr(TestLocMemCache, name, turned)
