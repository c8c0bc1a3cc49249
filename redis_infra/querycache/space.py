"""The query cache of one alias: its names, and what each step of a computation asks of Redis or of memory.

Knows keys, leases and bytes. What a function is, and when it is called, it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Final, NamedTuple

from django.core.cache import caches
from django.core.cache.backends.base import default_key_func
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache

from redis_infra.cache import RedisCache
from redis_infra.cache.engine import Engine
from redis_infra.cache.fallback import FallbackStore
from redis_infra.cache.lease import LEASE
from redis_infra.cache.operations import Plan, get_many
from redis_infra.conf import did_you_mean
from redis_infra.connection.scripts import Script, Talk
from redis_infra.connection.wire import pack
from redis_infra.exceptions import SettingsError
from redis_infra.keys import escape, glob_to_regex
from redis_infra.querycache import entries
from redis_infra.querycache.index import BUCKETS, STAY, Command, Index, Selection, bucket_of, run_many
from redis_infra.querycache.rebuilding import Rebuilding
from redis_infra.resilience.failover import Kind

__all__ = ["Filling", "Place", "Space", "forget_spaces", "space_for"]

PARKED: Final = 60_000
"""Milliseconds for which a transaction that has computed a value may take to commit and store it."""

ACQUIRE = Script("redis_infra.querycache", "acquire", uses=("dead",))
FILL = Script("redis_infra.querycache", "fill")
CHANGE_LEASE = Script("redis_infra.querycache", "lease")
STAMPS = Script("redis_infra.querycache", "stamps")

_PREFIX: Final = "qc:"
_SEEN: Final = "redis_infra.querycache"
"""What a locmem cache has lost if it was cleared."""
_PLACEHOLDER: Final = entries.placeholder()


class Place(NamedTuple):
    """Where one entry lies."""

    key: str
    name: str
    stamps: tuple[str, ...]
    """Names of the stamps of its tags."""
    tags: tuple[str, ...]
    entries: Index


class Filling(NamedTuple):
    """An entry that is to be stored if its lease still stands."""

    place: Place
    token: bytes
    raw: bytes
    ttl: int
    """Milliseconds."""


class Space:
    """The query cache of one alias: plans for its engine, by key. Thread-safe.

    Makes no I/O itself, but in a thread that builds lost indexes anew.
    """

    def __init__(self, backend: RedisCache, stands_in_for: LocMemCache | None = None) -> None:
        self.backend = backend
        self.stands_in_for = stands_in_for
        self.engine: Engine = backend._engine
        self.settings = caches.settings
        self._plain_base = backend._name(_PREFIX) if backend.key_func is default_key_func else None
        self._indexes: dict[str, Index] = {}
        self._rebuilding = Rebuilding(self.engine)

    def clear_with_it(self) -> None:
        """Begin anew if the locmem cache that this stands in for was cleared, as tests do before each."""
        locmem = self.stands_in_for
        if locmem is not None and locmem.get(_SEEN) is None:
            self.backend.clear()
            locmem.set(_SEEN, True, None)

    def retire(self, patience: float) -> None:
        """Do nothing any more beside what is asked for; what is under way gets so many seconds to end."""
        self._rebuilding.stop(patience)

    # Names

    def place(self, key: str, tags: Sequence[str] = ()) -> Place:
        base = self.base(key)
        index = self._index(base)
        stamps = tuple([self._stamp(base, tag) for tag in tags]) if tags else ()
        return Place(key, f"{base}{key}", stamps, tuple(tags), index)

    def base(self, key: str = "x") -> str:
        """Return what the names of all entries begin with; a site's own KEY_FUNCTION may ask who is served.

        Raises:
            SettingsError: names do not end with the key, so that no pattern could be told from them.
        """
        if self._plain_base is not None:
            return self._plain_base
        name = self.backend._name(f"{_PREFIX}{key}")
        if not name.endswith(f"{_PREFIX}{key}"):
            raise SettingsError(
                "KEY_FUNCTION makes names that do not end with the key, so patterns cannot be told; "
                "use another cache alias for the query cache: cached(..., cache='plain')"
            )
        return name[: -len(key)]

    def _index(self, base: str) -> Index:
        index = self._indexes.get(base)
        if index is None:
            if len(self._indexes) >= 1000:
                self._indexes.clear()
            names = [f"{base[:-1]}i:{{{bucket}}}" for bucket in range(BUCKETS)]
            index = self._indexes[base] = Index(base, names)
        return index

    @property
    def keeps_nothing(self) -> bool:
        """Whether nobody keeps anything now: ``ON_OUTAGE = "miss"`` in an outage."""
        return self.engine.settings.on_outage == "miss" and self.engine.is_degraded

    @staticmethod
    def _stamp(base: str, tag: str) -> str:
        return f"{base[:-1]}t:{tag}"

    # Reading

    def read_many(self, names: Sequence[str]) -> Plan:
        """Answer: what lies under each name, or None."""
        engine = self.engine
        names = list(names)
        return get_many(names, partial(engine.untrusted, names), partial(engine.correct, names))

    def stamps(self, names: Sequence[str], stay: int) -> Plan:
        """Answer: the stamps of tags; those without one get one, that stays for ``stay`` ms at least."""
        fresh = [entries.new_token() for _ in names]

        def talk() -> Talk:
            return (yield from STAMPS.talk(tuple(names), stay, *fresh))

        def local(store: FallbackStore) -> list[bytes]:
            return [
                store.exchange(name, partial(_stamped, self._token_here(new), stay / 500))
                for name, new in zip(names, fresh, strict=True)
            ]

        return self._step(tuple(names), talk, local)

    # Computing

    def acquire(self, place: Place, token: bytes, seen: bytes, stay: int) -> Plan:
        """Answer: ``(b"granted", token)``, ``(b"held", milliseconds)`` or ``(b"filled", bytes)``.

        The token that is granted may be another than was asked for, and what is stored needs that one.
        """

        def talk() -> Talk:
            keys, arguments = _acquiring(place, token, seen, stay)
            answer = yield from ACQUIRE.talk(keys, *arguments)
            yield from place.entries.prune(1)
            return answer

        def local(store: FallbackStore) -> tuple[Any, ...]:
            return store.exchange(place.name, partial(_acquired, self._token_here(token), seen))

        return self._step((place.name,), talk, local)

    def _token_here(self, token: bytes) -> bytes:
        """Return the token of a lease of memory: not the one that Redis may yet be told of.

        What timed out may reach Redis late, when the value that is computed under it is out of date.
        """
        return token if self.engine.is_memory else entries.new_token()

    def fill(self, place: Place, token: bytes, raw: bytes, ttl: int) -> Plan:
        """Answer: whether it was stored, as it is if the lease still stands. ``ttl`` is milliseconds."""

        def talk() -> Talk:
            keys, arguments = _filling(Filling(place, token, raw, ttl))
            return (yield from FILL.talk(keys, *arguments))

        def local(store: FallbackStore) -> int:
            return _filled(store, place, token, raw, ttl)

        return self._step((place.name,), talk, local)

    def acquire_many(
        self, places: Sequence[Place], tokens: Sequence[bytes], seen: Sequence[bytes], stay: int
    ) -> Plan:
        """Answer: for each what :meth:`acquire` answers. One round trip for up to a thousand."""

        def talk() -> Talk:
            wanted = list(map(_acquiring, places, tokens, seen, repeat(stay)))
            answers = yield from run_many(ACQUIRE, wanted)
            if places:
                yield from places[0].entries.prune(len(places))
            return answers

        def local(store: FallbackStore) -> list[tuple[Any, ...]]:
            return [
                store.exchange(place.name, partial(_acquired, self._token_here(token), filled_by))
                for place, token, filled_by in zip(places, tokens, seen, strict=True)
            ]

        return self._step(tuple([place.name for place in places]), talk, local)

    def fill_many(self, fillings: Sequence[Filling]) -> Plan:
        """Answer: for each what :meth:`fill` answers. One round trip for up to a thousand."""

        def talk() -> Talk:
            return (yield from run_many(FILL, list(map(_filling, fillings))))

        def local(store: FallbackStore) -> list[int]:
            return [_filled(store, *filling) for filling in fillings]

        return self._step(tuple([filling.place.name for filling in fillings]), talk, local)

    def renew(self, place: Place, token: bytes) -> Plan:
        """Answer: whether the lease still stood; it does for another two seconds then."""
        return self._change_lease(place, token, LEASE, LEASE + 1000, remove=False)

    def park(self, place: Place, token: bytes) -> Plan:
        """Answer: as :meth:`renew`. Others may compute at once; if none does it can be filled for a while."""
        return self._change_lease(place, token, 0, PARKED, remove=False)

    def release(self, place: Place, token: bytes, *, pause: int = 0) -> Plan:
        """Answer: as :meth:`renew`. A lease without a value goes; nobody else tries for ``pause`` ms."""
        return self._change_lease(place, token, pause, 0, remove=True)

    def _change_lease(self, place: Place, token: bytes, lease: int, stay: int, *, remove: bool) -> Plan:
        def talk() -> Talk:
            return (yield from CHANGE_LEASE.talk((place.name,), token, lease, stay, int(remove)))

        def local(store: FallbackStore) -> int:
            def decide(raw: bytes | None) -> tuple[bytes | None, float, str]:
                if raw is None or not entries.is_entry(raw) or entries.lease_of(raw)[0] != token:
                    return None, 0.0, "lost"
                if remove and entries.filler_of(raw) == entries.NOBODY:
                    return None, 0.0, "empty"
                return entries.with_lease(raw, token, entries.now_ms() + lease), stay / 1000, "kept"

            found = store.exchange(place.name, decide)
            if found == "empty":
                store.delete(place.name)
            return int(found != "lost")

        return self._step((place.name,), talk, local)

    def _step(
        self, names: tuple[str, ...], talk: Callable[[], Talk], local: Callable[[FallbackStore], Any]
    ) -> Plan:
        return Plan(
            Kind.FILL,
            names,
            self.backend,
            local,
            talk=talk,
            stores=True,
            repeatable=False,
            relative=True,
        )

    # Invalidating

    def remove(self, pattern: str) -> Plan:
        """Answer: how many entries matched the glob and are gone."""
        selection = Selection.of(pattern)
        base = self.base()
        index = self._index(base)
        if selection.key is not None:
            return self._remove_one(index, selection.key)
        glob = f"{escape(base)}{pattern}"
        taken: set[str] = set()

        def talk() -> Talk:
            taken.update(self.engine.take_matching(glob))
            removed, is_complete = yield from index.remove(selection)
            if not is_complete:
                self._rebuilding.start(index)
            return max(removed, len(taken))

        def local(store: FallbackStore) -> int:
            return len(taken) + store.delete_where(glob_to_regex(glob).match)

        return Plan(Kind.CHANGE, (), self.backend, local, talk=talk, pattern=glob)

    def _remove_one(self, index: Index, key: str) -> Plan:
        name = f"{index.base}{key}"

        def talk() -> Talk:
            removed = yield from index.drop([key])
            self.engine.note_deleted(name)
            return removed

        return Plan(Kind.CHANGE, (name,), self.backend, lambda store: store.delete(name), talk=talk)

    def remove_tagged(self, tag: str) -> Plan:
        """Answer: how many entries with that tag are gone, as far as the index, or memory, knows them."""
        base = self.base()
        index, stamp = self._index(base), self._stamp(base, tag)

        def talk() -> Talk:
            # First: from here on none of them is worth anything, whatever becomes of the rest.
            yield pack("UNLINK", stamp)
            self.engine.note_deleted(stamp)
            return (yield from index.remove_tagged(tag))

        def local(store: FallbackStore) -> int:
            now = store.get(stamp)
            store.delete(stamp)
            return store.delete_values(partial(_has_stamp, base, now)) if now else 0

        return Plan(Kind.CHANGE, (stamp,), self.backend, local, talk=talk)

    def find(self, patterns: Iterable[str], tags: Iterable[str]) -> Plan:
        """Answer: names of entries that these are for, of dead ones too; of tags what the index knows."""
        base = self.base()
        index = self._index(base)
        selections = [Selection.of(pattern) for pattern in patterns]
        tags = list(tags)

        def talk() -> Talk:
            found: list[str] = []
            for selection in selections:
                found += yield from index.matching(selection)
            for tag in tags:
                found += yield from index.tagged(tag)
            return [f"{base}{key}" for key in dict.fromkeys(found)]

        def local(store: FallbackStore) -> list[str]:
            found = [name for each in selections for name in store.names(f"{escape(base)}{each.pattern}")]
            return list(dict.fromkeys(found))

        return Plan(Kind.READ, (), None, local, talk=talk)


def _acquiring(place: Place, token: bytes, seen: bytes, stay: int) -> Command:
    """Return keys and arguments of acquire.lua."""
    index = place.entries
    members = index.members(place.key, place.tags)
    return _keys_of(place), (token, LEASE, seen, max(stay, STAY), _PLACEHOLDER, index.base, *members)


def _filling(filling: Filling) -> Command:
    """Return keys and arguments of fill.lua."""
    place, token, raw, ttl = filling
    return _keys_of(place), (token, raw, ttl, max(ttl, STAY), *place.entries.members(place.key, place.tags))


def _keys_of(place: Place) -> tuple[str, ...]:
    return place.name, place.entries.names[bucket_of(place.key)]


def _acquired(token: bytes, seen: bytes, raw: bytes | None) -> tuple[bytes | None, float, tuple[Any, ...]]:
    """Do what acquire.lua does, in memory."""
    now, stay = entries.now_ms(), (LEASE + 1000) / 1000
    if raw is None or not entries.is_entry(raw):
        return entries.with_lease(_PLACEHOLDER, token, now + LEASE), stay, (b"granted", token)
    filler = entries.filler_of(raw)
    if filler not in (seen, entries.NOBODY):
        return None, 0.0, (b"filled", raw)
    before, ends = entries.lease_of(raw)
    if ends > now:
        return None, 0.0, (b"held", ends - now)
    token = token if before == entries.NOBODY else before
    return entries.with_lease(raw, token, now + LEASE), stay, (b"granted", token)


def _stamped(new: bytes, ttl: float, raw: bytes | None) -> tuple[bytes | None, float, bytes]:
    """Return the stamp of a tag, a new one where there is none."""
    return (None, 0.0, raw) if raw else (new, ttl, new)


def _filled(store: FallbackStore, place: Place, token: bytes, raw: bytes, ttl: int) -> int:
    """Do what fill.lua does, in memory."""

    def decide(old: bytes | None) -> tuple[bytes | None, float, bool]:
        stands = old is not None and entries.is_entry(old) and entries.lease_of(old)[0] == token
        return (raw if stands else None), ttl / 1000, stands

    stands = store.exchange(place.name, decide)
    if stands:
        store.touch(place.name, ttl / 1000)  # not longer than it is to live
    return int(stands)


def _has_stamp(base: str, stamp: bytes, name: str, raw: bytes) -> bool:
    entry = entries.read_entry(raw) if name.startswith(base) else None
    return entry is not None and stamp in [
        entry.stamps[at : at + entries.STAMP] for at in range(0, len(entry.stamps), entries.STAMP)
    ]


# --- one for each alias ---------------------------------------------------------------------------------

_spaces: dict[str, Space | None] = {}


def space_for(alias: str) -> Space | None:
    """Return the query cache of a cache alias; None for Django's dummy, which keeps nothing.

    Raises:
        SettingsError: there is no such alias, or it is of a kind that keeps no query cache.
    """
    space = _spaces.get(alias)
    if space is not None and space.settings is caches.settings:
        if space.stands_in_for is not None:
            space.clear_with_it()
        return space
    return _make_space(alias)


def check_alias(alias: str) -> None:
    """Raise if there is no such alias; opens nothing."""
    if not isinstance(alias, str) or alias not in caches.settings:
        near = did_you_mean(alias, caches.settings)
        raise SettingsError(f"cache {alias!r}: there is no such alias in CACHES{near}")


def _make_space(alias: str) -> Space | None:
    check_alias(alias)
    # One of our own, which all threads share: Django makes one for each of them.
    backend = caches.create_connection(alias)
    if isinstance(backend, DummyCache):
        return None
    locmem = backend if isinstance(backend, LocMemCache) else None
    if locmem is not None:
        backend = _in_memory(alias)
    elif isinstance(backend, RedisCache) and backend._engine.settings.on_outage == "raise":
        backend = _forgiving(backend)
    if not isinstance(backend, RedisCache):
        kind = f"{type(backend).__module__}.{type(backend).__qualname__}"
        raise SettingsError(
            f"cache {alias!r} is a {kind}, which keeps no query cache; "
            f"its BACKEND has to be 'redis_infra.cache.RedisCache'"
        )
    former = _spaces.get(alias)
    if former is not None:
        former.retire(0)
    space = _spaces[alias] = Space(backend, locmem)
    space.clear_with_it()
    return space


def _in_memory(alias: str) -> RedisCache:
    """Return what stands in for locmem (a site's tests, mostly): the same place, and all that we can do."""
    params = dict(caches.settings[alias])
    location = params.get("LOCATION", "")
    return RedisCache(f"memory://{location}", {**params, "OPTIONS": {}})


def _forgiving(backend: RedisCache) -> RedisCache:
    """Return the same cache, but with memory in an outage: a cached function can always compute.

    ``ON_OUTAGE = "raise"`` is for locks that share the alias, where a local yes would be a lie.
    """
    options = {**backend._params.get("OPTIONS", {}), "ON_OUTAGE": "local"}
    return RedisCache(backend._server, {**backend._params, "OPTIONS": options})


def forget_spaces() -> None:
    """Make all anew: settings have changed (tests)."""
    for space in _spaces.values():
        if space is not None:
            space.retire(5)
    _spaces.clear()
