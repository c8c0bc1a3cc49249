"""The throttles that DRF has not: policies, the four scopes, what responses tell, coroutines, schemas."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from adrf.views import APIView as AsyncAPIView
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.urls import path
from django.utils.decorators import method_decorator
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from rest_framework.authentication import BaseAuthentication
from rest_framework.authtoken import views as authtoken
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from redis_infra.throttling import drf, drf_responses
from redis_infra.throttling.charges import acharge, charge
from redis_infra.throttling.decorators import ratelimit
from redis_infra.throttling.limiter import default_limiter
from redis_infra.throttling.middleware import ThrottleMiddleware

OURS = "redis_infra.cache.RedisCache"
REFUSED = "redis://127.0.0.1:1/0"
BOB, EVE = User(pk=7, username="bob"), User(pk=8, username="eve")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in ("ENABLED", "PROVIDER", "URL", "HOST", "PORT", "DB", "USERNAME", "PASSWORD", "TLS", "PREFIX"):
        monkeypatch.delenv(f"REDIS_{name}", raising=False)


@pytest.fixture
def site_at(settings, tmp_path):
    """Set up a site at a URL, or in memory without one; the rest is what THROTTLE says."""

    def at(url=None, **throttle):
        settings.REDIS_INFRA = {"STATE_DIR": str(tmp_path / "state"), "THROTTLE": throttle}
        settings.CACHES = {"default": {"BACKEND": OURS, **({"LOCATION": url} if url else {})}}

    return at


@pytest.fixture(params=["live", "refused", "memory"])
def site(request, site_at):
    """Set up a site whose Redis is live, refused, or nowhere."""
    if request.param == "live":
        server = request.getfixturevalue("redis_server")
        server.flush()
    urls = {"live": lambda: server.url, "refused": lambda: REFUSED, "memory": lambda: None}
    return lambda **throttle: site_at(urls[request.param](), **throttle)


def view_with(*throttles, answer=200, bases=(APIView,), **attributes):
    """Return a view function with these throttles that answers with a status, or what a function returns."""

    def respond(self, request):
        status = answer(request) if callable(answer) else answer
        return Response("content", status=status)

    members = {"throttle_classes": throttles, "get": respond, "post": respond, **attributes}
    return type("View", bases, members).as_view()


def request_of(user=None, ip="203.0.113.7", data=None):
    factory = APIRequestFactory()
    if data is None:
        request = factory.get("/", REMOTE_ADDR=ip)
    else:
        request = factory.post("/", data, format="json", REMOTE_ADDR=ip)
    if user is not None:
        force_authenticate(request, user)
    return request


def ask(view, *args, **kwargs):
    return view(request_of(*args, **kwargs))


def statuses(view, times, *args, **kwargs):
    return [ask(view, *args, **kwargs).status_code for _ in range(times)]


def login(view, username, times=1, ip="203.0.113.7"):
    return statuses(view, times, None, ip, {"username": username, "password": "guess"})


# --- the four scopes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("throttle", "limit"),
    [(drf.ChatRateThrottle, 20), (drf.UploadRateThrottle, 5), (drf.SearchRateThrottle, 30)],
)
def test_scopes_have_their_limits_out_of_the_box(site, throttle, limit):
    site()
    view = view_with(throttle)
    assert statuses(view, limit + 1, BOB) == [200] * limit + [429]
    assert statuses(view, 1, EVE) == [200]
    assert statuses(view_with(drf.ScopedRateThrottle, throttle_scope=throttle.scope), 1, BOB) == [429]


def test_a_scope_of_drfs_settings_wins(site, settings):
    site(RATES={"chat": "3/min", "search": "1/min"})
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"chat": "2/min"}}
    assert statuses(view_with(drf.ChatRateThrottle), 3) == [200, 200, 429]
    assert statuses(view_with(drf.SearchRateThrottle), 2) == [200, 429]


def test_what_nobody_wrote_into_drfs_settings_does_not_win(site_at):
    """``user`` is None in DRF's own defaults."""
    site_at(RATES={"user": "1/min"})
    assert statuses(view_with(drf.UserRateThrottle), 2) == [200, 429]


def test_a_scope_that_is_no_limit_is_none(site_at):
    site_at(RATES={"chat": None})
    assert statuses(view_with(drf.ChatRateThrottle), 30) == [200] * 30


def test_the_keys_of_a_policy_say_whom_a_scope_is_for(site):
    site(POLICIES={"chat": {"rate": "2/min", "key": "global"}})
    view = view_with(drf.ChatRateThrottle)
    assert statuses(view, 1, BOB) + statuses(view, 1, EVE) + statuses(view, 1) == [200, 200, 429]


def test_a_key_of_the_class_itself_comes_before_those_of_its_policy(site):
    class Rooms(drf.ChatRateThrottle):
        def get_cache_key(self, request, view):
            return request.user.username[-1]

    site(POLICIES={"chat": {"rate": "1/min", "key": "global"}})
    view = view_with(Rooms)
    assert statuses(view, 1, BOB) + statuses(view, 2, EVE) == [200, 200, 429]


# --- logins ---------------------------------------------------------------------------------------------


def test_logins_are_limited_by_address_and_account(site):
    site()
    view = view_with(drf.AuthRateThrottle, answer=401)
    assert login(view, "bob", 6) == [401] * 5 + [429]
    assert login(view, " BOB ") == [429]
    assert login(view, "eve", 6) == [401] * 5 + [429]
    assert login(view, "bob", 1, "198.51.100.1") == [401]


def test_logins_of_one_address_are_limited_whatever_the_account(site):
    site()
    view = view_with(drf.AuthRateThrottle, answer=401)
    assert [login(view, f"user{number}")[0] for number in range(21)] == [401] * 20 + [429]


def test_logins_for_one_account_are_limited_from_wherever(site):
    site()
    view = view_with(drf.AuthRateThrottle, answer=401)
    assert [login(view, "bob", 1, f"198.51.100.{number}")[0] for number in range(31)] == [401] * 30 + [429]


def test_logins_without_an_account_are_limited_by_address(site):
    site()
    view = view_with(drf.AuthRateThrottle, answer=401)
    assert statuses(view, 6, data={}) == [401] * 5 + [429]
    assert statuses(view, 1, None, "198.51.100.1", {}) == [401]


def test_a_rate_of_drfs_settings_for_logins_is_all_and_as_silent(site_at, settings):
    site_at()
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"auth": "2/min"}}
    view = view_with(drf.AuthRateThrottle, answer=401)
    assert login(view, "bob") + login(view, "eve") + login(view, "dan") == [401, 401, 429]
    assert "RateLimit" not in ask(view, data={"username": "bob"})


def test_a_login_that_succeeded_is_given_back_and_one_that_failed_is_not(site):
    def check(request):
        return 200 if request.data["username"] == "bob" else 401

    site()
    view = view_with(drf.AuthRateThrottle, answer=check, bases=(drf.RefundOnSuccess, APIView))
    assert login(view, "bob", 12) == [200] * 12
    assert login(view, "eve", 6) == [401] * 5 + [429]


def test_a_login_is_given_back_by_hand(site):
    def check(request):
        drf.refund(request)
        return 200

    site()
    assert login(view_with(drf.AuthRateThrottle, answer=check), "bob", 12) == [200] * 12


def test_a_login_of_djangos_is_given_back_by_its_signal(site):
    def check(request):
        user_logged_in.send(sender=User, request=request, user=BOB)
        return 200

    site()
    # Django's own receiver writes the date of the last login; there is no database here.
    user_logged_in.disconnect(dispatch_uid="update_last_login")
    try:
        assert login(view_with(drf.AuthRateThrottle, answer=check), "bob", 12) == [200] * 12
    finally:
        from django.contrib.auth.models import update_last_login

        user_logged_in.connect(update_last_login, dispatch_uid="update_last_login")


def test_without_a_refund_success_counts_too(site):
    site()
    assert login(view_with(drf.AuthRateThrottle), "bob", 6) == [200] * 5 + [429]


# --- logins are counted once, whoever asks --------------------------------------------------------------


def remaining(username="bob", ip="203.0.113.7"):
    """Return what is left of ``auth``: for address and account, for the address, for the account."""
    limits = default_limiter().peek("auth", {"ip": ip, "username": username}).limits
    return [each.remaining for each in limits]


LOGIN_THROTTLES = [
    (drf.AuthRateThrottle, {}),
    (drf.ScopedRateThrottle, {"throttle_scope": "auth"}),
    (drf.PolicyThrottle.of("auth"), {}),
]


@pytest.mark.parametrize(("throttle", "attributes"), LOGIN_THROTTLES)
def test_every_way_to_limit_logins_has_the_logs_of_the_policy(site, throttle, attributes):
    site()
    login(view_with(throttle, **attributes), "bob", 3)
    assert remaining() == [2, 17, 27]
    assert login(view_with(drf.AuthRateThrottle), "bob", 3) == [200, 200, 429]


@pytest.mark.parametrize(("throttle", "attributes"), LOGIN_THROTTLES)
@pytest.mark.parametrize("decorated", ["dispatch", "post"])
def test_a_login_that_a_decorator_limits_too_is_charged_once(site, throttle, attributes, decorated):
    """Five attempts, neither ten nor two."""
    site()
    plain = view_with(throttle, **attributes).view_class
    limited = method_decorator(ratelimit("auth", methods=["POST"]), name=decorated)
    assert login(limited(plain).as_view(), "bob", 6) == [200] * 5 + [429]
    assert remaining() == [0, 15, 25]


@pytest.mark.parametrize(("throttle", "attributes"), LOGIN_THROTTLES)
def test_a_login_that_a_route_limits_too_is_charged_once(site, throttle, attributes):
    site(ROUTES=[("POST /", "auth")])
    middleware = ThrottleMiddleware(view_with(throttle, **attributes))

    def attempt():
        request = request_of(data={"username": "bob"})
        request._dont_enforce_csrf_checks = True
        return middleware(request).status_code

    assert [attempt() for _ in range(6)] == [200] * 5 + [429]
    assert remaining() == [0, 15, 25]


@pytest.mark.parametrize(("first", "second"), [(0, 2), (2, 0), (0, 1), (1, 2)])
def test_a_login_that_two_throttles_of_a_view_limit_is_charged_once(site, first, second):
    site()
    (one, said), (other, more) = LOGIN_THROTTLES[first], LOGIN_THROTTLES[second]
    assert login(view_with(one, other, **said, **more), "bob", 6) == [200] * 5 + [429]
    assert remaining() == [0, 15, 25]


def test_a_drop_in_and_a_policy_of_one_name_count_each_in_its_own_logs(site):
    """Clearing the cache forgets what one of them has counted."""
    site()
    view = view_with(drf.UploadRateThrottle, drf.PolicyThrottle.of("upload"))
    assert statuses(view, 5) == [200] * 5
    cache.clear()
    assert statuses(view_with(drf.UploadRateThrottle), 1) == [200]
    assert statuses(view_with(drf.PolicyThrottle.of("upload")), 1) == [429]


def test_a_coroutines_login_that_something_limits_already_is_charged_once(site):
    site()
    limiter = default_limiter()
    view = async_view_with(drf.AsyncAuthRateThrottle)

    async def attempt():
        request = request_of(data={"username": "bob"})
        await acharge(request, limiter, limiter.plan("auth"))
        return (await view(request)).status_code

    async def attempts():
        return [await attempt() for _ in range(6)]

    assert asyncio.run(attempts()) == [200] * 5 + [429]


def test_a_throttle_behind_a_route_may_insist_on_the_lock(site):
    """The route lets the account's owner by; the view has no second factor, and says so by its throttle."""
    site(ROUTES=[("POST /", "auth")])
    view = ThrottleMiddleware(view_with(drf.AuthRateThrottle))
    requests = [request_of(ip=f"198.51.100.{number}", data={"username": "bob"}) for number in range(31)]
    response = [view(request) for request in requests][-1]
    assert response.status_code == 429
    assert response["Cache-Control"] == "no-store"


def test_a_throttle_that_says_itself_who_it_is_asks_for_itself(site):
    """What the policy's own keys were charged is no answer to that."""

    class ByForm(drf.AuthRateThrottle):
        def get_cache_key(self, request, view):
            return request.data["form"]

    site()
    view = method_decorator(ratelimit("auth", methods=["POST"]), name="dispatch")
    view = view(view_with(ByForm).view_class).as_view()
    done = [ask(view, data={"username": f"user{number}", "form": "a"}).status_code for number in range(6)]
    assert done == [200] * 5 + [429]


@pytest.mark.parametrize(("throttle", "attributes"), LOGIN_THROTTLES)
def test_clearing_the_cache_gives_no_guesses_back(site, throttle, attributes):
    site()
    view = view_with(throttle, answer=401, **attributes)
    assert login(view, "bob", 6) == [401] * 5 + [429]
    cache.clear()
    asyncio.run(cache.aclear())
    assert login(view, "bob") == [429]


def test_clearing_the_cache_gives_nothing_back_of_whatever_is_refunded(site):
    class Codes(drf.UserRateThrottle):
        scope = "codes"

    site(POLICIES={"codes": {"rate": "1/h", "refund_on": "2xx"}})
    assert statuses(view_with(Codes, answer=400), 2) == [400, 429]
    cache.clear()
    assert statuses(view_with(Codes), 1) == [429]


# --- what cannot be a guess -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("get", {}),
        ("head", {}),
        ("options", {}),
        ("put", {"data": {"username": "bob"}}),  # 405
        ("delete", {"HTTP_AUTHORIZATION": "Token abc"}),  # 405
    ],
)
def test_what_carries_no_guess_is_not_counted_as_one(site_at, method, sent):
    site_at()
    view = view_with(drf.AuthRateThrottle)
    for _ in range(7):
        assert view(getattr(APIRequestFactory(), method)("/", REMOTE_ADDR="203.0.113.7", **sent)) is not None
    assert remaining("203.0.113.7") == [5, 20, 30]
    assert login(view, "bob", 6) == [200] * 5 + [429]


@pytest.mark.parametrize(
    ("method", "where", "sent", "kwargs"),
    [
        ("post", "/", {}, {}),
        ("get", "/?code=1234", {}, {}),
        ("head", "/?code=1234", {}, {}),
        ("get", "/", {"HTTP_AUTHORIZATION": "Token abc"}, {}),
        ("options", "/", {"HTTP_AUTHORIZATION": "Token abc"}, {}),
        ("get", "/", {}, {"code": "1234"}),
        ("generic", "/", {"data": b"{}", "content_type": "application/json"}, {}),
    ],
)
def test_whatever_may_be_a_guess_is(site_at, method, where, sent, kwargs):
    """A code in a link is guessed as well as a password in a form."""

    class Own(BaseAuthentication):
        def authenticate(self, request):
            return None

    site_at()

    def respond(self, request, **_):
        return Response(status=403)

    view = view_with(
        drf.AuthRateThrottle, authentication_classes=[Own], get=respond, post=respond, options=respond
    )
    factory = APIRequestFactory()
    make = partial(factory.generic, "GET") if method == "generic" else getattr(factory, method)
    done = [view(make(where, REMOTE_ADDR="203.0.113.7", **sent), **kwargs).status_code for _ in range(6)]
    assert done == [403] * 5 + [429]


def test_a_throttle_that_is_asked_without_a_view_counts(site_at):
    """As tests do, and code that is no view."""
    site_at()
    for view in (None, {}, APIView()):
        request = APIRequestFactory().post("/", {"username": "bob"}, REMOTE_ADDR="203.0.113.7")
        assert drf.AuthRateThrottle().allow_request(APIView().initialize_request(request), view)
    assert remaining() == [2, 17, 27]


def test_a_method_that_the_view_does_not_list_is_none_that_it_has(site_at):
    site_at()
    view = view_with(drf.AuthRateThrottle, http_method_names=["get"])
    assert login(view, "bob", 6) == [405] * 6


# --- tokens ---------------------------------------------------------------------------------------------


class Rows:
    """Stands in for the table of tokens, which has to be installed."""

    objects: Rows

    @staticmethod
    def get_or_create(user):
        return SimpleNamespace(key=f"token of {user}"), True


@pytest.mark.django_db
@pytest.mark.parametrize("guard", ["throttle", "route"])
def test_drfs_own_view_for_tokens_gives_back_to_who_knew_his_password(site, settings, monkeypatch, guard):
    Rows.objects = Rows()
    monkeypatch.setattr(authtoken, "Token", Rows)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    User.objects.create_user("bob", password="right")
    site(ROUTES=[("POST /", "auth")] if guard == "route" else [])
    throttles = [drf.AuthRateThrottle] if guard == "throttle" else []

    class Token(drf.RefundOnSuccess, authtoken.ObtainAuthToken):
        throttle_classes = throttles

    view = ThrottleMiddleware(Token.as_view())

    def attempt(password):
        return view(request_of(data={"username": "bob", "password": password})).status_code

    assert [attempt("right") for _ in range(9)] == [200] * 9
    assert [attempt("guess") for _ in range(6)] == [400] * 5 + [429]
    assert remaining() == [0, 15, 25]


# --- policies -------------------------------------------------------------------------------------------

POLICIES = {
    "burst": "2/min",
    "sustained": {"rate": "3/hour", "key": "ip"},
    "tenants": {"rate": "100/hour", "key": "global"},
}


@pytest.mark.parametrize("attribute", ["throttle_policy", "throttle_scope"])
def test_a_policy_that_the_view_names(site, attribute):
    site(POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle, **{attribute: "burst"})
    assert statuses(view, 3, BOB) == [200, 200, 429]
    assert statuses(view, 1, EVE) == [200]


def test_a_policy_that_the_class_names(site):
    site(POLICIES=POLICIES)
    assert drf.PolicyThrottle.of("burst") is drf.PolicyThrottle.of("burst")
    view = view_with(drf.PolicyThrottle.of("burst"), throttle_scope="sustained")
    assert statuses(view, 3) == [200, 200, 429]


def test_several_policies_hold_together(site):
    site(POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle, throttle_policy=["burst", "sustained"])
    assert statuses(view, 3, BOB) == [200, 200, 429]
    assert statuses(view, 2, EVE) == [200, 429]


def test_a_policy_that_is_named_twice_is_charged_once(site):
    site(POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle, throttle_policy=["burst", "burst"])
    assert ask(view)["RateLimit-Policy"] == '"burst";q=2;w=60'
    assert statuses(view, 2) == [200, 429]


def test_who_is_denied_by_one_policy_pays_to_none(site):
    site(POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle.of("burst", "sustained", "tenants"))
    assert statuses(view, 10, BOB) == [200, 200] + [429] * 8
    assert ask(view_with(drf.PolicyThrottle.of("tenants")))["RateLimit"].startswith('"tenants";r=97;')


def test_policies_have_the_same_logs_together_and_alone(site):
    site(POLICIES=POLICIES)
    assert statuses(view_with(drf.PolicyThrottle.of("burst", "sustained")), 1) == [200]
    assert statuses(view_with(drf.PolicyThrottle.of("burst")), 2) == [200, 429]
    assert statuses(view_with(drf.PolicyThrottle.of("sustained")), 3) == [200, 200, 429]


def test_several_policies_and_identities_are_one_command(redis_server, site_at):
    site_at(redis_server.url, POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle.of("burst", "sustained", "tenants", "search", "chat"))
    statuses(view, 1)
    redis_server.command("CONFIG", "RESETSTAT")
    assert statuses(view, 1) == [200]
    commands = redis_server.command("INFO", "commandstats")
    assert b"cmdstat_evalsha:calls=1," in commands
    assert b"cmdstat_eval:" not in commands
    assert len(redis_server.command("KEYS", "*")) == 5


def test_a_policy_for_each_method_or_action(site):
    class Documents(ViewSet):
        throttle_classes = [drf.PolicyThrottle]
        throttle_policy = {"list": "burst", "POST": "sustained", "default": None}

        def list(self, request):
            return Response([])

        def create(self, request):
            return Response({})

        def destroy(self, request):
            return Response({})

    site(POLICIES=POLICIES)
    view = Documents.as_view({"get": "list", "post": "create", "delete": "destroy"})
    assert statuses(view, 3) == [200, 200, 429]
    assert statuses(view, 4, data={}) == [200, 200, 200, 429]
    assert [view(APIRequestFactory().delete("/")).status_code for _ in range(9)] == [200] * 9


@pytest.mark.parametrize("policy", ["off", [], None])
def test_no_policy_is_no_limit(site_at, policy):
    site_at(RATES={"off": None})
    assert statuses(view_with(drf.PolicyThrottle, throttle_policy=policy), 9) == [200] * 9


def test_a_rate_of_drfs_settings_wins_over_a_policys_too(site_at, settings):
    site_at(POLICIES=POLICIES)
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"sustained": "1/min"}}
    view = view_with(drf.PolicyThrottle.of("sustained"))
    assert statuses(view, 1, BOB) + statuses(view, 1, EVE) == [200, 429]


def test_what_a_request_costs_and_who_is_exempt(site):
    class Weighed(drf.PolicyThrottle):
        def get_cost(self, request, view):
            return 0 if request.user == EVE else 2

        def is_exempt(self, request, view):
            return request.user == BOB

    site(POLICIES=POLICIES)
    view = view_with(Weighed, throttle_policy="sustained")
    assert statuses(view, 9, BOB) == [200] * 9
    assert statuses(view, 9, EVE) == [200] * 9
    assert statuses(view, 2) == [200, 429]


def test_what_can_never_fit_says_nothing_of_when(site):
    class Heavy(drf.PolicyThrottle):
        def get_cost(self, request, view):
            return 4

    site(POLICIES=POLICIES)
    denied = ask(view_with(Heavy, throttle_policy="sustained"))
    assert denied.status_code == 429
    assert "Retry-After" not in denied


@pytest.mark.parametrize("cost", [-1, 1.5, True, None])
def test_a_cost_that_is_none_names_the_class_that_said_it(site_at, cost):
    site_at(POLICIES=POLICIES)
    wrong = type("Wrong", (drf.PolicyThrottle,), {"get_cost": lambda self, request, view: cost})
    with pytest.raises(ValueError, match=rf"Wrong.get_cost\(\) returned {cost}"):
        ask(view_with(wrong, throttle_policy="burst"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("brust",), "'brust' is not a policy; did you mean 'burst'?"),
        (("auth", "burst"), "the policies 'auth+burst' differ in refund_on"),
    ],
)
def test_policies_that_cannot_be_are_improperly_configured(site_at, names, words):
    site_at(POLICIES=POLICIES)
    with pytest.raises(ImproperlyConfigured) as raised:
        ask(view_with(drf.PolicyThrottle.of(*names)))
    assert words in str(raised.value)


def test_what_the_middleware_charged_is_not_charged_again(site):
    site(POLICIES=POLICIES)
    limiter = default_limiter()
    view = view_with(drf.PolicyThrottle, throttle_policy=["sustained", "burst"])

    def served(user):
        request = request_of(user)
        assert charge(request, limiter, limiter.plan("sustained"))
        return view(request).status_code

    assert [served(BOB), served(BOB), served(EVE)] == [200, 200, 200]
    assert statuses(view_with(drf.PolicyThrottle.of("sustained")), 1) == [429]


def test_clearing_the_cache_leaves_policies_alone(site):
    """Others than throttles of DRF are limited by them."""
    site(POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle.of("burst"))
    statuses(view, 2)
    cache.clear()
    assert statuses(view, 1) == [429]


# --- what responses tell --------------------------------------------------------------------------------


def test_responses_tell_how_the_client_stands(site):
    site(POLICIES=POLICIES)
    view = view_with(drf.PolicyThrottle.of("burst"))
    first, second, denied = ask(view), ask(view), ask(view)
    assert first["RateLimit-Policy"] == denied["RateLimit-Policy"] == '"burst";q=2;w=60'
    assert [each["RateLimit"].partition(";t=")[0] for each in (first, second, denied)] == [
        '"burst";r=1',
        '"burst";r=0',
        '"burst";r=0',
    ]
    assert "Retry-After" not in first
    # DRF rounds the exact wait up, the header is never more than the window: a second's difference at most.
    assert 0 <= int(denied["Retry-After"]) - int(denied["RateLimit"].partition(";t=")[2]) <= 1
    assert "X-RateLimit-Limit" not in first


class Wide(drf.UserRateThrottle):
    rate = "100/hour"
    scope = "wide"


class Narrow(drf.UserRateThrottle):
    rate = "2/min"
    scope = "narrow"


def test_several_policies_are_told_by_their_own_names(site):
    site(POLICIES=POLICIES)
    response = ask(view_with(drf.PolicyThrottle.of("sustained", "burst")))
    assert response["RateLimit-Policy"] == '"sustained";q=3;w=3600, "burst";q=2;w=60'
    assert response["RateLimit"].startswith('"burst";r=1;')


@pytest.mark.parametrize("throttles", [(Wide, Narrow), (Narrow, Wide)])
def test_of_several_throttles_the_tightest_is_told_and_all_policies(site, throttles):
    site()
    view = view_with(*throttles)
    for status in (200, 200, 429):
        response = ask(view)
        assert response.status_code == status
        assert response["RateLimit"].startswith('"narrow";')
        assert set(response["RateLimit-Policy"].split(", ")) == {'"wide";q=100;w=3600', '"narrow";q=2;w=60'}


@pytest.mark.parametrize("order", [1, -1])
def test_retry_after_is_that_of_the_throttle_that_waits_longest(site, order):
    class Hourly(drf.UserRateThrottle):
        rate = "2/hour"
        scope = "hourly"

    site()
    view = view_with(*(Hourly, Narrow)[::order])
    statuses(view, 2)
    assert int(ask(view)["Retry-After"]) > 3500


def test_each_response_to_one_request_tells_of_itself(site_at):
    """Tests call a view with the same request again and again."""
    site_at()
    view, request = view_with(Wide, Narrow), request_of()
    responses = [view(request) for _ in range(3)]
    assert [each.status_code for each in responses] == [200, 200, 429]
    assert [each["RateLimit"][:12] for each in responses] == ['"narrow";r=1', '"narrow";r=0', '"narrow";r=0']
    assert responses[2]["RateLimit-Policy"].count("narrow") == 1


def test_a_policy_may_be_charged_by_one_request_for_each_view_it_is_given_to(site_at):
    site_at(POLICIES=POLICIES)
    view, request = view_with(drf.PolicyThrottle.of("burst")), request_of()
    assert [view(request).status_code for _ in range(3)] == [200, 200, 429]


def test_older_headers_by_setting(site_at):
    site_at(HEADERS="legacy")
    response = ask(view_with(Narrow))
    shown = {name: response[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining")}
    assert shown == {"Limit": "2", "Remaining": "1"}
    assert int(response["X-RateLimit-Reset"]) in (60, 61)
    assert response["RateLimit"].startswith('"narrow";r=1')


def test_policies_together_tell_nothing_if_one_of_them_does_not(site_at):
    site_at(POLICIES={"silent": {"rate": "9/min", "headers": False}})
    assert "RateLimit" not in ask(view_with(drf.PolicyThrottle.of("silent", "search")))
    assert "RateLimit" in ask(view_with(drf.PolicyThrottle.of("search")))


@pytest.mark.parametrize(
    ("throttle", "options"), [(drf.AuthRateThrottle, {}), (drf.UploadRateThrottle, {"HEADERS": False})]
)
def test_what_is_not_to_be_told_is_not(site_at, throttle, options):
    site_at(**options)
    view = view_with(throttle)
    responses = [ask(view, data={}) for _ in range(6)]
    assert [each.status_code for each in responses] == [200] * 5 + [429]
    assert not [name for each in responses for name in each.headers if "ratelimit" in name.lower()]
    assert int(responses[5]["Retry-After"]) > 1


def test_the_decision_is_on_the_request_and_on_the_throttle(site_at):
    seen = []
    site_at()
    ask(view_with(Wide, Narrow, answer=lambda request: seen.append(request.throttle_decision) or 200))
    assert (seen[0].policy, seen[0].remaining) == ("narrow", 1)


def test_the_decision_of_a_request_can_be_asked_for_by_a_name_with_a_type(site_at):
    seen = []
    site_at()
    ask(view_with(Wide, Narrow, answer=lambda request: seen.append(drf.decision_of(request)) or 200))
    ask(view_with(answer=lambda request: seen.append(drf.decision_of(request)) or 200))
    assert (seen[0].policy, seen[0].remaining, seen[1]) == ("narrow", 1, None)


@pytest.mark.parametrize("throttle", [drf.UploadRateThrottle, drf.PolicyThrottle.of("upload")])
def test_caches_are_told_not_to_keep_a_429(site, throttle):
    site()
    responses = [ask(view_with(throttle)) for _ in range(6)]
    assert [each.get("Cache-Control") for each in responses] == [None] * 5 + ["no-store"]


# --- without Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("throttle", [drf.SearchRateThrottle, drf.PolicyThrottle.of("search")])
def test_a_policy_that_denies_in_an_outage_is_a_503(site_at, throttle):
    site_at(REFUSED, POLICIES={"search": {"rate": "30/min", "on_outage": "deny"}})
    response = ask(view_with(throttle))
    assert response.status_code == 503
    assert response["Retry-After"] == "5"
    assert response["Cache-Control"] == "no-store"
    assert response.data["detail"].code == "service_unavailable"


def test_a_policy_that_allows_in_an_outage_lets_all_pass(site_at):
    site_at(REFUSED, POLICIES={"search": {"rate": "1/min", "on_outage": "allow"}})
    assert statuses(view_with(drf.SearchRateThrottle), 5) == [200] * 5


def test_of_policies_together_the_strictest_rule_for_outages_holds(site_at):
    site_at(REFUSED, POLICIES={"open": {"rate": "9/min", "on_outage": "allow"}, "host": "1/min"})
    assert statuses(view_with(drf.PolicyThrottle.of("open", "host")), 2) == [200, 429]


# --- coroutines -----------------------------------------------------------------------------------------


def async_view_with(*throttles, answer=200, bases=(AsyncAPIView,), **attributes):
    async def respond(self, request):
        return Response("content", status=answer(request) if callable(answer) else answer)

    members = {"throttle_classes": throttles, "get": respond, "post": respond, **attributes}
    return type("View", bases, members).as_view()


def async_statuses(view, times, *args, **kwargs):
    async def answers():
        return [(await view(request_of(*args, **kwargs))).status_code for _ in range(times)]

    return asyncio.run(answers())


class AsyncThree(drf.AsyncUserRateThrottle):
    rate = "3/min;100/hour"


@pytest.mark.parametrize(
    ("throttle", "limit"),
    [
        (AsyncThree, 3),
        (drf.AsyncUploadRateThrottle, 5),
        (drf.AsyncAuthRateThrottle, 5),
        (drf.AsyncPolicyThrottle.of("burst", "sustained"), 2),
    ],
)
def test_coroutines_limit_as_functions_do(site, throttle, limit):
    site(POLICIES=POLICIES)
    assert inspect.iscoroutinefunction(throttle().allow_request)
    assert async_statuses(async_view_with(throttle), limit + 1, data={}) == [200] * limit + [429]


def test_coroutines_are_limited_by_the_scope_of_their_view(site):
    site()
    view = async_view_with(drf.AsyncScopedRateThrottle, throttle_scope="upload")
    assert async_statuses(view, 6) == [200] * 5 + [429]
    assert async_statuses(async_view_with(drf.AsyncScopedRateThrottle), 6) == [200] * 6


def test_coroutines_and_functions_have_the_same_logs(site):
    site()
    assert statuses(view_with(drf.UploadRateThrottle), 4) == [200] * 4
    assert async_statuses(async_view_with(drf.AsyncUploadRateThrottle), 2) == [200, 429]


def test_coroutines_tell_how_the_client_stands(site_at):
    site_at()
    response = asyncio.run(async_view_with(AsyncThree)(request_of()))
    assert response["RateLimit"].startswith('"user-user_or_ip-min";r=2')


def test_coroutines_follow_a_clock_and_the_hooks_of_the_site(site):
    class Timed(AsyncThree):
        at = 0

        def timer(self):
            return self.at

    class Counting(AsyncThree):
        scope = "counting"

        def throttle_success(self):
            return super().throttle_success()

    site()
    view = async_view_with(Timed)
    assert async_statuses(view, 4) == [200, 200, 200, 429]
    Timed.at = 60
    assert async_statuses(view, 1) == [200]
    assert async_statuses(async_view_with(Counting), 4) == [200, 200, 200, 429]


def test_coroutines_at_once_get_no_more_than_the_limit(site):
    site()
    view = async_view_with(drf.AsyncUploadRateThrottle)

    async def crowd():
        return await asyncio.gather(*[view(request_of()) for _ in range(12)])

    answers = [response.status_code for response in asyncio.run(crowd())]
    assert (answers.count(200), answers.count(429)) == (5, 7)


def test_a_login_in_a_coroutine_is_given_back(site):
    site()
    bases = (drf.RefundOnSuccess, AsyncAPIView)
    view = async_view_with(drf.AsyncAuthRateThrottle, bases=bases)
    assert async_statuses(view, 12, data={}) == [200] * 12
    failing = async_view_with(drf.AsyncAuthRateThrottle, bases=bases, answer=401)
    assert async_statuses(failing, 6, data={}) == [401] * 5 + [429]


def test_a_coroutine_does_not_hold_up_its_loop_to_give_back(site_at, monkeypatch):
    def blocking(request):
        raise AssertionError("the event loop had to wait")

    site_at()
    monkeypatch.setattr(drf_responses, "refund", blocking)
    bases = (drf.RefundOnSuccess, AsyncAPIView)
    view = async_view_with(drf.AsyncAuthRateThrottle, bases=bases)
    assert async_statuses(view, 6, data={}) == [200] * 6


# --- schemas --------------------------------------------------------------------------------------------


@pytest.fixture
def documented(settings):
    """Return what the schema says of the responses of a view with these throttles."""
    settings.REST_FRAMEWORK = {
        "DEFAULT_SCHEMA_CLASS": "redis_infra.throttling.spectacular.ThrottleAutoSchema"
    }

    def responses(*throttles, said=None, **attributes):
        @extend_schema(responses=said or {200: str})
        def respond(self, request):
            return Response("content")

        view = type("Things", (APIView,), {"throttle_classes": throttles, "get": respond, **attributes})
        generator = SchemaGenerator(patterns=[path("things/", view.as_view())])
        return generator.get_schema(request=None, public=True)["paths"]["/things/"]["get"]["responses"]

    return responses


def test_a_schema_has_the_429_with_its_headers_and_limits(site_at, documented):
    site_at(POLICIES=POLICIES)
    found = documented(drf.PolicyThrottle.of("burst", "sustained"))["429"]
    assert found["description"] == "Too many requests. At most 2/min, 3/h."
    assert set(found["headers"]) == {"Retry-After", "RateLimit", "RateLimit-Policy"}
    schema = found["content"]["application/json"]["schema"]
    assert schema["properties"] == {"detail": {"type": "string"}}


@pytest.mark.parametrize(
    ("throttle", "attributes"),
    [
        (drf.ChatRateThrottle, {}),
        (drf.AsyncChatRateThrottle, {}),
        (drf.ScopedRateThrottle, {"throttle_scope": "chat"}),
        (drf.PolicyThrottle, {"throttle_scope": {"GET": "chat"}}),
    ],
)
def test_a_schema_tells_of_every_kind_of_throttle(site_at, documented, throttle, attributes):
    site_at()
    assert documented(throttle, **attributes)["429"]["description"] == "Too many requests. At most 20/min."


@pytest.mark.parametrize(
    ("throttle", "attributes"),
    [
        (drf.UserRateThrottle, {}),
        (drf.ScopedRateThrottle, {}),
        (drf.PolicyThrottle, {"throttle_policy": {"POST": "chat"}}),
    ],
)
def test_a_schema_is_silent_where_there_is_no_limit(site_at, documented, throttle, attributes):
    site_at()
    assert set(documented(throttle, **attributes)) == {"200"}


def test_a_schema_keeps_silent_of_limits_that_headers_do_not_show(site_at, documented):
    site_at()
    found = documented(drf.AuthRateThrottle)["429"]
    assert found["description"] == "Too many requests."
    assert set(found["headers"]) == {"Retry-After"}


def test_a_schema_has_the_older_headers_where_they_are_sent(site_at, documented):
    site_at(HEADERS="legacy")
    assert "X-RateLimit-Remaining" in documented(drf.ChatRateThrottle)["429"]["headers"]


def test_a_schema_has_the_503_of_policies_that_deny(site_at, documented):
    site_at(POLICIES={"search": {"rate": "30/min", "on_outage": "deny"}})
    assert set(documented(drf.SearchRateThrottle)) == {"200", "429", "503"}


def test_a_schema_can_be_made_where_policies_go_by_the_user(site_at, documented):
    """Nobody is logged in when it is made."""

    class ByPlan(drf.PolicyThrottle):
        def get_policies(self, request, view):
            return request.user.organisation.plan

    site_at()
    found = documented(ByPlan)["429"]
    assert found["description"] == "Too many requests."
    assert set(found["headers"]) == {"Retry-After"}
    assert documented(ByPlan, drf.UploadRateThrottle)["429"]["description"] == (
        "Too many requests. At most 5/min."
    )


def test_policies_that_go_by_the_request_of_a_schema_are_in_it(site_at, documented):
    class ByMethod(drf.PolicyThrottle):
        def get_policies(self, request, view):
            return "chat" if request.method == "GET" else "search"

    site_at()
    view = type("Things", (), {"request": request_of()})()
    assert ByMethod().policy_for(view, "GET").name == "chat"


def test_a_schema_of_a_policy_that_is_none_says_so(site_at, documented):
    site_at()
    with pytest.raises(ImproperlyConfigured, match="'serch' is not a policy; did you mean 'search'"):
        documented(drf.PolicyThrottle.of("serch"))


def test_a_schema_leaves_alone_what_the_view_says_of_its_429(site_at, documented):
    site_at()
    assert "headers" not in documented(drf.ChatRateThrottle, said={200: str, 429: int})["429"]


def test_without_spectacular_its_module_says_what_to_install():
    code = (
        "import sys, django; sys.modules['drf_spectacular'] = None\n"
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "import redis_infra.throttling.drf\n"
        "import redis_infra.throttling.spectacular"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (
        'MissingExtra: drf-spectacular is not installed; run: pip install "redis-infra[spectacular]"'
        in ended.stderr
    )
