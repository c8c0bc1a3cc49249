"""Key templates: ``"doc:{doc.pk}:{lang}"``, and how a value is written into a key.

A value never holds what means something in a key or in a pattern (``: * ? [ ] \\ { } % ~`` and white space
are written as ``%3A`` and so on), so that it can neither be taken for two fields nor widen a pattern. A long
one is there as a digest, ``~5d41...``.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import re
import string
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final

from redis_infra.exceptions import SettingsError
from redis_infra.keys.digests import digest
from redis_infra.keys.globs import escape

__all__ = ["Field", "Template", "template", "value"]

LONGEST: Final = 80
"""Characters of a value that stands in a key as it is. Django warns of keys of more than 250."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.@/+=,!$&'()<>|;-]{1,80}")
_UNSAFE: Final = re.compile(r"[:*?\[\]\\{}%~^\s\x00-\x1f\x7f-\x9f\ud800-\udfff\"#`]")
_PATH: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_TEXTUAL: Final = (
    int,
    float,
    decimal.Decimal,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    complex,
)


def value(item: Any) -> str:
    """Return how a value stands in a key.

    Numbers, text, None, dates, UUIDs, enums and bytes as people would write them, models by their primary
    key, tuples and frozen sets of all these. ``7`` and ``"7"`` are the same; None and ``"None"`` are not.

    Raises:
        TypeError: it makes no key, because it can change or because nobody else would write it the same.
    """
    if type(item) is int:
        return str(item)
    if type(item) is str:
        return item if _PLAIN.fullmatch(item) else _written(item)
    return _other(item)


def _other(item: Any) -> str:
    if item is None:
        return "~None"
    if isinstance(item, enum.Enum):
        return value(item.value)
    if isinstance(item, str):
        return _written(str.__str__(item))
    if isinstance(item, _TEXTUAL):
        return _written(str(item))
    if isinstance(item, bytes):
        return _written(item.decode("latin-1"))
    if isinstance(item, tuple):
        return _short("~(" + ",".join(_item(each) for each in item) + ")")
    if isinstance(item, frozenset):
        return _short("~s(" + ",".join(sorted(_item(each) for each in item)) + ")")
    if isinstance(item, type):
        return _written(f"{item.__module__}.{item.__qualname__}")
    return _named(item)


def _named(item: Any) -> str:
    """Return what stands for a model, or for text that is not one yet (``gettext_lazy``)."""
    if getattr(item, "_meta", None) is not None and hasattr(item, "pk"):
        if item.pk is None:
            raise TypeError(f"a {type(item).__name__} that is not saved makes no key: it has no primary key")
        return value(item.pk)
    # Not object's own, which is an address in memory.
    has_text = any("__str__" in vars(cls) for cls in type(item).__mro__[:-1])
    if has_text and type(item).__hash__ is not None:
        return _written(str(item))
    raise TypeError(
        f"a {type(item).__name__} makes no key: pass a number, text or a tuple, "
        f"or name one of its attributes in the template"
    )


def _item(item: Any) -> str:
    return value(item).replace(",", "%2C")


def _written(text: str) -> str:
    # Long before escaping, so that what is cut off can never be half of an escape.
    if len(text) > LONGEST:
        return f"~{digest(text, 16)}"
    return _short(_UNSAFE.sub(_percent, text)) if text else "~"


def _short(text: str) -> str:
    return text if len(text) <= 3 * LONGEST // 2 else f"~{digest(text, 16)}"


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


# --- templates ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A place for a value: ``doc.pk`` is the attribute ``pk`` of what is given for ``doc``."""

    path: str

    @property
    def name(self) -> str:
        return self.path.partition(".")[0]

    def of(self, values: Mapping[str, Any]) -> Any:
        found = values[self.name]
        for attribute in self.path.split(".")[1:]:
            found = getattr(found, attribute)
        return found


@dataclass(frozen=True)
class Template:
    """A key with fields. Made by :func:`template`; hashable, and its ``str()`` is how it was written."""

    text: str
    parts: tuple[str | Field, ...] = field(repr=False, compare=False)
    """Literal text and fields, in order."""

    def __str__(self) -> str:
        return self.text

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        return tuple(part for part in self.parts if isinstance(part, Field))

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that values have to be given for."""
        return frozenset(part.name for part in self.fields)

    def key(self, **values: Any) -> str:
        """Return the key for these values.

        Raises:
            KeyError: a field has none.
            TypeError: one makes no key.
        """
        return "".join(part if isinstance(part, str) else value(part.of(values)) for part in self.parts)

    def pattern(self, **values: Any) -> str:
        """Return the glob of all keys with these values, and with any in the other fields.

        Literal text of the template stays as it is written: its ``*`` is a wildcard.
        """
        return "".join(
            part
            if isinstance(part, str)
            else (escape(value(part.of(values))) if part.name in values else "*")
            for part in self.parts
        )


def template(text: str | Template) -> Template:
    """Return the template that a text describes: literal text, and fields such as ``{doc.pk}``.

    ``{{`` and ``}}`` are refused, as braces decide about a key's place in a cluster.

    Raises:
        SettingsError: it is none; the text names it.
    """
    if isinstance(text, Template):
        return text
    if not isinstance(text, str) or not text:
        raise SettingsError(f"{text!r} is not a key template; {_FORMS}")
    return _template(text)


@lru_cache(maxsize=4096)
def _template(text: str) -> Template:
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise SettingsError(f"{text!r} is not a key template: {error}; {_FORMS}") from None
    parts: list[str | Field] = []
    for literal, path, spec, conversion in found:
        if "{" in literal or "}" in literal:
            raise SettingsError(f"{text!r} is not a key template: a key has no braces; {_FORMS}")
        unfit = next((char for char in literal if char == " " or not char.isprintable()), None)
        if unfit is not None:
            raise SettingsError(f"{text!r} is not a key template: a key has {_without(unfit)}; {_FORMS}")
        if literal:
            parts.append(literal)
        if path is not None:
            if len(parts) > bool(literal) and ":" not in literal:
                # "{a}-{b}" of "x-y" and "z" would be the key of "x" and "y-z".
                raise SettingsError(
                    f"{text!r} is not a key template: {{{path}}} needs a ':' before it, after a field; "
                    f"{_FORMS}"
                )
            if spec or conversion or not _PATH.fullmatch(path):
                whole = path + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise SettingsError(f"{text!r} is not a key template: {{{whole}}} is no field; {_FORMS}")
            parts.append(Field(path))
    return Template(text, tuple(parts))


def _without(char: str) -> str:
    """Return what a key has not, that a character is."""
    if char.isspace():
        return "no white space in it"
    if "\ud800" <= char <= "\udfff":
        return f"no half characters (surrogates) in it, such as {char!r}"
    return f"no characters in it that cannot be seen, such as {char!r}"


_FORMS: Final = "write such as 'user:{user_id}' or 'doc:{doc.pk}:{lang}'"
