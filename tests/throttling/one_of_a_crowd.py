"""One process of a crowd: asks until its standard input ends, and writes down every answer."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from typing import Any


def main() -> None:
    told = json.loads(sys.argv[1])
    os.nice(told["nice"])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django
    from django.conf import settings

    settings.REDIS_INFRA = told["settings"]
    django.setup()
    from redis_infra.throttling import RateLimiter

    limiter = RateLimiter()
    limiter.remote  # noqa: B018  # imports redis-py, which is not what a question waits for
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    threads = [threading.Thread(target=ask, args=(limiter, told)) for _ in range(told["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask(limiter: Any, told: dict[str, Any]) -> None:
    lines, count = [], 0
    while count < told["most"] if told["most"] else not is_over():
        for policy in told["policies"]:
            for identity in told["identities"]:
                asked = time.monotonic()
                decision = limiter.hit(policy, identity)
                answer = (asked, time.monotonic(), policy, identity, decision.allowed, decision.source)
                lines.append(json.dumps(answer))
        count += 1
        if told["pause"]:
            time.sleep(told["pause"])
    with LOCK:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


LOCK = threading.Lock()


def is_over() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable)


if __name__ == "__main__":
    main()
