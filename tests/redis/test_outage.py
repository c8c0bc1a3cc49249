"""``outage()``: a site's tests believe that Redis is down, and no server has to be."""

from __future__ import annotations

import threading

import pytest
from django.core.cache import caches

from redis_infra.exceptions import SettingsError
from redis_infra.testing import outage

BACKEND = "redis_infra.cache.RedisCache"


@pytest.fixture
def site(settings, redis_infra_url, tmp_path):
    """A site with two aliases on one server, and one that works in memory."""
    options = {"STATE_DIR": str(tmp_path / "state")}
    settings.CACHES = {
        "default": {"BACKEND": BACKEND, "LOCATION": redis_infra_url, "OPTIONS": options},
        "other": {"BACKEND": BACKEND, "LOCATION": redis_infra_url, "KEY_PREFIX": "other", "OPTIONS": options},
        "memory": {"BACKEND": BACKEND, "LOCATION": "memory://"},
        "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    }
    return caches


def test_in_the_block_the_cache_serves_without_redis(site, redis_server):
    with outage():
        site["default"].set("k", "local")
        assert site["default"].is_degraded
        assert site["default"].get("k") == "local"
        assert redis_server.command("DBSIZE") == 0


def test_after_it_redis_answers_and_nothing_is_stale(site):
    cache = site["default"]
    cache.set("deleted", 1)
    cache.set("kept", 2)
    with outage():
        cache.delete("deleted")
    assert not cache.is_degraded
    assert cache.get_many(["deleted", "kept"]) == {"kept": 2}


def test_no_socket_is_touched(site, redis_proxy, settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": redis_proxy.url}}
    with outage():
        for _ in range(10):
            site["default"].set("k", 1)
        assert redis_proxy.connections == 0


def test_a_server_is_down_for_all_its_aliases(site):
    with outage("other"):
        assert site["default"].is_degraded


@pytest.mark.parametrize("of", ["alias", "cache", "server"])
def test_what_may_be_down(site, redis_server, of):
    target = {"alias": "default", "cache": site["default"], "server": redis_server}[of]
    with outage(target):
        assert site["default"].is_degraded
    assert not site["default"].is_degraded


def test_blocks_may_be_nested(site):
    with outage():
        with outage("other"):
            assert site["default"].is_degraded
        assert site["default"].is_degraded
    assert not site["default"].is_degraded


def test_it_is_for_every_thread(site):
    seen = []
    with outage():
        thread = threading.Thread(target=lambda: seen.append(caches["default"].is_degraded))
        thread.start()
        thread.join()
    assert seen == [True]


def test_it_ends_when_the_block_raises(site):
    def fail():
        with outage():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not site["default"].is_degraded


def test_where_redis_is_really_down_it_stays_so(site, settings, redis_down):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": redis_down.url}}
    with outage():
        pass
    assert site["default"].is_degraded


@pytest.mark.parametrize("alias", ["memory", "locmem"])
def test_what_has_no_server_cannot_be_down(site, alias):
    """Or a test of the degraded mode would pass without there being one."""
    with pytest.raises(SettingsError, match="uses no Redis"), outage(alias):
        pass


def test_a_server_that_nobody_uses_cannot_be_down(site, own_redis):
    with pytest.raises(SettingsError, match="no cache alias uses"), outage(own_redis()):
        pass


def test_it_says_that_it_is_not_real(site):
    with outage():
        assert site["default"].status()["cause"] == "held open"
