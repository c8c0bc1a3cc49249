"""Namespaces: the names that one cache alias can make.

``KEY_FUNCTION`` is handed in, and is asked what it does instead of being guessed at.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from redis_infra.exceptions import SettingsError
from redis_infra.keys.digests import digest
from redis_infra.keys.globs import escape, glob_source, glob_to_regex

__all__ = ["KeyFunction", "Namespace", "namespace", "namespace_pattern", "namespace_regex"]

KeyFunction = Callable[[str, str, Any], str]
"""Django's ``KEY_FUNCTION``: key, key prefix, version -> the name in Redis."""


def namespace_regex(pattern: str) -> re.Pattern[str]:
    """Return a compiled expression for the names in a namespace, by the ``pattern`` of a :class:`Namespace`.

    More exact than the glob can be: where a version of digits stands it takes digits only, so that the
    prefix "site" is not taken for "site:2nd". Of any other glob it says what :func:`glob_to_regex` says.
    """
    parts = pattern.split(_NUMBER_GLOB)
    if len(parts) == 1:
        return glob_to_regex(pattern)
    sources = [glob_source(part).removesuffix(r"\Z") for part in parts]
    return re.compile("-?[0-9]+".join(sources) + r"\Z", re.DOTALL)


# Parts of a name's shape. Noncharacters, so in no real name.
_NUMBER_GLOB: Final = "[-0-9]*"
_VERSION: Final = "\ufdd0"
_KEY: Final = "\ufdd1"
_ANY: Final = "\ufdd2"
_PART: Final = re.compile(f"([{_VERSION}{_KEY}{_ANY}])")

# Letters only and none of a hexadecimal digest's, so that neither a version nor a digest is taken for a
# key. Sixteen, because a function may put a shard's number or a digest in front, and what they have in
# common by chance would be taken for part of every name.
_LETTERS: Final = str.maketrans("0123456789abcdef", "ghijklmnopqrstuv")
_PLAIN_KEYS: Final = tuple(digest(str(number), 4 + number % 3).translate(_LETTERS) for number in range(16))
# What key functions are written for: spaces, case, not ASCII, too long for memcached. They may refuse them.
_ODD_KEYS: Final = ("Ghi:Jkl:mno", "PQR stu", "\u017c\u00f3\u0142w", "ghijklmnopqrstu " * 40)

_NUMBERS: Final = (7150461, 30982, -64213057)
_TEXTS: Final = ("Wxyz", "yWX", "zzYxwW")


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """The names that one cache alias can make.

    ``pattern`` is a glob for SCAN. A glob can not say "digits up to the next colon", so it also matches
    names of an alias whose prefix goes on where this one has a number ("site" and "site:2nd"); ``in`` is
    exact. Where the name itself does not tell ("site", version 2, key "1:x", and "site:2", version 1, key
    "x"), it is in both.
    """

    pattern: str
    _names: re.Pattern[str] = field(repr=False)

    def __contains__(self, name: str) -> bool:
        return self._names.match(name) is not None


def namespace_pattern(key_func: KeyFunction, prefix: str, version: object) -> str:
    """Return the glob of all names that an alias can make: ``namespace(...).pattern``."""
    return namespace(key_func, prefix, version).pattern


def namespace(key_func: KeyFunction, prefix: str, version: object) -> Namespace:
    """Return the names that an alias can make with any key and any version, and with no other prefix.

    The arguments are the alias' KEY_FUNCTION, KEY_PREFIX and VERSION. The function is called some hundred
    times with made-up keys, versions and one other prefix, and what its answers have in common is kept:
    the same function gives the same namespace in every process. Versions are whole numbers where
    ``version`` is one (or the text of one), otherwise any text; any text includes what looks like a longer
    prefix, so that "site" then covers "site:blog". With an empty prefix the namespace is as wide as the
    function makes it: the whole database, where names are nothing but a digest.

    Raises:
        SettingsError: the prefix is not empty and does not show in the names (the function ignores it, or
            digests it with the rest), so that other prefixes would be covered too; or the function fails
            for a plain key, or returns something that is not text.
    """
    numbers = _is_number(version)
    shapes = _shapes(key_func, prefix, _other_versions(version, prefix))
    found = _covering(shapes, numbers)
    # The alias' own version may be special to the function, and so may odd keys: then less is in common.
    strays = {name for name in _own_names(key_func, prefix, version) if name not in found}
    if strays:
        found = _covering(shapes | strays, numbers)
    if prefix and _call(key_func, "x", _unlike(prefix), version) in found:
        raise SettingsError(
            f"KEY_FUNCTION {_label(key_func)} makes names that do not show KEY_PREFIX {prefix!r}, so what "
            "belongs to it can not be told; put the prefix into the name, as Django's own function does "
            '("{prefix}:{version}:{key}"), or leave KEY_PREFIX empty'
        )
    return found


def _is_number(version: object) -> bool:
    return not isinstance(version, bool) and re.fullmatch(r"-?[0-9]+", str(version)) is not None


def _other_versions(version: object, prefix: str) -> list[object]:
    """Return versions of the same type as the alias' own, none of which is part of the prefix by chance."""
    samples: tuple[object, ...] = _NUMBERS if _is_number(version) else _TEXTS
    convert = int if isinstance(version, int) and _is_number(version) else str
    return [convert(str(sample)) for sample in samples if str(sample) not in prefix]


def _shapes(key_func: KeyFunction, prefix: str, versions: Iterable[object]) -> set[str]:
    """Return names with a mark wherever the key or the version stands as it was given."""
    return {
        _call(key_func, key, prefix, version).replace(key, _KEY).replace(str(version), _VERSION)
        for key, version in product(_PLAIN_KEYS, versions)
    }


def _own_names(key_func: KeyFunction, prefix: str, version: object) -> Iterator[str]:
    for key in _PLAIN_KEYS:
        yield _call(key_func, key, prefix, version)
    for key in _ODD_KEYS:
        try:
            yield _call(key_func, key, prefix, version)
        except SettingsError:
            continue  # a key that the function refuses is no name of this alias


def _call(key_func: KeyFunction, key: str, prefix: str, version: object) -> str:
    try:
        name = key_func(key, prefix, version)
    except Exception as error:  # the site's own function, which may raise anything for what is new to it
        raise SettingsError(
            f"KEY_FUNCTION {_label(key_func)} fails for key {key!r} and version {version!r}: {error!r}"
        ) from error
    if not isinstance(name, str):
        raise SettingsError(f"KEY_FUNCTION {_label(key_func)} returns {type(name).__name__}, not str")
    return name


def _covering(shapes: set[str], numbers: bool) -> Namespace:
    """Return the namespace of what all shapes have in common: how they begin and how they end."""
    head = _common_start(shapes)
    rests = [shape[len(head) :] for shape in shapes]
    tail = _common_start([rest[::-1] for rest in rests])[::-1]
    gap = _ANY if any(len(rest) > len(tail) for rest in rests) else ""
    return _namespace_of(head + gap + tail, numbers)


def _common_start(texts: Collection[str]) -> str:
    # In order, the first and the last differ no later than any other two do.
    first, last = min(texts, default=""), max(texts, default="")
    differing = (index for index, char in enumerate(first) if char != last[index])
    return first[: next(differing, len(first))]


def _namespace_of(shape: str, numbers: bool) -> Namespace:
    globs = {_VERSION: _NUMBER_GLOB if numbers else "*", _KEY: "*", _ANY: "*"}
    regexes = {_VERSION: "-?[0-9]+" if numbers else ".*", _KEY: ".*", _ANY: ".*"}
    pattern, names = [], []
    for part in filter(None, _PART.split(shape)):
        pattern.append(globs.get(part) or escape(part))
        names.append(regexes.get(part) or re.escape(part))
    return Namespace(pattern=_glue(pattern), _names=re.compile("".join(names) + r"\Z", re.DOTALL))


def _glue(globs: Iterable[str]) -> str:
    """Join globs; two stars in a row are one, but for that of a number: digits and then anything is more."""
    pattern = ""
    for glob in globs:
        is_starred = pattern[-1:] == "*" and pattern[-2:] != r"\*" and not pattern.endswith(_NUMBER_GLOB)
        pattern += "" if glob == "*" and is_starred else glob
    return pattern


def _unlike(prefix: str) -> str:
    """Return a prefix that has no character in common with the given one, in any case."""
    letters = string.ascii_lowercase + "\ufdd3"
    return 3 * next(letter for letter in letters if letter not in prefix.lower())


def _label(key_func: KeyFunction) -> str:
    return f"{getattr(key_func, '__module__', '?')}.{getattr(key_func, '__qualname__', repr(key_func))}"
