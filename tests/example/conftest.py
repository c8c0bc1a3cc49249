"""The example site as processes of its own: commands that end, and a demo that serves.

Nothing of it runs in the test process, whose settings are another site's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from example_project.relay.demo.visitor import Visitor

ROOT = Path(__file__).parents[2]
LIMIT = 100.0
"""Seconds that a command of the example may take on a busy machine."""

Manage = Callable[..., subprocess.CompletedProcess[str]]


def environment(**changes: str | None) -> dict[str, str]:
    """What a person's shell would have: no Redis named, no settings of the tests, and ``changes``.

    Nor is coverage measured there: what these processes do of the package its own tests do as well.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COVERAGE_", "REDIS_", "RELAY_", "DJANGO_")) and name != "CI"
    }
    base = {**kept, "PYTHONDEVMODE": "1", **changes}
    return {name: value for name, value in base.items() if value is not None}


@pytest.fixture
def manage(tmp_path: Path) -> Manage:
    """Run ``manage.py`` to its end, on a database of the test's own: ``manage("check", REDIS_URL=...)``."""

    def run(*arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
        env.setdefault("RELAY_DATABASE", str(tmp_path / "relay.sqlite3"))
        return run_python("manage.py", *arguments, **env)

    return run


def run_python(*arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Run this Python in the project's directory."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A demo that serves, and what it said when it began."""

    url: str
    password: str
    process: subprocess.Popen[str]
    said: str
    """What it printed before it served."""

    def visitor(self) -> Visitor:
        """A visitor who has not signed in, but has the cookie that forms need."""
        visitor = Visitor(self.url)
        visitor.get("/login/")
        return visitor

    def member(self) -> Visitor:
        """A visitor who has signed in."""
        visitor = self.visitor()
        assert visitor.post("/login/", username="demo", password=self.password).status == 302
        return visitor


@contextmanager
def serving(**env: str | None) -> Iterator[Demo]:
    """Serve a demo on a free port for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--port", "0", "--no-browser"],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = _read_until(process.stdout, "Ctrl-C")
        found = re.search(r"(http://\S+:\d+)/.*sign in as demo with (\S+)", said, re.DOTALL)
        assert found, f"{said}\n{process.communicate()[1]}"
        yield Demo(url=found[1], password=found[2], process=process, said=said)
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT)


def _read_until(stream: IO[str], word: str) -> str:
    lines: list[str] = []
    while line := stream.readline():
        lines.append(line)
        if word in line:
            break
    return "".join(lines)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """A demo on a server of its own, for the tests of one file."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def member(demo: Demo) -> Visitor:
    """A visitor of it who has signed in."""
    return demo.member()
