"""``get_store()``: one store for each configuration, and the one that memory stands in for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings
from django.views.debug import ExceptionReporter

from redis_infra.exceptions import SettingsError, StoreIndeterminate, StoreUnavailable
from redis_infra.kv import Command, KVStore, get_store
from redis_infra.kv.factory import close_stores
from redis_infra.kv.local import answers
from redis_infra.kv.memory_store import MemoryStore
from redis_infra.testing import TcpProxy
from tests.forking import in_child

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

VARIABLES = ("REDIS_URL", "REDIS_HOST", "REDIS_PROVIDER", "REDIS_ENABLED", "KV_URL", "REDIS_PREFIX")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class Own(KVStore):
    """A site's own provider, as short as one can be."""

    def __init__(self, home: str) -> None:
        super().__init__(home)
        self.memory = MemoryStore(home)

    def execute(self, commands: Sequence[Command[Any]], *, atomic: bool = False) -> list[Any]:
        return answers(commands, self.memory._table)


def test_a_site_that_says_nothing_has_a_store_in_memory() -> None:
    store = get_store()
    assert store.health().provider == "memory"
    assert "names a store" in store.health().why
    assert get_store() is store


def test_keys_are_led_by_the_sites_prefix(redis_server: RedisServer, settings: Any) -> None:
    settings.REDIS_INFRA = {"URL": redis_server.url, "KEY_PREFIX": "shop"}
    get_store().set("a", 1)
    assert redis_server.command("KEYS", "*") == [b"shop:kv:a"]
    assert list(get_store().scan()) == ["a"]


def test_another_configuration_is_another_store(
    redis_server: RedisServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = get_store()
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    redis = get_store()
    assert redis.provider == "redis"
    assert get_store() is redis
    monkeypatch.delenv("REDIS_URL")
    assert get_store() is memory
    monkeypatch.setenv("REDIS_PREFIX", "other")
    assert get_store() not in (memory, redis)


def test_a_test_that_changes_settings_has_a_store_of_its_own() -> None:
    get_store().set("a", 1)
    with override_settings(REDIS_INFRA={"KV": {"PROVIDER": "memory"}}):
        assert get_store().get("a") is None
        get_store().set("a", 2)
    with override_settings(REDIS_INFRA={"KV": {"PROVIDER": "memory"}}):
        assert get_store().get("a") is None


def test_a_provider_is_asked_for_by_name(redis_server: RedisServer, settings: Any, tmp_path: Path) -> None:
    settings.REDIS_INFRA = {"URL": redis_server.url, "KV": {"FILE": str(tmp_path / "kv.sqlite3")}}
    found = [get_store(name).provider for name in ("redis", "memory", "file")]
    assert found == ["redis", "memory", "file"]
    with pytest.raises(SettingsError, match="UPSTASH_REDIS_REST_URL"):
        get_store("upstash")
    with pytest.raises(SettingsError, match="did you mean 'redis'"):
        get_store("redsi")


def test_a_site_brings_its_own(settings: Any) -> None:
    settings.REDIS_INFRA = {"KV": {"PROVIDER": f"{__name__}.Own"}}
    store = get_store()
    assert isinstance(store, Own)
    assert store.incr("a") == 1
    assert store.health().provider.endswith("test_kv_factory.Own")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no.such.module.Store", "cannot be imported"),
        ("redis_infra.kv.NoSuchStore", "cannot be imported"),
        ("redis_infra.kv.Command", "is no KVStore"),
    ],
)
def test_what_is_no_store_is_an_error(settings: Any, path: str, words: str) -> None:
    settings.REDIS_INFRA = {"KV": {"PROVIDER": path}}
    with pytest.raises(SettingsError, match=words):
        get_store()


class Broken(Own):
    def __init__(self, home: str) -> None:
        raise RuntimeError("no licence")


class Unfinished(KVStore):
    """Has no execute()."""


@pytest.mark.parametrize(("name", "words"), [("Broken", "no licence"), ("Unfinished", "abstract")])
def test_a_store_that_cannot_be_made_is_an_error(settings: Any, name: str, words: str) -> None:
    settings.REDIS_INFRA = {"KV": {"PROVIDER": f"{__name__}.{name}"}}
    with pytest.raises(SettingsError, match=f"cannot be made: .*{words}"):
        get_store()


SECRET = "t0k3n-of-a-site"


@pytest.mark.parametrize(
    "environ",
    [
        {"UPSTASH_REDIS_REST_URL": "http://x.example", "UPSTASH_REDIS_REST_TOKEN": SECRET},
        {"KV_URL": f"https://:{SECRET}@"},
        {"REDIS_URL": f"redis://:{SECRET}@host:port"},
        {"REDIS_PASSWORD": SECRET, "REDIS_PROVIDER": "redis"},
    ],
    ids=str,
)
def test_no_secret_is_in_what_a_page_shows_of_an_error(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    """Django's report of an error shows the variables of every frame, of its causes too."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    try:
        get_store()
    except SettingsError:
        frames = ExceptionReporter(None, *sys.exc_info()).get_traceback_frames()[1:]  # this test has it
    assert [frame["function"] for frame in frames] == ["get_store"]
    assert SECRET not in repr([frame["vars"] for frame in frames])


def test_threads_get_one_store() -> None:
    barrier, found = threading.Barrier(8), list[KVStore]()

    def ask() -> None:
        barrier.wait()
        found.append(get_store())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_forked_child_goes_on_with_it(redis_server: RedisServer, settings: Any) -> None:
    settings.REDIS_INFRA = {"URL": redis_server.url}
    get_store().incr("a")
    assert in_child(lambda: get_store().incr("a")) == 2
    assert get_store().incr("a") == 3


def test_a_closed_store_opens_again(redis_server: RedisServer, settings: Any, tmp_path: Path) -> None:
    settings.REDIS_INFRA = {"URL": redis_server.url, "KV": {"FILE": str(tmp_path / "kv.sqlite3")}}
    for name in ("redis", "file"):
        get_store(name).set("a", 1)
        close_stores()
        assert get_store(name).get("a") == "1"


PROGRAM = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["redis_infra"], BASE_DIR={base!r})
django.setup()
import sys
assert "redis" not in sys.modules and "httpx" not in sys.modules
from redis_infra.kv import get_store
store = get_store()
print(store.provider, store.set("a", 1), store.get("a"))
"""


@pytest.mark.parametrize(
    ("environ", "provider"),
    [
        ({}, "memory"),
        ({"REDIS_URL": "SERVER"}, "redis"),
        ({"KV_URL": "SERVER"}, "redis"),
        ({"REDIS_PROVIDER": "memory", "REDIS_URL": "SERVER"}, "memory"),
        ({"REDIS_PROVIDER": "file", "REDIS_URL": "SERVER"}, "file"),
        ({"REDIS_ENABLED": "false", "REDIS_URL": "SERVER"}, "memory"),
    ],
    ids=str,
)
def test_the_environment_alone_switches_the_provider_of_a_fresh_process(
    redis_server: RedisServer, tmp_path: Path, environ: dict[str, str], provider: str
) -> None:
    said = {name: redis_server.url if value == "SERVER" else value for name, value in environ.items()}
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "KV_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(base=str(tmp_path))],
        env={**bare, **said},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{provider} True 1\n", done.stderr


# --- memory instead -------------------------------------------------------------------------------------


@pytest.fixture
def fallen(own_redis: Callable[[], RedisServer], settings: Any) -> RedisServer:
    server = own_redis()
    settings.REDIS_INFRA = {"URL": server.url, "STATE_DIR": None, "KV": {"FALLBACK": "memory"}}
    return server


def test_a_site_may_go_on_in_memory(
    fallen: RedisServer, call: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = get_store()
    call(store.set, "a", "redis")
    assert call(store.health).status == "ok"
    fallen.kill()
    assert _until(lambda: call(store.get, "a"), None) is None
    assert call(store.set, "a", "memory") is True
    assert [call(store.batch, [("get", "a"), ("incr", "n")]), call(store.ping)] == [["memory", 1], False]
    health = call(store.health)
    assert (health.status, health.provider) == ("degraded", "redis")
    assert health.problem
    assert caplog.text.count("redis_infra.kv_in_memory") == 1


def test_what_memory_held_is_forgotten_when_the_provider_is_back(fallen: RedisServer) -> None:
    store = get_store()
    store.set("a", "redis")
    fallen.command("SAVE")
    fallen.kill()
    _until(lambda: store.get("a"), None)
    store.set("a", "memory")
    fallen.start()
    assert _until(lambda: store.get("a"), "redis") == "redis"
    assert store.health().status == "ok"
    fallen.kill()
    assert _until(lambda: store.get("a"), None) is None, "and is not there again in the next outage"


def test_what_may_have_been_executed_is_not_answered_from_memory(
    redis_server: RedisServer, settings: Any
) -> None:
    with TcpProxy(redis_server.url) as proxy:
        settings.REDIS_INFRA = {"URL": proxy.url, "STATE_DIR": None, "KV": {"FALLBACK": "memory"}}
        store = get_store()
        store.incr("a")
        proxy.lose_replies(request=b"INCRBY")
        with pytest.raises(StoreIndeterminate):
            store.incr("a")


def test_a_provider_that_is_full_is_not_helped_out_by_memory(fallen: RedisServer) -> None:
    """What memory took would be gone with the next answer of the provider."""
    store = get_store()
    store.set("c", 100)
    fallen.command("CONFIG", "SET", "maxmemory", "1")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            store.incr("c")
        assert store.get("c") == "100"
    assert store.health().status == "degraded"


def test_without_a_word_nothing_is_answered_from_memory(
    own_redis: Callable[[], RedisServer], settings: Any
) -> None:
    server = own_redis()
    settings.REDIS_INFRA = {"URL": server.url, "STATE_DIR": None}
    server.kill()
    with pytest.raises(StoreUnavailable):
        get_store().get("a")


def _until(ask: Callable[[], Any], wanted: Any) -> Any:
    import time

    deadline = time.monotonic() + 15
    while True:
        try:
            answer = ask()
        except StoreIndeterminate:
            answer = ...
        if answer == wanted or time.monotonic() > deadline:
            return answer
        time.sleep(0.02)
