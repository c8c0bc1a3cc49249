"""Contract of keys: which are allowed, which are warned about, and how prefix and key function make them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.core.cache.backends.base import CacheKeyWarning

from redis_infra.testing.contract.calling import Call, ContractFixtures

__all__ = ["KeysContract"]

BAD_KEYS = ["key with spaces", "tab\tkey", "new\nline", "nul\x00", "del\x7f", "a" * 251, "b" * 248]
_bad_keys = pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: ascii(key)[:20])
_OPERATIONS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "get": lambda key: (key,),
    "set": lambda key: (key, 1),
    "add": lambda key: (key, 1),
    "touch": lambda key: (key,),
    "delete": lambda key: (key,),
    "has_key": lambda key: (key,),
    "incr": lambda key: (key,),
    "decr": lambda key: (key,),
    "incr_version": lambda key: (key,),
    "get_or_set": lambda key: (key, 1),
    "get_many": lambda key: ([key, "fine"],),
    "set_many": lambda key: ({key: 1, "fine": 1},),
    "delete_many": lambda key: ([key, "fine"],),
}
ODD_KEYS = [
    "*", "?", "a[b]c", "back\\slash", "a:b:c", "{tag}", "\u043a\u043b\u044e\u0447", "\U0001f511", "%s",
    "None", "0", "",
]  # fmt: skip


def hashed(key: str, prefix: str, version: int) -> str:
    """A key function unlike Django's: other order, other separators."""
    return f"{version}/{prefix}/<{key}>"


def lower(key: str, prefix: str, version: int) -> str:
    """A key function that maps two keys to one."""
    return f"{prefix}:{version}:{key.lower()}"


class KeysContract(ContractFixtures):
    """Names."""

    @pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
    def test_any_text_without_blanks_is_a_key(self, cache: Any, call: Call, key: str) -> None:
        call(cache.set, key, 1)
        call(cache.set, key + "x", 2)
        assert call(cache.incr, key) == 2
        assert call(cache.get_many, [key, key + "x"]) == {key: 2, key + "x": 2}
        assert call(cache.delete, key) is True
        assert call(cache.has_key, key + "x") is True

    @pytest.mark.parametrize(
        ("key", "text"), [(5, "5"), (None, "None"), (1.5, "1.5"), ((1, 2), "(1,2)")], ids=repr
    )
    def test_a_key_that_is_no_text_is_its_text(self, cache: Any, call: Call, key: Any, text: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheKeyWarning)  # the tuple's text has a blank
            call(cache.set, key, "value")
            assert call(cache.get, key) == "value"
            assert call(cache.get, str(key)) == "value"
            assert call(cache.get_many, [key]) == {key: "value"}

    @_bad_keys
    def test_a_key_that_memcached_refuses_works(self, cache: Any, call: Call, key: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheKeyWarning)
            call(cache.set, key, 1)
            assert call(cache.incr, key) == 2
            assert call(cache.get_many, [key]) == {key: 2}
            assert call(cache.delete, key) is True

    @_bad_keys
    def test_a_key_that_memcached_refuses_is_warned_about(self, cache: Any, call: Call, key: str) -> None:
        with pytest.warns(CacheKeyWarning, match="Cache key"):
            call(cache.get, key)

    @pytest.mark.parametrize("name", _OPERATIONS)
    def test_every_operation_warns_about_such_a_key(self, cache: Any, call: Call, name: str) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with suppress(ValueError):  # counters and versions of a missing key
                call(getattr(cache, name), *_OPERATIONS[name]("a b"))
        said = [str(each.message) for each in caught if each.category is CacheKeyWarning]
        assert any(repr(cache.make_key("a b")) in text for text in said)

    @pytest.mark.parametrize("name", _OPERATIONS)
    def test_a_key_that_memcached_takes_is_not_warned_about(self, cache: Any, call: Call, name: str) -> None:
        key = "k" * (250 - len(cache.make_key("")))
        call(cache.set, key, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CacheKeyWarning)
            call(getattr(cache, name), *_OPERATIONS[name](key))

    def test_a_key_of_ten_kilobytes_works(self, cache: Any, call: Call) -> None:
        key = "k" * 10_000
        with pytest.warns(CacheKeyWarning, match="longer than 250"):
            call(cache.set, key, 1)
        with pytest.warns(CacheKeyWarning, match="longer than 250"):
            assert call(cache.get, key) == 1

    def test_make_key_is_djangos(self, cache: Any) -> None:
        assert cache.make_key("k") == cache.key_func("k", cache.key_prefix, cache.version)
        assert cache.make_key("k", version=7) == cache.key_func("k", cache.key_prefix, 7)

    def test_what_the_key_function_raises_reaches_the_caller(
        self, cache: Any, call: Call, monkeypatch: Any
    ) -> None:
        def refuse(key: str, prefix: str, version: int) -> str:
            raise LookupError(key)

        # In a context: a fixture that clears the cache afterwards needs the function that was there.
        with monkeypatch.context() as patch:
            patch.setattr(cache, "key_func", refuse)
            with pytest.raises(LookupError, match="k"):
                call(cache.get, "k")
            with pytest.raises(LookupError, match="k"):
                call(cache.set_many, {"k": 1})

    def test_key_prefix_keeps_aliases_apart(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        other = make_cache(KEY_PREFIX="other")
        call(cache.set, "k", 1)
        call(other.set, "k", 2)
        assert (call(cache.get, "k"), call(other.get, "k")) == (1, 2)

    def test_key_prefix_can_be_reassigned(self, cache: Any, call: Call, monkeypatch: Any) -> None:
        call(cache.set, "k", "without")
        monkeypatch.setattr(cache, "key_prefix", "p")
        assert call(cache.get, "k") is None
        call(cache.set, "k", "with")
        assert call(cache.get_many, ["k"]) == {"k": "with"}
        assert call(cache.delete, "k") is True
        monkeypatch.undo()
        assert call(cache.get, "k") == "without"

    def test_version_can_be_reassigned(self, cache: Any, call: Call, monkeypatch: Any) -> None:
        call(cache.set, "k", "one")
        monkeypatch.setattr(cache, "version", 2)
        assert call(cache.get, "k") is None
        call(cache.set_many, {"k": "two"})
        assert call(cache.get, "k", version=1) == "one"
        monkeypatch.undo()
        assert call(cache.get, "k", version=2) == "two"

    def test_key_function_can_be_reassigned(self, cache: Any, call: Call, monkeypatch: Any) -> None:
        monkeypatch.setattr(cache, "key_func", lower)
        call(cache.set, "KEY", 1)
        assert call(cache.get_many, ["key", "Key"]) == {"key": 1, "Key": 1}
        monkeypatch.undo()
        assert call(cache.get, "KEY") is None
        assert call(cache.get, "key") == 1

    def test_key_function_of_the_settings_makes_the_keys(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        other = make_cache(KEY_FUNCTION=f"{__name__}.hashed", KEY_PREFIX="p")
        call(other.set, "k", 1)
        assert other.make_key("k") == "1/p/<k>"
        assert (call(other.get, "k"), call(cache.get, "k")) == (1, None)
        assert call(other.incr, "k") == 2

    def test_aliases_with_one_location_share_data(
        self, cache: Any, call: Call, make_cache: Callable[..., Any]
    ) -> None:
        other = make_cache()
        call(cache.set_many, {"a": 1, "b": 2})
        assert call(other.get_many, ["a", "b"]) == {"a": 1, "b": 2}
        assert call(other.incr, "a") == 2
        call(other.delete, "b")
        assert call(cache.get_many, ["a", "b"]) == {"a": 2}
