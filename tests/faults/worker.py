"""A process of the site, told over a socket what to do: a JSON message in, a JSON message out.

Started once as a *nursery*, which has imported everything and used nothing; it forks a process for each
request, so that a test with three processes costs some milliseconds and not seconds. Each of them is a
process like any other: with its own cache, its own file in STATE_DIR, and its own death.

Messages: ``{"do": "get", "args": ["k"], "kwargs": {}}``; replies: ``{"value": 1}`` or
``{"error": "ValueError", "text": "..."}``. What is no method of `Worker` is one of the cache's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

MESSAGE = 256 * 1024


class Records(logging.Handler):
    """What the app has logged: level and message."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


class Worker:
    """One cache, and what tests want of the process around it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.records = Records()
        logging.getLogger("redis_infra").addHandler(self.records)
        logging.getLogger("redis_infra").setLevel(logging.INFO)
        if "file_size" in config:
            resource.setrlimit(resource.RLIMIT_FSIZE, (config["file_size"], config["file_size"]))
        if "user" in config:
            os.setgid(config["user"])
            os.setuid(config["user"])
        if not config.get("threads", True):
            # Nobody has room for such a stack: every new thread is refused, as by a container's limit.
            threading.stack_size(1 << 47)
        self.runner = asyncio.Runner() if config["face"] == "async" else None
        if "sabotage" in config:
            from tests.faults.sabotage import SABOTAGES

            SABOTAGES[config["sabotage"]]()
        from redis_infra.cache import RedisCache

        self.cache = RedisCache(config["url"], {**config["params"], "OPTIONS": config["options"]})
        self.held: list[Any] = []

    def do(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        own = getattr(self, f"do_{name}", None)
        if own is not None:
            return own(*args, **kwargs)
        if self.runner is None:
            return getattr(self.cache, name)(*args, **kwargs)
        return self.runner.run(getattr(self.cache, f"a{name}")(*args, **kwargs))

    @property
    def database(self) -> Any:
        return self.cache._engine.database

    def do_is_degraded(self) -> bool:
        return self.cache.is_degraded

    def do_status(self) -> dict[str, Any]:
        return self.cache.status()

    def do_is_well(self) -> bool:
        """Whether every circuit is closed and nothing waits in the journal."""
        return not self.cache.is_degraded and self.database.journal.empty

    def do_logs(self) -> list[tuple[str, str]]:
        return self.records.lines

    def do_threads(self) -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    def do_timed(self, name: str, times: int, *args: Any) -> float:
        """Seconds that so many calls take."""
        began = time.monotonic()
        for _ in range(times):
            self.do(name, list(args), {})
        return time.monotonic() - began

    def do_set_numbered(self, prefix: str, count: int, value: Any) -> None:
        self.do("set_many", [{f"{prefix}{number}": value for number in range(count)}, 3600], {})

    def do_delete_numbered(self, prefix: str, count: int, at_once: int = 1) -> None:
        for start in range(0, count, at_once):
            names = [f"{prefix}{number}" for number in range(start, min(start + at_once, count))]
            self.do("delete_many", [names], {}) if at_once > 1 else self.do("delete", names, {})

    def do_fill(self, key: str, value: Any) -> Any:
        return self.do("get_or_set", [key, value, 60], {})

    def do_hold_connections(self, count: int) -> None:
        pool = self.cache._engine.connections.pool
        self.held = [pool.acquire() for _ in range(count)]

    def do_let_go(self) -> None:
        pool = self.cache._engine.connections.pool
        while self.held:
            pool.give_back(self.held.pop())

    def do_raw(self, *command: Any) -> Any:
        reply = self.cache.client.get_client().execute_command(*command)
        return reply.decode() if isinstance(reply, bytes) else reply

    def do_exit(self) -> None:
        os._exit(0)


def serve(channel: socket.socket, config: dict[str, Any]) -> None:
    """Do what comes over the channel until it ends."""
    worker = Worker(config)
    while True:
        data, descriptors, *_ = socket.recv_fds(channel, MESSAGE, 1)
        if not data:
            return
        message = json.loads(data)
        if message["do"] == "fork":
            pid = os.fork()
            if pid == 0:
                channel.close()
                channel = socket.socket(fileno=descriptors[0])
                continue
            os.close(descriptors[0])
            reply: dict[str, Any] = {"value": pid}
        else:
            reply = answer(worker, message)
        channel.send(json.dumps(reply, default=repr).encode())


def answer(worker: Worker, message: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": worker.do(message["do"], message.get("args", []), message.get("kwargs", {}))}
    except Exception as error:  # whatever it is, the test shall see it
        return {"error": type(error).__name__, "text": str(error)}


def nurse(channel: socket.socket) -> None:
    """Fork a process for every socket that comes over the channel."""
    # Also for the forked: the dead are buried by the system, so that a killed process is gone at once.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, descriptors, *_ = socket.recv_fds(channel, MESSAGE, 1)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            channel.close()
            serve(socket.socket(fileno=descriptors[0]), json.loads(data))
            os._exit(0)
        os.close(descriptors[0])
        channel.send(json.dumps(pid).encode())


def main() -> None:
    from django.conf import settings

    settings.configure(SECRET_KEY="a secret of tests", USE_TZ=True, CACHES={})
    # What a process would import later it has from here; one that becomes another user may not find it.
    import encodings.idna
    import encodings.unicode_escape  # noqa: F401
    import secrets  # noqa: F401

    import redis_infra.cache.client
    import redis_infra.connection.lifecycle
    import redis_infra.connection.recovery  # noqa: F401

    nurse(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
