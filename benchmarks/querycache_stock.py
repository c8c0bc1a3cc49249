"""Shelves full of messages to forget: a server for each cache, filled fast, and how each one forgets.

Filled with what the real functions store, in plain commands, many to a write: a million entries in some
seconds. :meth:`Stock.prove` has the real function store a thousand, and compares.
"""

from __future__ import annotations

import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from hashlib import md5
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.contest import WrongAnswerError
from benchmarks.lean import LeanClient, pack
from benchmarks.peers import DJANGO_REDIS, OURS, TTL, VALUE
from benchmarks.querycache_peers import CACHEOPS, point_cacheops_at
from benchmarks.server import address

if TYPE_CHECKING:
    import redis

    from redis_infra.querycache.space import Place

PAGES = 1000
"""Messages of a chat, and so how many a pattern is for."""
PINS = 1000
"""Messages with the one tag, in as many chats."""
TURNED_OVER = 100
"""Entries that take others' place together."""
REBUILT_WITHIN = 120.0
"""Seconds."""
SCAN = "SCAN 2000 + UNLINK"
NAMED = "UNLINK by name"
TAG = "pins"

Call = tuple[int, int]
"""Chat and page."""
Command = tuple[str | bytes | int, ...]


class Bulk(LeanClient):
    """Sends many commands in one write, and waits until all are done."""

    def send(self, commands: Iterable[Command]) -> None:
        """Raises the first error that the server answers with."""
        packed = [pack(words) for words in commands]
        self._socket.sendall(b"".join(packed))
        for reply in [self._reply() for _ in packed]:
            if isinstance(reply, Exception):
                raise reply


class Stock(ABC):
    """``chats`` times a thousand messages of one cache, on the server at ``url``."""

    name: ClassVar[str]

    def __init__(self, chats: int, url: str, alias: str) -> None:
        import redis

        self.chats, self.url, self.alias = chats, url, alias
        self.helper: redis.Redis = redis.Redis.from_url(url)
        self.bulk = Bulk(*address(url), "")

    @property
    def size(self) -> int:
        return self.chats * PAGES

    def close(self) -> None:
        self.bulk.close()
        self.helper.close()

    def fill(self) -> None:
        """Store everything, after it was proven that it is what would be stored."""
        self.prove()
        for chat in range(self.chats):
            self.store_chat(chat)

    def store_chat(self, chat: int) -> None:
        """Store the messages of a chat, whichever of them are missing."""
        self.store([(chat, page) for page in range(PAGES)])

    def prove(self) -> None:
        """Have the real function store a thousand messages, and store them again in plain commands.

        Raises:
            WrongAnswerError: there is a difference.
        """
        self.helper.flushdb()
        self.begin()
        for page in range(PAGES):
            self.call(0, page)
        real = self.snapshot()
        self.helper.flushdb()
        self.begin()
        self.store_chat(0)
        if (copied := self.snapshot()) != real:
            names = sorted(real.keys() | copied.keys())
            odd = [name for name in names if real.get(name) != copied.get(name)][:3]
            raise WrongAnswerError(f"{self.name} stores something else than its copy, at {odd}")

    def snapshot(self) -> dict[bytes, tuple[Any, bool]]:
        """Return what there is: what lies under each name, and whether it expires."""
        store: Any = self.helper
        names = sorted(store.scan_iter(count=1000))
        return {name: (self._content(store, name), store.pttl(name) > 0) for name in names}

    def _content(self, store: Any, name: bytes) -> Any:
        kind = store.type(name)
        if kind == b"string":
            return self.meaning(store.get(name))
        found = store.zrange(name, 0, -1) if kind == b"zset" else store.smembers(name)
        return tuple(sorted(found))

    def meaning(self, raw: bytes) -> Any:
        """Return of the bytes of an entry what is not different each time."""
        return raw

    def begin(self) -> None:  # noqa: B027  # most have nothing to do
        """Do what a site has done long ago."""

    @abstractmethod
    def call(self, chat: int, page: int) -> None:
        """Have the real function store a message."""

    @abstractmethod
    def store(self, calls: Sequence[Call]) -> None:
        """Store messages in plain commands."""

    @abstractmethod
    def forget_chat(self, chat: int) -> None:
        """Forget all messages of a chat."""

    def index_bytes(self) -> int | None:
        """Return what the server keeps beside the entries; None where it keeps nothing."""
        return None

    def memory(self, pattern: str) -> int:
        """Return the bytes of all keys that match."""
        store: Any = self.helper
        return sum(store.memory_usage(name, samples=0) for name in store.scan_iter(pattern, count=10_000))


# Ours


class Ours(Stock):
    """What ``cached()`` stores; beside it a thousand entries with one tag."""

    name = OURS

    def __init__(self, chats: int, url: str, alias: str) -> None:
        super().__init__(chats, url, alias)
        from redis_infra.querycache import cached
        from redis_infra.querycache.space import Space, space_for

        space = space_for(alias)
        assert space is not None
        self.space: Space = space
        self.messages: Any = cached("chat:{chat}:messages:{page}", ttl=TTL, cache=alias)(padded)
        self.pinned: Any = cached("pin:{chat}:{page}", ttl=TTL, tags=[TAG], cache=alias)(padded_pin)

    def begin(self) -> None:
        """Let the index know that it is complete, as it is from the first invalidation of a site on."""
        from redis_infra.querycache import invalidate

        invalidate("nobody:*", cache=self.alias)
        self.wait_for_index()

    def call(self, chat: int, page: int) -> None:
        self.messages(chat, f"{page:03}")

    def fill(self) -> None:
        super().fill()
        self.store_pins()

    def store(self, calls: Sequence[Call]) -> None:
        self._store(self.messages, calls)

    def store_pins(self) -> None:
        """Store the messages that have the tag."""
        for pin in range(PINS):
            self.pinned(pin, "000")

    def _store(self, function: Any, calls: Sequence[Call]) -> None:
        from redis_infra.querycache.entries import new_token
        from redis_infra.querycache.index import STAY, bucket_of
        from redis_infra.querycache.loading import encode, packed

        space, recipe = self.space, function._recipe
        places = [
            function._place(space, function.key(chat, page), (chat, page), {})
            for chat, page in ((chat, f"{page:03}") for chat, page in calls)
        ]
        payload = encode(space, recipe, places[0], VALUE)
        assert payload is not None
        raw, ttl = packed(recipe.policy, new_token(), VALUE, payload, (), 0.0)
        members: dict[str, list[str | int]] = {}
        for place in places:
            index = place.entries.names[bucket_of(place.key)]
            for member in place.entries.members(place.key, place.tags):
                members.setdefault(index, []).extend((0, member))
        self.bulk.send(("SET", place.name, raw, "PX", ttl) for place in places)
        self.bulk.send(("ZADD", index, *found) for index, found in members.items())
        self.bulk.send(("PEXPIRE", index, STAY + 3_600_000) for index in members)

    def meaning(self, raw: bytes) -> Any:
        from redis_infra.querycache.entries import read_entry

        entry = read_entry(raw)
        return entry and (entry.version, entry.stamps, entry.payload)

    def forget_chat(self, chat: int) -> None:
        from redis_infra.querycache import invalidate

        expect(invalidate(f"chat:{chat}:*", cache=self.alias), PAGES)

    def forget_pages(self, pages: str) -> None:
        """Forget these pages of all chats, a thousand messages: a wildcard stands before them."""
        from redis_infra.querycache import invalidate

        expect(invalidate(f"chat:*:messages:{pages}", cache=self.alias), PAGES)

    def forget_pins(self) -> None:
        """Forget what has the tag."""
        from redis_infra.querycache import invalidate

        expect(invalidate(tag=TAG, cache=self.alias), PINS)

    def index_names(self) -> list[str]:
        return list(self.space.place("x").entries.names)

    def index_bytes(self) -> int | None:
        store: Any = self.helper
        return sum(store.memory_usage(name, samples=0) or 0 for name in self.index_names())

    def index_members(self) -> int:
        """Return how many entries are written down."""
        store: Any = self.helper
        return sum(max(0, store.zcard(name) - 1) for name in self.index_names())

    def lose_index(self) -> None:
        self.helper.unlink(*self.index_names())

    def wait_for_index(self) -> None:
        """Return when the index is whole, which a thread sees to after a pattern found it lost.

        Raises:
            TimeoutError: it was not within two minutes.
        """
        ends = time.monotonic() + REBUILT_WITHIN
        while not all(self.helper.zscore(name, "!") is not None for name in self.index_names()):
            if time.monotonic() > ends:
                raise TimeoutError(f"the index of {self.size:,} entries was not rebuilt")
            time.sleep(0.005)

    def turn_over(self, live: int, times: int) -> float:
        """Have so many entries live, and others in their place, so many times; return members for each.

        Real writes; an entry goes as by an eviction, which says nothing to the index.
        """
        for first in range(0, live * (times + 1), TURNED_OVER):
            self._write(range(first, first + TURNED_OVER))
            if first >= live:
                gone = [self._turned(number) for number in range(first - live, first - live + TURNED_OVER)]
                self.helper.unlink(*[place.name for place in gone])
        return self.index_members() / live

    def _turned(self, number: int) -> Place:
        call = number // 7, f"{number:07}"
        place: Place = self.messages._place(self.space, self.messages.key(*call), call, {})
        return place

    def _write(self, numbers: Iterable[int]) -> None:
        """Store entries with the scripts that ``cached_many`` sends.

        Raises:
            WrongAnswerError: not all of them were stored.
        """
        from redis_infra.querycache.entries import NOBODY, new_token
        from redis_infra.querycache.loading import encode, packed
        from redis_infra.querycache.space import Filling

        space, recipe = self.space, self.messages._recipe
        places = [self._turned(number) for number in numbers]
        tokens = [new_token() for _ in places]
        payload = encode(space, recipe, places[0], VALUE)
        assert payload is not None
        space.engine.run(space.acquire_many(places, tokens, [NOBODY] * len(places), TTL * 1000))
        fillings = [
            Filling(place, token, *packed(recipe.policy, token, VALUE, payload, (), 0.0))
            for place, token in zip(places, tokens, strict=True)
        ]
        expect(sum(map(bool, space.engine.run(space.fill_many(fillings)))), len(fillings))


def padded(chat: int, page: str) -> Any:
    """Return a message."""
    return VALUE


def padded_pin(chat: int, page: str) -> Any:
    """Return a message that is pinned."""
    return VALUE


# Plain keys


class Plain(Stock):
    """What django-redis stores, and how it deletes a pattern."""

    name = DJANGO_REDIS

    def __init__(self, chats: int, url: str, alias: str) -> None:
        super().__init__(chats, url, alias)
        from django.core.cache import caches

        self.cache: Any = caches[f"djrd:{alias}"]

    def call(self, chat: int, page: int) -> None:
        self.cache.set(f"chat:{chat}:messages:{page:03}", VALUE, TTL)

    def store(self, calls: Sequence[Call]) -> None:
        raw = pickle.dumps(VALUE, pickle.DEFAULT_PROTOCOL)
        self.bulk.send(
            ("SET", self.cache.make_key(f"chat:{chat}:messages:{page:03}"), raw, "PX", TTL * 1000)
            for chat, page in calls
        )

    def meaning(self, raw: bytes) -> Any:
        return pickle.loads(raw)

    def forget_chat(self, chat: int) -> None:
        expect(self.cache.delete_pattern(f"chat:{chat}:*"), PAGES)

    def scan_chat(self, chat: int) -> None:
        """Forget all messages of a chat as well as can be done without an index."""
        expect(self._scan(f"chat:{chat}:*"), PAGES)

    def unlink_chat(self, chat: int) -> None:
        """Forget all messages of a chat as who knows their names does: no index, no pattern, one command."""
        store: Any = self.helper
        names = [self.cache.make_key(f"chat:{chat}:messages:{page:03}") for page in range(PAGES)]
        expect(store.unlink(*names), PAGES)

    def scan_pages(self, pages: str) -> None:
        """Forget these pages of all chats, a thousand messages."""
        expect(self._scan(f"chat:*:messages:{pages}"), PAGES)

    def _scan(self, pattern: str) -> int:
        store: Any = self.helper
        removed, cursor, glob = 0, -1, self.cache.make_key(pattern)
        while cursor:
            cursor, names = store.scan(max(cursor, 0), match=glob, count=2000)
            if names:
                removed += store.unlink(*names)
        return removed


# cacheops


class Cacheops(Stock):
    """What ``cached_as(Message.objects.filter(chat_id=chat))`` stores, and what a saved message removes."""

    name = CACHEOPS

    def call(self, chat: int, page: int) -> None:
        point_cacheops_at(self.url)
        import_module("cacheops.getset").cache_thing("", key_of(chat, page), VALUE, dnfs(chat), TTL)

    def store(self, calls: Sequence[Call]) -> None:
        raw = import_module("cacheops.serializers").PickleSerializer.dumps(VALUE)
        table = message()._meta.db_table
        self.bulk.send(("SETEX", key_of(chat, page), TTL, raw) for chat, page in calls)
        by_chat: dict[int, list[str]] = {}
        for chat, page in calls:
            by_chat.setdefault(chat, []).append(key_of(chat, page))
        self.bulk.send([("SADD", f"schemes:{table}", "chat_id")])
        self.bulk.send(("SADD", f"conj:{table}:chat_id={chat}", *keys) for chat, keys in by_chat.items())
        self.bulk.send(("EXPIRE", f"conj:{table}:chat_id={chat}", 2 * TTL + 10) for chat in by_chat)

    def forget_chat(self, chat: int) -> None:
        point_cacheops_at(self.url)
        import_module("cacheops.invalidation").invalidate_dict(message(), {"id": 1, "chat_id": chat})

    def index_bytes(self) -> int | None:
        return self.memory("conj:*") + self.memory("schemes:*")


def key_of(chat: int, page: int) -> str:
    return f"as:{md5(f'{chat}:{page}'.encode(), usedforsecurity=False).hexdigest()}"


def dnfs(chat: int) -> dict[str, list[dict[str, int]]]:
    """Return what a queryset depends on, as cacheops writes it."""
    return {message()._meta.db_table: [{"chat_id": chat}]}


@cache
def message() -> Any:
    """Return a model of no database, whose objects cacheops is told of."""
    from django.db import models

    class Message(models.Model):  # noqa: DJ008
        chat_id = models.IntegerField()

        class Meta:
            app_label = "benchmarks"

    return Message


def expect(done: int, wanted: int) -> None:
    """Raise unless it was as many as were meant: what is timed is to be what was asked for."""
    if done != wanted:
        raise WrongAnswerError(f"it was done to {done:,} entries, not to {wanted:,}")


STOCKS: dict[str, Callable[[int, str, str], Stock]] = {OURS: Ours, DJANGO_REDIS: Plain, CACHEOPS: Cacheops}
