"""``manage.py demo``: the whole site, with content and with a Redis to take away, in one command."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import webbrowser
from argparse import ArgumentParser
from contextlib import ExitStack, closing
from tempfile import TemporaryDirectory
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from example_project.relay import demo
from example_project.relay.demo import Backing, Running
from example_project.relay.demo.backing import Named, Nowhere, choose
from example_project.relay.demo.server import SiteServer
from example_project.relay.demo.site import database, own_keys, quick_passwords, use_redis, warm
from example_project.relay.demo.tour import Tour
from example_project.relay.seed import DEMO_USER
from redis_infra.exceptions import SettingsError

PORT = 8000
OTHER_PORTS = range(PORT + 1, PORT + 20)
INTERRUPTED = 130
"""Exit code of a check that was ended before it was done, as shells have it for Ctrl-C."""


class Command(BaseCommand):
    """Start Relay with content, a cache and a Redis of its own; Ctrl-C ends it and leaves nothing behind."""

    help = (
        "Starts Relay with generated content. Uses the Redis that the environment names if it answers, "
        "else starts one of its own, else runs in memory. The database is a temporary one, unless "
        "RELAY_DATABASE names a file."
    )
    # The cache is pointed at its server first; then the checks have something to look at.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--port", type=int, help=f"port to serve on (default: {PORT}, or the next free one)"
        )
        parser.add_argument(
            "--check", action="store_true", help="make the tour without a browser; exit 0 or 1"
        )
        parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
        parser.add_argument(
            "--reset", action="store_true", help="with RELAY_DATABASE: start over with new content"
        )

    def handle(
        self, *args: Any, port: int | None, check: bool, no_browser: bool, reset: bool, **_: Any
    ) -> None:
        """Prepare, serve, and take everything down again."""
        # SIGTERM ends it as Ctrl-C does: what is under way unwinds, and takes server and files along.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with ExitStack() as stack:
                self._run(stack, port=port, check=check, no_browser=no_browser, reset=reset)
        except KeyboardInterrupt:
            self._say("\nended")
            if check:
                sys.exit(INTERRUPTED)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _run(self, stack: ExitStack, *, port: int | None, check: bool, no_browser: bool, reset: bool) -> None:
        kept = None if check else os.environ.get("RELAY_DATABASE")
        backing = stack.enter_context(closing(_chosen(check)))
        self._introduce(backing)
        running = Running(backing=backing, password=secrets.token_urlsafe(9))
        state_dir = stack.enter_context(TemporaryDirectory(prefix="relay-state-"))
        prefix = stack.enter_context(own_keys(temporary=kept is None, shared=isinstance(backing, Named)))
        use_redis(backing, prefix, state_dir)
        if check:  # its database is a temporary one
            quick_passwords()
        self.check()
        stack.enter_context(database(kept, reset=reset, password=running.password, say=self._say))
        stack.enter_context(demo.serving(running))
        self._say(f"warmed the cache in {warm():.0f} ms")
        server = stack.enter_context(_listening(0 if check else port))
        if check:
            self._conclude(backing, Tour(server.url, backing, running.password, self._say).run())
        else:
            self._invite(server.url, running, no_browser)
            threading.Event().wait()

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def _introduce(self, backing: Backing) -> None:
        self._say(f"cache: {backing.title}")
        if isinstance(backing, Nowhere) and backing.remedy:
            self._say(f"  {backing.remedy}")
        if backing.note:
            self._say(f"  {backing.note}")

    def _invite(self, url: str, running: Running, no_browser: bool) -> None:
        self._say(
            f"\n  {url}/             the site\n"
            f"  {url}/playground/  stop Redis here\n"
            f"  {url}/queries/     see what is computed and what is kept\n"
            f"  {url}/limits/      run into a limit here\n"
            f"  {url}/settings/    settings and API keys, in the key-value store\n"
            f"  {url}/api/rooms/   the API\n"
            f"  sign in as {DEMO_USER} with {running.password}\n\nCtrl-C ends it."
        )
        if not no_browser and _has_browser():
            webbrowser.open(f"{url}/playground/")

    def _conclude(self, backing: Backing, held: bool) -> None:
        """Say how the tour ended, the server last, and end with the exit code that it deserves."""
        in_memory = isinstance(backing, Nowhere)
        if in_memory and os.environ.get("CI", "").lower() == "true":
            self._say("FAILED: with CI=true the check needs a real server")
            held = False
        self._say("everything held" if held else "something did not hold")
        self._say(backing.title if in_memory else f"checked on {backing.title}")
        if not held:
            sys.exit(1)


def _chosen(check: bool) -> Backing:
    try:
        return choose(proxied=check)
    except (SettingsError, ValueError) as error:
        raise CommandError(str(error)) from error


def _listening(port: int | None) -> SiteServer:
    """Listen on the port that was asked for, or on the first free one of the usual ones."""
    if port is not None:
        try:
            return SiteServer(port)
        except OverflowError as error:
            raise CommandError(f"{port} is not a port: choose one from 1 to 65535") from error
        except OSError as error:
            raise CommandError(
                f"port {port} cannot be had ({error.strerror}): try --port {port + 1}"
            ) from error
    for usual in (PORT, *OTHER_PORTS):
        try:
            return SiteServer(usual)
        except OSError:
            continue
    raise CommandError(f"the ports {PORT} to {OTHER_PORTS[-1]} are all taken: choose one with --port")


def _has_browser() -> bool:
    """Whether opening a browser would show a window: not in a pipe, and not on a machine without a screen."""
    graphical = (
        sys.platform in {"darwin", "win32"} or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    )
    return sys.stdout.isatty() and graphical
