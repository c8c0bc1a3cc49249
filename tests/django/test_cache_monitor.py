"""``manage.py cache_monitor``: what a look shows, on a terminal and in a pipe, with Redis and without."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from rich.console import Console

from redis_infra.observability import flushing, monitor
from redis_infra.observability.monitor import Monitor
from redis_infra.observability.monitor_view import amount, count, one_line, screen, sparkline
from redis_infra.querycache import cached, decorators, tallies
from redis_infra.querycache.space import forget_spaces
from redis_infra.throttling.limiter import default_limiter
from tests.faults.site import wait_until

OURS = "redis_infra.cache.RedisCache"
QUICK = {"probe_base": "5ms", "probe_cap": "20ms"}
USER = '["function","default","user","get_user","user:*"]'
BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Outcome:
    code: int
    text: str
    err: str = ""

    @property
    def lines(self):
        return self.text.splitlines()

    @property
    def json(self):
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def run():
    """Run the command: ``run("--once")``."""

    def call(*args):
        out, err = StringIO(), StringIO()
        try:
            call_command("cache_monitor", *args, stdout=out, stderr=err)
        except SystemExit as end:
            return Outcome(int(end.code or 0), out.getvalue(), err.getvalue())
        return Outcome(0, out.getvalue(), err.getvalue())

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
    def make(url=None):
        options = {"STATE_DIR": str(tmp_path / "state"), "BREAKER": QUICK, "COMMAND_TIMEOUT": "5s"}
        said = {"BACKEND": OURS, "OPTIONS": options}
        settings.CACHES = {"default": said if url is None else {**said, "LOCATION": url}}
        settings.REDIS_INFRA = {"STATS": {"FLUSH": "1h"}}
        flushing.begin()

    return make


@pytest.fixture
def server(own_redis):
    return own_redis()


@pytest.fixture
def used(site, server):
    """A site whose users were asked for: 3 hits and 1 miss."""

    @cached("user:{user_id}", ttl="user")
    def get_user(user_id):
        return user_id

    site(server.url)
    for _ in range(4):
        get_user(1)
    assert flushing.flush()
    return get_user


def drawn(frame, width=140):
    """Return a frame as a terminal shows it, without colours."""
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(screen(frame))
    return console.file.getvalue()


# --- what a look shows ----------------------------------------------------------------------------------


def test_the_server_says_how_it_is(used):
    [load] = Monitor().look().servers
    assert load.alias == "default"
    assert load.ops is not None
    assert load.clients >= 1
    assert load.memory > 100_000
    assert load.max_memory is None


def test_hit_rates_are_of_the_last_two_minutes(used):
    frame = Monitor().look()
    [user] = frame.types
    assert (user.name, user.hit_rate) == ("user", 0.75)
    assert 3 / 120 <= user.hits <= 3 / 60
    assert frame.total.hit_rate == 0.75
    assert frame.is_current


def test_history_has_a_value_for_each_minute_in_which_somebody_asked(used, server):
    names, now = flushing.Names("ri"), time.time()
    server.command("HSET", names.minute(now - 600), USER, "1 1")
    server.command("HSET", names.minute(now - 3600), USER, "9 9")
    [user] = Monitor().look().types
    asked = [rate for rate in user.history if rate is not None]
    assert (len(user.history), asked) == (monitor.HISTORY, [0.5, 0.75])


def test_a_type_that_nobody_asks_for_any_more_stays_for_its_history(used, server):
    server.command(
        *("HSET", flushing.Names("ri").minute(time.time() - 600)),
        *('["function","default","chat","get_chat","chat:*"]', "1 3"),
    )
    [_, chat] = Monitor().look().types
    assert (chat.name, chat.hit_rate, 0.25 in chat.history) == ("chat", None, True)


def test_what_comes_after_a_look_is_in_the_next(used):
    looking = Monitor()
    assert looking.look().total.hits
    before = looking.look().types[0].hits
    for _ in range(50):
        used(1)
    assert flushing.flush()
    assert looking.look().types[0].hits > before


def test_limits_are_shown_by_policy_who_denies_first(used):
    limiter = default_limiter()
    for _ in range(7):
        limiter.hit("upload", "user:1")
    limiter.hit("chat", "user:1")
    assert flushing.flush()
    frame = Monitor().look()
    first, second, *_ = frame.limits
    assert frame.decided_by == "redis"
    assert (first.name, first.blocked, first.identities) == ("upload", 1, 1)
    assert 2 / 120 <= first.denied <= 2 / 60
    assert (second.name, second.blocked, second.identities) == ("chat", 0, 1)


def test_limits_are_not_looked_at_among_too_many_keys(used, monkeypatch):
    monkeypatch.setattr(monitor, "MOST_KEYS", 1)
    frame = Monitor().look()
    assert frame.limits == ()
    [note] = frame.notes
    assert "throttle_status does it" in note


def test_without_any_redis_it_says_so(site):
    site()
    frame = Monitor().look()
    assert [each.state for each in frame.aliases] == ["memory"]
    assert frame.counts_from is None
    assert "no Redis is configured" in frame.notes[0]
    assert "hits not known" in one_line(frame)


def test_on_an_empty_server_there_is_nothing_to_show(site, server):
    site(server.url)
    frame = Monitor().look()
    assert frame.types == ()
    assert "(nothing)" in drawn(frame)
    assert "hits -" in one_line(frame)


# --- an outage ------------------------------------------------------------------------------------------


def test_while_redis_is_away_the_last_counts_stay_and_are_said_to_be_old(used, server):
    looking = Monitor()
    seen = looking.look()
    server.kill()
    frame = looking.look()
    assert not frame.is_current
    assert (frame.counts_from, frame.types) == (seen.time, seen.types)
    assert any("cannot be read" in note for note in frame.notes)
    assert "as of" in one_line(frame)
    assert "query cache, as of" in drawn(frame)


def test_that_a_server_goes_and_comes_back_is_an_event(used, server):
    looking = Monitor()
    looking.look()
    server.kill()
    looking.look()
    server.start()
    wait_until(lambda: looking.look().is_current, 10)
    events = looking.look().events
    assert [(event.is_bad, event.who) for event in events if event.who == "monitor"] == [
        (True, "monitor"),
        (False, "monitor"),
    ]
    assert "default is down" in events[0].text


def test_what_workers_of_this_host_left_is_shown(used, server):
    server.kill()
    for number in range(3):
        cache.set(f"k{number}", 1)

    def seen():
        frame = Monitor().look()
        [default] = frame.aliases
        return frame if default.workers and default.workers[0].pending == 3 else None

    frame = wait_until(seen, 20)
    assert frame.aliases[0].workers[0].pid == os.getpid()
    assert "1 worker of this host without Redis" in drawn(frame)
    assert "journal 3" in drawn(frame)
    assert "journal 3" in one_line(frame)
    assert re.search(r"breaker (half_)?open", one_line(frame))


def test_what_happened_to_other_processes_is_shown_after_it(used, server):
    server.kill()
    cache.set("k", 1)
    server.start()
    wait_until(lambda: not cache.is_degraded, 10)
    wait_until(flushing.flush, 10)
    told = [event for event in Monitor().look().events if event.who.endswith(f":{os.getpid()}")]
    assert [event.is_bad for event in told] == [True, False]
    assert "recovered after" in told[-1].text


def test_an_event_that_is_none_is_passed_over(used, server):
    for text in ("x", "[]", "{}", '{"host": 1}'):
        server.command("LPUSH", flushing.Names("ri").events, text)
    assert Monitor().look().events == ()


# --- in a pipe ------------------------------------------------------------------------------------------


def test_where_there_is_no_terminal_each_look_is_a_line(used, run):
    found = run("--count", "3", "--interval", "0.1")
    assert found.code == 0
    assert len(found.lines) == 3
    for line in found.lines:
        assert re.match(
            r"\d\d:\d\d:\d\d pass  default up ops \S+/s mem \S+ MB clients \d+ breaker closed", line
        )
        assert "hits 75 % (user 75 %)" in line
        assert "\x1b" not in line


def test_json_is_an_object_a_line(used, run):
    first, second = run("-n", "2", "-i", "0.1", "--format", "json").json
    assert first["schema"] == second["schema"] == "redis_infra.cache_monitor/1"
    assert second["time"] - first["time"] >= 0.09
    assert first["aliases"]["default"]["state"] == "up"
    assert first["servers"]["default"]["clients"] >= 1
    assert first["types"][0]["hit_rate"] == 0.75


def test_once_is_one_look(used, run):
    assert len(run("--once").lines) == 1


def test_at_the_end_a_server_that_is_away_is_exit_code_1(site, redis_down, run):
    site(redis_down.url)
    found = run("--count", "2", "--interval", "0.1")
    assert found.code == 1
    assert len(found.lines) == 2
    assert all("default down" in line for line in found.lines)
    assert "Traceback" not in found.text + found.err


def test_a_frozen_server_costs_each_look_no_more_than_its_timeout(site, redis_frozen, run, settings):
    site(redis_frozen.url)
    settings.CACHES["default"]["OPTIONS"].update(COMMAND_TIMEOUT="100ms", CONNECT_TIMEOUT="100ms")
    began = time.monotonic()
    found = run("--count", "2", "--interval", "0.1")
    assert found.code == 1
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    "args", [("nowhere",), ("--interval", "0"), ("--interval", "soon"), ("--count", "0"), ("-n", "-1")]
)
def test_what_makes_no_sense_is_usage(used, run, args):
    with pytest.raises(CommandError) as raised:
        run(*args)
    assert raised.value.returncode == 2


def test_without_rich_a_terminal_gets_lines_and_is_told(used, monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    monkeypatch.setitem(sys.modules, "rich.live", None)
    out, err = Terminal(), StringIO()
    call_command("cache_monitor", "--once", stdout=out, stderr=err)
    assert "default up" in out.getvalue()
    assert 'pip install "redis-infra[cli]"' in err.getvalue()


# --- as a process ---------------------------------------------------------------------------------------

MONITOR = [sys.executable, "-m", "django", "cache_monitor", "--settings", "tests.settings"]


class OnTerminal:
    """The command on a terminal of its own; ``seen`` is what it has written."""

    def __init__(self, url, *args):
        self.seen = ""
        main, side = pty.openpty()
        env = {**os.environ, "REDIS_URL": url, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
        self._main = main
        self.process = subprocess.Popen([*MONITOR, *args], stdin=side, stdout=side, stderr=side, env=env)
        os.close(side)

    def read_until(self, text, seconds=30):
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self._main], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._main, 65536).decode(errors="replace")
                except OSError:  # it has ended
                    assert text in self.seen, self.seen
        return self.seen

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._main)


def test_ctrl_c_gives_the_terminal_back_and_is_no_error(server):
    with OnTerminal(server.url, "--interval", "0.1") as terminal:
        terminal.read_until("redis_infra")
        assert "\x1b[?1049h" in terminal.seen  # the alternate screen
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("\x1b[?1049l")
        assert terminal.process.wait(30) == 0
    assert "Traceback" not in terminal.seen


def test_the_screen_goes_on_through_an_outage(server):
    with OnTerminal(server.url, "--interval", "0.1") as terminal:
        terminal.read_until("● up")
        server.kill()
        terminal.read_until("● down")
        server.start()
        terminal.read_until("default is up after")


def test_a_single_look_stays_on_the_terminal(server):
    with OnTerminal(server.url, "--once") as terminal:
        terminal.read_until("nothing has happened")
        assert terminal.process.wait(30) == 0
    assert "\x1b[?1049h" not in terminal.seen


def test_who_has_read_enough_may_close_the_pipe(server):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            MONITOR,
            check=False,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "REDIS_URL": server.url},
        )
    assert (done.returncode, done.stderr) == (0, "")


# --- pieces ---------------------------------------------------------------------------------------------


def test_a_sparkline_has_a_character_a_minute():
    assert sparkline([0.0, None, 0.5, 1.0]) == f"{BARS[0]} {BARS[4]}{BARS[7]}"


@pytest.mark.parametrize(
    ("number", "said"),
    [(None, "-"), (0, "0"), (12904, "12 904"), (0.0, "0.0"), (0.04, "0.04"), (3.14, "3.1")],
)
def test_numbers_read_as_people_write_them(number, said):
    assert count(number) == said


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KB"),
        (18 * 2**20, "18.0 MB"),
        (2**41, "2048.0 GB"),
    ],
)
def test_sizes_read_as_people_write_them(nbytes, said):
    assert amount(nbytes) == said
