"""Redis' glob patterns: escaping, matching, and the text that a pattern begins with.

Redis' glob is not Python's ``fnmatch``: it escapes with a backslash, negates with ``^`` and has its own
idea of a class that does not end. What is written or read as a pattern goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import AnyStr

__all__ = ["escape", "glob_source", "glob_to_regex", "is_literal", "literal_start"]


def escape(text: str) -> str:
    r"""Return a pattern that matches exactly ``text``, for use outside of a ``[class]``.

    Backslashes go before ``* ? [ ] \``; ``^`` and ``-`` mean something only within a class and stay.
    """
    return re.sub(r"[*?\[\]\\]", r"\\\g<0>", text)


def literal_start(pattern: str) -> str:
    """Return the text that every name begins with that the glob matches."""
    found = _LITERAL.match(pattern)
    return _ESCAPED.sub(r"\1", found[0]) if found else ""


def is_literal(pattern: str) -> bool:
    """Whether the glob has no wildcard, and so matches nothing but its :func:`literal_start`."""
    return _LITERAL.fullmatch(pattern) is not None


_LITERAL = re.compile(r"(?:[^*?\[\\]|\\.)*", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def glob_to_regex(pattern: AnyStr) -> re.Pattern[AnyStr]:
    r"""Return a compiled expression whose ``match`` says what Redis' own matching says of a whole name.

    ``*`` any run, ``?`` any one, ``[abc]``, ``[^a]``, ``[a-z]``, ``\x`` for a literal x; line breaks are
    ordinary. Redis counts bytes: for ``bytes`` the answer is exactly its own, for ``str`` a ``?`` or class
    takes a character where Redis takes one of its bytes. Matching takes time proportional to the name and
    the pattern, whatever the number of stars.
    """
    if isinstance(pattern, bytes):
        return re.compile(glob_source(pattern.decode("latin-1")).encode("latin-1"), re.DOTALL)
    return re.compile(glob_source(pattern), re.DOTALL)


def glob_source(pattern: str) -> str:
    """Return the expression, anchored at its end, of :func:`glob_to_regex`."""
    runs = [""]
    for token in _glob_tokens(pattern):
        if token == "*":
            runs.append("")
        else:
            runs[-1] += token
    if len(runs) == 1:
        return rf"{runs[0]}\Z"
    # The first place where a run fits is as good as any later one, so each star is atomic; otherwise
    # "*a*a*a*a*b" would try every combination of places.
    middle = "".join(f"(?>.*?{run})" for run in runs[1:-1] if run)
    return rf"{runs[0]}{middle}.*{runs[-1]}\Z"


def _glob_tokens(pattern: str) -> Iterator[str]:
    """Yield ``"*"`` for a star and an expression for one character for anything else."""
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            token, at = _glob_class(pattern, at + 1)
            yield token
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            yield re.escape(pattern[at])
        else:
            yield {"*": "*", "?": "."}.get(char) or re.escape(char)
        at += 1


def _glob_class(pattern: str, at: int) -> tuple[str, int]:
    """Return the expression for the class whose ``[`` is just before ``at``, and where it ends.

    As Redis reads it: the pattern's end ends a class too, ``]`` can be the end of a range (``[a-]`` is a
    range), ends of a range may be swapped, an empty class matches nothing and an empty ``[^]`` anything.
    """
    negated = pattern[at : at + 1] == "^"
    at += negated
    members = []
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\" and at + 1 < len(pattern):
            members.append(_class_member(pattern[at + 1]))
            at += 2
        elif pattern[at + 1 : at + 2] == "-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.append(f"{_class_member(low)}-{_class_member(high)}")
            at += 3
        else:
            members.append(_class_member(pattern[at]))
            at += 1
    if not members:
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{''.join(members)}]", at + 1


def _class_member(char: str) -> str:
    return f"\\{char}" if char in "\\]^-[&~|" else char


# Parts of a name's shape. Noncharacters, so in no real name.
