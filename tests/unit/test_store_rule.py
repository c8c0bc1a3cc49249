"""Which provider keeps the key-value store: every row of the rule, and the words that say which one won."""

from __future__ import annotations

from typing import Any

import pytest

from redis_infra.conf import Settings, StoreSource, find_store, store_candidates
from redis_infra.exceptions import SettingsError

REDIS = {"REDIS_URL": "redis://cache:6379/0"}
HOST = {"REDIS_HOST": "cache", "REDIS_PORT": "6380"}
UPSTASH = {"UPSTASH_REDIS_REST_URL": "https://one.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "one-token"}
VERCEL = {"KV_REST_API_URL": "https://two.example", "KV_REST_API_TOKEN": "two-token"}


def found(
    environ: dict[str, str] | None = None,
    kv: dict[str, Any] | None = None,
    *,
    name: str | None = None,
    **site: Any,
) -> StoreSource:
    settings = Settings.load({**site, **({"KV": kv} if kv else {})}, environ={})
    return find_store(name, environ=environ or {}, settings=settings)


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        found(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environ", "provider", "rule"),
    [
        ({}, "memory", "nothing"),
        ({"REDIS_ENABLED": "false", **REDIS, **UPSTASH}, "memory", "REDIS_ENABLED"),
        ({**REDIS, **HOST, **UPSTASH}, "redis", "REDIS_URL"),
        ({**HOST, **UPSTASH}, "redis", "REDIS_HOST"),
        ({**UPSTASH, **VERCEL, "KV_URL": "redis://kv"}, "upstash", "UPSTASH_REDIS_REST_URL"),
        ({**VERCEL, "KV_URL": "redis://kv"}, "upstash", "KV_REST_API_URL"),
        ({"KV_URL": "redis://kv"}, "redis", "KV_URL"),
        ({"KV_URL": "rediss://kv"}, "redis", "KV_URL"),
        ({"KV_URL": "https://:token@kv.example"}, "upstash", "KV_URL"),
        ({"KV_URL": "file:///srv/kv.sqlite3"}, "file", "KV_URL"),
        ({"KV_URL": "memory://"}, "memory", "KV_URL"),
        ({"REDIS_URL": "memory://", **UPSTASH}, "memory", "REDIS_URL"),
        ({"REDIS_PROVIDER": "redis", **UPSTASH, "KV_URL": "redis://kv"}, "redis", "REDIS_PROVIDER"),
        ({"REDIS_PROVIDER": "upstash", **REDIS, **UPSTASH}, "upstash", "REDIS_PROVIDER"),
        ({"REDIS_PROVIDER": "memory", **REDIS}, "memory", "REDIS_PROVIDER"),
        ({"REDIS_PROVIDER": "file", "KV_URL": "file:///srv/kv.sqlite3"}, "file", "REDIS_PROVIDER"),
        ({"REDIS_PROVIDER": "local", **HOST}, "redis", "REDIS_HOST"),
        ({"REDIS_PROVIDER": "local", **UPSTASH}, "memory", "REDIS_PROVIDER"),
        ({"REDIS_PROVIDER": "local", "KV_URL": "redis://kv", **UPSTASH}, "redis", "KV_URL"),
        ({"REDIS_PROVIDER": "redis", **REDIS, "KV_REST_API_URL": "https://half"}, "redis", "REDIS_PROVIDER"),
        ({"REDIS_PROVIDER": "auto", **UPSTASH}, "upstash", "UPSTASH_REDIS_REST_URL"),
        ({"REDIS_PROVIDER": "Upstash ", **UPSTASH}, "upstash", "REDIS_PROVIDER"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_the_environment_decides(environ: dict[str, str], provider: str, rule: str) -> None:
    store = found(environ)
    assert (store.provider, store.rule) == (provider, rule)
    assert store.reason


@pytest.mark.parametrize(
    ("kv", "provider"),
    [
        ({"PROVIDER": "memory"}, "memory"),
        ({"PROVIDER": "upstash"}, "upstash"),
        ({"PROVIDER": "file", "FILE": "/srv/kv.sqlite3"}, "file"),
        ({"PROVIDER": "shop.stores.Ours"}, "shop.stores.Ours"),
        ({"URL": "https://kv.example", "TOKEN": "t"}, "upstash"),
        ({"URL": "http://127.0.0.1:8079", "TOKEN": "t"}, "upstash"),
        ({"URL": "file:///srv/kv.sqlite3"}, "file"),
        ({"URL": "redis://own"}, "redis"),
    ],
    ids=str,
)
def test_what_is_said_of_the_store_itself_goes_before_the_environment(
    kv: dict[str, Any], provider: str
) -> None:
    assert found({**REDIS, **UPSTASH, "REDIS_PROVIDER": "redis"}, kv).provider == provider


def test_a_url_of_its_own_is_where_the_named_provider_is() -> None:
    store = found(REDIS, {"PROVIDER": "redis", "URL": "redis://own"})
    assert store.redis is not None
    assert store.redis.source.url == "redis://own"


def test_what_is_asked_for_by_name_goes_before_the_settings() -> None:
    assert found(UPSTASH, {"PROVIDER": "memory"}, name="upstash").provider == "upstash"
    assert found(REDIS, name="memory").provider == "memory"


def test_switched_off_is_switched_off_for_who_asks_by_name_too() -> None:
    assert found({"REDIS_ENABLED": "0", **UPSTASH}, name="upstash").provider == "memory"


def test_the_sites_url_comes_after_the_environment() -> None:
    assert found(URL="redis://site").rule == "REDIS_INFRA"
    assert found(UPSTASH, URL="redis://site").provider == "upstash"


def test_the_default_alias_comes_last_and_lends_its_password(settings: Any) -> None:
    settings.CACHES = {
        "default": {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": "redis://cache:6379/3",
            "OPTIONS": {"PASSWORD": "s3cret", "COMMAND_TIMEOUT": "400ms"},
        }
    }
    store = found()
    assert (store.provider, store.rule) == ("redis", "default alias")
    assert store.redis is not None
    assert store.redis.connection["password"] == "s3cret"
    assert store.redis.command_timeout == 0.4


def test_an_alias_lends_its_server(settings: Any) -> None:
    settings.CACHES = {
        "default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": "redis://cache"},
        "records": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": "redis://records"},
    }
    store = found(REDIS, {"ALIAS": "records"})
    assert store.redis is not None
    assert store.redis.source.url == "redis://records"


@pytest.mark.parametrize(
    ("environ", "kv", "words"),
    [
        ({"REDIS_PROVIDER": "upstash"}, {}, "UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN"),
        ({"REDIS_PROVIDER": "redis", **UPSTASH}, {}, "set REDIS_URL"),
        ({"REDIS_PROVIDER": "bogus"}, {}, "'bogus' is not a provider"),
        ({}, {"PROVIDER": "upstash"}, "REDIS_INFRA['KV']['PROVIDER'] is 'upstash'"),
        ({}, {"PROVIDER": "file"}, "REDIS_INFRA = {'KV': {'FILE':"),
        ({"UPSTASH_REDIS_REST_URL": "https://x"}, {}, "set UPSTASH_REDIS_REST_TOKEN"),
        ({"UPSTASH_REDIS_REST_URL": "http://x", "UPSTASH_REDIS_REST_TOKEN": "t"}, {}, "in the clear"),
        ({"UPSTASH_REDIS_REST_URL": "x.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "t"}, {}, "https://host"),
        ({"KV_URL": "https://kv.example"}, {}, "its token is missing"),
        ({"KV_URL": "mysql://x"}, {}, "KV_URL"),
        ({"REDIS_ENABLED": "perhaps"}, {}, "REDIS_ENABLED"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_said_with_its_name(
    environ: dict[str, str], kv: dict[str, Any], words: str
) -> None:
    assert words in refused(environ, kv)


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        ({"PROVIDER": "upstahs"}, "did you mean 'upstash'?"),
        ({"FALLBACK": "file"}, "there are memory"),
        ({"FILE": "kv.sqlite3"}, "is not an absolute path"),
        ({"TOKEN": 7}, "a int is not a token"),
        ({"URL": "http://kv.example"}, "in the clear"),
        ({"COMMAND_TIMEOUT": None}, "COMMAND_TIMEOUT"),
        ({"COMMAND_TIMEOUT": 0}, "leaves no time"),
        ({"CONNECT_TIMEOUT": "0s"}, "leaves no time"),
        ({"FLIE": "/srv/x"}, "did you mean 'FILE'?"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_an_error_that_names_it(kv: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"KV": kv}, environ={})
    assert words in str(caught.value)


def test_a_token_is_without_the_line_end_that_it_was_copied_with_and_never_shown() -> None:
    store = found({**UPSTASH, "UPSTASH_REDIS_REST_TOKEN": " one-token\n"})
    assert store.token == "one-token"
    assert "one-token" not in repr(store)
    settings = Settings.load({"KV": {"URL": "https://x", "TOKEN": "two-token"}}, environ={})
    assert "two-token" not in repr(settings)


def test_a_token_in_a_url_is_taken_out_of_it() -> None:
    store = found({"KV_URL": "https://:to%2Fken@kv.example/db"})
    assert (store.url, store.token) == ("https://kv.example/db", "to/ken")


def test_a_token_in_a_url_goes_before_all_that_may_be_another_apis() -> None:
    environ = {"KV_URL": "https://:mine@kv.example", "KV_REST_API_TOKEN": "another's"}
    assert found(environ, {"TOKEN": "a third"}).token == "mine"
    kv = {"URL": "https://:mine@kv.example", "TOKEN": "another's"}
    assert found({"KV_REST_API_TOKEN": "a third"}, kv).token == "mine"


def test_the_token_of_one_api_is_not_shown_to_another() -> None:
    assert "its token is missing" in refused({"KV_URL": "https://kv.example", "KV_REST_API_TOKEN": "t"})
    assert "its token is missing" in refused({"KV_URL": "https://kv.example"}, {"TOKEN": "t"})


@pytest.mark.parametrize(
    "url",
    [
        "file://data/kv.sqlite3",
        "file://./kv.sqlite3",
        "file://",
        "file:///",
        "file:///srv/",
        "file:///a?mode=ro",
    ],
)
def test_a_file_that_is_not_where_it_seems_is_an_error(url: str) -> None:
    assert repr(url) in refused({"KV_URL": url})
    assert repr(url) in refused({"REDIS_PROVIDER": "file", "KV_URL": url})


def test_local_is_a_server_that_the_site_names() -> None:
    assert found({"REDIS_PROVIDER": "local"}, URL="redis://site").provider == "redis"


def test_candidates_come_in_the_order_of_the_rule() -> None:
    environ = {**UPSTASH, **REDIS, **VERCEL, "KV_URL": "file:///srv/kv.sqlite3"}
    rules = [each.rule for each in store_candidates(environ, Settings.load({}, environ={}))]
    assert rules == ["REDIS_URL", "UPSTASH_REDIS_REST_URL", "KV_REST_API_URL", "KV_URL"]


def test_a_file_without_a_path_is_in_the_sites_base_directory(settings: Any) -> None:
    settings.BASE_DIR = "/srv/site"
    assert found({"REDIS_PROVIDER": "file"}).path == "/srv/site/kv.sqlite3"
