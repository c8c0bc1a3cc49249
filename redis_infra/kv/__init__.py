"""A key-value store of record: Redis, Upstash REST, memory or a file behind one interface.

::

    from redis_infra.kv import get_store

    store = get_store()
    store.set("user:7:theme", "dark", ex=3600)
    store.get("user:7:theme")           # "dark"
    await store.aincr("signups")        # every method has an async twin

Settings and environment say which one (``find_store`` has the rule); importing opens nothing.
"""

from __future__ import annotations

from redis_infra.kv.base import KVStore, StoreHealth
from redis_infra.kv.commands import Command
from redis_infra.kv.factory import get_store
from redis_infra.kv.pipelines import Handle, Pipeline

__all__ = ["Command", "Handle", "KVStore", "Pipeline", "StoreHealth", "get_store"]
