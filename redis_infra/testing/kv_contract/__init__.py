"""What a key-value store has to do, as tests for the provider of a site's own.

Subclass the suite in a test module of yours and give it a ``store``, empty when a test starts::

    import pytest
    from redis_infra.testing.kv_contract import KVStoreContract

    class TestOurStore(KVStoreContract):
        @pytest.fixture
        def store(self):
            store = OurStore("contract:kv:")
            yield store
            store.close()

======================  ===================================================================================
``KVStoreContract``     every method of ``KVStore``, its arguments and errors, pipelines and transactions,
                        threads, event loops and forks
``OtherTypesContract``  for stores in which others keep lists too: give it a ``make_list``
``FullStoreContract``   for stores that can be full: give it a ``full_store``
======================  ===================================================================================

Every test runs twice, through the sync method and through its async twin. Override the fixture ``secrets``
to have passwords and tokens looked for where they must not show. Importing this package needs pytest. For
assertions that show values, call ``pytest.register_assert_rewrite("redis_infra.testing.kv_contract")`` in a
``conftest.py``, before the import.

This package knows ``KVStore`` and the errors of this app. It starts no server and makes no settings.
"""

from __future__ import annotations

from redis_infra.testing.kv_contract.arguments import ArgumentsContract
from redis_infra.testing.kv_contract.batches import BatchesContract
from redis_infra.testing.kv_contract.calling import Dealt, StoreCall, StoreFixtures
from redis_infra.testing.kv_contract.concurrency import ConcurrencyContract
from redis_infra.testing.kv_contract.counters import CountersContract
from redis_infra.testing.kv_contract.errors import ErrorsContract
from redis_infra.testing.kv_contract.life import LifeContract
from redis_infra.testing.kv_contract.lifetimes import LifetimesContract
from redis_infra.testing.kv_contract.many import ManyContract
from redis_infra.testing.kv_contract.once import OnceContract
from redis_infra.testing.kv_contract.pipelines import PipelinesContract
from redis_infra.testing.kv_contract.scanning import ScanningContract
from redis_infra.testing.kv_contract.special import FullStoreContract, OtherTypesContract
from redis_infra.testing.kv_contract.transactions import TransactionsContract
from redis_infra.testing.kv_contract.values import ValuesContract

__all__ = [
    "ArgumentsContract",
    "BatchesContract",
    "ConcurrencyContract",
    "CountersContract",
    "Dealt",
    "ErrorsContract",
    "FullStoreContract",
    "KVStoreContract",
    "LifeContract",
    "LifetimesContract",
    "ManyContract",
    "OnceContract",
    "OtherTypesContract",
    "PipelinesContract",
    "ScanningContract",
    "StoreCall",
    "StoreFixtures",
    "TransactionsContract",
    "ValuesContract",
]


class KVStoreContract(
    ValuesContract,
    LifetimesContract,
    CountersContract,
    OnceContract,
    ManyContract,
    ScanningContract,
    PipelinesContract,
    BatchesContract,
    TransactionsContract,
    ConcurrencyContract,
    ArgumentsContract,
    ErrorsContract,
    LifeContract,
):
    """The whole contract of a store, sync and async. See the package's docstring for how to use it."""
