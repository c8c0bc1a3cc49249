"""``manage.py upstash_dev_server``: Upstash's REST API on this machine, before a Redis of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from redis_infra.conf import find_store, redact_url
from redis_infra.exceptions import RedisInfraError, SettingsError

SPOKEN = ("redis", "rediss", "valkey", "valkeys", "unix")
"""Schemes of servers that it can stand before."""


class Command(BaseCommand):
    help = (
        "Serve Upstash's REST API at http://127.0.0.1, before the site's Redis, or one of its own that "
        "keeps nothing if the site has none. For development: refused unless DEBUG. Ctrl-C ends it. "
        "Exit status: 0; 1 if Redis does not answer; 2 usage."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=8079, help="default: 8079; 0 takes a free one")
        parser.add_argument("--token", default="", help="a new one each time, if not given")
        parser.add_argument("--read-only-token", default="", help="one that may only read; none if not given")
        parser.add_argument("--redis", metavar="URL", default="", help="before another Redis than the site's")

    def handle(self, *, port: int, token: str, read_only_token: str, redis: str, **options: Any) -> None:
        if not settings.DEBUG:
            raise CommandError(
                "upstash_dev_server is for development; it starts with DEBUG only", returncode=2
            )
        from redis_infra.testing import UpstashServer

        try:
            with self._redis(redis) as url:
                try:
                    server = UpstashServer(
                        url, token=token, read_only_token=read_only_token, port=port, keep=0
                    )
                except (OSError, OverflowError) as error:
                    raise CommandError(f"--port {port}: {error}; take another one", returncode=2) from error
                with server:
                    self._show(server.url, server.token, url)
                    threading.Event().wait()
        except KeyboardInterrupt:
            return  # that is how it is ended

    @contextmanager
    def _redis(self, url: str) -> Iterator[str]:
        """Give the URL of a server that answers."""
        if not url:
            try:
                url = _of_site()
            except SettingsError as error:
                self.stdout.write(f"# {error}: this one has a server of its own, which keeps nothing")
        if not url:
            from redis_infra.testing import RedisServer

            with RedisServer() as server:
                yield server.url
            return
        _check(url)
        yield url

    def _show(self, url: str, token: str, redis: str) -> None:
        self.stdout.write(f"# Upstash's REST API before {redact_url(redis)}; Ctrl-C ends it")
        self.stdout.write(f"export UPSTASH_REDIS_REST_URL={url}")
        self.stdout.write(f"export UPSTASH_REDIS_REST_TOKEN={token}")
        self.stdout.flush()


def _of_site() -> str:
    """Return the URL of the site's own Redis; nothing if it works in memory.

    Raises:
        SettingsError: it has none.
    """
    found = find_store("redis").redis
    return found.source.url if found is not None else ""


def _check(url: str) -> None:
    """Ask a server once.

    Raises:
        CommandError: it does not answer, or this command cannot speak with it.
    """
    from redis_infra.testing.server import plain_connection

    shown = redact_url(url)
    if urlsplit(url).scheme not in SPOKEN:
        known = ", ".join(SPOKEN)
        raise CommandError(f"{shown}: cannot stand before that; give --redis one of {known}", returncode=2)
    try:
        with plain_connection(url) as connection:
            connection.call("PING")
    except (OSError, ValueError, RedisInfraError) as error:
        raise CommandError(f"{shown}: {error}") from error
