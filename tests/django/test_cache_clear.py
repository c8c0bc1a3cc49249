"""``cache_clear``: what each selector removes, what it leaves, and what it says; with and without Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.cache import cache, caches
from django.core.management import CommandError, call_command

from redis_infra.management.commands import cache_clear
from redis_infra.querycache import cached, cached_many, clearing, decorators
from redis_infra.querycache.clearing import patterns_of_type
from redis_infra.querycache.tallies import Tallies
from tests.docs.pages import ROOT

DURABLE = {"appendonly": "yes", "appendfsync": "always"}


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _own_functions(monkeypatch):
    """Keep the test's functions to itself, and those of other tests away."""
    own, counted = {}, Tallies()
    for module in (decorators, clearing):
        monkeypatch.setattr(module, "functions", own)
        monkeypatch.setattr(module, "tallies", counted)


@pytest.fixture(params=["redis", "memory"])
def site(request, settings, tmp_path):
    url = "memory://"
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.flush()
        url = server.url
    use_cache(settings, url, tmp_path)
    return request.param


@pytest.fixture
def server(redis_server, settings, tmp_path):
    use_cache(settings, redis_server.url, tmp_path)
    return redis_server


def use_cache(settings, url, tmp_path, **options):
    one = {
        "BACKEND": "redis_infra.cache.RedisCache",
        "LOCATION": url,
        "OPTIONS": {"STATE_DIR": str(tmp_path / "state"), "COMMAND_TIMEOUT": "5s", **options},
    }
    settings.CACHES = {
        "default": {**one, "KEY_PREFIX": "site"},
        "other": {**one, "LOCATION": url.replace("memory://", "memory://other"), "KEY_PREFIX": "other"},
    }


def run(*args):
    out, err = StringIO(), StringIO()
    try:
        call_command("cache_clear", *args, "--no-color", stdout=out, stderr=err)
    except SystemExit as end:
        return Said(int(end.code or 0), out.getvalue(), err.getvalue())
    return Said(0, out.getvalue(), err.getvalue())


def removed(*args):
    said = run(*args, "--format", "json")
    assert said.code == 0
    return said.json["removed"]


class Shop:
    """Cached functions with a few entries each."""

    def __init__(self):
        @cached("user:{pk}", ttl="user")
        def user(pk):
            return pk

        @cached("chat:{room}:messages:{page}", ttl="messages", tags=["room:{room}"])
        def chat(room, page):
            return page

        @cached("user:{pk}:name", ttl=60)
        def plain(pk):
            return pk

        self.user, self.chat, self.plain = user, chat, plain
        for number in range(3):
            self.user(number)
            self.chat(number, 1)
            self.plain(number)
        cache.set("user:1", "of the site itself")

    def left(self):
        return {
            "user": sum(self.user.get(number) is not None for number in range(3)),
            "chat": sum(self.chat.get(number, 1) is not None for number in range(3)),
            "plain": sum(self.plain.get(number) is not None for number in range(3)),
            "site": int(cache.get("user:1") is not None),
        }


EVERYTHING = {"user": 3, "chat": 3, "plain": 3, "site": 1}

# --- selectors ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("args", "count", "gone"),
    [
        (["--type", "messages"], 3, {"chat": 0}),
        (["--type", "user"], 6, {"user": 0, "plain": 0}),
        (["--type", "user", "--type", "messages"], 9, {"user": 0, "plain": 0, "chat": 0}),
        (["--pattern", "user:1"], 1, {"user": 2}),
        (["--pattern", "user:?"], 3, {"user": 0}),
        (["--pattern", "chat:[01]:*"], 2, {"chat": 1}),
        (["--tag", "room:2"], 1, {"chat": 2}),
        (["--tag", "room:2", "--pattern", "*:name"], 4, {"chat": 2, "plain": 0}),
        (["--pattern", "nothing:*"], 0, {}),
    ],
    ids=str,
)
def test_what_is_selected_goes_and_nothing_else(args, count, gone):
    shop = Shop()
    assert removed(*args) == count
    assert shop.left() == {**EVERYTHING, **gone}


@pytest.mark.usefixtures("site")
def test_all_is_what_cache_clear_clears_and_another_alias_stays():
    shop = Shop()
    caches["other"].set("k", 1)
    assert run("--all", "--yes").code == 0
    assert shop.left() == dict.fromkeys(EVERYTHING, 0)
    assert caches["other"].get("k") == 1


@pytest.mark.usefixtures("site")
def test_an_alias_is_of_its_own():
    shop = Shop()
    other = cached("user:{pk}", ttl="user", cache="other")(lambda pk: pk)
    other(1)
    assert removed("--type", "user", "-a", "other") == 1
    assert shop.left() == EVERYTHING


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", ["no_template", "varying", "long", "many", "fixed"])
def test_a_type_is_all_keys_of_its_functions_however_these_are_made(name):
    made = {
        "no_template": lambda: cached(ttl="stats")(lambda number=1: number),
        "varying": lambda: cached("top:users", ttl="stats", vary=lambda: "en")(lambda: 1),
        "fixed": lambda: cached("top:users", ttl="stats")(lambda: 1),
        "long": lambda: cached("a:{x}:{y}:{z}:w", ttl="stats")(lambda x="x" * 79, y="y" * 79, z="z" * 79: 1),
        "many": lambda: cached_many("item:{item}", ttl="stats")(lambda items: dict.fromkeys(items, 1)),
    }
    function = made[name]()
    other = cached("top:other", ttl=60)(lambda: 1)
    other()
    _ = function([1, 2]) if name == "many" else function()
    assert removed("--type", "stats") == (2 if name == "many" else 1)
    assert other.get() == 1


def test_patterns_of_a_type_name_its_functions():
    cached("chat:{room}:messages:{page}", ttl="messages")(lambda room, page: 0)
    assert patterns_of_type("messages", "default") == [
        "messages:*",
        "chat:*:messages:*",
    ]
    assert patterns_of_type("messages", "other") == ["messages:*"]


def test_a_type_has_the_keys_of_functions_that_are_gone():
    def view(x):
        @cached("passing:{x}", ttl="messages")
        def inner(x):
            return x

        return inner(x)

    view(1)
    decorators.functions.clear()  # they are weak but in these tests
    assert "passing:*" in patterns_of_type("messages", "default")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "nothing is selected; write --type user, --pattern"),
        (["--dry-run"], "nothing is selected"),
        (["--type", "usr"], r"'usr' is not a data type; did you mean 'user'\? .*--pattern 'usr:\*'"),
        (["--pattern", "*"], r"--pattern '\*' selects everything; write --all"),
        (["--pattern", ""], "--pattern '' selects nothing"),
        (["--tag", ""], "--tag '' selects nothing"),
        (["--pattern", "a:\udcff*"], "--pattern .* is not UTF-8"),
        (["--tag", "a:\udcff"], "--tag .* is not UTF-8"),
        (["--all", "--type", "user"], "--all is everything"),
        (["--all", "--yes", "-a", "defualt"], "cache 'defualt': .*; did you mean 'default'"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("site")
def test_wrong_usage_exits_2_and_removes_nothing(args, says):
    shop = Shop()
    with pytest.raises(CommandError, match=says) as caught:
        run(*args)
    assert caught.value.returncode == 2
    assert shop.left() == EVERYTHING


@pytest.mark.usefixtures("server")
def test_a_broken_urlconf_is_a_warning(settings):
    settings.ROOT_URLCONF = "nowhere.urls"
    shop = Shop()
    said = run("--type", "messages")
    assert (said.code, shop.left()["chat"]) == (0, 0)
    assert "as nowhere.urls does not import: ModuleNotFoundError" in said.err


# --- asking ---------------------------------------------------------------------------------------------


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("answer", "left"), [("default\n", 0), ("yes\n", 3), ("", 3)])
def test_all_asks_for_the_name_of_the_alias(answer, left, monkeypatch):
    shop = Shop()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    said = run("--all")
    assert (said.code, shop.left()["user"]) == (0, left)
    assert "This removes everything under 'default' in " in said.err
    assert said.out.startswith("Nothing was removed" if left else "default: removed 1")


@pytest.mark.usefixtures("server")
def test_where_there_is_nobody_to_ask_all_needs_yes(monkeypatch):
    shop = Shop()
    monkeypatch.setattr(sys, "stdin", StringIO("default\n"))
    with pytest.raises(CommandError, match="write --yes") as caught:
        run("--all")
    assert (caught.value.returncode, shop.left()) == (2, EVERYTHING)


# --- dry run --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("args", [["--type", "user"], ["--pattern", "user:*"]])
def test_a_dry_run_counts_keys_and_bytes_and_removes_nothing(args):
    shop = Shop()
    said = run(*args, "--dry-run", "--format", "json").json
    assert (said["keys"], said["sampled"], said["dry_run"]) == (6, 0, True)
    assert 6 * 50 < said["bytes"] < 6 * 500
    assert run(*args, "--dry-run").out.startswith("default: would remove 6 entries, ")
    assert shop.left() == EVERYTHING


def test_a_dry_run_of_a_tag_and_of_all_counts_what_would_go(server):
    Shop()
    assert run("--tag", "room:1", "--dry-run", "--format", "json").json["keys"] == 1
    expected = server.command("DBSIZE")
    assert run("--all", "--dry-run", "--format", "json").json["keys"] == expected
    assert removed("--all", "--yes") == expected


def test_bytes_of_many_keys_are_estimated_and_it_says_so(server, monkeypatch):
    monkeypatch.setattr(clearing, "SAMPLE", 2)
    Shop()
    said = run("--type", "user", "--dry-run", "--format", "json").json
    exact = sum(
        server.command("MEMORY", "USAGE", name) for name in server.command("KEYS", "site:1:qc:user:*")
    )
    assert (said["keys"], said["sampled"]) == (6, 2)
    assert exact / 2 < said["bytes"] < exact * 2
    assert "(by a sample of 2)" in run("--type", "user", "--dry-run").out


def test_a_dry_run_finds_what_a_lost_index_does_not_know(server):
    Shop()
    server.command("UNLINK", *server.command("KEYS", "site:1:qci:*"))
    assert run("--pattern", "user:*", "--dry-run", "--format", "json").json["keys"] == 6


def test_expired_entries_are_not_counted(server):
    Shop()
    server.command("UNLINK", "site:1:qc:user:1")
    assert run("--pattern", "user:?", "--dry-run", "--format", "json").json["keys"] == 2


def test_without_permission_for_memory_usage_bytes_are_not_known(server, settings, tmp_path):
    Shop()
    server.command("ACL", "SETUSER", "default", "-memory|usage")
    try:
        said = run("--type", "user", "--dry-run")
    finally:
        server.command("ACL", "SETUSER", "default", "+@all")
    assert (
        said.out == "default: would remove 6 entries (bytes are not known: no permission for MEMORY USAGE)\n"
    )


# --- without Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_outage", ["local", "miss", "raise"])
def test_without_redis_it_says_so_and_exits_1(redis_down, settings, tmp_path, on_outage):
    use_cache(settings, redis_down.url, tmp_path, ON_OUTAGE=on_outage)
    said = run("--pattern", "user:*")
    assert said.code == 1
    assert said.out.startswith("Redis unavailable: ")
    assert "Redis forgets before it is read again" in said.out
    assert run("--pattern", "user:*", "--format", "json").json["unavailable"]
    assert run("--pattern", "user:*", "--dry-run").code == 1


def test_without_redis_memory_forgets_at_once(redis_down, settings, tmp_path):
    use_cache(settings, redis_down.url, tmp_path)
    user = cached("user:{pk}", ttl="user")(lambda pk: pk)
    assert (user(1), user.get(1)) == (1, 1)
    assert "removed 1 entry" in run("--type", "user").out
    assert user.get(1) is None


SITE = """
    import sys
    from django.conf import settings
    url, state, *args = sys.argv[1:]
    settings.configure(
        SECRET_KEY="x", INSTALLED_APPS=["redis_infra"],
        CACHES={"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": url, "KEY_PREFIX": "site",
                            "OPTIONS": {"STATE_DIR": state}}},
    )
    import django
    django.setup()
    from django.core.management import execute_from_command_line
    execute_from_command_line(["manage.py", "cache_clear", *args])
"""


@pytest.mark.parametrize(
    "args", [["--pattern", "user:?"], ["--type", "user"], ["--tag", "t:1"], ["--all", "--yes"]]
)
def test_what_was_cleared_while_redis_was_away_is_not_served_when_it_returns(
    own_redis, settings, tmp_path, args
):
    """The command's own process has ended by then; what it could not remove is in STATE_DIR."""
    server = own_redis(config=DURABLE)
    use_cache(settings, server.url, tmp_path)
    user = cached("user:{pk}", ttl="user", tags=["t:{pk}"])(lambda pk: pk)
    user(1)
    assert server.command("EXISTS", "site:1:qc:user:1") == 1
    server.kill()
    command = [sys.executable, "-c", textwrap.dedent(SITE), server.url, str(tmp_path / "state"), *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    server.start()
    assert server.command("EXISTS", "site:1:qc:user:1") == 1
    restart_process(settings, server, tmp_path)
    assert user.get(1) is None


def restart_process(settings, server, tmp_path):
    """Be a process that has just started, as far as caches go."""
    from redis_infra.cache.engine import forget_engines
    from redis_infra.connection.lifecycle import reset_for_tests
    from redis_infra.querycache.space import forget_spaces

    forget_spaces()
    forget_engines()
    reset_for_tests()
    use_cache(settings, server.url, tmp_path)


def test_sizes_read_the_way_people_write_them():
    assert [cache_clear._size(n) for n in (999, 1000, 1_234_567, 5e12)] == [
        "999 bytes",
        "1.0 KB",
        "1.2 MB",
        "5000.0 GB",
    ]
