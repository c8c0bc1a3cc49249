"""One fresh process: set Django and a cache up, ask it once, print how long both took as JSON.

Imports nothing before the clock runs but what every interpreter has loaded anyway, since whatever is
loaded here would be free for who is measured.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(backend: str, location: str, app: str, client_url: str) -> None:
    """Measure ``backend`` at ``location``; with a ``client_url``, a plain redis-py client beside it."""
    started = time.perf_counter()
    from django.conf import settings

    settings.configure(
        CACHES={"default": {"BACKEND": backend, "LOCATION": location}},
        INSTALLED_APPS=[app] if app else [],
        SECRET_KEY="only for benchmarks",
    )
    import django

    django.setup()
    from django.core.cache import caches

    cache: Any = caches["default"]
    imported_early = "redis" in sys.modules
    if client_url:
        import redis

        cache = redis.Redis.from_url(client_url)
    set_up = time.perf_counter() - started

    cache.set("startup", "1", 60)
    if cache.get("startup") not in ("1", b"1"):
        raise SystemExit("the cache does not keep what it is given")
    ready = time.perf_counter() - started

    import json

    print(json.dumps({"set_up": set_up, "ready": ready, "imported_early": imported_early}))


if __name__ == "__main__":
    main(*sys.argv[1:])
