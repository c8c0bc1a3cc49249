"""Our throttles in place of stock DRF's: what its documentation promises and its users build on, with Redis
live, refused and not configured at all."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.cache import cache, caches
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from rest_framework import throttling as stock
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.views import APIView

from redis_infra import instrumentation
from redis_infra.throttling import drf
from redis_infra.throttling.limiter import default_limiter

OURS = "redis_infra.cache.RedisCache"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
REFUSED = "redis://127.0.0.1:1/0"
BOB, EVE = User(pk=7, username="bob"), User(pk=8, username="eve")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in ("ENABLED", "PROVIDER", "URL", "HOST", "PORT", "DB", "USERNAME", "PASSWORD", "TLS", "PREFIX"):
        monkeypatch.delenv(f"REDIS_{name}", raising=False)


@pytest.fixture
def site_at(settings, tmp_path):
    """Let the default cache be ours at a URL, or in memory without one."""

    def at(url, **throttle):
        settings.REDIS_INFRA = {"STATE_DIR": str(tmp_path / "state"), "THROTTLE": throttle}
        settings.CACHES = {"default": {"BACKEND": OURS, **({"LOCATION": url} if url else {})}}

    return at


@pytest.fixture(params=["live", "refused", "memory"])
def site(request, site_at):
    """A site whose Redis is live, refused, or nowhere."""
    if request.param == "live":
        server = request.getfixturevalue("redis_server")
        server.flush()
        site_at(server.url)
    else:
        site_at(REFUSED if request.param == "refused" else None)
    return request.param


@pytest.fixture
def live(redis_server, site_at):
    site_at(redis_server.url)
    return redis_server


def view_with(*throttles, **attributes):
    """Return a view function with these throttles."""

    class View(APIView):
        throttle_classes = throttles

        def get(self, request):
            return Response("content")

    for name, value in attributes.items():
        setattr(View, name, value)
    return View.as_view()


def request_of(user=None, ip="203.0.113.7", **headers):
    request = APIRequestFactory().get("/", REMOTE_ADDR=ip, headers=headers)
    if user is not None:
        force_authenticate(request, user)
    return request


def statuses(view, times, *args, **headers):
    return [view(request_of(*args, **headers)).status_code for _ in range(times)]


def keys_of(server):
    return b" ".join(server.command("KEYS", "*"))


def parsed(throttle, user=None, **kwargs):
    """Let a throttle decide on a request as DRF makes them, outside of a view."""
    request = APIView().initialize_request(request_of(**kwargs))
    request.user = user or AnonymousUser()
    return throttle.allow_request(request, view=None)


class Three(drf.UserRateThrottle):
    rate = "3/min"


class Six(drf.UserRateThrottle):
    rate = "6/hour"


# --- limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (drf.SimpleRateThrottle, stock.SimpleRateThrottle),
        (drf.AnonRateThrottle, stock.AnonRateThrottle),
        (drf.UserRateThrottle, stock.UserRateThrottle),
        (drf.ScopedRateThrottle, stock.ScopedRateThrottle),
        (drf.AsyncScopedRateThrottle, stock.ScopedRateThrottle),
    ],
)
def test_they_are_what_they_stand_in_for(ours, theirs):
    assert issubclass(ours, theirs)
    assert issubclass(ours, drf.SimpleRateThrottle)


def test_a_rate_lets_so_many_through_and_says_when_to_come_again(site):
    view = view_with(Three)
    assert statuses(view, 3) == [200, 200, 200]
    denied = view(request_of())
    assert denied.status_code == 429
    assert int(denied["Retry-After"]) in (59, 60, 61)  # to the millisecond, and then rounded up


def test_each_user_and_each_address_has_a_budget_of_its_own(site):
    view = view_with(Three)
    assert statuses(view, 4, BOB) == [200, 200, 200, 429]
    assert statuses(view, 4, EVE) == [200, 200, 200, 429]
    assert statuses(view, 4) == [200, 200, 200, 429]
    assert statuses(view, 1, None, "203.0.113.8") == [200]


def test_who_is_logged_in_is_none_of_an_anonymous_throttles_business(site, settings):
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"anon": "1/min"}}
    view = view_with(drf.AnonRateThrottle)
    assert statuses(view, 2) == [200, 429]
    assert statuses(view, 3, BOB) == [200, 200, 200]


def test_views_are_limited_by_their_scope_and_not_without_one(site, settings):
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"contacts": "2/min", "uploads": "1/min"}}
    contacts, again = (view_with(drf.ScopedRateThrottle, throttle_scope="contacts") for _ in range(2))
    uploads = view_with(drf.ScopedRateThrottle, throttle_scope="uploads")
    assert statuses(contacts, 1) + statuses(again, 2) == [200, 200, 429]
    assert statuses(uploads, 2) == [200, 429]
    assert statuses(view_with(drf.ScopedRateThrottle), 5) == [200] * 5


def test_every_throttle_of_a_view_counts_what_another_denies(site):
    view = view_with(Three, Six)
    assert statuses(view, 4) == [200, 200, 200, 429]
    assert statuses(view_with(Six), 3) == [200, 200, 429]


def test_several_limits_in_one_rate_hold_together(site):
    class Both(drf.UserRateThrottle):
        rate = "100/min;3/hour"

    view = view_with(Both)
    assert statuses(view, 4) == [200, 200, 200, 429]
    throttle = Both()
    assert (throttle.num_requests, throttle.duration) == (100, 60)
    assert not parsed(throttle)
    assert throttle.wait() == pytest.approx(3600, abs=60)


def test_threads_at_once_get_no_more_than_the_limit(site):
    view, start = view_with(type("Ten", (drf.UserRateThrottle,), {"rate": "10/min"})), threading.Barrier(8)

    def client(_):
        start.wait()
        return statuses(view, 5)

    with ThreadPoolExecutor(8) as pool:
        answers = [status for answer in pool.map(client, range(8)) for status in answer]
    assert (answers.count(200), answers.count(429)) == (10, 30)


# --- settings -------------------------------------------------------------------------------------------


def test_rates_are_those_of_the_settings_now(site):
    view = view_with(drf.UserRateThrottle)
    assert statuses(view, 3) == [200, 200, 200]
    with override_settings(REST_FRAMEWORK={"DEFAULT_THROTTLE_RATES": {"user": "1/min"}}):
        assert statuses(view, 2) == [200, 429]
    with override_settings(REST_FRAMEWORK={"DEFAULT_THROTTLE_RATES": {"user": None}}):
        assert statuses(view, 3) == [200, 200, 200]


def test_a_mutated_dictionary_of_rates_holds_at_once(site, settings):
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"user": "100/min"}}
    view = view_with(drf.UserRateThrottle)
    assert statuses(view, 1) == [200]
    with patch.dict(drf.UserRateThrottle.THROTTLE_RATES, {"user": "1/min"}):
        assert statuses(view, 1) == [429]


@pytest.mark.parametrize("owner", [drf.UserRateThrottle, drf.SimpleRateThrottle, stock.SimpleRateThrottle])
def test_rates_can_be_replaced_on_a_class(site, owner):
    view = view_with(drf.UserRateThrottle)
    with patch.object(owner, "THROTTLE_RATES", {"user": "1/min"}):
        assert statuses(view, 2) == [200, 429]
    assert drf.UserRateThrottle.THROTTLE_RATES is api_settings.DEFAULT_THROTTLE_RATES


def test_a_class_may_have_rates_of_its_own(site):
    class Bursts(drf.UserRateThrottle):
        scope = "bursts"
        THROTTLE_RATES = {"bursts": "2/min"}

    assert statuses(view_with(Bursts), 3) == [200, 200, 429]


def test_a_rate_that_changes_keeps_what_was_counted(site):
    class Changing(drf.UserRateThrottle):
        rate = "5/min"

    view = view_with(Changing)
    assert statuses(view, 3) == [200, 200, 200]
    Changing.rate = "2/min"
    assert statuses(view, 1) == [429]
    Changing.rate = "4/min"
    assert statuses(view, 2) == [200, 429]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "You must set either `.scope` or `.rate` for 'Wrong' throttle"),
        ({"scope": "uploda"}, "No default throttle rate set for 'uploda' scope; did you mean 'upload'?"),
        ({"scope": "uploda"}, "REST_FRAMEWORK['DEFAULT_THROTTLE_RATES']"),
        ({"scope": ["chat", "search"]}, "['chat', 'search'] is not a scope; PolicyThrottle takes several"),
        ({"rate": "10/month"}, "Wrong: '10/month' is not a rate"),
        ({"rate": "5/15parsecs"}, "write one such as '20/min'"),
    ],
)
def test_what_is_wrong_is_said_as_stock_does_and_with_a_remedy(site_at, attributes, words):
    site_at(None)
    with pytest.raises(ImproperlyConfigured) as raised:
        type("Wrong", (drf.SimpleRateThrottle,), attributes)()
    assert words in str(raised.value)


def test_wrong_settings_of_ours_are_improperly_configured_too(site_at):
    site_at(None, RATES={"chat": "a lot"})
    with pytest.raises(ImproperlyConfigured, match="'a lot' is not a rate"):
        drf.ChatRateThrottle()


# --- hooks and attributes -------------------------------------------------------------------------------


def test_attributes_are_those_of_stock_after_a_request(site):
    class Named(drf.UserRateThrottle):
        rate = "5/min"
        scope = "named"
        cache_format = "mine_%(scope)s_%(ident)s"

    throttle = Named()
    for used in (1, 2, 3):
        assert parsed(throttle, BOB)
        assert throttle.key == "mine_named_7"
        assert len(throttle.history) == used
        assert throttle.num_requests - len(throttle.history) == throttle.decision.remaining
        assert throttle.now - throttle.duration < min(throttle.history) <= throttle.now
        assert throttle.history == sorted(throttle.history, reverse=True)


def test_the_history_of_who_is_denied_is_full_and_the_wait_that_of_the_oldest(site):
    throttle = Three()
    assert [parsed(throttle) for _ in range(4)] == [True, True, True, False]
    assert len(throttle.history) == 3
    left = throttle.duration - (throttle.now - throttle.history[-1])
    assert throttle.wait() == pytest.approx(left, abs=0.005)
    assert throttle.wait() == throttle.decision.retry_after


def test_no_key_is_no_limit(site):
    class Staff(drf.SimpleRateThrottle):
        rate = "1/min"

        def get_cache_key(self, request, view):
            return None if request.user.username == "bob" else "everybody"

    view = view_with(Staff)
    assert statuses(view, 3, BOB) == [200, 200, 200]
    assert statuses(view, 1, EVE) + statuses(view, 1) == [200, 429]


def test_a_throttle_without_a_scope_is_known_by_its_class(site):
    one, other = (type(name, (Three,), {"scope": None}) for name in ("One", "Other"))
    assert statuses(view_with(one), 4) == [200, 200, 200, 429]
    assert statuses(view_with(other), 1) == [200]


def test_a_grammar_of_the_sites_own_is_left_to_it(site):
    class Fortnightly(drf.UserRateThrottle):
        rate = "2 a fortnight"

        def parse_rate(self, rate):
            return int(rate.split()[0]), 14 * 86_400

    throttle = Fortnightly()
    assert [parsed(throttle) for _ in range(3)] == [True, True, False]
    assert throttle.wait() == pytest.approx(14 * 86_400, abs=60)


def test_a_rate_may_be_chosen_for_each_request(site):
    class Tiers(drf.UserRateThrottle):
        rate = "100/min"

        def allow_request(self, request, view):
            self.rate = "3/min" if request.user == BOB else "1/min"
            self.num_requests, self.duration = self.parse_rate(self.rate)
            return super().allow_request(request, view)

    class Numbers(drf.UserRateThrottle):
        rate = "100/min"

        def allow_request(self, request, view):
            self.num_requests = 2
            return super().allow_request(request, view)

    assert statuses(view_with(Tiers), 4, BOB) == [200, 200, 200, 429]
    assert statuses(view_with(Tiers), 2, EVE) == [200, 429]
    assert statuses(view_with(Numbers), 3) == [200, 200, 429]


def test_throttle_failure_has_the_last_word_on_who_is_denied(site):
    seen = []

    class Lenient(Three):
        scope = "lenient"

        def throttle_failure(self):
            seen.append(len(self.history))
            return True

    assert statuses(view_with(Lenient), 4) == [200] * 4
    assert seen == [3]


def test_throttle_success_says_what_counts(site):
    class OnlyBob(Three):
        scope = "only bob"

        def throttle_success(self):
            return super().throttle_success() if "bob" in self.counted else True

        def get_cache_key(self, request, view):
            self.counted = request.user.username
            return "one for all"

    view = view_with(OnlyBob)
    assert statuses(view, 5, EVE) == [200] * 5
    assert statuses(view, 4, BOB) == [200, 200, 200, 429]
    assert statuses(view, 1, EVE) == [429]


def test_throttle_success_may_count_a_request_more_than_once(site):
    class Heavy(drf.UserRateThrottle):
        rate = "5/min"

        def throttle_success(self):
            self.history.insert(0, self.now)
            return super().throttle_success()

    throttle = Heavy()
    assert [parsed(throttle) for _ in range(3)] == [True, True, False]
    assert len(throttle.history) == 4


def test_throttle_success_is_not_asked_about_who_is_denied(site):
    asked = []

    class Asking(Three):
        scope = "asking"

        def throttle_success(self):
            asked.append(len(self.history))
            return super().throttle_success()

    assert statuses(view_with(Asking), 5) == [200, 200, 200, 429, 429]
    assert asked == [0, 1, 2]


def test_who_is_denied_by_throttle_success_pays_nothing(site):
    class Closed(Three):
        scope = "closed"

        def throttle_success(self):
            super().throttle_success()
            return False

    throttle = Closed()
    assert [parsed(throttle) for _ in range(5)] == [False] * 5
    assert default_limiter().counters.denied == 0


def test_threads_at_once_get_no_more_where_throttle_success_counts(site):
    class Counting(Three):
        scope = "counting"

        def throttle_success(self):
            return super().throttle_success()

    view, start = view_with(Counting), threading.Barrier(6)

    def client(_):
        start.wait()
        return statuses(view, 3)

    with ThreadPoolExecutor(6) as pool:
        answers = [status for answer in pool.map(client, range(6)) for status in answer]
    assert answers.count(200) == 3


def test_wait_alone_is_stocks_arithmetic():
    """Sites call it on a throttle whose attributes they have set themselves."""
    throttle = Three()
    throttle.num_requests, throttle.duration, throttle.history = 1, 60, []
    assert throttle.wait() == 30.0
    throttle.now, throttle.history = 100.0, [100.0, 90.0, 80.0]
    assert throttle.wait() is None


# --- who it is ------------------------------------------------------------------------------------------


def test_a_forwarded_address_that_nobody_vouches_for_is_no_new_budget(site):
    view = view_with(Three)
    spoofed = [f"198.51.100.{number}" for number in range(4)]
    assert [statuses(view, 1, **{"x-forwarded-for": each})[0] for each in spoofed] == [200, 200, 200, 429]


def test_num_proxies_is_honoured_from_one_request_to_the_next(site):
    view = view_with(Three)
    with override_settings(REST_FRAMEWORK={"NUM_PROXIES": 1}):
        clients = [f"192.0.2.1, 198.51.100.{number}" for number in (1, 1, 1, 1, 2)]
        answers = [statuses(view, 1, **{"x-forwarded-for": each})[0] for each in clients]
    assert answers == [200, 200, 200, 429, 200]


def test_all_addresses_of_an_ipv6_network_are_one_client(site):
    view = view_with(Three)
    addresses = [f"2001:db8:0:1::{number:x}" for number in range(4)]
    assert [statuses(view, 1, None, each)[0] for each in addresses] == [200, 200, 200, 429]
    assert statuses(view, 1, None, "2001:db8:0:2::1") == [200]


def test_no_address_or_user_name_gets_to_redis(live):
    class Named(Three):
        def get_cache_key(self, request, view):
            return f"throttle_{request.user.username}_{self.get_ident(request)}"

    statuses(view_with(Named), 4, BOB)
    stored = keys_of(live)
    assert b"rl:" in stored
    assert b"bob" not in stored
    assert b"203.0.113" not in stored


def test_a_request_is_one_command_whatever_the_number_of_limits(live):
    class Many(drf.UserRateThrottle):
        rate = "5/s;20/min;200/hour"

    view = view_with(Many)
    statuses(view, 1)
    live.command("CONFIG", "RESETSTAT")
    assert statuses(view, 3) == [200, 200, 200]
    commands = live.command("INFO", "commandstats")
    assert b"cmdstat_evalsha:calls=3," in commands
    assert b"cmdstat_eval:" not in commands


# --- clocks and caches of the site's own ----------------------------------------------------------------


def timed(rate, **attributes):
    """Return a throttle on a clock that the test sets."""
    return type(
        "Timed",
        (drf.UserRateThrottle,),
        {"rate": rate, "at": 0.0, "timer": lambda self: self.at, **attributes},
    )


def test_a_timer_of_the_sites_own_decides_what_is_over(site):
    throttle = timed("3/min")
    view = view_with(throttle)
    assert statuses(view, 4) == [200, 200, 200, 429]
    throttle.at = 59.9
    assert view(request_of())["Retry-After"] == "1"
    throttle.at = 60.0
    assert statuses(view, 4) == [200, 200, 200, 429]


def test_a_timer_set_on_the_class_by_a_test_counts_at_once(site):
    class Patched(drf.UserRateThrottle):
        rate = "1/min"

    view = view_with(Patched)
    with patch.object(Patched, "timer", lambda self: 0):
        assert statuses(view, 2) == [200, 429]
    with patch.object(Patched, "timer", lambda self: 60):
        assert statuses(view, 1) == [200]


def test_several_limits_hold_on_a_timer_of_the_sites_own_too(site):
    throttle = timed("2/min;3/hour")
    view = view_with(throttle)
    assert statuses(view, 3) == [200, 200, 429]
    assert view(request_of())["Retry-After"] == "60"
    throttle.at = 60
    assert statuses(view, 2) == [200, 429]
    assert view(request_of())["Retry-After"] == "3540"
    throttle.at = 3600
    assert statuses(view, 3) == [200, 200, 429]


def test_the_wait_on_a_timer_of_the_sites_own_is_that_of_the_limit_that_denies(site):
    throttle = timed("1/min;100/hour")
    view = view_with(throttle)
    for throttle.at in (0, 60):
        assert statuses(view, 1) == [200]
    throttle.at = 70
    assert view(request_of())["Retry-After"] == "50"


def test_a_quota_of_the_calendar_begins_anew_on_a_timer_of_the_sites_own(site):
    throttle = timed("2/day fixed", at=86_400 - 10)
    view = view_with(throttle)
    assert statuses(view, 3) == [200, 200, 429]
    assert view(request_of())["Retry-After"] == "10"
    throttle.at = 86_400
    assert statuses(view, 3) == [200, 200, 429]


def test_a_cache_that_is_not_ours_has_the_history(site, settings):
    settings.CACHES = {**settings.CACHES, "other": {"BACKEND": LOCMEM, "LOCATION": "history"}}
    caches["other"].clear()
    throttle = type("Elsewhere", (Three,), {"cache": caches["other"], "scope": "elsewhere"})
    view = view_with(throttle)
    assert statuses(view, 4) == [200, 200, 200, 429]
    assert len(caches["other"].get("throttle_elsewhere_203.0.113.7")) == 3
    caches["other"].clear()
    assert statuses(view, 1) == [200]


def test_without_any_redis_another_default_cache_has_the_history(settings):
    """It may be memcached, which all processes share."""
    settings.CACHES = {"default": {"BACKEND": LOCMEM, "LOCATION": "default history"}}
    cache.clear()
    assert statuses(view_with(Three), 4) == [200, 200, 200, 429]
    assert len(cache.get("throttle_user_203.0.113.7")) == 3


def test_with_a_redis_for_throttles_another_default_cache_is_left_alone(redis_server, settings, tmp_path):
    settings.CACHES = {"default": {"BACKEND": LOCMEM, "LOCATION": "left alone"}}
    settings.REDIS_INFRA = {"URL": redis_server.url, "STATE_DIR": str(tmp_path)}
    assert statuses(view_with(Three), 4) == [200, 200, 200, 429]
    assert cache.get("throttle_user_203.0.113.7") is None
    assert b"drf.user" in keys_of(redis_server)


def test_a_throttle_on_another_alias_of_ours_counts_on_its_server(live, own_redis, settings):
    other = own_redis()
    settings.CACHES = {**settings.CACHES, "other": {"BACKEND": OURS, "LOCATION": other.url}}
    throttle = type("Elsewhere", (Three,), {"cache": caches["other"]})
    assert statuses(view_with(throttle), 4) == [200, 200, 200, 429]
    assert b"drf.user" in keys_of(other)
    assert b"drf.user" not in keys_of(live)
    caches["other"].clear()
    assert statuses(view_with(throttle), 1) == [200]


# --- clearing the cache ---------------------------------------------------------------------------------


async def cleared_in_a_loop():
    await cache.aclear()


def test_clearing_the_cache_gives_everybody_a_new_budget(site):
    view = view_with(Three)
    assert statuses(view, 4) == [200, 200, 200, 429]
    cache.clear()
    assert statuses(view, 4) == [200, 200, 200, 429]


def test_clearing_it_in_an_event_loop_does_too(site):
    view = view_with(Three)
    assert statuses(view, 4) == [200, 200, 200, 429]
    asyncio.run(cleared_in_a_loop())
    assert statuses(view, 1) == [200]


def test_clearing_the_cache_forgets_what_was_counted_before_settings_changed(live, settings):
    """Tests of sites clear in setUp, and override settings in between."""
    view = view_with(Three)
    assert statuses(view, 4) == [200, 200, 200, 429]
    settings.REDIS_INFRA = {**settings.REDIS_INFRA, "KEY_PREFIX": "ri"}
    cache.clear()
    assert statuses(view, 1) == [200]


def test_clearing_a_cache_without_throttles_forgets_none(live, settings):
    settings.CACHES = {
        **settings.CACHES,
        "pages": {"BACKEND": OURS, "LOCATION": live.url, "KEY_PREFIX": "pages"},
    }
    view = view_with(Three)
    assert statuses(view, 4) == [200, 200, 200, 429]
    caches["pages"].clear()
    assert statuses(view, 1) == [429]


def test_clearing_the_cache_leaves_the_limits_of_others(live):
    limiter = default_limiter()
    limiter.hit("1/min", "somebody")
    statuses(view_with(Three), 1)
    cache.clear()
    assert not limiter.hit("1/min", "somebody")


def test_a_cache_that_no_throttle_knows_may_be_cleared(site_at, caplog):
    site_at(None)
    statuses(view_with(Three), 4)
    instrumentation.notify_cleared(object())
    assert caplog.records == []
    assert statuses(view_with(Three), 1) == [429]


class Broken:
    def cleared(self, cache):
        raise RuntimeError("a bug")

    async def acleared(self, cache):
        raise RuntimeError("another one")


def test_who_watches_clears_cannot_break_them(site_at, monkeypatch, caplog):
    site_at(None)
    monkeypatch.setattr(instrumentation, "_clear_observers", [])
    for _ in range(2):
        instrumentation.observe_clears(broken := Broken())
        instrumentation.observe_clears(broken)
    cache.clear()
    asyncio.run(cleared_in_a_loop())
    assert [record.message for record in caplog.records] == ["redis_infra.observer_failed"] * 4
