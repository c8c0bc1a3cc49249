"""``cached`` and ``cached_many``: keys, lifetimes, binding, errors; sync and async, Redis and memory."""

from __future__ import annotations

import asyncio
import datetime
import gc
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.contrib.auth.models import User
from django.core.cache import caches
from django.http import HttpResponse
from django.utils.decorators import method_decorator
from django.views import View

from redis_infra import keys
from redis_infra.cache.lease import held
from redis_infra.exceptions import SettingsError
from redis_infra.querycache import ainvalidate, cached, cached_many, invalidate, loading

MEMORY = "memory://"


@pytest.fixture(params=["redis", "memory"])
def site(request, settings, tmp_path):
    """A site whose query cache is on Redis, and one without any."""
    url = MEMORY
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.flush()  # asked for by name it would be empty already
        url = server.url
    use_cache(settings, url, tmp_path)
    return request.param


@pytest.fixture
def redis_site(redis_server, settings, tmp_path):
    use_cache(settings, redis_server.url, tmp_path)
    return redis_server


def use_cache(settings, url, tmp_path, **options):
    settings.CACHES = {
        "default": {
            "BACKEND": "redis_infra.cache.RedisCache",
            "LOCATION": url,
            "KEY_PREFIX": "site",
            "OPTIONS": {"STATE_DIR": str(tmp_path / "state"), "COMMAND_TIMEOUT": "5s", **options},
        }
    }


class Loader:
    """A function to be cached that knows what it was called with."""

    def __init__(self, value=None):
        self.calls = []
        self.value = value

    def function(self):
        def load(number, lang="en", *, deep=False):
            self.calls.append((number, lang, deep))
            return self.value if self.value is not None else {"number": number, "lang": lang}

        return load


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_a_result_is_computed_once_however_it_is_asked_for():
    loader = Loader()
    load = cached("doc:{number}:{lang}", ttl=30)(loader.function())
    assert load(7) == load(7, "en") == load(number=7, lang="en") == {"number": 7, "lang": "en"}
    assert loader.calls == [(7, "en", False)]
    assert load(7, "de") == {"number": 7, "lang": "de"}


@pytest.mark.usefixtures("site")
def test_what_a_caller_does_to_a_result_is_no_business_of_the_next():
    load = cached("list:{number}", ttl=30)(lambda number: [number])
    load(1).append(2)
    load(1).append(3)
    assert load(1) == [1]


@pytest.mark.usefixtures("site")
def test_none_is_a_result_and_may_have_a_lifetime_of_its_own():
    calls = []

    def nothing(number):
        calls.append(number)

    load = cached("none:{number}", ttl=30)(nothing)
    assert load(1) is load(1) is None
    assert calls == [1]
    short = cached("short:{number}", ttl=30, none_ttl="20ms")(nothing)
    short(2)
    wait_for(lambda: short(2) is None and calls.count(2) > 1)


@pytest.mark.usefixtures("site")
def test_a_condition_says_what_is_kept():
    calls = []

    @cached("even:{number}", ttl=30, condition=lambda result: result % 2 == 0)
    def load(number):
        calls.append(number)
        return number

    assert [load(1), load(1), load(2), load(2)] == [1, 1, 2, 2]
    assert calls == [1, 1, 2]


@pytest.mark.usefixtures("site")
def test_another_version_is_a_miss():
    first = cached("v:{number}", ttl=30, version=1)(lambda number: "old")
    second = cached("v:{number}", ttl=30, version=2)(lambda number: "new")
    assert (first(1), second(1), second(1)) == ("old", "new", "new")


@pytest.mark.usefixtures("site")
def test_a_function_may_choose_the_lifetime_by_its_result():
    load = cached("chosen:{number}", ttl=lambda result: "30s" if result else "10ms")(lambda number: number)
    load(0), load(1)
    wait_for(lambda: load.get(0) is None)
    assert load.get(1) == 1


@pytest.mark.usefixtures("site")
def test_vary_makes_a_value_for_each_and_forgets_all_of_them_together():
    language = ["en"]
    load = cached("greeting:{number}", ttl=30, vary=lambda: language[0])(lambda number: language[0])
    assert load(1) == "en"
    language[0] = "de"
    assert load(1) == "de"
    assert load.invalidate(1) == 2


@pytest.mark.usefixtures("site")
def test_the_methods_of_a_cached_function():
    loader = Loader()
    load = cached("doc:{number}", ttl="documents")(loader.function())
    assert load.key(7) == "doc:7"
    assert load.get(7) is None
    assert load.uncached(7) == load(7) == load.get(7)
    assert load.refresh(7) == load(7)
    assert len(loader.calls) == 3
    assert load.invalidate(7) == 1
    assert load.get(7) is None
    assert load.__name__ == "load"


def test_the_methods_of_a_cached_coroutine_function(site):
    calls = []

    @cached("a:{number}", ttl=30)
    async def load(number):
        calls.append(number)
        return number

    assert iscoroutinefunction(load)

    async def story():
        assert await load.aget(1) is None
        assert await asyncio.gather(*(load(1) for _ in range(20))) == [1] * 20
        assert calls == [1]
        assert await load.aget(1) == 1
        assert await load.arefresh(1) == 1
        assert await load.ainvalidate(1) == 1
        assert await load.uncached(1) == 1
        assert load.key(1) == "a:1"
        return calls

    assert asyncio.run(story()) == [1, 1, 1]


@pytest.mark.usefixtures("site")
def test_methods_class_methods_and_static_methods():
    class Repository:
        def __init__(self, pk):
            self.pk = pk

        @cached("repo:{self.pk}:{number}", ttl=30)
        def load(self, number):
            return (self.pk, number)

        @cached("kind:{number}", ttl=30)
        @classmethod
        def of(cls, number):
            return (cls.__name__, number)

        @cached("static:{number}", ttl=30)
        @staticmethod
        def plain(number):
            return number

    one, two = Repository(1), Repository(2)
    assert (one.load(5), two.load(5), one.load.key(5)) == ((1, 5), (2, 5), "repo:1:5")
    assert one.load.invalidate(5) == 1
    assert two.load.get(5) == (2, 5)
    assert Repository.of(3) == one.of(3) == ("Repository", 3)
    assert Repository.of.get(3) == ("Repository", 3)
    assert Repository.plain(4) == one.plain(4) == Repository.plain.get(4) == 4


@pytest.mark.django_db
@pytest.mark.usefixtures("site")
def test_querysets_are_evaluated_and_models_make_keys(django_assert_num_queries):
    user = User.objects.create(username="ann")

    @cached("names:{owner.pk}", ttl=30)
    def same_name(owner):
        return User.objects.filter(username=owner.username)

    assert [each.pk for each in same_name(user)] == [user.pk]
    with django_assert_num_queries(0):
        assert [each.pk for each in same_name(user)] == [user.pk]
    assert same_name.key(user) == f"names:{user.pk}"


@pytest.mark.usefixtures("site")
def test_a_function_without_a_template_is_keyed_by_its_name_and_all_arguments():
    @cached(ttl=30)
    def load(number, *more, **named):
        return (number, more, named)

    assert load(1) == (1, (), {})
    assert load("1") == ("1", (), {})
    assert load(1, 2) == (1, (2,), {})
    assert load(1, b=2, a=1) == (1, (), {"a": 1, "b": 2})
    assert load.key(1, b=2, a=1) == load.key(1, a=1, b=2)
    assert len({load.key(*args) for args in [(1,), ("1",), (1, 2), (True,), (None,), ("None",), (1.5,)]}) == 7


def test_an_entry_is_found_in_redis_under_its_key(redis_site):
    load = cached("user:{user_id}", ttl=30)(lambda user_id: user_id)
    load(7)
    client = caches["default"].client.get_client()
    assert client.exists("site:1:qc:user:7")
    assert 0 < client.pttl("site:1:qc:user:7") <= 30_000


def test_jitter_shortens_and_never_lengthens(redis_site, settings):
    settings.REDIS_INFRA = {"TTL_JITTER": 0.5, "TTL": {"thing": "100s"}}
    load = cached("thing:{number}", ttl="thing")(lambda number: number)
    for number in range(40):
        load(number)
    client = caches["default"].client.get_client()
    left = [client.pttl(f"site:1:qc:thing:{number}") / 1000 for number in range(40)]
    assert 49 < min(left) < max(left) <= 100
    assert max(left) - min(left) > 10


def test_a_template_can_have_a_name(redis_site, settings):
    settings.REDIS_INFRA = {"KEYS": {"user": "u:{user_id}"}}
    load = cached("user", ttl=30)(lambda user_id: user_id)
    assert load.key(7) == "u:7"


@pytest.mark.usefixtures("redis_site")
def test_values_survive_signing_and_other_serializers(settings, redis_server, tmp_path):
    use_cache(settings, redis_server.url, tmp_path, SIGNED=True)
    load = cached("signed:{number}", ttl=30)(lambda number: [number])
    assert load(1) == load(1) == load.get(1) == [1]
    as_json = cached("json:{number}", ttl=30, serializer="json")(lambda number: {"n": number})
    assert as_json(1) == as_json(1) == {"n": 1}


def test_a_dummy_cache_keeps_nothing(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    loader = Loader()
    load = cached("doc:{number}", ttl=30)(loader.function())
    load(1), load(1)
    assert len(loader.calls) == 2
    assert load.get(1) is None
    assert load.invalidate(1) == invalidate("doc:*") == 0


def test_locmem_keeps_it_in_the_process(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    loader = Loader()
    load = cached("doc:{number}", ttl=30)(loader.function())
    load(1), load(1)
    assert len(loader.calls) == 1
    caches["default"].clear()
    load(1)
    assert len(loader.calls) == 2


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_a_loader_that_raises_is_not_kept_and_frees_the_next():
    calls = []

    @cached("bad:{number}", ttl=30)
    def load(number):
        calls.append(number)
        if len(calls) == 1:
            raise LookupError("not yet")
        return number

    with pytest.raises(LookupError, match="not yet"):
        load(1)
    assert load(1) == 1


@pytest.mark.usefixtures("site")
def test_an_expired_value_is_served_while_its_loader_raises():
    calls = []

    @cached("stale:{number}", ttl="20ms", stale="1h")
    def load(number):
        calls.append(number)
        if len(calls) > 1:
            raise LookupError
        return "first"

    load(1)
    wait_for(lambda: load(1) == "first" and len(calls) > 1)
    before = len(calls)
    assert [load(1) for _ in range(20)] == ["first"] * 20
    assert len(calls) <= before + 1  # the others were told to leave it alone for a second
    load.invalidate(1)
    with pytest.raises(LookupError):
        load(1)


@pytest.mark.usefixtures("site")
def test_what_cannot_be_pickled_raises_in_development_and_passes_through_in_production(
    settings, caplog, monkeypatch
):
    monkeypatch.setattr(loading, "_warned", set())  # of another test
    load = cached("lock:{number}", ttl=30)(lambda number: threading.Lock())
    settings.DEBUG = False
    assert load(1) is not load(1)
    assert [record.levelname for record in caplog.records if "not_cacheable" in record.message] == ["WARNING"]
    settings.DEBUG = True
    with pytest.raises(TypeError, match="lock"):
        load(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "doc:{numbre}", "ttl": 1}, "numbre.*did you mean 'number'"),
        ({"key": "doc:{number", "ttl": 1}, "doc:{number"),
        ({"key": "doc:{number!r}", "ttl": 1}, "number!r"),
        ({"key": "doc: {number}", "ttl": 1}, "white space"),
        ({"key": 7, "ttl": 1}, "7 is not a key template"),
        ({"key": "doc:{number}", "ttl": "usr"}, "usr.*did you mean 'user'"),
        ({"key": "doc:{number}", "ttl": -1}, "-1"),
        ({"key": "doc:{number}", "ttl": 0}, "0"),
        ({"key": "doc:{number}", "ttl": None}, "None is no lifetime"),
        ({"key": "doc:{number}", "ttl": 1, "version": 0}, "version 0"),
        ({"key": "doc:{number}", "ttl": 1, "condition": 3}, "condition 3"),
        ({"key": "doc:{number}", "ttl": 1, "vary": "language"}, "vary"),
        ({"key": "doc:{number}", "ttl": 1, "tags": ["{other}"]}, "tag '{other}'.*other"),
        ({"key": "doc:{number}", "ttl": 1, "serializer": "jsn"}, "jsn"),
        ({"key": "doc:{number}", "ttl": 1e30}, r"ttl: 1e\+30 is longer than"),
        ({"key": "doc:{number}", "ttl": 1, "stale": 1e30}, r"stale: 1e\+30 is longer than"),
        ({"key": "doc:{number}", "ttl": 1, "none_ttl": 1e30}, r"none_ttl: 1e\+30 is longer than"),
        ({"key": "doc:{number}", "ttl": 1, "vary": 3}, "vary 3 is not a function without arguments"),
        ({"key": "doc:{number}", "ttl": 1, "tags": 5}, r"tags 5 is no list of tags; write such as tags="),
        ({"key": "doc:{number}", "ttl": 1, "tags": None}, "tags None is no list of tags"),
        ({"key": "\ud800:{number}", "ttl": 1}, r"half characters \(surrogates\) in it, such as '\\ud800'"),
        ({"key": "a\0:{number}", "ttl": 1}, r"cannot be seen, such as '\\x00'"),
        ({"key": len, "ttl": 1}, r"takes its options first.*write cached\('user:\{user_id\}'.*\)\(len\)"),
    ],
)
def test_a_wrong_decorator_says_so_where_it_stands(options, said):
    key = options.pop("key")
    with pytest.raises(SettingsError, match=said):
        cached(key, **options)(lambda number: number)


def test_functions_that_yield_and_classes_are_refused():
    def numbers():
        yield 1

    with pytest.raises(SettingsError, match="yields"):
        cached("n", ttl=1)(numbers)
    with pytest.raises(SettingsError, match="for functions"):
        cached("n", ttl=1)(dict)
    with pytest.raises(SettingsError, match="yields its results; return a dict"):
        cached_many("n:{number}", ttl=1)(lambda numbers: (yield))


@pytest.mark.parametrize("function", [max, dict.get])
def test_functions_that_do_not_tell_their_parameters_are_refused(function):
    for decorate in (cached(ttl=1), cached_many("n:{number}", ttl=1)):
        with pytest.raises(SettingsError, match=r"tell their parameters.*decorate a function of yours"):
            decorate(function)


def test_a_method_is_decorated_by_itself_and_not_by_method_decorator():
    for decorate in (cached("page:{pk}", ttl=1), cached(ttl=1), cached_many("page:{pk}", ttl=1)):
        with pytest.raises(
            SettingsError, match=r"method_decorator.*put @cached(_many)? on the method itself"
        ):

            class Page(View):
                @method_decorator(decorate)
                def get(self, request, pk):
                    return HttpResponse(str(pk))

        with pytest.raises(SettingsError, match="on the method itself"):
            method_decorator(decorate, name="dispatch")(View)


@pytest.mark.usefixtures("site")
def test_what_is_made_a_coroutine_function_is_cached_as_one():
    calls = []

    @cached("inner:{number}", ttl=30)
    async def inner(number):
        calls.append(number)
        return number

    def blocking(number):
        calls.append(number)
        return number

    class Repository:
        @cached("repo:{number}", ttl=30)
        @sync_to_async
        def load(self, number):
            return blocking(number)

    many = cached_many("many:{number}", ttl=30)(
        sync_to_async(lambda numbers: {n: blocking(n) for n in numbers})
    )
    one = [cached("over:{number}", ttl=30)(inner), cached("sync:{number}", ttl=30)(sync_to_async(blocking))]

    async def story():
        for load in (*one, Repository().load):
            calls.clear()
            assert iscoroutinefunction(load)
            assert [await load(1), await load(1), calls] == [1, 1, [1]]
        calls.clear()
        assert [await many([1]), await many([1]), calls] == [{1: 1}, {1: 1}, [1]]

    asyncio.run(story())


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("condition", [None, len])
def test_a_sync_function_that_returns_a_coroutine_is_told_what_to_do(
    settings, caplog, monkeypatch, recwarn, condition
):
    async def found(number):
        return number

    def number_of(number):
        return found(number)

    monkeypatch.setattr(loading, "_warned", set())  # of another test
    load = cached("co:{number}", ttl=30, condition=condition)(number_of)
    settings.DEBUG = False
    assert asyncio.run(load(1)) == asyncio.run(load(1)) == 1
    assert len([record for record in caplog.records if "not_cacheable" in record.message]) == 1
    assert "decorate the coroutine function itself" in caplog.text
    settings.DEBUG = True
    with pytest.raises(TypeError, match="returned a coroutine; decorate the coroutine function itself"):
        load(1)
    with pytest.raises(TypeError, match="returned a coroutine; decorate the coroutine function itself"):
        cached_many("co:{each}", ttl=30)(number_of)([1])
    gc.collect()
    assert not [each for each in recwarn if "found' was never awaited" in str(each.message)]


@pytest.mark.django_db
@pytest.mark.usefixtures("site")
def test_a_raw_queryset_is_not_kept_since_it_would_be_queried_anew(settings, caplog, monkeypatch):
    monkeypatch.setattr(loading, "_warned", set())  # of another test
    User.objects.create(username="ann")
    load = cached("raw", ttl=30)(lambda: User.objects.raw("SELECT * FROM auth_user"))
    settings.DEBUG = False
    assert [user.username for _ in range(2) for user in load()] == ["ann", "ann"]
    assert (load.tally.computations, load.get()) == (2, None)
    assert [record.levelname for record in caplog.records if "not_cacheable" in record.message] == ["WARNING"]
    settings.DEBUG = True
    with pytest.raises(TypeError, match=r"returned a RawQuerySet; .*return list\(\.\.\.\) of it"):
        load()


@pytest.mark.usefixtures("site")
def test_the_end_of_an_iterator_is_the_runtime_error_that_it_is_in_generators():
    nothing = iter(())
    with pytest.raises(RuntimeError) as raised:
        cached("end:{number}", ttl=30)(lambda number: next(nothing))(1)
    assert isinstance(raised.value.__cause__, StopIteration)
    with pytest.raises(RuntimeError):
        cached_many("end:{number}", ttl=30)(lambda numbers: {1: next(nothing)})([1])


def test_a_bound_method_has_its_signature_without_self():
    class Repository:
        @cached("repo:{number}", ttl=30)
        def load(self, number):
            return number

        @cached("kind:{number}", ttl=30)
        @classmethod
        def of(cls, number):
            return number

        @cached_many("many:{number}", ttl=30)
        def many(self, numbers):
            return {}

    assert str(inspect.signature(Repository().load)) == str(inspect.signature(Repository.of)) == "(number)"
    assert str(inspect.signature(Repository().many)) == "(numbers)"
    assert str(inspect.signature(Repository.load)) == "(self, number)"


@pytest.mark.usefixtures("site")
def test_wrong_calls_are_the_functions_own_errors():
    load = cached("doc:{number}", ttl=30)(lambda number: number)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        load()
    with pytest.raises(TypeError, match="unexpected keyword"):
        load(1, nunber=2)
    with pytest.raises(TypeError, match="a list makes no key"):
        load([1])
    with pytest.raises(TypeError, match="object makes no key"):
        load(object())


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("wrong", ["*", "**", "", "?*", "*?", "?*?*"])
def test_nothing_and_everything_are_no_patterns(wrong):
    with pytest.raises(ValueError, match=r"cache_clear|empty"):
        invalidate(wrong)
    with pytest.raises(ValueError, match="nothing to forget"):
        invalidate()


@pytest.mark.usefixtures("site")
def test_a_forgotten_f_is_an_error_and_forgets_nothing():
    keep = cached("keep:{number}", ttl=30, tags=["tag:{number}"])(lambda number: number)
    keep(1)
    said = r"'keep:{x}' has the field {x} and no value for it; write f'keep:{x}', .*'keep:{x}', x=\.\.\.\)"
    with pytest.raises(ValueError, match=said):
        invalidate("keep:{x}")
    with pytest.raises(ValueError, match=said):
        asyncio.run(ainvalidate("keep:{x}"))
    with pytest.raises(ValueError, match=r"'tag:{x.pk}' has the field {x} .* somebody typed$"):
        invalidate(tag="tag:{x.pk}")
    with pytest.raises(ValueError, match=r"'keep:\{1\}' has braces in it"):
        invalidate("keep:{1}")
    assert keep.get(1) == 1
    assert invalidate("keep:{x}", x=1) == 1


@pytest.mark.usefixtures("site")
def test_what_is_no_list_of_tags_is_named():
    with pytest.raises(ValueError, match=r"tags 5 is no list of tags; write such as tags=\['room:42'\]"):
        invalidate(tags=5)
    with pytest.raises(ValueError, match="no template here has a field 'chat'; there are none"):
        invalidate("chat:42:*", chat=42)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("pattern", ["user:\ud800*", "user:\udcff"])
def test_half_a_character_is_no_pattern_and_no_tag(pattern):
    with pytest.raises(ValueError, match=r"has half a character"):
        invalidate(pattern)
    with pytest.raises(ValueError, match=r"has half a character"):
        asyncio.run(ainvalidate(tag=pattern))


def test_an_alias_of_another_kind_is_refused(settings):
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://x"}
    }
    load = cached("doc:{number}", ttl=30)(lambda number: number)
    with pytest.raises(SettingsError, match=r"redis\.RedisCache, which keeps no query cache"):
        load(1)
    with pytest.raises(SettingsError, match="did you mean 'default'"):
        cached("doc:{number}", ttl=30, cache="defualt")(lambda number: number)(1)


# --- invalidation -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_patterns_and_tags_forget_what_they_are_for_and_say_how_many():
    page = cached("chat:{chat}:messages:{page}", ttl=30, tags=["room:{chat}"])(
        lambda chat, page: (chat, page)
    )
    for chat in (1, 12, 2):
        for number in range(3):
            page(chat, number)
    assert invalidate("chat:1:*") == 3
    assert [page.get(1, 0), page.get(12, 0), page.get(2, 2)] == [None, (12, 0), (2, 2)]
    assert invalidate("chat:12:messages:[01]") == 2
    assert page.get(12, 2) == (12, 2)
    assert invalidate(tag="room:2") == 3
    assert page.get(2, 1) is None
    page(2, 1), page(1, 1)
    assert invalidate("chat:2:messages:1", "*:messages:2", tags=["room:1"]) == 3
    assert [page.get(chat, number) for chat in (1, 12, 2) for number in range(3)] == [None] * 9


@pytest.mark.usefixtures("site")
def test_a_template_serves_readers_and_invalidators(settings):
    settings.REDIS_INFRA = {"KEYS": {"page": "chat:{chat}:page:{number}"}}
    load = cached("page", ttl=30)(lambda chat, number: (chat, number))
    for chat in (1, 2, "a*"):
        load(chat, 1), load(chat, 2)
    assert invalidate("page", chat=1) == 2
    assert invalidate("page", chat="a*", number=2) == 1
    assert invalidate("chat:{chat}:*", chat="a*") == 1
    assert invalidate(keys.template("chat:{chat}:page:{number}"), number=1) == 1
    assert load.get(2, 2) == (2, 2)
    assert asyncio.run(ainvalidate("page")) == 1
    with pytest.raises(ValueError, match="no template here has a field 'chta'; did you mean 'chat'"):
        invalidate("page", chta=1)


def test_patterns_and_tags_in_an_event_loop(site):
    @cached("chat:{chat}", ttl=30, tags=["all"])
    async def load(chat):
        return chat

    async def story():
        await load(1), await load(2), await load(3)
        assert await ainvalidate("chat:1") == 1
        assert await ainvalidate(tag="all") == 2
        return [await load.aget(number) for number in (1, 2, 3)]

    assert asyncio.run(story()) == [None, None, None]


@pytest.mark.usefixtures("site")
def test_text_in_a_key_cannot_widen_a_pattern_or_be_taken_for_two_fields():
    load = cached("q:{text}:{page}", ttl=30)(lambda text, page=1: text)
    odd = ["a:b", "a*", "*", "a", "ä ß", "x" * 500, "a%3Ab", "~None", "", "a[b]", "{a}", "a\\"]
    for text in odd:
        load(text)
    assert len({load.key(text) for text in odd}) == len(odd)
    for text in odd:
        assert load.get(text) == text
        assert invalidate(f"q:{keys.escape(keys.value(text))}:*") == 1


@pytest.mark.usefixtures("site")
def test_what_is_computed_while_it_is_invalidated_is_not_kept():
    began, may_end = threading.Event(), threading.Event()
    row = ["old"]

    @cached("race:{number}", ttl=30, tags=["race"])
    def load(number):
        found = row[0]
        began.set()
        assert may_end.wait(30)
        return found

    for forget in (
        lambda: invalidate("race:1"),
        lambda: invalidate("race:*"),
        lambda: invalidate(tag="race"),
    ):
        row[0] = "old"
        began.clear(), may_end.clear()
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(load, 1)
            assert began.wait(30)
            row[0] = "new"
            forget()
            may_end.set()
            assert reading.result() == "old"  # it had begun before
        assert load.get(1) is None
        assert load(1) == "new"
        invalidate("race:1")


# --- many -------------------------------------------------------------------------------------------------


class Rows:
    def __init__(self):
        self.asked = []

    def function(self):
        def load_rows(row_ids, suffix=""):
            self.asked.append(list(row_ids))
            return {row: f"row {row}{suffix}" for row in row_ids if row < 100}

        return load_rows


def test_many_are_loaded_in_one_call_for_what_is_missing(site):
    rows = Rows()
    load = cached_many("row:{row_id}", ttl=30)(rows.function())
    assert load([1, 2, 2, 1]) == {1: "row 1", 2: "row 2"}
    assert list(load([3, 2, 100, 1])) == [3, 2, 1]
    assert load(row_ids=(1, 2, 3)) == {1: "row 1", 2: "row 2", 3: "row 3"}
    assert rows.asked == [[1, 2], [3, 100]]
    assert load([]) == {}
    assert load.keys([1]) == {1: "row:1"}
    assert load.get([1, 7]) == {1: "row 1"}
    assert load.invalidate([1, 2]) == 2
    load([1, 3])
    assert rows.asked[-1] == [1]
    load.refresh([3])
    assert rows.asked[-1] == [3]


def test_many_and_one_share_their_keys(site):
    many = cached_many("row:{row_id}", ttl=30)(lambda row_ids: {row: row for row in row_ids})
    one = cached("row:{row_id}", ttl=30)(lambda row_id: "another")
    many([1])
    assert one(1) == 1


def test_many_take_a_few_round_trips(redis_site):
    load = cached_many("row:{row_id}", ttl=30, tags=["row"])(lambda row_ids: {row: row for row in row_ids})
    load(range(10))
    client = caches["default"].client.get_client()
    load.invalidate(range(10))
    client.config_resetstat()
    load(range(200))
    commands = client.info("commandstats")
    assert commands["cmdstat_mget"]["calls"] == 1
    assert load(range(200)) == {row: row for row in range(200)}
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == 2


def test_many_in_an_event_loop(site):
    calls = []

    @cached_many("arow:{row_id}", ttl=30, tags=["{row_id}"])
    async def load(row_ids):
        calls.append(row_ids)
        await asyncio.sleep(0.05)
        return {row: row for row in row_ids}

    async def story():
        found = await asyncio.gather(*(load([1, 2, 3]) for _ in range(10)))
        assert found == [{1: 1, 2: 2, 3: 3}] * 10
        assert calls == [[1, 2, 3]]
        assert await load.aget([1, 9]) == {1: 1}
        assert await load.ainvalidate([1]) == 1
        assert await ainvalidate(tag="2") == 1
        assert await load([1, 2, 3]) == {1: 1, 2: 2, 3: 3}
        assert calls[1:] == [[1, 2]]
        await load.arefresh([3])

    asyncio.run(story())
    assert calls[-1] == [3]


@pytest.mark.usefixtures("site")
def test_many_by_method_with_an_attribute_of_each():
    class Doc:
        def __init__(self, pk):
            self.pk = pk

        def __hash__(self):
            return self.pk

        def __eq__(self, other):
            return self.pk == other.pk

    class Store:
        @cached_many("doc:{doc.pk}:{lang}", ttl=30)
        def texts(self, docs, lang):
            return {doc: f"{doc.pk} {lang}" for doc in docs}

    assert list(Store().texts([Doc(1), Doc(2)], "en").values()) == ["1 en", "2 en"]
    assert list(Store().texts([Doc(2)], lang="en").values()) == ["2 en"]


@pytest.mark.usefixtures("site")
def test_many_serve_expired_values_when_their_loader_raises():
    calls = []

    @cached_many("st:{row_id}", ttl="20ms", stale="1h")
    def load(row_ids):
        calls.append(row_ids)
        if len(calls) > 1:
            raise LookupError
        return {row: row for row in row_ids}

    load([1, 2])
    wait_for(lambda: load([1, 2]) == {1: 1, 2: 2} and len(calls) > 1)
    with pytest.raises(LookupError):
        load([3])


@pytest.mark.usefixtures("site")
def test_many_do_not_serve_what_was_invalidated_while_their_loader_failed():
    calls = []

    @cached_many("st:{row_id}", ttl="1ms", stale="1h")
    def load(row_ids):
        calls.append(row_ids)
        if len(calls) > 1:
            invalidate("st:1", "st:2")
            raise LookupError
        return {row: row for row in row_ids}

    load([1, 2])
    with pytest.raises(LookupError):
        wait_for(lambda: load([1, 2]) and len(calls) > 1)


@pytest.mark.usefixtures("site")
def test_many_let_go_of_their_leases_whatever_goes_wrong(settings):
    settings.DEBUG = True
    load = cached_many("bad:{row_id}", ttl=30)(lambda row_ids: {row: threading.Lock() for row in row_ids})
    with pytest.raises(TypeError, match="cannot be cached"):
        load([1])
    assert not held._held
    one = cached("bad:{row_id}", ttl=30)(lambda row_id: row_id)
    assert one(1) == 1


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(("answer", "said"), [(None, "returned None"), ([1], "returned a list")])
def test_many_that_return_no_mapping_are_named(answer, said):
    @cached_many("row:{row}", ttl=60)
    def rows(numbers):
        return answer

    with pytest.raises(TypeError, match=f"rows {said}; cached_many needs a mapping"):
        rows([1])


def test_wrong_uses_of_many_say_so():
    with pytest.raises(SettingsError, match="one field that is no parameter"):
        cached_many("row:{row_ids}", ttl=1)(lambda row_ids: {})
    with pytest.raises(SettingsError, match="'a' and 'b'"):
        cached_many("row:{a}:{b}", ttl=1)(lambda row_ids: {})
    with pytest.raises(SettingsError, match="takes no collection"):
        cached_many("row:{a}", ttl=1)(no_rows)
    with pytest.raises(SettingsError, match="for functions"):
        cached_many("row:{a}", ttl=1)(dict)
    load = cached_many("row:{a}", ttl=1)(lambda rows: {})
    with pytest.raises(TypeError, match="rows is a str, not a collection"):
        load("abc")


def no_rows():
    return {}


def wait_for(condition, patience=30.0):
    ends = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("item", "written"),
    [
        (7, "7"),
        ("plain-text_1", "plain-text_1"),
        (None, "~None"),
        (True, "True"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (b"\x00a", "%00a"),
        (("a", 1), "~(a,1)"),
        (frozenset({"b", "a"}), "~s(a,b)"),
    ],
)
def test_how_values_are_written(item, written):
    assert keys.value(item) == written
