"""A cache with one defect does not pass the cache contract, and the test that says so is the right one.

Each class is LocMemCache with one defect, most of them seen in a real backend.
"""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.locmem import LocMemCache

from redis_infra.testing.contract import CacheContract, Call, calling
from redis_infra.testing.contract.counters import Count

DEFECTS: list[tuple[type[BaseCache], str, dict[str, Any]]] = []


def found_by(test: str, /, **parameters: Any) -> Callable[[type[BaseCache]], type[BaseCache]]:
    def register(defect: type[BaseCache]) -> type[BaseCache]:
        DEFECTS.append((defect, test, parameters))
        return defect

    return register


@found_by("test_a_stored_none_is_no_miss")
@found_by("test_a_stored_none_is_in_get_many")
@found_by("test_get_or_set_returns_a_stored_none")
class NoneIsAMiss(LocMemCache):
    def get(self, key, default=None, version=None):
        value = super().get(key, default, version)
        return default if value is None else value


@found_by("test_add_stores_where_nothing_is")
@found_by("test_add_lets_one_of_many_in")
class AddReturnsNothing(LocMemCache):
    def add(self, *args, **kwargs):
        super().add(*args, **kwargs)


@found_by("test_delete_tells_whether_something_was_there")
class DeleteReturnsACount(LocMemCache):
    def delete(self, *args, **kwargs):
        return int(super().delete(*args, **kwargs))


@found_by("test_has_key_is_a_bool")
class HasKeyReturnsTheValue(LocMemCache):
    def has_key(self, key, version=None):
        return self.get(key, version=version)


@found_by("test_set_many_returns_the_keys_that_failed_which_are_none")
@found_by("test_set_many_of_nothing_returns_an_empty_list")
class SetManyReturnsNothing(LocMemCache):
    def set_many(self, *args, **kwargs):
        super().set_many(*args, **kwargs)


@found_by("test_get_many_leaves_out_what_is_missing")
class GetManyReturnsNoneForWhatIsMissing(LocMemCache):
    def get_many(self, keys, version=None):
        return {key: self.get(key, version=version) for key in keys}


@found_by("test_get_many_takes_any_iterable", shape=iter)
@found_by("test_get_many_of_no_keys_is_an_empty_dict", shape=iter)
class GetManyWantsALength(LocMemCache):
    def get_many(self, keys, version=None):
        return super().get_many(keys, version) if len(keys) else {}


@found_by("test_delete_many_of_no_keys_is_none", shape=list)
class DeleteManyOfNothingCounts(LocMemCache):
    def delete_many(self, keys, version=None):
        return sum([self.delete(key, version) for key in keys])


@found_by("test_a_fraction_of_a_second_is_not_zero")
class WholeSeconds(LocMemCache):
    def get_backend_timeout(self, timeout=DEFAULT_TIMEOUT):
        return super().get_backend_timeout(int(timeout) if isinstance(timeout, float) else timeout)


@found_by("test_set_without_time_to_live_deletes", timeout=0)
class ZeroIsForEver(LocMemCache):
    def get_backend_timeout(self, timeout=DEFAULT_TIMEOUT):
        return super().get_backend_timeout(timeout or None)


@found_by("test_touch_for_ever_of_what_lives_for_ever_is_true")
class TouchIsPersist(LocMemCache):
    def touch(self, key, timeout=DEFAULT_TIMEOUT, version=None):
        changes = self._expire_info.get(self.make_key(key, version)) != timeout
        return super().touch(key, timeout, version) and changes


@found_by("test_a_missing_counter_is_a_value_error_and_stays_missing", name="incr")
class IncrCreates(LocMemCache):
    def incr(self, key, delta=1, version=None):
        self.add(key, 0, version=version)
        return super().incr(key, delta, version)


@found_by("test_incr_does_not_lengthen_a_life")
@found_by("test_incr_of_a_float_does_not_lengthen_a_life")
class IncrRenews(LocMemCache):
    incr = BaseCache.incr


@found_by("test_concurrent_incr_counts_each_once")
class IncrIsTwoSteps(LocMemCache):
    def incr(self, key, delta=1, version=None):
        total = self.get(key, version=version) + delta
        time.sleep(0.01)  # so that every thread has read before the first one writes
        self.set(key, total, version=version)
        return total


@found_by("test_floats_count")
class CountersAreIntegers(LocMemCache):
    def incr(self, key, delta=1, version=None):
        self.set(key, int(self.get(key, version=version)), version=version)
        return super().incr(key, delta, version)


@found_by("test_what_is_no_number_is_a_type_error_and_stays", value="12")
class DigitsCount(CountersAreIntegers):
    pass


@found_by("test_version_zero_is_not_the_default_version")
class VersionZeroIsNone(LocMemCache):
    def make_key(self, key, version=None):
        return super().make_key(key, version or self.version)


@found_by("test_a_stored_none_can_change_its_version", name="incr_version")
class NoneHasNoVersion(LocMemCache):
    def incr_version(self, key, delta=1, version=None):
        if self.get(key, version=version) is None:
            raise ValueError(key)
        return super().incr_version(key, delta, version)


@found_by("test_values_that_look_alike_stay_apart", value="1")
@found_by("test_values_that_look_alike_stay_apart", value=True)
class ReadsNumbersWhereItCan(LocMemCache):
    def get(self, key, default=None, version=None):
        value = super().get(key, default, version)
        try:
            return int(value)
        except (TypeError, ValueError):
            return value


@found_by("test_a_value_comes_back_as_it_was", value=Count(7))
class FlattensIntegers(LocMemCache):
    def set(self, key, value, *args, **kwargs):
        super().set(key, int(value), *args, **kwargs)


@found_by("test_what_is_stored_is_a_copy")
@found_by("test_what_is_returned_is_a_copy")
class KeepsReferences(LocMemCache):
    def __init__(self, name, params):
        super().__init__(name, params)
        self._values = {}

    def set(self, key, value, *args, **kwargs):
        self._values[key] = value

    def get(self, key, default=None, version=None):
        return self._values.get(key, default)


@found_by("test_a_key_that_memcached_refuses_is_warned_about", key="a b")
@found_by("test_every_operation_warns_about_such_a_key", name="delete_many")
class NoWarnings(LocMemCache):
    def validate_key(self, key):
        pass


@found_by("test_an_unpicklable_value_is_the_callers_error", name="set")
@found_by("test_what_pickling_raises_is_no_fault_of_redis", error=ConnectionError("mine"))
class SwallowsErrors(LocMemCache):
    def set(self, *args, **kwargs):
        try:
            super().set(*args, **kwargs)
        except Exception:  # a backend that takes every error for an outage
            return


@found_by("test_an_unpicklable_value_leaves_the_old_one")
class DeletesFirst(LocMemCache):
    def set(self, key, *args, **kwargs):
        self.delete(key)
        super().set(key, *args, **kwargs)


@found_by("test_get_or_set_stores_none_and_does_not_compute_it_again")
class ComputesNoneAgain(LocMemCache):
    def get_or_set(self, key, default, timeout=DEFAULT_TIMEOUT, version=None):
        if self.get(key, version=version) is None:
            self.set(key, default() if callable(default) else default, timeout, version)
        return self.get(key, version=version)


@found_by("test_a_value_that_was_set_meanwhile_wins")
class FillsOver(ComputesNoneAgain):
    pass


@found_by("test_close_takes_what_the_request_finished_signal_sends")
class CloseTakesNothing(LocMemCache):
    def close(self):
        pass


@found_by("test_key_prefix_can_be_reassigned")
class RemembersItsPrefix(LocMemCache):
    def __init__(self, name, params):
        super().__init__(name, params)
        self._first_prefix = self.key_prefix

    def make_key(self, key, version=None):
        return self.key_func(key, self._first_prefix, self.version if version is None else version)


@found_by("test_clear_removes_all_versions")
class ClearsItsOwnVersion(LocMemCache):
    def clear(self):
        for name in [name for name in self._cache if name.startswith(self.make_key(""))]:
            del self._cache[name], self._expire_info[name]


@found_by("test_takes_the_arguments_that_django_passes", name="get", prefix="")
class OrdersItsArgumentsDifferently(LocMemCache):
    def get(self, key, version=None, *, default=None):
        return super().get(key, default, version)


@pytest.fixture
def locmem_with() -> Iterator[Callable[[type[BaseCache]], BaseCache]]:
    made: list[BaseCache] = []

    def make(defect: type[BaseCache]) -> BaseCache:
        made.append(defect(uuid.uuid4().hex, {}))
        return made[-1]

    yield make
    for cache in made:
        LocMemCache.clear(cache)


@pytest.mark.parametrize(("defect", "name", "parameters"), DEFECTS)
def test_a_defect_is_found(defect, name, parameters, locmem_with, monkeypatch):
    monkeypatch.setattr(calling, "PATIENCE", 0.5)
    test = getattr(CacheContract(), name)
    offered = {"cache": locmem_with(defect), "call": Call(), "monkeypatch": monkeypatch, **parameters}
    arguments = {each: offered[each] for each in inspect.signature(test).parameters}
    with pytest.raises((AssertionError, TypeError, ValueError, pytest.fail.Exception)):
        test(**arguments)
