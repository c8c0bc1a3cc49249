"""A site of several real processes, as tests see it; and how to wait for something without hoping."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from tests.faults.worker import MESSAGE

T = TypeVar("T")

MARGIN = 3
"""By how much a machine that others use may miss a bound in time."""

PATIENCE = 60.0
"""Seconds after which a process that does not answer is taken for hung."""


def wait_until(predicate: Callable[[], T], seconds: float, *, every: float = 0.01) -> T:
    """Return what ``predicate`` gives once it is true.

    Raises:
        AssertionError: it was not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {predicate!r}"
        time.sleep(every)
    return value


class WorkerError(Exception):
    """What a process' cache raised; ``kind`` is the name of its class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class SiteProcess:
    """One process: ``process.get("k")`` asks its cache, ``process.is_well()`` the `Worker` around it."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        channel.settimeout(PATIENCE)
        self._channel = channel
        self._children: list[SiteProcess] = []
        self.pid = pid

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._do, name)

    def _do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.begin(name, *args, **kwargs)
        return self.finish()

    def begin(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Let it start; :meth:`finish` waits for the answer."""
        self._channel.send(json.dumps({"do": name, "args": args, "kwargs": kwargs}).encode())

    def finish(self) -> Any:
        data = self._channel.recv(MESSAGE)
        if not data:
            raise ConnectionResetError(f"process {self.pid} is gone")
        reply = json.loads(data)
        if "error" in reply:
            raise WorkerError(reply["error"], reply["text"])
        return reply["value"]

    def fork(self) -> SiteProcess:
        """Let it fork; return the child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._channel, [b'{"do": "fork"}'], [theirs.fileno()])
            self._children.append(SiteProcess(ours, self.finish()))
        return self._children[-1]

    def kill(self) -> None:
        """End it the hard way (SIGKILL); return when it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not self.alive, 10)
        self._channel.close()

    @property
    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let it and its children end: their channels are at their ends."""
        self._channel.close()
        for child in self._children:
            child.close()


def uncounted_environ() -> dict[str, str]:
    """Ours, but for the measuring of coverage: of processes that are many, or that are there to be quick."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


class Nursery:
    """Starts processes in some milliseconds each: see ``worker``."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        self._channel = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**uncounted_environ(), "REDIS_ENABLED": "true"},
            )

    def start(self, config: dict[str, Any]) -> SiteProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._channel, [json.dumps(config).encode()], [theirs.fileno()])
            return SiteProcess(ours, json.loads(self._channel.recv(MESSAGE)))

    def close(self) -> None:
        self._channel.close()
        self._process.wait(PATIENCE)


class Site:
    """Processes that share a server, a configuration and a STATE_DIR; all of them end with :meth:`close`."""

    def __init__(self, nursery: Nursery, url: str, state_dir: str, **options: Any) -> None:
        self._nursery = nursery
        self.url = url
        self.state_dir = state_dir
        self.options = options
        self._started: list[SiteProcess] = []

    def process(self, *, face: str = "sync", url: str = "", **changes: Any) -> SiteProcess:
        """Start a process. Lower-case names go to the `Worker`, upper-case ones to OPTIONS."""
        own = {name: changes.pop(name) for name in list(changes) if name.islower()}
        options = {"STATE_DIR": self.state_dir, **self.options, **changes}
        params = {"KEY_PREFIX": options.pop("KEY_PREFIX", "site"), "TIMEOUT": 3600}
        config = {"url": url or self.url, "face": face, "params": params, "options": options, **own}
        process = self._nursery.start(config)
        self._started.append(process)
        return process

    def processes(self, count: int, **changes: Any) -> list[SiteProcess]:
        return [self.process(**changes) for _ in range(count)]

    def close(self) -> None:
        for process in self._started:
            process.close()
