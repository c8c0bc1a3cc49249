"""``manage.py cache_health``: what it says, of this process and of the site's workers, and how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from redis_infra.observability import doctor
from redis_infra.observability.health import check_health
from redis_infra.testing import TcpProxy
from tests.faults.site import MARGIN, Nursery, Site, wait_until

OURS = "redis_infra.cache.RedisCache"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
PASSWORD = "s3cr3t-p4ss"
NOBODY = "redis://127.0.0.1:1/0"
QUICK = {"probe_base": "5ms", "probe_cap": "20ms"}
DEEP = [
    "round trip",
    "write, read, delete",
    "scripts (Lua)",
    "version",
    "role",
    "memory",
    "evictions",
    "persistence",
    "clients",
    "clock",
    "killing connections",
]


@dataclass
class Outcome:
    code: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    def alias(self, name="default"):
        return self.json["aliases"][name]

    def findings(self, name="default"):
        return {each["name"]: each for each in self.alias(name)["findings"]}


@pytest.fixture
def health():
    """Run the command: ``health("--format", "json")``."""

    def run(*args):
        out = StringIO()
        try:
            call_command("cache_health", *args, "--no-color", stdout=out, stderr=out)
        except SystemExit as end:
            return Outcome(int(end.code or 0), out.getvalue())
        return Outcome(0, out.getvalue())

    return run


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    """What the machine that runs the tests says of its own Redis is not what they are about."""
    for name in ("ENABLED", "PROVIDER", "URL", "HOST", "PORT", "DB", "USERNAME", "PASSWORD", "TLS"):
        monkeypatch.delenv(f"REDIS_{name}", raising=False)


@pytest.fixture
def site(settings, tmp_path):
    """Set up CACHES: ``site(url, ON_OUTAGE="raise")``, or whole aliases by name."""

    def make(url=None, *, alias="default", backend=OURS, params=None, **options):
        options = {"STATE_DIR": str(tmp_path / "state"), **options}
        said = {"BACKEND": backend, "OPTIONS": options if backend == OURS else {}, **(params or {})}
        if url is not None:
            said["LOCATION"] = url
        kept = {} if alias == "default" else settings.CACHES
        settings.CACHES = {**kept, alias: said}

    return make


@pytest.fixture
def server(own_redis):
    return own_redis(unix_socket=False)


@pytest.fixture
def well(server, site):
    site(server.url, COMMAND_TIMEOUT="10s")


class TestHealthy:
    def test_it_says_so_and_exits_with_0(self, health, well, server):
        outcome = health()
        assert outcome.code == 0
        line = outcome.text.splitlines()[0]
        version = server.command("INFO", "server").decode()
        assert re.match(
            r"default  \[ok\] pass  up   redis://127\.0\.0\.1:\d+/0   \w+ [\d.]+   ping [\d.]+ ms", line
        )
        assert line.endswith("pool 0/50   breaker closed")
        assert re.search(r"\w+ ([\d.]+)   ping", line)[1] in version
        assert outcome.text.splitlines()[-1] == "overall: [ok] pass"

    def test_it_says_which_rule_chose_the_server_and_why(self, health, well):
        assert "found by: LOCATION (the alias' own LOCATION)" in health().text

    def test_the_environment_is_such_a_rule(self, health, site, server, monkeypatch):
        monkeypatch.setenv("REDIS_URL", server.url)
        site()
        assert "REDIS_URL" in health("--format", "json").alias()["reason"]

    def test_there_is_nothing_to_do(self, health, well):
        assert "what to do" not in health().text

    def test_every_alias_of_ours_is_looked_at_and_no_other(self, health, site, server):
        site(server.url)
        site(server.url, alias="sessions")
        site(alias="local", backend=LOCMEM)
        assert set(health("--format", "json").json["aliases"]) == {"default", "sessions"}

    def test_those_that_are_named_are_looked_at_alone(self, health, site, server):
        site(server.url)
        site(NOBODY, alias="sessions", ON_OUTAGE="raise")
        assert health("default").code == 0
        assert health("sessions").code == 1
        assert set(health("sessions", "default", "--format", "json").json["aliases"]) == {
            "sessions",
            "default",
        }

    def test_a_site_without_ours_is_told_so(self, health, site):
        site(backend=LOCMEM)
        outcome = health()
        assert (outcome.code, outcome.text.splitlines()[0]) == (
            0,
            "No cache in CACHES uses redis_infra.cache.RedisCache.",
        )

    def test_looking_writes_nothing(self, health, well, server):
        health()
        assert server.command("DBSIZE") == 0

    def test_it_ends_in_good_time(self, health, well):
        began = time.monotonic()
        health()
        assert time.monotonic() - began < 0.5 * MARGIN


class TestJson:
    def test_it_is_one_object_with_a_schema(self, health, well):
        outcome = health("--format", "json")
        assert outcome.json["schema"] == "redis_infra.cache_health/1"
        assert outcome.json["status"] == "pass"
        assert abs(outcome.json["time"] - time.time()) < 60

    def test_numbers_are_numbers_and_names_are_stable(self, health, well, tmp_path):
        alias = health("--format", "json").alias()
        assert set(alias) == {
            "alias", "status", "state", "server", "rule", "reason", "version", "ping_ms", "pool", "breaker",
            "on_outage", "fallback", "pending", "cause", "remedy", "state_dir", "workers", "findings",
        }  # fmt: skip
        assert (alias["status"], alias["state"], alias["pending"]) == ("pass", "up", 0)
        assert alias["ping_ms"] > 0
        assert alias["pool"] == {"in_use": 0, "open": 1, "max": 50}
        assert alias["breaker"] == {
            "reach": "closed", "access": "closed", "writes": "closed", "since": None, "cause": "",
        }  # fmt: skip
        assert alias["fallback"] == {"entries": 0, "bytes": 0}
        assert alias["state_dir"] == str(tmp_path / "state")

    def test_a_state_dir_that_is_off_is_said(self, health, site, server):
        site(server.url, STATE_DIR=None)
        assert health("--format", "json").alias()["state_dir"].startswith("memory only: ")

    def test_it_fails_as_the_text_does(self, health, site):
        site(NOBODY, ON_OUTAGE="raise")
        outcome = health("--format", "json")
        assert (outcome.code, outcome.json["status"]) == (1, "fail")


class TestDown:
    @pytest.mark.parametrize(
        ("on_outage", "who"),
        [("local", "each process' own memory"), ("miss", "what is behind the cache")],
    )
    def test_a_site_that_is_served_all_the_same_is_a_warning(self, health, site, on_outage, who):
        site(NOBODY, ON_OUTAGE=on_outage)
        outcome = health()
        assert outcome.code == 0
        assert "[!!] warn  down" in outcome.text
        assert "why: ConnectionError: Error 111 connecting to 127.0.0.1:1" in outcome.text
        assert f"what to do: start the server; the site is served by {who} meanwhile" in outcome.text

    def test_with_strict_it_is_a_failure(self, health, site):
        site(NOBODY)
        assert health("--strict").code == 1

    def test_with_strict_a_healthy_one_is_not(self, health, well):
        assert health("--strict").code == 0

    def test_a_site_that_is_not_served_is_a_failure(self, health, site):
        site(NOBODY, ON_OUTAGE="raise")
        outcome = health()
        assert outcome.code == 1
        assert "raises RedisUnavailable meanwhile" in outcome.text

    def test_the_worst_alias_decides(self, health, site, server):
        site(server.url)
        site(NOBODY, alias="sessions")
        assert health().text.splitlines()[-1] == "overall: [!!] warn"

    def test_one_that_hangs_is_waited_for_no_longer_than_a_command(self, health, site, server):
        site(server.url)
        server.freeze()
        began = time.monotonic()
        outcome = health()
        assert time.monotonic() - began < 0.5 * MARGIN
        assert "why: TimeoutError" in outcome.text or "why: LinkTimeout" in outcome.text

    def test_a_wrong_password_has_to_be_put_right_by_somebody(self, health, site, own_redis):
        server = own_redis(unix_socket=False, config={"requirepass": "another"})
        site(server.url.replace("redis://", f"redis://:{PASSWORD}@"))
        outcome = health()
        assert outcome.code == 1
        assert "[XX] fail  misconfigured" in outcome.text
        assert "correct the URL, user, password or database" in outcome.text

    def test_a_user_who_may_not_ping_is_no_outage(self, health, site, own_redis):
        """Somebody answered, and only that command is denied."""
        server = own_redis(unix_socket=False, config={"user": "app on nopass ~* +get +set"})
        site(server.url.replace("redis://", "redis://app:x@"))
        outcome = health()
        assert outcome.code == 0
        assert "[ok] pass  up" in outcome.text


class TestInMemory:
    def test_in_production_it_is_a_warning(self, health, site):
        site("memory://")
        outcome = health()
        assert outcome.code == 0
        assert "[!!] warn  memory" in outcome.text
        assert "each process has a cache of its own; set REDIS_URL or LOCATION" in outcome.text

    def test_on_a_developers_machine_it_is_what_was_asked_for(self, health, site, settings):
        settings.DEBUG = True
        site()
        assert "[ok] pass  memory" in health("--strict").text


class TestSecrets:
    @pytest.mark.parametrize("form", [(), ("--format", "json"), ("--deep",), ("--deep", "--format", "json")])
    @pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
    def test_no_form_shows_the_password(self, health, site, own_redis, form, is_right):
        server = own_redis(unix_socket=False, config={"requirepass": PASSWORD if is_right else "another"})
        site(server.url.replace("redis://", f"redis://app-user:{PASSWORD}@"))
        if is_right:
            server.command("ACL", "SETUSER", "app-user", "on", f">{PASSWORD}", "~*", "+@all")
        outcome = health(*form)
        assert PASSWORD not in outcome.text
        assert "app-user:***@" in outcome.text

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{PASSWORD}@127.0.0.1:port/0",
            f"redis://:{PASSWORD}#x@127.0.0.1/0",
            f"redis://127.0.0.1/0?password={PASSWORD}&x",
            f"redis://user:{PASSWORD}",
        ],
    )
    def test_not_even_where_the_url_cannot_be_read(self, health, site, url):
        site(url)
        assert PASSWORD not in health().text


BROKEN = {
    "a URL that is none": {"url": "redis://x:y:z"},
    "a scheme that nobody knows": {"url": "rediss+http://127.0.0.1"},
    "an option that there is not": {"url": NOBODY, "COMAND_TIMEOUT": "1s"},
    "a duration that is none": {"url": NOBODY, "COMMAND_TIMEOUT": "soon"},
    "a negative size": {"url": NOBODY, "FALLBACK": {"max_bytes": -1}},
    "a serializer that there is not": {"url": NOBODY, "SERIALIZER": "no.such.Serializer"},
    "a class that there is not": {"backend": "no.such.Backend"},
    "a key function that there is not": {"url": NOBODY, "params": {"KEY_FUNCTION": "no.such.function"}},
    "options that are none": {"url": NOBODY, "params": {"OPTIONS": "COMMAND_TIMEOUT=1s"}},
    "another backend that cannot be made": {
        "backend": "django.core.cache.backends.memcached.PyMemcacheCache"
    },
    "what comes later": {"url": "redis+sentinel://127.0.0.1:26379/main"},
}


class TestBrokenSettings:
    @pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN)
    @pytest.mark.parametrize("form", [(), ("--format", "json"), ("default",)], ids=["text", "json", "named"])
    def test_they_are_said_and_never_a_traceback(self, health, site, said, form):
        site(**said)
        outcome = health(*form)
        assert "Traceback" not in outcome.text
        if "PyMemcacheCache" in said.get("backend", "") and "default" not in form:
            assert outcome.code == 0  # it is none of ours
            return
        assert outcome.code == 1
        assert "fail" in outcome.text
        assert "manage.py check" in outcome.text or "name one of ours" in outcome.text

    def test_the_other_aliases_are_looked_at_all_the_same(self, health, site, server):
        site(server.url)
        site("redis://x:y:z", alias="broken")
        aliases = health("--format", "json").json["aliases"]
        assert (aliases["default"]["state"], aliases["broken"]["state"]) == ("up", "invalid")

    def test_ours_too_is_said(self, health, site, settings):
        settings.REDIS_INFRA = {"COMAND_TIMEOUT": "1s"}
        site(NOBODY)
        outcome = health()
        assert outcome.code == 1
        assert "COMMAND_TIMEOUT" in outcome.text

    def test_an_alias_without_a_backend_is(self, health, settings, site):
        site(NOBODY)
        settings.CACHES = {**settings.CACHES, "half": {}}
        outcome = health()
        assert "Traceback" not in outcome.text
        assert outcome.code == 1


class TestUsage:
    def test_an_alias_that_there_is_not_is_said_with_those_that_there_are(self, health, site):
        site(NOBODY)
        site(NOBODY, alias="sessions")
        with pytest.raises(
            CommandError, match="'session' is not a cache; CACHES has: default, sessions"
        ) as caught:
            health("session")
        assert caught.value.returncode == 2

    def test_one_of_another_kind_is_a_failure(self, health, site):
        site(backend=LOCMEM)
        outcome = health("default")
        assert outcome.code == 1
        assert "LocMemCache is not a cache of redis_infra" in outcome.text

    @pytest.mark.parametrize("wait", ["soon", "-5s", "²", "nan", "inf", ""])
    def test_a_time_that_is_none_is_said(self, health, site, wait):
        site(NOBODY)
        with pytest.raises(CommandError, match="--wait") as caught:
            health(f"--wait={wait}")
        assert caught.value.returncode == 2

    @pytest.mark.parametrize("args", [("--format", "yaml"), ("--shallow",)])
    def test_an_option_that_there_is_not_is_said(self, health, args):
        with pytest.raises(CommandError):
            health(*args)


class TestWaiting:
    @pytest.mark.parametrize("wait", ["0", "0.1", "100ms"])
    def test_for_what_does_not_come_it_waits_that_long(self, health, site, wait):
        site(NOBODY)
        began = time.monotonic()
        assert health("--wait", wait, "--strict").code == 1
        assert time.monotonic() - began < 0.5 * MARGIN

    def test_for_what_is_there_it_does_not(self, health, well):
        began = time.monotonic()
        assert health("--wait", "60").code == 0
        assert time.monotonic() - began < 1 * MARGIN

    def test_it_ends_when_all_is_well(self, health, site, server):
        site(server.url, COMMAND_TIMEOUT="5s")
        server.kill()
        starter = threading.Timer(0.1, server.start)
        starter.start()
        outcome = health("--wait", "60s", "--strict")
        starter.join()
        assert outcome.code == 0
        assert outcome.text.splitlines()[-1] == "overall: [ok] pass"


class TestDeep:
    @pytest.fixture
    def deep(self, health, well):
        return lambda: health("--deep", "--format", "json").findings()

    def test_everything_is_looked_at_once(self, deep):
        assert list(deep()) == DEEP

    def test_what_is_well_is_said_to_be(self, deep, server):
        server.config_set("maxmemory", "1gb")
        server.config_set("maxmemory-policy", "allkeys-lfu")
        assert {name: each["status"] for name, each in deep().items()} == dict.fromkeys(DEEP, "pass")

    def test_it_leaves_nothing_behind(self, deep, server):
        deep()
        assert server.command("DBSIZE") == 0

    def test_the_text_has_a_line_for_each_and_what_to_do(self, health, well):
        outcome = health("--deep")
        assert "[ok] write, read, delete: as written" in outcome.text
        assert "[!!] memory: " in outcome.text
        assert "set maxmemory: without it the kernel ends the server when memory is out" in outcome.text

    def test_what_is_not_well_is_the_aliases_status(self, health, well):
        """A server without a limit of memory is worth a warning, and with --strict a failure."""
        assert health("--deep").code == 0
        assert health("--deep", "--strict").code == 1

    def test_a_server_that_evicts_nothing_will_be_full(self, deep, server):
        server.config_set("maxmemory", "1gb")
        server.config_set("maxmemory-policy", "noeviction")
        finding = deep()["memory"]
        assert finding["status"] == "warn"
        assert "allkeys-lfu" in finding["remedy"]

    def test_one_that_is_nearly_full_is_said_to_be(self, deep, server):
        server.config_set("maxmemory-policy", "allkeys-lfu")
        used = int(re.search(rb"used_memory:(\d+)", server.command("INFO", "memory"))[1])
        server.config_set("maxmemory", int(used * 1.05))
        assert deep()["memory"]["remedy"] == "nearly full: raise maxmemory or shorten TTLs"

    def test_one_that_is_full_refuses_the_key(self, deep, server):
        server.config_set("maxmemory", 1)
        finding = deep()["write, read, delete"]
        assert finding["status"] == "fail"
        assert "OutOfMemory" in finding["value"]

    def test_a_replica_is_the_wrong_server(self, deep, server, own_redis):
        other = own_redis(unix_socket=False)
        server.command("REPLICAOF", "127.0.0.1", other.port)
        findings = deep()
        assert findings["role"]["status"] == "fail"
        assert "point the URL at the primary" in findings["role"]["remedy"]
        assert findings["write, read, delete"]["status"] == "fail"

    def test_snapshots_that_fail_will_stop_writes(self, deep, server):
        Path(server.directory, "dump.rdb").mkdir()  # in the place where the snapshot goes
        server.command("BGSAVE")
        wait_until(lambda: b"rdb_last_bgsave_status:err" in server.command("INFO", "persistence"), 10)
        finding = deep()["persistence"]
        assert finding["status"] == "fail"
        assert "MISCONF" in finding["remedy"]

    def test_clients_near_their_limit_are_said(self, deep, server):
        from redis_infra.connection.plainsocket import PlainConnection

        server.config_set("maxclients", 12)
        with ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(PlainConnection(("127.0.0.1", server.port)))
            finding = deep()["clients"]
        assert finding["status"] == "warn"
        assert "MAX_CONNECTIONS" in finding["remedy"]

    def test_clients_that_were_rejected_are_said_too(self, deep, server):
        from redis_infra.connection.plainsocket import PlainConnection, ServerError

        server.config_set("maxclients", 1)
        with PlainConnection(("127.0.0.1", server.port)) as first:
            first.call("PING")
            for _ in range(3):
                try:
                    server.command("PING")
                except (ServerError, OSError):
                    break
            first.call("CONFIG", "SET", "maxclients", 100)
        finding = deep()["evictions"]
        assert finding["status"] == "warn"
        assert "raise maxclients" in finding["remedy"]

    def test_a_clock_that_differs_is_said(self, deep, monkeypatch):
        class Ahead:
            perf_counter = staticmethod(time.perf_counter)
            time = staticmethod(lambda: time.time() + 100)

        monkeypatch.setattr(doctor, "time", Ahead)
        finding = deep()["clock"]
        assert finding["status"] == "warn"
        assert finding["value"].startswith("-100.")
        assert finding["remedy"] == "run NTP on both"

    def test_a_server_that_is_far_is_said_to_be(self, health, site, server, monkeypatch):
        monkeypatch.setattr(doctor, "PINGS", 3)
        with TcpProxy(server.url) as proxy:
            site(proxy.url, COMMAND_TIMEOUT="5s", CONNECT_TIMEOUT="5s")
            proxy.delay(0.026)
            finding = health("--deep", "--format", "json").findings()["round trip"]
        assert finding["status"] == "warn"
        assert "far or busy" in finding["remedy"]

    def test_one_that_goes_away_meanwhile_is_reported_and_not_raised(self, health, site, server):
        with TcpProxy(server.url) as proxy:
            site(proxy.url, COMMAND_TIMEOUT="5s")
            proxy.half_reply(3, request=b"EVAL")
            findings = health("--deep", "--format", "json").findings()
        assert findings["scripts (Lua)"]["status"] == "fail"
        assert list(findings) == DEEP

    def test_what_an_acl_forbids_is_no_permission_and_the_rest_is_looked_at(self, health, site, own_redis):
        server = own_redis(unix_socket=False, config={"user": "app on nopass ~* +get +set +unlink +ping"})
        site(server.url.replace("redis://", "redis://app:x@"))
        outcome = health("--deep", "--format", "json")
        findings = outcome.findings()
        assert outcome.code == 0
        assert list(findings) == DEEP
        denied = {name for name, each in findings.items() if each["value"].startswith("no permission: ")}
        assert denied == set(DEEP) - {"round trip", "write, read, delete"}
        # Of scripts the cache has need itself: its counters do not work without them.
        assert {name for name, each in findings.items() if each["status"] != "pass"} == {"scripts (Lua)"}
        assert "counters need them" in findings["scripts (Lua)"]["remedy"]

    def test_a_user_who_may_do_nothing_is_reported_on(self, health, site, own_redis):
        server = own_redis(unix_socket=False, config={"user": "app on nopass -@all"})
        site(server.url.replace("redis://", "redis://app:x@"))
        outcome = health("--deep")
        assert outcome.code == 0
        assert outcome.text.count("no permission: ") == len(DEEP)


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


class TestWorkers:
    """Processes of the site, which this one knows of by what they leave in STATE_DIR."""

    @pytest.fixture
    def workers(self, nursery, server, site, tmp_path):
        """Start processes that use the same server and directory."""
        site(server.url, COMMAND_TIMEOUT="5s")
        made = Site(nursery, server.url, str(tmp_path / "state"), BREAKER=QUICK)
        yield made.process
        made.close()

    @pytest.fixture
    def degraded(self, workers, server):
        """A worker that has lost Redis, was told to forget a key, and does not get to run any more."""

        def seen():
            return check_health().aliases[0].workers

        worker = workers()
        worker.set("k", 1)
        server.kill()
        worker.delete("k")
        wait_until(lambda: [each for each in seen() if each.pending and each.fallback_ops], 10)
        os.kill(worker.pid, signal.SIGSTOP)
        server.start()
        yield worker
        if worker.alive:
            os.kill(worker.pid, signal.SIGCONT)

    def test_one_that_is_degraded_is_seen_though_redis_is_well(self, health, degraded):
        outcome = health("--format", "json")
        (seen,) = outcome.alias()["workers"]
        assert (outcome.code, outcome.alias()["state"], outcome.alias()["status"]) == (0, "up", "warn")
        assert (seen["pid"], seen["alive"], seen["state"]) == (degraded.pid, True, "open")
        assert seen["pending"] == 1
        assert seen["fallback_ops"] >= 1
        assert 0 <= time.time() - seen["since"] < 60
        assert seen["cause"]

    def test_the_text_says_who_since_when_why_and_what_waits(self, health, degraded):
        text = health().text
        assert re.search(
            rf"worker {degraded.pid} \(.*worker.*\): open for \S+: .*1 keys wait to be drained, \d+ op", text
        )

    def test_it_fails_only_with_strict(self, health, degraded):
        assert (health().code, health("--strict").code) == (0, 1)

    def test_one_that_died_is_said_to_have_died(self, health, degraded):
        degraded.kill()
        outcome = health()
        assert f"worker {degraded.pid}" in outcome.text
        assert "died while open, 1 keys are left to drain by others" in outcome.text
        assert outcome.text.splitlines()[-1] == "overall: [ok] pass"

    def test_one_that_died_is_not_mentioned_when_others_have_drained_what_it_left(
        self, health, degraded, workers
    ):
        degraded.kill()
        worker = workers()
        worker.get("k")
        wait_until(worker.is_well, 10)
        wait_until(lambda: health("--format", "json").alias()["workers"] == [], 10)

    def test_one_that_has_recovered_is_not_mentioned(self, health, workers, server):
        worker = workers()
        worker.get("k")
        server.kill()
        worker.get("k")
        server.start()
        wait_until(worker.is_well, 10)
        wait_until(lambda: health("--format", "json").alias()["workers"] == [], 10)

    def test_workers_of_another_database_are_not(self, health, degraded, server, site):
        site(server.url.replace("/0", "/1"))
        assert health("--format", "json").alias()["workers"] == []


CACHE_HEALTH = [sys.executable, "-m", "django", "cache_health", "--settings", "tests.settings"]


class TestProcess:
    """As an operator starts it."""

    def run(self, *args, **environ):
        return subprocess.run(  # noqa: PLW1510 - how it exits is what is tested
            [*CACHE_HEALTH, *args],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **environ},
        )

    def test_healthy_is_0_and_prints_no_more_than_was_asked(self, server):
        done = self.run("--format", "json", REDIS_URL=server.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["status"] == "pass"

    def test_failed_is_1_without_a_traceback(self):
        done = self.run("--strict", REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:1/0")
        assert done.returncode == 1
        assert "down" in done.stdout
        assert "Traceback" not in done.stderr + done.stdout
        assert PASSWORD not in done.stderr + done.stdout

    def test_who_has_read_enough_may_close_the_pipe(self, server):
        """As ``cache_health | grep -q pass`` does, and head."""
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as closed:
            done = subprocess.run(  # noqa: PLW1510
                [*CACHE_HEALTH, "--deep"],
                stdout=closed,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                env={**os.environ, "REDIS_URL": server.url},
            )
        assert (done.returncode, done.stderr) == (0, "")

    def test_ctrl_c_ends_a_wait_without_a_traceback(self):
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            nobody.settimeout(30)
            process = subprocess.Popen(
                [*CACHE_HEALTH, "--wait", "60"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "REDIS_URL": f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"},
            )
            with process:
                for _ in range(2):  # it has looked once, and so it waits
                    nobody.accept()[0].close()
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in out + err

    def test_usage_is_2(self):
        done = self.run("nonsense")
        assert done.returncode == 2
        assert done.stderr.strip() == "CommandError: 'nonsense' is not a cache; CACHES has: default"
