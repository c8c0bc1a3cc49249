"""What happens at commit where something goes wrong there, where two databases commit, where much waits."""

from __future__ import annotations

import contextlib
import gc

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.keys import escape, glob_to_regex
from redis_infra.querycache import cached, cached_many, invalidate, invalidate_on, transactions
from redis_infra.querycache import models as rules
from redis_infra.querycache.index import bucket_of
from redis_infra.querycache.transactions import Invalidation, Waiting

pytestmark = pytest.mark.django_db(transaction=True)

OTHER = "other"


@pytest.fixture(autouse=True)
def server(redis_server, settings, tmp_path):
    settings.CACHES = {
        "default": {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": redis_server.url,
            "KEY_PREFIX": "site",
            "OPTIONS": {"STATE_DIR": str(tmp_path), "COMMAND_TIMEOUT": "5s"},
        }
    }
    return redis_server


@pytest.fixture
def row():
    """A row of some database, and a cached function that reads it."""

    class Row:
        value = 1

        def __init__(self):
            self.read = cached("row:{pk}", ttl=300)(lambda pk: self.value)
            self.read_many = cached_many("row:{pk}:many", ttl=300)(lambda pks: dict.fromkeys(pks, self.value))

    return Row()


@pytest.fixture
def other():
    """A second database."""
    connections.settings[OTHER] = {**connections.settings["default"], "NAME": ":memory:"}
    connections[OTHER].connect()  # before Django looks whether the test has asked for this database
    try:
        yield OTHER
    finally:
        connections[OTHER].close()
        del connections[OTHER]
        del connections.settings[OTHER]


@contextlib.contextmanager
def undone(using=None):
    """A transaction that is rolled back."""
    with contextlib.suppress(LookupError), transaction.atomic(using):
        yield
        raise LookupError


# --- what raises ----------------------------------------------------------------------------------------


def test_what_fails_at_commit_is_logged_and_keeps_nothing_else_from_happening(server, row, caplog):
    row.read(1), row.read(2)
    index = f"site:1:qci:{{{bucket_of('row:1')}}}"
    server.command("SET", index, "somebody else's")
    ran = []
    with transaction.atomic():
        row.value = 2
        invalidate("row:1*")
        invalidate("row:2")
        transaction.on_commit(lambda: ran.append("the site's own"))
    assert ran == ["the site's own"]
    assert "redis_infra.querycache.invalidate" in caplog.text
    server.command("DEL", index)
    assert row.read(2) == 2


def test_a_callback_of_the_site_that_raises_does_not_keep_what_was_written_from_being_seen(row):
    row.read(1)

    def boom():
        raise ZeroDivisionError

    def change():
        with transaction.atomic():
            transaction.on_commit(boom)
            row.value = 2
            invalidate("row:*")

    with pytest.raises(ZeroDivisionError):
        change()
    assert row.read(1) == 2


def test_callbacks_of_the_site_read_what_is_true_by_then(row):
    row.read(1)
    seen = []
    with transaction.atomic():
        transaction.on_commit(lambda: seen.append(row.read(1)))
        row.value = 2
        invalidate("row:*")
    assert seen == [2]


@pytest.mark.parametrize("how", ["key", "tag"])
def test_what_was_computed_before_an_invalidation_is_not_stored_after_it(row, how):
    read = cached("tagged:{pk}", ttl=300, tags=["row:{pk}"])(lambda pk: row.value)
    with transaction.atomic():
        assert read(1) == 1
        row.value = 2
        invalidate(*(["tagged:1"] if how == "key" else []), tags=["row:1"] if how == "tag" else [])
    assert read(1) == 2


# --- two databases --------------------------------------------------------------------------------------


def test_an_invalidation_is_not_lost_where_the_outer_transaction_is_rolled_back(row, other):
    row.read(1)
    with undone():
        with transaction.atomic(other):
            row.value = 2
            invalidate("row:*")
        assert row.read(1) == 2
    assert row.read(1) == 2


@pytest.mark.parametrize("outer_is_other", [False, True])
def test_what_was_computed_in_two_transactions_is_kept_if_both_commit(row, other, outer_is_other):
    outer, inner = (other, None) if outer_is_other else (None, other)
    with transaction.atomic(outer):
        with transaction.atomic(inner):
            assert (row.read(1), row.read_many([1])) == (1, {1: 1})
        assert row.read.get(1) is None
    assert (row.read.get(1), row.read_many.get([1])) == (1, {1: 1})


@pytest.mark.parametrize("outer_is_other", [False, True])
@pytest.mark.parametrize("undone_is_outer", [False, True])
def test_it_is_not_kept_if_one_of_them_is_rolled_back(row, other, outer_is_other, undone_is_outer):
    outer, inner = (other, None) if outer_is_other else (None, other)
    kinds = (undone, transaction.atomic) if undone_is_outer else (transaction.atomic, undone)
    row.value = "never committed"
    with kinds[0](outer), kinds[1](inner):
        row.read(1), row.read_many([1])
    assert row.read.get(1) is None
    assert row.read_many.get([1]) == {}


def test_nobody_keeps_what_he_read_between_two_commits(row, other):
    row.read(1)
    with transaction.atomic(other):
        with transaction.atomic():
            invalidate("row:*")
        # Somebody else, who does not see yet what is to be committed; and then it is.
        connections[other].run_on_commit, kept = [], connections[other].run_on_commit
        connections[other].in_atomic_block = False
        assert row.read(1) == 1
        connections[other].in_atomic_block, connections[other].run_on_commit = True, kept
        row.value = 2
    assert row.read(1) == 2


# --- much of it -----------------------------------------------------------------------------------------


def test_what_is_asked_for_a_thousand_times_happens_once(server, monkeypatch):
    monkeypatch.setattr(rules, "_rules", [])
    monkeypatch.setattr(rules, "_connected", set())
    receivers = list(rules.signals.post_save.receivers)
    invalidate_on(User, "room:42:*", tags=["room:42"])
    try:
        user = User.objects.create(username="ann")
        before = calls_of(server)
        with transaction.atomic():
            for _ in range(100):
                user.save()
        assert calls_of(server) - before < 20  # at one time each, for the pattern and for the tag
    finally:
        rules.signals.post_save.receivers = receivers
        rules.signals.post_save.sender_receivers_cache.clear()


def calls_of(server):
    stats = server.command("INFO", "commandstats")
    found = [line for line in str(stats).replace("\\r\\n", "\n").split("\n") if "cmdstat_evalsha:" in line]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in found)


def test_savepoints_take_what_was_asked_for_within_them_alone(row):
    row.read(1), row.read(2), row.read(3)
    with transaction.atomic():
        invalidate("row:1")
        with undone():
            invalidate("row:2")
        with transaction.atomic():
            invalidate("row:3")
    assert [row.read.get(pk) for pk in (1, 2, 3)] == [None, 1, None]


def test_what_was_rolled_back_and_is_remembered_by_a_traceback_takes_no_more(row):
    row.read(1)
    kept = []
    with undone():
        invalidate("row:1")
        kept += connection.run_on_commit
    with transaction.atomic():
        row.value = 2
        invalidate("row:1")
    assert row.read(1) == 2
    assert kept


def test_nothing_waits_when_all_is_over(row):
    with transaction.atomic():
        invalidate("row:1")
        assert transactions.pending
    with undone():
        invalidate("row:1")
    gc.collect()
    assert not transactions.pending


KEYS = st.text(alphabet="ab:*[?\\", min_size=1, max_size=5)


@given(keys=st.lists(KEYS, max_size=4), globs=st.lists(KEYS, max_size=4), asked=KEYS)
def test_what_waits_covers_what_its_patterns_match(keys, globs, asked):
    patterns = tuple([escape(key) for key in keys] + [f"{escape(key)}*" for key in keys[:2]] + globs)
    waiting = Waiting()
    waiting.add(Invalidation("default", patterns, ("a tag",), lambda action: 0))
    expected = any(glob_to_regex(pattern).match(asked) for pattern in patterns)
    assert waiting.covers("default", asked, ()) == expected
    assert waiting.covers("default", asked, ("a tag",))
    assert not waiting.covers("another", asked, ("a tag",))


# --- coroutines within ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_coroutine_in_a_transaction_is_part_of_it(row, kind):
    if kind == "one":

        @cached("async:{pk}", ttl=300)
        async def read(pk):
            return row.value

        ask, kept = lambda: async_to_sync(read)(1), lambda: async_to_sync(read.aget)(1)
    else:

        @cached_many("async:{pk}", ttl=300)
        async def read(pks):
            return dict.fromkeys(pks, row.value)

        ask, kept = lambda: async_to_sync(read)([1])[1], lambda: async_to_sync(read.aget)([1]).get(1)
    with undone():
        row.value = "never committed"
        assert ask() == "never committed"
    assert kept() is None
    with transaction.atomic():
        row.value = 2
        assert ask() == 2
        assert kept() is None
    assert kept() == 2
    with transaction.atomic():
        row.value = 3
        invalidate("async:*")
        assert ask() == 3
        assert kept() == 2
    assert kept() is None
