"""Contract of errors: of our tree, with the facts in them, and with nothing that should not be read."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from redis_infra.exceptions import CounterOverflow, StoreError, StoreRejected, StoreTypeError
from redis_infra.kv import Command, KVStore
from redis_infra.kv.commands import Word
from redis_infra.testing.kv_contract.calling import BINARY, StoreCall, StoreFixtures
from redis_infra.testing.kv_contract.counters import MAX

__all__ = ["ErrorsContract"]


class Unheard(Command[Any]):
    """A command that no store knows."""

    name = "unheard"
    writes = True

    @property
    def words(self) -> tuple[Word, ...]:
        return "UNHEARD.OF", "word"

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    def read(self, reply: Any) -> Any:
        return reply


class ErrorsContract(StoreFixtures):
    """What goes wrong, said so that callers can decide and logs can keep it."""

    @pytest.mark.parametrize(
        ("name", "value", "kind"),
        [
            ("get", BINARY, StoreTypeError),
            ("mget", BINARY, StoreTypeError),
            ("incr", "hunter2", StoreTypeError),
            ("incr", MAX, CounterOverflow),
        ],
        ids=ascii,
    )
    def test_an_error_has_the_facts_and_shows_no_key_and_no_value(
        self, store: KVStore, call: StoreCall, name: str, value: Any, kind: type[StoreError]
    ) -> None:
        key = "session:s3cr3t"
        call(store.set, key, value)
        with pytest.raises(StoreError) as caught:
            call(getattr(store, name), key)
        error = caught.value
        assert type(error) is kind
        assert isinstance(error, StoreRejected)
        assert (error.command, error.key) == (name, store.commands.home + key)
        assert error.reason
        for shown in (str(error), repr(error)):
            assert name in shown
            assert "s3cr3t" not in shown
            assert "hunter2" not in shown

    def test_an_error_can_be_pickled_and_copied(self, store: KVStore, call: StoreCall) -> None:
        """As task queues and process pools do."""
        call(store.set, "k", "text")
        with pytest.raises(StoreTypeError) as alone:
            call(store.incr, "k")
        among = call(store.batch, [("get", "k"), ("incr", "k")])[1]
        for error in (alone.value, among):
            for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                assert type(twin) is type(error)
                assert str(twin) == str(error)
                assert (twin.key, twin.index) == (error.key, error.index)

    def test_nobody_counts_after_an_error_other_than_before(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "text")
        for _ in range(5):
            with pytest.raises(StoreTypeError):
                call(store.incr, "k")
            assert call(store.get, "k") == "text"

    def test_a_command_that_is_unknown_is_refused(self, store: KVStore, call: StoreCall) -> None:
        """Of our tree, whatever the store is; and who comes next is served."""
        with pytest.raises(StoreRejected):
            call(store.call, Unheard())
        assert call(store.set, "k", "v") is True

    def test_an_unknown_command_in_a_pipeline_takes_nobody_along(
        self, store: KVStore, call: StoreCall
    ) -> None:
        pipeline = store.pipeline()
        pipeline.incr("n")
        pipeline.add(Unheard())
        pipeline.incr("n")
        first, refused, second = call(pipeline.execute)
        assert (first, second) == (1, 2)
        assert isinstance(refused, StoreRejected)
        assert refused.index == 1

    def test_no_secret_shows(self, store: KVStore, call: StoreCall, secrets: tuple[str, ...]) -> None:
        call(store.set, "k", "text")
        with pytest.raises(StoreTypeError) as caught:
            call(store.incr, "k")
        health = call(store.health)
        shown = [
            repr(store),
            str(store),
            store.where,
            repr(health),
            str(caught.value),
            repr(caught.value),
            repr(store.commands),
        ]
        for secret in secrets:
            assert not [text for text in shown if secret in text]

    def test_a_repr_says_which_store_it_is(self, store: KVStore) -> None:
        assert repr(store).startswith(type(store).__name__)
        assert store.where in repr(store)
