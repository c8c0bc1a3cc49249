"""Plans of the cache whose two halves, Redis' and memory's, have to agree on one answer."""

from __future__ import annotations

import pytest

from redis_infra.cache import operations
from redis_infra.cache.fallback import FallbackStore, Missing


class Home:
    namespace = "site:*"


@pytest.fixture
def store() -> FallbackStore:
    return FallbackStore(100, 10_000, 30.0)


def test_a_pattern_counts_what_memory_had_though_redis_fails_halfway(store):
    """What was taken from memory before Redis was asked is not there any more when memory answers."""
    store.set("site:a", b"1", None)

    def take(pattern: str) -> set[str]:
        names = set(store.names(pattern))
        store.delete(*names)
        return names

    plan = operations.clear("site:*", Home(), batch=10, also=take)
    talk = plan.talk()
    next(talk)
    talk.close()
    store.set("site:b", b"2", None)
    assert plan.local(store) == 2


def test_a_sum_begins_in_memory_where_only_a_redis_that_refuses_stores_has_the_value(store):
    plan = operations.replace("site:f", Home(), b"1.5", b"2.0", create=True)
    assert plan.local(store) is True
    assert store.get("site:f") == b"2.0"


def test_a_sum_in_memory_alone_does_not_bring_back_what_was_deleted(store):
    plan = operations.replace("site:f", Home(), b"1.5", b"2.0", create=False)
    with pytest.raises(Missing):
        plan.local(store)


def test_two_who_add_to_the_same_value_are_not_both_told_that_they_did(store):
    """The second finds what it wanted to write, because the first wrote the same: it has to add once more."""
    store.set("site:f", b"1.5", None)
    plan = operations.replace("site:f", Home(), b"1.5", b"2.0", create=True)
    assert [plan.local(store), plan.local(store)] == [True, False]
