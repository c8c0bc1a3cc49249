"""Whatever happens in whatever order: nothing stale after a recovery, in no process, and nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from redis_infra.testing import TcpProxy
from tests.faults.conftest import DURABLE
from tests.faults.model import QUICK, Driver
from tests.faults.outages import Outage


@pytest.fixture
def drive(own_redis: Any, make_site: Any) -> Any:
    """Let a site of three processes go through random operations and faults."""

    def run(seed: int, steps: int, *, processes: int = 3, **changes: Any) -> Driver:
        server = own_redis(config=DURABLE)
        with TcpProxy(server.url) as proxy:
            outage = Outage(server, proxy, "")
            driver = Driver(make_site(proxy.url, **QUICK), outage, seed, processes=processes, **changes)
            driver.run(steps)
        return driver

    return run


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_stale_and_nothing_twice(seed: int, drive: Any) -> None:
    driver = drive(seed, 200)
    assert driver.recoveries > 3


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 108))
def test_for_thousands_of_steps(seed: int, drive: Any) -> None:
    drive(seed, 4000)
