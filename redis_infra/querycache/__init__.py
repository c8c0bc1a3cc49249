"""The query cache: what functions return is kept, computed once, and forgotten by pattern, tag or model.

::

    @cached("user:{user_id}", ttl="user")
    def get_user(user_id): ...

    invalidate("chat:42:*")
"""

from __future__ import annotations

from redis_infra.querycache.decorators import cached
from redis_infra.querycache.invalidation import ainvalidate, invalidate
from redis_infra.querycache.many import cached_many
from redis_infra.querycache.models import InvalidatingQuerySet, invalidate_for, invalidate_on
from redis_infra.querycache.warming import warmer

__all__ = [
    "InvalidatingQuerySet",
    "ainvalidate",
    "cached",
    "cached_many",
    "invalidate",
    "invalidate_for",
    "invalidate_on",
    "warmer",
]
