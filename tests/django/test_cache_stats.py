"""``manage.py cache_stats``: what it says of whose counts, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command

from redis_infra.observability import flushing
from redis_infra.querycache import cached, decorators, tallies
from redis_infra.querycache.space import forget_spaces

OURS = "redis_infra.cache.RedisCache"
PASSWORD = "s3cr3t-p4ss"


@dataclass
class Outcome:
    code: int
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def lines(self):
        return self.text.splitlines()

    def row(self, name):
        """The cells of the line that begins so; thousands of a number are apart by a space."""
        [found] = [line for line in self.lines if line.startswith(f"{name} ")]
        return found.split()


@pytest.fixture
def run():
    """Run the command: ``run("--by", "alias")``."""

    def call(*args):
        out = StringIO()
        try:
            call_command("cache_stats", *args, "--no-color", stdout=out, stderr=out)
        except SystemExit as end:
            return Outcome(int(end.code or 0), out.getvalue())
        return Outcome(0, out.getvalue())

    return call


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("ENABLED", "PROVIDER", "URL", "HOST", "PORT"):
        monkeypatch.delenv(f"REDIS_{name}", raising=False)
    monkeypatch.setattr(tallies, "tallies", tallies.Tallies())
    monkeypatch.setattr(decorators, "tallies", tallies.tallies)
    yield
    flushing.end()
    forget_spaces()


@pytest.fixture
def site(settings, tmp_path):
    def make(url=None, **stats):
        said = {"BACKEND": OURS, "OPTIONS": {"STATE_DIR": str(tmp_path / "state"), "COMMAND_TIMEOUT": "10s"}}
        settings.CACHES = {"default": said if url is None else {**said, "LOCATION": url}}
        settings.REDIS_INFRA = {"STATS": {"FLUSH": "1h", **stats}}
        flushing.begin()

    return make


@pytest.fixture
def used(site, redis_server):
    """A site whose functions were called: 3 hits and 2 misses of users, 1 miss of a chat."""

    @cached("user:{user_id}", ttl="user")
    def get_user(user_id):
        return user_id

    @cached("chat:{chat_id}", ttl="chat")
    def get_chat(chat_id):
        return chat_id

    site(redis_server.url)
    for user in (1, 1, 1, 1, 2):
        get_user(user)
    get_chat(1)
    assert flushing.flush()


# --- Redis is up


def test_a_line_for_each_type_and_the_total(used, run):
    found = run()
    assert found.code == 0
    assert found.lines[0].startswith("all processes, since ")
    assert found.row("type")[1:] == [
        *("hits", "misses", "hit%", "stale", "waits", "errors", "loads", "mean", "p95", "keys", "memory"),
    ]
    assert found.row("user")[1:8] == ["3", "2", "60.0", "0", "0", "0", "2"]
    assert found.row("chat")[1:4] == ["0", "1", "0.0"]
    assert found.row("total")[1:4] == ["3", "3", "50.0"]


def test_columns_are_aligned(used, run):
    table = [
        line for line in run("--by", "function").lines if line.startswith(("function", "tests", "total"))
    ]
    ends = {line.index(cell) + len(cell) for line in table for cell in [line.split()[1]]}
    assert len(ends) == 1


def test_keys_and_memory_are_those_of_redis_now(used, run):
    user = run().row("user")
    assert user[10] == "2"
    assert user[12] in ("B", "KB")
    assert "memory of the query cache: " in run().text


@pytest.mark.parametrize(
    ("by", "names"), [("type", {"user", "chat", "(index)"}), ("alias", {"default"}), ("function", 2)]
)
def test_by_says_what_lines_are_of(used, run, by, names):
    lines = {line["name"] for line in run("--by", by, "--format", "json").json["lines"]}
    assert lines == names if isinstance(names, set) else len(lines) == names


def test_top_leaves_lines_out_and_says_how_many(used, run):
    found = run("--by", "function", "--top", "1")
    assert "1 more; the total is of all" in found.lines
    assert found.row("total")[1:3] == ["3", "3"]


def test_top_0_is_the_total_alone(used, run):
    found = run("--by", "function", "--top", "0")
    assert "2 more; the total is of all" in found.lines
    assert found.row("total")[1:3] == ["3", "3"]
    assert "nothing was counted" not in found.text


def test_who_asks_for_more_than_is_kept_is_told(site, redis_server, run):
    site(redis_server.url, KEEP="2h")
    found = run("--since", "30d")
    assert found.lines[1] == "  no more is kept: REDIS_INFRA['STATS'] says KEEP: 2h, and 30d was asked"
    said = run("--since", "30d", "--format", "json").json
    assert 2 * 3600 <= said["time"] - said["since"] <= 3 * 3600
    for less in ("5min", "59min", "1h", "61min", "2h"):
        assert "no more is kept" not in run("--since", less).text


def test_json_has_all_that_text_has(used, run):
    said = run("--format", "json").json
    assert said["schema"] == "redis_infra.cache_stats/1"
    assert (said["status"], said["source"], said["by"]) == ("pass", "all", "type")
    [user] = [line for line in said["lines"] if line["name"] == "user"]
    assert (user["hits"], user["misses"], user["hit_rate"], user["computations"]) == (3, 2, 0.6, 2)
    assert user["keys"] == 2
    assert user["mean"] == pytest.approx(user["seconds"] / 2)
    assert said["total"]["hits"] == 3
    assert said["memory"]["is_complete"] is True


def test_operations_of_the_cache_are_told(used, run):
    cache.get("nothing")
    flushing.flush()
    assert "0 hits, 1 misses, 0 operations served without Redis" in run().text


def test_where_nothing_was_counted_it_says_so(site, redis_server, run):
    site(redis_server.url)
    found = run()
    assert found.code == 0
    assert found.lines[1:] == ["nothing was counted: no function with @cached or @cached_many was called"]
    assert run("--format", "json").json["lines"] == []


def test_that_nothing_is_added_is_said(site, redis_server, run):
    site(redis_server.url, ENABLED=False)
    assert "ENABLED: False, so nothing is added" in run().text


# --- reset


def test_reset_forgets_all(used, run):
    assert run("--reset", "--yes").text == "forgot the counts of 2 minutes and hours\n"
    assert run("--format", "json").json["total"]["hits"] == 0


def test_reset_in_json_says_how_much(used, run):
    assert run("--reset", "--yes", "--format", "json").json == {
        "schema": "redis_infra.cache_stats/1",
        "reset": 2,
    }


def test_reset_without_a_terminal_to_ask_on_wants_yes(used, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", StringIO(""))
    with pytest.raises(CommandError, match="write --yes") as raised:
        run("--reset")
    assert raised.value.returncode == 2
    assert run("--format", "json").json["total"]["hits"] == 3


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 3), ("\n", 3)])
def test_reset_asks_on_a_terminal(used, run, monkeypatch, answer, left):
    class Terminal(StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run("--reset").code == 0
    assert run("--format", "json").json["total"]["hits"] == left


# --- Redis is not there


def test_while_redis_is_away_this_process_counts_are_shown(site, redis_down, run):
    @cached("user:{user_id}", ttl="user")
    def get_user(user_id):
        return user_id

    site(redis_down.url)
    get_user(1)
    get_user(1)
    found = run()
    assert found.code == 1
    assert found.lines[0] == "this process alone, since it started"
    assert "cluster totals unavailable: " in found.lines[1]
    assert found.row("user")[1:3] == ["1", "1"]
    assert "Traceback" not in found.text


def test_while_redis_is_away_json_says_why(site, redis_down, run):
    site(redis_down.url)
    found = run("--format", "json")
    assert found.code == 1
    assert (found.json["status"], found.json["source"]) == ("fail", "process")
    assert found.json["cause"]


def test_an_alias_whose_server_is_away_does_not_hide_the_rest(used, settings, redis_down, run):
    options = settings.CACHES["default"]["OPTIONS"]
    sessions = {"BACKEND": OURS, "LOCATION": redis_down.url, "OPTIONS": options}
    settings.CACHES = {**settings.CACHES, "sessions": sessions}
    found = run()
    assert found.code == 0
    assert found.row("user")[1:3] == ["3", "2"]
    assert found.row("user")[10] == "2"
    assert "memory of sessions: not known: " in found.text
    assert list(run("--format", "json").json["memory"]["missing"]) == ["sessions"]


def test_reset_changes_nothing_while_redis_is_away(site, redis_down, run):
    site(redis_down.url)
    with pytest.raises(CommandError, match=r"Redis unavailable \(.+\); nothing changed") as raised:
        run("--reset", "--yes")
    assert raised.value.returncode == 1


def test_without_any_redis_each_process_counts_for_itself(site, run):
    site()
    found = run()
    assert found.code == 0
    assert "no Redis is configured" in found.text


def test_no_password_is_printed(site, run):
    site(f"redis://user:{PASSWORD}@127.0.0.1:1/0")
    assert PASSWORD not in run().text + run("--format", "json").text


# --- usage


@pytest.mark.parametrize(
    "args",
    [
        *(("--since", "soon"), ("--since", "0"), ("--since", "1000000d"), ("--since", "36500d")),
        *(("--top", "-1"), ("--by", "colour"), ("--format", "yaml")),
    ],
)
def test_what_makes_no_sense_is_usage(site, redis_server, run, args):
    site(redis_server.url)
    with pytest.raises(CommandError) as raised:
        run(*args)
    assert raised.value.returncode == (2 if args[0] in ("--since", "--top") else 1)


@pytest.mark.parametrize("args", [("--since", "5min"), ("--since", "1h"), ("--top", "3"), ("--by", "type")])
def test_what_chooses_does_not_go_with_reset(used, run, args):
    with pytest.raises(CommandError, match="--reset forgets all that was counted") as raised:
        run("--reset", "--yes", *args)
    assert raised.value.returncode == 2
    assert run("--format", "json").json["total"]["hits"] == 3


def test_wrong_settings_are_said(settings, run):
    settings.REDIS_INFRA = {"STATS": {"ALIAS": "nowhere"}}
    with pytest.raises(CommandError, match=r"nowhere.*check --tag redis_infra"):
        run()


def test_who_has_read_enough_may_close_the_pipe(redis_server):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "django", "cache_stats", "--settings", "tests.settings"],
            check=False,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "REDIS_URL": redis_server.url},
        )
    assert (done.returncode, done.stderr) == (0, "")
