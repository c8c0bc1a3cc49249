"""The index of the query cache: a pattern removes exactly what it is for, and costs what it removes."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from redis_infra.keys import escape, glob_to_regex
from redis_infra.querycache import cached, invalidate
from redis_infra.querycache.entries import NOBODY, new_token, now_ms, pack_entry
from redis_infra.querycache.index import BUCKETS, Selection, bucket_of
from redis_infra.querycache.space import Filling, Space, space_for
from tests.faults.site import wait_until

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

BASE = "site:1:qc:"
DAY = 24 * 3600 * 1000


class Keeper:
    """The query cache of an alias on a server, and what lies in it."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    @property
    def space(self) -> Space:
        space = space_for("default")
        assert space is not None
        return space

    def store(
        self,
        keys: Iterable[str],
        *,
        tags: Callable[[str], list[str]] = lambda _: [],
        size: int = 1,
        ttl: int = DAY,
        is_tight: bool = False,
    ) -> None:
        """Store entries as ``cached`` does, a thousand in a round trip.

        With ``is_tight`` the server may evict the leases before they are filled.
        """
        rest = list(keys)
        for at in range(0, len(rest), 1000):
            places = [self.space.place(key, tags(key)) for key in rest[at : at + 1000]]
            tokens = [new_token() for _ in places]
            engine = self.space.engine
            answers = engine.run(self.space.acquire_many(places, tokens, [NOBODY] * len(places), DAY))
            assert all(answer[0] == b"granted" for answer in answers)
            fillings = [
                Filling(place, token, self._raw(place, token, size), ttl)
                for place, token in zip(places, tokens, strict=True)
            ]
            assert all(engine.run(self.space.fill_many(fillings))) or is_tight

    def _raw(self, place: Any, token: bytes, size: int) -> bytes:
        stamps = self.space.engine.run(self.space.stamps(place.stamps, DAY)) if place.stamps else []
        ends = now_ms() + DAY
        return pack_entry(token, fresh=ends, dead=ends, cost=0, version=1, stamps=stamps, payload=b"x" * size)

    def stored(self) -> set[str]:
        """Return the keys of all entries that there are, as the server knows them."""
        found, cursor = set(), b"0"
        while True:
            cursor, names = self.server.command("SCAN", cursor, "MATCH", f"{BASE}*", "COUNT", 10_000)
            found |= {name.decode().removeprefix(BASE) for name in names}
            if cursor == b"0":
                return found

    @property
    def indexes(self) -> list[str]:
        return [f"site:1:qci:{{{bucket}}}" for bucket in range(BUCKETS)]

    def members(self) -> int:
        return sum(self.server.command("ZCARD", name) for name in self.indexes)

    def memory(self) -> int:
        used = [self.server.command("MEMORY", "USAGE", name, "SAMPLES", 0) for name in self.indexes]
        return sum(filter(None, used))

    def are_complete(self) -> bool:
        return all(self.server.command("ZSCORE", name, "!") is not None for name in self.indexes)

    def calls(self, action: Callable[[], Any]) -> dict[str, int]:
        """Return how often the server has executed which command in the meantime."""
        self.server.command("CONFIG", "RESETSTAT")
        action()
        said = self.server.command("INFO", "commandstats").decode()
        return {name: int(count) for name, count in re.findall(r"cmdstat_(\S+?):calls=(\d+)", said)}


@pytest.fixture
def use(settings: Any, tmp_path: Any) -> Callable[[str], None]:
    def use(url: str) -> None:
        options = {"STATE_DIR": str(tmp_path / "state"), "COMMAND_TIMEOUT": "10s"}
        backend = "redis_infra.cache.RedisCache"
        settings.CACHES = {
            "default": {"BACKEND": backend, "LOCATION": url, "KEY_PREFIX": "site", "OPTIONS": options}
        }

    return use


@pytest.fixture
def keeper(redis_server: RedisServer, redis_infra_url: str, use: Callable[[str], None]) -> Keeper:
    use(redis_infra_url)
    return Keeper(redis_server)


@pytest.fixture
def trusted(keeper: Keeper) -> Keeper:
    """A query cache whose index is complete: somebody has looked at all keys that there are."""
    invalidate("nothing:*")
    assert keeper.are_complete()
    return keeper


# --- what a pattern removes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_a_thousand_of_very_many(count: int, trusted: Keeper) -> None:
    chats = count // 1000
    trusted.store(f"chat:{number % chats}:m:{number}" for number in range(count))
    calls = trusted.calls(lambda: invalidate("chat:4:*"))
    assert calls["zrangebylex"] + calls["unlink"] <= 4
    left = trusted.stored()
    assert len(left) == count - 1000
    assert not [key for key in left if key.startswith("chat:4:")]


KEYS = [
    "chat:1:m:1", "chat:1:m:2", "chat:1:x", "chat:1", "chat:10:m:1", "chat:2:m:1", "chat", "chats:1:m:1",
    "user:1", "user:1:m:1", "a%2Ab:1", "\u017c\u00f3\u0142w:1:m:1", "~None:1:m:1",
]  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [
        "chat:1:*", "chat:1:m:*", "chat:1*", "chat:*", "chat*", "chat:1", "nobody:*",
        "chat:?:m:1", "chat:*:m:1", "chat:1:*:1", "chat:[12]:*", "chat:[^1]:*", "c?at:1:*",
        "*:m:1", "*1*", "?ser:*", "[cu]*:1", "*:1:*", "\u017c\u00f3\u0142w:*", "*\u0142w:1:*",
        "chat\\:1:*", "chat:1:m:\\1", "a%2Ab:*", "~None:*", "chat:1:**", "chat:1:", "[", "chat:1:\\",
    ],
)  # fmt: skip
def test_a_pattern_removes_what_its_glob_matches(pattern: str, trusted: Keeper) -> None:
    trusted.store(KEYS)
    wanted = {key for key in KEYS if glob_to_regex(pattern).match(key)}
    assert invalidate(pattern) == len(wanted)
    assert trusted.stored() == set(KEYS) - wanted


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    keys=st.sets(st.text(alphabet="ab:%~", min_size=1, max_size=6), min_size=1, max_size=12),
    pattern=st.text(alphabet="ab:*?[]^\\%", min_size=1, max_size=6).filter(lambda text: text.strip("*")),
)
def test_any_pattern_and_any_keys(keys: set[str], pattern: str, trusted: Keeper) -> None:
    trusted.store(keys)
    wanted = {key for key in keys if glob_to_regex(pattern).match(key)}
    try:
        assert invalidate(pattern) == len(wanted)
        assert trusted.stored() == keys - wanted
    finally:
        invalidate("?*")
    assert trusted.stored() == set()


@given(st.text(alphabet="ab:*?[]^\\", min_size=1, max_size=8), st.text(alphabet="ab:", max_size=8))
def test_the_bucket_of_a_pattern_is_that_of_all_its_keys(pattern: str, key: str) -> None:
    bucket = Selection.of(pattern).bucket
    assert bucket is None or not glob_to_regex(pattern).match(key) or bucket == bucket_of(key)


def test_a_tag_removes_its_entries_and_no_others(trusted: Keeper) -> None:
    trusted.store(KEYS, tags=lambda key: ["all", f"first:{key[:1]}"])
    wanted = {key for key in KEYS if key.startswith("u")}
    assert invalidate(tag="first:u") == len(wanted)
    assert trusted.stored() == set(KEYS) - wanted
    assert invalidate(tag="first:") == 0
    assert invalidate(tag="all") == len(KEYS) - len(wanted)
    assert trusted.stored() == set()


def test_literal_text_is_escaped(trusted: Keeper) -> None:
    trusted.store(["x:~(1)", "x:a", "x:[a]"])
    assert invalidate(escape("x:[a]")) == 1
    assert trusted.stored() == {"x:~(1)", "x:a"}


def test_plain_keys_are_left_alone(trusted: Keeper) -> None:
    from django.core.cache import cache

    cache.set("chat:1:m:1", "plain")
    trusted.store(["chat:1:m:1"])
    assert invalidate("chat:*") == 1
    assert cache.get("chat:1:m:1") == "plain"


# --- what it costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "buckets"),
    [("chat:1:*", 1), ("chat:1:m:*", 1), ("chat:1:*:1", 1), ("chat:*", BUCKETS), ("*:m:1", BUCKETS)],
)
def test_a_pattern_with_its_first_fields_touches_one_bucket(
    pattern: str, buckets: int, trusted: Keeper
) -> None:
    trusted.store(f"chat:{number}:m:1" for number in range(100))
    invalidate(pattern)
    trusted.store(["chat:1:m:1"])
    calls = trusted.calls(lambda: invalidate(pattern))
    assert calls["zrangebylex"] == buckets
    assert "scan" not in calls
    assert "keys" not in calls


def test_a_pattern_with_a_wildcard_in_front_says_so(
    trusted: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="redis_infra"):
        invalidate("*:m:1")
    assert "redis_infra.pattern_without_start pattern=*:m:1" in caplog.messages


def test_many_are_removed_in_steps_of_a_thousand(trusted: Keeper) -> None:
    """No script of ours is the slow call."""
    trusted.store(f"chat:1:m:{number}" for number in range(5500))
    calls = trusted.calls(lambda: invalidate("chat:1:*"))
    assert calls["unlink"] == 6
    assert calls["evalsha"] == 6


# --- a lost index ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["chat:1:*", "chat:*:1", "*:1"])
def test_a_lost_index_is_made_up_for_and_rebuilt(pattern: str, trusted: Keeper) -> None:
    trusted.store(f"chat:{chat}:{number}" for chat in range(10) for number in range(30))
    keys = trusted.stored()
    wanted = {key for key in keys if glob_to_regex(pattern).match(key)}
    trusted.server.command("UNLINK", trusted.indexes[bucket_of("chat:1:1")])
    trusted.store(["chat:1:new"])  # which makes an index of one entry
    assert invalidate(pattern) == len(wanted) + bool(glob_to_regex(pattern).match("chat:1:new"))
    assert trusted.stored() - {"chat:1:new"} == keys - wanted
    assert trusted.are_complete()
    calls = trusted.calls(lambda: invalidate("chat:2:*"))
    assert "scan" not in calls
    assert not [key for key in trusted.stored() if key.startswith("chat:2:")]


def between(talk: Generator[Any, Any, Any], turn: int, act: Callable[[], Any]) -> Generator[Any, Any, Any]:
    """Hold a conversation, and do something after so many turns of it."""
    turns = 0
    try:
        sent = next(talk)
        while True:
            try:
                reply = yield sent
            except Exception as error:
                sent = talk.throw(error)
                continue
            turns += 1
            if turns == turn:
                act()
            sent = talk.send(reply)
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("turn", range(1, 8))
@pytest.mark.parametrize("pattern", ["chat:1:*", "chat:1:*:1"])
def test_an_index_that_is_lost_in_the_middle_loses_nothing(pattern: str, turn: int, trusted: Keeper) -> None:
    """An eviction may come between any two turns."""
    trusted.store(f"chat:1:{number}:1" for number in range(3500))
    index = trusted.space.place("chat:1:1:1").entries
    lost = trusted.indexes[bucket_of("chat:1:1")]
    talk = between(index.remove(Selection.of(pattern)), turn, lambda: trusted.server.command("UNLINK", lost))
    trusted.space.engine.connections.converse(talk)  # type: ignore[attr-defined]
    assert trusted.stored() == set()


def test_a_tag_whose_members_were_lost_is_worth_nothing(trusted: Keeper) -> None:
    calls: list[int] = []

    @cached("doc:{pk}", ttl=60, tags=["docs"])
    def doc(pk: int) -> int:
        calls.append(pk)
        return len(calls)

    assert doc(1) == 1
    for name in trusted.indexes:
        trusted.server.command("UNLINK", name)
    invalidate(tag="docs")
    assert doc(1) == 2


def test_entries_are_found_under_eviction(own_redis: Callable[..., RedisServer], use: Any) -> None:
    server = own_redis(config={"maxmemory": "5mb", "maxmemory-policy": "allkeys-lru"})
    use(server.url)
    keeper = Keeper(server)
    for wave in range(20):
        keeper.store(
            (f"chat:{number % 10}:m:{wave}:{number}" for number in range(1000)), size=900, is_tight=True
        )
        invalidate(f"chat:{wave % 10}:*")
        assert not [key for key in keeper.stored() if key.startswith(f"chat:{wave % 10}:")]
    evicted = re.search(rb"evicted_keys:(\d+)", server.command("INFO", "stats"))
    assert evicted is not None
    assert int(evicted[1]) > 1000


def test_clearing_the_cache_clears_it_all(trusted: Keeper) -> None:
    from django.core.cache import cache

    trusted.store(KEYS, tags=lambda _: ["all"])
    cache.clear()
    assert trusted.server.command("DBSIZE") == 0
    trusted.store(KEYS)
    assert invalidate("chat:1:*") == 3
    assert trusted.stored() == {key for key in KEYS if not key.startswith("chat:1:")}


# --- its size -------------------------------------------------------------------------------------------

LIVE = 2000


def turn_over(keeper: Keeper, times: int, *, name: Callable[[int], str]) -> None:
    """Store one batch and let the oldest one go, until all that lives has been replaced so many times."""
    step = 200
    for at in range(0, LIVE * (times + 1), step):
        keeper.store(name(number) for number in range(at, at + step))
        if at >= LIVE:
            gone = [f"{BASE}{name(number)}" for number in range(at - LIVE, at - LIVE + step)]
            keeper.server.command("UNLINK", *gone)


@pytest.mark.parametrize("name", ["user:{}", "chat:7:m:{}", "a-rather-long-first-field:{}:and:more:of:{}"])
def test_the_index_stays_in_proportion(name: str, trusted: Keeper) -> None:
    """Whatever it is that removes the entries; where it is expiry, the server says the same of them."""
    turn_over(trusted, 10, name=lambda number: name.format(number, number))
    live = trusted.stored()
    assert len(live) == LIVE
    assert trusted.members() - BUCKETS <= 1.5 * LIVE
    length = sum(len(f"{BASE}{key}") for key in live) / LIVE
    assert trusted.memory() / LIVE <= 2 * length + 250


def test_expired_entries_leave_the_index(trusted: Keeper) -> None:
    trusted.store((f"user:{number}" for number in range(LIVE)), ttl=50)
    wait_until(lambda: not trusted.stored(), 10)
    trusted.store(f"user:{number}" for number in range(LIVE, 2 * LIVE))
    assert trusted.members() - BUCKETS <= 1.5 * LIVE


@pytest.mark.parametrize("kind", ["refused", "failing"])
def test_what_is_never_stored_leaves_the_index(kind: str, trusted: Keeper) -> None:
    """Most of what is asked for may be nothing that is kept: then nothing but leases comes and goes."""

    @cached("user:{pk}", ttl=60, condition=lambda found: found is not None)
    def user(pk: int) -> None:
        if kind == "failing":
            raise LookupError(pk)

    for pk in range(3000):
        try:
            user(pk)
        except LookupError:
            continue
    assert trusted.stored() == set()
    assert trusted.members() - BUCKETS <= 300
