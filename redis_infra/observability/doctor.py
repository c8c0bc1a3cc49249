"""``cache_health --deep``: does the server fit what the site does with it?

Asks the server some dozens of things, each on its own: what an ACL forbids is
reported as "no permission" and nothing else suffers. Writes one key of its own
for a few seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from redis.exceptions import NoPermissionError

from redis_infra.cache.engine import RedisEngine
from redis_infra.connection.failures import describe
from redis_infra.connection.wire import pack
from redis_infra.observability.health import Finding

__all__ = ["examine"]

PINGS = 20
SLOW_MS = 50.0
CLOCK_SKEW = 2.0
"""Seconds by which the clocks may differ before it is worth a word: times to live are the server's."""


def examine(engine: RedisEngine) -> tuple[Finding, ...]:
    """Look at everything; never raises."""
    return tuple(_looked(name, look, engine) for name, look in _LOOKS.items())


def _looked(name: str, look: Callable[[Server], Finding], engine: RedisEngine) -> Finding:
    try:
        return replace(look(Server(engine)), name=name)
    except NoPermissionError as error:
        return Finding(name=name, value=f"no permission: {error}")
    except Exception as error:  # the server's fault, or an odd server's odd reply: it is a finding
        return Finding(name=name, status="fail", value=describe(error), remedy="see the server's log")


class Server:
    """Short ways to ask."""

    def __init__(self, engine: RedisEngine) -> None:
        self.engine = engine

    def ask(self, *command: str | int) -> Any:
        return self.engine.connections.call(pack(*command))

    def info(self, section: str) -> dict[str, str]:
        text = self.ask("INFO", section).decode("utf-8", "replace")
        pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: value for name, _, value in pairs}

    def config(self, name: str) -> str:
        reply = self.ask("CONFIG", "GET", name)
        return reply[1].decode("utf-8", "replace") if reply else ""


def _round_trip(server: Server) -> Finding:
    took = sorted(_timed(server.ask, "PING") for _ in range(PINGS))
    median, slowest = statistics.median(took), took[-1]
    return Finding(
        status="warn" if median > SLOW_MS else "pass",
        value=f"median {median:.2f} ms, slowest of {PINGS} {slowest:.2f} ms",
        remedy="the server is far or busy: every cache call costs this much" if median > SLOW_MS else "",
    )


def _timed(call: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    call(*args)
    return (time.perf_counter() - started) * 1000


def _write_read_delete(server: Server) -> Finding:
    name = f"{server.engine.database.probe_name}:doctor"
    server.ask("SET", name, "1", "PX", 5000)
    read = server.ask("GET", name)
    gone = server.ask("UNLINK", name)
    well = read == b"1" and gone == 1
    return Finding(
        status="pass" if well else "fail",
        value="as written" if well else f"read {read!r}, removed {gone}",
        remedy="" if well else "is the server evicting at once, or a replica?",
    )


def _scripts(server: Server) -> Finding:
    try:
        well = server.ask("EVAL", "return 7", 0) == 7
    except NoPermissionError as error:
        # Not one question less, as the others are without permission: incr and touch do not work so.
        remedy = "allow EVAL and EVALSHA: counters need them"
        return Finding(status="warn", value=f"no permission: {error}", remedy=remedy)
    return Finding(
        status="pass" if well else "fail",
        value="run" if well else "wrong answer",
        remedy="" if well else "counters need EVAL",
    )


def _version(server: Server) -> Finding:
    info = server.info("server")
    version = info.get("valkey_version") or info.get("redis_version", "0")
    old = int(version.split(".")[0]) < 6
    return Finding(
        status="warn" if old else "pass",
        value=f"{info.get('server_name', 'redis')} {version}, {info.get('redis_mode', 'standalone')}",
        remedy="6.0 or newer: HELLO, with which late writes are killed after an outage" if old else "",
    )


def _memory(server: Server) -> Finding:
    info = server.info("memory")
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy = info.get("maxmemory_policy", "")
    value = f"{_mb(used)} of {_mb(limit) if limit else 'no limit'}, {policy}"
    if not limit:
        return Finding(
            status="warn",
            value=value,
            remedy="set maxmemory: without it the kernel ends the server when memory is out",
        )
    if policy == "noeviction":
        return Finding(
            status="warn",
            value=value,
            remedy="maxmemory-policy allkeys-lfu for a cache: with noeviction writes fail when it is full",
        )
    if used > 0.9 * limit:
        return Finding(status="warn", value=value, remedy="nearly full: raise maxmemory or shorten TTLs")
    return Finding(value=value)


def _mb(size: int) -> str:
    return f"{size / 1024**2:.1f} MB"


def _evictions(server: Server) -> Finding:
    info = server.info("stats")
    rejected = int(info.get("rejected_connections", 0))
    return Finding(
        status="warn" if rejected else "pass",
        value=f"{info.get('evicted_keys', '0')} keys evicted, {rejected} connections rejected",
        remedy="raise maxclients, or lower MAX_CONNECTIONS" if rejected else "",
    )


def _persistence(server: Server) -> Finding:
    info = server.info("persistence")
    failed = info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err"
    aof = "on" if info.get("aof_enabled") == "1" else "off"
    return Finding(
        status="fail" if failed else "pass",
        value=f"append only file {aof}, last snapshot {info.get('rdb_last_bgsave_status', 'unknown')}",
        remedy="free disk for the server: it refuses writes (MISCONF) until a snapshot succeeds"
        if failed
        else "",
    )


def _clients(server: Server) -> Finding:
    info = server.info("clients")
    now, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    tight = bool(most) and now > 0.8 * most
    return Finding(
        status="warn" if tight else "pass",
        value=f"{now} of {most or 'unknown'}",
        remedy="raise maxclients above workers times MAX_CONNECTIONS" if tight else "",
    )


def _clock(server: Server) -> Finding:
    seconds, micros = server.ask("TIME")
    skew = int(seconds) + int(micros) / 1e6 - time.time()
    off = abs(skew) > CLOCK_SKEW
    return Finding(
        status="warn" if off else "pass",
        value=f"{skew:+.2f} s from this host",
        remedy="run NTP on both" if off else "",
    )


def _role(server: Server) -> Finding:
    info = server.info("replication")
    replica = info.get("role") == "slave"
    return Finding(
        status="fail" if replica else "pass",
        value=info.get("role", "unknown"),
        remedy="this is a replica: point the URL at the primary" if replica else "",
    )


def _killing_connections(server: Server) -> Finding:
    # An id that no connection has: only whether the command is allowed is of interest.
    server.ask("CLIENT", "KILL", "ID", 2**62)
    return Finding(value="allowed")


_LOOKS: dict[str, Callable[[Server], Finding]] = {
    "round trip": _round_trip,
    "write, read, delete": _write_read_delete,
    "scripts (Lua)": _scripts,
    "version": _version,
    "role": _role,
    "memory": _memory,
    "evictions": _evictions,
    "persistence": _persistence,
    "clients": _clients,
    "clock": _clock,
    "killing connections": _killing_connections,
}
