"""Contract of wrong arguments: the caller hears of them at once, and nothing was executed."""

from __future__ import annotations

import inspect
import math
from datetime import timedelta
from typing import Any

import pytest

from redis_infra.kv import KVStore
from redis_infra.testing.kv_contract.calling import StoreCall, StoreFixtures

__all__ = ["ArgumentsContract"]

Wrong = tuple[str, tuple[Any, ...], dict[str, Any], type[Exception]]

NO_KEYS: list[Any] = [None, 5, b"k", True, 1.5]
NO_VALUES: list[Any] = [None, True, False, [], ["a"], {}, {"a": 1}, (), object(), 1j, timedelta(1), {1}]
NO_SECONDS: list[Any] = ["60", b"60", True, [60], 1j, object()]
NO_TIMES: list[Any] = [math.inf, -math.inf, math.nan, 10**30, -(10**30), 1e300]

MANY = ["mget", "delete", "exists"]
NONE_AT_ALL: list[tuple[Any, ...]] = [(), ([],), ([], ())]
ONE_OF_THEM: list[tuple[Any, ...]] = [(["k", 5],), ("k", None), ([["k"]],), (["k", b"k"],)]

WRONG: list[Wrong] = [
    ("set", ("k", "new"), {"ex": 60, "px": 60_000}, ValueError),
    ("set", ("k", "new"), {"nx": True, "xx": True}, ValueError),
    ("set", ("k", "new"), {"keepttl": True, "ex": 60}, ValueError),
    ("set", ("k", "new"), {"keepttl": True, "px": 60}, ValueError),
    *[("set", ("k", "new"), {"ex": ex}, ValueError) for ex in (0, -1, 0.0, -0.5, timedelta(0))],
    *[("set", ("k", "new"), {"px": px}, ValueError) for px in (0, -1, 2**61, 10**30)],
    *[("set", ("k", "new"), {"px": px}, TypeError) for px in ("5", 5.0, timedelta(1), True)],
    *[("set", ("k", "new"), {"ex": ex}, TypeError) for ex in NO_SECONDS],
    *[("set", ("k", "new"), {"ex": ex}, ValueError) for ex in NO_TIMES],
    *[("set", ("k", value), {}, TypeError) for value in NO_VALUES],
    ("set", ("k", "\ud800"), {}, ValueError),
    ("set", ("k", "new", 60), {}, TypeError),
    ("set", ("k",), {}, TypeError),
    ("set", ("k", "new"), {"timeout": 60}, TypeError),
    *[("expire", ("k", seconds), {}, TypeError) for seconds in [*NO_SECONDS, None]],
    *[("expire", ("k", seconds), {}, ValueError) for seconds in NO_TIMES],
    *[("incr", ("k", by), {}, TypeError) for by in (None, "1", 1.0, 1.5, True, b"1")],
    *[("incr", ("k", by), {}, ValueError) for by in (2**63, -(2**63) - 1, 10**30)],
    *[("incr", ("k",), {"op_id": op_id}, TypeError) for op_id in (5, b"a", True)],
    *[("incr", ("k",), {"op_id": op_id}, ValueError) for op_id in ("", "\ud800")],
    ("mset", ({},), {}, ValueError),
    *[("mset", (mapping,), {}, TypeError) for mapping in (None, [("k", 1)], "k", 5)],
    *[("mset", ({"k": "new", "other": value},), {}, TypeError) for value in NO_VALUES],
    *[("mset", ({"other": "new", key: "new"},), {}, TypeError) for key in NO_KEYS],
    ("mset", ({"other": "new", "\ud800": "new"},), {}, ValueError),
    *[(name, (key, *rest), {}, TypeError) for key in NO_KEYS for name, *rest in (
        ("get",), ("get_bytes",), ("set", "new"), ("incr",), ("expire", 60), ("ttl",), ("pttl",),
        ("mget",), ("delete",), ("exists",),
    )],
    *[(name, ("\ud800", *rest), {}, ValueError) for name, *rest in (
        ("get",), ("get_bytes",), ("set", "new"), ("incr",), ("expire", 60), ("ttl",), ("pttl",),
        ("mget",), ("delete",), ("exists",),
    )],
    *[(name, keys, {}, ValueError) for name in MANY for keys in NONE_AT_ALL],
    *[(name, keys, {}, TypeError) for name in MANY for keys in ONE_OF_THEM],
]  # fmt: skip

METHODS = [
    "get", "get_bytes", "mget", "set", "mset", "incr", "delete", "exists", "expire", "ttl", "pttl", "scan",
    "pipeline", "transaction", "batch", "ping", "health", "close", "call", "execute",
]  # fmt: skip


class ArgumentsContract(StoreFixtures):
    """What callers must not write, and what they may."""

    @pytest.mark.parametrize("name", list(dict.fromkeys(name for name, *_ in WRONG)))
    def test_a_wrong_argument_is_an_error_and_nothing_is_executed(
        self, store: KVStore, call: StoreCall, name: str
    ) -> None:
        call(store.set, "k", "7", ex=60)
        for _, arguments, named, expected in [wrong for wrong in WRONG if wrong[0] == name]:
            raised = _raised(call, getattr(store, name), *arguments, **named)
            assert isinstance(raised, expected), f"{name}: {arguments} {named}"
            assert str(raised)
            assert call(store.get, "k") == "7", f"{name}: {arguments} {named}"
            assert 0 < call(store.pttl, "k") <= 60_000, f"{name}: {arguments} {named}"
        assert call.scan(store) == ["k"]

    @pytest.mark.parametrize("prefix", [*NO_KEYS, ["k"]], ids=ascii)
    def test_a_prefix_is_text(self, store: KVStore, call: StoreCall, prefix: Any) -> None:
        with pytest.raises(TypeError):
            call.scan(store, prefix)

    def test_a_value_is_not_quoted_in_an_error(self, store: KVStore, call: StoreCall) -> None:
        """It may be what nobody should read in a log."""
        for value in (["hunter2"], {"password": "hunter2"}, "hunter2\ud800"):
            with pytest.raises((TypeError, ValueError)) as caught:
                call(store.set, "k", value)
            assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("name", METHODS)
    def test_every_method_has_an_async_twin_with_its_arguments(self, store: KVStore, name: str) -> None:
        sync, twin = getattr(store, name), getattr(store, f"a{name}")
        assert list(inspect.signature(sync).parameters) == list(inspect.signature(twin).parameters)

    def test_arguments_may_be_named(self, store: KVStore, call: StoreCall) -> None:
        assert call(store.set, key="k", value=1, ex=60, nx=True) is True
        assert call(store.incr, key="k", by=2, op_id="a") == 3
        assert call(store.expire, key="k", seconds=60) is True
        assert call(store.get, key="k") == "3"
        assert call(store.mset, mapping={"k": 1}) is None
        assert call(store.batch, calls=[("get", "k")]) == ["1"]
        assert call(store.ttl, key="k") == call(store.pttl, key="k") == -1


def _raised(call: StoreCall, method: Any, *args: Any, **kwargs: Any) -> Exception | None:
    try:
        call(method, *args, **kwargs)
    except Exception as error:  # which one it is, is what is tested
        return error
    return None
