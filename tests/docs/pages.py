"""The documentation as the tests see it: pages with their code blocks, anchors and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path

__all__ = ["DOCS", "PAGES", "ROOT", "Block", "Page", "page"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (?P<text>.+)$", re.MULTILINE)
_ANCHOR = re.compile(r'<a id="(?P<name>[^"]+)">')


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: what it holds, and the line of the page on which that begins."""

    language: str
    source: str
    line: int


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[Block]:
        """Return the fenced blocks in these languages, or all, in their order."""
        found = [self._block(match) for match in _FENCE.finditer(self.text)]
        return [block for block in found if not languages or block.language in languages]

    def _block(self, found: re.Match[str]) -> Block:
        line = self.text.count("\n", 0, found.start("source")) + 1
        return Block(found["language"], found["source"], line)

    @cached_property
    def anchors(self) -> set[str]:
        """What a link to this page may end in, as GitHub makes it of headings, and ``<a id>``."""
        headings = [_slug(found["text"]) for found in _HEADING.finditer(self.prose)]
        return {*headings, *(found["name"] for found in _ANCHOR.finditer(self.prose))}

    @cached_property
    def links(self) -> list[str]:
        """The targets of all links, as they are written."""
        return [found["target"] for found in _LINK.finditer(self.prose)]

    def table(self, first_heading: str) -> list[list[str]]:
        """Return the rows of every table whose first heading this is, without heading and rule."""
        lines = self.prose.splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |")]
        assert starts, f"no table {first_heading!r} in {self}"
        rows = (takewhile(lambda line: line.startswith("|"), lines[start + 2 :]) for start in starts)
        return [_cells(row) for row in chain.from_iterable(rows)]

    def __str__(self) -> str:
        return self.name


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")]


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def page(name: str) -> Page:
    """Return the page of that name, relative to ``docs/``."""
    return Page(DOCS / name)


PAGES = [Page(ROOT / "README.md"), Page(ROOT / "CHANGELOG.md"), *map(Page, sorted(DOCS.rglob("*.md")))]
