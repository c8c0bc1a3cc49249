"""``redis_infra.cache.RedisCache``: Django's cache API, and django-redis', sync and native async.

A subclass of django-redis' cache, so that a team changes one string: its
options, its extra methods, ``get_redis_connection`` and ``isinstance`` go on
working. Django's contract has a path of its own here, which is faster and
survives Redis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache, default_key_func
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django_redis.cache import RedisCache as DjangoRedisCache
from django_redis.util import CacheKey

from redis_infra.cache import operations as plans
from redis_infra.cache.codec import Unreadable
from redis_infra.cache.engine import Engine, engine_for
from redis_infra.cache.fallback import Missing, NotInteger
from redis_infra.cache.filling import get_or_set
from redis_infra.cache.operations import NotACounter, Plan
from redis_infra.cache.steps import acarry_out, carry_out
from redis_infra.cache.values import COUNTER_MAX, COUNTER_MIN, MISSING
from redis_infra.connection.bulk import BATCH
from redis_infra.exceptions import CounterOverflow, SettingsError
from redis_infra.instrumentation import anotify_cleared, notify_cleared
from redis_infra.keys import Namespace, escape, namespace

if TYPE_CHECKING:
    from redis_infra.cache.client import Client

__all__ = ["RedisCache"]

T = TypeVar("T")

MOST_HOMES = 100
"""Namespaces that are remembered; tenants have one each."""

LONGEST_TTL = 10**15
"""Milliseconds; beyond some 30,000 years the server calls a time to live invalid."""


class RedisCache(DjangoRedisCache):
    """A cache on Redis that stays up when Redis does not.

    While Redis cannot be reached nothing is raised that Django's locmem would
    not raise: the process' own memory answers (``ON_OUTAGE = "local"``; see
    ``"miss"`` and ``"raise"``), and what Redis missed is put right before it is
    read again. What cannot be answered without Redis (locks, sets, hashes,
    times to live) raises ``StoreUnavailable`` at once.

    Timeouts are seconds, whole or not; None never expires; 0 and less deletes.
    Every method of Django's API, and ``delete_pattern`` and ``incr_or_create``,
    has an ``a`` twin that is native to the running event loop; django-redis'
    extras (sets, hashes, locks) are synchronous, as there.
    Instances are cheap and hold no connection; threads, event loops and forked
    processes may share one.
    """

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        # Not django-redis' constructor: it imports its client, and with it redis-py
        # (41 ms), into processes that never touch the cache.
        BaseCache.__init__(self, params)
        self._server = server
        self._params = params
        self._client = None
        # An outage is the engine's to handle. django-redis' own switch would turn
        # the errors of locks, sets and hashes into a silent None.
        self._ignore_exceptions = False
        self._log_ignored_exceptions = False
        self.logger = None

    @cached_property
    def _engine(self) -> Engine:
        try:
            return engine_for(self._server, self._params)
        except SettingsError as error:
            raise ImproperlyConfigured(str(error)) from error

    @property
    def is_degraded(self) -> bool:
        """Whether anything but Redis answers for it now. Reads state; asks nobody."""
        return self._engine.is_degraded

    def status(self) -> dict[str, Any]:
        """How this process stands with the alias: state, server (no password), rule, pending, counters."""
        return self._engine.status()

    # Names and timeouts

    def _name(self, key: Any, version: int | None = None) -> str:
        """The full name of a key, validated as Django does."""
        if type(key) is CacheKey:
            return str(key)
        if self.key_func is default_key_func:
            name = f"{self.key_prefix}:{self.version if version is None else version}:{key}"
        else:
            name = str(self.key_func(key, self.key_prefix, self.version if version is None else version))
        # The common case in C: printable, no space, short. Anything else gets Django's own look.
        if not name.isprintable() or " " in name or len(name) > 250:
            self._validate(name)
        return name

    def _validate(self, name: str) -> None:
        """Warn of what memcached would refuse, and refuse what no server can be sent, with or without Redis.

        Raises:
            UnicodeEncodeError: half of a surrogate pair is in it.
        """
        self.validate_key(name)
        name.encode()

    def _bound(self, key: Any, name: str) -> str:
        """What a signature ties a value to: the key without its version, so that a rename keeps it valid."""
        # Version 0 and no text: key functions of sites may do arithmetic with it.
        return str(self.key_func(key, self.key_prefix, 0)) if self._engine.is_signed else name

    @property
    def namespace(self) -> str:
        """The glob of every name that this alias can make; empty if its key function does not show it.

        Then what Redis misses is remembered key by key, however many there are.
        """
        try:
            return self._home.pattern
        except Exception:  # the site's own key function, which is asked for made-up keys here
            return ""

    @property
    def _home(self) -> Namespace:
        """What :func:`~redis_infra.keys.namespace` says, or raises."""
        made_of = (self.key_func, self.key_prefix, self.version, self._sample())
        known = self._known_homes.get(made_of)
        if known is None:
            if len(self._known_homes) >= MOST_HOMES:
                self._known_homes.clear()
            known = self._known_homes[made_of] = _home_of(*made_of[:3])
        if isinstance(known, Exception):
            raise known
        return known

    def _sample(self) -> str:
        """What tells one tenant's names from another's, where the key function asks who is being served."""
        if self.key_func is default_key_func:
            return ""
        try:
            return str(self.key_func("0", self.key_prefix, self.version))
        except Exception:  # it may refuse any key
            return ""

    @cached_property
    def _known_homes(self) -> dict[Any, Namespace | Exception]:
        return {}

    def _ttl(self, timeout: Any) -> int | None:
        """Milliseconds, None for ever; 0 or less: at once."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        if type(timeout) is int:
            return min(timeout * 1000, LONGEST_TTL)
        return _milliseconds(timeout)

    # Reading

    def get(self, key: Any, default: Any = None, version: int | None = None, client: Any = None) -> Any:
        if client is not None:
            return self.client.get(key, default=default, version=version, client=client)
        name = self._name(key, version)
        return self._found(self._engine.fetch(name), key, name, default)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        name = self._name(key, version)
        return self._found(await self._engine.afetch(name), key, name, default)

    def _found(self, raw: bytes | None, key: Any, name: str, default: Any) -> Any:
        engine = self._engine
        if raw is None:
            engine.counters.misses += 1
            return default
        try:
            value = engine.codec.decode(self._bound(key, name) if engine.is_signed else name, raw)
        except Unreadable as error:
            engine.note_unreadable(error)
            engine.counters.misses += 1
            return default
        engine.counters.hits += 1
        return value

    def get_many(self, keys: Iterable[Any], version: int | None = None, client: Any = None) -> dict[Any, Any]:
        if client is not None:
            return dict(self.client.get_many(list(keys), version=version, client=client))
        keys = list(keys)
        if not keys:
            return {}
        names = self._names(keys, version)
        return self._found_many(keys, names, self._engine.run(self._get_many(names)))

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        keys = list(keys)
        if not keys:
            return {}
        names = self._names(keys, version)
        raws = await self._engine.arun(self._get_many(names))
        return self._found_many(keys, names, raws)

    def _names(self, keys: Iterable[Any], version: int | None) -> list[str]:
        """The names of many keys, in order."""
        if self.key_func is not default_key_func:
            return [self._name(key, version) for key in keys]
        start = f"{self.key_prefix}:{self.version if version is None else version}:"
        names = [key if type(key) is CacheKey else f"{start}{key}" for key in keys]
        # All in one look: a hundred names one by one take a tenth of get_many's time.
        together = "".join(names)
        if not together.isprintable() or " " in together or max(map(len, names), default=0) > 250:
            for name in names:
                self._validate(name)
        return names

    def _get_many(self, names: list[str]) -> Plan:
        engine = self._engine
        return plans.get_many(names, partial(engine.untrusted, names), partial(engine.correct, names))

    def _found_many(self, keys: list[Any], names: list[str], raws: list[bytes | None]) -> dict[Any, Any]:
        engine = self._engine
        decode, is_signed = engine.codec.decode, engine.is_signed
        found = {}
        for key, name, raw in zip(keys, names, raws, strict=True):
            if raw is not None:
                try:
                    found[key] = decode(self._bound(key, name) if is_signed else name, raw)
                except Unreadable as error:
                    engine.note_unreadable(error)
        engine.counters.hits += len(found)
        engine.counters.misses += len(raws) - len(found)
        return found

    def has_key(self, key: Any, version: int | None = None, client: Any = None) -> bool:
        if client is not None:
            return bool(self.client.has_key(key, version=version, client=client))
        name = self._name(key, version)
        return bool(self._engine.run(plans.exists(name))) or self._engine.holds(name)

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        name = self._name(key, version)
        return bool(await self._engine.arun(plans.exists(name))) or self._engine.holds(name)

    # Storing

    def set(  # type: ignore[override]  # django-redis says whether it was stored
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        client: Any = None,
        nx: bool = False,
        xx: bool = False,
    ) -> bool | None:
        if client is not None:
            return bool(self.client.set(key, value, timeout, version, client=client, nx=nx, xx=xx))
        return self._engine.run(self._set(key, value, timeout, version, nx, xx))  # type: ignore[no-any-return]

    async def aset(  # type: ignore[override]
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        nx: bool = False,
        xx: bool = False,
    ) -> bool | None:
        plan = await _planned(self._set, key, value, timeout, version, nx, xx)
        return await self._engine.arun(plan)  # type: ignore[no-any-return]

    def _set(self, key: Any, value: Any, timeout: Any, version: int | None, nx: bool, xx: bool) -> Plan:
        if nx and xx:
            raise ValueError("nx and xx exclude each other: where nothing is, or where something is")
        name = self._name(key, version)
        raw = self._engine.codec.encode(self._bound(key, name), value)
        ttl = self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            return plans.absent(name) if nx else self._delete(name)
        return plans.set_(name, self, raw, ttl, nx=nx, xx=xx)

    def add(
        self,
        key: Any,
        value: Any,
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        client: Any = None,
    ) -> bool:
        if client is not None:
            return bool(self.client.add(key, value, timeout, version=version, client=client))
        return bool(self._engine.run(self._add(key, value, timeout, version)))

    async def aadd(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        return bool(await self._engine.arun(await _planned(self._add, key, value, timeout, version)))

    def _add(self, key: Any, value: Any, timeout: Any, version: int | None) -> Plan:
        name = self._name(key, version)
        raw = self._engine.codec.encode(self._bound(key, name), value)
        ttl = self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            return plans.absent(name)
        return plans.add(name, self, raw, ttl)

    def set_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
        client: Any = None,
    ) -> list[Any]:
        if client is not None:
            self.client.set_many(dict(data), timeout=timeout, version=version, client=client)
        elif data:
            self._engine.run(self._set_many(data, timeout, version))
        return []

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        if data:
            await self._engine.arun(await _planned(self._set_many, data, timeout, version))
        return []

    def _set_many(self, data: Mapping[Any, Any], timeout: Any, version: int | None) -> Plan:
        engine = self._engine
        encode, is_signed = engine.codec.encode, engine.is_signed
        names = self._names(data, version)
        values = {
            name: encode(self._bound(key, name) if is_signed else name, value)
            for name, (key, value) in zip(names, data.items(), strict=True)
        }
        ttl = self._ttl(timeout)
        if ttl is not None and ttl <= 0:
            return self._delete_many(list(values))
        return plans.set_many(values, self, ttl)

    def touch(
        self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None, client: Any = None
    ) -> bool:
        if client is not None:
            return bool(self.client.touch(key, timeout=timeout, version=version, client=client))
        return bool(self._engine.run(plans.touch(self._name(key, version), self, self._ttl(timeout))))

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        plan = plans.touch(self._name(key, version), self, self._ttl(timeout))
        return bool(await self._engine.arun(plan))

    # Removing

    def delete(
        self, key: Any, version: int | None = None, prefix: str | None = None, client: Any = None
    ) -> bool:
        if client is not None or prefix is not None:
            return bool(self.client.delete(key, version=version, prefix=prefix, client=client))
        return bool(self._engine.run(self._delete(self._name(key, version))))

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return bool(await self._engine.arun(self._delete(self._name(key, version))))

    def _delete(self, name: str) -> Plan:
        return plans.delete(name, self, self._engine.note_deleted)

    def delete_many(  # type: ignore[override]  # django-redis counts
        self, keys: Iterable[Any], version: int | None = None, client: Any = None
    ) -> int | None:
        """Remove the keys; return how many were there, None for no keys at all."""
        if client is not None:
            return int(self.client.delete_many(list(keys), version=version, client=client))
        names = self._names(keys, version)
        return int(self._engine.run(self._delete_many(names))) if names else None

    async def adelete_many(  # type: ignore[override]
        self, keys: Iterable[Any], version: int | None = None
    ) -> int | None:
        names = self._names(keys, version)
        return int(await self._engine.arun(self._delete_many(names))) if names else None

    def _delete_many(self, names: list[str]) -> Plan:
        return plans.delete_many(names, self, self._engine.note_deleted)

    def clear(self) -> None:
        """Remove what is under this alias' prefix, in every version; other prefixes stay."""
        self._engine.run(self._clear())
        notify_cleared(self)

    async def aclear(self) -> None:
        await self._engine.arun(self._clear())
        await anotify_cleared(self)

    def _clear(self) -> Plan:
        # The glob alone would take prefix "site:2nd" for a version of "site".
        home = self._home
        return plans.clear(
            home.pattern,
            self,
            batch=BATCH,
            also=self._engine.take_matching,
            only=home.__contains__,
        )

    def delete_pattern(
        self,
        pattern: str,
        version: int | None = None,
        prefix: str | None = None,
        client: Any = None,
        itersize: int | None = None,
    ) -> int:
        """Remove the keys that match a glob (``*``, ``?``, ``[abc]``); return how many.

        Prefix and version are taken literally. SCAN and UNLINK in batches of
        ``itersize`` (default 1000): other clients are not held up.
        """
        if client is not None:
            size = itersize or self._itersize
            return int(self.client.delete_pattern(pattern, version, prefix, client=client, itersize=size))
        return int(self._engine.run(self._delete_pattern(pattern, version, prefix, itersize)))

    async def adelete_pattern(
        self,
        pattern: str,
        version: int | None = None,
        prefix: str | None = None,
        itersize: int | None = None,
    ) -> int:
        return int(await self._engine.arun(self._delete_pattern(pattern, version, prefix, itersize)))

    def _delete_pattern(
        self, pattern: str, version: int | None, prefix: str | None, itersize: int | None
    ) -> Plan:
        glob = self._glob(pattern, version, prefix)
        return plans.clear(glob, self, batch=itersize or self._itersize, also=self._engine.take_matching)

    def _glob(self, pattern: str, version: int | None, prefix: str | None = None) -> str:
        prefix = self.key_prefix if prefix is None else prefix
        version_text = escape(str(self.version if version is None else version))
        glob = str(self.key_func(pattern, escape(prefix), version_text))
        glob.encode()  # as in _validate: the journal must not take what no server can be sent
        return glob

    @property
    def _itersize(self) -> int:
        return int(getattr(django_settings, "DJANGO_REDIS_SCAN_ITERSIZE", BATCH))

    # Counting

    def incr(
        self,
        key: Any,
        delta: Any = 1,
        version: int | None = None,
        client: Any = None,
        ignore_key_check: bool = False,
    ) -> Any:
        """Add ``delta`` to a counter that exists; it keeps its time to live. Never counts twice.

        Raises:
            ValueError: there is no such key.
            CounterOverflow: the sum does not fit 64 bits; the counter is as it was.
            TypeError: what is stored cannot be added to.
        """
        if client is not None:
            return self.client.incr(
                key, delta, version=version, client=client, ignore_key_check=ignore_key_check
            )
        if ignore_key_check:
            return self.incr_or_create(key, delta, None, version=version)
        name, delta = self._name(key, version), _delta(delta)
        if type(delta) is int:
            try:
                return self._counted(key, self._engine.run(plans.count(name, self, _in_range(delta))))
            except (NotACounter, NotInteger):
                pass
            except Missing:
                raise _no_such_key(key) from None
        while True:
            raw = self._engine.fetch(name)
            new, plan = self._summed(key, name, raw, delta)
            with suppress(Missing):
                if self._engine.run(plan):
                    return new

    async def aincr(self, key: Any, delta: Any = 1, version: int | None = None) -> Any:
        name, delta = self._name(key, version), _delta(delta)
        if type(delta) is int:
            try:
                return self._counted(key, await self._engine.arun(plans.count(name, self, _in_range(delta))))
            except (NotACounter, NotInteger):
                pass
            except Missing:
                raise _no_such_key(key) from None
        while True:
            raw = await self._engine.afetch(name)
            new, plan = self._summed(key, name, raw, delta)
            with suppress(Missing):
                if await self._engine.arun(plan):
                    return new

    def decr(self, key: Any, delta: Any = 1, version: int | None = None, client: Any = None) -> Any:
        if client is not None:
            return self.client.decr(key, delta, version=version, client=client)
        return self.incr(key, -delta, version=version)

    async def adecr(self, key: Any, delta: Any = 1, version: int | None = None) -> Any:
        return await self.aincr(key, -delta, version=version)

    def _counted(self, key: Any, value: int | None) -> int:
        if value is None:
            raise _no_such_key(key)
        return value

    def _summed(self, key: Any, name: str, raw: bytes | None, delta: Any) -> tuple[Any, Plan]:
        """The sum with what is stored (a float, say), and the plan that stores it if nobody was faster."""
        bound = self._bound(key, name)
        value = MISSING if raw is None else self._engine.decode(bound, raw, MISSING)
        if raw is None or value is MISSING:
            raise _no_such_key(key)
        new = value + delta
        encoded = self._engine.codec.encode(bound, new)
        return new, plans.replace(name, self, raw, encoded, create=not self._engine.is_memory)

    def incr_or_create(
        self, key: Any, delta: int = 1, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> int:
        """Add ``delta`` to a counter, in one step and one round trip, whether or not it exists.

        A new counter starts at ``delta`` and lives for ``timeout`` seconds; one
        that exists keeps its time to live.

        Raises:
            CounterOverflow: as :meth:`incr`.
            TypeError: what is stored is not a counter.
        """
        try:
            return int(self._engine.run(self._incr_or_create(key, delta, timeout, version)))
        except (NotACounter, NotInteger) as error:
            raise _not_a_counter(key) from error

    async def aincr_or_create(
        self, key: Any, delta: int = 1, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> int:
        try:
            return int(await self._engine.arun(self._incr_or_create(key, delta, timeout, version)))
        except (NotACounter, NotInteger) as error:
            raise _not_a_counter(key) from error

    def _incr_or_create(self, key: Any, delta: int, timeout: Any, version: int | None) -> Plan:
        return plans.count_or_create(
            self._name(key, version), self, _in_range(int(delta)), self._ttl(timeout)
        )

    def incr_version(self, key: Any, delta: int = 1, version: int | None = None, client: Any = None) -> int:
        """Move a value to another version, in one step; it keeps its time to live.

        Raises:
            ValueError: there is no such key.
        """
        version = self.version if version is None else version
        if not self._engine.run(self._incr_version(key, delta, version)):
            raise _no_such_key(key)
        return int(version + delta)

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        version = self.version if version is None else version
        if not await self._engine.arun(self._incr_version(key, delta, version)):
            raise _no_such_key(key)
        return int(version + delta)

    def decr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self.incr_version(key, -delta, version)

    async def adecr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await self.aincr_version(key, -delta, version)

    def _incr_version(self, key: Any, delta: int, version: int) -> Plan:
        return plans.rename(self._name(key, version), self._name(key, version + delta), self)

    # One computation

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """Return what is stored, or store and return ``default``, called if it can be.

        Threads, tasks and processes that miss the same key at once wait for one computation, for ten
        seconds at most. None is a value like any other.
        """
        return carry_out(self._engine, get_or_set(self, key, default, timeout, version))

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """:meth:`get_or_set`; ``default`` may be a coroutine function, or return an awaitable."""
        return await acarry_out(self._engine, get_or_set(self, key, default, timeout, version))

    def _encoded(self, key: Any, value: Any) -> bytes:
        return self._engine.codec.encode(self._bound(key, ""), value)

    def _decoded(self, key: Any, raw: bytes) -> Any:
        return self._engine.decode(self._bound(key, ""), raw, MISSING)

    # django-redis' extras

    @property
    def client(self) -> Client:
        """django-redis' client on our guarded connections; made at its first use."""
        if self._client is None:
            from redis_infra.cache.client import Client

            self._client = Client(self._engine, self._params, self)
        client: Client = self._client  # type: ignore[assignment]
        return client

    @client.setter
    def client(self, client: Client) -> None:
        self._client = client

    def lock(self, *args: Any, **kwargs: Any) -> Any:
        """A lock of redis-py's on this key.

        Raises:
            StoreUnavailable: Redis cannot be reached; also from ``acquire``. A lock that only this
                process knows of would be none.
        """
        self.client.require("LOCK")
        return self.client.lock(*args, **kwargs)

    def keys(self, search: str, version: int | None = None, client: Any = None) -> list[Any]:
        """The keys that match a glob, without prefix and version. By SCAN: KEYS would block the server."""
        return list(dict.fromkeys(self.iter_keys(search, version=version, client=client)))

    def iter_keys(
        self,
        search: str,
        itersize: int | None = None,
        client: Any = None,
        version: int | None = None,
    ) -> Iterator[str]:
        """:meth:`keys`, one by one. A key that changes meanwhile may come twice."""
        return self.client.iter_keys(search, itersize or self._itersize, client=client, version=version)

    def close(self, **kwargs: Any) -> None:
        """Nothing to do: connections belong to the process. With CLOSE_CONNECTION they are closed."""
        if self._client is not None:
            self._client.close()
        if self._closes_connections():
            self._engine.close()

    async def aclose(self, **kwargs: Any) -> None:
        """:meth:`close` for the running event loop, whose connections otherwise end with it."""
        if self._closes_connections():
            await self._engine.aclose()

    def _closes_connections(self) -> bool:
        if "_engine" not in vars(self):  # it was not used, and has none
            return False
        wanted = self._engine.settings.options.get("CLOSE_CONNECTION")
        return bool(
            getattr(django_settings, "DJANGO_REDIS_CLOSE_CONNECTION", False) if wanted is None else wanted
        )


def _home_of(key_func: Any, prefix: str, version: Any) -> Namespace | Exception:
    try:
        return namespace(key_func, prefix, version)
    except Exception as error:  # to be raised each time: finding out takes some hundred calls
        return error


def _milliseconds(timeout: Any) -> int | None:
    try:
        seconds = float(timeout)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a cache timeout is seconds or None, not {timeout!r}") from error
    if math.isnan(seconds):
        raise ValueError("a cache timeout of NaN seconds means nothing")
    if math.isinf(seconds):
        return None if seconds > 0 else -1
    # Up, so that half a millisecond is not "at once".
    return max(-1, math.ceil(min(seconds * 1000, LONGEST_TTL)))


def _delta(delta: Any) -> Any:
    return int(delta) if isinstance(delta, int) else delta


def _in_range(delta: int) -> int:
    if COUNTER_MIN <= delta <= COUNTER_MAX:
        return delta
    raise CounterOverflow("INCR", "", f"a counter holds 64 bits, {delta} does not fit")


def _no_such_key(key: Any) -> ValueError:
    return ValueError(f"Key {key!r} not found")


def _not_a_counter(key: Any) -> TypeError:
    return TypeError(f"the value of {key!r} is not an integer")


async def _planned(make: Callable[..., T], *args: Any) -> T:
    """Make a plan with a value in it; a queryset is evaluated by its pickling, and that is for a thread."""
    try:
        return make(*args)
    except SynchronousOnlyOperation:
        return await sync_to_async(make, thread_sensitive=True)(*args)
