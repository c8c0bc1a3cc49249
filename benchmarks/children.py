"""Fresh interpreters, for what happens to a process only once: starting, and meeting an outage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 120.0


def run_child(module: str, *arguments: str, bytecode: str = "") -> Any:
    """Run ``module`` and return what it printed last, read as JSON. It inherits the core of this process.

    ``bytecode`` is a directory of its own for compiled modules, used by the children that name it: then
    starting compiles nothing, whatever the surroundings say about writing bytecode.

    Raises:
        RuntimeError: It failed; the text is what it said.
        subprocess.TimeoutExpired: It took longer than two minutes.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = dict(os.environ)
    if bytecode:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = bytecode
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])
