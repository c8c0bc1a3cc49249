"""What a Django cache has to do, as tests that a site can run against its own configuration.

Subclass a suite in a test module of yours and give it a ``cache``, empty when a test starts::

    import pytest
    from django.core.cache import caches
    from redis_infra.testing.contract import CacheContract

    class TestOurCache(CacheContract):
        @pytest.fixture
        def cache(self):
            caches["default"].clear()
            yield caches["default"]
            caches["default"].clear()

=====================  ====================================================================================
``CacheContract``      Django's cache API to the letter, and what ``redis_infra.cache.RedisCache`` adds to it;
                       holds with Redis, without it, and while it comes and goes
``RedisFeatures-       what needs Redis itself: the exact TTL, locks, sets, hashes, sorted sets, raw clients
Contract``
``OutageContract``     what the methods that need Redis do while it is down
=====================  ====================================================================================

Every test runs twice, through the sync method and through its async twin. Importing this package needs
pytest. For assertions that show values, call
``pytest.register_assert_rewrite("redis_infra.testing.contract")`` in a ``conftest.py``, before the import.

This package knows Django's cache API and the errors of this app. It starts no server and makes no settings.
"""

from __future__ import annotations

from redis_infra.testing.contract.basics import BasicsContract
from redis_infra.testing.contract.calling import Call, ContractFixtures, eventually
from redis_infra.testing.contract.counters import CountersContract
from redis_infra.testing.contract.fills import FillsContract
from redis_infra.testing.contract.keys import KeysContract
from redis_infra.testing.contract.life import LifeContract
from redis_infra.testing.contract.many import ManyContract
from redis_infra.testing.contract.namespaces import NamespacesContract
from redis_infra.testing.contract.outage import OutageContract
from redis_infra.testing.contract.redis_features import RedisFeaturesContract
from redis_infra.testing.contract.timeouts import TimeoutsContract
from redis_infra.testing.contract.values import ValuesContract
from redis_infra.testing.contract.versions import VersionsContract

__all__ = [
    "BasicsContract",
    "CacheContract",
    "Call",
    "ContractFixtures",
    "CountersContract",
    "FillsContract",
    "KeysContract",
    "LifeContract",
    "ManyContract",
    "NamespacesContract",
    "OutageContract",
    "RedisFeaturesContract",
    "TimeoutsContract",
    "ValuesContract",
    "VersionsContract",
    "eventually",
]


class CacheContract(
    BasicsContract,
    ManyContract,
    TimeoutsContract,
    CountersContract,
    ValuesContract,
    KeysContract,
    VersionsContract,
    NamespacesContract,
    FillsContract,
    LifeContract,
):
    """The whole cache contract, sync and async. See the package's docstring for how to use it.

    Provide a fixture ``cache``, of VERSION 1; override ``make_cache`` where that cache is none of
    ``settings.CACHES``. The tests clear what they are given.
    """
