"""Settings: what each takes, where Redis is found, and what django-redis' names become."""

from __future__ import annotations

import sys
from ast import literal_eval
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from django.test import override_settings
from django.utils.module_loading import import_string

from redis_infra.conf import (
    AliasSettings,
    Settings,
    did_you_mean,
    environment_sources,
    find_source,
    get_settings,
    is_ours,
    redact_url,
    servers_in,
)
from redis_infra.conf.django_redis import ACCEPTED, TLS_NAMES, without_effect
from redis_infra.conf.schema import SharedSettings
from redis_infra.durations import parse_duration, parse_size
from redis_infra.exceptions import SettingsError

OURS = "redis_infra.cache.RedisCache"
PASSWORD = "s3cr3t"


def alias(options=None, location="redis://cache:6379/0", *, environ=None, site=None, **params):
    return AliasSettings.load(
        location,
        {"OPTIONS": options or {}, **params},
        environ=environ or {},
        settings=Settings.load(site or {}, environ={}),
    )


def refused(call, *args, **kwargs):
    """Return the words with which a call is refused."""
    with pytest.raises(SettingsError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# --- REDIS_INFRA ----------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_contract():
    settings = Settings.load({}, environ={})
    assert settings.url is None
    assert settings.key_prefix == "ri"
    assert settings.state_dir == "auto"
    assert (settings.command_timeout, settings.connect_timeout) == (0.25, 0.25)
    assert (settings.max_connections, settings.pool_wait) == (50, 0.05)
    assert (settings.retry.attempts, settings.retry.base, settings.retry.cap) == (3, 0.01, 1.0)
    assert settings.breaker.timeouts == 2
    assert (settings.breaker.probe_base, settings.breaker.probe_cap) == (0.25, 5.0)
    assert (settings.fallback.max_entries, settings.fallback.max_bytes) == (10_000, 33_554_432)
    assert settings.fallback.max_ttl == 30.0
    assert (settings.journal.max_keys, settings.journal.max_bytes) == (100_000, 16_777_216)
    assert settings.on_outage == "local"
    assert (settings.serializer, settings.compressor, settings.compress_min) == ("pickle", None, 1024)
    assert settings.signed is False


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("COMMAND_TIMEOUT", "250ms", 0.25),
        ("COMMAND_TIMEOUT", 1, 1.0),
        ("CONNECT_TIMEOUT", timedelta(seconds=2), 2.0),
        ("POOL_WAIT", 0, 0.0),
        ("MAX_CONNECTIONS", "20", 20),
        ("KEY_PREFIX", "shop:blue", "shop:blue"),
        ("STATE_DIR", None, None),
        ("STATE_DIR", Path("/var/lib/site"), "/var/lib/site"),
        ("COMPRESS_MIN", "4kb", 4096),
        ("COMPRESS_MIN", 0, 0),
        ("COMPRESSOR", "", None),
        ("SIGNED", "migrate", "migrate"),
        ("ON_OUTAGE", "miss", "miss"),
        ("URL", " redis://h ", "redis://h"),
        ("URL", "", None),
    ],
)
def test_a_value_is_read_the_way_people_write_it(name, value, expected):
    settings = Settings.load({name: value}, environ={})
    assert getattr(settings, name.lower()) == expected


def test_a_nested_dictionary_changes_only_what_it_names():
    settings = Settings.load({"FALLBACK": {"max_bytes": "1mb"}, "BREAKER": {"timeouts": 5}}, environ={})
    assert settings.fallback.max_bytes == 1_048_576
    assert settings.fallback.max_entries == 10_000
    assert settings.breaker.timeouts == 5


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"COMAND_TIMEOUT": 1}, ["REDIS_INFRA['COMAND_TIMEOUT']", "did you mean 'COMMAND_TIMEOUT'"]),
        ({"command_timeout": 1}, ["did you mean 'COMMAND_TIMEOUT'"]),
        ({"RETRY": {"atempts": 1}}, ["REDIS_INFRA['RETRY']['atempts']", "did you mean 'attempts'"]),
        ({"JOURNAL": {"zzz": 1}}, ["REDIS_INFRA['JOURNAL']['zzz']", "there are max_bytes, max_keys"]),
        ({3: 1}, ["REDIS_INFRA[3] is not a setting"]),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(raw, words):
    text = refused(Settings.load, raw, environ={})
    assert all(each in text for each in words), text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("COMMAND_TIMEOUT", 0, "above zero such as '250ms'"),
        ("COMMAND_TIMEOUT", -1, "-1 is not a duration"),
        ("COMMAND_TIMEOUT", None, "None is not a duration"),
        ("COMMAND_TIMEOUT", "soon", "'soon' is not a duration"),
        ("CONNECT_TIMEOUT", "2d", "longer than a day"),
        ("POOL_WAIT", -0.1, "-0.1 is not a duration"),
        ("MAX_CONNECTIONS", 0, "0 is not a whole number above zero"),
        ("MAX_CONNECTIONS", -5, "-5 is not a whole number"),
        ("MAX_CONNECTIONS", True, "True is not a whole number"),
        ("MAX_CONNECTIONS", 2.5, "2.5 is not a whole number"),
        ("MAX_CONNECTIONS", "9" * 5000, "is not a whole number"),
        ("COMPRESS_MIN", -1, "-1 is not a size"),
        ("KEY_PREFIX", "", "'' cannot lead a key"),
        ("KEY_PREFIX", "a b", "cannot lead a key"),
        ("KEY_PREFIX", "{tag}", "no brace"),
        ("STATE_DIR", "run/state", "is not an absolute path"),
        ("STATE_DIR", b"/run", "is not an absolute path"),
        ("ON_OUTAGE", "rise", "did you mean 'raise'"),
        ("ON_OUTAGE", [], "there are local, miss, raise"),
        ("SIGNED", "yes", "True, False or 'migrate'"),
        ("SIGNED", 1, "True, False or 'migrate'"),
        ("SERIALIZER", None, "None is not a name"),
        ("COMPRESSOR", 3, "3 is not a name"),
        ("URL", 6379, "a int is not a URL"),
        ("URL", "rediss//h", "write one such as"),
        ("URL", "rediz://h", "did you mean"),
        ("FALLBACK", 10, "a int is not a dictionary"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_a_remedy(name, value, words):
    text = refused(Settings.load, {name: value}, environ={})
    assert words in text
    assert f"REDIS_INFRA['{name}']" in text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"FALLBACK": {"max_bytes": 0}}, "['FALLBACK']['max_bytes']: 0 leaves no room"),
        ({"FALLBACK": {"max_ttl": "0s"}}, "['FALLBACK']['max_ttl']: '0s' leaves no time"),
        ({"FALLBACK": {"max_entries": -1}}, "-1 is not a whole number"),
        ({"JOURNAL": {"max_bytes": "-1mb"}}, "is not a size"),
        ({"RETRY": {"base": "5s"}}, "['RETRY']: base (5s) is longer than cap (1s)"),
        ({"BREAKER": {"probe_cap": "1ms"}}, "['BREAKER']: probe_base (250ms) is longer than probe_cap (1ms)"),
    ],
)
def test_nested_values_are_checked_too(raw, words):
    assert words in refused(Settings.load, raw, environ={})


@pytest.mark.parametrize("raw", [None, [], "redis://h", 5])
def test_something_else_than_a_dictionary_is_refused(raw):
    assert "REDIS_INFRA: a " in refused(Settings.load, raw, environ={})


def test_every_mistake_is_reported_to_who_collects_and_the_defaults_hold():
    found = []
    raw = {"POOL_WAIT": -1, "NAME": 1, "RETRY": {"attempts": 0, "cap": "2s"}, "URL": "x", "ON_OUTAGE": "miss"}
    settings = Settings.load(raw, environ={}, report=lambda kind, error: found.append(kind))
    assert sorted(found) == ["name", "url", "value", "value"]
    assert settings.pool_wait == 0.05
    assert settings.retry.attempts == 3
    assert settings.retry.cap == 2.0
    assert settings.on_outage == "miss"


def test_settings_are_frozen_and_show_no_url():
    settings = Settings.load({"URL": f"redis://:{PASSWORD}@h"}, environ={})
    assert PASSWORD not in repr(settings)
    with pytest.raises(FrozenInstanceError):
        settings.url = "redis://other"


def test_the_environment_names_the_prefix():
    assert Settings.load({"KEY_PREFIX": "a"}, environ={"REDIS_PREFIX": "b"}).key_prefix == "b"
    assert Settings.load({"KEY_PREFIX": "a"}, environ={"REDIS_PREFIX": " "}).key_prefix == "a"
    assert "REDIS_PREFIX: " in refused(Settings.load, {}, environ={"REDIS_PREFIX": "a b"})


def test_get_settings_returns_one_object_until_the_settings_change():
    first = get_settings()
    assert get_settings() is first
    with override_settings(REDIS_INFRA={"POOL_WAIT": "10ms"}):
        assert get_settings().pool_wait == 0.01
        assert get_settings() is get_settings()
    assert get_settings() == first


def test_get_settings_follows_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_PREFIX", "blue")
    assert get_settings().key_prefix == "blue"


def test_wrong_settings_raise_at_every_call():
    with override_settings(REDIS_INFRA={"POOL_WAIT": "x"}):
        assert refused(get_settings) == refused(get_settings)


@pytest.mark.parametrize(
    ("written", "site", "expected"),
    [(False, {}, "raise"), (True, {}, "local"), (False, {"ON_OUTAGE": "miss"}, "miss")],
)
def test_ignore_exceptions_of_django_redis_counts_only_where_written_out_as_false(written, site, expected):
    with override_settings(DJANGO_REDIS_IGNORE_EXCEPTIONS=written, REDIS_INFRA=site):
        assert get_settings().on_outage == expected


# --- where Redis is -------------------------------------------------------------------------------------

EVERYTHING = {"REDIS_URL": "redis://url", "REDIS_HOST": "host", "REDIS_PROVIDER": "auto"}


def source(location="", environ=None, url=None):
    settings = Settings.load({"URL": url} if url else {}, environ={})
    return find_source(location, environ=environ or {}, settings=settings)


@pytest.mark.parametrize(
    ("location", "environ", "url", "expected", "rule"),
    [
        ("redis://own", {**EVERYTHING, "REDIS_ENABLED": "false"}, None, "memory://", "REDIS_ENABLED"),
        ("redis://own", EVERYTHING, "redis://site", "redis://own", "LOCATION"),
        ("redis://own", {"REDIS_PROVIDER": "memory"}, None, "redis://own", "LOCATION"),
        ("", {**EVERYTHING, "REDIS_PROVIDER": "memory"}, "redis://site", "memory://", "REDIS_PROVIDER"),
        ("", {"REDIS_PROVIDER": "file"}, "redis://site", "redis://site", "REDIS_INFRA"),
        ("", EVERYTHING, "redis://site", "redis://url", "REDIS_URL"),
        ("", {"REDIS_HOST": "host"}, "redis://site", "redis://host:6379/0", "REDIS_HOST"),
        ("", {}, "redis://site", "redis://site", "REDIS_INFRA"),
        ("", {"REDIS_PROVIDER": "redis"}, "redis://site", "redis://site", "REDIS_INFRA"),
        ("", {"REDIS_PROVIDER": "local"}, None, "memory://", "nothing"),
        ("", {"REDIS_PROVIDER": "local", "REDIS_URL": "redis://url"}, None, "redis://url", "REDIS_URL"),
        ("", {"REDIS_PROVIDER": " AUTO "}, None, "memory://", "nothing"),
        ("", {"REDIS_URL": " ", "REDIS_HOST": ""}, None, "memory://", "nothing"),
        ("", {"REDIS_URL": "unix:///run/r.sock\n"}, None, "unix:///run/r.sock", "REDIS_URL"),
        (None, {}, None, "memory://", "nothing"),
    ],
)
def test_the_first_rule_with_an_answer_wins(location, environ, url, expected, rule):
    with override_settings(CACHES={"default": {"BACKEND": OURS}}):
        found = source(location, environ, url)
    assert (found.url, found.rule) == (expected, rule)
    assert found.reason


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ({"BACKEND": OURS, "LOCATION": "redis://default/1"}, "redis://default/1"),
        (
            {"BACKEND": "redis_infra.cache.backend.RedisCache", "LOCATION": "redis://default"},
            "redis://default",
        ),
        ({"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://x"}, "memory://"),
        ({"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://x"}, "memory://"),
        ({"BACKEND": "no.such.Cache", "LOCATION": "redis://x"}, "memory://"),
        ({"BACKEND": OURS}, "memory://"),
    ],
)
def test_the_default_alias_lends_its_location_where_it_is_ours(default, expected):
    with override_settings(CACHES={"default": default}):
        assert source().url == expected


@pytest.mark.parametrize("text", ["false", "0", "No", "OFF", " f "])
def test_redis_can_be_switched_off_in_the_words_of_environments(text):
    assert source("redis://own", {"REDIS_ENABLED": text}).rule == "REDIS_ENABLED"


@pytest.mark.parametrize("text", ["true", "1", "yes", "ON", ""])
def test_redis_stays_switched_on(text):
    assert source("redis://own", {"REDIS_ENABLED": text}).rule == "LOCATION"


def test_the_reason_says_what_was_overridden():
    assert "overrides REDIS_INFRA['URL']" in source("", EVERYTHING, "redis://site").reason


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"REDIS_HOST": "h", "REDIS_PORT": "7000", "REDIS_DB": "3"}, "redis://h:7000/3"),
        ({"REDIS_HOST": "h", "REDIS_TLS": "1"}, "rediss://h:6379/0"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "tcp://10.0.0.1:6379"}, "redis://h:6379/0"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"REDIS_HOST": "[2001:db8::1]"}, "redis://[2001:db8::1]:6379/0"),
        ({"REDIS_HOST": "h", "REDIS_USERNAME": "web"}, "redis://web@h:6379/0"),
        (
            {"REDIS_HOST": "h", "REDIS_PASSWORD": "a/b@c:d#e?f%\n"},
            "redis://:a%2Fb%40c%3Ad%23e%3Ff%25@h:6379/0",
        ),
        ({"REDIS_HOST": "h", "REDIS_USERNAME": "u:v", "REDIS_PASSWORD": " p"}, "redis://u%3Av:%20p@h:6379/0"),
    ],
)
def test_host_and_companions_make_a_url(environ, expected):
    assert source("", environ).url == expected


def test_an_injected_port_is_mentioned_where_it_was_ignored():
    assert "ignored" in source("", {"REDIS_HOST": "h", "REDIS_PORT": "tcp://10.0.0.1:6379"}).reason


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"REDIS_PROVIDER": "redys"}, "did you mean 'redis'"),
        ({"REDIS_PROVIDER": "redis"}, "needs a server"),
        ({"REDIS_ENABLED": "maybe"}, "REDIS_ENABLED: 'maybe' is neither"),
        ({"REDIS_HOST": "h", "REDIS_TLS": "tls"}, "REDIS_TLS: 'tls' is neither"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "http"}, "REDIS_PORT: 'http' is not a number"),
        ({"REDIS_HOST": "h", "REDIS_DB": "-1"}, "REDIS_DB: '-1' is not a number"),
        ({"REDIS_HOST": "redis://h"}, "a whole URL in REDIS_URL"),
        ({"REDIS_HOST": "h:6380"}, "the port in REDIS_PORT"),
        ({"REDIS_URL": "localhost:6379"}, "REDIS_URL: 'localhost:6379' is not a URL"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(environ, words):
    assert words in refused(source, "", environ)


@pytest.mark.parametrize("provider", ["upstash", "file"])
def test_a_provider_of_records_serves_no_cache_and_harms_none(provider):
    """Or else a site whose records are with Upstash could not say so for fear of its caches."""
    environ = {"REDIS_PROVIDER": provider, "UPSTASH_REDIS_REST_URL": "https://x"}
    assert source("", {**environ, "REDIS_URL": "redis://cache"}).url == "redis://cache"
    assert source("", environ, "redis://cache").url == "redis://cache"
    alone = source("", environ)
    assert alone.url == "memory://"
    assert f"REDIS_PROVIDER={provider} keeps records and serves no cache" in alone.reason


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("redis://a", ("redis://a",)),
        ("redis://a, redis://b/1", ("redis://a", "redis://b/1")),
        (["redis://a", "unix:///b"], ("redis://a", "unix:///b")),
        (("redis://a", ""), ("redis://a",)),
        ("redis+sentinel://h1:1,h2:2/main,redis://b", ("redis+sentinel://h1:1,h2:2/main", "redis://b")),
        ("redis://:x,y@h", ("redis://:x,y@h",)),
        ("", ()),
        (None, ()),
    ],
)
def test_a_location_may_name_several_servers(location, expected):
    assert servers_in(location) == expected


@pytest.mark.parametrize("location", [5, [5], b"redis://h", "unique-snowflake", "127.0.0.1:6379:1"])
def test_a_location_that_names_no_server_is_refused(location):
    assert "LOCATION: " in refused(servers_in, location)


def test_the_first_of_several_servers_is_used_and_the_reason_says_so():
    found = source(["redis://a", "redis://b"])
    assert found.url == "redis://a"
    assert "first of its 2 servers" in found.reason


def test_both_names_of_the_environment_can_be_compared():
    rules = [each.rule for each in environment_sources({"REDIS_URL": "redis://a", "REDIS_HOST": "b"})]
    assert rules == ["REDIS_URL", "REDIS_HOST"]


def test_a_source_shows_no_url():
    assert PASSWORD not in repr(source(f"redis://:{PASSWORD}@h"))


def test_our_cache_and_its_subclasses_are_ours(monkeypatch):
    module = ModuleType("shop_cache")
    module.ShopCache = type("ShopCache", (import_string(OURS),), {})
    monkeypatch.setitem(sys.modules, "shop_cache", module)
    assert is_ours("shop_cache.ShopCache")
    assert is_ours(OURS)
    assert not is_ours("django.core.cache.backends.locmem.LocMemCache")
    assert not is_ours(None)


# --- a cache alias --------------------------------------------------------------------------------------


def test_an_alias_has_the_settings_of_the_site_and_its_own_on_top():
    found = alias(
        {"COMMAND_TIMEOUT": "100ms", "FALLBACK": {"max_entries": 5}, "SERIALIZER": "json"},
        site={"COMMAND_TIMEOUT": "1s", "ON_OUTAGE": "miss", "FALLBACK": {"max_ttl": "10s"}},
    )
    assert found.command_timeout == 0.1
    assert found.on_outage == "miss"
    assert (found.fallback.max_entries, found.fallback.max_ttl) == (5, 10.0)
    assert found.serializer == "json"
    assert found.url == found.source.url == "redis://cache:6379/0"


def test_options_take_every_setting_of_the_site():
    site = {item.name: getattr(Settings(), item.name) for item in fields(SharedSettings)}
    written = {name.upper(): asdict(value) if is_dataclass(value) else value for name, value in site.items()}
    found = alias(written)
    assert {name: getattr(found, name) for name in site} == {**site, "url": found.source.url}


def test_a_url_in_options_stands_in_for_a_location():
    found = alias({"URL": "redis://opt"}, location="")
    assert found.source.url == "redis://opt"
    assert "OPTIONS" in found.source.reason
    assert alias({"URL": "redis://opt"}).source.url == "redis://cache:6379/0"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"COMAND_TIMEOUT": 1}, "OPTIONS['COMAND_TIMEOUT'] is not a setting; did you mean 'COMMAND_TIMEOUT'"),
        ({"SOCKET_TIMOUT": 1}, "did you mean 'SOCKET_TIMEOUT'"),
        ({"CONNECTION_POOL_KWARGS": {"max_conections": 1}}, "did you mean 'max_connections'"),
        ({"BREAKER": {"timeout": 1}}, "OPTIONS['BREAKER']['timeout'] is not a setting; did you mean"),
        ({"SOCKET_TIMEOUT": 0}, "OPTIONS['SOCKET_TIMEOUT']: 0 leaves no time"),
        ({"SOCKET_CONNECT_TIMEOUT": "x"}, "OPTIONS['SOCKET_CONNECT_TIMEOUT']: 'x' is not a duration"),
        ({"CONNECTION_POOL_KWARGS": {"max_connections": -1}}, "['max_connections']: -1 is not"),
        ({"CONNECTION_POOL_KWARGS": 5}, "OPTIONS['CONNECTION_POOL_KWARGS']: a int is not a dictionary"),
    ],
)
def test_a_wrong_option_is_refused_by_the_name_that_was_written(options, words):
    assert words in refused(alias, options)


def test_options_that_are_no_dictionary_are_refused():
    assert "OPTIONS: a list" in refused(AliasSettings.load, "", {"OPTIONS": [1]}, environ={})


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({"SOCKET_TIMEOUT": 5}, "command_timeout", 5.0),
        ({"SOCKET_TIMEOUT": None}, "command_timeout", 0.25),
        ({"SOCKET_CONNECT_TIMEOUT": 0.5}, "connect_timeout", 0.5),
        ({"CONNECTION_POOL_KWARGS": {"max_connections": 100}}, "max_connections", 100),
        ({"CONNECTION_POOL_KWARGS": {"max_connections": None}}, "max_connections", 50),
        ({"CONNECTION_POOL_KWARGS": {"timeout": 20}}, "pool_wait", 20.0),
        ({"CONNECTION_POOL_KWARGS": {"socket_timeout": 2}, "SOCKET_TIMEOUT": 1}, "command_timeout", 2.0),
        ({"COMMAND_TIMEOUT": 3, "SOCKET_TIMEOUT": 1}, "command_timeout", 3.0),
        ({"IGNORE_EXCEPTIONS": False}, "on_outage", "raise"),
        ({"IGNORE_EXCEPTIONS": True}, "on_outage", "local"),
        ({"IGNORE_EXCEPTIONS": False, "ON_OUTAGE": "miss"}, "on_outage", "miss"),
    ],
)
def test_the_names_of_django_redis_become_ours(options, name, expected):
    assert getattr(alias(options), name) == expected


def test_ignore_exceptions_does_not_undo_a_choice_but_that_of_raising():
    assert alias({"IGNORE_EXCEPTIONS": True}, site={"ON_OUTAGE": "miss"}).on_outage == "miss"
    assert alias({"IGNORE_EXCEPTIONS": True}, site={"ON_OUTAGE": "raise"}).on_outage == "local"


def test_access_and_tls_are_kept_for_the_connection():
    options = {
        "USERNAME": "web",
        "PASSWORD": PASSWORD,
        "CONNECTION_POOL_KWARGS": {"ssl_cert_reqs": None, "db": 2, "client_name": "site"},
    }
    found = alias(options)
    assert found.connection == {
        "username": "web", "password": PASSWORD, "ssl_cert_reqs": None, "db": 2, "client_name": "site",
    }  # fmt: skip
    assert PASSWORD not in repr(found)


def test_what_is_left_for_django_redis_has_no_name_of_ours_and_no_password():
    kept = {"SERIALIZER": "django_redis.serializers.json.JSONSerializer", "PICKLE_VERSION": 4}
    assert alias({**kept, "PASSWORD": PASSWORD, "POOL_WAIT": 1, "COMPRESSOR": "lz4"}).options == kept


def test_a_dotted_serializer_of_the_site_reaches_django_redis_too():
    assert alias(site={"SERIALIZER": "shop.formats.Json"}).options == {"SERIALIZER": "shop.formats.Json"}


DJANGO_REDIS = {
    "CLIENT_CLASS": "django_redis.client.HerdClient",
    "CONNECTION_FACTORY": "django_redis.pool.ConnectionFactory",
    "CONNECTION_POOL_CLASS": "redis.ConnectionPool",
    "PARSER_CLASS": "redis.connection._HiredisParser",
    "REDIS_CLIENT_CLASS": "redis.Redis",
    "REDIS_CLIENT_KWARGS": {"a": 1},
    "REPLICA_READ_ONLY": False,
    "SENTINEL_KWARGS": {},
    "MAX_ENTRIES": 1000,
    "CULL_FREQUENCY": 3,
    "CONNECTION_POOL_KWARGS": {"retry_on_timeout": True, "max_connections": 5},
    "KEY_PREFIX": "x",
    "SOCKET_TIMEOUT": 1,
    "COMMAND_TIMEOUT": 1,
    "PICKLE_VERSION": 5,
    "CLOSE_CONNECTION": True,
    "IGNORE_EXCEPTIONS": True,
}


def test_every_option_of_django_redis_is_accepted_and_those_without_effect_are_known():
    alias(DJANGO_REDIS)
    inert = dict(without_effect(DJANGO_REDIS))
    effective = {"COMMAND_TIMEOUT", "PICKLE_VERSION", "CLOSE_CONNECTION", "IGNORE_EXCEPTIONS"}
    assert set(inert) == {
        *(set(DJANGO_REDIS) - effective - {"CONNECTION_POOL_KWARGS"}),
        "CONNECTION_POOL_KWARGS['retry_on_timeout']",
    }
    assert all(inert.values())


@pytest.mark.parametrize(
    "options",
    [
        {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
        {"CONNECTION_POOL_CLASS": "redis.BlockingConnectionPool", "CONNECTION_POOL_KWARGS": {"timeout": 1}},
        {"PARSER_CLASS": None},
        {"SOCKET_TIMEOUT": 1},
        {},
    ],
)
def test_an_option_that_means_what_we_do_anyway_is_not_called_useless(options):
    assert not list(without_effect(options))


def test_loading_an_alias_takes_few_calls():
    """Counted and not timed, so that a busy machine does not decide: 41 calls are some 30 microseconds."""
    settings = Settings.load({}, environ={})
    params = {"OPTIONS": {"SOCKET_TIMEOUT": 1, "CONNECTION_POOL_KWARGS": {"max_connections": 9}}}
    AliasSettings.load("redis://h", params, environ={}, settings=settings)
    calls = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event == "call" else None)
    try:
        AliasSettings.load("redis://h", params, environ={}, settings=settings)
    finally:
        sys.setprofile(before)
    assert len(calls) < 60


# --- words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"redis://user:{PASSWORD}@h:6379/0", "redis://***@h:6379/0"),
        (f"redis://:{PASSWORD}@h", "redis://***@h"),
        (f"redis://:{PASSWORD}", "redis://:***"),
        (f"redis://:{PASSWORD}/x?y#z@h", "redis://***@h"),
        (f"redis://:a@b{PASSWORD}@h", "redis://***@h"),
        (f"redis://h?password={PASSWORD}&db=1", "redis://h?password=***&db=1"),
        (f"redis+sentinel://h/s?sentinel_password={PASSWORD}", "redis+sentinel://h/s?sentinel_password=***"),
        (f"redis:{PASSWORD}@h", "***@h"),
        ("redis://h:6379/0?db=1", "redis://h:6379/0?db=1"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("localhost:6379", "localhost:6379"),
    ],
)
def test_a_url_is_shown_without_its_password(text, shown):
    assert redact_url(text) == shown


def test_the_nearest_name_is_suggested_whatever_its_case():
    assert did_you_mean("Pool_Wait", ["POOL_WAIT", "URL"]) == "; did you mean 'POOL_WAIT'?"
    assert did_you_mean("zzz", ["POOL_WAIT", "URL"]) == "; there are POOL_WAIT, URL"


# --- documentation --------------------------------------------------------------------------------------

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()


def _defaults():
    for item in fields(SharedSettings):
        default = getattr(Settings(), item.name)
        if is_dataclass(default):
            yield from ((f'{item.name.upper()}["{name}"]', value) for name, value in asdict(default).items())
        else:
            yield item.name.upper(), default


@pytest.mark.parametrize(("name", "default"), list(_defaults()))
def test_every_setting_is_documented_with_its_default(name, default):
    row = next(line for line in REFERENCE.splitlines() if line.startswith(f"| `{name}` |"))
    written = literal_eval(row.split("|")[3].strip(" `"))
    if "duration" in row:
        written = parse_duration(written)
    elif "size" in row:
        written = parse_size(written)
    assert written == default


@pytest.mark.parametrize("name", sorted(ACCEPTED | set(TLS_NAMES[:8])))
def test_every_name_that_is_taken_over_is_documented(name):
    assert f"`{name}`" in REFERENCE
