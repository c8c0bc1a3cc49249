"""Rate limits that hold: in any window, over any number of processes and hosts, and while Redis is away.

::

    from redis_infra.throttling import RateLimiter

    decision = RateLimiter().hit("search", "user:7")
    if not decision:
        ...  # decision.retry_after seconds

``redis_infra.throttling.drf`` is for Django REST framework, ``.decorators`` and ``.middleware`` for Django.
Importing this package opens nothing and does not import redis-py.
"""

from __future__ import annotations

from redis_infra.throttling.decisions import Decision, LimitState
from redis_infra.throttling.limiter import RateLimiter
from redis_infra.throttling.policies import Policy
from redis_infra.throttling.rates import Rate

__all__ = ["Decision", "LimitState", "Policy", "Rate", "RateLimiter"]
