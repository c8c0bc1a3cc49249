"""The random driver finds what it is there to find: recovery that was got wrong on purpose."""

from __future__ import annotations

from typing import Any

import pytest

from redis_infra.testing import TcpProxy
from tests.faults.conftest import DURABLE
from tests.faults.model import QUICK, Driver, Violation
from tests.faults.outages import Outage
from tests.faults.sabotage import SABOTAGES


class SabotagedDriver(Driver):
    """The same, on processes whose recovery is broken."""

    def __init__(self, *args: Any, sabotage: str, **kwargs: Any) -> None:
        self.sabotage = sabotage
        super().__init__(*args, **kwargs)

    def _start(self, who: int) -> Any:
        return self.site.process(face=self.faces[who], sabotage=self.sabotage)


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_the_driver_notices(sabotage: str, own_redis: Any, make_site: Any) -> None:
    server = own_redis(config=DURABLE)
    with TcpProxy(server.url) as proxy:
        site = make_site(proxy.url, **QUICK)
        driver = SabotagedDriver(site, Outage(server, proxy, ""), 1, sabotage=sabotage)
        with pytest.raises(Violation, match=r"is write \d+, replaced by \d+"):
            driver.run(4000)  # it ends with what it finds, after some hundred
