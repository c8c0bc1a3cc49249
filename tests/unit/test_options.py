"""Connection options: every form of URL, what wins, and that no password is ever shown."""

from __future__ import annotations

import ssl
import sys
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.conf import AliasSettings, Settings
from redis_infra.connection.options import ConnectionOptions, inert_parameters, unsupported
from redis_infra.exceptions import SettingsError

PASSWORD = "s3cr3t"


def read(url, **defaults):
    return ConnectionOptions.from_url(url, **defaults)


def refused(call, *args, **kwargs):
    """Return the words with which a call is refused."""
    with pytest.raises(SettingsError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def alias(location, options=None, **site):
    settings = Settings.load(site, environ={})
    return AliasSettings.load(location, {"OPTIONS": options or {}}, environ={}, settings=settings)


# --- URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"scheme": "redis", "host": "h", "port": 6379, "db": 0}),
        ("redis://h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        ("REDIS://Cache.Example:7000/", {"scheme": "redis", "host": "cache.example", "db": 0}),
        ("rediss://h", {"scheme": "rediss", "port": 6379}),
        ("valkey://h", {"scheme": "redis"}),
        ("valkeys://h", {"scheme": "rediss"}),
        ("redis://", {"host": "localhost", "port": 6379}),
        ("redis:///2", {"host": "localhost", "db": 2}),
        ("redis://:7000", {"host": "localhost", "port": 7000}),
        ("redis://[::1]:7000/1", {"host": "::1", "port": 7000, "db": 1}),
        ("redis://[fe80::1%25eth0]", {"host": "fe80::1%eth0", "port": 6379}),
        ("redis://user:pass@h", {"username": "user", "password": "pass"}),
        ("redis://:pass@h", {"username": None, "password": "pass"}),
        ("redis://user@h", {"username": "user", "password": None}),
        ("redis://user:@h", {"username": "user", "password": None}),
        ("redis://u%3Av:a%2Fb%40c%3Ad%23e%3Ff%25@h", {"username": "u:v", "password": "a/b@c:d#e?f%"}),
        ("redis://u:p@ss@h", {"username": "u", "password": "p@ss", "host": "h"}),
        ("unix:///run/redis.sock", {"scheme": "unix", "path": "/run/redis.sock", "db": 0, "host": ""}),
        ("unix:///run/redis.sock?db=1", {"path": "/run/redis.sock", "db": 1}),
        ("unix://u:p@/run/my%20redis.sock", {"path": "/run/my redis.sock", "username": "u", "password": "p"}),
        ("memory://", {"scheme": "memory", "path": ""}),
        ("memory://sessions", {"scheme": "memory", "path": "sessions"}),
        ("embedded://", {"scheme": "embedded", "path": ""}),
        ("embedded:///var/lib/site", {"scheme": "embedded", "path": "/var/lib/site"}),
    ],
)
def test_each_form_of_url_is_read(url, expected):
    options = read(url)
    assert {name: getattr(options, name) for name in expected} == expected


def test_sentinels_are_read():
    options = read("redis+sentinel://u:p@h1:26379,h2/main/2?sentinel_password=sp&sentinel_username=su")
    assert options.scheme == "sentinel"
    assert options.nodes == (("h1", 26379), ("h2", 26379))
    assert (options.service, options.db) == ("main", 2)
    assert (options.username, options.password) == ("u", "p")
    assert (options.sentinel_username, options.sentinel_password) == ("su", "sp")


def test_a_cluster_is_read():
    options = read("redis+cluster://h1:7000,[::1]:7001,h3")
    assert options.scheme == "cluster"
    assert options.nodes == (("h1", 7000), ("::1", 7001), ("h3", 6379))


@pytest.mark.parametrize(
    ("query", "name", "expected"),
    [
        ("socket_timeout=0.5", "command_timeout", 0.5),
        ("socket_timeout=100ms", "command_timeout", 0.1),
        ("socket_connect_timeout=1", "connect_timeout", 1.0),
        ("max_connections=7", "max_connections", 7),
        ("timeout=2", "pool_wait", 2.0),
        ("db=4", "db", 4),
        ("username=a%20b", "username", "a b"),
        ("password=p%26q", "password", "p&q"),
        ("password=p@q", "password", "p@q"),
        ("client_name=web-1", "client_name", "web-1"),
        ("db=4&db=5", "db", 4),
        ("health_check_interval=30", "db", 0),
    ],
)
def test_parameters_of_the_query_are_read(query, name, expected):
    assert getattr(read(f"redis://h?{query}"), name) == expected


def test_the_number_in_the_query_wins_over_the_path_and_the_user_before_the_host_over_both():
    options = read("redis://u:p@h/1?db=2&username=x&password=y")
    assert (options.db, options.username, options.password) == (2, "u", "p")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ssl_cert_reqs=none", "none"),
        ("ssl_cert_reqs=CERT_NONE", "none"),
        ("ssl_cert_reqs=Required", "required"),
        ("ssl_check_hostname=false", False),
        ("ssl_ca_certs=/etc/ca.pem", "/etc/ca.pem"),
        ("ssl_certfile=/c.pem", "/c.pem"),
        ("ssl_keyfile=/k.pem", "/k.pem"),
        ("ssl_min_version=771", 771),
    ],
)
def test_tls_is_read_as_redis_py_takes_it(query, expected):
    assert read(f"rediss://h?{query}").tls == ((query.partition("=")[0], expected),)


@pytest.mark.parametrize("value", [None, ssl.CERT_NONE, "none"])
def test_every_way_of_not_verifying_is_one(value):
    assert read("rediss://h", ssl_cert_reqs=value).tls == (("ssl_cert_reqs", "none"),)


def test_lists_for_tls_become_hashable():
    options = read("rediss://h", ssl_include_verify_flags=[ssl.VERIFY_X509_STRICT])
    assert hash(options)


def test_what_the_url_says_wins_over_defaults_and_the_rest_is_taken_from_them():
    defaults = {"db": 3, "username": "d", "password": "d", "command_timeout": 9.0, "pool_wait": 9.0}
    options = read("redis://u@h/1?socket_timeout=1", **defaults)
    assert (options.db, options.username, options.password) == (1, "u", "d")
    assert (options.command_timeout, options.pool_wait) == (1.0, 9.0)
    assert read("redis://h", db=3).db == 3


def test_an_unknown_default_is_the_callers_mistake():
    with pytest.raises(TypeError, match="did you mean 'pool_wait'"):
        read("redis://h", poolwait=1)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h?sockettimeout=1", "did you mean 'socket_timeout'"),
        ("redis://h?zzz=1", "'zzz' is not a parameter; there are client_name, db"),
        ("redis://h?sentinel_password=x", "'sentinel_password' is not a parameter"),
        ("redis://h?socket_timeout=0", "socket_timeout in the URL: '0' leaves no time"),
        ("redis://h?max_connections=-1", "max_connections in the URL: '-1' is not a whole number"),
        ("redis://h?client_name=a%20b", "without spaces"),
        ("redis://h?db=x", "db in the URL: the database is not a number"),
        ("rediss://h?ssl_cert_reqs=never", "'never' is not a choice"),
        ("rediss://h?ssl_check_hostname=maybe", "'maybe' is neither yes nor no"),
        ("redis://h?ssl_ca_certs=/ca.pem", "write rediss://"),
        ("redis://h/x", "the database after the host is not a number"),
        ("redis://h/0/1", "the database after the host is not a number"),
        ("redis://h:70000", "a number from 1 to 65535"),
        ("redis://h:0", "a number from 1 to 65535"),
        ("redis://a,b:6379", "host and port cannot be read"),
        ("redis://::1", "[::1]:6379"),
        ("redis://[::1", "an IPv6 address goes in brackets"),
        ("redis://h\x7f:1:2", "host and port cannot be read"),
        ("unix://run/redis.sock", "unix:///path/to/redis.sock"),
        ("unix://", "unix:///path/to/redis.sock"),
        ("redis+sentinel://h1,h2", "the service is missing"),
        ("redis+cluster://h/1", "a cluster has database 0 alone"),
        ("https://x.upstash.io", "not supported yet"),
        ("file:///var/lib", "not supported yet"),
        ("rediz://h", "did you mean"),
        ("h:6379", "write one such as 'redis://localhost:6379/0'"),
    ],
)
def test_a_wrong_url_is_refused_with_a_remedy(url, words):
    assert words in refused(read, url)


# --- secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@h:x",
        f"redis://user:{PASSWORD}@h/x",
        f"redis://user:{PASSWORD}@h?zzz=1",
        f"redis://:{PASSWORD}",
        f"redis://:a/{PASSWORD}@h",
        f"redis://:a?{PASSWORD}@h",
        f"redis://:1?{PASSWORD}@h",
        f"redis://:1?{PASSWORD}",
        f"redis://u:1@2?secret=a&{PASSWORD}@h",
        f"redis://u:1?scrt={PASSWORD}@h",
        f"redis://:1#{PASSWORD}@h",
        f"redis://:[{PASSWORD}@h",
        f"redis://:a%{PASSWORD}@h:x",
        f"redis://h?password={PASSWORD}&zzz=1",
        f"rediss://h?ssl_password={PASSWORD}&zzz=1",
        f"redis+sentinel://h?sentinel_password={PASSWORD}",
        f"unix://:{PASSWORD}@run/redis.sock",
        f"redis:/user:{PASSWORD}@h",
        f"rediz://user:{PASSWORD}@h",
        f"https://:{PASSWORD}@h",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(SettingsError) as caught:
        read(url)
    error = caught.value
    assert PASSWORD not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_not_even_the_first_digits_of_a_password_are_taken_for_a_port_and_shown():
    assert "8127" not in refused(read, "redis://u:8127?rest@h")


@given(password=st.text(min_size=6, alphabet="ABCXYZabcxyz019@:/?#[]%&=+;,"))
def test_whatever_the_password_an_error_about_its_url_does_not_hold_it(password):
    """Unencoded, in a URL that is wrong for another reason or because of it."""
    url = f"redis://user:{password}@h/not-a-number"
    with pytest.raises(SettingsError) as caught:
        read(url)
    assert password not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@h:6379/0",
        f"rediss://:{PASSWORD}@h?ssl_password={PASSWORD}",
        f"unix://user:{PASSWORD}@/run/r.sock",
        f"redis+sentinel://:{PASSWORD}@h/main?sentinel_password={PASSWORD}",
        f"redis+cluster://u:{PASSWORD}@h",
    ],
)
def test_options_show_no_password(url):
    options = read(url)
    shown = (repr(options), str(options), options.server, options.database, options.label)
    assert not any(PASSWORD in each for each in shown)


# --- identities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server", "database", "label"),
    [
        ("redis://u:p@h/2", "redis://h:6379", "redis://u@h:6379/2", "redis://u:***@h:6379/2"),
        ("redis://:p@h", "redis://h:6379", "redis://h:6379/0", "redis://:***@h:6379/0"),
        ("redis://h", "redis://h:6379", "redis://h:6379/0", "redis://h:6379/0"),
        ("valkeys://[::1]", "rediss://[::1]:6379", "rediss://[::1]:6379/0", "rediss://[::1]:6379/0"),
        ("unix:///r.sock?db=1", "unix:///r.sock", "unix:///r.sock?db=1", "unix:///r.sock?db=1"),
        ("unix://u:p@/r.sock", "unix:///r.sock", "unix://u@/r.sock?db=0", "unix://u:***@/r.sock?db=0"),
        ("memory://", "memory://", "memory://", "memory://"),
        ("memory://a", "memory://a", "memory://a", "memory://a"),
        ("embedded://", "embedded://", "embedded://", "embedded://"),
        (
            "redis+sentinel://u:p@a,b:1/main/1",
            "redis+sentinel://a:26379,b:1/main",
            "redis+sentinel://u@a:26379,b:1/main/1",
            "redis+sentinel://u:***@a:26379,b:1/main/1",
        ),
        ("redis+cluster://a,b", *["redis+cluster://a:6379,b:6379"] * 3),
    ],
)
def test_server_database_and_label(url, server, database, label):
    options = read(url)
    assert (options.server, options.database, options.label) == (server, database, label)


def test_two_spellings_of_one_server_are_one():
    assert read("valkey://H/1?password=a").server == read("redis://u:b@h:6379/2?socket_timeout=1").server


def test_equal_options_are_interchangeable_and_a_password_tells_them_apart():
    assert read("redis://u:p@h") == read("redis://h", username="u", password="p")
    assert len({read("redis://:a@h"), read("redis://:b@h"), read("redis://:a@h:6379/0")}) == 2


def test_users_with_odd_characters_do_not_make_another_servers_name():
    assert read("redis://a%40b%2Fc:p@h").database == "redis://a%40b%2Fc@h:6379/0"


# --- a cache alias --------------------------------------------------------------------------------------


def test_an_alias_gives_its_timing_and_access():
    settings = alias(
        "rediss://h/1",
        {
            "SOCKET_TIMEOUT": 2,
            "USERNAME": "web",
            "PASSWORD": PASSWORD,
            "CONNECTION_POOL_KWARGS": {"max_connections": 9, "ssl_cert_reqs": None, "client_name": "site"},
        },
        POOL_WAIT="20ms",
    )
    options = ConnectionOptions.from_settings(settings)
    assert (options.command_timeout, options.connect_timeout) == (2.0, 0.25)
    assert (options.max_connections, options.pool_wait) == (9, 0.02)
    assert (options.username, options.password, options.client_name) == ("web", PASSWORD, "site")
    assert options.tls == (("ssl_cert_reqs", "none"),)


def test_values_in_the_connection_string_have_precedence():
    written = {"USERNAME": "x", "PASSWORD": "y", "CONNECTION_POOL_KWARGS": {"db": 5}}
    settings = alias("redis://u:p@h/2", written)
    options = ConnectionOptions.from_settings(settings)
    assert (options.username, options.password, options.db) == ("u", "p", 2)


def test_an_error_says_where_the_url_came_from():
    settings = AliasSettings.load("", {}, environ={"REDIS_URL": "redis://h/x"}, settings=Settings())
    assert "REDIS_URL in the environment" in refused(ConnectionOptions.from_settings, settings)


@pytest.mark.parametrize("password", [b"bytes", 5, object()])
def test_a_password_that_is_not_text_is_refused_without_showing_it(password):
    text = refused(ConnectionOptions.from_settings, alias("redis://h", {"PASSWORD": password}))
    assert "password: a " in text
    assert str(password) not in text


@pytest.mark.parametrize(
    ("location", "options", "words"),
    [
        ("https://x.upstash.io", {}, "a REST API is not supported yet"),
        ("file:///var/lib", {}, "a file is not supported yet"),
        ("redis+sentinel://h/main", {}, "Redis Sentinel is not supported yet"),
        ("redis+cluster://h", {}, "Redis Cluster is not supported yet"),
        ("redis://main/0", {"SENTINELS": [("h", 26379)]}, "Redis Sentinel is not supported yet"),
    ],
)
def test_what_cannot_serve_a_cache_yet_says_so(location, options, words):
    settings = alias(location, options)
    assert words in unsupported(settings)
    assert refused(ConnectionOptions.from_settings, settings) == unsupported(settings)


@pytest.mark.parametrize("location", ["redis://h", "unix:///r", "memory://", "embedded://"])
def test_what_can_serve_a_cache_is_supported(location):
    assert unsupported(alias(location)) == ""


def test_memory_stays_memory_whatever_the_sentinels():
    assert unsupported(alias("memory://", {"SENTINELS": [("h", 1)]})) == ""


def test_parameters_that_change_nothing_are_known():
    found = dict(inert_parameters("redis://h?protocol=3&db=1&health_check_interval=30"))
    assert set(found) == {"protocol", "health_check_interval"}
    assert all(found.values())


def test_reading_urls_does_not_import_redis_py():
    code = (
        "import sys; from redis_infra.connection.options import ConnectionOptions;"
        "ConnectionOptions.from_url('rediss://u:p@h/1?ssl_cert_reqs=none'); print('redis' in sys.modules)"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
