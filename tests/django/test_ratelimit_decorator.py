"""``@ratelimit``: what counts, who is turned away and what with, on views of every kind."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

import pytest
from asgiref.sync import iscoroutinefunction
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_page
from django.views.decorators.csrf import csrf_exempt

from redis_infra.exceptions import SettingsError
from redis_infra.throttling.charges import refund
from redis_infra.throttling.decorators import ratelimit
from redis_infra.throttling.limiter import default_limiter
from redis_infra.throttling.policies import make_policy
from redis_infra.throttling.rates import Rate

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
POLICIES = {
    "two": {"limits": "2/h", "key": "ip"},
    "hidden": {"limits": "2/h", "key": "ip", "headers": False},
    "closed": {"limits": "2/h", "key": "ip", "on_outage": "deny"},
    "open": {"limits": "2/h", "key": "ip", "on_outage": "allow"},
    "token": {"limits": "2/h", "key": "ip", "refund_on": "2xx"},
}


@pytest.fixture
def site(settings, tmp_path):
    """Set the site's limits: ``site(url, HEADERS=False)``."""

    def configure(url, **throttle):
        said = {"POLICIES": POLICIES, **throttle}
        settings.REDIS_INFRA = {"URL": url, "STATE_DIR": str(tmp_path / "state"), "THROTTLE": said}

    return configure


@pytest.fixture
def live(site, redis_server):
    """The site with a server that answers."""
    site(redis_server.url)


class Asker:
    """Makes views of one kind, sync or async, and asks them."""

    def __init__(self, kind, run):
        self.kind = kind
        self.run = run
        self.served = []
        """The requests that reached a view."""

    def view(self, *decorators, answer=None):
        """Return a view with these decorators, the last innermost; it answers 200, or as ``answer`` does."""
        answer = answer or (lambda request: HttpResponse("found"))

        def search(request):
            self.served.append(request)
            return answer(request)

        async def asearch(request):
            return search(request)

        made = search if self.kind == "sync" else asearch
        made.__qualname__ = "search"
        for decorator in reversed(decorators):
            made = decorator(made)
        return made

    def request(self, method="GET", ip="192.0.2.1", user=None, **headers):
        factory = RequestFactory if self.kind == "sync" else AsyncRequestFactory
        request = factory().generic(method, "/search/", headers=headers)
        request.META["REMOTE_ADDR"] = ip
        request.user = user or AnonymousUser()
        return request

    def ask(self, view, method="GET", **about):
        return self.send(view, self.request(method, **about))

    def send(self, view, request):
        return self.run(view(request)) if self.kind == "async" else view(request)

    def statuses(self, view, times, **about):
        return [self.ask(view, **about).status_code for _ in range(times)]


@pytest.fixture(params=["sync", "async"])
def asker(request):
    with asyncio.Runner() as runner:
        yield Asker(request.param, runner.run)


# --- limits ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
def test_a_view_runs_as_often_as_the_policy_says(asker):
    view = asker.view(ratelimit("two"))
    assert asker.statuses(view, 4) == [200, 200, 429, 429]
    assert len(asker.served) == 2


@pytest.mark.usefixtures("live")
def test_a_view_has_the_rate_that_it_names(asker):
    view = asker.view(ratelimit(rate="1/min", key="ip"))
    assert asker.statuses(view, 2) == [200, 429]
    assert asker.statuses(view, 2, ip="192.0.2.2") == [200, 429]


@pytest.mark.usefixtures("live")
def test_several_rates_hold_together(asker):
    view = asker.view(ratelimit(rate="3/min;2/h", key="ip"))
    assert asker.statuses(view, 3) == [200, 200, 429]


@pytest.mark.usefixtures("live")
def test_a_policy_may_be_made_in_code(asker):
    policy = make_policy("made", Rate(1, 60))
    assert asker.statuses(asker.view(ratelimit(policy)), 2) == [200, 429]


@pytest.mark.usefixtures("live")
def test_users_are_told_apart_whatever_their_address(asker):
    view = asker.view(ratelimit(rate="1/min"))
    one, other = User(pk=1, username="one"), User(pk=2, username="other")
    assert asker.statuses(view, 2, user=one) == [200, 429]
    assert asker.statuses(view, 2, user=other) == [200, 429]
    assert asker.statuses(view, 1, user=one, ip="192.0.2.2") == [429]


@pytest.mark.usefixtures("live")
def test_a_key_may_be_a_function(asker):
    view = asker.view(ratelimit(rate="1/min", key=lambda request: request.headers.get("X-Device")))
    assert [asker.ask(view, **{"X-Device": each}).status_code for each in "aab"] == [200, 429, 200]


@pytest.mark.usefixtures("live")
def test_the_view_can_read_how_the_client_stands(asker):
    def answer(request):
        return HttpResponse(
            f"{request.throttle_decision.remaining} left of {request.throttle_decision.policy}"
        )

    view = asker.view(ratelimit("two"), answer=answer)
    assert [asker.ask(view).content for _ in range(2)] == [b"1 left of two", b"0 left of two"]


@pytest.mark.usefixtures("live")
def test_views_do_not_share_a_limit_unless_they_share_its_name(asker):
    def named(qualname, **options):
        view = asker.view()
        view.__qualname__ = qualname
        return ratelimit(rate="1/min", key="ip", **options)(view)

    assert [asker.ask(named(name)).status_code for name in ("a", "b")] == [200, 200]
    assert [asker.ask(named(name, name="search")).status_code for name in ("a", "b")] == [200, 429]


@pytest.mark.usefixtures("live")
def test_a_limit_is_named_after_its_view(asker):
    view = asker.view(ratelimit(rate="1/min"))
    asker.ask(view)
    assert asker.served[0].throttle_decision.policy == f"{__name__}.search"


@pytest.mark.usefixtures("live")
def test_changed_settings_count_from_the_next_request(asker, site, redis_server):
    view = asker.view(ratelimit("two"))
    assert asker.statuses(view, 3) == [200, 200, 429]
    site(redis_server.url, POLICIES={"two": {"limits": "3/h", "key": "ip"}})
    assert asker.statuses(view, 2) == [200, 429]


# --- cost and methods -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
def test_a_request_may_cost_more_than_one(asker):
    assert asker.statuses(asker.view(ratelimit(rate="5/h", key="ip", cost=2)), 3) == [200, 200, 429]


@pytest.mark.usefixtures("live")
def test_a_request_may_say_what_it_costs(asker):
    view = asker.view(ratelimit(rate="5/h", key="ip", cost=lambda request: int(request.headers["X-Rows"])))
    assert [asker.ask(view, **{"X-Rows": rows}).status_code for rows in "413"] == [200, 200, 429]


@pytest.mark.usefixtures("live")
def test_what_costs_nothing_is_free(asker):
    view = asker.view(ratelimit(rate="1/h", key="ip", cost=0))
    assert asker.statuses(view, 3) == [200, 200, 200]


@pytest.mark.usefixtures("live")
def test_what_costs_more_than_the_limit_is_never_told_to_come_again(asker):
    response = asker.ask(asker.view(ratelimit(rate="5/h", key="ip", cost=6)))
    assert response.status_code == 429
    assert "Retry-After" not in response.headers


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("cost", [-1, 1.5, True, None, "2"])
def test_a_cost_that_is_none_names_the_view(asker, cost):
    with pytest.raises(ValueError, match=r"search: .* is not a whole number") as caught:
        asker.ask(asker.view(ratelimit(rate="5/h", cost=lambda request: cost)))
    assert repr(cost) in str(caught.value)


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("methods", [["POST"], "post", ("post", "put")])
def test_only_the_methods_count_that_are_named(asker, methods):
    view = asker.view(ratelimit(rate="1/h", key="ip", methods=methods))
    assert asker.statuses(view, 2) == [200, 200]
    assert asker.statuses(view, 2, method="POST") == [200, 429]
    assert "RateLimit" not in asker.ask(view).headers


@pytest.mark.usefixtures("live")
def test_head_is_no_way_around_a_limit_for_get(asker):
    view = asker.view(ratelimit(rate="2/h", key="ip", methods=["GET"]))
    assert [asker.ask(view, method).status_code for method in ("GET", "HEAD", "HEAD")] == [200, 200, 429]


# --- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ratelimit(rate="10/month"), "'10/month' is not a rate"),
        (lambda: ratelimit(rate="20/min", key="ipp"), "'ipp'"),
        (ratelimit, "one of both"),
        (lambda: ratelimit("two", rate="20/min"), "one of both"),
        (lambda: ratelimit("two", key="ip"), "has its own name and keys"),
        (lambda: ratelimit("two", name="x"), "has its own name and keys"),
        (lambda: ratelimit("20/min"), "write @ratelimit(rate='20/min')"),
        (lambda: ratelimit(lambda request: None), "write @ratelimit('search')"),
        (lambda: ratelimit("two", cost=-1), "cost -1"),
        (lambda: ratelimit("two", cost=True), "cost True"),
        (lambda: ratelimit("two", methods=["P ST"]), "P ST"),
        (lambda: ratelimit("two", methods=[]), "not a list of methods"),
        (lambda: ratelimit("two", methods="PSOT"), "'PSOT' is not a method of HTTP; did you mean 'POST'?"),
        (lambda: ratelimit("two", methods=["GET", "PUSH"]), "'PUSH' is not a method of HTTP"),
        (lambda: ratelimit("two", response=asyncio.sleep), "not a plain function"),
        (lambda: ratelimit(rate="20/min")(lambda request: None), "name='search'"),
        (lambda: ratelimit(rate="20/min")(partial(print)), "name='search'"),
    ],
)
def test_what_can_be_known_then_is_said_when_the_view_is_decorated(make, words):
    with pytest.raises(SettingsError) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.usefixtures("live")
def test_a_policy_that_does_not_exist_names_view_and_remedy(asker):
    with pytest.raises(SettingsError, match=r"search: there is no such policy; did you mean 'two'.*POLICIES"):
        asker.ask(asker.view(ratelimit("twoo")))


@pytest.mark.usefixtures("live")
def test_a_function_that_is_no_view_is_told():
    with pytest.raises(TypeError, match="no request among the arguments"):
        ratelimit("two")(len)("abc")


# --- headers --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
def test_responses_tell_how_the_client_stands(asker):
    view = asker.view(ratelimit("two"))
    allowed, _, denied = (asker.ask(view) for _ in range(3))
    assert allowed.headers["RateLimit-Policy"] == denied.headers["RateLimit-Policy"] == '"two";q=2;w=3600'
    assert allowed.headers["RateLimit"].startswith('"two";r=1;t=')
    assert denied.headers["RateLimit"].startswith('"two";r=0;t=')
    assert "Retry-After" not in allowed.headers
    assert 3590 < int(denied.headers["Retry-After"]) <= 3600


@pytest.mark.usefixtures("live")
def test_a_policy_that_hides_its_limits_tells_only_when_to_come_again(asker):
    view = asker.view(ratelimit("hidden"))
    responses = [asker.ask(view) for _ in range(3)]
    assert not any("RateLimit" in each.headers or "RateLimit-Policy" in each.headers for each in responses)
    assert "Retry-After" in responses[2].headers
    assert "violated-policies" not in json.loads(responses[2].content)


@pytest.mark.parametrize(("said", "names"), [(False, set()), (True, {"RateLimit", "RateLimit-Policy"})])
def test_the_site_decides_about_headers(asker, site, redis_server, said, names):
    site(redis_server.url, HEADERS=said)
    response = asker.ask(asker.view(ratelimit("two")))
    assert {name for name in response.headers if "RateLimit" in name} == names


def test_the_headers_of_old_can_be_had(asker, site, redis_server):
    site(redis_server.url, HEADERS="legacy")
    response = asker.ask(asker.view(ratelimit("two")))
    assert (response.headers["X-RateLimit-Limit"], response.headers["X-RateLimit-Remaining"]) == ("2", "1")


@pytest.mark.usefixtures("live")
def test_what_a_view_says_of_limits_itself_stands(asker):
    view = asker.view(
        ratelimit("two"), answer=lambda request: HttpResponse(headers={"RateLimit": '"own";r=1'})
    )
    response = asker.ask(view)
    assert response.headers["RateLimit"] == '"own";r=1'
    assert "RateLimit-Policy" not in response.headers


# --- several on one view --------------------------------------------------------------------------------


WIDE, NARROW = ratelimit(rate="9/h", key="ip", name="wide"), ratelimit(rate="2/h", key="ip", name="narrow")


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("stack", [(WIDE, NARROW), (NARROW, WIDE)], ids=["wide outside", "narrow outside"])
def test_of_stacked_limits_the_tightest_is_told_and_all_policies(asker, stack):
    view = asker.view(*stack)
    response = asker.ask(view)
    assert response.headers["RateLimit"].startswith('"narrow";r=1')
    assert set(response.headers["RateLimit-Policy"].split(", ")) == {
        '"wide";q=9;w=3600',
        '"narrow";q=2;w=3600',
    }
    assert asker.served[0].throttle_decision.policy == "narrow"
    assert asker.statuses(view, 2) == [200, 429]


@pytest.mark.usefixtures("live")
def test_a_denial_is_told_before_what_is_left_of_others(asker):
    never = ratelimit(rate="5/h", key="ip", name="never", cost=6)
    response = asker.ask(asker.view(NARROW, never))
    assert response.headers["RateLimit"].startswith('"never";r=5')


@pytest.mark.usefixtures("live")
def test_a_policy_is_charged_once_however_often_it_is_asked(asker):
    view = asker.view(ratelimit("two"), ratelimit("two"))
    assert asker.statuses(view, 3) == [200, 200, 429]


@pytest.mark.usefixtures("live")
def test_who_asks_second_for_more_pays_the_rest(asker):
    five = {"rate": "5/h", "key": "ip", "name": "five"}
    view = asker.view(ratelimit(**five), ratelimit(**five, cost=3), ratelimit(**five, cost=2))
    asker.ask(view)
    assert asker.served[0].throttle_decision.remaining == 2


@pytest.mark.usefixtures("live")
def test_another_view_of_another_request_is_charged_anew(asker):
    view, other = asker.view(ratelimit("two")), asker.view(ratelimit("two"))
    assert [asker.ask(each).status_code for each in (view, other, view)] == [200, 200, 429]


# --- views of every kind --------------------------------------------------------------------------------


class Plain(View):
    def get(self, request):
        return HttpResponse(type(self).__name__)


class Native(View):
    async def get(self, request):
        return HttpResponse(type(self).__name__)


LIMIT = ratelimit(rate="1/h", key="ip")


def class_asked(asker, base):
    view = base.as_view()
    return [asker.ask(view).status_code for _ in range(2)]


def base_for(asker):
    return Plain if asker.kind == "sync" else Native


@pytest.mark.usefixtures("live")
def test_a_class_is_limited_by_its_dispatch(asker):
    limited = method_decorator(LIMIT, name="dispatch")(type("Limited", (base_for(asker),), {}))
    assert class_asked(asker, limited) == [200, 429]


@pytest.mark.usefixtures("live")
def test_two_classes_do_not_share_the_limit_of_the_dispatch_that_they_share(asker):
    one, other = (
        method_decorator(LIMIT, name="dispatch")(type(name, (base_for(asker),), {}))
        for name in ("One", "Other")
    )
    assert [class_asked(asker, one), class_asked(asker, other)] == [[200, 429], [200, 429]]


@pytest.mark.usefixtures("live")
def test_a_method_is_limited_through_method_decorator(asker):
    base = base_for(asker)
    limited = type("Limited", (base,), {"get": method_decorator(LIMIT)(base.get)})
    assert class_asked(asker, limited) == [200, 429]


@pytest.mark.usefixtures("live")
def test_a_method_is_limited_without_it_too(asker):
    base = base_for(asker)
    limited = type("Limited", (base,), {"get": LIMIT(base.get)})
    assert class_asked(asker, limited) == [200, 429]


@pytest.mark.usefixtures("live")
def test_a_request_passed_by_name_is_found(asker):
    view = asker.view(LIMIT)
    request = asker.request()
    response = view(request=request)
    assert (asker.run(response) if asker.kind == "async" else response).status_code == 200


def test_a_view_stays_what_it_was(asker):
    view = asker.view(ratelimit("two"), csrf_exempt)
    assert iscoroutinefunction(view) == (asker.kind == "async")
    assert view.csrf_exempt
    assert view.__qualname__ == "search"


@pytest.mark.usefixtures("live")
def test_a_cached_page_is_counted_where_the_limit_is_outside(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    asker = Asker("sync", None)
    view = asker.view(ratelimit("two"), cache_page(60))
    assert asker.statuses(view, 3) == [200, 200, 429]
    assert len(asker.served) == 1


# --- what the turned away get ---------------------------------------------------------------------------


def turned_away(asker, *, policy="two", accept=None, ip="192.0.2.77", **options):
    """Return the response of the first request that does not fit."""
    view = asker.view(ratelimit(policy, **options))
    headers = {} if accept is None else {"Accept": accept}
    return [asker.ask(view, ip=ip, **headers) for _ in range(3)][-1]


@pytest.mark.usefixtures("live")
def test_a_program_gets_problem_details(asker):
    response = turned_away(asker, accept="application/json")
    assert response.status_code == 429
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    problem = json.loads(response.content)
    assert problem.pop("detail").startswith("Try again in ")
    assert problem == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "violated-policies": ["two"],
    }


@pytest.mark.usefixtures("live")
def test_only_the_limits_are_named_that_were_exceeded(asker):
    view = asker.view(ratelimit(rate="9/min;1/h", key="ip", name="search"))
    response = [asker.ask(view) for _ in range(2)][-1]
    assert json.loads(response.content)["violated-policies"] == ["search-ip-h"]


@pytest.mark.usefixtures("live")
def test_a_browser_gets_a_page(asker):
    response = turned_away(asker, accept=BROWSER)
    assert (response.status_code, response.headers["Content-Type"]) == (429, "text/html; charset=utf-8")
    page = response.content.decode()
    assert "<h1>Too many requests</h1>" in page
    assert "Try again in " in page
    assert not any(word in page for word in ("style", "script", "192.0.2"))


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        ("*/*", False),
        ("", False),
        ("application/json, text/plain, */*", False),
        ("text/html;q=0.1, application/json", False),
        ("text/html", True),
        (BROWSER, True),
        ("\u00fc;q=x, ;;;,=", False),
        ("text/html;q=nan", True),
        ("text/html;a*=none''x", False),
        ("a/b;" + "x=y;" * 10_000, False),
    ],
)
def test_html_is_for_those_who_prefer_it(asker, accept, html):
    """And a header that nobody can read is no 500."""
    response = turned_away(asker, accept=accept)
    assert response.status_code == 429
    assert response.headers["Content-Type"].startswith("text/html" if html else "application/problem+json")


@pytest.mark.usefixtures("live")
def test_nobody_is_told_who_was_limited(asker):
    for accept in (BROWSER, "application/json"):
        response = turned_away(asker, accept=accept, ip="198.51.100.23")
        assert "198.51.100" not in f"{response.content.decode()}{response.headers}"


def use_templates(settings, **templates):
    """Give the site these templates, by name with ``__`` for the dot."""
    named = {name.replace("__", "."): text for name, text in templates.items()}
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", named)]},
        }
    ]


@pytest.mark.usefixtures("live")
def test_the_page_is_the_sites_own_where_it_has_one(asker, settings):
    use_templates(
        settings, **{"429__html": "{{ status }} {{ decision.policy }} {{ request.path }}: {{ detail }}"}
    )
    page = turned_away(asker, accept=BROWSER).content.decode()
    assert page.startswith("429 two /search/: Try again in")


def explain(request, decision):
    return HttpResponse(f"{decision.policy}: no", status=420)


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("response", [explain, f"{__name__}.explain"], ids=["function", "path"])
def test_a_view_makes_its_own_response(asker, response, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[explain.__module__])
    answer = turned_away(asker, response=response)
    assert (answer.status_code, answer.content) == (420, b"two: no")
    assert "Retry-After" in answer.headers


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("name", "content_type"), [("slow__html", "text/html"), ("slow__json", "application/json")]
)
def test_a_view_has_its_own_template(asker, settings, name, content_type):
    use_templates(settings, **{name: "[{{ retry_after }}]"})
    answer = turned_away(asker, response=name.replace("__", "."))
    assert answer.status_code == 429
    assert answer.headers["Content-Type"].startswith(content_type)
    assert answer.content.decode() == f"[{answer.headers['Retry-After']}]"


def test_the_sites_response_is_for_views_that_have_none(asker, site, redis_server, settings):
    use_templates(settings, site__html="the site's")
    site(redis_server.url, RESPONSE="site.html")
    assert turned_away(asker).content == b"the site's"
    assert turned_away(asker, policy="hidden", response=explain).content == b"hidden: no"


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(("response", "words"), [("no.such.thing", "no.such.thing"), ("no.html", "no.html")])
def test_a_response_that_does_not_exist_is_told_at_the_first_request(asker, response, words):
    with pytest.raises(SettingsError, match=words):
        asker.ask(asker.view(ratelimit("two", response=response)))


# --- giving back ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("live")
def test_a_policy_may_give_back_what_a_success_paid(asker):
    view = asker.view(ratelimit("token"))
    assert asker.statuses(view, 5) == [200] * 5


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 500])
def test_it_gives_nothing_back_for_what_is_no_success(asker, status):
    view = asker.view(ratelimit("token"), answer=lambda request: HttpResponse(status=status))
    assert asker.statuses(view, 3) == [status, status, 429]


@pytest.mark.usefixtures("live")
def test_it_gives_nothing_back_when_the_view_fails(asker):
    def answer(request):
        raise LookupError

    view = asker.view(ratelimit("token"), answer=answer)
    for _ in range(2):
        with pytest.raises(LookupError):
            asker.ask(view)
    assert asker.statuses(view, 1) == [429]


@pytest.mark.usefixtures("live")
def test_a_view_may_give_back_by_hand_and_once():
    asker = Asker("sync", None)

    def answer(request):
        refund(request, "two")
        refund(request, "two")
        return HttpResponse()

    view = asker.view(ratelimit("two"), answer=answer)
    other = asker.view(ratelimit("two"))
    asker.ask(other)
    assert asker.statuses(view, 3) == [200, 200, 200]
    assert asker.statuses(other, 2) == [200, 429]


@pytest.mark.usefixtures("live")
def test_nothing_is_given_back_by_hand_of_policies_that_do_not_say_so():
    asker = Asker("sync", None)

    def answer(request):
        refund(request)
        return HttpResponse()

    assert asker.statuses(asker.view(ratelimit("two"), answer=answer), 3) == [200, 200, 429]


# --- without Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["redis_down", "redis_frozen"])
def test_limits_hold_without_redis(asker, site, request, outage):
    site(request.getfixturevalue(outage).url)
    assert asker.statuses(asker.view(ratelimit("two")), 4) == [200, 200, 429, 429]


@pytest.mark.parametrize("outage", ["redis_down", "redis_frozen"])
def test_who_cannot_be_counted_is_turned_away_where_the_policy_says_so(asker, site, request, outage):
    site(request.getfixturevalue(outage).url)
    response = asker.ask(asker.view(ratelimit("closed")), Accept="application/json")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    problem = json.loads(response.content)
    assert problem["type"].endswith("#temporary-reduced-capacity")
    assert problem["violated-policies"] == ["closed"]
    assert asker.served == []


def test_who_cannot_be_counted_passes_where_the_policy_says_so(asker, site, redis_down):
    site(redis_down.url)
    assert asker.statuses(asker.view(ratelimit("open")), 4) == [200] * 4


def test_a_limit_goes_on_where_it_stood_when_redis_dies(asker, site, own_redis):
    server = own_redis()
    site(server.url)
    view = asker.view(ratelimit("two"))
    assert asker.statuses(view, 1) == [200]
    server.kill()
    assert asker.statuses(view, 2) == [200, 429]


def test_one_command_decides(asker, site, redis_server):
    site(redis_server.url)
    view = asker.view(ratelimit("two"))
    asker.ask(view)
    before = redis_server.command("INFO", "commandstats")
    asker.ask(view, ip="192.0.2.9")
    after = redis_server.command("INFO", "commandstats")
    assert _calls(after, b"evalsha") - _calls(before, b"evalsha") == 1
    assert default_limiter().counters.allowed == 2


def _calls(info, command):
    for line in info.splitlines():
        if line.startswith(b"cmdstat_%b:calls=" % command):
            return int(line.partition(b"calls=")[2].partition(b",")[0])
    return 0
