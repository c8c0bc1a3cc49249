"""A REST server in a process of its own, so that it does not share an interpreter with who is measured.

python -m benchmarks.kv_server REDIS_URL TOKEN      prints its URL, and ends when its standard input does
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.children import ROOT

__all__ = ["rest_server"]


@contextmanager
def rest_server(redis_url: str, token: str) -> Iterator[str]:
    """Start it before a Redis and yield its URL."""
    command = [sys.executable, "-m", "benchmarks.kv_server", redis_url, token]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def main() -> None:
    from redis_infra.testing import UpstashServer

    redis_url, token = sys.argv[1:]
    with UpstashServer(redis_url, token=token) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
