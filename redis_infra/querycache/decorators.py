"""``cached`` and ``cached_many``: functions whose results are kept.

::

    @cached("user:{user_id}", ttl="user")
    def get_user(user_id): ...

    get_user(7)
    get_user.invalidate(7)

The same decorators serve functions, methods and class methods, ``def`` and ``async def``. A decorated
function never raises because of the cache.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from redis_infra.cache import steps
from redis_infra.cache.codec import Codec, Unreadable
from redis_infra.cache.steps import Steps
from redis_infra.cache.values import MISSING
from redis_infra.conf import get_settings
from redis_infra.exceptions import SettingsError
from redis_infra.keys import Template, escape, template, value
from redis_infra.querycache import loading, transactions
from redis_infra.querycache.entries import now_ms, usable_payload
from redis_infra.querycache.invalidation import ainvalidate, invalidate, listed
from redis_infra.querycache.loading import Recipe, Tally, judge
from redis_infra.querycache.policy import Policy, Ttl, make_policy
from redis_infra.querycache.signature import automatic_glob, automatic_key, compile_key, compile_tags
from redis_infra.querycache.space import Place, Space, space_for
from redis_infra.querycache.tallies import tallies

__all__ = [
    "AsyncCached",
    "Cached",
    "bound_to",
    "cached",
    "check_function",
    "check_key",
    "functions",
    "kind_of",
    "register",
    "template_of",
]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

Vary = Callable[[], Any]


class _Decorator(Protocol):
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function, too
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Cached[P, R]: ...


functions: Final[weakref.WeakValueDictionary[str, Any]] = weakref.WeakValueDictionary()
"""Every decorated function that there is, by its dotted name."""
_number = itertools.count(2)


def register(label: str, function: Any) -> None:
    """Find a decorated function by its name as long as it is there, and count what its callers get.

    Of two of one name (closures) with other keys, both.
    """
    before = functions.get(label)
    is_another = before is not None and _is_another(before, function)
    functions[f"{label}#{next(_number)}" if is_another else label] = function
    tallies.enter(label, function)


def _is_another(one: Any, other: Any) -> bool:
    return (one.template, one.cache, one._recipe.policy.kind) != (
        other.template,
        other.cache,
        other._recipe.policy.kind,
    )


def cached(
    key: str | Template | None = None,
    *,
    ttl: Ttl,
    tags: Sequence[str | Template] = (),
    cache: str = "default",
    stale: Any = None,
    version: int = 1,
    condition: Callable[[Any], bool] | None = None,
    vary: Vary | Sequence[Vary] | None = None,
    serializer: str | None = None,
    none_ttl: Any = None,
) -> _Decorator:
    """Keep what a function returns.

    ``key`` is a template over the function's parameters (``"doc:{doc.pk}:{lang}"``), or the name of one in
    ``REDIS_INFRA["KEYS"]``; without one it is made of the function's name and all arguments. ``ttl`` is how
    long a value is good: seconds, ``"5min"``, a timedelta, a data type (``"user"``), or a function of the
    result. For ``stale`` longer an expired value is served while one caller computes the next, and when that
    fails. ``tags`` are templates too, to invalidate by. ``condition(result)`` says whether to keep it;
    ``none_ttl`` is the lifetime of None, if it is another. ``vary`` is a function without arguments, or
    several, whose results belong to the key (``get_language``). Another ``version`` makes a miss of what was
    kept. ``serializer`` is as in the settings.

    One caller computes, in this process and in all others; who comes meanwhile waits for it, ten seconds, and
    then computes as well: of each process one at a time, and after ten seconds more all. A result that was
    computed before an invalidation is not kept after it. In ``atomic()`` results are kept at commit, in a
    transaction begun by ``set_autocommit(False)`` never. Thread-safe, safe after ``fork``, in any number of
    event loops; native coroutines.

    Raises:
        SettingsError: when decorating: a field that is no parameter, an unknown data type, a wrong lifetime.
    """
    check_key(key, "cached")

    def decorate(function: Any) -> Any:
        wrapped = function.__func__ if isinstance(function, classmethod | staticmethod) else function
        check_function(wrapped, "cached")
        made = template_of(key)
        options = _Options(
            made,
            tuple(template(each) for each in listed(tags, SettingsError)),
            _functions(vary),
            make_policy(
                kind=kind_of(made, wrapped),
                ttl=ttl,
                none_ttl=none_ttl,
                stale=stale,
                version=version,
                condition=condition,
            ),
            cache,
            None if serializer is None else Codec.build(serializer=serializer),
        )
        is_async = iscoroutinefunction(wrapped)
        binding = type(function) if function is not wrapped else None
        return (AsyncCached if is_async else Cached)(wrapped, options, binding)

    return decorate


def check_key(key: Any, decorator: str) -> None:
    """Raise if a decorator was given something else for its key: the function itself, most often.

    Raises:
        SettingsError: it was.
    """
    if key is None or isinstance(key, str | Template):
        return
    if callable(key):
        raise SettingsError(
            f"{key!r} is not a key template: @{decorator} takes its options first, and then the function; "
            f"write {decorator}('user:{{user_id}}', ttl='5min')({getattr(key, '__name__', 'function')})"
        )
    raise SettingsError(
        f"{key!r} is not a key template: @{decorator} takes one, as in @{decorator}('user:{{user_id}}')"
    )


def check_function(function: Any, decorator: str) -> None:
    """Raise if what is decorated is nothing whose results can be kept.

    Raises:
        SettingsError: it is no function, yields its results, does not tell its parameters, or stands in for
            a method whose class is not known yet.
    """
    if not inspect.isroutine(function):
        raise SettingsError(f"@{decorator} is for functions, not for {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        better = "return a dict" if decorator == "cached_many" else "return a list"
        raise SettingsError(f"{function.__qualname__} yields its results; {better} to have it cached")
    if getattr(function, "__module__", None) == "django.utils.decorators" and function.__name__ == "dummy":
        # What method_decorator shows to a decorator; the method itself comes anew with each call.
        raise SettingsError(
            f"method_decorator({decorator}(...)) keeps nothing; put @{decorator} on the method itself: it "
            f"takes methods, as in @{decorator}('page:{{pk}}', ttl='5min') above def get(self, request, pk)"
        )
    try:
        inspect.signature(function)
        function.__module__, function.__qualname__  # noqa: B018  # a method of a built-in type has no module
    except (AttributeError, TypeError, ValueError):
        raise SettingsError(
            f"@{decorator} is for functions that tell their parameters, and {function!r} does not; "
            f"decorate a function of yours that calls it"
        ) from None


def bound_to(function: Any, target: Any) -> Any:
    """Return a copy of a decorated function with its first argument given, as a bound method is."""
    bound = object.__new__(type(function))
    bound.__dict__.update(function.__dict__)
    bound._bound_to = (target,)
    bound.uncached = bound.__wrapped__ = function.uncached.__get__(target, type(target))
    return bound


def template_of(key: str | Template | None) -> Template | None:
    """Return the template that a key, or its name in the settings, is."""
    if key is None or isinstance(key, Template):
        return key
    return template(get_settings().keys.get(key, key))


def kind_of(made: Template | None, function: Any) -> str:
    """Return the data type of a function that does not name one: what its keys begin with."""
    if made is not None and isinstance(made.parts[0], str):
        return made.parts[0].partition(":")[0] or "other"
    return str(function.__module__) if made is None else "other"


def _functions(vary: Vary | Sequence[Vary] | None) -> tuple[Vary, ...]:
    found = (
        () if vary is None else (vary,) if callable(vary) or not isinstance(vary, Iterable) else tuple(vary)
    )
    for each in found:
        if not callable(each):
            raise SettingsError(f"vary {each!r} is not a function without arguments, such as get_language")
    return found


class _Options:
    """What a decorator was told, checked."""

    def __init__(
        self,
        key: Template | None,
        tags: tuple[Template, ...],
        vary: tuple[Vary, ...],
        policy: Policy,
        cache: str,
        codec: Codec | None,
    ) -> None:
        self.key = key
        self.tags = tags
        self.vary = vary
        self.policy = policy
        self.cache = cache
        self.codec = codec


class _Base(Generic[P]):
    """What sync and async functions have in common: a key for each call, and where its value lies."""

    def __init__(self, function: Callable[..., Any], options: _Options, binding: type | None) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # an object that is called
        self.uncached = function
        self._options = options
        self._binding = binding
        plain = compile_key(function, options.key) if options.key is not None else automatic_key(function)
        self.glob = options.key.pattern() if options.key is not None else automatic_glob(function)
        """The glob of all keys that it can have, but for what they vary by."""
        self._plain_key = plain
        self._tags = compile_tags(function, options.tags)
        self._bound_to: tuple[Any, ...] = ()
        label = f"{function.__module__}.{function.__qualname__}"
        self._recipe = Recipe(
            label=label,
            alias=options.cache,
            policy=options.policy,
            codec=options.codec,
            tally=Tally(),
        )
        register(label, self)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method, as functions do."""
        if self._binding is staticmethod:
            return self
        target = owner if self._binding is classmethod else instance
        if target is None:
            return self
        return bound_to(self, target)

    def __repr__(self) -> str:
        return f"<cached {self._recipe.label}>"

    @property
    def tally(self) -> Tally:
        """What callers in this process got."""
        return self._recipe.tally

    @property
    def template(self) -> Template | None:
        return self._options.key

    @property
    def cache(self) -> str:
        return self._options.cache

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of a call, without the prefix of its cache.

        Raises:
            TypeError: the arguments do not fit the function, or make no key.
        """
        return self._key(args, kwargs)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        key = self._whole(args, kwargs)
        if self._options.vary:
            key = ":@".join((key, *[value(each()) for each in self._options.vary]))
        return key

    def _whole(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the key of a call in all the languages, say, that it varies by."""
        return self._plain_key(*self._bound_to, *args, **kwargs)

    def _place(self, space: Space, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
        tags = self._tags(*self._bound_to, *args, **kwargs) if self._tags is not None else ()
        return space.place(key, tags)

    def _patterns(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """Return what a call's values are invalidated by: in all the languages, say, that it varies by."""
        key = escape(self._whole(args, kwargs))
        return [f"{key}:@*" if self._options.vary else key]

    def _hit(self, space: Space, key: str, raw: bytes | None, stamps: bytes = b"") -> Any:
        """Return the value of an entry that is good and not due; MISSING otherwise."""
        recipe = self._recipe
        payload = usable_payload(raw, recipe.policy.version, stamps, now_ms()) if raw is not None else None
        if payload is None:
            return MISSING
        engine = space.engine
        bound = loading.bound(space, key) if engine.is_signed else ""
        try:
            value = (recipe.codec or engine.codec).decode(bound, payload)
        except Unreadable as error:
            engine.note_unreadable(error)
            return MISSING
        recipe.tally.hits += 1
        return value

    def _tagged_hit(self, space: Space, key: str, read: list[bytes | None]) -> Any:
        """The same of an entry that was read together with the stamps of its tags."""
        raw, *stamps = read
        return MISSING if None in stamps else self._hit(space, key, raw, b"".join(stamps))  # type: ignore[arg-type]

    def _rest(
        self,
        space: Space,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        read: list[bytes | None] | None,
    ) -> Steps:
        """Return the value of a call that was no hit; ``read`` is what a look has found, if there was one."""
        compute = functools.partial(self.uncached, *args, **kwargs)
        return loading.get(space, self._recipe, place, compute, read)

    @property
    def _is_quick(self) -> bool:
        """Whether one GET answers: no tags, and nothing that this process has yet to invalidate."""
        return self._tags is None and not transactions.pending

    def _kept(self, space: Space, place: Place, raw: bytes | None, stamps: list[bytes | None]) -> Any:
        seen = judge(raw, stamps, self._recipe.policy.version)
        if seen.entry is None or seen.entry.fresh <= now_ms():
            return None
        value = loading.decode(space, self._recipe, place, seen.entry.payload)
        return None if value is MISSING else value


class Cached(_Base[P], Generic[P, R]):
    """A function whose results are kept; see :func:`cached`."""

    if TYPE_CHECKING:
        # A method has lost its first parameter; a class method cannot be told from it by mypy.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Cached[..., R]: ...
        @overload
        def __get__(
            self: Cached[Concatenate[Any, Q], R], instance: object, owner: type | None = None
        ) -> Cached[Q, R]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    uncached: Callable[P, R]
    """The function itself."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        space = space_for(self._recipe.alias)
        if space is None:
            return self.uncached(*args, **kwargs)
        key, read = self._key(args, kwargs), None
        if self._is_quick:
            read = [space.engine.fetch(space.base(key) + key)]
            value = self._hit(space, key, read[0])
            if value is not MISSING:
                return value  # type: ignore[no-any-return]
        place = self._place(space, key, args, kwargs)
        if read is None and not transactions.pending:
            read = space.engine.run(space.read_many((place.name, *place.stamps)))
            value = self._tagged_hit(space, key, read)
            if value is not MISSING:
                return value  # type: ignore[no-any-return]
        rest = self._rest(space, place, args, kwargs, read)
        return steps.carry_out(space.engine, rest)  # type: ignore[no-any-return]

    def get(self, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Return the value that is kept for a call, None if there is none that is good; computes nothing."""
        space = space_for(self._recipe.alias)
        if space is None:
            return None
        place = self._place(space, self._key(args, kwargs), args, kwargs)
        raw, *stamps = space.engine.run(space.read_many((place.name, *place.stamps)))
        return self._kept(space, place, raw, stamps)  # type: ignore[no-any-return]

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the value of a call anew, keep it and return it."""
        self.invalidate(*args, **kwargs)
        return self(*args, **kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Forget the value of a call; return how many there were. In ``atomic()`` at commit, and 0."""
        return invalidate(*self._patterns(args, kwargs), cache=self._recipe.alias)


class AsyncCached(_Base[P], Generic[P, R]):
    """A coroutine function whose results are kept; see :func:`cached`."""

    if TYPE_CHECKING:
        # A method has lost its first parameter; a class method cannot be told from it by mypy.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> AsyncCached[..., R]: ...
        @overload
        def __get__(
            self: AsyncCached[Concatenate[Any, Q], R], instance: object, owner: type | None = None
        ) -> AsyncCached[Q, R]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    def __init__(self, function: Callable[..., Any], options: _Options, binding: type | None) -> None:
        super().__init__(function, options, binding)
        markcoroutinefunction(self)

    uncached: Callable[P, Coroutine[Any, Any, R]]
    """The function itself."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        return self._call(args, kwargs)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        space = space_for(self._recipe.alias)
        if space is None:
            return await self.uncached(*args, **kwargs)
        key, read = self._key(args, kwargs), None
        if self._is_quick:
            read = [await space.engine.afetch(space.base(key) + key)]
            value = self._hit(space, key, read[0])
            if value is not MISSING:
                return value  # type: ignore[no-any-return]
        place = self._place(space, key, args, kwargs)
        if read is None and not transactions.pending:
            read = await space.engine.arun(space.read_many((place.name, *place.stamps)))
            value = self._tagged_hit(space, key, read)
            if value is not MISSING:
                return value  # type: ignore[no-any-return]
        rest = self._rest(space, place, args, kwargs, read)
        return await steps.acarry_out(space.engine, rest)  # type: ignore[no-any-return]

    async def aget(self, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Return the value that is kept for a call, None if there is none that is good; computes nothing."""
        space = space_for(self._recipe.alias)
        if space is None:
            return None
        place = self._place(space, self._key(args, kwargs), args, kwargs)
        raw, *stamps = await space.engine.arun(space.read_many((place.name, *place.stamps)))
        return self._kept(space, place, raw, stamps)  # type: ignore[no-any-return]

    async def arefresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the value of a call anew, keep it and return it."""
        await self.ainvalidate(*args, **kwargs)
        return await self(*args, **kwargs)

    async def ainvalidate(self, *args: P.args, **kwargs: P.kwargs) -> int:
        """Forget the value of a call; return how many there were."""
        return await ainvalidate(*self._patterns(args, kwargs), cache=self._recipe.alias)
