"""``REDIS_INFRA["THROTTLE"]``: what each setting takes, where limits find Redis, and the site's own key."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from django.test import override_settings

from redis_infra.conf import (
    AliasSettings,
    Settings,
    ThrottleSettings,
    get_settings,
    ipv6_prefix,
    num_proxies,
    site_key,
)
from redis_infra.conf.site import username_field
from redis_infra.connection.options import ConnectionOptions
from redis_infra.exceptions import SettingsError

OURS = "redis_infra.cache.RedisCache"
PASSWORD = "s3cr3t"
DEFAULT_RATES = {"chat": "20/min", "auth": "5/15min", "upload": "5/min", "search": "30/min"}


def throttle(**said):
    return Settings.load({"THROTTLE": said}, environ={}).throttle


def refused(call, *args, **kwargs):
    """Return the words with which a call is refused."""
    with pytest.raises(SettingsError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# --- what each setting takes ----------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_contract():
    assert throttle() == ThrottleSettings()
    assert dict(throttle().rates) == DEFAULT_RATES
    assert throttle().policies == {}
    assert (throttle().routes, throttle().trusted_proxies) == ((), ())
    assert (throttle().on_outage, throttle().hosts, throttle().headers) == ("host", 1, True)
    assert (throttle().timeout, throttle().response, throttle().ipv6_prefix) == (0.1, None, 64)
    assert (throttle().url, throttle().alias) == (None, None)


def test_rates_are_laid_over_the_default_ones():
    assert throttle(RATES={"chat": None, "export": "1/h"}).rates == {
        **DEFAULT_RATES,
        "chat": None,
        "export": "1/h",
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ROUTES", [["/a/", "chat"], ("POST /b/", "20/min")], (("/a/", "chat"), ("POST /b/", "20/min"))),
        ("ROUTES", {"/z/": "chat", "/a/": None}, (("/z/", "chat"), ("/a/", None))),
        ("TRUSTED_PROXIES", ["10.0.0.0/8", "::1"], (IPv4Network("10.0.0.0/8"), IPv6Network("::1/128"))),
        ("TRUSTED_PROXIES", ["unix", ip_network("10.0.0.7")], ("unix", IPv4Network("10.0.0.7/32"))),
        ("TRUSTED_PROXIES", "10.0.0.0/8, UNIX,", (IPv4Network("10.0.0.0/8"), "unix")),
        ("TRUSTED_PROXIES", ("::1", "::1"), (IPv6Network("::1/128"),)),
        ("ON_OUTAGE", "deny", "deny"),
        ("IPV6_PREFIX", 56, 56),
        ("IPV6_PREFIX", "48", 48),
        ("IPV6_PREFIX", 32, 32),
        ("IPV6_PREFIX", 128, 128),
        ("HOSTS", "4", 4),
        ("HEADERS", False, False),
        ("HEADERS", "legacy", "legacy"),
        ("TIMEOUT", "50ms", 0.05),
        ("URL", "redis://limits", "redis://limits"),
        ("ALIAS", "limits", "limits"),
        ("ALIAS", "", None),
        ("RESPONSE", "shop.views.too_many", "shop.views.too_many"),
        ("RESPONSE", "errors/429.html", "errors/429.html"),
        ("RESPONSE", "429.json", "429.json"),
        ("RESPONSE", "", None),
    ],
)
def test_a_value_is_read_the_way_people_write_it(name, value, expected):
    assert getattr(throttle(**{name: value}), name.lower()) == expected


def test_policies_are_kept_as_they_are_written():
    policies = {"a": "1/s", "b": ["1/s", ("2/s", "ip")], "c": {"rate": "1/s"}}
    assert throttle(POLICIES=policies).policies == policies


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RATES", ["20/min"], '[\'RATES\']: a list is not a dictionary; write {"chat": "20/min"}'),
        ("RATES", {"chat": 20}, "['RATES']['chat']: 20 is not a rate; write text such as '20/min'"),
        ("RATES", {5: "20/min"}, "5 is not a name"),
        ("RATES", {" ": "20/min"}, "' ' is not a name"),
        ("POLICIES", {"chat": None}, "['POLICIES']['chat']: None is not a policy"),
        ("POLICIES", None, "a NoneType is not a dictionary"),
        ("ROUTES", "/a/", "a str is not a list of pairs"),
        ("ROUTES", ["/a/"], "'/a/' is not a route and a policy"),
        ("ROUTES", [("/a/", "chat", "x")], "is not a route and a policy"),
        ("ROUTES", [("", "chat")], "is not a route and a policy"),
        ("ROUTES", [("/a/", "")], "is not a route and a policy"),
        ("ROUTES", [("/a/", 20)], "is not a route and a policy"),
        ("TRUSTED_PROXIES", ["proxy.internal"], "'proxy.internal' is neither an address nor a network"),
        ("TRUSTED_PROXIES", [10], "10 is neither an address nor a network"),
        ("TRUSTED_PROXIES", [b"\n\0\0\1"], "is neither an address nor a network"),
        ("TRUSTED_PROXIES", ["10.0.0.1/8"], "write '10.0.0.0/8' for all of it"),
        ("TRUSTED_PROXIES", ["0.0.0.0/0"], "'0.0.0.0/0' trusts everybody"),
        ("TRUSTED_PROXIES", ["::/0"], "NUM_PROXIES"),
        ("TRUSTED_PROXIES", 3, "a int is not a list of addresses"),
        ("ON_OUTAGE", "local", "'local' is not a choice"),
        ("ON_OUTAGE", "alow", "did you mean 'allow'"),
        ("IPV6_PREFIX", 31, "31 is not the length of a prefix; write one from 32 to 128"),
        ("IPV6_PREFIX", 129, "129 is not the length of a prefix"),
        ("IPV6_PREFIX", True, "True is not the length of a prefix"),
        ("IPV6_PREFIX", "/64", "'/64' is not the length of a prefix"),
        ("HOSTS", 0, "0 is not a whole number above zero"),
        ("HEADERS", "yes", "write True, False or 'legacy'"),
        ("HEADERS", 1, "1 is not a choice"),
        ("TIMEOUT", 0, "leaves no time"),
        ("TIMEOUT", "soon", "'soon' is not a duration"),
        ("TIMEOUT", None, "None is not a duration"),
        ("URL", "limits:6379", "not a URL of a known scheme"),
        ("ALIAS", 5, "5 is not the name of a cache alias"),
        ("RESPONSE", "too_many", "'too_many' is neither a callable's dotted path nor a template's name"),
        ("RESPONSE", print, "is neither a callable's dotted path nor a template's name"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_a_remedy(name, value, words):
    text = refused(throttle, **{name: value})
    assert f"REDIS_INFRA['THROTTLE']['{name}']" in text
    assert words in text


def test_an_unknown_name_is_an_error_that_names_the_nearest():
    assert "did you mean 'RATES'?" in refused(throttle, RATE={})
    assert "did you mean 'HOSTS'?" in refused(throttle, hosts=2)


def test_url_and_alias_together_are_refused():
    text = refused(throttle, URL=f"redis://:{PASSWORD}@h", ALIAS="default")
    assert "write one of them" in text
    assert PASSWORD not in text


def test_with_a_mistake_the_rest_is_read_by_who_collects():
    found = []
    said = {"HOSTS": 0, "TIMOUT": 1, "TIMEOUT": "50ms"}
    settings = Settings.load(
        {"THROTTLE": said}, environ={}, report=lambda kind, error: found.append((kind, str(error)))
    )
    assert [kind for kind, _ in found] == ["value", "name"]
    assert (settings.throttle.hosts, settings.throttle.timeout) == (1, 0.05)


def test_settings_are_frozen_and_show_no_url():
    settings = throttle(URL=f"redis://:{PASSWORD}@h", RATES={"x": "1/s"}, POLICIES={"y": "1/s"})
    with pytest.raises(FrozenInstanceError):
        settings.hosts = 2
    for mapping in (settings.rates, settings.policies, throttle().rates, throttle().policies):
        with pytest.raises(TypeError):
            mapping["chat"] = None
    assert PASSWORD not in repr(settings)


def test_what_is_changed_in_the_written_dictionary_afterwards_changes_nothing():
    written = {"THROTTLE": {"RATES": {"x": "1/s"}, "POLICIES": {"y": "1/s"}}}
    settings = Settings.load(copy.deepcopy(written), environ={})
    changed = Settings.load(written, environ={})
    written["THROTTLE"]["RATES"].clear()
    written["THROTTLE"]["POLICIES"].clear()
    assert changed == settings


def test_get_settings_has_them_and_returns_one_object():
    with override_settings(REDIS_INFRA={"THROTTLE": {"HOSTS": 3}}):
        assert get_settings().throttle.hosts == 3
        assert get_settings().throttle is get_settings().throttle


def test_the_prefix_is_that_of_the_settings_as_they_are_now():
    assert ipv6_prefix() == 64
    with override_settings(REDIS_INFRA={"THROTTLE": {"IPV6_PREFIX": 56}}):
        assert ipv6_prefix() == 56
        with override_settings(REDIS_INFRA={}):
            assert ipv6_prefix() == 64
        assert ipv6_prefix() == 56
    with override_settings(REDIS_INFRA={"THROTTLE": {"IPV6_PREFIX": 5}}), pytest.raises(SettingsError):
        ipv6_prefix()
    assert ipv6_prefix() == 64


# --- where limits find Redis ----------------------------------------------------------------------------

CACHES = {
    "default": {"BACKEND": OURS, "LOCATION": "redis://default/1", "OPTIONS": {"PASSWORD": PASSWORD}},
    "limits": {"BACKEND": OURS, "LOCATION": "redis://limits/2", "OPTIONS": {"COMMAND_TIMEOUT": "70ms"}},
    "bare": {"BACKEND": OURS},
    "other": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
}
URL = "redis://own/3"
SITE = {"URL": "redis://site"}


@pytest.mark.parametrize(
    ("said", "site", "environ", "url", "rule"),
    [
        ({"URL": URL}, {}, {"REDIS_ENABLED": "false"}, "memory://", "REDIS_ENABLED"),
        ({"URL": URL}, SITE, {"REDIS_URL": "redis://env"}, URL, "URL"),
        ({"ALIAS": "limits"}, SITE, {"REDIS_URL": "redis://env"}, "redis://limits/2", "ALIAS"),
        ({"ALIAS": "limits"}, {}, {"REDIS_ENABLED": "false"}, "memory://", "REDIS_ENABLED"),
        ({"ALIAS": "bare"}, SITE, {}, "redis://site", "REDIS_INFRA"),
        ({}, SITE, {"REDIS_URL": "redis://env"}, "redis://env", "REDIS_URL"),
        ({}, SITE, {}, "redis://site", "REDIS_INFRA"),
        ({}, {}, {}, "redis://default/1", "default alias"),
    ],
)
def test_the_first_rule_with_an_answer_wins(said, site, environ, url, rule):
    settings = Settings.load({**site, "THROTTLE": said}, environ={})
    with override_settings(CACHES=CACHES):
        found = AliasSettings.for_throttle(settings, environ=environ)
    assert (found.source.url, found.url, found.source.rule) == (url, url, rule)


def test_without_any_server_limits_are_in_memory():
    with override_settings(CACHES={"default": CACHES["other"]}):
        source = AliasSettings.for_throttle(Settings.load({}, environ={}), environ={}).source
    assert (source.url, source.rule) == ("memory://", "nothing")


def test_a_url_that_code_names_wins_over_those_of_the_settings():
    settings = Settings.load({"THROTTLE": {"URL": URL}}, environ={})
    found = AliasSettings.for_throttle(settings, url="redis://code", environ={"REDIS_URL": "redis://env"})
    assert found.source.url == "redis://code"


@pytest.mark.parametrize("said", [{"ALIAS": "default"}, {}])
def test_the_alias_that_lends_its_server_lends_its_password(said):
    with override_settings(CACHES=CACHES):
        found = AliasSettings.for_throttle(Settings.load({"THROTTLE": said}, environ={}), environ={})
    options = ConnectionOptions.from_settings(found)
    assert (options.host, options.db, options.password) == ("default", 1, PASSWORD)


def test_the_password_of_the_default_alias_goes_to_no_other_server():
    settings = Settings.load({"THROTTLE": {"URL": URL}}, environ={})
    with override_settings(CACHES=CACHES):
        assert ConnectionOptions.from_settings(AliasSettings.for_throttle(settings)).password is None


def test_the_options_of_the_named_alias_count():
    settings = Settings.load({"THROTTLE": {"ALIAS": "limits"}}, environ={})
    with override_settings(CACHES=CACHES):
        assert AliasSettings.for_throttle(settings, environ={}).command_timeout == 0.07


def test_the_reason_names_the_setting():
    settings = Settings.load({"THROTTLE": {"ALIAS": "limits"}}, environ={})
    with override_settings(CACHES=CACHES):
        reason = AliasSettings.for_throttle(settings, environ={}).source.reason
    assert "'limits'" in reason
    assert "REDIS_INFRA['THROTTLE']['ALIAS']" in reason


@pytest.mark.parametrize(
    ("alias", "words"),
    [
        ("limit", "did you mean 'limits'?"),
        ("other", "the BACKEND of CACHES['other'] is not 'redis_infra.cache.RedisCache'"),
    ],
)
def test_an_alias_that_is_no_cache_of_ours_is_refused(alias, words):
    settings = Settings.load({"THROTTLE": {"ALIAS": alias}}, environ={})
    with override_settings(CACHES=CACHES):
        text = refused(AliasSettings.for_throttle, settings, environ={})
    assert words in text
    assert "REDIS_INFRA['THROTTLE']['ALIAS']" in text


# --- what other settings of the site mean ---------------------------------------------------------------


def test_a_site_key_is_32_bytes_and_differs_by_purpose_and_by_site():
    keys = set()
    for secret in ("a" * 100, "a" * 100 + "b", b"bytes"):
        with override_settings(SECRET_KEY=secret):
            keys |= {site_key("ri-throttle"), site_key("ri-other"), site_key("ri-throttle")}
    assert {len(key) for key in keys} == {32}
    assert len(keys) == 6


@pytest.mark.parametrize("secret", ["", b""])
def test_without_a_secret_there_is_no_site_key(secret):
    with override_settings(SECRET_KEY=secret):
        assert "SECRET_KEY is empty; set it" in refused(site_key, "ri-throttle")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"NUM_PROXIES": 2}, 2),
        ({"NUM_PROXIES": 0}, 0),
        ({"NUM_PROXIES": None}, None),
        ({"NUM_PROXIES": True}, None),
        ({"NUM_PROXIES": "2"}, None),
        ({"NUM_PROXIES": -1}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_number_of_proxies_is_a_number_or_not_known(said, expected):
    with override_settings(REST_FRAMEWORK=said):
        assert num_proxies() == expected


def test_people_log_in_with_the_field_of_the_user_model():
    assert username_field() == "username"
    with override_settings(INSTALLED_APPS=["redis_infra"]):
        assert username_field() == "username"
