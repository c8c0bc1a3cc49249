"""Patterns, digests, and the names that a cache alias can make."""

from __future__ import annotations

import functools
import hashlib
import time

import pytest
from django.core.cache.backends.base import default_key_func
from hypothesis import given
from hypothesis import strategies as st

from redis_infra.exceptions import SettingsError
from redis_infra.keys import digest, escape, glob_to_regex, namespace, namespace_pattern, namespace_regex


def matches(pattern, name):
    return glob_to_regex(pattern).match(name) is not None


@pytest.mark.parametrize(
    ("pattern", "hits", "misses"),
    [
        ("user:*", ["user:", "user:7", "user:7:x", "user:\n"], ["user", "xuser:7", "User:7"]),
        ("*", ["", "a", "a\nb"], []),
        ("h?llo", ["hello", "hallo", "h\nllo"], ["hllo", "heello", "hello\n"]),
        ("h[ae]llo", ["hello", "hallo"], ["hillo"]),
        ("h[^e]llo", ["hallo", "h^llo"], ["hello", "hllo"]),
        ("h[a-c]llo", ["hallo", "hbllo", "hcllo"], ["hdllo", "h-llo"]),
        ("h[c-a]llo", ["hallo", "hbllo"], ["hdllo"]),
        ("h[a\\]]llo", ["hallo", "h]llo"], ["h\\llo"]),
        ("h[a\\-c]llo", ["hallo", "hcllo", "h-llo"], ["hbllo"]),
        ("h\\*llo", ["h*llo"], ["hello", "h\\*llo"]),
        ("a\\b", ["ab"], ["a\\b"]),
        ("a\\", ["a\\"], ["a"]),
        ("a[bc", ["ab", "ac"], ["a", "a[bc"]),
        ("[]", [], ["", "]", "[]", "a"]),
        ("[^]", ["a", "]", "^"], ["", "ab"]),
        ("[a-]", ["a", "]", "_"], ["-", "[", "b"]),
        ("[&&]", ["&"], ["&&"]),
        ("[[-]]", ["[", "\\", "]"], ["-", "[]"]),
        ("*a*b*", ["ab", "xaxbx", "ba ab"], ["ba", "a", ""]),
        ("*ab", ["ab", "abab", "xab"], ["aba"]),
        ("a*a", ["aa", "aba"], ["a"]),
        ("żó?w", ["żółw"], ["zolw"]),
    ],
)
def test_a_pattern_matches_as_in_redis(pattern, hits, misses):
    assert [name for name in hits if not matches(pattern, name)] == []
    assert [name for name in misses if matches(pattern, name)] == []


@pytest.mark.parametrize("pattern", ["user:*", "h[a-c]l?o", "[^a]\\*"])
@given(name=st.text(alphabet="user:h[abc]*lo\\7", max_size=8))
def test_a_pattern_of_bytes_says_the_same_of_bytes(pattern, name):
    assert matches(pattern.encode(), name.encode()) == matches(pattern, name)


def test_bytes_are_counted_one_by_one_as_redis_does():
    assert matches(b"z?w", "zów".encode()) is False
    assert matches(b"z??w", "zów".encode()) is True


def test_many_stars_do_not_make_matching_explode():
    """Tried naively, forty stars over a name that just fails take longer than the universe has."""
    expression = glob_to_regex("*a" * 40 + "*b")
    started = time.perf_counter()
    assert expression.match("a" * 5000) is None
    assert time.perf_counter() - started < 5


@given(st.text())
def test_an_escaped_text_matches_itself(text):
    assert matches(escape(text), text)


@given(st.text(alphabet="ab*?[]\\^-", max_size=6), st.text(alphabet="ab*?[]\\^-", max_size=6))
def test_an_escaped_text_matches_nothing_else(text, other):
    assert matches(escape(text), other) == (text == other)


def test_escaping_leaves_ordinary_names_as_they_are():
    assert escape("site-1:user:7^x") == "site-1:user:7^x"


def test_every_character_with_a_meaning_gets_a_backslash():
    assert escape(r"*?[]\ ") == r"\*\?\[\]\\ "


def test_a_digest_is_the_same_everywhere():
    assert digest("site:1:key") == "c2d7b65ea6e25fd1"


@given(st.text(), st.integers(min_value=1, max_value=64))
def test_a_digest_has_two_hexadecimal_digits_a_byte_for_any_text(text, size):
    assert len(bytes.fromhex(digest(text, size))) == size


def test_a_digest_takes_a_lone_surrogate():
    """Names that are not UTF-8 are decoded with surrogates."""
    assert digest("\udcff") != digest("\udcfe")


# --- the names of an alias: what its pattern and its namespace cover, and what they do not -----------------


def md5(text):
    return hashlib.md5(str(text).encode(), usedforsecurity=False).hexdigest()


def prefix_first(key, prefix, version):
    return f"{prefix}/{key}/{version}"


def prefix_last(key, prefix, version):
    return f"{key}@{version}@{prefix}"


def prefix_between(key, prefix, version):
    return f"{version}:{prefix}:{key}"


def behind_a_literal(key, prefix, version):
    return f"app:{prefix}:v{version:03d}:{key}"


def hashed_key(key, prefix, version):
    return f"{prefix}:{version}:{md5(key)}"


def hashed_key_and_version(key, prefix, version):
    return f"{prefix}:{md5(f'{version}{key}')}"


def hashed_first(key, prefix, version):
    return f"{md5(key)}:{prefix}:{version}"


def hashed_when_long(key, prefix, version):
    return f"{prefix}:{version}:{key if len(key) <= 250 else md5(key)}"


def sharded(key, prefix, version):
    return f"{int(md5(key), 16) % 2}:{prefix}:{version}:{key}"


def hash_tagged(key, prefix, version):
    return f"{{{prefix}:{version}}}:{key}"


def upper_case(key, prefix, version):
    return f"{prefix}:{version}:{key}".upper()


def no_separators(key, prefix, version):
    return f"{prefix}{version}{key}"


def no_version(key, prefix, version):
    return f"{prefix}:{key}"


def first_version_unnamed(key, prefix, version):
    return f"{prefix}:{key}" if version == 1 else f"{prefix}:{version}:{key}"


def refuses_odd_keys(key, prefix, version):
    if len(key) > 250 or not key.isalnum():
        raise ValueError(key)
    return f"{prefix}:{version}:{key}"


SHOWING_THE_PREFIX = [
    default_key_func,
    prefix_first,
    prefix_last,
    prefix_between,
    behind_a_literal,
    hashed_key,
    hashed_key_and_version,
    hashed_first,
    hashed_when_long,
    sharded,
    hash_tagged,
    upper_case,
    no_separators,
    no_version,
    first_version_unnamed,
]
KEYS = ["a", "", "user:7", "with space", "line\nbreak", "x" * 300, "żółw", "*?[a]\\", "1:2", "{a}"]
VERSIONS = [1, 2, 10, 0, -1, 123456]
by_name = {"ids": lambda value: getattr(value, "__name__", repr(value))}


@pytest.mark.parametrize(
    "prefix", ["", "site", "site:blog", "s*t?e[a-z]\\", "[", "30982", "ghijklmn", "żółw"]
)
@pytest.mark.parametrize("key_func", SHOWING_THE_PREFIX, **by_name)
def test_every_name_that_the_alias_can_make_is_covered(key_func, prefix):
    names = [key_func(key, prefix, version) for key in KEYS for version in VERSIONS]
    found = namespace(key_func, prefix, 1)
    assert [name for name in names if name not in found] == []
    assert [name for name in names if not matches(found.pattern, name)] == []


@pytest.mark.parametrize("prefix", ["site", "s*te", "s?te", "[s]ite", "site:2024"])
@pytest.mark.parametrize("key_func", SHOWING_THE_PREFIX, **by_name)
def test_no_name_of_an_unrelated_prefix_is_covered(key_func, prefix):
    """Glob characters in a prefix are just characters: "s*te" is not everything from s to te."""
    found = namespace(key_func, prefix, 1)
    others = [other for other in ("blog", "sxte", "s", "te", "") if other != prefix]
    names = [
        key_func(key, other, version) for key in ("a", "user") for other in others for version in VERSIONS
    ]
    assert [name for name in names if name in found] == []


@pytest.mark.parametrize(
    "other", ["site:blog", "site:blog:2", "site2", "site:", "site:-", "site:2nd", "asite"]
)
def test_a_longer_prefix_is_another_alias(other):
    found = namespace(default_key_func, "site", 1)
    names = [default_key_func(key, other, version) for key in ("a", "1:b") for version in VERSIONS]
    assert [name for name in names if name in found] == []


@pytest.mark.parametrize("other", ["site:blog", "site:", "site2", "asite"])
def test_the_pattern_alone_keeps_a_longer_prefix_out_unless_it_goes_on_with_a_digit(other):
    pattern = namespace_pattern(default_key_func, "site", 1)
    names = [default_key_func(key, other, version) for key in ("a", "b:c") for version in VERSIONS]
    assert [name for name in names if matches(pattern, name)] == []


def test_the_shorter_prefix_is_not_covered_by_the_longer():
    assert default_key_func("blog", "site", 1) not in namespace(default_key_func, "site:blog", 1)
    assert default_key_func("blog:1:x", "site", 1) not in namespace(default_key_func, "site:blog", 1)


@pytest.mark.parametrize(
    ("prefix", "version", "pattern"),
    [
        ("site", 1, "site:[-0-9]*:*"),
        ("site", -3, "site:[-0-9]*:*"),
        ("site", "7", "site:[-0-9]*:*"),
        ("", 1, ":[-0-9]*:*"),
        ("s*te", 1, r"s\*te:[-0-9]*:*"),
        ("site", "v1", "site:*:*"),
        ("site", None, "site:*:*"),
        ("site", True, "site:*:*"),
    ],
)
def test_the_pattern_of_djangos_own_names(prefix, version, pattern):
    assert namespace_pattern(default_key_func, prefix, version) == pattern


@pytest.mark.parametrize(
    "key_func", [default_key_func, prefix_first, prefix_last, hashed_key, upper_case], **by_name
)
@pytest.mark.parametrize("version", ["v1", "2026-11-21", "9f3acd", "", "1.2"])
def test_text_versions_cover_every_text_version_and_no_unrelated_prefix(key_func, version):
    found = namespace(key_func, "site", version)
    for other in (version, "v2", "beta", "7"):
        assert key_func("a", "site", other) in found
        assert matches(found.pattern, key_func("a", "site", other))
        assert key_func("a", "blog", other) not in found


def test_a_version_given_as_digits_is_handed_to_the_function_as_text():
    """VERSION out of the environment is text, and the function may rely on that."""

    def joined(key, prefix, version):
        return ":".join([prefix, version, key])

    assert namespace_pattern(joined, "site", "3") == "site:[-0-9]*:*"


def test_a_version_given_as_a_number_is_handed_to_the_function_as_a_number():
    assert namespace_pattern(behind_a_literal, "site", 1) == "app:site:v[-0-9]*:*"


def test_keys_that_the_function_refuses_do_not_matter():
    assert namespace_pattern(refuses_odd_keys, "site", 1) == "site:[-0-9]*:*"


def test_a_partial_without_a_name_of_its_own_will_do():
    key_func = functools.partial(
        lambda shop, key, prefix, version: f"{shop}:{prefix}:{version}:{key}", "shop"
    )
    assert namespace_pattern(key_func, "site", 1) == "shop:site:[-0-9]*:*"


def only_the_key(key, prefix, version):
    return key


def all_hashed(key, prefix, version):
    return md5(f"{prefix}:{version}:{key}")


def prefix_hashed_with_version(key, prefix, version):
    return f"{md5(f'{prefix}{version}')}:{key}"


@pytest.mark.parametrize("key_func", [only_the_key, all_hashed, prefix_hashed_with_version], **by_name)
def test_a_prefix_that_does_not_show_in_the_names_is_a_settings_error(key_func):
    with pytest.raises(
        SettingsError, match=f"{key_func.__name__} makes names that do not show KEY_PREFIX 'site'"
    ):
        namespace_pattern(key_func, "site", 1)


def test_a_prefix_that_is_hashed_alone_still_tells_its_names_apart():
    def prefix_hashed(key, prefix, version):
        return f"{md5(prefix)}:{version}:{key}"

    found = namespace(prefix_hashed, "site", 1)
    assert prefix_hashed("a", "site", 2) in found
    assert prefix_hashed("a", "blog", 2) not in found


@pytest.mark.parametrize("key_func", [only_the_key, all_hashed], **by_name)
def test_without_a_prefix_such_a_function_has_the_whole_database(key_func):
    assert namespace_pattern(key_func, "", 1) == "*"


def test_a_function_that_fails_is_a_settings_error_that_names_it_and_keeps_the_cause():
    def only_known_versions(key, prefix, version):
        return f"{prefix}:{ {1: 'one', 2: 'two'}[version] }:{key}"

    with pytest.raises(SettingsError, match="only_known_versions fails for key") as caught:
        namespace_pattern(only_known_versions, "site", 1)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_returns_bytes_is_a_settings_error():
    with pytest.raises(SettingsError, match="returns bytes, not str"):
        namespace_pattern(lambda key, prefix, version: key.encode(), "", 1)


def test_the_same_function_gives_the_same_namespace_again():
    """Every process of a site must mean the same names by it."""
    assert namespace(sharded, "site", 1) == namespace(sharded, "site", 2)


@given(prefix=st.text(max_size=12), key=st.text(max_size=20), version=st.integers())
def test_any_prefix_key_and_version_of_djangos_own_function_is_covered(prefix, key, version):
    found = namespace(default_key_func, prefix, 1)
    name = default_key_func(key, prefix, version)
    assert name in found
    assert matches(found.pattern, name)


@given(prefix=st.text(alphabet="a:1*", max_size=4), other=st.text(alphabet="a:1*", max_size=4), key=st.text())
def test_a_name_in_two_namespaces_is_one_that_both_aliases_can_make(prefix, other, key):
    """What is covered is never more than what the alias could have written itself."""
    name = default_key_func(key, other, 5)
    if name in namespace(default_key_func, prefix, 1):
        rest = name.removeprefix(f"{prefix}:")
        version, _, own_key = rest.partition(":")
        assert default_key_func(own_key, prefix, int(version)) == name


@pytest.mark.parametrize(
    ("function", "prefix"),
    [
        (lambda key, prefix, version: f"{prefix}:{version}:{key}", "site"),
        (lambda key, prefix, version: f"{prefix}:{version}:{key}", "a*[b]"),
        (lambda key, prefix, version: f"{prefix}-{version}{key}", "site"),
        (lambda key, prefix, version: f"{version}:{prefix}:{digest(key)}", "site"),
        (lambda key, prefix, version: f"{prefix}:{key}", "site"),
    ],
)
@pytest.mark.parametrize("version", [1, "blue"])
def test_the_expression_of_a_namespace_leaves_out_none_of_its_names(function, prefix, version):
    """Whatever it left out would not be drained, and so be served when it is out of date."""
    pattern = namespace(function, prefix, version).pattern
    regex = namespace_regex(pattern)
    versions = [1, -20, 3] if version == 1 else ["blue", "v2"]
    for made in (function(key, prefix, each) for key in ("k", "1:x", "a b\nc") for each in versions):
        assert regex.match(made)
        assert glob_to_regex(pattern).match(made)


def test_it_tells_a_version_from_a_longer_prefix():
    pattern = namespace(lambda key, prefix, version: f"{prefix}:{version}:{key}", "site", 1).pattern
    assert glob_to_regex(pattern).match("site:2nd:1:k")
    assert not namespace_regex(pattern).match("site:2nd:1:k")


def test_of_an_ordinary_glob_it_says_what_the_glob_says():
    assert namespace_regex("a?[bc]*").pattern == glob_to_regex("a?[bc]*").pattern
