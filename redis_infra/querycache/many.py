"""``cached_many``: one look for many keys, one call of the function for what is missing, one store.

::

    @cached_many("user:{user_id}", ttl="user")
    def load_users(user_ids): return {user.pk: user for user in User.objects.filter(pk__in=user_ids)}

    load_users([1, 2, 3])      # {1: ..., 2: ..., 3: ...}

Keys are those of ``cached`` with the same template, and so are leases: each item is computed once, whoever
asks for it, together with others or alone.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Coroutine, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    overload,
)

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from redis_infra.cache import steps
from redis_infra.cache.codec import Codec, Unreadable
from redis_infra.cache.lease import computing, held, is_computing_any, pauses
from redis_infra.cache.steps import Call, Steps, Work
from redis_infra.cache.turns import turns
from redis_infra.cache.values import MISSING
from redis_infra.exceptions import SettingsError
from redis_infra.keys import Template, escape, template
from redis_infra.querycache import loading, transactions
from redis_infra.querycache.decorators import (
    bound_to,
    check_function,
    check_key,
    kind_of,
    register,
    template_of,
)
from redis_infra.querycache.entries import new_token, now_ms, usable_payload
from redis_infra.querycache.gate import gate
from redis_infra.querycache.invalidation import ainvalidate, invalidate, listed
from redis_infra.querycache.loading import Recipe, Seen, Tally, judge
from redis_infra.querycache.policy import Ttl, make_policy
from redis_infra.querycache.signature import (
    compile_argument,
    compile_key,
    compile_tags,
    item_field,
    parameter_names,
)
from redis_infra.querycache.space import Filling, Place, Space, space_for

__all__ = ["AsyncCachedMany", "CachedMany", "cached_many", "mapping"]

P = ParamSpec("P")
Q = ParamSpec("Q")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, Mapping[K, V]]], /
    ) -> AsyncCachedMany[P, K, V]: ...
    @overload
    def __call__(self, function: Callable[P, Mapping[K, V]], /) -> CachedMany[P, K, V]: ...


def cached_many(
    key: str | Template,
    *,
    ttl: Ttl,
    tags: Sequence[str | Template] = (),
    cache: str = "default",
    stale: Any = None,
    version: int = 1,
    condition: Callable[[Any], bool] | None = None,
    serializer: str | None = None,
) -> _Decorator:
    """Keep, item by item, what a function returns for many.

    The function takes a collection first and returns a mapping from its items to their values; ``key`` has
    one field that is none of its parameters, for an item. What the function is called with is what was
    missing, as a list, in order and each once; items that it leaves out of its answer are left out of the
    result, and not kept. The other options are those of ``cached``; ``condition`` is asked of each value.

    Raises:
        SettingsError: when decorating: the key has no such field, or an option is wrong.
    """
    check_key(key, "cached_many")

    def decorate(function: Any) -> Any:
        if isinstance(function, classmethod | staticmethod):
            raise SettingsError(f"@cached_many is for functions and methods, not for {function!r}")
        check_function(function, "cached_many")
        made = template_of(key)
        if made is None:
            raise SettingsError("@cached_many needs a key template, such as 'user:{user_id}'")
        policy = make_policy(
            kind=kind_of(made, function), ttl=ttl, stale=stale, version=version, condition=condition
        )
        recipe = Recipe(
            label=f"{function.__module__}.{function.__qualname__}",
            alias=cache,
            policy=policy,
            codec=None if serializer is None else Codec.build(serializer=serializer),
            tally=Tally(),
        )
        tag_templates = [template(each) for each in listed(tags, SettingsError)]
        is_async = iscoroutinefunction(function)
        return (AsyncCachedMany if is_async else CachedMany)(function, made, tag_templates, recipe)

    return decorate


def mapping(label: str, loaded: Any) -> Mapping[Any, Any]:
    """Return what a function has returned.

    Raises:
        TypeError: it is no mapping.
    """
    if inspect.iscoroutine(loaded):
        loaded.close()
        raise TypeError(f"{label} returned a coroutine; {loading.DECORATE_IT}")
    if not isinstance(loaded, Mapping):
        raise TypeError(
            f"{label} returned {'None' if loaded is None else f'a {type(loaded).__name__}'}; "
            f"cached_many needs a mapping from items to their values, such as a dict"
        )
    return loaded


class _Wanted(NamedTuple):
    """One item of a call."""

    item: Any
    place: Place


class _Missing(NamedTuple):
    """One item that is not there, or due."""

    item: Any
    place: Place
    seen: Seen


_Function: TypeAlias = Callable[[list[Any]], Any]
"""Loads items; its other arguments are those of the call."""


class _Base(Generic[P]):
    """What sync and async functions have in common."""

    def __init__(
        self, function: Callable[..., Any], key: Template, tags: list[Template], recipe: Recipe
    ) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # an object that is called
        self.uncached = function
        self.template: Template | None = key
        self.glob = key.pattern()
        """The glob of all keys that it can have."""
        item = item_field(function, key)
        names = parameter_names(function)
        is_method = names[:1] in (["self"], ["cls"])
        self._many = names[int(is_method)] if len(names) > is_method else ""
        if not self._many:
            raise SettingsError(f"{recipe.label} takes no collection of items")
        self._at = int(is_method)
        self._make_key = compile_key(function, key, item=item)
        self._make_tags = compile_tags(function, tags, item=item)
        self._items = compile_argument(function, self._many)
        self._recipe = recipe
        self._bound_to: tuple[Any, ...] = ()
        register(recipe.label, self)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method, as functions do."""
        return self if instance is None else bound_to(self, instance)

    def __repr__(self) -> str:
        return f"<cached_many {self._recipe.label}>"

    @property
    def tally(self) -> Tally:
        """What callers in this process got, item by item."""
        return self._recipe.tally

    @property
    def cache(self) -> str:
        return self._recipe.alias

    def keys(self, *args: P.args, **kwargs: P.kwargs) -> dict[Any, str]:
        """Return the key of each item of a call, without the prefix of its cache."""
        return {item: self._key(item, args, kwargs) for item in self._asked(args, kwargs)}

    def _key(self, item: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return self._make_key(item, *self._bound_to, *args, **kwargs)

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the items of a call, each once."""
        items = self._items(*self._bound_to, *args, **kwargs)
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise TypeError(
                f"{self._recipe.label}: {self._many} is a {type(items).__name__}, not a collection"
            )
        return list(dict.fromkeys(items))

    def _with_items(
        self, items: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with other items."""
        at = self._at - len(self._bound_to)
        if self._many in kwargs:
            return args, {**kwargs, self._many: items}
        return (*args[:at], items, *args[at + 1 :]), kwargs

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], items: list[Any]) -> Any:
        own, named = self._with_items(items, args, kwargs)
        return self.uncached(*own, **named)

    def _places(self, space: Space, items: list[Any], args: Any, kwargs: Any) -> list[_Wanted]:
        tags = self._make_tags
        return [
            _Wanted(
                item,
                space.place(
                    self._key(item, args, kwargs),
                    tags(item, *self._bound_to, *args, **kwargs) if tags is not None else (),
                ),
            )
            for item in items
        ]

    # One call

    def _invalidated_here(self, wanted: list[_Wanted]) -> set[Any]:
        """Return the items that this thread has invalidated in a transaction that is still open."""
        is_one, alias = transactions.is_invalidated_here, self._recipe.alias
        return {each.item for each in wanted if is_one(alias, each.place.key, each.place.tags)}

    def _get(self, space: Space, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        """Return the values of a call by item."""
        load = functools.partial(self._call, args, kwargs)
        recipe, found = self._recipe, dict[Any, Any]()
        if self._make_tags is None and not transactions.pending:
            items = self._asked(args, kwargs)
            missing = yield from self._look_quickly(space, items, args, kwargs, found)
            if missing:
                recipe.tally.misses += len(missing)
                yield from self._fetch(space, load, missing, [], found)
                return {item: found[item] for item in items if item in found}
            return found
        wanted = self._places(space, self._asked(args, kwargs), args, kwargs)
        here, apart = wanted, list[_Wanted]()
        if transactions.pending:
            hidden = yield Work(transactions.ask_around, (self._invalidated_here, wanted))
            here = [each for each in wanted if each.item not in hidden]
            apart = [each for each in wanted if each.item in hidden]
        missing = yield from self._look(space, here, found)
        if missing or apart:
            recipe.tally.misses += len(missing)
            yield from self._fetch(space, load, missing, [each.item for each in apart], found)
        return {each.item: found[each.item] for each in wanted if each.item in found}

    def _kept(self, space: Space, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        """Return what is kept of a call's items, computing nothing."""
        found: dict[Any, Any] = {}
        wanted = self._places(space, self._asked(args, kwargs), args, kwargs)
        for each, seen in (yield from self._judged(space, wanted)):
            if seen.entry is not None and seen.entry.fresh > now_ms():
                value = loading.decode(space, self._recipe, each.place, seen.entry.payload)
                if value is not MISSING:
                    found[each.item] = value
        return found

    def _look_quickly(
        self,
        space: Space,
        items: list[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        found: dict[Any, Any],
    ) -> Generator[Any, Any, list[_Missing]]:
        """:meth:`_look` for items without tags, of which nearly all are there: nothing is built for a hit."""
        if not items:
            return []
        recipe, engine = self._recipe, space.engine
        make, bound_to = self._make_key, self._bound_to
        keys = [make(item, *bound_to, *args, **kwargs) for item in items]
        base = space.base(keys[0])
        raws = yield space.read_many([f"{base}{key}" for key in keys])
        version, now, decode = recipe.policy.version, now_ms(), (recipe.codec or engine.codec).decode
        is_signed, missing = engine.is_signed, []
        for item, key, raw in zip(items, keys, raws, strict=True):
            payload = usable_payload(raw, version, b"", now) if raw is not None else None
            if payload is not None:
                try:
                    found[item] = decode(loading.bound(space, key) if is_signed else "", payload)
                    continue
                except Unreadable as error:
                    engine.note_unreadable(error)
            seen = judge(raw, (), version)
            if payload is not None:
                seen = Seen(None, True, seen.filled_by)
            missing.append(_Missing(item, space.place(key), seen))
        recipe.tally.hits += len(items) - len(missing)
        return missing

    def _look(
        self, space: Space, wanted: Sequence[_Wanted], found: dict[Any, Any]
    ) -> Generator[Any, Any, Any]:
        """Find what is there; return what is missing or due."""
        recipe = self._recipe
        missing = []
        for each, seen in (yield from self._judged(space, wanted)):
            if seen.entry is not None and not seen.is_due:
                value = loading.decode(space, recipe, each.place, seen.entry.payload)
                if value is not MISSING:
                    recipe.tally.hits += 1
                    found[each.item] = value
                    continue
                seen = Seen(None, True, seen.filled_by)  # noqa: PLW2901
            missing.append(_Missing(each.item, each.place, seen))
        return missing

    def _judged(
        self, space: Space, wanted: Sequence[_Wanted | _Missing]
    ) -> Generator[Any, Any, list[tuple[Any, Seen]]]:
        """Look at entries, and at the stamps of all their tags, in one round trip."""
        if not wanted:
            return []
        stamps = list(dict.fromkeys(name for each in wanted for name in each.place.stamps))
        names = [each.place.name for each in wanted]
        raws = yield space.read_many([*names, *stamps])
        known = dict(zip(stamps, raws[len(names) :], strict=True))
        version = self._recipe.policy.version
        return [
            (each, judge(raw, [known[name] for name in each.place.stamps], version))
            for each, raw in zip(wanted, raws, strict=False)
        ]

    def _fetch(
        self,
        space: Space,
        load: _Function,
        missing: list[_Missing],
        apart: list[Any],
        found: dict[Any, Any],
    ) -> Generator[Any, Any, None]:
        """Load what is missing, together where the leases are ours; wait for what others compute."""
        owner = object()
        try:
            yield from self._fetch_all(space, load, missing, apart, found, owner)
        finally:
            turns.leave(owner)

    def _fetch_all(
        self,
        space: Space,
        load: _Function,
        missing: list[_Missing],
        apart: list[Any],
        found: dict[Any, Any],
        owner: object,
    ) -> Generator[Any, Any, None]:
        recipe, looks, waited = self._recipe, pauses(), False
        turn: Iterator[float] | None = None
        while missing or apart:
            pause = next(looks, None)
            if pause is None and missing:  # who has waited as long as anybody does computes, one at a time
                turn = turn or turns.waits([each.place.name for each in missing], owner)
                pause = next(turn, None)
            late = pause is None
            tokens, stamps = yield from self._acquire(space, missing)
            mine = [each for each in missing if each.item in tokens]
            others = [each for each in missing if each.item not in tokens]
            for item, place, seen in others:
                if seen.entry is not None:
                    value = loading.decode(space, recipe, place, seen.entry.payload)
                    if value is not MISSING:
                        recipe.tally.stale += 1
                        found[item] = value
            others = [each for each in others if each.item not in found]
            items = [each.item for each in mine] + apart + ([each.item for each in others] if late else [])
            if items:
                yield from self._load(
                    space, functools.partial(load, items), items, mine, tokens, stamps, found
                )
                apart = []
            if late or not others:
                return
            if not items:
                recipe.tally.waits += not waited
                waited = True
                yield pause or 0.0
            missing = yield from self._look(space, [_Wanted(each.item, each.place) for each in others], found)

    def _acquire(self, space: Space, missing: list[_Missing]) -> Generator[Any, Any, Any]:
        """Ask for the leases; return those that were granted by item, and the stamps by name."""
        if not missing:
            return {}, {}
        stay = loading.milliseconds(self._recipe.policy.longest())
        names = list(dict.fromkeys(name for each in missing for name in each.place.stamps))
        stamps = dict(zip(names, (yield space.stamps(names, stay)), strict=True)) if names else {}
        tokens = [new_token() for _ in missing]
        answers = yield space.acquire_many(
            [each.place for each in missing], tokens, [each.seen.filled_by for each in missing], stay
        )
        granted = {
            each.item: answer[1]
            for each, answer in zip(missing, answers, strict=True)
            if answer[0] == b"granted"
        }
        return granted, stamps

    def _load(
        self,
        space: Space,
        load: Callable[[], Any],
        items: list[Any],
        mine: list[_Missing],
        tokens: dict[Any, bytes],
        stamps: dict[str, bytes],
        found: dict[Any, Any],
    ) -> Generator[Any, Any, None]:
        """Call the function once, and store what our leases are for."""
        for each in mine:
            renew = functools.partial(space.engine.run, space.renew(each.place, tokens[each.item]))
            held.hold(tokens[each.item], renew)
        try:
            loaded, cost = yield from self._timed(space, load, mine)
            fillings = yield from self._fillings(space, mine, tokens, stamps, loaded, cost / len(items))
        except Exception:
            self._recipe.tally.errors += 1
            self._leave(space, mine, tokens, pause=loading.PAUSE)
            is_all = len(mine) == len(items)
            if not (is_all and (yield from self._serve_expired(space, mine, found))):
                raise
            return
        except BaseException:
            self._leave(space, mine, tokens)
            raise
        found.update({item: loaded[item] for item in items if item in loaded})
        stored = {filling.token for filling in fillings}
        self._leave(space, [each for each in mine if tokens[each.item] not in stored], tokens)
        if fillings:
            yield from self._store(space, fillings)

    def _timed(
        self, space: Space, load: Callable[[], Any], mine: list[_Missing]
    ) -> Generator[Any, Any, tuple[Mapping[Any, Any], float]]:
        """Return what the function returns, and the seconds that it took."""
        tally = self._recipe.tally
        tally.computations += 1
        if not is_computing_any():
            yield from gate.waits(space.engine)
        began = time.perf_counter()
        with computing(*[each.place.name for each in mine]), gate.entered():
            loaded = yield Call(load)
        cost = time.perf_counter() - began
        tally.took(cost)
        return mapping(self._recipe.label, loaded), cost

    def _fillings(
        self,
        space: Space,
        mine: list[_Missing],
        tokens: dict[Any, bytes],
        stamps: dict[str, bytes],
        loaded: Mapping[Any, Any],
        cost: float,
    ) -> Generator[Any, Any, list[Filling]]:
        """Return what is to be stored, and prolong its leases no more."""
        fillings = []
        for each in mine:
            token = tokens[each.item]
            raw, ttl = yield from self._raw(space, each, token, stamps, loaded, cost)
            if raw is not None:
                fillings.append(Filling(each.place, token, raw, ttl))
        for filling in fillings:
            held.drop(filling.token)
        return fillings

    @staticmethod
    def _leave(space: Space, mine: Iterable[_Missing], tokens: dict[Any, bytes], *, pause: int = 0) -> None:
        """Let go of leases, in the background; of what can be served, nobody tries for ``pause`` ms."""
        for each in mine:
            token = tokens[each.item]
            plan = space.release(each.place, token, pause=pause if each.seen.entry is not None else 0)
            held.leave(token, functools.partial(space.engine.run, plan))

    def _serve_expired(
        self, space: Space, mine: list[_Missing], found: dict[Any, Any]
    ) -> Generator[Any, Any, bool]:
        """Serve expired values instead of a loader's error, if all are there and nobody invalidated them."""
        if any(each.seen.entry is None for each in mine):
            return False
        recipe, served = self._recipe, {}
        for each, seen in (yield from self._judged(space, mine)):
            is_same = seen.filled_by == each.seen.filled_by
            payload = seen.entry.payload if seen.entry is not None and is_same else None
            value = loading.decode(space, recipe, each.place, payload) if payload is not None else MISSING
            if value is MISSING:
                return False
            served[each.item] = value
        recipe.tally.stale += len(served)
        found.update(served)
        return True

    def _raw(
        self,
        space: Space,
        each: _Missing,
        token: bytes,
        stamps: dict[str, bytes],
        loaded: Mapping[Any, Any],
        cost: float,
    ) -> Generator[Any, Any, tuple[bytes | None, int]]:
        """Return the entry of a loaded item, and how long it lives; None if it is not to be kept."""
        policy = self._recipe.policy
        if each.item not in loaded or not policy.keeps(loaded[each.item]):
            return None, 0
        value = loaded[each.item]
        payload = yield Work(loading.encode, (space, self._recipe, each.place, value))
        if payload is None:
            return None, 0
        own = [stamps[name] for name in each.place.stamps]
        return loading.packed(policy, token, value, payload, own, cost)

    def _store(self, space: Space, fillings: list[Filling]) -> Generator[Any, Any, None]:
        if transactions.is_by_hand():
            for each in fillings:
                yield space.release(each.place, each.token)
            return
        fill = space.fill_many(fillings)
        waits_for = yield Work(transactions.ask_around, (transactions.open_transactions,))
        if not waits_for:
            yield fill
            return
        for each in fillings:
            yield space.park(each.place, each.token)
        transactions.store_at_commit(lambda: space.engine.run(fill), waits_for)


class CachedMany(_Base[P], Generic[P, K, V]):
    """A function whose results are kept item by item; see :func:`cached_many`."""

    if TYPE_CHECKING:
        # A method has lost its first parameter.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> CachedMany[..., K, V]: ...
        @overload
        def __get__(
            self: CachedMany[Concatenate[Any, Q], K, V], instance: object, owner: type | None = None
        ) -> CachedMany[Q, K, V]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    uncached: Callable[P, Mapping[K, V]]
    """The function itself."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        space = space_for(self._recipe.alias)
        if space is None:
            return dict(mapping(self._recipe.label, self.uncached(*args, **kwargs)))
        return steps.carry_out(space.engine, self._get(space, args, kwargs))  # type: ignore[no-any-return]

    def get(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Return what is kept of a call's items, and good; loads nothing."""
        space = space_for(self._recipe.alias)
        if space is None:
            return {}
        return steps.carry_out(space.engine, self._kept(space, args, kwargs))  # type: ignore[no-any-return]

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Forget the items of a call; return how many there were. In ``atomic()`` at commit, and 0."""
        keys = self.keys(*args, **kwargs).values()
        return invalidate(*map(escape, keys), cache=self._recipe.alias) if keys else 0

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Load all items of a call anew, keep and return them."""
        self.invalidate(*args, **kwargs)
        return self(*args, **kwargs)


class AsyncCachedMany(_Base[P], Generic[P, K, V]):
    """A coroutine function whose results are kept item by item; see :func:`cached_many`."""

    if TYPE_CHECKING:
        # A method has lost its first parameter.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> AsyncCachedMany[..., K, V]: ...
        @overload
        def __get__(
            self: AsyncCachedMany[Concatenate[Any, Q], K, V], instance: object, owner: type | None = None
        ) -> AsyncCachedMany[Q, K, V]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    def __init__(
        self, function: Callable[..., Any], key: Template, tags: list[Template], recipe: Recipe
    ) -> None:
        super().__init__(function, key, tags, recipe)
        markcoroutinefunction(self)

    uncached: Callable[P, Coroutine[Any, Any, Mapping[K, V]]]
    """The function itself."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        space = space_for(self._recipe.alias)
        if space is None:
            return dict(mapping(self._recipe.label, await self.uncached(*args, **kwargs)))
        return await steps.acarry_out(space.engine, self._get(space, args, kwargs))  # type: ignore[no-any-return]

    async def aget(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Return what is kept of a call's items, and good; loads nothing."""
        space = space_for(self._recipe.alias)
        if space is None:
            return {}
        kept = self._kept(space, args, kwargs)
        return await steps.acarry_out(space.engine, kept)  # type: ignore[no-any-return]

    async def ainvalidate(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Forget the items of a call; return how many there were."""
        keys = self.keys(*args, **kwargs).values()
        return await ainvalidate(*map(escape, keys), cache=self._recipe.alias) if keys else 0

    async def arefresh(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Load all items of a call anew, keep and return them."""
        await self.ainvalidate(*args, **kwargs)
        return await self(*args, **kwargs)
