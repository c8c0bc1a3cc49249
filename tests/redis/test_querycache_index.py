"""The index of the query cache: a pattern removes exactly what it is for, and costs what it removes."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from redis_infra.keys import escape, glob_to_regex
from redis_infra.querycache import ainvalidate, cached, index, invalidate, rebuilding
from redis_infra.querycache.entries import NOBODY, new_token, now_ms, pack_entry
from redis_infra.querycache.index import BUCKETS, FEW, Selection, bucket_of, bucket_of_bytes
from redis_infra.querycache.space import Filling, Space, space_for
from redis_infra.testing import outage
from tests.faults.site import wait_until
from tests.forking import in_child

if TYPE_CHECKING:
    from redis_infra.testing import RedisServer

BASE = "site:1:qc:"
DAY = 24 * 3600 * 1000
PATIENCE = 60
"""Seconds after which what happens beside the work is taken for never."""


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

    lease = "site:1:qci:rebuilding"

    def lose(self, *keys: str) -> None:
        """Lose the indexes of these keys, all of them if none is named."""
        names = [self.indexes[bucket_of(key)] for key in keys] or self.indexes
        self.server.command("UNLINK", *names)

    def kept_from_rebuilding(self) -> Keeper:
        """Let another process be the one that rebuilds, for as long as the test likes."""
        self.server.command("SET", self.lease, "another's")
        return self

    def converse(self, talk: Generator[Any, Any, Any]) -> Any:
        return self.space.engine.connections.converse(talk)  # type: ignore[attr-defined]

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
    wait_until(keeper.are_complete, PATIENCE)
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


@pytest.mark.parametrize("way", ["matched here", "matched by the server", "looked for by SCAN"])
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    keys=st.sets(st.text(alphabet="ab:%~\u017c", min_size=1, max_size=6), min_size=1, max_size=12),
    pattern=st.text(alphabet="ab:*?[]^-\\%\u017c", min_size=1, max_size=6).filter(
        lambda text: text.strip("*?") or "*" not in text
    ),
)
def test_any_pattern_and_any_keys(
    way: str, keys: set[str], pattern: str, trusted: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FEW", 0 if way == "matched by the server" else FEW)
    trusted.store(keys)
    if way == "looked for by SCAN":
        trusted.kept_from_rebuilding().lose()
    wanted = {key for key in keys if glob_to_regex(pattern).match(key)}
    try:
        assert invalidate(pattern) == len(wanted)
        assert trusted.stored() == keys - wanted
    finally:
        invalidate("[^!]*")
    assert trusted.stored() == set()


@given(
    st.text(alphabet="ab:*?[]^-\\\u017c", min_size=1, max_size=8), st.text(alphabet="ab:-]\u017c", max_size=8)
)
def test_the_server_is_asked_for_all_that_may_match(pattern: str, key: str) -> None:
    """It takes a byte where we take a character."""
    if glob_to_regex(pattern).match(key):
        assert glob_to_regex(index._widened(pattern).encode()).match(key.encode())


@pytest.mark.parametrize(
    ("pattern", "asked"),
    [
        ("user:*:profile", "user:*:profile"),
        ("user:?:x", "user:?*:x"),
        ("??:[ab][^c]", "?*:?*"),
        ("a\\?[", "a\\??*"),
        ("[a-]x]:1", "?*:1"),
    ],
)
def test_of_what_has_no_bytes_of_its_own_the_server_is_asked_for_any(pattern: str, asked: str) -> None:
    assert index._widened(pattern) == asked


@given(st.text(max_size=8))
def test_a_key_is_in_one_bucket_as_text_and_as_bytes(key: str) -> None:
    assert bucket_of_bytes(key.encode()) == bucket_of(key)


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


@pytest.mark.parametrize("pattern", ["user:*:profile:1", "*:profile:1", "user:?*:profile:[1]"])
def test_of_many_only_what_matches_travels(pattern: str, trusted: Keeper) -> None:
    """The server looks at each bucket as a whole, and nothing is read but what is to go."""
    keys = [f"user:{number}:{kind}:1" for number in range(5000) for kind in ("profile", "settings")]
    trusted.store(keys)
    calls = trusted.calls(lambda: invalidate(pattern))
    assert calls["zscan"] >= BUCKETS
    assert "zrangebylex" not in calls
    assert trusted.stored() == {key for key in keys if ":settings:" in key}


def test_few_of_many_are_read(trusted: Keeper) -> None:
    """A stretch is not worth looking at all of its bucket."""
    trusted.store(f"chat:1:{kind}:{number}" for number in range(2000) for kind in ("a", "b"))
    trusted.store(f"chat:1:c:{number}" for number in range(500))
    calls = trusted.calls(lambda: invalidate("chat:1:c:*0"))
    assert "zscan" not in calls
    assert len(trusted.stored()) == 4450


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
    wait_until(trusted.are_complete, PATIENCE)
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
    entries = trusted.space.place("chat:1:1:1").entries
    talk = entries.remove(Selection.of(pattern))
    trusted.converse(between(talk, turn, lambda: trusted.lose("chat:1:1")))
    assert trusted.stored() == set()


def test_whoever_forgets_looks_for_that_and_rebuilds_nothing(trusted: Keeper) -> None:
    """It is somebody else's work, here another process' altogether."""
    trusted.store(f"chat:{chat}:m:{number}" for chat in range(10) for number in range(500))
    trusted.kept_from_rebuilding().lose()
    for chat in range(3):
        calls = trusted.calls(lambda chat=chat: invalidate(f"chat:{chat}:*"))  # type: ignore[misc]
        assert calls["scan"] <= 10
        assert "zadd" not in calls
    assert len(trusted.stored()) == 3500
    assert trusted.members() == 0
    trusted.server.command("DEL", trusted.lease)
    assert invalidate("chat:3:*") == 500
    wait_until(trusted.are_complete, PATIENCE)
    assert trusted.server.command("EXISTS", trusted.lease) == 0


def test_an_async_caller_waits_for_no_index_either(trusted: Keeper) -> None:
    trusted.store(f"chat:{chat}:m:{number}" for chat in range(10) for number in range(100))
    trusted.lose()
    assert asyncio.run(ainvalidate("chat:1:*", "chat:*:m:7")) == 109
    wait_until(trusted.are_complete, PATIENCE)
    assert trusted.calls(lambda: asyncio.run(ainvalidate("chat:2:*"))).get("scan") is None
    assert len(trusted.stored()) == 792


def test_what_is_counted_before_it_is_cleared_is_counted_without_an_index(trusted: Keeper) -> None:
    trusted.store(KEYS)
    trusted.kept_from_rebuilding().lose()
    names = trusted.space.engine.run(trusted.space.find(["chat:1:*", "c?at:2:m:1", "user:1"], []))
    wanted = [key for key in KEYS if key.startswith("chat:1:")] + ["chat:2:m:1", "user:1"]
    assert sorted(names) == sorted(f"{BASE}{key}" for key in wanted)


def rebuild(keeper: Keeper, act: Callable[[int], Any]) -> int:
    """Rebuild, and do something before each step; return how many indexes are complete."""
    entries = keeper.space.place("x").entries
    work = keeper.converse(rebuilding._begin(entries, "ticket"))
    cursor, step = b"0", 0
    while True:
        act(step)
        cursor, _ = keeper.converse(rebuilding._add(entries, work, cursor))
        step += 1
        if cursor == b"0":
            complete: int = keeper.converse(rebuilding._end(entries, work))
            return complete


def test_what_is_written_while_it_is_rebuilt_is_in_it(trusted: Keeper) -> None:
    trusted.store(f"chat:{number % 40}:m:{number}" for number in range(2000))
    trusted.lose()

    def act(step: int) -> None:
        trusted.store(f"chat:{number % 40}:new:{step}:{number}" for number in range(100))
        gone = sorted(trusted.stored())[::20]
        trusted.server.command("UNLINK", *[f"{BASE}{key}" for key in gone])

    assert rebuild(trusted, act) == BUCKETS
    assert len(trusted.stored()) > 1500
    for chat in range(40):
        assert "scan" not in trusted.calls(lambda chat=chat: invalidate(f"chat:{chat}:*"))  # type: ignore[misc]
    assert trusted.stored() == set()


@pytest.mark.parametrize("step", [0, 3, 8])
def test_one_that_is_lost_while_it_is_rebuilt_is_not_trusted(step: int, trusted: Keeper) -> None:
    keys = [f"chat:{number % 40}:m:{number}" for number in range(2000)]
    trusted.store(keys)
    trusted.lose()
    lost = trusted.indexes[bucket_of("chat:7:m")]
    assert rebuild(trusted, lambda at: at == step and trusted.lose("chat:7:m")) == BUCKETS - 1
    assert trusted.server.command("ZSCORE", lost, "!") is None
    assert trusted.server.command("PTTL", lost) != -1
    assert invalidate("chat:7:*") == 50


def test_half_an_index_is_not_trusted_and_does_no_harm(trusted: Keeper) -> None:
    """Of a process that was killed in the middle of it."""
    trusted.store(f"chat:{number % 40}:m:{number}" for number in range(2000))
    trusted.lose()
    entries = trusted.space.place("x").entries
    work = trusted.converse(rebuilding._begin(entries, "killed"))
    trusted.converse(rebuilding._add(entries, work, b"0"))
    assert 0 < trusted.members() < 2000
    assert invalidate("chat:7:*", "chat:*:m:8") == 51
    wait_until(lambda: not trusted.server.command("EXISTS", trusted.lease), PATIENCE)
    assert invalidate("chat:9:*") == 50
    wait_until(trusted.are_complete, PATIENCE)
    assert not [name for name in trusted.indexes if trusted.server.command("ZLEXCOUNT", name, "[?", "(@")]


def test_who_was_taken_over_from_ends(trusted: Keeper) -> None:
    trusted.store(["chat:1:m:1"])
    trusted.lose()
    entries = trusted.space.place("x").entries
    first = trusted.converse(rebuilding._begin(entries, "first"))
    trusted.server.command("DEL", trusted.lease)
    second = trusted.converse(rebuilding._begin(entries, "second"))
    assert second.buckets == first.buckets
    assert trusted.converse(rebuilding._begin(entries, "third")).buckets == frozenset()
    assert trusted.converse(rebuilding._add(entries, first, b"0")) is None
    assert trusted.converse(rebuilding._end(entries, first)) == 0
    trusted.converse(rebuilding._add(entries, second, b"0"))
    assert trusted.converse(rebuilding._end(entries, second)) == BUCKETS


@pytest.mark.parametrize("step", [1, 4, "last"])
def test_a_server_that_starts_again_between_two_steps_is_not_trusted(
    step: Any, own_redis: Callable[..., RedisServer], use: Any
) -> None:
    """From a file that has what is half done in it; a cursor of the one before leads past keys."""
    server = own_redis(config={"save": "3600 1"})
    use(server.url)
    keeper = Keeper(server)
    keeper.store(f"chat:{number % 40}:m:{number}" for number in range(2000))
    keeper.lose()
    entries = keeper.space.place("x").entries
    work = keeper.converse(rebuilding._begin(entries, "ticket"))
    assert len(work.buckets) == BUCKETS
    cursor, steps = b"0", 0
    while steps != step:
        cursor, _ = keeper.converse(rebuilding._add(entries, work, cursor))
        steps += 1
        if cursor == b"0":
            break
    server.command("SAVE")
    server.kill()
    server.restart()
    with pytest.raises(RedisConnectionError):
        keeper.converse(rebuilding._add(entries, work, cursor))  # on a connection of before
    talk = rebuilding._end(entries, work) if step == "last" else rebuilding._add(entries, work, cursor)
    assert keeper.converse(talk) is None
    assert not any(server.command("ZSCORE", name, "!") is not None for name in keeper.indexes)
    wait_until(lambda: not server.command("EXISTS", keeper.lease), PATIENCE)
    assert sum(invalidate(f"chat:{chat}:*") for chat in range(40)) == 2000


def test_a_server_that_does_not_say_who_it_is_has_no_index_rebuilt(trusted: Keeper) -> None:
    entries = trusted.space.place("x").entries
    talk = rebuilding._begin(entries, "ticket")
    next(talk)
    with pytest.raises(StopIteration) as end:
        talk.send(b"# Server\r\nredis_version:7.4.0\r\n")
    assert end.value.value is None


def rebuilders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "-index" in thread.name]


def test_the_thread_is_there_only_for_as_long_as_it_takes(trusted: Keeper) -> None:
    trusted.store(f"chat:{number % 40}:m:{number}" for number in range(2000))
    trusted.lose()
    seen = set()
    for chat in range(20):
        invalidate(f"chat:{chat}:*", f"x:{chat}:*")
        seen.add(len(rebuilders()))
    assert max(seen) == 1
    wait_until(trusted.are_complete, PATIENCE)
    wait_until(lambda: not rebuilders(), PATIENCE)


def test_a_forked_child_rebuilds_what_it_needs(trusted: Keeper) -> None:
    trusted.store(f"chat:{number % 40}:m:{number}" for number in range(2000))
    trusted.lose()
    invalidate("chat:1:*")  # the parent is at it, or was

    def child() -> tuple[list[str], int, bool]:
        before = rebuilders()
        trusted.lose()
        trusted.server.command("DEL", trusted.lease)
        removed = invalidate("chat:2:*")
        wait_until(lambda: bool(invalidate("x:1:*") or trusted.are_complete()), PATIENCE)
        return before, removed, trusted.are_complete()

    assert in_child(child) == ([], 50, True)


AT_ONCE = """
import django
from django.conf import settings
settings.configure(SECRET_KEY="x", CACHES={{"default": {{
    "BACKEND": "redis_infra.cache.RedisCache", "LOCATION": {url!r}, "KEY_PREFIX": "site",
    "OPTIONS": {{"STATE_DIR": {state!r}, "COMMAND_TIMEOUT": "10s"}}}}}})
django.setup()
from redis_infra.querycache import invalidate
print(invalidate("chat:1:*"))
"""


def test_a_process_that_ends_at_once_leaves_nothing_that_harms(
    trusted: Keeper, redis_infra_url: str, tmp_path: Any
) -> None:
    """As ``manage.py cache_clear --pattern`` does: it neither waits for the index nor falls over it."""
    trusted.store(f"chat:{number % 100}:m:{number}" for number in range(20_000))
    trusted.lose()
    script = AT_ONCE.format(url=redis_infra_url, state=str(tmp_path / "state"))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "200\n", "")
    assert not trusted.are_complete()
    assert invalidate("chat:2:*", "chat:*:m:3") == 201
    wait_until(lambda: not trusted.server.command("EXISTS", trusted.lease), PATIENCE)
    invalidate("chat:4:*")
    wait_until(trusted.are_complete, PATIENCE)


def test_what_goes_wrong_beside_is_said_once_and_tried_again(
    trusted: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [each.levelname for each in caplog.records if "index_not_rebuilt" in each.message]

    trusted.store(f"chat:{chat}:m:1" for chat in range(10))
    trusted.lose()
    trusted.server.command("SADD", trusted.lease, "of another type")
    with caplog.at_level("DEBUG", logger="redis_infra.querycache"):
        assert invalidate("chat:1:*") == 1
        wait_until(lambda: said() == ["WARNING"], PATIENCE)
        assert invalidate("chat:2:*") == 1
        wait_until(lambda: said() == ["WARNING", "DEBUG"], PATIENCE)
    trusted.server.command("DEL", trusted.lease)
    assert invalidate("chat:3:*") == 1
    wait_until(trusted.are_complete, PATIENCE)


def test_an_outage_ends_it_quietly(trusted: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    trusted.store(f"chat:{chat}:m:1" for chat in range(10))
    trusted.lose()
    with caplog.at_level("INFO", logger="redis_infra.querycache"):
        with outage():
            trusted.space._rebuilding.start(trusted.space.place("x").entries)
            wait_until(lambda: not rebuilders(), PATIENCE)
        assert "redis_infra.index_not_rebuilt" not in caplog.messages
        assert invalidate("chat:3:*") == 1
        wait_until(trusted.are_complete, PATIENCE)


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


def test_indexes_that_nobody_writes_to_any_more_stay_in_proportion_too(trusted: Keeper) -> None:
    """The bucket of what is stored changes, with the day or the customer, and the ones of before are dead."""
    turn_over(trusted, 10, name=lambda number: f"stats:{number // 200}:{number}")
    assert len(trusted.stored()) == LIVE
    assert trusted.members() - BUCKETS <= 1.5 * LIVE


def test_a_tag_takes_its_entries_out_of_the_index_too(trusted: Keeper) -> None:
    trusted.store((f"chat:{number}:m" for number in range(LIVE)), tags=lambda _: ["room"])
    assert invalidate(tag="room") == LIVE
    assert trusted.members() - BUCKETS == 0


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
