"""``warmer``: what is to be in the cache before somebody asks for it.

::

    @warmer("users", function=get_user)
    def active_users():
        yield from User.objects.filter(is_active=True).values_list("pk", flat=True)

    @warmer("rates", type="stats")
    def rates():
        for currency in CURRENCIES:
            yield f"rate:{currency}", partial(fetch_rate, currency)

Knows what is to be warmed; :mod:`~redis_infra.querycache.warm_run` does it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from django.db.models import QuerySet
from django.utils.module_loading import autodiscover_modules

from redis_infra.cache.codec import Codec
from redis_infra.conf import did_you_mean, get_settings
from redis_infra.exceptions import SettingsError
from redis_infra.querycache.decorators import AsyncCached, Cached
from redis_infra.querycache.loading import Recipe, Tally
from redis_infra.querycache.many import AsyncCachedMany, CachedMany
from redis_infra.querycache.policy import make_policy
from redis_infra.querycache.space import Place, Space
from redis_infra.querycache.tallies import tallies

__all__ = ["Item", "Warmer", "discover_warmers", "find_warmers", "warmer", "warmers"]

F = TypeVar("F", bound=Callable[[], Any])


class Item(NamedTuple):
    """One entry that is to be warm."""

    place: Place
    what: Any
    """What is loaded: a call of a function; or, of ``cached_many``, one of its items."""
    is_load: bool = True
    """Whether it is counted as a load: a value that was yielded ready is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmer:
    """What one generator is for."""

    name: str
    generate: Callable[[], Any]
    function: Any
    """The cached function whose arguments it yields; None if it yields keys and values."""
    recipe: Recipe
    total: int | Callable[[], int] | None

    @property
    def kind(self) -> str:
        """The data type, as statistics have it."""
        return self.recipe.policy.kind

    @property
    def alias(self) -> str:
        return self.recipe.alias

    @property
    def is_many(self) -> bool:
        """Whether one call loads many items."""
        return isinstance(self.function, CachedMany | AsyncCachedMany)

    @property
    def source(self) -> str:
        """Where it stands in the code."""
        return f"{self.generate.__module__}.{self.generate.__qualname__}"

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.generate) or "").partition("\n")[0]

    def items(self, space: Space, yielded: Any) -> list[Item]:
        """Return what one thing that the generator has yielded stands for.

        Raises:
            TypeError: it fits neither the function nor a key and its value.
        """
        if self.is_many:
            [wanted] = self.function._places(space, [yielded], ([yielded],), {})
            return [Item(wanted.place, yielded)]
        if self.function is not None:
            args, kwargs = _arguments(yielded)
            place = self.function._place(space, self.function._key(args, kwargs), args, kwargs)
            return [Item(place, lambda: self.function.uncached(*args, **kwargs))]
        return [_pair(space, *each) for each in _pairs(self.name, yielded)]


warmers: Final[dict[str, Warmer]] = {}
"""Every warmer by name, in the order in which they were defined."""


def warmer(
    name: str,
    *,
    function: Any = None,
    type: str | None = None,  # noqa: A002  # as `cache_clear --type` has it
    cache: str | None = None,
    version: int | None = None,
    serializer: str | None = None,
    total: int | Callable[[], int] | None = None,
) -> Callable[[F], F]:
    """Let a generator say what ``manage.py cache_warm`` loads under this name; return it as it is.

    With ``function``, one that is ``cached``, it yields arguments: a value, a tuple of several, or a dict by
    name. Of one that is ``cached_many`` it yields items, which are then loaded together.

    With ``type``, a data type, it yields ``(key, value)`` pairs, or dicts of several, that are kept as long
    as that type says; ``cache``, ``version`` and ``serializer`` are then those of the function that reads
    them, which has no tags. A value may be a function without arguments: it is called only if it is needed,
    and what it returns is not kept if the key is invalidated meanwhile. An invalidation between reading a
    plain value and yielding it goes unnoticed.

    Instead of a generator, a function may return an iterable, such as a queryset; it may be asynchronous.
    ``total``, a number or a function without arguments, is how many there are, for the progress bar.

    Raises:
        SettingsError: neither or both of ``function`` and ``type``, a name that is taken, an unknown type.
    """
    if not isinstance(name, str) or not name or name.startswith("-") or any(map(str.isspace, name)):
        raise SettingsError(f"{name!r} is not a name for a warmer; write a word, such as 'users'")
    if function is not None and not isinstance(function, _CACHED):
        raise SettingsError(f"warmer {name!r}: {_label(function)} is not cached; decorate it with @cached")
    if (function is None) == (type is None):
        raise SettingsError(
            f"warmer {name!r}: say which function its arguments are for, as in function=get_user, "
            f"or of which data type its (key, value) pairs are, as in type='user'; not both"
        )
    if function is not None and (cache, version, serializer) != (None, None, None):
        raise SettingsError(f"warmer {name!r}: cache, version and serializer are those of its function")

    def decorate(generate: F) -> F:
        _check_generator(name, generate)
        recipe = function._recipe if function is not None else _recipe(name, type, cache, version, serializer)
        if function is None:
            tallies.enter_keys(recipe)
        warmers[name] = Warmer(name=name, generate=generate, function=function, recipe=recipe, total=total)
        return generate

    return decorate


_CACHED: Final = Cached | AsyncCached | CachedMany | AsyncCachedMany


def discover_warmers() -> None:
    """Import the module ``warmers`` of every installed app that has one."""
    autodiscover_modules("warmers")


def find_warmers(names: Iterable[str] = ()) -> list[Warmer]:
    """Return the warmers of these names, each once; all of them without any.

    Raises:
        SettingsError: there is none of that name.
    """
    for name in names:
        if name not in warmers:
            near = did_you_mean(name, warmers) if warmers else "; no installed app has a module 'warmers'"
            raise SettingsError(f"{name!r} is not a warmer{near}")
    return [warmers[name] for name in dict.fromkeys(names)] or list(warmers.values())


def _check_generator(name: str, generate: Any) -> None:
    if not inspect.isfunction(generate) or inspect.iscoroutinefunction(generate):
        raise SettingsError(f"warmer {name!r}: {generate!r} is neither a generator nor returns an iterable")
    known = warmers.get(name)
    # The same function again is a module that was imported anew.
    if known is not None and known.source != _label(generate):
        raise SettingsError(f"warmer {name!r}: the name is taken by {known.source}; choose another one")


def _recipe(name: str, kind: Any, cache: str | None, version: int | None, serializer: str | None) -> Recipe:
    types = get_settings().ttl
    if kind not in types:
        raise SettingsError(f"warmer {name!r}: {kind!r} is not a data type{did_you_mean(kind, types)}")
    return Recipe(
        label=f"warmer {name}",
        alias="default" if cache is None else cache,
        policy=make_policy(kind=kind, ttl=kind, version=1 if version is None else version),
        codec=None if serializer is None else Codec.build(serializer=serializer),
        tally=Tally(),
    )


def _arguments(yielded: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Exactly a tuple: a row of values_list(named=True) is several arguments, too, and a subclass of it.
    if isinstance(yielded, tuple):
        return tuple(yielded), {}
    return ((), yielded) if isinstance(yielded, dict) else ((yielded,), {})


def _pairs(name: str, yielded: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(yielded, Mapping):
        return yielded.items()
    if isinstance(yielded, tuple) and len(yielded) == 2:
        return [yielded]
    raise TypeError(
        f"warmer {name!r} yielded a {type(yielded).__name__}; with type= it yields (key, value), "
        f"or a dict of several; for arguments write function="
    )


def _pair(space: Space, key: Any, value: Any) -> Item:
    if not isinstance(key, str) or not key:
        raise TypeError(f"{key!r} is not a key; write such as 'user:7', or get_user.key(7)")
    if callable(value):
        return Item(space.place(key), value)
    # What a coroutine or a queryset stands for is still to come.
    is_load = inspect.iscoroutine(value) or isinstance(value, QuerySet)
    return Item(space.place(key), lambda: value, is_load)


def _label(function: Any) -> str:
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", repr(function))
    return f"{module}.{name}"
