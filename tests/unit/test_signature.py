"""From a call to its key: however its arguments are passed it is one, and no two calls share one."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
from django.db import models
from django.test.utils import isolate_apps
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.exceptions import SettingsError
from redis_infra.keys import glob_to_regex, template, value
from redis_infra.querycache import cached, cached_many
from redis_infra.querycache.index import Selection, bucket_of
from redis_infra.querycache.signature import automatic_key, compile_key, compile_tags, item_field, shortened

TEXTS = st.text(max_size=8) | st.text(alphabet="ab:*~%'(),", max_size=6)
SINGLES = st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.binary(max_size=4))
ARGUMENTS = SINGLES | st.lists(SINGLES, max_size=2).map(tuple)


def page(chat_id: int, page: int = 1, *, lang: str = "en") -> str:
    return f"{chat_id} {page} {lang}"


def anything(first: Any, second: Any = None) -> tuple[Any, Any]:
    return first, second


def everything(first: Any, /, *rest: Any, key: Any = None, **more: Any) -> None: ...


def key_of(text: str, function: Callable[..., Any] = page) -> Callable[..., str]:
    return compile_key(function, template(text))


# --- templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((7,), {}),
        ((7, 1), {}),
        ((), {"chat_id": 7}),
        ((7,), {"lang": "en"}),
        ((), {"page": 1, "chat_id": "7"}),
    ],
)
def test_defaults_and_names_make_no_difference(args: Any, kwargs: Any) -> None:
    assert key_of("chat:{chat_id}:{page}:{lang}")(*args, **kwargs) == "chat:7:1:en"


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"page\(\) missing 1 required positional argument: 'chat_id'"),
        ((1, 2, 3), {}, r"page\(\) takes from 1 to 2 positional arguments but 3"),
        ((1,), {"pages": 2}, r"page\(\) got an unexpected keyword argument 'pages'"),
    ],
)
def test_a_wrong_call_is_the_functions_own_error(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        key_of("chat:{chat_id}")(*args, **kwargs)


def test_all_kinds_of_parameters_can_be_fields() -> None:
    make = key_of("x:{first}:{rest}:{key}", everything)
    assert make(1, 2, 3, key="k", other=9) == "x:1:~(2,3):k"
    with pytest.raises(TypeError, match="first"):
        make(first=1)


def test_a_field_can_be_an_attribute() -> None:
    assert key_of("x:{first.real}:{first.imag}", anything)(3 + 4j) == "x:3.0:4.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat:{chat}", "there is no parameter 'chat'; did you mean 'chat_id'?"),
        ("chat:{self.pk}", "there is no parameter 'self'"),
    ],
)
def test_an_unknown_field_is_named_when_decorating(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        cached(text, ttl=5)(page)
    with pytest.raises(SettingsError, match=r"^tag "):
        cached("chat:{chat_id}", ttl=5, tags=[text])(page)


def test_several_tags_are_several_texts() -> None:
    make = compile_tags(page, [template("room:{chat_id}"), template("lang:{lang}")])
    assert make is not None
    assert make(7, lang="de") == ("room:7", "lang:de")
    assert compile_tags(page, []) is None


def test_one_of_many_is_the_field_that_is_no_parameter() -> None:
    def load(user_ids: list[int], lang: str) -> None: ...

    assert item_field(load, template("user:{user_id}:{lang}")) == "user_id"
    for text in ("user:{lang}", "user:{user_id}:{other}"):
        with pytest.raises(SettingsError, match="needs one field that is no parameter"):
            item_field(load, template(text))


# --- without a template ---------------------------------------------------------------------------------


def test_an_automatic_key_tells_text_from_numbers() -> None:
    make = automatic_key(anything)
    keys = [make(item) for item in (1, "1", True, "True", None, "None", "~None", b"1", 1.0, "1.0", "", ())]
    assert len(set(keys)) == len(keys)


def typed(item: Any) -> Any:
    """Return what two arguments have to agree in to be one."""
    return (type(item), tuple(map(typed, item))) if isinstance(item, tuple) else (type(item), item)


@given(st.tuples(ARGUMENTS, ARGUMENTS), st.tuples(ARGUMENTS, ARGUMENTS))
def test_two_calls_never_have_one_automatic_key(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    make = automatic_key(anything)
    assert (make(*one) == make(*other)) == (typed(one) == typed(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), ("1",)), (True, b"True"), ((None,), (("~None"),)), ((1, 2), ("1", 2)), ("nan", float("nan"))],
)
def test_what_looks_alike_is_not_one(one: Any, other: Any) -> None:
    make = automatic_key(anything)
    assert make(one) != make(other)


def test_the_order_of_keyword_arguments_does_not_matter() -> None:
    make = automatic_key(everything)
    assert make(1, a=1, b=2) == make(1, b=2, a=1)
    assert make(1, a=1) != make(1, a="1")
    assert make(1, 2) != make(1, (2,))


@pytest.mark.parametrize("item", [[1], {1}, {"a": [1]}, (1, [2]), object()])
def test_what_can_change_is_refused_by_name(item: Any) -> None:
    with pytest.raises(TypeError, match="makes no key"):
        automatic_key(anything)(item)


def test_a_dictionary_is_its_items() -> None:
    make = automatic_key(anything)
    assert make({1: "a", "b": 2}) == make({"b": 2, 1: "a"})
    assert make({1: "a"}) != make({"1": "a"})


def test_functions_that_share_a_name_do_not_share_keys() -> None:
    """What a closure holds is no argument of it, and tells two of them apart all the same."""

    def make(number: int) -> Callable[[], int]:
        def inner() -> int:
            return number

        return inner

    assert automatic_key(make(1))() != automatic_key(make(2))()
    assert automatic_key(make(1))() == automatic_key(make(1))()
    one = automatic_key(lambda x: x)
    another = automatic_key(lambda x: -x)
    assert one(1) != another(1)


# --- long keys ------------------------------------------------------------------------------------------

LONG = "w" * 79


@given(st.lists(st.text(alphabet="ab", min_size=60, max_size=79), min_size=4, max_size=4))
def test_a_long_key_is_in_the_bucket_of_its_first_two_fields(words: list[str]) -> None:
    key = ":".join(words)
    assert len(shortened(key)) <= 2 * 79 + 40
    assert bucket_of(shortened(key)) == bucket_of(key)


def test_a_pattern_finds_long_keys_too() -> None:
    """``search:en:<text>:*`` has to find what it fixes, however long the text is."""

    @cached("search:{lang}:{first}:{second}:{third}:{page}", ttl=5)
    def search(lang: str, first: str, second: str, third: str, page: int) -> None: ...

    pattern = template("search:{lang}:{first}:{page}").pattern(lang="en", first=LONG)
    key = search.key("en", LONG, LONG, LONG, 3)
    assert glob_to_regex(pattern).match(key)
    assert Selection.of(pattern).bucket == bucket_of(key)


@pytest.mark.parametrize("word", ["de", "d" * 70])
def test_what_varies_is_invalidated_however_long_the_key_is(word: str, settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": "memory://varies"}}

    @cached("text:{first}:{second}", ttl=5, vary=lambda: word)
    def text(first: str, second: str) -> str:
        return word

    for second in ("short", LONG):
        text(LONG, second)
        assert text.get(LONG, second) == word
        assert text.invalidate(LONG, second) == 1
        assert text.get(LONG, second) is None


# --- bad input ------------------------------------------------------------------------------------------


def test_a_data_type_that_there_is_not_is_named_with_one_that_is_near() -> None:
    with pytest.raises(SettingsError, match="ttl 'mesages' is not a data type; did you mean 'messages'"):
        cached("chat:{chat_id}", ttl="mesages")(page)


@pytest.mark.parametrize(
    "ttl", [0, -1, "-5min", "0s", None, True, float("nan"), float("inf"), "5 parsecs", []]
)
@pytest.mark.parametrize("decorator", [partial(cached, "x:{first}"), partial(cached_many, "x:{item}")])
def test_a_lifetime_that_is_none_is_refused_when_decorating(ttl: Any, decorator: Any) -> None:
    with pytest.raises(SettingsError, match="ttl"):
        decorator(ttl=ttl)(anything)


@pytest.mark.parametrize(
    "options",
    [
        {"stale": -1},
        {"stale": "soon"},
        {"none_ttl": 0},
        {"version": 0},
        {"version": True},
        {"condition": 3},
        {"vary": "lang"},
        {"serializer": "yaml"},
        {"tags": ["a b"]},
    ],
)
def test_a_wrong_option_is_refused_when_decorating(options: Any) -> None:
    with pytest.raises(SettingsError, match=re.escape(str(next(iter(options.values()))).strip("[]'"))):
        cached("x:{first}", ttl=5, **options)(anything)


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize("function", [generator, async_generator])
def test_generators_are_refused(function: Any) -> None:
    with pytest.raises(SettingsError, match="generator yields its results; return a list to have it cached"):
        cached("x", ttl=5)(function)


@pytest.mark.parametrize("thing", [int, 3, "text", None, property(page), partial(page, 1)])
def test_what_is_no_function_is_refused(thing: Any) -> None:
    with pytest.raises(SettingsError, match="@cached is for functions"):
        cached("x", ttl=5)(thing)


@pytest.mark.parametrize("key", [3, ["a"], {}, lambda: "x", b"x"])
def test_what_is_no_template_is_refused(key: Any) -> None:
    with pytest.raises(SettingsError, match="is not a key template"):
        cached(key, ttl=5)(page)


def test_a_decorator_without_its_brackets_is_refused() -> None:
    with pytest.raises((SettingsError, TypeError), match="ttl"):
        cached(page)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("text", ["user:*", "user:[{first}]", "user:?:{first}", "a\\b:{first}"])
def test_a_key_with_a_wildcard_in_its_text_is_refused(text: str) -> None:
    """A pattern of it, or ``invalidate`` of the function, would be for other keys as well, or for none."""
    with pytest.raises(SettingsError, match="wildcard"):
        cached(text, ttl=5)(anything)


def test_a_value_with_wildcards_widens_nothing() -> None:
    make = key_of("x:{first}", anything)
    pattern = template("x:{first}").pattern(first="*")
    assert glob_to_regex(pattern).match(make("*"))
    assert not glob_to_regex(pattern).match(make("a"))
    assert value("*") == "%2A"


class Point(NamedTuple):
    x: object
    y: object


class OtherPoint(NamedTuple):
    x: object
    y: object


def named_alike(name: str, kind: str, module: str) -> object:
    """Return something whose type has the same name as another one elsewhere."""
    if kind == "enum":
        return enum.Enum(name, "ON OFF", module=module).ON  # type: ignore[attr-defined]
    made = type(name, (str,), {"__module__": module, "__qualname__": name})
    return made("x")


@pytest.mark.parametrize("kind", ["enum", "text"])
def test_types_of_one_name_in_two_modules_make_two_automatic_keys(kind: str) -> None:
    key = automatic_key(lambda x: x)
    assert key(named_alike("State", kind, "shop")) != key(named_alike("State", kind, "orders"))


def test_models_of_one_name_make_two_automatic_keys() -> None:
    from django.contrib.auth.models import User

    with isolate_apps("tests"):

        class Mine(models.Model):  # noqa: DJ008
            class Meta:
                app_label = "tests"

        Mine.__name__ = Mine.__qualname__ = "User"
    key = automatic_key(lambda x: x)
    assert key(User(pk=1)) != key(Mine(pk=1))


def test_named_tuples_are_told_apart_as_tuples_are() -> None:
    key = automatic_key(lambda x: x)
    assert len({key(Point(1, 2)), key(Point("1", "2")), key(Point(True, 2)), key(Point("True", 2))}) == 4
    assert key(Point(1, 2)) == key(OtherPoint(1, 2)) == key((1, 2))  # they are equal
    assert key(frozenset({1})) != key(frozenset({"1"}))
