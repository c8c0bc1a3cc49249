"""``manage.py cache_health`` on the key-value store: which provider it is, why, and how it does."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import call_command

from redis_infra.kv import get_store
from redis_infra.observability.stores import check_store

NOBODY = "redis://127.0.0.1:1/0"
TOKEN = "s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in ("REDIS_ENABLED", "REDIS_PROVIDER", "REDIS_URL", "REDIS_HOST", "KV_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def said(settings, tmp_path):
    """Set up REDIS_INFRA: ``said(url, PROVIDER="redis")``."""

    def make(url=None, **kv):
        settings.REDIS_INFRA = {
            "URL": url,
            "STATE_DIR": str(tmp_path / "state"),
            **({"KV": kv} if kv else {}),
        }

    return make


@pytest.fixture
def health():
    def run(*args):
        out, code = StringIO(), 0
        try:
            call_command("cache_health", *args, "--no-color", stdout=out, stderr=out)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, out.getvalue()

    return run


def test_it_says_which_provider_it_is_where_and_why(said, redis_server, health):
    said(redis_server.url)
    _, text = health()
    lines = text.splitlines()
    (at,) = [at for at, line in enumerate(lines) if line.split()[:1] == ["kv"]]
    line, why = lines[at : at + 2]
    assert line.split()[1:5] == ["[ok]", "pass", "up", "redis"]
    assert redis_server.url in line
    assert "REDIS_INFRA['URL']" in why


def test_machines_read_the_same(said, redis_server, health):
    said(redis_server.url)
    _, text = health("--format", "json")
    kv = json.loads(text)["kv"]
    assert (kv["status"], kv["state"], kv["provider"]) == ("pass", "up", "redis")
    assert (kv["where"], kv["reason"], kv["cause"], kv["remedy"]) == (
        get_store().where,
        "REDIS_INFRA['URL']",
        "",
        "",
    )
    assert kv["ping_ms"] > 0


def test_who_asks_for_an_alias_is_not_told_of_it(said, redis_server, settings, health):
    said(redis_server.url)
    settings.CACHES = {"default": {"BACKEND": "redis_infra.cache.RedisCache"}}
    _, text = health("default", "--format", "json")
    assert json.loads(text)["kv"] is None


def test_a_store_that_is_away_fails_where_the_site_speaks_of_it(said, health):
    said(NOBODY, PROVIDER="redis")
    code, text = health()
    assert code == 1
    assert "kv" in text
    assert "refused" in text
    assert "get_store() raises StoreUnavailable meanwhile" in text


def test_where_the_site_says_nothing_of_it_that_is_a_warning(said):
    """Nobody knows whether it uses the store."""
    said(NOBODY)
    assert (check_store().status, check_store().state) == ("warn", "down")


def test_looking_at_it_opens_no_circuit(said):
    """Or else who only looks would count as a worker that has lost Redis."""
    said(NOBODY, PROVIDER="redis")
    check_store()
    assert get_store()._database.endpoint.reach.closed


def test_memory_instead_of_the_provider_is_a_warning(said):
    said(NOBODY, FALLBACK="memory")
    assert get_store().set("a", 1)
    report = check_store()
    assert (report.status, report.state, report.provider) == ("warn", "degraded", "redis")
    assert report.cause


def test_memory_is_what_it_is_in_production_and_well_while_developing(said, settings):
    said(PROVIDER="memory")
    settings.DEBUG = False
    assert (check_store().status, check_store().state) == ("warn", "memory")
    assert check_store().remedy
    settings.DEBUG = True
    assert (check_store().status, check_store().remedy) == ("pass", "")


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        ({"PROVIDER": "upstash"}, "UPSTASH_REDIS_REST_TOKEN"),
        ({"PROVIDER": "no.such.Store"}, "cannot be imported"),
        ({"PROVIDER": "nonsense"}, "is not a provider"),
    ],
    ids=str,
)
def test_what_is_configured_wrongly_is_said_and_raises_nothing(said, kv, words):
    said(**kv)
    report = check_store()
    assert (report.status, report.state) == ("fail", "invalid")
    assert words in report.cause
    assert "manage.py check" in report.remedy


def test_no_token_is_in_it(said, health):
    said(URL="http://127.0.0.1:1", TOKEN=TOKEN)
    _, text = health("--format", "json")
    assert json.loads(text)["kv"]["state"] == "down"
    assert TOKEN not in text
