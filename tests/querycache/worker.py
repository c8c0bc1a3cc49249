"""A process of a site that uses the query cache, told over a socket what to do.

As ``tests.faults.worker``: started once as a nursery, which forks a process for each request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.faults import worker as faults_worker
from tests.querycache.sabotage import SABOTAGES

PATIENCE = 60.0


class Worker:
    """One process: its cached functions, and what tests want done with them."""

    def __init__(self, config: dict[str, Any]) -> None:
        from django.conf import settings

        backend = "redis_infra.cache.RedisCache"
        settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": config["url"], **config["cache"]}}
        if "sabotage" in config:
            SABOTAGES[config["sabotage"]]()
        self.config = config
        self.threads: list[threading.Thread] = []
        self.answers: list[tuple[float, Any]] = []
        self.tasks = 0

    def do(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return getattr(self, f"do_{name}")(*args, **kwargs)

    # A crowd

    def do_gather(self, function: str, name: str, threads: int, *, loops: int = 0, tasks: int = 0) -> None:
        """Get threads ready to call a function, and loops of tasks; ``go`` lets them."""
        from tests.querycache.functions import slow_functions

        functions = slow_functions(Path(self.config["log"]), self.config["seconds"])
        called = functions[function]
        self.tasks = tasks
        self.gate = threading.Barrier(threads + loops + 1)
        self.answers = []

        def one() -> None:
            self.gate.wait(PATIENCE)
            began = time.monotonic()
            answer = called(name)
            self.answers.append((time.monotonic() - began, answer))

        async def many() -> None:
            began = time.monotonic()
            answers = await asyncio.gather(*[called(name) for _ in range(tasks)])
            self.answers += [(time.monotonic() - began, answer) for answer in answers]

        def loop() -> None:
            with asyncio.Runner() as runner:
                runner.get_loop()
                self.gate.wait(PATIENCE)
                runner.run(many())

        self.threads = [threading.Thread(target=one) for _ in range(threads)]
        self.threads += [threading.Thread(target=loop) for _ in range(loops)]
        for thread in self.threads:
            thread.start()

    def do_go(self) -> None:
        self.gate.wait(PATIENCE)

    def do_answers(self) -> list[tuple[float, Any]]:
        """Return the seconds and the answers of all who called, when the last one has."""
        for thread in self.threads:
            thread.join(PATIENCE)
        return self.answers

    def do_call(self, function: str, name: str) -> Any:
        from tests.querycache.functions import slow_functions

        return slow_functions(Path(self.config["log"]), self.config["seconds"])[function](name)

    # A model

    def do_play(self, seed: int, steps: int) -> None:
        """Begin to act at random, until all processes together have done so many steps."""
        from tests.querycache.model import Player

        self.player = Player(Path(self.config["database"]), seed, steps)
        self.player.start()

    def do_verdict(self) -> list[str]:
        """Return what was wrong, when all is done."""
        return self.player.verdict()

    def do_is_well(self) -> bool:
        from redis_infra.querycache.space import space_for

        space = space_for("default")
        assert space is not None
        database = space.engine.database  # type: ignore[attr-defined]
        return not space.engine.is_degraded and database.journal.empty


def main() -> None:
    from django.conf import settings

    settings.configure(
        SECRET_KEY="a secret of tests",
        USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        CACHES={},
    )
    import django

    django.setup()
    import redis_infra.connection.lifecycle
    import redis_infra.connection.recovery
    import redis_infra.querycache  # noqa: F401

    faults_worker.Worker = Worker  # type: ignore[misc, assignment]
    faults_worker.nurse(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)
    main()
