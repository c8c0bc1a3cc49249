"""Contract of pipelines: one round trip, in order, one command's failure nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_infra.exceptions import CounterOverflow, StoreTypeError
from redis_infra.kv import KVStore, Pipeline
from redis_infra.testing.kv_contract.calling import BINARY, StoreCall, StoreFixtures
from redis_infra.testing.kv_contract.counters import MAX

__all__ = ["PipelinesContract"]

BOTH = pytest.mark.parametrize("kind", ["pipeline", "transaction"])
"""What holds for a pipeline holds for a transaction, which is one that nobody comes into."""

EVERY: list[tuple[str, Callable[[Pipeline], Any], Any]] = [
    ("get", lambda p: p.get("text"), "ü€"),
    ("get of nothing", lambda p: p.get("missing"), None),
    ("get_bytes", lambda p: p.get_bytes("bytes"), BINARY),
    ("mget", lambda p: p.mget("n", "missing", "text"), ["41", None, "ü€"]),
    ("mget of a list", lambda p: p.mget(["n", "text"]), ["41", "ü€"]),
    ("set", lambda p: p.set("new", BINARY, ex=60), True),
    ("set nx of what is there", lambda p: p.set("n", 1, nx=True), False),
    ("set xx of nothing", lambda p: p.set("new", 1, xx=True, px=5), False),
    ("set keepttl", lambda p: p.set("n", 1, keepttl=True), True),
    ("mset", lambda p: p.mset({"new": BINARY, "n": 1}), None),
    ("incr", lambda p: p.incr("n"), 42),
    ("incr by", lambda p: p.incr("n", -50), -9),
    ("incr once", lambda p: p.incr("n", 2, op_id="a"), 43),
    ("delete", lambda p: p.delete("n", "missing"), 1),
    ("exists", lambda p: p.exists(["n", "n", "missing"]), 2),
    ("expire", lambda p: p.expire("n", 60), True),
    ("expire of nothing", lambda p: p.expire("missing", 60), False),
    ("ttl", lambda p: p.ttl("n"), -1),
    ("ttl of nothing", lambda p: p.ttl("missing"), -2),
    ("pttl", lambda p: p.pttl("n"), -1),
]


class PipelinesContract(StoreFixtures):
    """Several commands at a time."""

    @BOTH
    @pytest.mark.parametrize(
        ("collect", "answer"), [each[1:] for each in EVERY], ids=[each[0] for each in EVERY]
    )
    def test_every_command_answers_as_it_does_alone(
        self, store: KVStore, call: StoreCall, kind: str, collect: Callable[[Pipeline], Any], answer: Any
    ) -> None:
        call(store.mset, {"text": "ü€", "bytes": BINARY, "n": 41})
        pipeline = getattr(store, kind)()
        handle = collect(pipeline)
        answers = call(pipeline.execute)
        assert answers == [answer]
        assert type(answers[0]) is type(answer)
        assert handle.value == answer

    @BOTH
    def test_commands_are_executed_in_their_order(self, store: KVStore, call: StoreCall, kind: str) -> None:
        pipeline = getattr(store, kind)()
        pipeline.get("n")
        pipeline.set("n", 1)
        pipeline.incr("n")
        pipeline.get("n")
        pipeline.delete("n")
        pipeline.get("n")
        assert call(pipeline.execute) == [None, True, 2, "2", 1, None]

    @BOTH
    def test_a_with_block_executes_at_its_end(self, store: KVStore, call: StoreCall, kind: str) -> None:
        def fill(pipeline: Pipeline) -> tuple[Any, ...]:
            return pipeline.set("n", 41), pipeline.incr("n"), pipeline.get_bytes("n")

        handles = call.within(getattr(store, kind)(), fill)
        assert [handle.value for handle in handles] == [True, 42, b"42"]

    @BOTH
    def test_nothing_is_executed_before(self, store: KVStore, call: StoreCall, kind: str) -> None:
        pipeline = getattr(store, kind)()
        handle = pipeline.set("k", "v")
        assert len(pipeline) == 1
        with pytest.raises(RuntimeError, match="not executed"):
            _ = handle.value
        assert call(store.exists, "k") == 0
        call(pipeline.execute)
        assert handle.value is True

    @BOTH
    def test_a_with_block_that_raises_sends_nothing_then_or_later(
        self, store: KVStore, call: StoreCall, kind: str
    ) -> None:
        pipeline = getattr(store, kind)()

        def fail(entered: Pipeline) -> None:
            entered.set("k", "v")
            raise LookupError

        with pytest.raises(LookupError):
            call.within(pipeline, fail)
        assert call(store.exists, "k") == 0
        assert call(pipeline.execute) == []
        assert call(store.exists, "k") == 0

    @BOTH
    def test_an_empty_one_does_nothing(self, store: KVStore, call: StoreCall, kind: str) -> None:
        assert call(getattr(store, kind)().execute) == []
        call.within(getattr(store, kind)(), lambda pipeline: None)

    @BOTH
    def test_it_can_be_used_again(self, store: KVStore, call: StoreCall, kind: str) -> None:
        pipeline = getattr(store, kind)()
        first = pipeline.incr("n")
        assert call(pipeline.execute) == [1]
        assert len(pipeline) == 0
        assert call(pipeline.execute) == []
        second = pipeline.incr("n")
        assert call(pipeline.execute) == [2]
        assert (first.value, second.value) == (1, 2)

    @BOTH
    def test_one_that_fails_is_one_error_among_the_answers(
        self, store: KVStore, call: StoreCall, kind: str
    ) -> None:
        pipeline = getattr(store, kind)()
        handles = pipeline.set("k", "text"), pipeline.incr("k"), pipeline.set("after", 1), pipeline.get("k")
        stored, failed, after, text = call(pipeline.execute)
        assert (stored, after, text) == (True, True, "text")
        assert isinstance(failed, StoreTypeError)
        assert (failed.index, failed.command) == (1, "incr")
        with pytest.raises(StoreTypeError):
            _ = handles[1].value
        assert handles[3].value == "text"
        assert call(store.mget, "k", "after") == ["text", "1"]

    @BOTH
    def test_every_kind_of_failure_has_its_place(self, store: KVStore, call: StoreCall, kind: str) -> None:
        call(store.mset, {"bytes": BINARY, "text": "text", "full": MAX})
        pipeline = getattr(store, kind)()
        pipeline.get("bytes")
        pipeline.incr("text")
        pipeline.incr("full")
        pipeline.incr("n")
        pipeline.mget("text", "bytes")
        pipeline.incr("text", op_id="a")
        pipeline.incr("full", op_id="a")
        answers = call(pipeline.execute)
        assert answers.pop(3) == 1
        assert [type(error) for error in answers] == [
            StoreTypeError, StoreTypeError, CounterOverflow, StoreTypeError, StoreTypeError, CounterOverflow,
        ]  # fmt: skip
        assert [error.index for error in answers] == [0, 1, 2, 4, 5, 6]

    def test_an_error_alone_is_of_no_pipeline(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {"bytes": BINARY, "text": "text"})
        for method, key in ((store.incr, "text"), (store.get, "bytes"), (store.mget, "bytes")):
            with pytest.raises(StoreTypeError) as caught:
                call(method, key)
            assert caught.value.index is None

    @BOTH
    def test_a_wrong_argument_is_an_error_at_once_and_takes_nobody_along(
        self, store: KVStore, call: StoreCall, kind: str
    ) -> None:
        pipeline = getattr(store, kind)()
        pipeline.set("k", "v")
        with pytest.raises(TypeError):
            pipeline.set("other", None)
        with pytest.raises(ValueError, match="nx"):
            pipeline.set("other", 1, nx=True, xx=True)
        assert call(pipeline.execute) == [True]
        assert call.scan(store) == ["k"]

    @BOTH
    def test_a_thousand_commands(self, store: KVStore, call: StoreCall, kind: str) -> None:
        pipeline = getattr(store, kind)()
        for number in range(500):
            pipeline.set(f"k{number}", number)
            pipeline.incr("n")
        answers = call(pipeline.execute)
        assert answers[::2] == [True] * 500
        assert answers[1::2] == list(range(1, 501))
        assert call(store.mget, "k0", "k499", "n") == ["0", "499", "500"]

    @BOTH
    def test_megabytes_in_one(self, store: KVStore, call: StoreCall, kind: str) -> None:
        pipeline = getattr(store, kind)()
        for number in range(3):
            pipeline.set(f"k{number}", BINARY * 2**12)
            pipeline.get_bytes(f"k{number}")
        assert call(pipeline.execute)[1::2] == [BINARY * 2**12] * 3

    @BOTH
    def test_two_do_not_mix(self, store: KVStore, call: StoreCall, kind: str) -> None:
        one, other = getattr(store, kind)(), getattr(store, kind)()
        one.set("k", "one")
        other.get("k")
        one.get("k")
        assert call(other.execute) == [None]
        assert call(one.execute) == [True, "one"]

    def test_the_async_names_are_there(self, store: KVStore, call: StoreCall) -> None:
        for pipeline in (store.apipeline(), store.atransaction()):
            pipeline.incr("n")
            pipeline.incr("n")
            first, second = call(pipeline.execute)
            assert second == first + 1

    def test_several_at_once_each_get_their_own_answers(self, store: KVStore, call: StoreCall) -> None:
        call(store.mset, {f"k{number}": number for number in range(20)})

        def read(mine: StoreCall) -> None:
            for turn in range(30):
                pipeline = store.pipeline()
                keys = [f"k{(turn + number) % 20}" for number in range(5)]
                for key in keys:
                    pipeline.get(key)
                assert mine(pipeline.execute) == [key[1:] for key in keys]

        with call.beside(read), call.beside(read), call.beside(read):
            read(call)
