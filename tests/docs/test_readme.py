"""The README says what a newcomer runs, and its two lines are those of the example site."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.docs.pages import PAGES

README = PAGES[0]
SCREEN = 40
"""Lines that fit on a screen."""


@pytest.mark.parametrize(
    "command", ['pip install -e ".[dev]" && python manage.py demo', 'pip install -e ".[dev]" && pytest']
)
def test_what_a_newcomer_runs_is_on_the_first_screen(command: str) -> None:
    assert command in README.text.splitlines()[:SCREEN]


def test_its_settings_are_those_of_the_example_site() -> None:
    said: dict[str, Any] = {"INSTALLED_APPS": []}
    exec(README.blocks("python")[0].source, said)
    example = importlib.import_module("example_project.settings")
    assert said["INSTALLED_APPS"] == ["redis_infra"]
    assert "redis_infra" in example.INSTALLED_APPS
    # Relay shares its server with others, so it has a prefix; that is Django's own option.
    alone = {name: value for name, value in example.CACHES["default"].items() if name != "KEY_PREFIX"}
    assert said["CACHES"] == {"default": alone}


def test_its_settings_are_on_the_first_screen() -> None:
    assert README.blocks("python")[0].line < SCREEN


def test_there_is_a_place_for_the_figures() -> None:
    before, start, rest = README.text.partition("<!-- benchmarks:start -->\n")
    figures, end, after = rest.partition("<!-- benchmarks:end -->\n")
    assert start
    assert end
    assert figures.strip()
    assert "benchmarks:" not in before + figures + after
