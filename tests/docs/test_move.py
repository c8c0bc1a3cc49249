"""The function of "Move between stores" copies to the byte, from any provider to any other and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from redis_infra.exceptions import StoreError
from redis_infra.kv import KVStore, get_store
from redis_infra.testing import ExternalServer, RedisServer, UpstashServer
from tests.docs.pages import page

HOUR = 3_600_000
KEPT: dict[str, str | bytes | int] = {
    "text": "dark",
    "empty": "",
    "": "under no name",
    "bytes": bytes(range(256)),
    "large": b"\xff" * 2**18,
    "odd:*?[x]\\ \U0010ffff": "ünïcödé",
    "number": 2**63 - 1,
}
LASTING = {f"session:{number}": str(number) for number in range(250)}

Copy = Callable[..., int]


@pytest.fixture
def copy() -> Copy:
    made: dict[str, Any] = {}
    blocks = page("how-to/move-between-stores.md").blocks("python")
    (source,) = [block.source for block in blocks if "def copy(" in block.source]
    exec(source, made)
    copy: Copy = made["copy"]
    return copy


@pytest.fixture
def stores(
    own_redis: Callable[..., RedisServer],
    redis_server: RedisServer | ExternalServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[dict[str, KVStore]]:
    """One of each provider, each by its name; Upstash's stands before another server."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("KV_URL", f"file://{tmp_path}/kv.sqlite3")
    with UpstashServer(own_redis()) as upstash:
        monkeypatch.setenv("UPSTASH_REDIS_REST_URL", upstash.url)
        monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", upstash.token)
        yield {name: get_store(name) for name in ("redis", "upstash", "file", "memory")}


def fill(store: KVStore) -> None:
    for key, value in KEPT.items():
        store.set(key, value)
    store.batch([("set", key, value, {"px": HOUR}) for key, value in LASTING.items()])


def content(store: KVStore) -> dict[str, bytes | None]:
    return {key: store.get_bytes(key) for key in store.scan()}


@pytest.mark.parametrize(("source", "target"), [*permutations(["redis", "upstash", "file", "memory"], 2)])
def test_what_is_stored_is_copied_to_the_byte(
    stores: dict[str, KVStore], copy: Copy, source: str, target: str
) -> None:
    fill(stores[source])
    assert copy(stores[source], stores[target]) == len(KEPT) + len(LASTING)
    assert content(stores[target]) == content(stores[source])
    assert {stores[target].pttl(key) for key in KEPT} == {-1}
    left = [stores[target].pttl(key) for key in LASTING]
    assert all(HOUR - 60_000 < each <= HOUR for each in left)


def test_copying_again_changes_nothing(stores: dict[str, KVStore], copy: Copy) -> None:
    fill(stores["redis"])
    copy(stores["redis"], stores["file"])
    before = content(stores["file"])
    copy(stores["redis"], stores["file"])
    assert content(stores["file"]) == before


def test_what_the_target_refuses_is_raised(stores: dict[str, KVStore], copy: Copy) -> None:
    from redis_infra.kv.memory_store import MemoryStore

    fill(stores["redis"])
    with pytest.raises(StoreError, match="full"):
        copy(stores["redis"], MemoryStore("small:", max_entries=100))
