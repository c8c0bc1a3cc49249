"""Logins: charged before, given back when they were right, stepped up rather than locked out."""

from __future__ import annotations

import base64
import json
import re
import threading
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aauthenticate, alogin, authenticate, login
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.auth.views import LoginView
from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from rest_framework.authentication import BasicAuthentication
from rest_framework.response import Response
from rest_framework.views import APIView

from redis_infra.throttling import charges
from redis_infra.throttling.auth import connect, needs_step_up, refund
from redis_infra.throttling.charges import Book, Charge
from redis_infra.throttling.decorators import ratelimit
from redis_infra.throttling.drf import PolicyThrottle, RefundOnSuccess
from redis_infra.throttling.limiter import RateLimiter, default_limiter, forget_limiters
from tests.forking import in_child

THROTTLE = "redis_infra.throttling.middleware.ThrottleMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
USERS = "django.contrib.auth.middleware.AuthenticationMiddleware"

pytestmark = pytest.mark.django_db

seen: list[bool] = []
"""What needs_step_up said to the views."""


def check(request):
    """Log in, and answer as APIs do."""
    seen.append(needs_step_up(request))
    user = authenticate(request, username=request.POST["username"], password=request.POST["password"])
    if user is None:
        return JsonResponse({}, status=400)
    login(request, user)
    return JsonResponse({})


async def acheck(request):
    user = await aauthenticate(request, username=request.POST["username"], password=request.POST["password"])
    if user is None:
        return JsonResponse({}, status=400)
    await alogin(request, user)
    return JsonResponse({})


def captcha_is_right(request):
    return request.POST.get("captcha") == "right"


def to_captcha(request, decision):
    return redirect("/captcha/") if needs_step_up(request) else HttpResponse(status=429)


def by_hand(request):
    if request.POST["password"] == "right":
        refund(request)
    return HttpResponse()


async def mine(request):
    return HttpResponse(request.throttle_decision.policy)


def batch(request):
    """Try a list of credentials, as batch endpoints and GraphQL do, and log in whoever is right."""
    users = [authenticate(request, **each) for each in json.loads(request.body)]
    for user in filter(None, users):
        login(request, user)
    return JsonResponse({"right": sum(user is not None for user in users)})


def two_names(request):
    """Take an e-mail address or a name, and say that it was one attempt."""
    sent = request.POST
    user = authenticate(request, username=f"{sent['username']}@example.org", password=sent["password"])
    user = user or authenticate(request, username=sent["username"], password=sent["password"])
    if user is not None:
        refund(request, "auth")
    return JsonResponse({}, status=400 if user is None else 200)


class Guarded(APIView):
    """Who sends his password with every request."""

    authentication_classes = [BasicAuthentication]

    def get(self, request):
        return Response()


class Batch(RefundOnSuccess, APIView):
    """A 200 whatever was right, with the mixin that takes it for a success."""

    authentication_classes = []
    throttle_classes = [PolicyThrottle.of("auth", "more")]

    def post(self, request):
        return Response([authenticate(request, **each) is not None for each in request.data])


auth = ratelimit("auth", methods=["POST"])
urlpatterns = [
    path("batch/", auth(batch)),
    path("batch/uncovered/", batch),
    path("batch/three/", ratelimit("auth", cost=3)(batch)),
    path("batch/drf/", Batch.as_view()),
    path("basic/", Guarded.as_view()),
    path("basic/routed/", Guarded.as_view()),
    path("names/", auth(two_names)),
    path("routed/more/", check),
    path("routed/strict/", auth(check)),
    path("form/", method_decorator(auth, name="dispatch")(type("Form", (LoginView,), {})).as_view()),
    path("routed/", LoginView.as_view()),
    path("uncovered/", LoginView.as_view()),
    path("api/", auth(check)),
    path("aapi/", auth(acheck)),
    path("user/", ratelimit(rate="1/h", key="user", name="user")(mine)),
    path("session/", ratelimit(rate="1/h", key="session", name="session")(mine)),
    path("hand/", auth(by_hand)),
    path("step-up/", ratelimit("auth", step_up=True)(check)),
    path("captcha/", ratelimit("auth", step_up=captcha_is_right)(check)),
    path("redirect/", ratelimit("auth", response=to_captcha)(check)),
]


@pytest.fixture
def site(settings, tmp_path, redis_server):
    """Start the site; returns a function that sets where Redis is and what is limited."""
    settings.ROOT_URLCONF = __name__
    settings.LOGIN_REDIRECT_URL = "/welcome/"
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.MIDDLEWARE = [THROTTLE, SESSIONS, USERS]
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    ("django.template.loaders.locmem.Loader", {"registration/login.html": "try again"})
                ]
            },
        }
    ]
    for name in ("alice", "mallory"):
        User.objects.create_user(name, password="right")
    seen.clear()

    def start(url=redis_server.url, **throttle):
        settings.REDIS_INFRA = {
            "URL": url,
            "STATE_DIR": str(tmp_path / "state"),
            "THROTTLE": {"ROUTES": [("POST /routed/", "auth"), ("/basic/routed/", "auth")], **throttle},
        }

    start()
    return start


def post(where, username="alice", password="wrong", ip="192.0.2.1", client=None, **more):
    """Return the response to one attempt, by somebody without a session."""
    data = {"username": username, "password": password, **more}
    client = client or Client()
    if isinstance(client, AsyncClient):
        return async_to_sync(client.post)(where, data, REMOTE_ADDR=ip)
    return client.post(where, data, REMOTE_ADDR=ip)


def attempts(times, where, **about):
    return [post(where, **about).status_code for _ in range(times)]


FORMS = ["/form/", "/routed/"]
EVERY = [*FORMS, "/api/"]


# --- charged before, given back after -------------------------------------------------------------------


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", EVERY)
def test_guessing_ends_after_five_attempts(where):
    assert attempts(7, where)[4:] == [400 if where == "/api/" else 200, 429, 429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", FORMS)
def test_the_page_of_a_failed_login_gives_nothing_back_though_it_is_a_200(where):
    assert attempts(6, where) == [200] * 5 + [429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", EVERY)
def test_who_logs_in_again_and_again_is_never_turned_away(where):
    assert 429 not in attempts(25, where, password="right")


@pytest.mark.usefixtures("site")
def test_async_logins_are_given_back_too():
    done = [post("/aapi/", password="right", client=AsyncClient()).status_code for _ in range(7)]
    assert done == [200] * 7
    assert [post("/aapi/", client=AsyncClient()).status_code for _ in range(6)] == [400] * 5 + [429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", EVERY)
def test_the_right_password_does_not_open_a_closed_door(where):
    """Else guessing would only have to go on."""
    attempts(5, where)
    assert post(where, password="right").status_code == 429


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", EVERY)
def test_a_login_gives_back_what_it_paid_and_nothing_of_what_failed_before(where):
    """Who has an account must not clear what he was charged for guessing at others'."""
    attempts(19, where, username="nobody")  # five get through
    before = default_limiter().peek("auth", identities("alice"))
    assert post(where, username="mallory", password="right").status_code != 429
    after = default_limiter().peek("auth", identities("alice"))
    assert [each.remaining for each in after.limits] == [each.remaining for each in before.limits]
    assert after.limits[1].remaining == 15


def identities(username, ip="192.0.2.1"):
    request = RequestFactory().post("/", {"username": username}, REMOTE_ADDR=ip)
    return default_limiter().policies["auth"].identities(request)


@pytest.mark.usefixtures("site")
def test_looking_at_the_form_costs_nothing():
    assert [Client().get("/form/").status_code for _ in range(8)] == [200] * 8


@pytest.mark.usefixtures("site")
def test_a_form_without_its_token_costs_nothing_at_a_decorator(settings):
    """Django answers before the view is called."""
    settings.MIDDLEWARE = [SESSIONS, "django.middleware.csrf.CsrfViewMiddleware", USERS]
    settings.DEBUG = True  # its page needs no template of the site's then
    client = Client(enforce_csrf_checks=True)
    assert [post("/api/", client=client).status_code for _ in range(7)] == [403] * 7
    assert left("alice") == [5, 20, 30]


@pytest.mark.usefixtures("site")
def test_one_address_is_limited_over_all_names():
    done = [post("/form/", username=f"user{number}").status_code for number in range(21)]
    assert done == [200] * 20 + [429]


@pytest.mark.usefixtures("site")
def test_a_name_is_the_same_however_it_is_written():
    done = [
        post("/form/", username=name).status_code
        for name in ("alice", "ALICE", " alice ", "\uff41lice", "Alice", "aLice")
    ]
    assert done[5] == 429


@pytest.mark.usefixtures("site")
def test_a_view_that_knows_better_gives_back_by_hand():
    assert attempts(7, "/hand/", password="right") == [200] * 7
    assert attempts(6, "/hand/") == [200] * 5 + [429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", EVERY)
def test_logins_tell_nothing_of_their_limits(where):
    responses = [post(where) for _ in range(6)]
    assert not any(name.startswith("RateLimit") for each in responses for name in each.headers)
    assert "Retry-After" in responses[5].headers
    assert not re.search("alice|192|username|violated", responses[5].content.decode())


# --- who asks, in an event loop -------------------------------------------------------------------------


def logged_in(name, client_class=AsyncClient):
    client = client_class()
    client.force_login(User.objects.get(username=name))
    return client


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", ["/user/", "/session/"])
def test_async_views_tell_apart_who_is_in_the_database(settings, where):
    """Django lets nobody load a user or a session in the loop itself."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    alice, mallory = logged_in("alice"), logged_in("mallory")
    asked = [async_to_sync(each.get)(where).status_code for each in (alice, mallory, alice, mallory)]
    assert asked == [200, 200, 429, 429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_a_route_knows_the_user_below_authentication(settings, site, client_class):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    settings.MIDDLEWARE = [SESSIONS, USERS, THROTTLE]
    site(ROUTES=[("/welcome/", "1/h")])

    def get(client):
        if client_class is Client:
            return client.get("/welcome/").status_code
        return async_to_sync(client.get)("/welcome/").status_code

    alice, mallory = logged_in("alice", client_class), logged_in("mallory", client_class)
    assert [get(each) for each in (alice, mallory, alice, mallory)] == [404, 404, 429, 429]


# --- logins that nobody covers --------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_failures_of_a_login_that_nobody_covers_count_where_one_is_covered():
    post("/routed/")
    assert attempts(4, "/uncovered/") == [200] * 4
    assert post("/routed/").status_code == 429


@pytest.mark.usefixtures("site")
def test_its_successes_do_not_count():
    post("/routed/")
    attempts(9, "/uncovered/", password="right")
    assert attempts(5, "/routed/") == [200] * 4 + [429]


@pytest.mark.usefixtures("site")
def test_a_login_that_is_covered_is_not_charged_for_its_failure_too():
    """Five get through, not two."""
    assert attempts(6, "/api/").count(400) == 5


def test_a_login_with_a_policy_of_its_own_is_covered_too(site):
    site(
        POLICIES={"own": {"limits": "9/h", "key": "ip", "refund_on": "success"}},
        ROUTES=[("/uncovered/", "own")],
    )
    attempts(3, "/uncovered/")
    assert default_limiter().peek("auth", identities("alice")).limits[0].remaining == 5


@pytest.mark.usefixtures("site")
def test_an_uncovered_failure_changes_nothing_of_its_response():
    attempts(9, "/uncovered/")
    response = post("/uncovered/")
    assert "Retry-After" not in response.headers


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("request_of_theirs", [None, "a task", SimpleNamespace(user=None), 7])
def test_a_failure_without_a_request_is_nobodys(request_of_theirs):
    connect()
    assert authenticate(request_of_theirs, username="alice", password="wrong") is None
    assert authenticate(username="alice", password="wrong") is None


@pytest.mark.usefixtures("site")
def test_a_login_without_a_request_of_http_gives_nothing_back():
    connect()
    user_logged_in.send(sender=User, request="a task", user=User.objects.get(username="alice"))


def test_a_policy_that_gives_back_by_status_covers_no_login(site):
    """It says nothing of passwords."""
    site(
        POLICIES={"all": {"limits": "99/h", "key": "ip", "refund_on": "2xx"}},
        ROUTES=[("/uncovered/", "all")],
    )
    attempts(3, "/uncovered/")
    assert left("alice") == [2, 20, 27]


@pytest.mark.usefixtures("site")
def test_stale_passwords_that_nobody_paid_for_lock_nobody_else_out_of_their_address():
    """An office has one address, and a robot in it a password of last year."""
    connect()
    assert [basic("/basic/", "robot") for _ in range(25)] == [401] * 25
    assert left("robot") == [0, 20, 5]
    assert post("/routed/", password="right").status_code == 302
    assert attempts(6, "/routed/") == [200] * 5 + [429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("body", ["", "username=alice&username=bob"], ids=["no name", "two"])
def test_a_failure_that_nobody_paid_for_and_that_names_nobody_is_charged_to_nobody(body):
    connect()
    request = form("/", body).wsgi_request
    before = left_of(request)
    user_login_failed.send(sender=None, credentials={"token": "x"}, request=request)
    assert left_of(request) == before == [5, 20, 30]


def test_a_failure_that_nobody_paid_for_is_charged_to_whatever_names_the_account(site):
    """Alone or beside other things, by any field."""
    keys = ["ip", "field:email", "global", "field:email+header:x-app", "username"]
    site(POLICIES={"auth": {"limits": [("9/h", key) for key in keys]}})
    connect()
    request = RequestFactory().post("/", {"email": "a@example.org"}, headers={"X-App": "shop"})
    user_login_failed.send(sender=None, credentials={"username": "alice"}, request=request)
    asked = RequestFactory().post(
        "/", {"email": "a@example.org", "username": "alice"}, headers={"X-App": "shop"}
    )
    assert left_of(asked) == [9, 8, 9, 8, 8]


# --- each failure counts, to the name that was tried ----------------------------------------------------


def standing(username, ip="192.0.2.1"):
    """Return the limits of ``auth``: for address and account, for the address, for the account."""
    return default_limiter().peek("auth", identities(username, ip)).limits


def left(username, ip="192.0.2.1"):
    return [each.remaining for each in standing(username, ip)]


def left_of(request):
    """Return what is left to those whom a request is charged to."""
    limiter = default_limiter()
    whom = limiter.policies["auth"].identities(request)
    return [each.remaining for each in limiter.peek("auth", whom).limits]


def form(where, body, ip="192.0.2.1", client=None):
    """Return the response to a form that is not written by Django's client."""
    client, kind = client or Client(), "application/x-www-form-urlencoded"
    if isinstance(client, AsyncClient):
        return async_to_sync(client.post)(where, body.encode(), kind, REMOTE_ADDR=ip)
    return client.post(where, body.encode(), kind, REMOTE_ADDR=ip)


def basic(where, username="alice", password="wrong", ip="192.0.2.1"):
    said = base64.b64encode(f"{username}:{password}".encode()).decode()
    return Client().get(where, headers={"Authorization": f"Basic {said}"}, REMOTE_ADDR=ip).status_code


@pytest.mark.usefixtures("site")
def test_failures_of_basic_authentication_count_for_the_account():
    connect()
    assert [basic("/basic/", name) for name in ("alice", " ALICE ", "\uff41lice")] == [401] * 3
    assert left("alice") == [2, 20, 27]


@pytest.mark.usefixtures("site")
def test_the_right_password_in_every_request_counts_for_nothing():
    connect()
    assert [basic("/basic/", password="right") for _ in range(9)] == [200] * 9
    assert left("alice") == [5, 20, 30]


@pytest.mark.usefixtures("site")
def test_a_route_turns_guesses_by_basic_authentication_away():
    """Guesses at one account end by what the account has, also where the route cannot read a name."""
    assert [basic("/basic/routed/") for _ in range(6)] == [401] * 5 + [429]
    assert left("alice")[0] == 0
    assert left("alice")[2] == 25


def test_a_policy_for_basic_authentication_turns_guesses_away_and_nobody_else(site):
    """As the how-to has it: nobody logs in there, and a wrong password is never a 2xx."""
    limits = [("5/15min", "ip+username"), ("20/15min", "ip")]
    site(POLICIES={"basic": {"limits": limits, "refund_on": "2xx"}}, ROUTES=[("/basic/", "basic")])
    assert [basic("/basic/", password="right") for _ in range(9)] == [200] * 9
    assert [basic("/basic/") for _ in range(6)] == [401] * 5 + [429]
    assert left("alice") == [0, 20, 25]


@pytest.mark.usefixtures("site")
def test_a_name_in_a_field_that_no_key_knows_is_counted_when_it_fails():
    """The form sends ``username`` under another name: what the request paid covers the address alone."""
    connect()
    client = Client()
    for _ in range(3):
        client.post("/batch/", json.dumps([{"username": "alice", "password": "x"}]), "application/json")
    assert left("alice", "127.0.0.1") == [2, 17, 27]


@pytest.mark.usefixtures("site")
def test_a_name_that_django_hides_is_nobodys():
    connect()
    request = RequestFactory().post("/", {"username": "alice"}, REMOTE_ADDR="192.0.2.1")
    user_login_failed.send(sender=None, credentials={"username": 20 * "*"}, request=request)
    assert left("alice") == [4, 20, 29]


def tries(*names, password="wrong"):
    return [{"username": name, "password": password} for name in names]


def send(where, *tried):
    return Client().post(where, json.dumps([each for part in tried for each in part]), "application/json")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(("where", "of_address"), [("/batch/", 16), ("/batch/uncovered/", 20)])
def test_each_failure_of_one_request_counts_for_its_own_account(where, of_address):
    """And for the address, where somebody paid."""
    connect()
    assert send(where, tries("alice", "bob", "alice", "alice")).json() == {"right": 0}
    assert left("alice", "127.0.0.1") == [2, of_address, 27]
    assert left("bob", "127.0.0.1") == [4, of_address, 29]


@pytest.mark.usefixtures("site")
def test_fifty_guesses_in_one_request_leave_none_for_the_next():
    connect()
    assert send("/batch/", tries(*["alice"] * 50)).status_code == 200
    assert left("alice", "127.0.0.1")[:2] == [0, 0]
    assert send("/batch/", tries("bob")).status_code == 429


@pytest.mark.usefixtures("site")
def test_what_an_address_has_used_up_still_counts_for_accounts():
    """Else who has filled his address' limit guesses on where nothing turns him away, and nobody sees it."""
    send("/batch/", tries(*[f"user{number}" for number in range(25)], "alice", "alice"))
    assert left("alice", "127.0.0.1") == [3, 0, 28]
    send("/batch/uncovered/", tries("alice"))
    assert left("alice", "127.0.0.1") == [2, 0, 27]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("first", [True, False])
def test_one_right_password_gives_nothing_back_of_what_the_others_cost(first):
    own = tries("mallory", password="right")
    guesses = tries("alice", "alice", "alice")
    assert send("/batch/", *((own, guesses) if first else (guesses, own))).json() == {"right": 1}
    assert left("alice", "127.0.0.1") == [2, 17, 27]


@pytest.mark.usefixtures("site")
def test_what_was_paid_for_several_covers_as_many():
    send("/batch/three/", tries("alice", "alice", "alice"))
    assert left("alice", "127.0.0.1") == [2, 17, 27]


def test_a_status_of_success_gives_nothing_back_where_a_login_failed(site):
    """And policies that were asked together count each for itself."""
    site(POLICIES={"more": {"limits": "9/h", "key": "ip", "refund_on": "success"}})
    assert send("/batch/drf/", tries("alice", "alice"), tries("mallory", password="right")).status_code == 200
    assert left("alice", "127.0.0.1") == [3, 18, 28]
    assert default_limiter().peek("more", "ip:127.0.0.1").remaining == 7
    assert send("/batch/drf/", tries("mallory", password="right")).status_code == 200
    assert default_limiter().peek("more", "ip:127.0.0.1").remaining == 7


@pytest.mark.parametrize("other", ["spend", "refundable"])
def test_threads_that_try_passwords_for_one_request_share_what_it_paid(other):
    """A charge covers one failure, or is given back, whoever looks at it while somebody else does."""
    limiter = RateLimiter()
    plan = limiter.plan("auth")
    charge = Charge(limiter.decide(plan, plan.tags("somebody"), 1), plan, limiter)
    book, found = Book(), []

    def ask():
        found.append(book.spend(plan) if other == "spend" else (book.refundable() or None))

    thread = threading.Thread(target=ask)

    class Watched(list):
        def count(self, each):
            """Count, and have the other thread look before that is acted upon."""
            counted = super().count(each)
            if thread.ident is None:
                thread.start()
                thread.join(0.2)
            return counted

    book.charges, book.spent = [charge], Watched()
    found.append(book.spend(plan))
    thread.join()
    assert found == [charge, None]


def test_no_child_inherits_what_another_thread_was_telling():
    """It would wait for ever at its first failure."""
    connect()
    limiter = RateLimiter()
    plan = limiter.plan("auth")
    book = Book()
    book.charges = [Charge(limiter.decide(plan, plan.tags("somebody"), 1), plan, limiter)]
    with charges._spending:
        assert in_child(lambda: [book.spend(plan) is not None, book.spend(plan) is not None]) == [True, False]


@pytest.mark.usefixtures("site")
def test_a_view_may_say_by_name_that_two_tries_were_one_attempt():
    assert attempts(9, "/names/", password="right") == [200] * 9
    assert attempts(3, "/names/")[0] == 400


def test_listening_twice_is_listening_once(site):
    connect()
    before = len(user_logged_in.receivers), len(user_login_failed.receivers)
    connect()
    assert (len(user_logged_in.receivers), len(user_login_failed.receivers)) == before


# --- step-up --------------------------------------------------------------------------------------------


def locked(where="/form/", username="alice"):
    """Let attackers from everywhere use up what the name alone has: 30 an hour."""
    for number in range(30):
        post(where, username=username, ip=f"198.51.100.{number}")


@pytest.mark.usefixtures("site")
def test_without_a_step_up_anybody_locks_anybody_out():
    locked()
    assert post("/form/", password="right", ip="203.0.113.9").status_code == 429


@pytest.mark.usefixtures("site")
def test_a_route_locks_nobody_out_and_goes_on_limiting_each_attacker():
    attackers = [f"198.51.100.{number}" for number in range(10)]
    done = {ip: attempts(6, "/routed/", ip=ip) for ip in attackers}
    assert all(each == [200] * 5 + [429] for each in done.values())
    assert left("alice")[2] == 0
    assert post("/routed/", password="right", ip="203.0.113.9").status_code == 302
    assert post("/routed/", password="right", ip=attackers[0]).status_code == 429


@pytest.mark.usefixtures("site")
def test_a_view_behind_a_route_knows_that_it_should_ask_for_more():
    assert post("/routed/more/", password="right").status_code == 200
    locked()
    assert attempts(9, "/routed/more/", password="right", ip="203.0.113.9") == [200] * 9
    assert seen == [False] + [True] * 9


@pytest.mark.usefixtures("site")
def test_a_decorator_behind_a_route_may_insist_on_the_lock():
    locked()
    assert post("/routed/strict/", password="right", ip="203.0.113.9").status_code == 429


@pytest.mark.usefixtures("site")
def test_async_routes_lock_nobody_out_either():
    locked()
    done = [
        post("/routed/", password="right", ip="203.0.113.9", client=AsyncClient()).status_code
        for _ in range(7)
    ]
    assert done == [302] * 7


@pytest.mark.parametrize(
    "policy",
    [
        {"limits": "2/h", "key": "username", "refund_on": "success"},
        {"limits": [("2/h", "username"), ("9/h", "ip")]},
    ],
)
def test_a_route_lets_by_only_logins_that_something_else_limits(site, policy):
    """Without an address' limit, letting by would be no limit; and what is no login has no second factor."""
    site(POLICIES={"own": policy}, ROUTES=[("POST /routed/", "own")])
    assert attempts(3, "/routed/") == [200, 200, 429]


@pytest.mark.usefixtures("site")
def test_the_victim_is_asked_for_more_and_not_locked_out():
    locked()
    response = post("/step-up/", password="right", ip="203.0.113.9")
    assert response.status_code == 200
    assert seen[-1] is True
    assert "Retry-After" not in response.headers
    assert response.wsgi_request.throttle_decision


@pytest.mark.usefixtures("site")
def test_who_is_not_attacked_is_asked_for_nothing_more():
    assert post("/step-up/", password="right").status_code == 200
    assert seen == [False]


@pytest.mark.usefixtures("site")
def test_guessing_at_the_second_factor_is_limited_by_address():
    locked()
    assert attempts(7, "/step-up/", ip="203.0.113.9") == [400] * 5 + [429, 429]


def test_the_limits_that_still_hold_after_a_step_up_are_those_of_before(site):
    """Also where only one is left."""
    site(POLICIES={"auth": {"limits": [("4/h", "ip"), ("2/h", "username")]}})
    attempts(2, "/step-up/")
    assert attempts(3, "/step-up/") == [400, 400, 429]


@pytest.mark.usefixtures("site")
def test_who_is_too_fast_himself_is_not_offered_a_step_up():
    attempts(5, "/step-up/")
    seen.clear()
    assert attempts(2, "/step-up/", password="right") == [429, 429]
    assert seen == []


@pytest.mark.usefixtures("site")
def test_a_success_after_a_step_up_is_given_back():
    locked()
    assert attempts(9, "/step-up/", password="right", ip="203.0.113.9") == [200] * 9


@pytest.mark.usefixtures("site")
def test_the_site_may_decide_who_is_let_through():
    locked()
    assert post("/captcha/", password="right", ip="203.0.113.9").status_code == 429
    assert post("/captcha/", password="right", ip="203.0.113.9", captcha="right").status_code == 200


@pytest.mark.usefixtures("site")
def test_the_site_may_lead_elsewhere_who_needs_it():
    locked()
    assert post("/redirect/", ip="203.0.113.9").headers["Location"] == "/captcha/"
    attempts(5, "/redirect/", username="mallory")
    assert post("/redirect/", username="mallory").status_code == 429


PADDED = f"username=alice&password=%s&pic={140_000 * 'x'}"
TWICE = "username=alice&username=bob&username=alice&password=%s"


def unread_used_up():
    """Let attackers from everywhere use up what all that nobody can read has: 30 an hour."""
    done = [form("/hand/", PADDED % "wrong", f"198.51.100.{number}").status_code for number in range(31)]
    assert done == [200] * 30 + [429]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("body", [PADDED, TWICE], ids=["long", "twice"])
@pytest.mark.parametrize("where", ["/routed/more/", "/step-up/"])
def test_a_name_that_cannot_be_read_needs_a_step_up(where, body):
    """Else who has used up what an account has would go on with bodies that nobody can read, unasked."""
    form(where, body % "wrong")
    post(where)
    assert seen == [True, False]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("where", ["/api/", "/routed/more/", "/step-up/"])
def test_a_long_login_form_logs_in(where):
    assert [form(where, PADDED % "right").status_code for _ in range(7)] == [200] * 7


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("client", [Client(), AsyncClient()], ids=["sync", "async"])
@pytest.mark.parametrize("body", [PADDED, TWICE], ids=["long", "twice"])
def test_a_route_lets_nobody_by_whose_name_cannot_be_read(body, client):
    """What all such bodies have together ends there, also where the view has no more to ask for."""
    unread_used_up()
    assert form("/routed/", body % "wrong", "203.0.113.9", client).status_code == 429
    assert post("/routed/", password="right", ip="203.0.113.9").status_code == 302


@pytest.mark.usefixtures("site")
def test_padding_gets_no_more_guesses_past_a_view_that_asks_for_more():
    """Of 40 readable ones 30 pass unasked, and of 40 after them none."""
    for number in range(40):
        post("/step-up/", ip=f"198.51.100.{number}")
    for number in range(40):
        form("/step-up/", PADDED % "wrong", f"198.51.100.{100 + number}")
    assert seen.count(False) == 30
    assert seen[40:] == [True] * 40


@pytest.mark.usefixtures("site")
def test_a_view_with_a_step_up_may_let_by_whose_name_cannot_be_read():
    unread_used_up()
    assert form("/step-up/", PADDED % "right", "203.0.113.9").status_code == 200
    assert seen == [True]


@pytest.mark.usefixtures("site")
def test_an_address_that_is_too_fast_is_offered_no_step_up_for_being_illegible():
    done = [form("/redirect/", TWICE % "wrong") for _ in range(6)]
    assert [each.status_code for each in done] == [400] * 5 + [429]


def test_an_account_of_several_fields_needs_a_step_up_where_one_cannot_be_read(site):
    site(POLICIES={"auth": {"limits": [("9/h", "ip"), ("9/h", "username+field:shop")]}})
    form("/step-up/", "username=alice&password=x&shop=1")
    form("/step-up/", "username=alice&password=x&shop=1&shop=2")
    assert seen == [False, True]


def test_a_policy_without_a_limit_for_the_account_has_nothing_to_step_up_from(site):
    site(POLICIES={"auth": {"limits": [("9/h", "ip"), ("5/h", "ip+username")]}})
    form("/step-up/", TWICE % "x")
    assert seen == [False]


@pytest.mark.usefixtures("site")
def test_a_decision_can_be_asked_too():
    locked()
    limiter = default_limiter()
    elsewhere = limiter.hit("auth", identities("alice", "203.0.113.9"))
    assert (bool(elsewhere), needs_step_up(elsewhere)) == (False, True)
    passed = limiter.hit("auth", identities("bob", "203.0.113.9"))
    assert (bool(passed), needs_step_up(passed)) == (True, False)


# --- without Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["redis_down", "redis_frozen"])
@pytest.mark.parametrize("where", EVERY)
def test_logins_stay_limited_and_work_without_redis(site, where, outage, request):
    site(request.getfixturevalue(outage).url)
    assert 429 not in attempts(7, where, username="mallory", password="right")
    assert attempts(6, where)[4:] == [400 if where == "/api/" else 200, 429]


@pytest.mark.parametrize("outage", ["redis_down"])
def test_a_victim_is_stepped_up_without_redis_too(site, outage, request):
    site(request.getfixturevalue(outage).url)
    locked("/api/")
    assert post("/step-up/", password="right", ip="203.0.113.9").status_code == 200
    assert seen[-1] is True


def test_an_outage_between_charge_and_refund_costs_the_user_at_most_that(site, own_redis):
    server = own_redis()
    site(server.url)
    forget_limiters()
    assert post("/api/", password="right").status_code == 200
    server.kill()
    assert attempts(5, "/api/") == [400] * 5
    assert post("/api/").status_code == 429
