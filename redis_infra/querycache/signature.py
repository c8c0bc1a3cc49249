"""From a call to its key: the template of a function's key, compiled against the function's own parameters.

What is compiled is a function with the same parameters and defaults, so that Python itself binds the
arguments: positional or by name, it is one key, and a wrong call is the TypeError that the function would
have raised. ``inspect.Signature.bind`` does the same and takes 20 times as long.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from redis_infra.conf import did_you_mean
from redis_infra.exceptions import SettingsError
from redis_infra.keys import Field, Template, digest, escape, value

__all__ = [
    "MakeKey",
    "automatic_glob",
    "automatic_key",
    "compile_argument",
    "compile_key",
    "compile_tags",
    "item_field",
    "parameter_names",
    "shortened",
]

MakeKey: TypeAlias = Callable[..., str]

LONGEST: Final = 180
"""Characters of a key that is left as it is; Django warns of names of more than 250, with their prefix."""


def compile_key(
    function: Callable[..., Any], template: Template, what: str = "key", *, item: str | None = None
) -> MakeKey:
    """Return a function that takes what ``function`` does and returns the key of a call.

    With ``item`` it takes one of many before that, which the fields of that name are about.

    Raises:
        SettingsError: the template has a field that is no parameter; the text names both.
    """
    parameters = _parameters(function)
    literal = "".join(part for part in template.parts if isinstance(part, str))
    if found := _WILDCARD.search(literal):
        raise SettingsError(
            f"{what} {template.text!r} of {_label(function)} has the wildcard {found[0]!r} in its text, and "
            "a pattern of it would mean other keys too; leave it out"
        )
    for field in template.fields:
        if field.name not in parameters and field.name != item:
            near = did_you_mean(field.name, parameters)
            raise SettingsError(
                f"{what} {template.text!r} of {_label(function)}: there is no parameter {field.name!r}{near}"
            )
    terms = [
        repr(part) if isinstance(part, str) else f"_ri_value({_source(part, item)})"
        for part in template.parts
    ]
    return _compiled(function, " + ".join(terms), value, first=() if item is None else (_ITEM,))


_WILDCARD: Final = re.compile(r"[*?\[\]\\]")


def compile_argument(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that takes what ``function`` does and returns the argument of one parameter."""
    return _compiled(function, name, value)


def item_field(function: Callable[..., Any], template: Template) -> str:
    """Return the one field of a template that is about each of many, which is no parameter.

    Raises:
        SettingsError: there is none, or more than one.
    """
    found = sorted(template.names - _parameters(function).keys())
    if len(found) != 1:
        said = f"has {' and '.join(map(repr, found))}" if found else "has none"
        raise SettingsError(
            f"key {template.text!r} of {_label(function)} needs one field that is no parameter, for each of "
            f"the first argument, and {said}; write such as 'user:{{user_id}}' for load(user_ids)"
        )
    return found[0]


_ITEM: Final = "_ri_item"


def _source(field: Field, item: str | None) -> str:
    """Return the expression for the value of a field."""
    return field.path if field.name != item else _ITEM + field.path[len(field.name) :]


def compile_tags(
    function: Callable[..., Any], templates: Sequence[Template], *, item: str | None = None
) -> Callable[..., tuple[str, ...]] | None:
    """Return a function from a call to its tags; None if it has none."""
    if not templates:
        return None
    makers = [compile_key(function, each, "tag", item=item) for each in templates]
    if len(makers) == 1:
        make = makers[0]
        return lambda *args, **kwargs: (make(*args, **kwargs),)
    return lambda *args, **kwargs: tuple([make(*args, **kwargs) for make in makers])


def automatic_key(function: Callable[..., Any]) -> MakeKey:
    """Return the key function of a function without a template: its name, and all its arguments.

    ``f(1)`` and ``f("1")`` are two keys. Of a function within another the line belongs to its name, and what
    it takes from around it, as far as that makes a key; of several that differ in nothing but an object, give
    each a template.
    """
    terms = [repr(_start(function))]
    for name in _parameters(function):
        terms += [repr(":"), f"_ri_value({name})"]
    plain = _compiled(function, " + ".join(terms), _typed)
    return lambda *args, **kwargs: shortened(plain(*args, **kwargs))


def automatic_glob(function: Callable[..., Any]) -> str:
    """Return the glob of all automatic keys of a function."""
    return escape(_start(function)) + (":*" if _parameters(function) else "")


def _start(function: Callable[..., Any]) -> str:
    """Return what all automatic keys of a function begin with."""
    return value(f"{function.__module__}.{function.__qualname__}{_around(function)}")


def _around(function: Callable[..., Any]) -> str:
    """Return what tells functions apart that a function makes anew at each call; nothing of any other."""
    code = getattr(function, "__code__", None)
    if code is None or "<locals>" not in function.__qualname__:
        return ""
    taken = []
    for cell in function.__closure__ or ():
        with suppress(TypeError, ValueError):  # it makes no key, or is not set yet
            taken.append(_typed(cell.cell_contents))
    return f".{code.co_firstlineno}" + (f".{digest(repr(taken))}" if taken else "")


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters, in order."""
    return list(_parameters(function))


def shortened(key: str) -> str:
    """Return a key with a digest for what is too long of it, behind its first two fields."""
    if len(key) <= LONGEST:
        return key
    first, _, rest = key.partition(":")
    head = f"{first}:{rest.partition(':')[0]}"
    short = f"~{digest(key, 16)}"
    return f"{head}:{short}"


def _typed(item: Any) -> str:
    """Return how an argument stands in an automatic key; of two that are not equal no two are the same."""
    if type(item) is int or item is None:
        return value(item)
    if type(item) is str:
        return value(item) if item[:1].isalpha() else f"~'{value(item)}"
    if isinstance(item, dict):  # what **kwargs are
        return "~d" + value(frozenset((_typed(name), _typed(each)) for name, each in item.items()))[1:]
    if isinstance(item, tuple | frozenset):  # a named tuple is equal to one without names
        return value((tuple if isinstance(item, tuple) else frozenset)(map(_typed, item)))
    return f"~{value(_type_name(type(item)))}'{value(item)}"


def _type_name(cls: type) -> str:
    """Return what tells a type from others of its name: two models may both be a User."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _compiled(
    function: Callable[..., Any],
    expression: str,
    write: Callable[[Any], str],
    *,
    first: tuple[str, ...] = (),
) -> Callable[..., Any]:
    parameters = _parameters(function)
    names: dict[str, Any] = {"_ri_value": write}
    head = ", ".join((*first, _head(parameters.values(), names)))
    # Made of identifiers that Python has accepted as parameters and of paths that the template has checked.
    exec(f"def key({head}):\n    return {expression}", names)  # noqa: S102
    made: Callable[..., Any] = names["key"]
    made.__name__, made.__qualname__ = function.__name__, function.__qualname__
    made.__module__ = function.__module__
    return made


def _head(parameters: Any, names: dict[str, Any]) -> str:
    """Return how parameters are written; their defaults go into ``names``."""
    kinds = inspect.Parameter
    written: list[str] = []
    last = None
    for place, each in enumerate(parameters):
        if last is kinds.POSITIONAL_ONLY and each.kind is not kinds.POSITIONAL_ONLY:
            written.append("/")
        if each.kind is kinds.KEYWORD_ONLY and last not in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL):
            written.append("*")
        stars = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = ""
        if each.default is not kinds.empty:
            names[f"_ri_default{place}"] = each.default
            default = f"=_ri_default{place}"
        written.append(f"{stars}{each.name}{default}")
        last = each.kind
    if last is kinds.POSITIONAL_ONLY:
        written.append("/")
    return ", ".join(written)


def _label(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
