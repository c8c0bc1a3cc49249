"""Which Redis a demo stands on: the one that was named, one of its own, or none.

``choose`` decides. Each kind can be taken away and given back, so that pages and
the tour need not know which it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from example_project.relay.demo import Backing
from redis_infra.conf import Source, find_source, redact_url
from redis_infra.connection.failures import describe
from redis_infra.exceptions import MissingExtra
from redis_infra.testing import RedisServer, TcpProxy

PROXIED_SCHEMES = {"redis", "valkey", "unix"}
"""What a proxy can stand before: a certificate would not be the proxy's, and a cluster is many servers."""
ASK_TIMEOUT = 1.0
"""Seconds in which a server that was named must answer before the demo starts its own."""


class Embedded:
    """A server that the demo starts from a binary on this machine, and may treat as it likes."""

    owned = True
    note = ""

    def __init__(self) -> None:
        # What it holds must survive being killed: an empty server has nothing stale to serve. What the
        # system has not yet put on the disk survives that too, so there is no need to wait for it.
        self._server = RedisServer(config={"appendonly": "yes", "appendfsync": "no"})
        self._server.start()
        self._frozen = False
        self.url: str | None = self._server.url
        self.title = f"{_name_in(self._server.command('INFO', 'server'))} (embedded, unix socket)"

    @property
    def power(self) -> str:
        """``running``, ``frozen`` or ``stopped``."""
        if not self._server.alive:
            return "stopped"
        return "frozen" if self._frozen else "running"

    def stop(self) -> None:
        """Kill it, as a crash does."""
        self._server.kill()
        self._frozen = False

    def freeze(self) -> None:
        """Let it hang; one that was stopped stays so."""
        if self._server.alive:
            self._server.freeze()
            self._frozen = True

    def start(self) -> None:
        """Let it run again, with the data it had."""
        if self._frozen:
            self._server.thaw()
            self._frozen = False
        self._server.start()

    def close(self) -> None:
        """End it and remove its directory."""
        self._server.stop()


class Named:
    """A server that is somebody else's: used, and never touched.

    With ``proxied`` the site reaches it through a proxy of the demo's, which can be
    closed (``stop``) and can swallow everything (``freeze``).

    Raises:
        ValueError: ``proxied``, and it is not one server without TLS.
    """

    owned = False
    note = ""

    def __init__(self, url: str, title: str, *, proxied: bool) -> None:
        self.url: str | None = None
        self.title = f"{title} at {redact_url(url)}"
        self._proxy: TcpProxy | None = None
        self._away = ""
        if proxied:
            self._proxy = TcpProxy(_checked(url))
            self.url = self._proxy.url

    @property
    def power(self) -> str:
        """``running``, ``frozen`` or ``stopped``, as the site sees it."""
        return self._away or "running"

    def stop(self) -> None:
        """Refuse the site's connections."""
        if self._proxy:
            self._proxy.refuse()
            self._away = "stopped"

    def freeze(self) -> None:
        """Take the site's bytes and deliver none."""
        if self._proxy:
            self._proxy.drop()
            self._away = "frozen"

    def start(self) -> None:
        """Let everything pass again."""
        if self._proxy:
            self._proxy.heal()
            self._away = ""

    def close(self) -> None:
        """End the proxy."""
        if self._proxy:
            self._proxy.close()


class Nowhere:
    """No server: the site runs in memory, and there is nothing to take away."""

    url: str | None = "memory://"
    owned = False
    power = "none"
    note = ""

    def __init__(self, why: str, remedy: str = "") -> None:
        self.title = f"in memory: {why}"
        self.remedy = remedy

    def stop(self) -> None:
        """Do nothing."""

    freeze = start = close = stop


def choose(*, proxied: bool, environ: Mapping[str, str] = os.environ) -> Backing:
    """Return what the demo stands on.

    The server that the environment names, by the rules of redis_infra itself,
    if it answers; else a server of the demo's own; else, on a machine without a
    server binary or when memory was asked for, none.

    Raises:
        SettingsError: the environment cannot be read.
        ValueError: see :class:`Named`.
    """
    source = find_source("", environ=environ)
    if source.url.startswith("memory:") and source.rule != "nothing":
        return Nowhere(source.reason)
    title, why_not = _title_at(source)
    if title:
        return Named(source.url, title, proxied=proxied)
    backing = _own()
    if why_not:
        backing.note = f"{redact_url(source.url)} is not used: {why_not}"
    return backing


def _own() -> Embedded | Nowhere:
    try:
        return Embedded()
    except MissingExtra as error:
        return Nowhere("no Redis server was found", str(error))


def _title_at(source: Source) -> tuple[str, str]:
    """Return what answers at a source ("redis 7.0.15") and "", or "" and why nobody does."""
    if source.url.startswith("memory:"):
        return "", ""
    import redis

    # redis-py knows the schemes of valkey by their first names only.
    url = source.url.replace("valkey", "redis", 1) if source.url.startswith("valkey") else source.url
    try:
        with redis.Redis.from_url(
            url, socket_timeout=ASK_TIMEOUT, socket_connect_timeout=ASK_TIMEOUT, decode_responses=True
        ) as client:
            return _name_of(client.info("server")), ""
    except (redis.RedisError, ValueError, OSError) as error:
        return "", describe(error)


def _name_in(info: str | bytes) -> str:
    text = info.decode() if isinstance(info, bytes) else info
    return _name_of(dict(line.split(":", 1) for line in text.splitlines() if ":" in line))


def _name_of(info: Mapping[str, object]) -> str:
    name = str(info.get("server_name", "redis"))
    return f"{name} {info.get(f'{name}_version', info.get('redis_version', ''))}"


def _checked(url: str) -> str:
    """Return a URL that a proxy can stand before."""
    if urlsplit(url).scheme not in PROXIED_SCHEMES:
        raise ValueError(
            f"a proxy can stand only before a single server without TLS, not before {redact_url(url)}: "
            "unset REDIS_URL, and the check starts a server of its own"
        )
    return url
