"""Django's cache on Redis that stays up when Redis does not.

``"redis_infra.cache.RedisCache"`` is the string for ``CACHES[alias]["BACKEND"]``.
Importing this package opens nothing and does not import redis-py.
"""

from __future__ import annotations

from redis_infra.cache.backend import RedisCache

__all__ = ["RedisCache"]
