"""What processes count is summed in Redis: once, all of it, within bounds, and through outages."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
import types
import weakref

import pytest
from django.core.cache import cache
from django.core.signals import request_finished

from redis_infra.instrumentation import Counters, ThrottleCounters
from redis_infra.observability import counts, flushing, samples, stats
from redis_infra.observability.flushing import Sums
from redis_infra.querycache import cached, cached_many, decorators, tallies
from redis_infra.querycache.space import forget_spaces
from redis_infra.throttling.limiter import default_limiter
from tests.faults.site import uncounted_environ, wait_until
from tests.forking import in_child

OURS = "redis_infra.cache.RedisCache"
QUICK = {"probe_base": "5ms", "probe_cap": "20ms"}
SLOW = "1h"
"""Nothing is flushed but by hand."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Count the functions of one test only, from zero; stop flushing after it."""
    monkeypatch.setattr(tallies, "tallies", tallies.Tallies())
    monkeypatch.setattr(decorators, "tallies", tallies.tallies)
    yield
    flushing.end()
    forget_spaces()


@pytest.fixture
def site(settings, tmp_path, monkeypatch):
    """Set up a site on a server, and let this process begin: ``site(url, FLUSH="20ms")``."""
    monkeypatch.delenv("REDIS_URL", raising=False)

    def make(url, **stats_settings):
        options = {"STATE_DIR": str(tmp_path / "state"), "BREAKER": QUICK, "COMMAND_TIMEOUT": "10s"}
        settings.CACHES = {"default": {"BACKEND": OURS, "LOCATION": url, "OPTIONS": options}}
        settings.REDIS_INFRA = {"STATS": {"FLUSH": SLOW, **stats_settings}}
        flushing.begin()

    return make


@pytest.fixture
def loaded():
    """A cached function of type ``user``."""

    @cached("user:{user_id}", ttl="user")
    def get_user(user_id):
        return user_id

    return get_user


def ask(function, *items):
    for item in items:
        function(item)


def total(by="type"):
    return stats.read_stats(by, memory=False).total


def hits_and_misses():
    line = total()
    return line.hits, line.misses


# --- flushing -------------------------------------------------------------------------------------------


def test_what_was_counted_is_summed_by_function(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, 1, 1, 1, 2)
    assert flushing.flush()
    [line] = stats.read_stats("function").lines
    assert line.name.endswith("get_user")
    assert (line.hits, line.misses, line.computations, line.errors) == (2, 2, 2, 0)
    assert line.seconds == pytest.approx(loaded.tally.seconds, abs=1e-5)


def test_items_of_cached_many_count_each(site, redis_server):
    @cached_many("doc:{doc}", ttl="documents")
    def load(docs):
        return dict.fromkeys(docs, 1)

    site(redis_server.url)
    load([1, 2, 3])
    load([3, 4])
    assert flushing.flush()
    [line] = stats.read_stats("type", memory=False).lines
    assert (line.name, line.hits, line.misses) == ("documents", 1, 4)


def test_a_flush_adds_only_what_is_new(site, redis_server, loaded):
    site(redis_server.url)
    for _ in range(3):
        ask(loaded, 1)
        assert flushing.flush()
    assert flushing.flush()
    assert hits_and_misses() == (2, 1)


def test_processes_are_summed(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, 1)

    def child():
        ask(loaded, 1, 1)
        return flushing.flush()

    assert [in_child(child) for _ in range(3)] == [True] * 3
    assert flushing.flush()
    assert hits_and_misses() == (6, 1)


def test_a_forked_child_does_not_count_what_its_parent_did(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, 1, 1, 1)
    assert in_child(flushing.flush)
    assert hits_and_misses() == (0, 0)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_flush_whose_reply_was_lost_counts_once(site, redis_proxy, loaded, lost):
    site(redis_proxy.url)
    ask(loaded, 1, 1)
    assert flushing.flush()
    ask(loaded, 1)
    redis_proxy.lose_replies(lost, request=b"EVALSHA")
    wait_until(flushing.flush, 10)
    assert hits_and_misses() == (2, 1)


def test_what_was_counted_while_a_flush_was_lost_comes_with_the_next(site, redis_proxy, loaded):
    site(redis_proxy.url)
    ask(loaded, 1)
    assert flushing.flush()
    ask(loaded, 1)
    redis_proxy.lose_replies(2, request=b"EVALSHA")
    flushing.flush()
    ask(loaded, 1, 1)  # from memory, perhaps
    wait_until(flushing.flush, 10)
    assert hits_and_misses() == (loaded.tally.hits, loaded.tally.misses)
    assert sum(hits_and_misses()) == 4


def test_a_child_does_not_send_what_its_parent_is_unsure_of(site, redis_proxy, loaded):
    site(redis_proxy.url)
    ask(loaded, 1)
    assert flushing.flush()
    ask(loaded, 1)
    redis_proxy.refuse()
    assert not flushing.flush()
    redis_proxy.heal()
    assert in_child(lambda: wait_until(flushing.flush, 10))
    wait_until(flushing.flush, 10)
    assert hits_and_misses() == (1, 1)


def test_counts_of_an_outage_are_kept_and_flushed_after_it(site, own_redis, loaded):
    server = own_redis()
    site(server.url)
    ask(loaded, 1)
    server.kill()
    ask(loaded, 1, 2, 2)
    assert not flushing.flush()
    server.start()
    wait_until(flushing.flush, 10)
    line = total()
    assert (line.hits + line.misses, line.computations) == (4, loaded.tally.computations)


def test_a_flush_ends_although_the_site_goes_on(site, redis_server, loaded, monkeypatch):
    """What is counted while it is sent is for the next one; else it would never end on a busy site."""
    site(redis_server.url)
    add, sent = Sums.add, []

    def busy(self, batch):
        sent.append(batch)
        assert len(sent) < 10, "it never ends"
        loaded(len(sent))
        return add(self, batch)

    monkeypatch.setattr(Sums, "add", busy)
    loaded(0)
    assert flushing.flush()
    assert len(sent) == 1


def test_threads_that_flush_at_once_count_once(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, *range(50))
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(20):
            flushing.flush()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hits_and_misses() == (0, 50)


def test_counters_that_began_anew_are_not_taken_for_less(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, 1, 1, 1)
    assert flushing.flush()
    loaded.tally.hits = 1
    loaded.tally.misses = 0
    assert flushing.flush()
    assert hits_and_misses()[0] == 3


def test_denials_are_counted_by_policy_and_decisions_in_all(site, redis_server, settings):
    site(redis_server.url)
    limiter = default_limiter()
    for _ in range(7):
        limiter.hit("upload", "user:1")
    assert flushing.flush()
    report = stats.read_stats()
    assert report.denied == {"upload": 2}
    assert (report.limits["allowed"], report.limits["denied"]) == (5, 2)


def test_operations_of_the_cache_are_counted_by_server(site, redis_server):
    site(redis_server.url)
    cache.set("k", 1)
    assert [cache.get("k"), cache.get("k"), cache.get("nothing")] == [1, 1, None]
    assert flushing.flush()
    [server] = stats.read_stats().servers
    assert (server.hits, server.misses) == (2, 1)


def test_changes_of_circuits_are_told_to_all(site, own_redis, loaded):
    server = own_redis()
    site(server.url)
    ask(loaded, 1)
    server.kill()
    ask(loaded, 1)
    server.start()
    wait_until(lambda: not cache.is_degraded, 10)
    wait_until(flushing.flush, 10)
    told = [json.loads(each) for each in server.command("LRANGE", flushing.Names("ri").events, 0, -1)]
    assert [each["after"] for each in reversed(told)][-1] == "closed"
    assert {each["pid"] for each in told} == {os.getpid()}


# --- functions that come and go ------------------------------------------------------------------------


def view(item, key="view:{x}", then=None):
    """Decorate a function, as a view may do in each request, and call it."""

    @cached(key, ttl="user")
    def inner(x):
        return x if then is None else then(x)

    return inner(item)


def test_functions_that_are_gone_stay_counted(site, redis_server):
    site(redis_server.url)
    for _ in range(100):
        view(1)
        view(2)
    assert flushing.flush()
    [line] = stats.read_stats("function", memory=False).lines
    assert (line.name, line.hits, line.misses) == (f"{__name__}.view.<locals>.inner", 198, 2)


def test_functions_that_come_and_go_are_flushed_once(site, redis_server):
    site(redis_server.url)
    for turn in range(1, 60):
        view(1)
        gc.collect()
        assert flushing.flush()
        assert sum(hits_and_misses()) == turn


def test_a_function_that_is_gone_is_not_kept():
    @cached("gone:{x}", ttl=60)
    def function(x):
        return x

    there = weakref.ref(function)
    assert function in decorators.functions.values()
    del function
    gc.collect()
    assert there() is None


def test_a_call_that_outlives_its_function_is_counted(site, redis_server):
    site(redis_server.url)
    methods = []

    def inner():
        class A:
            pk = 1

            @cached("a:{self.pk}", ttl="user")
            def method(self):
                return 1

        bound = A().method
        del A.method  # of which that is a copy
        return bound

    methods += [inner() for _ in range(100)]
    for method in methods:
        method()
    assert sum(counts.counted()[row][0] + counts.counted()[row][1] for row in functions_counted()) == 100


def functions_counted():
    return [row for row in counts.counted() if row[0] == "function"]


def test_each_with_a_key_of_its_own_is_bounded(site, redis_server):
    site(redis_server.url)
    for number in range(300):
        view(1, f"view-{number}:{{x}}")
    assert len(functions_counted()) == tallies.MOST_GLOBS + 1
    assert flushing.flush()
    [line] = stats.read_stats("function", memory=False).lines
    assert (line.hits, line.misses) == (0, 300)


def test_registering_does_not_look_at_all_that_there_are():
    looks = Looks()
    with looks.at(decorators._is_another):
        kept = [cached(f"many-{n}:{{x}}", ttl=60)(_named("one_of_many")) for n in range(200)]
    assert looks.count <= 200
    assert len([each for each in decorators.functions.values() if each in kept]) == 200


class Looks:
    """Counts the calls of a function in this thread."""

    def __init__(self):
        self.count = 0

    @contextlib.contextmanager
    def at(self, function):
        def note(frame, event, _):
            self.count += event == "call" and frame.f_code is function.__code__

        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(None)


def test_modules_that_another_thread_imports_just_now_have_counted_nothing(monkeypatch):
    with monkeypatch.context() as patch:
        for name in ("connection.lifecycle", "throttling.limiter", "querycache.tallies"):
            patch.setitem(sys.modules, f"redis_infra.{name}", types.ModuleType(name))
        assert counts.counted() == {}
        assert counts.known_functions() == []


def test_while_threads_decorate_nothing_is_counted_twice_or_lost(site, redis_server):
    site(redis_server.url)
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(sum(sum(counts.counted()[row][:2]) for row in functions_counted()))

    def decorate():
        for _ in range(100):
            view(1)

    reader = threading.Thread(target=read)
    threads = [threading.Thread(target=decorate) for _ in range(4)]
    reader.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert sum(sum(counts.counted()[row][:2]) for row in functions_counted()) == 400


# --- bounds ---------------------------------------------------------------------------------------------


def too_many_functions():
    """More cached functions than are told apart."""
    made = []
    for number in range(counts.MOST_FUNCTIONS + 50):

        def load(x):
            return x

        load.__qualname__ = f"load_{number}"
        made.append(cached("load:{x}", ttl=60)(load))
    return made


def test_functions_beyond_the_most_are_summed_as_other(site, redis_server, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # the bound is that of each minute
    site(redis_server.url)
    made = too_many_functions()
    ask(made[0], 1)
    for function in made:
        function.tally.hits += 1
    assert flushing.flush()
    report = stats.read_stats("function", memory=False)
    assert counts.MOST_FUNCTIONS <= len(report.lines) <= counts.MOST_FUNCTIONS + 1
    assert report.lines[-1].name == "other"
    assert report.total.hits == counts.MOST_FUNCTIONS + 50
    assert redis_server.command("HLEN", flushing.Names("ri").hour(time.time())) <= counts.MOST_FUNCTIONS + 3


def test_limits_are_told_beside_any_number_of_functions(site, redis_server, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    site(redis_server.url)
    made = too_many_functions()

    def all_of_them_and_a_limit():
        for function in made:
            function.tally.hits += 1
        cache.get("nothing")
        for _ in range(7):
            default_limiter().hit("upload", "user:1")
        return flushing.flush()

    assert all_of_them_and_a_limit()
    report = stats.read_stats("function", memory=False)
    assert (report.limits["allowed"], report.limits["denied"], report.denied) == (5, 2, {"upload": 2})
    assert [each.name for each in report.servers] == [default_limiter().remote.database.options.label]
    # Another process finds no room left: its decisions are of the same row, whatever else is of "other".
    assert in_child(all_of_them_and_a_limit)
    report = stats.read_stats("function", memory=False)
    assert (report.limits["allowed"], report.limits["denied"]) == (5, 9)


def test_every_key_has_an_end_one_hash_tag_and_the_prefix(site, redis_server, loaded, settings):
    site(redis_server.url, KEEP="2h")
    settings.REDIS_INFRA = {**settings.REDIS_INFRA, "KEY_PREFIX": "shop"}
    ask(loaded, 1)
    flushing._note_transition(_opened())
    assert flushing.flush()
    keys = redis_server.command("KEYS", "*stats*")
    assert len(keys) == 4
    assert all(key.startswith(b"shop:stats:{stats}:") for key in keys)
    lives = {key.split(b":")[3]: redis_server.command("TTL", key) for key in keys}
    assert 0 < lives[b"m"] <= 65 * 60 < lives[b"h"] <= 2 * 3600
    assert all(life > 0 for life in lives.values())


def _opened():
    from redis_infra.instrumentation import Transition

    return Transition(server="redis://there", circuit="reach", before="closed", after="open", cause="refused")


def test_the_list_of_events_is_bounded(site, redis_server):
    site(redis_server.url)
    for _ in range(3):
        for _ in range(flushing.MOST_EVENTS):
            flushing._note_transition(_opened())
        assert flushing.flush()
    assert redis_server.command("LLEN", flushing.Names("ri").events) == flushing.MOST_EVENTS


def test_many_rows_go_in_several_pieces(site, redis_server, monkeypatch):
    monkeypatch.setattr(flushing, "ROWS", 3)
    site(redis_server.url)
    for name in "abcdefghij":
        ask(cached(f"{name}:{{x}}", ttl=60)(_named(name)), 1)
    assert flushing.flush()
    assert hits_and_misses() == (0, 10)


# --- when it is flushed ---------------------------------------------------------------------------------


def test_nothing_runs_before_it_begins_and_nothing_where_it_is_switched_off(site, redis_server, loaded):
    site(redis_server.url, ENABLED=False)
    ask(loaded, 1)
    assert "redis_infra-statistics" not in [thread.name for thread in threading.enumerate()]
    assert not flushing.flush()
    assert redis_server.command("KEYS", "*stats*") == []


def test_one_thread_flushes_every_interval(site, redis_server, loaded):
    site(redis_server.url, FLUSH="20ms")
    flushing.begin()
    assert [thread.name for thread in threading.enumerate()].count("redis_infra-statistics") == 1
    for asked in (1, 2, 3):
        ask(loaded, 1)
        wait_until(lambda asked=asked: sum(hits_and_misses()) == asked, 10)


def test_a_forked_child_flushes_by_itself(site, redis_server, loaded):
    site(redis_server.url, FLUSH="20ms")

    def child():
        ask(loaded, 1)
        return wait_until(lambda: sum(hits_and_misses()) == 1, 10)

    assert in_child(child)


@pytest.mark.django_db
def test_where_the_thread_does_not_run_the_end_of_a_request_flushes(site, redis_server, loaded):
    site(redis_server.url, FLUSH="20ms")
    flushing._beat.stop()
    ask(loaded, 1)

    def one_more_request():
        request_finished.send(sender=None)
        return hits_and_misses() == (0, 1)

    wait_until(one_more_request, 10)


@pytest.mark.django_db
def test_the_end_of_a_request_costs_nothing_while_the_thread_runs(site, redis_proxy, loaded):
    site(redis_proxy.url)
    ask(loaded, 1)
    redis_proxy.reset_counts()
    request_finished.send(sender=None)
    assert redis_proxy.round_trips == 0


PROGRAM = """
import django
from django.conf import settings
settings.configure(
    CACHES={"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": %r}},
    REDIS_INFRA={"STATS": {"FLUSH": "1h"}}, SECRET_KEY="x",
)
django.setup()
from redis_infra.observability import flushing
from redis_infra.querycache import cached

@cached("user:{user_id}", ttl="user")
def get_user(user_id):
    return user_id

flushing.begin()
get_user(1), get_user(1), get_user(1)
"""


def test_a_process_flushes_when_it_ends(site, redis_server):
    site(redis_server.url)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % redis_server.url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert hits_and_misses() == (2, 1)


CHILDREN = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

def in_children(method, ask):
    context = multiprocessing.get_context(method)
    child = context.Process(target=ask, args=(5,))
    child.start()
    child.join()
    pool = context.Pool(2)
    pool.map(ask, [3] * 4, chunksize=1)
    pool.close()
    pool.join()
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        list(executor.map(ask, [2] * 4))
"""

SITE = """
import django
from django.conf import settings
settings.configure(
    CACHES={"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": %r}},
    REDIS_INFRA={"STATS": {"FLUSH": "1h"}, "COMMAND_TIMEOUT": "10s", "CONNECT_TIMEOUT": "10s"},
    INSTALLED_APPS=["redis_infra"], SECRET_KEY="x",
)
django.setup()
from redis_infra.querycache import cached

@cached("user:{user_id}", ttl="user")
def get_user(user_id):
    return user_id

def ask(times):
    for _ in range(times):
        get_user(1)

def nested(times):
    in_children("fork", ask)
    ask(times)
"""


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_are_counted_when_they_end(site, redis_server, tmp_path, method, begun):
    site(redis_server.url)
    main = f"if __name__ == '__main__':\n    ask({int(begun)})\n    in_children({method!r}, ask)\n"
    program = tmp_path / "program.py"
    program.write_text(CHILDREN + SITE % redis_server.url + main)
    done = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, timeout=60, env=with_path()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(hits_and_misses()) == int(begun) + 5 + 4 * 3 + 4 * 2


def test_children_of_children_are_counted_once(site, redis_server, tmp_path):
    site(redis_server.url)
    main = (
        "child = multiprocessing.get_context('fork').Process(target=nested, args=(7,))\n"
        "get_user(1)\nchild.start()\nchild.join()\n"
    )
    program = tmp_path / "program.py"
    program.write_text(CHILDREN + SITE % redis_server.url + main)
    done = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, timeout=60, env=with_path()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(hits_and_misses()) == 1 + 7 + 5 + 4 * 3 + 4 * 2


def with_path():
    """This process' environment, in which children find what it finds, and say nothing of coverage."""
    return {**uncounted_environ(), "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}


def test_a_process_that_ends_in_an_outage_does_not_wait_for_long():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % "redis://127.0.0.1:1/0"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 15


def test_what_redis_refuses_is_said_once_and_raises_nothing(site, redis_server, loaded, caplog):
    site(redis_server.url)
    redis_server.command("SET", flushing.Names("ri").minute(time.time()), "text")
    redis_server.command("SET", flushing.Names("ri").minute(time.time() + 60), "text")
    ask(loaded, 1)
    with caplog.at_level(logging.WARNING, logger="redis_infra"):
        assert not flushing.flush()
        assert not flushing.flush()
    assert [each.message for each in caplog.records] == ["redis_infra.statistics_refused"]


# --- reading --------------------------------------------------------------------------------------------


def test_the_last_hour_is_read_by_minutes_and_a_day_by_hours():
    names, now = flushing.Names("ri"), 1_000_000_000.0
    minutes, since = stats.buckets(names, 300, now)
    assert (minutes[-1], len(minutes)) == (names.minute(now), 6)
    assert now - 360 < since <= now - 300
    hours, since = stats.buckets(names, 24 * 3600, now)
    assert (hours[-1], len(hours)) == (names.hour(now), 25)
    assert now - 25 * 3600 < since <= now - 24 * 3600


def test_what_lies_further_back_is_not_shown(site, redis_server, loaded):
    site(redis_server.url)
    names, now = flushing.Names("ri"), time.time()
    row = '["function","default","user","f","user:*"]'
    for ago, hits in ((0, 1), (5, 10), (40, 100)):
        redis_server.command("HSET", names.minute(now - ago * 60), row, hits)
    assert stats.read_stats(since=600, memory=False).total.hits == 11
    assert stats.read_stats(since=3600, memory=False).total.hits == 111


def test_no_more_is_read_than_is_kept(site, redis_proxy, loaded):
    site(redis_proxy.url, KEEP="3h")
    ask(loaded, 1)
    assert flushing.flush()
    redis_proxy.reset_counts()
    report = stats.read_stats(since=1e11, memory=False)
    assert (report.status, report.total.misses, redis_proxy.round_trips) == ("pass", 1, 1)
    assert 3 * 3600 <= report.time - report.since <= 4 * 3600


def test_what_others_wrote_into_a_bucket_is_passed_over(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, 1)
    assert flushing.flush()
    bucket = flushing.Names("ri").minute(time.time())
    for field, value in (
        ("x", "1"),
        ("[1]", "1"),
        ('["function"]', "9"),
        ('["function","a","b","c","d"]', "x y"),
    ):
        redis_server.command("HSET", bucket, field, value)
    assert hits_and_misses() == (0, 1)


def test_types_and_aliases_add_up_what_their_functions_did(site, redis_server, loaded):
    @cached("profile:{user_id}", ttl="user")
    def get_profile(user_id):
        return user_id

    site(redis_server.url)
    ask(loaded, 1, 1)
    ask(get_profile, 1, 1, 1)
    assert flushing.flush()
    [by_type] = stats.read_stats("type", memory=False).lines
    [by_alias] = stats.read_stats("alias").lines
    assert [(each.name, each.hits, each.misses) for each in (by_type, by_alias)] == [
        ("user", 3, 2),
        ("default", 3, 2),
    ]


def test_top_shows_the_busiest_and_the_total_is_of_all(site, redis_server):
    site(redis_server.url)
    for name, hits in (("a", 1), ("b", 3), ("c", 2)):
        function = cached(f"{name}:{{x}}", ttl=60)(_named(name))
        ask(function, 1, *[1] * hits)
    assert flushing.flush()
    report = stats.read_stats(top=2)
    assert [line.name for line in report.lines] == ["b", "c"]
    assert (report.omitted, report.total.hits) == (1, 6)


def _named(name):
    def load(x):
        return x

    load.__qualname__ = name
    return load


def test_reset_forgets_all_that_was_counted_and_counting_goes_on(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, 1, 1)
    assert flushing.flush()
    assert stats.reset_stats() == 2
    assert hits_and_misses() == (0, 0)
    ask(loaded, 1)
    assert flushing.flush()
    assert hits_and_misses() == (1, 0)


# --- memory ---------------------------------------------------------------------------------------------


def test_keys_are_told_apart_by_the_templates_of_functions(site, redis_server):
    @cached("chat:{chat}:messages:{page}", ttl="messages")
    def messages(chat, page):
        return page

    @cached("chat:{chat}", ttl="chat")
    def chat(chat):
        return chat

    site(redis_server.url)
    for number in range(3):
        messages(number, 1)
    ask(chat, 1, 2)
    assert flushing.flush()
    sizes = {line.name: line.keys for line in stats.read_stats().lines}
    assert {"messages": 3, "chat": 2}.items() <= sizes.items()


def test_sizes_are_those_of_the_server_where_all_keys_are_looked_at(site, redis_server, loaded):
    site(redis_server.url)
    ask(loaded, *range(20))
    sample = stats.read_stats().memory
    [user] = [each for each in sample.types if each.name == "user"]
    names = redis_server.command("KEYS", "*:qc:*")
    assert user.nbytes == pytest.approx(
        sum(redis_server.command("MEMORY", "USAGE", name) for name in names), rel=0.05
    )
    assert sample.is_complete


def test_beyond_the_most_keys_the_rest_is_reckoned(site, redis_server, loaded, monkeypatch):
    monkeypatch.setattr(samples, "MOST_LOOKED_AT", 2000)
    site(redis_server.url)
    ask(loaded, 1)
    [name] = redis_server.command("KEYS", "*:qc:*")
    raw = redis_server.command("GET", name)
    client = cache.client.get_client()
    client.mset({name.replace(b"user:1", b"user:%d" % number): raw for number in range(8000)})
    sample = stats.read_stats().memory
    assert not sample.is_complete
    assert 6000 < sample.keys < 10000


def test_without_permission_to_measure_keys_are_counted(site, own_redis, loaded):
    server = own_redis()
    site(server.url)
    ask(loaded, 1, 2)
    server.command("ACL", "SETUSER", "default", "-memory|usage")
    [user] = [each for each in stats.read_stats().memory.types if each.name == "user"]
    assert (user.keys, user.nbytes) == (2, None)


# --- reckoning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.5, 0.95, 0.99])
def test_a_percentile_is_within_its_class(fraction):
    loads = [0] * counts.LOADS
    loads[3] = 100  # 512 to 1024 microseconds
    assert 0.000512 <= counts.percentile(loads, fraction) <= 0.001024


def test_a_few_slow_loads_do_not_move_the_95th_percentile_and_many_do():
    few, many = [0] * counts.LOADS, [0] * counts.LOADS
    few[1], few[15] = 97, 3
    many[1], many[15] = 90, 10
    assert counts.percentile(few, 0.95) < 0.001
    assert counts.percentile(many, 0.95) > 1


def test_there_is_no_percentile_of_nothing():
    assert counts.percentile([0] * counts.LOADS, 0.95) is None
    assert counts.percentile((), 0.95) is None


@pytest.mark.parametrize(
    "subject", [("limits",), ("server", "redis://h:1/0"), ("function", "a", "b c", "d", "é:*")]
)
def test_a_field_reads_back_as_it_was_written(subject):
    assert counts.read_field(counts.write_field(subject).encode()) == subject


@pytest.mark.parametrize("text", [b"", b"x", b"{}", b"[]", b"[1]", b'"a"', b"\xff"])
def test_what_is_no_field_reads_as_none(text):
    assert counts.read_field(text) is None


@pytest.mark.parametrize("numbers", [(1, 0, 3), (0, 0, 2**53)])
def test_numbers_read_back_as_they_were_written(numbers):
    assert counts.read_numbers(counts.write_numbers(numbers).encode()) == numbers


def test_zeros_at_the_end_are_not_written():
    assert counts.write_numbers((1, 0, 2, 0, 0)) == "1 0 2"


@pytest.mark.parametrize(
    ("names", "counters"), [(counts.SERVER, Counters), (counts.LIMITS, ThrottleCounters)]
)
def test_numbers_have_the_order_of_their_counters(names, counters):
    assert names == tuple(counters().snapshot())


def test_how_long_loads_took_is_summed_by_class(site, redis_server):
    site(redis_server.url)

    @cached("slow:{x}", ttl=60)
    def slow(x):
        time.sleep(0.02 if x else 0)

    ask(slow, *range(20))
    assert flushing.flush()
    line = total("function")
    assert sum(slow.tally.loads) == 20
    assert 0.016 <= line.p95 <= 0.2
    assert line.mean >= 0.018


def test_the_first_redis_that_is_used_begins_it(settings, redis_server, loaded):
    settings.CACHES = {"default": {"BACKEND": OURS, "LOCATION": redis_server.url}}
    settings.REDIS_INFRA = {"STATS": {"FLUSH": "20ms"}}
    ask(loaded, 1, 1)
    wait_until(lambda: hits_and_misses() == (1, 1), 10)
