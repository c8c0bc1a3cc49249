"""Ways to get the query cache wrong: its scripts without what makes them right.

For processes of the tests only: proof that the tests would notice.
"""

from __future__ import annotations

from collections.abc import Callable

from redis_infra.connection.scripts import Script

__all__ = ["SABOTAGES"]


def replace_source(script: Script, old: str, new: str) -> None:
    """Change a script before it is used."""
    assert old in script.source, f"{script.name}.lua has no {old!r} any more"
    script.source = script.source.replace(old, new)
    vars(script).pop("sha", None)


def fill_without_a_lease() -> None:
    from redis_infra.querycache.space import FILL

    replace_source(FILL, "if redis.call('GETRANGE', entry, 11, 18) ~= ARGV[1] then", "if false then")


def sweep_that_finds_nothing() -> None:
    from redis_infra.querycache.index import SWEEP

    replace_source(SWEEP, "if #members > 0 then", "if false then")


def rebuild_of_nothing() -> None:
    from redis_infra.querycache.rebuilding import ADD

    replace_source(ADD, "redis.call('ZADD', KEYS[at], unpack(members))", "")


SABOTAGES: dict[str, Callable[[], None]] = {
    "fills without a lease": fill_without_a_lease,
    "a sweep that finds nothing": sweep_that_finds_nothing,
    "a rebuilt index of nothing": rebuild_of_nothing,
}
