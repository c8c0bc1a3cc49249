"""Whether it is Redis that answers: for who has no use for what memory would say.

A warmer that filled the memory of a management command would have done nothing, and must know it.
"""

from __future__ import annotations

import enum
from typing import Any, Final, TypeVar

from redis_infra.cache.engine import RedisEngine
from redis_infra.cache.fallback import FallbackStore
from redis_infra.cache.operations import Plan
from redis_infra.connection.wire import pack
from redis_infra.querycache.space import Space
from redis_infra.resilience.failover import Kind

__all__ = ["ask", "check_reach", "is_in_memory"]

T = TypeVar("T")


class _Nobody(enum.Enum):
    NOBODY = "NOBODY"


_NOBODY: Final = _Nobody.NOBODY


def ask(space: Space, plan: Plan) -> Any:
    """Return Redis' own answer to a plan; memory's only where an alias has nothing else.

    Raises:
        RedisUnavailable: it cannot be reached, refuses, or is not trusted with these keys yet.
    """
    engine = space.engine
    if isinstance(engine, RedisEngine):
        plan.local = _nobody
    answer = engine.run(plan)
    if answer is _NOBODY and isinstance(engine, RedisEngine):
        raise engine.unavailable()
    return answer


def check_reach(space: Space, *, stores: bool = True) -> None:
    """Send one PING.

    Raises:
        RedisUnavailable: nobody answered it; with ``stores`` also if Redis stores nothing now.
    """
    ask(space, Plan(Kind.READ, (), None, _nobody, packed=pack("PING")))
    engine = space.engine
    if stores and isinstance(engine, RedisEngine) and engine.is_degraded:
        raise engine.unavailable()


def is_in_memory(space: Space) -> bool:
    """Whether an alias has no Redis at all, so that each process keeps its own values."""
    return space.engine.is_memory


def _nobody(_store: FallbackStore) -> Any:
    return _NOBODY
