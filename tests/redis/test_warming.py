"""Warmers: what is loaded, what is left alone, and that it neither outlives an invalidation nor an outage."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.db import transaction

from redis_infra.exceptions import SettingsError
from redis_infra.observability import counts as counts_of
from redis_infra.querycache import cached, cached_many, invalidate, loading, warm_run, warming
from redis_infra.querycache.entries import NOBODY, new_token
from redis_infra.querycache.space import space_for
from redis_infra.querycache.warm_crew import Crew
from redis_infra.querycache.warm_run import warm
from redis_infra.querycache.warming import warmer


@pytest.fixture(autouse=True)
def _own_warmers(monkeypatch):
    """Keep the test's warmers to itself."""
    monkeypatch.setattr(warming, "warmers", {})


@pytest.fixture(params=["redis", "memory"])
def site(request, settings, tmp_path):
    if request.param == "memory":
        use_cache(settings, "memory://", tmp_path)
        return None
    server = request.getfixturevalue("redis_server")
    server.flush()
    use_cache(settings, server.url, tmp_path)
    return server


@pytest.fixture
def server(redis_server, settings, tmp_path):
    use_cache(settings, redis_server.url, tmp_path)
    return redis_server


@pytest.fixture
def own(own_redis, settings, tmp_path):
    """A server that may be taken away."""
    server = own_redis()
    use_cache(settings, server.url, tmp_path, BREAKER={"probe_base": "5ms", "probe_cap": "20ms"})
    return server


def use_cache(settings, url, tmp_path, **options):
    settings.CACHES = {
        "default": {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": url,
            "KEY_PREFIX": "site",
            "OPTIONS": {"STATE_DIR": str(tmp_path / "state"), "COMMAND_TIMEOUT": "5s", **options},
        }
    }


class Users:
    """A cached function, and how often it was called for whom."""

    def __init__(self, **options):
        self.calls = []
        self.before = lambda user_id: None

        @cached("user:{user_id}", ttl="user", **options)
        def load(user_id):
            self.calls.append(user_id)
            self.before(user_id)
            return {"id": user_id}

        self.load = load

    def warm(self, yielded=range(5), **options):
        return run(lambda: iter(yielded), function=self.load, **options)


def run(generate, *, function=None, type=None, version=None, **options):  # noqa: A002
    """Warm what a generator yields, under a name that nobody else has."""
    warmer("it", function=function, type=type, version=version)(generate)
    return warm(warming.warmers.pop("it"), **options)


def counts(outcome):
    """Return what is not zero."""
    found = {each: getattr(outcome, each) for each in ("warmed", "fresh", "left", "unkept", "lost", "failed")}
    return {each: number for each, number in found.items() if number}


# --- what is loaded -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_what_was_warmed_is_not_computed_when_it_is_asked_for():
    users = Users()
    assert counts(users.warm()) == {"warmed": 5}
    assert [users.load(number) for number in range(5)] == [{"id": number} for number in range(5)]
    assert users.calls == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("site")
def test_what_is_fresh_is_left_alone_unless_forced():
    users = Users()
    users.load(1)
    assert counts(users.warm()) == {"warmed": 4, "fresh": 1}
    assert counts(users.warm()) == {"fresh": 5}
    assert counts(users.warm(force=True)) == {"warmed": 5}
    assert users.calls == [1, 0, 2, 3, 4, 0, 1, 2, 3, 4]


@pytest.mark.usefixtures("site")
def test_what_has_expired_or_cannot_be_read_is_loaded_again():
    short = cached("short:{number}", ttl="20ms", stale="1h")(lambda number: number)
    short(1)
    wait_for(lambda: short.get(1) is None)
    assert counts(run(lambda: [1], function=short)) == {"warmed": 1}
    other = cached("short:{number}", ttl=30, version=2)(lambda number: number)
    assert counts(run(lambda: [1], function=other)) == {"warmed": 1}


@pytest.mark.usefixtures("site")
def test_a_value_a_tuple_and_a_dict_are_arguments():
    load = cached("doc:{number}:{lang}", ttl=30)(lambda number, lang="en": (number, lang))
    run(lambda: [1, (2, "de"), {"number": 3, "lang": "fr"}], function=load)
    assert [load.get(1), load.get(2, "de"), load.get(3, "fr")] == [(1, "en"), (2, "de"), (3, "fr")]


@pytest.mark.usefixtures("site")
def test_a_function_without_arguments_is_warmed_by_an_empty_tuple():
    total = cached("stats:total", ttl="stats")(lambda: 42)
    run(lambda: [()], function=total)
    assert total.get() == 42


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("jobs", [1, 3])
def test_coroutine_functions_and_asynchronous_generators_are_warmed(jobs):
    @cached("page:{number}", ttl=30)
    async def page(number):
        await asyncio.sleep(0)
        return await caches["default"].aget("nothing", number)

    async def pages():
        for number in range(20):
            await asyncio.sleep(0)
            yield number

    assert counts(run(pages, function=page, jobs=jobs)) == {"warmed": 20}
    assert asyncio.run(page.aget(7)) == 7


@pytest.mark.usefixtures("site")
def test_items_of_cached_many_are_loaded_together_and_those_it_does_not_know_are_not_kept():
    calls = []

    @cached_many("user:{user_id}", ttl="user")
    def users(user_ids):
        calls.append(list(user_ids))
        return {each: f"user {each}" for each in user_ids if each != 3}

    users([1])
    calls.clear()
    assert counts(run(lambda: range(50), function=users)) == {"warmed": 48, "fresh": 1, "unkept": 1}
    assert calls == [[0, *range(2, 11)], list(range(11, 31)), list(range(31, 50))]
    assert users([7, 8]) == {7: "user 7", 8: "user 8"}


def leases_on(server):
    """Return how many entries somebody is computing that had no value before."""
    found = [server.command("GETRANGE", key, 3, 10) for key in server.command("KEYS", "site:1:qc:*")]
    return found.count(bytes(8))


def test_what_was_loaded_when_redis_went_away_is_nobody_elses(own, monkeypatch):
    monkeypatch.setattr("redis_infra.querycache.warm_run.PATIENCE", 0.1)
    users = Users()
    users.before = lambda user_id: own.kill() if user_id == 2 else None
    outcome = users.warm(range(9))
    assert counts(outcome) == {"warmed": 1, "lost": 2}
    assert outcome.unavailable


def test_what_was_stored_when_the_run_was_interrupted_was_warmed(own, monkeypatch):
    stored = warm_run._Run._stored

    def interrupted(self, ready, answers):
        if all(answers):  # Redis has stored them, and who asked it is not told any more
            raise KeyboardInterrupt
        return stored(self, ready, answers)

    monkeypatch.setattr(warm_run._Run, "_stored", interrupted)
    outcome = Users().warm(range(9))
    assert outcome.interrupted
    assert counts(outcome) == {"warmed": 1}


@pytest.mark.parametrize("kind", ["function", "pairs"])
def test_a_reader_waits_for_no_more_than_one_load_where_each_is_dear(own, kind):
    """Leases on what is loaded later would have him wait for all that comes before."""
    first, held = [], []

    @cached("dear:{number}", ttl="stats")
    def dear(number):
        if not number:  # nobody knows yet whether it is dear
            first.append(leases_on(own))
        if number >= 60:  # the first are cheap, so that slices grow
            held.append(leases_on(own))
            time.sleep(0.06)
        return number

    if kind == "function":
        run(lambda: range(70), function=dear)
    else:
        run(lambda: ((dear.key(each), partial(dear.uncached, each)) for each in range(70)), type="stats")
    assert first == [1]
    assert len(held) == 10
    assert max(held[2:]) == 1  # the second slice was made for loads that are cheap still
    assert [dear.get(each) for each in range(70)] == list(range(70))


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("is_async", [False, True])
def test_a_loader_that_is_cancelled_fails_alone(is_async):
    if is_async:

        @cached("one:{number}", ttl="stats")
        async def one(number):
            if number == 1:
                raise asyncio.CancelledError
            return number
    else:

        @cached("one:{number}", ttl="stats")
        def one(number):
            if number == 1:
                raise asyncio.CancelledError
            return number

    assert counts(run(lambda: range(3), function=one)) == {"warmed": 2, "failed": 1}


@pytest.mark.usefixtures("site")
def test_an_exception_that_a_loader_returns_is_a_value():
    error = cached("error:{number}", ttl="stats")(lambda number: ValueError(f"no {number}"))
    assert counts(run(lambda: [1], function=error)) == {"warmed": 1}
    assert repr(error.get(1)) == "ValueError('no 1')"


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_that_is_cancelled_fails_as_any_other(is_async):
    if is_async:

        async def numbers():
            yield 1
            raise asyncio.CancelledError
    else:

        def numbers():
            yield 1
            raise asyncio.CancelledError

    one = cached("one:{number}", ttl="stats")(lambda number: number)
    assert counts(run(numbers, function=one)) == {"warmed": 1, "failed": 1}


@pytest.mark.usefixtures("site")
def test_how_long_loads_took_is_counted_as_of_calls():
    load = cached("load:{number}", ttl="stats")(lambda number: number)
    run(lambda: range(5), function=load)
    assert (load.tally.computations, sum(load.tally.loads)) == (5, 5)


@pytest.mark.usefixtures("site")
def test_what_is_loaded_for_keys_is_counted_by_the_name_of_the_warmer():
    """A value that was yielded ready was not loaded here: nobody knows how long that took."""

    def fail():
        raise LookupError

    @warmer("rates", type="stats")
    def rates():
        yield from ((f"rate:{each}", partial(int, each)) for each in range(5))
        yield "rate:ready", 1
        yield "rate:no", fail

    subject = ("function", "default", "stats", "warmer rates", "")
    before = counts_of.counted()
    assert counts(warm(warming.warmers["rates"])) == {"warmed": 6, "failed": 1}
    added = counts_of.difference(counts_of.counted(), before)[subject]
    found = dict(zip(counts_of.FUNCTION, added, strict=False))
    assert (found["computations"], found["errors"], sum(added[len(found) :])) == (6, 1, 6)


def test_there_are_no_more_threads_than_there_is_work():
    ended = []
    crew = Crew(10_000, lambda some: None, lambda left: 1, lambda: ended.append(1), threading.Event())
    crew.do(range(3), lambda: None)
    crew.end(30)
    assert len(ended) == 3


@pytest.mark.usefixtures("site")
def test_pairs_are_read_by_the_function_with_that_key():
    rate = cached("rate:{currency}", ttl="stats", version=2)(lambda currency: 0)

    def pairs():
        yield rate.key("usd"), 1.0
        yield {rate.key("eur"): lambda: 2.0, rate.key("gbp"): 3.0}

    assert counts(run(pairs, type="stats", version=2)) == {"warmed": 3}
    assert [rate(each) for each in ("usd", "eur", "gbp")] == [1.0, 2.0, 3.0]


@pytest.mark.usefixtures("site")
def test_a_value_that_is_a_function_is_not_called_for_what_is_fresh():
    run(lambda: [("rate:usd", 1.0)], type="stats")
    assert counts(run(lambda: [("rate:usd", pytest.fail)], type="stats")) == {"fresh": 1}


@pytest.mark.usefixtures("site")
def test_a_condition_is_asked():
    even = cached("even:{n}", ttl=30, condition=lambda n: n % 2 == 0)(lambda n: n)
    assert counts(run(lambda: range(4), function=even)) == {"warmed": 2, "unkept": 2}


@pytest.mark.usefixtures("site")
def test_tags_go_with_what_is_warmed():
    users = Users(tags=["tenant:{user_id}"])
    users.warm()
    assert users.load(3) == {"id": 3}
    assert invalidate(tag="tenant:3") == 1
    assert (users.load.get(3), users.load.get(4)) == (None, {"id": 4})
    assert users.calls == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("site")
def test_the_same_entry_twice_is_loaded_once():
    users = Users()
    assert counts(users.warm([1, "1", 1])) == {"warmed": 1, "fresh": 2}


@pytest.mark.usefixtures("site")
def test_a_limit_is_of_what_is_looked_at():
    users = Users()
    users.load(0)
    outcome = users.warm(range(100), limit=3)
    assert (counts(outcome), outcome.items) == ({"warmed": 2, "fresh": 1}, 3)


@pytest.mark.usefixtures("site")
def test_a_dry_run_loads_and_stores_nothing(site):
    users = Users(tags=["tenant:{user_id}"])
    users.load(1)
    held = site and site.command("DBSIZE")
    assert counts(users.warm(dry_run=True)) == {"warmed": 4, "fresh": 1}
    assert users.calls == [1]
    assert (site and site.command("DBSIZE")) == held


def test_a_thousand_that_are_fresh_cost_one_round_trip(server):
    users = Users()
    assert counts(users.warm(range(1000))) == {"warmed": 1000}
    server.command("CONFIG", "RESETSTAT")
    assert counts(users.warm(range(1000))) == {"fresh": 1000}
    stats = dict(line.split(":", 1) for line in info(server, "commandstats"))
    assert stats.pop("cmdstat_mget").startswith("calls=1,")
    assert not {"cmdstat_evalsha", "cmdstat_set", "cmdstat_get"} & set(stats)


@pytest.mark.usefixtures("server")
def test_jobs_load_at_the_same_time():
    users, meeting = Users(), threading.Barrier(4)
    users.before = lambda _: meeting.wait(10)
    assert counts(users.warm(range(8), jobs=4)) == {"warmed": 8}


@pytest.mark.usefixtures("server")
def test_a_rate_is_kept():
    began = time.monotonic()
    assert counts(Users().warm(range(6), rate=20, jobs=3)) == {"warmed": 6}
    assert time.monotonic() - began >= 5 / 20


# --- what it must not do --------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("pattern", ["user:2", "user:*"])
def test_what_is_invalidated_while_it_is_loaded_is_not_stored(pattern):
    users = Users()
    users.before = lambda user_id: user_id == 2 and invalidate(pattern)
    assert users.warm(range(3)).left >= 1
    assert users.load.get(2) is None


@pytest.mark.usefixtures("site")
def test_what_a_pair_computes_is_not_stored_once_its_key_is_invalidated():
    outcome = run(lambda: [("rate:usd", lambda: invalidate("rate:usd"))], type="stats")
    assert counts(outcome) == {"left": 1}
    assert cached("rate:{currency}", ttl="stats")(lambda currency: 0).get("usd") is None


@pytest.mark.usefixtures("site")
def test_what_somebody_else_is_computing_is_left_to_him():
    users, space = Users(), space_for("default")
    place, token = space.place("user:1"), new_token()
    space.engine.run(space.acquire(place, token, NOBODY, 1000))
    assert counts(users.warm([0, 1])) == {"warmed": 1, "left": 1}
    assert users.calls == [0]
    assert space.engine.run(space.renew(place, token))


@pytest.mark.usefixtures("site")
def test_what_somebody_was_computing_when_he_was_killed_is_loaded():
    users, space = Users(), space_for("default")
    place, token = space.place("user:1"), new_token()
    space.engine.run(space.acquire(place, token, NOBODY, 1000))
    space.engine.run(space._change_lease(place, token, 0, 1000, remove=False))
    assert counts(users.warm([0, 1])) == {"warmed": 2}
    assert users.load.get(1) == {"id": 1}


@pytest.mark.usefixtures("site")
def test_what_failed_and_was_served_expired_is_loaded(monkeypatch):
    monkeypatch.setattr(loading, "PAUSE", 1)
    users = Users(stale="1h")
    expiring = cached("user:{user_id}", ttl="1ms", stale="1h")(lambda user_id: {"id": 0})
    expiring(1)
    wait_for(lambda: users.load.get(1) is None)
    users.before = lambda user_id: 1 // 0
    assert users.load(1) == {"id": 0}
    users.before = lambda user_id: None
    wait_for(lambda: counts(users.warm([1])) == {"warmed": 1})
    assert users.load.get(1) == {"id": 1}


@pytest.mark.usefixtures("site")
def test_what_somebody_has_stored_since_it_was_looked_at_is_not_overwritten():
    users = Users()
    users.before = lambda user_id: user_id == 0 and users.load(1)
    assert counts(users.warm([0, 1], force=True)) == {"warmed": 1, "fresh": 1}
    assert users.calls == [0, 1]


@pytest.mark.usefixtures("site")
def test_what_is_fresh_is_served_until_it_is_replaced():
    users = Users()
    users.load(1)
    served = []
    users.before = lambda user_id: served.append(users.load(user_id))
    assert counts(users.warm([1], force=True)) == {"warmed": 1}
    assert served == [{"id": 1}]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("jobs", [1, 3])
def test_it_goes_on_after_a_failing_item_and_names_the_first(jobs):
    users = Users()
    users.before = lambda user_id: 1 // (user_id % 2)
    outcome = users.warm(range(40), jobs=jobs)
    assert counts(outcome) == {"warmed": 20, "failed": 20}
    assert [each.error for each in outcome.troubles] == [
        "ZeroDivisionError: integer division or modulo by zero"
    ] * 5
    assert {each.key for each in outcome.troubles} <= {f"user:{number}" for number in range(0, 40, 2)}


def test_the_lease_of_a_failing_item_is_released_before_the_run_ends(server):
    users, held = Users(), []

    def fail_first(user_id):
        held.append(server.command("EXISTS", "site:1:qc:user:1"))
        return 1 // (user_id - 1)

    users.before = fail_first
    users.warm([1, 2])
    assert held == [1, 0]


@pytest.mark.usefixtures("site")
def test_fail_fast_ends_at_the_first_failure():
    users = Users()
    users.before = lambda user_id: 1 // (user_id - 2)
    assert counts(users.warm(range(9), fail_fast=True)) == {"warmed": 2, "failed": 1}


@pytest.mark.usefixtures("site")
def test_a_generator_that_raises_is_a_failure_and_what_it_yielded_before_is_warm():
    users = Users()

    def numbers():
        yield 1
        raise LookupError("no more")

    outcome = run(numbers, function=users.load)
    assert counts(outcome) == {"warmed": 1, "failed": 1}
    assert outcome.troubles[0].error == "LookupError: no more"


@pytest.mark.usefixtures("site")
def test_arguments_that_do_not_fit_are_failures_of_their_own():
    users = Users()
    outcome = users.warm([1, (2, 3), {"name": 4}, 5])
    assert counts(outcome) == {"warmed": 2, "failed": 2}
    assert [each.key for each in outcome.troubles] == ["item 2", "item 3"]


@pytest.mark.usefixtures("site")
def test_an_answer_of_cached_many_that_is_no_mapping_is_a_failure():
    pair = cached_many("pair:{number}", ttl=60)(lambda numbers: None)
    outcome = run(lambda: iter([1, 2]), function=pair)
    assert counts(outcome) == {"failed": 2}
    assert "returned None; cached_many needs" in outcome.troubles[0].error


@pytest.mark.usefixtures("site")
def test_what_cannot_be_cached_is_a_failure():
    lock = cached("lock:{n}", ttl=30)(lambda n: threading.Lock())
    assert counts(run(lambda: [1], function=lock)) == {"failed": 1}


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_stores_what_was_loaded_and_releases_the_rest(server, jobs):
    calls = []

    def value(number):
        calls.append(number)
        if number == 3:
            raise KeyboardInterrupt
        return number

    pairs = [(f"n:{number}", lambda number=number: value(number)) for number in range(9)]
    outcome = run(lambda: pairs, type="user", jobs=jobs)
    assert outcome.interrupted
    assert outcome.warmed == len(calls) - 1
    assert server.command("EXISTS", *[f"site:1:qc:n:{number}" for number in range(9)]) == outcome.warmed


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("site")
def test_in_a_transaction_it_is_stored_at_commit_and_not_after_a_rollback():
    users = Users()
    with transaction.atomic():
        users.warm([1])
        assert users.load.get(1) is None
    assert users.load.get(1) == {"id": 1}
    with transaction.atomic():
        users.warm([2])
        transaction.set_rollback(True)
    assert users.load.get(2) is None


@pytest.mark.django_db
@pytest.mark.usefixtures("site")
def test_a_queryset_is_read_in_pieces_and_counted_and_works_inside_a_testcase():
    User.objects.bulk_create([User(username=name) for name in "abc"])
    name = cached("name:{user.pk}", ttl=30)(lambda user: user.username)
    outcome = run(lambda: User.objects.order_by("pk"), function=name, limit=2)
    assert (outcome.total, counts(outcome)) == (2, {"warmed": 2})


# --- without Redis --------------------------------------------------------------------------------------


def test_without_redis_nothing_is_loaded(own):
    own.kill()
    users = Users()
    outcome = users.warm()
    assert (counts(outcome), users.calls) == ({}, [])
    assert outcome.unavailable


def test_a_redis_that_goes_away_ends_it(own, monkeypatch):
    monkeypatch.setattr(warm_run, "PATIENCE", 0.1)
    users = Users()
    users.before = lambda user_id: user_id == 3 and own.kill()
    outcome = users.warm(range(1000))
    assert outcome.unavailable
    assert outcome.warmed <= 3
    assert len(users.calls) < 300


def test_a_redis_that_comes_back_is_waited_for(own):
    users = Users()
    users.before = lambda user_id: user_id == 3 and (own.kill(), own.start())
    outcome = users.warm(range(20))
    assert not outcome.unavailable
    assert outcome.warmed + outcome.left == 20
    assert users.load.get(19) == {"id": 19}


def test_what_was_stored_counts_although_the_reply_came_too_late(own, settings, tmp_path):
    """The second try finds neither the lease that the first one used, nor anything of somebody else's."""
    use_cache(settings, own.url, tmp_path, COMMAND_TIMEOUT="100ms", BREAKER={"probe_base": "5ms"})
    users = Users()

    def freeze(user_id):
        if user_id == 3:
            own.freeze()
            threading.Timer(0.35, own.thaw).start()

    users.before = freeze
    outcome = users.warm(range(8))
    assert counts(outcome) == {"warmed": 8}


# --- declaring ------------------------------------------------------------------------------------------


def plain():
    """Do nothing."""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "say which function"),
        ({"function": Users().load, "type": "user"}, "not both"),
        ({"function": plain}, "is not cached; decorate it with @cached"),
        ({"function": "get_user"}, "is not cached"),
        ({"type": "usr"}, "'usr' is not a data type; did you mean 'user'"),
        ({"function": Users().load, "version": 2}, "those of its function"),
    ],
)
def test_a_wrong_declaration_is_an_error_when_it_is_made(options, says):
    with pytest.raises(SettingsError, match=says):
        warmer("users", **options)(plain)


@pytest.mark.parametrize("name", ["", "--all", "two words", 7])
def test_a_wrong_name_is_an_error(name):
    with pytest.raises(SettingsError, match="is not a name for a warmer"):
        warmer(name, type="user")


def test_a_name_is_taken_once():
    warmer("users", type="user")(plain)
    warmer("users", type="user")(plain)  # the module was imported anew
    with pytest.raises(SettingsError, match=r"taken by .*\.plain"):
        warmer("users", type="user")(lambda: ())


def test_the_generator_stays_what_it_was():
    assert warmer("users", type="user")(plain) is plain


def info(server, section):
    return [line for line in server.command("INFO", section).decode().splitlines() if ":" in line]


def wait_for(condition, within=10.0):
    ends = time.monotonic() + within
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)
