"""Key templates: what a value looks like in a key, and which keys a pattern is for."""

from __future__ import annotations

import datetime
import decimal
import enum
import fnmatch
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.exceptions import SettingsError
from redis_infra.keys import Template, escape, glob_to_regex, is_literal, literal_start, template, value

TEXTS = st.text(max_size=12) | st.text(alphabet='ab:*?[]\\{}~%#"` \n,-./@\u0105\ud800', max_size=10)
LONG_TEXTS = st.text(alphabet="ab:*%~", min_size=70, max_size=200)
SINGLES = st.one_of(
    TEXTS,
    LONG_TEXTS,
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.uuids(),
    st.dates(),
    st.datetimes(),
    st.decimals(allow_nan=False),
)
VALUES = st.one_of(SINGLES, st.tuples(SINGLES, SINGLES), st.lists(SINGLES, max_size=3).map(tuple))


class Colour(enum.Enum):
    RED = "red"


class Unsaid:
    """No text, no primary key."""


def said(item: Any) -> Any:
    """Return what two values have to agree in to be one in a key: the text of each part; None is none."""
    if isinstance(item, tuple):
        return tuple(map(said, item))
    return None if item is None else str(item)


# --- values ---------------------------------------------------------------------------------------------


@given(VALUES)
def test_a_value_means_nothing_in_a_key_or_a_pattern(item: Any) -> None:
    written = value(item)
    assert not re.search(r"[:*?\[\]\\\s]", written)
    assert written
    written.encode()


@given(VALUES | st.frozensets(SINGLES, max_size=3))
def test_a_value_has_no_braces(item: Any) -> None:
    """Braces decide about a key's place in a cluster."""
    assert not set("{}") & set(value(item))


@given(VALUES, VALUES)
def test_two_values_are_one_in_a_key_only_if_their_texts_agree(one: Any, other: Any) -> None:
    assert (value(one) == value(other)) == (said(one) == said(other))


@given(TEXTS, TEXTS)
def test_two_texts_are_never_one_in_a_key(one: str, other: str) -> None:
    assert (value(one) == value(other)) == (one == other)


@given(st.text(alphabet="a:", min_size=60, max_size=90), st.text(alphabet="a:", min_size=60, max_size=90))
def test_two_long_texts_are_never_one_in_a_key(one: str, other: str) -> None:
    assert (value(one) == value(other)) == (one == other)
    assert len(value(one)) <= 120


@pytest.mark.parametrize(
    ("item", "written"),
    [
        (7, "7"),
        ("7", "7"),
        (-1.5, "-1.5"),
        (True, "True"),
        (None, "~None"),
        ("None", "None"),
        ("", "~"),
        ("a b:c*", "a%20b%3Ac%2A"),
        ("100%", "100%25"),
        (Colour.RED, "red"),
        (b"abc", "abc"),
        (decimal.Decimal("1.10"), "1.10"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.timedelta(hours=1), "1%3A00%3A00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, "a,b"), "~(1,a%2Cb)"),
        ((), "~()"),
    ],
)
def test_a_value_reads_the_way_people_write_it(item: Any, written: str) -> None:
    assert value(item) == written


@given(st.lists(st.integers() | TEXTS, max_size=6))
def test_the_order_of_a_set_does_not_matter(items: list[Any]) -> None:
    assert value(frozenset(items)) == value(frozenset(reversed(items)))


@pytest.mark.parametrize("item", [[1], {"a": 1}, {1}, bytearray(b"a"), Unsaid(), object(), (1, [2]), print])
def test_what_can_change_makes_no_key(item: Any) -> None:
    with pytest.raises(TypeError, match="makes no key: pass a number, text or a tuple, or name one of its"):
        value(item)


def test_a_model_is_its_primary_key() -> None:
    from django.contrib.auth.models import User

    assert value(User(pk=7)) == "7"
    with pytest.raises(TypeError, match="a User that is not saved makes no key: it has no primary key"):
        value(User())


# --- templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a key template"),
        ("user:{", "is not a key template: Single '{'"),
        ("user:}", "is not a key template: Single '}'"),
        ("user:{{x}}", "a key has no braces"),
        ("user {x}", "a key has no white space in it"),
        ("user:\n", "a key has no white space in it"),
        ("user:{}", "{} is no field"),
        ("user:{x!r}", "{x!r} is no field"),
        ("user:{x:02d}", "{x:02d} is no field"),
        ("user:{x[0]}", "{x[0]} is no field"),
        ("user:{x()}", "{x()} is no field"),
        ("user:{x.}", "{x.} is no field"),
    ],
)
def test_a_wrong_template_is_named_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as raised:
        template(text)
    assert "write such as 'user:{user_id}'" in str(raised.value)


def test_a_template_is_one_object() -> None:
    made = template("doc:{doc.pk}:{lang}")
    assert template(made) is made
    assert template("doc:{doc.pk}:{lang}") == made
    assert str(made) == "doc:{doc.pk}:{lang}"
    assert made.names == {"doc", "lang"}


def test_a_field_without_a_value_is_named() -> None:
    with pytest.raises(KeyError, match="lang"):
        template("doc:{pk}:{lang}").key(pk=1)


NAMES = ("a", "b", "c")
WORDS = st.sampled_from(["doc", "user-x", "x.y", "q"])


@st.composite
def templates(draw: Any) -> Template:
    """Fields in a row, each apart from the next by a colon, with or without words between."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    parts = [draw(WORDS)]
    for name in names:
        parts += [f"{{{name}}}", *draw(st.lists(WORDS, max_size=1))]
    return template(":".join(parts))


def arguments(made: Template) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(dict.fromkeys(sorted(made.names), SINGLES))


@given(templates().flatmap(lambda made: st.tuples(st.just(made), arguments(made), arguments(made))))
def test_two_calls_have_one_key_only_if_the_texts_of_their_values_agree(case: Any) -> None:
    made, one, other = case
    same = all(said(one[name]) == said(other[name]) for name in one)
    assert (made.key(**one) == made.key(**other)) == same


@given(
    templates().flatmap(lambda made: st.tuples(st.just(made), arguments(made), arguments(made))),
    st.sets(st.sampled_from(NAMES)),
)
def test_a_pattern_is_for_exactly_the_keys_with_its_fields(case: Any, fixed: set[str]) -> None:
    made, one, other = case
    wanted = {name: item for name, item in one.items() if name in fixed}
    matches = glob_to_regex(made.pattern(**wanted)).match
    assert matches(made.key(**one))
    same = all(said(one[name]) == said(other[name]) for name in wanted)
    assert bool(matches(made.key(**other))) == same


@pytest.mark.parametrize("text", ["{a}{b}", "n:{a}-{b}", "n:{a}.{b}", "n:{a}x{b}"])
def test_fields_that_run_into_each_other_are_refused(text: str) -> None:
    """``{a}-{b}`` of "x-y" and "z" would be the key of "x" and "y-z"."""
    with pytest.raises(SettingsError, match="needs a ':' before it"):
        template(text)


# --- globs ----------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab*?[]\\^-\n:", max_size=12), st.text(alphabet="ab*?[]\\^-\n:", max_size=12))
def test_an_escaped_text_matches_itself_and_nothing_else(text: str, other: str) -> None:
    matches = glob_to_regex(escape(text)).match
    assert matches(text)
    assert bool(matches(other)) == (text == other)
    assert is_literal(escape(text))
    assert literal_start(escape(text)) == text


@given(st.text(alphabet="ab?*", max_size=8), st.text(alphabet="ab", max_size=8))
def test_simple_globs_are_those_of_the_shell(pattern: str, name: str) -> None:
    assert bool(glob_to_regex(pattern).match(name)) == fnmatch.fnmatchcase(name, pattern)


@given(st.text(alphabet="ab*?[]\\^-", max_size=8), st.text(alphabet="ab*?[]\\^-", max_size=8))
def test_what_a_pattern_matches_begins_with_its_literal_start(pattern: str, name: str) -> None:
    assert name.startswith(literal_start(pattern)) or not glob_to_regex(pattern).match(name)


@given(st.text(alphabet="ab*?[]\\^-", max_size=8), st.text(alphabet="ab*?[]\\^-", max_size=8))
def test_a_pattern_without_wildcards_matches_one_name(pattern: str, name: str) -> None:
    start = literal_start(pattern)
    assert not is_literal(pattern) or bool(glob_to_regex(pattern).match(name)) == (name == start)
