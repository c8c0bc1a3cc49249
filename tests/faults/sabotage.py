"""Two ways to get recovery wrong, each of them what somebody would write who has not thought of it.

For processes of the tests only: proof that the tests would notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis_infra.connection import endpoint, recovery
from redis_infra.resilience.failover import Effect, Failover

__all__ = ["SABOTAGES"]


class ForgetfulFailover(Failover):
    """Leaves the journal out: what Redis missed is nobody's business."""

    def _note(self, effect: Effect) -> None:
        return None


class HastyFailover(Failover):
    """Trusts Redis as soon as it answers, and puts right what it missed after the first read."""

    has_read = True

    def untrusted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def read(self, *args: Any) -> Any:
        return self._seen(super().read(*args))

    async def aread(self, *args: Any) -> Any:
        return self._seen(await super().aread(*args))

    def _seen(self, answer: Any) -> Any:
        if self.reach.closed and not self.has_read:
            self.has_read = True
            self.prober.wake()
        return answer


def forget_the_journal() -> None:
    endpoint.Failover = ForgetfulFailover  # type: ignore[misc]


def drain_after_the_first_read() -> None:
    endpoint.Failover = HastyFailover  # type: ignore[misc]
    recover = recovery._recover

    def later(database: Any, link: Any, *, everything: bool, may_sleep: bool) -> None:
        if everything:
            database.failover.has_read = False
            database.renew()
        if database.failover.has_read:
            recover(database, link, everything=False, may_sleep=may_sleep)
        else:
            time.sleep(0.005)

    recovery._recover = later


SABOTAGES: dict[str, Callable[[], None]] = {
    "the journal is left out": forget_the_journal,
    "it is drained after the first read": drain_after_the_first_read,
}
