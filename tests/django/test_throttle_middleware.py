"""``ThrottleMiddleware``: which requests its routes are for, in which order, and before whom it decides."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from contextlib import ExitStack

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client
from django.urls import include, path, re_path, resolve
from django.utils.decorators import sync_and_async_middleware
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import IsAdminUser
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.urlpatterns import format_suffix_patterns
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from redis_infra.conf import get_settings
from redis_infra.exceptions import SettingsError
from redis_infra.throttling.decorators import ratelimit
from redis_infra.throttling.drf import ScopedRateThrottle
from redis_infra.throttling.limiter import default_limiter
from redis_infra.throttling.middleware import ThrottleMiddleware
from redis_infra.throttling.routes import check_views, find_route, parse_routes

THROTTLE = "redis_infra.throttling.middleware.ThrottleMiddleware"
TWO = {"two": {"limits": "2/h", "key": "ip"}}

served: list[str] = []
"""The paths that reached a view."""


def plain(request, language=None):
    served.append(request.path)
    return HttpResponse("plain")


async def native(request, language=None):
    served.append(request.path)
    return HttpResponse(threading.current_thread().name)


@ratelimit("two")
def limited(request):
    return plain(request)


class Deny(BaseAuthentication):
    def authenticate(self, request):
        raise AuthenticationFailed

    def authenticate_header(self, request):
        return "Token"


class Unauthenticated(APIView):
    authentication_classes = [Deny]

    def post(self, request):
        return Response()


class Forbidden(APIView):
    permission_classes = [IsAdminUser]

    def post(self, request):
        return Response()


class Throttled(APIView):
    throttle_classes = [ScopedRateThrottle]
    throttle_scope = "chat"

    def get(self, request):
        return Response()


class Things(ViewSet):
    def list(self, request, **_):
        served.append(request.path)
        return Response([])

    def retrieve(self, request, **_):
        served.append(request.path)
        return Response({})


def formatted(request, **_):
    return plain(request)


router = DefaultRouter()
router.register("things", Things, basename="thing")
shop = ([path("basket/", plain, name="basket"), path("pay/", native, name="pay")], "shop")
urlpatterns = [
    path("", plain),
    path("api/auth/", plain, name="auth"),
    path("api/auth/token", plain),
    path("api/token/", Unauthenticated.as_view(), name="token"),
    path("api/chat/", Throttled.as_view()),
    path("api/admin/", Forbidden.as_view(), name="admin"),
    path("search/", plain, name="search"),
    path("limited/", limited, name="limited"),
    path("native/", native, name="native"),
    path("health/", plain, name="health"),
    path("missing/", plain, name="missing"),
    re_path("(?i:^loud/)$", plain, name="loud"),
    re_path(r"^optional/?$", plain, name="optional"),
    path("<slug:language>/shop/", include(shop)),
    path("v1/", include(router.urls)),
    *format_suffix_patterns(
        [path("reports/", formatted), path("reports/open", formatted), re_path("^logs/$", formatted)]
    ),
    *format_suffix_patterns([path("feeds/", include([path("", formatted)]))]),
]


@sync_and_async_middleware
def other_path(get_response):
    """Send requests elsewhere before Django looks for the view."""

    def middleware(request):
        request.path_info = request.headers.get("X-Path", request.path_info)
        return get_response(request)

    return markcoroutinefunction(middleware) if iscoroutinefunction(get_response) else middleware


class Site:
    """The site, asked by a client of one kind."""

    def __init__(self, settings, state_dir, url, kind):
        self.settings = settings
        self.state_dir = state_dir
        self.url = url
        self.kind = kind

    def route(self, *routes, middleware=(THROTTLE,), url=None, **throttle):
        """Set the table, and start the site anew."""
        said = {"POLICIES": TWO, "ROUTES": list(routes), **throttle}
        self.settings.MIDDLEWARE = list(middleware)
        self.settings.REDIS_INFRA = {"URL": url or self.url, "STATE_DIR": self.state_dir, "THROTTLE": said}
        self.client = Client() if self.kind == "sync" else AsyncClient()
        return self

    def ask(self, where, method="GET", **headers):
        """Return the response to one request."""
        if self.kind == "sync":
            return self.client.generic(method, where, headers=headers)

        async def send():
            return await self.client.generic(method, where, headers=headers)

        return async_to_sync(send)()

    def statuses(self, times, where, method="GET", **headers):
        return [self.ask(where, method, **headers).status_code for _ in range(times)]


@pytest.fixture(params=["sync", "async"])
def site(request, settings, tmp_path, redis_server):
    settings.ROOT_URLCONF = __name__
    served.clear()
    return Site(settings, str(tmp_path / "state"), redis_server.url, request.param)


# --- which requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "where", "method"),
    [
        ("/api/", "/api/auth/", "GET"),
        ("/", "/search/", "POST"),
        ("/", "/", "GET"),
        ("=/search/", "/search/", "GET"),
        ("^/(search|find)/$", "/search/", "GET"),
        ("view:search", "/search/", "GET"),
        ("view:shop:basket", "/de/shop/basket/", "GET"),
        ("POST /api/auth/", "/api/auth/", "POST"),
        ("POST /api/auth/", "/api/auth/token", "POST"),
        ("get,post /search/", "/search/", "GET"),
        ("GET =/search/", "/search/", "HEAD"),
        ("POST view:auth", "/api/auth/", "POST"),
        ("/api/auth/", "/%61pi/aut%68/", "GET"),
        ("/api/auth/", "/api/auth%2F", "GET"),
        ("/api/auth/", "/api/auth/?next=/", "GET"),
        ("/optional/", "/optional", "GET"),
        ("view:loud", "/LoUd/", "GET"),
        ("view:optional", "/optional", "GET"),
        ("/v1/things/", "/v1/things.json", "GET"),
        ("=/v1/things/", "/v1/things.json", "GET"),
        ("=/v1/things/", "/v1/things.json/", "GET"),
        ("GET =/v1/things/7/", "/v1/things/7.json", "GET"),
        ("/reports/", "/reports.json", "GET"),
        ("=/reports/", "/reports.json/", "GET"),
        ("=/reports/", "/report%73%2ejson", "GET"),
        ("=/reports/open", "/reports/open.json", "GET"),
        ("=/reports/open", "/reports/open.json/", "GET"),
        ("/logs/", "/logs.api", "GET"),
        ("=/feeds/", "/feeds/.json", "GET"),
    ],
)
def test_a_route_limits_the_requests_that_it_is_for(site, route, where, method):
    site.route((route, "two"))
    assert site.statuses(3, where, method) == [200, 200, 429]
    assert len(served) == 2


@pytest.mark.parametrize(
    ("route", "where", "method"),
    [
        ("/api/", "/search/", "GET"),
        ("=/api/auth/", "/api/auth/token", "GET"),
        ("POST /api/auth/", "/api/auth/", "GET"),
        ("GET /search/", "/search/", "POST"),
        ("view:shop:basket", "/de/shop/pay/", "GET"),
        ("view:basket", "/de/shop/basket/", "GET"),
        ("^/find/", "/search/", "GET"),
        ("=/v1/things/", "/v1/things/7.json", "GET"),
        ("=/v1/", "/v1/things.json", "GET"),
        ("=/reports/open", "/reports.json", "GET"),
        ("/thing/", "/v1/things.json", "GET"),
        ("^/reports/", "/reports.json", "GET"),
    ],
)
def test_a_route_leaves_other_requests_alone(site, route, where, method):
    site.route((route, "two"))
    assert site.statuses(3, where, method) == [200, 200, 200]
    assert "RateLimit" not in site.ask(where, method).headers


@pytest.mark.parametrize(
    ("target", "path", "expected"),
    [
        ("/things/", "/things.json", True),
        ("=/things/", "/things.json/", True),
        ("=/things/", "/things/.json", True),
        ("=/things", "/things.json", True),
        ("=/things", "/things/.json", False),
        ("=/things/", "/things.", False),
        ("=/things/", "/things.js.on", False),
        ("=/things/", "/things.json/7", False),
        ("=/things/", "/things.json//", False),
        ("/things/", "/thingsx.json", False),
        ("/things/", "/things.json/7", False),
        ("=/", "/.json", True),
        ("=/", "/things.json", False),
    ],
)
def test_a_format_suffix_is_a_point_and_a_word_at_the_end(target, path, expected):
    (route,) = parse_routes(throttle_with((target, "1/h")), {})
    assert route.leads(path) is expected


@pytest.mark.parametrize("where", ["/api//auth/", "/API/auth/", "//api/auth/", "/x/../api/auth/"])
def test_a_way_of_writing_a_path_that_a_route_does_not_take_leads_to_no_view(site, where):
    """What Django's resolver would not route there may pass: there is nothing to protect."""
    site.route(("/api/auth/", "two"))
    assert set(site.statuses(3, where)) <= {404, 429}
    assert served == []


def test_the_first_route_that_matches_decides(site):
    site.route(("POST /api/auth/", "1/h"), ("/api/auth/token", "two"), ("/", "5/h"))
    assert site.statuses(2, "/api/auth/", "POST") == [200, 429]
    assert site.statuses(3, "/api/auth/token") == [200, 200, 429]
    assert site.statuses(1, "/search/") == [200]


def test_a_view_above_a_path_is_decided_first(site):
    site.route(("view:auth", "1/h"), ("/", "two"))
    assert site.statuses(2, "/api/auth/") == [200, 429]
    assert site.statuses(3, "/search/") == [200, 200, 429]


def test_what_leads_nowhere_is_limited_by_path_all_the_same(site):
    site.route(("view:auth", "1/h"), ("/", "two"))
    assert site.statuses(3, "/nowhere/") == [404, 404, 429]


def test_a_path_above_a_view_is_decided_without_looking_for_it(site):
    site.route(("/search/", "1/h"), ("view:search", "two"))
    assert site.statuses(2, "/search/") == [200, 429]


def test_routes_of_one_policy_share_its_limit_and_rates_are_each_routes_own(site):
    site.route(("/search/", "two"), ("/health/", "two"), ("/native/", "1/h"), ("/loud/", "1/h"))
    assert [site.ask(each).status_code for each in ("/search/", "/health/", "/search/")] == [200, 200, 429]
    assert [site.ask(each).status_code for each in ("/native/", "/loud/", "/native/")] == [200, 200, 429]


def test_a_view_that_another_middleware_leads_to_does_not_slip_through(site):
    site.route(("view:search", "two"), ("/search/", "5/h"), middleware=[THROTTLE, f"{__name__}.other_path"])
    assert site.statuses(3, "/health/", **{"X-Path": "/search/"}) == [200, 200, 429]


def test_a_path_that_another_middleware_leads_to_does_not_slip_through(site):
    site.route(("/search/", "two"), middleware=[THROTTLE, f"{__name__}.other_path"])
    assert site.statuses(3, "/health/", **{"X-Path": "/search/"}) == [200, 200, 429]


def test_changed_settings_count_from_the_next_request(site, settings):
    site.route(("/search/", "1/h"))
    assert site.statuses(2, "/search/") == [200, 429]
    settings.REDIS_INFRA = {"URL": site.url, "STATE_DIR": site.state_dir, "THROTTLE": {"ROUTES": []}}
    assert site.statuses(2, "/search/") == [200, 200]


# --- before whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "where", "status"),
    [
        ("POST /api/", "/api/token/", 401),
        ("view:token", "/api/token/", 401),
        ("POST /api/", "/api/admin/", 403),
        ("view:admin", "/api/admin/", 403),
    ],
)
def test_a_flood_that_drf_turns_away_itself_is_limited_too(site, route, where, status):
    site.route((route, "two"))
    assert site.statuses(4, where, "POST") == [status, status, 429, 429]


def test_clients_are_told_how_they_stand(site):
    site.route(("/search/", "two"))
    responses = [site.ask("/search/") for _ in range(3)]
    assert [each.headers["RateLimit"].split(";")[1] for each in responses] == ["r=1", "r=0", "r=0"]
    assert "Retry-After" in responses[2].headers
    assert responses[2].headers["Content-Type"] == "application/problem+json"


def test_a_page_that_was_not_found_tells_too(site):
    response = site.route(("/", "two")).ask("/nowhere/")
    assert (response.status_code, response.headers["RateLimit"].split(";")[1]) == (404, "r=1")


def test_a_browser_gets_a_page(site):
    site.route(("/", "two"), RESPONSE=None)
    assert site.statuses(2, "/") == [200, 200]
    assert b"<h1>Too many requests</h1>" in site.ask("/", Accept="text/html").content


def sorry(request, decision):
    return HttpResponse("sorry", status=420)


def test_the_sites_response_is_used(site):
    site.route(("/", "two"), RESPONSE=f"{__name__}.sorry")
    assert site.statuses(3, "/") == [200, 200, 420]


# --- together with decorators ---------------------------------------------------------------------------


def test_a_policy_that_route_and_view_name_is_charged_once(site):
    site.route(("/limited/", "two"))
    assert site.statuses(3, "/limited/") == [200, 200, 429]


def test_two_policies_both_hold_and_both_are_told(site):
    site.route(("/", "9/h"))
    response = site.ask("/limited/")
    assert response.headers["RateLimit"].startswith('"two";r=1')
    assert response.headers["RateLimit-Policy"] == '"two";q=2;w=3600, "/";q=9;w=3600'
    assert site.statuses(2, "/limited/") == [200, 429]


@pytest.mark.parametrize(("rate", "tightest"), [("2/h", "/"), ("900/h", "chat")])
def test_what_a_throttle_of_drf_says_is_told_with_it(site, rate, tightest):
    response = site.route(("/", rate)).ask("/api/chat/")
    assert response.headers["RateLimit"].startswith(f'"{tightest}";')
    assert response.headers["RateLimit-Policy"].count(";q=") == 2


def test_a_policy_may_give_back_what_a_success_paid(site):
    policies = {"token": {"limits": "2/h", "key": "ip", "refund_on": "2xx"}}
    site.route(("/", "token"), POLICIES=policies)
    assert site.statuses(4, "/search/") == [200] * 4
    assert site.statuses(3, "/api/token/", "POST") == [401, 401, 429]


# --- sync and async -------------------------------------------------------------------------------------


def test_the_middleware_is_what_its_neighbours_are(site):
    site.route()

    async def answer(request):
        return HttpResponse()

    made, amade = ThrottleMiddleware(lambda request: HttpResponse()), ThrottleMiddleware(answer)
    assert [iscoroutinefunction(each) for each in (made, made.process_view)] == [False, False]
    assert [iscoroutinefunction(each) for each in (amade, amade.process_view)] == [True, True]


def workers():
    """How many threads there are, but for the one that sums what the process has counted."""
    return sum(thread.name != "redis_infra-statistics" for thread in threading.enumerate())


def test_no_thread_is_taken_on_the_way_to_an_async_view(site):
    """Neither by the middleware nor by its look at the view."""
    site.route(("view:native", "two"))
    middleware = ThrottleMiddleware(native)
    request = AsyncRequestFactory().get("/native/")
    request.resolver_match = resolve("/native/", __name__)
    before = workers()

    async def ask():
        response = await middleware(request)
        assert await middleware.process_view(request, native, (), {}) is None
        return response.content.decode(), workers()

    thread, count = asyncio.run(ask())
    assert thread == threading.current_thread().name
    assert count <= before  # one of another test's may have ended meanwhile


# --- tables that are wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ([("/api/", "tow")], "'tow' is neither a policy; did you mean 'two'"),
        ([("/api/", "10/month")], "'10/month'"),
        ([("api/", "two")], "'api/' is not a path; write '/prefix/'"),
        ([("POST", "two")], "'POST' is not a path"),
        ([("POST  GET /api/", "two")], "'GET /api/' is not a path"),
        ([("^api/", "two")], "write '^/api/'"),
        ([("^/api/(", "two")], "not a regular expression"),
        ([("view:", "two")], "'view:' is not a path"),
        ([("/", "two"), ("/api/", "two")], "'/' above it takes its requests; move it up"),
        ([("/api/", "two"), ("POST =/api/x", "two")], "is never reached"),
        ([("GET,POST /api/", "two"), ("POST /api/", "two")], "is never reached"),
        ([("^/a", "two"), ("POST ^/a", "two")], "is never reached"),
        ([("view:a", "two"), ("view:a", "two")], "is never reached"),
        ([("/things/", "two"), ("=/things.json", "two")], "is never reached"),
        ([("=/things/", "two"), ("=/things.json/", "two")], "is never reached"),
        ([("/login/", "two"), ("=/login", "two")], "is never reached"),
        ([("PSOT /api/", "two")], "'PSOT' is not a method of HTTP; did you mean 'POST'?"),
        ([("GET,POTS /api/", "two")], "'POTS' is not a method of HTTP; did you mean 'POST'?"),
        ([("BREW /api/", "two")], "'BREW' is not a method of HTTP; there are CONNECT, COPY, "),
    ],
)
def test_a_wrong_route_stops_the_site_and_says_which(site, routes, words):
    with pytest.raises(SettingsError) as caught:
        site.route(*routes).ask("/")
    assert words in str(caught.value)
    assert f"REDIS_INFRA['THROTTLE']['ROUTES'][{routes[-1][0]!r}]" in str(caught.value)
    assert not isinstance(caught.value, MiddlewareNotUsed)


@pytest.mark.parametrize(
    "routes",
    [
        [("POST /", "two"), ("/", "two")],
        [("POST /", "two"), ("GET /", "two")],
        [("/api/", "two"), ("/ap", "two")],
        [("=/api/", "two"), ("/api/", "two")],
        [("view:a", "two"), ("view:ab", "two")],
        [("view:a", "two"), ("/", "two")],
        [("^/a", "two"), ("^/a/b", "two")],
        [("=/things.json", "two"), ("/things/", "two")],
        [("/things/", "two"), ("/things.json", "two")],
        [("=/things", "two"), ("=/things/", "two")],
        [("PROPFIND,mkcol /dav/", "two"), ("QUERY /dav/", "two")],
    ],
)
def test_a_route_that_can_be_reached_is_no_mistake(site, routes):
    site.route(*routes)
    assert len(ThrottleMiddleware(lambda request: HttpResponse())._table.routes) == 2


def throttle_with(*routes):
    return dataclasses.replace(get_settings().throttle, routes=routes)


def test_every_wrong_route_is_reported_and_the_others_are_there(site):
    site.route()
    found = []
    throttle = throttle_with(("/a/", "tow"), ("/b/", "two"), ("c", "two"))
    routes = parse_routes(
        throttle, default_limiter().policies, lambda kind, error: found.append((kind, str(error)))
    )
    assert [each.text for each in routes] == ["/b/"]
    assert [kind for kind, _ in found] == ["value", "value"]


def test_a_route_without_a_policy_exempts(site):
    site.route()
    routes = parse_routes(throttle_with(("/health/", None), ("/", "two")), default_limiter().policies)
    found = [find_route(routes, "GET", where, lambda: None) for where in ("/health/", "/search/")]
    assert [each.policy and each.policy.name for each in found] == [None, "two"]


def test_a_view_that_does_not_exist_is_found_by_the_check(site):
    site.route()
    throttle = throttle_with(
        ("view:serch", "two"), ("view:shop:basket", "two"), (f"view:{__name__}.plain", "two")
    )
    found: list[str] = []
    check_views(
        parse_routes(throttle, default_limiter().policies), lambda kind, error: found.append(str(error))
    )
    assert len(found) == 1
    assert "['view:serch']: there is no such view; did you mean 'search'" in found[0]


@given(
    path=st.text(alphabet="/apiuth%. \n\u00e4", max_size=12).map("/{}".format),
    method=st.sampled_from(["GET", "POST", "HEAD", "PROPFIND"]),
)
def test_a_route_for_everything_lets_nothing_by(path, method):
    routes = parse_routes(throttle_with(("/", "1/h")), {})
    assert find_route(routes, method, path, lambda: None) is routes[0]


# --- without Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["redis_down", "redis_frozen"])
def test_limits_hold_and_nobody_sees_an_error_without_redis(site, outage, request):
    site.route(("/api/token/", "two"), ("/", "5/h"), url=request.getfixturevalue(outage).url)
    assert site.statuses(4, "/api/token/", "POST") == [401, 401, 429, 429]
    assert site.statuses(6, "/search/") == [200] * 5 + [429]


def test_limits_hold_through_the_death_of_redis_and_its_return(site, own_redis):
    server = own_redis()
    site.route(("/", "two"), url=server.url)
    with ExitStack() as after:
        assert site.statuses(1, "/search/") == [200]
        server.kill()
        after.callback(server.start)
        assert site.statuses(2, "/search/") == [200, 429]
    assert site.statuses(2, "/search/") == [429, 429]
