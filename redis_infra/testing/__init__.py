"""What a site needs to test itself against Redis, and against Redis being down.

=====================  =====================================================================
``outage``             pretend that Redis is down, for a block
``RedisServer``        a real server of your own: start, kill, freeze, restart
``ExternalServer``     the same for one that runs already, as far as it goes
``TcpProxy``           a proxy that delays, drops, resets, cuts, refuses and counts
``UpstashServer``      Upstash's REST API before a server of your own, and its faults
``FakeClock``          time that moves when the test says so
``.plugin``            pytest fixtures: ``redis_server``, ``redis_down``, ``redis_frozen`` ...
``.contract``          Django's cache contract as test classes
``.kv_contract``       the contract of a ``KVStore``, for a provider of your own
=====================  =====================================================================

Nothing of the app imports this package. The pytest plugin imports it in every
test run of every site that has the app installed, so most names are loaded when
they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not on use like the others: the module has the function's name, and whichever is imported first would win.
from redis_infra.testing.outage import outage

if TYPE_CHECKING:
    from redis_infra.testing.clock import FakeClock
    from redis_infra.testing.proxy import TcpProxy
    from redis_infra.testing.server import ExternalServer, RedisServer, ServerError
    from redis_infra.testing.upstash import UpstashServer

__all__ = ["ExternalServer", "FakeClock", "RedisServer", "ServerError", "TcpProxy", "UpstashServer", "outage"]

_HOMES = {
    "ExternalServer": "server",
    "FakeClock": "clock",
    "RedisServer": "server",
    "ServerError": "server",
    "TcpProxy": "proxy",
    "UpstashServer": "upstash",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
