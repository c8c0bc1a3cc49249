"""Every link of the documentation leads somewhere, and every page can be found."""

from __future__ import annotations

import re

import pytest

from redis_infra.checks import CHECKS, _Found
from tests.docs.pages import DOCS, PAGES, ROOT, Page, page

LINKS = [
    pytest.param(each, target, id=f"{each}: {target}")
    for each in PAGES
    for target in each.links
    if not target.startswith(("http://", "https://", "mailto:"))
]
FEATURES = [
    each for each in PAGES if each.path.parent.name in ("how-to", "explanation") or "signals" in each.name
]


@pytest.mark.parametrize(("source", "target"), LINKS)
def test_link_resolves(source: Page, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (source.path.parent / path).resolve() if path else source.path
    assert found.is_file()
    if anchor:
        assert anchor in Page(found).anchors


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in page("index.md").links}
    assert {*DOCS.rglob("*.md")} - linked == {DOCS / "index.md"}


@pytest.mark.parametrize("number", CHECKS)
def test_the_hint_of_a_check_leads_to_its_entry(number: str) -> None:
    found = _Found()
    found.add(number, "something is wrong")
    hint = found.messages[0].hint
    place = re.search(r"\(docs: ([\w/-]+\.md)#([\w-]+)\)$", hint or "")
    assert place
    assert place[2] in page(place[1]).anchors


def test_every_file_that_a_hint_names_exists() -> None:
    named = {name for hint in CHECKS.values() for name in re.findall(r"docs/[\w/-]+\.md", hint)}
    assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("feature", FEATURES, ids=str)
def test_a_feature_page_opens_with_its_story_in_three_lines(feature: Page) -> None:
    heading, blank, first, *rest = feature.text.splitlines()
    assert heading.startswith("# ")
    assert blank == ""
    assert first.startswith("TL;DR: ")
    assert rest.index("") <= 2
