"""The private Redis that everything is measured on: TCP over loopback, as sites have it."""

from __future__ import annotations

from urllib.parse import urlsplit

from redis_infra.testing import RedisServer

VERSIONS = {"valkey_version": "Valkey", "redis_version": "Redis"}


def private_server() -> RedisServer:
    """Return a server for a ``with`` block. It inherits the core that this process is pinned to."""
    return RedisServer(unix_socket=False)


def server_version() -> str:
    """Return name and version of the server that is measured on."""
    with private_server() as server:
        text: bytes = server.command("INFO", "server")
    facts = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return next(f"{name} {facts[key]}" for key, name in VERSIONS.items() if key in facts)


def address(url: str) -> tuple[str, int]:
    """Return host and port of a ``redis://`` URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 6379
