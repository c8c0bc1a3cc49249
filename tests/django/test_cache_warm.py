"""``cache_warm``: what it finds, what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from redis_infra.management.commands import cache_warm
from redis_infra.querycache import cached, decorators, warming
from redis_infra.querycache.warm_run import warm
from redis_infra.querycache.warming import warmer
from tests.docs.pages import ROOT


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _own_registers(monkeypatch):
    """Keep the test's functions and warmers to itself."""
    monkeypatch.setattr(warming, "warmers", {})
    monkeypatch.setattr(decorators, "functions", dict(decorators.functions))


@pytest.fixture
def site(redis_server, settings, tmp_path):
    use_cache(settings, redis_server.url, tmp_path)


@pytest.fixture
def users():
    """Three warmers; of the first every tenth item fails."""

    @cached("user:{user_id}", ttl="user")
    def get_user(user_id):
        if user_id % 10 == 9:
            raise LookupError(f"no user {user_id}")
        return {"id": user_id}

    @warmer("users", function=get_user, total=20)
    def users():
        """Everybody."""
        return iter(range(20))

    @warmer("rates", type="stats")
    def rates():
        yield "rate:usd", 1.0

    return get_user


def use_cache(settings, url, tmp_path, **params):
    settings.CACHES = {
        "default": {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": url,
            "KEY_PREFIX": "site",
            "OPTIONS": {"STATE_DIR": str(tmp_path / "state"), "COMMAND_TIMEOUT": "5s"},
            **params,
        }
    }


def run(*args, **options):
    out, err = StringIO(), StringIO()
    try:
        call_command("cache_warm", *args, "--no-color", **{"stdout": out, "stderr": err, **options})
    except SystemExit as end:
        return Said(int(end.code or 0), out.getvalue(), err.getvalue())
    return Said(0, out.getvalue(), err.getvalue())


# --- what it does and says ------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_all_are_warmed_and_a_failure_is_named_and_exits_1(users):
    said = run()
    assert said.code == 1
    first, second, third, last = said.out.splitlines()
    assert first.startswith("users  18 warmed, 2 failed in ")
    assert second == "       failed: user:9: LookupError: no user 9"
    assert third == "       failed: user:19: LookupError: no user 19"
    assert last.startswith("rates  1 warmed in ")
    assert users.get(7) == {"id": 7}


@pytest.mark.usefixtures("site", "users")
def test_only_what_is_named_is_warmed_and_success_exits_0():
    said = run("rates")
    assert (said.code, said.out.split(" in ")[0], said.err) == (0, "rates  1 warmed", "")
    assert run("rates").out.startswith("rates  1 fresh already in ")
    assert run("rates", "--force").out.startswith("rates  1 warmed in ")


@pytest.mark.usefixtures("site", "users")
def test_only_the_first_failures_are_named_and_the_others_counted():
    @warmer("none", function=cached("none:{n}", ttl=9)(lambda n: 1 // 0))
    def none():
        return range(8)

    lines = run("none").out.splitlines()
    assert len([line for line in lines if "ZeroDivisionError" in line]) == 5
    assert lines[-1].strip() == "and 3 more"


@pytest.mark.usefixtures("site", "users")
def test_json_says_the_same():
    said = run("--format", "json")
    assert said.code == 1
    assert said.json["schema"] == "redis_infra.cache_warm/1"
    users, rates = said.json["warmers"]
    assert (users["status"], users["warmed"], users["failed"], users["total"]) == ("failed", 18, 2, 20)
    assert users["troubles"][0] == {"key": "user:9", "error": "LookupError: no user 9"}
    assert (rates["status"], rates["warmed"], rates["interrupted"]) == ("ok", 1, False)


@pytest.mark.usefixtures("site", "users")
def test_fail_fast_leaves_the_other_warmers():
    said = run("--fail-fast")
    assert (said.code, "rates" in said.out) == (1, False)


@pytest.mark.usefixtures("site")
def test_a_dry_run_says_what_would_be_loaded(users):
    said = run("--dry-run", "--limit", "12")
    assert (said.code, said.out.splitlines()[0].split(" in ")[0]) == (0, "users  12 would be loaded")
    assert users.get(1) is None


@pytest.mark.usefixtures("users")
def test_the_list_needs_no_redis():
    assert run("--list").out.splitlines() == [
        "users  user   default  tests.django.test_cache_warm.users.<locals>.get_user  Everybody.",
        "rates  stats  default  keys and values",
    ]
    assert [each["name"] for each in run("--list", "--format", "json").json["warmers"]] == ["users", "rates"]


def test_without_warmers_there_is_nothing_to_do():
    assert (run().code, run().out.startswith("No warmers: no installed app")) == (0, True)
    assert run("--format", "json").json["warmers"] == []


@pytest.mark.usefixtures("site", "users")
def test_lines_of_progress_go_to_stderr(monkeypatch):
    monkeypatch.setattr(cache_warm, "EVERY", 0.0)
    said = run("users")
    assert "users: 20/20, " in said.err
    assert "users: " not in said.out
    assert run("users", verbosity=0).err == ""


@pytest.fixture
def gone():
    """A stream that nobody reads any more, as after ``2>&1 | head``."""
    reads, writes = os.pipe()
    os.close(reads)
    stream = os.fdopen(writes, "w", buffering=1)
    yield stream
    with suppress(BrokenPipeError):
        stream.close()


@pytest.mark.usefixtures("site", "users")
def test_the_work_goes_on_when_nobody_reads_its_progress(monkeypatch, gone):
    monkeypatch.setattr(cache_warm, "EVERY", 0.0)
    said = run("users", "rates", stderr=gone)
    assert said.out.startswith("users  18 warmed, 2 failed in ")
    assert "rates  1 warmed in " in said.out


@pytest.mark.usefixtures("users")
def test_the_work_goes_on_when_nobody_reads_a_warning(settings, tmp_path, gone):
    use_cache(settings, "memory://", tmp_path)
    assert run("rates", stderr=gone).out.startswith("rates  1 warmed in ")


@pytest.mark.usefixtures("site", "users")
def test_a_bar_of_nobody_knows_how_many_is_not_of_a_hundred():
    pytest.importorskip("rich", reason="bars are rich's")
    bars = cache_warm._bars(no_color=True)
    warm(warming.warmers["rates"], watch=bars.show)
    assert [(task.completed, task.total) for task in bars.drawn.tasks] == [(1, None)]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["user"], "'user' is not a warmer; did you mean 'users'"),
        (["--jobs", "0"], "--jobs 0 is not a number from 1 up"),
        (["--limit", "0"], "--limit 0 is not a number from 1 up"),
        (["--rate", "fast"], "--rate: 'fast'"),
        (["--rate", "0"], "--rate '0' would never load anything"),
        (["--rate", "5/s;9/min"], "more than a number per time"),
    ],
)
@pytest.mark.usefixtures("site", "users")
def test_wrong_usage_exits_2(args, says):
    with pytest.raises(CommandError, match=says) as caught:
        run(*args)
    assert caught.value.returncode == 2


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50.0), ("600/min", 10.0), ("7", 7.0), (None, None)])
def test_a_rate_reads_the_way_people_write_it(text, rate):
    assert cache_warm._per_second(text) == rate


# --- warmers of apps ------------------------------------------------------------------------------------


def test_warmers_of_installed_apps_are_found(site, settings, tmp_path, monkeypatch):
    app = tmp_path / "stall_of_warmers"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "warmers.py").write_text(
        "from redis_infra.querycache.warming import warmer\n"
        "@warmer('stalls', type='stats')\n"
        "def stalls():\n"
        "    yield 'stall:1', 'open'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "stall_of_warmers"]
    assert run("stalls").out.startswith("stalls  1 warmed")


# --- where nothing is kept ------------------------------------------------------------------------------


def test_without_redis_it_says_so_at_once_and_changes_nothing(users, refused, settings, tmp_path):
    use_cache(settings, refused, tmp_path)
    with pytest.raises(CommandError, match=r"^Redis unavailable: .*; nothing changed$") as caught:
        run()
    assert caught.value.returncode == 1
    assert users.tally.computations == 0


@pytest.mark.usefixtures("users")
def test_memory_is_warmed_with_a_word_about_whose(settings, tmp_path):
    use_cache(settings, "memory://", tmp_path)
    said = run("rates")
    assert (said.code, said.out.split(" in ")[0]) == (0, "rates  1 warmed")
    assert "warms the memory of this process, and no other's" in said.err


@pytest.mark.usefixtures("users")
def test_a_dummy_keeps_nothing(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    said = run("rates")
    assert (said.code, said.out.split(" in ")[0]) == (0, "rates  nothing to do")
    assert "keeps nothing" in said.err


@pytest.fixture
def refused(redis_down):
    return redis_down.url


# --- a process of its own -------------------------------------------------------------------------------

SITE = """
    import sys, time
    from pathlib import Path
    from django.conf import settings
    url, state, begun = sys.argv[1:4]
    settings.configure(
        SECRET_KEY="x", INSTALLED_APPS=["redis_infra"],
        CACHES={"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": url,
                            "OPTIONS": {"STATE_DIR": state}}},
    )
    import django
    django.setup()
    from django.core.management import execute_from_command_line
    from redis_infra.querycache import cached
    from redis_infra.querycache.warming import warmer

    @cached("n:{number}", ttl=30)
    def load(number):
        if number == 3:
            Path(begun).touch()
            time.sleep(60)
        return number

    @warmer("numbers", function=load)
    def numbers():
        return range(9)

    execute_from_command_line(["manage.py", "cache_warm", *sys.argv[4:]])
"""


@pytest.fixture
def start(redis_server, tmp_path):
    """Run the command in a process of its own; returns it when it loads what takes a minute."""
    processes = []

    def begin(*args):
        begun = tmp_path / "begun"
        arguments = [redis_server.url, str(tmp_path / "state"), str(begun), *args]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SITE), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        ends = time.monotonic() + 30
        while not begun.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < ends
            time.sleep(0.01)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_it_with_130_a_summary_that_is_true_and_no_lease(start, redis_server, jobs):
    process = start("--jobs", jobs)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted; what was loaded is stored" in out
    stored = redis_server.command("EXISTS", *[f":1:qc:n:{number}" for number in range(9)])
    assert out.startswith(f"numbers  {stored} warmed in ")
    assert redis_server.command("EXISTS", ":1:qc:n:3") == 0


def test_ctrl_c_ends_it_with_130_and_a_summary_when_nobody_reads_stderr(start):
    process = start("--jobs", "2")
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    out = process.stdout.read()
    assert process.wait(timeout=30) == 130
    assert "interrupted; what was loaded is stored" in out


def test_a_second_ctrl_c_does_not_wait(start):
    process = start("--jobs", "2")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("options", [[], ["--format", "json"]])
def test_on_a_terminal_there_is_a_bar(options, redis_server, tmp_path):
    pty = pytest.importorskip("pty", reason="this machine has no pseudo-terminals")
    primary, secondary = pty.openpty()
    source = textwrap.dedent(SITE).replace("range(9)", "range(3)")
    process = subprocess.Popen(
        [sys.executable, "-c", source, redis_server.url, str(tmp_path / "state"), "-", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=secondary,
        text=True,
    )
    os.close(secondary)
    out, _ = process.communicate(timeout=30)
    shown = os.read(primary, 65536).decode()
    os.close(primary)
    assert process.returncode == 0
    assert "3/3" in shown
    assert "ETA" in shown
    assert "\x1b" not in out
