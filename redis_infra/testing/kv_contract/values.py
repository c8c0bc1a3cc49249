"""Contract of values: get, get_bytes and set, what may be stored, and under which conditions."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any

import pytest

from redis_infra.exceptions import StoreTypeError
from redis_infra.kv import KVStore
from redis_infra.testing.contract.calling import eventually
from redis_infra.testing.kv_contract.calling import BINARY, SHORT, StoreCall, StoreFixtures

__all__ = ["KEYS", "ValuesContract"]

TEXTS = [
    "", "text", " text ", "123", "null", '"quoted"', '{"a": [1]}', "\r\n$-1\r\n", "\x00", "a\x00b",
    "\ufeffbom", "üñïçødé € \U0001f40e", "e\u0301", "\u0663", "OK", "QUEUED", "%41%2F?a=b&c", "b2s=",
]  # fmt: skip
KEYS = [
    "", "k", "a b", " ", "a\nb", "\r\n", "a\x00b", "ключ", "\U0001f40e", "a/b?c=d&e#f%41", "*", "k?y", "[k]",
    "k\\", '"', "'; DROP TABLE rows --", "{slot}k", "{", "}{", "k" * 5000, "..", "a:b:c", "0", "_",
]  # fmt: skip
BLOBS = {
    "empty": b"",
    "every byte": BINARY,
    "no text": b"\xff\xfe",
    "half a character": "€".encode()[:2],
    "a surrogate": b"\xed\xa0\x80",
    "lines": b"\r\n\x00\r\n",
    "text": "ü".encode(),
    "OK": b"OK",
}


class Level(IntEnum):
    LOW = 1


class Color(StrEnum):
    RED = "red"


class Reading(float):
    """As NumPy's floats are: a float whose repr is something else."""

    def __repr__(self) -> str:
        return f"Reading({float(self)})"


NUMBERS: list[tuple[Any, str]] = [
    (0, "0"), (-7, "-7"), (2**63 - 1, "9223372036854775807"), (10**30, f"1{'0' * 30}"), (Level.LOW, "1"),
    (1.5, "1.5"), (-0.25, "-0.25"), (0.1, "0.1"), (1e300, "1e+300"), (Reading(1.5), "1.5"),
    (Color.RED, "red"),
]  # fmt: skip


class ValuesContract(StoreFixtures):
    """One value at a time."""

    def test_a_missing_key_is_none(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.get, "missing") is None
        assert call(store.get_bytes, "missing") is None

    def test_what_was_set_is_there(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.set, "k", "value") is True
        assert call(store.get, "k") == "value"
        assert call(store.get, "other") is None

    def test_set_replaces(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "old")
        assert call(store.set, "k", "new") is True
        assert call(store.get, "k") == "new"

    @pytest.mark.parametrize("text", TEXTS, ids=ascii)
    def test_a_text_comes_back_as_it_was(self, store: KVStore, call: StoreCall, text: str) -> None:
        call(store.set, "k", text)
        assert call(store.get, "k") == text
        assert call(store.get_bytes, "k") == text.encode()

    @pytest.mark.parametrize("name", BLOBS)
    def test_bytes_come_back_to_the_byte(self, store: KVStore, call: StoreCall, name: str) -> None:
        call(store.set, "k", BLOBS[name])
        assert call(store.get_bytes, "k") == BLOBS[name]

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    def test_what_is_like_bytes_is_stored_as_bytes(self, store: KVStore, call: StoreCall, kind: Any) -> None:
        call(store.set, "k", kind(BINARY))
        assert call(store.get_bytes, "k") == BINARY

    @pytest.mark.parametrize(("number", "text"), NUMBERS, ids=ascii)
    def test_a_number_is_stored_as_its_text(
        self, store: KVStore, call: StoreCall, number: Any, text: str
    ) -> None:
        call(store.set, "k", number)
        assert call(store.get, "k") == text

    def test_text_and_bytes_are_exactly_that(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "7")
        assert type(call(store.get, "k")) is str
        assert type(call(store.get_bytes, "k")) is bytes
        assert type(call(store.set, "k", "7")) is bool

    def test_bytes_that_are_text_are_read_as_text(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "ü€".encode())
        assert call(store.get, "k") == "ü€"

    @pytest.mark.parametrize("name", ["every byte", "no text", "half a character", "a surrogate"])
    def test_bytes_that_are_no_text_are_not_guessed_at(
        self, store: KVStore, call: StoreCall, name: str
    ) -> None:
        call(store.set, "k", BLOBS[name])
        with pytest.raises(StoreTypeError, match="get_bytes"):
            call(store.get, "k")
        assert call(store.get_bytes, "k") == BLOBS[name]

    def test_a_megabyte_comes_back(self, store: KVStore, call: StoreCall) -> None:
        text, blob = "ü" * 2**19, BINARY * 2**12
        call(store.set, "text", text)
        call(store.set, "blob", blob)
        assert call(store.get, "text") == text
        assert call(store.get_bytes, "blob") == blob

    @pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:20]))
    def test_any_text_is_a_key(self, store: KVStore, call: StoreCall, key: str) -> None:
        assert call(store.set, key, "value") is True
        assert call(store.get, key) == "value"
        assert call(store.exists, key) == 1
        assert call(store.incr, f"{key}#n") == 1
        assert call.scan(store, key) in ([key, f"{key}#n"], [f"{key}#n", key])
        assert call(store.delete, key) == 1
        assert call(store.get, key) is None

    def test_keys_that_look_alike_stay_apart(self, store: KVStore, call: StoreCall) -> None:
        keys = ["k", "K", "k ", " k", "k\x00", "\u00e9", "e\u0301", "0", "00", "k:", "k*"]
        for number, key in enumerate(keys):
            call(store.set, key, number)
        assert [call(store.get, key) for key in keys] == [str(number) for number in range(len(keys))]

    # Conditions

    def test_nx_stores_where_nothing_is(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.set, "k", "first", nx=True) is True
        assert call(store.get, "k") == "first"

    def test_nx_leaves_what_is_there(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "first", px=90_000)
        assert call(store.set, "k", "second", nx=True) is False
        assert call(store.set, "k", "second", nx=True, px=10_000) is False
        assert call(store.get, "k") == "first"
        assert call(store.pttl, "k") > 10_000

    def test_nx_takes_an_empty_value_for_something(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "")
        assert call(store.set, "k", "second", nx=True) is False
        assert call(store.set, "k", "third", xx=True) is True

    def test_xx_replaces_what_is_there(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "first")
        assert call(store.set, "k", "second", xx=True) is True
        assert call(store.get, "k") == "second"

    def test_xx_stores_nothing_where_nothing_is(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.set, "k", "value", xx=True) is False
        assert call(store.exists, "k") == 0

    def test_what_has_expired_is_nothing_to_nx_and_xx(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "old", px=SHORT)
        assert eventually(lambda: call(store.get, "k") is None)
        assert call(store.set, "k", "xx", xx=True) is False
        assert call(store.set, "k", "nx", nx=True) is True
        assert call(store.get, "k") == "nx"

    def test_nx_stores_again_after_a_delete(self, store: KVStore, call: StoreCall) -> None:
        call(store.set, "k", "old", nx=True)
        call(store.delete, "k")
        assert call(store.set, "k", "new", nx=True) is True
