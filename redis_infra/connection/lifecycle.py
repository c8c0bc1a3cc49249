"""What lives once a process: endpoints by server, and what a fork or a shutdown does to them.

Nothing is opened here. The fork hook is registered with the first database, not
on import; processes that never use the cache are left alone.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from redis_infra.conf import BreakerPolicy, JournalLimits
from redis_infra.connection.endpoint import Database, Endpoint
from redis_infra.connection.options import ConnectionOptions
from redis_infra.instrumentation import reset_log
from redis_infra.resilience.statedir import StateDir

__all__ = ["aclose_all", "close_all", "databases", "open_database", "reset_for_tests", "running"]

_lock = threading.RLock()
_endpoints: dict[str, Endpoint] = {}
_state_dirs: dict[str | None, StateDir] = {}
_fork_hook_registered = False


class Policy(Protocol):
    """What the settings of an alias, or of the site, say of a database."""

    @property
    def breaker(self) -> BreakerPolicy: ...
    @property
    def journal(self) -> JournalLimits: ...
    @property
    def state_dir(self) -> str | None: ...


def running(options: ConnectionOptions) -> ConnectionOptions:
    """Return the options of a server that runs: one of the site's own (``embedded://``) is started."""
    if options.scheme != "embedded":
        return options
    from redis_infra.connection.embedded import embedded_options

    return embedded_options(options)


def open_database(options: ConnectionOptions, policy: Policy) -> Database:
    """Return the process' one view of a database; the first caller's policy holds.

    Aliases on one server share its circuits, and with them one detection of an
    outage; aliases on one database share its journal and fallback too. Opens no connection. Thread-safe.
    """
    with _lock:
        _register_fork_hook()
        endpoint = _endpoints.get(options.server)
        if endpoint is None:
            endpoint = _endpoints[options.server] = Endpoint(options.server, policy.breaker)
        # With the password: a wrong one closes the door to the alias that has it, and to no other.
        key = (options.database, options.password)
        database = endpoint.databases.get(key)
        if database is None:
            database = Database(endpoint, options, policy, _state_dir(policy.state_dir))
            endpoint.databases[key] = database
        return database


def _state_dir(setting: str | None) -> StateDir:
    if setting not in _state_dirs:
        _state_dirs[setting] = StateDir.open(setting)
    return _state_dirs[setting]


def databases() -> list[Database]:
    """Every database that this process has used so far."""
    return [database for endpoint in list(_endpoints.values()) for database in endpoint.databases.values()]


def close_all() -> None:
    """Close every connection of the process; the next operation opens new ones."""
    for database in databases():
        database.close()


async def aclose_all() -> None:
    """Close the connections of the running event loop."""
    for database in databases():
        await database.aclose()


def reset_for_tests() -> None:
    """Forget every endpoint with its connections, circuits and journals; start as a new process would."""
    with _lock:
        known, state_dirs = databases(), list(_state_dirs.values())
        _endpoints.clear()
        _state_dirs.clear()
    reset_log()
    for database in known:
        # Before its status goes, or the next round of its prober would write it again.
        database.endpoint.prober.retire()
        database.close()
        database.state_dir.clear_status(database.options.database)
    for state_dir in state_dirs:
        state_dir.close()


def _register_fork_hook() -> None:
    global _fork_hook_registered
    if not _fork_hook_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
        _fork_hook_registered = True


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for state_dir in _state_dirs.values():
        state_dir.after_fork()
    for endpoint in _endpoints.values():
        endpoint.after_fork()
