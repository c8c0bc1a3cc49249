"""A crowd: processes that ask one limiter's questions as fast as they can, and the proof that it held.

Each admission is known to lie between the moment before the question and the moment after the answer, by the
clock that all processes of a host share. More than the limit whose moments all fit into one window is a
violation, whoever was away meanwhile; anything less certain is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.site import uncounted_environ

ROOT = Path(__file__).parent.parent.parent


class Answer(NamedTuple):
    """One question and its answer; seconds of the monotonic clock."""

    asked: float
    told: float
    policy: str
    identity: str
    allowed: bool
    source: str

    @property
    def took(self) -> float:
        return self.told - self.asked


@dataclass(slots=True)
class Crowd:
    """Processes asking ``policies`` of ``identities`` in turn, until they are told to stop."""

    settings: dict[str, Any]
    policies: Sequence[str]
    identities: Sequence[str]
    size: int = 8
    pause: float = 0.0
    """Seconds between two questions of a process."""
    most: int = 0
    """Questions of a process; 0 for as many as there is time for."""
    threads: int = 1
    nice: int = 5
    """Eight of them take all of a small machine, and another worker's tests have deadlines."""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Crowd:
        for _ in range(self.size):
            self.processes.append(self.start())
        try:
            for process in self.processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> subprocess.Popen[str]:
        told = {
            "settings": self.settings,
            "policies": list(self.policies),
            "identities": list(self.identities),
            "pause": self.pause,
            "most": self.most,
            "threads": self.threads,
            "nice": self.nice,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "tests.throttling.one_of_a_crowd", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**uncounted_environ(), "PYTHONPATH": str(ROOT)},
        )

    def go(self) -> None:
        """Let all of them begin at once."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def answers(self) -> list[Answer]:
        """Stop them, and return all that they were told."""
        found = []
        for process in self.processes:
            if process.poll() is None and process.stdin is not None:
                process.stdin.close()
        for process in self.processes:
            assert process.stdout is not None
            text = process.stdout.read()
            process.wait(30)
            found += [Answer(*json.loads(line)) for line in text.splitlines() if line.endswith("]")]
        return found

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(30)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()


def worst(answers: Sequence[Answer], window: float) -> int:
    """Return the most that were certainly let through within one window, of any one policy and identity."""
    most = 0
    for whose in {(answer.policy, answer.identity) for answer in answers}:
        admitted = sorted(
            (a for a in answers if a.allowed and (a.policy, a.identity) == whose), key=lambda a: a.told
        )
        for index, last in enumerate(admitted):
            inside = [a for a in admitted[: index + 1] if a.asked > last.told - window]
            most = max(most, len(inside))
    return most


def sources(answers: Sequence[Answer]) -> Counter[str]:
    """Return how many were let through by whom."""
    return Counter(answer.source for answer in answers if answer.allowed)


def slowest(answers: Sequence[Answer]) -> float:
    return max(answer.took for answer in answers)


def wait_until(moment: float) -> None:
    """Return at a moment of the monotonic clock, by the wall: what is waited for is time itself."""
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
