"""Measure redis_infra beside its peers and print tables in Markdown.

python -m benchmarks                                    every suite, some minutes
python -m benchmarks cache --quick                      one suite, less than a minute, rougher
python -m benchmarks cache --only get --only aget_many  these rows
python -m benchmarks profile get                        function calls of one operation
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from benchmarks import cache, kv, profiling, querycache, throttle
from benchmarks.contest import Say
from benchmarks.harness import FULL, QUICK, Plan, Table, pin_to_one_core
from benchmarks.peers import OURS
from benchmarks.server import server_version


class Suite(Protocol):
    """What a module must have to be a suite."""

    ROWS: tuple[str, ...]

    def run(self, plan: Plan, only: Sequence[str], say: Say) -> list[Table]: ...


SUITES: dict[str, Suite] = {"cache": cache, "throttle": throttle, "querycache": querycache, "kv": kv}
PACKAGES = ("Django", "django-redis", "redis", "hiredis")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    core = pin_to_one_core()
    if options.what == "profile":
        return print_profile(parser, options)
    unknown = sorted(set(options.only) - set(known_rows(options.what)))
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; rows are: {', '.join(known_rows(options.what))}")
    tables = [table for name in suites(options.what) for table in run_suite(name, options)]
    write(tables, environment(core), options)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", default="all", choices=["all", *SUITES, "profile"])
    parser.add_argument("operation", nargs="?", choices=profiling.OPERATIONS, help="with profile: which one")
    parser.add_argument("--peer", default=OURS, help="with profile: whose (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--only", metavar="ROW", action="append", default=[], help="measure this row; repeatable"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the Markdown there too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    return parser


def suites(what: str) -> list[str]:
    """Return the names of the suites that ``what`` stands for."""
    return list(SUITES) if what == "all" else [what]


def known_rows(what: str) -> list[str]:
    """Return the rows that ``--only`` may name."""
    return [row for name in suites(what) for row in SUITES[name].ROWS]


def run_suite(name: str, options: argparse.Namespace) -> list[Table]:
    """Measure one suite, naming each row on standard error as its turn comes."""
    plan = QUICK if options.quick else FULL
    only = [row for row in options.only if row in SUITES[name].ROWS]
    if options.only and not only:
        return []
    return SUITES[name].run(plan, only, lambda row: print(f"{name}: {row}", file=sys.stderr, flush=True))


def print_profile(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Print the profile of one operation."""
    if options.operation is None:
        parser.error(f"profile what? One of: {', '.join(profiling.OPERATIONS)}")
    try:
        print(profiling.profile(options.operation, options.peer))
    except LookupError as error:
        parser.error(str(error))
    return 0


def write(tables: Sequence[Table], facts: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the tables as Markdown, and leave them in the files asked for."""
    text = "\n".join([table.markdown() for table in tables] + [describe(facts)])
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.json:
        found = {"environment": facts, "tables": [table.as_dict() for table in tables]}
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment(core: int | None) -> dict[str, Any]:
    """Return where the figures come from."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "pinned_to_core": core,
        "server": server_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the environment in a sentence."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    pinned = "not pinned" if facts["pinned_to_core"] is None else "client and server on one core"
    return (
        f"Python {facts['python']}, {packages}; {facts['system']} {facts['machine']}, "
        f"{facts['cores']} cores, {pinned}; a private {facts['server']} over loopback.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
