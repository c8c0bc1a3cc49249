"""What exists is documented, what is documented exists: asked of the live objects."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from typing import Any

import pytest
from django.core.management import find_commands, load_command_class

from benchmarks.__main__ import build_parser
from redis_infra import exceptions
from redis_infra.cache import RedisCache, signals
from redis_infra.checks import CHECKS, TAG
from redis_infra.conf import STORE_VARIABLES, Settings
from redis_infra.conf.django_redis import ACCEPTED
from redis_infra.conf.readers import SCHEMES
from redis_infra.conf.schema import known_settings
from redis_infra.instrumentation import Transition
from redis_infra.kv import Command, KVStore, Pipeline, StoreHealth
from redis_infra.observability import doctor, health
from tests.docs.pages import DOCS, PAGES, ROOT, Page, page
from tests.example.conftest import run_python

REFERENCE = [each for each in PAGES if each.path.is_relative_to(DOCS)]
PACKAGES = [
    *("redis_infra.cache", "redis_infra.cache.signals", "redis_infra.exceptions", "redis_infra.testing"),
    *("redis_infra.throttling", "redis_infra.throttling.decorators", "redis_infra.throttling.drf"),
    *("redis_infra.throttling.middleware", "redis_infra.throttling.signals", "redis_infra.throttling.auth"),
    *("redis_infra.querycache", "redis_infra.keys", "redis_infra.kv"),
]


def names(within: Page) -> set[str]:
    """Return what stands between backticks, and each word of it."""
    code = re.findall(r"`([^`\n]+)`", within.prose)
    return {*code, *(word for text in code for word in re.findall(r"[\w.:+*-]+", text))}


# --- settings


def settings_by_name() -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, reader and default of every setting, nested ones as ``RETRY["base"]``."""
    defaults = Settings()
    for name, read in known_settings(Settings).items():
        default = getattr(defaults, name.lower())
        if not isinstance(read, type):
            yield name, read, default
            continue
        for nested, read_nested in known_settings(read).items():
            yield f'{name}["{nested}"]', read_nested, getattr(default, nested.lower())


SETTINGS = {name: (read, default) for name, read, default in settings_by_name()}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_is_documented_with_its_default(name: str) -> None:
    read, default = SETTINGS[name]
    rows = [row for row in page("reference/settings.md").table("setting") if row[0] == f"`{name}`"]
    assert len(rows) == 1
    assert read(ast.literal_eval(rows[0][2].strip("`")), name) == default


def test_every_documented_setting_exists() -> None:
    said = {row[0].strip("`") for row in page("reference/settings.md").table("setting")}
    assert said == {*SETTINGS, *known_settings(Settings)}


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_option_of_django_redis_is_documented(name: str) -> None:
    said = [row[0] for row in page("reference/settings.md").table("option")]
    assert any(f"`{name}`" in cell for cell in said)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme_is_documented(scheme: str) -> None:
    assert f"`{scheme}://" in page("reference/settings.md").text


# --- checks


def test_checks_are_documented_once_each() -> None:
    text = page("reference/checks.md").text
    said = re.findall(rf"^### ({TAG}\.[EW]\d+):", text, re.MULTILINE)
    listed = re.findall(rf"^\| \[`({TAG}\.[EW]\d+)`\]", text, re.MULTILINE)
    assert said == listed == [f"{TAG}.{number}" for number in CHECKS]


# --- commands


EVERYBODYS = {
    *("--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback"),
    *("--no-color", "--force-color", "--skip-checks"),
}


def options_of(parser: ArgumentParser) -> set[str]:
    """Return the long options of a command, without those that every command of Django's has."""
    options = [option for action in parser._actions for option in action.option_strings]
    return {option for option in options if option.startswith("--")} - EVERYBODYS


def section(title: str) -> str:
    """Return what reference/commands.md says under a heading."""
    text = page("reference/commands.md").text
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


@pytest.mark.parametrize("command", find_commands(str(ROOT / "redis_infra/management")))
def test_command_is_documented_with_its_options(command: str) -> None:
    parser = load_command_class("redis_infra", command).create_parser("manage.py", command)
    assert options_in(section(command)) == options_of(parser)


def test_the_demo_is_documented_with_its_options() -> None:
    told = run_python("manage.py", "demo", "--help").stdout
    usage = told.partition("--version")[0]
    assert options_in(section("demo")) == options_in(usage)


def test_the_benchmarks_are_documented_with_their_options() -> None:
    assert options_in(section("python -m benchmarks")) == options_of(build_parser())


# --- errors, names, methods


def errors() -> list[str]:
    return [*exceptions.__all__, "RedisUnavailable", "ServerError"]


@pytest.mark.parametrize("name", errors())
def test_error_is_documented(name: str) -> None:
    assert name in names(page("reference/errors.md"))


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    from redis_infra.connection.failures import RedisUnavailable

    tree = page("reference/errors.md").blocks("text")[0].source
    drawn = re.findall(r"^(\W*)(\w+)", tree, re.MULTILINE)
    above: list[str] = []
    for indent, name in drawn:
        cls = RedisUnavailable if name == "RedisUnavailable" else getattr(exceptions, name)
        depth = len(indent) // 4
        above[depth:] = [name]
        assert depth == 0 or above[depth - 1] in [base.__name__ for base in cls.__bases__]
    assert {name for _, name in drawn} == {*errors()} - {"ServerError"}


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in PACKAGES for name in import_module(package).__all__]
)
def test_public_name_is_documented(package: str, name: str) -> None:
    assert any(name in names(each) for each in REFERENCE), f"{package}.{name}"


@pytest.mark.parametrize("name", [name for name in dir(RedisCache) if not name.startswith("_")])
def test_method_of_the_cache_is_documented(name: str) -> None:
    assert name in names(page("reference/cache.md"))


@pytest.mark.parametrize("kind", [KVStore, Pipeline, StoreHealth, Command], ids=lambda kind: kind.__name__)
def test_member_of_the_store_is_documented(kind: type) -> None:
    said = names(page("reference/kv.md"))
    members = {name for name in dir(kind) if not name.startswith("_")}
    # A twin is documented with its method.
    assert {name for name in members - said if name[:1] != "a" or name[1:] not in members} == set()


def test_variable_that_decides_about_the_store_is_documented() -> None:
    rows = page("reference/kv.md").text.partition("## Which store it is")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in rows or f"`{name}=" in rows for name in STORE_VARIABLES)


def test_what_status_says_is_documented(make_cache: Any, redis_server: Any) -> None:
    said = names(page("reference/cache.md"))
    status = make_cache(redis_server.url).status()
    assert {*status, *status["counters"]} <= said


# --- logs, signals, health


def logged_events() -> set[str]:
    """Return the first word of every message that the app logs."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "redis_infra").rglob("*.py")]
    nodes = chain.from_iterable(ast.walk(ast.parse(source)) for source in sources if "logger." in source)
    calls = [
        node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")
    ]
    texts = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    return {text.split()[0] for text in texts if isinstance(text, str)}


def test_every_event_is_documented_and_no_other() -> None:
    said = {row[0].strip("`") for row in page("reference/signals-and-logs.md").table("event")}
    assert said == logged_events()


def test_what_a_line_carries_is_documented() -> None:
    said = names(page("reference/signals-and-logs.md"))
    carried = {each.name for each in dataclasses.fields(Transition)} | {"suppressed"}
    assert {f"redis_infra.{name}" for name in carried} <= said


def test_signals_send_what_is_documented() -> None:
    sent: dict[str, set[str]] = {}

    def unavailable(**facts: Any) -> None:
        sent["redis_unavailable"] = {*facts}

    def recovered(**facts: Any) -> None:
        sent["redis_recovered"] = {*facts}

    signals.redis_unavailable.connect(unavailable)
    signals.redis_recovered.connect(recovered)
    signals._send(Transition(server="s", circuit="reach", before="closed", after="open"))
    signals._send(Transition(server="s", circuit="reach", before="recovering", after="closed"))
    signals.redis_unavailable.disconnect(unavailable)
    signals.redis_recovered.disconnect(recovered)
    rows = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in _signal_rows()}
    rows["redis_recovered"] |= rows["redis_unavailable"]
    assert {name: facts - {"signal", "sender"} for name, facts in sent.items()} == rows


def _signal_rows() -> list[list[str]]:
    return page("reference/signals-and-logs.md").table("signal")


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("field of an alias", health.AliasHealth),
        ("field of a worker", health.Worker),
        ("field of a finding", health.Finding),
    ],
)
def test_field_of_the_health_json_is_documented(heading: str, kind: Any) -> None:
    cells = [row[0] for row in page("how-to/check-health.md").table(heading)]
    said = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert said == {each.name for each in dataclasses.fields(kind)}


def test_the_example_of_the_health_json_has_its_shape() -> None:
    example = json.loads(page("how-to/check-health.md").blocks("json")[0].source)
    report = health.HealthReport(
        status="warn", time=0.0, aliases=(health.AliasHealth(alias="default", status="warn", state="down"),)
    )
    assert {*example} == {*report.as_dict()}
    assert example["schema"] == report.as_dict()["schema"]
    assert {*example["aliases"]["default"]} == {*report.as_dict()["aliases"]["default"]}
    (worker,) = example["aliases"]["default"]["workers"]
    assert {*worker} == {each.name for each in dataclasses.fields(health.Worker)}


def test_what_deep_looks_at_is_documented() -> None:
    said = [row[0] for row in page("how-to/check-health.md").table("finding")]
    assert sorted(said) == sorted(doctor._LOOKS)
