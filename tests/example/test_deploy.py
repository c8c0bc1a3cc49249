"""What Relay ships for deployment: variables are read, the server starts, its user may do what a site does.

The files are read as they are. Compose itself is not run: that needs a daemon.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from redis_infra.connection.plainsocket import PlainConnection
from redis_infra.exceptions import StoreAuthError
from redis_infra.testing import RedisServer, ServerError
from tests.docs.pages import page
from tests.example.conftest import ROOT

DEPLOY = ROOT / "example_project/deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
EXAMPLES = [".env.local.example", ".env.prod.example"]
PASSWORD = "not-in-any-file"
OPERATOR = f"user operator on >{PASSWORD} ~* &* +@all\n"
"""Who looks at what was denied; no part of what is shipped."""
SECRET = re.compile(r"KEY$|PASSWORD|TOKEN")
PATIENCE = 20.0


# --- the environment


def variables(name: str, *, commented: bool = False) -> dict[str, str]:
    """Return what an example sets, and with ``commented`` what it proposes too."""
    pattern = r"^(?:# )?([A-Z][A-Z_]+)=(.*)$" if commented else r"^([A-Z][A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, (DEPLOY / name).read_text(), re.MULTILINE))


def read_by_the_site() -> set[str]:
    from redis_infra.conf import STORE_VARIABLES

    settings = (ROOT / "example_project/settings.py").read_text()
    return {*re.findall(r'"(RELAY_\w+)"', settings), *STORE_VARIABLES, "REDIS_PREFIX"}


def test_the_example_for_production_names_every_variable_that_is_read() -> None:
    assert {*variables(".env.prod.example", commented=True)} == read_by_the_site()


def test_the_example_for_development_names_none_that_is_not_read() -> None:
    assert {*variables(".env.local.example", commented=True)} <= read_by_the_site()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_holds_no_secret_and_nothing_that_shells_would_change(name: str) -> None:
    said = variables(name, commented=True)
    assert not any(value for variable, value in said.items() if SECRET.search(variable))
    assert not re.search(r"[\s'\"$`\\]", "".join(said.values()))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_not_ignored(name: str) -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", DEPLOY / name], cwd=ROOT, check=False)
    assert ignored.returncode != 0


def test_the_example_for_production_leads_to_the_server_of_compose() -> None:
    from redis_infra.conf import find_store

    store = find_store(environ={**variables(".env.prod.example"), "REDIS_PASSWORD": "p/w"})
    assert (store.provider, store.url) == ("redis", "redis://relay:p%2Fw@redis:6379/0")


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("REDIS_URL", "redis"),
        ("REDIS_HOST", "redis"),
        ("KV_URL", "file"),
        ("UPSTASH_REDIS_REST_URL", "upstash"),
    ],
)
def test_each_way_of_the_example_for_development_is_one(name: str, provider: str) -> None:
    from redis_infra.conf import find_store

    said = variables(".env.local.example", commented=True)
    environ = {name: said[name], "UPSTASH_REDIS_REST_TOKEN": "t"}
    assert find_store(environ=environ).provider == provider


# --- compose.yaml


def test_the_site_waits_for_a_healthy_server_and_not_for_ever() -> None:
    services = COMPOSE["services"]
    assert services["web"]["depends_on"]["redis"] == {"condition": "service_healthy", "restart": False}
    assert services["redis"]["healthcheck"]["test"][-1] == "ping"
    assert "ports" not in services["redis"]


def test_records_outlive_the_container() -> None:
    mounted = COMPOSE["services"]["redis"]["volumes"]
    named = [each.partition(":")[0] for each in mounted if each.endswith(":/data")]
    assert named
    assert {*named} <= {*COMPOSE["volumes"]}


def test_the_image_has_no_env_file_in_it() -> None:
    copied = re.findall(
        r"^COPY (.+) \S+$", COMPOSE["services"]["web"]["build"]["dockerfile_inline"], re.MULTILINE
    )
    assert copied
    sources = [source for each in copied for source in each.split()]
    assert not {"example_project", "example_project/deploy", "."} & {*sources}


def test_nobody_gets_a_server_without_a_password() -> None:
    assert "${REDIS_PASSWORD:?" in COMPOSE["configs"]["users.acl"]["content"]


# --- redis.conf


def redis_conf() -> dict[str, str]:
    lines = (DEPLOY / "redis.conf").read_text().splitlines()
    said = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _, _ in said}) == len(said)
    return {name: value for name, _, value in said}


def users() -> str:
    """Return the server's users file as Compose would make it."""
    content: str = COMPOSE["configs"]["users.acl"]["content"]
    return re.sub(r"\$\{REDIS_PASSWORD:\?[^}]*\}", PASSWORD, content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with both files, as in Compose, and somebody who may look."""
    acl = tmp_path / "users.acl"
    acl.write_text("\n".join([*filter(None, users().splitlines()), OPERATOR]))
    with RedisServer(config={**redis_conf(), "aclfile": str(acl)}, unix_socket=False) as running:
        wait_until_loaded(running)
        yield running


def wait_until_loaded(server: RedisServer) -> None:
    """Return when it serves: RedisServer itself is told NOAUTH, loaded or not."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            as_user(server, "operator", "DBSIZE")
            return
        except ServerError as error:
            if not str(error).startswith("LOADING") or time.monotonic() > deadline:
                raise


def as_user(server: RedisServer, name: str, *command: str, password: str = PASSWORD) -> Any:
    with PlainConnection(("127.0.0.1", server.port or 0), timeout=5.0) as connection:
        connection.call("AUTH", name, password)
        return connection.call(*command)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maxmemory", str(256 * 2**20)),
        ("maxmemory-policy", "volatile-lru"),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
    ],
)
def test_the_server_takes_its_configuration(server: RedisServer, name: str, value: str) -> None:
    assert as_user(server, "operator", "CONFIG", "GET", name) == [name.encode(), value.encode()]


def test_a_crash_loses_no_record(server: RedisServer) -> None:
    as_user(server, "relay", "SET", "relay:kv:settings", "dark")
    server.kill()
    server.start()
    wait_until_loaded(server)
    assert as_user(server, "relay", "GET", "relay:kv:settings") == b"dark"


# --- who may do what


@pytest.fixture
def site(server: RedisServer, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RedisServer:
    """This process, as Relay's user of that server."""
    for name in read_by_the_site():
        monkeypatch.delenv(name, raising=False)
    location = f"redis://relay:{PASSWORD}@127.0.0.1:{server.port}/0"
    backend = {"BACKEND": "redis_infra.cache.RedisCache", "KEY_PREFIX": "relay", "LOCATION": location}
    settings.CACHES = {"default": backend}
    state = {"STATE_DIR": str(tmp_path / "state"), "BREAKER": {"probe_base": "20ms", "probe_cap": "50ms"}}
    settings.REDIS_INFRA = {"KEY_PREFIX": "relay", **state}
    return server


def denied(server: RedisServer) -> list[dict[str, str]]:
    """Return what the server has refused to anybody, its own words."""
    entries = as_user(server, "operator", "ACL", "LOG")
    texts = [[str(item, "utf-8") if isinstance(item, bytes) else item for item in each] for each in entries]
    return [dict(zip(each[::2], each[1::2], strict=True)) for each in texts]


def use_the_store() -> None:
    from redis_infra.kv import get_store

    store = get_store()
    assert store.set("k", "v", ex=60, nx=True)
    store.mset({"a": 1, "b": b"\xff"})
    assert store.get("k") == "v"
    assert store.get_bytes("b") == b"\xff"
    assert store.mget("a", "no") == ["1", None]
    assert [store.incr("n", op_id="one") for _ in range(2)] == [1, 1]
    assert store.incr("n", 4) == 5
    assert store.exists("n", "k") == 2
    assert store.expire("n", 60)
    assert (store.ttl("n"), store.pttl("n") > 0) == (60, True)
    assert {*store.scan()} == {"k", "a", "b", "n"}
    with store.pipeline() as pipeline:
        pipeline.get("k")
    with store.transaction() as transaction:
        transaction.incr("n")
    assert store.delete("k", "a", "b", "n") == 4
    assert store.health().status == "ok"


def use_the_cache() -> None:
    from django.core.cache import cache

    cached: Any = cache
    cached.set_many({"a": 1, "b": "text"}, 60)
    assert cached.get_many(["a", "b"]) == {"a": 1, "b": "text"}
    assert cached.incr("a", 2) == 3
    assert cached.incr_or_create("new", 1, 60) == 1
    assert cached.add("c", 1)
    assert cached.touch("c", 90)
    assert cached.get_or_set("d", lambda: 4) == 4
    assert cached.ttl("c") == 90
    cached.persist("c")
    assert cached.delete_pattern("*") == 5
    with cached.lock("lock", timeout=5):
        pass
    cached.hset("hash", "field", 1)
    cached.sadd("set", 1)
    cached.zadd("sorted", {"member": 1})
    cached.clear()
    assert not cached.is_degraded


def use_the_query_cache() -> None:
    from redis_infra.querycache import cached, invalidate

    @cached("thing:{pk}", ttl="1h", tags=["things"], stale="1h")
    def thing(pk: int) -> int:
        return pk

    assert [thing(7), thing(7)] == [7, 7]
    assert thing.refresh(7) == 7
    assert invalidate("thing:*") == 1
    assert thing(8) == 8
    assert invalidate(tag="things") == 1


def use_limits() -> None:
    from redis_infra.throttling.limiter import default_limiter

    limiter = default_limiter()
    assert limiter.hit("upload", "user:7")
    assert limiter.peek("upload", "user:7")
    limiter.refund("upload", "user:7")
    limiter.reset("upload", "user:7")


def use_the_commands() -> None:
    from django.core.management import call_command

    call_command("cache_health", deep=True)
    call_command("cache_stats")
    call_command("throttle_status")
    call_command("cache_clear", all=True, yes=True)


USES = [use_the_store, use_the_cache, use_the_query_cache, use_limits, use_the_commands]


@pytest.mark.parametrize("use", USES)
def test_the_sites_user_may_do_all_that_the_site_does(site: RedisServer, use: Callable[[], None]) -> None:
    use()
    assert denied(site) == []


def test_the_store_alone_needs_what_the_page_says(site: RedisServer) -> None:
    text = page("how-to/deploy-redis.md").text
    (least,) = re.findall(r"store alone needs less: `([^`]+)`", text)
    as_user(site, "operator", "ACL", "SETUSER", "relay", "-@all", *least.split())
    use_the_store()
    assert denied(site) == []


def test_the_sites_user_may_recover(site: RedisServer) -> None:
    from django.core.cache import cache

    cached: Any = cache
    cached.set("k", 1)
    site.freeze()
    while not cached.is_degraded:
        cached.delete("k")
    site.thaw()
    deadline = time.monotonic() + PATIENCE
    while cached.is_degraded:
        assert time.monotonic() < deadline
    assert cached.get("k") is None
    assert denied(site) == []


DANGEROUS = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("ACL", "LIST"),
    ("SAVE",),
    ("SHUTDOWN",),
    ("BGREWRITEAOF",),
    ("MONITOR",),
    ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "FLUSH"),
    ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"),
    ("CLIENT", "LIST"),
    ("SWAPDB", "0", "1"),
    ("GET", "of-another-site"),
]


@pytest.mark.parametrize("command", DANGEROUS, ids=" ".join)
def test_the_sites_user_may_do_nothing_dangerous(server: RedisServer, command: tuple[str, ...]) -> None:
    with pytest.raises(ServerError, match="NOPERM"):
        as_user(server, "relay", *command)


def test_a_script_may_no_more_than_its_user(server: RedisServer) -> None:
    with pytest.raises(ServerError, match=r"(?i)acl|permission"):
        as_user(server, "relay", "EVAL", "return redis.call('FLUSHALL')", "0")


def test_who_checks_health_may_ping_and_nothing_else(server: RedisServer) -> None:
    assert as_user(server, "health", "PING", password="health") == "PONG"
    with pytest.raises(ServerError, match="NOPERM"):
        as_user(server, "health", "GET", "relay:kv:settings", password="health")


@pytest.mark.parametrize("alive", [True, False], ids=["up", "down"])
def test_the_healthcheck_tells_a_server_that_is_up_from_one_that_is_not(
    server: RedisServer, alive: bool
) -> None:
    client = shutil.which("valkey-cli") or shutil.which("redis-cli")
    if client is None:
        pytest.skip("neither valkey-cli nor redis-cli is on PATH")
    _, _, *arguments = COMPOSE["services"]["redis"]["healthcheck"]["test"]
    if not alive:
        server.kill()
    done = subprocess.run([client, "-p", str(server.port), *arguments], capture_output=True, check=False)
    assert (done.returncode == 0) is alive


def test_nobody_gets_in_without_a_name(server: RedisServer) -> None:
    with pytest.raises(ServerError, match="NOAUTH"):
        server.command("PING")


def test_a_denied_command_has_a_name_in_the_store(site: RedisServer) -> None:
    from redis_infra.kv import get_store

    as_user(site, "operator", "ACL", "SETUSER", "relay", "-get")
    with pytest.raises(StoreAuthError):
        get_store().get("k")


def test_the_page_shows_the_users_that_are_shipped() -> None:
    shown = {block.source.strip() for block in page("how-to/deploy-redis.md").blocks("text")}
    assert users().replace(PASSWORD, "PASSWORD").strip() in {_folded(each) for each in shown}


def _folded(text: str) -> str:
    """Return lines as the file has them: one for a user."""
    return "\n".join(" ".join(each.split()) for each in text.split("\n\n"))
