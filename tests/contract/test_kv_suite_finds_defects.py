"""A store with one defect does not pass the KV contract, and the test that says so is the right one.

Each class is DictStore, which passes, with one defect that a provider of a site's own may well have.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.exceptions import CounterOverflow, StoreTypeError, StoreUnavailable
from redis_infra.kv import KVStore, Pipeline
from redis_infra.testing.contract import calling
from redis_infra.testing.kv_contract import KVStoreContract, StoreCall
from redis_infra.testing.kv_contract.counters import MAX
from tests.contract.dict_store import DictStore

DEFECTS: list[tuple[type[KVStore], str, dict[str, Any]]] = []

IN_TURN = 0.002
"""Seconds in which others come, where a defect lets them."""


def found_by(test: str, /, **parameters: Any) -> Callable[[type[KVStore]], type[KVStore]]:
    def register(defect: type[KVStore]) -> type[KVStore]:
        DEFECTS.append((defect, test, parameters))
        return defect

    return register


# --- values ---------------------------------------------------------------------------------------------


@found_by("test_what_was_set_is_there")
@found_by("test_set_replaces")
@found_by("test_text_and_bytes_are_exactly_that")
@found_by("test_nx_stores_where_nothing_is")
@found_by("test_xx_replaces_what_is_there")
class SetSaysNothing(DictStore):
    def set(self, *args, **kwargs):
        super().set(*args, **kwargs)


@found_by("test_a_missing_key_is_none")
@found_by("test_mget_is_in_the_order_of_the_keys")
class MissingIsEmpty(DictStore):
    def get(self, key):
        return super().get(key) or ""

    def mget(self, *keys):
        return [value or "" for value in super().mget(*keys)]


@found_by("test_a_text_comes_back_as_it_was", text="")
@found_by("test_mget_of_an_empty_value_is_no_none")
@found_by("test_bytes_come_back_to_the_byte", name="empty")
@found_by("test_nx_takes_an_empty_value_for_something")
class EmptyIsMissing(DictStore):
    def do_get(self, get):
        return super().do_get(get) or None

    do_get_bytes = do_get

    def do_mget(self, mget):
        return [value or None for value in super().do_mget(mget)]

    def has(self, key):
        return super().has(key) and bool(self.rows[key][0])


@found_by("test_bytes_come_back_to_the_byte", name="every byte")
@found_by("test_what_is_like_bytes_is_stored_as_bytes", kind=bytearray)
@found_by("test_mset_sets_whatever_set_does")
@found_by("test_megabytes_in_one", kind="pipeline")
@found_by("test_a_megabyte_comes_back")
class KeepsText(DictStore):
    def do_set(self, command):
        object.__setattr__(command, "value", command.value.decode(errors="replace").encode())
        return super().do_set(command)

    def do_mset(self, mset):
        for key, value in mset.items:
            self.rows[key] = value.decode(errors="replace").encode(), math.inf


@found_by("test_bytes_that_are_no_text_are_not_guessed_at", name="no text")
@found_by("test_every_kind_of_failure_has_its_place", kind="pipeline")
@found_by("test_mget_of_bytes_that_are_no_text_is_refused")
class GuessesAtBytes(DictStore):
    def do_get(self, get):
        return (super().do_get(get) or b"").decode(errors="replace").encode() or None

    def do_mget(self, mget):
        return [(value or b"").decode(errors="replace").encode() for value in super().do_mget(mget)]


@found_by("test_a_text_comes_back_as_it_was", text=" text ")
@found_by("test_keys_that_look_alike_stay_apart")
@found_by("test_any_text_is_a_key", key=" ")
class Strips(DictStore):
    def reply(self, command):
        if command.name in ("get", "set", "incr", "delete", "exists"):
            for name in ("at", "value"):
                if hasattr(command, name):
                    object.__setattr__(command, name, getattr(command, name).strip())
        return super().reply(command)


@found_by("test_a_megabyte_comes_back")
@found_by("test_megabytes")
class CutsLongValues(DictStore):
    def do_get(self, get):
        return (super().do_get(get) or b"")[: 2**19] or None

    def do_mget(self, mget):
        return [value and value[: 2**19] for value in super().do_mget(mget)]


@found_by("test_bytes_that_are_text_are_read_as_text")
class ReadsLatin1(DictStore):
    def get(self, key):
        return self.get_bytes(key).decode("latin-1")


@found_by("test_nx_stores_again_after_a_delete")
class NxRemembersTheDeleted(DictStore):
    def do_delete(self, delete):
        self.gone = delete.keys
        return super().do_delete(delete)

    def do_set(self, command):
        if command.condition == "NX" and command.key in getattr(self, "gone", ()):
            return None
        return super().do_set(command)


@found_by("test_nx_leaves_what_is_there")
@found_by("test_set_nx_has_one_winner_and_keeps_its_value")
class NxIsHeededAfterwards(DictStore):
    def do_set(self, command):
        was_there = self.has(command.key)
        condition, _ = command.condition, object.__setattr__(command, "condition", "")
        super().do_set(command)
        return b"OK" if not condition or was_there is (condition == "XX") else None


@found_by("test_xx_stores_nothing_where_nothing_is")
@found_by("test_set_xx_stores_nothing_for_anybody_where_nothing_is")
@found_by("test_keepttl_goes_with_conditions")
class XxIsIgnored(DictStore):
    def do_set(self, command):
        if command.condition == "XX":
            object.__setattr__(command, "condition", "")
        return super().do_set(command)


@found_by("test_what_has_expired_is_nothing_to_nx_and_xx")
class ExpiredIsThereToNx(DictStore):
    def do_set(self, command):
        if command.condition == "NX" and command.key in self.rows:
            return None
        return super().do_set(command)


@found_by("test_set_nx_has_one_winner_and_keeps_its_value")
@found_by("test_incr_counts_each_once")
@found_by("test_a_key_is_deleted_once")
@found_by("test_several_loops_at_once")
@found_by("test_incr_in_a_row_from_several_threads_is_exact")
@found_by("test_sync_and_async_callers_count_together")
class LooksThenActs(DictStore):
    """Without a lock."""

    def __init__(self, home):
        super().__init__(home)
        self.lock = contextlib.nullcontext()

    def has(self, key):
        there = super().has(key)
        time.sleep(IN_TURN)
        return there


@found_by("test_what_is_set_at_once_is_one_of_it")
class WritesInHalves(LooksThenActs):
    def do_set(self, command):
        half = len(command.value) // 2
        self.rows[command.key] = command.value[:half], math.inf
        time.sleep(IN_TURN)
        self.rows[command.key] = self.rows[command.key][0] + command.value[half:], math.inf
        return b"OK"


@found_by("test_everybody_gets_the_answer_to_the_own_question")
@found_by("test_several_at_once_each_get_their_own_answers")
class AnswersAreMixedUp(DictStore):
    def execute(self, commands, *, atomic=False):
        self.replies = super().execute(commands)
        time.sleep(IN_TURN)
        return self.replies


# --- times to live --------------------------------------------------------------------------------------


@found_by("test_what_has_expired_is_gone", named={"px": 60})
@found_by("test_what_has_expired_does_not_count")
@found_by("test_expire_ends_a_life")
@found_by("test_the_smallest_time_is_a_millisecond")
@found_by("test_a_window_counter_ends")
class NothingExpires(DictStore):
    def has(self, key):
        return key in self.rows


@found_by("test_what_has_expired_is_not_found")
@found_by("test_what_has_expired_is_gone", named={"px": 60})
class ScansWhatHasExpired(DictStore):
    def do_scan(self, scan):
        return [b"0", [key.encode() for key in self.rows if key.startswith(scan.start)]]


@found_by("test_set_says_how_long_it_lives", named={"ex": 60.25}, milliseconds=60_250)
@found_by("test_what_has_expired_is_gone", named={"px": 60})
class RoundsUpToMinutes(DictStore):
    def do_set(self, command):
        if command.px:
            object.__setattr__(command, "px", -(-command.px // 60_000) * 60_000)
        return super().do_set(command)


@found_by("test_set_says_how_long_it_lives", named={"ex": 60}, milliseconds=60_000)
class TakesMillisecondsForMicroseconds(DictStore):
    def do_set(self, command):
        if command.px:
            object.__setattr__(command, "px", command.px / 1000)
        return super().do_set(command)


@found_by("test_ttl_is_rounded_to_the_nearest_second")
class TtlIsRoundedDown(DictStore):
    def do_ttl(self, ttl):
        left = self.do_pttl(ttl)
        return left if left < 0 else left // 1000


@found_by("test_ttl_is_rounded_to_the_nearest_second")
@found_by("test_in_its_last_half_second_ttl_is_zero")
class TtlIsRoundedUp(DictStore):
    def do_ttl(self, ttl):
        left = self.do_pttl(ttl)
        return left if left < 0 else -(-left // 1000)


@found_by("test_what_is_missing_has_none")
@found_by("test_what_has_expired_is_gone", named={"px": 60})
class MissingStays(DictStore):
    def do_pttl(self, pttl):
        return max(super().do_pttl(pttl), -1)


@found_by("test_what_has_no_time_to_live_stays")
@found_by("test_incr_creates_at_one")
class ForeverIsLong(DictStore):
    def do_pttl(self, pttl):
        left = super().do_pttl(pttl)
        return 10**12 if left == -1 else left


@found_by("test_set_ends_the_time_to_live")
class SetKeepsTheTimeToLive(DictStore):
    def do_set(self, command):
        end = self.end(command.key)
        done = super().do_set(command)
        if done and command.px is None and end:
            self.rows[command.key] = command.value, end
        return done


@found_by("test_set_begins_a_new_time_to_live")
@found_by("test_conditions_go_with_a_time_to_live")
class SetBeginsNoNewTimeToLive(DictStore):
    def do_set(self, command):
        there, end = self.has(command.key), self.end(command.key)
        done = super().do_set(command)
        if there and done:
            self.rows[command.key] = command.value, end
        return done


@found_by("test_keepttl_of_what_has_expired_stays")
class KeepTtlKeepsTheOneThatIsOver(DictStore):
    def do_set(self, command):
        end = self.end(command.key)
        done = super().do_set(command)
        if command.keepttl and end:
            self.rows[command.key] = command.value, end
        return done


@found_by("test_keepttl_of_what_stays_or_is_missing_stays")
class KeepTtlNeedsOne(DictStore):
    def do_set(self, command):
        if command.keepttl and not self.has(command.key):
            return None
        return super().do_set(command)


@found_by("test_nothing_goes_before_its_time")
class ClearsAwayEverything(DictStore):
    def has(self, key):
        there = super().has(key)
        if key in self.rows and not there:
            self.rows.clear()
        return there


@found_by("test_expire_says_how_long_it_still_lives", seconds=60, milliseconds=60_000)
class ExpireIsInMilliseconds(DictStore):
    def do_expire(self, expire):
        object.__setattr__(expire, "px", expire.px / 1000)
        return super().do_expire(expire)


@found_by("test_keepttl_keeps_it")
@found_by("test_keepttl_goes_with_conditions")
class KeepTtlIsIgnored(DictStore):
    def do_set(self, command):
        object.__setattr__(command, "keepttl", False)
        return super().do_set(command)


@found_by("test_mset_replaces_and_ends_times_to_live")
class MsetKeepsTimesToLive(DictStore):
    def do_mset(self, mset):
        ends = {key: self.end(key) for key, _ in mset.items if self.has(key)}
        self.rows.update({key: (value, ends.get(key, math.inf)) for key, value in mset.items})


@found_by("test_expire_of_what_is_missing_is_false")
@found_by("test_every_command_answers_as_it_does_alone", collect=lambda p: p.expire("m", 6), answer=False)
class ExpireAlwaysSucceeds(DictStore):
    def do_expire(self, expire):
        super().do_expire(expire)
        return 1


@found_by("test_expire_replaces_a_time_to_live")
class ExpireOnlyShortens(DictStore):
    def do_expire(self, expire):
        if self.has(expire.key) and self.now() + expire.px > self.end(expire.key):
            return 1
        return super().do_expire(expire)


@found_by("test_expire_without_time_left_deletes", seconds=0)
@found_by("test_expire_without_time_left_deletes", seconds=-1)
class ExpireOfNothingStays(DictStore):
    def do_expire(self, expire):
        if expire.px <= 0:
            object.__setattr__(expire, "px", math.inf)
        return super().do_expire(expire)


@found_by("test_the_longest_life_can_be_had")
class CountsIn32Bits(DictStore):
    def do_set(self, command):
        if command.px:
            object.__setattr__(command, "px", command.px % 2**32)
        return super().do_set(command)


# --- counters -------------------------------------------------------------------------------------------


@found_by("test_incr_creates_with_what_is_added", by=5)
@found_by("test_incr_adds_and_returns_the_sum")
class IncrIsByOne(DictStore):
    def do_incr(self, incr):
        object.__setattr__(incr, "by", 1)
        return super().do_incr(incr)


@found_by("test_incr_keeps_the_time_to_live")
@found_by("test_incr_does_not_lengthen_a_life")
@found_by("test_it_counts_on_from_what_is_there")
class IncrEndsTheTimeToLive(DictStore):
    def do_incr(self, incr):
        total = super().do_incr(incr)
        self.rows[incr.at] = b"%d" % total, math.inf
        return total

    def do_expire(self, expire):  # or else nothing would ever expire again
        return 1 if self.has(expire.key) else 0


@found_by("test_incr_of_what_has_expired_begins_again_and_stays")
class IncrCountsOnFromWhatHasExpired(DictStore):
    def do_incr(self, incr):
        if incr.at in self.rows and not self.has(incr.at):
            self.rows[incr.at] = self.rows[incr.at][0], math.inf
        return super().do_incr(incr)


@found_by("test_a_count_is_an_int")
@found_by("test_counts_are_ints")
class CountsAreFloats(DictStore):
    def incr(self, *args, **named):
        return float(super().incr(*args, **named))

    def exists(self, *keys):
        return float(super().exists(*keys))


@found_by("test_digits_count_however_they_came", value=b"41")
@found_by("test_what_mset_set_counts")
class CountsOnlyWhatItCounted(DictStore):
    def do_incr(self, incr):
        if not incr.by or self.has(incr.at):
            raise StoreTypeError(incr.name, incr.key, "no counter")
        return super().do_incr(incr)


@found_by("test_numbers_that_a_float_cannot_hold_are_exact", value=2**53)
@found_by("test_the_answer_is_exact_where_a_float_is_not", value=2**53)
@found_by("test_the_ends_of_64_bits_can_be_reached")
class CountsInFloats(DictStore):
    def do_incr(self, incr):
        return int(float(super().do_incr(incr)))


@found_by("test_beyond_64_bits_is_an_overflow_and_changes_nothing", value=MAX, by=1)
@found_by("test_what_is_no_integer_is_refused_and_stays", value=" 1")
@found_by("test_what_is_no_integer_is_refused_and_stays", value="1_000")
@found_by("test_what_is_no_integer_is_refused_and_stays", value="9223372036854775808")
@found_by("test_a_huge_value_is_refused_and_stays")
@found_by("test_an_overflow_is_one_each_time_and_is_not_remembered", value=MAX, by=1)
@found_by("test_what_is_no_integer_is_refused_each_time", value="+1")
class CountsAsPython(DictStore):
    def do_incr(self, incr):
        try:
            total = int(self.rows[incr.at][0] if self.has(incr.at) else 0) + incr.by
        except ValueError:
            total = incr.by
        self.rows[incr.at] = b"%d" % total, math.inf
        return total


@found_by("test_what_is_no_integer_is_refused_and_stays", value="text")
@found_by("test_one_that_fails_is_one_error_among_the_answers", kind="pipeline")
@found_by("test_one_that_fails_is_one_error_among_the_answers", kind="transaction")
@found_by("test_a_call_that_fails_is_one_error_among_the_answers")
class WhatIsNoIntegerIsNought(DictStore):
    def do_incr(self, incr):
        try:
            return super().do_incr(incr)
        except StoreTypeError:
            del self.rows[incr.at]
            return super().do_incr(incr)


@found_by(
    "test_an_error_has_the_facts_and_shows_no_key_and_no_value", name="incr", value=MAX, kind=CounterOverflow
)
@found_by("test_beyond_64_bits_is_an_overflow_and_changes_nothing", value=MAX, by=1)
class OverflowIsATypeError(DictStore):
    def do_incr(self, incr):
        try:
            return super().do_incr(incr)
        except StoreTypeError as error:
            raise StoreTypeError(error.command, error.key, error.reason) from None


# --- once -----------------------------------------------------------------------------------------------


@found_by("test_an_operation_counts_once_with_one_answer")
@found_by("test_it_is_one_operation_in_pipelines_too")
@found_by("test_the_answer_stays_what_it_was")
class CountsAgain(DictStore):
    def do_incr(self, incr):
        object.__setattr__(incr, "mark", "")
        return super().do_incr(incr)


@found_by("test_of_many_at_once_one_counts")
class LooksUpTheOperationThenCounts(DictStore):
    def execute(self, commands, *, atomic=False):
        mark = commands[0].mark
        known = self.has(mark)
        time.sleep(IN_TURN)
        if not known:
            self.rows.pop(mark, None)
        return super().execute(commands)


@found_by("test_it_is_the_operation_that_counts_and_not_its_arguments")
class OtherArgumentsAreAnotherOperation(DictStore):
    def incr(self, key, by=1, *, op_id=None):
        return super().incr(key, by, op_id=op_id and f"{op_id} {by}")


@found_by("test_any_text_is_an_op_id", op_id="ü")
@found_by("test_any_text_is_a_prefix", prefix="ü")
class TakesAsciiOnly(DictStore):
    def incr(self, key, by=1, *, op_id=None):
        return super().incr(key, by, op_id=op_id.encode("ascii").decode())

    def scan(self, prefix=""):
        return super().scan(prefix.encode("ascii", "ignore").decode())


@found_by("test_the_answer_stays_what_it_was")
@found_by("test_an_operation_by_nothing_is_remembered_too")
class AnswersWithWhatItIsNow(DictStore):
    def do_incr(self, incr):
        if incr.mark and self.has(incr.mark):
            return int(self.rows.get(incr.at, (b"0", 0))[0])
        return super().do_incr(incr)


@found_by("test_operations_are_told_apart")
class OneOperationACounter(DictStore):
    def do_incr(self, incr):
        if incr.mark:
            object.__setattr__(incr, "mark", f"once:{incr.at}")
        return super().do_incr(incr)


@found_by("test_an_operation_is_one_of_its_counter")
@found_by("test_counters_and_operations_are_not_mixed_up", pair=("{n}x", "a", "{n}y", "a"))
class OperationsOfAllCountersAreOne(DictStore):
    def do_incr(self, incr):
        if incr.mark:
            object.__setattr__(incr, "mark", f"once:{incr.mark.rpartition(':')[2]}")
        return super().do_incr(incr)


@found_by("test_what_is_remembered_is_nobodys_key")
class ShowsWhatItRemembers(DictStore):
    def do_incr(self, incr):
        if incr.mark:
            object.__setattr__(incr, "mark", f"{self.commands.home}{incr.mark}")
        return super().do_incr(incr)


@found_by("test_an_overflow_is_one_each_time_and_is_not_remembered", value=MAX, by=1)
@found_by("test_what_is_no_integer_is_refused_each_time", value="text")
class RemembersFailures(DictStore):
    def do_incr(self, incr):
        if incr.mark and not self.has(incr.mark):
            self.rows[incr.mark] = b"0", math.inf
            object.__setattr__(incr, "mark", "")
        return super().do_incr(incr)


# --- several keys ---------------------------------------------------------------------------------------


@found_by("test_mget_is_in_the_order_of_the_keys")
@found_by("test_everybody_gets_the_answer_to_the_own_question")
class MgetIsSorted(DictStore):
    def do_mget(self, mget):
        return sorted(super().do_mget(mget), key=lambda value: value or b"")

    def do_get(self, get):
        return next(iter(self.rows.values()))[0] if self.rows else None


@found_by("test_keys_come_in_any_shape", shape="an iterator")
class KeysHaveALength(DictStore):
    def mget(self, *keys):
        return super().mget(*keys) if len(keys[0]) else []


@found_by("test_keys_come_in_any_shape", shape="a list")
class KeysAreArguments(DictStore):
    def delete(self, *keys):
        return super().delete(*map(str, keys))


@found_by("test_exists_counts_a_key_as_often_as_it_is_named")
class ExistsCountsOnce(DictStore):
    def do_exists(self, exists):
        return sum([self.has(key) for key in set(exists.keys)])


@found_by("test_delete_counts_what_was_there")
@found_by("test_what_has_expired_does_not_count")
class DeleteCountsWhatWasNamed(DictStore):
    def do_delete(self, delete):
        super().do_delete(delete)
        return len(delete.keys)


@found_by("test_nobody_reads_half_an_mset")
class MsetIsManySets(DictStore):
    def mset(self, mapping):
        for key, value in mapping.items():
            self.set(key, value)
            time.sleep(IN_TURN)


@found_by("test_a_wrong_argument_is_an_error_and_nothing_is_executed", name="mset")
class MsetBeginsBeforeItChecks(DictStore):
    def mset(self, mapping):
        for key, value in mapping.items():
            self.set(key, value)


@found_by("test_thousands_of_keys")
class AThousandKeysAtMost(DictStore):
    def do_mget(self, mget):
        return (super().do_mget(mget)[:1000] + [None] * len(mget.keys))[: len(mget.keys)]


# --- scan -----------------------------------------------------------------------------------------------


@found_by("test_a_prefix_is_no_pattern", pattern="*")
@found_by("test_a_prefix_is_no_pattern", pattern="[ab]")
@found_by("test_odd_keys_are_found_as_they_are")
class PrefixIsAPattern(DictStore):
    def do_scan(self, scan):
        from fnmatch import fnmatchcase

        names = [key for key in self.rows if fnmatchcase(key, f"{scan.start}*") and "\n" not in key]
        return [b"0", [key.encode() for key in names]]


@found_by("test_keys_are_found_by_how_they_begin")
class PrefixIsAnywhere(DictStore):
    def do_scan(self, scan):
        part = scan.start.removeprefix(self.commands.home)
        return [b"0", [key.encode() for key in self.rows if part in key]]


@found_by("test_keys_of_others_are_not_found")
@found_by("test_an_empty_store_has_no_keys")
class ScansEverything(DictStore):
    def do_scan(self, scan):
        return [b"0", [key.encode() for key in {"foreign": 0, **self.rows}]]


@found_by("test_thousands_of_keys_come_once_each")
class OnePageIsAll(DictStore):
    def do_scan(self, scan):
        return [b"0", super().do_scan(scan)[1][:1000]]


@found_by("test_what_a_scan_finds_can_be_deleted_meanwhile")
@found_by("test_what_stays_is_found_while_others_come_and_go")
class PagesByOffset(DictStore):
    def execute(self, commands, *, atomic=False):
        replies = super().execute(commands)
        time.sleep(IN_TURN / 4)
        return replies

    def do_scan(self, scan):
        names = super().do_scan(scan)[1]
        at = int(scan.cursor) + 100
        return [str(at).encode() if at < len(names) else b"0", names[at - 100 : at]]


@found_by("test_what_was_deleted_and_set_again_comes_once")
class ScanShowsTheDeleted(DictStore):
    def do_delete(self, delete):
        self.gone = delete.keys
        return super().do_delete(delete)

    def do_scan(self, scan):
        return [b"0", [*super().do_scan(scan)[1], *[key.encode() for key in getattr(self, "gone", ())]]]


@found_by("test_a_scan_can_be_left_and_two_go_on_side_by_side")
class OneScanAtATime(DictStore):
    def do_scan(self, scan):
        if scan.cursor == "0":
            self.names = iter(super().do_scan(scan)[1])
        page = [name for name, _ in zip(self.names, range(100), strict=False)]
        return [b"1" if len(page) == 100 else b"0", page]


@found_by("test_every_key_begins_with_nothing")
@found_by("test_any_text_is_a_prefix", prefix="ü")
class APrefixIsNoKey(DictStore):
    def do_scan(self, scan):
        return [b"0", [name for name in super().do_scan(scan)[1] if name != scan.start.encode()]]


@found_by("test_an_async_scan_can_be_left")
class AsyncScanIsASyncOne(DictStore):
    ascan = DictStore.scan


@found_by("test_the_prefix_may_be_named")
class ScanTakesSomethingElse(DictStore):
    def scan(self, pattern=""):
        return super().scan(pattern)


# --- pipelines and transactions -------------------------------------------------------------------------


@found_by("test_commands_are_executed_in_their_order", kind="pipeline")
@found_by("test_calls_are_executed_in_their_order")
class ReadsFirst(DictStore):
    def execute(self, commands, *, atomic=False):
        replies = {each: super(ReadsFirst, self).execute([each])[0] for each in commands if not each.writes}
        return [
            replies[each] if each in replies else super(ReadsFirst, self).execute([each])[0]
            for each in commands
        ]


@found_by("test_one_that_fails_is_one_error_among_the_answers", kind="pipeline")
@found_by("test_every_kind_of_failure_has_its_place", kind="transaction")
@found_by("test_a_command_that_fails_does_not_undo_the_others")
@found_by("test_an_unknown_command_in_a_pipeline_takes_nobody_along")
class TheFirstFailureIsRaised(DictStore):
    def execute(self, commands, *, atomic=False):
        replies = super().execute(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


@found_by("test_one_that_fails_is_one_error_among_the_answers", kind="transaction")
@found_by("test_a_command_that_fails_does_not_undo_the_others")
class RollsBack(DictStore):
    def execute(self, commands, *, atomic=False):
        before = dict(self.rows)
        replies = super().execute(commands)
        if atomic and any(isinstance(reply, Exception) for reply in replies):
            self.rows = before
        return replies


@found_by("test_nobody_reads_half_a_transaction")
@found_by("test_nobody_writes_into_a_transaction")
@found_by("test_nobody_counts_into_a_transaction")
@found_by("test_tasks_and_threads_do_not_count_into_one")
class TransactionsArePipelines(DictStore):
    def execute(self, commands, *, atomic=False):
        replies = []
        for command in commands:
            replies += super().execute([command])
            time.sleep(IN_TURN)
        return replies


@found_by("test_a_thousand_commands", kind="pipeline")
class AHundredCommandsAtMost(DictStore):
    def execute(self, commands, *, atomic=False):
        done = super().execute(commands[:100])
        return done + [None] * (len(commands) - len(done))


@found_by("test_an_empty_one_does_nothing", kind="pipeline")
@found_by("test_no_calls_are_no_answers")
@found_by("test_it_can_be_used_again", kind="pipeline")
class EmptyIsAnError(DictStore):
    def pipeline(self):
        made = super().pipeline()
        execute = made.execute

        def checked():
            assert len(made), "an empty pipeline"
            return execute()

        made.execute = checked
        return made


@found_by("test_nothing_is_executed_before", kind="pipeline")
@found_by("test_a_with_block_that_raises_sends_nothing_then_or_later", kind="pipeline")
@found_by("test_what_is_no_call_is_named_by_its_place_and_nothing_is_executed", item="get", error=ValueError)
class PipelinesExecuteAtOnce(DictStore):
    def pipeline(self):
        made = super().pipeline()
        add = made.add

        def executed(command):
            self.execute([command])
            return add(command)

        made.add = executed
        return made


@found_by("test_two_do_not_mix", kind="pipeline")
class OnePipelineForAll(DictStore):
    def pipeline(self):
        if not hasattr(self, "one"):
            self.one = super().pipeline()
        return self.one


class Idle(Pipeline):
    def __exit__(self, *_):
        pass


@found_by("test_a_with_block_executes_at_its_end", kind="pipeline")
class WithDoesNothing(DictStore):
    def pipeline(self):
        return Idle(self.commands, self._execute, self._aexecute)


class Touchy(Pipeline):
    def set(self, *args, **named):
        try:
            return super().set(*args, **named)
        except (TypeError, ValueError):
            self._taken()
            raise


@found_by("test_a_wrong_argument_is_an_error_at_once_and_takes_nobody_along", kind="pipeline")
class AWrongArgumentTakesTheOthersAlong(DictStore):
    def pipeline(self):
        return Touchy(self.commands, self._execute, self._aexecute)


@found_by("test_the_async_names_are_there")
class HasNoAsyncNames(DictStore):
    apipeline = None


@found_by("test_an_error_alone_is_of_no_pipeline")
class AloneIsFirst(DictStore):
    def call(self, command):
        try:
            return super().call(command)
        except StoreTypeError as error:
            error.index = 0
            raise


@found_by("test_options_are_heeded")
@found_by("test_a_call_is_written_as_one_calls", item=("incr", "n", {"by": 5}), answer=46)
class BatchKnowsNoOptions(DictStore):
    def batch(self, calls):
        return super().batch([[part for part in call if not isinstance(part, dict)] for call in calls])


@found_by("test_calls_may_come_from_an_iterator")
class BatchWantsALength(DictStore):
    def batch(self, calls):
        return super().batch(calls) if len(calls) else []


# --- arguments and errors -------------------------------------------------------------------------------


@found_by("test_a_wrong_argument_is_an_error_and_nothing_is_executed", name="set")
@found_by("test_a_number_is_stored_as_its_text", number=1.5, text="1.5")
class StoresAnything(DictStore):
    def set(self, key, value, **named):
        return super().set(key, value if isinstance(value, str | bytes) else repr(value) + " ", **named)


@found_by("test_a_wrong_argument_is_an_error_and_nothing_is_executed", name="delete")
class DeletesNothing(DictStore):
    def delete(self, *keys):
        return super().delete(*keys) if keys else 0


@found_by("test_a_wrong_argument_is_an_error_and_nothing_is_executed", name="get")
@found_by("test_a_prefix_is_text", prefix=5)
class KeysAreAnything(DictStore):
    def get(self, key):
        return super().get(str(key))

    def scan(self, prefix=""):
        return super().scan(str(prefix))


@found_by("test_a_wrong_argument_is_an_error_and_nothing_is_executed", name="expire")
class TakesTextForSeconds(DictStore):
    def expire(self, key, seconds):
        return super().expire(key, float(seconds))


@found_by("test_a_value_is_not_quoted_in_an_error")
class QuotesValues(DictStore):
    def set(self, key, value, **named):
        if not isinstance(value, str):
            raise TypeError(f"cannot store {value!r}")
        return super().set(key, value, **named)


@found_by("test_every_method_has_an_async_twin_with_its_arguments", name="set")
@found_by("test_arguments_may_be_named")
class TakesOtherArguments(DictStore):
    def set(self, name, content, timeout=None):
        return super().set(name, content, ex=timeout)


@found_by(
    "test_an_error_has_the_facts_and_shows_no_key_and_no_value", name="incr", value="a", kind=StoreTypeError
)
@found_by("test_a_command_that_is_unknown_is_refused")
class ErrorsOfItsOwn(DictStore):
    def call(self, command):
        try:
            return super().call(command)
        except StoreTypeError as error:
            raise LookupError(str(error)) from error
        except Exception as error:
            raise KeyError(command.name) from error


@found_by(
    "test_an_error_has_the_facts_and_shows_no_key_and_no_value", name="incr", value="a", kind=StoreTypeError
)
class ErrorsShowKeys(DictStore):
    def reply(self, command):
        reply = super().reply(command)
        if isinstance(reply, StoreTypeError):
            return StoreTypeError(reply.command, reply.key, f"no integer: {reply.key}")
        return reply


@found_by("test_an_error_can_be_pickled_and_copied")
class ErrorsWithAReferenceToTheStore(DictStore):
    def reply(self, command):
        reply = super().reply(command)
        if isinstance(reply, StoreTypeError):
            reply.store = self
        return reply


@found_by("test_nobody_counts_after_an_error_other_than_before")
class AnErrorClosesIt(DictStore):
    def reply(self, command):
        if getattr(self, "closed", False):
            return StoreUnavailable(command.name, command.key)
        reply = super().reply(command)
        self.closed = isinstance(reply, StoreTypeError)
        return reply


@found_by("test_no_secret_shows", secrets=("t0ken",))
class ShowsItsToken(DictStore):
    where = "https://default:t0ken@example.com"


@found_by("test_a_repr_says_which_store_it_is")
class ReprIsSomethingElse(DictStore):
    def __repr__(self):
        return "<store>"


@found_by("test_is_a_store")
class IsNoStore:
    def __init__(self, home):
        pass


# --- life -----------------------------------------------------------------------------------------------


@found_by("test_ping_is_true")
@found_by("test_health_is_ok_and_says_what_it_is")
class KnowsNoPing(DictStore):
    do_ping = None


@found_by("test_asking_leaves_nothing_behind")
class PingsByWriting(DictStore):
    def do_ping(self, ping):
        self.rows[f"{self.commands.home}ping"] = b"", math.inf
        return b"PONG"


@found_by("test_close_can_be_called_at_any_time")
@found_by("test_a_with_block_closes_it_at_its_end")
@found_by("test_an_async_with_block_closes_it_at_its_end")
@found_by("test_close_takes_no_answer_from_others")
@found_by("test_close_from_another_thread_is_fine")
class ClosedForGood(DictStore):
    def close(self):
        self.execute = None

    async def aclose(self):
        self.close()


@found_by("test_a_with_block_closes_it_at_its_end")
class EntersSomethingElse(DictStore):
    def __enter__(self):
        return None


@found_by("test_every_loop_is_as_good_as_the_first")
@found_by("test_sync_and_async_see_the_same_data")
@found_by("test_sync_calls_within_a_running_loop_are_served")
class AsyncIsElsewhere(DictStore):
    async def aexecute(self, commands, *, atomic=False):
        return DictStore(self.commands.home).execute(commands)


@found_by("test_a_cancelled_task_leaves_no_reply_behind")
class LeavesRepliesBehind(DictStore):
    """As a connection does that is used again although its answer was not read."""

    def __init__(self, home):
        super().__init__(home)
        self.replies = []

    async def aexecute(self, commands, *, atomic=False):
        import asyncio

        self.replies.append(self.execute(commands))
        await asyncio.sleep(0)
        return self.replies.pop(0)


@found_by("test_a_forked_child_goes_on")
@found_by("test_parent_and_child_get_their_own_answers")
@found_by("test_a_child_that_ends_takes_nothing_along")
class ForksBadly(DictStore):
    def after_fork(self):
        self.rows.clear()
        self.get = None


# --- that they are found --------------------------------------------------------------------------------


def arguments_for(test: Callable[..., None], store: KVStore, given: dict[str, Any]) -> dict[str, Any]:
    offered = {"store": store, "call": StoreCall(), "secrets": (), "kind": "pipeline"} | given
    return {each: offered[each] for each in inspect.signature(test).parameters}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PATIENCE", 0.3)


@pytest.mark.parametrize(("defect", "name", "given"), DEFECTS)
def test_a_defect_is_found(defect, name, given):
    test = getattr(KVStoreContract(), name)
    arguments = arguments_for(test, defect("contract:kv:"), given)
    with pytest.raises((Exception, pytest.fail.Exception)):
        test(**arguments)


@pytest.mark.parametrize(("defect", "name", "given"), DEFECTS)
def test_without_the_defect_it_passes(defect, name, given):
    """Or else the test would find anything."""
    test = getattr(KVStoreContract(), name)
    test(**arguments_for(test, DictStore("contract:kv:"), given))


def test_no_theme_hides_a_test_of_another():
    """Two of one name would be one, and nobody would miss the other."""
    themes = [theme for theme in KVStoreContract.__mro__ if theme.__module__.startswith("redis_infra")]
    names = [name for theme in themes for name in vars(theme) if name.startswith("test_")]
    assert len(names) == len(set(names))


def test_every_test_of_the_contract_finds_something():
    named = {name for _, name, _ in DEFECTS}
    tests = {name for name in dir(KVStoreContract) if name.startswith("test_")}
    assert sorted(tests - named) == []
